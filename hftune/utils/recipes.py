"""How a recipe runs and ends: exit statuses, messages, processes that follow each other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from .errors import HftuneError, NextStageProcess, TrainingInterrupted
from .terminal import console

__all__ = ["NEXT_STAGE", "run_recipe"]

NEXT_STAGE = "HFTUNE_NEXT_STAGE"
"""Set in the environment of a process that goes on with the next stage of a run."""


def run_recipe(main: Callable[[], Any]) -> None:
    """Runs a recipe's ``main`` as a script. The trainer that it returns, if it does, is ended: a
    recipe that is a part of another one must not leave the process group.

    An :class:`~hftune.utils.errors.HftuneError` is printed without a traceback and ends the process
    with status 2. Where a stage asks for a process of its own, this one replaces itself: memory of
    all kinds is given back, and whoever started it (a shell, a launcher) sees the same process.

    Args:
        main (callable): Without arguments; reads the command line. Returns its trainer or None.
    """
    try:
        trainer = main()
        if trainer is not None:
            trainer.end()
    except TrainingInterrupted:
        _meet()  # a launcher ends all processes once one has ended: first the record is written
        raise
    except HftuneError as error:
        console().print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except NextStageProcess as following:
        if following.port is not None:
            os.environ["MASTER_PORT"] = str(following.port)
            # The launcher's own store remembers the group that has ended.
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        os.environ[NEXT_STAGE] = "1"
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _meet() -> None:
    """Waits for the other processes of a distributed run, which all come here."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
