"""Rows of a table of any kind, as text, with the place where each stands; problems of rows.

Everything is text, so that an image called ``NA`` or ``007`` keeps its name.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas

from ...utils.errors import DataError, did_you_mean, listed

__all__ = ["Problems", "Rows", "clean_text", "missing_column", "read_rows"]

_ALSO_CALLED = {
    "filename": ("file", "path", "image", "img", "image_name", "name"),
    "tier": ("label", "grade", "class", "rank", "quality", "category"),
    "score": ("rating", "mos", "mean", "value"),
}


@dataclasses.dataclass(frozen=True)
class Rows:
    """A table as text.

    Attributes:
        name (str): For messages.
        columns (dict of str to list of str): NFC and without white space around.
        places (list of str): Where each row stands, such as ``"metadata.csv line 2"``.
    """

    name: str
    columns: dict[str, list[str]]
    places: list[str]

    def __len__(self) -> int:
        return len(self.places)


def read_rows(source: str | Path | pandas.DataFrame, what: str) -> Rows:
    """Reads a table.

    Args:
        source (path or DataFrame): Files are ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``, their
            text UTF-8 with or without a byte order mark.
        what (str): Name of a DataFrame, for messages.

    Raises:
        DataError: If it cannot be read, has no rows, or rows of different lengths.
    """
    if isinstance(source, pandas.DataFrame):
        rows = _rows_of_frame(source, what)
    else:
        rows = _rows_of_file(Path(source))
    if not len(rows):
        raise DataError(f"{rows.name} has no rows.")
    return rows


def clean_text(value: Any) -> str:
    """Returns a value as NFC text: missing ones empty, whole numbers without a point."""
    if not isinstance(value, str):
        if value is None or value is pandas.NA or value != value:
            return ""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
    return unicodedata.normalize("NFC", str(value)).strip()


class Problems:
    """Problems of the rows of a table, collected so that they are reported together.

    Args:
        rows (Rows): The table.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._found: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._found)

    def row(self, row: int, problem: str) -> None:
        """Adds a problem of a row."""
        self._found.append((row, problem))

    def empty(self, column: str, values: Sequence[str]) -> None:
        """Adds the rows without a value in a column."""
        for row, value in enumerate(values):
            if not value:
                self.row(row, f"no {column}")

    def twice(self, what: str, values: Sequence[str]) -> None:
        """Adds the rows with a value that a row before has."""
        first: dict[str, int] = {}
        for row, value in enumerate(values):
            if value and first.setdefault(value, row) != row:
                before = self.rows.places[first[value]].removeprefix(f"{self.rows.name} ")
                self.row(row, f"{what} {value!r} is that of {before} too")

    def raise_if_any(self) -> None:
        """Raises what was found.

        Raises:
            DataError: With the problems in the order of the rows.
        """
        if not self._found:
            return
        lines = [
            f"{self.rows.places[row]}: {problem}"
            for row, problem in sorted(self._found, key=lambda found: found[0])
        ]
        if len(lines) == 1:
            raise DataError(lines[0])
        raise DataError(f"{len(lines):,} problems in {self.rows.name}:{listed(lines)}")


def missing_column(name: str, wanted: Sequence[str], columns: Iterable[str]) -> str:
    """Says that a table lacks a column, with the columns that it has.

    Args:
        name (str): The table.
        wanted (sequence of str): Names of which one would do.
        columns (iterable of str): Those that were found.
    """
    columns = list(columns)
    near = ""
    for column in columns:
        if any(column.casefold() in (w.casefold(), *_ALSO_CALLED.get(w, ())) for w in wanted):
            near = f" Did you mean {column!r}?"
    near = near or next(filter(None, (did_you_mean(w, columns) for w in wanted)), "")
    return (
        f"{name} has no column {' or '.join(map(repr, wanted))}; its columns are "
        f"{', '.join(map(repr, columns))}.{near}"
    )


def _rows_of_file(path: Path) -> Rows:
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(f"{path} is no table; expected {', '.join(_READERS)}.")
    try:
        return _READERS[suffix](path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _read_text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name} is not UTF-8 (line {line}); save it as UTF-8 (in Excel: 'CSV UTF-8')."
        ) from None


def _rows_of_csv(path: Path) -> Rows:
    text = _read_text(path)
    header = text.lstrip().split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[list[str]] = []
    places: list[str] = []
    line = 1
    try:
        for record in reader:
            if any(cell.strip() for cell in record):
                records.append([clean_text(cell) for cell in record])
                places.append(f"{path.name} line {line}")
            line = reader.line_num + 1  # a value may have line breaks
    except csv.Error as error:
        raise DataError(
            f"{path.name} line {line}: {error}; expected quotes around a whole value and doubled "
            "inside it."
        ) from None
    if not records:
        raise DataError(f"{path.name} is empty.")
    names = records.pop(0)
    del places[0]
    wrong = [
        f"{place} has {len(cells)} values, expected {len(names)}"
        for place, cells in zip(places, records, strict=True)
        if len(cells) != len(names)
    ]
    if wrong:
        raise DataError(
            f"Rows of {path.name} that do not have one value for each column "
            f"({', '.join(names)}); a value with {delimiter!r} in it needs quotes around it:"
            f"{listed(wrong)}"
        )
    _check_names(path.name, names)
    return Rows(path.name, {n: [c[i] for c in records] for i, n in enumerate(names)}, places)


def _rows_of_json(path: Path) -> Rows:
    records: list[dict[str, Any]] = []
    places: list[str] = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path.name} line {number} is no JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{path.name} line {number} is a JSON {type(record).__name__}, expected an object."
            )
        records.append(record)
        places.append(f"{path.name} line {number}")
    names = dict.fromkeys(name for record in records for name in record)
    columns = {
        clean_text(name): [clean_text(record.get(name)) for record in records] for name in names
    }
    return Rows(path.name, columns, places)


def _rows_of_parquet(path: Path) -> Rows:
    try:
        frame = pandas.read_parquet(path)
    except ValueError as error:  # what pyarrow's error is
        raise DataError(f"{path} cannot be read: {error}") from None
    return _rows_of_frame(frame, path.name)


_READERS = {
    ".csv": _rows_of_csv,
    ".tsv": _rows_of_csv,
    ".jsonl": _rows_of_json,
    ".parquet": _rows_of_parquet,
}


def _rows_of_frame(frame: pandas.DataFrame, name: str) -> Rows:
    names = [clean_text(column) for column in frame.columns]
    _check_names(name, names)
    columns = {
        name: [clean_text(value) for value in frame.iloc[:, i].tolist()]
        for i, name in enumerate(names)
    }
    return Rows(name, columns, [f"{name} row {label}" for label in frame.index])


def _check_names(table: str, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{table} has several columns {', '.join(map(repr, twice))}.")
