"""Stopping a run from outside so that it can go on later."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import torch
import torch.distributed

from ..tracking import exits
from ..utils.errors import RESUMABLE_EXIT_CODE, TrainingInterrupted

__all__ = ["RESUMABLE_EXIT_CODE", "StopRequest", "TrainingInterrupted"]


class StopRequest:
    """Remembers that SIGTERM or SIGINT came; a second one ends the process at once.

    Example:
        >>> stop = StopRequest()
        >>> with stop.listening():
        ...     while not stop.requested():
        ...         train_a_step()
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._listening = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the two signals over; outside the main thread, and inside itself, it does nothing."""
        if self._listening:
            yield
            return
        self.signal_name = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            exits.announce_stop(None)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.signal_name is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._stop_for(signal.Signals(number).name)
        # No logging here: the signal may have come in the middle of a write.
        os.write(2, f"\n{self.signal_name}: finishing this step, then saving\n".encode())

    def requested(self) -> bool:
        """Whether any process of the run was told to stop; the same answer in all of them."""
        mine = self.signal_name is not None
        if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
            return mine
        device = "cpu" if torch.distributed.get_backend() == "gloo" else torch.cuda.current_device()
        flag = torch.tensor([float(mine)], device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        if flag.item() and not mine:
            self._stop_for("a signal to another process")
        return bool(flag.item())

    def _stop_for(self, signal_name: str) -> None:
        self.signal_name = signal_name
        exits.announce_stop(signal_name)  # the callbacks ask there


def ignore_stop_signals() -> None:
    """For data workers: a signal to the whole process group is the main process's to handle."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
