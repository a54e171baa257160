"""Aardvark's encoder as a :class:`~transformers.PreTrainedModel`: observations in, state out.

Notation used for shapes: ``B`` samples, ``V`` variables of a modality, ``N`` points, ``F``
features, ``C`` channels, ``S`` static channels, ``H`` latitudes, ``W`` longitudes, ``X`` longitudes
and ``Y`` latitudes of the stack, from south to north, as everywhere inside the network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from hftune.utils.errors import DataError, did_you_mean

from ..weather.weather_model import WeatherModel
from .configuration_aardvark_encoder import CLIMATOLOGY, AardvarkEncoderConfig, Modality
from .losses_aardvark import area_weights, channel_weights, error_sums, rmse_loss
from .network_aardvark_encoder import AardvarkEncoderNetwork, nearest_resize
from .set_convolution import gaussian_weights, grid_to_grid, points_to_grid
from .time_channels import time_channels

__all__ = ["AardvarkEncoder", "EncoderOutput"]


@dataclasses.dataclass
class EncoderOutput(ModelOutput):
    """What an :class:`AardvarkEncoder` returns.

    Args:
        loss (tensor, *optional*): Scalar; None without targets.
        prediction (tensor ``[B, 1, C, H, W]``): State in physical units, float32.
    """

    loss: torch.Tensor | None = None
    prediction: torch.Tensor | None = None


class AardvarkEncoder(WeatherModel):
    """Finds the state of the atmosphere from observations alone.

    Observations of each modality are brought to one grid by set convolutions, which need no
    observation to be there: where there is none, the density says so. A transformer makes the state
    of them. The network, ``model.network``, has the published names of weights.

    Observations are a dict of tensors: the values of each modality under its name, physical units,
    NaN where missing, and their coordinates in degrees under ``NAME_longitude`` and
    ``NAME_latitude`` unless the configuration has them (see
    :class:`~.configuration_aardvark_encoder.Modality` for their shapes). A point with a NaN
    coordinate is left out. Nothing that is passed in is changed.

    Learned length scales are under ``model.length_scales`` as logarithms of their ratio to the
    configured ones; a file without them loads, and they begin with those.

    Args:
        config (AardvarkEncoderConfig): Observations, grids, statistics, architecture and loss.

    Example:
        >>> config = AardvarkEncoderConfig(
        ...     channels=["2t"],
        ...     latitude=[45.0, 42.5, 40.0],
        ...     longitude=[355.0, 357.5, 360.0],
        ...     mean=[285.0],
        ...     std=[8.0],
        ...     modalities=[Modality("stations", "points", ["tmax"], length_scale=2.5)],
        ...     embed_dim=16,
        ...     num_heads=2,
        ... )
        >>> model = AardvarkEncoder(config)
        >>> observations = {
        ...     "stations": torch.tensor([[[15.0, float("nan")]]]),
        ...     "stations_longitude": torch.tensor([-3.7, 0.0]),
        ...     "stations_latitude": torch.tensor([40.4, 43.0]),
        ... }
        >>> model(observations, torch.tensor([0])).prediction.shape
        torch.Size([1, 1, 1, 3, 3])
    """

    config_class = AardvarkEncoderConfig
    # The Trainer counts the numbers in it: observations are a dict of many sizes.
    main_input_name = "times"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock"]
    _keys_to_ignore_on_load_missing = [r"^length_scales\."]

    def __init__(self, config: AardvarkEncoderConfig) -> None:
        super().__init__(config)
        self.network = AardvarkEncoderNetwork(config)
        self.modalities = config.modality_list
        self.length_scales = nn.ParameterDict(
            {
                modality.name: nn.Parameter(torch.zeros(len(modality.variables)))
                for modality in self.modalities
                if modality.trainable_length_scale
            }
        )
        self.make_static_fields()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Sets length scales that a file did not have; all else is as its own code left it."""
        if module is self.length_scales:
            for parameter in module.values():
                init.zeros_(parameter)

    def forward(
        self,
        observations: Mapping[str, torch.Tensor],
        times: torch.Tensor,
        target_fields: torch.Tensor | None = None,
    ) -> EncoderOutput:
        """Finds states, and compares them with targets.

        Args:
            observations (dict of tensors): Values and coordinates of each modality.
            times (int64 tensor ``[B]``): Seconds since 1970-01-01 UTC.
            target_fields (float32 tensor ``[B, 1, C, H, W]`` or ``[B, C, H, W]``, *optional*): The
                states, in physical units; NaN where there is no value. Gives the loss.

        Returns:
            EncoderOutput: Loss and prediction.

        Raises:
            DataError: If observations are missing, unknown, or of a wrong shape, or static fields
                are not set.
        """
        config = self.config
        state = self.network(self.features(observations, self.time_features(times))).float()
        state = state.transpose(-1, -2).flip(-2)  # north first, as fields are

        mean, std = (self._tensor(v)[:, None, None] for v in (config.mean, config.std))
        loss = None
        if target_fields is not None:
            expected = (len(state), 1, *state.shape[1:])
            if tuple(target_fields.shape) not in (expected, tuple(state.shape)):
                raise DataError(
                    f"target_fields have the shape {list(target_fields.shape)}; expected "
                    f"{list(expected)}."
                )
            target = (target_fields.reshape(state.shape) - mean) / std
            area = self._tensor(area_weights(config.loss_function, config.latitude))
            weights = self._tensor(channel_weights(config.loss_function, config.channels))
            loss = rmse_loss(*error_sums(state[:, None], target[:, None], area), weights)
        return EncoderOutput(loss=loss, prediction=(state * std + mean)[:, None])

    def time_features(self, times: torch.Tensor) -> torch.Tensor:
        """Returns what the network is told of times, float32 ``[B, 5]``, ``[B, 4]`` or ``[B, 0]``.

        Args:
            times (int64 tensor ``[B]``): Seconds since 1970-01-01 UTC.
        """
        if self.config.time_scheme == "encoder5":
            return _encoder_time_channels(times)
        if self.config.time_scheme == "processor4":
            return time_channels(times)
        return torch.empty(len(times), 0, device=times.device)

    def features(
        self, observations: Mapping[str, torch.Tensor], time_features: torch.Tensor
    ) -> torch.Tensor:
        """Gathers all observations on the grid of the stack.

        Args:
            observations (dict of tensors): As for :meth:`forward`.
            time_features (tensor ``[B, K]``): From :meth:`time_features`.

        Returns:
            float32 tensor ``[B, F, X, Y]``: Modalities (density and value of one variable after the
            other), static fields, climatology, time.

        Raises:
            DataError: If observations are missing, unknown, or of a wrong shape.
        """
        config, batch = self.config, len(time_features)
        self._check(observations, batch)
        stack_x = self._tensor(config.stack_longitude, torch.float64)
        stack_y = self._tensor(config.stack_latitude[::-1], torch.float64)
        grid = (len(stack_x), len(stack_y))

        blocks = []
        for modality in self.modalities:
            values = self._standardised(modality, observations[modality.name])
            if modality.kind == "resize":
                block = nearest_resize(_with_mask(values).flatten(1, 2), grid).flip(-1)
            elif config.is_on_stack(modality):
                block = _with_mask(values).flatten(1, 2)
                if modality.latitude == config.stack_latitude:
                    block = block.flip(-1)
            else:
                scale = self._length_scale(modality)
                x, y = self._coordinates(modality, observations)
                weights_x = gaussian_weights(x, stack_x, scale, config.distance, longitude=True)
                weights_y = gaussian_weights(y, stack_y, scale, config.distance)
                spread = points_to_grid if modality.kind == "points" else grid_to_grid
                block = spread(values, weights_x, weights_y).flatten(1, 2)
            blocks.append(block if modality.density else block[:, 1::2])

        if self.static_fields is not None:
            static = self.static_fields
            if static.isnan().any():
                raise DataError(
                    f"static fields {', '.join(config.static_channels)} are not set: call "
                    "model.set_static_fields(...)."
                )
            if config.static_mean is not None:
                mean, std = self._tensor(config.static_mean), self._tensor(config.static_std)
                static = (static - mean[:, None, None]) / std[:, None, None]
            blocks.append(static.flip(-2).transpose(-1, -2).expand(batch, -1, -1, -1))
        if config.climatology_channels:
            blocks.append(observations[CLIMATOLOGY].flip(-1))
        blocks.append(time_features[:, :, None, None].expand(-1, -1, *grid))
        return torch.cat([block.float() for block in blocks], dim=1)

    def _standardised(self, modality: Modality, values: torch.Tensor) -> torch.Tensor:
        values = values.float()
        if modality.mean is not None:
            shape = (-1,) + (1,) * (values.ndim - 2)
            mean, std = self._tensor(modality.mean), self._tensor(modality.std)
            values = (values - mean.view(shape)) / std.view(shape)
        if modality.zero_is_missing:
            values = values.masked_fill(values == 0, torch.nan)
        if modality.blanked:
            blanked = [modality.variables.index(name) for name in modality.blanked]
            values = values.index_fill(1, torch.tensor(blanked, device=values.device), torch.nan)
        return values

    def _length_scale(self, modality: Modality) -> torch.Tensor:
        """Length scales in degrees: ``[1]``, or ``[V]`` where they are learned."""
        scale = self._tensor([modality.length_scale], torch.float64)
        if modality.trainable_length_scale:
            scale = scale * self.length_scales[modality.name].double().exp()
        return scale

    def _coordinates(
        self, modality: Modality, observations: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Longitudes and latitudes in degrees."""
        if modality.longitude is not None:
            both = (modality.longitude, modality.latitude)
            return tuple(self._tensor(values, torch.float64) for values in both)
        return tuple(observations[name] for name in _coordinate_names(modality))

    def _tensor(
        self, values: Sequence[float] | np.ndarray, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)

    def _check(self, observations: Mapping[str, torch.Tensor], batch: int) -> None:
        """Raises an error that names what does not fit."""
        expected: dict[str, tuple[int | None, ...]] = {}
        for modality in self.modalities:
            size = (batch, len(modality.variables))
            names = _coordinate_names(modality)
            if modality.kind == "resize":
                places: list[int | None] = [None, None]
            elif modality.longitude is not None:
                both = [len(modality.longitude), len(modality.latitude)]
                places = both[:1] if modality.kind == "points" else both
            elif any(name not in observations for name in names):
                expected |= {name: (None,) for name in names}
                places = [None] * (1 if modality.kind == "points" else 2)
            else:
                both = [observations[name].shape[-1] for name in names]
                places = both[:1] if modality.kind == "points" else both
                for name, length in zip(names, (places * 2)[:2], strict=True):
                    shared = observations[name].ndim == 1
                    expected[name] = (length,) if shared else (batch, length)
            expected[modality.name] = (*size, *places)
        if self.config.climatology_channels:
            grid = (len(self.config.stack_longitude), len(self.config.stack_latitude))
            expected[CLIMATOLOGY] = (batch, len(self.config.climatology_channels), *grid)

        problems = [f"observations lack {name!r}." for name in expected if name not in observations]
        problems += [
            f"observations hold {name!r}, which the model does not know."
            f"{did_you_mean(name, expected)}"
            for name in observations
            if name not in expected
        ]
        for name, shape in expected.items():
            if name not in observations or shape == (None,):
                continue
            found = tuple(observations[name].shape)
            fits = len(found) == len(shape) and all(
                size is None or size == length for size, length in zip(shape, found, strict=True)
            )
            if not fits:
                wanted = ", ".join("any" if size is None else str(size) for size in shape)
                problems.append(f"{name!r} has the shape {list(found)}; expected [{wanted}].")
        if problems:
            raise DataError("\n".join(problems))


def _coordinate_names(modality: Modality) -> tuple[str, str]:
    return f"{modality.name}_longitude", f"{modality.name}_latitude"


def _with_mask(values: torch.Tensor) -> torch.Tensor:
    """``[B, V, 2, ...]``: 1 or 0 for a value or none, and the value or 0."""
    return torch.stack([(~values.isnan()).float(), values.nan_to_num()], dim=2)


def _encoder_time_channels(times: torch.Tensor) -> torch.Tensor:
    """Cosine and sine of the day of the year (from 1, of 366) and of the hour, and the year."""
    moments = times.cpu().numpy().astype("datetime64[s]")
    days, years = moments.astype("datetime64[D]"), moments.astype("datetime64[Y]")
    day = (days - years.astype("datetime64[D]")).astype(np.int64) + 1
    hour = (moments - days).astype(np.int64) / 3600
    day, hour = day * (2 * math.pi / 366), hour * (2 * math.pi / 24)
    year = (years.astype(np.int64) + 1970 - 2007) / 15
    channels = np.stack([np.cos(day), np.sin(day), np.cos(hour), np.sin(hour), year], axis=1)
    return torch.from_numpy(channels).float().to(times.device)


AutoConfig.register(AardvarkEncoderConfig.model_type, AardvarkEncoderConfig)
AutoModel.register(AardvarkEncoderConfig, AardvarkEncoder)
