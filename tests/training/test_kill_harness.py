"""Kills at armed points and at random times; the long form is benchmarks/kill_and_resume.py."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
import torch
from kill_harness import RANDOM, Reference, Target, attempt, plan_series, run_series, targets

torch.set_num_threads(1)
TARGETS = targets()


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict[str, Reference]:
    folder = tmp_path_factory.mktemp("whole")
    return {n: Reference(t, folder / n.replace(" ", "_")) for n, t in TARGETS.items()}


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("plain", ["evaluation:3", "optimizer:6", "quarantine:0", "rotation:9", "deleting:12"]),
        ("plain", [RANDOM, RANDOM, RANDOM]),
        ("two processes", ["model:3", "manifest:6"]),
        ("two processes", [RANDOM, RANDOM]),
        ("progressive", ["rename:1", "between:2", "save:3:7", "weights:4"]),
        ("progressive", [RANDOM]),
        ("lead time chain", ["block:1", "manifest:2", "tidy:3"]),
        ("lead time chain", ["save:1:8", "finish:2", "journal:3"]),
    ],
    ids=str,
)
def test_killed_runs_end_the_same(references, tmp_path, name, points):
    draw = random.Random(str(points))
    series = run_series(TARGETS[name], points, references[name], tmp_path / "run", draw)
    log = tmp_path / "run.log"
    said = log.read_text()[-3000:] if log.exists() else ""
    assert series.passed, f"{series.note}\n{series.kills}\n{said}"


# The harness itself


def note(folder: Path, point: str | None) -> None:
    """A run that is wrong: it counts how often it was started."""
    with open(folder / "starts", "a") as stream:
        stream.write("x")
    if point == "here":
        os.kill(os.getpid(), signal.SIGKILL)


WRONG = Target("wrong", note, lambda folder: (folder / "starts").read_text(), [["here"]])


def test_it_sees_a_run_that_ends_differently(tmp_path):
    reference = Reference(WRONG, tmp_path / "whole")
    series = run_series(WRONG, ["here"], reference, tmp_path / "run", random.Random(0))
    assert series.kills[0].landed
    assert not series.equal and not series.passed
    assert series.note == "the outcome differs"
    assert (tmp_path / "run").is_dir()


def test_it_sees_a_kill_that_did_not_land(tmp_path):
    right = Target("right", lambda folder, point: None, lambda folder: 1, [["nowhere"]])
    reference = Reference(right, tmp_path / "whole")
    series = run_series(right, ["nowhere"], reference, tmp_path / "run", random.Random(0))
    assert series.equal
    assert not series.kills[0].landed and not series.passed


def test_a_process_that_dies_by_itself_is_no_kill(tmp_path):
    def fail(folder, point):
        raise SystemExit(3)

    tried = attempt(Target("fails", fail, str, []), tmp_path / "run", point="x")
    assert tried.statuses == [3] and "armed" not in tried.said


def test_plans_are_in_the_order_of_a_run():
    draw, target = random.Random(0), TARGETS["progressive"]
    for _ in range(100):
        groups = [
            next(i for i, group in enumerate(target.points) if point in group)
            for point in plan_series(target, draw, at_random=False)
        ]
        assert groups == sorted(set(groups)) and groups
    assert set(plan_series(target, draw, at_random=True)) == {RANDOM}
