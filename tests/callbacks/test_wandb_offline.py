"""What the mirror writes, read back from the files of real offline runs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
import torch
from processes import run_alone
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from wandb_files import close, config, history, isolate, records, summary

from hftune.callbacks.wandb_mirror import WandbCallback
from hftune.utils.errors import ConfigurationError

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _own_wandb(tmp_path, monkeypatch):
    close()
    isolate(tmp_path, monkeypatch)
    yield
    close()


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x, labels=None):
        return {"loss": ((self.layer(x)[:, 0] - labels) ** 2).mean(), "logits": self.layer(x)}


DATA = [{"x": torch.tensor([i % 3, 1.0]), "labels": torch.tensor(float(i % 2))} for i in range(16)]


def train(mirror, steps=4, **settings):
    args = TrainingArguments(
        output_dir="out",
        max_steps=steps,
        per_device_train_batch_size=8,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    trainer = Trainer(
        Model(),
        args,
        train_dataset=DATA,
        eval_dataset=DATA,
        callbacks=[mirror],
        compute_metrics=lambda _: {"rouge1": 0.5, "rouge2": 0.3, "rougeL": 0.4},
    )
    trainer.train()
    return trainer


def begin(mirror, step=0, **settings):
    """Starts a run without a Trainer; returns the arguments of further events."""
    args = TrainingArguments("out", use_cpu=True)
    state = TrainerState(global_step=step, max_steps=9, **settings)
    mirror.on_train_begin(args, state, TrainerControl())
    return args, state, TrainerControl()


def test_a_run(tmp_path):
    mirror = WandbCallback(
        "dialogue-summarization",
        "한국어_baseline",
        tags=["kobart", "v1"],
        group="group",
        notes="notes",
        mode="offline",
        log_model=True,
        config={
            "training": {"rate": {"value": 0.5, "source": "a.yaml:3"}},
            "push_token": "hf_abc",
            "where": Path("a/b"),
            "odd": {1: object},
        },
    )
    trainer = train(
        mirror, metric_for_best_model="rouge1", load_best_model_at_end=True, learning_rate=0.25
    )
    mirror.log_predictions(
        [
            {"input": "가" * 120, "prediction": "요약", "reference": "정답"},
            {"input": "short", "prediction": "a", "reference": "b"},
        ]
    )
    assert wandb.run.id == mirror.run_id
    mirror.finish()
    assert wandb.run is None

    (run,) = [r.run for r in records(tmp_path / "out") if r.HasField("run")][:1]
    assert (run.project, run.display_name) == ("dialogue-summarization", "한국어_baseline")
    assert (run.run_group, run.notes, list(run.tags)) == ("group", "notes", ["kobart", "v1"])
    assert run.run_id == mirror.run_id

    settings = config(tmp_path / "out")
    assert settings["training"] == {"rate": 0.5}
    assert settings["where"] == str(Path("a/b"))
    assert settings["odd"] == {"1": str(object)}
    assert settings["push_token"] is settings["hub_token"] is None
    assert settings["learning_rate"] == 0.25

    rows = history(tmp_path / "out")
    log = trainer.state.log_history
    steps = [row for row in rows if "train/loss" in row]
    assert [row["train/loss"] for row in steps] == [r["loss"] for r in log if "loss" in r]
    assert [row["train/learning_rate"] for row in steps] == [
        r["learning_rate"] for r in log if "loss" in r
    ]
    assert [row["train/global_step"] for row in steps] == [1, 2, 3, 4]
    evaluations = [row for row in rows if "eval/loss" in row]
    assert [row["eval/loss"] for row in evaluations] == [
        r["eval_loss"] for r in log if "eval_loss" in r
    ]
    for row, step in zip(evaluations, (2, 4), strict=True):
        assert (row["epoch"], row["step"], row["train/global_step"]) == (step / 2, step, step)
        assert row["eval/rouge1_f1"] == row["eval/rouge1"] == 0.5
        assert (row["eval/rouge2_f1"], row["eval/rougeL_f1"]) == (0.3, 0.4)
        assert row["eval/rouge_combined_f1"] == pytest.approx(0.4)
    assert summary(tmp_path / "out")["train_loss"] == log[-1]["train_loss"]

    (axis,) = [r.metric for r in records(tmp_path / "out") if r.metric.glob_name == "*"]
    assert axis.step_metric == "train/global_step"

    (path,) = tmp_path.glob("out/wandb/offline-run-*/files/media/table/prediction_samples*.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["Input", "Prediction", "Reference"]
    assert table["data"] == [["가" * 100 + "...", "요약", "정답"], ["short", "a", "b"]]

    (path,) = tmp_path.glob("out/wandb/offline-run-*/files/media/table/learning_curves*.json")
    lines = {}
    for epoch, name, value in json.loads(path.read_text())["data"]:
        lines.setdefault(name, []).append((epoch, value))
    assert lines == {
        "train_loss": [(r["epoch"], r["loss"]) for r in log if "loss" in r],
        "val_loss": [(r["epoch"], r["eval_loss"]) for r in log if "eval_loss" in r],
    }

    (model,) = [r.artifact for r in records(tmp_path / "out") if r.artifact.type == "model"]
    assert model.name == f"model-{mirror.run_id}"
    assert set(model.aliases) == {"latest", "best"}
    assert [entry.path for entry in model.manifest.contents] == ["model.safetensors"]
    assert model.manifest.contents[0].size == os.path.getsize(
        "out/checkpoint-2/model.safetensors"
    )  # the earlier of two equals


def test_a_resumed_run_goes_on_in_its_wandb_run(tmp_path):
    first = WandbCallback(mode="offline")
    train(first, steps=2)
    first.finish()
    (tmp_path / "out" / "wandb").rename(tmp_path / "wandb")
    told = []
    second = WandbCallback(mode="offline", on_run_id=told.append)
    args = TrainingArguments(
        "out", max_steps=4, logging_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True
    )
    trainer = Trainer(Model(), args, train_dataset=DATA, callbacks=[second])
    trainer.train(resume_from_checkpoint="out/checkpoint-2")
    second.finish()
    assert told == [second.run_id] == [first.run_id]
    rows = history(tmp_path / "out")
    assert [row["train/global_step"] for row in rows if "train/loss" in row] == [3, 4]


def test_run_id_given(tmp_path):
    mirror = WandbCallback(mode="offline", run_id="abc12345")
    begin(mirror, step=5)
    assert (mirror.run_id, wandb.run.id) == ("abc12345", "abc12345")


def test_not_finite_values(tmp_path):
    mirror = WandbCallback(mode="offline")
    event = begin(mirror)
    mirror.on_log(*event, logs={"eval_loss": math.nan, "loss": math.inf})
    mirror.finish()
    (row,) = history(tmp_path / "out")
    assert math.isnan(row["eval/loss"]) and row["train/loss"] == math.inf


def test_a_run_of_the_users_own_is_used_and_left_open(tmp_path):
    with wandb.init(project="mine", mode="offline", config={"a": 1}) as run:
        mirror = WandbCallback("other", config={"b": 2})
        event = begin(mirror)
        assert mirror.run_id == run.id
        mirror.on_log(*event, logs={"loss": 0.5})
        mirror.finish()
        assert wandb.run is run
        run.log({"custom_score": 3})
    rows = history(tmp_path)
    assert [row.get("train/loss") for row in rows] == [0.5, None]
    assert rows[1] == {"custom_score": 3, "train/global_step": 0}
    assert {"a": 1, "b": 2}.items() <= config(tmp_path).items()


def test_one_callback_is_one_run(tmp_path):
    """Stages share a callback and its run; the next callback begins another."""
    first, second = WandbCallback(mode="offline"), WandbCallback(mode="offline")
    begin(first)
    stage = first.run_id
    begin(first)
    assert first.run_id == stage == wandb.run.id
    begin(second)
    assert second.run_id == wandb.run.id != stage
    ids = {path.name[-8:] for path in (tmp_path / "out" / "wandb").glob("offline-run-*")}
    assert ids == {stage, second.run_id}


def test_each_trial_of_a_search_is_a_run(tmp_path):
    mirror = WandbCallback(mode="offline")
    begin(mirror, is_hyper_param_search=True, trial_name="trial 1")
    first = mirror.run_id
    begin(mirror, is_hyper_param_search=True, trial_name="trial 2")
    assert mirror.run_id != first
    assert wandb.run.name == "trial 2"


def test_after_finish_nothing_starts_again(tmp_path):
    mirror = WandbCallback(mode="offline")
    event = begin(mirror)
    mirror.finish()
    mirror.finish()
    mirror.on_log(*event, logs={"eval_loss": 1})
    mirror.on_predict(*event, metrics={"test_loss": 1})
    mirror.log_predictions([{"input": "a", "prediction": "b", "reference": "c"}])
    mirror.log_model("out")
    assert wandb.run is None
    assert history(tmp_path / "out") == []


def test_evaluation_and_prediction_alone(tmp_path):
    mirror = WandbCallback(mode="offline")
    args, state, control = TrainingArguments("out", use_cpu=True), TrainerState(), TrainerControl()
    mirror.on_log(args, state, control, logs={"eval_loss": 0.5})
    mirror.on_predict(args, state, control, metrics={"test_rouge1": 0.5})
    mirror.finish()
    rows = history(tmp_path / "out")
    assert rows[0]["eval/loss"] == 0.5 and rows[1]["test/rouge1"] == 0.5


# What is uploaded as the model


def test_model_folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "tokenizer").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer/vocab.txt", "optimizer.pt"):
        (folder / name).write_text(name)
    (folder / ".hftune.lock").write_text("")
    mirror = WandbCallback(mode="offline")
    begin(mirror)
    mirror.log_model(folder, aliases=["final"])
    mirror.finish()
    (model,) = [r.artifact for r in records(tmp_path / "out") if r.artifact.type == "model"]
    assert {entry.path for entry in model.manifest.contents} == {
        "config.json",
        "model.safetensors",
        "tokenizer/vocab.txt",
    }


def test_no_model_to_upload_is_said(tmp_path, capsys):
    mirror = WandbCallback(mode="offline", log_model=True)
    event = begin(mirror)
    mirror.on_train_end(*event)
    folder = Path("out", "checkpoint-0")
    assert capsys.readouterr().err == (
        f"W&B: no model is uploaded: {folder} is not there (save_strategy?)\n"
    )
    folder.mkdir()
    (folder / "ema.safetensors").write_text("")
    mirror.on_train_end(*event)
    assert capsys.readouterr().err == (
        "W&B: no model is uploaded: a checkpoint has the averaged weights apart; call "
        "log_model(folder) after save_model(folder)\n"
    )


# Where nothing is written


def test_other_processes_do_nothing(tmp_path):
    mirror = WandbCallback(mode="offline")
    event = begin(mirror, is_world_process_zero=False)
    mirror.on_log(*event, logs={"loss": 1})
    mirror.on_train_end(*event)
    mirror.finish()
    assert mirror.run_id is None and wandb.run is None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["mode", "WANDB_MODE"])
def test_disabled(how, tmp_path, monkeypatch, capsys):
    if how == "WANDB_MODE":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    mirror = WandbCallback(mode="disabled" if how == "mode" else "auto")
    event = begin(mirror)
    mirror.on_log(*event, logs={"loss": 1})
    assert mirror.run_id is None and wandb.run is None
    assert not (tmp_path / "out" / "wandb").exists()
    assert capsys.readouterr().err == ""


def test_wandb_mode_offline_is_followed_without_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    begin(WandbCallback())
    assert wandb.run.offline
    assert capsys.readouterr().err == ""


# Errors before training


def test_unknown_mode():
    with pytest.raises(ConfigurationError) as error:
        WandbCallback(mode="ofline")
    assert str(error.value) == (
        "WandbCallback: found mode 'ofline', expected one of auto, online, offline, disabled. "
        "Did you mean 'offline' or 'online'?"
    )


def test_online_without_a_login():
    with pytest.raises(ConfigurationError) as error:
        WandbCallback(mode="online")
    assert str(error.value) == (
        "WandbCallback: mode 'online', but there is no login; run 'wandb login', set "
        "WANDB_API_KEY, or use mode 'auto' or 'offline'"
    )


def test_online_against_wandb_mode(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(ConfigurationError, match=r"'online', but W&B is offline \(WANDB_MODE\)"):
        WandbCallback(mode="online")


def test_wandb_is_not_installed(monkeypatch):
    version = importlib.metadata.version

    def without_wandb(name):
        if name == "wandb":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_wandb)
    with pytest.raises(ConfigurationError) as error:
        WandbCallback()
    assert str(error.value) == (
        'WandbCallback needs wandb, which is not installed: pip install "hftune[wandb]"'
    )


def test_not_beside_the_integration_of_transformers(tmp_path):
    args = TrainingArguments("out", report_to="wandb", use_cpu=True)
    with pytest.raises(ConfigurationError) as error:
        Trainer(Model(), args, train_dataset=DATA, callbacks=[WandbCallback(mode="offline")])
    assert str(error.value) == (
        "found WandbCallback and report_to 'wandb', expected one of them: both would write to one "
        "W&B run; set report_to to 'none'"
    )


# A program of its own


PROGRAM = """
    import sys, torch
    from transformers import Trainer, TrainingArguments
    from hftune.callbacks.wandb_mirror import WandbCallback
    sys.path.insert(0, {tests!r})
    from test_wandb_offline import DATA, Model

    args = TrainingArguments(
        "out", max_steps=2, logging_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True,
        hub_token={secret!r},
    )
    mirror = WandbCallback("p", config={{"api": {{"openai_api_key": {secret!r}}}}})
    Trainer(Model(), args, train_dataset=DATA, callbacks=[mirror]).train()
"""


def test_a_program_without_login_asks_nothing_and_leaks_nothing(tmp_path):
    secret = "hf_" + "s3cr3t" * 6
    (tmp_path / "program.py").write_text(
        textwrap.dedent(PROGRAM.format(tests=str(Path(__file__).parent), secret=secret))
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    del environment["WANDB_SILENT"]
    reading, writing = os.openpty()  # a terminal, where wandb would ask
    run = subprocess.run(
        [sys.executable, "program.py", "--hub_token", secret, f"--api_key={secret}"],
        stdin=writing,
        capture_output=True,
        text=True,
        env=environment,
    )
    os.close(reading)
    os.close(writing)
    assert run.returncode == 0, run.stderr
    assert "W&B: there is no login: the run is kept offline; 'wandb sync' uploads it" in run.stderr
    (folder,) = tmp_path.glob("out/wandb/offline-run-*")
    rows = history(tmp_path / "out")
    assert [row["train/global_step"] for row in rows if "train/loss" in row] == [1, 2]
    (ended,) = [r for r in records(tmp_path / "out") if r.HasField("exit")]
    assert ended.exit.exit_code == 0
    (machine,) = [r.environment for r in records(tmp_path / "out") if r.environment.args]
    assert list(machine.args) == ["--hub_token", "***", "--api_key=***"]
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 3
    assert [path for path in written if secret.encode() in path.read_bytes()] == []


def test_training_goes_on_where_wandb_breaks(tmp_path):
    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                for process in psutil.Process().children(recursive=True):
                    if process.name() == "wandb-core":
                        process.kill()
                        process.wait()

    def work():
        args = TrainingArguments(
            "out", max_steps=6, logging_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True
        )
        mirror = WandbCallback(mode="offline", log_model=True)
        trainer = Trainer(Model(), args, train_dataset=DATA, callbacks=[mirror, Break()])
        with open("messages.txt", "w") as stream, contextlib.redirect_stderr(stream):
            trainer.train()
            mirror.finish()
        assert trainer.state.global_step == 6

    assert run_alone(work) == 0
    (line,) = [
        line for line in Path("messages.txt").read_text().splitlines() if line.startswith("W&B")
    ]
    assert line.startswith("W&B: a log failed (Connection")
    assert line.endswith("): the mirror is off from here, the run goes on")
