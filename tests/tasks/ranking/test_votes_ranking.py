"""Votes: shares and intervals of plain loops, the Bradley-Terry fit, the ceiling of noisy votes."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy.special import expit

from hftune.tasks.ranking.scores_ranking import correlations, image_draws, interval
from hftune.tasks.ranking.votes_ranking import (
    bootstrap_votes,
    decided_accuracy,
    fit_bradley_terry,
    merge_votes,
    vote_ceiling,
    votes_accuracy,
)
from hftune.utils.errors import DataError


def simulated(count, pairs, per_pair=1, deviation=1.5, seed=0):
    """True scores, compared images and votes that follow a Bradley-Terry model."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(count) * deviation
    images = np.stack([rng.permutation(count)[:2] for _ in range(pairs)])
    won = rng.binomial(per_pair, expit(truth[images[:, 0]] - truth[images[:, 1]]))
    return truth, images, np.stack([won, per_pair - won], 1).astype(np.float64)


def test_shares_of_votes():
    scores = [0.3, 0.9, 0.3, -1]
    images = np.array([[0, 1], [1, 2], [0, 2], [3, 1], [2, 3], [3, 2]])
    votes = np.array([[1, 4], [0, 2], [3, 0], [0.5, 0.5], [1, 1], [0, 1]])
    # Pair by pair the votes for the larger score: 4, 0, half of 3, 0.5, 1, 1.
    assert votes_accuracy(scores, images, votes) == 8 / 14
    # Decided are 0-1 (right), 1-2 (wrong), 0-2 (equal) and, taken together, 2-3 (right).
    assert decided_accuracy(scores, images, votes) == 2.5 / 4
    assert decided_accuracy(scores, images[3:5], votes[3:5]) is None


def test_votes_on_the_same_images_are_merged():
    images, votes = merge_votes(
        np.array([[5, 2], [0, 1], [2, 5], [5, 2]]), np.array([[1, 0], [2, 3], [0.5, 0.5], [4, 1]])
    )
    assert images.tolist() == [[0, 1], [2, 5]]
    assert votes.tolist() == [[2, 3], [1.5, 5.5]]


def test_what_cannot_be_scored_is_refused():
    images, votes = np.array([[0, 1]]), np.array([[1.0, 0.0]])
    with pytest.raises(DataError, match="^1 of 2 scores are NaN; such images have no rank$"):
        votes_accuracy([np.nan, 1], images, votes)
    for function in (votes_accuracy, bootstrap_votes):
        with pytest.raises(DataError, match="^1 comparisons without a vote; expected at least one"):
            function([1, 2], images, votes * 0)
    with pytest.raises(DataError, match="^0 comparisons without a vote; expected at least one"):
        vote_ceiling(images[:0], votes[:0], 2)
    with pytest.raises(DataError, match="^all 2 images are of one group"):
        bootstrap_votes([1, 2], images, votes, groups=["a", "a"])


def test_bootstrap_is_that_of_repeated_images():
    truth, images, votes = simulated(12, 30, per_pair=2)
    scores = np.round(truth)
    replicates = bootstrap_votes(scores, images, votes, 60, seed=5)
    for replicate, counts in zip(replicates, next(image_draws(12, 5)).T, strict=False):
        times = counts[images[:, 0]] * counts[images[:, 1]]
        assert replicate == votes_accuracy(scores, images, votes * times[:, None])
    assert bootstrap_votes(scores, images, votes, 130, seed=5)[:60].tolist() == replicates.tolist()
    # A single comparison is in four draws of nine; the others are drawn anew.
    one = bootstrap_votes([2, 1, 0], np.array([[0, 1]]), np.array([[3.0, 1.0]]), 200)
    assert one.tolist() == [0.75] * 200
    groups = np.arange(12) // 4
    grouped = bootstrap_votes(scores, images, votes, 20, seed=5, groups=groups)
    counts = next(image_draws(3, 5))[groups, 0]
    times = counts[images[:, 0]] * counts[images[:, 1]]
    assert grouped[0] == votes_accuracy(scores, images, votes * times[:, None])


def test_spread_of_the_bootstrap_is_that_of_new_images_and_votes():
    def sample(seed):
        rng = np.random.default_rng(seed)
        truth = rng.standard_normal(40)
        images = np.array([(i, j) for i in range(40) for j in range(i)])
        won = rng.random(len(images)) < expit(1.5 * (truth[images[:, 0]] - truth[images[:, 1]]))
        votes = np.stack([won, ~won], 1).astype(np.float64)
        return truth + rng.standard_normal(40), images, votes

    samples = [sample(seed) for seed in range(150)]
    spread = np.std([votes_accuracy(*of) for of in samples])
    replicates = [bootstrap_votes(*of, replicates=200) for of in samples]
    assert 0.95 < np.mean([np.std(drawn) for drawn in replicates]) / spread < 1.3
    truth = np.mean([votes_accuracy(*of) for of in samples])
    covered = [low < truth < high for low, high in map(interval, replicates)]
    assert np.mean(covered) >= 0.92


def test_fit_of_two_images_is_the_closed_one():
    images, votes = np.array([[1, 0], [0, 1]]), np.array([[2.0, 1.0], [0.0, 1.0]])
    first, second = fit_bradley_terry(images, votes, 2, regularisation=1e-9)
    assert second - first == pytest.approx(np.log(3), abs=1e-5)  # three votes to one
    assert first + second == pytest.approx(0, abs=1e-6)
    tie = fit_bradley_terry(images[:1], np.array([[0.5, 0.5]]), 2)
    assert tie.tolist() == [0, 0]


def test_fit_is_where_the_slope_ends():
    truth, images, votes = simulated(50, 400, per_pair=3)
    votes[::7] += 0.5
    scores = fit_bradley_terry(images, votes, 51, regularisation=0.2)
    slope = 0.2 * scores
    for (i, j), (won, lost) in zip(images, votes, strict=True):
        excess = (won + lost) * expit(scores[i] - scores[j]) - won
        slope[i] += excess
        slope[j] -= excess
    assert np.abs(slope).max() < 2e-6
    assert scores[50] == 0  # never compared
    assert correlations(scores[:50], truth)["plcc"] > 0.9
    # An image that won everything stays finite.
    assert 1 < fit_bradley_terry(np.array([[0, 1]]), np.array([[9.0, 0.0]]), 2)[0] < 10


def test_fit_of_many_images_finds_their_order():
    truth, _, _ = simulated(10_000, 1, seed=1)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 10_000, (100_000, 2))
    images = images[images[:, 0] != images[:, 1]]
    won = rng.random(len(images)) < expit(truth[images[:, 0]] - truth[images[:, 1]])
    scores = fit_bradley_terry(images, np.stack([won, ~won], 1).astype(np.float64), 10_000)
    assert correlations(scores, truth)["plcc"] > 0.9


def test_agreement_is_that_of_two_voters():
    images = np.array([[0, 1], [1, 2], [2, 0], [3, 1], [2, 3], [3, 2]])
    votes = np.array([[2, 1], [2, 0], [1, 0], [1.5, 0.5], [1, 0], [1, 0]])
    # 2 : 1 agrees in one of three couples of votes, 2 : 0 always, the last two rows are one pair
    # whose votes disagree; the pair with a half vote and that with one vote say nothing.
    found = vote_ceiling(images, votes, 4)
    assert (found.pairs, found.votes, found.repeated_pairs) == (5, 10, 3)
    assert found.agreement == pytest.approx((3 * 1 / 3 + 2 * 1 + 2 * 0) / 7)
    assert found.upper_bound == 0.5
    sure = vote_ceiling(images[:2], np.array([[2.0, 0], [3, 0]]), 3)
    assert (sure.agreement, sure.upper_bound, sure.upper_bound_interval) == (1, 1, (1, 1))
    single = vote_ceiling(images[:1], np.array([[1.0, 0]]), 2)
    assert single.agreement is None and single.upper_bound is None and single.oracle is None
    assert single.upper_bound_interval is None


def test_ceilings_hold_the_best_ranking():
    truth, images, votes = simulated(200, 6000, per_pair=2)
    found = vote_ceiling(images, votes, 200)
    best = votes_accuracy(truth, images, votes)
    chances = expit(truth[images[:, 0]] - truth[images[:, 1]])
    agreement = (chances**2 + (1 - chances) ** 2).mean()
    assert found.agreement == pytest.approx(agreement, abs=0.015)
    assert best < found.upper_bound < best + 0.06
    low, high = found.upper_bound_interval
    assert low < (1 + np.sqrt(2 * agreement - 1)) / 2 < high
    assert best - 0.03 < found.oracle < best
    # Votes by chance can be foreseen by nobody.
    rng = np.random.default_rng(0)
    won = rng.binomial(2, 0.5, len(images))
    noise = vote_ceiling(images, np.stack([won, 2 - won], 1).astype(np.float64), 200)
    assert noise.oracle == pytest.approx(0.5, abs=0.02)
    assert noise.upper_bound < 0.6


def test_people_on_websites(test_data):
    folder = test_data / "ranking" / "websites"
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    place = {row["image_id"]: i for i, row in enumerate(rows)}
    published = np.array([float(row["score"]) for row in rows])
    with (folder / "comparisons.csv").open(encoding="utf-8", newline="") as stream:
        pairs = list(csv.DictReader(stream))
    images = np.array([(place[row["image_1"]], place[row["image_2"]]) for row in pairs])
    votes = np.array([(float(row["votes_1"]), float(row["votes_2"])) for row in pairs])
    # The published scores are a Bradley-Terry fit to these very votes.
    fitted = fit_bradley_terry(images, votes, 100, regularisation=0.001)
    assert correlations(fitted, published)["plcc"] > 0.99999
    share = votes_accuracy(published, images, votes)
    assert share == pytest.approx(0.7096, abs=5e-5)
    found = vote_ceiling(images, votes, 100)
    assert (found.pairs, found.votes, found.repeated_pairs) == (4950, 5094, 144)
    assert found.agreement == pytest.approx(87 / 144)
    assert found.upper_bound == pytest.approx(0.728, abs=5e-4)
    assert 0.68 < found.oracle < share  # what they say of votes that they have not seen
