"""What of a folder is a model: its files, whole, without the state of a training run."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..utils.errors import ConfigurationError

__all__ = ["find_model_files", "walk"]

_STATE = (
    "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin",
    "scaler.pt", "rng_state*.pth", "random_states_*.pkl", "trainer_state.json", "global_step*",
    "pytorch_model_fsdp*", "optimizer_*", "latest", "zero_to_fp32.py",  # of FSDP and DeepSpeed
    "loss_window_*.json", "hftune_manifest.json", "checkpoint-*", "quarantine", "run.json",
    "run.lock", "heartbeat", "metrics.jsonl", "events.jsonl", "report_sections.json",
    "report.html", "events.out.tfevents*", "__pycache__", ".*",
)  # fmt: skip
"""Files and folders of a training run beside its model; most change with every save."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".distcp", ".msgpack")
_LARGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it


def find_model_files(source: Path) -> tuple[dict[str, Path], list[str]]:
    """Finds what to keep of a saved model; nothing is written.

    Args:
        source (Path): A folder or one file.

    Returns:
        The files by their names relative to the folder, and the names of what is left out: the
        state of a training run and hidden files.

    Raises:
        ConfigurationError: If it is missing, empty or incomplete, or holds what cannot be kept:
            links, pickled weights.
    """
    files: dict[str, Path] = {}
    left_out: list[str] = []
    problems: list[str] = []
    try:
        if not source.exists():
            raise ConfigurationError(f"{source}: no such file or folder, expected a saved model")
        found = [(source.name, source)] if source.is_file() else walk(source, left_out)
        for name, path in found:
            if problem := _file_problem(name, path, is_source=path == source):
                problems.append(f"{path} {problem}")
            else:
                files[name] = path
        problems += _missing_shards(files)
    except OSError as error:
        raise ConfigurationError(f"{source} cannot be read: {error}") from None
    if not files and not problems:
        beside = f" beside {', '.join(left_out)}" if left_out else ""
        problems.append(f"{source}: found no files{beside}, expected a saved model")
    if problems:
        raise ConfigurationError(problems)
    return dict(sorted(files.items())), sorted(left_out)


def walk(
    folder: Path, left_out: list[str] | None = None, above: str = ""
) -> Iterator[tuple[str, Path]]:
    """Yields the names and paths of everything below a folder but folders.

    Args:
        folder (Path): Where to look.
        left_out (list, *optional*): Takes the names of a run's own files, which are then not
            yielded.
        above (str): How the names begin. Defaults to nothing.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = above + path.name
        is_folder = path.is_dir() and not path.is_symlink()
        if left_out is not None and any(fnmatch.fnmatchcase(path.name, p) for p in _STATE):
            left_out.append(f"{name}/" if is_folder else name)
        elif is_folder:
            yield from walk(path, left_out, f"{name}/")
        else:
            yield name, path


def _file_problem(name: str, path: Path, *, is_source: bool) -> str | None:
    if path.is_symlink() and not is_source:
        return (
            "is a symbolic link, and what it points to may change: copy the folder with its files "
            "(cp -rL) and register the copy"
        )
    if not path.is_file():
        return "is no plain file, expected a saved model's"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "has a name that is not UTF-8: rename it"
    if name.endswith(_PICKLES):
        return (
            "may be a pickle, which can run any code where it is loaded: save the weights as "
            "safetensors (save_pretrained does, and safetensors.torch.save_file)"
        )
    if name.endswith(".safetensors"):
        return _safetensors_problem(path)
    return None


def _safetensors_problem(path: Path) -> str | None:
    """Says whether weights are cut off, going by their header."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(size - 8, _LARGEST_HEADER):
            return "is cut off, or no safetensors file: save it again"
        try:
            header = json.loads(stream.read(length))
            ends = [t["data_offsets"][1] for key, t in header.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "is no safetensors file, its header cannot be read: save it again"
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        return f"has {size} bytes, its header says {expected}: save it again"
    return None


def _missing_shards(files: Mapping[str, Path]) -> list[str]:
    problems = []
    for name, path in files.items():
        if not name.endswith(".index.json"):
            continue
        try:
            shards = set(json.loads(path.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # an index of something else
        folder = os.path.dirname(name)
        problems += [
            f"{path} names {shard}, which is not there: save the model again"
            for shard in sorted(shards)
            if os.path.join(folder, shard) not in files
        ]
    return problems
