"""Reads tables row by row, strictly: what cannot be meant is a problem that names its line.

CSV is read as RFC 4180 has it. TSV has no quoting where a cell has quotes inside it that no quoting
would leave there, as in tables that were written line by line. Lines end at a line feed and nowhere
else; a carriage return inside a cell is white space.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...utils.errors import DataError

__all__ = ["SUFFIXES", "Problems", "TableFile"]

_TAB_SEPARATED = (".tsv", ".tab", ".txt")
_JSON_LINES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (".csv", *_TAB_SEPARATED, *_JSON_LINES)
"""Names of files that :class:`TableFile` reads."""

_SHOWN = 10
_UNDECODED = re.compile("[\udc80-\udcff]")
_QUOTED_RECORD = re.compile(r'(?:"(?:[^"]|"")*"|[^\t"]*)(?:\t(?:"(?:[^"]|"")*"|[^\t"]*))*\r?\n?')
_LONGEST_CELL = 1 << 30


class Problems:
    """Problems of tables, collected so that they can be reported together.

    Args:
        drop (bool): Whether rows that cannot be used are left out instead.

    Attributes:
        bad_rows (int): Number of rows that cannot be used.
    """

    def __init__(self, drop: bool = False) -> None:
        self.drop = drop
        self.bad_rows = 0
        self._rows: list[str] = []
        self._fatal: list[str] = []
        self._last = ""

    def row(self, place: str, problem: str) -> None:
        """Adds a row that cannot be used; only the first problem of a row counts."""
        if place == self._last:
            return
        self._last = place
        self.bad_rows += 1
        if len(self._rows) < _SHOWN:
            self._rows.append(f"{place}: {problem}")

    def fatal(self, problem: str) -> None:
        """Adds a problem that no leaving out of rows would solve."""
        self._fatal.append(problem)

    def shown(self) -> list[str]:
        """Returns the problems, of the rows the first ten."""
        more = self.bad_rows - len(self._rows)
        return [*self._fatal, *self._rows, *([f"and {more:,} more"] if more else [])]

    def raise_if_any(self) -> None:
        """Raises what was found.

        Raises:
            DataError: With all problems but those of rows that are dropped.
        """
        rows = 0 if self.drop else self.bad_rows
        if not rows and not self._fatal:
            return
        listed = self._fatal if not rows else self.shown()
        count = rows + len(self._fatal)
        advice = "\nCorrect the rows, or leave them out with --on_bad_rows drop." if rows else ""
        if count == 1:
            raise DataError(listed[0] + advice)
        lines = "".join(f"\n  {problem}" for problem in listed)
        raise DataError(f"{count:,} problems in the data:{lines}{advice}")


class TableFile:
    """One file with a table.

    Args:
        path (path): With a suffix of :data:`SUFFIXES`; it appears in messages as it is given.
        encoding (str): Of text. Defaults to UTF-8, with or without a byte order mark.

    Attributes:
        columns (list of str): Names of the columns.

    Raises:
        DataError: If the file cannot be opened, is empty, or has two columns of one name.
    """

    def __init__(self, path: str | Path, encoding: str = "utf-8") -> None:
        self.path = Path(path)
        self.encoding = codecs.lookup(encoding).name
        if self.encoding == "utf-8":
            self.encoding = "utf-8-sig"
        self.kind = self.path.suffix.lower()
        try:
            self._check_readable()
            self.columns = self._read_columns()
        except (OSError, UnicodeError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None

    def __str__(self) -> str:
        return str(self.path)

    def rows(self, text: str, label: str, problems: Problems) -> Iterator[tuple[str, Any, Any]]:
        """Goes through the rows whose form is right.

        Args:
            text, label (str): Names of two columns.
            problems (Problems): Where the others are added.

        Yields:
            The place (``"train.csv:12"``), the text and the label as they stand in the file.
        """
        if self.kind in _JSON_LINES:
            yield from self._json_rows(text, label, problems)
        else:
            i, j = self.columns.index(text), self.columns.index(label)
            for place, cells in self._cell_rows(problems):
                yield place, cells[i], cells[j]

    # Opening

    def _check_readable(self) -> None:
        with open(self.path, "rb") as stream:
            start = stream.read(1 << 16)
        if not start.strip():
            raise DataError(f"{self} is empty.")
        if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and "16" not in self.encoding:
            raise DataError(f"{self} is in UTF-16: give --encoding utf-16.")
        if b"\r" in start and b"\n" not in start:
            raise DataError(
                f"{self}: its lines end with a carriage return alone; convert them to line feeds."
            )

    def _read_columns(self) -> list[str]:
        if self.kind in _JSON_LINES:
            first = next((line for line in _Lines(self, Problems()) if line.strip()), "")
            try:
                columns = list(json.loads(first).keys())
            except (ValueError, AttributeError):
                raise DataError(
                    f"{self}:1: no JSON object; expected one on each line, such as "
                    '{"text": "...", "label": "..."}.'
                ) from None
        else:
            first = next((line for line in _Lines(self, Problems()) if line.strip()), "")
            self._delimiter = max(",\t;", key=first.count) if self.kind == ".csv" else "\t"
            self._quoting = self.kind == ".csv" or self._is_quoted()
            columns = next((cells or [] for _, cells, _ in self._records(Problems())), [])
        columns = [column.strip() for column in columns]
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise DataError(f"{self}:1: several columns are named {_listed(twice)}.")
        return columns

    # Text

    def _is_quoted(self) -> bool:
        """Whether all quotes of a TSV file are where quoting would put them."""
        pending, found = "", False
        for line in _Lines(self, Problems()):
            record = pending + line
            if '"' not in record:
                continue
            if _QUOTED_RECORD.fullmatch(record):
                pending, found = "", True
            elif record.count('"') % 2:
                pending = record
            else:
                return False
        return found and not pending

    def _records(self, problems: Problems) -> Iterator[tuple[int, list[str] | None, _Lines]]:
        """First line, cells and the lines read so far, of each record; no cells where it is bad."""
        lines = _Lines(self, problems)
        if not self._quoting:
            for line in lines:
                cells = line.rstrip("\r\n").split(self._delimiter) if line.strip() else []
                yield lines.number, None if lines.bad == lines.number else cells, lines
            return
        csv.field_size_limit(_LONGEST_CELL)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            first, cells = lines.number + 1, None
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                if lines.ended:
                    problems.fatal(
                        f"{self}:{first}: the quote that opens a cell here is not closed up to the "
                        f"end of the file, line {lines.number}: the file is cut in the middle of a "
                        'row, or a quote inside a cell is not doubled ("").'
                    )
                    return
                problem = "text after the quote that closes a cell; a quote inside is doubled"
                if lines.number == first:
                    problems.row(f"{self}:{first}", f'{problem} ("")')
                else:  # rows that may be good are in between
                    problems.fatal(f'{self}:{first} to {lines.number}: {problem} ("").')
            yield first, None if lines.bad >= first else cells, lines

    def _cell_rows(self, problems: Problems) -> Iterator[tuple[str, list[str]]]:
        width = len(self.columns)
        records = self._records(problems)
        next(records)  # the header
        for first, cells, lines in records:
            if not cells:
                continue
            if len(cells) == width:
                yield f"{self}:{first}", cells
            elif len(cells) < width and lines.cut:
                problems.fatal(
                    f"{self}:{first}: the file is cut in the middle of its last row, which has "
                    f"{_cells(len(cells))}, expected {width}."
                )
            else:
                problems.row(
                    f"{self}:{first}",
                    f"{_cells(len(cells))}, expected {width} ({', '.join(self.columns)})",
                )

    def _json_rows(
        self, text: str, label: str, problems: Problems
    ) -> Iterator[tuple[str, Any, Any]]:
        lines = _Lines(self, problems)
        for line in lines:
            place = f"{self}:{lines.number}"
            if lines.bad == lines.number or not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                if lines.cut:
                    problems.fatal(f"{place}: the file is cut in the middle of its last row.")
                else:
                    problems.row(place, f"no JSON: {error}")
                continue
            if not isinstance(values, dict):
                problems.row(place, f"a JSON {type(values).__name__}, expected an object")
            elif missing := [name for name in (text, label) if name not in values]:
                problems.row(place, f"no {_listed(missing)}")
            else:
                yield place, values[text], values[label]


class _Lines:
    """Lines of a text file; those that do not decode or are binary are problems.

    Attributes:
        number (int): Lines read so far.
        bad (int): Number of the last one with a problem; 0 before.
        cut (bool): Whether the last one has no line feed.
        ended (bool): Whether there are no more.
    """

    def __init__(self, table: TableFile, problems: Problems) -> None:
        self.number = self.bad = 0
        self.cut = self.ended = False
        self._table, self._problems = table, problems

    def __iter__(self) -> Iterator[str]:
        table, good = self._table, 0
        name = table.encoding.removesuffix("-sig").upper()
        undecoded = 0
        with open(
            table.path, encoding=table.encoding, newline="\n", errors="surrogateescape"
        ) as stream:
            for line in stream:
                self.number += 1
                self.cut = not line.endswith("\n")
                if found := _UNDECODED.search(line):
                    undecoded += 1
                    self._bad_line(
                        f"byte 0x{ord(found[0]) - 0xDC00:02X} at character {found.start() + 1} is "
                        f"not {name}{_other_encoding(line, table.encoding)}"
                    )
                elif "\0" in line:
                    self._bad_line("a NUL byte: the file is binary, or UTF-16 text")
                elif not line.isascii():
                    good += 1
                yield re.sub("\r(?!\n)", " ", line) if "\r" in line else line
        self.ended = True
        if undecoded and good and not self._problems.drop:
            self._problems.fatal(
                f"{table} mixes encodings; lines beyond ASCII in {name}: {good:,}, in another one: "
                f"{undecoded:,}. Convert those, so that the file has one encoding."
            )

    def _bad_line(self, problem: str) -> None:
        self.bad = self.number
        self._problems.row(f"{self._table}:{self.number}", problem)


def _other_encoding(line: str, encoding: str) -> str:
    """In which encoding a line that does not decode can be read, and as what."""
    raw = line.encode(encoding.removesuffix("-sig"), "surrogateescape")
    for other, letters in (("cp949", "[가-힣]{2}"), ("cp1252", r"\w")):
        try:
            text = raw.decode(other)
        except UnicodeDecodeError:
            continue
        if re.search(letters, text):
            return (
                f"; as {other} the line reads {text.strip()[:40]!r}: convert the file, or give "
                f"--encoding {other} if all of it is"
            )
    return ""


def _cells(count: int) -> str:
    return f"{count} cell" if count == 1 else f"{count} cells"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
