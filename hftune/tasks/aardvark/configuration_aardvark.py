"""Configuration of Aardvark's processor: architecture, channels, grid, statistics and loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedConfig

from hftune.utils.errors import ConfigurationError

from ..weather.config_checks import (
    choice_problems,
    float_list,
    grid_problems,
    repeated_problems,
)
from .losses_aardvark import LOSS_FUNCTIONS

if TYPE_CHECKING:
    from ..weather.fields import FieldLayout
    from ..weather.statistics import FieldStatistics

__all__ = [
    "OFFICIAL_CHANNELS",
    "AardvarkProcessorConfig",
    "build_processor_config",
    "published_config",
]

#: The 24 channels of the published networks, in their order.
OFFICIAL_CHANNELS = (
    *("10u", "10v", "2t", "msl"),
    *(f"{variable}_{level}" for variable in "zqtuv" for level in (200, 500, 700, 850)),
)

_TIME_CHANNELS = ("initial", "valid")


class AardvarkProcessorConfig(PreTrainedConfig):
    """Everything that makes an :class:`~.modeling_aardvark.AardvarkProcessor`.

    Notation: ``C`` channels, ``S`` static channels, ``H`` latitudes, ``W`` longitudes. The sizes
    default to those of the published network.

    Args:
        channels (list of str): Names of the ``C`` channels of the fields, in their order (``2t``,
            ``z_500``).
        static_channels (list of str): Names of the ``S`` time-invariant fields. Defaults to none.
        latitude (list of float): ``H`` latitudes in degrees north, strictly decreasing.
        longitude (list of float): ``W`` longitudes in degrees east, strictly increasing, the first
            in [0, 360), going on past 360 where a region crosses Greenwich.
        timestep_hours (float): Length of one step in hours. Defaults to 24.
        history (int): Past states that the model sees: 1, no other.
        mean, std (list of float): Statistics of the ``C`` channels, in physical units, that fields
            are normalised with.
        difference_mean, difference_std (list of float): The same of the change of the ``C``
            channels over one step: the network predicts the change normalised with them.
        static_mean, static_std (list of float): Of each of the ``S`` static channels over the grid.
        patch_size (int): Points per patch side. Latitudes and longitudes beyond the last whole
            patch are not read, and the forecast is then stretched to the grid by its nearest
            neighbours, as published: better, for a new model, one that divides both. Defaults to 5.
        embed_dim (int): Width. Defaults to 512.
        depth (int): Number of transformer blocks. Defaults to 16.
        num_heads (int): Attention heads. Defaults to 16.
        mlp_ratio (float): Hidden width of the blocks' MLPs over ``embed_dim``. Defaults to 4.
        head_depth (int): Hidden layers of the head. Defaults to 4.
        drop_path (float): Stochastic depth rate of the last block. Defaults to 0.
        loss_function (str): ``"lw_rmse_pressure_weighted"``, ``"lw_rmse"`` or ``"rmse"``; see
            :mod:`~hftune.tasks.aardvark.losses_aardvark`. Defaults to the first.
        time_channels (str): The time that the network is told in a rollout: ``"initial"``, the one
            it began at, as the published weights are used, or ``"valid"``, that of the state it
            steps from. Defaults to ``"initial"``.
        zero_head (bool): Begin with a last layer of zeros: an untrained model predicts the mean
            change, which is about persistence. For training from scratch. Defaults to False.
        reference_tensors (bool): Keep the tensors of the published file that nothing uses, frozen.
            Defaults to False.
        **kwargs: Arguments of ``PreTrainedConfig``.

    Raises:
        ConfigurationError: All that is wrong with the values, together.

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
        >>> config.in_channels
        6
    """

    model_type = "hftune_aardvark_processor"
    # Trainer.evaluate would otherwise keep every predicted field of the data set in memory.
    keys_to_ignore_at_inference = ["prediction", "losses"]
    has_no_defaults_at_init = True

    def __init__(
        self,
        *,
        channels: Sequence[str] = (),
        static_channels: Sequence[str] = (),
        latitude: Sequence[float] = (),
        longitude: Sequence[float] = (),
        timestep_hours: float = 24,
        history: int = 1,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        difference_mean: Sequence[float] = (),
        difference_std: Sequence[float] = (),
        static_mean: Sequence[float] = (),
        static_std: Sequence[float] = (),
        patch_size: int = 5,
        embed_dim: int = 512,
        depth: int = 16,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        head_depth: int = 4,
        drop_path: float = 0.0,
        loss_function: str = "lw_rmse_pressure_weighted",
        time_channels: str = "initial",
        zero_head: bool = False,
        reference_tensors: bool = False,
        **kwargs: Any,
    ) -> None:
        self.channels, self.static_channels = list(channels), list(static_channels)
        self.latitude, self.longitude = float_list(latitude), float_list(longitude)
        self.timestep_hours, self.history = timestep_hours, history
        self.mean, self.std = float_list(mean), float_list(std)
        self.difference_mean = float_list(difference_mean)
        self.difference_std = float_list(difference_std)
        self.static_mean, self.static_std = float_list(static_mean), float_list(static_std)
        self.patch_size, self.embed_dim, self.depth = patch_size, embed_dim, depth
        self.num_heads, self.mlp_ratio, self.head_depth = num_heads, mlp_ratio, head_depth
        self.drop_path = drop_path
        self.loss_function, self.time_channels = loss_function, time_channels
        self.zero_head, self.reference_tensors = zero_head, reference_tensors
        problems = [
            *_channel_problems(self),
            *_grid_problems(self),
            *_network_problems(self),
            *choice_problems("loss_function", loss_function, LOSS_FUNCTIONS),
            *choice_problems("time_channels", time_channels, _TIME_CHANNELS),
        ]
        if problems:
            raise ConfigurationError(problems)
        super().__init__(**kwargs)

    @property
    def in_channels(self) -> int:
        """Input channels of the network: ``C``, ``S`` and four that tell the time."""
        return len(self.channels) + len(self.static_channels) + 4


def build_processor_config(
    layout: FieldLayout, statistics: FieldStatistics, **sizes: Any
) -> AardvarkProcessorConfig:
    """Makes the configuration of a processor for given data.

    Args:
        layout (FieldLayout): Channels and grid of the data.
        statistics (FieldStatistics): Statistics of the training data; ``difference_hours`` is the
            model's step.
        **sizes: Any other argument of :class:`AardvarkProcessorConfig`.

    Raises:
        ConfigurationError: If the statistics are of other channels or of another step, or the
            values do not fit together.
    """
    if list(statistics.channels) != list(layout.channels):
        raise ConfigurationError(
            f"the statistics are of the channels {', '.join(statistics.channels)}, the fields have "
            f"{', '.join(layout.channels)}: compute the statistics of these fields."
        )
    hours = statistics.difference_hours
    if sizes.get("timestep_hours", hours) != hours:
        raise ConfigurationError(
            f"timestep_hours is {sizes['timestep_hours']:g}, but the statistics are of changes "
            f"over {hours:g} hours: compute them with difference_hours equal to timestep_hours."
        )
    # A static field that is the same everywhere (all land) carries nothing: centre it.
    static_std = [value if value > 0 else 1.0 for value in map(float, statistics.static_std)]
    values = {
        "channels": layout.channels,
        "static_channels": layout.static_channels,
        "latitude": layout.latitude,
        "longitude": layout.longitude,
        "timestep_hours": int(hours) if hours == int(hours) else hours,
        "mean": statistics.mean,
        "std": statistics.std,
        "difference_mean": statistics.difference_mean,
        "difference_std": statistics.difference_std,
        "static_mean": statistics.static_mean,
        "static_std": static_std,
    }
    return AardvarkProcessorConfig(**values | sizes)


def published_config(
    *,
    mean: Sequence[float],
    std: Sequence[float],
    difference_mean: Sequence[float],
    difference_std: Sequence[float],
    static_channels: Sequence[str],
    static_mean: Sequence[float] | None = None,
    static_std: Sequence[float] | None = None,
    **settings: Any,
) -> AardvarkProcessorConfig:
    """Makes the configuration that the published weights fit.

    Args:
        mean, std, difference_mean, difference_std (sequences of float): Statistics of
            :data:`OFFICIAL_CHANNELS`, the last two over 24 hours.
        static_channels (sequence of str): Names of the time-invariant fields; seven in the
            published files.
        static_mean, static_std (sequences of float, *optional*): Their statistics. Default to 0 and
            1: fields that are standardised already.
        **settings: Any other argument of :class:`AardvarkProcessorConfig`.

    Raises:
        ConfigurationError: If the values do not fit together.
    """
    count = len(static_channels)
    values = {
        "channels": OFFICIAL_CHANNELS,
        "latitude": 90 - np.arange(121) * 1.5,
        "longitude": np.arange(240) * 1.5,
        "reference_tensors": True,
    }
    return AardvarkProcessorConfig(
        mean=mean,
        std=std,
        difference_mean=difference_mean,
        difference_std=difference_std,
        static_channels=static_channels,
        static_mean=[0.0] * count if static_mean is None else static_mean,
        static_std=[1.0] * count if static_std is None else static_std,
        **values | settings,
    )


def _channel_problems(config: AardvarkProcessorConfig) -> list[str]:
    problems = []
    if not config.channels:
        problems.append("channels is empty: name what the fields hold, such as 2t and z_500.")
    for name in ("channels", "static_channels"):
        problems += repeated_problems(name, getattr(config, name))
    for prefix, channels in (
        ("", config.channels),
        ("difference_", config.channels),
        ("static_", config.static_channels),
    ):
        mean, std = getattr(config, f"{prefix}mean"), getattr(config, f"{prefix}std")
        if not len(mean) == len(std) == len(channels):
            problems.append(
                f"{prefix}mean and {prefix}std have {len(mean)} and {len(std)} values for "
                f"{len(channels)} {'static ' if prefix == 'static_' else ''}channels."
            )
            continue
        for channel, centre, spread in zip(channels, mean, std, strict=True):
            if not (np.isfinite(centre) and np.isfinite(spread) and spread > 0):
                problems.append(
                    f"channel {channel} has {prefix}mean {centre:g} and {prefix}std {spread:g}: "
                    f"they must be finite and the second above zero; {_REASONS[prefix]}"
                )
    return problems


_REASONS = {
    "": "a constant field cannot be normalised.",
    "static_": "a constant field cannot be normalised.",
    "difference_": "the field never changes, or no two times are a step apart.",
}


def _grid_problems(config: AardvarkProcessorConfig) -> list[str]:
    problems = grid_problems(config.latitude, config.longitude)
    latitude, longitude = np.asarray(config.latitude), np.asarray(config.longitude)
    smallest = min(latitude.size, longitude.size)
    if not 1 <= config.patch_size <= max(smallest, 1):
        problems.append(
            f"patch_size {config.patch_size} must be from 1 to {smallest}: the grid has "
            f"{latitude.size} latitudes and {longitude.size} longitudes."
        )
    return problems


def _network_problems(config: AardvarkProcessorConfig) -> list[str]:
    problems = []
    if config.num_heads < 1 or config.embed_dim < 4 or config.embed_dim % 4:
        problems.append(
            f"embed_dim {config.embed_dim} must be a multiple of 4, and num_heads "
            f"{config.num_heads} 1 or more."
        )
    elif config.embed_dim % config.num_heads:
        problems.append(
            f"embed_dim {config.embed_dim} must be a multiple of num_heads {config.num_heads}."
        )
    for name, least in (("depth", 1), ("head_depth", 0)):
        if getattr(config, name) < least:
            problems.append(f"{name} {getattr(config, name)} must be {least} or more.")
    for name in ("mlp_ratio", "timestep_hours"):
        if not getattr(config, name) > 0:
            problems.append(f"{name} {getattr(config, name)} must be above zero.")
    if not 0 <= config.drop_path < 1:
        problems.append(f"drop_path {config.drop_path} must be from 0 to below 1.")
    if config.history != 1:
        problems.append(f"history is {config.history}; Aardvark sees one past state: give 1.")
    return problems
