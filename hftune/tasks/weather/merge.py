"""Puts the parts of several stores together: by variable, by level and by time."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from hftune.utils.errors import DataError, did_you_mean

from .dates import describe_times, format_time, interval_seconds, parse_dates, select_rows
from .fields import FieldLayout, WeatherFields, channel_name
from .grid import describe_grid, match_points, same_grid
from .sources import Source, open_source
from .streams import Notes, Part, listed, read_parts
from .variables import STATIC_NAMES, VARIABLES, canonical_order

__all__ = ["Group", "Merge", "choose_channels"]

_CHECK_ROWS = 64
_STATIC_ROWS = 32


@dataclasses.dataclass(eq=False)
class Group:
    """Channels of one variable that come from the same parts.

    Attributes:
        name (str): Variable.
        levels (list of float or None): Their levels.
        parts (list of Part): Where their times come from.
        picks (list of list of int or None): Indices of the levels in each part.
        times (int64 array): Times found, increasing.
        part, row (int64 arrays): For each time, the part and the row in it.
    """

    name: str
    levels: list[float | None]
    parts: list[Part]
    picks: list[list[int] | None]
    times: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    part: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    row: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))

    def read(self, part: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Reads times by part and row: float32 ``[n, L, H, W]``."""
        values: np.ndarray | None = None
        for index in np.unique(part):
            where = part == index
            block = self.parts[index].read(row[where], self.picks[index])
            if self.picks[index] is None:
                block = block[:, None]
            if len(block) == len(part):
                return block
            if values is None:
                values = np.empty((len(part), *block.shape[1:]), np.float32)
            values[where] = block
        assert values is not None
        return values


def choose_channels(
    available: Sequence[tuple[str, float | None]],
    variables: Sequence[str] | None,
    levels: Sequence[float] | None,
    static: Iterable[str],
    where: str,
    left_out: Sequence[str] = (),
) -> set[tuple[str, float | None]]:
    """Returns the ``(variable, level)`` pairs that are asked for.

    Args:
        available (sequence of pairs): What there is.
        variables, levels (sequences, *optional*): What is asked for; None for all.
        static (iterable of str): Names of static fields, which may be asked for as well.
        where (str): Where it is, for messages.
        left_out (sequence of str): Notes on variables that could not be used.

    Raises:
        DataError: If something is not there.
    """
    names = list(dict.fromkeys(name for name, _ in available))
    wanted = set(names)
    if variables is not None:
        wanted = set()
        for asked in variables:
            matches = [
                name for name in [*names, *static]
                if asked == name or (name in VARIABLES and asked in VARIABLES[name].aliases)
            ]  # fmt: skip
            if not matches:
                near = did_you_mean(asked, [*names, *static]) or did_you_mean(
                    asked, [alias for name in names for alias in _aliases(name)]
                )
                raise DataError(
                    f"there is no variable {asked!r} in {where}.{near} It has "
                    f"{', '.join([*names, *static])}." + "".join(f" {note}." for note in left_out)
                )
            wanted.update(matches)
    chosen = {key for key in available if key[0] in wanted}
    if levels is not None:
        if not any(level is not None for _, level in chosen):
            raise DataError(
                f"levels were asked for, but no variable of {where} that is taken "
                f"({', '.join(n for n in names if n in wanted)}) lies on pressure levels."
            )
        for name in sorted({n for n, level in chosen if level is not None}):
            there = sorted(level for n, level in chosen if n == name and level is not None)
            absent = [level for level in levels if float(level) not in there]
            if absent:
                raise DataError(
                    f"{name} in {where} has no level {', '.join(f'{a:g}' for a in absent)} hPa. "
                    f"Its levels are {', '.join(f'{a:g}' for a in there)} hPa."
                )
        asked_levels = set(map(float, levels))
        chosen = {key for key in chosen if key[1] is None or key[1] in asked_levels}
    if not chosen:
        raise DataError(f"nothing is left of {where}: {variables} are static fields only.")
    return chosen


def _aliases(name: str) -> tuple[str, ...]:
    return VARIABLES[name].aliases if name in VARIABLES else ()


class Merge:
    """Which row of which part each time of each channel comes from."""

    def __init__(
        self,
        sources: list[Source],
        static_sources: list[Source],
        variables: Sequence[str] | None,
        levels: Sequence[float] | None,
        times: str | None,
    ) -> None:
        self.sources = sources + static_sources
        self.where = listed([source.name for source in sources])
        notes = Notes()
        parts: list[Part] = []
        for source in sources:
            found = [p for ds in open_source(source) for p in read_parts(ds, source, notes)]
            if not found:
                raise DataError(
                    f"no usable field in {source.path}. {' '.join(notes.lines())}".strip()
                )
            parts += found
        self.grid = parts[0].grid
        for part in parts:
            if not same_grid(part.grid, self.grid):
                raise DataError(
                    f"two grids: {parts[0].source.path} has {describe_grid(self.grid)}; "
                    f"{part.source.path} has {describe_grid(part.grid)}. Cut or regrid them to "
                    "the same points."
                )
        self.static: dict[str, np.ndarray] = {}
        moving = [part for part in parts if not self._take_static(part, notes)]
        for source in static_sources:
            self._read_static(source, notes)
        self.groups = self._group(moving, variables, levels, notes)
        self._align(times, notes)
        self.notes = notes.lines()

    def _take_static(self, part: Part, notes: Notes) -> bool:
        """Keeps a field that does not vary in time; says whether it was one."""
        if part.levels is not None or (part.times is not None and part.name not in STATIC_NAMES):
            return False
        if part.times is None:
            self.static.setdefault(part.name, part.read())
            return True
        # A field of weather differs between any two times; all of a long one need not be read.
        some = np.unique(np.linspace(0, len(part.times) - 1, _STATIC_ROWS).astype(np.int64))
        block = part.read(some)
        first = block[0]
        # Files packed one by one round the same field differently.
        tolerance = 1e-4 * float(np.nanmax(np.abs(first), initial=0))
        if not np.allclose(block, first, rtol=0, atol=tolerance, equal_nan=True):
            notes.add(f"{part.stored_name} varies in time; kept as a channel", part.source)
            return False
        notes.add(f"{part.stored_name} does not vary in time; taken as static", part.source)
        self.static.setdefault(part.name, first)
        return True

    def _read_static(self, source: Source, notes: Notes) -> None:
        for dataset in open_source(source):
            for part in read_parts(dataset, source, notes):
                points = match_points(self.grid, part.grid)
                if points is None:
                    raise DataError(
                        f"the static fields {source.path} have {describe_grid(part.grid)}, "
                        f"which do not contain the data's {describe_grid(self.grid)}. Regrid them."
                    )
                rows, columns = points
                grid = dataclasses.replace(self.grid, rows=rows, columns=columns)
                one = dataclasses.replace(part, grid=grid)
                values = one.read(None if part.times is None else np.array([0]))
                if part.levels is not None:
                    continue
                self.static[part.name] = values if part.times is None else values[0]

    def _group(
        self,
        parts: list[Part],
        variables: Sequence[str] | None,
        levels: Sequence[float] | None,
        notes: Notes,
    ) -> list[Group]:
        found: dict[tuple[str, float | None], list[tuple[Part, int | None]]] = defaultdict(list)
        for part in parts:
            for index, level in enumerate(part.levels or (None,)):
                found[part.name, level].append((part, None if level is None else index))
        if not found:
            raise DataError(
                f"{self.where} has static fields only ({', '.join(self.static)}): no field has a "
                "time axis."
            )
        left_out = [line for line in notes.lines() if " left out, " in line]
        chosen = choose_channels(list(found), variables, levels, self.static, self.where, left_out)
        groups: list[Group] = []
        for name, level in sorted(chosen, key=lambda key: (canonical_order(key[0]), key[1] or 0)):
            pieces = found[name, level]
            parts = [part for part, _ in pieces]
            units = {part.units for part in parts}
            if len(units) > 1:
                raise DataError(
                    f"{name} has different units in {listed([p.source.name for p in parts])}: "
                    f"{', '.join(sorted(units))}. Bring them to one."
                )
            if not groups or (groups[-1].name, groups[-1].parts) != (name, parts):
                groups.append(
                    Group(name, [], parts, [None if level is None else [] for _ in parts])
                )
            groups[-1].levels.append(level)
            for picks, (_, index) in zip(groups[-1].picks, pieces, strict=True):
                if picks is not None and index is not None:
                    picks.append(index)
        return groups

    def _align(self, times: str | None, notes: Notes) -> None:
        """Finds the times that every channel has, and drops duplicates that are equal."""
        common: np.ndarray | None = None
        for group in self.groups:
            stamps = np.concatenate([part.times for part in group.parts])
            part = np.repeat(np.arange(len(group.parts)), [len(p.times) for p in group.parts])
            row = np.concatenate([np.arange(len(p.times)) for p in group.parts])
            order = np.argsort(stamps, kind="stable")
            group.times, group.part, group.row = stamps[order], part[order], row[order]
            common = group.times if common is None else np.intersect1d(common, group.times)
        assert common is not None
        common = np.unique(common)
        if not len(common):
            spans = "; ".join(
                f"{g.name}: {describe_times(np.unique(g.times))}" for g in self.groups
            )
            raise DataError(f"the variables of {self.where} have no time in common. {spans}.")
        self.times = common[select_rows(common, times)]
        for group in self.groups:
            missing = len(np.setdiff1d(group.times, common))
            if missing:
                notes.add(f"{group.name}: {missing} times dropped that other variables do not have")
            self._drop_duplicates(group, notes)
        step = interval_seconds(self.times)
        gaps = np.flatnonzero(np.diff(self.times) > step) if step else np.empty(0, np.int64)
        if len(gaps):
            absent = int((np.diff(self.times)[gaps] // step - 1).sum())
            note = (
                f"{len(gaps)} gap(s) in time, about {absent} times missing, the first after "
                f"{format_time(self.times[gaps[0]])}; no sample spans a gap"
            )
            # Ranges that were asked for have gaps between them by intention.
            if times is None or len(gaps) >= (len(parse_dates(times)) if "%" not in times else 1):
                notes.add(note)

    def _drop_duplicates(self, group: Group, notes: Notes) -> None:
        within = np.isin(group.times, self.times)
        stamps, part, row = group.times[within], group.part[within], group.row[within]
        first = np.concatenate([[True], np.diff(stamps) > 0])
        again = np.flatnonzero(~first)
        original = np.flatnonzero(first)[np.cumsum(first) - 1][again]
        for start in range(0, len(again), _CHECK_ROWS):
            one, other = original[start : start + _CHECK_ROWS], again[start : start + _CHECK_ROWS]
            a, b = group.read(part[one], row[one]), group.read(part[other], row[other])
            same = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=(1, 2, 3))
            if not same.all():
                where = int(np.argmin(same))
                names = [group.parts[part[i[where]]].source.path for i in (one, other)]
                raise DataError(
                    f"the time {format_time(stamps[one[where]])} of {group.name} is there twice "
                    f"with different values ({listed(names)}). Remove one of them."
                )
        if len(again):
            notes.add(
                f"{group.name}: {len(again)} duplicated times with equal values dropped, the first "
                f"{format_time(stamps[again[0]])}"
            )
        group.times, group.part, group.row = stamps[first], part[first], row[first]

    @property
    def time_chunk(self) -> int:
        """How many times the stores keep together."""
        return max(part.time_chunk for group in self.groups for part in group.parts)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Reads the times ``start:stop``: float32 ``[n, C, H, W]``."""
        channels = sum(len(group.levels) for group in self.groups)
        height, width = len(self.grid.latitude), len(self.grid.longitude)
        values = np.empty((stop - start, channels, height, width), np.float32)
        channel = 0
        for group in self.groups:
            end = channel + len(group.levels)
            values[:, channel:end] = group.read(group.part[start:stop], group.row[start:stop])
            channel = end
        return values

    def fields(self, request: str) -> WeatherFields:
        """The fields without their values."""
        import xxhash

        height, width = len(self.grid.latitude), len(self.grid.longitude)
        static = sorted(self.static, key=canonical_order)
        layout = FieldLayout(
            channels=tuple(channel_name(g.name, level) for g in self.groups for level in g.levels),
            units=tuple(g.parts[0].units for g in self.groups for _ in g.levels),
            static_channels=tuple(static),
            latitude=self.grid.latitude,
            longitude=self.grid.longitude,
        )
        return WeatherFields(
            layout=layout,
            times=self.times,
            values=None,
            static_fields=np.stack([self.static[name] for name in static])
            if static
            else np.empty((0, height, width), np.float32),
            fingerprint=xxhash.xxh3_128(request.encode()).hexdigest(),
            sources=tuple(source.path for source in self.sources),
            audit_notes=self.notes,
        )
