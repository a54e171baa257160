"""Times and the texts that select them: ``1961-01-01:1994-12-31``, ``1995``, ``0%:80%``."""

from __future__ import annotations

import calendar
import datetime
import re
from collections.abc import Sequence

import numpy as np

from hftune.utils.errors import DataError

__all__ = ["describe_times", "format_time", "interval_seconds", "parse_dates", "select_rows"]

_DATE = r"\d{4}(?:-\d{2}(?:-\d{2}(?:[T ]\d{2}(?::\d{2})?)?)?)?"
_RANGE = re.compile(rf"({_DATE})?:({_DATE})?")
_FRACTIONS = re.compile(r"(\d+(?:\.\d+)?)%:(\d+(?:\.\d+)?)%")
_ALL_TIME = (-(2**62), 2**62)


def _span(text: str, whole: str) -> tuple[int, int]:
    """Start and exclusive end, in seconds, of a year, month, day, hour or minute."""
    parts = [int(part) for part in re.split(r"[-T :]", text)]
    try:
        start = datetime.datetime(
            *(parts + [1, 1])[: max(3, len(parts))], tzinfo=datetime.timezone.utc
        )
    except ValueError as error:
        raise DataError(f"{text!r} in the dates {whole!r} is not a date: {error}.") from None
    days = {
        1: 365 + calendar.isleap(start.year),
        2: calendar.monthrange(start.year, start.month)[1],
    }
    length = {3: 86400, 4: 3600, 5: 60}.get(len(parts)) or days[len(parts)] * 86400
    seconds = calendar.timegm(start.timetuple())
    return seconds, seconds + length


def parse_dates(text: str) -> list[tuple[int, int]]:
    """Reads one or several ranges of dates, separated by commas.

    A date is a year, month, day, hour or minute (``1995``, ``1995-06``, ``1995-06-01``,
    ``1995-06-01T12``), all UTC, and stands for the whole of it; ``first:last`` includes both, and
    either may be left out.

    Args:
        text (str): For example ``"1961-01-01:1994-12-31"`` or ``"1995,1997:1999-06"``.

    Returns:
        list of ``(start, end)``, seconds since 1970-01-01 UTC, the end exclusive.

    Raises:
        DataError: If it cannot be read, or a range ends before it begins.
    """
    ranges = []
    for part in text.split(","):
        part = part.strip()
        if re.fullmatch(_DATE, part):
            ranges.append(_span(part, text))
        elif (match := _RANGE.fullmatch(part)) and (match[1] or match[2]):
            start = _span(match[1], text)[0] if match[1] else _ALL_TIME[0]
            end = _span(match[2], text)[1] if match[2] else _ALL_TIME[1]
            if end <= start:
                raise DataError(f"the dates {part!r} end before they begin: swap them.")
            ranges.append((start, end))
        else:
            raise DataError(
                f"cannot read {part!r} as dates. Give a range like 1961-01-01:1994-12-31, a year, "
                "a month or a day, or several of these separated by commas."
            )
    return ranges


def format_time(seconds: int) -> str:
    """Formats seconds since 1970 as ``1995-06-01``, with the time of day where it is not 00:00."""
    text = str(np.datetime64(int(seconds), "s"))
    day, _, clock = text.partition("T")
    return day if clock == "00:00:00" else f"{day}T{clock[:5] if clock.endswith(':00') else clock}"


def interval_seconds(times: np.ndarray) -> int:
    """Returns the most common difference between neighbouring times ``[N]``; 0 for one time."""
    if len(times) < 2:
        return 0
    differences, counts = np.unique(np.diff(times), return_counts=True)
    return int(differences[np.argmax(counts)])


def describe_times(times: np.ndarray) -> str:
    """Says what times there are: ``14,244 times from 1961-01-01 to 1999-12-31, every 24 h``."""
    if len(times) == 0:
        return "no times"
    if len(times) == 1:
        return f"one time, {format_time(times[0])}"
    return (
        f"{len(times):,} times from {format_time(times[0])} to {format_time(times[-1])}, "
        f"every {interval_seconds(times) / 3600:g} h"
    )


def select_rows(times: np.ndarray, selection: str | Sequence[int] | slice | None) -> np.ndarray:
    """Returns the rows of a selection of times.

    Args:
        times (int64 array ``[N]``): Seconds since 1970, increasing.
        selection (str, slice, sequence of int or None): Dates (see :func:`parse_dates`), a fraction
            of the times in their order (``"0%:80%"``), row numbers, or None for all.

    Returns:
        int64 array of rows: increasing for dates and fractions, as given for row numbers.

    Raises:
        DataError: If it selects nothing, or rows that do not exist.
    """
    times = np.asarray(times)
    if selection is None:
        return np.arange(len(times))
    if isinstance(selection, slice):
        rows = np.arange(len(times))[selection]
    elif not isinstance(selection, str):
        rows = np.asarray(selection, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(times)):
            wrong = rows[(rows < 0) | (rows >= len(times))][0]
            raise DataError(f"row {wrong} does not exist: the rows go from 0 to {len(times) - 1}.")
    elif match := _FRACTIONS.fullmatch(selection.strip()):
        first, last = (float(text) / 100 for text in match.groups())
        if not first < last <= 1:
            raise DataError(f"the fractions {selection!r} must increase and end at 100% at most.")
        rows = np.arange(round(first * len(times)), round(last * len(times)))
    else:
        chosen = np.zeros(len(times), dtype=bool)
        for start, end in parse_dates(selection):
            chosen |= (times >= start) & (times < end)
        rows = np.flatnonzero(chosen)
    if not rows.size:
        raise DataError(
            f"no time lies within {selection!r}: the data have {describe_times(times)}."
        )
    return rows
