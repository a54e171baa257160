"""Pairs by number are all pairs, each once, and their samplers what they say."""

from __future__ import annotations

import pickle
import re
import tracemalloc

import numpy as np
import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader, Dataset

from hftune.tasks.ranking.pairs_ranking import (
    ImageSampler,
    PairIndex,
    PairSampler,
    Permutation,
    tier_pair_matrix,
)
from hftune.utils.errors import ConfigurationError

TIERS = ("S", "A", "B", "C")


def listed(targets, min_gap=0.0):
    """All pairs, better image first, by looking at each two images."""
    targets = np.asarray(targets)
    return {
        (i, j)
        for i in range(len(targets))
        for j in range(len(targets))
        if targets[i] > targets[j] and targets[i] - targets[j] >= min_gap
    }


class Numbers(Dataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> int:
        return number


# Pairs by number


@pytest.mark.parametrize("min_gap", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(
    "targets",
    [
        [3, 0, 1, 0],
        [2, 2, 2],
        [0, 3, 3, 1, 2, 0, 0, 1, 3, 2, 2],
        [5],
        [],
    ],
)
def test_numbers_are_all_pairs_of_tiers(targets, min_gap):
    index = PairIndex(np.array(targets, np.float64), min_gap)
    pairs = index.pairs(np.arange(len(index)))
    expected = listed(targets, min_gap)
    assert pairs.shape == (len(expected), 2)
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert index.numbers(pairs).tolist() == list(range(len(index)))


@pytest.mark.parametrize("min_gap", [0.0, 0.5, 1.7, 100.0])
def test_numbers_are_all_pairs_of_scores(min_gap):
    targets = np.random.default_rng(0).normal(size=60).round(1)
    index = PairIndex(targets, min_gap)
    pairs = index.pairs(np.arange(len(index)))
    expected = listed((targets * 10).round(), round(min_gap * 10))  # whole numbers are exact
    assert len(pairs) == len(expected)
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert (index.numbers(pairs) == np.arange(len(index))).all()


def test_a_gap_that_binary_fractions_miss_by_a_bit_is_a_gap():
    targets = np.arange(1, 11) / 10
    assert (np.diff(targets) < 0.1).any()
    assert len(PairIndex(targets, 0.1)) == 45
    assert len(PairIndex(targets, 0.2)) == 45 - 9


def test_any_part_of_the_numbers_in_any_order():
    index = PairIndex(np.arange(50) % 4.0)
    every = index.pairs(np.arange(len(index)))
    some = np.random.default_rng(1).integers(len(index), size=200)
    assert (index.pairs(some) == every[some]).all()
    assert (index.numbers(every[some]) == some).all()


def test_millions_of_pairs_take_a_few_megabytes():
    targets = np.repeat([0.0, 1.0, 2.0, 3.0], 2500)
    tracemalloc.start()
    index = PairIndex(targets)
    sampler = PairSampler(index, seed=0, pairs_per_epoch=100_000)
    drawn = np.fromiter(sampler, np.int64, len(sampler))
    pairs = index.pairs(drawn)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index) == 37_500_000
    assert (targets[pairs[:, 0]] > targets[pairs[:, 1]]).all()
    assert len(np.unique(drawn)) == 100_000
    assert peak < 8e6
    assert len(pickle.dumps(index)) < 33 * len(targets)


# Random orders


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 63, 64, 65, 1000, 4096, 4097])
@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_a_permutation_has_each_number_once(count, seed):
    order = Permutation(count, seed)(np.arange(count))
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))


def test_a_permutation_in_pieces():
    count = 12_345
    permutation = Permutation(count, 7)
    whole = permutation(np.arange(count))
    assert (
        np.concatenate([permutation(p) for p in np.split(np.arange(count), [1, 9, 500])]) == whole
    ).all()
    backwards = np.arange(count)[::-1]
    assert (permutation(backwards) == whole[::-1]).all()
    assert (Permutation(count, 7)(np.arange(count)) == whole).all()
    assert (Permutation(count, 8)(np.arange(count)) == whole).mean() < 0.01


def test_a_permutation_of_very_many():
    positions = np.arange(5_000) + (1 << 59)
    numbers = Permutation(1 << 60, 3)(positions)
    assert len(np.unique(numbers)) == 5_000
    assert 0 <= numbers.min() and numbers.max() < 1 << 60
    assert abs(numbers.mean() / (1 << 60) - 0.5) < 0.02


def test_a_permutation_looks_random():
    count, parts = 40_000, 20
    order = Permutation(count, 11)(np.arange(count))
    # Which tenth of the numbers is in which part of the order, and what follows what.
    table = np.histogram2d(np.arange(count), order, bins=parts)[0]
    expected = count / parts**2
    degrees = (parts - 1) ** 2
    assert abs(((table - expected) ** 2 / expected).sum() - degrees) < 5 * np.sqrt(2 * degrees)
    follows = np.histogram2d(order[:-1], order[1:], bins=parts)[0]
    assert abs(((follows - expected) ** 2 / expected).sum() - degrees) < 5 * np.sqrt(2 * degrees)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / np.sqrt(count)
    assert abs((order % 2)[:-1].mean() - 0.5) < 0.01
    assert (order == np.arange(count)).sum() < 10


def test_all_orders_of_three_come_up():
    orders = [tuple(Permutation(3, seed)(np.arange(3)).tolist()) for seed in range(600)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 50


# Pairs of an epoch


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_is_a_random_order_of_all_pairs():
    index = PairIndex(np.arange(250) % 4.0)
    sampler = PairSampler(index, seed=3)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert len(sampler) == len(index) > 1 << 14
    assert sorted(first) == sorted(second) == list(range(len(index)))
    assert first != second
    assert epoch_of(PairSampler(index, seed=3), 1) == second
    assert epoch_of(PairSampler(index, seed=4), 0) != first


def test_a_part_of_the_pairs_an_epoch():
    index = PairIndex(np.arange(400) % 4.0)
    sampler = PairSampler(index, seed=0, pairs_per_epoch=20_000)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert len(sampler) == len(first) == len(set(first)) == 20_000
    # Two independent draws have a share in common.
    common = len(set(first) & set(second)) / 20_000
    assert abs(common - 20_000 / len(index)) < 0.02
    assert len(PairSampler(index, seed=0, pairs_per_epoch=10**9)) == len(index)


def test_weights_are_proportions():
    targets = np.repeat([0.0, 1.0, 2.0, 3.0], [10, 20, 30, 40])
    index = PairIndex(targets)
    weights = tier_pair_matrix({"S>A": 3, "A>B": 0, "B > C": 0.5}, TIERS)
    sampler = PairSampler(index, 5, 100_000, targets, weights)
    numbers = epoch_of(sampler, 0)
    assert len(sampler) == len(numbers) == 100_000
    better, worse = targets[index.pairs(np.array(numbers))].T.astype(int)
    counts = np.zeros((4, 4))
    np.add.at(counts, (better, worse), 1)
    sizes = np.array([10, 20, 30, 40])
    expected = weights * np.outer(sizes, sizes)
    expected *= 100_000 / expected.sum()
    assert counts[2, 1] == 0
    assert (counts[expected == 0] == 0).all()
    some = expected > 0
    assert (((counts - expected)[some] ** 2 / expected[some]) < 16).all()
    # All pairs of two tiers are equally likely.
    _, times = np.unique(np.array(numbers)[(better == 3) & (worse == 0)], return_counts=True)
    assert len(times) == 400
    assert times.std() < 1.3 * np.sqrt(times.mean())
    assert epoch_of(sampler, 1) != numbers
    assert epoch_of(sampler, 0) == numbers


def test_weights_and_a_gap():
    targets = np.arange(40) % 4.0
    sampler = PairSampler(
        PairIndex(targets, 2), 0, 500, targets, tier_pair_matrix({"S>C": 2}, TIERS, 2)
    )
    pairs = sampler.index.pairs(np.array(list(sampler)))
    gaps = targets[pairs[:, 0]] - targets[pairs[:, 1]]
    assert set(gaps) == {2.0, 3.0}


def test_weights_that_leave_nothing_of_these_images():
    targets = np.array([0.0, 0.0, 3.0])
    weights = tier_pair_matrix({"S>C": 0}, TIERS)
    with pytest.raises(ConfigurationError) as error:
        PairSampler(PairIndex(targets), 0, 10, targets, weights)
    assert str(error.value) == (
        "no pair is left: tier_pair_weights are 0 for all tiers that the images have"
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("skipped", [0, 1, 700, 1250])
def test_the_rest_of_an_epoch_after_a_resume(weighted, skipped):
    targets = np.arange(400) % 4.0
    index = PairIndex(targets)
    weights = tier_pair_matrix({"S>C": 2}, TIERS) if weighted else None

    def loader():
        sampler = PairSampler(index, 9, 20_000, targets, weights)
        sampler.set_epoch(2)
        return prepare_data_loader(
            DataLoader(Numbers(len(index)), batch_size=16, sampler=sampler), put_on_device=False
        )

    whole = [batch.tolist() for batch in loader()]
    rest = [batch.tolist() for batch in skip_first_batches(loader(), skipped)]
    assert len(whole) == 1250
    assert rest == whole[skipped:]


# Images of an epoch


def batches_of(sampler, size):
    order = list(sampler)
    return [order[start : start + size] for start in range(0, len(order), size)]


SETS = {
    "equal": np.repeat([0.0, 1.0, 2.0, 3.0], 25),
    "two": np.repeat([0.0, 1.0], [37, 40]),
    "95 3 1 1": np.repeat([1.0, 0.0, 2.0, 3.0], [95, 3, 1, 1]),
    "one is worse": np.repeat([0.0, 1.0], [1, 60]),
    "rare in the middle": np.repeat([0.0, 1.0, 2.0], [300, 5, 300]),
    "twenty tiers": np.arange(130) % 20.0,
    "scores": np.random.default_rng(0).normal(size=203),
    "mostly zero": np.concatenate([np.zeros(700), np.random.default_rng(1).normal(size=150)]),
    "ties": np.random.default_rng(2).poisson(1.0, 200).astype(float),
    "one image": np.zeros(1),
    "one tier": np.zeros(10),
}


@pytest.mark.parametrize("size", [3, 8, 16, 64])
@pytest.mark.parametrize("name", SETS)
def test_batches_have_two_tiers_where_there_are_enough_images(name, size):
    targets = np.random.default_rng(3).permutation(SETS[name])
    sampler = ImageSampler(targets, seed=1)
    assert len(sampler) == len(targets)
    others = len(targets) - np.unique(targets, return_counts=True)[1].max()
    for epoch in range(6):
        sampler.set_epoch(epoch)
        batches = batches_of(sampler, size)
        assert sorted(image for batch in batches for image in batch) == list(range(len(targets)))
        mixed = [len(np.unique(targets[batch])) > 1 for batch in batches]
        # Wherever that is possible, but for a short batch at the end.
        short = len(batches[-1]) < size
        assert sum(mixed) >= min(len(batches) - short, others - short)


def test_a_short_batch_at_the_end_has_two_tiers_where_none_is_the_most():
    sampler = ImageSampler(np.arange(62) % 4.0, seed=0)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        last = batches_of(sampler, 10)[-1]
        assert len(last) == len({image % 4 for image in last}) == 2


def test_a_rare_image_is_anywhere_in_the_epoch():
    sampler = ImageSampler(np.repeat([0.0, 1.0], [1, 99]), seed=0)
    places = [epoch_of(sampler, epoch).index(0) for epoch in range(300)]
    assert min(places) < 5
    assert max(places) > 94
    assert abs(np.mean(places) - 49.5) < 6


def test_batches_have_the_tiers_in_their_proportions():
    targets = np.repeat([0.0, 1.0, 2.0, 3.0], [160, 80, 40, 40])
    sampler = ImageSampler(targets, seed=0)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        for batch in batches_of(sampler, 32):
            counts = np.bincount(targets[batch].astype(int), minlength=4)
            assert (abs(counts - [16, 8, 4, 4]) <= [1, 2, 2, 2]).all()


def test_batches_have_scores_from_all_of_their_range():
    targets = np.random.default_rng(0).normal(size=640)
    for batch in batches_of(ImageSampler(targets, seed=0), 32):
        ranks = np.searchsorted(np.sort(targets), targets[batch])
        eighths = np.bincount(ranks * 8 // 640, minlength=8)
        assert eighths.min() >= 3
        assert eighths.max() <= 5


def test_each_epoch_has_another_order_that_the_seed_decides():
    targets = np.arange(120) % 4.0
    sampler = ImageSampler(targets, seed=0)
    orders = [epoch_of(sampler, epoch) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert epoch_of(ImageSampler(targets, seed=0), 1) == orders[1]
    assert epoch_of(ImageSampler(targets, seed=1), 1) != orders[1]


def test_all_images_meet_all_others_in_small_batches():
    targets = np.repeat([0.0, 1.0, 2.0, 3.0], 3)
    sampler, met = ImageSampler(targets, seed=0), set()
    for epoch in range(300):
        sampler.set_epoch(epoch)
        met |= {tuple(sorted(batch)) for batch in batches_of(sampler, 2)}
    different = {(i, j) for i in range(12) for j in range(i) if targets[i] != targets[j]}
    assert different <= {(j, i) for i, j in met}


# Weights of pairs of tiers


def test_a_matrix_of_weights():
    matrix = tier_pair_matrix({"S>A": 2, " A > C ": 0.5, "B>C": 0}, TIERS)
    # Rows and columns from the worst tier: C, B, A, S.
    assert matrix.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0.5, 1, 0, 0], [1, 1, 2, 0]]
    assert tier_pair_matrix(None, TIERS, 2).tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [1, 0, 0, 0],
        [1, 1, 0, 0],
    ]


def test_all_that_is_wrong_with_weights():
    weights = {
        "S<A": 1,
        "S>D": 1,
        "s>A": 1,
        "A>S": 1,
        "A>A": 1,
        "S>B": -1,
        "S>C": float("nan"),
        "A>C": float("inf"),
        "B>C": 2,
    }
    with pytest.raises(ConfigurationError) as error:
        tier_pair_matrix(weights, TIERS, min_tier_gap=2)
    expected = "expected BETTER>WORSE of the tiers S > A > B > C."
    order = "has the tiers the wrong way round: the order is S > A > B > C"
    found = [problem.removeprefix("tier_pair_weights: ") for problem in error.value.problems]
    assert found[0] == f"found 'S<A', {expected}"
    assert found[1].startswith(f"found 'S>D', {expected}")
    assert found[2] == f"found 's>A', {expected}"
    assert found[3:] == [
        f"'A>S' {order}",
        f"'A>A' {order}",
        "'S>B' has -1, expected 0 or more",
        "'S>C' has nan, expected 0 or more",
        "'A>C' has inf, expected 0 or more",
        "'B>C' has a weight, and min_tier_gap 2 leaves these pairs out",
    ]


@pytest.mark.parametrize("weights, gap", [(None, 4), ({"S>C": 0}, 3)])
def test_weights_that_leave_no_pair(weights, gap):
    expected = (
        f"no pair is left: min_tier_gap {gap} and tier_pair_weights leave out all pairs of the "
        "tiers S > A > B > C"
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(expected)}$"):
        tier_pair_matrix(weights, TIERS, gap)
