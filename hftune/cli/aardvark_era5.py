"""``hftune aardvark era5-to-netcdf`` and ``netcdf-to-era5``: yearly raw files and NetCDF."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.errors import ConfigurationError, DataError, did_you_mean
from ..utils.files import human_bytes
from ..utils.terminal import progress

if TYPE_CHECKING:
    from ..tasks.weather.fields import FieldLayout

__all__ = ["add_commands"]

_RAW = """\
Aardvark keeps ERA5 as one raw file of float32 a year, era5_4u_1_6_2018.memmap:
(time, channel, longitude, latitude) in physical units, latitude from south to
north, 00 UTC of 1 January to the end of the year, every 6 hours. The files say
nothing of themselves: channels and grid are the published ones unless you give
others."""

_TO_NETCDF = f"""\
Writes Aardvark's yearly files as one NetCDF file in the layout of WeatherBench 2,
which xarray and all of hftune read.

{_RAW}"""

_TO_ERA5 = f"""\
Writes weather data of any form that hftune reads as Aardvark's yearly files.
Only whole years can be written.

{_RAW}"""


def _common(parser: argparse.ArgumentParser, grid: str) -> None:
    parser.add_argument(
        "--channels", metavar="NAMES",
        help="channels in the order of the files, such as 10u,2t,z_500 (default: the 24 published)",
    )  # fmt: skip
    parser.add_argument(
        "--grid", metavar="DIR",
        help="folder with era5_x_1.npy (longitudes) and era5_y_1.npy (latitudes), or the word "
        f"published: 240 x 121 points, 1.5 degrees (default: {grid})",
    )  # fmt: skip
    parser.add_argument(
        "--era5_mode", "--era5-mode", default="4u", metavar="MODE", help="in the names (default 4u)"
    )
    parser.add_argument("--res", type=int, default=1, metavar="N", help="in the names (default 1)")
    parser.add_argument(
        "--frequency", type=int, default=6, metavar="HOURS",
        help="hours between two times (default 6)",
    )  # fmt: skip


def add_commands(commands: Any) -> None:
    """Adds the two commands to those of ``hftune aardvark``."""
    raw = argparse.RawDescriptionHelpFormatter
    to_netcdf = commands.add_parser(
        "era5-to-netcdf", help="Aardvark's yearly raw files to NetCDF",
        description=_TO_NETCDF, formatter_class=raw,
    )  # fmt: skip
    to_netcdf.add_argument("folder", metavar="FOLDER", help="folder with era5_4u_1_6_YEAR.memmap")
    to_netcdf.add_argument("out", metavar="OUT.nc", type=Path, help="NetCDF file to write")
    _common(to_netcdf, grid="published")
    to_netcdf.add_argument(
        "--static", metavar="FILE",
        help="static fields to write as well, elev_vars_1.npy: [fields, 240, 121]",
    )  # fmt: skip
    to_netcdf.set_defaults(run=_to_netcdf)

    to_era5 = commands.add_parser(
        "netcdf-to-era5", help="NetCDF, Zarr or GRIB to Aardvark's yearly raw files",
        description=_TO_ERA5, formatter_class=raw,
    )  # fmt: skip
    to_era5.add_argument(
        "data", nargs="+", metavar="DATA", help="files, globs, Zarr stores or URLs with the fields"
    )
    to_era5.add_argument("out", metavar="OUT_FOLDER", type=Path, help="folder to write to")
    _common(to_era5, grid="that of the data")
    to_era5.add_argument("--dates", metavar="DATES", help="whole years to take, such as 2007:2018")
    to_era5.add_argument(
        "--cache_dir", "--cache-dir", metavar="DIR", help="where fields are cached"
    )
    to_era5.set_defaults(run=_to_era5)


def _to_netcdf(arguments: argparse.Namespace) -> int:
    from ..tasks.weather.yearly_memmaps import memmaps_to_netcdf, open_yearly_memmaps

    layout = _layout(_channels(arguments), *_grid(arguments, arguments.grid or "published"))
    settings = {"layout": layout, **_names(arguments), "static": arguments.static}
    fields = open_yearly_memmaps(arguments.folder, **settings)
    with progress(len(fields), "Writing", "times") as bar:
        memmaps_to_netcdf(
            arguments.folder,
            arguments.out,
            **settings,
            progress=lambda done: bar.update(done - bar.done),
        )
    _report(arguments.out, fields.times, layout, arguments.out.stat().st_size)
    return 0


def _to_era5(arguments: argparse.Namespace) -> int:
    from ..tasks.weather.fields import split_channel
    from ..tasks.weather.store import open_fields
    from ..tasks.weather.yearly_memmaps import write_yearly_memmaps

    channels = _channels(arguments)
    grid = _grid(arguments, arguments.grid) if arguments.grid else None
    parts = [split_channel(channel) for channel in channels]
    fields = open_fields(
        arguments.data,
        variables=list(dict.fromkeys(name for name, _ in parts)),
        levels=sorted({level for _, level in parts if level is not None}) or None,
        times=arguments.dates,
        cache_dir=arguments.cache_dir,
    )
    grid = grid or (fields.layout.latitude, fields.layout.longitude)
    layout = _layout(channels, *grid)
    with progress(len(fields), "Writing", "times") as bar:
        files = write_yearly_memmaps(
            arguments.out,
            fields,
            layout=layout,
            **_names(arguments),
            progress=lambda done: bar.update(done - bar.done),
        )
    _report(
        ", ".join(str(path) for path in files),
        fields.times,
        layout,
        sum(path.stat().st_size for path in files),
    )
    return 0


def _names(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "mode": arguments.era5_mode,
        "res": arguments.res,
        "frequency": arguments.frequency,
    }


def _channels(arguments: argparse.Namespace) -> list[str]:
    if not arguments.channels:
        from ..tasks.aardvark.configuration_aardvark import OFFICIAL_CHANNELS

        return list(OFFICIAL_CHANNELS)
    channels = [name for name in arguments.channels.replace(" ", ",").split(",") if name]
    from ..tasks.weather.fields import split_channel
    from ..tasks.weather.variables import VARIABLES

    problems = [
        f"--channels: {channel} is not known.{did_you_mean(split_channel(channel)[0], VARIABLES)}"
        for channel in channels
        if split_channel(channel)[0] not in VARIABLES
    ]
    problems += [
        f"--channels names {channel} more than once."
        for channel in dict.fromkeys(channels)
        if channels.count(channel) > 1
    ]
    if problems:
        raise ConfigurationError(problems)
    return channels


def _grid(arguments: argparse.Namespace, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes from north to south, and longitudes."""
    if where == "published":
        return np.linspace(90, -90, 121), np.arange(240) * 1.5
    axes = []
    for axis in ("y", "x"):
        path = Path(where) / f"era5_{axis}_{arguments.res}.npy"
        try:
            values = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise DataError(
                f"--grid {where}: there is no {path.name} in it; give the folder of Aardvark's "
                "grid files, or the word published."
            ) from None
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} is no plain array of numbers ({error}).") from error
        if values.ndim != 1 or not (np.diff(values) > 0).all():
            raise DataError(
                f"{path} has the shape {list(values.shape)}; expected increasing degrees on one "
                "axis."
            )
        axes.append(values.astype(np.float64))
    return axes[0][::-1], axes[1]


def _layout(channels: Sequence[str], latitude: np.ndarray, longitude: np.ndarray) -> FieldLayout:
    from ..tasks.weather.fields import FieldLayout, split_channel
    from ..tasks.weather.variables import VARIABLES

    units = tuple(VARIABLES[split_channel(channel)[0]].units for channel in channels)
    return FieldLayout(tuple(channels), units, (), latitude, longitude)


def _report(where: Path | str, times: np.ndarray, layout: FieldLayout, size: int) -> None:
    from ..tasks.weather.dates import describe_times
    from ..tasks.weather.grid import describe_grid

    print(
        f"{where}: {describe_times(times)}, {len(layout.channels)} channels, "
        f"{describe_grid(layout)}, {human_bytes(size)}"
    )
