"""Loss weights and errors of channels, by the numbers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from hftune.tasks.weather.losses import (
    LOSS_PRESETS,
    channel_errors,
    channel_weights,
    weights_table,
)
from hftune.utils.errors import ConfigurationError

CHANNELS = ["2t", "msl", "z_500", "z_850", "t_500", "t_850"]


def test_pretraining_weights_are_those_of_the_paper():
    # gamma / (V_S + V_A) * [ alpha * w_k | beta * w_k / levels ] with gamma 2, alpha 1/4, beta 1
    weights = channel_weights(CHANNELS, "aurora_pretraining")
    expected = [3.0 / 4, 1.5 / 4, 2.8 / 2, 2.8 / 2, 1.7 / 2, 1.7 / 2]
    np.testing.assert_allclose(weights, 2 / 4 * np.array(expected))
    # On the whole set of the published models the weights are near one another in sum.
    every = ["2t", "10u", "10v", "msl", *(f"{v}_{p}" for v in "ztuvq" for p in range(1, 14))]
    weights = channel_weights(every, "aurora_pretraining")
    assert weights.sum() == pytest.approx(2 / 9 * (5.93 / 4 + 6.75))


def test_uniform_gives_every_variable_the_same():
    weights = channel_weights(CHANNELS)
    np.testing.assert_allclose(weights, [1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8])


def test_tendency_measures_by_the_change_over_one_step():
    std, change = np.full(6, 10.0), np.array([1.0, 2, 4, 5, 10, 20])
    plain = channel_weights(CHANNELS)
    given = {"std": std, "difference_std": change}
    np.testing.assert_allclose(channel_weights(CHANNELS, "tendency", **given), plain * std / change)
    squared = channel_weights(CHANNELS, "tendency", **given, power=2)
    np.testing.assert_allclose(squared, plain * (std / change) ** 2)
    by_channel = channel_weights(CHANNELS, "tendency_by_channel", **given)
    np.testing.assert_allclose(by_channel, std / change / len(CHANNELS))
    with pytest.raises(ConfigurationError, match="'tendency' need difference_std"):
        channel_weights(CHANNELS, "tendency", std=std)


def test_graphcast_weighs_levels_by_pressure():
    weights = channel_weights(CHANNELS, "graphcast", std=np.ones(6), difference_std=np.ones(6))
    np.testing.assert_allclose(weights[:2], [1 / 4, 0.1 / 4])
    assert weights[3] / weights[2] == pytest.approx(850 / 500)
    assert weights[2] + weights[3] == pytest.approx(1 / 4)


def test_weights_by_variable_or_channel():
    weights = channel_weights(CHANNELS, {"2t": 4.0, "z": 2.0, "z_500": 6.0, "msl": 0})
    np.testing.assert_allclose(weights, [1, 0, 6 / 8, 2 / 8, 1 / 8, 1 / 8])
    for wrong, message in (
        ({"2tt": 1.0}, "names '2tt', which is not among .* Did you mean '2t'"),
        ({"2t": -1.0}, "must be finite, not negative and not all zero; they are 2t -0.25"),
        ({"2t": 0, "msl": 0, "z": 0, "t": 0}, "not all zero"),
        ("aurora_pretrained", "no loss weights .*Did you mean 'aurora_pretraining'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            channel_weights(CHANNELS, wrong)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_errors_are_means_over_all_but_channels(power, weighted):
    generator = np.random.default_rng(0)
    prediction, target = generator.normal(size=(2, 3, 2, 4, 5, 6)).astype(np.float32)
    area = np.linspace(0.5, 1.5, 5).astype(np.float32)
    error = np.abs(prediction - target) ** power * (area[:, None] if weighted else 1)
    found = channel_errors(
        torch.tensor(prediction),
        torch.tensor(target),
        power=power,
        area=torch.tensor(area) if weighted else None,
    )
    np.testing.assert_allclose(found, error.mean(axis=(0, 1, 3, 4)), rtol=1e-5)
    fast = channel_errors(
        torch.tensor(prediction),
        torch.tensor(target),
        power=power,
        area=torch.tensor(area) if weighted else None,
        masked=False,
    )
    torch.testing.assert_close(fast, found)


def test_missing_targets_count_for_nothing():
    prediction = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 1, 2).requires_grad_()
    target = torch.tensor([0.0, float("nan"), float("nan"), float("nan")]).view(1, 1, 2, 1, 2)
    errors = channel_errors(prediction, target)
    assert errors.tolist() == [1.0, 0.0]
    errors.sum().backward()
    assert prediction.grad.flatten().tolist() == [1.0, 0.0, 0.0, 0.0]


def test_table_shows_shares_and_weights():
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(weights_table(CHANNELS, channel_weights(CHANNELS, "uniform")))
    text = console.export_text()
    assert "25.0 %" in text and "500 hPa: 0.125  850 hPa: 0.125" in text
    assert all(preset.description for preset in LOSS_PRESETS.values())
