"""Configuration of Aurora: architecture, channels, grid, statistics and loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedConfig

from hftune.utils.errors import ConfigurationError, did_you_mean

from ..weather.fields import FieldLayout, split_channel
from ..weather.losses import LOSS_FUNCTIONS, channel_weights
from .variants_aurora import (
    PLACEHOLDER,
    official_channels,
    official_grid,
    official_statistics,
    variant_arguments,
)

if TYPE_CHECKING:
    from ..weather.statistics import FieldStatistics

__all__ = ["AuroraConfig", "build_config_from_fields", "choose_patch_size"]

_AUTOCAST = ("none", "backbone", "full")
_AUTOCAST_DTYPES = ("bfloat16", "float16")


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
        self.latitude = _floats(latitude)
        self.longitude = _floats(longitude)

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
            arguments[name] = list(dict.fromkeys([*own, *variables])) or [PLACEHOLDER]

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
        self.mean, self.std = _floats(mean), _floats(std)
        self.static_mean, self.static_std = _floats(static_mean), _floats(static_std)
        self.difference_std = _floats(difference_std) if difference_std is not None else None

        self.residual_prediction = residual_prediction
        self.loss_function = loss_function
        self.loss_weights = loss_weights if isinstance(loss_weights, str) else dict(loss_weights)
        self.area_weights = area_weights
        self.autocast = autocast
        self.autocast_dtype = autocast_dtype
        problems = self._problems(found)
        if problems:
            raise ConfigurationError(problems)
        super().__init__(**kwargs)

    @property
    def levels(self) -> list[float]:
        """Pressure levels of the channels in hPa, in the order in which they first appear."""
        levels = [split_channel(channel)[1] for channel in self.channels]
        return list(dict.fromkeys(_number(v) for v in levels if v is not None))

    @property
    def output_rows(self) -> int:
        """Number ``H'`` of latitudes that are predicted: one row too many is left out."""
        return len(self.latitude) - len(self.latitude) % self.patch_size

    def channel_weights(self) -> np.ndarray:
        """Returns the float64 loss weights ``[C]`` of the channels."""
        return channel_weights(
            self.channels,
            self.loss_weights,
            std=self.std,
            difference_std=self.difference_std,
            power=LOSS_FUNCTIONS[self.loss_function],
        )

    def _problems(self, found: Mapping[str, Sequence[str]]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        problems = [
            *_choice("loss_function", self.loss_function, LOSS_FUNCTIONS),
            *_choice("autocast", self.autocast, _AUTOCAST),
            *_choice("autocast_dtype", self.autocast_dtype, _AUTOCAST_DTYPES),
            *self._channel_problems(found),
            *self._grid_problems(),
            *self._network_problems(),
        ]
        if self.residual_prediction and self.difference_std is None:
            problems.append(
                "residual_prediction needs difference_std: compute statistics with "
                "difference_hours equal to timestep_hours."
            )
        if not problems:  # they need channels and statistics that fit
            try:
                self.channel_weights()
            except ConfigurationError as error:
                problems.extend(error.problems)
        return problems

    def _channel_problems(self, found: Mapping[str, Sequence[str]]) -> list[str]:
        problems = []
        if not self.channels:
            problems.append("channels is empty: name what the fields hold, such as 2t and z_500.")
        for name in ("channels", "static_channels"):
            values = getattr(self, name)
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                problems.append(f"{name} holds {', '.join(twice)} more than once.")
        for name, variables in found.items():
            absent = [v for v in variables if v not in getattr(self, name)]
            if absent:
                problems.append(
                    f"{name} {getattr(self, name)} lacks {', '.join(absent)}, which the channels "
                    "hold: add them, or leave the argument out."
                )
        if "insolation" in self.channels:
            problems.append("channel insolation is computed by the model: leave it out.")
        for names, what, values, positive in (
            (self.channels, "mean", self.mean, False),
            (self.channels, "std", self.std, True),
            (self.channels, "difference_std", self.difference_std, True),
            (self.static_channels, "static_mean", self.static_mean, False),
            (self.static_channels, "static_std", self.static_std, True),
        ):
            if values is None:
                continue
            if len(values) != len(names):
                problems.append(f"{what} has {len(values)} values for {len(names)} channels.")
                continue
            for channel, value in zip(names, values, strict=True):
                if value != value and what in ("mean", "static_mean"):
                    problems.append(
                        f"channel {channel} is unknown to the published models: give mean and std "
                        "(static_mean and static_std) of your data."
                    )
                elif not np.isfinite(value) or positive and value <= 0:
                    if what in ("std", "static_std") and value != value:
                        continue  # said above
                    problems.append(
                        f"{what} of channel {channel} is {value:g}; it must be finite"
                        + (
                            " and above zero: a constant field cannot be normalised."
                            if positive
                            else "."
                        )
                    )
        return problems

    def _grid_problems(self) -> list[str]:
        problems = []
        latitude, longitude = np.asarray(self.latitude), np.asarray(self.longitude)
        if latitude.size == 0 or np.abs(latitude).max() > 90 or (np.diff(latitude) >= 0).any():
            problems.append(
                "latitude must be within -90..90 and strictly decreasing (north to south); it is "
                f"{_ends(latitude)}. Flip the latitude axis of the fields; open_fields does so."
            )
        if (
            longitude.size == 0
            or not 0 <= longitude[0] < 360
            or (np.diff(longitude) <= 0).any()
            or longitude[-1] - longitude[0] >= 360
        ):
            problems.append(
                "longitude must be strictly increasing from a value in [0, 360), less than one "
                f"turn; it is {_ends(longitude)}. A region across Greenwich goes on past 360: "
                "345, 350, 355, 360, 365."
            )
        patch = self.patch_size
        if latitude.size % patch not in (0, 1):
            problems.append(
                f"{latitude.size} latitudes are {latitude.size % patch} too many for patch_size "
                f"{patch}: there may be none or one (the southernmost, left out). "
                f"{self._patch_hint()}"
            )
        if longitude.size % patch:
            problems.append(
                f"{longitude.size} longitudes are no multiple of patch_size {patch}. "
                f"{self._patch_hint()}"
            )
        return problems

    def _patch_hint(self) -> str:
        fitting = _patch_sizes(len(self.latitude), len(self.longitude), len(self.encoder_depths))
        if not fitting:
            return "No patch size fits this grid; crop it."
        return f"Sizes that fit: {', '.join(map(str, fitting))}."

    def _network_problems(self) -> list[str]:
        problems = []
        stages = len(self.encoder_depths)
        shrink = 2 ** max(stages - 2, 0)
        patches = (self.output_rows // self.patch_size, len(self.longitude) // self.patch_size)
        if stages < 2 or len(self.decoder_depths) != stages:
            problems.append(
                f"encoder_depths {self.encoder_depths} and decoder_depths {self.decoder_depths}: "
                "Aurora needs two stages or more, as many in the decoder as in the encoder."
            )
        elif sum(self.encoder_depths) != sum(self.decoder_depths):
            problems.append(
                f"encoder_depths {self.encoder_depths} and decoder_depths {self.decoder_depths} "
                "must add up to the same number of blocks."
            )
        elif min(patches) <= shrink:
            problems.append(
                f"{patches[0]} x {patches[1]} patches are too few to be halved {stages - 1} times: "
                f"take a smaller patch_size than {self.patch_size} or fewer stages than {stages}."
            )
        for name in ("encoder", "decoder"):
            depths = getattr(self, f"{name}_depths")
            heads = getattr(self, f"{name}_num_heads")
            if len(depths) != len(heads):
                problems.append(f"{name}_num_heads {heads} needs a value for each of {depths}.")
        if self.latent_levels < 2 or self.latent_levels % self.window_size[0]:
            problems.append(
                f"latent_levels {self.latent_levels} must be 2 or more and a multiple of "
                f"window_size[0], {self.window_size[0]}."
            )
        if self.embed_dim % 4 or self.embed_dim % self.num_heads:
            problems.append(
                f"embed_dim {self.embed_dim} must be a multiple of 4 and of num_heads "
                f"{self.num_heads}."
            )
        if not 1 <= self.history <= self.max_history_size:
            problems.append(
                f"history {self.history} must be from 1 to max_history_size "
                f"{self.max_history_size}."
            )
        if self.timestep_hours <= 0:
            problems.append(f"timestep_hours {self.timestep_hours} must be positive.")
        if self.modulation_heads or self.simulate_indexing_bug:
            problems.append(
                "modulation_heads and simulate_indexing_bug belong to the air pollution model, "
                "which is not supported."
            )
        if self.atmos_static_vars and not self.dynamic_vars:
            problems.append(
                "atmos_static_vars works only with dynamic_vars in the aurora package: set both."
            )
        if self.level_condition:
            absent = [v for v in self.levels if v not in [_number(u) for u in self.level_condition]]
            if absent:
                problems.append(f"level_condition {self.level_condition} lacks levels {absent}.")
        return problems


def choose_patch_size(rows: int, columns: int, *, stages: int = 2, largest: int = 4) -> int:
    """Returns the largest patch size, up to ``largest``, that a grid can be cut into.

    Args:
        rows (int): Number ``H`` of latitudes; one row too many is allowed, it is left out.
        columns (int): Number ``W`` of longitudes.
        stages (int): Stages of the backbone: the patches are halved one time less. Defaults to 2.
        largest (int): Upper limit. Defaults to 4, that of the published models at 0.25 degrees.

    Raises:
        ConfigurationError: If not even single points are enough.
    """
    fitting = [p for p in _patch_sizes(rows, columns, stages) if p <= largest]
    if not fitting:
        raise ConfigurationError(
            f"a grid of {rows} x {columns} points is too small for Aurora with {stages} stages: it "
            f"needs more than {2 ** max(stages - 2, 0)} points each way."
        )
    return fitting[-1]


def _patch_sizes(rows: int, columns: int, stages: int) -> list[int]:
    smallest = 2 ** max(stages - 2, 0)
    return [
        p
        for p in range(1, min(rows, columns) + 1)
        if rows % p in (0, 1) and columns % p == 0 and min(rows // p, columns // p) > smallest
    ]


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
            max(1, min(window[2], columns // patch_size)),
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


def _floats(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values]


def _number(value: float) -> float:
    """The integer that a float is, if it is one: levels and hours read better so."""
    return int(value) if value == int(value) else float(value)


def _plain(value: Any) -> Any:
    """What JSON gives back for a value, so that a config equals the one that is loaded."""
    return list(value) if isinstance(value, tuple) else value


def _ends(values: np.ndarray) -> str:
    if values.size < 4:
        return str(values.tolist())
    return f"{values[0]:g}, {values[1]:g} ... {values[-2]:g}, {values[-1]:g}"


def _choice(name: str, value: Any, known: Sequence[str] | Mapping[str, Any]) -> list[str]:
    if value in known:
        return []
    return [f"{name} is {value!r}; it must be one of {', '.join(known)}."]
