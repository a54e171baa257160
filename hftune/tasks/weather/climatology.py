"""What the weather usually is at a place, a day of the year and an hour: the baseline of ACC.

A climatology here is a small regression fitted by least squares to the training years: a mean, four
annual harmonics, and two diurnal harmonics that change with the season where the data have several
hours a day. That is smooth by construction, gives 29 February and hours between the data's own a
value, and needs as many fields of memory as it has terms (9 for daily data), where a table by day
and hour would need 366 for each hour.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...utils.errors import DataError
from .fields import FieldLayout, WeatherFields

__all__ = ["Climatology", "compute_climatology"]

_ANNUAL_HARMONICS = 4
_DIURNAL_HARMONICS = 2
_BLOCK = 1 << 23  # values read at once: 32 MiB of float32


class Climatology:
    """Expected fields by day of the year and hour, see :func:`compute_climatology`.

    Attributes:
        layout (FieldLayout): Channels and grid of the fields that it gives.
        seasonal (bool): False where the training rows do not cover the year: then the mean alone
            was fitted.
        diurnal (bool): True where the training rows have several hours a day.
        coefficients (float64 array ``[P, C, H, W]``): One field a term; NaN in cells that had no
            value at all.
    """

    def __init__(
        self, layout: FieldLayout, seasonal: bool, diurnal: bool, coefficients: np.ndarray
    ) -> None:
        self.layout = layout
        self.seasonal = seasonal
        self.diurnal = diurnal
        self.coefficients = coefficients

    def at(self, times: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the expected fields.

        Args:
            times (int64 array ``[n]``): Seconds since 1970-01-01 UTC.

        Returns:
            float32 array ``[n, C, H, W]`` in physical units.
        """
        basis = _basis(np.asarray(times, dtype=np.int64), self.seasonal, self.diurnal)
        flat = self.coefficients.reshape(len(self.coefficients), -1)
        shape = (len(basis), *self.coefficients.shape[1:])
        return (basis @ flat).astype(np.float32).reshape(shape)


def compute_climatology(
    fields: WeatherFields, rows: Sequence[int] | np.ndarray | None = None
) -> Climatology:
    """Fits a climatology in one pass over the data, in float64.

    Missing values are left out cell by cell.

    Args:
        fields (WeatherFields): The data.
        rows (integer array, *optional*): Rows to use, those of the training years; defaults to all.

    Raises:
        DataError: If ``rows`` is empty.
    """
    rows = np.arange(len(fields)) if rows is None else np.sort(np.asarray(rows, dtype=np.int64))
    if len(rows) == 0:
        raise DataError("A climatology needs training rows, and none were given.")
    times = fields.times[rows]
    stamps = times.astype("datetime64[s]")
    # Harmonics fitted to half a year say nonsense about the other half.
    seasonal = len(np.unique(stamps.astype("datetime64[M]").astype(np.int64) % 12)) == 12
    diurnal = len(np.unique(times % 86400)) > 1
    basis = _basis(times, seasonal, diurnal)
    terms = basis.shape[1]

    cells = len(fields.layout.channels) * int(np.prod(fields.layout.grid))
    gram = basis.T @ basis
    moments = np.zeros((terms, cells))
    # Cells with missing values have normal equations of their own: the common ones less the rows
    # that they miss. Few cells have any, so these matrices are kept for those only.
    slot = np.full(cells, -1)
    missed = np.zeros((0, terms * terms))
    step = max(1, _BLOCK // cells)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        values = fields.read(_as_slice(rows[part])).reshape(-1, cells).astype(np.float64)
        absent = np.isnan(values)
        touched = np.flatnonzero(absent.any(axis=0))
        if len(touched):
            values[absent] = 0.0
            new = touched[slot[touched] < 0]
            slot[new] = len(missed) + np.arange(len(new))
            missed = np.concatenate([missed, np.zeros((len(new), terms * terms))])
            products = (basis[part, :, None] * basis[part, None, :]).reshape(-1, terms * terms)
            missed[slot[touched]] += absent[:, touched].T.astype(np.float64) @ products
        moments += basis[part].T @ values

    # The pseudo-inverse, because some diurnal terms vanish at the hours of the data (two hours a
    # day 12 hours apart have no sine).
    coefficients = np.linalg.pinv(gram, rcond=1e-10, hermitian=True) @ moments
    touched = np.flatnonzero(slot >= 0)
    if len(touched):
        own = gram - missed[slot[touched]].reshape(-1, terms, terms)
        inverse = np.linalg.pinv(own, rcond=1e-10, hermitian=True)
        solved = np.einsum("cpq,qc->pc", inverse, moments[:, touched])
        # The first term is the constant 1: its square sums to the number of values.
        coefficients[:, touched] = np.where(own[:, 0, 0] > 0.5, solved, np.nan)
    shape = (terms, len(fields.layout.channels), *fields.layout.grid)
    return Climatology(fields.layout, seasonal, diurnal, coefficients.reshape(shape))


def _as_slice(rows: np.ndarray) -> np.ndarray | slice:
    """A slice where the rows are consecutive: a memory map then reads without a gather."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _basis(times: np.ndarray, seasonal: bool, diurnal: bool) -> np.ndarray:
    """Returns float64 ``[n, P]``, the terms of the regression; the first is the constant 1."""
    stamps = times.astype("datetime64[s]")
    year = stamps.astype("datetime64[Y]")
    begin = year.astype("datetime64[s]").astype(np.int64)
    length = (year + 1).astype("datetime64[s]").astype(np.int64) - begin
    annual = _harmonics((times - begin) / length, _ANNUAL_HARMONICS if seasonal else 0)
    if not diurnal:
        return annual
    day = _harmonics((times % 86400) / 86400, _DIURNAL_HARMONICS)[:, 1:]
    # The day's course changes with the season, for which the first harmonic is enough.
    course = day[:, :, None] * annual[:, None, :3]
    return np.concatenate([annual, course.reshape(len(times), -1)], axis=1)


def _harmonics(phase: np.ndarray, count: int) -> np.ndarray:
    """Returns ``[n, 1 + 2 * count]``: 1, then cosine and sine of each harmonic of ``phase``."""
    angles = 2 * np.pi * phase[:, None] * np.arange(1, count + 1)
    waves = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(len(phase), 2 * count)
    return np.concatenate([np.ones((len(phase), 1)), waves], axis=1)
