"""ERA5 as the reference implementation of Aardvark keeps it, and the way there and back.

One raw float32 file a year, ``era5_4u_1_6_2018.memmap`` (mode, resolution, hours between two
times): ``(time, channel, longitude, latitude)`` in physical units, latitude from south to north, no
header. Static fields are an array file ``(channel, longitude, latitude)``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...utils.errors import ConfigurationError, DataError
from ...utils.files import atomic_path, checked_name, free_bytes, sync_folder
from .dates import describe_times, format_time
from .fields import FieldLayout, WeatherFields, split_channel
from .initial_conditions_partial import gigabytes
from .initial_conditions_write import match_layout
from .raw_values import RawValues
from .sources import Source, digest_sources
from .variables import VARIABLES

if TYPE_CHECKING:
    import netCDF4

__all__ = [
    "memmaps_to_netcdf",
    "open_yearly_memmaps",
    "read_static_file",
    "write_yearly_memmaps",
]

_BLOCK_BYTES = 32 << 20
# Names in WeatherBench 2.
_WEATHERBENCH = {
    "2t": "2m_temperature",
    "10u": "10m_u_component_of_wind",
    "10v": "10m_v_component_of_wind",
    "msl": "mean_sea_level_pressure",
    "z": "geopotential",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "t": "temperature",
    "q": "specific_humidity",
}
_WEATHERBENCH_STATIC = {
    "z": "geopotential_at_surface",
    "lsm": "land_sea_mask",
    "slt": "soil_type",
}


def open_yearly_memmaps(
    folder: str | os.PathLike[str],
    *,
    layout: FieldLayout,
    mode: str = "4u",
    res: int = 1,
    frequency: int = 6,
    static: str | os.PathLike[str] | None = None,
) -> WeatherFields:
    """Opens all years of a folder in place.

    Args:
        folder (path): Where the files are.
        layout (FieldLayout): Channels and grid, which the files do not tell. Its static channels
            name those of ``static``.
        mode (str): Set of variables in the files' names. Defaults to ``"4u"``.
        res (int): Resolution in the files' names. Defaults to 1.
        frequency (int): Hours between two times. Defaults to 6.
        static (path, *optional*): Static fields, ``elev_vars_1.npy``, see :func:`read_static_file`.

    Raises:
        DataError: If there is no such file, a year between two others is missing, or a file has not
            the rows of its year.

    Example:
        >>> fields = open_yearly_memmaps("era5", layout=layout)
        >>> fields.read(0).shape
        (24, 121, 240)
    """
    import xxhash

    folder = Path(folder)
    _check_frequency(frequency)
    stem = f"era5_{mode}_{res}_{frequency}"
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist.")
    names = sorted(os.listdir(folder))
    years = [
        int(match[1])
        for name in names
        if (match := re.fullmatch(rf"{re.escape(stem)}_(\d{{4}})\.memmap", name))
    ]
    if not years:
        others = sorted({name.rpartition("_")[0] for name in names if name.endswith(".memmap")})
        raise DataError(
            f"the folder {folder} holds no file {stem}_YEAR.memmap"
            + (f"; it holds {', '.join(others)}: set mode, res and frequency." if others else ".")
        )
    row_bytes = 4 * len(layout.channels) * layout.grid[0] * layout.grid[1]
    problems = []
    absent = sorted(set(range(years[0], years[-1])) - set(years))
    if absent:
        problems.append(
            f"the years {years[0]} to {years[-1]} lack {', '.join(map(str, absent))} in {folder}."
        )
    parts = []
    for year in years:
        path, rows = folder / f"{stem}_{year}.memmap", len(_times_of(year, frequency))
        found = path.stat().st_size / row_bytes
        if found != rows:
            problems.append(
                f"{path.name} has {found:,.10g} rows of {len(layout.channels)} channels, "
                f"{layout.grid[1]} longitudes and {layout.grid[0]} latitudes; {year} has {rows:,} "
                f"times, every {frequency} h."
            )
        parts.append((path, rows))
    if problems:
        raise DataError("\n".join(problems))
    static_fields = np.empty((0, *layout.grid), np.float32)
    if static is not None:
        layout, static_fields = read_static_file(static, layout)
    contents = [digest_sources([Source(str(path), "raw")]) for path, _ in parts]
    told = (contents, years, frequency, layout.channels, layout.units, layout.static_channels)
    digest = xxhash.xxh3_128(repr(told).encode())
    digest.update(layout.latitude.tobytes() + layout.longitude.tobytes() + static_fields.tobytes())
    return WeatherFields(
        layout=layout,
        times=np.concatenate([_times_of(year, frequency) for year in years]),
        values=RawValues(parts, (len(layout.channels), *layout.grid), "cwh"),
        static_fields=static_fields,
        fingerprint=digest.hexdigest(),
        sources=tuple(str(path) for path, _ in parts),
    )


def read_static_file(
    path: str | os.PathLike[str], layout: FieldLayout
) -> tuple[FieldLayout, np.ndarray]:
    """Reads static fields of the reference: ``(channel, longitude, latitude from the south)``.

    Args:
        path (path): The ``.npy`` file; any number of channels.
        layout (FieldLayout): The grid, and the names of the channels; without names they become
            ``static1``, ``static2``, ...

    Returns:
        ``(layout, static_fields)``: The layout with the names, and float32 ``[S, H, W]``.

    Raises:
        DataError: If it is no array of numbers, on another grid, or of another number of channels
            than the layout names.
    """
    path = Path(path)
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path} is no array file that can be read safely ({error}): save plain numbers with "
            "numpy.save."
        ) from None
    height, width = layout.grid
    if values.ndim != 3 or values.shape[1:] != (width, height) or values.dtype.kind not in "fiub":
        raise DataError(
            f"{path.name} holds {values.dtype} of the shape {list(values.shape)}; expected numbers "
            f"of the shape [channels, {width}, {height}]: longitudes, and latitudes from the south."
        )
    names = layout.static_channels or tuple(f"static{i + 1}" for i in range(len(values)))
    if len(names) != len(values):
        raise DataError(
            f"{path.name} has {len(values)} channels; expected {len(names)}: {', '.join(names)}."
        )
    fields = np.ascontiguousarray(values.transpose(0, 2, 1)[:, ::-1], dtype=np.float32)
    merged = FieldLayout(layout.channels, layout.units, names, layout.latitude, layout.longitude)
    return merged, fields


def write_yearly_memmaps(
    folder: str | os.PathLike[str],
    fields: WeatherFields,
    *,
    layout: FieldLayout | None = None,
    mode: str = "4u",
    res: int = 1,
    frequency: int = 6,
    progress: Callable[[int], Any] | None = None,
) -> list[Path]:
    """Writes fields as one raw file a year; each appears once it is whole.

    Args:
        folder (path): Where the files go.
        fields (WeatherFields): The data: whole years.
        layout (FieldLayout, *optional*): Channels, in the order of the files, and grid. Defaults to
            those of the fields.
        mode (str): Set of variables in the files' names. Defaults to ``"4u"``.
        res (int): Resolution in the files' names. Defaults to 1.
        frequency (int): Hours between two times, from 00 UTC on. Defaults to 6.
        progress (callable, *optional*): Called with the number of times written.

    Returns:
        list of Path: The files.

    Raises:
        DataError: If times of a year are missing, or the disk is too small.
    """
    folder = Path(folder)
    _check_frequency(frequency)
    inputs = match_layout(fields, layout or fields.layout)
    first, last = (int(str(np.datetime64(int(t), "s"))[:4]) for t in inputs.times[[0, -1]])
    years, problems = {}, []
    for year in range(first, last + 1):
        times = _times_of(year, frequency)
        rows = np.minimum(np.searchsorted(inputs.times, times), len(inputs.times) - 1)
        missing = times[inputs.times[rows] != times]
        if len(missing):
            problems.append(
                f"the data lack {len(missing):,} of the {len(times):,} times of {year}, every "
                f"{frequency} h: {_runs(missing, frequency)}."
            )
        years[folder / checked_name(f"era5_{mode}_{res}_{frequency}_{year}.memmap", "file")] = rows
    if problems:
        problems.append(f"They have {describe_times(inputs.times)}. Select whole years.")
        raise DataError("\n".join(problems))
    row_bytes = 4 * len(inputs.layout.channels) * inputs.layout.grid[0] * inputs.layout.grid[1]
    _check_disk(folder, row_bytes * sum(map(len, years.values())), f"{len(years)} yearly files")
    folder.mkdir(parents=True, exist_ok=True)
    step, done = max(1, _BLOCK_BYTES // row_bytes), 0
    for path, rows in years.items():
        # No random name: what a kill leaves behind is written over by the next call.
        partial = path.with_name(f".{path.name}.partial")
        with open(partial, "wb") as stream:
            for start in range(0, len(rows), step):
                states = inputs.read(rows[start : start + step])[:, 0]
                stored = states[:, :, ::-1].transpose(0, 1, 3, 2)
                stream.write(np.ascontiguousarray(stored, dtype="<f4").data)
                done += len(states)
                if progress is not None:
                    progress(done)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        sync_folder(folder)
    return list(years)


def memmaps_to_netcdf(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    layout: FieldLayout,
    mode: str = "4u",
    res: int = 1,
    frequency: int = 6,
    static: str | os.PathLike[str] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Path:
    """Writes yearly raw files as one NetCDF file in the layout of WeatherBench 2.

    :func:`~hftune.tasks.weather.store.open_fields` reads it back in place, bit by bit the same.

    Args:
        folder (path): Where the raw files are.
        path (path): The NetCDF file; it appears once it is whole.
        layout (FieldLayout): Channels and grid of the files.
        mode, res, frequency, static: See :func:`open_yearly_memmaps`.
        progress (callable, *optional*): Called with the number of times written.

    Returns:
        Path: ``path``.

    Raises:
        DataError: If the files cannot be read, see :func:`open_yearly_memmaps`, the disk is too
            small, or variables lie on different levels.
    """
    import netCDF4

    path = Path(path)
    _by_variable(layout)
    fields = open_yearly_memmaps(
        folder, layout=layout, mode=mode, res=res, frequency=frequency, static=static
    )
    row_bytes = 4 * int(np.prod(fields.values.shape[1:]))
    _check_disk(path.parent, row_bytes * len(fields), path.name)
    step = max(1, _BLOCK_BYTES // row_bytes)
    with atomic_path(path) as temporary, netCDF4.Dataset(temporary, "w") as file:
        variables = _define(file, fields)
        for start in range(0, len(fields), step):
            rows = slice(start, min(start + step, len(fields)))
            values = fields.read(rows)
            for variable, channels in variables:
                on_levels = variable.ndim == 4
                variable[rows] = values[:, channels] if on_levels else values[:, channels[0]]
            if progress is not None:
                progress(rows.stop)
    return path


def _define(file: netCDF4.Dataset, fields: WeatherFields) -> list[tuple[netCDF4.Variable, list]]:
    """Writes coordinates and static fields; returns each variable with its channels, by level."""
    layout = fields.layout
    longitude = layout.longitude - 360 if layout.longitude[-1] >= 360 else layout.longitude
    file.setncatts({"Conventions": "CF-1.8", "title": "ERA5 from yearly raw files"})

    def add_axis(name: str, values: np.ndarray, units: str, standard_name: str) -> None:
        file.createDimension(name, len(values))
        axis = file.createVariable(name, values.dtype, (name,))
        axis.setncatts({"units": units, "standard_name": standard_name})
        axis[:] = values

    add_axis("time", fields.times, "seconds since 1970-01-01 00:00:00", "time")
    file["time"].calendar = "proleptic_gregorian"
    add_axis("latitude", layout.latitude, "degrees_north", "latitude")
    add_axis("longitude", longitude, "degrees_east", "longitude")

    def add(name: str, label: str, units: str, dimensions: tuple[str, ...]) -> netCDF4.Variable:
        # Contiguous and without a fill value, so that it is read in place.
        grid = ("latitude", "longitude")
        variable = file.createVariable(label, "f4", (*dimensions, *grid), fill_value=False)
        variable.units = units
        if name in VARIABLES:
            variable.long_name = VARIABLES[name].long_name
        return variable

    for name, values in zip(layout.static_channels, fields.static_fields, strict=True):
        units = VARIABLES[name].units if name in VARIABLES else "1"
        add(name, _WEATHERBENCH_STATIC.get(name, name), units, ())[:] = values
    by_variable = _by_variable(layout)
    levels = next((levels for levels, _ in by_variable.values() if levels != (None,)), ())
    if levels:
        add_axis("level", np.array(levels), "hPa", "air_pressure")
    return [
        (
            add(
                name,
                _WEATHERBENCH.get(name, name),
                layout.units[channels[0]],
                ("time",) if of == (None,) else ("time", "level"),
            ),
            channels,
        )
        for name, (of, channels) in by_variable.items()
    ]


def _by_variable(
    layout: FieldLayout,
) -> dict[str, tuple[tuple[float | None, ...], list[int]]]:
    """Levels, increasing, and channels of each variable; the level of a single one is None."""
    places: dict[str, list[tuple[float | None, int]]] = {}
    for channel, name in enumerate(layout.channels):
        variable, level = split_channel(name)
        places.setdefault(variable, []).append((level, channel))
    result = {}
    for name, found in places.items():
        levels, channels = zip(*sorted(found, key=lambda place: place[0] or 0), strict=True)
        result[name] = (levels, list(channels))
    on_levels = {name: levels for name, (levels, _) in result.items() if levels != (None,)}
    if len(set(on_levels.values())) > 1:
        told = []
        for name, levels in on_levels.items():
            texts = ("surface" if level is None else f"{level:g}" for level in levels)
            told.append(f"{name} ({', '.join(texts)})")
        raise DataError(
            "a file in the layout of WeatherBench 2 has one set of levels for all variables; "
            f"these have their own: {'; '.join(told)}."
        )
    return result


def _check_frequency(frequency: int) -> None:
    if frequency < 1 or 24 % frequency:
        raise ConfigurationError(
            f"frequency is {frequency}; it has to divide a day: 1, 2, 3, 4, 6, 8, 12 or 24 hours."
        )


def _check_disk(folder: Path, need: int, what: str) -> None:
    free = free_bytes(folder)
    if need > free:
        raise DataError(
            f"writing {what} needs {gigabytes(need)}, {gigabytes(free)} are free on the disk of "
            f"{folder}: make room or name another folder."
        )


def _times_of(year: int, frequency: int) -> np.ndarray:
    """All times of a year, int64 seconds since 1970."""
    start, stop = (np.datetime64(f"{y}-01-01", "s").astype(np.int64) for y in (year, year + 1))
    return np.arange(start, stop, 3600 * frequency)


def _runs(times: np.ndarray, frequency: int) -> str:
    """Says which times: ``2007-01-01 to 2007-01-31T18:00, 2007-03-01``."""
    runs = np.split(times, np.flatnonzero(np.diff(times) != 3600 * frequency) + 1)
    told = [
        format_time(run[0]) + (f" to {format_time(run[-1])}" if len(run) > 1 else "")
        for run in runs[:4]
    ]
    return ", ".join(told) + (f" and {len(runs) - 4} more stretches" if len(runs) > 4 else "")
