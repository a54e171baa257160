"""The ``config.pkl`` of Aardvark's scripts, read without running what a pickle may hold.

The only place of the project that unpickles. A pickle is a program; this reader has no instruction
that looks a name up, which leaves text, numbers, lists, tuples and dicts.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from hftune.utils.errors import CheckpointError
from hftune.utils.files import human_bytes

__all__ = ["read_config_pickle"]

#: The published ones have a few hundred bytes.
MAX_BYTES = 1 << 20

_PLAIN = (str, int, float, bool, type(None))


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        super().__init__(stream)
        self._path = path

    def find_class(self, module: str, name: str) -> NoReturn:
        raise CheckpointError(
            f"{self._path} holds {module}.{name}: it would run code when it is loaded. Nothing of "
            "it was run. Expected a dict of text, numbers, lists and dicts: get the file from "
            "where the model was published, or write one of plain values."
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise CheckpointError(
            f"{self._path} refers to objects outside of it; expected a dict of plain values."
        )


def read_config_pickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a pickled dict of plain values: text, numbers, booleans, None, lists, tuples, dicts.

    Args:
        path (path): A ``config.pkl``.

    Returns:
        What it holds.

    Raises:
        CheckpointError: If it is absent, damaged, larger than 1 MiB, no dict, or holds anything
            else than plain values. A class or function in it is named, and never looked up.

    Example:
        >>> read_config_pickle("trained_model/encoder/config.pkl")["mode"]
        'assimilation'
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError(
                f"{path} has {human_bytes(size)}; a configuration has {human_bytes(MAX_BYTES)} at "
                "the most. Is it another file, such as a checkpoint?"
            )
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        _check_memo(data)
        content = _PlainUnpickler(io.BytesIO(data), path).load()
        problem = _not_plain(content)
    except CheckpointError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        raise CheckpointError(
            f"{path} is damaged or no pickle ({type(error).__name__}: {error})."
        ) from error
    if problem is None and not isinstance(content, dict):
        problem = f"a {type(content).__name__}"
    if problem is not None:
        raise CheckpointError(
            f"{path} holds {problem}; expected a dict of text, numbers, lists and dicts."
        )
    return content


def _check_memo(data: bytes) -> None:
    """A few bytes can ask for a memo of gigabytes."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
            raise ValueError(f"memo entry {argument} in {len(data)} bytes")


def _not_plain(content: Any) -> str | None:
    """What it holds that is no plain value; every container is looked at once."""
    seen: set[int] = set()
    left = [content]
    while left:
        value = left.pop()
        if isinstance(value, (dict, list, tuple)):
            if id(value) in seen:
                return "containers that hold themselves or are used several times"
            if value != ():  # Python has only one empty tuple
                seen.add(id(value))
            if isinstance(value, dict):
                strange = next((key for key in value if not isinstance(key, str)), None)
                if strange is not None:
                    return f"the key {str(strange)[:40]!r} ({type(strange).__name__})"
                left.extend(value.values())
            else:
                left.extend(value)
        elif not isinstance(value, _PLAIN):
            return f"a value of type {type(value).__name__}"
    return None
