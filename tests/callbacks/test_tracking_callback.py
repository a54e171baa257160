"""A Trainer with the tracking callback is a run: what it records, and how it ends."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from processes import finish, run_alone, run_together, start
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import tracked_trainer
from tracked_trainer import Data, Model, make_trainer, send

from hftune.callbacks import step_times
from hftune.callbacks.model_info import describe_model
from hftune.callbacks.tracking import ExperimentTrackingCallback, evaluation_metrics, record_of
from hftune.configuration.arguments import HFTuneArguments
from hftune.tracking import index
from hftune.tracking.query import search_runs
from hftune.tracking.run_view import RunView
from hftune.tracking.store import Store
from hftune.tracking.tracker import ExperimentTracker
from hftune.training.trainer import HFTuneTrainer

torch.set_num_threads(1)


def tracked(folder, callback=None, **settings):
    return make_trainer(folder, [callback or ExperimentTrackingCallback()], **settings)


def trained(folder, callback=None, **settings):
    trainer = tracked(folder, callback, **settings)
    trainer.train()
    return trainer


def losses(trainer):
    """The trainer's own curve: steps and values."""
    logs = [logs for logs in trainer.state.log_history if "loss" in logs]
    return [logs["step"] for logs in logs], [logs["loss"] for logs in logs]


# What is recorded


def test_a_run_records_itself(tmp_path):
    callback = ExperimentTrackingCallback(
        name="곱셈", description="two numbers", tags=["tiny"], config={"data": {"kind": "made up"}}
    )
    trainer = trained(
        tmp_path / "out", callback, load_best_model_at_end=True, hub_token="hf_secret"
    )
    run = RunView.from_folder(tmp_path / "out")
    record = run.record
    assert record["status"] == "completed" and record["name"] == "곱셈"
    assert record["description"] == "two numbers" and record["tags"] == ["tiny"]
    assert record["experiment_id"] == callback.record.experiment_id
    assert record["model_type"] == "Model" and record["max_steps"] == 12
    assert record["model_info"] == {
        "class": "Model",
        "parameters": 33,
        "trainable_parameters": 33,
        "dtype": "float32",
    }
    assert record["data"] == {"train_samples": 32, "eval_samples": 8}
    assert record["seeds"] == {"seed": 7, "data_seed": 7}
    assert record["metric_directions"] == {"eval_loss": False, "loss": False}
    assert record["configuration"]["training"]["learning_rate"] == 1e-2
    assert record["configuration"]["data"] == {"kind": "made up"}
    assert "hf_secret" not in (tmp_path / "out" / "run.json").read_text()

    assert run.curve("loss") == losses(trainer)
    assert run.curve("epoch")[0] == [2, 4, 6, 8, 10, 12]
    history = trainer.state.log_history
    evaluations = [logs for logs in history if "eval_loss" in logs]
    assert run.curve("eval_loss")[1] == [logs["eval_loss"] for logs in evaluations]
    best = min(evaluations, key=lambda logs: logs["eval_loss"])
    assert record["best_metrics"] == {"loss": best["eval_loss"]}
    assert record["final_metrics"] == {
        "loss": evaluations[-1]["eval_loss"],
        "train_loss": history[-1]["train_loss"],
    }
    last = run.points[-1]
    assert last.step is None and last.metrics == {
        "best_loss": best["eval_loss"],
        "final_loss": evaluations[-1]["eval_loss"],
        "final_train_loss": history[-1]["train_loss"],
    }
    saved = [event for event in run.events if event["kind"] == "checkpoint"]
    assert [(event["step"], event["path"]) for event in saved] == [
        (step, str(tmp_path / "out" / f"checkpoint-{step}")) for step in (4, 8, 12)
    ]
    assert [event["metric"] for event in saved if event.get("best")][-1] == best["eval_loss"]

    for name in ("step_seconds_mean", "step_seconds_slowest", "steps_per_second"):
        steps, values = run.curve(name)
        assert steps == [2, 4, 6, 8, 10, 12] and min(values) > 0
    means, slowest = (run.curve(f"step_seconds_{kind}")[1] for kind in ("mean", "slowest"))
    assert all(mean <= most for mean, most in zip(means, slowest, strict=True))
    rates, samples = (run.curve(f"{what}_per_second")[1] for what in ("steps", "samples"))
    assert samples == pytest.approx([4 * rate for rate in rates])
    assert min(run.curve("process_memory_bytes")[1]) > 1e7

    index.refresh(Store())
    stored = RunView.from_store(Store(), record["experiment_id"])
    assert stored.status == "completed" and stored.curve("loss") == losses(trainer)


def test_the_model_and_long_tables_in_the_configuration(tmp_path):
    labels = {i: f"label {i}" for i in range(1000)}
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        vocab_size=20, id2label=labels,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    data = [{"input_ids": [1, 2, 3], "labels": i} for i in range(8)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    callback = ExperimentTrackingCallback()
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    record = callback.record.values
    assert record["model_type"] == "bert"
    assert record["model_info"]["class"] == "BertForSequenceClassification"
    assert record["configuration"]["model"]["hidden_size"] == 8
    assert record["configuration"]["model"]["id2label"] == "1000 entries"
    assert set(config.to_dict()) == set(record["configuration"]["model"])


def test_a_given_record_is_logged_into_and_left_open(tmp_path):
    with ExperimentTracker().start(tmp_path, task="test", configuration={"a": 1}) as record:
        trainer = trained(tmp_path, ExperimentTrackingCallback(record))
        assert record.values["status"] == "running"
        assert record_of(tmp_path) is record
        trainer.evaluate()
    run = RunView.from_folder(tmp_path)
    assert run.status == "completed" and run.record["configuration"] == {"a": 1}
    assert run.curve("loss") == losses(trainer) and len(run.record["attempts"]) == 1
    assert run.record["model_info"]["parameters"] == 33


def test_stages_of_one_attempt_do_not_go_back_behind_each_other(tmp_path):
    for _ in range(2):  # the second as after a crash in its second stage
        with ExperimentTracker().start(tmp_path, task="test") as record:
            for stage in ("short", "long"):
                record.begin_stage(stage)
                trained(tmp_path / stage, ExperimentTrackingCallback(record))
    run = RunView.from_folder(tmp_path)
    assert [a["from_stage"] for a in run.record["attempts"]] == [None, 0]
    for stage in (0, 1):
        assert run.curve("loss", stage=stage)[0] == [2, 4, 6, 8, 10, 12]
    assert {point.superseded for point in run.points if point.attempt == 2} == {False}


def test_what_is_logged_before_and_after_training(tmp_path):
    trainer = tracked(tmp_path)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    ended = RunView.from_folder(tmp_path).record["attempts"][0]
    after = trainer.evaluate(Data(4), metric_key_prefix="test")["test_loss"]
    trainer.predict(Data(4), metric_key_prefix="final")
    trainer.callback_handler.callbacks[1].record.update(notes="later")
    run = RunView.from_folder(tmp_path)
    assert run.status == "completed" and run.record["attempts"] == [ended]
    assert run.curve("eval_loss")[0] == [0, 4, 8, 12] and run.curve("eval_loss")[1][0] == before
    assert run.curve("test_loss") == ([12], [after]) and run.curve("final_loss") == ([12], [after])


def test_a_best_model_that_is_evaluated_later_is_no_point_of_the_curve(tmp_path):
    settings = dict(load_best_model_at_end=True, learning_rate=3.0, warmup_steps=8)
    trainer = trained(tmp_path, **settings)
    assert trainer.state.best_global_step < 12  # it diverges
    last = trainer.state.log_history[-2]["eval_loss"]
    later = trainer.evaluate()["eval_loss"]
    run = RunView.from_folder(tmp_path)
    assert run.curve("eval_loss")[1][-1] == last != later
    assert run.points[-1].metrics["eval_loss"] == later and run.points[-1].step is None


def test_a_metric_that_the_trainer_takes_the_wrong_way_round(tmp_path, capsys):
    def compute(predictions):
        return {"rmse": 1.0, "our_own": 2.0}

    trainer = tracked(tmp_path, metric_for_best_model="rmse")
    trainer.compute_metrics = compute
    trainer.train()
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "metric_for_best_model='rmse': a lower value is better, and the trainer takes the highest "
        "for the best. Say greater_is_better=False"
    ) in said
    run = RunView.from_folder(tmp_path)
    assert run.record["metric_directions"] == {"eval_rmse": False, "rmse": False}
    assert "'rmse'" in [e for e in run.events if e["kind"] == "warning"][0]["message"]


def test_nan(tmp_path):
    class Diverging(Model):
        def forward(self, x, labels=None):
            out = super().forward(x, labels)
            return {**out, "loss": out["loss"] * (math.nan if self.passes > 5 else 1)}

    trained(tmp_path / "shown", model=Diverging(), logging_nan_inf_filter=False)
    run = RunView.from_folder(tmp_path / "shown")
    steps, values = run.curve("loss")
    assert steps == [2, 4, 6, 8, 10, 12] and [math.isnan(v) for v in values[:2]] == [False] * 2
    assert all(math.isnan(value) for value in values[2:])
    assert not [event for event in run.events if event["kind"] == "warning"]
    trained(tmp_path / "well")
    index.refresh(Store())
    for sort in ("metrics.loss", "-metrics.loss"):  # last either way
        assert [found["name"] for found in search_runs(Store(), sort=sort)] == ["well", "shown"]

    trained(tmp_path / "hidden", model=Diverging())  # as transformers has it
    run = RunView.from_folder(tmp_path / "hidden")
    [event] = [event for event in run.events if event["kind"] == "warning"]
    assert event["message"].startswith("step 6: the gradient norm is nan, and the loss")
    assert event["message"].endswith("logging_nan_inf_filter=False")


# Attempts


def test_train_again_is_a_new_attempt(tmp_path):
    trainer = tracked(tmp_path)
    trainer.train()
    trainer.args.max_steps = 6
    trainer.train()
    run = RunView.from_folder(tmp_path)
    first, second = run.record["attempts"]
    assert first["status"] == second["status"] == "completed"
    assert second["from_step"] == 0 and second["changed"] == {"training.max_steps": [12, 6]}
    assert run.curve("loss") == losses(trainer)
    assert run.curve("loss", attempt=1)[0] == [2, 4, 6, 8, 10, 12]


def test_a_resumed_run_has_the_curve_of_one_that_nothing_happened_to(tmp_path):
    whole = losses(trained(tmp_path / "whole"))
    folder = tmp_path / "out"
    killed = run_alone(lambda: trained(folder, model=Model(12, send(signal.SIGKILL))))
    assert killed == -signal.SIGKILL
    resumed = tracked(folder)
    resumed.train(resume_from_checkpoint=True)
    run = RunView.from_folder(folder)
    first, second = run.record["attempts"]
    assert first["status"] == "crashed" and second["status"] == "completed"
    assert second["from_step"] == 8
    assert second["resumed_from"] == str(folder / "checkpoint-8")
    assert run.curve("loss") == whole
    assert [point.step for point in run.points if point.superseded] == [10]
    steps = [p.step for p in run.points if "loss" in p.metrics and not p.superseded]
    assert steps == [2, 4, 6, 8, 10, 12]
    index.refresh(Store())
    stored = RunView.from_store(Store(), run.record["experiment_id"])
    assert stored.curve("loss") == whole and stored.status == "completed"


def test_an_error_that_was_caught(tmp_path):
    def fail():
        raise ValueError("the data of step 7 are wrong")

    trainer = tracked(tmp_path, model=Model(7, fail))
    try:
        trainer.train()
    except ValueError:  # as the manual's example does
        trainer.train(resume_from_checkpoint=True)
    run = RunView.from_folder(tmp_path)
    first, second = run.record["attempts"]
    assert first["status"] == "failed" and second["status"] == "completed"
    assert first["error"].endswith("ValueError: the data of step 7 are wrong")
    assert second["from_step"] == 4 and run.curve("loss")[0] == [2, 4, 6, 8, 10, 12]

    trainer = tracked(tmp_path / "later", model=Model(7, fail))
    with pytest.raises(ValueError, match="step 7"):
        trainer.train()
    trainer.train()
    first, second = RunView.from_folder(tmp_path / "later").record["attempts"]
    assert (first["status"], second["status"]) == ("failed", "completed")
    assert first["error"] == "train() ended with an error that was caught"


def test_a_cell_that_failed_in_a_notebook(tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    trainer = tracked(tmp_path, model=Model(7, interrupt))
    try:
        trainer.train()
    except KeyboardInterrupt as error:
        monkeypatch.setattr(sys, "last_value", error, raising=False)
    trainer.train()
    first, _ = RunView.from_folder(tmp_path).record["attempts"]
    assert first["status"] == "killed"


def test_a_trial_of_a_hyperparameter_search_is_a_run_of_its_own(tmp_path):
    trainer = tracked(tmp_path)
    callback = trainer.callback_handler.callbacks[1]
    ids = set()
    for _ in range(2):
        state = transformers.TrainerState(max_steps=2, is_hyper_param_search=True)
        control = transformers.TrainerControl()
        trainer.callback_handler.on_train_begin(trainer.args, state, control)
        trainer.callback_handler.on_train_end(trainer.args, state, control)
        ids.add(callback.record.experiment_id)
        assert record_of(tmp_path) is callback.record
    assert len(ids) == 2 and not (tmp_path / "run.json").exists()


# Ends that only a whole process has

ENDS = {
    "error": (1, "failed", "ValueError: the data of step 7 are wrong"),
    "SIGTERM": (128 + signal.SIGTERM, "killed", "ended by SIGTERM"),
    "SIGINT": (-signal.SIGINT, "killed", "ended by SIGINT"),
    "SIGKILL": (-signal.SIGKILL, "crashed", None),
    "hftune": (75, "preempted", "checkpoint-6"),
    "after_hftune": (128 + signal.SIGTERM, "killed", "ended by SIGTERM"),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """Folder of the runs, and the exit statuses of their processes."""
    folder = tmp_path_factory.mktemp("ends")
    run = subprocess.run(
        [sys.executable, tracked_trainer.__file__, folder, *ENDS],
        env={**os.environ, "HFTUNE_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
    )
    assert run.stdout, run.stderr
    return folder, json.loads(run.stdout.splitlines()[-1]), run.stderr


@pytest.mark.parametrize("case", ENDS)
def test_how_a_process_ended(ends, case, monkeypatch):
    folder, statuses, _ = ends
    status, state, error = ENDS[case]
    assert statuses[case] == status
    record = RunView.from_folder(folder / case).record
    monkeypatch.setenv("HFTUNE_HOME", str(folder / "home"))
    store = Store()
    index.refresh(store)
    run = RunView.from_store(store, record["experiment_id"])
    assert run.status == state
    attempt = run.record["attempts"][-1]
    if error is not None:
        assert attempt["error"].endswith(error) and attempt["status"] == state
    assert run.curve("loss")[0][:3] == [2, 4, 6]  # nothing that was logged is lost


def test_the_traceback_of_a_failure_is_kept_and_shown(ends):
    folder, _, said = ends
    error = RunView.from_folder(folder / "error").record["attempts"][0]["error"]
    assert 'tracked_trainer.py", line' in error and "in fail" in error
    assert (
        error.splitlines()[-3:]
        == [line for line in said.splitlines() if line in error.splitlines()[-3:]][:3]
    )


@pytest.mark.parametrize(
    ("case", "status", "state", "error"),
    [
        ("recipe", 75, "preempted", "checkpoint-6"),
        ("no_save", 75, "killed", "goes on from the start"),
        ("jit", 0, "preempted", "checkpoint-6"),
    ],
)
def test_how_a_training_was_stopped(tmp_path, case, status, state, error):
    assert run_alone(lambda: tracked_trainer.CASES[case](tmp_path)) == status
    [attempt] = RunView.from_folder(tmp_path).record["attempts"]
    assert attempt["status"] == state and attempt["error"].endswith(error)


def test_a_preempted_run_goes_on_to_the_curve_of_one_that_nothing_happened_to(tmp_path):
    def run(folder, *more):
        callbacks = [ExperimentTrackingCallback(), *more]
        kinds = dict(kind=HFTuneTrainer, arguments=HFTuneArguments)
        trainer = make_trainer(folder, callbacks, **kinds)
        trainer.train()
        return losses(trainer)

    whole = run(tmp_path / "whole")
    folder = tmp_path / "out"
    stopped = run_alone(lambda: run(folder, tracked_trainer.At(5, send(signal.SIGTERM))))
    assert stopped == 75
    assert run(folder) == whole
    found = RunView.from_folder(folder)
    assert [a["status"] for a in found.record["attempts"]] == ["preempted", "completed"]
    assert found.record["attempts"][1]["from_step"] == 5 and found.curve("loss") == whole
    [resumed] = [event for event in found.events if event["kind"] == "resumed"]
    assert (resumed["step"], resumed["checkpoint"]) == (5, str(folder / "checkpoint-5"))


# Several processes


class Slow(transformers.TrainerCallback):
    """Holds one process up in its sixth step, after the gradients were shared."""

    def on_optimizer_step(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == 5:
            time.sleep(0.5)


def together(work) -> list[int]:
    def in_group(rank):
        work(rank)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    return run_together(in_group)


def test_the_steps_of_all_processes(tmp_path):
    def work(rank):
        callback = ExperimentTrackingCallback()
        trainer = make_trainer(tmp_path, [Slow(), callback])
        trainer.train()
        trainer.evaluate()
        assert (callback.record is None) == (rank == 1)

    assert together(work) == [0, 0]
    run = RunView.from_folder(tmp_path)
    assert run.status == "completed" and len(run.record["attempts"]) == 1
    assert run.curve("loss")[0] == [2, 4, 6, 8, 10, 12]
    slowest = dict(zip(*run.curve("step_seconds_slowest"), strict=True))
    means = dict(zip(*run.curve("step_seconds_mean"), strict=True))
    # Only the second process had a slow step: the first waited for it after its own had ended.
    assert slowest[6] >= 0.5 and means[6] >= 0.5 / 4
    assert not [event for event in run.events if event["kind"] == "warning"]
    samples, steps = (run.curve(f"{what}_per_second")[1] for what in ("samples", "steps"))
    assert samples == pytest.approx([8 * rate for rate in steps])


def test_a_callback_in_the_first_process_alone_holds_nobody_up(tmp_path):
    def work(rank):
        make_trainer(tmp_path, [ExperimentTrackingCallback()] if rank == 0 else []).train()

    assert together(work) == [0, 0]
    run = RunView.from_folder(tmp_path)
    assert run.status == "completed"
    assert run.curve("step_seconds_mean")[0] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_takes_the_other_along(tmp_path, rank):
    def work(mine):
        model = Model(7, send(signal.SIGKILL)) if mine == rank else Model()
        make_trainer(tmp_path, [ExperimentTrackingCallback()], model=model).train()

    statuses = run_together(work)
    assert statuses[rank] == -signal.SIGKILL and statuses[1 - rank] == 1


def test_numbers_of_another_log_are_left_out(monkeypatch):
    times = step_times.StepTimes()
    times.step()
    monkeypatch.setattr(
        step_times, "_left_by_others", lambda size: [b"4 1 100.0 100.0", b"8 3 9 5"]
    )
    arguments = transformers.TrainingArguments("x", per_device_train_batch_size=2, use_cpu=True)
    numbers = times.collect(arguments, 8)
    assert numbers["step_seconds_slowest"] == 5.0
    assert numbers["step_seconds_mean"] == pytest.approx(9 / 4, rel=0.01)
    assert times.collect(arguments, 8) == {}


# Faults of the record


def test_a_folder_that_cannot_have_the_run(tmp_path, capsys):
    (tmp_path / "run.json").write_text("of another program")
    trainer = trained(tmp_path)
    run = trainer.callback_handler.callbacks[1].record
    assert run.folder == index.run_links() / run.experiment_id
    assert RunView.from_folder(run.folder).curve("loss") == losses(trainer)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("JSONDecodeError") == 1 and f"The run is recorded in {run.folder}" in said
    assert (tmp_path / "run.json").read_text() == "of another program"


def test_a_folder_that_another_run_is_in(tmp_path, capsys):
    other = start(lambda: (ExperimentTracker().start(tmp_path), time.sleep(60)))
    while not (tmp_path / "run.json").exists():
        time.sleep(0.05)
    record = trained(tmp_path).callback_handler.callbacks[1].record
    os.kill(other, signal.SIGKILL)
    finish(other)
    assert record.values["status"] == "completed" and record.folder != tmp_path
    assert f"is in use by process {other} on" in capsys.readouterr().err


def test_a_home_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HFTUNE_HOME", str(tmp_path / "file"))
    trainer = trained(tmp_path / "out")
    assert RunView.from_folder(tmp_path / "out").curve("loss") == losses(trainer)


def test_an_error_of_the_callback_itself_is_said_once(tmp_path, capsys):
    class Endless(Data):
        def __len__(self):
            if sys._getframe(1).f_code.co_name == "_describe_data":
                raise RuntimeError("nobody knows")
            return 32

    trainer = tracked(tmp_path)
    trainer.train_dataset = Endless()
    trainer.train()
    trainer.evaluate()
    assert trainer.state.global_step == 12 and not (tmp_path / "run.json").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("RuntimeError: nobody knows (test_tracking_callback.py, line") == 1
    assert "Training goes on" in said


def test_what_is_no_number_is_left_out(tmp_path):
    class Talks(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logs["note"] = "text"

    make_trainer(tmp_path, [Talks(), ExperimentTrackingCallback()]).train()
    run = RunView.from_folder(tmp_path)
    assert run.curve("loss")[0] == [2, 4, 6, 8, 10, 12] and "note" not in run.metric_names()


# Models


def test_evaluation_metrics():
    history = [
        {"loss": 1.0, "step": 4},
        {"eval_a_loss": 2.0, "eval_a_runtime": 1.0, "step": 4},
        {"eval_b_loss": 3.0, "eval_b_samples_per_second": 1.0, "epoch": 1, "step": 4},
        {"eval_a_loss": 9.0, "step": 8},
    ]
    assert evaluation_metrics(history, 4) == {"a_loss": 2.0, "b_loss": 3.0}
    assert evaluation_metrics(history, None) == {}


def test_wrapped_models_are_described_as_what_they_are():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    model[1].to(torch.bfloat16)
    expected = {
        "class": "Sequential",
        "parameters": 13,
        "trainable_parameters": 4,
        "dtype": "bfloat16, float32",
    }
    for wrapped in (model, nn.DataParallel(model), torch.compile(model)):
        assert describe_model(wrapped) == expected


def test_sharded_models_are_described_as_what_they_are():
    def work(rank):
        torch.distributed.init_process_group("gloo")
        ddp = nn.parallel.DistributedDataParallel(nn.Linear(2, 4))
        assert describe_model(ddp)["class"] == "Linear"
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        model = torch.distributed.fsdp.fully_shard(nn.Linear(2, 4), mesh=mesh)
        assert type(model).__name__ == "FSDPLinear"
        assert describe_model(model) == {
            "class": "Linear",
            "parameters": 12,
            "trainable_parameters": 12,
            "dtype": "float32",
        }

    assert together(work) == [0, 0]


def test_an_adapter_is_described_beside_its_model(tmp_path):
    peft = pytest.importorskip("peft")
    config = transformers.GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    model = transformers.GPT2LMHeadModel(config)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn"]))
    described = describe_model(adapted)
    assert described["class"] == "GPT2LMHeadModel" and described["adapter"] == "LORA"
    assert described["trainable_parameters"] == 2 * (8 + 24)
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    data = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 4
    callback = ExperimentTrackingCallback()
    transformers.Trainer(adapted, arguments, train_dataset=data, callbacks=[callback]).train()
    configuration = callback.record.values["configuration"]
    assert configuration["adapter"]["r"] == 2 and configuration["model"]["n_embd"] == 8
