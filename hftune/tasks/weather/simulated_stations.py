"""Stations for those who have none: points at which gridded fields are observed, badly."""

from __future__ import annotations

import numpy as np

from ...utils.errors import DataError
from .fields import WeatherFields, split_channel
from .stations import Stations

__all__ = ["simulated_stations"]

_BLOCK = 1 << 22  # values read at once: 16 MiB of float32


def simulated_stations(
    fields: WeatherFields,
    *,
    count: int = 20,
    seed: int = 0,
    noise: float = 0.1,
    missing: float = 0.05,
) -> Stations:
    """Observes fields at random points, with errors and gaps.

    What is observed are the surface channels, or the channels of the lowest level where there are
    none. The same fields and settings give the same numbers.

    Args:
        fields (WeatherFields): The fields, global or regional.
        count (int): Number of stations. Defaults to 20.
        seed (int): Of the places, errors and gaps. Defaults to 0.
        noise (float): Standard deviation of the errors as a fraction of the variable's own.
            Defaults to 0.1.
        missing (float): Fraction of the values that are missing. Defaults to 0.05.

    Returns:
        Stations: Variables are channel names (``2t``, ``msl``), in the units of the fields.

    Raises:
        DataError: If the grid has fewer than two latitudes or longitudes.
    """
    layout = fields.layout
    if min(layout.grid) < 2:
        raise DataError(
            f"the fields have {layout.grid[0]} x {layout.grid[1]} points: stations lie between "
            "points, of which each direction needs two or more."
        )
    levels = {channel: split_channel(channel)[1] for channel in layout.channels}
    variables = [channel for channel, level in levels.items() if level is None]
    if not variables:
        lowest = max(levels.values())
        variables = [channel for channel, level in levels.items() if level == lowest]
    chosen = [layout.channels.index(channel) for channel in variables]

    random = np.random.default_rng(seed)
    latitude = random.uniform(layout.latitude[-1], layout.latitude[0], count)
    longitude = random.uniform(layout.longitude[0], layout.longitude[-1], count)
    # Four neighbours of each point and their weights.
    south, dy = _between(-layout.latitude, -latitude)
    west, dx = _between(layout.longitude, longitude)
    corners = [
        (south, west, (1 - dy) * (1 - dx)),
        (south, west + 1, (1 - dy) * dx),
        (south + 1, west, dy * (1 - dx)),
        (south + 1, west + 1, dy * dx),
    ]
    values = np.empty((len(fields), len(variables), count), dtype=np.float32)
    step = max(1, _BLOCK // (len(layout.channels) * layout.grid[0] * layout.grid[1]))
    for start in range(0, len(fields), step):
        read = fields.read(slice(start, start + step))[:, chosen]
        values[start : start + step] = sum(
            read[:, :, rows, columns] * weight for rows, columns, weight in corners
        )
    spread = np.nanstd(values, axis=(0, 2), keepdims=True)
    values += noise * spread * random.standard_normal(values.shape, dtype=np.float32)
    values[random.random(values.shape) < missing] = np.nan
    width = len(str(count))
    return Stations(
        names=tuple(f"S{number:0{width}d}" for number in range(1, count + 1)),
        longitude=longitude,
        latitude=latitude,
        variables=tuple(variables),
        times=fields.times.copy(),
        values=values,
    )


def _between(axis: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each point the index before it on an increasing axis and how far on it lies."""
    before = np.clip(np.searchsorted(axis, points, side="right") - 1, 0, len(axis) - 2)
    return before, (points - axis[before]) / (axis[before + 1] - axis[before])
