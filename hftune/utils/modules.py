"""Small things about models: names of parameters, weights that fit or not, progress bars."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "best_device",
    "evaluating",
    "module_of",
    "parameter_name",
    "raise_on_mismatch",
    "without_bars",
]

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_checkpoint_wrapped_module|_fsdp_wrapped_module|_orig_mod)\."
)


def parameter_name(name: str) -> str:
    """Returns a parameter's name without what activation checkpointing, FSDP and torch.compile put
    into it, so that a pattern means the same with and without them.
    """
    return _WRAPPERS.sub("", name)


def best_device() -> str:
    """Returns ``"cuda"``, ``"mps"`` or ``"cpu"``: the fastest that this machine has."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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


def raise_on_mismatch(
    source: str,
    *,
    missing: Collection[str],
    unexpected: Collection[str],
    reshaped: Collection[str],
    advice: str,
) -> None:
    """Raises an error that lists weights which do not fit, if there are any.

    Args:
        source (str): Where the weights are from.
        missing, unexpected, reshaped (collections of str): Names of weights that it lacks, that the
            model lacks, and of another shape.
        advice (str): What to do, the last line of the message.

    Raises:
        CheckpointError: If one of the three is not empty.
    """
    lines = [
        f"  {len(names)} {what}: {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in (
            ("missing from it", missing),
            ("that the model does not have", unexpected),
            ("of another shape", reshaped),
        )
        if names
    ]
    if lines:
        listed = "\n".join(lines)
        raise CheckpointError(
            f"the weights in {source} are of another architecture than the configuration:\n"
            f"{listed}\n{advice}"
        )
