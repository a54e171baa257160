"""Small things about models: names of parameters, the mode of evaluation, progress bars."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["evaluating", "module_of", "parameter_name", "without_bars"]

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_checkpoint_wrapped_module|_fsdp_wrapped_module|_orig_mod)\."
)


def parameter_name(name: str) -> str:
    """Returns a parameter's name without what activation checkpointing, FSDP and torch.compile put
    into it, so that a pattern means the same with and without them.
    """
    return _WRAPPERS.sub("", name)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Has a model in evaluation mode; afterwards it is in the mode that it was in.

    Args:
        model (torch.nn.Module): The model.
    """
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def module_of(trainer_or_model: Any) -> nn.Module:
    """Returns a model, or a trainer's as it is wrapped for training."""
    from torch import nn

    if isinstance(trainer_or_model, nn.Module):
        return trainer_or_model
    return trainer_or_model.model_wrapped


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Leaves out the progress bars that transformers has for each file of weights."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
