"""Configuration of Aurora: architecture, channels, grid, statistics and loss."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedConfig

from hftune.utils.errors import CheckpointError, ConfigurationError, did_you_mean

from ..weather.config_checks import float_list
from ..weather.fields import FieldLayout, split_channel
from ..weather.losses import LOSS_FUNCTIONS, channel_weights
from .validation_aurora import choose_patch_size, configuration_problems
from .variants_aurora import (
    PLACEHOLDERS,
    official_channels,
    official_grid,
    official_statistics,
    variant_arguments,
)

if TYPE_CHECKING:
    from ..weather.statistics import FieldStatistics

__all__ = ["AuroraConfig", "build_config_from_fields"]


class AuroraConfig(PreTrainedConfig):
    """Everything that makes an :class:`~hftune.tasks.aurora.modeling_aurora.AuroraForForecasting`.

    Notation: ``C`` channels, ``S`` static channels, ``H`` latitudes, ``W`` longitudes.

    Args:
        variant (str): Published model whose architecture is the default: ``pretrained``,
            ``finetuned``, ``small``, ``12h``, ``high_res``, ``v1p5``, ``v1p5_ensemble``, or
            ``custom`` for one of any size. Defaults to ``"pretrained"``.
        channels (list of str, *optional*): Names of the ``C`` channels of the fields, in their
            order (``2t``, ``z_500``). Defaults to those that the variant was trained on.
        static_channels (list of str, *optional*): Names of the ``S`` time-invariant fields.
            Defaults to those of the variant; a custom model has none.
        latitude (list of float, *optional*): ``H`` latitudes in degrees north, strictly decreasing.
            Defaults to the variant's own grid.
        longitude (list of float, *optional*): ``W`` longitudes in degrees east, strictly
            increasing, the first in [0, 360), going on past 360 where a region crosses Greenwich.
        timestep_hours (float, *optional*): Length of one step. Defaults to the variant's (6 or 12).
        history (int, *optional*): Past states that the model sees, a step apart; no more than
            ``max_history_size``, which is its default.
        mean, std (list of float, *optional*): Statistics of the ``C`` channels, in physical units,
            that fields are normalised with. Default to those of the published models.
        static_mean, static_std (list of float, *optional*): The same of the ``S`` static channels.
        difference_std (list of float, *optional*): Standard deviations of the change of the ``C``
            channels over one step, in physical units.
        residual_prediction (bool): The network predicts the change over one step in units of
            ``difference_std``, and begins at none: an untrained model is persistence. Published
            weights predict the state itself. Defaults to False.
        loss_function (str): ``"mae"`` or ``"mse"``, of normalised variables. Defaults to ``"mae"``.
        loss_weights (str or mapping): A preset of
            :data:`~hftune.tasks.weather.losses.LOSS_PRESETS` or weights by variable or channel.
            Defaults to ``"aurora_pretraining"``.
        area_weights (bool): Weigh points by the area of their cell. Aurora's own loss does not.
            Defaults to False.
        autocast (str): What runs in ``autocast_dtype``: ``"backbone"``, as Aurora means it,
            ``"full"``, or ``"none"``, which leaves it to the caller (the Trainer's ``bf16``
            switch is then full). Parameters are float32 in every case. Defaults to ``"none"``.
        autocast_dtype (str): ``"bfloat16"`` or ``"float16"``. Float16 needs a loss scaler. Defaults
            to ``"bfloat16"``, also for v1p5, whose own float16 was seen to give NaN gradients.
        **kwargs: Constructor arguments of ``aurora.Aurora`` (``patch_size``, ``window_size``,
            ``embed_dim``, ``num_heads``, ``encoder_depths``, ``encoder_num_heads``,
            ``decoder_depths``, ``decoder_num_heads``, ``latent_levels``, ``mlp_ratio``,
            ``drop_path``, ``drop_rate``, ``enc_depth``, ``dec_depth``, ``dec_mlp_ratio``,
            ``perceiver_ln_eps``, ``max_history_size``, ``stabilise_level_agg``, ``use_lora``,
            ``lora_steps``, ``lora_mode``, ``level_condition``, ``dynamic_vars``,
            ``atmos_static_vars``, ``separate_perceiver``, ``positive_surf_vars``, ... and the
            network's own ``surf_vars``, ``static_vars``, ``atmos_vars``), which default to the
            variant's, and those of ``PreTrainedConfig``.

    Raises:
        ConfigurationError: All that is wrong with the values, together.

    Example:
        >>> config = AuroraConfig(
        ...     "custom",
        ...     channels=["2t", "z_500"],
        ...     latitude=[50.0, 47.5, 45.0, 42.5],
        ...     longitude=[0.0, 2.5, 5.0, 7.5],
        ...     timestep_hours=24,
        ...     patch_size=2,
        ... )
        >>> config.atmos_vars, config.levels
        (['z'], [500])
    """

    model_type = "hftune_aurora"
    # Trainer.evaluate would otherwise keep every predicted field of the data set in memory.
    keys_to_ignore_at_inference = ["prediction", "losses"]
    has_no_defaults_at_init = True

    def __init__(
        self,
        variant: str = "pretrained",
        *,
        channels: Sequence[str] | None = None,
        static_channels: Sequence[str] | None = None,
        latitude: Sequence[float] | None = None,
        longitude: Sequence[float] | None = None,
        timestep_hours: float | None = None,
        history: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        static_mean: Sequence[float] | None = None,
        static_std: Sequence[float] | None = None,
        difference_std: Sequence[float] | None = None,
        residual_prediction: bool = False,
        loss_function: str = "mae",
        loss_weights: str | Mapping[str, float] = "aurora_pretraining",
        area_weights: bool = False,
        autocast: str = "none",
        autocast_dtype: str = "bfloat16",
        **kwargs: Any,
    ) -> None:
        arguments = variant_arguments(variant)
        if variant == "custom":
            channels = [] if channels is None else channels
            static_channels = [] if static_channels is None else static_channels
        default_channels, default_static = official_channels(variant)
        self.variant = variant
        self.channels = list(default_channels if channels is None else channels)
        self.static_channels = list(default_static if static_channels is None else static_channels)
        if latitude is None and longitude is None:
            latitude, longitude = official_grid(variant)
        self.latitude = float_list(latitude)
        self.longitude = float_list(longitude)

        # The network has the variant's variables and the data's: weights of those that the data
        # lack are kept, and frozen.
        split = [split_channel(channel) for channel in self.channels]
        found = {
            "surf_vars": [variable for variable, level in split if level is None],
            "static_vars": self.static_channels,
            "atmos_vars": [variable for variable, level in split if level is not None],
        }
        for name, variables in found.items():
            own = () if variant == "custom" else arguments[name]
            arguments[name] = list(dict.fromkeys([*own, *variables])) or [PLACEHOLDERS[name]]

        self.timestep_hours = (
            arguments.pop("timestep_hours") if timestep_hours is None else timestep_hours
        )
        if variant == "custom" and history is not None:
            arguments["max_history_size"] = history
        for name in arguments.keys() - {"timestep_hours"}:
            setattr(self, name, _plain(kwargs.pop(name, arguments[name])))
        self.history = self.max_history_size if history is None else history

        if mean is None and std is None:
            mean, std = _official(self.channels)
        if static_mean is None and static_std is None:
            static_mean, static_std = _official(self.static_channels)
        self.mean, self.std = float_list(mean), float_list(std)
        self.static_mean, self.static_std = float_list(static_mean), float_list(static_std)
        self.difference_std = float_list(difference_std) if difference_std is not None else None

        self.residual_prediction = residual_prediction
        self.loss_function = loss_function
        self.loss_weights = loss_weights if isinstance(loss_weights, str) else dict(loss_weights)
        self.area_weights = area_weights
        self.autocast = autocast
        self.autocast_dtype = autocast_dtype
        problems = configuration_problems(self, found)
        if problems:
            raise ConfigurationError(problems)
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a saved configuration, as ``PreTrainedConfig`` does.

        Raises:
            CheckpointError: If there is none, or it is of another kind of model.
        """
        source = str(pretrained_model_name_or_path)
        reason = "no config.json in it"
        try:
            found, rest = super().get_config_dict(source, **kwargs)
        except OSError as error:
            found, reason = {}, str(error).strip().partition("\n")[0]
        if not found:
            raise CheckpointError(
                f"there is no saved model at {source}: {reason}. Give the folder that holds its "
                "config.json (OUTPUT_DIR/model of a run), a Hub repository, an official .ckpt or "
                "microsoft/aurora."
            )
        if found.get("model_type") != cls.model_type:
            raise CheckpointError(
                f"{source} holds a model of type {found.get('model_type')!r}; expected "
                f"{cls.model_type!r}, as hftune saves it."
            )
        return found, rest

    @property
    def levels(self) -> list[float]:
        """Pressure levels of the channels in hPa, in the order in which they first appear."""
        levels = [split_channel(channel)[1] for channel in self.channels]
        return list(dict.fromkeys(_number(v) for v in levels if v is not None))

    @property
    def output_rows(self) -> int:
        """Number ``H'`` of latitudes that are predicted: one row too many is left out."""
        return len(self.latitude) - len(self.latitude) % self.patch_size

    @property
    def padded_longitude(self) -> list[float]:
        """Longitudes ``[W']`` that the network sees: continued eastwards to whole patches."""
        width = self.longitude[-1] - self.longitude[-2]
        padding = -len(self.longitude) % self.patch_size
        return self.longitude + [self.longitude[-1] + width * (i + 1) for i in range(padding)]

    def channel_weights(self) -> np.ndarray:
        """Returns the float64 loss weights ``[C]`` of the channels."""
        return channel_weights(
            self.channels,
            self.loss_weights,
            std=self.std,
            difference_std=self.difference_std,
            power=LOSS_FUNCTIONS[self.loss_function],
        )


def build_config_from_fields(
    layout: FieldLayout,
    statistics: FieldStatistics,
    *,
    variant: str = "custom",
    timestep_hours: float | None = None,
    history: int = 2,
    patch_size: int | str = "auto",
    residual_prediction: bool | None = None,
    **arguments: Any,
) -> AuroraConfig:
    """Makes the configuration of a model for given data.

    Published models keep the statistics that they were trained with; channels they do not know, and
    custom models, take those of the data. The windows of a custom model cover its grid where that
    is no larger than 6 x 12 patches.

    Args:
        layout (FieldLayout): Channels and grid of the data.
        statistics (FieldStatistics): Statistics of the training data; ``difference_hours`` is the
            model's step.
        variant (str): A published model or ``"custom"``. Defaults to ``"custom"``.
        timestep_hours (float, *optional*): Length of one step. Defaults to
            ``statistics.difference_hours`` for a custom model, else to the variant's.
        history (int): Past states that the model sees. Defaults to 2.
        patch_size (int or str): Points per patch side; ``"auto"`` takes the largest of up to 4 that
            fits the grid for a custom model, and the variant's own otherwise.
        residual_prediction (bool, *optional*): See :class:`AuroraConfig`. Defaults to True for a
            custom model and False for a published one.
        **arguments: Any other argument of :class:`AuroraConfig`.

    Raises:
        ConfigurationError: If an argument is unknown, or the values do not fit together.
    """
    custom = variant == "custom"
    defaults = variant_arguments(variant)
    known = [*defaults, "loss_function", "loss_weights", "area_weights", "autocast"]
    known.append("autocast_dtype")
    unknown = [
        f"Aurora has no setting {name!r}.{did_you_mean(name, known)}"
        for name in arguments
        if name not in known
    ]
    if unknown:
        raise ConfigurationError(unknown)
    if list(statistics.channels) != list(layout.channels):
        raise ConfigurationError(
            f"the statistics are of the channels {', '.join(statistics.channels)}, the fields have "
            f"{', '.join(layout.channels)}: compute the statistics of these fields."
        )
    hours = timestep_hours
    if hours is None:
        hours = statistics.difference_hours if custom else defaults["timestep_hours"]
    same_step = statistics.difference_hours == hours
    if residual_prediction is None:
        residual_prediction = custom and same_step

    rows, columns = layout.grid
    stages = len(arguments.get("encoder_depths", defaults["encoder_depths"]))
    if patch_size == "auto":
        patch_size = (
            choose_patch_size(rows, columns, stages=stages) if custom else defaults["patch_size"]
        )
    if custom and "window_size" not in arguments:
        window = defaults["window_size"]
        arguments["window_size"] = [
            window[0],
            max(1, min(window[1], rows // patch_size)),
            max(1, min(window[2], -(-columns // patch_size))),
        ]
    if custom and "loss_weights" not in arguments:
        arguments["loss_weights"] = "tendency" if same_step else "uniform"
    mean, std = _own_statistics(layout.channels, statistics.mean, statistics.std, custom)
    # A static field that is the same everywhere (all land) carries nothing: centre it.
    static_std = [value if value > 0 else 1.0 for value in map(float, statistics.static_std)]
    static_mean, static_std = _own_statistics(
        layout.static_channels, statistics.static_mean, static_std, custom
    )
    return AuroraConfig(
        variant,
        channels=layout.channels,
        static_channels=layout.static_channels,
        latitude=layout.latitude,
        longitude=layout.longitude,
        timestep_hours=_number(hours),
        history=history,
        mean=mean,
        std=std,
        static_mean=static_mean,
        static_std=static_std,
        difference_std=statistics.difference_std if same_step else None,
        residual_prediction=residual_prediction,
        patch_size=patch_size,
        **arguments,
    )


def _own_statistics(
    channels: Sequence[str], mean: Sequence[float], std: Sequence[float], custom: bool
) -> tuple[list[float], list[float]]:
    own = zip(channels, mean, std, strict=True)
    official = {} if custom else official_statistics(channels)
    chosen = [official.get(channel, (m, s)) for channel, m, s in own]
    return [m for m, _ in chosen], [s for _, s in chosen]


def _official(channels: Sequence[str]) -> tuple[list[float], list[float]]:
    known = official_statistics(channels)
    nothing = (float("nan"), float("nan"))
    pairs = [known.get(channel, nothing) for channel in channels]
    return [mean for mean, _ in pairs], [std for _, std in pairs]


def _number(value: float) -> float:
    """The integer that a float is, if it is one: levels and hours read better so."""
    return int(value) if value == int(value) else float(value)


def _plain(value: Any) -> Any:
    """What JSON gives back for a value, so that a config equals the one that is loaded."""
    return list(value) if isinstance(value, tuple) else value
