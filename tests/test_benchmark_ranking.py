"""The two sides of ``benchmarks/ranking_pairs.py`` compute the same, of as many pairs; the scripts
run. Nothing is timed here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import ranking_gpu
import ranking_pairs
import ranking_reference
import ranking_sides

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> dict:
    """Images and a model of sizes that take no time."""
    folder = tmp_path_factory.mktemp("ranking")
    task = {
        **ranking_pairs.FULL,
        **ranking_pairs.TINY,
        "data": str(folder / "data"),
        "folder": str(folder),
    }
    ranking_sides.make_data(task)
    return task


def test_the_same_weights_and_pairs_give_the_same_loss_and_gradients(task):
    found = ranking_sides.compare(task)
    assert set(found) == {"loss, pairs", "gradients, pairs", "loss, batch", "gradients, batch"}
    assert max(found.values()) < 1e-4


def test_the_guide_lists_all_ordered_pairs():
    pairs = ranking_reference.ReferencePairs(["c", "b", "B"], [0, 1, 1]).pairs
    assert pairs == [("c", "b", -1), ("c", "B", -1), ("b", "c", 1), ("B", "c", 1)]


def test_the_guide_kept_features_and_its_images_give_the_same_scores(task):
    images, features = (
        ranking_sides.train_guide(task, 12, seed=3, on_features=kept) for kept in (False, True)
    )
    # 3 images of each of 4 tiers: 12 x 9 ordered pairs, of 2 epochs, in batches of 8
    assert images["updates"] == features["updates"] == 216
    assert images["steps"] == features["steps"] == 28
    assert np.ptp(images["scores"]) > 1e-3
    np.testing.assert_allclose(features["scores"], images["scores"], atol=1e-6)


def test_hftune_makes_as_many_pair_updates_as_the_guide(task):
    batches = ranking_sides.train_hftune(task, 12)
    most = 3 * 8 + 4  # pairs in a batch of 8 images of 4 tiers: (64 - 4 x 4) / 2 and a few
    assert 216 <= batches["updates"] < 216 + most
    single = ranking_sides.train_hftune(task, 12, single=True)
    assert single["updates"] == 216
    assert single["steps"] == 28


def test_both_sides_begin_with_the_same_weights(task):
    ours, theirs = (ranking_sides.make_model(task, 1).state_dict() for _ in range(2))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_script_prints_its_table(capsys, tmp_path):
    found = tmp_path / "found.json"
    options = ["--tiny", "--one_process", "--repeats", "1", "--json", str(found)]
    assert ranking_pairs.main(options) in (0, 1)  # such sizes miss what is asked of large ones
    head, line, *rows = cells(capsys.readouterr().out)
    assert head == ["", "hftune", "the guide's way", "ratio", "target"]
    assert all(len(row) == 5 for row in rows)
    by_name = {row[0]: row[1:] for row in rows}
    passes = by_name["backbone passes, all 10 pairs of 5 images: batch_compare"]
    assert passes == ["5", "20", "1/4", "= 5"]
    assert "384 pair-updates" in rows[0][0]  # 2 epochs of 16 x 12 ordered pairs
    numbers = json.loads(found.read_text())
    assert numbers["exact_accuracy"]["same"]
    assert numbers["exact_accuracy"]["pairs"] == 6 * 50**2
    assert numbers["pairs_memory"]["pairs"] == 12 * 50**2
    assert numbers["list_memory"]["pairs"] == 12 * 25**2
    assert [len(turns) for turns in numbers["turns"].values()] == [1, 1, 1]


def test_the_gpu_script_runs_on_a_cpu(capsys, tmp_path):
    found = tmp_path / "found.json"
    options = ["--small", "--device", "cpu", "--sizes", "28", "--json", str(found)]
    assert ranking_gpu.main(options) == 0
    head, line, *rows = cells(capsys.readouterr().out)
    assert head == ["pixels", "", "measured", "the guide's target"]
    assert len(rows) == 10 and all(len(row) == 4 for row in rows)
    report = json.loads(found.read_text())["28"]
    assert not report["frozen"]["trains_backbone"]
    assert report["last 2 blocks"]["trains_backbone"] and report["LoRA rank 8"]["trains_backbone"]
    hours = report["hours"]
    # 75 million ordered pairs, against 10,000 an epoch
    assert hours["guide, all pairs"] == pytest.approx(7500 * hours["guide, 10,000 pairs"])
    assert hours["features"] < hours["hftune"]
