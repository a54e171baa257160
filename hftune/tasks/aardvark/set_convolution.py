"""Set convolutions: scattered or gridded observations, with gaps, onto the grid of a network.

An observation is spread over the grid with a Gaussian weight of its distance in longitude and in
latitude. The sum of the weights is the density, which tells where there are observations; the
weighted sum of the values over the density is the value (Gordon et al. 2020, "Convolutional
conditional neural processes").

Notation used for shapes: ``B`` samples, ``V`` variables, ``N`` points, ``W`` longitudes and ``H``
latitudes of gridded observations, ``X`` longitudes and ``Y`` latitudes of the target grid, ``L``
length scales: 1, which all variables share, or ``V``.

Weights and values are float32 and the sums float64: neither autocast nor TF32 touches them.
"""

from __future__ import annotations

import torch

__all__ = ["DISTANCES", "gaussian_weights", "grid_to_grid", "points_to_grid"]

DISTANCES = ("exact", "expanded")
"""How a squared distance is computed: ``(a - b)^2``, or ``a^2 + b^2 - 2ab`` in float32."""

_FULL_TURN = 360.0
_SMALLEST_DENSITY, _LARGEST_DENSITY = 1e-6, 1e5


def gaussian_weights(
    source: torch.Tensor,
    target: torch.Tensor,
    length_scale: torch.Tensor,
    distance: str = "exact",
    longitude: bool = False,
) -> torch.Tensor:
    """Weighs source coordinates for each target coordinate, ``exp(-(a - b)^2 / (2 l^2))``.

    ``"exact"`` takes differences of longitudes the short way round, so any convention will do.
    ``"expanded"`` computes as the published encoder was trained: in float32 units of a turn, where
    the terms nearly cancel (weights are off by up to 0.07), and longitudes do not wrap around.

    Args:
        source (tensor ``[B, N]`` or ``[N]``): Coordinates of observations in degrees; NaN gives
            weight zero. Float64 keeps all digits.
        target (tensor ``[X]``): Coordinates of the grid in degrees.
        length_scale (tensor ``[L]``): Length scales in degrees.
        distance (str): One of :data:`DISTANCES`. Defaults to ``"exact"``.
        longitude (bool): Whether the coordinates are longitudes. Defaults to False.

    Returns:
        float32 tensor ``[B or 1, L, N, X]``.
    """
    source = torch.atleast_2d(source).double()
    known = ~source.isnan()
    source = source.nan_to_num()[:, None, :, None]
    target = target.double()
    scale = length_scale.double()[:, None, None]
    if distance == "expanded":
        # Elementwise, for a matrix product may round its factors to TF32 or bfloat16.
        a, b = (source / _FULL_TURN).float(), (target / _FULL_TURN).float()
        scale = scale / _FULL_TURN
        squared = (a * a + b * b) - 2 * (a * b)
    else:
        difference = source - target
        if longitude:
            difference = difference - _FULL_TURN * torch.round(difference / _FULL_TURN)
        squared = difference.float() ** 2
    weights = torch.exp(-0.5 * squared / scale.float() ** 2)
    return weights * known[:, None, :, None]


def points_to_grid(
    values: torch.Tensor, weights_x: torch.Tensor, weights_y: torch.Tensor
) -> torch.Tensor:
    """Spreads point observations over a grid.

    Args:
        values (float32 tensor ``[B, V, N]``): Observations, NaN where there is none.
        weights_x (tensor ``[B or 1, L, N, X]``): Of their longitudes.
        weights_y (tensor ``[B or 1, L, N, Y]``): Of their latitudes.

    Returns:
        float32 tensor ``[B, V, 2, X, Y]``: Density and value of each variable.
    """
    pairs = _presence_and_values(values).double()
    weights_x, weights_y = weights_x.double(), weights_y.double()
    sums = []
    for variable, pair in enumerate(pairs.unbind(1)):  # one by one: all at once is much memory
        scale = variable if weights_x.shape[1] > 1 else 0
        spread = pair[..., None] * weights_x[:, None, scale]  # [B, 2, N, X]
        sums.append(spread.mT @ weights_y[:, None, scale])
    return _density_and_quotient(torch.stack(sums, dim=1))


def grid_to_grid(
    values: torch.Tensor, weights_x: torch.Tensor, weights_y: torch.Tensor
) -> torch.Tensor:
    """Spreads gridded observations over another grid.

    Args:
        values (float32 tensor ``[B, V, W, H]``): Observations, NaN where there is none.
        weights_x (tensor ``[B or 1, L, W, X]``): Of their longitudes.
        weights_y (tensor ``[B or 1, L, H, Y]``): Of their latitudes.

    Returns:
        float32 tensor ``[B, V, 2, X, Y]``: Density and value of each variable.
    """
    pairs = _presence_and_values(values).double()
    weights_x, weights_y = weights_x.double(), weights_y.double()
    return _density_and_quotient(weights_x[:, :, None].mT @ pairs @ weights_y[:, :, None])


def _presence_and_values(values: torch.Tensor) -> torch.Tensor:
    """1 or 0 and the value or 0, stacked behind the axis of variables."""
    values = values.float()
    return torch.stack([(~values.isnan()).float(), values.nan_to_num()], dim=2)


def _density_and_quotient(sums: torch.Tensor) -> torch.Tensor:
    density, total = sums.unbind(2)
    quotient = total / density.clamp(_SMALLEST_DENSITY, _LARGEST_DENSITY)
    return torch.stack([density, quotient], dim=2).float()
