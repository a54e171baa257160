"""Opens weather fields: files, streams and stores of any layout as one :class:`WeatherFields`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hftune.utils.errors import DataError, did_you_mean

from .cache import FORMAT, build_cache, cache_root, load_cache, select_cache
from .dates import describe_times, format_time, interval_seconds, parse_dates, select_rows
from .fields import FieldLayout, WeatherFields, channel_name, split_channel
from .grid import describe_grid, match_points, same_grid
from .sources import MANIFEST, Source, digest_sources, find_sources, open_source
from .streams import Part, read_parts
from .values import InPlaceValues, StoredVariable
from .variables import STATIC_NAMES, VARIABLES, canonical_order

__all__ = ["open_fields"]

_CHECK_ROWS = 64


def open_fields(
    data: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    variables: Sequence[str] | None = None,
    levels: Sequence[float] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    static_data: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
    times: str | None = None,
    in_place: bool = True,
    progress: bool = True,
) -> WeatherFields:
    """Opens weather fields from NetCDF, Zarr or GRIB, or from a cache folder.

    Several stores are merged by variable, level and time. Fields that lie in the files as hftune
    needs them (uncompressed float32) are read in place; others are written once to a cache, only
    what is selected, which the next call opens at once.

    Args:
        data (str or list of str): Files, globs, folders of files, Zarr stores or URLs.
        variables (sequence of str, *optional*): Variables to take, by any known name (``"2t"``,
            ``"t2m"``, ``"z"``). Defaults to all. Static fields are always taken.
        levels (sequence of float, *optional*): Pressure levels in hPa. Defaults to all.
        cache_dir (path, *optional*): Folder of caches. Defaults to ``cache/weather`` in the hftune
            home (``HFTUNE_HOME``).
        static_data (str or list of str, *optional*): Stores with time-invariant fields, on the same
            points or more.
        times (str, *optional*): Dates to take (see :func:`~.dates.parse_dates`) or a fraction
            (``"0%:50%"``). Defaults to all.
        in_place (bool): Whether files may be read in place. Defaults to True.
        progress (bool): Whether writing a cache shows a progress bar. Defaults to True.

    Returns:
        WeatherFields: Channels ordered by variable, then by level from the top down.

    Raises:
        DataError: If data are missing or unreadable, do not fit together, or lack what was asked
            for.
    """
    import xxhash

    sources = find_sources(data)
    static_sources = find_sources(static_data) if static_data else []
    if sources[0].format == "cache":
        if static_sources:
            raise DataError("a cache folder has its static fields already: leave static_data out.")
        return _open_cache(sources[0].path, variables, levels, times)

    request = json.dumps(
        [
            FORMAT,
            digest_sources(sources),
            digest_sources(static_sources) if static_sources else "",
            sorted(variables) if variables is not None else None,
            sorted(map(float, levels)) if levels is not None else None,
            times,
        ]
    )
    folder = cache_root(cache_dir) / xxhash.xxh3_128(request.encode()).hexdigest()
    if (folder / MANIFEST).exists():
        return dataclasses.replace(
            load_cache(folder), sources=tuple(s.path for s in sources + static_sources)
        )
    plan = _Plan(sources, static_sources, variables, levels, times)
    fields = plan.fields(request)
    values = _in_place(plan) if in_place else None
    if values is not None:
        return dataclasses.replace(fields, values=values)
    return build_cache(
        folder, fields, plan.read, time_chunk=plan.time_chunk, show_progress=progress
    )


def _open_cache(
    path: str, variables: Sequence[str] | None, levels: Sequence[float] | None, times: str | None
) -> WeatherFields:
    fields = load_cache(path)
    if variables is None and levels is None and times is None:
        return fields
    split = [split_channel(channel) for channel in fields.layout.channels]
    chosen = _choose(split, variables, levels, fields.layout.static_channels, path)
    return select_cache(fields, tuple(i for i, key in enumerate(split) if key in chosen), times)


@dataclasses.dataclass(eq=False)
class _Group:
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


def _choose(
    available: Sequence[tuple[str, float | None]],
    variables: Sequence[str] | None,
    levels: Sequence[float] | None,
    static: Iterable[str],
    where: str,
) -> set[tuple[str, float | None]]:
    """The ``(variable, level)`` pairs that are asked for."""
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
                    f"{', '.join([*names, *static])}."
                )
            wanted.update(matches)
    chosen = {key for key in available if key[0] in wanted}
    if levels is not None:
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


class _Plan:
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
        self.where = _listed([source.name for source in sources])
        notes: list[str] = []
        parts: list[Part] = []
        for source in sources:
            found = [p for ds in open_source(source) for p in read_parts(ds, source, notes)]
            if not found:
                raise DataError(f"no usable field in {source.path}. {' '.join(notes)}".strip())
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
        self.groups = self._group(moving, variables, levels)
        self._align(times, notes)
        self.notes = tuple(dict.fromkeys(notes))

    def _take_static(self, part: Part, notes: list[str]) -> bool:
        """Keeps a field that does not vary in time; says whether it was one."""
        if part.levels is not None or (part.times is not None and part.name not in STATIC_NAMES):
            return False
        if part.times is None:
            self.static.setdefault(part.name, part.read())
            return True
        first = part.read(np.array([0]))[0]
        for start in range(0, len(part.times), 4 * _CHECK_ROWS):
            block = part.read(np.arange(start, min(start + 4 * _CHECK_ROWS, len(part.times))))
            # Files packed one by one round the same field differently.
            if not np.allclose(block, first, rtol=1e-4, atol=1.0, equal_nan=True):
                notes.append(
                    f"{part.source.name}: {part.stored_name} varies in time; kept as a channel"
                )
                return False
        notes.append(
            f"{part.source.name}: {part.stored_name} does not vary in time; taken as static"
        )
        self.static.setdefault(part.name, first)
        return True

    def _read_static(self, source: Source, notes: list[str]) -> None:
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
    ) -> list[_Group]:
        found: dict[tuple[str, float | None], list[tuple[Part, int | None]]] = defaultdict(list)
        for part in parts:
            for index, level in enumerate(part.levels or (None,)):
                found[part.name, level].append((part, None if level is None else index))
        if not found:
            raise DataError(
                f"{self.where} has static fields only ({', '.join(self.static)}): no field has a "
                "time axis."
            )
        chosen = _choose(list(found), variables, levels, self.static, self.where)
        groups: dict[Any, _Group] = {}
        for name, level in sorted(chosen, key=lambda key: (canonical_order(key[0]), key[1] or 0)):
            pieces = found[name, level]
            units = {part.units for part, _ in pieces}
            if len(units) > 1:
                raise DataError(
                    f"{name} has different units in {_listed([p.source.name for p, _ in pieces])}: "
                    f"{', '.join(sorted(units))}. Bring them to one."
                )
            key = (name, level is None, *(id(part) for part, _ in pieces))
            group = groups.setdefault(
                key,
                _Group(
                    name,
                    [],
                    [p for p, _ in pieces],
                    [None if level is None else [] for _ in pieces],
                ),
            )
            group.levels.append(level)
            for picks, (_, index) in zip(group.picks, pieces, strict=True):
                if picks is not None and index is not None:
                    picks.append(index)
        return list(groups.values())

    def _align(self, times: str | None, notes: list[str]) -> None:
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
                notes.append(
                    f"{group.name}: {missing} times dropped that other variables do not have"
                )
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
                notes.append(note)

    def _drop_duplicates(self, group: _Group, notes: list[str]) -> None:
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
                    f"with different values ({_listed(names)}). Remove one of them."
                )
        if len(again):
            notes.append(
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
        blocks = [
            group.read(group.part[start:stop], group.row[start:stop]) for group in self.groups
        ]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)

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


def _listed(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _in_place(plan: _Plan) -> InPlaceValues | None:
    """Reads the files themselves, if every variable lies in one as plain float32."""
    variables: list[StoredVariable] = []
    spans = set()
    for group in plan.groups:
        part = group.parts[0]
        rows = group.row
        if (
            len(group.parts) > 1
            or part.source.format != "hdf5"
            or part.source.remote
            or (part.scale, part.offset) != (1.0, 0.0)
            or not np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
        ):
            return None
        offset = _plain_offset(part)
        if offset is None:
            return None
        height, width = len(part.grid.rows), len(part.grid.columns)
        flipped = bool(height > 1 and part.grid.rows[0] > part.grid.rows[-1])
        expected = np.arange(height)[::-1] if flipped else np.arange(height)
        if not (
            np.array_equal(part.grid.rows, expected)
            and np.array_equal(part.grid.columns, np.arange(width))
        ):
            return None
        spans.add((int(rows[0]), int(rows[0]) + len(rows)))
        shape = (part.array.shape[0], len(part.levels or (0,)), height, width)
        levels = tuple(group.picks[0] or (0,))
        path = os.path.abspath(part.source.path)
        variables.append(StoredVariable(path, offset, shape, levels, flipped))
    return InPlaceValues(tuple(variables), spans.pop()) if len(spans) == 1 else None


def _plain_offset(part: Part) -> int | None:
    """Byte offset of a variable that is stored contiguously as native float32, else None."""
    import h5py

    with h5py.File(part.source.path, "r") as file:
        stored = file[part.stored_name]
        attributes = stored.attrs
        fill = np.atleast_1d(attributes.get("_FillValue", np.nan)).astype(np.float64)
        plain = (
            stored.dtype == np.dtype("<f4")
            and stored.shape == part.array.shape
            and stored.chunks is None
            and stored.external is None
            and np.isnan(fill).all()
            and not {"scale_factor", "add_offset", "missing_value"} & set(attributes)
            and [str(name) for name in part.array.dims] == _dimension_names(stored)
        )
        return stored.id.get_offset() if plain else None


def _dimension_names(stored: Any) -> list[str]:
    # The scales attached to each axis name its dimension; an axis without one is none of ours.
    return [os.path.basename(axis[0].name) if len(axis) else "" for axis in stored.dims]
