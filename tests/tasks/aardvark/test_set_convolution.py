"""Set convolutions: the published numbers, the plain formula, gaps, longitudes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hftune.tasks.aardvark.set_convolution import gaussian_weights, grid_to_grid, points_to_grid

NAN = float("nan")
LONGITUDE = torch.arange(345.0, 366.0, 2.5)  # across Greenwich
LATITUDE = torch.arange(35.0, 48.0, 2.5)
SCALE = torch.tensor([2.0])


@pytest.fixture(scope="module")
def golden(test_data):
    with np.load(test_data / "aardvark" / "encoder_golden.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored if name.startswith("mini")}


def turns(*values: float) -> torch.Tensor:
    """Coordinates in degrees that are these float32 numbers once divided by 360."""
    return torch.tensor(values).double() * 360


def spread(values, longitude, latitude, scale=SCALE, function=points_to_grid, distance="exact"):
    x = gaussian_weights(torch.as_tensor(longitude), LONGITUDE, scale, distance, longitude=True)
    y = gaussian_weights(torch.as_tensor(latitude), LATITUDE, scale, distance)
    return function(torch.as_tensor(values), x, y)


def by_formula(values, longitude, latitude, scale):
    """Density and value of one variable, point by point in float64."""
    density = np.zeros((len(LONGITUDE), len(LATITUDE)))
    total = np.zeros_like(density)
    for value, x, y in zip(values, longitude, latitude, strict=True):
        if np.isnan([value, x, y]).any():
            continue
        away = (LONGITUDE.double().numpy() - x + 180) % 360 - 180
        weight = np.exp(
            -0.5 * (away[:, None] ** 2 + (LATITUDE.double().numpy() - y) ** 2) / scale**2
        )
        density += weight
        total += weight * value
    return np.stack([density, total / density.clip(1e-6, 1e5)])


def test_points_give_the_published_numbers(golden):
    scale = torch.tensor([0.36])
    x = gaussian_weights(
        turns(0.1, 0.5, 0.25, 0.9), turns(0.0995, 0.1005, 0.5, 0.9005), scale, "expanded", True
    )
    y = gaussian_weights(
        turns(0.05, -0.1, NAN, 0.2), turns(0.0495, -0.1, 0.2003), scale, "expanded"
    )
    found = points_to_grid(torch.tensor([[[2.0, NAN, 5.0, -1.0]]]), x, y)
    torch.testing.assert_close(found[:, 0], golden["mini_off2on"], rtol=0, atol=2e-6)
    # Here the published code is off: the formula gives exp(-0.25).
    assert abs(found[0, 0, 0, 0, 0].item() - np.exp(-0.25)) > 5e-4


def test_grids_give_the_published_numbers(golden):
    scale = torch.tensor([0.36])
    x = gaussian_weights(turns(0.1, 0.101), turns(0.0995, 0.1005), scale, "expanded", True)
    y = gaussian_weights(turns(0.05, 0.049), turns(0.0495, 0.2), scale, "expanded")
    found = grid_to_grid(torch.tensor([[[[1.0, 2.0], [NAN, 4.0]]]]), x, y)
    torch.testing.assert_close(found[:, 0], golden["mini_on2on"], rtol=0, atol=2e-6)


def test_points_follow_the_formula_whatever_the_convention_of_longitudes():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(2, 3, 20)).astype(np.float32)
    values[generator.random(values.shape) < 0.3] = np.nan
    longitude = generator.uniform(-15, 5, size=(2, 20)).astype(np.float32)
    latitude = generator.uniform(35, 47, size=(2, 20)).astype(np.float32)
    longitude[0, 3], latitude[1, 7] = np.nan, np.nan
    found = spread(values, longitude, latitude)
    expected = [
        [by_formula(v, longitude[b], latitude[b], 2.0) for v in values[b]] for b in range(2)
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(spread(values, longitude % 360, latitude), found, rtol=0, atol=1e-4)


def test_a_grid_is_spread_as_its_points_are():
    generator = np.random.default_rng(1)
    values = generator.normal(size=(1, 2, 4, 5)).astype(np.float32)
    values[generator.random(values.shape) < 0.3] = np.nan
    longitude, latitude = np.linspace(350.0, 362, 4), np.linspace(46.0, 36, 5)
    x, y = (a.ravel() for a in np.meshgrid(longitude, latitude, indexing="ij"))
    found = spread(values, longitude, latitude, function=grid_to_grid)
    torch.testing.assert_close(found, spread(values.reshape(1, 2, 20), x, y), rtol=1e-5, atol=1e-6)


def test_a_lone_point_on_a_node_has_density_one_and_its_value_there():
    for longitude in (-5.0, 355.0, 715.0):
        density, value = spread([[[7.5]]], [longitude], [40.0])[0, 0]
        assert density[4, 2] == 1
        assert value[4, 2] == 7.5
    # The quotient is the value wherever the density is above its floor.
    assert value[3, 2].item() == pytest.approx(7.5)


def test_a_missing_value_is_no_point_and_a_missing_position_none_for_all_variables():
    values = torch.tensor([[[1.0, 2.0, 3.0], [4.0, NAN, 6.0]]])
    longitude, latitude = torch.tensor([-10.0, -5.0, 0.0]), torch.tensor([37.0, 40.0, 43.0])
    found = spread(values, longitude, latitude)
    assert torch.equal(found[:, 1], spread(values[:, 1:, ::2], longitude[::2], latitude[::2])[:, 0])
    for place in (0, 1):
        places = [longitude.clone(), latitude.clone()]
        places[place][1] = NAN
        without = spread(values[..., ::2], longitude[::2], latitude[::2])
        assert torch.equal(spread(values, *places), without)


def test_the_order_of_points_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, 2, 50, generator=generator)
    longitude = torch.rand(50, generator=generator) * 20 - 15
    latitude = torch.rand(50, generator=generator) * 12 + 35
    order = torch.randperm(50, generator=generator)
    found = spread(values[..., order], longitude[order], latitude[order])
    torch.testing.assert_close(found, spread(values, longitude, latitude), rtol=0, atol=1e-6)


def test_each_variable_may_have_a_length_scale():
    values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    longitude, latitude = [-10.0, -5.0, 0.0, 3.0], [36.0, 40.0, 43.0, 45.0]
    grid = values[..., None] * torch.ones(4)
    scales = torch.tensor([1.0, 2.0, 3.0])
    for function, given in ((points_to_grid, values), (grid_to_grid, grid)):
        found = spread(given, longitude, latitude, scales, function)
        for i in range(3):
            alone = spread(given[:, i : i + 1], longitude, latitude, scales[i : i + 1], function)
            torch.testing.assert_close(found[:, i : i + 1], alone)


def test_autocast_and_low_matmul_precision_change_no_bit():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, 2, 30, generator=generator)
    longitude = torch.rand(30, generator=generator) * 20 - 15
    latitude = torch.rand(30, generator=generator) * 12 + 35
    expected = spread(values, longitude, latitude)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = spread(values, longitude, latitude)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_without_any_point_all_is_zero():
    assert torch.equal(spread(torch.empty(2, 3, 0), [], []), torch.zeros(2, 3, 2, 9, 6))
    assert torch.equal(spread([[[NAN]]], [0.0], [40.0]), torch.zeros(1, 1, 2, 9, 6))
