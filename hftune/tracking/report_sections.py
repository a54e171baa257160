"""The sections that a task adds to the report of its run, kept as data in the run's folder.

A recipe writes them once, to ``report_sections.json``, and every later report of the run has them,
long after the recipe's process is gone. What is read is not trusted, since a folder can come from
anywhere: every block is checked, a picture by :mod:`~hftune.tracking.report_markup`, and one that
does not pass is replaced by a note.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..utils.files import atomic_write, read_json
from .report import Cell, Report, Section, Tile, unique_ids
from .report_markup import checked_svg

__all__ = [
    "TaskReport",
    "TrainingHints",
    "load_task_report",
    "save_task_report",
    "section_as_dict",
    "section_from_dict",
]

_FILE = "report_sections.json"
_TONES = ("", "note", "good", "warning", "bad", "here")


@dataclasses.dataclass(frozen=True)
class TrainingHints:
    """What a task knows of its training's curves.

    Attributes:
        metric (str): The metric that chose the best model.
        label (str): What it is called.
        reference (str and float, *optional*): A baseline's name and its value of the metric.
    """

    metric: str
    label: str
    reference: tuple[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """What ``report_sections.json`` holds.

    Attributes:
        title (str): Heading of the page.
        subtitle (str): A line below it.
        sections (list of Section): Of the task.
        training (TrainingHints, *optional*): About its curves.
        attempt (int): The run's newest when this was written.
    """

    title: str = ""
    subtitle: str = ""
    sections: list[Section] = dataclasses.field(default_factory=list)
    training: TrainingHints | None = None
    attempt: int = 0


def save_task_report(
    folder: str | os.PathLike[str], report: Report, *, training: TrainingHints | None = None
) -> None:
    """Writes a task's sections into the folder of its run, atomically.

    Args:
        folder (path): With ``run.json``.
        report (Report): Its title, subtitle and sections are kept.
        training (TrainingHints, *optional*): About the training's curves.
    """
    content = {
        "format": 1,
        "attempt": len(read_json(Path(folder) / "run.json")["attempts"]),
        "title": report.title,
        "subtitle": report.subtitle,
        "training": None if training is None else dataclasses.asdict(training),
        "sections": [section_as_dict(section) for section in report.sections],
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    with atomic_write(Path(folder) / _FILE, "wb") as stream:
        stream.write(text.encode("utf-8", "replace"))


def load_task_report(folder: str | os.PathLike[str]) -> TaskReport:
    """Reads what :func:`save_task_report` wrote; a folder without it has no sections.

    A file that cannot be read becomes a section that says so.
    """
    try:
        values = read_json(Path(folder) / _FILE)
        hints = values["training"]
        return TaskReport(
            _text(values["title"]),
            _text(values["subtitle"]),
            [section_from_dict(section) for section in values["sections"]],
            None if hints is None else _hints(hints),
            _integer(values["attempt"]),
        )
    except FileNotFoundError:
        return TaskReport()
    except (OSError, *_WRONG) as error:
        section = Section("The task's own sections")
        section.text(f"{_FILE} could not be read: {type(error).__name__}: {error}", tone="warning")
        return TaskReport(sections=[section])


def section_as_dict(section: Section) -> dict[str, Any]:
    """Returns a section as JSON can hold it; NaN and infinities survive."""
    return {"title": section.title, "blocks": [_block_as_dict(block) for block in section.blocks]}


def section_from_dict(values: Mapping[str, Any]) -> Section:
    """Makes a section of what :func:`section_as_dict` returned.

    Blocks that are not as they should be are replaced by a note.

    Raises:
        KeyError, TypeError, ValueError: If it is no section at all.
    """
    section = Section(_text(values["title"]))
    for block in _list(values["blocks"]):
        try:
            kind = block["kind"]
            section.blocks.append({"kind": kind, **_READERS[kind](block)})
        except _WRONG as error:
            reason = f"no entry {error}" if isinstance(error, KeyError) else error
            section.text(f"Something was left out of this report here: {reason}.", tone="note")
    return section


# Writing


def _block_as_dict(block: Mapping[str, Any]) -> dict[str, Any]:
    kind = block["kind"]
    values = dict(block)
    if kind == "tiles":
        values["tiles"] = [_tile_as_dict(tile) for tile in block["tiles"]]
    elif kind == "flow":
        values["columns"] = [[_tile_as_dict(tile) for tile in one] for one in block["columns"]]
    elif kind == "table":
        values["columns"] = list(map(str, block["columns"]))
        values["rows"] = [[_cell_as_value(cell) for cell in row] for row in block["rows"]]
    elif kind == "pairs":
        values["pairs"] = [[str(name), _scalar(value)] for name, value in block["pairs"]]
    elif kind == "fold":
        values["section"] = section_as_dict(block["section"])
    elif kind in ("columns", "panels"):
        values["sections"] = [section_as_dict(section) for section in block["sections"]]
    return values


def _tile_as_dict(tile: Tile) -> dict[str, Any]:
    return {**dataclasses.asdict(tile), "value": _scalar(tile.value)}


def _cell_as_value(cell: Cell) -> Any:
    """The value alone where there is no more to a cell, as there mostly is not."""
    more = {
        field.name: _scalar(getattr(cell, field.name))
        for field in dataclasses.fields(Cell)
        if field.name != "value" and getattr(cell, field.name) != field.default
    }
    value = _scalar(cell.value)
    return {"value": value, **more} if more else value


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    return str(value)


# Reading


def _hints(values: Mapping[str, Any]) -> TrainingHints:
    reference = values["reference"]
    if reference is not None:
        reference = (_text(reference[0]), _finite(reference[1]))
    return TrainingHints(_text(values["metric"]), _text(values["label"]), reference)


def _read_value(value: Any) -> Any:
    if isinstance(value, dict):
        return float(_text(value["float"]))
    return value if value is None or isinstance(value, (str, bool)) else _number(value)


def _read_cell(value: Any) -> Cell:
    if not isinstance(value, dict) or "float" in value:
        return Cell(_read_value(value))
    shade, markup = value.get("shade"), _text(value.get("markup", ""))
    return Cell(
        _read_value(value["value"]),
        None if shade is None else _finite(shade),
        _text(value.get("note", "")),
        _flag(value.get("strong", False)),
        _picture(markup) if markup else "",
        min(max(_integer(value.get("digits", 4)), 1), 17),
    )


def _read_tile(value: Any) -> Tile:
    shown = _read_value(value["value"])
    return Tile(_text(value["label"]), shown, _text(value["note"]), _tone(value["tone"]))


def _read_table(block: Mapping[str, Any]) -> dict[str, Any]:
    columns = [_text(column) for column in _list(block["columns"])]
    rows = [[_read_cell(cell) for cell in _list(row)] for row in _list(block["rows"])]
    numeric = [_flag(flag) for flag in _list(block["numeric"])]
    if any(len(row) != len(columns) for row in [*rows, numeric]):
        raise ValueError("a table whose rows differ in length")
    return {
        "columns": columns, "rows": rows, "caption": _text(block["caption"]), "numeric": numeric
    }  # fmt: skip


def _read_curves(block: Mapping[str, Any]) -> dict[str, Any]:
    spec = block["spec"]
    series = []
    for line in _list(spec["series"]):
        color, x = _integer(line["color"]), [_finite(v) for v in _list(line["x"])]
        y = [None if v is None else _finite(v) for v in _list(line["y"])]
        if len(x) != len(y) or not 0 <= color < 8:
            raise ValueError("a curve that cannot be drawn")
        flags = {name: _flag(line[name]) for name in ("faint", "dashed", "dots")}
        series.append({"name": _text(line["name"]), "color": color, **flags, "x": x, "y": y})
    texts = {name: _text(spec[name]) for name in ("title", "x", "y")}
    spec = {**texts, "log": _flag(spec["log"]), "series": series}
    return {"spec": spec, "caption": _text(block["caption"])}


def _read_picture(block: Mapping[str, Any]) -> dict[str, Any]:
    texts = {"caption": _text(block["caption"]), "alt": _text(block["alt"])}
    if block["kind"] == "svg":
        return {"markup": _picture(_text(block["markup"])), **texts}
    if not re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", _text(block["data"])):
        raise ValueError("a picture that is not base64")
    return {"data": block["data"], **texts}


def _picture(markup: str) -> str:
    try:
        return unique_ids(checked_svg(markup))
    except ValueError as error:
        raise ValueError(f"a picture with more in it than a picture needs: {error}") from None


_READERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "text": lambda block: {
        "paragraphs": tuple(_text(text) for text in _list(block["paragraphs"])),
        "tone": _tone(block["tone"]),
    },
    "tiles": lambda block: {"tiles": [_read_tile(tile) for tile in _list(block["tiles"])]},
    "table": _read_table,
    "pairs": lambda block: {
        "pairs": [(_text(name), _read_value(value)) for name, value in _list(block["pairs"])]
    },
    "code": lambda block: {"text": _text(block["text"])},
    "flow": lambda block: {
        "columns": [[_read_tile(tile) for tile in _list(one)] for one in _list(block["columns"])]
    },
    "svg": _read_picture,
    "png": _read_picture,
    "curves": _read_curves,
    "fold": lambda block: {
        "section": section_from_dict(block["section"]),
        "opened": _flag(block["opened"]),
    },
    "columns": lambda block: {
        "sections": [section_from_dict(section) for section in _list(block["sections"])]
    },
    "panels": lambda block: {
        "sections": [section_from_dict(section) for section in _list(block["sections"])]
    },
}

_WRONG = (
    AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError
)  # fmt: skip
"""What reading something else than was expected raises."""


def _checked(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"found {type(value).__name__}, expected {what}")
    return value


def _text(value: Any) -> str:
    return _checked(value, str, "text")


def _tone(value: Any) -> str:
    if value not in _TONES:
        raise ValueError(f"found the tone {str(value)[:40]!r}, expected one of {', '.join(_TONES)}")
    return value


def _flag(value: Any) -> bool:
    return _checked(value, bool, "true or false")


def _integer(value: Any) -> int:
    return _checked(value, int, "a whole number")


def _number(value: Any) -> float:
    return _checked(value, (int, float), "a number")


def _finite(value: Any) -> float:
    if not math.isfinite(_number(value)):
        raise ValueError("a number that is not finite")
    return value


def _list(value: Any) -> list[Any]:
    return _checked(value, list, "a list")
