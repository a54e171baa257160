"""Small things about models: names of parameters, the mode of evaluation."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["evaluating", "parameter_name"]

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
