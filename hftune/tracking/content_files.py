"""Files of the model store: copied, linked, compared with what was registered, removed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from ..utils.errors import DataError

__all__ = [
    "CHANGED",
    "copy",
    "disk_bytes",
    "file_problem",
    "link",
    "remove",
    "same_file",
    "who_may_remove",
]

CHANGED = "has changed since it was registered (other sha256)"

_BLOCK = 1 << 22
_FICLONE = 0x40049409  # Linux: share the blocks of another file until one of the two changes


def copy(source: Path, target: Path, mode: int | None = None) -> tuple[int, str]:
    """Copies a file to a new one and onto the disk; returns its size and sha256."""
    digest = hashlib.sha256()
    with open(source, "rb") as reader, open(target, "x+b") as writer:
        before = os.fstat(reader.fileno())
        if _clone(reader, writer):
            while block := writer.read(_BLOCK):
                digest.update(block)
        else:
            while block := reader.read(_BLOCK):
                digest.update(block)
                writer.write(block)
        writer.flush()
        if mode is not None:
            os.fchmod(writer.fileno(), mode)
        os.fsync(writer.fileno())
        size = writer.tell()
        after = os.stat(source)
    if size != after.st_size or before.st_mtime_ns != after.st_mtime_ns:
        raise DataError(f"{source} changed while it was copied: wait until it is written")
    return size, digest.hexdigest()


def _clone(reader: IO[bytes], writer: IO[bytes]) -> bool:
    """Shares the blocks of a file, on file systems that can (Btrfs, XFS)."""
    try:
        fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
    except OSError:
        return False
    return True


def link(source: Path, target: Path) -> None:
    """A hard link; a copy where the file system has none, or no more for this file."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        copy(source, target, 0o444)


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are names of the same file."""
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except OSError:
        return False


def file_problem(
    path: Path, entry: Mapping[str, Any], on_block: Callable[[int], None] | None = None
) -> str | None:
    """Compares a file with its entry in a manifest; without a sha256 only its size.

    Args:
        path (Path): The file.
        entry (mapping): ``bytes`` and ``sha256``.
        on_block (callable, *optional*): Called with the size of each block that was read.

    Returns:
        What is wrong with it, None for a whole one.
    """
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            return "is no plain file any more"
        if found.st_size != entry["bytes"]:
            return f"has {found.st_size} bytes, the manifest says {entry['bytes']}"
        if "sha256" in entry and _sha256(path, on_block) != entry["sha256"]:
            return CHANGED
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _sha256(path: Path, on_block: Callable[[int], None] | None) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            if on_block is not None:
                on_block(len(block))
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Removes a file or a folder of which nothing can be written."""
    if path.is_dir() and not path.is_symlink():
        for parent, _, _ in os.walk(path):
            os.chmod(parent, 0o755)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def who_may_remove(path: Path) -> str | None:
    """Returns the user who, beside root, can remove a path; None where this process can.

    A folder that is read-only must be made writable first, which is its owner's.
    """
    if path.is_dir() and not path.is_symlink() and os.geteuid() not in (0, path.stat().st_uid):
        return _owner(path)
    return None if os.access(path.parent, os.W_OK) else _owner(path.parent)


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # of another machine, or gone
        return f"user {path.stat().st_uid}"


def disk_bytes(paths: Iterable[Path]) -> int:
    """Size of the files that go with all their names."""
    names: Counter[tuple[int, int, int, int]] = Counter()
    for path in paths:
        for file in [path, *path.rglob("*")]:
            found = file.lstat()
            if stat.S_ISREG(found.st_mode):
                names[found.st_dev, found.st_ino, found.st_nlink, found.st_size] += 1
    return sum(size for (_, _, links, size), count in names.items() if count == links)
