"""The process that ``hftune background start`` leaves behind: it runs the command and waits for it.

    python -m hftune.cli.background_supervisor < ORDER.json

Its number is in the pid file, so ``kill $(cat OUTPUT_DIR/..._training.pid)`` reaches it. SIGTERM
and SIGINT stop the training in order: each training process gets one SIGTERM, and then all the time
it takes to save. A second one, at least a second later, or SIGQUIT kills all processes of the
start. If the supervisor itself is killed, the training goes on: hours of it are worth more than a
record of its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tracking.run_values import utc_now
from ..utils.errors import RESUMABLE_EXIT_CODE
from ..utils.files import atomic_write
from .background_state import Launch, identity_of

if TYPE_CHECKING:
    import psutil

__all__ = ["Supervisor", "main"]

_PACE = 0.5  # seconds between two looks at the processes, while they are to end
_SAME_STOP = 1.0  # seconds in which a second signal is the first one once more
_LAUNCHER = 60.0  # seconds that a launcher may go on once nothing trains


class Supervisor:
    """Runs one command to its end.

    Args:
        launch (Launch): The start, not yet written.
        command (list of str): What to run.
    """

    def __init__(self, launch: Launch, command: list[str]) -> None:
        self.launch = launch
        self._command = command
        self._stops = 0  # 1: stop in order; more: kill
        self._last_stop = 0.0
        self._asked: set[psutil.Process] = set()
        self._seen: set[int] = set()  # processes that trained
        self._codes: dict[int, int] = {}  # exit status by process
        self._idle_since: float | None = None
        self._wakes, wake = os.pipe()
        for end in (self._wakes, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake up
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the command inherits this
        _adopt_orphans()

    def _on_stop(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGQUIT:
            self._stops = 2
        elif not self._stops or now - self._last_stop >= _SAME_STOP:
            self._stops += 1
            self._last_stop = now

    def run(self) -> int:
        """Starts the command, waits for it, and writes down how it ended.

        Returns:
            The exit status of the training, as far as its launcher lets it be seen.
        """
        self.launch.save(supervisor=identity_of(os.getpid()))
        pid_file = self.launch.pid_file
        try:
            with atomic_write(pid_file) as stream:
                stream.write(f"{os.getpid()}\n")
            code = self._run_command()
        finally:
            pid_file.unlink(missing_ok=True)
        status = "killed" if self._stops > 1 else self.launch.ending(code)
        # Last: from here on the folder is another start's to take.
        self._note(status=status, returncode=code, ended=utc_now())
        if status == "preempted":
            return RESUMABLE_EXIT_CODE
        return code if code >= 0 else 128 - code

    def _run_command(self) -> int:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environment.setdefault("PYTHONIOENCODING", "utf-8")
        try:
            # A session of its own: what is sent to the supervisor's group is not for the training.
            child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )
        except OSError as error:
            _say(f"cannot run {self._command[0]}: {error.strerror}")
            return 127 if isinstance(error, FileNotFoundError) else 126
        self._note(process=identity_of(child.pid))
        while True:
            self._reap()
            ended = child.pid in self._codes
            training = self.launch.training() if ended or self._stops else []
            self._seen |= {process.pid for process in training}
            if ended and not training:
                break
            if self._stops:
                self._stop(training)
            self._sleep(_PACE if ended or self._stops else None)
        child.returncode = self._codes[child.pid]  # subprocess does not know: it was reaped here
        if self._stops > 1:
            self.launch.kill()
        # A launcher that died before its training says nothing about it.
        adopted = [self._codes[number] for number in self._seen if number in self._codes]
        return max(adopted, key=abs, default=child.returncode)

    def _stop(self, training: list[psutil.Process]) -> None:
        if self._stops > 1:
            self.launch.kill()
            return
        for process in self.launch.ask_to_stop(self._asked):
            _say(f"SIGTERM to process {process.pid}")
        if self.launch.values["stopping"] is None:
            self._note(stopping=utc_now())
        if training or not self._seen:  # or what trains is not to be told from its launcher
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > _LAUNCHER:
            _say(f"the launcher has not ended {_LAUNCHER:.0f} s after the training: killed")
            self.launch.kill()

    def _note(self, **changes: Any) -> None:
        """Writes to the record; a disk that is full must not keep a training from its stop."""
        try:
            self.launch.save(**changes)
        except OSError as error:
            _say(f"{', '.join(changes)} could not be written: {error}")

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                number, status = os.waitpid(-1, os.WNOHANG)
                if not number:
                    return
                self._codes[number] = os.waitstatus_to_exitcode(status)

    def _sleep(self, seconds: float | None) -> None:
        """Until a signal comes, but no longer than that."""
        select.select([self._wakes], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakes, 4096)


def _adopt_orphans() -> None:
    """Makes processes whose launcher has died children of this one, which sees how they end."""
    if sys.platform == "linux":  # elsewhere it sees only that they have ended
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the log's disk may be full
        print(f"hftune background: {text}", flush=True)


def main() -> int:
    """Reads its order (``folder``, ``command``, ``values``) from standard input and runs it."""
    order: dict[str, Any] = json.load(sys.stdin)
    launch = Launch(Path(order["folder"]), order["values"])
    _say(f"{launch.values['started']}: {shlex.join(launch.values['command'])}")
    return Supervisor(launch, order["command"]).run()


if __name__ == "__main__":
    sys.exit(main())
