import types

import numpy as np
import pytest
import torch

from hftune.tasks.aardvark.baselines_aardvark import PENALTIES, fit_ridge
from hftune.tasks.aardvark.evaluation_aardvark_encoder import EncoderEvaluator
from hftune.tasks.aardvark.observations import collate_observations, observation_samples
from hftune.tasks.weather.climatology import compute_climatology
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.tasks.weather.scores import cell_area_weights
from hftune.tasks.weather.stations import Stations
from hftune.tasks.weather.statistics import compute_statistics
from hftune.utils.errors import DataError

DAY, TIMES = 86400, 800
torch.set_num_threads(1)


class Analyst(torch.nn.Module):
    """Sees three stations and says their mean, everywhere, for each channel."""

    def __init__(self):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.tensor(1.0))
        self.batch_sizes = []

    def forward(self, observations, times):
        assert not self.training and len(observations["stations"]) == len(times)
        self.batch_sizes.append(len(times))
        mean = observations["stations"].nan_to_num().mean(dim=(1, 2)) + self.offset
        return types.SimpleNamespace(
            prediction=mean[:, None, None, None, None].expand(-1, 1, 2, 3, 4)
        )


@pytest.fixture(scope="module")
def world():
    random = np.random.default_rng(0)
    times = DAY * np.arange(TIMES)
    season = np.sin(2 * np.pi * times / (365.2425 * DAY))
    weather = random.standard_normal((TIMES, 3))
    pattern = random.standard_normal((5, 2 * 3 * 4))
    signal = np.concatenate([weather, season[:, None], np.ones((TIMES, 1))], axis=1) @ pattern
    values = (signal + 0.1 * random.standard_normal(signal.shape)).reshape(TIMES, 2, 3, 4)
    values[:, 1] = 1e5 + 300 * values[:, 1]
    layout = FieldLayout(
        ("2t", "msl"), ("K", "Pa"), (), np.array([60.0, 40, 20]), 345 + 10.0 * np.arange(4)
    )
    fields = WeatherFields(layout, times, values.astype("f4"), np.empty((0, 3, 4), "f4"))
    seen = np.stack([weather, random.standard_normal((TIMES, 3))], axis=1)
    seen[:, 0, 1][random.random(TIMES) < 0.1] = np.nan
    place = np.array([1.0, 2, 3])
    stations = Stations(("A", "B", "C"), place, place, ("t", "noise"), times, seen.astype("f4"))
    train = slice(0, 500)
    return types.SimpleNamespace(
        fields=fields,
        stations=stations,
        std=compute_statistics(fields, train).std,
        climatology=compute_climatology(fields, np.arange(500)),
        train=observation_samples(stations, times[train], targets=fields),
        validation=observation_samples(stations, times[500:600], targets=fields),
        test=observation_samples(stations, times[600:], targets=fields),
    )


def plain_rmse(world, analysis, rows):
    """By channel, in units of its standard deviation."""
    weights = cell_area_weights(world.fields.layout.latitude)[:, None]
    error = analysis - world.fields.values[rows].astype(np.float64)
    return np.sqrt((error**2 * weights).mean(axis=(0, 2, 3))) / world.std


def test_metrics_are_those_of_a_plain_computation(world):
    model = Analyst().train()
    evaluator = EncoderEvaluator(
        world.test, world.fields.layout, world.std, world.climatology, batch_size=64
    )
    done = []
    scores = evaluator.evaluate(model, done.append)
    assert model.training and model.batch_sizes == [64, 64, 64, 8] and done == [64, 128, 192, 200]
    seen = np.nan_to_num(world.stations.values[600:]).mean(axis=(1, 2)) + 1
    expected = plain_rmse(world, seen[:, None, None, None], slice(600, None))
    metrics = evaluator.metrics(scores)
    assert metrics["rmse_normalised"] == pytest.approx(expected.mean(), rel=1e-5)
    assert metrics["rmse_normalised_2t"] == pytest.approx(expected[0], rel=1e-5)
    assert evaluator(model) == metrics
    assert evaluator(types.SimpleNamespace(model_wrapped=model)) == metrics

    climatology = world.climatology.at(world.fields.times[600:])
    expected = plain_rmse(world, climatology.astype(np.float64), slice(600, None))
    result = evaluator.result(scores)
    assert result["summary"]["climatology_rmse_normalised"] == pytest.approx(expected.mean())
    entry = result["variables"]["msl"]
    assert entry["climatology_rmse_normalised"] == pytest.approx(expected[1])
    assert entry["rmse"] == pytest.approx(entry["rmse_normalised"] * world.std[1])
    assert entry["units"] == "Pa" and result["samples"] == 200
    assert result["summary"]["worse_than_climatology"] == ["2t", "msl"]


def test_ridge_is_the_closed_form(world):
    ridge = fit_ridge(world.train, world.validation, world.fields.layout, world.std)

    def predictors(rows):
        years = world.fields.times[rows] / (365.2425 * DAY)
        angles = 2 * np.pi * np.stack([years, 2 * years], axis=1)
        seen = world.stations.values[rows].astype(np.float64)
        return np.concatenate([np.sin(angles), np.cos(angles), seen.reshape(len(seen), -1)], axis=1)

    train = predictors(slice(0, 500))
    centre, scale = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
    train = np.nan_to_num((train - centre) / scale)
    truth = world.fields.values[:500].astype(np.float64).reshape(500, -1)
    penalty = ridge.penalty * 500 * np.eye(train.shape[1])
    weights = np.linalg.solve(train.T @ train + penalty, train.T @ (truth - truth.mean(0)))
    test = np.nan_to_num((predictors(slice(600, None)) - centre) / scale)
    expected = (test @ weights + truth.mean(0)).reshape(200, 1, 2, 3, 4)
    batch = collate_observations(world.test.__getitems__(list(range(200))))
    np.testing.assert_allclose(ridge(batch), expected, rtol=1e-5, atol=1e-4)
    assert ridge.penalty in PENALTIES[:-1]
    assert ridge(batch).dtype == np.float32


def test_baselines_are_scored_beside_the_model(world):
    ridge = fit_ridge(world.train, world.validation, world.fields.layout, world.std)
    evaluator = EncoderEvaluator(
        world.test, world.fields.layout, world.std, world.climatology,
        baselines={"ridge": ridge}, batch_size=50,
    )  # fmt: skip
    result = evaluator.result(evaluator.evaluate(Analyst()))
    batch = collate_observations(world.test.__getitems__(list(range(200))))
    expected = plain_rmse(world, ridge(batch)[:, 0].astype(np.float64), slice(600, None))
    summary = result["summary"]
    assert summary["ridge_rmse_normalised"] == pytest.approx(expected.mean(), rel=1e-5)
    # It knows the weather where no station is missing.
    assert summary["ridge_rmse_normalised"] < 0.4 < summary["climatology_rmse_normalised"]
    assert summary["worse_than_ridge"] == ["2t", "msl"]


def test_the_background_is_a_baseline(world):
    samples = observation_samples(
        world.stations, world.fields.times[600:], targets=world.fields, background=world.fields
    )
    evaluator = EncoderEvaluator(samples, world.fields.layout, world.std, batch_size=70)
    result = evaluator.result(evaluator.evaluate(Analyst()))
    before = world.fields.values[599:-1].astype(np.float64)
    expected = plain_rmse(world, before, slice(600, None))
    assert result["summary"]["background_rmse_normalised"] == pytest.approx(expected.mean())
    assert "climatology_rmse_normalised" not in result["summary"]


def test_a_ridge_that_would_be_too_large_is_left_out(world):
    layout = FieldLayout(
        ("2t",), ("K",), (), np.arange(1000.0)[::-1], np.arange(1000.0)
    )  # 12 predictors of a million cells
    assert fit_ridge(world.train, world.validation, layout, [1.0]) is None


def test_an_example_is_the_sample_in_the_middle(world):
    evaluator = EncoderEvaluator(world.test, world.fields.layout, world.std)
    example = evaluator.example(Analyst())
    assert example.time == 700 * DAY and example.lead_hours == (0,)
    np.testing.assert_array_equal(example.truth, world.fields.values[700][None])
    assert example.forecast.shape == (1, 2, 3, 4)


def test_a_climatology_of_other_channels_is_an_error(world):
    layout = FieldLayout(
        ("2t", "tp"), ("K", "m"), (), world.fields.layout.latitude, world.fields.layout.longitude
    )
    evaluator = EncoderEvaluator(world.test, layout, world.std, world.climatology)
    with pytest.raises(DataError, match="different channels or grids"):
        evaluator.evaluate(Analyst())
