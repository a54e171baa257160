"""Work in processes of their own, forked so that torch and transformers are loaded once."""

from __future__ import annotations

import contextlib
import gc
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState


def start(work: Callable[[], None]) -> int:
    """Runs ``work`` in a process of its own and returns its id."""
    child = os.fork()
    if child == 0:
        gc.freeze()  # what a fork looks at is copied
        status = 1
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def finish(child: int) -> int:
    """Waits for a process; returns its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_alone(work: Callable[[], None]) -> int:
    """Runs ``work`` in a process of its own to its end; returns its exit status."""
    return finish(start(work))


def run_together(work: Callable[[int], None], count: int = 2) -> list[int]:
    """Runs ``work(rank)`` in processes as a launcher would start them; returns their statuses."""
    environments = _as_launched(count)

    def join(rank: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ |= environments[rank]
        work(rank)

    return [finish(child) for child in [start(lambda r=r: join(r)) for r in range(count)]]


def _as_launched(count: int) -> list[dict[str, str]]:
    """The environment variables that a launcher gives each of its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**here, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


class Script:
    """``python SCRIPT ARGUMENTS``, but forked: the seconds of its imports are saved.

    What it prints is kept in a file. A process that the script replaces itself by is a new one.

    Args:
        path (Path): The script.
        *arguments (str or Path): Its arguments.
        processes (int): How many there are, as a launcher would start them.
        **environment (str): Environment variables of its own.
    """

    def __init__(self, path: Path, *arguments: str | Path, processes: int = 1, **environment: str):
        words = [str(path), *map(str, arguments)]
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115
        self._statuses: dict[int, int] = {}
        environments = _as_launched(processes) if processes > 1 else [{}]
        self.pids = [start(lambda e=e: self._run(words, e | environment)) for e in environments]

    def _run(self, words: list[str], environment: dict[str, str]) -> None:
        for stream in (1, 2):
            os.dup2(self._printed.fileno(), stream)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        os.environ |= environment
        sys.argv, sys.orig_argv = words, [sys.executable, *words]
        sys.path.insert(0, str(Path(words[0]).parent))
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            runpy.run_path(words[0], run_name="__main__")
        finally:
            sys.stdout.flush()

    def poll(self) -> int | None:
        """The first exit status other than 0 once all have ended, else 0; None before."""
        for pid in self.pids:
            if pid not in self._statuses:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self._statuses[pid] = os.waitstatus_to_exitcode(status)
        if len(self._statuses) < len(self.pids):
            return None
        return next(filter(None, self._statuses.values()), 0)

    def wait(self, timeout: float = 300) -> int:
        """Waits for all processes; returns the exit status."""
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                raise TimeoutError(self.printed())
            time.sleep(0.005)
        return status

    def send_signal(self, number: int) -> None:
        """Sends a signal to each process that has not ended."""
        self.poll()
        for pid in self.pids:
            if pid not in self._statuses:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def printed(self) -> str:
        """Everything that was printed so far."""
        file = self._printed.fileno()  # its place is where the processes write
        return os.pread(file, os.fstat(file).st_size, 0).decode("utf-8")
