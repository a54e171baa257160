"""Whether the process of a run is alive: a lock that ends with it, and a heartbeat.

The lock is POSIX's (``lockf``): of the process alone, so that data workers which outlive it do not
keep it, as they would one of ``flock``. It answers on the machine of the run, at once; elsewhere
the heartbeat does, with the patience that the slowest beat so far asks for.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import ConfigurationError
from .environment import boot_id

__all__ = ["BEAT_SECONDS", "Heartbeat", "is_alive"]

BEAT_SECONDS = 10.0
"""Time between two beats."""

_SILENCE = 60.0  # seconds without a beat after which a run elsewhere is taken for dead
_LOCK, _BEAT = "run.lock", "heartbeat"

# POSIX drops a process's lock when it closes any descriptor of the file: it is opened once.
_held: dict[tuple[int, str], int] = {}


class Heartbeat:
    """Holds the lock of a run's folder and beats.

    Args:
        folder (path): The run's folder, which exists.

    Attributes:
        last (float): Time of the last beat.
        longest (float): The longest time between two beats, in seconds.

    Raises:
        ConfigurationError: If another process has the folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._path = Path(folder).resolve() / _LOCK
        self._beat = self._path.with_name(_BEAT)
        self._key = (os.getpid(), str(self._path))
        self.last, self.longest = 0.0, 0.0
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        for _ in range(20):
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                # Somebody who only looks has it for a moment.
                time.sleep(0.05)
        else:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise ConfigurationError(
                f"{self._path.parent} is in use by {holder or 'another process'}: two runs in one "
                "folder destroy each other's results; wait for it or take another output_dir"
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode())
        _held[self._key] = descriptor
        self.beat()

    def beat(self) -> None:
        """Says that the process lives."""
        now = time.time()
        if self.last:
            self.longest = max(self.longest, now - self.last)
        self.last = now
        try:
            self._beat.touch()
        except OSError:
            pass  # the lock still speaks

    def release(self) -> None:
        """Lets the folder go; the beat stays as the time of the last."""
        if self._key[0] == os.getpid() and self._key in _held:
            os.close(_held.pop(self._key))


def is_alive(
    folder: str | os.PathLike[str],
    process: Mapping[str, Any],
    heartbeat: float | None = None,
    longest: float | None = None,
) -> bool:
    """Whether the process that wrote a run goes on.

    Args:
        folder (path): The run's folder; may be gone, or on another machine.
        process (mapping): What :func:`~hftune.tracking.environment.process_identity` said of it.
        heartbeat (float, *optional*): Its last beat as the store knows it.
        longest (float, *optional*): Its longest silence so far, in seconds.
    """
    if process.get("boot_id") == boot_id():
        answer = _is_locked(Path(folder))
        return _exists(process) if answer is None else answer
    try:
        heartbeat = max(heartbeat or 0.0, (Path(folder) / _BEAT).stat().st_mtime)
    except OSError:
        pass
    return heartbeat is not None and time.time() - heartbeat < max(_SILENCE, 3 * (longest or 0))


def _is_locked(folder: Path) -> bool | None:
    """Whether a process holds the lock; None where that cannot be told."""
    path = folder.resolve() / _LOCK
    if (os.getpid(), str(path)) in _held:
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)


def _exists(process: Mapping[str, Any]) -> bool:
    import psutil

    try:
        return abs(psutil.Process(process["pid"]).create_time() - process["started"]) < 1
    except psutil.Error:
        return False
