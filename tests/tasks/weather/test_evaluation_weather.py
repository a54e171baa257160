import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hftune.tasks.weather.evaluation_weather import (
    ForecastEvaluator,
    evaluate_forecaster,
    model_predictor,
)
from hftune.tasks.weather.fields import FieldLayout
from hftune.tasks.weather.scores import ForecastScores
from hftune.utils.errors import ConfigurationError

torch.set_num_threads(1)

LAYOUT = FieldLayout(
    ("2t", "msl"), ("K", "Pa"), (), np.array([50.0, 40.0, 30.0]), np.array([0.0, 10.0])
)
LEADS = (24, 72)


class Series(torch.utils.data.Dataset):
    """Samples of fields that grow by 1 a day, on a grid of one row more than the model's."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        days = np.arange(index, index + 5, dtype=np.float32)[:, None, None, None]
        fields = days + np.zeros((5, 2, 4, 2), np.float32)
        return {
            "fields": torch.from_numpy(fields[:2]),
            "times": torch.tensor((index + 1) * 86400),
            "target_fields": torch.from_numpy(fields[[2, 4]]),
        }

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Drift(torch.nn.Module):
    """Adds a fixed amount a step and crops the last row, as Aurora does."""

    def __init__(self, by):
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor(float(by)))
        self.config = SimpleNamespace(timestep_hours=24)
        self.steps = []

    def forward(self, fields, times, static_fields=None, target_fields=None, steps=None):
        assert not self.training
        self.steps.append(steps)
        days = torch.arange(1, steps + 1)[None, :, None, None, None]
        return dataclasses.make_dataclass("Output", ["prediction"])(
            fields[:, -1:, :, :3] + days * self.by
        )


def test_a_model_is_rolled_out_to_the_lead_times_and_scored_beside_persistence():
    model = Drift(0.5)
    model.train()
    evaluator = ForecastEvaluator(Series(), LAYOUT, LEADS, batch_size=4)
    metrics = evaluator(model)
    assert model.training and model.steps == [3, 3, 3]
    # Errors of 0.5 and 1.5 where persistence has 1 and 3.
    assert metrics == {
        "rmse_to_persistence": pytest.approx(0.5),
        "rmse_to_persistence_24h": pytest.approx(0.5),
        "rmse_to_persistence_72h": pytest.approx(0.5),
    }
    result = evaluator.scores.result()
    assert result["samples"] == 11
    assert result["variables"]["msl"]["persistence_rmse"] == pytest.approx([1, 3])
    assert result["variables"]["msl"]["bias"] == pytest.approx([-0.5, -1.5])
    assert result["valid_from"] == "1970-01-03T00:00:00Z"


def test_the_sample_in_the_middle_is_the_example():
    model = Drift(0.5)
    example = ForecastEvaluator(Series(), LAYOUT, LEADS).example(model)
    assert example.time == 6 * 86400 and example.lead_hours == LEADS
    assert example.forecast.shape == example.truth.shape == (2, 2, 3, 2)
    assert example.forecast[:, 0, 0, 0].tolist() == [6.5, 7.5]
    assert example.truth[:, 0, 0, 0].tolist() == [7.0, 9.0]
    assert model.training


def test_a_trainer_gives_its_wrapped_model():
    wrapper = torch.nn.Module()
    wrapper.module = Drift(1)
    wrapper.forward = wrapper.module.forward
    evaluator = ForecastEvaluator(Series(), LAYOUT, [24], batch_size=16)
    assert model_predictor(wrapper, [24])
    trainer = SimpleNamespace(model_wrapped=wrapper)
    with torch.no_grad():
        samples = [Series()[i] for i in range(11)]
    evaluator.samples = [{**s, "target_fields": s["target_fields"][:1]} for s in samples]
    assert evaluator(trainer)["rmse_to_persistence"] == 0.0


def test_processes_share_the_samples_and_all_get_the_whole(monkeypatch):
    """Two processes in turn; each must call its model equally often."""
    whole = evaluate_forecaster(
        model_predictor(Drift(0.25).eval(), LEADS), Series(), ForecastScores(LAYOUT, LEADS)
    )
    states, calls = [], []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        seen = []

        def gather(into, state, seen=seen):
            seen.append(state)
            into[:] = [state] * 3 if len(states) < 2 else [*states, state]

        monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
        model = Drift(0.25).eval()
        scores = evaluate_forecaster(
            model_predictor(model, LEADS), Series(), ForecastScores(LAYOUT, LEADS), batch_size=3
        )
        states.append(seen[0])
        calls.append(len(model.steps))
    assert calls == [2, 2, 2] and [state["samples"] for state in states] == [4, 4, 3]
    assert scores.result() == whole.result()


def test_lead_times_between_the_steps_of_the_model_are_refused():
    with pytest.raises(ConfigurationError, match=r"\[36\] h cannot be reached in steps of 24 h"):
        model_predictor(Drift(1), [24, 36])
