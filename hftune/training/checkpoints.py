"""Checkpoints that exist only when whole.

A checkpoint is a folder ``checkpoint-STEP`` of the Trainer's; it counts once it holds
``hftune_manifest.json`` with the size and hash of every file in it. That file is written last,
after all others are on the disk, so that whatever stops a save leaves a folder that resume does not
take.
Resume goes back to the newest checkpoint that verifies; what does not is moved to ``quarantine/``
with the reason, never deleted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import CheckpointError
from ..utils.files import file_hash, read_json, sync_folder, write_json
from ..utils.terminal import console

__all__ = [
    "MANIFEST",
    "find_checkpoints",
    "quarantine",
    "resolve_resume",
    "rotate_checkpoints",
    "run_changes",
    "seal_checkpoint",
    "unseal_checkpoint",
    "verify_checkpoint",
    "weights_hash",
]

MANIFEST = "hftune_manifest.json"
QUARANTINE = "quarantine"

_FORMAT = 1
_DELETED = ".deleted"


def find_checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """Returns the folders ``checkpoint-STEP`` of a run, whole or not, in order of their steps."""
    folders = []
    if os.path.isdir(output_dir):
        for entry in Path(output_dir).iterdir():
            if entry.is_dir() and re.fullmatch(r"checkpoint-\d+", entry.name):
                folders.append(entry)
    return sorted(folders, key=_step)


def _say(text: str) -> None:
    console().print(text, markup=False, soft_wrap=True)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def seal_checkpoint(
    folder: str | os.PathLike[str],
    *,
    step: int,
    run: Mapping[str, Any],
    environment: Mapping[str, Any] | None = None,
) -> None:
    """Makes a checkpoint count: syncs its files, then writes the manifest.

    Args:
        folder (path): The checkpoint, complete but for the manifest.
        step (int): Optimizer steps that are done.
        run (mapping): What a resume must have in common with this run, by name.
        environment (mapping, *optional*): What it must have in common to be exact to the bit:
            versions, threads.
    """
    folder = Path(folder)
    files = {}
    for path in _files(folder):
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "xxh3_128": file_hash(path),
        }
    for parent in {path.parent for path in _files(folder)}:
        sync_folder(parent)
    manifest = {
        "format": _FORMAT,
        "step": step,
        "saved": time.time(),
        "run": run,
        "environment": environment or {},
        "files": files,
    }
    write_json(folder / MANIFEST, manifest)
    sync_folder(folder.parent)


def weights_hash(folder: str | os.PathLike[str]) -> str:
    """Returns a hash of the weights in a sealed folder, without reading them.

    Args:
        folder (path): The checkpoint.
    """
    import xxhash

    files = read_json(Path(folder) / MANIFEST)["files"]
    weights = sorted((n, f["xxh3_128"]) for n, f in files.items() if n.endswith(".safetensors"))
    return xxhash.xxh3_128(repr(weights).encode()).hexdigest()


def unseal_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Takes the manifest away, before files in the folder change."""
    path = Path(folder) / MANIFEST
    if path.exists():
        path.unlink()
        sync_folder(folder)


def verify_checkpoint(folder: str | os.PathLike[str], *, hashes: bool = True) -> list[str]:
    """Compares a checkpoint with its manifest.

    Args:
        folder (path): The checkpoint.
        hashes (bool): Whether to read and hash the files, beside their sizes. Defaults to True.

    Returns:
        What is wrong with it, one text a problem; empty for a whole one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return [f"{folder} is not a folder"]
    if not any(folder.iterdir()):
        return ["the folder is empty"]
    if not (folder / MANIFEST).is_file():
        return [f"no {MANIFEST}: the save was not finished, or another program wrote it"]
    try:
        manifest = read_json(folder / MANIFEST)
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read: {error}"]
    if manifest.get("format") != _FORMAT:
        return [f"{MANIFEST} has format {manifest.get('format')}, this hftune reads {_FORMAT}"]
    problems = []
    for name, expected in files:
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (size := path.stat().st_size) != expected["bytes"]:
            problems.append(f"{name} has {size} bytes, the manifest says {expected['bytes']}")
        elif hashes and (problem := _hash_problem(path, expected["xxh3_128"])):
            problems.append(f"{name} {problem}")
    return problems


def _hash_problem(path: Path, expected: str) -> str | None:
    try:
        found = file_hash(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if found == expected else "has changed since it was written (other hash)"


def quarantine(folder: Path, reason: str) -> Path:
    """Moves a checkpoint out of the way, with a text file that says why.

    Args:
        folder (Path): ``RUN/checkpoint-STEP``.
        reason (str): Why.

    Returns:
        Where it is now: ``RUN/quarantine/checkpoint-STEP`` or, if that is taken, with a number.
    """
    home = folder.parent / QUARANTINE
    home.mkdir(exist_ok=True)
    target, number = home / folder.name, 1
    while target.exists():
        number += 1
        target = home / f"{folder.name}.{number}"
    os.replace(folder, target)
    (home / f"{target.name}.reason.txt").write_text(reason + "\n", encoding="utf-8")
    sync_folder(folder.parent)
    return target


def resolve_resume(output_dir: str | os.PathLike[str], resume: str = "auto") -> Path | None:
    """Decides which checkpoint a run goes on from. Call it in one process only.

    Args:
        output_dir (path): The run's folder.
        resume (str): ``"auto"``: the newest that verifies, newer ones are moved to quarantine;
            ``"never"``: none, all that are there are moved; else a checkpoint's folder, or that of
            a run, whose newest is taken. Defaults to ``"auto"``.

    Returns:
        The checkpoint, or None to start anew.

    Raises:
        CheckpointError: If a checkpoint that was asked for by its path does not verify.
    """
    if resume == "never":
        for folder in find_checkpoints(output_dir):
            moved = quarantine(folder, "a new run was started here with --resume never")
            _say(f"{folder.name} moved to {moved}: --resume never")
        return None
    if resume != "auto":
        return _resume_path(Path(resume))
    found = find_checkpoints(output_dir)
    for folder in reversed(found):
        problems = verify_checkpoint(folder)
        if not problems:
            _say(f"resume: going on from {folder}, verified")
            return folder
        reason = "; ".join(problems)
        _say(f"resume: {folder.name} moved to {quarantine(folder, reason)}: {reason}")
    if found:
        _say("resume: no whole checkpoint is left: the run starts anew")
    return None


def _resume_path(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(
            f"--resume {path}: no such folder; expected auto, never, a checkpoint or a run's folder"
        )
    if not re.fullmatch(r"checkpoint-\d+", path.name) and not (path / MANIFEST).exists():
        inside = [folder for folder in find_checkpoints(path) if not verify_checkpoint(folder)]
        if not inside:
            raise CheckpointError(
                f"--resume {path}: found no whole checkpoint in it, expected a folder "
                f"checkpoint-STEP with {MANIFEST}"
            )
        path = inside[-1]
    elif problems := verify_checkpoint(path):
        raise CheckpointError(
            f"--resume {path}: the checkpoint is not whole: {'; '.join(problems)}. "
            "Take another one, or --resume auto for the newest that is."
        )
    _say(f"resume: going on from {path}, verified")
    return path


def rotate_checkpoints(
    output_dir: str | os.PathLike[str], keep: int, protected: Iterable[str | os.PathLike[str]] = ()
) -> list[Path]:
    """Deletes old checkpoints. Call it once the newest one is sealed, in one process only.

    Args:
        output_dir (path): The run's folder.
        keep (int): How many of the newest whole ones stay.
        protected (iterable of path): Others that stay: the best.

    Returns:
        What was deleted.
    """
    whole = [f for f in find_checkpoints(output_dir) if (f / MANIFEST).is_file()]
    stay = {f.name for f in whole[-max(keep, 1) :]} | {Path(p).name for p in protected}
    deleted = [folder for folder in whole if folder.name not in stay]
    for folder in deleted:
        # What is left of an interrupted deletion is no checkpoint any more, and goes next time.
        os.replace(folder, folder.with_name(f".{folder.name}{_DELETED}"))
    for folder in Path(output_dir).glob(f".checkpoint-*{_DELETED}"):
        shutil.rmtree(folder)
    return deleted


def run_changes(
    folder: str | os.PathLike[str], now: Mapping[str, Any], what: str = "run"
) -> list[str]:
    """Compares a run with the one that wrote a checkpoint.

    Args:
        folder (path): A checkpoint that verifies.
        now (mapping): What :func:`seal_checkpoint` would be given now.
        what (str): ``"run"`` or ``"environment"``. Defaults to ``"run"``.

    Returns:
        One text for each value that differs.
    """
    before = read_json(Path(folder) / MANIFEST)[what]
    # Through JSON, as the checkpoint's went: tuples and numbers of numpy are equal to what they
    # were saved as.
    now = json.loads(json.dumps(now))
    return [
        f"{name}: the checkpoint has {before.get(name)!r}, this run {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
