"""Arrays on disk that read only the times asked for, and travel to workers by their path.

They read instead of mapping: pages of a mapped file count as memory of the process that touched
them, with many more around, so that a loader would seem to grow as large as its file.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from typing import Any, BinaryIO

import numpy as np

__all__ = ["InPlaceValues", "StoredValues", "StoredVariable"]


class _Records:
    """Float32 records of one size that follow each other in a file.

    Args:
        path (str): The file.
        offset (int): Byte at which the first record begins.
        size (int): Number of values in a record.
    """

    def __init__(self, path: str, offset: int, size: int) -> None:
        self.path, self.offset, self.size = path, offset, size
        self._open_in(os.getpid())

    def _open_in(self, process: int) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._stream: BinaryIO = open(self.path, "rb", buffering=0)

    def read(self, rows: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Reads the values ``start:stop`` of records: float32 ``[n, stop - start]``."""
        values = np.empty((len(rows), stop - start), dtype="<f4")
        if not values.size:
            return values
        if self._process != os.getpid():
            # A forked worker shares the position in the file with its parent: it needs its own.
            self._open_in(os.getpid())
        buffer = memoryview(values).cast("B")
        if stop - start == self.size:  # neighbouring records are one read
            first = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1)
        else:
            first = np.arange(len(rows))
        places = (4 * (rows[first] * self.size + start) + self.offset).tolist()
        begins = (first * (4 * values.shape[1])).tolist()
        with self._lock:
            for place, begin, end in zip(places, begins, [*begins[1:], len(buffer)], strict=True):
                self._stream.seek(place)
                while begin < end:
                    count = self._stream.readinto(buffer[begin:end])
                    if not count:
                        raise OSError(f"{self.path} ends before byte {place + end - begin}")
                    begin += count
        return values


class _Values:
    """What both kinds of stored fields share: shape and indexing on the first axis."""

    dtype = np.dtype(np.float32)
    shape: tuple[int, int, int, int]
    _rows: np.ndarray

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = self._rows[rows]
        values = self._read(np.atleast_1d(chosen))
        return values if np.ndim(chosen) else values[0]

    def _read(self, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class StoredValues(_Values):
    """Fields ``[N, C, H, W]`` in one raw little-endian float32 file.

    Indexing with an integer, slice or integer array on the first axis reads those times.

    Args:
        path (path): The file.
        stored (tuple of int): Shape of the whole file.
        rows (tuple of int, *optional*): First and last (exclusive) time to show. Defaults to all.
        channels (tuple of int, *optional*): Channels to show. Defaults to all.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        stored: tuple[int, int, int, int],
        rows: tuple[int, int] | None = None,
        channels: tuple[int, ...] | None = None,
    ) -> None:
        self.path = os.path.abspath(path)
        self.stored = tuple(stored)
        self._part = rows, channels
        self._records = _Records(self.path, 0, int(np.prod(stored[1:])))
        self._rows = np.arange(*(rows or (0, stored[0])))
        self._channels = None if channels is None else list(channels)
        count = stored[1] if channels is None else len(channels)
        self.shape = (len(self._rows), count, *stored[2:])

    def _read(self, rows: np.ndarray) -> np.ndarray:
        values = self._records.read(rows, 0, self._records.size).reshape(-1, *self.stored[1:])
        return values if self._channels is None else values[:, self._channels]

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredValues, (self.path, self.stored, *self._part)


@dataclasses.dataclass(frozen=True)
class StoredVariable:
    """Where one variable lies in an uncompressed HDF5 file.

    Attributes:
        path (str): The file.
        offset (int): Byte at which its array begins.
        shape (tuple of int): Shape of that array, ``[N', L, H, W]``; ``L`` is 1 without levels.
        levels (tuple of int): Indices of the levels to show.
        flipped (bool): Whether its latitudes go from south to north.
    """

    path: str
    offset: int
    shape: tuple[int, int, int, int]
    levels: tuple[int, ...]
    flipped: bool


class InPlaceValues(_Values):
    """Fields ``[N, C, H, W]`` gathered from arrays in uncompressed HDF5 files.

    Args:
        variables (tuple of StoredVariable): What to gather, in the order of channels.
        rows (tuple of int): First and last (exclusive) time to show.
    """

    def __init__(self, variables: tuple[StoredVariable, ...], rows: tuple[int, int]) -> None:
        self._arguments = (variables, rows)
        self._variables = [
            (variable, _Records(variable.path, variable.offset, int(np.prod(variable.shape[1:]))))
            for variable in variables
        ]
        self._rows = np.arange(*rows)
        channels = sum(len(variable.levels) for variable in variables)
        self.shape = (len(self._rows), channels, *variables[0].shape[2:])

    def _read(self, rows: np.ndarray) -> np.ndarray:
        height, width = self.shape[2:]
        values = np.empty((len(rows), *self.shape[1:]), np.float32)
        channel = 0
        for variable, records in self._variables:
            first, last = min(variable.levels), max(variable.levels) + 1
            block = records.read(rows, first * height * width, last * height * width)
            block = block.reshape(len(rows), last - first, height, width)
            if variable.levels != tuple(range(first, last)):
                block = block[:, [level - first for level in variable.levels]]
            block = block[:, :, ::-1] if variable.flipped else block
            values[:, channel : channel + len(variable.levels)] = block
            channel += len(variable.levels)
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        return InPlaceValues, self._arguments
