"""The temperature that makes score differences probabilities, and how far these can be believed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import optimize
from scipy.special import expit

from hftune.utils.errors import DataError

from .scores_ranking import pair_differences

__all__ = [
    "Reliability",
    "fit_temperature",
    "fit_temperature_votes",
    "pair_reliability",
    "reliability",
]

_MOST_IMAGES = 2000
# Of the temperature, in root mean squares of the differences. Where all pairs are right no finite
# temperature is best; at the lower limit a tenth of such a difference has a probability of 0.95.
_LEAST, _MOST = 1 / 30, 1000.0
_CHUNK = 1 << 17  # comparisons that are held at a time


def fit_temperature(scores: np.ndarray, targets: np.ndarray) -> float:
    """Finds the temperature with the least Bradley-Terry loss over all pairs.

    With it ``sigmoid((score_a - score_b) / temperature)`` is the probability that ``a`` is better.
    It belongs to images that the model was not trained on. Of more than 2,000 images 2,000 are
    taken, evenly along the order of targets and, where these are equal, of scores.

    Args:
        scores (array ``[N]``): The model's, larger is better.
        targets (array ``[N]``): Tiers, counted from the worst, or people's scores.

    Returns:
        A number above 0, which goes with the scale of the scores. It is at the least a thirtieth of
        the differences' root mean square, which it is if all pairs are right: every smaller one
        were better still, but some images are no evidence for being quite sure. It is at the most
        1,000 times as large, which it is if the scores tell nothing or the opposite: all
        probabilities are then near one half. 1 if all scores are the same.

    Raises:
        DataError: If a number is NaN, or if all targets are the same.
    """
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets, np.float64)
    if len(scores) > _MOST_IMAGES:
        places = np.linspace(0, len(scores) - 1, _MOST_IMAGES).round().astype(np.int64)
        kept = np.lexsort((scores, targets))[places]
        scores, targets = scores[kept], targets[kept]
    differences = np.concatenate(list(pair_differences(scores, targets)))
    return _temperature(differences, np.ones(1), np.zeros(1))


def fit_temperature_votes(differences: np.ndarray, votes: np.ndarray) -> float:
    """Finds the temperature with the least Bradley-Terry loss over people's votes.

    Args:
        differences (array ``[P]``): Score of the first image less that of the second.
        votes (float64 ``[P, 2]``): How many preferred the first and the second.

    Returns:
        A number above 0, with the limits of :func:`fit_temperature`.

    Raises:
        DataError: If a difference is NaN or there are no votes.
    """
    differences, votes = np.asarray(differences, np.float64), np.asarray(votes, np.float64)
    if np.isnan(differences).any():
        raise DataError("score differences are NaN; expected numbers")
    if not votes.sum() > 0:
        raise DataError(f"{len(votes)} comparisons without a vote; expected at least one vote")
    voted = votes.sum(1) > 0
    return _temperature(differences[voted], votes[voted, 0], votes[voted, 1])


@dataclass(frozen=True)
class Reliability:
    """How sure the model is of the better image, and how often it is right then.

    Attributes:
        edges (float64 ``[bins + 1]``): Of equal parts of 0.5 to 1.
        mean_probability (float64 ``[bins]``): Mean probability of the image that the model prefers;
            NaN in parts without pairs, here and in ``observed``.
        observed (float64 ``[bins]``): Share of the pairs in which it is the better one.
        weight (float64 ``[bins]``): Pairs, or their weights.
        ece (float): Expected calibration error: mean distance of the two, by weight.
    """

    edges: np.ndarray
    mean_probability: np.ndarray
    observed: np.ndarray
    weight: np.ndarray
    ece: float


def reliability(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    weights: np.ndarray | None = None,
    bins: int = 10,
) -> Reliability:
    """Groups pairs by how sure the model is of the better image.

    A probability below one half is that of the other image, with the opposite outcome. At one half
    the model prefers neither and is half right.

    Args:
        probabilities (array ``[P]``): That the first image of each pair is better.
        outcomes (array ``[P]``): Whether it is, or its share of the votes, in [0, 1].
        weights (array ``[P]``, *optional*): Of the pairs, such as their votes. Defaults to 1 each.
        bins (int): Number of equal parts of 0.5 to 1. Defaults to 10.

    Raises:
        DataError: If all weights are zero.
    """
    probabilities = np.asarray(probabilities, np.float64)
    outcomes = np.asarray(outcomes, np.float64)
    weights = np.ones(len(probabilities)) if weights is None else np.asarray(weights, np.float64)
    swapped = probabilities < 0.5
    sure = np.where(swapped, 1 - probabilities, probabilities)
    right = np.where(probabilities == 0.5, 0.5, np.where(swapped, 1 - outcomes, outcomes))
    return _reliability([(sure, right, weights)], bins)


def pair_reliability(
    scores: np.ndarray, targets: np.ndarray, temperature: float, bins: int = 10
) -> Reliability:
    """Groups all pairs of images with different targets by how sure the model is.

    Args:
        scores (array ``[N]``): The model's, larger is better.
        targets (array ``[N]``): Tiers, counted from the worst, or people's scores.
        temperature (float): What score differences are divided by.
        bins (int): Number of equal parts of 0.5 to 1. Defaults to 10.

    Raises:
        DataError: If a number is NaN, or if all targets are the same.
    """
    pieces = (
        (expit(np.abs(piece) / temperature), (np.sign(piece) + 1) / 2, np.ones(len(piece)))
        for piece in pair_differences(scores, targets)
    )
    return _reliability(pieces, bins)


def _reliability(
    pieces: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], bins: int
) -> Reliability:
    """Of pieces of probabilities from 0.5 on, outcomes and weights."""
    weight, probability, observed = np.zeros((3, bins))
    for sure, right, weights in pieces:
        part = np.minimum(((sure - 0.5) * (2 * bins)).astype(np.int64), bins - 1)
        weight += np.bincount(part, weights, bins)
        probability += np.bincount(part, weights * sure, bins)
        observed += np.bincount(part, weights * right, bins)
    if not weight.sum() > 0:
        raise DataError("no pairs with a weight; expected at least one")
    ece = float(np.abs(probability - observed).sum() / weight.sum())
    per_pair = np.where(weight > 0, weight, np.nan)
    edges = np.linspace(0.5, 1, bins + 1)
    return Reliability(edges, probability / per_pair, observed / per_pair, weight, ece)


def _temperature(differences: np.ndarray, won: np.ndarray, lost: np.ndarray) -> float:
    """The temperature with the least sum of ``-won log p - lost log(1 - p)``."""
    scale = float(np.sqrt(np.mean(differences**2)))
    if scale == 0:
        return 1.0
    differences = differences / scale
    won, lost = (np.broadcast_to(values, differences.shape) for values in (won, lost))
    pieces = [slice(i, i + _CHUNK) for i in range(0, len(differences), _CHUNK)]

    def slope(log_temperature: float) -> float:
        # Of the loss by the inverse temperature, in which it is convex: there is one zero at most.
        inverse = np.exp(-log_temperature)
        total = 0.0
        for piece in pieces:
            p = expit(differences[piece] * inverse)
            total += differences[piece] @ (lost[piece] * p - won[piece] * (1 - p))
        return total

    low, high = np.log(_LEAST), np.log(_MOST)
    if slope(low) <= 0:  # less is better still, as where all pairs are right
        return scale * _LEAST
    if slope(high) >= 0:
        return scale * _MOST
    return scale * float(np.exp(optimize.brentq(slope, low, high, xtol=1e-10)))
