"""Observations of stations: places that do not lie on a grid, with values that are often missing.

A folder holds ``stations.csv`` (columns ``station_id``, ``longitude``, ``latitude`` in degrees; any
others are left alone) and one CSV a variable (``tmax.csv``: a column ``date``, then one column a
station). Empty cells, ``NA`` and ``NaN`` are missing values. Units are those of the files: nothing
is converted.

Notation: ``N`` times, ``V`` variables, ``S`` stations.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...utils.errors import DataError, did_you_mean
from ...utils.files import atomic_write
from .dates import format_time

__all__ = ["Stations", "read_stations", "write_stations"]

_POSITIONS = "stations.csv"
_COLUMNS = ("station_id", "longitude", "latitude")
_MISSING = {"", "na", "nan", "null", "none"}
_SHOWN = 10
_LOGARITHM = re.compile(r"log1p\((.+)\)")


@dataclasses.dataclass(frozen=True, eq=False)
class Stations:
    """Observations of a set of stations over time.

    Attributes:
        names (tuple of str): ``S`` stations.
        longitude (float64 array ``[S]``): Degrees east, as the source has them (-180 to 360).
        latitude (float64 array ``[S]``): Degrees north.
        variables (tuple of str): ``V`` variables.
        times (int64 array ``[N]``): Seconds since 1970-01-01 UTC, strictly increasing.
        values (float32 array ``[N, V, S]``): In the units of the source; NaN where missing.
    """

    names: tuple[str, ...]
    longitude: np.ndarray
    latitude: np.ndarray
    variables: tuple[str, ...]
    times: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.times)

    @property
    def fingerprint(self) -> str:
        """Identifies the content: same observations, same text."""
        import xxhash

        digest = xxhash.xxh3_128("\n".join((*self.names, "", *self.variables)).encode())
        for array in (self.longitude, self.latitude, self.times, self.values):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def at(self, times: np.ndarray) -> np.ndarray:
        """Returns the observations at some times.

        Args:
            times (int64 array ``[n]``): Seconds since 1970-01-01 UTC, in any order.

        Returns:
            float32 array ``[n, V, S]``; all NaN at times that nobody observed.
        """
        times = np.asarray(times, dtype=np.int64)
        rows = np.minimum(np.searchsorted(self.times, times), len(self.times) - 1)
        values = self.values[rows]
        values[self.times[rows] != times] = np.nan
        return values

    def select(self, variables: Sequence[str]) -> Stations:
        """Returns some of the variables, or the logarithm of one plus a variable.

        Args:
            variables (sequence of str): ``"tmax"``, or ``"log1p(precip)"`` for a variable such as
                rain, whose large values would else drown the others.

        Raises:
            DataError: If there is no such variable, or a logarithm of less than zero is asked for.
        """
        problems, parts = [], []
        for wanted in variables:
            logarithm = _LOGARITHM.fullmatch(wanted)
            name = logarithm[1] if logarithm else wanted
            if name not in self.variables:
                problems.append(
                    f"the stations do not observe {name}, but {', '.join(self.variables)}."
                    f"{did_you_mean(name, self.variables)}"
                )
                continue
            values = self.values[:, self.variables.index(name)]
            if logarithm and np.nanmin(values, initial=0) < 0:
                row, station = np.argwhere(values < 0)[0]
                problems.append(
                    f"{wanted} needs values of 0 or more, and {self.names[station]} has "
                    f"{values[row, station]:g} on {format_time(self.times[row])}: make it 0, or "
                    "leave it empty where it stands for a missing value."
                )
                continue
            parts.append(np.log1p(values) if logarithm else values)
        if problems:
            raise DataError(problems[0] if len(problems) == 1 else "\n".join(problems))
        return dataclasses.replace(self, variables=tuple(variables), values=np.stack(parts, axis=1))


def read_stations(folder: str | os.PathLike[str]) -> Stations:
    """Reads a folder of station observations, see the head of this module.

    Variables come in the order of their names, stations in that of ``stations.csv``. A station that
    a variable's file does not have, or a date, is missing there.

    Args:
        folder (path): The folder.

    Raises:
        DataError: If something in the folder cannot be meant; every problem that was found, up to
            ten, with its file and line.

    Example:
        >>> stations = read_stations("stations")
        >>> stations.variables, stations.values.shape
        (('precip', 'tmax', 'tmin'), (7670, 3, 6))
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}: give one with {_POSITIONS} and one CSV a variable."
        )
    if not (folder / _POSITIONS).is_file():
        raise DataError(
            f"{folder} has no {_POSITIONS}, the table of the stations' positions with the columns "
            f"{', '.join(_COLUMNS)}."
        )
    files = sorted(p for p in folder.glob("*.csv") if p.name != _POSITIONS)
    if not files:
        raise DataError(
            f"{folder} has no observations: for each variable a file such as tmax.csv, with a "
            "column 'date' and one column a station."
        )
    problems: list[str] = []
    positions = _read_positions(folder / _POSITIONS, problems)
    tables = {path.stem: _read_variable(path, list(positions), problems) for path in files}
    if problems:
        listed = problems[:_SHOWN]
        if len(problems) > _SHOWN:
            listed.append(f"and {len(problems) - _SHOWN:,} more")
        if len(listed) == 1:
            raise DataError(listed[0])
        lines = "".join(f"\n  {problem}" for problem in listed)
        raise DataError(f"{len(problems):,} problems in {folder}:{lines}")

    times = np.unique(np.concatenate([times for times, _ in tables.values()]))
    values = np.full((len(times), len(tables), len(positions)), np.nan, dtype=np.float32)
    for index, (own, table) in enumerate(tables.values()):
        values[np.searchsorted(times, own), index] = table
    longitude, latitude = np.array(list(positions.values()), dtype=np.float64).T
    return Stations(tuple(positions), longitude, latitude, tuple(tables), times, values)


def _rows(path: Path, problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields the place (``tmax.csv:12``) and the cells of each line that is not empty."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield f"{path.name}:{reader.line_num}", [cell.strip() for cell in cells]
    except (UnicodeError, csv.Error) as error:
        problems.append(f"{path.name} is no CSV in UTF-8: {error}.")


def _read_positions(path: Path, problems: list[str]) -> dict[str, tuple[float, float]]:
    """Returns longitude and latitude by station."""
    rows = _rows(path, problems)
    _, header = next(rows, ("", []))
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        problems.append(
            f"{path.name} has no column {', '.join(missing)}; it has "
            f"{', '.join(header) or 'none at all'}."
        )
        return {}
    columns = [header.index(name) for name in _COLUMNS]
    positions: dict[str, tuple[float, float]] = {}
    for place, cells in rows:
        cells += [""] * (len(header) - len(cells))
        name, *numbers = (cells[column] for column in columns)
        if name in positions:
            problems.append(f"{place}: the station {name} is there twice.")
            continue
        try:
            longitude, latitude = map(float, numbers)
        except ValueError:
            longitude = latitude = np.nan
        positions[name] = longitude, latitude
        if not (np.isfinite(longitude) and np.isfinite(latitude)):
            problems.append(
                f"{place}: the station {name} has no position: longitude {numbers[0]!r}, latitude "
                f"{numbers[1]!r}. Give both in degrees, or leave the station out everywhere."
            )
        elif not (-90 <= latitude <= 90 and -180 <= longitude <= 360):
            problems.append(
                f"{place}: the station {name} lies at longitude {longitude:g}, latitude "
                f"{latitude:g}; expected -180 to 360 and -90 to 90 degrees."
            )
    if not positions:
        problems.append(f"{path.name} names no station.")
    return positions


def _read_variable(
    path: Path, stations: list[str], problems: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns times ``[n]`` and values ``[n, S]`` of one variable."""
    empty = np.empty(0, dtype=np.int64), np.empty((0, len(stations)), dtype=np.float32)
    rows = _rows(path, problems)
    _, header = next(rows, ("", []))
    if not header or header[0] != "date":
        found = header[0] if header else "nothing"
        problems.append(f"{path.name}: the first column is {found!r}, expected 'date'.")
        return empty
    names = header[1:]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        problems.append(f"{path.name} has two columns {', '.join(twice)}.")
        return empty
    unknown = [name for name in names if name not in stations]
    if unknown and stations:
        problems.extend(
            f"{path.name} has a column {name!r}, a station that {_POSITIONS} does not know."
            f"{did_you_mean(name, stations)}"
            for name in unknown
        )
        return empty
    columns = [stations.index(name) for name in names if name in stations]

    times: list[int] = []
    table: list[np.ndarray] = []
    for place, cells in rows:
        if len(cells) != len(header):
            problems.append(
                f"{place}: {len(cells)} cells, the head of the table has {len(header)}."
            )
            continue
        try:
            stamp = np.datetime64(cells[0].removesuffix("Z"), "s")
        except ValueError:
            stamp = np.datetime64("NaT")
        if np.isnat(stamp):
            problems.append(
                f"{place}: cannot read the date {cells[0]!r}; write 1995-06-01 or "
                "1995-06-01T12:00 (UTC)."
            )
            continue
        time = int(stamp.astype(np.int64))
        if times and time <= times[-1]:
            what = "is there twice" if time == times[-1] else f"follows {format_time(times[-1])}"
            problems.append(f"{place}: {cells[0]} {what}: dates have to increase.")
            continue
        line = np.full(len(stations), np.nan, dtype=np.float32)
        try:
            line[columns] = [
                np.nan if cell.lower() in _MISSING else float(cell) for cell in cells[1:]
            ]
        except ValueError as error:
            problems.append(f"{place}: {error}; leave a missing value empty.")
            continue
        if np.isinf(line).any():
            problems.append(f"{place}: a value is infinite; leave a missing value empty.")
        times.append(time)
        table.append(line)
    if not times:
        problems.append(f"{path.name} has no observation that can be read.")
        return empty
    return np.array(times, dtype=np.int64), np.stack(table)


def write_stations(stations: Stations, folder: str | os.PathLike[str]) -> Path:
    """Writes observations as :func:`read_stations` reads them.

    Args:
        stations (Stations): The observations.
        folder (path): Made where it is missing; files of other variables in it stay.

    Returns:
        ``folder``.
    """
    folder = Path(folder)
    for index, variable in enumerate(stations.variables):
        with atomic_write(folder / f"{variable}.csv") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["date", *stations.names])
            for time, line in zip(stations.times, stations.values[:, index], strict=True):
                writer.writerow([format_time(time), *("" if np.isnan(v) else str(v) for v in line)])
    with atomic_write(folder / _POSITIONS) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(
            zip(
                stations.names, stations.longitude.tolist(), stations.latitude.tolist(), strict=True
            )
        )
    return folder
