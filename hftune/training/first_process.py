"""Processes of a group, and work that the first of them does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..utils.errors import HftuneError

__all__ = ["in_first_process", "process_group"]


def process_group() -> tuple[int, int]:
    """Returns this process's rank, and how many processes there are."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def in_first_process(work: Callable[[], Any]) -> Any:
    """Does ``work`` in the first process; all of them have its result, or raise its error.

    Args:
        work (callable): Without arguments. Its result can be sent to other processes.

    Raises:
        HftuneError, OSError: The error of ``work``, in all processes: one that ended alone would
            leave the others waiting.
    """
    rank, world = process_group()
    if world == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = work()
        except (HftuneError, OSError) as error:
            outcome[1] = error
    torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
