"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: two threads on a busy two-core machine are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of the real data extracts; skips where absent, fails if HFTUNE_REQUIRE_DATA=1."""
    folder = Path(os.environ.get("HFTUNE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if folder.is_dir():
        return folder
    message = f"no test data at {folder}; set HFTUNE_TEST_DATA to their folder"
    if os.environ.get("HFTUNE_REQUIRE_DATA") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(autouse=True)
def _isolated_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """No test reads or writes the user's own hftune folders."""
    monkeypatch.setenv("HFTUNE_HOME", str(tmp_path_factory.mktemp("home")))
