"""Fixtures of the whole suite."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest

# Before torch is imported anywhere: two threads on a busy two-core machine are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# A shell's background jobs are deaf to Ctrl-C, and so would be the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """Takes what is imported out of garbage collection, which each training does at its start.

    It took longer than the small trainings themselves, most of all in forked processes, for which
    an object that is looked at is a page to be copied.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Gives it back, or libraries complain of leaks as they are taken down."""
    gc.unfreeze()


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
