"""The two sides of ``benchmarks/aardvark_chain.py`` compute the same; nothing is timed here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_alone, run_together

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import aardvark_chain
import aardvark_reference

torch.set_num_threads(1)
SIZES = {
    "grid": (11, 20), "frequency": 6, "rows": 40, "lead_times": 2, "epochs": 2, "batch": 8,
    "embed_dim": 32, "depth": 2, "num_heads": 2, "head_depth": 1, "patch_size": 5, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> dict:
    """Data of a size that takes no time."""
    folder = tmp_path_factory.mktemp("aardvark")
    task = {**SIZES, "data": str(folder / "data"), "folder": str(folder / "none")}
    aardvark_chain.make_data(task)
    return task


def in_folder(task: dict, folder: Path, name: str) -> dict:
    (folder / name).mkdir()
    return {**task, "folder": str(folder / name)}


def test_the_same_weights_give_the_same_loss_gradients_and_predictions(task):
    assert max(aardvark_chain.compare(task).values()) < 1e-5


def test_both_chains_arrive_at_the_same_states(task, tmp_path):
    ours, theirs = (in_folder(task, tmp_path, name) for name in ("hftune", "reference"))
    aardvark_chain.hftune_chain(ours)
    aardvark_chain.reference_chain(theirs)
    states = {
        f"ic_{split}_{lead_time}.mmap"
        for split in ("val", "test", "test_target")
        for lead_time in (1, 2)
    } | {"ic_train_2.mmap"}
    # Both keep the newest training states only.
    assert {path.name for path in (tmp_path / "reference").glob("*.mmap")} == states
    config = aardvark_reference.read_config(task)
    start = np.fromfile(Path(task["data"]) / "ic_test.mmap", "<f4")
    for name in states - {"ic_train_2.mmap"}:
        found, expected = (
            np.fromfile(tmp_path / side / name, "<f4").reshape(-1, *task["grid"], 24)
            for side in ("hftune", "reference")
        )
        apart = np.sqrt((((found - expected) / config["std"]) ** 2).mean())
        moved = found - start.reshape(-1, *found.shape[1:])[: len(found)]
        assert apart < 1e-5 < np.sqrt(((moved / config["std"]) ** 2).mean()), name


def test_two_processes_write_the_files_that_one_writes(task, tmp_path):
    """Of the same model: at a learning rate of 0 training leaves it as it was."""

    def run(name: str) -> None:
        torch.set_num_threads(1)
        settings = {"learning_rate": 0.0, "num_train_epochs": 1}
        aardvark_chain.hftune_chain({**task, "folder": str(tmp_path / name)}, **settings)

    assert run_alone(lambda: run("one")) == 0
    assert run_together(lambda rank: run("two")) == [0, 0]
    names = sorted(path.name for path in (tmp_path / "one").glob("ic_*.mmap"))
    assert len(names) == 7
    assert sorted(path.name for path in (tmp_path / "two").glob("ic_*.mmap")) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
