"""Scores of rankings: those of a list of all pairs, without the list."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hftune.tasks.ranking import scores_ranking
from hftune.tasks.ranking.scores_ranking import (
    bootstrap_accuracy,
    correlations,
    image_draws,
    interval,
    pair_counts,
    pair_differences,
    pair_loss,
)
from hftune.utils.errors import DataError


def pairs_of(scores, targets):
    """(better, worse) of all pairs with different targets."""
    count = range(len(scores))
    return [(i, j) for i in count for j in count if targets[i] > targets[j]]


def right(scores, better, worse) -> float:
    return 1.0 if scores[better] > scores[worse] else 0.5 * (scores[better] == scores[worse])


def some_scores(images, distinct_scores, distinct_targets, seed=0):
    """Scores and targets with ties in both, that go together somewhat."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, distinct_targets, images)
    scores = rng.integers(0, distinct_scores, images) + targets * distinct_scores // 9
    return scores / 7, targets.astype(np.float64)


@pytest.mark.parametrize(("distinct", "targets"), [(5, 2), (9, 4), (200, 4), (30, 60), (1000, 500)])
def test_counts_are_those_of_a_list_of_pairs(distinct, targets):
    scores, targets = some_scores(120, distinct, targets)
    pairs = pairs_of(scores, targets)
    found = pair_counts(scores, targets)
    assert found.total_pairs == len(pairs)
    assert found.correct_predictions == sum(right(scores, *pair) for pair in pairs)
    assert found.accuracy == found.correct_predictions / len(pairs)
    assert (found.tiers is None) == (len(set(targets)) > 50)


def test_counts_of_each_two_tiers():
    scores, targets = some_scores(90, 12, 4)
    found = pair_counts(scores, targets)
    assert found.tiers.tolist() == [3, 2, 1, 0]
    pairs = pairs_of(scores, targets)
    for a in range(4):
        for b in range(4):
            of = [pair for pair in pairs if tuple(targets[[*pair]]) == (3 - a, 3 - b)]
            assert found.pairs[a, b] == len(of)
            assert found.correct[a, b] == sum(right(scores, *pair) for pair in of)
    near = [pair for pair in pairs if targets[pair[0]] - targets[pair[1]] == 1]
    assert found.adjacent_accuracy == sum(right(scores, *pair) for pair in near) / len(near)
    assert pair_counts([1.0, 2.0, 3.0], [0, 2, 3]).adjacent_accuracy == 1  # 2 has no neighbour 1
    assert pair_counts([1.0, 2.0], [0, 2]).adjacent_accuracy is None


def test_tiers_and_many_targets_are_counted_alike(monkeypatch):
    scores, targets = some_scores(3000, 100, 50)
    tiers = pair_counts(scores, targets)
    monkeypatch.setattr(scores_ranking, "MOST_TIERS", 49)
    many = pair_counts(scores, targets)
    assert many.tiers is None and many.adjacent_accuracy is None
    assert many.total_pairs == tiers.total_pairs == tiers.pairs.sum()
    assert many.correct_predictions == tiers.correct_predictions


@pytest.mark.parametrize("distinct", [4, 400])
def test_simple_orders(distinct):
    targets = np.repeat(np.arange(distinct), 3)
    assert pair_counts(targets, targets).accuracy == 1
    assert pair_counts(-targets, targets).accuracy == 0
    assert pair_counts(np.zeros(len(targets)), targets).accuracy == 0.5


def test_what_has_no_order_is_refused():
    with pytest.raises(DataError, match="^1 of 3 scores are NaN; such images have no rank$"):
        pair_counts([1, np.nan, 2], [0, 1, 2])
    with pytest.raises(DataError, match="^2 of 3 targets are NaN"):
        correlations([1, 3, 2], [0, np.nan, np.nan])
    with pytest.raises(DataError, match="^3 images with 1 distinct target; pairs need images with"):
        bootstrap_accuracy([1, 3, 2], [2, 2, 2])
    with pytest.raises(DataError, match=r"^scores of shape \(2, 1\) and targets of shape \(2,\)"):
        pair_counts([[1], [2]], [1, 2])


def test_correlations():
    scores, references = some_scores(80, 30, 20)
    pairs = [(i, j) for i in range(80) for j in range(i)]
    signs = np.array([np.sign([scores[i] - scores[j], references[i] - references[j]])
                      for i, j in pairs])  # fmt: skip
    tau = signs.prod(1).sum() / np.sqrt((signs**2).sum(0).prod())
    ranks = np.corrcoef(stats.rankdata(scores), stats.rankdata(references))[0, 1]
    centred = scores - scores.mean(), references - references.mean()
    linear = (centred[0] @ centred[1]) / np.sqrt(
        (centred[0] @ centred[0]) * (centred[1] @ centred[1])
    )
    expected = {"srcc": ranks, "krcc": tau, "plcc": linear}
    assert correlations(scores, references) == pytest.approx(expected, abs=1e-12)
    nothing = {"srcc": None, "krcc": None, "plcc": None}
    assert correlations(np.ones(80), references) == nothing
    assert correlations(scores, np.ones(80)) == nothing
    assert correlations([1], [2]) == nothing


@pytest.mark.parametrize(("distinct", "targets"), [(9, 2), (12, 4), (50, 7), (90, 1000)])
def test_bootstrap_is_that_of_repeated_images(distinct, targets):
    scores, targets = some_scores(40, distinct, targets)
    replicates = bootstrap_accuracy(scores, targets, 130, seed=3)
    draws = np.concatenate([part for part, _ in zip(image_draws(40, 3), "ab", strict=False)], 1)
    assert (draws.sum(0) == 40).all()
    for replicate, counts in zip(replicates, draws.T.astype(int), strict=False):
        drawn = np.repeat(np.arange(40), counts)
        assert replicate == pair_counts(scores[drawn], targets[drawn]).accuracy
    assert len(replicates) == 130


def test_bootstrap_does_not_depend_on_how_many_replicates_are_taken():
    scores, targets = some_scores(30, 12, 3)
    many = bootstrap_accuracy(scores, targets, 250)
    assert bootstrap_accuracy(scores, targets, 120).tolist() == many[:120].tolist()
    assert bootstrap_accuracy(scores, targets, 250, seed=1).tolist() != many.tolist()
    # The same images are drawn for another model.
    assert bootstrap_accuracy(-scores, targets, 250) == pytest.approx(1 - many, abs=1e-15)


def test_draws_of_one_tier_are_drawn_anew():
    replicates = bootstrap_accuracy([3, 2, 1], [1, 0, 0], 300)  # absent from 3 of 10 draws
    assert replicates.tolist() == [1] * 300


def test_spread_of_the_bootstrap_is_that_of_new_test_images():
    """Tiers of random images, whose scores differ by half a deviation a tier."""
    rng = np.random.default_rng(0)

    def images(count):
        targets = rng.integers(0, 4, count)
        return targets * 0.5 + rng.standard_normal(count), targets

    truth = pair_counts(*images(200_000)).accuracy
    sets = [images(100) for _ in range(200)]
    spread = np.std([pair_counts(*sample).accuracy for sample in sets])
    replicates = [bootstrap_accuracy(*sample, 300) for sample in sets]
    estimated = np.mean([np.std(drawn) for drawn in replicates])
    assert estimated == pytest.approx(spread, rel=0.12)
    assert spread > 4 * np.sqrt(truth * (1 - truth) / 3750)  # were pairs independent
    intervals = [interval(drawn) for drawn in replicates]
    assert 0.91 <= np.mean([low < truth < high for low, high in intervals]) <= 0.98


def test_groups_are_drawn_with_all_their_images():
    scores, targets = some_scores(40, 12, 4)
    groups = np.array([f"artist {i % 7}" for i in range(40)])
    replicates = bootstrap_accuracy(scores, targets, 50, seed=3, groups=groups)
    draws = next(image_draws(7, 3)).T.astype(int)
    for replicate, counts in zip(replicates, draws, strict=False):
        drawn = [np.flatnonzero(groups == f"artist {i}") for i in np.repeat(np.arange(7), counts)]
        drawn = np.concatenate(drawn)
        assert replicate == pair_counts(scores[drawn], targets[drawn]).accuracy
    with pytest.raises(DataError, match="^all 40 images are of one group; an interval needs"):
        bootstrap_accuracy(scores, targets, groups=["one"] * 40)


def test_interval():
    assert interval(np.arange(101), 0.9) == pytest.approx((5, 95))
    assert interval(np.arange(1001)) == pytest.approx((25, 975))


@pytest.mark.parametrize("targets", [3, 1000])
def test_differences_and_loss_are_those_of_a_list_of_pairs(targets, monkeypatch):
    monkeypatch.setattr(scores_ranking, "_CHUNK", 70)
    scores, targets = some_scores(60, 40, targets)
    pairs = pairs_of(scores, targets)
    differences = [scores[i] - scores[j] for i, j in pairs]
    pieces = list(pair_differences(scores, targets))
    assert max(map(len, pieces)) <= 70
    assert sorted(np.concatenate(pieces)) == pytest.approx(sorted(differences), abs=1e-15)
    expected = np.mean([np.logaddexp(0, -value / 0.3) for value in differences])
    assert pair_loss(scores, targets, 0.3) == pytest.approx(expected, rel=1e-12)
    assert pair_loss(np.zeros(60), targets) == pytest.approx(np.log(2), rel=1e-12)
    assert pair_loss(targets * 1e6, -targets) > 1e5  # and no overflow
