"""Fixtures of the classification tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def table(tmp_path, monkeypatch) -> Callable[..., str]:
    """Writes a file into a folder of the test, which is where it runs, and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes, encoding: str = "utf-8") -> str:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return name

    return write
