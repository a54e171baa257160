"""How well scores put images into the order of their tiers: all pairs, without a list of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hftune.utils.errors import DataError

__all__ = [
    "MOST_TIERS",
    "PairCounts",
    "bootstrap_accuracy",
    "correlations",
    "image_draws",
    "interval",
    "pair_counts",
    "pair_differences",
    "pair_loss",
]

MOST_TIERS = 50
"""Up to so many distinct targets are tiers, and pairs are counted for each two of them."""

_CHUNK = 1 << 17  # pairs that are held at a time; they stay in the processor's cache
_DRAWN = 1 << 20  # weights that a bootstrap holds at a time


@dataclass(frozen=True)
class PairCounts:
    """How many pairs of images there are, and how many of them the scores have in the right order.

    A pair is two images with different targets; it is right where the one with the larger target
    has the larger score, and half right where the scores are equal.

    Attributes:
        total_pairs (int): Pairs of images with different targets.
        correct_predictions (float): Pairs that are right.
        tiers (float64 ``[K]`` or None): The distinct targets, best first; None where there are more
            than :data:`MOST_TIERS`.
        pairs (float64 ``[K, K]`` or None): Pairs of an image of tier ``a`` and one of the worse
            tier ``b`` at ``[a, b]``, zero on and below the diagonal.
        correct (float64 ``[K, K]`` or None): How many of them are right.
    """

    total_pairs: int
    correct_predictions: float
    tiers: np.ndarray | None = None
    pairs: np.ndarray | None = None
    correct: np.ndarray | None = None

    @property
    def accuracy(self) -> float:
        """Share of all pairs that are right; 0.5 is chance."""
        return self.correct_predictions / self.total_pairs

    @property
    def adjacent_accuracy(self) -> float | None:
        """Share of the pairs of neighbouring tiers, whose targets differ by 1, that are right; None
        without such pairs.
        """
        if self.tiers is None:
            return None
        near = np.subtract.outer(self.tiers, self.tiers) == 1
        pairs = self.pairs[near].sum()
        return float(self.correct[near].sum() / pairs) if pairs else None


def pair_counts(scores: np.ndarray, targets: np.ndarray) -> PairCounts:
    """Counts the pairs of images that the scores have in the right order, exactly.

    For tiers the counts are Mann-Whitney statistics of each two of them. For more distinct targets
    they follow from Kendall's tau-b: of all pairs with different targets, ``C`` are concordant,
    ``D`` discordant and the rest have equal scores, so ``C + (pairs - C - D) / 2``, which is
    ``(pairs + C - D) / 2``, are right; tau-b is ``C - D`` over the root of the product of the
    pairs with different targets and the pairs with different scores.

    Args:
        scores (array ``[N]``): The model's, larger is better.
        targets (array ``[N]``): Tiers, counted from the worst, or people's scores.

    Returns:
        The counts. Some milliseconds for ten thousand images.

    Raises:
        DataError: If a number is NaN, or if all targets are the same.

    Example:
        >>> pair_counts([0.9, 0.4, 0.4], [2, 1, 0]).accuracy
        0.8333333333333334
    """
    scores, targets, tiers, tier = _checked(scores, targets)
    sizes = np.bincount(tier)
    total = (len(tier) ** 2 - int((sizes**2).sum())) // 2
    if len(tiers) > MOST_TIERS:
        return PairCounts(total, (total + _kendall_difference(scores, targets, total)) / 2)
    _, place = np.unique(scores, return_inverse=True)
    places = int(place.max()) + 1
    # Images at each place of the order and of each tier, best first, and those before or beside.
    best_first = len(tiers) - 1 - tier
    cells = np.bincount(place * len(tiers) + best_first, minlength=places * len(tiers))
    cells = cells.reshape(places, len(tiers)).astype(np.float64)
    below = np.cumsum(cells, 0) - cells / 2
    correct = np.triu(cells.T @ below, 1)
    sizes = sizes[::-1].astype(np.float64)
    pairs = np.triu(np.outer(sizes, sizes), 1)
    return PairCounts(total, float(correct.sum()), tiers[::-1], pairs, correct)


def correlations(scores: np.ndarray, references: np.ndarray) -> dict[str, float | None]:
    """Correlates the model's scores with people's.

    The linear one is of the scores as they are. Papers often fit a logistic curve with four or
    five parameters first, and get different numbers from different fits; here is none.

    Args:
        scores (array ``[N]``): The model's.
        references (array ``[N]``): People's, or tiers counted from the worst.

    Returns:
        ``srcc`` (Spearman), ``krcc`` (Kendall's tau-b) and ``plcc`` (Pearson) in [-1, 1]; None each
        where the scores or the references are all the same.

    Raises:
        DataError: If a number is NaN.
    """
    scores, references = _without_nan(scores, references)
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(references) == 0:
        return {"srcc": None, "krcc": None, "plcc": None}
    found = {
        "srcc": stats.spearmanr(scores, references).statistic,
        "krcc": stats.kendalltau(scores, references).statistic,
        "plcc": np.corrcoef(scores, references)[0, 1],
    }
    return {name: float(value) for name, value in found.items()}


def bootstrap_accuracy(
    scores: np.ndarray,
    targets: np.ndarray,
    replicates: int = 1000,
    seed: int = 0,
    groups: Sequence[str] | np.ndarray | None = None,
) -> np.ndarray:
    """Draws the images anew, with replacement, and takes the accuracy of each draw.

    Images are drawn and not pairs: pairs that share an image are right or wrong together, and a
    binomial interval over the pairs is several times too narrow. Images are drawn from all tiers
    together. Where a test set holds fixed shares of the tiers the spread is then up to a sixth too
    wide, but draws within each tier would be too narrow for tiers of few images.

    All replicates are 1 where all pairs are right: the interval then says nothing of how many
    images there were.

    Args:
        scores (array ``[N]``): The model's, larger is better.
        targets (array ``[N]``): Tiers, counted from the worst, or people's scores.
        replicates (int): How many draws. Defaults to 1,000.
        seed (int): Of the draws. Models with the same seed get the same draws of the same images,
            so their replicates may be subtracted. Defaults to 0.
        groups (sequence ``[N]``, *optional*): What images have in common, such as their artist.
            Groups are then drawn with all their images, as images of a group are no independent
            evidence.

    Returns:
        float64 ``[replicates]``. A draw whose images all have one target is drawn anew.

    Raises:
        DataError: If a number is NaN, or if all targets or all groups are the same.
    """
    scores, targets, tiers, tier = _checked(scores, targets)
    levels = list(_levels(scores, tier))
    by_tier = np.argsort(tier)
    first = np.searchsorted(tier[by_tier], np.arange(len(tiers)))
    found = np.empty(replicates)
    done = 0
    for weights in image_draws(len(scores), seed, groups):
        sizes = np.add.reduceat(weights[by_tier], first, axis=0)
        pairs = (sizes.sum(0) ** 2 - (sizes**2).sum(0)) / 2
        correct = np.zeros(weights.shape[1])
        for level in levels:
            correct += level.correct(weights)
        kept = pairs > 0
        accuracies = (correct[kept] / pairs[kept])[: replicates - done]
        found[done : done + len(accuracies)] = accuracies
        done += len(accuracies)
        if done == replicates:
            return found


def image_draws(
    images: int, seed: int, groups: Sequence[str] | np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Draws images with replacement, without end.

    Args:
        images (int): How many there are, and how many each draw has.
        seed (int): Of the draws, which depend on nothing else.
        groups (sequence ``[images]``, *optional*): Groups are drawn with all their images, as many
            groups as there are.

    Yields:
        float64 ``[images, draws]``: how often each image is in each of some draws.

    Raises:
        DataError: If there is only one group.
    """
    rng = np.random.default_rng(seed)
    units = images
    if groups is not None:
        names, group = np.unique(groups, return_inverse=True)
        units = len(names)
        if units < 2:
            raise DataError(
                f"all {images} images are of one group; an interval needs independent groups"
            )
    size = max(1, min(100, _DRAWN // images))
    while True:
        drawn = rng.integers(0, units, (size, units)) + units * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * units)
        weights = counts.reshape(size, units).T.astype(np.float64, order="C")
        yield weights if groups is None else weights[group]


def interval(replicates: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Returns the percentile interval of bootstrap replicates.

    Args:
        replicates (array): Of :func:`bootstrap_accuracy`, or differences of two models'.
        level (float): Its coverage, in (0, 1). Defaults to 0.95.
    """
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def pair_loss(scores: np.ndarray, targets: np.ndarray, temperature: float = 1.0) -> float:
    """Returns the mean Bradley-Terry loss over all pairs with different targets.

    That is the mean of ``-log sigmoid((better - worse) / temperature)``; log 2 for equal scores.

    Args:
        scores (array ``[N]``): The model's, larger is better.
        targets (array ``[N]``): Tiers, counted from the worst, or people's scores.
        temperature (float): What score differences are divided by. Defaults to 1.

    Raises:
        DataError: If a number is NaN, or if all targets are the same.
    """
    total, pairs = 0.0, 0
    for differences in pair_differences(scores, targets):
        differences /= -temperature
        total += np.maximum(differences, 0).sum()
        np.abs(differences, out=differences)
        np.negative(differences, out=differences)
        total += np.log1p(np.exp(differences, out=differences), out=differences).sum()
        pairs += len(differences)
    return float(total / pairs)


def pair_differences(scores: np.ndarray, targets: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the score of the better image less that of the worse one for all pairs, in pieces.

    Args:
        scores (array ``[N]``): The model's, larger is better.
        targets (array ``[N]``): Tiers, counted from the worst, or people's scores.

    Yields:
        float64 ``[pairs]``: each pair with different targets is in one piece.

    Raises:
        DataError: If a number is NaN, or if all targets are the same.
    """
    scores, targets, tiers, tier = _checked(scores, targets)
    order = np.argsort(tier, kind="stable")
    ordered = scores[order]
    first = np.searchsorted(tier[order], np.arange(len(tiers) + 1))
    for start, stop in zip(first[1:-1], first[2:], strict=True):
        worse = ordered[:start]
        step = max(1, _CHUNK // len(worse))
        for row in range(start, stop, step):
            yield (ordered[row : min(row + step, stop), None] - worse).ravel()


@dataclass(frozen=True)
class _Level:
    """Pairs of a worse and a better image, where each worse one is paired with whole blocks.

    ``worse`` images are sorted by block and score; the ``i``-th ``better`` image is above those
    from ``start[i]`` to ``below[i]`` and level with those from there to ``beside[i]``.
    """

    worse: np.ndarray
    better: np.ndarray
    start: np.ndarray
    below: np.ndarray
    beside: np.ndarray

    def correct(self, weights: np.ndarray) -> np.ndarray:
        """Sum over the pairs in the right order of the product of the two weights, per draw."""
        summed = np.zeros((len(self.worse) + 1, weights.shape[1]))
        np.cumsum(weights[self.worse], 0, out=summed[1:])
        above = summed[self.below]
        above += summed[self.beside]
        above /= 2
        above -= summed[self.start]
        return np.einsum("ir,ir->r", weights[self.better], above)


def _levels(scores: np.ndarray, tier: np.ndarray) -> Iterator[_Level]:
    """All pairs of images of different tiers, each in one level: that of the highest bit in which
    the numbers of their tiers differ. Four tiers have two levels, ten thousand have fourteen."""
    _, place = np.unique(scores, return_inverse=True)
    places = int(place.max()) + 1
    for bit in range(int(tier.max()).bit_length()):
        block, upper = tier >> (bit + 1), (tier >> bit) & 1
        key = block * places + place
        worse, better = np.flatnonzero(upper == 0), np.flatnonzero(upper == 1)
        worse = worse[np.argsort(key[worse], kind="stable")]
        keys = key[worse]
        yield _Level(
            worse,
            better,
            np.searchsorted(keys, block[better] * places),
            np.searchsorted(keys, key[better]),
            np.searchsorted(keys, key[better], side="right"),
        )


def _kendall_difference(scores: np.ndarray, targets: np.ndarray, total: int) -> int:
    """Concordant less discordant pairs, exact up to a million images and beyond."""
    sizes = np.unique(scores, return_counts=True)[1]
    if len(sizes) == 1:
        return 0
    differing = (len(scores) ** 2 - int((sizes**2).sum())) // 2
    tau = stats.kendalltau(scores, targets, method="asymptotic").statistic
    return round(tau * np.sqrt(total) * np.sqrt(differing))


def _without_nan(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets, np.float64)
    if scores.shape != targets.shape or scores.ndim != 1:
        raise DataError(
            f"scores of shape {scores.shape} and targets of shape {targets.shape}; expected one "
            "number each for every image"
        )
    for name, values in (("scores", scores), ("targets", targets)):
        if missing := int(np.isnan(values).sum()):
            raise DataError(f"{missing} of {len(values)} {name} are NaN; such images have no rank")
    return scores, targets


def _checked(
    scores: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores and targets, the distinct targets from the worst on, and each image's among them."""
    scores, targets = _without_nan(scores, targets)
    tiers, tier = np.unique(targets, return_inverse=True)
    if len(tiers) < 2:
        raise DataError(
            f"{len(targets)} images with {len(tiers)} distinct target; pairs need images with "
            "different targets"
        )
    return scores, targets, tiers, tier
