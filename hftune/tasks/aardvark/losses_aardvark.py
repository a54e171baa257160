"""Aardvark's losses: root mean square errors of normalised fields, sample by sample.

Notation used for shapes: ``B`` samples, ``L`` lead times, ``C`` channels, ``H`` latitudes, ``W``
longitudes. With ``d`` the difference of prediction and target in units of the target's spread, the
loss is

    mean_{b, l} sqrt( mean_{c, h, w} ( d^2 * area_h * weight_c ) )

where the inner mean is over the points that have a target. It is not the root of the mean square
over all samples, which forecast scores report.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..weather.fields import split_channel

__all__ = [
    "LOSS_FUNCTIONS",
    "area_weights",
    "channel_rmse",
    "channel_weights",
    "error_sums",
    "rmse_loss",
]

#: What each loss weighs.
LOSS_FUNCTIONS = {
    "lw_rmse_pressure_weighted": "cosine of the latitude, and pressure over 1000 hPa",
    "lw_rmse": "cosine of the latitude",
    "rmse": "nothing",
}


def area_weights(loss_function: str, latitude: Sequence[float]) -> np.ndarray:
    """Returns the weights of latitudes, float64 ``[H]`` with mean 1.

    Args:
        loss_function (str): One of :data:`LOSS_FUNCTIONS`.
        latitude (sequence of float): ``H`` latitudes in degrees.
    """
    if loss_function == "rmse":
        return np.ones(len(latitude))
    weights = np.cos(np.deg2rad(np.asarray(latitude, dtype=np.float64)))
    return weights / weights.mean()


def channel_weights(loss_function: str, channels: Sequence[str]) -> np.ndarray:
    """Returns the weights of channels, float64 ``[C]``.

    With ``lw_rmse_pressure_weighted`` it is the pressure over 1000 hPa, and 1 for a surface
    variable; else 1.

    Args:
        loss_function (str): One of :data:`LOSS_FUNCTIONS`.
        channels (sequence of str): ``C`` names, such as ``2t`` and ``z_500``.
    """
    if loss_function != "lw_rmse_pressure_weighted":
        return np.ones(len(channels))
    levels = [split_channel(channel)[1] for channel in channels]
    return np.array([1.0 if level is None else level / 1000 for level in levels])


def error_sums(
    prediction: torch.Tensor,
    target: torch.Tensor,
    area: torch.Tensor,
    *,
    masked: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums squared errors over the grid: what both forms of the loss are made from.

    Args:
        prediction (tensor ``[B, L, C, H, W]``): Normalised prediction.
        target (tensor ``[B, L, C, H, W]``): Normalised target; NaN where there is none.
        area (tensor ``[H]``): Weights of latitudes.
        masked (bool): Leave out points where the target is NaN. False is faster and right only if
            there are none. Defaults to True.

    Returns:
        tuple: Sums of ``d^2 * area`` and numbers of targets, each ``[B, L, C]``.
    """
    if masked:
        missing = torch.isnan(target)
        # Not a mask on the result: the gradient of NaN times 0 is NaN.
        target = torch.where(missing, prediction.detach(), target)
        counts = (~missing).sum(dim=(-2, -1)).to(prediction.dtype)
    squares = ((prediction - target).square().sum(dim=-1) * area).sum(dim=-1)
    if not masked:
        counts = torch.full_like(squares, target.shape[-2] * target.shape[-1])
    return squares, counts


def rmse_loss(
    squares: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the loss: the mean over samples and lead times of each one's error.

    A sample without any target is left out of the mean; without any sample the loss is 0. An error
    of exactly 0, where the root has no slope, gets the gradient 0.

    Args:
        squares, counts (tensors ``[B, L, C]``): From :func:`error_sums`.
        weights (tensor ``[C]``, *optional*): Weights of channels. Defaults to even ones.
    """
    if weights is not None:
        squares = squares * weights
    errors, given = _roots(squares.sum(dim=-1), counts.sum(dim=-1))
    return errors.sum() / given.sum().clamp(min=1)


def channel_rmse(squares: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Returns the evaluation form: each channel's error, its mean over samples and lead times.

    Args:
        squares, counts (tensors ``[B, L, C]``): From :func:`error_sums`.

    Returns:
        tensor ``[C]``; NaN for a channel without any target.
    """
    errors, given = _roots(squares, counts)
    return errors.sum(dim=(0, 1)) / given.sum(dim=(0, 1))


def _roots(squares: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Root mean squares, 0 where there is no target, and whether there is one."""
    nothing = squares == 0  # not `squares > 0`: a NaN has to stay one
    means = torch.where(nothing, 1.0, squares) / counts.clamp(min=1)
    return torch.where(nothing, 0.0, means.sqrt()), counts > 0
