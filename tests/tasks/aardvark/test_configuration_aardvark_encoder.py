"""Configuration of the encoder: sizes that follow, JSON, and messages of what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from hftune.tasks.aardvark.configuration_aardvark_encoder import AardvarkEncoderConfig, Modality
from hftune.tasks.aardvark.encoder_presets import (
    background_modality,
    build_encoder_config,
    published_encoder_config,
)
from hftune.tasks.weather.fields import FieldLayout
from hftune.tasks.weather.statistics import FieldStatistics
from hftune.utils.errors import ConfigurationError

STATIONS = {
    "name": "stations",
    "kind": "points",
    "variables": ["tmax", "tmin"],
    "longitude": [-3.7, 2.1],
    "latitude": [40.4, 41.3],
    "length_scale": 2.5,
}


def arguments(**changes):
    return {
        "channels": ["2t", "msl"],
        "latitude": [45.0, 42.5, 40.0],
        "longitude": [355.0, 357.5, 360.0],
        "mean": [285.0, 101300.0],
        "std": [8.0, 700.0],
        "modalities": [STATIONS],
        "embed_dim": 16,
        "num_heads": 2,
    } | changes


def problems(**changes):
    with pytest.raises(ConfigurationError) as caught:
        AardvarkEncoderConfig(**arguments(**changes))
    return list(caught.value.problems)


def of_stations(**changes):
    return problems(modalities=[STATIONS | changes])


@pytest.fixture
def layout():
    return FieldLayout(
        ("2t", "msl"), ("K", "Pa"), (), np.array([45, 42.5, 40]), np.array([355, 357.5, 360])
    )


@pytest.fixture
def statistics(layout):
    mean, std, none = np.array([285.0, 101300]), np.array([8.0, 700]), np.array([])
    return FieldStatistics(
        layout.channels, mean, std, mean, std, mean, mean, (), none, none, 24.0, 10
    )


def test_features_are_counted(layout, statistics):
    config = AardvarkEncoderConfig(
        **arguments(
            modalities=[
                Modality("a", "points", ["x", "y", "z"], length_scale=1.0),
                Modality("b", "resize", ["x"], density=False),
                background_modality(layout, statistics),
            ],
            static_channels=["lsm"],
            climatology_channels=["2t"],
            time_scheme="processor4",
        )
    )
    assert config.feature_count == 6 + 1 + 2 + 1 + 1 + 4
    assert [config.is_on_stack(m) for m in config.modality_list] == [False, False, True]


def test_the_published_sizes():
    config = published_encoder_config(mean=[0.0] * 24, std=[1.0] * 24)
    assert config.feature_count == 277
    assert sum(m.feature_count for m in config.modality_list) == 241
    assert config.modality_list[1].variables[4] == "obs_time"
    changed = published_encoder_config([0.0] * 24, [1.0] * 24, drop_path=0.1)
    assert changed.drop_path == 0.1


def test_a_configuration_goes_through_json(tmp_path):
    config = AardvarkEncoderConfig(**arguments(modalities=[STATIONS | {"blanked": ["tmin"]}]))
    config.save_pretrained(tmp_path)
    again = AardvarkEncoderConfig.from_pretrained(tmp_path)
    assert again.to_json_string() == config.to_json_string()
    assert again.modality_list == config.modality_list
    assert again.stack_latitude == [45.0, 42.5, 40.0]


def test_a_modality_says_what_is_no_default():
    modality = Modality("stations", "points", ["tmax"], length_scale=2)
    assert modality.as_dict() == {
        "name": "stations",
        "kind": "points",
        "variables": ["tmax"],
        "length_scale": 2,
    }
    assert Modality.from_dict(modality.as_dict()) == modality


def test_small_encoders_take_the_grid_and_statistics_of_data(layout, statistics):
    stations = {key: value for key, value in STATIONS.items() if key != "length_scale"}
    config = build_encoder_config(layout, statistics, [stations], depth=2)
    assert config.modality_list[0].length_scale == 2.5  # the spacing of the grid
    assert config.modality_list[0].longitude == [-3.7, 2.1]
    assert (config.patch_size, config.depth, config.vit_grid) == (1, 2, [3, 3])
    assert (config.mean, config.distance) == ([285.0, 101300.0], "exact")
    with pytest.raises(ConfigurationError, match="compute the statistics of these fields"):
        build_encoder_config(
            FieldLayout(("2t",), ("K",), (), layout.latitude, layout.longitude), statistics, []
        )


def test_all_problems_are_told_together():
    assert problems(
        channels=["2t", "2t"],
        std=[8.0, 0.0],
        modalities=[STATIONS | {"kind": "point"}, {"name": "b", "varables": ["x"]}],
        time_scheme="encoder",
        drop_path=1,
    ) == [
        "modality 'b' has no setting 'varables'. Did you mean 'variables'?",
        "modality 'b' lacks 'kind'.",
        "modality 'b' lacks 'variables'.",
        "time_scheme is 'encoder'; it must be one of encoder5, processor4, none. Did you "
        "mean 'encoder5'?",
        "channels holds 2t more than once.",
        "2t of channels has mean 101300 and std 0: they must be finite and the second above zero; "
        "what never changes cannot be normalised.",
        "drop_path is 1; it must be from 0 to below 1.",
        "modality 'stations': kind is 'point'; it must be one of points, grid, resize. Did "
        "you mean 'points'?",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"channels": [], "mean": [], "std": []},
            "channels is empty: name what the state holds, such as 2t and z_500.",
        ),
        ({"modalities": []}, "modalities is empty: name some kind of observations."),
        ({"modalities": [STATIONS, STATIONS]}, "modalities holds stations more than once."),
        (
            {"modalities": [STATIONS | {"name": "climatology"}], "climatology_channels": ["2t"]},
            "modalities holds climatology more than once.",
        ),
        ({"mean": [285.0]}, "mean and std have 1 and 2 values for 2 channels."),
        (
            {"static_channels": ["lsm"], "static_mean": [0.5]},
            "mean and std of static_channels: give both, or neither.",
        ),
        (
            {"latitude": [40.0, 42.5, 45.0]},
            "latitude must be within -90..90 and strictly decreasing (north to south); it is "
            "[40.0, 42.5, 45.0]. Flip the latitude axis of the fields; open_fields does so.",
        ),
        (
            {"longitude": [-5.0, -2.5, 0.0]},
            "longitude must be strictly increasing from a value in [0, 360), no more than one "
            "turn; it is [-5.0, -2.5, 0.0]. A region across Greenwich goes on past 360: 345, 350, "
            "355, 360, 365.",
        ),
        (
            {"patch_size": 2},
            "patch_size 2 does not divide 3 longitudes and 3 latitudes: choose one that does; 1 "
            "always does.",
        ),
        (
            {"vit_grid": [6, 6]},
            "with resize none the stack, the transformer and the state have one grid: leave out "
            "stack_longitude, stack_latitude and vit_grid, or set resize to nearest.",
        ),
        (
            {"resize": "nearest", "stack_latitude": [45.0, 40.0], "static_channels": ["lsm"]},
            "static and climatology channels need a stack of the size of the state: it is 3 x 2, "
            "the state 3 x 3.",
        ),
        (
            {"resize": "nearest", "vit_grid": [6, 2]},
            "vit_grid is [6, 2]; it must be two sizes, longitudes and latitudes, of at least "
            "patch_size 3.",
        ),
        ({"embed_dim": 18}, "embed_dim 18 must be a multiple of 4 and of num_heads 2."),
        ({"mixer_width": 0}, "mixer_width is 0; it must be 1 or more."),
    ],
)
def test_what_is_wrong_with_a_configuration(changes, expected):
    assert expected in problems(**changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"name": "6 stations"},
            "its name must be letters, digits and underscores, such as stations.",
        ),
        ({"variables": []}, "variables is empty."),
        ({"blanked": ["rain"]}, "blanked holds rain, which are not its variables."),
        ({"mean": [15.0], "std": [8.0]}, "mean and std have 1 and 1 values for 2 variables."),
        ({"latitude": None}, "give both longitude and latitude, or neither."),
        (
            {"latitude": [40.4]},
            "2 longitudes and 1 latitudes of points: give one of each a point.",
        ),
        (
            {"length_scale": None},
            "length_scale is None; a set convolution needs one above 0 degrees. The spacing of the "
            "grid is a good one; the published encoder has 0.36.",
        ),
        (
            {"longitude": [40.4, -3.7], "latitude": [-3.7, 40.4]},
            "1 of 2 points reach no grid point, the first at longitude 40.4, latitude -3.7: leave "
            "them out, or take a larger length_scale than 2.5 degrees.",
        ),
        (
            {"kind": "resize"},
            "kind resize has no coordinates: leave out longitude and latitude.",
        ),
        (
            {"kind": "resize", "longitude": None, "latitude": None, "trainable_length_scale": True},
            "trainable_length_scale is for a set convolution, which it has none of.",
        ),
    ],
)
def test_what_is_wrong_with_a_modality(changes, expected):
    name = changes.get("name", "stations")
    assert of_stations(**changes) == [f"modality {name!r}: {expected}"]


def test_variables_are_a_list():
    expected = "modality 'stations' has variables 'tmax'; give a list of names."
    assert of_stations(variables="tmax") == [expected]
