"""What ``run.json`` holds: texts and settings as JSON takes them, and an attempt's beginning."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configuration.convert import to_json
from ..utils.errors import ConfigurationError
from ..utils.files import read_json
from ..utils.secrets import without_secrets
from .environment import git_state, hardware, library_versions, process_identity

__all__ = [
    "clean_text",
    "first_values",
    "last_sign",
    "plain_json",
    "read_record",
    "seconds_since_1970",
    "utc_now",
]


def clean_text(text: str) -> str:
    """Returns text as every file and database takes it: NFC, no NUL, no halves of characters."""
    text = unicodedata.normalize("NFC", str(text)).replace("\x00", "\ufffd")
    return text.encode("utf-8", "replace").decode("utf-8")


def plain_json(value: Any) -> Any:
    """Returns anything, without secrets, as JSON can hold it; what it has no word for as text."""
    try:
        return _clean(to_json(without_secrets(value)))
    except RecursionError:
        return clean_text(f"{type(value).__name__} that contains itself")


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(key): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value


def read_record(path: Path) -> dict[str, Any]:
    """Reads a ``run.json`` that a run is to go on with.

    Raises:
        ConfigurationError: If it is no record.
        OSError: If it cannot be read.
    """
    try:
        record = read_json(path)
        if record["attempts"][-1]["status"] and "configuration" in record:
            return record
        problem = "it has no configuration"
    except (ValueError, LookupError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise ConfigurationError(
        f"{path} is no record of a run ({problem}): move it away to start a new run there, or take "
        "another output_dir"
    )


def first_values(
    path: Path,
    task: str,
    configuration: Mapping[str, Any],
    seeds: Mapping[str, int] | None,
    resumed_from: str | os.PathLike[str] | None,
    command: Sequence[str] | None,
) -> dict[str, Any]:
    """Returns what ``run.json`` says at the beginning of an attempt.

    Args:
        path (Path): The file, which has the attempts before.
        task (str): For example ``"aurora"``.
        configuration (mapping): The settings.
        seeds (mapping, *optional*): Name to seed.
        resumed_from (path, *optional*): The checkpoint that the attempt continues.
        command (sequence of str, *optional*): Defaults to this process's command line.

    Raises:
        ConfigurationError: If the file is there and is no record.
    """
    command = [sys.executable, *sys.argv] if command is None else list(command)
    configuration = plain_json(configuration)
    script = Path(sys.argv[0]).resolve().parent if sys.argv[0] else Path.cwd()
    git = git_state(script) if script.is_dir() else None
    now = utc_now()
    attempt: dict[str, Any] = {
        "number": 1,
        "status": "created",
        "started": now,
        "finished": None,
        "seconds": 0.0,
        "resumed_from": None if resumed_from is None else os.fspath(resumed_from),
        "from_stage": None,
        "from_step": None,
        "changed": {},
        "timings": {},
        "error": None,
        "process": process_identity(),
    }
    kept: dict[str, Any] = {}
    attempts: list[dict[str, Any]] = []
    revision = 0
    if path.exists():
        before = read_record(path)
        attempts = before["attempts"]
        if attempts[-1]["finished"] is None:
            attempts[-1].update(_end_of_crashed(path.parent, before))
        attempt["number"] = len(attempts) + 1
        attempt["changed"] = _changes(before["configuration"], configuration)
        kept = {name: before[name] for name in _KEPT if name in before}
        revision = before.get("revision", 0) + 1
    return {
        **kept,
        "format": 2,
        "revision": revision,  # counts the changes: the index keeps the newest
        "task": task,
        "status": "created",
        "started": attempts[0]["started"] if attempts else now,
        "updated": now,
        "finished": None,
        "command": without_secrets(command),
        "folder": os.getcwd(),
        "configuration": configuration,
        "seeds": dict(seeds or {}),
        "versions": library_versions(),
        "git": git or git_state(Path.cwd()),  # the script may be an installed one
        "hardware": hardware(),
        "attempts": [*attempts, attempt],
    }


# What a new attempt takes over from the ones before.
_KEPT = (
    "experiment_id", "uid", "name", "description", "model_type", "notes", "tags", "parent_run",
    "wandb_run_id", "data", "model_info", "metric_directions", "stages", "best_metrics",
)  # fmt: skip


def seconds_since_1970(time: str) -> float:
    """Returns a time of ``run.json`` as a number."""
    return datetime.datetime.fromisoformat(time).timestamp()


def last_sign(folder: Path, record: Mapping[str, Any], *, beats: bool = True) -> float:
    """Returns when a run last wrote anything, in seconds since 1970.

    Args:
        folder (Path): Of the run.
        record (mapping): Its ``run.json``.
        beats (bool): Whether its heartbeat counts; not once a new attempt has begun to beat.
            Defaults to True.
    """
    signs = [seconds_since_1970(record["updated"])]
    for name in ("metrics.jsonl", "events.jsonl", *(["heartbeat"] if beats else [])):
        with contextlib.suppress(OSError):
            signs.append((folder / name).stat().st_mtime)
    return max(signs)


def _end_of_crashed(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """How the newest attempt ended, which did not say so: when it last wrote anything."""
    attempt = record["attempts"][-1]
    ended = last_sign(folder, record, beats=False)
    finished = datetime.datetime.fromtimestamp(ended, datetime.timezone.utc)
    seconds = max(attempt["seconds"], ended - seconds_since_1970(attempt["started"]))
    return {
        "status": "crashed",
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
    }


def utc_now() -> str:
    """Returns the time as ``run.json`` has it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _changes(before: Any, after: Any, name: str = "") -> dict[str, list[Any]]:
    """Returns ``{"section.name": [old, new]}`` of the values that differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        if "value" in before and "value" in after:  # one setting; its source does not matter
            return _changes(before["value"], after["value"], name)
        changes: dict[str, list[Any]] = {}
        for key in sorted({*before, *after}):
            inner = f"{name}.{key}" if name else str(key)
            changes.update(_changes(before.get(key), after.get(key), inner))
        return changes
    return {} if before == after else {name: [before, after]}
