"""One run a folder, and a folder that can be written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..utils.errors import ConfigurationError

__all__ = ["locked_folder", "make_folder"]


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Makes an output folder.

    Raises:
        ConfigurationError: If that is not possible.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


@contextlib.contextmanager
def locked_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other runs out of an output folder, which is made; the lock ends with the process.

    Args:
        folder (path): The run's folder.

    Raises:
        ConfigurationError: If another run has it, or nothing can be written into it.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / ".hftune.lock", "a+", encoding="utf-8"))
            # A folder can refuse new files though an old one in it can be written.
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"hftune")
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            # Of this process alone: data workers that outlive it by a moment do not have it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            lock.seek(0)
            raise ConfigurationError(
                f"{folder} is in use by {lock.read().strip() or 'another process'}: two runs "
                "in one folder destroy each other's checkpoints; wait for it or take another "
                "output_dir"
            ) from None
        # Who has it is said on a full disk too, as long as the old text leaves room for the new.
        with contextlib.suppress(OSError):
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
        yield


def _unwritable(folder: str | os.PathLike[str], error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{folder} cannot be written ({error.strerror}): checkpoints could not be saved there; "
        "make it writable, make room, or take another output_dir"
    )
