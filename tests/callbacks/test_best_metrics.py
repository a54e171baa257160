"""The best evaluation of a real Trainer is the one that is kept, also over a resume."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from hftune.callbacks.best_metrics import BestMetricsCallback, add_rouge_combined
from hftune.configuration.arguments import HFTuneArguments
from hftune.training.trainer import HFTuneTrainer
from hftune.utils.errors import ConfigurationError

SCORES = {2: 0.30, 4: 0.50, 6: float("nan"), 8: 0.50, 10: 0.40}
"""ROUGE-1 by step."""


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x, labels=None):
        return {"loss": ((self.layer(x)[:, 0] - labels) ** 2).mean(), "logits": self.layer(x)}


DATA = [{"x": torch.tensor([i % 3, 1.0]), "labels": torch.tensor(float(i % 2))} for i in range(16)]


class ScoredTrainer(Trainer):
    """Its evaluations have the scores above."""

    scores = SCORES

    def evaluate(self, *args, **kwargs):
        self.compute_metrics = lambda prediction: {
            "rouge1": self.scores[self.state.global_step],
            "rouge2": 0.1,
            "rougeL": 0.2,
        }
        return super().evaluate(*args, **kwargs)


def make_trainer(folder, *callbacks, kind=ScoredTrainer, **settings):
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=10,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        logging_steps=2,
        metric_for_best_model="rouge1",
        load_best_model_at_end=True,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
        **settings,
    )
    return kind(
        model=Model(), args=args, train_dataset=DATA, eval_dataset=DATA, callbacks=[*callbacks]
    )


def test_the_best_of_a_run(tmp_path):
    best = BestMetricsCallback()
    trainer = make_trainer(tmp_path, best)
    trainer.train()
    (row,) = [r for r in trainer.state.log_history if r["step"] == 4 and "eval_loss" in r]
    assert best.best_step == trainer.state.best_global_step == 4
    assert best.best_metrics == {
        "loss": row["eval_loss"],
        "rouge1": 0.5,
        "rouge2": 0.1,
        "rougeL": 0.2,
        "rouge1_f1": 0.5,
        "rouge2_f1": 0.1,
        "rougeL_f1": 0.2,
        "rouge_combined_f1": pytest.approx(0.33 * 0.5 + 0.33 * 0.1 + 0.34 * 0.2),
    }
    trainer.scores = {10: 0.99}
    trainer.evaluate()  # other data, or the best weights again: not an evaluation of the run
    assert best.best_step == 4


def test_a_metric_and_direction_of_its_own(tmp_path):
    best = BestMetricsCallback("eval_rouge_combined_f1", greater_is_better=False)
    make_trainer(tmp_path, best).train()
    assert best.best_step == 2
    assert best.best_metrics["rouge1"] == 0.3


def test_resume(tmp_path):
    make_trainer(tmp_path, BestMetricsCallback()).train()
    for step in (8, 10):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    best = BestMetricsCallback()
    trainer = make_trainer(tmp_path, best)
    trainer.scores = {8: 0.1, 10: 0.49}
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert best.best_step == 4
    assert best.best_metrics["rouge_combined_f1"] == pytest.approx(0.266)


def test_resume_of_an_hftune_trainer(tmp_path):
    class Evaluate:
        primary_metric, greater_is_better = "error", False
        errors = {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.0}

        def __call__(self, trainer):
            return {"error": self.errors[trainer.state.global_step], "other": float("-inf")}

    def train(steps):
        best = BestMetricsCallback()
        args = HFTuneArguments(
            output_dir=str(tmp_path), max_steps=steps, eval_strategy="steps", eval_steps=2,
            save_steps=2, per_device_train_batch_size=2, disable_tqdm=True, use_cpu=True,
            allow_resume_changes=True, resume="auto",
        )  # fmt: skip
        trainer = HFTuneTrainer(
            Model(), args, train_dataset=DATA, evaluator=Evaluate(), callbacks=[best]
        )
        trainer.train()
        return best

    assert train(6).best_step == 4
    best = train(8)
    assert best.best_step == 4
    assert best.best_metrics == {"error": 1.0, "other": -math.inf}


def evaluate(callback, evaluations, begin=0):
    """Plays events of a run: ``(step, metrics)``."""
    args = TrainingArguments("out", metric_for_best_model="f1", use_cpu=True)
    state, control = TrainerState(global_step=begin), TrainerControl()
    callback.on_train_begin(args, state, control)
    for step, metrics in evaluations:
        state.global_step = step
        callback.on_evaluate(args, state, control, metrics=metrics)
    callback.on_train_end(args, state, control)


def test_nan_never_wins_and_the_earlier_of_two_equals_does(capsys):
    best = BestMetricsCallback()
    evaluate(best, [(1, {"eval_f1": math.nan}), (2, {"eval_f1": 0.5}), (3, {"eval_f1": math.nan})])
    assert (best.best_step, best.best_metrics) == (2, {"f1": 0.5})
    evaluate(best, [(5, {"eval_f1": 0.4}), (6, {"eval_f1": 0.4})])  # another run
    assert best.best_step == 5
    assert capsys.readouterr().err == ""


def test_several_data_sets(tmp_path):
    best = BestMetricsCallback("a_f1", greater_is_better=True)
    evaluate(
        best,
        [
            (5, {"eval_a_f1": 0.5, "eval_a_runtime": 3.0}),
            (5, {"eval_b_f1": 0.1}),
            (9, {"eval_a_f1": 0.4}),
            (9, {"eval_b_f1": 0.9}),
        ],
    )
    assert (best.best_step, best.best_metrics) == (5, {"a_f1": 0.5, "b_f1": 0.1})


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"eval_f1": math.nan}, "best metrics: none: 'f1' was never a finite number\n"),
        (
            {"eval_F1": 1.0, "eval_loss": 2},
            "best metrics: none: no evaluation had 'f1', found F1, loss. Did you mean 'F1'?\n",
        ),
    ],
)
def test_a_run_without_a_best_evaluation_says_why(metrics, said, capsys):
    best = BestMetricsCallback()
    evaluate(best, [(1, metrics)])
    assert (best.best_step, best.best_metrics) == (None, {})
    assert capsys.readouterr().err == said


def test_a_direction_is_never_guessed():
    assert BestMetricsCallback("eval_loss").greater_is_better is False
    assert BestMetricsCallback("rouge_combined_f1").greater_is_better is True
    with pytest.raises(ConfigurationError) as error:
        BestMetricsCallback("eval_custom_score")
    assert str(error.value) == (
        "BestMetricsCallback: it is not known of 'eval_custom_score' whether a higher or a lower "
        "value is better; say so: greater_is_better=True or False"
    )


@pytest.mark.parametrize(
    ("metrics", "added"),
    [
        (
            {"rouge1": 1.0, "rouge2": 0.0, "rougeL": 0.5},
            {"rouge1_f1": 1.0, "rouge2_f1": 0.0, "rougeL_f1": 0.5, "rouge_combined_f1": 0.5},
        ),
        (
            {"eval_rouge1_f1": 0.0, "eval_rouge2_f1": 1.0, "eval_rougeL_f1": 0.0, "eval_loss": 1},
            {"eval_rouge_combined_f1": 0.33},
        ),
        (
            {"test_a_rouge1": 0.0, "test_a_rouge2": 0.0, "test_a_rougeL_f1": 1.0, "epoch": 1.0},
            {
                "test_a_rouge1_f1": 0.0,
                "test_a_rouge2_f1": 0.0,
                "test_a_rouge_combined_f1": 0.34,
            },
        ),
        ({"rouge1_f1": 1.0, "rouge2_f1": 1.0, "rougeL_f1": 1.0, "rouge_combined_f1": 0.2}, {}),
        ({"rouge1": 1.0, "rouge2": 1.0}, {}),
        ({"loss": 1.0, "rouge1_precision": 1.0}, {}),
    ],
)
def test_rouge_combined(metrics, added):
    before = dict(metrics)
    assert add_rouge_combined(metrics) == pytest.approx({**metrics, **added})
    assert metrics == before
