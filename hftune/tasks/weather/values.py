"""Arrays on disk that read only the times asked for, and travel to workers by their path."""

from __future__ import annotations

import dataclasses
import mmap
import os
from typing import Any

import numpy as np

__all__ = ["ChannelMap", "InPlaceValues", "MappedValues"]

# Pages that were read stay counted as this process's memory until they are given back; the
# operating system keeps them cached all the same.
_RELEASE_BYTES = 64 << 20


class _Mapped:
    """A memory map whose resident part stays small."""

    def __init__(self, path: str, offset: int, shape: tuple[int, ...]) -> None:
        self.array = np.memmap(path, dtype="<f4", mode="r", offset=offset, shape=shape)
        self._read = 0

    def count(self, size: int) -> None:
        """Says that ``size`` bytes were read; gives pages back once in a while."""
        self._read += size
        if self._read > _RELEASE_BYTES and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.array._mmap.madvise(mmap.MADV_DONTNEED)
            self._read = 0


class MappedValues:
    """Fields ``[N, C, H, W]`` in one raw little-endian float32 file.

    Indexing with an integer, slice or integer array on the first axis copies those times into
    memory.

    Args:
        path (path): The file.
        stored (tuple of int): Shape of the whole file.
        rows (tuple of int, *optional*): First and last (exclusive) time to show. Defaults to all.
        channels (tuple of int, *optional*): Channels to show. Defaults to all.
    """

    dtype = np.dtype(np.float32)

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
        self._mapped = _Mapped(self.path, 0, self.stored)
        self._view = self._mapped.array[slice(*rows)] if rows else self._mapped.array
        self._channels = None if channels is None else list(channels)
        count = stored[1] if channels is None else len(channels)
        self.shape = (len(self._view), count, *stored[2:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        values = self._view[rows]
        if self._channels is not None:
            values = values[..., self._channels, :, :]
        elif not isinstance(rows, (list, np.ndarray)):
            values = np.array(values)  # a view of the map would grow resident when it is used
        values = values.view(np.ndarray)
        self._mapped.count(values.nbytes)
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedValues, (self.path, self.stored, *self._part)


@dataclasses.dataclass(frozen=True)
class ChannelMap:
    """Where one channel lies in an uncompressed HDF5 file.

    Attributes:
        path (str): The file.
        offset (int): Byte at which the variable's array begins.
        shape (tuple of int): Shape of that array, ``[N', H, W]`` or ``[N', L, H, W]``.
        level (int, *optional*): Index of the channel's level.
        flipped (bool): Whether its latitudes go from south to north.
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    level: int | None
    flipped: bool


class InPlaceValues:
    """Fields ``[N, C, H, W]`` gathered from arrays in uncompressed HDF5 files.

    Args:
        channels (tuple of ChannelMap): One a channel.
        rows (tuple of int): First and last (exclusive) time to show.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, channels: tuple[ChannelMap, ...], rows: tuple[int, int]) -> None:
        self._arguments = (channels, rows)
        maps: dict[tuple[str, int], _Mapped] = {}
        self._views: list[np.ndarray] = []
        for channel in channels:
            key = channel.path, channel.offset
            if key not in maps:
                maps[key] = _Mapped(channel.path, channel.offset, channel.shape)
            view = maps[key].array[slice(*rows)]
            view = view if channel.level is None else view[:, channel.level]
            self._views.append(view[:, ::-1] if channel.flipped else view)
        self._maps = list(maps.values())
        self.shape = (len(self._views[0]), len(channels), *self._views[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        first = self._views[0][rows]
        axis = first.ndim - 2
        values = np.empty((*first.shape[:axis], self.shape[1], *self.shape[2:]), np.float32)
        for index, view in enumerate(self._views):
            values[..., index, :, :] = view[rows]
        for mapped in self._maps:
            mapped.count(values.nbytes // len(self._maps))
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        return InPlaceValues, self._arguments
