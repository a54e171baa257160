"""``run.json``: what was run, with what, on what, and how it ended. Imports no torch."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..utils.errors import RESUMABLE_EXIT_CODE
from ..utils.files import read_json, write_json
from ..utils.secrets import is_secret_name

__all__ = ["RunRecord", "git_state", "hardware", "library_versions", "without_secrets"]

_LIBRARIES = (
    "hftune", "torch", "transformers", "accelerate", "datasets", "safetensors", "numpy",
    "microsoft-aurora", "xarray", "zarr", "netCDF4", "h5py", "peft", "timm", "tokenizers",
)  # fmt: skip
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s:]+:[^/@\s]+(?=@)")


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries at hand, without importing them."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def git_state(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Returns ``{"commit", "branch", "dirty"}`` of the repository around ``folder``, or None."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", os.fspath(folder), "--no-optional-locks", *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return answer.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit yet
        return None


def hardware() -> dict[str, Any]:
    """Returns host, system, processor, cores usable by this process and memory in bytes."""
    import psutil

    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not bind processes to cores
        cores = os.cpu_count()
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": cores,
        "memory_bytes": psutil.virtual_memory().total,
    }


def without_secrets(value: Any) -> Any:
    """Returns a copy in which tokens, passwords and credentials in addresses are left out.

    Values whose key ends in ``token``, ``password``, ``secret`` or ``api_key`` become None, in a
    ``{"value": ..., "source": ...}`` as well; in a list the text after such an option becomes
    ``***``.
    """
    if isinstance(value, Mapping):
        return {key: _without_secret(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items, hide = [], False
        for item in value:
            if hide:
                items.append("***")
                hide = False
                continue
            if isinstance(item, str) and item.startswith("-"):
                option, equals, _ = item.partition("=")
                if is_secret_name(option.lstrip("-").replace("-", "_")):
                    items.append(f"{option}=***" if equals else option)
                    hide = not equals
                    continue
            items.append(without_secrets(item))
        return items
    if isinstance(value, str):
        return _CREDENTIALS.sub("***", value)
    return value


def _without_secret(key: str, value: Any) -> Any:
    if not is_secret_name(key):
        return without_secrets(value)
    if isinstance(value, Mapping) and "value" in value:
        return {**value, "value": None}
    return None


class RunRecord:
    """The file ``run.json`` of a run, written again at every change; see :meth:`start`.

    In a group of processes every one makes a record and the first writes it.

    Attributes:
        path (Path): The file.
        values (dict): What it holds: the state of the newest attempt, and in ``"attempts"`` every
            attempt (a run that is resumed, or started again in the same folder, has several).

    Example:
        >>> with RunRecord.start("out", task="aurora", configuration=table) as record:
        ...     with record.timed("audit"):
        ...         audit()
        ...     record.update(data={"fingerprint": fields.fingerprint})
        ...     train()
    """

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values
        self._clock = time.monotonic()
        self._writes = int(os.environ.get("RANK", "0")) == 0  # set by torchrun and accelerate

    @classmethod
    def start(
        cls,
        output_dir: str | os.PathLike[str],
        *,
        task: str,
        configuration: Mapping[str, Any],
        seeds: Mapping[str, int] | None = None,
        resumed_from: str | os.PathLike[str] | None = None,
        command: Sequence[str] | None = None,
        **more: Any,
    ) -> RunRecord:
        """Begins an attempt and writes the record with the status ``running``.

        An earlier attempt in the same folder is kept. If it was still ``running`` it did not end
        by itself, and becomes ``crashed``.

        Args:
            output_dir (path): Folder of the run.
            task (str): For example ``"aurora"``.
            configuration (mapping): The resolved settings, ``{"section": {"name": {"value": ...,
                "source": ...}}}``; passed back as ``--config run.json`` it repeats the run.
            seeds (mapping, *optional*): Name to seed.
            resumed_from (path, *optional*): The checkpoint that this attempt continues.
            command (sequence of str, *optional*): Defaults to this process's command line.
            **more: Further entries, for example ``data={"fingerprint": ...}``.
        """
        path = Path(output_dir) / "run.json"
        command = [sys.executable, *sys.argv] if command is None else list(command)
        configuration = without_secrets(configuration)
        script = Path(sys.argv[0]).resolve().parent if sys.argv[0] else Path.cwd()
        attempt: dict[str, Any] = {
            "number": 1,
            "status": "running",
            "started": _now(),
            "finished": None,
            "seconds": 0.0,
            "resumed_from": None if resumed_from is None else os.fspath(resumed_from),
            "changed": {},
            "timings": {},
            "error": None,
        }
        attempts: list[dict[str, Any]] = []
        if path.exists():
            before = read_json(path)
            attempts = before["attempts"]
            if attempts[-1]["status"] == "running":
                attempts[-1].update(status="crashed", finished=before["updated"])
            attempt["number"] = len(attempts) + 1
            attempt["changed"] = _changes(before["configuration"], configuration)
        values = {
            "format": 1,
            "task": task,
            "status": "running",
            "started": attempts[0]["started"] if attempts else attempt["started"],
            "updated": attempt["started"],
            "finished": None,
            "command": without_secrets(command),
            "folder": os.getcwd(),
            "configuration": configuration,
            "seeds": dict(seeds or {}),
            "versions": library_versions(),
            "git": git_state(script if script.is_dir() else Path.cwd()),
            "hardware": hardware(),
            **more,
            "attempts": [*attempts, attempt],
        }
        record = cls(path, values)
        record._write()
        return record

    @property
    def attempt(self) -> dict[str, Any]:
        """The newest attempt."""
        return self.values["attempts"][-1]

    def update(self, **entries: Any) -> None:
        """Sets entries of the record (``data={...}``, ``results={...}``) and writes it.

        A mapping is merged into one that is there.
        """
        for key, value in entries.items():
            old = self.values.get(key)
            if isinstance(old, dict) and isinstance(value, Mapping):
                self.values[key] = {**old, **value}
            else:
                self.values[key] = value
        self._write()

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds that the block takes to the attempt's timings, also if it raises."""
        begin = time.monotonic()
        try:
            yield
        finally:
            timings = self.attempt["timings"]
            timings[name] = round(timings.get(name, 0.0) + time.monotonic() - begin, 3)
            self._write()

    def finish(self, status: str = "completed", error: str | None = None) -> None:
        """Ends the attempt, once; a second call changes nothing.

        Args:
            status (str): ``completed``, ``failed`` or ``interrupted`` (can be resumed).
            error (str, *optional*): What went wrong.
        """
        if self.attempt["finished"] is not None:
            return
        now = _now()
        self.attempt.update(status=status, finished=now, error=error)
        self.values.update(status=status, finished=now)
        self._write()

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            self.finish()
        elif isinstance(error, KeyboardInterrupt) or (
            isinstance(error, SystemExit) and error.code == RESUMABLE_EXIT_CODE
        ):
            self.finish("interrupted")
        else:
            lines = "".join(traceback.format_exception(kind, error, trace)).splitlines()
            self.finish("failed", "\n".join(lines[-25:]))

    def _write(self) -> None:
        self.values["updated"] = _now()
        self.attempt["seconds"] = round(time.monotonic() - self._clock, 3)
        if self._writes:
            write_json(self.path, self.values)


def _now() -> str:
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
