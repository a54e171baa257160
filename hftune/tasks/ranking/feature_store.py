"""Rows of features on the disk: appended, never changed, found by a key.

A space is a folder with ``features.bin`` (raw little-endian rows of one size), ``index.bin`` (for
each row a record: its key and the checksum of its bytes) and ``space.json``, which says for people
what the rows are. Row ``i`` is described by record ``i``. Rows are on the disk before their records
are written, so what a killed process leaves behind the last whole record is nobody's, and the next
one writes over it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np
import xxhash

from ...utils.errors import DataError
from ...utils.files import sync_folder, write_json
from ...utils.home import hftune_home

__all__ = ["FeatureCache", "RowKey", "feature_root"]

RowKey = bytes
"""What a row is found by: 32 bytes, a SHA-256."""

_KEY_BYTES = 32
_RECORD = np.dtype([("key", f"S{_KEY_BYTES}"), ("checksum", "<u8")])
_FEATURES, _INDEX, _LOCK, _SPACE = "features.bin", "index.bin", "lock", "space.json"
_DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


def feature_root(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder of all spaces: ``folder``, else ``cache/features`` in the hftune home."""
    if folder is not None:
        return Path(folder).expanduser()
    return hftune_home() / "cache" / "features"


class FeatureCache:
    """The rows of one space; several processes may read and append at once.

    Made by :meth:`open`. Rows are read from a memory map, which all processes of a machine share.
    A copy in another process (``pickle``) opens the files anew.

    Args:
        folder (Path): Of the space.
        space (mapping): What decides the rows' numbers; has ``feature_size`` and ``stored_dtype``.

    Attributes:
        folder (Path): Of the space.
        space (dict): What decides the rows' numbers.
        feature_size (int): Numbers ``D`` in a row.
        dtype (numpy.dtype): Of the stored numbers.
    """

    def __init__(self, folder: Path, space: Mapping[str, Any]) -> None:
        self.folder, self.space = folder, dict(space)
        self.feature_size: int = self.space["feature_size"]
        self.dtype = _DTYPES[self.space["stored_dtype"]]
        self.row_bytes = self.feature_size * self.dtype.itemsize
        self._array = np.empty((0, self.feature_size), self.dtype)
        self._records = np.empty(0, _RECORD)
        self._damaged: set[int] = set()
        self._lookup: tuple[np.ndarray, np.ndarray] | None = None
        self._refresh()

    @classmethod
    def open(cls, folder: str | os.PathLike[str] | None, space: Mapping[str, Any]) -> FeatureCache:
        """Opens a space, and makes it where there is none.

        Args:
            folder (path, *optional*): Of all spaces. Defaults to ``cache/features`` in the hftune
                home.
            space (mapping): What decides the rows' numbers, as plain JSON values; see
                :func:`~hftune.tasks.ranking.feature_cache.features_space`. Spaces of which
                anything differs lie in different folders.
        """
        text = json.dumps(dict(space), sort_keys=True, ensure_ascii=False)
        place = feature_root(folder) / xxhash.xxh3_128(text.encode()).hexdigest()
        if not all((place / name).exists() for name in (_FEATURES, _INDEX, _SPACE)):
            place.mkdir(parents=True, exist_ok=True)
            (place / _FEATURES).touch()
            (place / _INDEX).touch()
            write_json(place / _SPACE, space)
            sync_folder(place.parent)
        return cls(place, json.loads(text))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "space": self.space}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    @property
    def array(self) -> np.memmap:
        """All rows ``[rows, D]``, read-only, as of the last :meth:`rows` or :meth:`append`."""
        return self._array

    def rows(self, keys: Sequence[RowKey]) -> np.ndarray:
        """Finds rows, also those that other processes have appended by now.

        Args:
            keys (sequence of RowKey): What to find.

        Returns:
            Int64 ``[n]``: numbers of rows, -1 where there is none.
        """
        self._refresh()
        if self._lookup is None:
            order = np.argsort(self._records["key"], kind="stable")
            if self._damaged:
                order = order[~np.isin(order, list(self._damaged))]
            self._lookup = (self._records["key"][order], order)
        known, order = self._lookup
        wanted = np.frombuffer(b"".join(keys), known.dtype)
        # Of rows with the same key the last one: it may replace a damaged one.
        places = np.searchsorted(known, wanted, side="right") - 1
        found = np.flatnonzero(places >= 0)
        found = found[known[places[found]] == wanted[found]]
        rows = np.full(len(wanted), -1, np.int64)
        rows[found] = order[places[found]]
        return rows

    def missing(self, keys: Sequence[RowKey]) -> list[RowKey]:
        """Returns the keys that have no row, each once, in their order."""
        rows = self.rows(keys)
        return list(dict.fromkeys(keys[i] for i in np.flatnonzero(rows < 0)))

    def append(self, keys: Sequence[RowKey], values: np.ndarray) -> None:
        """Appends rows; they are on the disk afterwards.

        Args:
            keys (sequence of RowKey): One a row. A key that has a row gets another one, which is
                then found instead.
            values (float32 array ``[n, D]``): Rounded to the stored dtype.

        Raises:
            DataError: If the disk is full or cannot be written; earlier rows stay.
        """
        values = np.ascontiguousarray(values, self.dtype)
        if values.shape != (len(keys), self.feature_size) or {*map(len, keys)} - {_KEY_BYTES}:
            raise ValueError(
                f"found rows {list(values.shape)} for {len(keys)} keys, expected "
                f"{[len(keys), self.feature_size]} and keys of {_KEY_BYTES} bytes"
            )
        records = np.empty(len(keys), _RECORD)
        records["key"] = np.frombuffer(b"".join(keys), f"S{_KEY_BYTES}")
        records["checksum"] = [xxhash.xxh3_64_intdigest(row) for row in values]
        try:
            with (
                filelock.FileLock(self.folder / _LOCK),
                open(self.folder / _FEATURES, "r+b") as features,
                open(self.folder / _INDEX, "r+b") as index,
            ):
                count = os.fstat(index.fileno()).st_size // _RECORD.itemsize
                _write(features, count * self.row_bytes, values)
                _write(index, count * _RECORD.itemsize, records)
        except OSError as error:
            raise DataError(
                f"the feature cache {self.folder} cannot be written: {error.strerror}. Make room, "
                "or set HFTUNE_HOME to another disk, and run again; rows that were appended before "
                "are kept."
            ) from error
        self._refresh()

    def verify(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Compares rows with their checksums; damaged ones are not found any more.

        Args:
            rows (sequence of int): Numbers of rows.

        Returns:
            Bool ``[n]``: False where a row is not as it was written.
        """
        stored = np.asarray(self._array)
        sums = np.fromiter((xxhash.xxh3_64_intdigest(stored[row]) for row in rows), np.uint64)
        sound = sums == self._records["checksum"][rows]
        if not sound.all():
            self._damaged.update(np.asarray(rows)[~sound].tolist())
            self._lookup = None
        return sound

    def _refresh(self) -> None:
        """Sees what was appended since the last time."""
        with open(self.folder / _INDEX, "rb") as index, open(self.folder / _FEATURES, "rb") as data:
            # A record without its row is none: the other file was cut by somebody.
            count = min(
                os.fstat(index.fileno()).st_size // _RECORD.itemsize,
                os.fstat(data.fileno()).st_size // self.row_bytes,
            )
            if count == len(self._array):
                return
            self._records = np.fromfile(index, _RECORD, count)
            self._array = np.memmap(data, self.dtype, "r", shape=(count, self.feature_size))
            self._lookup = None


def _write(stream: IO[bytes], place: int, values: np.ndarray) -> None:
    stream.seek(place)
    stream.write(values.data)
    stream.flush()
    os.fsync(stream.fileno())
