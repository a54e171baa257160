"""Work that one process of a group does for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..utils.errors import HftuneError

__all__ = ["in_first_process"]


def in_first_process(work: Callable[[], Any]) -> Any:
    """Does ``work`` in the first process; all of them have its result, or raise its error.

    Args:
        work (callable): Without arguments. Its result can be sent to other processes.

    Raises:
        HftuneError, OSError: The error of ``work``, in all processes: one that ended alone would
            leave the others waiting.
    """
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not grouped:
        return work()
    outcome: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome[0] = work()
        except (HftuneError, OSError) as error:
            outcome[1] = error
    torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
