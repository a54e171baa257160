"""Names of a model's parameters."""

from __future__ import annotations

import re

__all__ = ["parameter_name"]

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_checkpoint_wrapped_module|_fsdp_wrapped_module|_orig_mod)\."
)


def parameter_name(name: str) -> str:
    """Returns a parameter's name without what activation checkpointing, FSDP and torch.compile put
    into it, so that a pattern means the same with and without them.
    """
    return _WRAPPERS.sub("", name)
