"""Losses of weather fields: weighted errors of normalised variables.

Notation used for shapes: ``B`` samples, ``L`` lead times, ``C`` channels, ``H`` latitudes, ``W``
longitudes.

The loss is a weighted sum over channels of the mean error of each:

    loss = sum_c  weight_c * mean_{b, l, h, w} ( area_h * |prediction - target|^p )

with fields normalised by their mean and standard deviation, ``p`` 1 (``mae``) or 2 (``mse``), and
points where the target is NaN left out of the mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hftune.utils.errors import ConfigurationError, did_you_mean

from .fields import split_channel

if TYPE_CHECKING:
    import torch

__all__ = [
    "LOSS_FUNCTIONS",
    "LOSS_PRESETS",
    "LossPreset",
    "channel_errors",
    "channel_weights",
    "weights_table",
]

#: Power of the absolute error, by name.
LOSS_FUNCTIONS = {"mae": 1, "mse": 2}


@dataclasses.dataclass(frozen=True)
class LossPreset:
    """A named choice of loss weights.

    Attributes:
        description (str): Where it comes from and what it does.
        surface (mapping): Weights of surface variables; others have ``other``.
        atmospheric (mapping): Weights of variables on levels; others have ``other``.
        other (float): Weight of variables that are not named.
        surface_share, atmospheric_share (float): Factors of the two groups (Aurora's alpha, beta).
        scale (float): Factor of the whole (Aurora's gamma).
        by_channel (bool): Every level of a variable weighs as much as a surface variable.
        by_pressure (bool): Levels weigh as their pressure, with mean 1.
        tendency (bool): Errors are measured in standard deviations of the change over one step in
            place of those of the field itself.
    """

    description: str
    surface: Mapping[str, float] = dataclasses.field(default_factory=dict)
    atmospheric: Mapping[str, float] = dataclasses.field(default_factory=dict)
    other: float = 1.0
    surface_share: float = 1.0
    atmospheric_share: float = 1.0
    scale: float = 1.0
    by_channel: bool = False
    by_pressure: bool = False
    tendency: bool = False


#: Presets by name.
LOSS_PRESETS: dict[str, LossPreset] = {
    "uniform": LossPreset("Every variable weighs the same, its levels together as one."),
    "tendency": LossPreset(
        "Every variable weighs the same, measured by how much it changes in one step: a loss of 1 "
        "is an error as large as a typical change. Needs difference_std.",
        tendency=True,
    ),
    "tendency_by_channel": LossPreset(
        "As tendency, but each level of a variable counts by itself: what the mean of RMSE over "
        "persistence's rewards. Needs difference_std.",
        by_channel=True,
        tendency=True,
    ),
    "aurora_pretraining": LossPreset(
        "Weights of Aurora's pretraining on ERA5 (arXiv 2405.13063): alpha 1/4 for surface, beta 1 "
        "for atmospheric variables, gamma 2. Two independent reimplementations agree on them.",
        surface={"2t": 3.0, "10u": 0.77, "10v": 0.66, "msl": 1.5},
        atmospheric={"z": 2.8, "t": 1.7, "u": 0.87, "v": 0.6, "q": 0.78},
        surface_share=0.25,
        scale=2.0,
    ),
    "aurora_finetuning": LossPreset(
        "Weights of Aurora's fine-tuning on HRES analyses as a reimplementation has them; others "
        "differ in some values.",
        surface={"2t": 3.5, "10u": 0.77, "10v": 0.66, "msl": 1.6},
        atmospheric={"z": 3.5, "t": 1.7, "u": 0.87, "v": 0.6, "q": 0.8},
        surface_share=0.25,
        scale=2.0,
    ),
    "graphcast": LossPreset(
        "GraphCast's: errors measured by the change over one step, levels by pressure, 1 for 2t "
        "and 0.1 for the other surface variables. Needs difference_std.",
        surface={"2t": 1.0, "10u": 0.1, "10v": 0.1, "msl": 0.1, "tp": 0.1},
        by_pressure=True,
        tendency=True,
    ),
}


def channel_weights(
    channels: Sequence[str],
    weights: str | Mapping[str, float] = "uniform",
    *,
    std: Sequence[float] | None = None,
    difference_std: Sequence[float] | None = None,
    power: int = 1,
) -> np.ndarray:
    """Returns the weight of each channel in the loss.

    With a preset, variable ``k`` has the weight ``scale * share * w_k / V`` for ``V`` variables in
    all, divided evenly (or by pressure) over its levels: the formula of Aurora's paper; by channel
    it is ``w_k / C``. With a mapping, ``w_k`` is what it says for the channel (``z_500``) or else
    the variable (``z``), or else 1, and shares and scale are 1.

    Args:
        channels (sequence of str): The ``C`` channels.
        weights (str or mapping): Name of one of :data:`LOSS_PRESETS`, or weights by variable or
            channel. Defaults to ``"uniform"``.
        std (sequence of float, *optional*): Standard deviations by channel, for presets that
            measure errors by the change over one step.
        difference_std (sequence of float, *optional*): Standard deviations of that change.
        power (int): 1 for absolute, 2 for squared errors. Defaults to 1.

    Returns:
        float64 array ``[C]``.

    Raises:
        ConfigurationError: If the preset or a name in the mapping is unknown, a weight is negative,
            all are zero, or a preset lacks its statistics.
    """
    split = [split_channel(channel) for channel in channels]
    variables = list(dict.fromkeys(variable for variable, _ in split))
    if isinstance(weights, str):
        if weights not in LOSS_PRESETS:
            raise ConfigurationError(
                f"there are no loss weights {weights!r}; there are {', '.join(LOSS_PRESETS)}, or a "
                f"mapping of variables to weights.{did_you_mean(weights, LOSS_PRESETS)}"
            )
        preset = LOSS_PRESETS[weights]
    else:
        unknown = [name for name in weights if name not in channels and name not in variables]
        if unknown:
            raise ConfigurationError(
                [
                    f"loss_weights names {name!r}, which is not among the variables "
                    f"{', '.join(variables)}.{did_you_mean(name, [*variables, *channels])}"
                    for name in unknown
                ]
            )
        preset = LossPreset("mapping", surface=dict(weights), atmospheric=dict(weights))

    result = np.empty(len(channels))
    for i, (variable, level) in enumerate(split):
        table = preset.surface if level is None else preset.atmospheric
        share = preset.surface_share if level is None else preset.atmospheric_share
        levels = [other for name, other in split if name == variable]
        weight = table.get(channels[i], table.get(variable, preset.other))
        parts = len(channels) if preset.by_channel else len(variables) * len(levels)
        result[i] = preset.scale * share * weight / parts
        if preset.by_pressure and level is not None:
            result[i] *= level / np.mean(levels)
    if preset.tendency:
        if std is None or difference_std is None:
            raise ConfigurationError(
                f"loss_weights {weights!r} need difference_std, the standard deviation of the "
                "change over one step: compute statistics with difference_hours equal to the "
                "model's step, or choose other weights."
            )
        result *= (np.asarray(std) / np.asarray(difference_std)) ** power
    if not (np.isfinite(result).all() and (result >= 0).all() and result.any()):
        listed = ", ".join(f"{c} {w:g}" for c, w in zip(channels, result, strict=True))
        raise ConfigurationError(
            f"loss weights must be finite, not negative and not all zero; they are {listed}."
        )
    return result


def channel_errors(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    power: int = 1,
    area: torch.Tensor | None = None,
    masked: bool = True,
) -> torch.Tensor:
    """Returns the mean error of each channel over samples, lead times and the grid.

    Args:
        prediction (tensor ``[B, L, C, H, W]``): Normalised prediction.
        target (tensor ``[B, L, C, H, W]``): Normalised target; NaN where there is none.
        power (int): 1 for absolute, 2 for squared errors. Defaults to 1.
        area (tensor ``[H]``, *optional*): Weights of latitudes with mean 1. Defaults to even ones.
        masked (bool): Leave out points where the target is NaN. False is faster and right only if
            there are none. Defaults to True.

    Returns:
        Tensor ``[C]``. A channel without any target has the error 0.
    """
    import torch

    count = None
    if masked:
        missing = torch.isnan(target)
        # Not a mask on the result: the gradient of NaN times 0 is NaN.
        target = torch.where(missing, prediction.detach(), target)
        count = (~missing).sum(dim=(0, 1, 4), dtype=prediction.dtype)  # [C, H]
    error = prediction - target
    error = error.abs() if power == 1 else error.square()
    if count is None:
        by_latitude = error.mean(dim=(0, 1, 4))
        return (by_latitude if area is None else by_latitude * area).mean(dim=1)
    total = error.sum(dim=(0, 1, 4))
    if area is not None:
        total, count = total * area, count * area
    return total.sum(dim=1) / count.sum(dim=1).clamp(min=torch.finfo(count.dtype).tiny)


def weights_table(channels: Sequence[str], weights: Sequence[float]) -> Any:
    """Lays out the loss weights in use, a row a variable.

    Args:
        channels (sequence of str): The ``C`` channels.
        weights (sequence of float): Their weights, as :func:`channel_weights` gives them.

    Returns:
        rich.table.Table: Variable, its share of the sum in percent, and the weight of each level.
    """
    from rich.table import Table

    table = Table("variable", title="Loss weights")
    table.add_column("share", justify="right")
    table.add_column("weight (by level)")
    by_variable: dict[str, list[tuple[float | None, float]]] = {}
    for channel, weight in zip(channels, weights, strict=True):
        variable, level = split_channel(channel)
        by_variable.setdefault(variable, []).append((level, float(weight)))
    total = float(np.sum(weights))
    for variable, rows in by_variable.items():
        text = "  ".join(f"{w:.4g}" if v is None else f"{v:g} hPa: {w:.4g}" for v, w in rows)
        table.add_row(variable, f"{100 * sum(w for _, w in rows) / total:.1f} %", text)
    return table
