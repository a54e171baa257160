"""Learning rates: by parameter name, and of a step of their schedule."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from ..utils.errors import ConfigurationError, did_you_mean
from ..utils.modules import parameter_name

__all__ = ["go_to_step", "set_learning_rates"]


def set_learning_rates(
    optimizer: torch.optim.Optimizer, model: nn.Module, patterns: Mapping[str, float]
) -> None:
    """Splits an optimizer's parameter groups so that some parameters have their own learning rate.

    Args:
        optimizer (torch.optim.Optimizer): A new optimizer, without state; it is changed in place.
        model (torch.nn.Module): The model whose parameters it has.
        patterns (mapping of str to float): Learning rate by regular expression, searched in the
            parameter's name; the first that is found wins.

    Raises:
        ConfigurationError: If a pattern is found in no trainable parameter.
    """
    names = {p: parameter_name(n) for n, p in model.named_parameters() if p.requires_grad}
    rate_of: dict[torch.Tensor, float] = {}
    used = set()
    for parameter, name in names.items():
        for pattern, rate in patterns.items():
            if re.search(pattern, name):
                used.add(pattern)
                rate_of.setdefault(parameter, rate)
    if unused := [pattern for pattern in patterns if pattern not in used]:
        modules = {part for name in names.values() for part in name.split(".")}
        raise ConfigurationError(
            [
                f"learning_rate_patterns: '{pattern}' is in the name of no trainable parameter."
                f"{did_you_mean(pattern, modules)}"
                for pattern in unused
            ]
        )
    groups = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[torch.Tensor]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rate_of.get(parameter, group["lr"]), []).append(parameter)
        groups += [{**group, "params": some, "lr": rate} for rate, some in by_rate.items()]
    # The Trainer logs the rate of the first group: that stays the general one.
    general = optimizer.defaults["lr"]
    optimizer.param_groups[:] = sorted(groups, key=lambda group: group["lr"] != general)


def go_to_step(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LambdaLR, step: int
) -> None:
    """Has a schedule stand where it would after so many steps.

    Args:
        optimizer (torch.optim.Optimizer): Its learning rates become those of the step.
        scheduler (torch.optim.lr_scheduler.LambdaLR): A schedule that is a function of the step.
        step (int): Steps that are done.
    """
    scheduler.last_epoch = step
    groups = optimizer.param_groups
    for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(step)
    scheduler._last_lr = [group["lr"] for group in groups]
