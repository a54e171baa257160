"""Aardvark's processor as a :class:`~transformers.PreTrainedModel`: the state a day later.

Notation used for shapes: ``B`` samples, ``L`` steps, ``C`` channels, ``S`` static channels, ``V``
input channels of the network (``C + S + 4``), ``H`` latitudes, ``W`` longitudes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel

from ..weather.fields import split_channel
from ..weather.model_inputs import check_values, checked_steps
from ..weather.weather_model import ForecastOutput, WeatherModel
from .configuration_aardvark import AardvarkProcessorConfig
from .losses_aardvark import area_weights, channel_rmse, channel_weights, error_sums, rmse_loss
from .network_aardvark import ProcessorNetwork
from .time_channels import time_channels

__all__ = ["AardvarkProcessor"]


class AardvarkProcessor(WeatherModel):
    """The network that takes a state of the atmosphere one step on, with statistics, grid and loss.

    Around ``model.network``, which has the published names of weights, this class normalises with
    the statistics of the configuration, adds static fields and the time, turns the axes (inside,
    longitude comes first and latitude goes north), adds the predicted change to the state, rolls
    out, and computes the loss of the normalised change. Static fields are part of the model once
    :meth:`set_static_fields` was called, so a saved model works alone.

    Args:
        config (AardvarkProcessorConfig): Architecture, channels, grid, statistics and loss.

    Example:
        >>> config = AardvarkProcessorConfig(
        ...     channels=["2t", "z_500"],
        ...     latitude=[50.0, 47.5, 45.0, 42.5],
        ...     longitude=[0.0, 2.5, 5.0, 7.5],
        ...     mean=[280.0, 54000.0],
        ...     std=[20.0, 3300.0],
        ...     difference_mean=[0.0, 0.0],
        ...     difference_std=[2.5, 670.0],
        ...     patch_size=2,
        ...     embed_dim=32,
        ...     num_heads=2,
        ...     depth=2,
        ... )
        >>> model = AardvarkProcessor(config)
        >>> fields = torch.tensor([280.0, 54000.0]).view(1, 1, 2, 1, 1).expand(1, 1, 2, 4, 4)
        >>> output = model(fields, torch.tensor([0]), steps=3)
        >>> output.prediction.shape
        torch.Size([1, 3, 2, 4, 4])
    """

    config_class = AardvarkProcessorConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock"]

    def __init__(self, config: AardvarkProcessorConfig) -> None:
        super().__init__(config)
        self.network = ProcessorNetwork(config)
        self.make_static_fields()
        self._constants_by_device: dict[torch.device, _Constants] = {}
        self.post_init()

    def forward(
        self,
        fields: torch.Tensor,
        times: torch.Tensor,
        target_fields: torch.Tensor | None = None,
        steps: int | None = None,
    ) -> ForecastOutput:
        """Forecasts one or more steps, each from the one before, and compares with targets.

        Args:
            fields (float32 tensor ``[B, 1, C, H, W]``): The state, in physical units.
            times (int64 tensor ``[B]``): Seconds since 1970-01-01 UTC: what the network is told as
                the time. With ``config.time_channels`` ``"initial"`` that is the time the forecast
                began at, however old the state is by then, and it stays the same at every step;
                with ``"valid"`` it is the time of the state, a step later at every step.
            target_fields (float32 tensor ``[B, L, C, H, W]``, *optional*): The next ``L`` states, a
                step apart; NaN where there is no value. Gives the loss.
            steps (int, *optional*): Number ``L`` of steps. Defaults to those of ``target_fields``,
                else 1.

        Returns:
            ForecastOutput: Loss, prediction and root mean square error by variable, of the
            normalised change (the mean over the variable's levels; NaN without any target).

        Raises:
            DataError: If a shape does not fit, or an input is NaN or infinite (named by channel,
                level and time).
        """
        config = self.config
        steps = checked_steps(config, fields, times, target_fields, steps)
        missing_targets = check_values(config, fields, times, self.static_fields, target_fields)

        constants = self._constants(fields.device)
        static = None
        if self.static_fields is not None:
            static = (self.static_fields - constants.static_mean) / constants.static_std
        later = 0
        if config.time_channels == "valid":
            later = round(config.timestep_hours * 3600)

        state = fields[:, 0]
        predictions, changes, target_changes = [], [], []
        for step in range(steps):
            normalised = (state - constants.mean) / constants.std
            change = self._change(normalised, static, times + step * later)
            if target_fields is not None:
                changes.append(change)
                difference = target_fields[:, step] - state - constants.difference_mean
                target_changes.append(difference / constants.difference_std)
            state = state + (change * constants.difference_std + constants.difference_mean)
            predictions.append(state)

        loss = losses = None
        if target_fields is not None:
            squares, counts = error_sums(
                torch.stack(changes, dim=1),
                torch.stack(target_changes, dim=1),
                constants.area,
                masked=missing_targets,
            )
            loss = rmse_loss(squares, counts, constants.weights)
            errors = channel_rmse(squares.detach(), counts)
            losses = {
                variable: errors[chosen].nanmean() for variable, chosen in constants.variables
            }
        return ForecastOutput(loss=loss, prediction=torch.stack(predictions, dim=1), losses=losses)

    def _change(
        self, state: torch.Tensor, static: torch.Tensor | None, times: torch.Tensor
    ) -> torch.Tensor:
        """One pass through the network: normalised state to normalised change, ``[B, C, H, W]``."""
        batch, grid = len(state), state.shape[-2:]
        time = time_channels(times)[..., None, None].expand(-1, -1, *grid)
        planes = [state, time] if static is None else [state, static.expand(batch, -1, *grid), time]
        inputs = torch.cat(planes, dim=1).flip(-2).transpose(-1, -2)  # [B, V, W, H], south first
        # Other numbers are for other lead times, in pretraining; each step here is a model's own.
        lead_time = inputs.new_zeros(1, 1)
        return self.network(inputs, lead_time).float().transpose(-1, -2).flip(-2)

    def _constants(self, device: torch.device) -> _Constants:
        """The configuration's numbers on a device, made once; they are never in a checkpoint."""
        if device not in self._constants_by_device:
            self._constants_by_device[device] = _Constants.of(self.config, device)
        return self._constants_by_device[device]


@dataclasses.dataclass(frozen=True)
class _Constants:
    """What the configuration says, as float32 tensors on one device.

    Attributes:
        mean, std, difference_mean, difference_std (tensor ``[C, 1, 1]``): Statistics.
        static_mean, static_std (tensor ``[S, 1, 1]``): Statistics of the static channels.
        area (tensor ``[H]``): Loss weights of latitudes.
        weights (tensor ``[C]``): Loss weights of channels.
        variables (list): Names of variables, each with the int64 numbers of its channels.
    """

    mean: torch.Tensor
    std: torch.Tensor
    difference_mean: torch.Tensor
    difference_std: torch.Tensor
    static_mean: torch.Tensor
    static_std: torch.Tensor
    area: torch.Tensor
    weights: torch.Tensor
    variables: list[tuple[str, torch.Tensor]]

    @classmethod
    def of(cls, config: AardvarkProcessorConfig, device: torch.device) -> _Constants:
        """Makes the tensors of a configuration."""

        def tensor(values: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values), dtype=dtype, device=device)

        statistics = ("mean", "std", "difference_mean", "difference_std")
        names = (*statistics, "static_mean", "static_std")
        numbers: dict[str, list[int]] = {}
        for i, channel in enumerate(config.channels):
            numbers.setdefault(split_channel(channel)[0], []).append(i)
        return cls(
            **{name: tensor(getattr(config, name)).view(-1, 1, 1) for name in names},
            area=tensor(area_weights(config.loss_function, config.latitude)),
            weights=tensor(channel_weights(config.loss_function, config.channels)),
            variables=[(name, tensor(chosen, torch.int64)) for name, chosen in numbers.items()],
        )


AutoConfig.register(AardvarkProcessorConfig.model_type, AardvarkProcessorConfig)
AutoModel.register(AardvarkProcessorConfig, AardvarkProcessor)
