"""What the Trainer adds: scale of losses, parts of losses, averages, groups, evaluators."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import small_run

from hftune.configuration.arguments import HFTuneArguments
from hftune.training.averaging import WeightAverage
from hftune.training.trainer import HFTuneTrainer
from hftune.utils.errors import ConfigurationError

torch.set_num_threads(1)


class Rows(torch.utils.data.Dataset):
    def __init__(self, count=32):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 4, generator=generator)
        self.labels = self.x @ torch.tensor([1.0, -2.0, 0.5, 0.0])

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": self.labels[index]}


class Line(nn.Module):
    """A mean loss behind the ``**kwargs`` that makes the Trainer think otherwise."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 1)

    def forward(self, x, labels, **kwargs):
        return {"loss": ((self.line(x)[:, 0] - labels) ** 2).mean()}


def arguments(tmp_path, **settings) -> HFTuneArguments:
    defaults = dict(
        output_dir=str(tmp_path),
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=1,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_steps=2,
    )
    return HFTuneArguments(**{**defaults, **settings})


def train(tmp_path, model=None, data=None, **settings):
    torch.manual_seed(1)
    trainer = HFTuneTrainer(
        model or Line(), arguments(tmp_path, **settings), train_dataset=data or Rows()
    )
    # In order: early releases of transformers 5 have no setting for it.
    trainer._get_train_sampler = lambda data=None: torch.utils.data.SequentialSampler(Rows())
    trainer.train()
    return trainer


def test_accumulation_changes_neither_loss_nor_gradient(tmp_path):
    logs = [
        train(
            tmp_path,
            per_device_train_batch_size=16 // steps,
            gradient_accumulation_steps=steps,
        ).state.log_history[0]
        for steps in (1, 2, 4, 16)
    ]
    for log in logs[1:]:
        assert log["loss"] == pytest.approx(logs[0]["loss"], rel=1e-6)
        assert log["grad_norm"] == pytest.approx(logs[0]["grad_norm"], rel=1e-5)


def test_a_model_that_says_so_gets_the_number_of_items(tmp_path):
    class Counting(Line):
        accepts_loss_kwargs = True

        def forward(self, x, labels, num_items_in_batch=None):
            return {"loss": ((self.line(x)[:, 0] - labels) ** 2).sum() / num_items_in_batch}

    model = Counting()
    whole, parts = (
        train(
            tmp_path,
            copy.deepcopy(model),
            per_device_train_batch_size=16 // steps,
            gradient_accumulation_steps=steps,
        ).state.log_history[0]
        for steps in (1, 4)
    )
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.01, 1e6])
def test_weights_are_those_of_a_plain_loop(tmp_path, optim, max_grad_norm):
    """Clipping with norms that are measured once is `clip_grad_norm_` to the bit."""
    torch.manual_seed(1)
    expected = Line()
    trained = copy.deepcopy(expected)
    trainer = train(
        tmp_path,
        trained,
        optim=optim,
        max_grad_norm=max_grad_norm,
        max_steps=3,
    )
    optimizer_class, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(trainer.args)
    optimizer = optimizer_class(
        [{"params": [p]} for p in expected.parameters()], weight_decay=0.0, **settings
    )
    data = Rows()
    for step in range(3):
        rows = slice(8 * step, 8 * step + 8)
        expected(data.x[rows], data.labels[rows])["loss"].backward()
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(expected.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, trained.state_dict()[name])


def test_parts_of_a_loss_are_averaged_over_the_window(tmp_path):
    class Parts(Line):
        def forward(self, x, labels):
            error = self.line(x)[:, 0] - labels
            # "sparse" has data in the first half of the rows only.
            here = labels[:1] == Rows().labels[:1]
            return {
                "loss": (error**2).mean(),
                "losses": {
                    "square": (error.detach() ** 2).mean(),
                    "sparse": torch.where(here[0], torch.tensor(2.0), torch.tensor(torch.nan)),
                },
            }

    trainer = train(
        tmp_path,
        Parts(),
        logging_steps=2,
        gradient_accumulation_steps=2,
    )
    log = trainer.state.log_history[0]
    assert log["loss_square"] == pytest.approx(log["loss"], rel=1e-6)
    assert log["loss_sparse"] == 2.0


def test_learning_rates_by_pattern(tmp_path):
    trainer = small_run.make_trainer(
        tmp_path,
        learning_rate_patterns={"head": 0.0, r"body\.3": 5e-4, r"bias$": 9.0},
        weight_decay=0.1,
        max_steps=1,
        lr_scheduler_type="constant",
    )
    trainer.create_optimizer()
    names = {p: n for n, p in trainer.model.named_parameters()}
    groups = [
        (g["lr"], g["weight_decay"], sorted(names[p] for p in g["params"]))
        for g in trainer.optimizer.param_groups
    ]
    assert groups == [
        (1e-2, 0.1, ["body.0.weight"]),
        (1e-2, 0.0, ["norm.weight"]),
        (5e-4, 0.1, ["body.3.weight"]),
        (0.0, 0.1, ["head.weight"]),
        (9.0, 0.0, ["body.0.bias", "norm.bias"]),
        (5e-4, 0.0, ["body.3.bias"]),
        (0.0, 0.0, ["head.bias"]),
    ]
    before = trainer.model.head.weight.clone()
    trainer.train()
    assert torch.equal(trainer.model.head.weight, before)


def test_a_pattern_means_the_same_under_activation_checkpointing(tmp_path):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = small_run.SmallModel()
    model.body[0] = checkpoint_wrapper(model.body[0])
    trainer = HFTuneTrainer(
        model, arguments(tmp_path, learning_rate_patterns={r"^body\.0\.weight$": 3.0})
    )
    trainer.create_optimizer()
    (group,) = [g for g in trainer.optimizer.param_groups if g["lr"] == 3.0]
    assert [p.shape for p in group["params"]] == [(16, 6)]


def test_a_pattern_without_parameters(tmp_path):
    trainer = small_run.make_trainer(tmp_path, learning_rate_patterns={"haed": 1e-4})
    message = "'haed' is in the name of no trainable parameter. Did you mean 'head'"
    with pytest.raises(ConfigurationError, match=message):
        trainer.create_optimizer()


def test_the_average_follows_its_formula(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.5)
    expected = model.weight.detach().double().numpy().copy()
    for step in range(1, 21):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double().numpy()
    np.testing.assert_allclose(average.averages["weight"], expected, rtol=1e-5)
    current, averaged = model.weight.detach().clone(), average.averages["weight"].clone()
    average.swap()
    assert torch.equal(model.weight, averaged) and torch.equal(average.averages["weight"], current)
    with pytest.raises(ConfigurationError, match="'weight' is torch.bfloat16, expected whole"):
        WeightAverage(nn.Linear(2, 2).bfloat16(), 0.9)


def test_the_average_is_evaluated_and_becomes_the_model(tmp_path):
    trainer = small_run.make_trainer(tmp_path, max_steps=6)
    seen = []
    inner = trainer.evaluator

    def evaluate(trainer):
        seen.append(trainer.model.head.weight.detach().clone())
        return inner(trainer)

    trainer.evaluator = evaluate
    trainer.train()
    best = trainer.state.best_global_step
    assert best == 6
    from safetensors.torch import load_file

    for step, weight in zip((3, 6), seen, strict=True):
        saved = tmp_path / f"checkpoint-{step}"
        assert torch.equal(weight, load_file(saved / "ema.safetensors")["head.weight"])
        assert not torch.equal(weight, load_file(saved / "model.safetensors")["head.weight"])
    assert torch.equal(trainer.model.head.weight, seen[-1])
    # Training is over: the model is what is evaluated, and what is saved.
    trainer.evaluate()
    assert torch.equal(seen[-1], seen[-2])
    trainer.save_model(str(tmp_path / "model"))
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(saved["head.weight"], seen[-1])
    assert not (tmp_path / "model" / "training_args.bin").exists()


def test_the_evaluator_chooses_the_best_model(tmp_path):
    trainer = small_run.make_trainer(tmp_path, max_steps=9, ema_decay=0.0)
    errors = iter([3.0, 1.0, 2.0])

    class Scripted(small_run.Evaluate):
        def __call__(self, trainer):
            return {"error": next(errors), "eval_other": 7}

    trainer.evaluator = Scripted()
    trainer.train()
    assert trainer.args.metric_for_best_model == "error"
    assert trainer.args.greater_is_better is False
    assert trainer.state.best_metric == 1.0
    assert trainer.state.best_global_step == 6
    logged = [log for log in trainer.state.log_history if "eval_error" in log]
    assert [(log["step"], log["eval_error"], log["eval_other"]) for log in logged] == [
        (3, 3.0, 7.0),
        (6, 1.0, 7.0),
        (9, 2.0, 7.0),
    ]


def test_evaluator_beside_an_evaluation_set(tmp_path):
    torch.manual_seed(0)
    trainer = HFTuneTrainer(
        small_run.SmallModel(),
        arguments(tmp_path),
        eval_dataset=small_run.SmallData(),
        evaluator=small_run.Evaluate(),
    )
    metrics = trainer.evaluate()
    assert {"eval_loss", "eval_error"} <= metrics.keys()
    assert metrics["eval_samples_per_second"] > 0


def test_an_evaluator_alone_with_batches_by_length(tmp_path):
    trainer = small_run.make_trainer(tmp_path, train_sampling_strategy="group_by_length")
    assert "eval_error" in trainer.evaluate()


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="found TrainingArguments, expected HFTuneArgum"):
        HFTuneTrainer(Line(), transformers.TrainingArguments(str(tmp_path), use_cpu=True))
    args = arguments(tmp_path)
    monkeypatch.setattr(type(args), "n_gpu", property(lambda self: 4))
    with pytest.raises(ConfigurationError, match="sees 4 GPUs.*accelerate launch"):
        HFTuneTrainer(Line(), args)


def test_operations_are_counted_as_before(tmp_path):
    class Named(Line):
        main_input_name = "x"

    trainer = HFTuneTrainer(Named(), arguments(tmp_path))
    assert trainer.floating_point_ops({"x": torch.zeros(8, 4)}) == 6 * 32 * 5
    assert trainer.floating_point_ops({"y": torch.zeros(8, 4)}) == 0
