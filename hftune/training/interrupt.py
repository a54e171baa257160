"""Stopping a run from outside so that it can go on later."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator

import torch
import torch.distributed

from ..tracking import exits
from ..utils.errors import RESUMABLE_EXIT_CODE, TrainingInterrupted

__all__ = ["RESUMABLE_EXIT_CODE", "StopRequest", "TrainingInterrupted"]

_SAME_REQUEST = 5.0
"""Seconds in which a signal that comes again is the same request, below a launcher."""


class StopRequest:
    """Remembers that SIGTERM or SIGINT came; a second one ends the process at once.

    Processes of a launcher get one request several times: from whoever sent it to all processes of
    the job, and once more from the launcher that passes it on. There a signal that comes again
    within 5 seconds counts as the same.

    In a SLURM job SIGUSR1 is a request too: ``sbatch --signal=USR1@90`` announces with it that the
    time is up in 90 seconds. It only warns: the SIGTERM that follows is the first one.

    Attributes:
        heard (str or None): The signal that this process was sent.
        signal_name (str or None): The signal that the run stops for. It is the same moment in all
            processes: set by :meth:`requested`.

    Example:
        >>> stop = StopRequest()
        >>> with stop.listening():
        ...     while not stop.requested():
        ...         train_a_step()
    """

    def __init__(self) -> None:
        self.heard: str | None = None
        self.signal_name: str | None = None
        self._listening = False
        self._first = math.inf  # when this process was told so itself, by a monotonic clock

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over; outside the main thread, and inside itself, it does nothing."""
        if self._listening:
            yield
            return
        self.heard = self.signal_name = None
        self._first = math.inf
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._on_signal) for number in _stop_signals()}
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            exits.announce_stop(None)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if number != signal.SIGUSR1:
            now = time.monotonic()
            if now > self._first + (_SAME_REQUEST if _is_launched() else 0.0):
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self._first = min(self._first, now)
        if self.heard is not None:
            return
        self.heard = signal.Signals(number).name
        exits.announce_stop(self.heard)  # the callbacks ask there
        # No logging here: the signal may have come in the middle of a write.
        os.write(2, f"\n{self.heard}: finishing this step, then saving\n".encode())

    def requested(self) -> bool:
        """Whether any process of the run was told to stop; the same answer in all of them."""
        told = self.heard is not None
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            gloo = torch.distributed.get_backend() == "gloo"
            flag = torch.tensor(
                [float(told)], device="cpu" if gloo else torch.cuda.current_device()
            )
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            told = bool(flag.item())
        if told and self.signal_name is None:
            self.signal_name = self.heard or "a signal to another process"
            exits.announce_stop(self.signal_name)
        return told


def ignore_stop_signals() -> None:
    """For data workers: a signal to the whole process group is the main process's to handle."""
    for number in _stop_signals():
        signal.signal(number, signal.SIG_IGN)


def _stop_signals() -> list[signal.Signals]:
    warning = [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []
    return [signal.SIGTERM, signal.SIGINT, *warning]


def _is_launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1
