"""Configuration of Aardvark's encoder: observations, grids, statistics, architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from hftune.utils.errors import ConfigurationError, did_you_mean

from ..weather.config_checks import (
    choice_problems,
    float_list,
    grid_problems,
    repeated_problems,
)
from .losses_aardvark import LOSS_FUNCTIONS
from .set_convolution import DISTANCES

__all__ = ["CLIMATOLOGY", "AardvarkEncoderConfig", "Modality"]

CLIMATOLOGY = "climatology"
"""Name under which observations hold the climatology."""

KINDS = ("points", "grid", "resize")
TIME_SCHEMES = {"encoder5": 5, "processor4": 4, "none": 0}
RESIZES = ("none", "nearest")

# Length scales at which the density falls below its floor of 1e-6: sqrt(-2 ln 1e-6).
_REACH = 5.26


@dataclasses.dataclass
class Modality:
    """One kind of observations: its variables, where they are, and how they come to the grid.

    Observations hold its values under ``name`` in physical units, NaN where there is none, and its
    coordinates under ``NAME_longitude`` and ``NAME_latitude``, unless they are given here.

    Attributes:
        name (str): A Python identifier.
        kind (str): ``"points"`` (values ``[B, V, N]``, coordinates ``[B, N]`` or ``[N]``) and
            ``"grid"`` (values ``[B, V, W', H']``, coordinates ``[W']`` and ``[H']``) are spread
            over the grid by a set convolution; a grid whose coordinates are given here and are
            those of the stack is passed on as it is. ``"resize"`` takes the nearest index of a
            grid of the stack's extent, ``[B, V, W', H']`` from north to south.
        variables (list of str): ``V`` names.
        longitude, latitude (list of float, *optional*): Fixed coordinates in degrees: ``N`` of
            points; ``W'`` and ``H'`` of a grid.
        mean, std (list of float, *optional*): Statistics of the ``V`` variables, in physical units.
            Without them the values are taken for standardised.
        length_scale (float, *optional*): Length scale of the set convolution in degrees.
        trainable_length_scale (bool): Learn a length scale for each variable, from ``length_scale``
            on. Defaults to False.
        density (bool): Give the network the density of the observations beside their values.
            Defaults to True.
        zero_is_missing (bool): A standardised value of exactly 0 is missing, as the published
            encoder has it of some instruments. Defaults to False.
        blanked (list of str): Variables that are always missing. Defaults to none.
    """

    name: str
    kind: str
    variables: list[str]
    longitude: list[float] | None = None
    latitude: list[float] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    length_scale: float | None = None
    trainable_length_scale: bool = False
    density: bool = True
    zero_is_missing: bool = False
    blanked: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.variables, self.blanked = list(self.variables), list(self.blanked)
        for name in ("longitude", "latitude", "mean", "std"):
            values = getattr(self, name)
            if values is not None:
                setattr(self, name, [float(value) for value in values])

    @property
    def feature_count(self) -> int:
        """Number of features that it gives the network."""
        return len(self.variables) * (1 + self.density)

    def as_dict(self) -> dict[str, Any]:
        """Returns what is not a default, for JSON; undo with :meth:`from_dict`."""
        values = dataclasses.asdict(self)
        required = {key: values.pop(key) for key in ("name", "kind", "variables")}
        plain = Modality(**required)
        return required | {key: v for key, v in values.items() if v != getattr(plain, key)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Modality:
        """Makes a modality from :meth:`as_dict`.

        Raises:
            ConfigurationError: If a setting is unknown, or name, kind or variables are missing.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        label = f"modality {values.get('name', '')!r}"
        problems = [
            f"{label} has no setting {key!r}.{did_you_mean(key, known)}"
            for key in values
            if key not in known
        ]
        problems += [f"{label} lacks {key!r}." for key in known[:3] if key not in values]
        if isinstance(values.get("variables"), str):
            problems.append(f"{label} has variables {values['variables']!r}; give a list of names.")
        if problems:
            raise ConfigurationError(problems)
        return cls(**values)


class AardvarkEncoderConfig(PreTrainedConfig):
    """Everything that makes an :class:`~.modeling_aardvark_encoder.AardvarkEncoder`.

    Notation: ``C`` channels, ``S`` static channels, ``H`` latitudes, ``W`` longitudes.

    Args:
        channels (list of str): Names of the ``C`` channels of the state (``2t``, ``z_500``).
        latitude (list of float): ``H`` latitudes in degrees north, strictly decreasing.
        longitude (list of float): ``W`` longitudes in degrees east, strictly increasing, the first
            in [0, 360), going on past 360 where a region crosses Greenwich.
        mean, std (list of float): Statistics of the ``C`` channels, in physical units.
        modalities (list of Modality or dict): Observations, in the order of their features.
        static_channels (list of str): Names of the ``S`` time-invariant fields that the network is
            given. Defaults to none.
        static_mean, static_std (list of float, *optional*): Their statistics, in physical units.
            Without them they are used as they are.
        climatology_channels (list of str): Names of the fields that observations hold under
            ``climatology``, ``[B, K, W, H]`` from north to south, used as they are. Defaults to
            none.
        time_scheme (str): What the network is told of the time: ``"encoder5"`` (cosine and sine of
            the day of the year and of the hour, years since 2007 over 15), ``"processor4"`` (the
            processor's four) or ``"none"``. Defaults to ``"encoder5"``.
        stack_longitude, stack_latitude (list of float, *optional*): Grid in degrees on which
            observations are gathered; latitude decreasing. Default to ``longitude`` and
            ``latitude``.
        vit_grid (tuple of int, *optional*): Longitudes and latitudes of the transformer's grid.
            Defaults to the size of the stack.
        resize (str): ``"none"``: stack, transformer and state are on one grid. ``"nearest"``: from
            one to the next by nearest neighbours, as published. Defaults to ``"none"``.
        patch_size (int): Grid points per side of a patch. Defaults to 3.
        embed_dim (int): Width of the transformer. Defaults to 512.
        depth (int): Number of its blocks. Defaults to 8.
        num_heads (int): Number of its attention heads. Defaults to 16.
        mlp_ratio (float): Hidden width of its MLPs over ``embed_dim``. Defaults to 4.
        head_depth (int): Hidden layers of its head. Defaults to 4.
        drop_path (float): Stochastic depth rate of its last block. Defaults to 0.
        mixer_hidden (int): Hidden width of the MLP at each grid point. Defaults to 64.
        mixer_layers (int): Its layers between the first and the last. Defaults to 4.
        mixer_width (int): Width of its result. Defaults to 256.
        distance (str): ``"exact"``, or ``"expanded"`` as published; see
            :func:`~.set_convolution.gaussian_weights`. Defaults to ``"exact"``.
        reference_tensors (bool): Have the published tensors that nothing reads, frozen. Defaults to
            False.
        loss_function (str): One of :data:`~.losses_aardvark.LOSS_FUNCTIONS`. Defaults to
            ``"lw_rmse"``.
        **kwargs: Of ``PreTrainedConfig``.

    Attributes:
        modalities (list of dict): As given; :attr:`modality_list` has them as :class:`Modality`.

    Raises:
        ConfigurationError: All that is wrong with the values, together.

    Example:
        >>> config = AardvarkEncoderConfig(
        ...     channels=["2t"],
        ...     latitude=[45.0, 42.5, 40.0],
        ...     longitude=[355.0, 357.5, 360.0],
        ...     mean=[285.0],
        ...     std=[8.0],
        ...     modalities=[Modality("stations", "points", ["tmax", "tmin"], length_scale=2.5)],
        ... )
        >>> config.feature_count  # density and value of two variables, and the time
        9
    """

    model_type = "hftune_aardvark_encoder"
    # Trainer.evaluate would otherwise keep every predicted field of the data set in memory.
    keys_to_ignore_at_inference = ["prediction"]
    has_no_defaults_at_init = True

    def __init__(
        self,
        *,
        channels: Sequence[str],
        latitude: Sequence[float],
        longitude: Sequence[float],
        mean: Sequence[float],
        std: Sequence[float],
        modalities: Sequence[Modality | Mapping[str, Any]],
        static_channels: Sequence[str] = (),
        static_mean: Sequence[float] | None = None,
        static_std: Sequence[float] | None = None,
        climatology_channels: Sequence[str] = (),
        time_scheme: str = "encoder5",
        stack_longitude: Sequence[float] | None = None,
        stack_latitude: Sequence[float] | None = None,
        vit_grid: Sequence[int] | None = None,
        resize: str = "none",
        patch_size: int = 3,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        head_depth: int = 4,
        drop_path: float = 0.0,
        mixer_hidden: int = 64,
        mixer_layers: int = 4,
        mixer_width: int = 256,
        distance: str = "exact",
        reference_tensors: bool = False,
        loss_function: str = "lw_rmse",
        **kwargs: Any,
    ) -> None:
        self.channels, self.static_channels = list(channels), list(static_channels)
        self.climatology_channels = list(climatology_channels)
        self.latitude, self.longitude = float_list(latitude), float_list(longitude)
        self.mean, self.std = float_list(mean), float_list(std)
        self.static_mean = None if static_mean is None else float_list(static_mean)
        self.static_std = None if static_std is None else float_list(static_std)
        problems = [] if modalities else ["modalities is empty: name some kind of observations."]
        self.modalities = []
        for modality in modalities:
            try:
                if not isinstance(modality, Modality):
                    modality = Modality.from_dict(modality)
                self.modalities.append(modality.as_dict())
            except ConfigurationError as error:
                problems += error.problems
        self.time_scheme = time_scheme
        self.stack_longitude = float_list(longitude if stack_longitude is None else stack_longitude)
        self.stack_latitude = float_list(latitude if stack_latitude is None else stack_latitude)
        stack = (len(self.stack_longitude), len(self.stack_latitude))
        self.vit_grid = [int(size) for size in (stack if vit_grid is None else vit_grid)]
        self.resize = resize
        self.patch_size = patch_size
        self.embed_dim, self.depth, self.num_heads = embed_dim, depth, num_heads
        self.mlp_ratio, self.head_depth, self.drop_path = mlp_ratio, head_depth, drop_path
        self.mixer_hidden, self.mixer_layers = mixer_hidden, mixer_layers
        self.mixer_width = mixer_width
        self.distance = distance
        self.reference_tensors = reference_tensors
        self.loss_function = loss_function
        problems += _problems(self)
        if problems:
            raise ConfigurationError(problems)
        super().__init__(**kwargs)

    @property
    def modality_list(self) -> list[Modality]:
        """The modalities as :class:`Modality`."""
        return [Modality.from_dict(values) for values in self.modalities]

    @property
    def feature_count(self) -> int:
        """Number of features of each grid point: width of the network's input."""
        return (
            sum(modality.feature_count for modality in self.modality_list)
            + len(self.static_channels)
            + len(self.climatology_channels)
            + TIME_SCHEMES[self.time_scheme]
        )

    def is_on_stack(self, modality: Modality) -> bool:
        """Tells whether a modality is on the grid of the stack already, latitudes either way."""
        return (
            modality.kind == "grid"
            and modality.longitude == self.stack_longitude
            and modality.latitude in (self.stack_latitude, self.stack_latitude[::-1])
        )


def _problems(config: AardvarkEncoderConfig) -> list[str]:
    problems = [
        *choice_problems("time_scheme", config.time_scheme, TIME_SCHEMES),
        *choice_problems("resize", config.resize, RESIZES),
        *choice_problems("distance", config.distance, DISTANCES),
        *choice_problems("loss_function", config.loss_function, LOSS_FUNCTIONS),
    ]
    if not config.channels:
        problems.append("channels is empty: name what the state holds, such as 2t and z_500.")
    for name in ("channels", "static_channels", "climatology_channels"):
        problems += repeated_problems(name, getattr(config, name))
    problems += _statistics_problems("channels", config.channels, config.mean, config.std)
    problems += _statistics_problems(
        "static_channels", config.static_channels, config.static_mean, config.static_std
    )
    problems += _grid_problems(config)
    problems += _network_problems(config)
    modalities = config.modality_list
    names = [m.name for m in modalities] + [CLIMATOLOGY] * bool(config.climatology_channels)
    problems += repeated_problems("modalities", names)
    for modality in modalities:
        problems += [
            f"modality {modality.name!r}: {text}" for text in _modality_problems(config, modality)
        ]
    return problems


def _modality_problems(config: AardvarkEncoderConfig, modality: Modality) -> list[str]:
    problems = choice_problems("kind", modality.kind, KINDS)
    if not modality.name.isidentifier():
        problems.append("its name must be letters, digits and underscores, such as stations.")
    if not modality.variables:
        problems.append("variables is empty.")
    problems += repeated_problems("variables", modality.variables)
    problems += _statistics_problems("variables", modality.variables, modality.mean, modality.std)
    unknown = [v for v in modality.blanked if v not in modality.variables]
    if unknown:
        problems.append(f"blanked holds {', '.join(unknown)}, which are not its variables.")

    longitude, latitude = modality.longitude, modality.latitude
    if (longitude is None) != (latitude is None):
        problems.append("give both longitude and latitude, or neither.")
    elif modality.kind == "resize" and longitude is not None:
        problems.append("kind resize has no coordinates: leave out longitude and latitude.")
    elif modality.kind == "points" and longitude is not None and len(longitude) != len(latitude):
        problems.append(
            f"{len(longitude)} longitudes and {len(latitude)} latitudes of points: give one of "
            "each a point."
        )

    convolves = modality.kind != "resize" and not config.is_on_stack(modality)
    scale = modality.length_scale
    if not convolves:
        if modality.trainable_length_scale:
            problems.append(
                "trainable_length_scale is for a set convolution, which it has none of."
            )
    elif scale is None or not (np.isfinite(scale) and scale > 0):
        problems.append(
            f"length_scale is {scale}; a set convolution needs one above 0 degrees. The spacing of "
            "the grid is a good one; the published encoder has 0.36."
        )
    elif modality.kind == "points" and longitude is not None and latitude is not None:
        problems += _reach_problems(config, modality)
    return problems


def _reach_problems(config: AardvarkEncoderConfig, modality: Modality) -> list[str]:
    """Fixed points from which nothing reaches the grid: swapped coordinates, another region."""
    x = np.subtract.outer(modality.longitude, config.stack_longitude)
    if config.distance == "exact":
        x -= 360 * np.round(x / 360)
    y = np.subtract.outer(modality.latitude, config.stack_latitude)
    away = np.maximum(np.abs(x).min(axis=1, initial=np.inf), np.abs(y).min(axis=1, initial=np.inf))
    lost = np.flatnonzero(away > _REACH * modality.length_scale)
    if not lost.size:
        return []
    first = lost[0]
    return [
        f"{lost.size} of {len(away)} points reach no grid point, the first at longitude "
        f"{modality.longitude[first]:g}, latitude {modality.latitude[first]:g}: leave them out, or "
        f"take a larger length_scale than {modality.length_scale:g} degrees."
    ]


def _grid_problems(config: AardvarkEncoderConfig) -> list[str]:
    problems = []
    for prefix in ("", "stack_"):
        axes = (getattr(config, f"{prefix}{name}") for name in ("latitude", "longitude"))
        problems += grid_problems(*axes, prefix, closed=True)
    stack = (len(config.stack_longitude), len(config.stack_latitude))
    grid = (len(config.longitude), len(config.latitude))
    fields = [*config.static_channels, *config.climatology_channels]
    if config.resize == "none":
        own = (config.stack_longitude, config.stack_latitude)
        if own != (config.longitude, config.latitude) or tuple(config.vit_grid) != grid:
            problems.append(
                "with resize none the stack, the transformer and the state have one grid: leave "
                "out stack_longitude, stack_latitude and vit_grid, or set resize to nearest."
            )
        elif config.patch_size > 0 and (grid[0] % config.patch_size or grid[1] % config.patch_size):
            problems.append(
                f"patch_size {config.patch_size} does not divide {grid[0]} longitudes and "
                f"{grid[1]} latitudes: choose one that does; 1 always does."
            )
    elif stack != grid and fields:
        problems.append(
            f"static and climatology channels need a stack of the size of the state: it is "
            f"{stack[0]} x {stack[1]}, the state {grid[0]} x {grid[1]}."
        )
    return problems


def _network_problems(config: AardvarkEncoderConfig) -> list[str]:
    problems = []
    for name in ("patch_size", "depth", "mixer_hidden", "mixer_width"):
        if getattr(config, name) < 1:
            problems.append(f"{name} is {getattr(config, name)}; it must be 1 or more.")
    for name in ("head_depth", "mixer_layers"):
        if getattr(config, name) < 0:
            problems.append(f"{name} is {getattr(config, name)}; it must be 0 or more.")
    width, heads = config.embed_dim, config.num_heads
    if heads < 1 or width < 4 or width % 4 or width % heads:
        problems.append(f"embed_dim {width} must be a multiple of 4 and of num_heads {heads}.")
    if not config.mlp_ratio > 0:
        problems.append(f"mlp_ratio is {config.mlp_ratio}; it must be above 0.")
    if not 0 <= config.drop_path < 1:
        problems.append(f"drop_path is {config.drop_path}; it must be from 0 to below 1.")
    if len(config.vit_grid) != 2 or min(config.vit_grid) < config.patch_size:
        problems.append(
            f"vit_grid is {config.vit_grid}; it must be two sizes, longitudes and latitudes, of "
            f"at least patch_size {config.patch_size}."
        )
    return problems


def _statistics_problems(
    what: str, names: Sequence[str], mean: Sequence[float] | None, std: Sequence[float] | None
) -> list[str]:
    if mean is None and std is None:
        return []
    if mean is None or std is None:
        return [f"mean and std of {what}: give both, or neither."]
    if not len(mean) == len(std) == len(names):
        return [f"mean and std have {len(mean)} and {len(std)} values for {len(names)} {what}."]
    return [
        f"{name} of {what} has mean {m:g} and std {s:g}: they must be finite and the second above "
        "zero; what never changes cannot be normalised."
        for name, m, s in zip(names, mean, std, strict=True)
        if not (np.isfinite(m) and np.isfinite(s) and s > 0)
    ]
