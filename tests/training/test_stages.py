"""Runs in stages: what they leave, kills, signals, plans that change."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import run_alone, run_together
from safetensors.torch import load_file
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parent))
import small_run
import staged_run
from staged_run import make_trainer, outcome, specs

from hftune.configuration.arguments import HFTuneArguments
from hftune.training.checkpoints import find_checkpoints, verify_checkpoint
from hftune.training.stages import StagedTrainer, StageSpec
from hftune.training.trainer import HFTuneTrainer
from hftune.utils.errors import CheckpointError, ConfigurationError, HftuneError
from hftune.utils.seeds import derive_seed

torch.set_num_threads(1)
SCRIPT = Path(staged_run.__file__)


def run(output_dir, **settings) -> int:
    return run_alone(lambda: staged_run.run(output_dir, settings))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


def files(folder: Path) -> dict[str, int]:
    """Every file of the stages and when it was written."""
    return {str(p): p.stat().st_mtime_ns for p in folder.glob("part_*/**/*") if p.is_file()}


def test_each_stage_has_its_folder(whole):
    names = ["part_1_20", "part_2_40", "part_3_75"]
    assert [s["name"] for s in json.loads((whole / "plan.json").read_text())["stages"]] == names
    for name in names:
        stage = whole / name
        assert {p.name for p in (stage / "checkpoints").iterdir()} >= {
            "best_model",
            "epoch_1",
            "epoch_2",
        }
        assert find_checkpoints(stage / "checkpoints") == []  # they were for resume
        assert verify_checkpoint(stage / "checkpoints" / "best_model") == []
        (log,) = (stage / "logs").glob(f"{name}_2*.log")
        assert "eval_error" in log.read_text()
        metrics = json.loads((stage / "training_metrics.json").read_text())
        assert metrics["best_metric"] == metrics["metrics"]["error"]
    (log,) = (whole / "logs").glob("stages_training_2*.log")
    assert "stage 3 of 3: 75 samples" in log.read_text()
    assert not (whole / "initial_model").exists()


def test_a_stage_is_the_run_one_would_have_got_alone(whole, tmp_path):
    """Stage 2, trained by a plain trainer from what stage 1 left."""
    seed = derive_seed(42, "stage", 2) % 2**31
    args = HFTuneArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        weight_decay=0.01,
        logging_steps=2,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
        data_seed=seed,
    )
    model = small_run.SmallModel()
    model.load_state_dict(load_file(whole / "part_1_20/checkpoints/best_model/model.safetensors"))
    trainer = HFTuneTrainer(
        model, args, train_dataset=staged_run.Part(40), evaluator=small_run.Evaluate()
    )
    trainer.train()
    staged = load_file(whole / "part_2_40/checkpoints/best_model/model.safetensors")
    alone = trainer.model.state_dict()
    assert staged.keys() == alone.keys()
    assert all(torch.equal(staged[name], alone[name]) for name in staged)


@pytest.mark.parametrize(
    "points",
    [
        ["step:1:2"],
        ["step:2:7"],
        ["save:2:5"],
        ["evaluation:3:10"],
        ["weights:1"],
        ["sealed:2"],
        ["journal:2"],
        ["rename:1"],
        ["between:1"],
        ["prune:2"],
        ["step:1:4", "weights:1", "rename:2", "save:3:10", "journal:3"],
    ],
    ids=lambda points: ",".join(points),
)
def test_killed_runs_end_the_same(whole, tmp_path, points):
    for point in points:
        assert run(tmp_path, kill=point) == -signal.SIGKILL
    assert run(tmp_path) == 0
    assert outcome(tmp_path) == outcome(whole)
    assert not list(tmp_path.glob("part_*/checkpoints/.*.partial"))
    assert not list(tmp_path.glob("part_*/checkpoints/checkpoint-*"))


def test_a_signal_stops_and_the_same_command_goes_on(whole, tmp_path):
    assert run(tmp_path, stop=[2, 7]) == 75
    journal = json.loads((tmp_path / "stages.json").read_text())
    assert [s["status"] for s in journal["stages"].values()] == ["done", "running"]
    assert find_checkpoints(tmp_path / "part_2_40/checkpoints")[-1].name == "checkpoint-8"
    assert run(tmp_path) == 0
    assert outcome(tmp_path) == outcome(whole)


def test_a_finished_plan_does_nothing(whole, capsys):
    before = files(whole)
    trainer = make_trainer(whole)
    output = trainer.train()
    assert "all 3 stages are done, nothing to train" in capsys.readouterr().err
    assert files(whole) == before
    assert output.global_step == trainer.state.global_step == 20
    best = load_file(whole / "part_3_75/checkpoints/best_model/model.safetensors")
    assert all(torch.equal(best[n], p) for n, p in trainer.model.state_dict().items())
    assert [r["samples"] for r in trainer.results] == [20, 40, 75]


def test_a_plan_is_extended(whole, tmp_path):
    assert run_alone(lambda: make_trainer(tmp_path, specs((20, 40))).train()) == 0
    before = files(tmp_path)
    assert run_alone(lambda: make_trainer(tmp_path).train()) == 0
    assert before.items() <= files(tmp_path).items()  # what is past has not changed
    assert outcome(tmp_path) == outcome(whole)


def test_a_run_that_begins_with_a_stage_that_is_done_goes_on_from_it(tmp_path, capsys):
    """The guide: 10 to 50 %, then 50 to 100 % with other epochs."""
    assert run_alone(lambda: make_trainer(tmp_path, specs((20, 40))).train()) == 0
    before = files(tmp_path)
    later = specs((40, 60, 75), num_train_epochs=1)
    trainer = make_trainer(tmp_path, later)
    trainer.train()
    assert before.items() <= files(tmp_path).items()
    assert [r["name"] for r in trainer.results] == [
        "part_1_20",
        "part_2_40",
        "part_3_60",
        "part_4_75",
    ]
    assert [r["epochs"] for r in trainer.results] == [2, 2, 1, 1]
    assert trainer.results[2]["start_weights"] == "part_2_40/checkpoints/best_model"
    assert "stage 3 of 4: 60 samples" in capsys.readouterr().err


def test_other_plans_are_refused(whole):
    before = files(whole)
    cases = [
        (specs((20, 30, 75)), {}, "stage 2 ('40 samples', which is done): samples: the plan in"),
        (specs((20, 40, 75), num_train_epochs=3), {}, "num_train_epochs: the plan in this folder"),
        (specs((30, 75)), {}, "has no stage '30 samples' to go on from"),
    ]
    for stages, settings, message in cases:
        with pytest.raises(ConfigurationError) as caught:
            make_trainer(whole, stages, **settings).train()
        assert message in str(caught.value)
        assert "another output_dir" in str(caught.value)
    assert files(whole) == before


def test_a_shorter_plan_trains_nothing(whole, capsys):
    before = files(whole)
    make_trainer(whole, specs((20, 40))).train()
    assert "nothing to train" in capsys.readouterr().err
    assert files(whole) == before


def test_changed_settings_of_a_stage_that_has_begun(tmp_path):
    assert run(tmp_path, kill="step:1:4") == -signal.SIGKILL
    with pytest.raises(ConfigurationError, match="learning_rate: the plan in this folder has 0.01"):
        make_trainer(tmp_path, learning_rate=2e-2).train()
    with pytest.raises(
        ConfigurationError, match="global_batch_size: the plan in this folder has 8"
    ):
        make_trainer(tmp_path, per_device_train_batch_size=8).train()
    with pytest.raises(ConfigurationError, match="which has begun"):
        make_trainer(tmp_path, specs(num_train_epochs=5)).train()


def test_changed_settings_between_two_stages(tmp_path, capsys):
    """Refused in the same plan; where the run begins with a later stage they are meant."""
    assert run(tmp_path, kill="between:2") == -signal.SIGKILL
    with pytest.raises(ConfigurationError, match="learning_rate: the plan in this folder has 0.01"):
        make_trainer(tmp_path, learning_rate=1e-3).train()
    trainer = make_trainer(tmp_path, specs((40, 75)), learning_rate=1e-3)
    trainer.train()
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "resume: changed: learning_rate: the plan in this folder has 0.01, this run 0.001" in said
    )
    assert [r["samples"] for r in trainer.results] == [20, 40, 75]


def test_killed_before_the_first_stage_began(whole, tmp_path):
    assert run(tmp_path, kill="begin:1") == -signal.SIGKILL
    assert (tmp_path / "plan.json").is_file() and not (tmp_path / "stages.json").exists()
    assert run(tmp_path) == 0
    assert outcome(tmp_path) == outcome(whole)


def test_never_sets_the_old_stages_aside(whole, tmp_path):
    assert run(tmp_path, kill="step:2:7") == -signal.SIGKILL
    assert run(tmp_path, resume="never") == 0
    assert (tmp_path / "quarantine/run_1/part_1_20/training_metrics.json").is_file()
    assert (tmp_path / "quarantine/run_1/plan.json").is_file()
    assert outcome(tmp_path) == outcome(whole)


def test_a_damaged_best_model_is_not_built_on(tmp_path):
    assert run(tmp_path, kill="between:1") == -signal.SIGKILL
    weights = tmp_path / "part_1_20/checkpoints/best_model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not what stage '20 samples' left: model.safe"):
        make_trainer(tmp_path).train()


def test_two_processes(tmp_path):
    def together(folder, **settings):
        return run_together(lambda rank: staged_run.run(folder, settings))

    assert together(tmp_path / "whole") == [0, 0]
    for kill in ("step:1:2", "weights:2"):
        assert -signal.SIGKILL in together(tmp_path / "killed", kill=kill)
    assert together(tmp_path / "killed", stop=[3, 4]) == [75, 75]
    assert together(tmp_path / "killed") == [0, 0]
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_out_of_memory_in_two_processes(tmp_path, capfd):
    """The others wait for the one that failed: a new start takes the smaller batch."""

    def together(**settings):
        return run_together(lambda rank: staged_run.run(tmp_path, settings))

    assert together(hungry=True) == [1, 1]
    assert "the same command goes on with 2" in capfd.readouterr().err
    assert together(hungry=True) == [0, 0]
    for stage in outcome(tmp_path).values():
        batch = stage["result"]["batch"]
        assert batch["per_device_train_batch_size"] == 2
        assert batch["gradient_accumulation_steps"] == 4


class FullDisk(TrainerCallback):
    """From the first step on no file of this process becomes larger than half a model."""

    def on_step_begin(self, args, state, control, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))


def test_a_disk_that_is_full_at_the_end_of_a_stage(whole, tmp_path):
    def train():
        try:
            make_trainer(tmp_path, callbacks=[FullDisk()]).train()
        except HftuneError as error:
            (tmp_path / "error").write_text(str(error))

    assert run_alone(train) == 0
    said = (tmp_path / "error").read_text()
    assert said.startswith("stage 1: Error while serializing: I/O error: File too large")
    assert said.endswith("make room, and the same command goes on from the last checkpoint")
    left = {p.name for p in (tmp_path / "part_1_20/checkpoints").iterdir() if p.is_dir()}
    assert left == set()
    assert run(tmp_path) == 0
    assert outcome(tmp_path) == outcome(whole)


def test_fresh_each_stage(whole, tmp_path):
    staging = {"fresh_each_stage": True}
    assert run(tmp_path / "one", staging=staging) == 0
    assert run(tmp_path / "two", staging=staging, kill="between:2") == -signal.SIGKILL
    assert run(tmp_path / "two", staging=staging) == 0
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    names = ["part_1_20", "part_2_40"]
    same = [outcome(tmp_path / "one")[n]["weights"] == outcome(whole)[n]["weights"] for n in names]
    assert same == [True, False]


def test_carried_optimizer(tmp_path):
    staging = {"stage_optimizer": "carry"}
    assert run(tmp_path / "one", staging=staging) == 0
    for kill in ("step:2:7", "between:2", "step:3:12"):
        assert run(tmp_path / "two", staging=staging, kill=kill) == -signal.SIGKILL
    assert run(tmp_path / "two", staging=staging) == 0
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    # One linear schedule over all 6 + 10 + 20 steps.
    rates = {}
    for name, result in outcome(tmp_path / "one").items():
        for line in result["log"]:
            if "learning_rate" in line:
                rates[name, line["step"]] = line["learning_rate"]
    before = {"part_1_20": 0, "part_2_40": 6, "part_3_75": 16}
    for (name, step), rate in rates.items():
        assert rate == pytest.approx(1e-2 * (1 - (before[name] + step - 1) / 36))


def test_isolated_stages_are_processes_of_their_own(whole, tmp_path):
    settings = {"staging": {"isolate_stages": True}}
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert process.returncode == 0, process.stderr
    assert outcome(tmp_path) == outcome(whole)
    assert len(list((tmp_path / "logs").glob("stages_training_*.log"))) == 3


class Heard(TrainerCallback):
    def __init__(self):
        self.events = []

    def on_stage_begin(self, args, state, control, stage, **kwargs):
        self.events.append(("begin", stage.number, stage.count, Path(args.output_dir).parent.name))

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append(("train", state.global_step))

    def on_stage_end(self, args, state, control, stage, result, **kwargs):
        self.events.append(("end", stage.number, stage.is_last, result["samples"]))


def test_callbacks_hear_of_stages(tmp_path):
    heard = Heard()
    trainer = make_trainer(tmp_path, specs((20, 40)), callbacks=[heard, TrainerCallback()])
    trainer.train()
    assert heard.events == [
        ("begin", 1, 2, "part_1_20"),
        ("train", 0),
        ("end", 1, False, 20),
        ("begin", 2, 2, "part_2_40"),
        ("train", 0),
        ("end", 2, True, 40),
    ]
    assert trainer.args.output_dir == str(tmp_path)
    assert trainer.evaluate()["eval_error"] == pytest.approx(trainer.results[-1]["best_metric"])


def test_data_made_from_the_stage_before(tmp_path):
    """Lead times are chained so: what a stage trains on comes from the model of the last one."""
    seen = []

    def data(trainer):
        seen.append(trainer.model.head.weight.detach().clone())
        return staged_run.Part(20)

    stages = [StageSpec("day_{number}", staged_run.Part(20)), StageSpec("day_{number}b", data)]
    make_trainer(tmp_path, stages).train()
    before = load_file(tmp_path / "day_1/checkpoints/best_model/model.safetensors")
    assert torch.equal(seen[0], before["head.weight"])


def test_what_a_stage_cannot_have(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        make_trainer(tmp_path, [StageSpec("a", staged_run.Part(8), arguments={"bf16": True})] * 2)
    assert len(caught.value.problems) == 3
    assert "a stage cannot have its own bf16" in str(caught.value)
    assert "names that repeat" in str(caught.value)
    assert isinstance(make_trainer(tmp_path), StagedTrainer)


def test_a_checkpoint_of_another_stage_is_refused(tmp_path):
    assert run(tmp_path, kill="step:2:7") == -signal.SIGKILL
    mine = tmp_path / "part_2_40/checkpoints/checkpoint-5"
    with pytest.raises(CheckpointError, match="a stage that is done does not change"):
        make_trainer(tmp_path, resume=str(tmp_path / "part_1_20/checkpoints/best_model")).train()
    assert run(tmp_path, resume=str(mine)) == 0
