"""Progressive training: fractions, layout, learning curve, plans that go on."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from processes import run_alone, run_together
from transformers import AutoModelForSequenceClassification, BertConfig, TrainerCallback

sys.path.insert(0, str(Path(__file__).parent))
import progressive_run
from progressive_run import make_trainer, outcome

from hftune.configuration.stage_arguments import ProgressiveArguments, StageArguments
from hftune.configuration.staged_training_arguments import StagedTrainingArguments
from hftune.training.learning_curve import fit_learning_curve
from hftune.training.progressive import ProgressiveTrainer, progressive_stages
from hftune.utils.errors import ConfigurationError, DataError

torch.set_num_threads(1)
GUIDE = dict(start_ratio=0.1, step_size=0.1, max_ratio=1.0)


def run(output_dir, **settings) -> int:
    return run_alone(lambda: progressive_run.run(output_dir, settings))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (GUIDE, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        (dict(GUIDE, max_ratio=0.1), [0.1]),
        (dict(GUIDE, max_ratio=0.5), [0.1, 0.2, 0.3, 0.4, 0.5]),
        (dict(GUIDE, start_ratio=0.5), [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        (dict(GUIDE, step_size=0.4), [0.1, 0.5, 0.9, 1.0]),
        (dict(GUIDE, start_ratio=0.125, step_size=0.125, max_ratio=0.5), [0.125, 0.25, 0.375, 0.5]),
        (dict(GUIDE, progressive=False), [1.0]),
    ],
)
def test_fractions(settings, expected):
    assert ProgressiveArguments(**settings).ratios == expected


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        (
            dict(start_ratio=10, max_ratio=1.0),
            [
                "start_ratio: found 10, expected a fraction of the data above 0 and up to 1 "
                "(10 % is 0.1)",
                "start_ratio is 10 and max_ratio 1: the first stage cannot have more data than",
            ],
        ),
        (dict(start_ratio=0.5, max_ratio=0.2), ["start_ratio is 0.5 and max_ratio 0.2"]),
        (dict(step_size=0.0), ["step_size: found 0, expected a fraction"]),
        (dict(max_ratio=-1.0), ["max_ratio: found -1", "start_ratio is 0.1 and max_ratio -1"]),
        (dict(epochs_per_stage=0), ["epochs_per_stage: found 0, expected more than 0"]),
        (dict(max_memory_mb=0.0), ["max_memory_mb: found 0.0, expected more than 0"]),
        (dict(stage_batch_sizes="big"), ["stage_batch_sizes: found 'big', expected fixed, table"]),
        (dict(stage_batch_sizes="0.1:0"), ["stage_batch_sizes: found '0.1:0'"]),
        (dict(stage_batch_sizes="2:8"), ["stage_batch_sizes: found '2:8'"]),
    ],
)
def test_wrong_settings(settings, messages):
    with pytest.raises(ConfigurationError) as caught:
        ProgressiveArguments(**settings)
    assert len(caught.value.problems) == len(messages)
    for problem, message in zip(caught.value.problems, messages, strict=True):
        assert problem.startswith(message)


def test_batch_sizes():
    table = ProgressiveArguments(stage_batch_sizes="table")
    assert [table.batch_size(r) for r in (0.1, 0.2, 0.4, 0.5, 0.9, 1.0)] == [2, 2, 2, 4, 4, 4]
    own = ProgressiveArguments(stage_batch_sizes="0.2:8,0.5:16")
    assert [own.batch_size(r) for r in (0.1, 0.2, 0.3, 0.5, 1.0)] == [8, 8, 8, 16, 16]
    assert ProgressiveArguments().batch_size(0.5) is None


def test_the_layout_of_the_guide(whole):
    assert (whole / "progressive_training_results.json").is_file()
    assert len(list((whole / "logs").glob("progressive_training_*.log"))) == 1
    for name in ("stage_1_10pct", "stage_2_40pct", "stage_3_70pct", "stage_4_100pct"):
        stage = whole / name
        for weights in ("best_model", "epoch_1", "epoch_2"):
            assert (stage / "checkpoints" / weights / "model.safetensors").is_file()
        assert len(list((stage / "logs").glob(f"{name}_*.log"))) == 1
        assert (stage / "training_metrics.json").is_file()
    summary = (whole / "progressive_training_summary.txt").read_text()
    assert summary.startswith("Progressive training: completed, 4 stages done\n")
    rows = re.findall(r"^ +(\d)  +(\d+) %  +(\d+)  +2  +4 x 2  +(\d+) ", summary, re.MULTILINE)
    # 2 epochs of half-up rounded tenths of 3 x 25 samples, 8 a step.
    assert rows == [
        ("1", "10", "9", "4"),
        ("2", "40", "30", "8"),
        ("3", "70", "54", "14"),
        ("4", "100", "75", "20"),
    ]


def test_results_have_the_curve(whole):
    results = json.loads((whole / "progressive_training_results.json").read_text())
    assert (results["status"], results["metric"]) == ("completed", "error")
    assert results["weights"] == "carried from stage to stage"
    assert [s["score"] for s in results["stages"]] == [
        pytest.approx(s["metrics"]["error"]) for s in results["stages"]
    ]
    assert results["stages"][0]["resources"]["memory_bytes"] > 1e8
    trainer = make_trainer(whole)
    trainer.train()
    points = trainer.points(trainer.results, whole)
    curve = fit_learning_curve(points, greater_is_better=False, bounds=None)
    assert results["learning_curve"]["expected"] == {
        "samples": 150,
        **curve.predict(150).as_dict(),
    }


def test_subsets_are_nested_and_keep_the_classes():
    class Rows(list):
        def select(self, indices):
            return Rows(self[i] for i in indices)

    rows = Rows(range(1000))
    labels = [0 if i < 700 else 1 if i < 950 else 2 for i in range(1000)]
    stages = progressive_stages(ProgressiveArguments(), rows, None, labels, seed=1)
    before = set()
    for stage, ratio in zip(stages, ProgressiveArguments().ratios, strict=True):
        chosen = set(stage.train_dataset)
        assert before <= chosen
        counts = [sum(labels[i] == c for i in chosen) for c in range(3)]
        assert counts == pytest.approx([700 * ratio, 250 * ratio, 50 * ratio], abs=0.5)
        assert stage.settings["samples"] == len(chosen)
        before = chosen


def test_small_stages(tmp_path, capsys):
    """No class is left out, and no batch is larger than the data."""
    stages = progressive_stages(
        ProgressiveArguments(start_ratio=0.01, max_ratio=0.01),
        list(range(75)),
        None,
        [i % 3 for i in range(75)],
        seed=0,
    )
    assert sorted(i % 3 for i in stages[0].train_dataset) == [0, 1, 2]
    assert "3 of 3 classes have a single sample in 1 % of the data" in capsys.readouterr().err

    trainer = make_trainer(tmp_path, dict(start_ratio=0.01, max_ratio=0.01), logging_steps=1)
    trainer.train()
    batch = trainer.results[0]["batch"]
    assert batch["per_device_train_batch_size"] * batch["gradient_accumulation_steps"] <= 4
    assert "1 % of the data, 3 samples, batch 3, from" in capsys.readouterr().err
    with pytest.raises(DataError, match="no samples"):
        progressive_stages(ProgressiveArguments(), [], None, None, seed=0)


@pytest.mark.parametrize(
    "points", [["step:2:3", "rename:1", "between:3"], ["save:3:7", "journal:2", "weights:4"]]
)
def test_killed_runs_end_the_same(whole, tmp_path, points):
    for point in points:
        assert run(tmp_path, kill=point) == -signal.SIGKILL
    assert run(tmp_path) == 0
    assert outcome(tmp_path) == outcome(whole)


def test_two_processes(tmp_path):
    def together(folder, **settings):
        return run_together(lambda rank: progressive_run.run(folder, settings))

    settings = dict(progressive=dict(start_ratio=0.4))
    assert together(tmp_path / "whole", **settings) == [0, 0]
    assert -signal.SIGKILL in together(tmp_path / "killed", kill="step:2:3", **settings)
    assert together(tmp_path / "killed", **settings) == [0, 0]
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_the_workflow_of_the_guide(tmp_path, capsys):
    """A quick check, then up to a half, then on from the half's model by itself."""
    make_trainer(tmp_path, dict(max_ratio=0.1)).train()
    make_trainer(tmp_path, dict(max_ratio=0.4)).train()
    half = (tmp_path / "stage_2_40pct/checkpoints/best_model/model.safetensors").stat()
    trainer = make_trainer(tmp_path, dict(start_ratio=0.4, epochs_per_stage=3))
    trainer.train()
    assert [r["name"] for r in trainer.results] == [
        "stage_1_10pct",
        "stage_2_40pct",
        "stage_3_70pct",
        "stage_4_100pct",
    ]
    assert [r["epochs"] for r in trainer.results] == [2, 2, 3, 3]
    assert trainer.results[2]["start_weights"] == "stage_2_40pct/checkpoints/best_model"
    after = (tmp_path / "stage_2_40pct/checkpoints/best_model/model.safetensors").stat()
    assert after.st_mtime_ns == half.st_mtime_ns
    capsys.readouterr()
    make_trainer(tmp_path, dict(start_ratio=0.4, epochs_per_stage=3)).train()
    assert "all 4 stages are done, nothing to train" in capsys.readouterr().err


def test_other_seeds_and_data_are_another_plan(whole):
    with pytest.raises(ConfigurationError) as caught:
        make_trainer(whole, seed=7).train()
    problems = caught.value.problems
    assert problems[0].startswith("data_seed: the plan in this folder has 42, this run 7.")
    assert any(p.startswith("seed: the plan in this folder has 42") for p in problems)


def test_stop_when_the_gain_is_small(tmp_path, capsys):
    settings = dict(stop_when_gain_below=100.0, step_size=0.2)
    trainer = make_trainer(tmp_path, settings)
    trainer.train()
    assert len(trainer.results) == 3  # the curve needs three points
    results = json.loads((tmp_path / "progressive_training_results.json").read_text())
    assert results["status"] == "stopped"
    assert "less than stop_when_gain_below 100" in results["reason"]
    capsys.readouterr()
    make_trainer(tmp_path, settings).train()
    assert "the run has ended, nothing to train: the next stage is" in capsys.readouterr().err
    go_on = make_trainer(tmp_path, dict(step_size=0.2))
    go_on.train()
    assert len(go_on.results) == 6
    results = json.loads((tmp_path / "progressive_training_results.json").read_text())
    assert (results["status"], results["reason"]) == ("completed", None)


def test_past_the_memory_limit_batches_are_smaller(tmp_path, capsys):
    logged = []

    class Listener(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logged.append(dict(logs))

    settings = dict(max_memory_mb=1.0, max_ratio=0.7)
    trainer = make_trainer(tmp_path, settings, callbacks=[Listener()])
    trainer.train()
    batches = [
        (r["batch"]["per_device_train_batch_size"], r["batch"]["gradient_accumulation_steps"])
        for r in trainer.results
    ]
    # The second time it is clear that this does not help.
    assert batches == [(4, 2), (2, 4), (2, 4)]
    said = capsys.readouterr().err
    assert "the stage before took more than --max_memory_mb 1" in said
    assert any(logs.get("memory_peak_bytes", 0) > 1e8 for logs in logged)


def test_a_batch_that_does_not_fit_is_taken_in_parts(tmp_path, capsys):
    trainer = make_trainer(tmp_path / "found", dict(start_ratio=0.4), hungry=True)
    trainer.train()
    for result in trainer.results:
        batch = result["batch"]
        assert batch["per_device_train_batch_size"] == 2
        assert batch["gradient_accumulation_steps"] == 4
    said = " ".join(capsys.readouterr().err.split())
    found = "out of memory with a micro batch of 4; going on with 2 x 4 accumulated"
    assert said.count(found) == 1  # later stages begin with what fits
    batch = dict(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    given = make_trainer(tmp_path / "given", dict(start_ratio=0.4), **batch)
    given.train()
    for one, other in zip(trainer.results, given.results, strict=True):
        assert one["score"] == other["score"]


def test_weights_load_with_from_pretrained(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        num_labels=2,
    )
    rows = [{"input_ids": [i % 30, 3, 4], "labels": i % 2} for i in range(20)]
    trainer = ProgressiveTrainer(
        AutoModelForSequenceClassification.from_config(config),
        StagedTrainingArguments(output_dir=str(tmp_path), disable_tqdm=True, use_cpu=True),
        train_dataset=rows,
        eval_dataset=rows,
        progressive=ProgressiveArguments(start_ratio=0.5, step_size=0.5, epochs_per_stage=1),
        staging=StageArguments(),
    )
    trainer.train()
    for name in ("stage_1_50pct", "stage_2_100pct"):
        for weights in ("best_model", "epoch_1"):
            folder = tmp_path / name / "checkpoints" / weights
            AutoModelForSequenceClassification.from_pretrained(folder)
    best = AutoModelForSequenceClassification.from_pretrained(folder.parent / "best_model")
    batch = torch.tensor([[1, 3, 4]])
    with torch.no_grad():
        assert torch.equal(best.eval()(batch).logits, trainer.model.eval()(batch).logits)
    assert trainer.score_name == "loss"
