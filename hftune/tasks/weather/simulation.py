"""A simulated atmosphere, for those who have no data at hand.

Two layers of quasi-geostrophic flow in a channel round the planet (Phillips 1954), with the things
that make weather data what they are: a jet that breaks into cyclones, a seasonal cycle, mountains,
land and sea, moisture that is carried along. It is chaotic, so a forecast is worth something: one
day ahead is predictable, a month is not. What it is not: a climate model. Its planet is made up,
and its numbers only look like reanalysis.

The state is four fields on the channel: the potential vorticity of the upper and of the lower
layer, the temperature near the ground and a relative-humidity tracer, the last two carried by the
lower layer's wind. All are departures from a prescribed zonal flow, sine series across the channel
(walls at both edges) and Fourier series along it. Everything that is written out follows from them:
the geopotential of a level from the two stream functions and hydrostatic balance, winds from
geostrophy, temperatures from thickness.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...utils.errors import ConfigurationError
from ...utils.files import atomic_path
from ...utils.home import hftune_home
from .fields import FieldLayout, WeatherFields, channel_name, split_channel
from .simulation_dynamics import (
    CHANNEL_LENGTH,
    CHANNEL_WIDTH,
    CORIOLIS,
    DAY,
    GAS_CONSTANT,
    GRAVITY,
    LOWER,
    MARGIN,
    MEAN_FLOW,
    MIDDLE,
    NORTH,
    SOUTH,
    UPPER,
    WINTER_FLOW,
    YEAR,
    Planet,
    integrate,
    january,
    land_fraction,
    orography,
)
from .variables import VARIABLES

__all__ = ["Simulation", "simulate_atmosphere", "simulated_atmosphere_path", "write_simulation"]

# Goes up when the numbers that a seed gives change: no cached file of an older model serves then.
VERSION = 3

SURFACE = ("2t", "10u", "10v", "msl")
ON_LEVELS = ("z", "u", "v", "t", "q")
STATIC = ("lsm", "z", "slt")
NETCDF_NAMES = {"2t": "t2m", "10u": "u10", "10v": "v10"}  # as the Copernicus store has them


@dataclasses.dataclass(frozen=True)
class Simulation:
    """What to simulate; the same settings give the same numbers.

    Attributes:
        years (float): Length. Defaults to 6.
        step_hours (int): Hours between two times of the output. Defaults to 24.
        latitudes (int): Rows of the output, evenly spaced between 20 and 70 degrees north.
            Defaults to 16.
        longitudes (int): Columns of the output, all round the planet. Defaults to 32.
        levels (tuple of int): Pressure levels in hPa, between 200 and 1000. Defaults to
            (500, 850, 1000).
        start (str): First day. Defaults to ``"2000-01-01"``.
        seed (int): Another seed is another weather on the same planet. Defaults to 0.
    """

    years: float = 6.0
    step_hours: int = 24
    latitudes: int = 16
    longitudes: int = 32
    levels: tuple[int, ...] = (500, 850, 1000)
    start: str = "2000-01-01"
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not self.years > 0:
            problems.append(f"years is {self.years}; it has to be positive.")
        for name in ("step_hours", "latitudes", "longitudes"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; it has to be at least 1.")
        if not self.levels or not all(200 <= level <= 1000 for level in self.levels):
            problems.append(f"levels are {self.levels}; they have to lie between 200 and 1000 hPa.")
        try:
            datetime.date.fromisoformat(self.start)
        except ValueError:
            problems.append(f"start is {self.start!r}; it has to be a day like 2000-01-01.")
        if problems:
            raise ConfigurationError(problems)

    @property
    def times(self) -> np.ndarray:
        """int64 seconds since 1970-01-01 UTC, ``[N]``."""
        start = datetime.datetime.fromisoformat(self.start).replace(tzinfo=datetime.timezone.utc)
        count = max(1, round(self.years * YEAR / (3600 * self.step_hours)))
        return int(start.timestamp()) + 3600 * self.step_hours * np.arange(count, dtype=np.int64)

    @property
    def layout(self) -> FieldLayout:
        """Names, units and grid of the output."""
        levels = [channel_name(v, p) for v in ON_LEVELS for p in self.levels]
        step = (NORTH - SOUTH - 2 * MARGIN) / self.latitudes
        return FieldLayout(
            channels=(*SURFACE, *levels),
            units=tuple(VARIABLES[split_channel(c)[0]].units for c in (*SURFACE, *levels)),
            static_channels=STATIC,
            latitude=NORTH - MARGIN - step * (np.arange(self.latitudes) + 0.5),
            longitude=360.0 / self.longitudes * np.arange(self.longitudes),
        )


def _written_fields(simulation: Simulation, times: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """What an observer sees of the model's state.

    Args:
        times (int64 array ``[n]``): Seconds since 1970-01-01.
        waves (complex array ``[n, 4, M, K]``): From :func:`integrate`.

    Returns:
        float32 array ``[n, C, H, W]`` in the layout of ``simulation``.
    """
    layout = simulation.layout
    y = ((layout.latitude - SOUTH) / (NORTH - SOUTH))[:, None]
    x = np.deg2rad(layout.longitude)[None, :]
    winter = january(times.astype(float))[:, None, None]
    m = np.pi * np.arange(1, waves.shape[2] + 1)
    ik = 2j * np.pi * np.arange(waves.shape[3]) / CHANNEL_LENGTH

    def on_grid(coefficients: np.ndarray, across: np.ndarray) -> np.ndarray:
        lines = np.einsum("hm,nmk->nhk", across, coefficients)
        return np.fft.irfft(lines, n=simulation.longitudes, axis=-1, norm="forward")

    sine, cosine = np.sin(y * m), np.cos(y * m) * m / CHANNEL_WIDTH

    def prescribed(of: Sequence[np.ndarray]) -> np.ndarray:
        return of[0] + winter * of[1]

    # The flow over latitude, and its integral: the stream function, less its mean over the channel.
    jet, jet_integral = np.sin(np.pi * y) ** 2, y / 2 - np.sin(2 * np.pi * y) / (4 * np.pi) - 0.25
    flows, streams = [], []
    for layer in (0, 1):
        flows.append(
            prescribed([f[0][layer] + f[1][layer] * jet for f in (MEAN_FLOW, WINTER_FLOW)])
        )
        streams.append(
            prescribed(
                [
                    -CHANNEL_WIDTH * (f[0][layer] * (y - 0.5) + f[1][layer] * jet_integral)
                    for f in (MEAN_FLOW, WINTER_FLOW)
                ]
            )
        )
    # A difference of the two stream functions is a temperature: hydrostatic balance.
    per_stream = CORIOLIS / (GAS_CONSTANT * np.log(LOWER / UPPER))
    thickness = per_stream * (waves[:, 0] - waves[:, 1])
    ground = waves[:, 2]
    season = -6.0 * winter
    moisture = on_grid(waves[:, 3], sine)
    prescribed_heat = per_stream * (streams[0] - streams[1])
    land, height = land_fraction(y, x), orography(y, x)

    result = np.empty((len(times), len(layout.channels), *layout.grid), np.float32)
    place = {channel: i for i, channel in enumerate(layout.channels)}

    def level(pressure: float) -> tuple[np.ndarray, ...]:
        up = np.log(MIDDLE / pressure)
        low = max(0.0, np.log(pressure / 700.0)) / np.log(1000.0 / 700.0)  # 0 at 700 hPa, 1 at 1000
        layer = low**2 / 2 * np.log(1000.0 / 700.0)
        stream = (waves[:, 0] + waves[:, 1]) / 2 + (
            GAS_CONSTANT / CORIOLIS * (up * thickness - layer * (ground - thickness))
        )
        u = (flows[0] + flows[1]) / 2 + up / np.log(LOWER / UPPER) * (flows[0] - flows[1])
        u = u - on_grid(stream, cosine)
        v = on_grid(ik * stream, sine)
        ratio = (pressure / 1013.25) ** 0.190263  # the standard atmosphere
        z = GRAVITY * 44330.8 * (1 - ratio) + GAS_CONSTANT * season * np.log(1000.0 / pressure)
        z = z + CORIOLIS * (streams[0] + streams[1]) / 2 + GAS_CONSTANT * up * prescribed_heat
        z = z + CORIOLIS * on_grid(stream, sine)
        t = 288.15 * ratio + season + prescribed_heat
        t = t + on_grid((1 - low) * thickness + low * ground, sine)
        wet = np.interp(pressure, [200, 500, 850, 1000], [0.35, 0.4, 0.65, 0.75])
        wet = wet + np.interp(pressure, [500, 1000], [0.5, 0.9]) * moisture
        humidity = 0.5 + 0.48 * np.tanh((wet - 0.5) / 0.48)
        celsius = t - 273.15
        vapour = humidity * 611.2 * np.exp(17.67 * celsius / (celsius + 243.5))
        q = 0.622 * vapour / (100 * pressure - 0.378 * vapour)
        return z, u, v, t, q

    for pressure in simulation.levels:
        for variable, values in zip(ON_LEVELS, level(pressure), strict=True):
            result[:, place[channel_name(variable, pressure)]] = values

    z, u, v, t, _ = level(1000.0)
    result[:, place["msl"]] = 1e5 * np.exp(z / (GAS_CONSTANT * t))
    # Friction slows the wind near the ground and turns it to the left, more so over land.
    slower, turn = 0.8 - 0.25 * land, np.deg2rad(15 + 15 * land)
    result[:, place["10u"]] = slower * (np.cos(turn) * u - np.sin(turn) * v)
    result[:, place["10v"]] = slower * (np.sin(turn) * u + np.cos(turn) * v)
    local_hour = 2 * np.pi * (times[:, None, None] % DAY) / DAY + x
    afternoon = -(1 + 3 * land) * (1 - 0.5 * winter * y) * np.cos(local_hour - np.pi / 6)
    result[:, place["2t"]] = t - 0.0065 * height + afternoon
    return result


def _static_fields(simulation: Simulation) -> np.ndarray:
    layout = simulation.layout
    y = ((layout.latitude - SOUTH) / (NORTH - SOUTH))[:, None]
    x = np.deg2rad(layout.longitude)[None, :]
    land = np.round(land_fraction(y, x), 3)
    soil = np.where(land > 0.5, np.round(2 + 1.4 * np.sin(3 * x + 5 * y)), 0)
    return np.stack([land, GRAVITY * orography(y, x), soil]).astype(np.float32)


def simulate_atmosphere(simulation: Simulation | None = None, **settings) -> WeatherFields:
    """Simulates, in memory.

    Args:
        simulation (Simulation, *optional*): What to simulate; or give its attributes by name.
            ``simulate_atmosphere(years=2, seed=1)``.

    Returns:
        WeatherFields: 2t, msl, 10u, 10v and z, t, u, v, q on the levels; static lsm, z, slt.
    """
    simulation = simulation or Simulation(**settings)
    times = simulation.times
    waves = integrate(Planet(), times, simulation.seed)
    return WeatherFields(
        layout=simulation.layout,
        times=times,
        values=_written_fields(simulation, times, waves),
        static_fields=_static_fields(simulation),
        fingerprint=_key(simulation),
        sources=(f"simulated atmosphere, seed {simulation.seed}",),
    )


def write_simulation(
    path: str | os.PathLike[str], simulation: Simulation | None = None, **settings
) -> Path:
    """Simulates, and writes a CF NetCDF file as reanalysis comes.

    Args:
        path (path): The file; it appears once it is whole.
        simulation (Simulation, *optional*): What to simulate; or give its attributes by name.

    Returns:
        Path: ``path``.
    """
    simulation = simulation or Simulation(**settings)
    path = Path(path)
    waves = integrate(Planet(), simulation.times, simulation.seed)
    with atomic_path(path) as temporary:
        _write_netcdf(temporary, simulation, waves)
    return path


def _write_netcdf(path: Path, simulation: Simulation, waves: np.ndarray) -> None:
    import netCDF4

    layout, times = simulation.layout, simulation.times
    with netCDF4.Dataset(path, "w") as file:
        file.Conventions = "CF-1.8"
        file.title = "Simulated atmosphere: two-layer quasi-geostrophic channel"
        file.source = f"hftune simulation, version {VERSION}"
        file.simulation = json.dumps(dataclasses.asdict(simulation), sort_keys=True)
        axes = {
            "time": (times // 3600, "hours since 1970-01-01 00:00:00", "time"),
            "level": (np.array(simulation.levels, np.int32), "hPa", "air_pressure"),
            "latitude": (layout.latitude, "degrees_north", "latitude"),
            "longitude": (layout.longitude, "degrees_east", "longitude"),
        }
        for name, (values, units, standard_name) in axes.items():
            file.createDimension(name, len(values))
            axis = file.createVariable(name, values.dtype, (name,))
            axis.setncatts({"units": units, "standard_name": standard_name})
            axis[:] = values
        file["time"].calendar = "proleptic_gregorian"
        grid = ("latitude", "longitude")
        for name in (*SURFACE, *ON_LEVELS):
            dimensions = ("time", "level", *grid) if name in ON_LEVELS else ("time", *grid)
            _add_variable(file, NETCDF_NAMES.get(name, name), name, dimensions)
        for name, values in zip(STATIC, _static_fields(simulation), strict=True):
            # "z" is the geopotential on levels; WeatherBench 2 calls the ground's so.
            written = "geopotential_at_surface" if name == "z" else name
            _add_variable(file, written, name, grid)[:] = values
        levels = len(simulation.levels)
        for start in range(0, len(times), 256):
            rows = slice(start, start + 256)
            values = _written_fields(simulation, times[rows], waves[rows])
            for i, name in enumerate(SURFACE):
                file[NETCDF_NAMES.get(name, name)][rows] = values[:, i]
            for i, name in enumerate(ON_LEVELS):
                first = len(SURFACE) + i * levels
                file[name][rows] = values[:, first : first + levels]


def _add_variable(file, name: str, variable: str, dimensions: tuple[str, ...]):
    info = VARIABLES[variable]
    added = file.createVariable(name, "f4", dimensions, fill_value=False)
    added.setncatts({"units": info.units, "long_name": info.long_name})
    if info.standard_name and len(dimensions) != 2:
        added.standard_name = info.standard_name
    return added


def simulated_atmosphere_path(simulation: Simulation | None = None, **settings) -> Path:
    """The NetCDF file of a simulation, made at the first call and kept under ``HFTUNE_HOME``.

    Of several processes that ask at once, one makes it and the others wait.

    Args:
        simulation (Simulation, *optional*): What to simulate; or give its attributes by name.
    """
    simulation = simulation or Simulation(**settings)
    path = hftune_home() / "simulated" / f"atmosphere-{_key(simulation)}.nc"
    if path.exists():
        return path
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        return path if path.exists() else write_simulation(path, simulation)


def _key(simulation: Simulation) -> str:
    settings = {"version": VERSION, **dataclasses.asdict(simulation)}
    settings["years"] = float(simulation.years)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
