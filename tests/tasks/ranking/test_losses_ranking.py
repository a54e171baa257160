"""Losses of pairs against torch's own and against explicit loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from hftune.tasks.ranking.configuration_ranking import LOSS_FUNCTIONS
from hftune.tasks.ranking.losses_ranking import (
    all_pairs_loss,
    pair_losses,
    pair_measures,
    weighted_mean,
)

torch.set_num_threads(1)
TARGETS = torch.tensor([3.0, 0.0, 1.0, 1.0, 0.0, 2.0])


def scores_of(count: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, generator=generator, dtype=torch.float64)
    return scores.requires_grad_(True)


def loop(scores, targets, weights, loss_function, margin):
    """All pairs one by one, with python's own mathematics."""
    total = weight_sum = 0.0
    for i in range(len(scores)):
        for j in range(len(scores)):
            gap = targets[i].item() - targets[j].item()
            if gap <= 0:
                continue
            difference = scores[i].item() - scores[j].item()
            loss = {
                "bradley_terry": math.log1p(math.exp(-difference)),
                "margin": max(0.0, margin - difference),
                "tier_margin": max(0.0, margin * gap - difference),
            }[loss_function]
            total += weights[i, j].item() * loss
            weight_sum += weights[i, j].item()
    return total / weight_sum


def test_bradley_terry_is_the_cross_entropy_of_the_difference():
    differences = scores_of(50) * 5
    labels = torch.linspace(-1, 1, 50, dtype=torch.float64)
    wanted = functional.binary_cross_entropy_with_logits(
        differences, (1 + labels) / 2, reduction="none"
    )
    torch.testing.assert_close(pair_losses(differences, labels), wanted)


def test_small_losses_and_their_gradients_do_not_vanish_by_rounding():
    differences = torch.tensor([30.0, -30.0], requires_grad=True)
    losses = pair_losses(differences, torch.tensor([1.0, -1.0]))
    losses.sum().backward()
    tiny = math.exp(-30)
    assert losses.tolist() == pytest.approx([tiny, tiny], rel=1e-5)
    assert differences.grad.tolist() == pytest.approx([-tiny, tiny], rel=1e-5)


@pytest.mark.parametrize("margin", [0.3, 1.0])
def test_the_margin_loss_is_that_of_torch(margin):
    first, second = scores_of(seed=1), scores_of(seed=2)
    labels = torch.tensor([1.0, -1, 1, 1, -1, -1], dtype=torch.float64)
    wanted = functional.margin_ranking_loss(first, second, labels, margin, reduction="none")
    losses = pair_losses(first - second, labels, loss_function="margin", margin=margin)
    torch.testing.assert_close(losses, wanted)
    gaps = torch.tensor([1.0, 2, 3, 1, 2, 3], dtype=torch.float64)
    losses = pair_losses(first - second, labels, gaps, loss_function="tier_margin", margin=margin)
    for loss, gap, one, other, label in zip(losses, gaps, first, second, labels, strict=True):
        wanted = functional.margin_ranking_loss(one, other, label, margin * gap.item())
        torch.testing.assert_close(loss, wanted)


def test_a_tie_wants_equal_scores_or_nothing():
    differences = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
    losses = pair_losses(differences, torch.zeros(3))
    losses.sum().backward()
    assert losses[1].item() == pytest.approx(math.log(2))
    assert losses[0].item() == pytest.approx(losses[2].item()) and losses[0] > losses[1]
    assert differences.grad.tolist() == pytest.approx([-0.380797, 0, 0.380797])
    for loss_function in ("margin", "tier_margin"):
        assert not pair_losses(differences, torch.zeros(3), loss_function=loss_function).any()


def test_votes_of_three_to_one_are_four_pairs():
    """The label 0.5 is the mean of three pairs one way and one the other."""
    differences = torch.tensor([0.4, -1.3])
    for loss_function in LOSS_FUNCTIONS[:1]:
        better = pair_losses(differences, torch.ones(2), loss_function=loss_function)
        worse = pair_losses(differences, -torch.ones(2), loss_function=loss_function)
        divided = pair_losses(differences, torch.full((2,), 0.5), loss_function=loss_function)
        torch.testing.assert_close(divided, (3 * better + worse) / 4)
    # What is left of a divided vote counts for a margin: half of the four votes.
    whole = pair_losses(differences, torch.ones(2), loss_function="margin")
    divided = pair_losses(differences, torch.full((2,), 0.5), loss_function="margin")
    torch.testing.assert_close(divided, whole / 2)


@pytest.mark.parametrize("margin", [0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss_function", LOSS_FUNCTIONS)
def test_all_pairs_are_those_of_two_loops(loss_function, weighted, margin):
    scores = scores_of()
    weights = torch.rand(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = weights if weighted else torch.ones_like(weights)
    loss, _ = all_pairs_loss(
        scores,
        TARGETS.double(),
        weights if weighted else None,
        loss_function=loss_function,
        margin=margin,
    )
    assert loss.item() == pytest.approx(loop(scores, TARGETS, weights, loss_function, margin))


@pytest.mark.parametrize("loss_function", LOSS_FUNCTIONS)
def test_gradients_are_those_of_finite_differences(loss_function):
    def loss(scores):
        return all_pairs_loss(scores, TARGETS.double(), loss_function=loss_function)[0]

    assert torch.autograd.gradcheck(loss, scores_of())


@pytest.mark.parametrize("loss_function", LOSS_FUNCTIONS)
@pytest.mark.parametrize("count", [1, 4])
def test_a_batch_without_a_pair_has_no_loss_and_no_gradient(loss_function, count):
    scores = scores_of(count)
    loss, measures = all_pairs_loss(scores, torch.ones(count).double(), loss_function=loss_function)
    loss.backward()
    assert loss.item() == 0 and scores.grad.tolist() == [0.0] * count
    assert measures["accuracy"].isnan() and measures["margin"].isnan()
    # So it is where pairs are there but weigh nothing.
    scores = scores_of()
    loss, _ = all_pairs_loss(
        scores, TARGETS.double(), torch.zeros(6, 6).double(), loss_function=loss_function
    )
    loss.backward()
    assert loss.item() == 0 and not scores.grad.any()


def test_a_pair_of_weight_0_is_as_if_it_were_not_there():
    scores = scores_of()
    weights = torch.ones(6, 6, dtype=torch.float64)
    weights[5] = weights[:, 5] = 0
    loss, measures = all_pairs_loss(scores, TARGETS.double(), weights)
    without, wanted = all_pairs_loss(scores[:5], TARGETS[:5].double())
    assert loss.item() == pytest.approx(without.item())
    assert measures["accuracy"] == wanted["accuracy"]


def test_measures():
    scores = torch.tensor([2.0, 1.0, 1.0, 5.0])
    _, measures = all_pairs_loss(scores, torch.tensor([2.0, 1.0, 0.0, 1.0]))
    # By targets 2 > 1, 1 > 0: right twice, wrong once, equal once, right once.
    assert measures["accuracy"].item() == pytest.approx((1 + 1 + 0 + 0.5 + 1) / 5)
    assert measures["margin"].item() == pytest.approx((1 + 1 - 3 + 0 + 4) / 5)
    assert measures["score_mean"].item() == pytest.approx(2.25)
    assert measures["score_std"].item() == pytest.approx(scores.std(correction=0).item())
    assert not any(value.requires_grad for value in measures.values())


def test_measures_by_weight():
    measures = pair_measures(
        torch.tensor([1.0, -2.0]), torch.tensor([3.0, 1.0]), torch.tensor([0.0, 1.0])
    )
    assert measures["accuracy"] == 0.75
    assert measures["margin"] == (3 * 1 - 2) / 4


def test_the_weighted_mean_of_small_weights():
    values, weights = torch.tensor([1.0, 4.0]), torch.tensor([2e-30, 1e-30])
    assert weighted_mean(values, weights).item() == pytest.approx(2.0)
