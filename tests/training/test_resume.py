"""Runs that are killed reach the weights, logs and health records of a run that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import run_alone, run_together

sys.path.insert(0, str(Path(__file__).parent))
import small_run

torch.set_num_threads(1)
SCRIPT = Path(small_run.__file__)


def run(output_dir, **settings) -> int:
    return run_alone(lambda: small_run.run(output_dir, settings))


def outcome(output_dir) -> dict:
    return json.loads((Path(output_dir) / "results.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return outcome(folder)


@pytest.mark.parametrize(
    "points",
    [
        ["step:0"],
        ["step:5"],  # in the middle of the first epoch
        ["step:7"],  # in the middle of the second
        ["model:6"],
        ["optimizer:6"],
        ["manifest:6"],
        ["rotation:9"],
        ["evaluation:9"],
        ["step:4", "manifest:6", "step:8", "step:11", "optimizer:12"],
    ],
    ids=lambda points: ",".join(points),
)
def test_killed_runs_end_the_same(whole, tmp_path, points):
    for point in points:
        assert run(tmp_path, kill=point) == -signal.SIGKILL
        assert not (tmp_path / "results.json").exists()
    assert run(tmp_path) == 0
    assert outcome(tmp_path) == whole


def test_with_workers(tmp_path):
    settings = dict(dataloader_num_workers=2)
    assert run(tmp_path / "whole", **settings) == 0
    assert run(tmp_path / "killed", kill="step:7", **settings) == -signal.SIGKILL
    assert run(tmp_path / "killed", **settings) == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_epoch_strategies(tmp_path):
    settings = dict(eval_strategy="epoch", save_strategy="epoch", logging_strategy="epoch")
    assert run(tmp_path / "whole", **settings) == 0
    assert run(tmp_path / "killed", kill="step:12", **settings) == -signal.SIGKILL
    assert run(tmp_path / "killed", **settings) == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def script(output_dir, **settings) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(output_dir), json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_saves_and_exits_with_75(whole, tmp_path):
    process = script(tmp_path, stop=7)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 75, said
    assert "SIGTERM: finishing this step, then saving" in said
    assert f"the same command goes on from {tmp_path / 'checkpoint-8'}" in said
    # The step at hand is done and saved, though neither a save nor a log was due.
    assert small_run.saving.verify_checkpoint(tmp_path / "checkpoint-8") == []
    assert not (tmp_path / "results.json").exists()
    assert run(tmp_path) == 0
    assert outcome(tmp_path) == whole


@pytest.mark.parametrize("stop", [4, 9])
def test_signal_at_the_end_of_an_epoch(tmp_path, stop):
    """5 steps an epoch: what belongs to the end of an epoch is done before the run stops."""
    settings = dict(eval_strategy="epoch", save_strategy="epoch", logging_strategy="epoch")
    assert run(tmp_path / "whole", **settings) == 0

    assert run(tmp_path / "stopped", stop=stop, **settings) == 75
    assert run(tmp_path / "stopped", **settings) == 0
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def two_processes(output_dir, **settings) -> list[int]:
    return run_together(lambda rank: small_run.run(output_dir, settings))


def test_two_processes(tmp_path):
    assert two_processes(tmp_path / "whole") == [0, 0]
    for kill in ("step:5", "manifest:6"):
        assert -signal.SIGKILL in two_processes(tmp_path / "killed", kill=kill)
    # One process hears of it, both stop at the same step.
    assert two_processes(tmp_path / "killed", stop=4, stop_rank=1) == [75, 75]
    assert two_processes(tmp_path / "killed") == [0, 0]
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(whole, tmp_path, capsys):
    assert run(tmp_path) == 0
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("checkpoint-*/*")}
    trainer = small_run.make_trainer(tmp_path)
    output = trainer.train()
    assert output.global_step == 15
    assert "nothing to train" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("checkpoint-*/*")} == before
    again = small_run.results(trainer)
    assert json.loads(json.dumps(again)) == whole
