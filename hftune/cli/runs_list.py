"""``hftune runs list``: one row a run, as wide as the terminal is."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..utils.files import human_bytes
from ..utils.terminal import duration
from .tables import Column, age, console, fitted, number, one_line, print_json

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ..tracking.store import Store

__all__ = ["list_runs", "shortened", "status_text", "value_text"]

_STYLES = {
    "created": "cyan",
    "running": "bold cyan",
    "completed": "green",
    "failed": "red",
    "crashed": "red",
    "killed": "yellow",
    "preempted": "yellow",
}
_NAME = 14  # cells that a name has at least
_WORDS = re.compile(r"""(?:metrics|min|max|best|config)\.[^\s()=!<>~,"']+""")
_USUAL = ("eval_loss", "loss")
_MOST = 3  # metrics that nobody asked for by name


def status_text(status: str) -> Text:
    """A state in its colour."""
    from rich.text import Text

    return Text(status, style=_STYLES.get(status, ""))


def shortened(text: str, width: int) -> str:
    """Cuts a text to a width on the terminal, with an ellipsis."""
    from rich.text import Text

    line = Text(one_line(text))
    line.truncate(width, overflow="ellipsis")
    return line.plain


def value_text(value: Any, name: str = "") -> str:
    """A number with the digits that count, anything else as one line.

    Args:
        value (any): Of a metric or setting.
        name (str): Its name; of one in ``_bytes`` the unit is chosen. Defaults to nothing.
    """
    if isinstance(value, float) and math.isfinite(value) and name.endswith("_bytes"):
        return human_bytes(value)
    if isinstance(value, float):
        return number(value)
    return "" if value is None else one_line(value)


def list_runs(store: Store, arguments: argparse.Namespace) -> int:
    """Prints the runs that a filter finds."""
    from ..tracking.query import search_runs, summary_json

    asked = [name for name in (arguments.columns or "").split(",") if name]
    spoken = _WORDS.findall(f"{arguments.where or ''} {arguments.sort}")
    columns = asked or list(dict.fromkeys(spoken))
    limit = arguments.limit
    found = search_runs(store, arguments.where, arguments.sort, limit and limit + 1, columns)
    more = limit is not None and len(found) > limit
    found = found[:limit]
    if arguments.json:
        if not asked:
            found = [{**run, "values": {}} for run in found]
        print_json([summary_json(run) for run in found])
        return 0
    out = console()
    if not found:
        out.print("No run is like that." if arguments.where else _nothing(store))
        return 0
    if not asked:
        columns += [name for name in _metrics(store, found) if name not in columns][
            : max(0, _MOST - len(columns))
        ]
    table, left_out = _table(found, columns, out.width, asked=len(asked or spoken))
    out.print(table)
    notes = []
    if more:
        notes.append(f"There are more than {limit} runs: --limit N, or --where FILTER.")
    if left_out:
        notes.append(f"No room for {', '.join(left_out)}.")
    if notes:
        out.print("\n" + " ".join(notes), style="dim")
    return 0


def _nothing(store: Store) -> str:
    return (
        f"No runs yet in {store.url}. A recipe records its own; so does any Trainer with an "
        "ExperimentTrackingCallback."
    )


def _metrics(store: Store, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics of these runs that a run declared or that are usual."""
    from ..tracking.terms import declared_directions

    with store.read() as connection:
        declared = declared_directions(connection)
    logged = {name for run in found for name in run["metrics"]}
    names = dict.fromkeys((*sorted(declared), *_USUAL))
    return [f"metrics.{name}" for name in names if name in logged]


def _table(
    found: Sequence[Mapping[str, Any]], words: Sequence[str], width: int, asked: int
) -> tuple[Table, list[str]]:
    """The table, the first ``asked`` of the words before other columns; what had no room in it."""
    names = [one_line(run["name"]) for run in found]
    rest = 2 + asked  # ranks from here on
    values = [
        Column(
            _title(word),
            [value_text(_value(run, word), word) for run in found],
            right=True,
            rank=2 + place if place < asked else rest + (2 if place == 0 else 5 + place),
        )
        for place, word in enumerate(words)
    ]

    def columns(name_width: int) -> list[Column]:
        return [
            Column("run", [run["id"] for run in found]),
            Column("name", [shortened(name, name_width) for name in names], rank=1),
            Column("status", [status_text(run["status"]) for run in found], rank=1),
            Column("step", [_progress(run) for run in found], right=True, rank=rest + 1),
            *values,
            Column("begun", [age(run["created"]) for run in found], right=True, rank=rest + 4),
            Column("seen", [_seen(run) for run in found], right=True, rank=rest + 3),
            Column("took", [duration(run["seconds"]) for run in found], right=True, rank=rest + 10),
            Column("task", [one_line(run["task"]) for run in found], rank=rest + 11),
        ]

    narrow = columns(_NAME)
    _, left_out = fitted(narrow, width)
    kept = [c for c in narrow if c.title not in left_out and any(map(str, c.cells))]
    room = width - sum(column.width + 2 for column in kept if column.title != "name")
    wide = [c for c in columns(max(_NAME, room)) if c.title not in left_out]
    return fitted(wide, width)[0], left_out


def _title(word: str) -> str:
    if word.startswith("config."):
        return word.rpartition(".")[2]
    return one_line(word.removeprefix("metrics."))


def _value(run: Mapping[str, Any], word: str) -> Any:
    if word in run["values"]:
        return run["values"][word]
    return run["metrics"].get(word.removeprefix("metrics."))


def _progress(run: Mapping[str, Any]) -> str:
    if run["step"] is None:
        return ""
    if run["max_steps"] and run["status"] != "completed":
        return f"{run['step']:,}/{run['max_steps']:,}"
    return f"{run['step']:,}"


def _seen(run: Mapping[str, Any]) -> str:
    """When a run that goes on gave its last sign of life."""
    alive = run["status"] in ("created", "running") and run["heartbeat"]
    return age(run["heartbeat"]) if alive else ""
