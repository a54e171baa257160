"""Files that are whole or absent: atomic writes, hashes, names and sizes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import ConfigurationError

__all__ = [
    "atomic_path",
    "atomic_write",
    "checked_name",
    "file_hash",
    "free_bytes",
    "human_bytes",
    "read_json",
    "sync_folder",
    "write_json",
]


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Makes renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives the path of a temporary file beside ``path`` that replaces it once written and synced.

    For libraries that open files by themselves. A reader sees the old file or the new one, never a
    part; after an exception the old one stays and the temporary file is removed. Missing parent
    folders are made.

    Args:
        path (path): The file to replace.

    Yields:
        Path of an empty file, to be written and closed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes files that only the owner reads; give the ones a plain open would.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file that replaces ``path``, as :func:`atomic_path` does.

    Args:
        path (path): The file to replace.
        mode (str): ``"w"`` (UTF-8 text) or ``"wb"``. Defaults to ``"w"``.

    Yields:
        The open file.
    """
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as temporary, open(temporary, mode, encoding=encoding) as stream:
        yield stream


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes ``value`` as indented UTF-8 JSON, atomically; NaN and infinities become ``null``."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as stream:
        stream.write(text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return _finite(value.tolist())
    return value


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads UTF-8 JSON."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def file_hash(path: str | os.PathLike[str]) -> str:
    """Returns the 128-bit xxh3 of a file's bytes, in hexadecimal, reading it in blocks."""
    import xxhash

    digest = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Returns the free space, in bytes, of the disk that ``path`` is or will be on."""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def human_bytes(size: float) -> str:
    """Formats a number of bytes: ``human_bytes(1536) == "1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def checked_name(name: str, what: str) -> str:
    """Returns ``name`` if it can safely be one part of a path.

    Args:
        name (str): Letters of any script, digits, ``.``, ``_``, ``-`` and spaces inside; at most
            128 characters.
        what (str): What it names, for the message (``"run name"``).

    Raises:
        ConfigurationError: If it could leave its folder, is empty, hidden or too long.
    """
    if not re.fullmatch(r"\w(?:[\w .\-]{0,126}[\w\-])?", name):
        raise ConfigurationError(
            f"{what} {name[:140]!r} cannot be a file name: use at most 128 letters, digits, "
            "'.', '_' and '-', beginning with a letter or a digit."
        )
    return name
