"""Files of one JSON object a line that are only ever appended to."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["JsonLines", "from_number", "read_lines", "to_number"]

_KEPT = 100_000  # lines that wait in memory for a disk that is full
_BLOCK = 1 << 22


class JsonLines:
    """Appends lines, each with one write: a process that is killed leaves whole lines.

    Lines that cannot be written (a full disk) are kept in memory and written with the next one.

    Args:
        path (path): The file; made with the first line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None
        self._waiting: list[bytes] = []
        self._torn = False
        self._guard = threading.Lock()

    def append(self, value: dict[str, Any]) -> None:
        """Writes one line.

        Raises:
            OSError: If it could not be written now; it is kept for later.
        """
        line = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        data = line.encode("utf-8", "replace") + b"\n"
        with self._guard:
            try:
                if self._descriptor is None:
                    self._open()
                if self._waiting:
                    self._catch_up()
                self._write(data)
            except OSError:
                if len(self._waiting) < _KEPT:
                    self._waiting.append(data)
                raise

    def sync(self) -> None:
        """Puts what was written onto the disk itself."""
        with self._guard:
            if self._descriptor is not None:
                os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file; a later line opens it again."""
        with self._guard:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        size = os.fstat(self._descriptor).st_size
        # What a crash of the machine left without an end must not take the next line with it.
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def _catch_up(self) -> None:
        while self._waiting:
            self._write(self._waiting[0])
            del self._waiting[0]

    def _write(self, data: bytes) -> None:
        if self._torn:
            data = b"\n" + data
        written = os.write(self._descriptor, data)
        self._torn = written != len(data) and written > 0
        if written != len(data):
            raise OSError(28, f"only {written} of {len(data)} bytes could be written")


def read_lines(
    path: str | os.PathLike[str], start: int = 0
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Reads whole lines; what is no JSON object is left out.

    Args:
        path (path): The file; one that is missing has no lines.
        start (int): The byte to begin at, the first of a line. Defaults to 0.

    Yields:
        Where the line begins, where the next does, and the object.
    """
    try:
        stream = open(path, "rb", buffering=_BLOCK)
    except FileNotFoundError:
        return
    with stream:
        stream.seek(start)
        position = start
        for line in stream:
            if not line.endswith(b"\n"):
                return
            following = position + len(line)
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                yield position, following, value
            position = following


def from_number(value: float) -> float | str:
    """What stands for a number in JSON, which knows neither NaN nor infinities."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def to_number(value: Any) -> float:
    """Reads what :func:`from_number` wrote."""
    return float(value)
