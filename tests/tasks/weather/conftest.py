"""Small made-up fields as xarray data sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture
def make_dataset() -> Callable:
    """Factory of data sets in the layout of the Copernicus store, with random values."""

    def make(
        variables=("t2m", "z"),
        *,
        days=12,
        start="2020-01-01",
        hours=24,
        levels=(500, 850),
        latitude=(50.0, 47.5, 45.0, 42.5),
        longitude=(0.0, 2.5, 5.0),
        dtype="float32",
        seed=0,
    ):
        import xarray

        rng = np.random.default_rng(seed)
        times = np.datetime64(start, "ns") + np.arange(days) * np.timedelta64(hours, "h")
        units = {
            "t2m": "K",
            "msl": "Pa",
            "tp": "m",
            "z": "m**2 s**-2",
            "t": "K",
            "q": "kg kg**-1",
            "lsm": "1",
        }
        on_levels = ("z", "t", "u", "v", "q")
        data = {}
        for name in variables:
            dims = ["time", "latitude", "longitude"]
            shape = [days, len(latitude), len(longitude)]
            if name in on_levels:
                dims.insert(1, "level")
                shape.insert(1, len(levels))
            values = rng.normal(size=shape).astype(dtype)
            data[name] = (dims, values, {"units": units.get(name, "m s**-1")})
        coords = {
            "time": times,
            "latitude": ("latitude", np.array(latitude), {"units": "degrees_north"}),
            "longitude": ("longitude", np.array(longitude), {"units": "degrees_east"}),
        }
        if any(name in on_levels for name in variables):
            coords["level"] = ("level", np.array(levels), {"units": "hPa"})
        return xarray.Dataset(data, coords)

    return make
