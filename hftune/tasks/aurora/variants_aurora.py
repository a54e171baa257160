"""The published Aurora models: their classes, constructor arguments, channels and statistics.

Everything is read from the ``microsoft-aurora`` package itself, so nothing here can drift from it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from typing import Any

from hftune.utils.errors import ConfigurationError, did_you_mean

from ..weather.fields import channel_name, split_channel

__all__ = [
    "PLACEHOLDERS",
    "PRESSURE_LEVELS",
    "VARIANTS",
    "Variant",
    "official_channels",
    "official_grid",
    "official_statistics",
    "variant_arguments",
    "variant_class",
]

#: Pressure levels, in hPa, of the published models.
PRESSURE_LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)

#: Variables of the network that stand in where the data have none of a kind: Aurora needs one of
#: each. Their input is zero and their weights are frozen.
PLACEHOLDERS = {
    "surf_vars": "no_surface",
    "static_vars": "no_static",
    "atmos_vars": "no_atmospheric",
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A published model.

    Attributes:
        class_name (str): Its class in the ``aurora`` package.
        checkpoint (str, *optional*): Its file in the Hub repository ``microsoft/aurora``.
        resolution (float): Spacing of the grid that it was trained on, in degrees.
        overrides (mapping): Constructor arguments that differ from the class's own defaults.
    """

    class_name: str
    checkpoint: str | None
    resolution: float
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


#: Variants by name. ``custom`` is an untrained model of any size; its defaults suit a small region.
VARIANTS: dict[str, Variant] = {
    "pretrained": Variant("AuroraPretrained", "aurora-0.25-pretrained.ckpt", 0.25),
    "finetuned": Variant("Aurora", "aurora-0.25-finetuned.ckpt", 0.25),
    "small": Variant("AuroraSmallPretrained", "aurora-0.25-small-pretrained.ckpt", 0.25),
    "12h": Variant("Aurora12hPretrained", "aurora-0.25-12h-pretrained.ckpt", 0.25),
    "high_res": Variant("AuroraHighRes", "aurora-0.1-finetuned.ckpt", 0.1),
    # The safe attention is for float16, which is not offered here: see `autocast_dtype`.
    "v1p5": Variant(
        "AuroraV1p5", "aurora-0.25-v1.5.ckpt", 0.25, {"use_fp16_safe_attention": False}
    ),
    "v1p5_ensemble": Variant(
        "AuroraV1p5Ensemble",
        "aurora-0.25-v1.5-ensemble.ckpt",
        0.25,
        {"use_fp16_safe_attention": False},
    ),
    "custom": Variant(
        "Aurora",
        None,
        0.25,
        {
            "use_lora": False,
            "encoder_depths": (2, 2),
            "encoder_num_heads": (4, 8),
            "decoder_depths": (2, 2),
            "decoder_num_heads": (8, 4),
            "embed_dim": 64,
            "num_heads": 4,
        },
    ),
}

# What hftune says in its own way: precision by `autocast`, statistics by `mean` and `std`, the time
# step by `timestep_hours`.
_NOT_ARGUMENTS = ("autocast", "autocast_dtype", "bf16_mode", "surf_stats", "timestep")


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        hint = did_you_mean(name, VARIANTS)
        raise ConfigurationError(
            f"there is no Aurora variant {name!r}; there are {', '.join(VARIANTS)}.{hint} The air "
            "pollution and wave models transform their outputs in ways that cannot be trained "
            "through; take 'custom' or 'pretrained' with your variables."
        )
    return VARIANTS[name]


def variant_class(name: str) -> type:
    """Returns the class of the ``aurora`` package that a variant is built with.

    Args:
        name (str): One of :data:`VARIANTS`.

    Raises:
        ConfigurationError: If there is no such variant, or the package is not installed.
    """
    class_name = _variant(name).class_name
    try:
        import aurora
    except ImportError as error:
        raise ConfigurationError(
            f"the package microsoft-aurora cannot be imported ({error}); install it with "
            "pip install 'hftune[weather]'."
        ) from error
    return getattr(aurora, class_name)


@functools.cache
def _class_arguments(name: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for base in reversed(variant_class(name).__mro__):
        if base.__module__.startswith("aurora."):
            parameters = inspect.signature(base.__init__).parameters.values()
            arguments |= {p.name: p.default for p in parameters if p.default is not p.empty}
    hours = arguments["timestep"].total_seconds() / 3600
    arguments["timestep_hours"] = int(hours) if hours == int(hours) else hours
    return arguments


def variant_arguments(name: str) -> dict[str, Any]:
    """Returns the constructor arguments of a variant, with the defaults of its class.

    Args:
        name (str): One of :data:`VARIANTS`.

    Returns:
        dict: Values by name, with ``timestep_hours`` in place of ``timestep``. Precision and
        statistics are left out: they have their own settings in
        :class:`~hftune.tasks.aurora.configuration_aurora.AuroraConfig`.
    """
    arguments = _class_arguments(name) | _variant(name).overrides
    return {key: value for key, value in arguments.items() if key not in _NOT_ARGUMENTS}


def official_channels(name: str) -> tuple[list[str], list[str]]:
    """Returns the channels and static channels that a variant was trained on.

    Args:
        name (str): One of :data:`VARIANTS`.

    Returns:
        tuple: Channel names (``2t`` ... ``q_1000``) and static channel names. ``insolation`` is not
        among them: the model computes it.
    """
    arguments = variant_arguments(name)
    surface = [v for v in arguments["surf_vars"] if v != "insolation"]
    levels = [
        channel_name(variable, level)
        for variable in arguments["atmos_vars"]
        for level in PRESSURE_LEVELS
    ]
    return surface + levels, list(arguments["static_vars"])


def official_grid(name: str) -> tuple[list[float], list[float]]:
    """Returns the latitudes ``[H]`` and longitudes ``[W]``, in degrees, of a variant's own grid."""
    resolution = _variant(name).resolution
    cells = round(180 / resolution)
    latitude = [90 - i * 180 / cells for i in range(cells + 1)]
    return latitude, [i * 180 / cells for i in range(2 * cells)]


def official_statistics(channels: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Returns the statistics that the published models normalise with.

    Args:
        channels (sequence of str): Channels (``z_500``) or static channels (``lsm``).

    Returns:
        dict: Mean and standard deviation of the channels that the package knows, in its units,
        which are hftune's.
    """
    from aurora.normalisation import level_to_str, locations, scales

    known = {}
    for channel in channels:
        variable, level = split_channel(channel)
        key = variable if level is None else f"{variable}_{level_to_str(level)}"
        # Static fields may have names that look like levels (`slt_0`).
        for name in (key, channel):
            if name in locations:
                known[channel] = (float(locations[name]), float(scales[name]))
    return known
