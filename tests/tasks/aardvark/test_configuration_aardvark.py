"""Configurations of the processor: for given data, as published, and wrong ones."""

from __future__ import annotations

import numpy as np
import pytest

from hftune.tasks.aardvark import (
    OFFICIAL_CHANNELS,
    AardvarkProcessor,
    AardvarkProcessorConfig,
    build_processor_config,
    published_config,
)
from hftune.tasks.weather.fields import FieldLayout
from hftune.tasks.weather.statistics import FieldStatistics
from hftune.utils.errors import ConfigurationError


def make_config(**arguments):
    values = {
        "channels": ["2t", "z_500"],
        "static_channels": ["lsm"],
        "latitude": [50.0, 47.5, 45.0, 42.5],
        "longitude": [350.0, 355.0, 360.0],
        "mean": [280.0, 54000.0],
        "std": [20.0, 3300.0],
        "difference_mean": [0.0, 1.0],
        "difference_std": [2.5, 670.0],
        "static_mean": [0.3],
        "static_std": [0.4],
        "patch_size": 3,
        "embed_dim": 16,
        "num_heads": 2,
        "depth": 1,
    }
    return AardvarkProcessorConfig(**values | arguments)


def make_data(channels=("2t", "z_500"), hours=24.0, static_std=0.4):
    layout = FieldLayout(
        tuple(channels), ("",) * len(channels), ("lsm",), np.linspace(45, 35, 6), np.arange(9) * 2.5
    )
    ones = np.ones(len(channels))
    statistics = FieldStatistics(
        channels=tuple(channels),
        mean=5 * ones,
        std=2 * ones,
        difference_mean=0.5 * ones,
        difference_std=3 * ones,
        minimum=0 * ones,
        maximum=9 * ones,
        static_channels=("lsm",),
        static_mean=np.array([0.3]),
        static_std=np.array([static_std]),
        difference_hours=hours,
        count=10,
    )
    return layout, statistics


def test_config_survives_its_file(tmp_path):
    config = make_config(time_channels="valid", loss_function="rmse", zero_head=True)
    config.save_pretrained(tmp_path)
    loaded = AardvarkProcessorConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    assert "hftune_aardvark_processor" in repr(loaded)
    assert loaded.in_channels == 7 and loaded.history == 1


def test_official_channels_in_the_published_order():
    expected = "10u 10v 2t msl z_200 z_500 z_700 z_850 q_200 q_500 q_700 q_850 t_200 t_500 t_700 "
    expected += "t_850 u_200 u_500 u_700 u_850 v_200 v_500 v_700 v_850"
    assert list(OFFICIAL_CHANNELS) == expected.split()


def test_published_config(test_data):
    folder = test_data / "aardvark"
    names = {"mean": "mean", "std": "std"}
    names |= {"difference_mean": "mean_diff", "difference_std": "std_diff"}
    statistics = {
        name: np.load(folder / f"{file}_4u_1.npy", allow_pickle=False)
        for name, file in names.items()
    }
    config = published_config(**statistics, static_channels=[f"s{i}" for i in range(7)])
    np.testing.assert_allclose(config.longitude, np.load(folder / "era5_x_1.npy"), rtol=1e-12)
    np.testing.assert_allclose(config.latitude[::-1], np.load(folder / "era5_y_1.npy"), rtol=1e-12)
    assert config.longitude[5] == 7.5 and config.latitude[58:62] == [3.0, 1.5, 0.0, -1.5]
    assert config.in_channels == 35 and config.reference_tensors
    sizes = (config.patch_size, config.embed_dim, config.depth, config.num_heads, config.head_depth)
    assert sizes == (5, 512, 16, 16, 4) and config.mlp_ratio == 4
    assert config.timestep_hours == 24 and config.time_channels == "initial"
    assert config.loss_function == "lw_rmse_pressure_weighted"
    assert config.static_mean == [0.0] * 7 and config.static_std == [1.0] * 7
    by_channel = dict(zip(config.channels, config.difference_std, strict=True))
    assert by_channel["msl"] == pytest.approx(669.492) and by_channel["10v"] > by_channel["10u"]


def test_config_for_data():
    config = build_processor_config(*make_data(), patch_size=3, embed_dim=8, num_heads=2, depth=1)
    assert config.channels == ["2t", "z_500"] and config.static_channels == ["lsm"]
    assert config.mean == [5.0, 5.0] and config.difference_std == [3.0, 3.0]
    assert config.static_mean == [0.3] and config.static_std == [0.4]
    assert config.timestep_hours == 24 and config.in_channels == 7
    assert not config.reference_tensors
    network = AardvarkProcessor(config).network
    assert network.decoder_lr.patches == (3, 2)
    flat = build_processor_config(*make_data(static_std=0.0, hours=6.0), patch_size=1)
    assert flat.static_std == [1.0] and flat.timestep_hours == 6


def test_statistics_of_something_else():
    layout, statistics = make_data()
    with pytest.raises(ConfigurationError) as caught:
        build_processor_config(make_data(("2t", "msl"))[0], statistics)
    assert str(caught.value) == (
        "the statistics are of the channels 2t, z_500, the fields have 2t, msl: compute the "
        "statistics of these fields."
    )
    with pytest.raises(ConfigurationError) as caught:
        build_processor_config(layout, statistics, timestep_hours=12)
    assert str(caught.value) == (
        "timestep_hours is 12, but the statistics are of changes over 24 hours: compute them with "
        "difference_hours equal to timestep_hours."
    )


def test_all_that_is_wrong_is_said_together():
    with pytest.raises(ConfigurationError) as caught:
        make_config(
            channels=["2t", "2t"],
            std=[20.0, 0.0],
            difference_std=[float("nan"), 670.0],
            static_mean=[],
            latitude=[42.5, 45.0, 47.5, 50.0],
            longitude=[0.0, 5.0],
            embed_dim=18,
            depth=0,
            head_depth=-1,
            mlp_ratio=0,
            drop_path=1.0,
            history=2,
            timestep_hours=0,
            loss_function="lw_rmsee",
            time_channels="both",
        )
    assert caught.value.problems == (
        "channels holds 2t more than once.",
        "channel 2t has mean 54000 and std 0: they must be finite and the second above zero; a "
        "constant field cannot be normalised.",
        "channel 2t has difference_mean 0 and difference_std nan: they must be finite and the "
        "second above zero; the field never changes, or no two times are a step apart.",
        "static_mean and static_std have 0 and 1 values for 1 static channels.",
        "latitude must be within -90..90 and strictly decreasing (north to south); it is 42.5, 45 "
        "... 47.5, 50. Flip the latitude axis of the fields; open_fields does so.",
        "patch_size 3 must be from 1 to 2: the grid has 4 latitudes and 2 longitudes.",
        "embed_dim 18 must be a multiple of 4, and num_heads 2 1 or more.",
        "depth 0 must be 1 or more.",
        "head_depth -1 must be 0 or more.",
        "mlp_ratio 0 must be above zero.",
        "timestep_hours 0 must be above zero.",
        "drop_path 1.0 must be from 0 to below 1.",
        "history is 2; Aardvark sees one past state: give 1.",
        "loss_function is 'lw_rmsee'; it must be one of lw_rmse_pressure_weighted, lw_rmse, rmse. "
        "Did you mean 'lw_rmse'?",
        "time_channels is 'both'; it must be one of initial, valid.",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": []}, "channels is empty: name what the fields hold, such as 2t and z_500."),
        ({"std": ()}, "mean and std have 2 and 0 values for 2 channels."),
        (
            {"difference_mean": [0.0]},
            "difference_mean and difference_std have 1 and 2 values for 2 channels.",
        ),
        (
            {"std": [20.0, -1.0]},
            "channel z_500 has mean 54000 and std -1: they must be finite and the second above "
            "zero; a constant field cannot be normalised.",
        ),
        ({"num_heads": 3}, "embed_dim 16 must be a multiple of num_heads 3."),
        (
            {"patch_size": 0},
            "patch_size 0 must be from 1 to 3: the grid has 4 latitudes and 3 longitudes.",
        ),
        (
            {"longitude": [-10.0, 0.0, 10.0]},
            "longitude must be strictly increasing from a value in [0, 360), less than one turn; "
            "it is [-10.0, 0.0, 10.0]. A region across Greenwich goes on past 360: 345, 350, 355, "
            "360, 365.",
        ),
    ],
)
def test_wrong_values_are_named(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        make_config(**arguments)
    assert message in caught.value.problems
