"""Errors, suggestions, seeds, versions, progress."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from hftune.utils import terminal, versions
from hftune.utils.errors import ConfigurationError, HftuneError, did_you_mean
from hftune.utils.seeds import derive_seed, seed_everything
from hftune.utils.terminal import duration, progress
from hftune.utils.versions import check_versions, installed_version


def test_one_problem_is_the_message_several_are_numbered():
    assert str(ConfigurationError("wrong")) == "wrong"
    assert str(ConfigurationError(["wrong"])) == "wrong"
    both = ConfigurationError(["one", "two"])
    assert str(both) == "2 problems in the configuration:\n  1. one\n  2. two"
    assert both.problems == ("one", "two")
    assert isinstance(both, HftuneError) and isinstance(both, ValueError)


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("lerning_rate", ["learning_rate", "train_dates"], " Did you mean 'learning_rate'?"),
        ("t_85", ["t_850", "t_500", "msl"], " Did you mean 't_850'?"),
        ("ab", ["aa", "ac"], " Did you mean 'ac' or 'aa'?"),
        ("xyz", ["learning_rate"], ""),
    ],
)
def test_did_you_mean(name, known, text):
    assert did_you_mean(name, known) == text


def test_did_you_mean_with_a_prefix():
    assert did_you_mean("bath", ["batch"], prefix="--") == " Did you mean '--batch'?"


def test_derived_seeds_are_stable_and_apart():
    # The literal keeps runs of older versions repeatable.
    assert derive_seed(0, "crop", 1, 2) == 4345571890644744058
    assert derive_seed(0, "crop", 1, 2) != derive_seed(0, "crop", 12)
    seeds = {derive_seed(seed, "a", epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seed_everything():
    draws = []
    for _ in range(2):
        seed_everything(7)
        draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert draws[0] == draws[1]


def test_versions_here_are_fine():
    check_versions()
    assert installed_version("torch") == torch.__version__.split("+")[0]
    assert installed_version("no-such-package") is None


def test_old_and_missing_packages_are_named_together(monkeypatch):
    found = {"python": "3.9.1", "torch": "2.5.1", "datasets": None}
    monkeypatch.setattr(versions, "installed_version", lambda name: found.get(name, "99"))
    with pytest.raises(ConfigurationError) as caught:
        check_versions()
    assert caught.value.problems == (
        "python 3.9.1 is too old: hftune needs 3.10 or newer (make PYTHON=python3.12)",
        'torch 2.5.1 is too old: hftune needs 2.6 or newer (pip install -U "torch>=2.6")',
        'datasets is not installed: hftune needs 3.0 or newer (pip install -U "datasets>=3.0")',
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (71, "1:11"), (3671, "1:01:11"), (59.6, "1:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_progress_away_from_a_terminal_writes_a_line_now_and_then(monkeypatch, capsys):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    terminal.console.cache_clear()
    assert list(progress(range(8), "Reading", "days")) == list(range(8))
    lines = capsys.readouterr().err.splitlines()
    terminal.console.cache_clear()
    # Ten seconds between two looks at the clock: lines 30, 60 and 90 s after the start.
    assert lines == [
        "Reading: 2/8 days (25 %), 1:30 left",
        "Reading: 5/8 days (62 %), 0:36 left",
        "Reading: 8/8 days (100 %), 0:00 left",
    ]


def test_progress_counts_what_this_session_did(monkeypatch, capsys):
    clock = iter([0, 0, 0, 100])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    terminal.console.cache_clear()
    with progress(100, "Writing", "rows", initial=50) as bar:
        bar.update(25)
    terminal.console.cache_clear()
    assert capsys.readouterr().err == "Writing: 75/100 rows (75 %), 1:40 left\n"


def test_progress_on_other_ranks_is_silent(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(terminal, "LOG_SECONDS", 0.0)
    with progress(10, "Writing") as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_draws_a_bar():
    """In a pseudo-terminal of its own: rich looks at the real standard error."""
    pty = pytest.importorskip("pty")
    import os

    main, other = pty.openpty()
    code = "from hftune.utils.terminal import progress\n"
    code += "for _ in progress(range(3), 'Reading', 'days'): pass"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", code], stderr=other, check=True, env=environment)
    text = os.read(main, 100_000).decode()
    os.close(main)
    os.close(other)
    assert "Reading" in text and "3/3" in text and "days" in text and "ETA" in text
