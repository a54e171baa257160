"""Opens weather fields: files, streams and stores of any layout as one :class:`WeatherFields`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hftune.utils.errors import DataError

from .cache import FORMAT, build_cache, cache_root, load_cache, select_cache
from .fields import WeatherFields, split_channel
from .merge import Merge, choose_channels
from .sources import MANIFEST, digest_sources, find_sources
from .streams import Part
from .values import InPlaceValues, StoredVariable

__all__ = ["open_fields"]


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
    merge = Merge(sources, static_sources, variables, levels, times)
    fields = merge.fields(request)
    values = _in_place(merge) if in_place else None
    if values is not None:
        return dataclasses.replace(fields, values=values)
    return build_cache(
        folder, fields, merge.read, time_chunk=merge.time_chunk, show_progress=progress
    )


def _open_cache(
    path: str, variables: Sequence[str] | None, levels: Sequence[float] | None, times: str | None
) -> WeatherFields:
    fields = load_cache(path)
    if variables is None and levels is None and times is None:
        return fields
    split = [split_channel(channel) for channel in fields.layout.channels]
    chosen = choose_channels(split, variables, levels, fields.layout.static_channels, path)
    return select_cache(fields, tuple(i for i, key in enumerate(split) if key in chosen), times)


def _in_place(merge: Merge) -> InPlaceValues | None:
    """Reads the files themselves, if every variable lies in one as plain float32."""
    variables: list[StoredVariable] = []
    spans = set()
    for group in merge.groups:
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
