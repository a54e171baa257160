import math

import pytest

from hftune.tracking.report import Report
from hftune.tracking.report_run import attempts_section, run_facts, run_section
from hftune.tracking.report_training import smoothed, training_section
from hftune.tracking.run_record import RunRecord
from hftune.tracking.run_view import RunView
from hftune.utils.files import read_json

HEALTH = {
    "counts": {"non_finite": 0, "spike": 2, "overflow": 0, "skipped": 1},
    "steps": [10, 20, 30],
    "norm": [1.0, None, 2.0],
    "norm_max": [1.5, None, 3.0],
    "modules": {"encoder": [0.5, None, 0.6], "new": [0.1, 0.2]},
    "events": [
        {
            "step": 21, "kind": "spike", "action": "skip", "norm": None, "median": 1.0,
            "worst": [{"module": "encoder.level_agg", "norm": None}],
        }
    ],
}  # fmt: skip


def charts(section):
    found = []
    for block in section.blocks:
        if block["kind"] == "curves":
            found.append(block["spec"])
        for inner in block.get("sections", [block["section"]] if "section" in block else []):
            found += charts(inner)
    return found


def tiles(section):
    return {tile.label: tile for b in section.blocks if b["kind"] == "tiles" for tile in b["tiles"]}


def test_curves_and_tiles_of_a_training():
    history = [
        {
            "step": 10,
            "loss": 2.0,
            "grad_norm": 1.0,
            "learning_rate": 1e-3,
            "loss_2t": 1,
            "loss_z": 3,
        },
        {"step": 10, "eval_ratio": 0.9, "eval_loss": 1.9},
        {"step": 20, "loss": None, "grad_norm": 1.0, "learning_rate": 1e-4},
        {
            "step": 20,
            "loss": 1.0,
            "grad_norm": 1.1,
            "learning_rate": 5e-4,
            "loss_2t": 1,
            "loss_z": 2,
        },
        {"step": 20, "eval_ratio": 0.8, "eval_loss": 1.7},
        {"step": 20, "train_runtime": 65.0, "train_steps_per_second": 0.3077, "train_loss": 1.5},
    ]
    report = Report("a")
    section = training_section(
        report, history, HEALTH, metric="eval_ratio", metric_label="ratio", reference=("one", 1.0)
    )
    loss, ratio, norms, rate, parts, modules = charts(section)
    assert [line["name"] for line in loss["series"]] == ["training", "validation"]
    assert (loss["series"][0]["x"], loss["series"][0]["y"]) == ([10, 20], [2.0, 1.0])  # the resumed
    assert [line["y"] for line in ratio["series"]] == [[0.9, 0.8], [1.0, 1.0]]
    assert ratio["series"][1]["dashed"]
    assert [line["y"] for line in norms["series"]] == [[1.0, None, 2.0], [1.5, None, 3.0]]
    assert rate["series"][0]["y"] == [1e-3, 5e-4]
    assert [line["name"] for line in parts["series"]] == ["2t", "z"]
    assert [line["x"] for line in modules["series"]] == [[10, 20, 30], [20, 30]]
    found = tiles(section)
    assert found["Steps"].value == 20 and found["Time"].value == "1:05"
    assert found["Best ratio"].value == 0.8 and found["Best ratio"].note == "at step 20"
    assert found["Unhealthy gradients"].value == 2 and found["Unhealthy gradients"].tone == "bad"
    assert "encoder.level_agg" in report.render()


def test_a_training_with_hardly_anything_logged():
    report = Report("a")
    training_section(report, [{"step": 3, "loss": math.nan}])
    history = [{"step": 3, "eval_acc": 0.5}, {"step": 4, "eval_acc": 0.7}]
    section = training_section(
        report, history, metric="eval_acc", metric_label="accuracy", greater_is_better=True
    )
    assert tiles(section)["Best accuracy"].value == 0.7
    report.render()


def test_smooth_curves_follow_the_values():
    values = [math.exp(-i / 50) for i in range(400)]
    values[100] = math.nan
    raw, smooth = smoothed("x", list(range(400)), values)
    assert raw.faint and raw.color == smooth.color
    assert all(abs(a - b) < 0.15 for a, b in zip(values, smooth.y, strict=True) if a == a)


def test_settings_machine_and_attempts(tmp_path):
    table = {
        "training": {
            "learning_rate": {"value": 1e-4, "source": "command line"},
            "bf16": {"value": False, "source": "default"},
        }
    }
    with pytest.raises(KeyboardInterrupt):
        with RunRecord.start(tmp_path, task="t", configuration=table, seeds={"seed": 1}):
            raise KeyboardInterrupt
    table["training"]["learning_rate"]["value"] = 3e-4
    with RunRecord.start(tmp_path, task="t", configuration=table) as record:
        with record.timed("training"):
            pass
    run = read_json(record.path)
    report = Report("a", facts=run_facts(run))
    section = run_section(report, run)
    attempts_section(report, RunView.from_folder(tmp_path))
    changed = section.blocks[0]
    assert [[cell.value for cell in row] for row in changed["rows"]] == [
        ["training", "learning_rate", "0.0003", "command line"]
    ]
    text = report.render()
    assert "0.0001 → 0.0003" in text and "killed" in text and "completed" in text
    assert report.facts["attempts"] == "2"
