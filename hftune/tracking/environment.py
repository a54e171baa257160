"""What a run ran on and with: libraries, repository, machine, process. Imports no torch."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["boot_id", "git_state", "hardware", "library_versions", "process_identity"]

_LIBRARIES = (
    "hftune", "torch", "transformers", "accelerate", "datasets", "safetensors", "numpy",
    "microsoft-aurora", "xarray", "zarr", "netCDF4", "h5py", "peft", "timm", "tokenizers", "trl",
)  # fmt: skip


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


@functools.cache
def boot_id() -> str:
    """Returns what tells this boot of this machine from every other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # macOS
        import psutil

        return f"{platform.node()}-{psutil.boot_time():.0f}"


def process_identity() -> dict[str, Any]:
    """Returns host, boot, number and start of this process: numbers alone are used again."""
    import psutil

    return {
        "host": platform.node(),
        "boot_id": boot_id(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }
