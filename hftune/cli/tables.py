"""How commands print: tables that fit the terminal, times as ages, JSON."""

from __future__ import annotations

import datetime
import json
import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..utils.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "Column",
    "age",
    "clock",
    "confirmed",
    "console",
    "fitted",
    "number",
    "one_line",
    "print_json",
    "table",
]

_GAP = 2
_FOLDED = 24  # what a column that is folded has at least


def console() -> Console:
    """A console on standard output that prints what users wrote as they wrote it."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """Prints indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title (str): Its heading.
        cells (sequence of str or Text): From the first row to the last.
        right (bool): Whether it is set flush right, as numbers are. Defaults to False.
        rank (int): Where there is no room for all columns, those with the highest rank are left
            out; 0 stays, and is folded. Defaults to 0.
    """

    title: str
    cells: Sequence[str | Text]
    right: bool = False
    rank: int = 0

    @property
    def width(self) -> int:
        """What it takes on the terminal: a Korean letter takes two."""
        from rich.cells import cell_len

        lines = [line for cell in self.cells for line in str(cell).split("\n")]
        return max(map(cell_len, [self.title, *lines]))


def fitted(columns: Sequence[Column], width: int) -> tuple[Table, list[str]]:
    """Makes a table of the columns that have something in them and fit.

    Args:
        columns (sequence of Column): All of them.
        width (int): Of the terminal.

    Returns:
        The table, and the titles of the columns that did not fit.
    """
    shown = [column for column in columns if not column.rank or any(map(str, column.cells))]
    left_out: list[Column] = []
    while sum(map(_least, shown)) + _GAP * (len(shown) - 1) > width:
        last = max(shown, key=lambda column: column.rank)
        if not last.rank:
            break
        shown.remove(last)
        left_out.append(last)
    return table(shown), [column.title for column in columns if column in left_out]


def _least(column: Column) -> int:
    return column.width if column.rank else min(column.width, _FOLDED)


def table(columns: Sequence[Column]) -> Table:
    """Makes a table of all columns; those of rank 0 are folded where it gets too wide."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        made.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=column.rank > 0,
            overflow="fold",
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*cells)
    return made


def one_line(value: Any) -> str:
    """A value as one line of text that cannot steer the terminal."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(character if character.isprintable() else "�" for character in text)


def number(value: float | None, digits: int = 4) -> str:
    """Formats a metric: ``number(0.41237) == "0.4124"``; nothing for None.

    Args:
        value (float, *optional*): The metric.
        digits (int): How many that count. Defaults to 4.
    """
    if value is None:
        return ""
    return f"{value:.{digits}g}" if math.isfinite(value) else str(value).replace("nan", "NaN")


def _seconds(moment: float | str) -> float:
    if isinstance(moment, str):
        return datetime.datetime.fromisoformat(moment).timestamp()
    return moment


def age(moment: float | str) -> str:
    """How long ago a time was: ``"5 s"``, ``"3 min"``, ``"2 h"``, ``"12 d"``; a date after 60 days.

    Args:
        moment (float or str): Seconds since 1970, or ISO 8601.
    """
    seconds = max(time.time() - _seconds(moment), 0)
    for size, unit, most in ((1, "s", 60), (60, "min", 3600), (3600, "h", 86400)):
        if seconds < most:
            return f"{seconds // size:.0f} {unit}"
    if seconds < 60 * 86400:
        return f"{seconds // 86400:.0f} d"
    return clock(moment)[:10]


def clock(moment: float | str) -> str:
    """Formats a time, seconds since 1970 or ISO 8601, as ``2026-11-21 10:00 UTC``."""
    utc = datetime.timezone.utc
    return f"{datetime.datetime.fromtimestamp(_seconds(moment), utc):%Y-%m-%d %H:%M} UTC"


def confirmed(question: str, *, yes: bool) -> bool:
    """Asks before something that cannot be taken back.

    Args:
        question (str): Such as ``"Delete exp_20261121_001?"``.
        yes (bool): Whether ``--yes`` was given; then nobody is asked.

    Raises:
        ConfigurationError: If there is nobody to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{question} There is no terminal to ask on: give --yes.")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
