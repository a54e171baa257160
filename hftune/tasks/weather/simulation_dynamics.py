"""The dynamics of the simulated atmosphere: see :mod:`~hftune.tasks.weather.simulation`."""

from __future__ import annotations

import numpy as np

from ...utils.terminal import progress

__all__ = ["Planet", "integrate", "january", "land_fraction", "orography"]

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
DRAG_TIME = 2.5 * DAY  # Ekman friction of the lower layer
RADIATION_TIME = 6 * DAY  # thermal relaxation of the two layers
GROUND_TIME = 4 * DAY  # relaxation of the temperature near the ground
MOISTURE_TIME = 5 * DAY
# The prescribed westerlies in m/s, upper and lower layer: everywhere, and on top in the middle.
MEAN_FLOW = (7.0, 0.0), (23.0, 4.0)
WINTER_FLOW = (0.5, 0.0), (4.0, 0.5)  # more in January, less in July
UPPER, LOWER, MIDDLE = 250.0, 750.0, 433.0  # pressure in hPa of the layers and of their (log) mean
ROWS, COLUMNS = 16, 36  # the model's own grid, across and along the channel
STEP = 3600.0  # s; a fifth more still works
SPIN_UP = 120 * DAY


class Planet:
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


def january(seconds: np.ndarray | float) -> np.ndarray | float:
    """1 in the middle of January, -1 in the middle of July; seconds since 1970-01-01."""
    return np.cos(2 * np.pi * (seconds / YEAR - 15 / 365.25))


def integrate(planet: Planet, times: np.ndarray, seed: int) -> np.ndarray:
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
    with progress(spin_up + len(times), "Simulating the weather", "times") as bar:
        for output in range(-spin_up, len(times)):
            bar.update()
            if output >= 0:
                result[output, 0] = same * state[0] + other * state[1]
                result[output, 1] = other * state[0] + same * state[1]
                result[output, 2:] = state[2:]
            if output == len(times) - 1:
                break
            winter = round(float(january(time)), 9)
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
