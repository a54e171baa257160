"""The folder that hftune keeps things in between runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["hftune_home"]


def hftune_home() -> Path:
    """Returns ``HFTUNE_HOME``, or the platform's own place for such data; it may not exist yet.

    ``~/Library/Application Support/hftune`` on macOS, ``%LOCALAPPDATA%\\hftune`` on Windows, else
    ``$XDG_DATA_HOME/hftune`` or ``~/.local/share/hftune``.
    """
    if home := os.environ.get("HFTUNE_HOME"):
        return Path(home).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "hftune"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "hftune"
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "hftune"
