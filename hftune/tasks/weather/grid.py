"""Grids: one order of latitude and longitude for every source."""

from __future__ import annotations

import dataclasses

import numpy as np

from hftune.utils.errors import DataError

__all__ = ["Grid", "describe_grid", "match_points", "normalise_grid", "same_grid"]

# Float32 coordinates and rounded ones (9.54225 for 9.542) differ by less than this, in degrees.
_TOLERANCE = 2e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """A grid in hftune's order and where its points are in the source.

    Attributes:
        latitude (float64 array ``[H]``): Degrees north, decreasing.
        longitude (float64 array ``[W]``): Degrees east, increasing, the first in [0, 360); goes on
            past 360 where the region crosses Greenwich.
        rows (int64 array ``[H]``): Index of each latitude in the source.
        columns (int64 array ``[W]``): Index of each longitude in the source.
        notes (tuple of str): What was mended.
    """

    latitude: np.ndarray
    longitude: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    notes: tuple[str, ...] = ()


def normalise_grid(latitude: np.ndarray, longitude: np.ndarray, source: str) -> Grid:
    """Orders a grid: latitudes from north to south, longitudes eastwards without a jump.

    Args:
        latitude (array ``[H]``): Degrees north in any order.
        longitude (array ``[W]``): Degrees east, -180..180 or 0..360, in any order.
        source (str): Where they come from, for messages.

    Raises:
        DataError: If they are not degrees, not finite, or repeat.
    """
    latitude = _rounded(latitude)
    longitude = _rounded(longitude)
    for name, values, limit in (("latitude", latitude, 90), ("longitude", longitude, 540)):
        if not np.isfinite(values).all() or np.abs(values).max() > limit + _TOLERANCE:
            raise DataError(
                f"{name} in {source} goes from {values.min():g} to {values.max():g}: expected "
                f"degrees within {-limit}..{limit}. Projected coordinates need regridding first."
            )
    rows = np.argsort(-latitude, kind="stable")
    if len(rows) > 1 and np.diff(latitude[rows]).max() > -1e-6:
        raise DataError(f"latitudes repeat in {source}: remove the duplicates.")
    notes = [] if np.array_equal(rows, np.arange(len(rows))) else ["latitudes put north to south"]

    around = longitude % 360
    around[around > 360 - 1e-6] = 0.0
    columns = np.argsort(around, kind="stable")
    ordered = around[columns]
    fresh = np.concatenate([[True], np.diff(ordered) > 1e-6])
    if not fresh.all():
        # -180 and 180, or 0 and 360, are one meridian.
        notes.append(f"dropped {int((~fresh).sum())} longitude(s) that name a meridian twice")
        columns, ordered = columns[fresh], ordered[fresh]
    gaps = np.diff(np.concatenate([ordered, [ordered[0] + 360]]))
    widest = int(np.argmax(gaps))
    if len(ordered) > 1 and gaps[widest] > 1.5 * np.median(gaps):
        # A region: begin after the widest gap and go on past 360 at Greenwich.
        columns = np.roll(columns, -(widest + 1))
        ordered = around[columns]
        ordered = ordered + 360 * (ordered < ordered[0])
    if not np.array_equal(columns, np.arange(len(columns))):
        notes.append(f"longitudes ordered eastwards from {ordered[0]:g}")
    return Grid(latitude[rows], ordered, rows, columns, tuple(notes))


def _rounded(values: np.ndarray) -> np.ndarray:
    # Float32 degrees such as 9.54225 become what was meant, so that one grid has one text.
    return np.round(np.asarray(values, dtype=np.float64), 5)


def same_grid(first: Grid, second: Grid) -> bool:
    """Whether two grids have the same points, to the precision of float32 degrees."""
    return (
        first.latitude.shape == second.latitude.shape
        and first.longitude.shape == second.longitude.shape
        and bool(np.abs(first.latitude - second.latitude).max() < _TOLERANCE)
        and bool(np.abs(first.longitude - second.longitude).max() < _TOLERANCE)
    )


def match_points(wanted: Grid, offered: Grid) -> tuple[np.ndarray, np.ndarray] | None:
    """Finds the points of one grid in a larger one.

    Returns:
        Source rows ``[H]`` and columns ``[W]`` of ``offered``, or None if a point is missing.
    """
    latitude_gap = np.abs(wanted.latitude[:, None] - offered.latitude)
    around = np.abs(wanted.longitude[:, None] - offered.longitude) % 360
    longitude_gap = np.minimum(around, 360 - around)
    if max(latitude_gap.min(axis=1).max(), longitude_gap.min(axis=1).max()) > _TOLERANCE:
        return None
    return offered.rows[latitude_gap.argmin(axis=1)], offered.columns[longitude_gap.argmin(axis=1)]


def describe_grid(grid: Grid) -> str:
    """Says what a grid is: ``6 x 9 points, 47.5 to 35 N, 345 to 365 E``."""
    return (
        f"{len(grid.latitude)} x {len(grid.longitude)} points, {grid.latitude[0]:g} to "
        f"{grid.latitude[-1]:g} N, {grid.longitude[0]:g} to {grid.longitude[-1]:g} E"
    )
