"""Aardvark's processor as a :class:`~transformers.PreTrainedModel`: the state a day later.

Notation used for shapes: ``B`` samples, ``L`` steps, ``C`` channels, ``S`` static channels, ``V``
input channels of the network (``C + S + 4``), ``H`` latitudes, ``W`` longitudes.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel

from hftune.utils.errors import DataError

from ..weather.fields import split_channel
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
        steps = self._checked_steps(fields, times, target_fields, steps)
        missing_targets = self._check_values(fields, times, target_fields)

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

    def _checked_steps(
        self,
        fields: torch.Tensor,
        times: torch.Tensor,
        target_fields: torch.Tensor | None,
        steps: int | None,
    ) -> int:
        """Returns the number of steps to forecast, once every shape fits."""
        config = self.config
        grid = (len(config.latitude), len(config.longitude))
        expected = (1, len(config.channels), *grid)
        if fields.ndim != 5 or tuple(fields.shape[1:]) != expected:
            raise DataError(
                f"fields have the shape {list(fields.shape)}; expected [samples, "
                f"{', '.join(map(str, expected))}]: one state of the channels "
                f"{', '.join(config.channels)} on the model's {grid[0]} x {grid[1]} grid."
            )
        if tuple(times.shape) != (len(fields),) or times.is_floating_point():
            raise DataError(
                f"times have the shape {list(times.shape)} and type {times.dtype}; expected one "
                f"int64 for each of {len(fields)} samples: seconds since 1970-01-01 UTC."
            )
        if target_fields is not None:
            found = tuple(target_fields.shape)
            leads = found[1] if len(found) == 5 else 0
            if found != (len(fields), leads, *expected[1:]) or not leads:
                raise DataError(
                    f"target_fields have the shape {list(found)}; expected [{len(fields)}, steps, "
                    f"{', '.join(map(str, expected[1:]))}]."
                )
            if steps not in (None, leads):
                raise DataError(f"steps is {steps}, but target_fields hold {leads} steps.")
            return leads
        steps = 1 if steps is None else steps
        if steps < 1:
            raise DataError(f"steps is {steps}; it must be 1 or more.")
        return steps

    @torch.no_grad()
    def _check_values(
        self, fields: torch.Tensor, times: torch.Tensor, target_fields: torch.Tensor | None
    ) -> bool:
        """Returns whether targets are missing somewhere; inputs may not be."""
        given = [x for x in (fields, self.static_fields, target_fields) if x is not None]
        # A sum is finite only if every value is; one look for all of them waits for a GPU once.
        finite = torch.isfinite(torch.stack([x.sum(dtype=torch.float32) for x in given])).tolist()
        if all(finite):
            return False
        if not torch.isfinite(fields).all():
            raise DataError(_describe_bad_input(self.config, fields, times))
        if self.static_fields is not None and not torch.isfinite(self.static_fields).all():
            raise DataError(
                f"static fields {', '.join(self.config.static_channels)} are not set: call "
                "model.set_static_fields(fields.static_fields)."
            )
        return target_fields is not None


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


def _describe_bad_input(
    config: AardvarkProcessorConfig, fields: torch.Tensor, times: torch.Tensor
) -> str:
    bad = ~torch.isfinite(fields[:, 0])
    sample, channel = (int(i) for i in bad.any(-1).any(-1).nonzero()[0])
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    moment = epoch + datetime.timedelta(seconds=int(times[sample]))
    name = config.channels[channel]
    variable, level = split_channel(name)
    where = variable if level is None else f"{variable} at {level:g} hPa"
    channels = bad.any(-1).any(-1).any(0).nonzero().flatten().tolist()
    others = [config.channels[c] for c in channels if c != channel]
    also = f", and values of {', '.join(others)} too" if others else ""
    return (
        f"{int(bad[sample, channel].sum())} values of {where} (channel {name}) in the state of "
        f"{moment:%Y-%m-%d %H:%M} UTC are NaN or infinite{also}. One such value makes the whole "
        "forecast NaN: fill the gaps, or leave these times or variables out (hftune audit lists "
        "them)."
    )


AutoConfig.register(AardvarkProcessorConfig.model_type, AardvarkProcessorConfig)
AutoModel.register(AardvarkProcessorConfig, AardvarkProcessor)
