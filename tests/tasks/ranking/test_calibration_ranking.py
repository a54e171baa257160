"""Calibration: the temperature of simulated judgements is found, with the least loss of all."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from hftune.tasks.ranking import calibration_ranking, scores_ranking
from hftune.tasks.ranking.calibration_ranking import (
    fit_temperature,
    fit_temperature_votes,
    pair_reliability,
    reliability,
)
from hftune.tasks.ranking.scores_ranking import pair_loss
from hftune.utils.errors import DataError


def some_scores(images=200, tiers=4, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, tiers, images).astype(np.float64)
    return targets + rng.standard_normal(images), targets


@pytest.mark.parametrize("tiers", [2, 4, 1000])
def test_temperature_has_the_least_loss(tiers):
    scores, targets = some_scores(tiers=tiers)
    scores -= targets * (1 - 4 / tiers)  # tiers 4 / tiers apart
    temperature = fit_temperature(scores, targets)
    least = pair_loss(scores, targets, temperature)
    for factor in (0.99, 0.999, 1.001, 1.01):
        assert pair_loss(scores, targets, temperature * factor) > least
    # It goes with the scale of the scores, and not with their place.
    assert fit_temperature(scores * 7 + 3, targets) == pytest.approx(7 * temperature, rel=1e-6)


def test_temperature_of_many_images_is_that_of_all(monkeypatch):
    scores, targets = some_scores(3000)
    few = fit_temperature(scores, targets)
    shuffled = np.random.default_rng(1).permutation(3000)
    assert fit_temperature(scores[shuffled], targets[shuffled]) == few
    monkeypatch.setattr(calibration_ranking, "_MOST_IMAGES", 3000)
    assert fit_temperature(scores, targets) == pytest.approx(few, rel=0.005)


def test_limits_of_the_temperature():
    targets = np.repeat([0.0, 1.0], 10)
    scale = 2.0  # of the differences of scores 2 apart
    assert fit_temperature(targets * 2, targets) == pytest.approx(scale / 30)
    assert fit_temperature(-targets * 2, targets) == pytest.approx(scale * 1000)
    assert fit_temperature(np.ones(20), targets) == 1
    with pytest.raises(DataError, match="^20 images with 1 distinct target"):
        fit_temperature(targets, np.ones(20))
    with pytest.raises(DataError, match="^score differences are NaN; expected numbers$"):
        fit_temperature_votes([np.nan], [[1, 0]])
    with pytest.raises(DataError, match="^1 comparisons without a vote; expected at least one"):
        fit_temperature_votes([1], [[0, 0]])


def test_temperature_of_votes():
    # Three of four votes for a difference of 2: sigmoid(2 / T) = 3 / 4.
    expected = 2 / np.log(3)
    assert fit_temperature_votes([2, -2], [[3, 1], [0, 0]]) == pytest.approx(expected, rel=1e-8)
    assert fit_temperature_votes([2, -2], [[1.5, 0.5], [0.5, 1.5]]) == pytest.approx(expected)
    rng = np.random.default_rng(0)
    differences = rng.standard_normal(200_000) * 3
    won = rng.random(200_000) < expit(differences / 1.7)
    votes = np.stack([won, ~won], 1).astype(np.float64)
    assert fit_temperature_votes(differences, votes) == pytest.approx(1.7, rel=0.02)


def test_reliability_in_numbers():
    found = reliability([0.9, 0.2, 0.5, 0.95, 0.55], [1, 0.25, 1, 0, 1], [1, 2, 3, 1, 0.5], bins=5)
    # Folded: 0.9 right, 0.8 right for 0.75, 0.5 half right, 0.95 wrong, 0.55 right.
    assert found.edges == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1])
    assert found.weight.tolist() == [3.5, 0, 0, 2, 2]
    nan = np.nan
    assert found.mean_probability == pytest.approx(
        [(1.5 + 0.275) / 3.5, nan, nan, 0.8, 0.925], nan_ok=True
    )
    assert found.observed == pytest.approx([2 / 3.5, nan, nan, 0.75, 0.5], nan_ok=True)
    assert found.ece == pytest.approx((0.225 + 2 * 0.05 + 2 * 0.425) / 7.5)
    # A certain pair lies in the last part; which image comes first does not matter.
    assert reliability([1, 0], [1, 0]).weight.tolist() == [0] * 9 + [2]
    with pytest.raises(DataError, match="^no pairs with a weight; expected at least one$"):
        reliability([], [])


def test_reliability_of_all_pairs_is_that_of_their_list(monkeypatch):
    scores, targets = some_scores(60)
    scores = scores.round(1)  # some are equal
    monkeypatch.setattr(scores_ranking, "_CHUNK", 100)
    pairs = [(i, j) for i in range(60) for j in range(60) if targets[i] > targets[j]]
    probabilities = np.array([expit((scores[i] - scores[j]) / 0.6) for i, j in pairs])
    expected = reliability(probabilities, np.ones(len(pairs)), bins=7)
    found = pair_reliability(scores, targets, 0.6, bins=7)
    for name in ("edges", "mean_probability", "observed", "weight", "ece"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9, nan_ok=True)


def test_simulated_judgements_are_reliable_at_their_temperature_only():
    rng = np.random.default_rng(0)
    probabilities = expit(rng.standard_normal(100_000) * 2)
    outcomes = rng.random(100_000) < probabilities
    assert reliability(probabilities, outcomes).ece < 0.01
    hotter = expit(3 * np.log(probabilities / (1 - probabilities)))
    assert reliability(hotter, outcomes).ece > 0.1
    # Two tiers of normal scores, one deviation apart: the log odds of a pair are its difference.
    scores, targets = some_scores(2000, tiers=2)
    temperature = fit_temperature(scores, targets)
    assert temperature == pytest.approx(1, abs=0.1)
    fitted = pair_reliability(scores, targets, temperature)
    assert fitted.ece < 0.02
    assert pair_reliability(scores, targets, temperature / 4).ece > 0.05
    assert fitted.weight.sum() == scores_ranking.pair_counts(scores, targets).total_pairs
