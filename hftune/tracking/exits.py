"""Ends that nobody announces: errors, signals and exits write the last state of open runs.

In this order: the hook for uncaught errors, the handler of SIGTERM and SIGHUP, the end of the
interpreter. A run is never taken for completed because its process ended.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run_record import RunRecord

__all__ = [
    "announce_stop", "open_records", "received_signal", "stopping_signal", "unwatch", "watch",
]  # fmt: skip

_open: dict[int, RunRecord] = {}
_signal: str | None = None
_stop: str | None = None
_owner: int | None = None  # the process whose ends are watched; a forked one is not


def watch(record: RunRecord) -> None:
    """Has the record ended when this process ends before it."""
    global _owner, _signal
    if _owner != os.getpid():
        _open.clear()
        _owner, _signal = os.getpid(), None
        _install()
    _take_signals()
    _open[id(record)] = record


def unwatch(record: RunRecord) -> None:
    """The record has ended."""
    _open.pop(id(record), None)


def open_records() -> list[RunRecord]:
    """The records of this process that have not ended."""
    return list(_open.values()) if _owner == os.getpid() else []


def received_signal() -> str | None:
    """Name of the signal that is ending this process, if one is."""
    return _signal


def announce_stop(signal_name: str | None) -> None:
    """Training answers a signal by ending in order; None: it is over, or was never asked to."""
    global _stop
    _stop = signal_name


def stopping_signal() -> str | None:
    """Name of the signal for which training is ending in order, if it is: not at its own end."""
    return _stop


def _install() -> None:
    previous = sys.excepthook

    def on_error(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        for record in open_records():
            record.finish_with(error)
        previous(kind, error, trace)

    sys.excepthook = on_error
    atexit.register(_on_exit)


def _take_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            # What the program or its launcher decided about a signal stays.
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _signal
    signal.signal(number, signal.SIG_DFL)
    if _owner != os.getpid() or not _open:
        os.kill(os.getpid(), number)
        return
    _signal = signal.Signals(number).name
    # Not here: it may have come in the middle of a write of the very record.
    raise SystemExit(128 + number)


def _on_exit() -> None:
    for record in open_records():
        if _signal is not None:
            record.finish("killed", f"ended by {_signal}")
            continue
        error: Any = getattr(sys, "last_value", None)  # an interactive session's last error
        if error is not None:
            record.finish_with(error)
        else:
            record.finish("failed", "the process ended before the run did (no end_experiment)")
