"""The numbers of a configuration as tensors on a device."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..weather.fields import split_channel
from ..weather.model_inputs import EPOCH
from ..weather.scores import cell_area_weights
from .configuration_aurora import AuroraConfig
from .network_aurora import ChannelMap

__all__ = ["Constants", "encoded_longitude", "past_insolation"]


@dataclasses.dataclass(frozen=True)
class Constants:
    """What the configuration says, as float32 tensors on one device.

    Attributes:
        mean, std (tensor ``[C, 1, 1]``): Statistics of the channels.
        static_mean, static_std (tensor ``[S, 1, 1]``): Statistics of the static channels.
        change (tensor ``[C, 1, 1]``, *optional*): What one unit of the network's output changes
            the normalised state by; None where it predicts the state itself.
        weights (tensor ``[C]``): Loss weights.
        area (tensor ``[H']``, *optional*): Area of cells by latitude, with mean 1.
        variables (tensor ``[V, C]``): Averages channels by variable.
        log_scaled (bool tensor ``[C, 1, 1]``, *optional*): Channels that v1p5 takes the logarithm
            of.
        positive (bool tensor ``[C, 1, 1]``, *optional*): Channels of variables marked as positive.
        bounds (tuple of tensors ``[C, 1, 1]``, *optional*): Normalised limits of what is fed back.
        metadata (aurora.Metadata): Grid and levels, without times.
    """

    mean: torch.Tensor
    std: torch.Tensor
    static_mean: torch.Tensor
    static_std: torch.Tensor
    change: torch.Tensor | None
    weights: torch.Tensor
    area: torch.Tensor | None
    variables: torch.Tensor
    log_scaled: torch.Tensor | None
    positive: torch.Tensor | None
    bounds: tuple[torch.Tensor, torch.Tensor] | None
    metadata: Any

    @classmethod
    def of(
        cls,
        config: AuroraConfig,
        channel_map: ChannelMap,
        clipping: Mapping[str, Mapping[str, float | None]] | None,
        device: torch.device,
    ) -> Constants:
        """Makes the tensors of a configuration.

        Args:
            config (AuroraConfig): The configuration.
            channel_map (ChannelMap): Its map.
            clipping (mapping, *optional*): Physical limits ``min`` and ``max`` of variables that
                are fed back.
            device (torch.device): Where to.
        """
        from aurora import Metadata

        def tensor(values: Any) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=device)

        def column(values: Any) -> torch.Tensor:
            return tensor(values).view(-1, 1, 1)

        latitude = np.asarray(config.latitude[: config.output_rows])
        change = None
        if config.residual_prediction:
            change = column(np.divide(config.difference_std, config.std))
        members = np.array(
            [
                [split_channel(channel)[0] == variable for channel in config.channels]
                for variable in channel_map.variables
            ]
        )
        log_scaled = [_log_scaled(config, channel) for channel in config.channels]
        positive = [
            name in (config.positive_surf_vars if level is None else config.positive_atmos_vars)
            for name, level in map(split_channel, config.channels)
        ]
        low, high = _bounds(config, clipping or {})
        bounded = np.isfinite(low + high).any()
        return cls(
            mean=column(config.mean),
            std=column(config.std),
            static_mean=column(config.static_mean),
            static_std=column(config.static_std),
            change=change,
            weights=tensor(config.channel_weights()),
            area=tensor(cell_area_weights(latitude)) if config.area_weights else None,
            variables=tensor(members / members.sum(axis=1, keepdims=True)),
            log_scaled=column(log_scaled).bool() if any(log_scaled) else None,
            positive=column(positive).bool() if any(positive) else None,
            bounds=(column(low), column(high)) if bounded else None,
            metadata=Metadata(
                lat=tensor(latitude),
                lon=tensor(encoded_longitude(config.padded_longitude)),
                time=(),
                atmos_levels=tuple(channel_map.levels),
            ),
        )


def encoded_longitude(longitude: Sequence[float]) -> np.ndarray:
    """Returns longitudes as Aurora can encode them: below 360.

    A region that goes on past 360 is moved west by whole grid steps, as few as are needed.

    Args:
        longitude (sequence of float): ``W`` degrees east, strictly increasing.

    Returns:
        float64 array ``[W]``.
    """
    longitude = np.asarray(longitude, dtype=np.float64)
    if longitude[-1] < 360:
        return longitude
    width = longitude[-1] - longitude[-2]
    return longitude - width * (np.floor((longitude[-1] - 360) / width) + 1)


def past_insolation(
    config: AuroraConfig, moments: Sequence[datetime.datetime], like: torch.Tensor
) -> torch.Tensor:
    """Returns the insolation at past states, as v1p5 prescribes it.

    Args:
        config (AuroraConfig): The configuration.
        moments (sequence of datetime): Times of the last state, for ``B`` samples.
        like (tensor ``[B, T, C, H', W']``): The padded past states, for shape and device.

    Returns:
        float32 tensor ``[B, T, H', W']``.
    """
    from aurora.insolation import insolation

    seconds = np.array([round((moment - EPOCH).total_seconds()) for moment in moments])
    past = np.arange(like.shape[1] - 1, -1, -1) * round(config.timestep_hours * 3600)
    values = insolation(
        (seconds[:, None] - past).reshape(-1).astype("datetime64[s]"),
        np.asarray(config.latitude[: config.output_rows]),
        np.asarray(config.padded_longitude),
        enforce_2d=True,
    )
    values = torch.as_tensor(values, dtype=torch.float32, device=like.device)
    return values.view(*like.shape[:2], *like.shape[-2:])


def _log_scaled(config: AuroraConfig, channel: str) -> bool:
    return config.variant.startswith("v1p5") and channel.startswith("scaled_")


def _bounds(
    config: AuroraConfig, clipping: Mapping[str, Mapping[str, float | None]]
) -> tuple[list[float], list[float]]:
    """Normalised lowest and highest values ``[C]`` of what is fed back; infinite without limit."""
    from aurora.normalisation import log_transform

    low, high = [], []
    for channel, mean, std in zip(config.channels, config.mean, config.std, strict=True):
        limits = clipping.get(split_channel(channel)[0], {})
        for values, key, unlimited in ((low, "min", -np.inf), (high, "max", np.inf)):
            limit = limits.get(key)
            if limit is None:
                values.append(unlimited)
                continue
            if _log_scaled(config, channel):
                limit = float(log_transform(torch.tensor(float(limit))))
            values.append((limit - mean) / std)
    return low, high
