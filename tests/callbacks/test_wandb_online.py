"""The mirror and its server: one that takes everything, and several that are no use."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from wandb_files import close, history, isolate
from wandb_server import WandbServer

from hftune.callbacks import wandb_mirror
from hftune.callbacks.wandb_mirror import WandbCallback
from hftune.configuration.arguments import HFTuneArguments
from hftune.training.trainer import HFTuneTrainer
from hftune.utils.errors import ConfigurationError, TrainingInterrupted

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _own_wandb(tmp_path, monkeypatch):
    close()
    isolate(tmp_path, monkeypatch)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(wandb_mirror, "ANSWER_SECONDS", 1.0)
    yield
    close()


@pytest.fixture
def server(monkeypatch):
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        server.silent.clear()


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x):
        return {"loss": (self.layer(x) ** 2).mean()}


DATA = [{"x": torch.tensor([float(i), 1.0])} for i in range(32)]


def run(mirror, steps, finish="completed"):
    """A run without a Trainer; each step logs its number."""
    args = TrainingArguments("out", use_cpu=True)
    state, control = TrainerState(global_step=steps[0] - 1, max_steps=9), TrainerControl()
    mirror.on_train_begin(args, state, control)
    for state.global_step in steps:
        mirror.on_log(args, state, control, logs={"loss": state.global_step, "epoch": 0.5})
    if finish is not None:
        mirror.finish(finish)
    return args, state, control


def steps_of(rows):
    return [row["train/loss"] for row in rows if "train/loss" in row]


def kinds_of_runs(folder):
    return {path.name.partition("run-")[0] for path in folder.glob("out/wandb/*run-*")}


def test_a_run_reaches_the_server(server, capsys):
    mirror = WandbCallback("p", "name", tags=["a"], mode="online", config={"x": 1})
    run(mirror, [1, 2, 3])
    assert steps_of(server.history(mirror.run_id)) == [1, 2, 3]
    assert server.history(mirror.run_id)[-1] == {
        "train/loss": 3,
        "train/epoch": 0.5,
        "epoch": 0,
        "train/global_step": 3,
        "step": 3,
    }
    about = server.runs[mirror.run_id]
    assert (about["project"], about["displayName"], about["tags"]) == ("p", "name", ["a"])
    assert '"x":{"value":1}' in about["config"]
    assert server.exit_codes == {mirror.run_id: 0}
    assert capsys.readouterr().err == ""


def test_auto_is_online_where_there_is_a_login(server):
    run(WandbCallback(), [1])
    assert len(server.runs) == 1


def test_wandb_mode_decides(server, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(WandbCallback(), [1])
    assert server.runs == {}
    assert kinds_of_runs(tmp_path) == {"offline-"}


def test_an_interrupted_run_goes_on(server):
    first = WandbCallback("p", mode="online")
    run(first, [1, 2, 3, 4, 5], finish="preempted")
    assert server.exit_codes == {first.run_id: 1}
    second = WandbCallback("p", mode="online", run_id=first.run_id, config={"x": 2})
    run(second, [4, 5, 6])  # from the checkpoint of step 3
    assert list(server.runs) == [first.run_id]
    assert steps_of(server.history(first.run_id)) == [1, 2, 3, 4, 5, 4, 5, 6]
    assert '"x":{"value":2}' in server.runs[first.run_id]["config"]
    assert server.exit_codes == {first.run_id: 0}


def test_a_run_that_a_signal_stopped_goes_on(server, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    def train(*callbacks):
        mirror = WandbCallback("p", log_model=True)
        args = HFTuneArguments(
            output_dir="out", max_steps=4, logging_steps=1, save_steps=4, disable_tqdm=True,
            use_cpu=True, resume="auto",
        )  # fmt: skip
        callbacks = [mirror, *callbacks]
        trainer = HFTuneTrainer(Model(), args, train_dataset=DATA, callbacks=callbacks)
        trainer.train()
        return mirror

    with pytest.raises(TrainingInterrupted):
        train(Stop())
    assert wandb.run is None
    (run_id,) = server.runs
    assert server.exit_codes == {run_id: 1}
    second = train()
    assert wandb.run.id == second.run_id == run_id
    second.finish()
    rows = [row for row in server.history(run_id) if "train/loss" in row]
    assert [row["train/global_step"] for row in rows] == [1, 2, 3, 4]
    assert server.exit_codes == {run_id: 0}


def test_sync_uploads_what_was_kept_offline(server, tmp_path):
    first = WandbCallback("p", mode="offline")
    run(first, [1, 2, 3])
    (part,) = tmp_path.glob("out/wandb/offline-run-*")
    part.rename(part.with_name(part.name.replace("-run-20", "-run-19")))  # not in the same second
    second = WandbCallback("p", mode="offline", run_id=first.run_id)
    run(second, [3, 4])
    close()
    command = "wandb sync out/wandb/offline-run-*"
    subprocess.run(command, shell=True, check=True, stdin=subprocess.DEVNULL, timeout=60)
    assert steps_of(server.history(first.run_id)) == [1, 2, 3, 3, 4]


# Servers that are no use. That these tests end is half of what they show: the server would keep
# whoever waits for it until they have ended.


def test_nobody_listens(tmp_path, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    mirror = WandbCallback(run_id="abc12345")
    run(mirror, [1, 2])
    refused = f"[Errno {errno.ECONNREFUSED}] Connection refused"
    assert capsys.readouterr().err == (
        f"W&B: {url} cannot be reached ({refused}): the run is kept offline; 'wandb sync' uploads "
        "it\n"
    )
    assert kinds_of_runs(tmp_path) == {"offline-"}
    assert mirror.run_id == "abc12345"
    assert steps_of(history(tmp_path / "out")) == [1, 2]


def test_a_server_that_never_answers(server, tmp_path, capsys):
    server.silent.set()
    mirror = WandbCallback(mode="online")
    run(mirror, [1, 2])
    assert capsys.readouterr().err == (
        f"W&B: {server.url} did not answer within 1 s: the run is kept offline; 'wandb sync' "
        "uploads it\n"
    )
    assert kinds_of_runs(tmp_path) == {"offline-"}
    assert steps_of(history(tmp_path / "out")) == [1, 2]


def test_a_server_that_takes_no_runs(server, tmp_path, monkeypatch, capsys):
    """It answers, but not as W&B: the id that was tried is free for the offline run again."""
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setattr(server, "_answer", lambda path, body: {"errors": [{"message": "no"}]})
    mirror = WandbCallback(run_id="abc12345")
    run(mirror, [1, 2])
    said = capsys.readouterr().err
    assert said.startswith("W&B: the start failed (CommError: ")
    assert said.endswith("): the run is kept offline; 'wandb sync' uploads it\n")
    assert mirror.run_id == "abc12345"
    assert kinds_of_runs(tmp_path) == {"", "offline-"}


@pytest.mark.parametrize("key", ["short", "k" * 39 + "!"])
def test_a_login_that_cannot_be_one(key, server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", key)
    run(WandbCallback(), [1])
    said = capsys.readouterr().err
    assert said.startswith("W&B: WANDB_API_KEY invalid: API key ")
    assert key not in said
    assert kinds_of_runs(tmp_path) == {"offline-"}
    with pytest.raises(ConfigurationError, match="WANDB_API_KEY invalid"):
        WandbCallback(mode="online")


def test_the_network_dies_in_the_middle(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    mirror = WandbCallback(mode="online", log_model=True)
    event = run(mirror, [1, 2], finish=None)
    (tmp_path / "out" / "checkpoint-2").mkdir()
    event[1].log_history = [{"loss": 1, "epoch": 0.1}]
    server.silent.set()
    for _ in range(1000):
        mirror.on_log(*event, logs={"loss": 3})
    mirror.on_train_end(*event)
    mirror.log_predictions([{"input": "a", "prediction": "b", "reference": "c"}])
    mirror.finish()
    close()
    late = f"W&B: {server.url} did not answer within 1 s: "
    assert capsys.readouterr().err.splitlines() == [
        f"{late}the learning curves left out there",
        f"{late}the model left out there",
        f"{late}the prediction samples left out there",
    ]
    assert steps_of(history(tmp_path / "out")) == [1, 2] + 1000 * [3]

    server.silent.clear()
    command = "wandb sync --include-online out/wandb/run-*"
    subprocess.run(command, shell=True, check=True, stdin=subprocess.DEVNULL, timeout=60)
    assert steps_of(server.history(mirror.run_id)) == [1, 2] + 1000 * [3]


def test_a_server_that_refuses_the_model(server, tmp_path, capsys):
    mirror = WandbCallback("p")
    run(mirror, [1], finish=None)
    (tmp_path / "model.safetensors").write_text("weights")
    mirror.log_model(tmp_path)
    mirror.finish()
    said = capsys.readouterr().err
    assert said.startswith("W&B: the model failed (ValueError: ")
    assert said.endswith("no artifacts here): the mirror is off from here, the run goes on\n")
    assert server.exit_codes == {mirror.run_id: 0}


def test_the_login_is_not_written_down(server, tmp_path):
    run(WandbCallback(mode="online"), [1])
    close()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if os.environb[b"WANDB_API_KEY"] in path.read_bytes()] == []
