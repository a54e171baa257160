"""How well scores agree with people's votes on pairs of images, and how well they could."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse
from scipy.special import expit

from hftune.utils.errors import DataError

from .scores_ranking import image_draws

__all__ = [
    "VoteCeiling",
    "bootstrap_votes",
    "decided_accuracy",
    "fit_bradley_terry",
    "merge_votes",
    "vote_ceiling",
    "votes_accuracy",
]


def votes_accuracy(scores: np.ndarray, images: np.ndarray, votes: np.ndarray) -> float:
    """Returns the share of all votes that went to the image with the larger score.

    Half of a pair's votes count where its scores are equal. 0.5 is chance; what people who disagree
    leave to be reached is told by :func:`vote_ceiling`.

    Args:
        scores (array ``[N]``): The model's, larger is better.
        images (int64 ``[P, 2]``): Which two images were compared.
        votes (float64 ``[P, 2]``): How many preferred the first and the second.

    Raises:
        DataError: If a score is NaN or there are no votes.
    """
    agreeing = _agreeing(scores, images, votes)
    return float(agreeing.sum() / _total(votes))


def decided_accuracy(scores: np.ndarray, images: np.ndarray, votes: np.ndarray) -> float | None:
    """Returns the share of the pairs with a majority whose preferred image has the larger score.

    Equal scores count one half. None where no pair has a majority.

    Args:
        scores, images, votes: As for :func:`votes_accuracy`; all votes on two images are taken
            together, also from several rows.
    """
    images, votes = merge_votes(images, votes)
    decided = votes[:, 0] != votes[:, 1]
    if not decided.any():
        return None
    majority = (votes[decided] > votes[decided][:, ::-1]).astype(np.float64)
    return votes_accuracy(scores, images[decided], majority)


def bootstrap_votes(
    scores: np.ndarray,
    images: np.ndarray,
    votes: np.ndarray,
    replicates: int = 1000,
    seed: int = 0,
    groups: Sequence[str] | np.ndarray | None = None,
) -> np.ndarray:
    """Draws the images anew, with replacement, and takes the accuracy on the votes of each draw.

    The votes on two images count as often as one is drawn times as often as the other. This
    covers what the images and what the votes happen to be; where each image is in few comparisons
    the spread is too wide, by a factor of up to 1.7 (the root of 3): the interval is then cautious.

    Args:
        scores, images, votes: As for :func:`votes_accuracy`.
        replicates (int): How many draws. Defaults to 1,000.
        seed (int): Of the draws, the same for all models. Defaults to 0.
        groups (sequence ``[N]``, *optional*): What images have in common, such as their artist;
            groups are then drawn with all their images.

    Returns:
        float64 ``[replicates]``. A draw without votes is drawn anew.

    Raises:
        DataError: If a score is NaN, there are no votes or there is only one group.
    """
    count = len(scores)
    _total(votes)
    cells = (images[:, 0], images[:, 1])
    agreeing, total = (
        sparse.csr_array((values, cells), (count, count))
        for values in (_agreeing(scores, images, votes), votes.sum(1))
    )
    found = np.empty(replicates)
    done = 0
    for weights in image_draws(count, seed, groups):
        all_votes = np.einsum("ir,ir->r", weights, total @ weights)
        right = np.einsum("ir,ir->r", weights, agreeing @ weights)
        kept = all_votes > 0
        accuracies = (right[kept] / all_votes[kept])[: replicates - done]
        found[done : done + len(accuracies)] = accuracies
        done += len(accuracies)
        if done == replicates:
            return found


def merge_votes(images: np.ndarray, votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds up the votes on the same two images, whichever of them was named first.

    Args:
        images (int64 ``[P, 2]``): Which two images were compared.
        votes (float64 ``[P, 2]``): How many preferred the first and the second.

    Returns:
        The same two with each pair once, its lower number first, in the order of the numbers.
    """
    swapped = images[:, 0] > images[:, 1]
    images = np.where(swapped[:, None], images[:, ::-1], images)
    votes = np.where(swapped[:, None], votes[:, ::-1], votes)
    merged, pair = np.unique(images, axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    return merged, np.stack([np.bincount(pair, votes[:, k], len(merged)) for k in (0, 1)], 1)


def fit_bradley_terry(
    images: np.ndarray, votes: np.ndarray, count: int, regularisation: float = 0.1
) -> np.ndarray:
    """Fits a score to each image from the votes alone: P(a before b) = sigmoid(score_a - score_b).

    Half a vote for each is a tie. Images without votes get 0, the mean of all.

    Args:
        images (int64 ``[P, 2]``): Which two images were compared.
        votes (float64 ``[P, 2]``): How many preferred the first and the second.
        count (int): Number of images.
        regularisation (float): Weight of half the squared scores beside the votes' negative
            log-likelihood, above 0. It keeps the score of an image finite that won all its
            comparisons, and draws one with few votes to the mean. Defaults to 0.1, that is scores
            with a deviation of about 3.

    Returns:
        float64 ``[count]``, larger is better, exact to about 1e-5. Half a second for 10,000 images
        and 100,000 votes.

    Example:
        >>> fit_bradley_terry(np.array([[0, 1]]), np.array([[3.0, 1.0]]), 2).round(2)
        array([ 0.5, -0.5])
    """
    first, second = images[:, 0], images[:, 1]
    total, won = votes.sum(1), votes[:, 0]

    def loss(scores: np.ndarray) -> tuple[float, np.ndarray]:
        differences = scores[first] - scores[second]
        value = total @ np.logaddexp(0, differences) - won @ differences
        slope = total * expit(differences) - won
        gradient = np.bincount(first, slope, count) - np.bincount(second, slope, count)
        value += regularisation / 2 * (scores @ scores)
        return value, gradient + regularisation * scores

    # Strictly convex. It ends where the slope does, not where the loss looks the same.
    options = {"maxiter": 10_000, "maxfun": 20_000, "maxcor": 20, "gtol": 1e-6, "ftol": 0.0}
    return optimize.minimize(loss, np.zeros(count), jac=True, method="L-BFGS-B", options=options).x


@dataclass(frozen=True)
class VoteCeiling:
    """What the disagreement of people leaves for a ranking to reach, as shares of the votes.

    Attributes:
        pairs (int): Pairs of images with votes.
        votes (float): Votes on them.
        repeated_pairs (int): Pairs with two or more whole votes.
        agreement (float or None): How often two votes on the same pair agree, over the pairs with
            repeated votes; None without such pairs.
        upper_bound (float or None): What no ranking exceeds, see :func:`vote_ceiling`.
        upper_bound_interval (tuple of float or None): Its 95 % interval; wide for few pairs.
        oracle (float or None): Share of held-out votes that a ranking agrees with which was fitted
            to the other votes; None for fewer than two pairs.
    """

    pairs: int
    votes: float
    repeated_pairs: int
    agreement: float | None
    upper_bound: float | None
    upper_bound_interval: tuple[float, float] | None
    oracle: float | None


def vote_ceiling(
    images: np.ndarray, votes: np.ndarray, count: int, folds: int = 10, seed: int = 0
) -> VoteCeiling:
    """Tells how many of the votes a ranking can agree with, in two ways.

    The first needs pairs with two or more votes. Let ``q`` be the share of all people who would
    prefer the first image of a pair. Two people agree with probability ``q^2 + (1 - q)^2``, which
    is ``(1 + d^2) / 2`` with ``d = 2q - 1``, and of ``v1`` and ``v2`` votes, ``n`` in all,
    ``(v1 (v1 - 1) + v2 (v2 - 1)) / (n (n - 1))`` estimates it without bias. The agreement ``a`` is
    its mean, each pair weighted by its votes as in :func:`votes_accuracy`, so ``E[d^2] = 2a - 1``.
    Whatever a ranking says of a pair, at the most ``max(q, 1 - q)``, which is ``(1 + |d|) / 2``, of
    the votes agree with it. As the mean of ``|d|`` is at the most the root of the mean of ``d^2``
    (Jensen), no ranking is expected to exceed ``(1 + sqrt(2a - 1)) / 2``. The bound is that of the
    pairs with repeated votes; it holds for all pairs if those were not chosen for being hard.

    The second is for pairs with one vote each. A Bradley-Terry model is fitted to the votes but for
    one part of the pairs, whose votes then are to agree with it; in turn for all parts. The share
    is what a ranking reaches that sees no images but all the other votes. It grows with the votes
    an image has, and a model may exceed it; a model far above it has seen the votes.

    Args:
        images (int64 ``[P, 2]``): Which two images were compared.
        votes (float64 ``[P, 2]``): How many preferred the first and the second. A tie that stands
            as 1 : 1 counts as two people who disagree; pairs with half votes are no repeated ones.
        count (int): Number of images.
        folds (int): Number of parts. Defaults to 10.
        seed (int): Of the parts. Defaults to 0.

    Raises:
        DataError: If there are no votes.
    """
    total = _total(votes)
    images, votes = merge_votes(images, votes)
    size = votes.sum(1)
    images, votes, size = images[size > 0], votes[size > 0], size[size > 0]
    agreement = bound = bounds = None
    repeated = (votes % 1 == 0).all(1) & (size >= 2)
    if repeated.any():
        n = size[repeated]
        agree = (votes[repeated] * (votes[repeated] - 1)).sum(1) / (n * (n - 1))
        agreement = float(n @ agree / n.sum())
        error = float(np.sqrt(n**2 @ (agree - agreement) ** 2) / n.sum())
        bounds = _bound(agreement - 1.96 * error), _bound(agreement + 1.96 * error)
        bound = _bound(agreement)
    oracle = None
    if len(images) > 1:
        folds = min(folds, len(images))
        fold = np.random.default_rng(seed).permutation(len(images)) % folds
        agreeing = 0.0
        for part in range(folds):
            held = fold == part
            scores = fit_bradley_terry(images[~held], votes[~held], count)
            agreeing += _agreeing(scores, images[held], votes[held]).sum()
        oracle = float(agreeing / total)
    return VoteCeiling(len(images), total, int(repeated.sum()), agreement, bound, bounds, oracle)


def _bound(agreement: float) -> float:
    return float((1 + np.sqrt(np.clip(2 * agreement - 1, 0, 1))) / 2)


def _agreeing(scores: np.ndarray, images: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Votes of each pair that agree with the scores."""
    scores = np.asarray(scores, np.float64)
    if missing := int(np.isnan(scores).sum()):
        raise DataError(f"{missing} of {len(scores)} scores are NaN; such images have no rank")
    first, second = scores[images[:, 0]], scores[images[:, 1]]
    return np.where(
        first == second, votes.sum(1) / 2, np.where(first > second, votes[:, 0], votes[:, 1])
    )


def _total(votes: np.ndarray) -> float:
    total = float(votes.sum())
    if not total > 0:
        raise DataError(f"{len(votes)} comparisons without a vote; expected at least one vote")
    return total
