"""Aardvark's losses against numpy's nanmean, and their gradients where the root has no slope."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hftune.tasks.aardvark.losses_aardvark import (
    LOSS_FUNCTIONS,
    area_weights,
    channel_rmse,
    channel_weights,
    error_sums,
    rmse_loss,
)

torch.set_num_threads(1)

CHANNELS = ["2t", "z_500", "q_850"]
LATITUDE = [90.0, 60.0, 0.0, -45.0]


def make_fields(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 2, 3, 4, 5)  # samples, lead times, channels, latitudes, longitudes
    prediction = torch.randn(shape, generator=generator, requires_grad=True)
    return prediction, torch.randn(shape, generator=generator)


def losses_of(prediction, target, loss_function="lw_rmse_pressure_weighted", masked=True):
    area = torch.tensor(area_weights(loss_function, LATITUDE), dtype=torch.float32)
    weights = torch.tensor(channel_weights(loss_function, CHANNELS), dtype=torch.float32)
    sums = error_sums(prediction, target, area, masked=masked)
    return rmse_loss(*sums, weights), channel_rmse(*sums)


def test_weights():
    cosines = np.array([0.0, 0.5, 1.0, np.sqrt(0.5)])
    for name in ("lw_rmse", "lw_rmse_pressure_weighted"):
        np.testing.assert_allclose(
            area_weights(name, LATITUDE), cosines / cosines.mean(), atol=1e-15
        )
    assert area_weights("rmse", LATITUDE).tolist() == [1.0] * 4
    names = list(LOSS_FUNCTIONS)
    assert names == ["lw_rmse_pressure_weighted", "lw_rmse", "rmse"]
    weights = [channel_weights(name, CHANNELS).tolist() for name in names]
    assert weights == [[1.0, 0.5, 0.85], [1.0] * 3, [1.0] * 3]


@pytest.mark.parametrize("loss_function", LOSS_FUNCTIONS)
@pytest.mark.parametrize("holes", [False, True])
def test_both_forms_are_those_of_numpy(loss_function, holes):
    prediction, target = make_fields()
    if holes:
        target[0, 0, 1] = float("nan")  # a channel
        target[2, 1] = float("nan")  # a sample
        target[1, 0, :, 2, 1:4] = float("nan")
    loss, errors = losses_of(prediction, target, loss_function, masked=holes)

    squares = (prediction.detach().double() - target.double()).numpy() ** 2
    squares *= area_weights(loss_function, LATITUDE)[:, None]
    pressure = channel_weights(loss_function, CHANNELS)[:, None, None]
    with np.errstate(all="ignore"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)  # means of nothing
        each = np.sqrt(np.nanmean(squares * pressure, axis=(2, 3, 4)))
        by_channel = np.sqrt(np.nanmean(squares, axis=(3, 4)))
    assert np.isnan(each).sum() == (1 if holes else 0)
    assert loss.item() == pytest.approx(np.nanmean(each), rel=1e-5)
    np.testing.assert_allclose(errors.detach(), np.nanmean(by_channel, axis=(0, 1)), rtol=1e-5)
    loss.backward()
    assert torch.isfinite(prediction.grad).all()
    if holes:
        assert (prediction.grad[torch.isnan(target)] == 0).all()


def test_it_is_the_mean_of_roots_and_not_the_root_of_the_mean():
    target = torch.zeros(2, 1, 3, 4, 5)
    prediction = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1).expand_as(target)
    loss, errors = losses_of(prediction, target, "rmse")
    assert loss.item() == pytest.approx(2.0) and errors.tolist() == pytest.approx([2.0] * 3)


def test_a_channel_without_targets_has_no_error_and_no_gradient():
    prediction, target = make_fields()
    target[:, :, 1] = float("nan")
    loss, errors = losses_of(prediction, target)
    assert torch.isnan(errors).tolist() == [False, True, False]
    loss.backward()
    assert torch.isfinite(prediction.grad).all() and (prediction.grad[:, :, 1] == 0).all()
    assert (prediction.grad[:, :, 0, 1:] != 0).all()


def test_no_target_at_all_is_a_loss_of_zero():
    prediction, target = make_fields()
    loss, errors = losses_of(prediction, torch.full_like(target, float("nan")))
    loss.backward()
    assert loss.item() == 0 and (prediction.grad == 0).all() and torch.isnan(errors).all()


@pytest.mark.parametrize("masked", [False, True])
def test_an_exact_sample_has_the_gradient_zero(masked):
    prediction, target = make_fields()
    target[1] = prediction.detach()[1]
    loss, errors = losses_of(prediction, target, masked=masked)
    (loss + errors.sum()).backward()
    assert torch.isfinite(prediction.grad).all() and (prediction.grad[1] == 0).all()
    assert (prediction.grad[0, :, :, 1:] != 0).all()


def test_a_prediction_that_is_not_a_number_is_not_hidden():
    prediction, target = make_fields()
    target[0, 0, 0, 0, 0] = float("nan")
    broken = prediction.detach().clone()
    broken[2, 0, 1, 2, 3] = float("nan")
    loss, errors = losses_of(broken, target)
    assert torch.isnan(loss) and torch.isnan(errors).tolist() == [False, True, False]
