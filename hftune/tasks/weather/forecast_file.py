"""Rolls a model out from given times and writes the forecasts as CF NetCDF.

The file has the layout of WeatherBench 2: ``time`` is when a forecast was made and
``prediction_timedelta`` how far it looks ahead.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import __version__
from ...utils.errors import DataError, did_you_mean
from ...utils.files import atomic_path, free_bytes, human_bytes
from .dates import describe_times, format_time, select_rows
from .fields import FieldLayout, WeatherFields, split_channel
from .grid import Grid, describe_grid, match_points
from .variables import VARIABLES

if TYPE_CHECKING:
    import netCDF4
    import torch

__all__ = ["ForecastInputs", "match_inputs", "write_forecasts"]


@dataclasses.dataclass(frozen=True, eq=False)
class ForecastInputs:
    """What a model reads of some fields: its channels on its grid at the times it can start from.

    Attributes:
        fields (WeatherFields): The data, which may have more channels and a larger grid.
        layout (FieldLayout): Channels, units and grid of the model.
        channels (int array ``[C]``): Where the model's channels are in the data.
        latitudes (int array ``[H]``), longitudes (int array ``[W]``): Where its grid is.
        rows (int array ``[n, T]``): Rows of the inputs of each forecast, the last its time.
    """

    fields: WeatherFields
    layout: FieldLayout
    channels: np.ndarray
    latitudes: np.ndarray
    longitudes: np.ndarray
    rows: np.ndarray

    @property
    def times(self) -> np.ndarray:
        """int64 ``[n]``: when the forecasts are made, seconds since 1970-01-01 UTC."""
        return self.fields.times[self.rows[:, -1]]

    def read(self, part: slice) -> np.ndarray:
        """Returns the inputs of some forecasts, float32 ``[n, T, C, H, W]``."""
        rows = self.rows[part]
        values = self.fields.read(rows.reshape(-1))
        values = values.reshape(*rows.shape, *values.shape[1:])
        return np.ascontiguousarray(self._cut(values[:, :, self.channels]))

    def read_static(self, names: Sequence[str]) -> np.ndarray:
        """Returns static fields of the data by name, float32 ``[S, H, W]``."""
        known = self.fields.layout.static_channels
        missing = [name for name in names if name not in known]
        if missing:
            raise DataError(
                f"The model needs the static fields {', '.join(missing)}; the data have "
                f"{', '.join(known) or 'none'}. Give a store that has them with --static_data."
            )
        return self._cut(self.fields.static_fields[[known.index(name) for name in names]])

    def _cut(self, values: np.ndarray) -> np.ndarray:
        return values[..., self.latitudes, :][..., self.longitudes]


def match_inputs(fields: WeatherFields, config: Any, dates: str | None = None) -> ForecastInputs:
    """Finds what a model needs in some fields.

    Args:
        fields (WeatherFields): The data.
        config (AuroraConfig or alike): Has ``channels``, ``latitude``, ``longitude``, ``history``
            and ``timestep_hours``.
        dates (str, *optional*): When forecasts are to be made (see
            :func:`~hftune.tasks.weather.dates.select_rows`). Defaults to the last time possible.

    Raises:
        DataError: If a channel, a grid point or a time is missing.
    """
    ours = fields.layout.channels
    missing = [channel for channel in config.channels if channel not in ours]
    if missing:
        hints = "".join(did_you_mean(channel, ours, most=1) for channel in missing[:1])
        raise DataError(
            f"The data lack {len(missing)} of the model's {len(config.channels)} channels: "
            f"{', '.join(missing[:12])}. They have {', '.join(ours[:24])}.{hints}"
        )
    channels = np.array([ours.index(channel) for channel in config.channels])
    wanted, offered = (
        Grid(
            np.asarray(latitude, dtype=np.float64),
            np.asarray(longitude, dtype=np.float64),
            np.arange(len(latitude)),
            np.arange(len(longitude)),
        )
        for latitude, longitude in (
            (config.latitude, config.longitude),
            (fields.layout.latitude, fields.layout.longitude),
        )
    )
    places = match_points(wanted, offered)
    if places is None:
        raise DataError(
            f"The model was made for a grid of {describe_grid(wanted)}; the data have "
            f"{describe_grid(offered)}, which lacks some of its points."
        )

    times = fields.times
    offsets = np.arange(1 - config.history, 1) * round(config.timestep_hours * 3600)
    candidates = select_rows(times, dates)
    needed = times[candidates][:, None] + offsets
    rows = np.minimum(np.searchsorted(times, needed), len(times) - 1)
    whole = (times[rows] == needed).all(axis=1)
    rows = rows[whole]
    if not len(rows):
        raise DataError(
            f"No forecast can start{'' if dates is None else f' within {dates!r}'}: the model "
            f"needs {config.history} states {config.timestep_hours:g} h apart, and the data have "
            f"{describe_times(times[candidates] if dates is not None else times)}."
        )
    units = tuple(fields.layout.units[index] for index in channels)
    layout = FieldLayout(tuple(config.channels), units, (), wanted.latitude, wanted.longitude)
    return ForecastInputs(fields, layout, channels, *places, rows[-1:] if dates is None else rows)


def write_forecasts(
    path: str | os.PathLike[str],
    predict: Callable[[dict[str, torch.Tensor]], np.ndarray],
    inputs: ForecastInputs,
    lead_hours: Sequence[int],
    *,
    latitudes: int | None = None,
    batch_size: int = 1,
    source: str = "",
    progress: Callable[[int], Any] | None = None,
) -> None:
    """Writes forecasts, a batch at a time; the file is there when it is whole.

    Args:
        path (path): The NetCDF file.
        predict (callable): From ``fields [B, T, C, H, W]`` and ``times [B]`` to float32
            ``[B, L, C, H', W]``, see
            :func:`~hftune.tasks.weather.evaluation_weather.model_predictor`.
        inputs (ForecastInputs): Where the forecasts start.
        lead_hours (sequence of int): ``L`` lead times, hours.
        latitudes (int, *optional*): ``H'``, the latitudes that the model forecasts; defaults to
            all.
        batch_size (int): Forecasts at a time. Defaults to 1.
        source (str): What made them, for the file's attributes.
        progress (callable, *optional*): Called with the number of forecasts done.

    Raises:
        DataError: If the disk is too small.
    """
    import netCDF4
    import torch

    path = Path(path)
    rows = len(inputs.layout.latitude) if latitudes is None else latitudes
    layout = dataclasses.replace(inputs.layout, latitude=inputs.layout.latitude[:rows])
    size = 4 * len(inputs.times) * len(lead_hours) * len(layout.channels) * np.prod(layout.grid)
    free = free_bytes(path.parent)
    if size > free:
        raise DataError(
            f"The forecasts need up to {human_bytes(size)} and {path.parent} has "
            f"{human_bytes(free)}: ask for fewer dates or lead times, or another disk."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, netCDF4.Dataset(temporary, "w") as file:
        variables = _define(file, layout, inputs.times, lead_hours, source)
        for start in range(0, len(inputs.times), batch_size):
            part = slice(start, min(start + batch_size, len(inputs.times)))
            batch = {
                "fields": torch.from_numpy(inputs.read(part)),
                "times": torch.from_numpy(inputs.times[part]),
            }
            forecast = predict(batch)
            for index, (variable, level) in enumerate(variables):
                if level is None:
                    variable[part] = forecast[:, :, index]
                else:
                    variable[part, :, level] = forecast[:, :, index]
            if progress is not None:
                progress(part.stop)


def _define(
    file: netCDF4.Dataset,
    layout: FieldLayout,
    times: np.ndarray,
    lead_hours: Sequence[int],
    source: str,
) -> list[tuple[netCDF4.Variable, int | None]]:
    """Writes coordinates and attributes; returns variable and index of the level by channel."""
    parts = [split_channel(channel) for channel in layout.channels]
    levels = sorted({level for _, level in parts if level is not None})
    pressures = np.array(levels)
    if all(level.is_integer() for level in levels):
        pressures = pressures.astype(np.int32)
    longitude = np.asarray(layout.longitude)
    if longitude.max() >= 360:  # across Greenwich: -15 to 5, not 345 to 365
        longitude = longitude - 360
    leads = np.asarray(lead_hours, dtype=np.int64)
    stamp = np.datetime_as_string(np.datetime64("now"), timezone="UTC")
    file.setncatts(
        {
            "Conventions": "CF-1.8",
            "title": f"Weather forecasts from {format_time(times[0])} on",
            "source": source,
            "history": f"{stamp} hftune {__version__}: {' '.join(sys.argv)}",
        }
    )
    coordinates: list[tuple[str, np.ndarray, dict[str, str]]] = [
        ("time", times, {"standard_name": "forecast_reference_time", "axis": "T",
                         "long_name": "time at which the forecast was made",
                         "units": "seconds since 1970-01-01 00:00:00", "calendar": "standard"}),
        ("prediction_timedelta", leads, {"standard_name": "forecast_period", "units": "hours",
                                         "long_name": "lead time"}),
        ("level", pressures, {"standard_name": "air_pressure", "units": "hPa",
                                     "positive": "down", "axis": "Z"}),
        ("latitude", layout.latitude, {"standard_name": "latitude", "units": "degrees_north",
                                       "axis": "Y"}),
        ("longitude", longitude, {"standard_name": "longitude", "units": "degrees_east",
                                  "axis": "X"}),
    ]  # fmt: skip
    for name, values, attributes in coordinates:
        if len(values):
            file.createDimension(name, len(values))
            variable = file.createVariable(name, values.dtype, (name,))
            variable.setncatts(attributes)
            variable[:] = values
    valid = file.createVariable("valid_time", "i8", ("time", "prediction_timedelta"))
    valid.setncatts({"standard_name": "time", "long_name": "time for which the forecast is made",
                     "units": "seconds since 1970-01-01 00:00:00",
                     "calendar": "standard"})  # fmt: skip
    valid[:] = times[:, None] + leads * 3600

    on_levels = {name for name, level in parts if level is not None}
    made: dict[str, netCDF4.Variable] = {}
    result = []
    for (name, level), units in zip(parts, layout.units, strict=True):
        extra = () if level is None else ("level",)
        label = f"{name}_surface" if level is None and name in on_levels else name
        if label not in made:
            made[label] = variable = file.createVariable(
                label,
                "f4",
                ("time", "prediction_timedelta", *extra, "latitude", "longitude"),
                fill_value=np.float32(np.nan),
                zlib=True,
                complevel=1,
                chunksizes=(1, 1, *(len(levels) for _ in extra), *layout.grid),
            )
            variable.setncatts({"units": units, "coordinates": "valid_time"})
            if name in VARIABLES:
                variable.long_name = VARIABLES[name].long_name
                if VARIABLES[name].standard_name:
                    variable.standard_name = VARIABLES[name].standard_name
        result.append((made[label], None if level is None else levels.index(level)))
    return result
