"""Reads what W&B's client wrote, and keeps tests of it apart from the user's own W&B."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BLOCK = 32768
LAST_PARTS = (1, 4)  # a whole record, or its end


def isolate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives W&B a home, a login and a working folder of its own: none, and ``folder``."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        (folder / name.lower()).mkdir()
        monkeypatch.setenv(name, str(folder / name.lower()))
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", commands)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(folder)


def close() -> None:
    """Ends open runs and W&B's process, and with it what W&B read from the environment."""
    import wandb

    from hftune.callbacks.wandb_mirror import WandbCallback

    if WandbCallback._newest is not None:
        WandbCallback._newest.finish()
    with contextlib.suppress(ConnectionError):
        wandb.teardown()
    os.environ.pop("WANDB_SERVICE", None)


def records(folder: Path) -> Iterator[Any]:
    """The records of the one run in ``folder``, from its LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    close()  # a finished run may be on its way to the disk for another 0.1 s
    (path,) = folder.glob("wandb/*run-*/run-*.wandb")
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(data):
        if (left := BLOCK - position % BLOCK) < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in LAST_PARTS:
            yield Record.FromString(parts)
            parts = b""


def items(entries: Any) -> dict[str, Any]:
    """Values by key; nested keys are joined by dots."""
    return {
        ".".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries
    }


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows that the run in ``folder`` logged, without W&B's own entries."""
    rows = [items(r.history.item) for r in records(folder) if r.HasField("history")]
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]


def summary(folder: Path) -> dict[str, Any]:
    """The last values of the run in ``folder``."""
    found: dict[str, Any] = {}
    for record in records(folder):
        if record.HasField("summary"):
            found |= items(record.summary.update)
    return found


def config(folder: Path) -> dict[str, Any]:
    """The settings of the run in ``folder``."""
    found: dict[str, Any] = {}
    for record in records(folder):
        if record.HasField("run"):
            found |= items(record.run.config.update)
        if record.HasField("config"):
            found |= items(record.config.update)
    return found
