"""What can be wrong with an Aurora configuration, and the patch sizes that fit a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hftune.utils.errors import ConfigurationError

from ..weather.config_checks import choice_problems, grid_problems, repeated_problems
from ..weather.losses import LOSS_FUNCTIONS

if TYPE_CHECKING:
    from .configuration_aurora import AuroraConfig

__all__ = ["choose_patch_size", "configuration_problems", "fitting_patch_sizes"]

_AUTOCAST = ("none", "backbone", "full")
_AUTOCAST_DTYPES = ("bfloat16", "float16")


def configuration_problems(config: AuroraConfig, found: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns what is wrong with the values, one text a problem."""
    problems = [
        *choice_problems("loss_function", config.loss_function, LOSS_FUNCTIONS),
        *choice_problems("autocast", config.autocast, _AUTOCAST),
        *choice_problems("autocast_dtype", config.autocast_dtype, _AUTOCAST_DTYPES),
        *_channel_problems(config, found),
        *_grid_problems(config),
        *_network_problems(config),
    ]
    if config.residual_prediction and config.difference_std is None:
        problems.append(
            "residual_prediction needs difference_std: compute statistics with "
            "difference_hours equal to timestep_hours."
        )
    if not problems:  # they need channels and statistics that fit
        try:
            config.channel_weights()
        except ConfigurationError as error:
            problems.extend(error.problems)
    return problems


def _channel_problems(config: AuroraConfig, found: Mapping[str, Sequence[str]]) -> list[str]:
    problems = []
    if not config.channels:
        problems.append("channels is empty: name what the fields hold, such as 2t and z_500.")
    for name in ("channels", "static_channels"):
        problems += repeated_problems(name, getattr(config, name))
    for name, variables in found.items():
        absent = [v for v in variables if v not in getattr(config, name)]
        if absent:
            problems.append(
                f"{name} {getattr(config, name)} lacks {', '.join(absent)}, which the channels "
                "hold: add them, or leave the argument out."
            )
    both = sorted(set(found["surf_vars"]) & set(found["static_vars"]))
    if both:
        problems.append(
            f"{', '.join(both)} is a channel and a static channel: Aurora has one embedding for "
            "both kinds; rename or leave out one."
        )
    if "insolation" in config.channels:
        problems.append("channel insolation is computed by the model: leave it out.")
    problems += _statistics_problems(config.channels, config.mean, config.std, "")
    problems += _statistics_problems(
        config.static_channels, config.static_mean, config.static_std, "static_"
    )
    changes = config.difference_std or []
    if config.difference_std is not None and len(changes) != len(config.channels):
        problems.append(
            f"difference_std has {len(changes)} values for {len(config.channels)} channels."
        )
    for channel, change in zip(config.channels, changes, strict=False):
        if not (np.isfinite(change) and change > 0):
            problems.append(
                f"difference_std of channel {channel} is {change:g}, where it must be above zero: "
                "the field never changes, or no two times are a step apart."
            )
    return problems


def _statistics_problems(
    channels: Sequence[str], mean: Sequence[float], std: Sequence[float], kind: str
) -> list[str]:
    if not len(mean) == len(std) == len(channels):
        return [
            f"{kind}mean and {kind}std have {len(mean)} and {len(std)} values for "
            f"{len(channels)} channels."
        ]
    problems = []
    for channel, centre, spread in zip(channels, mean, std, strict=True):
        if np.isnan(centre):
            problems.append(
                f"the published models have no statistics of channel {channel}: give {kind}mean "
                f"and {kind}std of your data."
            )
        elif not (np.isfinite(centre) and np.isfinite(spread) and spread > 0):
            problems.append(
                f"channel {channel} has {kind}mean {centre:g} and {kind}std {spread:g}: they must "
                "be finite and the second above zero; a constant field cannot be normalised."
            )
    return problems


def _grid_problems(config: AuroraConfig) -> list[str]:
    problems = grid_problems(config.latitude, config.longitude, least=2)
    latitude, longitude = np.asarray(config.latitude), np.asarray(config.longitude)
    patch = config.patch_size
    if patch < 2:
        return [*problems, f"patch_size is {patch}; Aurora needs patches of 2 x 2 points or more."]
    fitting = fitting_patch_sizes(latitude.size, longitude.size, len(config.encoder_depths))
    hint = f"Sizes that fit: {', '.join(map(str, fitting)) or 'none, crop the grid'}."
    if latitude.size % patch not in (0, 1):
        problems.append(
            f"{latitude.size} latitudes are {latitude.size % patch} too many for patch_size "
            f"{patch}: there may be none or one (the southernmost, left out). {hint}"
        )
    if not problems and longitude.size % patch:
        padded = config.padded_longitude
        if padded[-1] - padded[0] + padded[-1] - padded[-2] > 360 + 1e-6:
            problems.append(
                f"{longitude.size} longitudes around the globe are no multiple of patch_size "
                f"{patch}, and there is no room to continue them. {hint}"
            )
    return problems


def _network_problems(config: AuroraConfig) -> list[str]:
    problems = []
    stages = len(config.encoder_depths)
    shrink = 2 ** max(stages - 2, 0)
    patch = max(config.patch_size, 1)
    patches = (len(config.latitude) // patch, -(-len(config.longitude) // patch))
    if stages < 2 or len(config.decoder_depths) != stages:
        problems.append(
            f"encoder_depths {config.encoder_depths} and decoder_depths {config.decoder_depths}: "
            "Aurora needs two stages or more, as many in the decoder as in the encoder."
        )
    elif sum(config.encoder_depths) != sum(config.decoder_depths):
        problems.append(
            f"encoder_depths {config.encoder_depths} and decoder_depths {config.decoder_depths} "
            "must add up to the same number of blocks."
        )
    elif min(patches) <= shrink:
        problems.append(
            f"{patches[0]} x {patches[1]} patches are too few to be halved {stages - 1} times: "
            f"take a smaller patch_size than {config.patch_size} or fewer stages than {stages}."
        )
    for name in ("encoder", "decoder"):
        depths = getattr(config, f"{name}_depths")
        heads = getattr(config, f"{name}_num_heads")
        if len(depths) != len(heads):
            problems.append(f"{name}_num_heads {heads} needs a value for each of {depths}.")
    if config.latent_levels < 2 or config.latent_levels % config.window_size[0]:
        problems.append(
            f"latent_levels {config.latent_levels} must be 2 or more and a multiple of "
            f"window_size[0], {config.window_size[0]}."
        )
    if config.embed_dim % 4 or config.embed_dim % config.num_heads:
        problems.append(
            f"embed_dim {config.embed_dim} must be a multiple of 4 and of num_heads "
            f"{config.num_heads}."
        )
    if not 1 <= config.history <= config.max_history_size:
        problems.append(
            f"history {config.history} must be from 1 to max_history_size "
            f"{config.max_history_size}."
        )
    if config.timestep_hours <= 0:
        problems.append(f"timestep_hours {config.timestep_hours} must be positive.")
    if config.modulation_heads or config.simulate_indexing_bug:
        problems.append(
            "modulation_heads and simulate_indexing_bug belong to the air pollution model, "
            "which is not supported."
        )
    if config.atmos_static_vars and not config.dynamic_vars:
        problems.append(
            "atmos_static_vars works only with dynamic_vars in the aurora package: set both."
        )
    absent = [v for v in config.levels if v not in (config.level_condition or config.levels)]
    if absent:
        problems.append(f"level_condition {config.level_condition} lacks levels {absent}.")
    return problems


def choose_patch_size(rows: int, columns: int, *, stages: int = 2, largest: int = 4) -> int:
    """Returns the patch size, up to ``largest``, that a grid is best cut into.

    It is the largest one that divides the number of longitudes, or else the one that needs the
    fewest longitudes repeated.

    Args:
        rows (int): Number ``H`` of latitudes; one row too many is allowed, it is left out.
        columns (int): Number ``W`` of longitudes.
        stages (int): Stages of the backbone: the patches are halved one time less. Defaults to 2.
        largest (int): Upper limit. Defaults to 4, that of the published models at 0.25 degrees.

    Raises:
        ConfigurationError: If the grid is too small for patches of 2 x 2 points.
    """
    fitting = [p for p in fitting_patch_sizes(rows, columns, stages) if p <= largest]
    if not fitting:
        raise ConfigurationError(
            f"a grid of {rows} x {columns} points is too small for Aurora with {stages} stages: "
            f"more than {2 ** max(stages - 2, 0)} patches of 2 x 2 points are needed each way."
        )
    return min(fitting, key=lambda p: (-columns % p, -p))


def fitting_patch_sizes(rows: int, columns: int, stages: int) -> list[int]:
    """Returns the patch sizes, in points, that a grid can be cut into, in increasing order."""
    fewest = 2 ** max(stages - 2, 0) + 1
    return [
        p
        for p in range(2, rows + 1)
        if rows % p in (0, 1) and rows // p >= fewest and -(-columns // p) >= fewest
    ]
