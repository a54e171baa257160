"""A raw file of rows while it is written: in blocks, by one process or several.

The rows go to a file of full size beside the target (``.ic_train.mmap.partial``). A block that is
on the disk is marked with its hash in ``.ic_train.mmap.progress``; after an interruption only the
others are missing. When all are there the file takes its name and its manifest is written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import DataError
from ...utils.files import free_bytes, read_json, sync_folder, write_json
from .initial_conditions import manifest_path

__all__ = ["PartialFile", "gigabytes"]

_SYNC_SECONDS = 1.0
_SYNC_BYTES = 64 << 20
_RECORD = 16
_logger = logging.getLogger(__name__)


def gigabytes(size: float) -> str:
    """Formats a number of bytes as disks are sold: ``gigabytes(44.79e9) == "44.8 GB"``."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


class PartialFile:
    """The rows of a file that is being written, and which of them are there.

    ``.NAME.progress`` has a record of 16 bytes for what the file is to be, and one for each block:
    the hash of its bytes, zeros while it is missing.

    Args:
        path (Path): The target.
        manifest (dict): What it is to be, as plain JSON values: has ``shape``, ``dtype`` and
            ``block_rows``. A file of another manifest is another file.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        import xxhash

        text = json.dumps(manifest, sort_keys=True)
        self.path, self.manifest = path, json.loads(text)
        self.partial = path.with_name(f".{path.name}.partial")
        self.progress = path.with_name(f".{path.name}.progress")
        self.identity = xxhash.xxh3_128(text.encode()).digest()
        self.rows, *shape = manifest["shape"]
        self.block_rows = manifest["block_rows"]
        self.blocks = -(-self.rows // self.block_rows)
        self.dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        self.row_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self.size = self.rows * self.row_bytes
        self._unmarked: dict[int, bytes] = {}

    def rows_of(self, block: int) -> np.ndarray:
        """Numbers of the rows of a block."""
        first = block * self.block_rows
        return np.arange(first, min(first + self.block_rows, self.rows))

    # What is there

    def is_finished(self) -> bool:
        """Whether the target is there, whole, and what it is to be."""
        try:
            found = read_json(manifest_path(self.path))
            size = os.path.getsize(self.path)
        except (OSError, ValueError):
            return False
        # How many rows were computed together matters while it is written, not afterwards.
        told = {k: v for k, v in self.manifest.items() if k != "block_rows"}
        same = isinstance(found, dict) and all(found.get(k) == v for k, v in told.items())
        return same and size == self.size

    def records(self) -> np.ndarray | None:
        """Hashes by block, bytes ``[blocks, 16]``; None if they are those of another file."""
        try:
            content = self.progress.read_bytes()
        except FileNotFoundError:
            return None
        if len(content) != _RECORD * (1 + self.blocks) or content[:_RECORD] != self.identity:
            return None
        return np.frombuffer(content, np.uint8).reshape(-1, _RECORD)[1:]

    def missing(self) -> np.ndarray:
        """Numbers of the blocks that are not there."""
        records = self.records()
        if records is None:
            raise self.other_failed()
        return np.flatnonzero(~records.any(axis=1))

    def rows_done(self) -> int:
        """How many rows are there, by all processes."""
        missing = np.setdiff1d(self.missing(), list(self._unmarked))
        last = self.blocks - 1  # may be a short one
        short = len(self.rows_of(last)) - self.block_rows if last in missing else 0
        return self.rows - len(missing) * self.block_rows - short

    def other_failed(self) -> DataError:
        """What to raise where something is missing that another process should have made."""
        return DataError(f"{self.path.name} is not whole: another process failed, see its message.")

    # Begin

    def prepare(self) -> None:
        """Makes both files, unless an earlier call has begun them or was done."""
        if self.is_finished():
            self.clean()
            return
        records = self.records()
        if records is not None and self._continues(records):
            return
        allocated = 512 * self.partial.stat().st_blocks if self.partial.exists() else 0
        need = max(0, self.size - allocated)
        if need > free_bytes(self.path.parent):
            raise self._disk_error(need)
        if records is None and self.progress.exists():
            _logger.warning("what was begun of %s is of other settings: beginning anew", self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.progress.unlink(missing_ok=True)
        descriptor = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            os.ftruncate(descriptor, self.size)
            os.posix_fallocate(descriptor, 0, self.size)
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._disk_error(need) from error
        finally:
            os.close(descriptor)
        self.progress.write_bytes(self.identity + bytes(_RECORD * self.blocks))
        sync_folder(self.path.parent)

    def _disk_error(self, need: int) -> DataError:
        smaller = ""
        if self.dtype.itemsize == 4:
            smaller = f"--ic_dtype float16 ({gigabytes(self.size / 2)}) or "
        return DataError(
            f"writing {self.path.name} needs {gigabytes(need)}, "
            f"{gigabytes(free_bytes(self.path.parent))} are free on its disk: use {smaller}another "
            "folder."
        )

    def _continues(self, records: np.ndarray) -> bool:
        done = int(records.any(axis=1).sum())
        if self.partial.exists():
            if os.path.getsize(self.partial) != self.size:
                return False
            _logger.warning(
                "continuing %s: %d of %d blocks are there", self.path, done, self.blocks
            )
            return True
        # Killed between the rename and the manifest: only the latter is missing.
        return (
            done == self.blocks
            and self.path.exists()
            and not manifest_path(self.path).exists()
            and self._hashes_fit(records)
        )

    def _hashes_fit(self, records: np.ndarray) -> bool:
        """Whether the file that has the target's name is the one that was written."""
        import xxhash

        with open(self.path, "rb") as stream:
            for block, record in enumerate(records):
                digest = xxhash.xxh3_128()
                for _ in self.rows_of(block):
                    digest.update(stream.read(self.row_bytes))
                if digest.digest() != record.tobytes():
                    return False
            return not stream.read(1)

    # Write

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Opens both files for blocks to be written."""
        with open(self.partial, "r+b", 0) as data, open(self.progress, "r+b", 0) as marks:
            self._data, self._marks = data.fileno(), marks.fileno()
            self._marked_at = time.monotonic()
            yield

    def write(self, block: int, chunks: Iterable[np.ndarray]) -> None:
        """Writes a block, and now and then marks those that are on the disk.

        Args:
            block (int): Its number.
            chunks (iterable of contiguous arrays): Its rows, as they are to lie in the file.
        """
        import xxhash

        digest = xxhash.xxh3_128()
        place = block * self.block_rows * self.row_bytes
        for chunk in chunks:
            buffer = memoryview(chunk).cast("B")
            digest.update(buffer)
            while buffer:
                written = os.pwrite(self._data, buffer, place)
                place, buffer = place + written, buffer[written:]
        self._unmarked[block] = digest.digest()
        waiting = len(self._unmarked) * self.block_rows * self.row_bytes
        if waiting >= _SYNC_BYTES or time.monotonic() - self._marked_at >= _SYNC_SECONDS:
            self.mark()

    def mark(self) -> None:
        """Marks the blocks that were written, once they are on the disk."""
        if self._unmarked:
            os.fdatasync(self._data)
            for block, digest in self._unmarked.items():
                os.pwrite(self._marks, digest, _RECORD * (1 + block))
            self._unmarked = {}
        self._marked_at = time.monotonic()

    # End

    def finish(self, told: dict[str, Any]) -> None:
        """Gives the file its name, then the manifest.

        Args:
            told (dict): What the manifest says besides.
        """
        import xxhash

        digest = xxhash.xxh3_128(self.records().tobytes()).hexdigest()
        if self.partial.exists():
            for place in (self.partial, self.progress):
                with open(place, "rb") as stream:
                    os.fsync(stream.fileno())
            # The manifest of an older file must not describe this one, not for a moment.
            manifest_path(self.path).unlink(missing_ok=True)
            sync_folder(self.path.parent)
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)
        write_json(manifest_path(self.path), {**self.manifest, **told, "digest": digest})

    def clean(self) -> None:
        """Removes what was only needed while the file was written."""
        for place in (self.partial, self.progress):
            place.unlink(missing_ok=True)
