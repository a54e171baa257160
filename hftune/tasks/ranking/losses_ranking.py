"""Losses of pairs of scores: Bradley-Terry, margin, and a margin that grows with the tiers between.

Notation: ``d = score_1 - score_2`` of a pair, ``y`` its label in [-1, 1] (1: the first image is the
better one, -1: the second, 0: a tie, between them where votes are divided).
"""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["all_pairs_loss", "pair_losses", "pair_measures", "weighted_mean"]


def pair_losses(
    differences: torch.Tensor,
    labels: torch.Tensor,
    gaps: torch.Tensor | float = 1.0,
    *,
    loss_function: str = "bradley_terry",
    margin: float = 1.0,
) -> torch.Tensor:
    """Returns the loss of each pair.

    - ``bradley_terry``: the cross-entropy of ``sigmoid(d)`` with ``(1 + y) / 2`` (Bradley and
      Terry, 1952; what reward models are trained with), in nats. A tie wants equal scores.
    - ``margin``: ``|y| max(0, margin - sign(y) d)``; a tie has no loss.
    - ``tier_margin``: the same with ``margin`` times the gap, the number of tiers between.

    Args:
        differences (float tensor ``[...]``): ``d``.
        labels (float tensor ``[...]``): ``y``.
        gaps (float tensor ``[...]`` or float): Tiers between the two images, or the difference of
            their targets, for ``tier_margin``. Defaults to 1.
        loss_function (str): One of the three. Defaults to ``"bradley_terry"``.
        margin (float): In scores. Defaults to 1.

    Returns:
        Float tensor ``[...]``.
    """
    if loss_function == "bradley_terry":
        # Two terms that are never negative: nothing cancels, and small losses are exact.
        first, second = functional.logsigmoid(differences), functional.logsigmoid(-differences)
        return -(1 + labels) / 2 * first - (1 - labels) / 2 * second
    if loss_function == "tier_margin":
        margin = margin * gaps
    return labels.abs() * functional.relu(margin - labels.sign() * differences)


def all_pairs_loss(
    scores: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    loss_function: str = "bradley_terry",
    margin: float = 1.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the mean loss over all pairs of a batch whose targets differ, each taken once.

    Args:
        scores (float tensor ``[B]``): Of the images.
        targets (float tensor ``[B]``): Their tiers or people's scores, larger is better.
        weights (float tensor ``[B, B]``, *optional*): Weight of the pair of a better image (row)
            and a worse one (column); 0 leaves it out. Defaults to 1 for all.
        loss_function, margin: As for :func:`pair_losses`.

    Returns:
        The loss, 0 where there is no pair, and the measures of :func:`pair_measures`.
    """
    gaps = targets[:, None] - targets[None, :]
    chosen = (gaps > 0).to(scores.dtype)
    if weights is not None:
        chosen = chosen * weights
    differences = scores[:, None] - scores[None, :]
    losses = pair_losses(
        differences,
        torch.ones_like(differences),
        gaps,
        loss_function=loss_function,
        margin=margin,
    )
    return weighted_mean(losses, chosen), pair_measures(differences, chosen, scores)


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the mean of ``values`` by ``weights``; 0, with gradients of 0, where they are all 0.

    Args:
        values, weights (float tensors of one shape): Weights are 0 or more.
    """
    return (values * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


@torch.no_grad()
def pair_measures(
    differences: torch.Tensor, weights: torch.Tensor, scores: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Returns what people follow while a ranking trains, by the names that reward trainers use.

    Args:
        differences (float tensor ``[...]``): Score of the better image minus that of the worse.
        weights (float tensor ``[...]``): Of the pairs.
        scores (float tensor ``[B]``): Of the images.

    Returns:
        ``accuracy``, the share of pairs in the right order (equal scores count one half), and
        ``margin``, the mean difference, both NaN without a pair; ``score_mean`` and ``score_std``.
    """
    right = (differences > 0).to(weights.dtype) + 0.5 * (differences == 0).to(weights.dtype)
    total = weights.sum()
    return {
        "accuracy": (right * weights).sum() / total,
        "margin": (differences * weights).sum() / total,
        "score_mean": scores.mean(),
        "score_std": scores.std(correction=0),
    }
