"""Encoders ready to build: the published one, and small ones for given data.

The published encoder's code calls its inputs a "task"; :func:`task_observations` reads one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hftune.utils.errors import ConfigurationError, DataError

from .configuration_aardvark import OFFICIAL_CHANNELS
from .configuration_aardvark_encoder import CLIMATOLOGY, AardvarkEncoderConfig, Modality

if TYPE_CHECKING:
    import torch

    from ..weather.fields import FieldLayout
    from ..weather.statistics import FieldStatistics

__all__ = [
    "background_modality",
    "build_encoder_config",
    "grid_spacing",
    "published_encoder_config",
    "published_modalities",
    "task_observations",
    "task_static_fields",
]

_LENGTH_SCALE = 0.36  # degrees; 0.001 of a turn


def published_modalities() -> list[Modality]:
    """Returns the observations of the published encoder, in the order of its 241 features.

    Values are standardised already: the factors are not public. The names of satellite variables
    are those of the published files, whose order fits that of the network but is not confirmed.
    HadISD has other stations for each variable, so each is a modality; its fifth, the meridional
    wind, is not used.
    """

    def channels(count: int, name: str = "bt_channel_", first: int = 1) -> list[str]:
        return [f"{name}{i}" for i in range(first, first + count)]

    def points(name: str, variables: list[str], **settings: Any) -> Modality:
        return Modality(name, "points", variables, length_scale=_LENGTH_SCALE, **settings)

    def grid(name: str, variables: list[str], **settings: Any) -> Modality:
        return Modality(name, "grid", variables, length_scale=_LENGTH_SCALE, **settings)

    place = ["longitude", "latitude"]
    iasi = [*place, "satellite_azimuth", "satellite_zenith", "sun_azimuth", "sun_zenith"]
    iasi += ["obs_time", *(f"b{band}_pc{i}" for band in (1, 2, 3) for i in range(1, 16))]
    beams = [
        f"beam_{beam}_{what}"
        for what in ("sigma0", "incidence_angle", "azimuth_angle", "kp")
        for beam in (1, 2, 3)
    ]
    ascat = [*place, "satellite_track_azimuth", "ascending_descending_pass", "obs_time", *beams]
    amsua = [*channels(11, first=4), "minimum_view_zenith_angle", "obs_time"]
    amsub = [*place, "obs_time", "orbital_mode", "surface_type", "earth_incidence_angle"]
    amsub += ["solar_zenith_angle", *channels(5)]
    hirs = [*place, "satellite_azimuth", "sun_azimuth", "sun_zenith", "obs_time", *channels(20)]
    igra = [f"{v}_{level}" for level in (850, 700, 500, 200) for v in _IGRA_VARIABLES]
    return [
        Modality("iasi", "resize", iasi, density=False),
        Modality("ascat", "resize", ascat, density=False),
        *(points(f"hadisd_{variable}", [variable]) for variable in _HADISD_VARIABLES),
        points("icoads", ["u", "v", "slp", "sst", "tas"]),
        grid("gridsat", ["bt_6.7um", "bt_10.3um"]),
        grid("amsua", amsua, zero_is_missing=True, blanked=["obs_time"]),
        grid("amsub", amsub, zero_is_missing=True),
        points("igra", igra),
        grid("hirs", hirs, zero_is_missing=True),
    ]


_HADISD_VARIABLES = ("tas", "tds", "psl", "u")
_IGRA_VARIABLES = ("z", "t", "rh", "dpdp", "u", "v")


def published_encoder_config(
    mean: Sequence[float], std: Sequence[float], **changes: Any
) -> AardvarkEncoderConfig:
    """Makes the configuration of the published encoder: 277 features, 24 channels at 1.5 degrees.

    Its grids drift apart and its resizing moves fields, as the published weights expect; see
    :func:`build_encoder_config` for new models.

    Args:
        mean, std (sequences of 24 floats): Published statistics of
            :data:`~.configuration_aardvark.OFFICIAL_CHANNELS`: ``mean_4u_1.npy``, ``std_4u_1.npy``.
        **changes: Settings of :class:`AardvarkEncoderConfig` that differ, such as
            ``drop_path``.

    Raises:
        ConfigurationError: If the values do not fit together.
    """
    import torch

    latitude = np.linspace(90, -90, 121)
    settings = {
        "channels": OFFICIAL_CHANNELS,
        "latitude": latitude,
        "longitude": np.arange(240) * 1.5,
        "mean": mean,
        "std": std,
        "modalities": published_modalities(),
        "static_channels": [f"static{i + 1}" for i in range(7)],
        "climatology_channels": OFFICIAL_CHANNELS,
        # Both ends, so not quite the state's grid, in the float32 steps of the published code:
        # where distances nearly cancel, the last digit counts.
        "stack_longitude": torch.linspace(0, 360, 240, device="cpu").tolist(),
        "stack_latitude": latitude,
        "vit_grid": (256, 128),
        "resize": "nearest",
        "distance": "expanded",
        "reference_tensors": True,
    }
    return AardvarkEncoderConfig(**(settings | changes))


def build_encoder_config(
    layout: FieldLayout,
    statistics: FieldStatistics,
    modalities: Sequence[Modality | Mapping[str, Any]],
    **settings: Any,
) -> AardvarkEncoderConfig:
    """Makes the configuration of a small encoder for given data, with one grid throughout.

    Args:
        layout (FieldLayout): Channels and grid of the state.
        statistics (FieldStatistics): Statistics of its training data.
        modalities (sequence of Modality or dict): Observations. A set convolution without
            ``length_scale`` gets the spacing of the grid.
        **settings: Other settings of :class:`AardvarkEncoderConfig`. By default patches of one
            point, ``embed_dim`` 64, ``depth`` 3, ``num_heads`` 4, ``head_depth`` 1, and a mixer of
            width 64 with one layer between its first and last.

    Raises:
        ConfigurationError: If the values do not fit together.
    """
    if list(statistics.channels) != list(layout.channels):
        raise ConfigurationError(
            f"the statistics are of the channels {', '.join(statistics.channels)}, the fields have "
            f"{', '.join(layout.channels)}: compute the statistics of these fields."
        )
    spacing = grid_spacing(layout)
    completed = []
    for modality in modalities:
        values = modality.as_dict() if isinstance(modality, Modality) else dict(modality)
        if values.get("kind") != "resize":
            values.setdefault("length_scale", spacing)
        completed.append(values)
    small = {
        "patch_size": 1,
        "embed_dim": 64,
        "depth": 3,
        "num_heads": 4,
        "head_depth": 1,
        "mixer_hidden": 64,
        "mixer_layers": 1,
        "mixer_width": 64,
    }
    return AardvarkEncoderConfig(
        channels=layout.channels,
        latitude=layout.latitude,
        longitude=layout.longitude,
        mean=statistics.mean,
        std=statistics.std,
        modalities=completed,
        **(small | settings),
    )


def grid_spacing(layout: FieldLayout) -> float:
    """Returns the largest distance of neighbouring rows or columns of a grid, in degrees."""
    axes = (layout.latitude, layout.longitude)
    return max(float(np.abs(np.diff(values)).max(initial=0)) for values in axes)


def background_modality(
    layout: FieldLayout,
    statistics: FieldStatistics,
    name: str = "background",
    density: bool = False,
) -> Modality:
    """Makes a modality of known fields on the grid of the state, such as those of the day before.

    Args:
        layout (FieldLayout): Channels and grid of the fields.
        statistics (FieldStatistics): Statistics of its training data.
        name (str): Its name. Defaults to ``"background"``.
        density (bool): Tell the network where the fields have values. Defaults to False.
    """
    return Modality(
        name,
        "grid",
        list(layout.channels),
        longitude=layout.longitude,
        latitude=layout.latitude,
        mean=statistics.mean,
        std=statistics.std,
        density=density,
    )


def task_observations(task: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Turns a task of the published encoder's code into observations of its modalities.

    Nothing in the task is changed, unlike by that code itself.

    Args:
        task (mapping): Tensors with a batch axis, standardised, coordinates in turns; the keys that
            end in ``_current``.

    Returns:
        dict of tensors: For an encoder of :func:`published_encoder_config`. Coordinates are
        float64, so that dividing them by 360 gives those of the task again.

    Raises:
        DataError: If keys are missing.
    """
    import torch

    lacking = [name for name in _TASK_KEYS if f"{name}_current" not in task]
    if lacking:
        raise DataError(f"the task lacks {', '.join(f'{name}_current' for name in lacking)}.")
    current = {name: task[f"{name}_current"] for name in _TASK_KEYS}
    observations = {
        # Channels first; the grid is longitude, latitude.
        "iasi": current["iasi"].movedim(-1, 1),
        "ascat": current["ascat"].movedim(-1, 1),
        "gridsat": current["sat"],
        "amsua": current["amsua"].permute(0, 3, 2, 1),
        "amsub": current["amsub"].movedim(-1, 1),
        "hirs": current["hirs"].movedim(-1, 1),
        "icoads": current["icoads"],
        "igra": current["igra"],
        CLIMATOLOGY: current["climatology"].flip(-1),
    }
    places = {
        "gridsat": current["sat_x"],
        **{name: current[f"{name}_x"] for name in ("amsua", "amsub", "hirs", "icoads", "igra")},
    }
    stations = zip(
        _HADISD_VARIABLES, current["x_context_hadisd"], current["y_context_hadisd"], strict=False
    )
    for variable, place, values in stations:
        observations[f"hadisd_{variable}"] = values[:, None]
        places[f"hadisd_{variable}"] = place.unbind(1)
    for name, (longitude, latitude) in places.items():
        observations[f"{name}_longitude"] = longitude.to(torch.float64) * 360
        observations[f"{name}_latitude"] = latitude.to(torch.float64) * 360
    return observations


_TASK_KEYS = (
    *("iasi", "ascat", "x_context_hadisd", "y_context_hadisd", "icoads_x", "icoads", "sat_x"),
    *("sat", "amsua_x", "amsua", "amsub_x", "amsub", "igra_x", "igra", "hirs_x", "hirs"),
    "climatology",
)


def task_static_fields(task: Mapping[str, Any]) -> torch.Tensor:
    """Returns the static fields ``[7, 121, 240]`` of a task, for ``model.set_static_fields``.

    Args:
        task (mapping): Holds ``era5_elev_current [B, 7, 121, 240]``, from south to north, with the
            longitudes reversed, as the published code has them.
    """
    return task["era5_elev_current"][0].flip(-1).flip(-2)
