"""Places of images among others by their scores, and how sure these places are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import interpolate, stats
from scipy.special import expit

__all__ = ["RankedImage", "contested", "rank_by_scores", "win_probabilities"]

_LEAST_GRID, _GRID_STEPS = 4096, 20  # points, and points a temperature, of a smooth function
_HELD = 1 << 20  # differences that are held at a time


@dataclass(frozen=True)
class RankedImage:
    """An image's place among others.

    Attributes:
        rank (int): From 1, the best; images with the same score share it.
        path (Path): Its file.
        score (float): Larger is better.
        win_probability (float or None): Mean probability to be better than one of the others; None
            without others or where the model has no temperature.
    """

    rank: int
    path: Path
    score: float
    win_probability: float | None


def rank_by_scores(
    paths: Sequence[str | os.PathLike[str]], scores: np.ndarray, temperature: float | None = None
) -> list[RankedImage]:
    """Orders images by their scores, best first; those with the same score by their place.

    Args:
        paths (sequence of path): Their files, ``N`` of them.
        scores (array ``[N]``): Larger is better.
        temperature (float, *optional*): The model's.
    """
    scores = np.asarray(scores, np.float64)
    ranks = stats.rankdata(-scores, method="min")
    chances: Sequence[float | None] = [None] * len(scores)
    if temperature is not None and len(scores) > 1:
        chances = win_probabilities(scores, temperature).tolist()
    return [
        RankedImage(int(ranks[row]), Path(paths[row]), float(scores[row]), chances[row])
        for row in np.argsort(-scores, kind="stable")
    ]


def win_probabilities(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Returns each image's mean probability to be better than one of the others.

    Args:
        scores (array ``[N]``): Larger is better.
        temperature (float): Of the model: ``sigmoid((score_1 - score_2) / temperature)``.

    Returns:
        float64 ``[N]``, NaN for a single image. Exact to 1e-6.
    """
    return _mean_over_others(scores, temperature, expit)


def contested(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Says how unsure the order of each image against the others is, without any label.

    It is the mean over the others of ``p (1 - p)``, where ``p`` is the probability to be better
    than the other one: 0.25 where nothing is known, 0 where all is sure. The images where it is
    largest are those to ask people about.

    Args:
        scores (array ``[N]``): Larger is better.
        temperature (float): Of the model.

    Returns:
        float64 ``[N]``, NaN for a single image. Exact to 1e-6.
    """

    def unsure(differences: np.ndarray) -> np.ndarray:
        p = expit(differences)
        return p * (1 - p)

    return _mean_over_others(scores, temperature, unsure)


def _mean_over_others(
    scores: np.ndarray, temperature: float, of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Mean of a function of the differences to all other images.

    As a function of the score it is smooth on the scale of the temperature: where there are many
    more images than that needs, it is computed on a grid, for not all pairs need be gone through.
    """
    places = np.asarray(scores, np.float64) / temperature
    if len(places) < 2:
        return np.full(len(places), np.nan)
    low, high = places.min(), places.max()
    steps = max(_LEAST_GRID, int(_GRID_STEPS * (high - low)))
    at = np.linspace(low, high, steps) if steps < len(places) and high > low else places
    parts = np.array_split(at, 1 + len(at) * len(places) // _HELD)
    sums = np.concatenate([of(part[:, None] - places).sum(1) for part in parts])
    if at is not places:
        sums = interpolate.CubicSpline(at, sums)(places)
    return (sums - of(np.zeros(1))) / (len(places) - 1)
