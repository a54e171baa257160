"""Callbacks of plugins in a run: guarded, found, kept in checkpoints."""

from __future__ import annotations

import json
import logging
import sys

import numpy as np
import pytest
import torch
import transformers
from plugin_probes import declare_probes
from processes import run_together
from torch import nn
from transformers import TrainerCallback

from hftune.callbacks.gradient_health import GradientHealthCallback, GradientHealthError
from hftune.callbacks.plugins import CallbackError, GuardedCallback, load_callbacks
from hftune.configuration.arguments import HFTuneArguments
from hftune.tracking.run_record import RunRecord
from hftune.training.trainer import HFTuneTrainer
from hftune.utils.files import read_json

torch.set_num_threads(1)


@pytest.fixture
def probes(tmp_path, monkeypatch):
    """A package with a callback for every case, on the path."""
    declare_probes(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    sys.modules.pop("hftune_test_probes", None)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        x = np.random.default_rng(index).normal(size=4).astype(np.float32)
        return {"x": x, "labels": x[:1]}


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 1)

    def forward(self, x, labels):
        return {"loss": ((self.line(x) - labels) ** 2).mean()}


SMALL = dict(
    per_device_train_batch_size=2,
    max_steps=6,
    save_strategy="no",
    logging_steps=2,
    disable_tqdm=True,
    use_cpu=True,
)


def plain_trainer(folder, callbacks, **settings) -> transformers.Trainer:
    args = transformers.TrainingArguments(str(folder), **{**SMALL, **settings})
    return transformers.Trainer(
        Line(), args, train_dataset=Rows(), eval_dataset=Rows(), callbacks=callbacks
    )


def hftune_trainer(folder, **settings) -> HFTuneTrainer:
    args = HFTuneArguments(output_dir=str(folder), **{**SMALL, **settings})
    return HFTuneTrainer(Line(), args, train_dataset=Rows())


def of_plugins(trainer) -> list[TrainerCallback]:
    return [c for c in trainer.callback_handler.callbacks if isinstance(c, GuardedCallback)]


class Own(TrainerCallback):
    pass


def test_none_are_active_unless_named(probes, tmp_path):
    assert of_plugins(hftune_trainer(tmp_path)) == []


def test_they_come_before_the_users_own_which_record_what_they_log(probes, tmp_path):
    args = HFTuneArguments(output_dir=str(tmp_path), callbacks=["probe", "counter"], **SMALL)
    own = Own()
    trainer = HFTuneTrainer(Line(), args, train_dataset=Rows(), callbacks=[own])
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert [n for n in names if n in ("Own", "Probe", "Counter")] == ["Probe", "Counter", "Own"]


def test_gradient_health_by_name_takes_the_place_of_the_default(tmp_path):
    path = "hftune.callbacks.gradient_health:GradientHealthCallback"
    trainer = hftune_trainer(tmp_path, callbacks=[f"{path}:patience=3,followed=line"])
    found = [c for c in trainer.callback_handler.callbacks if isinstance(c, GradientHealthCallback)]
    assert found == [trainer.gradient_health]
    assert (found[0].patience, found[0].followed) == (3, ("line",))
    trainer.train()
    assert len(read_json(tmp_path / "gradient_health.json")["norm"]) == 3
    assert "grad_norm_max" in trainer.state.log_history[0]


def test_a_guarded_callback_is_found_as_what_it_is(probes, tmp_path):
    callbacks = load_callbacks(["probe", "transformers:EarlyStoppingCallback", "counter"])
    import hftune_test_probes

    trainer = plain_trainer(tmp_path, callbacks)
    assert "Probe\nEarlyStoppingCallback\nCounter" in trainer.callback_handler.callback_list
    assert trainer.pop_callback(hftune_test_probes.Probe) is callbacks[0]
    assert trainer.pop_callback(callbacks[2]) is callbacks[2]
    trainer.remove_callback(transformers.EarlyStoppingCallback)
    assert of_plugins(trainer) == []


def test_every_event_reaches_the_callback(probes, tmp_path):
    seen = []

    def listen(event):
        return lambda self, args, state, control, **kwargs: seen.append(event)

    events = [name for name in dir(TrainerCallback) if name.startswith("on_")]
    (callback,) = load_callbacks(["probe"])
    kind = type(callback).__bases__[1]
    try:
        for event in events:
            setattr(kind, event, listen(event))
        trainer = plain_trainer(
            tmp_path, [callback], eval_strategy="steps", eval_steps=3, save_strategy="steps",
            save_steps=6, gradient_accumulation_steps=2,
        )  # fmt: skip
        trainer.train()
        trainer.predict(Rows())
    finally:
        for event in events:
            delattr(kind, event)
    assert set(seen) == set(events) - {"on_push_begin"}


def test_what_a_callback_asks_of_the_trainer_is_done(tmp_path):
    """`control` goes through: early stopping by path stops a run, and is restored on resume."""
    path = "transformers.EarlyStoppingCallback:early_stopping_patience=2,early_stopping_threshold=9"
    settings = dict(
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="loss",
        restore_callback_states_from_checkpoint=True,
    )  # fmt: skip
    trainer = plain_trainer(tmp_path, load_callbacks([path]), **settings)
    trainer.train()
    assert trainer.state.global_step == 3
    again = plain_trainer(tmp_path, load_callbacks([path]), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 3
    (restored,) = of_plugins(again)
    assert (restored.early_stopping_patience, restored.guard.plugin.name) == (2, path.split(":")[0])


def test_stop_says_whose_error_it_is(probes, tmp_path):
    trainer = plain_trainer(tmp_path, load_callbacks(["fails:step=2"]))
    with pytest.raises(CallbackError) as caught:
        trainer.train()
    text = str(caught.value)
    assert text.startswith(
        "callback 'fails' of hftune-probes 1.0 failed in on_step_end at step 2:\n"
        "Traceback (most recent call last):\n"
    )
    assert "raise KeyError(\"rouge\\u00e9\")\nKeyError: 'rougeé'\n" in text
    assert "plugins.py" not in text
    assert text.endswith("or go on without it when it fails: --callback_errors disable.")
    assert isinstance(caught.value.__cause__, KeyError)
    assert trainer.state.global_step == 2


def test_disable_turns_it_off_once_and_training_goes_on(probes, tmp_path, caplog):
    with RunRecord.start(tmp_path, task="test", configuration={}) as record:
        trainer = hftune_trainer(
            tmp_path, callbacks=["fails:step=3", "counter"], callback_errors="disable"
        )
        with caplog.at_level(logging.WARNING):
            trainer.train()
    failed, counter = of_plugins(trainer)
    assert (failed.calls, failed.guard.disabled) == (3, True)
    assert (counter.steps, counter.guard.disabled) == (6, False)
    assert trainer.state.global_step == 6
    (said,) = [r.getMessage() for r in caplog.records if "fails" in r.getMessage()]
    assert said.startswith("callback 'fails' of hftune-probes 1.0 failed in on_step_end at step 3:")
    assert said.endswith("It is disabled for the rest of this run; training goes on.")
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    (event,) = [e for e in map(json.loads, lines) if e["kind"] == "warning"]
    assert (event["callback"], event["event"], event["step"]) == ("fails", "on_step_end", 3)
    assert event["message"] == said
    assert record.values["status"] == "completed"


def test_a_callback_may_stop_the_run_itself(tmp_path):
    """Its own HftuneError is no failure of the plugin, whatever the policy."""
    path = "hftune.callbacks.gradient_health:GradientHealthCallback"
    trainer = hftune_trainer(tmp_path, callbacks=[path], callback_errors="disable")
    with torch.no_grad():
        trainer.model.line.weight.fill_(float("nan"))
    with pytest.raises(GradientHealthError, match="step 1: the gradients of 2 parameters"):
        trainer.train()


def test_one_object_that_is_given_out_twice(probes):
    (first,) = load_callbacks(["singleton"], "stop")
    (second,) = load_callbacks(["singleton"], "disable")
    assert first is second
    assert second.guard.on_error == "disable"
    assert len(type(second).__mro__) == len(type(second).__bases__[1].__mro__) + 2


# State in checkpoints


def test_state_continues(probes, tmp_path):
    def train(steps):
        trainer = hftune_trainer(
            tmp_path, callbacks=["counter"], max_steps=steps, save_strategy="steps", save_steps=2,
            allow_resume_changes=True,
        )  # fmt: skip
        trainer.train()
        return of_plugins(trainer)[0].steps

    assert train(4) == 4
    assert read_json(tmp_path / "checkpoint-4" / "callbacks" / "counter.json") == {"steps": 4}
    assert train(6) == 6
    assert train(6) == 6  # finished: restored, not trained


def test_state_continues_in_any_trainer(probes, tmp_path):
    settings = dict(save_strategy="steps", save_steps=3)
    plain_trainer(tmp_path, load_callbacks(["counter"]), **settings).train()
    again = plain_trainer(tmp_path, load_callbacks(["counter"]), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert of_plugins(again)[0].steps == 6


def test_a_state_that_cannot_be_taken_is_left_out(probes, tmp_path, caplog):
    trainer = hftune_trainer(
        tmp_path, callbacks=["counter:fail=bug"], callback_errors="disable",
        save_strategy="steps", save_steps=2, max_steps=4,
    )  # fmt: skip
    trainer.train()
    assert "failed in save_state:\n" in caplog.text
    assert (tmp_path / "checkpoint-4" / "hftune_manifest.json").is_file()
    assert not (tmp_path / "checkpoint-4" / "callbacks" / "counter.json").exists()


def test_a_full_disk_is_not_the_callbacks_fault(probes, tmp_path):
    trainer = hftune_trainer(
        tmp_path, callbacks=["counter:fail=disk"], save_strategy="steps", save_steps=2
    )
    trainer.train()
    assert (trainer.failed_saves, trainer.state.global_step) == (3, 6)
    assert not of_plugins(trainer)[0].guard.disabled


# Several processes


def test_disabled_in_one_process_only(probes, tmp_path):
    def work(rank):
        trainer = hftune_trainer(
            tmp_path, callbacks=["fails:step=2,process=1"], callback_errors="disable", max_steps=4,
            save_strategy="steps", save_steps=2,
        )  # fmt: skip
        trainer.train()
        (callback,) = of_plugins(trainer)
        (tmp_path / f"{rank}.json").write_text(
            json.dumps([callback.calls, callback.guard.disabled, trainer.state.global_step])
        )
        trainer.end()

    assert run_together(work) == [0, 0]
    assert json.loads((tmp_path / "0.json").read_text()) == [4, False, 4]
    assert json.loads((tmp_path / "1.json").read_text()) == [2, True, 4]
    assert (tmp_path / "checkpoint-4" / "hftune_manifest.json").is_file()
