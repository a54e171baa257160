"""Pairs of images by number: counted, found and shuffled by arithmetic, never listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import Sampler

from ...utils.errors import ConfigurationError, did_you_mean
from ...utils.seeds import derive_seed
from .scores_ranking import MOST_TIERS

__all__ = [
    "ImageSampler",
    "PairIndex",
    "PairSampler",
    "Permutation",
    "hashed",
    "least_gap",
    "tier_pair_matrix",
]

_CHUNK = 1 << 14
_BINS = 8  # parts of the range of scores that each batch of images has


class PairIndex:
    """All pairs of images whose targets differ, each once, numbered from 0.

    Images are sorted by target. The pairs of an image with those below it are neighbours in the
    numbering, so that the running sum of how many lie below each image finds them: 32 bytes an
    image, where a list of the pairs of 10,000 images takes gigabytes.

    Args:
        targets (float array ``[N]``): Tiers counted from the worst, or scores; larger is better.
        min_gap (float): Least difference of the two targets of a pair, see :func:`least_gap`.
            Defaults to 0: any.

    Example:
        >>> index = PairIndex(np.array([3.0, 0.0, 1.0, 0.0]))  # S, C, B, C
        >>> len(index)
        5
        >>> index.pairs(np.arange(5))  # better image, worse image
        array([[2, 1],
               [2, 3],
               [0, 1],
               [0, 3],
               [0, 2]])
    """

    def __init__(self, targets: np.ndarray, min_gap: float = 0.0) -> None:
        targets = np.asarray(targets, np.float64)
        self._order = np.argsort(targets, kind="stable")
        ascending = targets[self._order]
        below = np.searchsorted(ascending, ascending, "left")
        if min_gap > 0:
            far = np.searchsorted(ascending, ascending - least_gap(min_gap), "right")
            below = np.minimum(below, far)
        self._ends = np.cumsum(below)
        self._starts = self._ends - below
        self._rank = np.empty_like(self._order)
        self._rank[self._order] = np.arange(len(self._order))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def pairs(self, numbers: np.ndarray) -> np.ndarray:
        """Returns pairs by number.

        Args:
            numbers (int64 array ``[P]``): From 0 to ``len(index) - 1``.

        Returns:
            int64 ``[P, 2]``: rows of the better and of the worse image.
        """
        numbers = np.asarray(numbers, np.int64)
        better = np.searchsorted(self._ends, numbers, "right")
        worse = numbers - self._starts[better]
        return np.stack([self._order[better], self._order[worse]], axis=-1)

    def numbers(self, pairs: np.ndarray) -> np.ndarray:
        """Returns the numbers of pairs, the inverse of :meth:`pairs`.

        Args:
            pairs (int64 array ``[P, 2]``): Rows of better and worse images whose targets differ by
                ``min_gap`` at least.
        """
        ranks = self._rank[np.asarray(pairs, np.int64)]
        return self._starts[ranks[..., 0]] + ranks[..., 1]


def least_gap(gap: float) -> float:
    """Returns what a difference must reach to be a gap: scores of 0.3 and 0.2 are 0.1 apart, and
    their difference in binary is a little less.
    """
    return gap * (1 - 1e-9)


class Permutation:
    """A random order of ``0 ... count - 1`` of which any part can be asked for, in constant memory.

    A Feistel network over the next power of four permutes a range that is at most four times as
    large; numbers beyond ``count`` are permuted again until they lie inside (cycle walking; Black
    and Rogaway, 2002).

    Args:
        count (int): How many numbers there are.
        seed (int): Of the order.
    """

    _ROUNDS = 6

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self._half = np.uint64(max(1, -(-max(count - 1, 1).bit_length() // 2)))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = [derive_seed(seed, "feistel", i) for i in range(self._ROUNDS)]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Returns the numbers at some positions of the order.

        Args:
            positions (int64 array ``[P]``): From 0 to ``count - 1``.

        Returns:
            int64 ``[P]``.
        """
        values = self._once(np.asarray(positions).astype(np.uint64))
        while len(outside := np.flatnonzero(values >= self.count)):
            values[outside] = self._once(values[outside])
        return values.astype(np.int64)

    def _once(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (hashed(right, key) & self._mask)
        return (left << self._half) | right


def hashed(values: np.ndarray, key: int) -> np.ndarray:
    """Returns random numbers that depend on a value and a key each.

    It is the finaliser of SplitMix64 (Steele and others, 2014): each bit depends on all bits.

    Args:
        values (int array ``[P]``): From 0.
        key (int): A number of :func:`~hftune.utils.seeds.derive_seed`.

    Returns:
        uint64 ``[P]``.
    """
    values = values.astype(np.uint64) ^ np.uint64(key)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def tier_pair_matrix(
    weights: Mapping[str, float] | None, tiers: Sequence[str], min_tier_gap: int = 1
) -> np.ndarray:
    """Turns ``{"S>A": 2, "S>C": 0.5}`` into a matrix.

    Args:
        weights (mapping, *optional*): ``BETTER>WORSE`` to weight; those that are not named have 1.
        tiers (sequence of str): Names, best first.
        min_tier_gap (int): Tiers that lie nearer together have weight 0. Defaults to 1.

    Returns:
        float64 ``[K, K]`` by target of the better (row) and worse image, tiers counted from the
        worst; 0 where the row is not better.

    Raises:
        ConfigurationError: With all that is wrong.
    """
    count = len(tiers)
    gaps = np.subtract.outer(np.arange(count), np.arange(count))
    matrix = (gaps >= max(min_tier_gap, 1)).astype(np.float64)
    target = {tier: count - 1 - i for i, tier in enumerate(tiers)}
    problems = []
    for name, weight in (weights or {}).items():
        better, sign, worse = (part.strip() for part in name.partition(">"))
        unknown = [tier for tier in (better, worse) if tier not in target]
        if not sign or unknown:
            near = did_you_mean(unknown[0], tiers) if sign else ""
            problems.append(
                f"tier_pair_weights: found {name!r}, expected BETTER>WORSE of the tiers "
                f"{' > '.join(tiers)}.{near}"
            )
        elif target[better] <= target[worse]:
            problems.append(
                f"tier_pair_weights: {name!r} has the tiers the wrong way round: the order is "
                f"{' > '.join(tiers)}"
            )
        elif not 0 <= weight < np.inf:
            problems.append(f"tier_pair_weights: {name!r} has {weight}, expected 0 or more")
        elif not matrix[target[better], target[worse]]:
            problems.append(
                f"tier_pair_weights: {name!r} has a weight, and min_tier_gap {min_tier_gap} leaves "
                "these pairs out"
            )
        else:
            matrix[target[better], target[worse]] *= weight
    if not problems and not matrix.any():
        problems.append(
            f"no pair is left: min_tier_gap {min_tier_gap} and tier_pair_weights leave out all "
            f"pairs of the tiers {' > '.join(tiers)}"
        )
    if problems:
        raise ConfigurationError(problems)
    return matrix


class ImageSampler(Sampler[int]):
    """Goes through all images once an epoch, so that all pairs of a batch can be used.

    Each stretch of the epoch has the tiers in their proportions (or, where there are more than
    50 different scores, the parts of their range). Batches of three images or more have two tiers
    at least, as far as there are enough images that are not of the largest one.

    Args:
        targets (float array ``[N]``): Of the images.
        seed (int): Of the order; it differs between epochs.
    """

    def __init__(self, targets: np.ndarray, seed: int) -> None:
        self.seed, self.epoch = seed, 0
        _, group, sizes = np.unique(targets, return_inverse=True, return_counts=True)
        if len(sizes) > MOST_TIERS:
            middle = np.cumsum(sizes) - sizes / 2  # equal scores stay together
            group = (middle * _BINS / len(group)).astype(np.int64)[group]
        self._group = group

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._group)

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng(derive_seed(self.seed, "images", self.epoch))
        sizes = np.bincount(self._group)
        order = np.empty(0, np.int64)
        # What is not of the largest tier is spread evenly over the epoch, and within that what is
        # not of the next: three neighbours are never of one tier where that can be.
        for group in np.argsort(sizes, kind="stable"):
            members = draw.permutation(np.flatnonzero(self._group == group))
            order = _spread(order, members, draw)
        yield from order.tolist()


def _spread(these: np.ndarray, others: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Spreads ``these`` evenly among others, both in their order."""
    count = len(these) + len(others)
    if not len(these) or not len(others):
        return np.concatenate([these, others])
    places = (np.arange(len(these)) * count + draw.integers(count)) // len(these)
    free = np.ones(count, bool)
    free[places] = False
    merged = np.empty(count, np.int64)
    merged[places], merged[free] = these, others
    return merged


class PairSampler(Sampler[int]):
    """Draws pairs, by their number in a :class:`PairIndex`.

    Without weights an epoch is a random order of all pairs, or the beginning of one, and each epoch
    has its own: no pair comes twice in an epoch. With weights pairs are drawn with replacement.
    Memory does not grow with the number of pairs.

    Args:
        index (PairIndex): The pairs.
        seed (int): Of the order.
        pairs_per_epoch (int, *optional*): Defaults to all.
        targets (float array ``[N]``, *optional*): Tiers of the images, for weights.
        weights (float array ``[K, K]``, *optional*): Of :func:`tier_pair_matrix`, with the
            ``min_tier_gap`` of the index: a pair is drawn in proportion to its weight.

    Raises:
        ConfigurationError: If no pair of the images has a weight.

    Example:
        >>> sampler = PairSampler(dataset.index, seed=42, pairs_per_epoch=50_000)
        >>> loader = DataLoader(dataset, batch_size=32, sampler=sampler)
    """

    def __init__(
        self,
        index: PairIndex,
        seed: int,
        pairs_per_epoch: int | None = None,
        targets: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        self.index, self.seed, self.epoch = index, seed, 0
        self._count = pairs_per_epoch or len(index)
        if weights is None:
            self._count = min(self._count, len(index))
        self._chances: np.ndarray | None = None
        if weights is not None:
            self._tiers = [np.flatnonzero(targets == tier) for tier in range(len(weights))]
            sizes = np.array([len(rows) for rows in self._tiers], np.float64)
            chances = (weights * np.outer(sizes, sizes)).ravel()
            if not chances.any():
                raise ConfigurationError(
                    "no pair is left: tier_pair_weights are 0 for all tiers that the images have"
                )
            self._chances = chances / chances.sum()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        seed = derive_seed(self.seed, "pairs", self.epoch)
        order = Permutation(len(self.index), seed)
        for start in range(0, self._count, _CHUNK):
            positions = np.arange(start, min(start + _CHUNK, self._count))
            if self._chances is None:
                yield from order(positions).tolist()
            else:
                yield from self._drawn(len(positions), derive_seed(seed, start)).tolist()

    def _drawn(self, count: int, seed: int) -> np.ndarray:
        draw = np.random.default_rng(seed)
        blocks = draw.choice(len(self._chances), count, p=self._chances)
        pairs = np.empty((count, 2), np.int64)
        for block in np.unique(blocks):
            here = np.flatnonzero(blocks == block)
            for side, tier in enumerate(divmod(int(block), len(self._tiers))):
                pairs[here, side] = draw.choice(self._tiers[tier], len(here))
        return self.index.numbers(pairs)
