"""Fields in raw files whose axes stand in another order than hftune's.

Like :mod:`~hftune.tasks.weather.values` they read instead of mapping, so that memory stays flat
however long the files are, and travel to workers by their paths.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...utils.errors import DataError

__all__ = ["RawValues"]

# What is read at once where more rows are asked for: the transposed copy is the only large array.
_CHUNK_BYTES = 16 << 20


class RawValues:
    """Fields ``[N, C, H, W]`` or ``[N, T, C, H, W]`` in raw little-endian files, one row a time.

    Indexing with an integer, slice or integer array on the first axis reads those rows as float32,
    north first. In the files latitude goes from south to north.

    Args:
        parts (sequence of (path, int)): The files, one after the other in time, and how many rows
            each has.
        shape (tuple of int): Shape of one row as hftune has it: ``(C, H, W)`` or ``(T, C, H, W)``.
        order (str): Order of the last three axes in the files: ``"hwc"`` for initial conditions,
            ``"cwh"`` for the yearly files of ERA5.
        dtype (str): ``"float32"`` or ``"float16"``. Defaults to ``"float32"``.
        mean, std (sequence of float, *optional*): For values that are stored as
            ``(value - mean) / std``: ``C`` means and standard deviations. Defaults to values as
            they are.
        count (int, *optional*): How many rows to show, from the first on. Defaults to all.

    Raises:
        DataError: If a file does not have the size that its rows need.

    Example:
        >>> values = RawValues([("era5_4u_1_6_2018.memmap", 1460)], (24, 121, 240), "cwh")
        >>> values[100:104].shape
        (4, 24, 121, 240)
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        parts: Sequence[tuple[str | os.PathLike[str], int]],
        shape: Sequence[int],
        order: str,
        *,
        dtype: str = "float32",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        count: int | None = None,
    ) -> None:
        self.parts = tuple((os.path.abspath(path), int(rows)) for path, rows in parts)
        stored = {"dtype": dtype, "mean": mean, "std": std, "count": count}
        self._arguments = (self.parts, tuple(shape), order), stored
        self._stored = np.dtype(dtype).newbyteorder("<")
        sizes = dict(zip("chw", shape[-3:], strict=True))
        self._file_shape = (*shape[:-3], *(sizes[axis] for axis in order))
        lead = len(shape) - 2  # rows, and the axis of history if there is one
        self._house = (*range(lead), *(lead + order.index(axis) for axis in "chw"))
        self._mean, self._std = (
            None if values is None else np.asarray(values, np.float32)[:, None, None]
            for values in (mean, std)
        )
        self.row_bytes = self._stored.itemsize * int(np.prod(shape))
        # No stream is ever moved: all reads name their place, so that forks may share them.
        self._streams = [open(path, "rb", buffering=0) for path, _ in self.parts]
        self._first = [0]
        for stream, (path, rows) in zip(self._streams, self.parts, strict=True):
            size = os.fstat(stream.fileno()).st_size
            if size != rows * self.row_bytes:
                raise DataError(
                    f"{os.path.basename(path)} has {_rows_in(size, self.row_bytes)}, expected "
                    f"{rows:,}: another grid, other channels or times, or an incomplete file."
                )
            self._first.append(self._first[-1] + rows)
        self._rows = np.arange(self._first[-1] if count is None else count)
        self.shape = (len(self._rows), *shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = self._rows[rows]
        places = np.atleast_1d(chosen)
        values = np.empty((len(places), *self.shape[1:]), np.float32)
        step = max(1, _CHUNK_BYTES // self.row_bytes)
        for start in range(0, len(places), step):
            self._read(places[start : start + step], values[start : start + step])
        return values if np.ndim(chosen) else values[0]

    def _read(self, rows: np.ndarray, into: np.ndarray) -> None:
        stored = np.empty((len(rows), *self._file_shape), self._stored)
        buffer = memoryview(stored).cast("B")
        # Neighbouring rows are one read, as far as they lie in one file.
        files = np.searchsorted(self._first, rows, side="right") - 1
        fresh = (np.diff(rows, prepend=-2) != 1) | (np.diff(files, prepend=-1) != 0)
        begins = np.flatnonzero(fresh).tolist()
        for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True):
            self._read_run(int(rows[begin]), buffer[begin * self.row_bytes : end * self.row_bytes])
        house = stored.transpose(self._house)[..., ::-1, :]
        if self._mean is None:
            np.copyto(into, house)
        else:
            np.multiply(house, self._std, out=into)
            into += self._mean

    def _read_run(self, row: int, buffer: memoryview) -> None:
        file = bisect.bisect_right(self._first, row) - 1
        place = (row - self._first[file]) * self.row_bytes
        while buffer:
            count = os.preadv(self._streams[file].fileno(), [buffer], place)
            if not count:
                raise OSError(f"{self.parts[file][0]} ends before byte {place + len(buffer)}")
            place, buffer = place + count, buffer[count:]

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, self._arguments


def _make(arguments: tuple[Any, ...], stored: dict[str, Any]) -> RawValues:
    return RawValues(*arguments, **stored)


def _rows_in(size: int, row_bytes: int) -> str:
    rows, rest = divmod(size, row_bytes)
    return f"{rows:,} rows" + (f" and {rest:,} bytes" if rest else "")
