"""The versions that hftune works with."""

from __future__ import annotations

import importlib.metadata
import sys

from packaging.version import Version

from .errors import ConfigurationError

__all__ = ["MINIMUM_VERSIONS", "check_versions", "installed_version", "version_problems"]

MINIMUM_VERSIONS = {
    "python": "3.10",
    "torch": "2.6",
    "transformers": "5.0",
    "accelerate": "1.1",
    "datasets": "3.0",
}
"""Oldest version by package; a test compares it with setup.cfg."""


def installed_version(package: str) -> str | None:
    """Returns the version of a distribution, or of ``"python"``; None where it is missing."""
    if package == "python":
        return ".".join(map(str, sys.version_info[:3]))
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_problems() -> list[str]:
    """Returns what is missing or too old, one text each."""
    problems = []
    for package, minimum in MINIMUM_VERSIONS.items():
        found = installed_version(package)
        if found is not None and Version(found) >= Version(minimum):
            continue
        has = "is not installed" if found is None else f"{found} is too old"
        cure = (
            "make PYTHON=python3.12"
            if package == "python"
            else f'pip install -U "{package}>={minimum}"'
        )
        problems.append(f"{package} {has}: hftune needs {minimum} or newer ({cure})")
    return problems


def check_versions() -> None:
    """Refuses to go on with a Python, torch, transformers... that is missing or too old.

    Reads package metadata only: nothing is imported.

    Raises:
        ConfigurationError: With every package and the command that mends it.
    """
    if problems := version_problems():
        raise ConfigurationError(problems)
