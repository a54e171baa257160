"""Early stopping of real trainings: at the right evaluation, also after an interruption."""

from __future__ import annotations

import math
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from hftune.callbacks.early_stopping import EarlyStopping
from hftune.configuration.arguments import HFTuneArguments
from hftune.training.trainer import HFTuneTrainer
from hftune.utils.errors import ConfigurationError, TrainingInterrupted

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
import small_run

torch.set_num_threads(1)

NAN = float("nan")


class Scripted:
    """Evaluations, one every three steps, have these values; and an error that is real."""

    primary_metric = "quality"
    greater_is_better = True

    def __init__(self, values):
        self.values = values

    def __call__(self, trainer):
        value = self.values[trainer.state.global_step // 3 - 1]
        return {"quality": value, "cost": -value} | small_run.Evaluate()(trainer)


RISE = [0.1, 0.4, 0.3, 0.5, 0.5, 0.2, 0.4, 0.9, 0.9, 0.9]
"""The best of the first six is at step 12; with a patience of 3 step 21 is the last."""


def make_trainer(folder, values=RISE, stopping=None, **settings):
    """A trainer of 30 steps, evaluated every 3."""
    trainer = small_run.make_trainer(folder, **{"num_train_epochs": 6, **settings})
    trainer.evaluator = Scripted(values)
    if settings.get("metric_for_best_model") is None:
        trainer.args.metric_for_best_model, trainer.args.greater_is_better = "quality", True
    trainer.add_callback(EarlyStopping(3) if stopping is None else stopping)
    return trainer


def steps(trainer):
    return [line["step"] for line in trainer.state.log_history if "eval_error" in line]


def test_a_run_ends_at_the_right_evaluation(tmp_path, capfd):
    trainer = make_trainer(tmp_path)
    trainer.train()
    assert trainer.state.global_step == 21
    assert steps(trainer) == [3, 6, 9, 12, 15, 18, 21]
    assert trainer.state.best_global_step == 12
    assert (
        "Ended early: quality has not been better than 0.5 for 3 evaluations "
        "(--early_stopping_patience 3)."
    ) in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("stop", [4, 13, 16, 20])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, stop):
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    stopped = make_trainer(tmp_path / "stopped")
    small_run.signal_at(stopped, stop, signal.SIGTERM)
    with pytest.raises(TrainingInterrupted):
        stopped.train()
    assert stopped.state.global_step == stop + 1
    resumed = make_trainer(tmp_path / "stopped")
    resumed.train()
    assert resumed.state.global_step == 21
    assert small_run.results(resumed) == small_run.results(whole)


def test_the_callback_of_transformers_counts_anew(tmp_path):
    """Why there is one of our own."""
    stopped = make_trainer(tmp_path, stopping=EarlyStoppingCallback(3))
    small_run.signal_at(stopped, 18, signal.SIGTERM)
    with pytest.raises(TrainingInterrupted):
        stopped.train()
    resumed = make_trainer(tmp_path, stopping=EarlyStoppingCallback(3))
    resumed.train()
    assert resumed.state.global_step > 21


@pytest.mark.parametrize("save_steps", [3, 6, 9])
def test_a_run_that_ended_early_is_finished(tmp_path, save_steps, capfd):
    settings = {"save_steps": save_steps, "load_best_model_at_end": save_steps == 3}
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    assert (tmp_path / "checkpoint-21").is_dir()
    again = make_trainer(tmp_path, **settings)
    trained = []
    again.training_step = lambda *args: trained.append(args)
    capfd.readouterr()
    again.train()
    assert not trained
    assert again.state.global_step == 21
    assert small_run.results(again)["weights"] == small_run.results(trainer)["weights"]
    assert "checkpoint-21 is the last step of this run, nothing to train" in " ".join(
        capfd.readouterr().err.split()
    )


def test_a_run_that_saves_by_epochs_is_finished_too(tmp_path):
    settings = {"save_strategy": "epoch", "load_best_model_at_end": False}
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    assert trainer.state.global_step == 21
    again = make_trainer(tmp_path, **settings)
    again.training_step = lambda *args: pytest.fail("trains")
    again.train()
    assert again.state.global_step == 21


def test_nothing_is_saved_where_nothing_is_to_be(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="no", load_best_model_at_end=False)
    trainer.train()
    assert trainer.state.global_step == 21
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(
    "values, patience, threshold, last",
    [
        ([0.1] * 10, 1, 0.0, 6),
        ([0.1] * 10, 4, 0.0, 15),
        ([0.1] * 10, 9, 0.0, 30),  # the last evaluation, which ends nothing
        ([0.1] * 10, 20, 0.0, 30),
        ([i / 10 for i in range(10)], 1, 0.0, 30),
        # Slow, but in sum more than the threshold.
        ([i / 10 for i in range(10)], 2, 0.15, 30),
        ([i / 10 for i in range(10)], 1, 0.15, 6),
        ([0.1, 0.2, NAN, NAN, 0.3, NAN, NAN, NAN, 0.4, 0.5], 3, 0.0, 24),
        ([NAN] * 10, 3, 0.0, 9),
        ([NAN, NAN, 0.1, 0.2, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2], 3, 0.0, 24),
        ([-math.inf] * 10, 2, 0.0, 6),
    ],
)
def test_when_it_ends(tmp_path, values, patience, threshold, last, capfd):
    trainer = make_trainer(
        tmp_path,
        values,
        EarlyStopping(patience, threshold),
        save_strategy="no",
        load_best_model_at_end=False,
    )
    trainer.train()
    assert trainer.state.global_step == last
    said = " ".join(capfd.readouterr().err.split())
    assert ("Ended early" in said) == (last < 30)
    if not any(map(math.isfinite, values)):
        assert f"quality has been no finite number for {patience} evaluations" in said


@pytest.mark.parametrize(
    "stopping",
    [
        EarlyStopping(3, metric="eval_cost", greater_is_better=False),
        EarlyStopping(3, metric="quality", greater_is_better=True),
    ],
)
def test_a_metric_of_its_own(tmp_path, stopping, capfd):
    trainer = make_trainer(
        tmp_path, stopping=stopping, metric_for_best_model="error", greater_is_better=False
    )
    trainer.train()
    assert trainer.state.global_step == 21
    best = (
        "quality has not been better than 0.5"
        if stopping.greater_is_better
        else "cost has not been better than -0.5"
    )
    assert best in " ".join(capfd.readouterr().err.split())


def test_lower_is_better_as_the_arguments_say(tmp_path):
    values = [0.5, 0.3, 0.2, 0.3, 0.3, 0.9, 0.1, 0.1, 0.1, 0.1]
    trainer = make_trainer(tmp_path, values)
    trainer.args.greater_is_better = False
    trainer.train()
    assert trainer.state.global_step == 18


def test_evaluations_outside_training_do_not_count(tmp_path, capfd):
    trainer = make_trainer(tmp_path)
    trainer.evaluator.values = [0.9] * 11
    for _ in range(5):
        trainer.evaluate()
    trainer.evaluator.values = RISE
    trainer.train()
    assert trainer.state.global_step == 21
    capfd.readouterr()
    for _ in range(5):
        trainer.evaluate()
    assert "Ended early" not in capfd.readouterr().err
    assert trainer.state.max_steps == 21


def test_an_evaluation_at_the_start_of_each_session_counts_once(tmp_path):
    values = [*RISE[:7], 0.9, 0.9, 0.9, 0.0]  # the last is that of step 0

    def make():
        return make_trainer(tmp_path, values, eval_on_start=True)

    stopped = make()
    small_run.signal_at(stopped, 14, signal.SIGTERM)
    with pytest.raises(TrainingInterrupted):
        stopped.train()
    resumed = make()
    resumed.train()
    assert resumed.state.global_step == 21


def test_a_metric_that_no_evaluation_has(tmp_path):
    trainer = make_trainer(
        tmp_path, stopping=EarlyStopping(3, metric="acuracy", greater_is_better=True)
    )
    with pytest.raises(ConfigurationError) as error:
        trainer.train()
    assert trainer.state.global_step == 3
    assert str(error.value) == (
        "early stopping: no evaluation has a metric 'acuracy', found cost, error, quality."
    )
    near = make_trainer(
        tmp_path / "b", stopping=EarlyStopping(3, metric="qualty", greater_is_better=True)
    )
    with pytest.raises(ConfigurationError, match="Did you mean 'quality'\\?$"):
        near.train()


@pytest.mark.parametrize("patience, threshold", [(0, 0.0), (-1, 0.0), (3, -0.1), (3, NAN)])
def test_numbers_without_sense(patience, threshold):
    expected = (
        f"EarlyStopping: found a patience of {patience} and a threshold of {threshold}, expected 1 "
        "or more and 0 or more"
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(expected)}$"):
        EarlyStopping(patience, threshold)


def test_a_direction_that_nobody_knows():
    expected = (
        "EarlyStopping: it is not known of 'quality' whether a higher or a lower value is better; "
        "say so: greater_is_better=True or False"
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(expected)}$"):
        EarlyStopping(3, metric="quality")
    assert EarlyStopping(3, metric="eval_accuracy").greater_is_better is True
    assert EarlyStopping(3, metric="loss").greater_is_better is False


# A Trainer of transformers


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x, labels=None):
        output = self.layer(x)
        return {"loss": ((output[:, 0] - labels) ** 2).mean(), "logits": output}


DATA = [{"x": torch.tensor([i % 3, 1.0]), "labels": torch.tensor(float(i % 2))} for i in range(16)]


def plain_trainer(folder, values, kind=Trainer, arguments=TrainingArguments, data=DATA, **settings):
    args = arguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=10,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
        **settings,
    )
    trainer = kind(
        model=Model(),
        args=args,
        train_dataset=DATA,
        eval_dataset=data,
        callbacks=[EarlyStopping(2)],
    )
    trainer.compute_metrics = lambda _: {"accuracy": values[trainer.state.global_step - 1]}
    return trainer


def test_a_trainer_of_transformers(tmp_path):
    values = [0.1, 0.3, 0.2, 0.4, 0.4, 0.3, 0.9, 0.9, 0.9, 0.9]
    trainer = plain_trainer(tmp_path, values, metric_for_best_model="accuracy")
    trainer.train()
    assert trainer.state.global_step == 6
    resumed = plain_trainer(tmp_path, values, metric_for_best_model="accuracy")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 6


def test_the_loss_where_no_metric_is_named(tmp_path):
    trainer = plain_trainer(tmp_path, [0.0] * 10, learning_rate=0.0)
    trainer.train()
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert losses == losses[:1] * 3
    assert trainer.state.global_step == 3


@pytest.mark.parametrize(
    "kind, arguments", [(Trainer, TrainingArguments), (HFTuneTrainer, HFTuneArguments)]
)
def test_one_of_several_data_sets(tmp_path, kind, arguments):
    values = [0.1, 0.3, 0.2, 0.2, 0.4, 0.4, 0.4, 0.9, 0.9, 0.9]
    trainer = plain_trainer(
        tmp_path,
        values,
        kind,
        arguments,
        data={"first": DATA[:4], "second": DATA[4:], "third": DATA[:2]},
        metric_for_best_model="second_accuracy",
        greater_is_better=True,
    )
    trainer.train()
    assert trainer.state.global_step == 4
