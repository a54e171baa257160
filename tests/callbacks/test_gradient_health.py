"""Gradients that are not finite or far too large are seen before the step, in any Trainer."""

from __future__ import annotations

import copy
import json
import logging
import math

import numpy as np
import pytest
import torch
import transformers
from processes import run_together
from torch import nn

from hftune.callbacks.gradient_health import (
    GradientHealthCallback,
    GradientHealthError,
    module_groups,
)
from hftune.configuration.arguments import HFTuneArguments
from hftune.training.trainer import HFTuneTrainer
from hftune.utils.errors import ConfigurationError

torch.set_num_threads(1)


class Spoil(torch.autograd.Function):
    """Lets values pass and multiplies their gradient."""

    @staticmethod
    def forward(context, x, factor):
        context.factor = factor
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * context.factor, None


class Model(nn.Module):
    """Its loss is always finite; the gradient of ``encoder.level_agg`` is what a sample says."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict(
            {"embed": nn.Linear(3, 4), "level_agg": nn.ModuleDict({"proj": nn.Linear(4, 4)})}
        )
        self.decoder = nn.Linear(4, 1)
        self.losses: list[float] = []

    def forward(self, x, labels, factor):
        hidden = self.encoder["embed"](x)
        hidden = hidden.detach() + self.encoder["level_agg"]["proj"](hidden)
        # Only what lies below sees the factor.
        spoiled = Spoil.apply(self.encoder["level_agg"]["proj"](hidden), factor[0].item())
        loss = ((self.decoder(spoiled)[:, 0] - labels) ** 2).mean()
        self.losses.append(loss.item())
        return {"loss": loss}


class Rows(torch.utils.data.Dataset):
    def __init__(self, factors):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(2 * len(factors), 3, generator=generator)
        self.factors = factors

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {
            "x": self.x[i],
            "labels": self.x[i].sum(),
            "factor": torch.tensor(float(self.factors[i // 2])),
        }


SETTINGS = dict(
    per_device_train_batch_size=2,
    num_train_epochs=1,
    logging_steps=1,
    save_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
    learning_rate=1e-2,
    weight_decay=0.1,
    optim="adamw_torch",
    lr_scheduler_type="constant",
    max_grad_norm=0.5,
)


def make(kind, folder, factors, callback, **settings):
    torch.manual_seed(0)
    settings = {**SETTINGS, "output_dir": str(folder), **settings}
    if kind == "plain":
        trainer_class, args = transformers.Trainer, transformers.TrainingArguments(**settings)
    else:
        trainer_class, args = HFTuneTrainer, HFTuneArguments(**settings)
    trainer = trainer_class(Model(), args, train_dataset=Rows(factors), callbacks=[callback])
    trainer._get_train_sampler = lambda data=None: torch.utils.data.SequentialSampler(
        trainer.train_dataset
    )
    return trainer


@pytest.fixture(params=["plain", "hftune"])
def kind(request):
    return request.param


def test_module_groups():
    names = [
        "encoder.embed.weight",
        "encoder.level_agg.proj.weight",
        "encoder._checkpoint_wrapped_module.level_agg.proj.bias",
        "decoder.weight",
        "scale",
    ]
    assert list(module_groups(names, most=4).values()) == [
        "encoder.embed",
        "encoder.level_agg",
        "encoder.level_agg",
        "decoder",
        "(top)",
    ]
    assert set(module_groups(names, most=3).values()) == {"encoder", "decoder", "(top)"}
    followed = module_groups(names, most=3, followed=["level_agg", "encoder.embed"])
    assert set(followed.values()) == {"encoder.level_agg", "encoder.embed", "decoder", "(top)"}
    assert module_groups([]) == {}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_norms_are_those_before_clipping(kind, tmp_path, accumulation):
    callback = GradientHealthCallback()
    trainer = make(
        kind, tmp_path, [1] * 4, callback, gradient_accumulation_steps=accumulation, max_steps=1
    )
    model, data = copy.deepcopy(trainer.model), trainer.train_dataset
    trainer.train()
    for batch in range(accumulation):
        rows = [data[i] for i in range(2 * batch, 2 * batch + 2)]
        x, labels, factor = (torch.stack([r[k] for r in rows]) for k in ("x", "labels", "factor"))
        (model(x, labels, factor)["loss"] / accumulation).backward()
    norms = {
        "encoder.embed": model.encoder["embed"],
        "encoder.level_agg": model.encoder["level_agg"],
        "decoder": model.decoder,
    }
    health = json.loads((tmp_path / "gradient_health.json").read_text())
    for name, module in norms.items():
        expected = math.sqrt(sum(p.grad.square().sum().item() for p in module.parameters()))
        assert health["modules"][name] == pytest.approx([expected], rel=1e-5)
    total = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
    assert total > SETTINGS["max_grad_norm"]
    assert health["steps"] == [1]
    assert health["norm"] == health["norm_max"] == pytest.approx([total], rel=1e-5)
    (log, _) = trainer.state.log_history
    assert log["grad_norm_max"] == pytest.approx(log["grad_norm"], rel=1e-5)


def test_watching_changes_nothing(tmp_path):
    """The same weights, to the bit, as without the callback."""

    class Nothing(transformers.TrainerCallback):
        pass

    weights = []
    for callback in (Nothing(), GradientHealthCallback()):
        for kind in ("plain", "hftune"):
            trainer = make(kind, tmp_path, [1] * 6, callback, max_steps=6)
            trainer.train()
            weights.append(trainer.model.state_dict())
    for other in weights[1:]:
        for name, weight in weights[0].items():
            assert torch.equal(weight, other[name])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_stop_leaves_the_weights_unharmed(kind, tmp_path, bad):
    callback = GradientHealthCallback("stop")
    trainer = make(kind, tmp_path, [1, 1, bad, 1], callback)
    with pytest.raises(GradientHealthError) as caught:
        trainer.train()
    assert "step 3: the gradients of 4 parameters are not finite: encoder." in str(caught.value)
    assert "--gradient_health skip" in str(caught.value)
    assert all(math.isfinite(loss) for loss in trainer.model.losses)
    assert trainer.state.global_step == 2
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    health = json.loads((tmp_path / "gradient_health.json").read_text())
    assert health["counts"] == {"non_finite": 1, "spike": 0, "overflow": 0, "skipped": 0}
    (event,) = health["events"]
    assert (event["step"], event["kind"], event["action"]) == (3, "non_finite", "stop")
    assert {worst["module"] for worst in event["worst"][:2]} == {
        "encoder.embed",
        "encoder.level_agg",
    }
    assert event["worst"][2]["norm"] > 0  # the decoder's is finite, and known


def test_a_skipped_step_does_nothing_at_all(kind, tmp_path, caplog):
    """Weights, momenta, step counts and weight decay are those of a run without the batch."""
    states = []
    for factors in ([1, 1, 1], [1, math.nan, 1, math.inf, 1]):
        rows = Rows([1, 1, 1])
        trainer = make(kind, tmp_path, factors, GradientHealthCallback("skip"))
        if len(factors) == 5:  # the same good batches, the bad ones between them
            rows.x = rows.x[[0, 1, 0, 1, 2, 3, 0, 1, 4, 5]]
            rows.factors = factors
        trainer.train_dataset = rows
        with caplog.at_level(logging.WARNING, "hftune"):
            trainer.train()
        states.append((trainer.model.state_dict(), trainer.optimizer.state_dict()["state"]))
    for name, weight in states[0][0].items():
        assert torch.equal(weight, states[1][0][name])
    for index, state in states[0][1].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][1][index][name]))
    assert trainer.state.global_step == 5
    assert trainer.state.log_history[4]["skipped_steps"] == 2
    assert trainer.state.log_history[4]["non_finite_gradients"] == 2
    warned = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(warned) == 2
    assert warned[0].startswith("step 2: the gradients of 4 parameters are not finite: encoder.")


def test_skips_in_a_row_end_the_run(kind, tmp_path):
    callback = GradientHealthCallback("skip", patience=3)
    trainer = make(kind, tmp_path, [1, math.nan, math.nan, 1] + [math.nan] * 5, callback)
    with pytest.raises(GradientHealthError, match="step 7: .*; this is skip 3 in a row"):
        trainer.train()


def test_warn_steps_all_the_same(kind, tmp_path, caplog):
    trainer = make(kind, tmp_path, [1, math.nan], GradientHealthCallback("warn"))
    with caplog.at_level(logging.WARNING, "hftune"):
        trainer.train()
    assert "step 2: the gradients of 4 parameters are not finite" in caplog.text
    assert not torch.isfinite(trainer.model.decoder.weight).all()


def test_spikes(kind, tmp_path, caplog):
    callback = GradientHealthCallback(spike_factor=20, window=25)
    factors = [1] * 8 + [1e4, 1, 1e15]
    trainer = make(kind, tmp_path, factors, callback, logging_steps=100)
    with caplog.at_level(logging.WARNING, "hftune"):
        trainer.train()
    assert callback.counts == {"non_finite": 0, "spike": 2, "overflow": 0, "skipped": 0}
    assert [event["step"] for event in callback.events] == [9, 11]
    (event, _) = callback.events
    assert event["worst"][0]["module"].startswith("encoder.")
    assert event["norm"] > 20 * event["median"]
    assert "step 9: the gradient norm" in caplog.text and "times its median" in caplog.text


def test_no_spike_before_there_is_a_median(kind, tmp_path):
    callback = GradientHealthCallback(spike_factor=20, window=25)
    make(kind, tmp_path, [1] * 4 + [1e4], callback).train()
    assert callback.counts["spike"] == 0


class Hinge(nn.Module):
    """Has a gradient of 0 wherever the factor is 0, as a loss whose margin is reached."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x, labels, factor):
        return {"loss": (factor[:, None] * self.weight * x).mean()}


def test_a_gradient_among_zeros_is_no_spike(tmp_path, caplog):
    callback = GradientHealthCallback(spike_factor=20, window=25)
    args = HFTuneArguments(**{**SETTINGS, "output_dir": str(tmp_path)})
    data = Rows([0] * 9 + [1, 0, 1])
    trainer = HFTuneTrainer(Hinge(), args, train_dataset=data, callbacks=[callback])
    trainer._get_train_sampler = lambda data=None: torch.utils.data.SequentialSampler(
        trainer.train_dataset
    )
    with caplog.at_level(logging.WARNING, "hftune"):
        trainer.train()
    assert trainer.state.global_step == 12
    assert callback.counts["spike"] == 0
    assert caplog.text == ""


def test_only_so_many_events_are_said(tmp_path, caplog):
    callback = GradientHealthCallback("warn")
    with caplog.at_level(logging.WARNING, "hftune.callbacks"):
        make("hftune", tmp_path, [math.nan] * 25, callback).train()
    said = [r.getMessage() for r in caplog.records if "gradients of" in r.getMessage()]
    assert len(said) == 20 and said[-1].endswith("in gradient_health.json only")
    assert callback.counts["non_finite"] == len(callback.events) == 25


def test_spikes_can_be_skipped(kind, tmp_path):
    callback = GradientHealthCallback(spike_policy="skip", spike_factor=20, window=25)
    trainer = make(kind, tmp_path, [1] * 8 + [1e6], callback)
    trainer.train()
    assert callback.counts["skipped"] == 1


def test_the_state_goes_through_a_checkpoint(kind, tmp_path):
    settings = dict(save_strategy="steps", save_steps=3, logging_steps=2, max_steps=7)
    factors = [1, math.nan, 1, 1, 1, 1, 1, 1]
    whole = GradientHealthCallback("skip", window=5)
    make(kind, tmp_path / "whole", factors, whole, **settings).train()

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    first = make(
        kind, tmp_path / "parts", factors, GradientHealthCallback("skip", window=5), **settings
    )
    first.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed = GradientHealthCallback("skip", window=5)
    make(kind, tmp_path / "parts", factors, resumed, **settings).train(resume_from_checkpoint=True)
    files = [tmp_path / name / "gradient_health.json" for name in ("whole", "parts")]
    assert files[0].read_text() == files[1].read_text()
    assert list(resumed._history) == list(whole._history)
    assert resumed.counts["skipped"] == 1


def test_a_loss_scaler_is_left_to_itself(tmp_path):
    """fp16: overflows are part of finding the scale."""
    callback = GradientHealthCallback("stop")
    callback._optimizer = type("Optimizer", (), {"scaler": object()})()
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([math.inf, 1.0])
    callback.measure([("p", parameter)], scale=1024.0)
    state = transformers.TrainerState()
    callback.on_pre_optimizer_step(None, state, None, model=nn.Linear(1, 1))
    assert callback.counts["overflow"] == 1
    parameter.grad = torch.tensor([1024.0, 0.0])
    callback.measure([("p", parameter)], scale=1024.0)
    assert callback._norm == 1.0


def test_unknown_policy():
    with pytest.raises(ConfigurationError, match="'ignore', expected warn, skip or stop"):
        GradientHealthCallback("ignore")


def test_parameters_without_a_gradient_are_passed_over():
    callback = GradientHealthCallback()
    parameters = [
        ("a.weight", nn.Parameter(torch.ones(2))),
        ("b.weight", nn.Parameter(torch.ones(2))),
    ]
    assert callback.measure(parameters) is None
    parameters[1][1].grad = torch.full((2,), 3.0)
    assert callback.measure(parameters).item() == pytest.approx(3 * math.sqrt(2))
    assert callback._groups == ["b"]
    parameters[0][1].grad = torch.zeros(2)
    callback.measure(parameters)
    np.testing.assert_allclose(callback._module_norms(), [0, 3 * math.sqrt(2)])


def test_two_processes_see_the_reduced_gradient(kind, tmp_path):
    """DDP: every process judges the same gradient, that of both batches."""

    def work(rank):
        callback = GradientHealthCallback("skip")
        trainer = make(kind, tmp_path, [1, 1, 1, math.nan, 1, 1], callback)
        trainer.train()
        (tmp_path / f"{rank}.json").write_text(json.dumps(callback.as_dict()))
        trainer.accelerator.end_training()

    assert run_together(work) == [0, 0]
    reports = [(tmp_path / f"{rank}.json").read_text() for rank in range(2)]
    assert reports[0] == reports[1]
    health = json.loads(reports[0])
    # Samples 6 and 7 are in the second pair of batches.
    assert [event["step"] for event in health["events"]] == [2]
    assert health["counts"]["skipped"] == 1

    torch.manual_seed(0)
    model, data = Model(), Rows([1, 1, 1, math.nan, 1, 1])
    rows = [data[i] for i in range(4)]
    x, labels, factor = (torch.stack([r[k] for r in rows]) for k in ("x", "labels", "factor"))
    model(x, labels, factor)["loss"].backward()
    total = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
    assert health["norm"][0] == pytest.approx(total, rel=1e-5)


def test_sharded_gradients(tmp_path):
    """FSDP2: each process has a part of each gradient, both know the norms of the whole."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
    x = torch.randn(4, 3)

    def work(rank):
        from torch.distributed.fsdp import fully_shard

        torch.distributed.init_process_group("gloo")
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        for layer in whole:
            fully_shard(layer, mesh=mesh)
        fully_shard(whole, mesh=mesh)
        whole(x).square().mean().backward()
        callback = GradientHealthCallback()
        total = callback.measure(list(whole.named_parameters()))
        assert callback.sharded
        norms = [*callback._parameter_norms.tolist(), callback._norm, total.item()]
        (tmp_path / f"{rank}.json").write_text(json.dumps(norms))

    assert run_together(work) == [0, 0]
    whole(x).square().mean().backward()
    norms = [p.grad.norm().item() for p in whole.parameters()]
    total = math.sqrt(sum(norm**2 for norm in norms))
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == pytest.approx([*norms, total, total], rel=1e-5)
