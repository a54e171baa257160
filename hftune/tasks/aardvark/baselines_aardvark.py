"""What an encoder has to beat: ridge regression from its observations to the fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..weather.fields import FieldLayout
from ..weather.scores import cell_area_weights
from .observations import collate_observations

if TYPE_CHECKING:
    from torch.utils.data import Dataset

__all__ = ["RidgeAnalysis", "fit_ridge"]

PENALTIES = tuple(10.0**power for power in range(-5, 2))
"""Penalties that are tried, as fractions of the number of training samples."""

_MOST_COEFFICIENTS = 1 << 26  # 512 MiB of float64
_BATCH = 512


@dataclasses.dataclass(frozen=True, eq=False)
class RidgeAnalysis:
    """A linear map from all observations of a time, and the season, to the fields.

    Missing observations count as the training mean. Call it with a batch.

    Attributes:
        centre, scale (float64 arrays ``[P]``): Training mean and standard deviation of the
            predictors.
        mean (float64 array ``[C, H, W]``): Of the fields.
        coefficients (float64 array ``[P, C * H * W]``): Of the standardised predictors.
        penalty (float): The one of :data:`PENALTIES` that did best on the validation samples.
    """

    centre: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    coefficients: np.ndarray
    penalty: float

    def __call__(self, batch: Mapping[str, Any]) -> np.ndarray:
        """Analyses a batch of :func:`~.observations.observation_samples`.

        Returns:
            float32 array ``[B, 1, C, H, W]`` in physical units.
        """
        predictors = _standardised(_predictors(batch), self.centre, self.scale)
        fields = (predictors @ self.coefficients).reshape(-1, 1, *self.mean.shape)
        return (fields + self.mean).astype(np.float32)


def fit_ridge(
    train: Dataset,
    validation: Dataset,
    layout: FieldLayout,
    std: Sequence[float] | np.ndarray,
) -> RidgeAnalysis | None:
    """Fits a ridge regression in two passes over the training samples.

    Args:
        train (Dataset): Samples with targets.
        validation (Dataset): Samples with targets, to choose the penalty on.
        layout (FieldLayout): Channels and grid of the targets.
        std (array ``[C]``): Standard deviation of each channel: what errors are measured in.

    Returns:
        The regression; None where it would be too large for a baseline (67 million numbers).
    """
    sample = next(_batches(train, 1))
    predictors = _predictors(sample).shape[1]
    cells = len(layout.channels) * int(np.prod(layout.grid))
    if predictors * (predictors + len(PENALTIES) * cells) > _MOST_COEFFICIENTS:
        return None

    # 1. Mean and spread. Differences from the first sample: squares of pressures lose digits.
    sums = np.zeros((3, predictors))
    fields = np.zeros((2, cells))
    origin = np.nan_to_num(_predictors(sample)[0])
    for batch in _batches(train):
        values = _predictors(batch) - origin
        sums += [(~np.isnan(values)).sum(0), np.nansum(values, 0), np.nansum(values**2, 0)]
        truth = _targets(batch)
        fields += [(~np.isnan(truth)).sum(0), np.nansum(truth, 0)]
    count = np.maximum(sums[0], 1)
    centre = sums[1] / count
    spread = np.sqrt(np.maximum(sums[2] / count - centre**2, 0))
    centre, scale = centre + origin, np.where(spread > 0, spread, 1.0)
    mean = fields[1] / np.maximum(fields[0], 1)

    # 2. Normal equations, solved for all penalties at once
    gram, moments = np.zeros((predictors, predictors)), np.zeros((predictors, cells))
    for batch in _batches(train):
        values = _standardised(_predictors(batch), centre, scale)
        gram += values.T @ values
        moments += values.T @ np.nan_to_num(_targets(batch) - mean)
    powers, vectors = np.linalg.eigh(gram)
    rotated = vectors.T @ moments
    solutions = [
        vectors @ (rotated / (np.maximum(powers, 0) + penalty * len(train))[:, None])
        for penalty in PENALTIES
    ]

    # 3. The penalty with the least mean normalised RMSE
    weights = np.repeat(cell_area_weights(layout.latitude), layout.grid[1])
    squares = np.zeros((len(PENALTIES), len(layout.channels)))
    for batch in _batches(validation):
        values = _standardised(_predictors(batch), centre, scale)
        truth = _targets(batch) - mean
        for index, coefficients in enumerate(solutions):
            error = np.nan_to_num(values @ coefficients - truth) ** 2
            squares[index] += error.reshape(len(error), -1, len(weights)).sum(0) @ weights
    best = int((np.sqrt(squares) / np.asarray(std)).mean(axis=1).argmin())
    return RidgeAnalysis(
        centre=centre,
        scale=scale,
        mean=mean.reshape(len(layout.channels), *layout.grid),
        coefficients=solutions[best],
        penalty=PENALTIES[best],
    )


def _batches(samples: Dataset, size: int = _BATCH) -> Iterator[dict[str, Any]]:
    for start in range(0, len(samples), size):
        rows = list(range(start, min(start + size, len(samples))))
        yield collate_observations(samples.__getitems__(rows))


def _targets(batch: Mapping[str, Any]) -> np.ndarray:
    """Returns float64 ``[B, C * H * W]``."""
    fields = batch["target_fields"].numpy()
    return fields.reshape(len(fields), -1).astype(np.float64)


def _predictors(batch: Mapping[str, Any]) -> np.ndarray:
    """Returns float64 ``[B, P]``: season, hour, then the observations; NaN where missing."""
    times = batch["times"].numpy()
    years = times / (365.2425 * 86400)
    # The remainder, so that the hour of daily data is a constant to the last bit.
    angles = 2 * np.pi * np.stack([years, 2 * years, times % 86400 / 86400], axis=1)
    parts = [np.sin(angles), np.cos(angles)]
    for values in batch["observations"].values():
        parts.append(values.reshape(len(values), -1).numpy().astype(np.float64))
    return np.concatenate(parts, axis=1)


def _standardised(values: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.nan_to_num((values - centre) / scale)
