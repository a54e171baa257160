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
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...utils.errors import ConfigurationError
from ...utils.home import hftune_home
from .fields import FieldLayout, WeatherFields, channel_name, split_channel
from .variables import VARIABLES

__all__ = ["Simulation", "simulate_atmosphere", "simulated_atmosphere_path", "write_simulation"]

# Goes up when the numbers that a seed gives change: no cached file of an older model serves then.
VERSION = 1

DAY = 86400.0
YEAR = 365.2425 * DAY
GAS_CONSTANT = 287.0  # of dry air, J/(kg K)
GRAVITY = 9.80665
CORIOLIS = 1.0e-4  # 1/s
BETA = 1.6e-11  # 1/(m s)
SOUTH, NORTH = 15.0, 75.0  # walls of the channel, degrees north
MARGIN = 5.0  # degrees along the walls that are not written out
CHANNEL_LENGTH = 28.3e6  # m: the parallel at 45 degrees
CHANNEL_WIDTH = 6.67e6  # m: 60 degrees of latitude
DEFORMATION_RADIUS = 800e3  # m
LAYER_DEPTH = 5000.0  # m
DRAG_TIME = 3 * DAY  # Ekman friction of the lower layer
RADIATION_TIME = 6 * DAY  # thermal relaxation of the two layers
GROUND_TIME = 4 * DAY  # relaxation of the temperature near the ground
MOISTURE_TIME = 5 * DAY
# The prescribed westerlies in m/s, upper and lower layer: everywhere, and on top in the middle.
MEAN_FLOW = (7.0, 0.0), (25.0, 4.0)
WINTER_FLOW = (0.5, 0.0), (4.0, 0.5)  # more in January, less in July
UPPER, LOWER, MIDDLE = 250.0, 750.0, 433.0  # pressure in hPa of the layers and of their (log) mean
ROWS, COLUMNS = 16, 36  # the model's own grid, across and along the channel
STEP = 2160.0  # s
SPIN_UP = 120 * DAY

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


class _Planet:
    """Grid, geography and prescribed zonal flow of the channel.

    A field that vanishes at both walls is a sum of ``c[m, k] sin(pi m y / L) exp(i k x)``.
    Continued as an odd function to a second channel behind the wall it is periodic, and FFTs do the
    rest. Chaos shows the last bit of every number: so there are no matrix products here, whose
    rounding depends on the processor, and the constants are rounded to single precision.
    """

    def __init__(self) -> None:
        waves_y, waves_x = 2 * ROWS // 3, COLUMNS // 3  # the two-thirds rule: products do not alias
        m = np.arange(1, waves_y + 1)[:, None]
        self.m, self.k = waves_y, waves_x + 1
        self.l = np.pi * m / CHANNEL_WIDTH  # [M, 1]
        self.ik = 2j * np.pi * np.arange(self.k)[None, :] / CHANNEL_LENGTH  # [1, K]
        self.laplacian = -(self.l**2 + self.ik.imag**2)
        self.shift = _single(
            np.exp(0.5j * np.pi * m / ROWS)
        )  # grid rows lie half a step off the walls
        self.unshift = self.shift.conj() ** 2
        self.y = (np.arange(ROWS)[:, None] + 0.5) / ROWS  # in channel widths
        self.x = 2 * np.pi * np.arange(COLUMNS)[None, :] / COLUMNS

        # The prescribed flow: the mean of the year, and how much more of it is there in winter.
        jet = np.sin(np.pi * self.y) ** 2
        jet_curvature = 2 * (np.pi / CHANNEL_WIDTH) ** 2 * np.cos(2 * np.pi * self.y)
        self.stretching = 1 / DEFORMATION_RADIUS**2
        self.flow, self.vorticity_gradient, self.heat_gradient = [], [], []
        for base, peak in (MEAN_FLOW, WINTER_FLOW):
            base, peak = np.array(base)[:, None, None], np.array(peak)[:, None, None]
            flow = base + peak * jet
            shear = flow[0] - flow[1]
            gradient = -peak * jet_curvature
            gradient = gradient + self.stretching * np.stack([shear, -shear])
            self.flow.append(_single(flow))
            self.vorticity_gradient.append(_single(gradient))
            heat = -CORIOLIS / (GAS_CONSTANT * np.log(LOWER / UPPER)) * shear
            self.heat_gradient.append(_single(heat))
        self.vorticity_gradient[0] = self.vorticity_gradient[0] + BETA

        self.land = _single(self.odd(land_fraction(self.y, self.x) - 0.4))
        height = _single(self.odd(orography(self.y, self.x)))
        slope_x, slope_y = self.to_grid(self.ik * height, height)
        self.slope_x = _single(CORIOLIS / LAYER_DEPTH * slope_x)
        self.slope_y = _single(CORIOLIS / LAYER_DEPTH * slope_y)

    def to_grid(self, waves: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From sine coefficients ``[..., M, K]`` to the grid ``[..., ROWS, COLUMNS]``.

        Returns:
            The values of ``waves`` and, at the price of the same transform, the derivative of
            ``slopes`` across the channel: one is odd and the other even about the walls, so their
            sum comes apart again.
        """
        odd = waves * (-0.5j * self.shift)
        even = slopes * (0.5 * self.l * self.shift)
        full = np.zeros((*waves.shape[:-2], 2 * ROWS, self.k), complex)
        full[..., 1 : self.m + 1, :] = even + odd
        full[..., -self.m :, :] = ((even - odd) * self.unshift)[..., ::-1, :]
        full = np.fft.ifft(full, axis=-2, norm="forward")
        both = np.fft.irfft(full, n=COLUMNS, axis=-1, norm="forward")
        here, mirrored = both[..., :ROWS, :], both[..., : ROWS - 1 : -1, :]
        return (here - mirrored) * 0.5, (here + mirrored) * 0.5

    def to_waves(self, grid: np.ndarray) -> np.ndarray:
        """Sine coefficients of values ``[..., ROWS, COLUMNS]`` that vanish at the walls."""
        half = np.fft.rfft(grid, axis=-1, norm="forward")[..., : self.k]
        full = np.concatenate([half, -half[..., ::-1, :]], axis=-2)
        full = np.fft.fft(full, axis=-2, norm="forward")[..., 1 : self.m + 1, :]
        return full * (2j * self.shift.conj())

    def odd(self, grid: np.ndarray) -> np.ndarray:
        """Sine coefficients of ``[ROWS, COLUMNS]`` values, tapered to zero at the walls."""
        return self.to_waves(grid * np.sin(np.pi * self.y) ** 0.5)


def _single(values: np.ndarray) -> np.ndarray:
    """Rounds to single precision, kept in double."""
    if np.iscomplexobj(values):
        return values.astype(np.complex64).astype(np.complex128)
    return values.astype(np.float32).astype(np.float64)


def land_fraction(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Share of land on the made-up planet, 0 to 1: two continents and an island.

    Args:
        y (array): Distance from the southern wall as a part of the channel's width.
        x (array): Longitude in radians.
    """
    shape = (
        np.cos(2 * (x - 0.9))
        + 0.5 * np.cos(x - 1.2)
        + 0.6 * np.cos(3 * x + 4 * y) * np.sin(np.pi * y)
        + 0.5 * y
        - 0.35
    )
    return 1 / (1 + np.exp(-6.0 * shape))


def orography(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Height of the ground in metres: a long range along one continent, a plateau on the other."""

    def bump(centre_x: float, centre_y: float, width_x: float, width_y: float) -> np.ndarray:
        apart = np.angle(np.exp(1j * (x - centre_x)))
        return np.exp(-((apart / width_x) ** 2) - ((y - centre_y) / width_y) ** 2)

    return (
        1500 * bump(0.6, 0.5, 0.28, 0.30)
        + 1200 * bump(4.3, 0.35, 0.55, 0.16)
        + 60 * land_fraction(y, x)
    )


def _winter(seconds: np.ndarray | float) -> np.ndarray | float:
    """1 in the middle of January, -1 in the middle of July; seconds since 1970-01-01."""
    return np.cos(2 * np.pi * (seconds / YEAR - 15 / 365.25))


def _integrate(planet: _Planet, times: np.ndarray, seed: int) -> np.ndarray:
    """Runs the model.

    Args:
        times (int64 array ``[N]``): Output times, seconds since 1970-01-01, evenly spaced.
        seed (int): Of the initial disturbance.

    Returns:
        complex array ``[N, 4, M, K]``: stream function (m2/s) of the upper and the lower layer,
        temperature near the ground (K), relative humidity; departures from the prescribed flow.
    """
    stretching, laplacian = planet.stretching, planet.laplacian
    determinant = laplacian * (laplacian - 2 * stretching)
    same, other = (laplacian - stretching) / determinant, -stretching / determinant
    interval = int(times[1] - times[0]) if len(times) > 1 else int(DAY)
    steps_per_output = max(1, round(interval / STEP))
    step = interval / steps_per_output
    spin_up = int(np.ceil(SPIN_UP / interval))
    # The shortest wave left loses a factor e in four hours.
    smallness = laplacian / laplacian.min()
    damping = 1 / (1 + step / (4 * 3600) * smallness * smallness * smallness)

    noise = np.random.default_rng(seed).standard_normal((2, 2, 6, 9))
    state = np.zeros((4, planet.m, planet.k), complex)
    state[:2, :6, :9] = 3e-6 * (noise[0] + 1j * noise[1])
    state[:2, :, 0] = state[:2, :, 0].real
    both = np.empty((6, planet.m, planet.k), complex)
    background = np.zeros((4, ROWS, COLUMNS))

    result = np.empty((len(times), *state.shape), complex)
    older, old = None, None
    time = float(times[0]) - spin_up * interval
    for output in range(-spin_up, len(times)):
        if output >= 0:
            result[output, 0] = same * state[0] + other * state[1]
            result[output, 1] = other * state[0] + same * state[1]
            result[output, 2:] = state[2:]
        if output == len(times) - 1:
            break
        winter = round(float(_winter(time)), 9)
        flow = planet.flow[0] + winter * planet.flow[1]
        background[:2] = planet.vorticity_gradient[0] + winter * planet.vorticity_gradient[1]
        background[1] += planet.slope_y
        background[2] = planet.heat_gradient[0] + winter * planet.heat_gradient[1]
        for _ in range(steps_per_output):
            upper = same * state[0] + other * state[1]
            lower = other * state[0] + same * state[1]
            both[0], both[1], both[2:] = upper, lower, state
            along, across = planet.to_grid(planet.ik * both, both)
            v, u = along[:2], flow - across[:2]
            x_gradient, y_gradient = along[2:], across[2:] + background
            x_gradient[1] += planet.slope_x
            x_gradient[0] *= u[0]
            x_gradient[1:] *= u[1]
            y_gradient[0] *= v[0]
            y_gradient[1:] *= v[1]
            now = -planet.to_waves(x_gradient + y_gradient)
            vorticity = laplacian * lower
            interface = stretching / RADIATION_TIME * (upper - lower)
            now[0] += interface
            now[1] -= interface + vorticity / DRAG_TIME
            now[2] -= (state[2] + 10.0 * winter * planet.land) / GROUND_TIME
            now[3] -= (state[3] + 0.25 * planet.land) / MOISTURE_TIME - 0.05 * vorticity
            if old is None:
                old = older = now
            state = (state + step / 12 * (23 * now - 16 * old + 5 * older)) * damping
            older, old = old, now
            time += step
    return result


def _written_fields(simulation: Simulation, times: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """What an observer sees of the model's state.

    Args:
        times (int64 array ``[n]``): Seconds since 1970-01-01.
        waves (complex array ``[n, 4, M, K]``): From :func:`_integrate`.

    Returns:
        float32 array ``[n, C, H, W]`` in the layout of ``simulation``.
    """
    layout = simulation.layout
    y = ((layout.latitude - SOUTH) / (NORTH - SOUTH))[:, None]
    x = np.deg2rad(layout.longitude)[None, :]
    winter = _winter(times.astype(float))[:, None, None]
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
    waves = _integrate(_Planet(), times, simulation.seed)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    waves = _integrate(_Planet(), simulation.times, simulation.seed)
    descriptor, temporary = tempfile.mkstemp(
        prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
    )
    os.close(descriptor)
    try:
        _write_netcdf(temporary, simulation, waves)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _write_netcdf(path: str, simulation: Simulation, waves: np.ndarray) -> None:
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

    Two processes that ask at once both make it and one of the two equal files stays.

    Args:
        simulation (Simulation, *optional*): What to simulate; or give its attributes by name.
    """
    simulation = simulation or Simulation(**settings)
    path = hftune_home() / "simulated" / f"atmosphere-{_key(simulation)}.nc"
    return path if path.exists() else write_simulation(path, simulation)


def _key(simulation: Simulation) -> str:
    settings = {"version": VERSION, **dataclasses.asdict(simulation)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
