"""Variants, configurations for given data, and what is said of wrong ones."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hftune.tasks.aurora import AuroraConfig, AuroraForForecasting, build_config_from_fields
from hftune.tasks.aurora.validation_aurora import choose_patch_size
from hftune.tasks.aurora.variants_aurora import (
    VARIANTS,
    official_channels,
    variant_arguments,
    variant_class,
)
from hftune.tasks.weather.fields import FieldLayout
from hftune.utils.errors import ConfigurationError

PUBLISHED = [name for name in VARIANTS if name != "custom"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_variants_take_the_arguments_of_their_class(name):
    import aurora

    own = getattr(aurora, VARIANTS[name].class_name)
    signature = inspect.signature(aurora.Aurora.__init__).parameters
    settings = {"autocast", "autocast_dtype", "bf16_mode", "surf_stats", "timestep", "self"}
    assert variant_arguments(name).keys() == (signature.keys() - settings) | {"timestep_hours"}
    assert variant_class(name) is own
    assert VARIANTS[name].checkpoint == own.default_checkpoint_name


@pytest.mark.parametrize("name", ["small", "finetuned", "high_res", "v1p5_ensemble"])
def test_published_variants_are_built_as_the_package_builds_them(name):
    from accelerate import init_empty_weights

    own = variant_class(name)
    with torch.device("meta"):
        model = AuroraForForecasting(AuroraConfig(name))
    with init_empty_weights():
        expected = own()
    shapes = {key: value.shape for key, value in expected.state_dict().items()}
    assert {k: v.shape for k, v in model.aurora.state_dict().items()} == shapes
    assert type(model.aurora) is own and model.aurora.timestep == expected.timestep
    assert model.aurora.rollout_input_clipping == expected.rollout_input_clipping


def test_channels_grid_and_statistics_of_published_variants():
    config = AuroraConfig()
    assert config.variant == "pretrained" and config.timestep_hours == 6
    assert config.channels[:6] == ["2t", "10u", "10v", "msl", "z_50", "z_100"]
    assert len(config.channels) == 4 + 5 * 13 and config.static_channels == ["lsm", "z", "slt"]
    assert (len(config.latitude), len(config.longitude)) == (721, 1440)
    assert config.latitude[:2] == [90.0, 89.75] and config.longitude[-1] == 359.75
    assert config.output_rows == 720
    at = config.channels.index("z_500")
    assert (config.mean[at], config.std[at]) == (54115.37, 3353.187)
    assert config.static_std == [1.0, 58844.67, 7.0]
    assert AuroraConfig("12h").timestep_hours == 12
    fine = AuroraConfig("high_res")
    assert (fine.patch_size, len(fine.latitude), len(fine.longitude)) == (10, 1801, 3600)
    surface, static = official_channels("v1p5")
    assert "insolation" not in surface and len(surface) == 25 + 65 and len(static) == 36
    assert not AuroraConfig("v1p5").use_fp16_safe_attention


def test_config_survives_its_file(tmp_path, make_config):
    config = make_config(loss_weights={"2t": 2.0, "z_500": 3.0}, level_condition=(500, 850))
    config.save_pretrained(tmp_path)
    loaded = AuroraConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    assert isinstance(repr(loaded), str)


def test_all_that_is_wrong_is_said_together(make_config):
    with pytest.raises(ConfigurationError) as caught:
        make_config(
            loss_function="rmse",
            autocast="some",
            autocast_dtype="int8",
            std=[1.0, 0.0, 1.0, 1.0, 1.0, 1.0],
            longitude=[0.0, 2.5],
            encoder_depths=(1,),
            latent_levels=3,
            history=4,
            max_history_size=2,
            timestep_hours=0,
            modulation_heads=("2t",),
            atmos_static_vars=True,
            level_condition=(500,),
        )
    text = "\n".join(caught.value.problems)
    for expected in (
        "loss_function is 'rmse'; it must be one of mae, mse",
        "autocast is 'some'; it must be one of none, backbone, full",
        "autocast_dtype is 'int8'",
        "channel msl has mean 101000 and std 0",
        "Aurora needs two stages or more",
        "encoder_num_heads [2, 4] needs a value for each of [1]",
        "latent_levels 3 must be 2 or more and a multiple of window_size[0], 2",
        "timestep_hours 0 must be positive",
        "modulation_heads and simulate_indexing_bug belong to the air pollution model",
        "atmos_static_vars works only with dynamic_vars",
        "level_condition [500] lacks levels [850]",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "smal"}, "no Aurora variant 'smal'.* Did you mean 'small'.*pollution"),
        ({"channels": ["2t", "2t"], "static_channels": []}, "channels holds 2t more than once"),
        ({"channels": ["2t", "z"]}, "z is a channel and a static channel"),
        ({"mean": [0.0]}, "mean and std have 1 and 6 values for 6 channels"),
        ({"difference_std": [1.0]}, "difference_std has 1 values for 6 channels"),
        ({"difference_std": [float("nan")] + [1.0] * 5}, "difference_std of channel 2t is nan"),
        ({"surf_vars": ["2t"]}, r"surf_vars \['2t'\] lacks msl"),
        ({"loss_weights": "unifrm"}, "no loss weights 'unifrm'.*Did you mean 'uniform'"),
        (
            {"history": 4, "max_history_size": 2, "variant": "pretrained"},
            "history 4 must be from 1",
        ),
        ({"patch_size": 1}, "patch_size is 1; Aurora needs patches of 2 x 2 points or more"),
        (
            {"grid": (9, 143), "longitude": (np.arange(143) * 360 / 143).tolist()},
            "143 longitudes around the globe are no multiple of patch_size 4",
        ),
        ({"embed_dim": 18}, "embed_dim 18 must be a multiple of 4"),
        ({"num_heads": 3, "encoder_num_heads": (5, 5)}, "num_heads 3"),
        ({"encoder_num_heads": (5, 5)}, r"aurora cannot build this model: dim \(16\)"),
        (
            {"encoder_depths": (1, 1, 1), "decoder_depths": (1, 1, 1)},
            "too few to be halved 2 times",
        ),
    ],
)
def test_wrong_values_are_named(make_config, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        AuroraForForecasting(make_config(**arguments))


def test_unknown_channels_need_statistics():
    with pytest.raises(ConfigurationError, match="no statistics of channel soil: give mean"):
        AuroraConfig(channels=["2t", "soil"])
    with pytest.raises(ConfigurationError, match="no statistics of channel z_950"):
        AuroraConfig(channels=["2t", "z_950"])


def statistics_of(layout, hours=24, static_std=1.0):
    count, static = len(layout.channels), len(layout.static_channels)
    return SimpleNamespace(
        channels=layout.channels,
        mean=np.arange(count) + 100.0,
        std=np.full(count, 5.0),
        difference_mean=np.zeros(count),
        difference_std=np.full(count, 2.0),
        static_channels=layout.static_channels,
        static_mean=np.zeros(static),
        static_std=np.full(static, static_std),
        difference_hours=hours,
    )


def layout_of(channels, rows, columns, static=()):
    return FieldLayout(
        tuple(channels),
        ("",) * len(channels),
        tuple(static),
        np.linspace(60, 30, rows),
        np.arange(columns) * 2.5,
    )


@pytest.mark.parametrize(
    ("grid", "patch", "window"),
    [
        ((4, 5), 2, [2, 2, 3]),  # Davos: the easternmost column is repeated
        ((6, 9), 3, [2, 2, 3]),  # Iberia
        ((73, 144), 4, [2, 6, 12]),  # the globe at 2.5 degrees, with both poles
        ((32, 64), 4, [2, 6, 12]),
    ],
)
def test_custom_model_fits_the_grid(grid, patch, window):
    layout = layout_of(["2t", "z_500"], *grid, static=["lsm"])
    config = build_config_from_fields(layout, statistics_of(layout, static_std=0.0))
    assert (config.patch_size, config.window_size) == (patch, window)
    assert config.timestep_hours == 24 and config.history == config.max_history_size == 2
    assert config.residual_prediction and config.loss_weights == "tendency"
    assert config.mean == [100.0, 101.0] and config.static_std == [1.0]
    model = AuroraForForecasting(config)
    model.set_static_fields(np.ones((1, *grid)))
    output = model(torch.full((1, 2, 2, *grid), 100.0), torch.tensor([0]), steps=2)
    assert output.prediction.shape == (1, 2, 2, config.output_rows, grid[1])
    assert output.prediction[..., -1].isfinite().all()


def test_patch_sizes():
    assert [choose_patch_size(*grid) for grid in ((17, 32), (10, 16), (8, 6), (7, 11))] == [
        4,
        2,
        2,
        3,
    ]
    assert choose_patch_size(33, 64, stages=3) == 4
    with pytest.raises(ConfigurationError, match="3 x 5 points is too small for Aurora"):
        choose_patch_size(3, 5)


def test_published_model_keeps_its_statistics_for_data_with_a_new_variable():
    layout = layout_of(["2t", "soil", "z_500"], 33, 64, static=["lsm"])
    config = build_config_from_fields(layout, statistics_of(layout), variant="pretrained")
    assert config.mean == [278.514, 101.0, 54115.37] and config.std == [21.22036, 5.0, 3353.187]
    assert config.surf_vars == ["2t", "10u", "10v", "msl", "soil"]
    assert config.timestep_hours == 6 and config.difference_std is None
    assert not config.residual_prediction and config.loss_weights == "aurora_pretraining"


def test_settings_that_do_not_exist_are_suggested():
    layout = layout_of(["2t"], 8, 8)
    with pytest.raises(ConfigurationError, match="'embed_dims'. Did you mean 'embed_dim'"):
        build_config_from_fields(layout, statistics_of(layout), embed_dims=32)
    other = layout_of(["msl"], 8, 8)
    with pytest.raises(ConfigurationError, match="statistics are of the channels msl, the fields"):
        build_config_from_fields(layout, statistics_of(other))
    with pytest.raises(ConfigurationError, match="residual_prediction needs difference_std"):
        build_config_from_fields(
            layout, statistics_of(layout), timestep_hours=6, residual_prediction=True
        )


def test_one_step_of_v1p5_is_that_of_the_package(monkeypatch, tiny, make_batch, randomise_weights):
    """Log-transformed, output-only, clipped and computed variables."""
    import datetime

    import aurora
    from aurora.insolation import insolation

    settings = tiny | {"encoder_num_heads": (2, 2), "decoder_num_heads": (2, 2)}
    channels = ["2t", "tcc", "scaled_sd", "blh", "scaled_tp_1h", "z_500", "t_500", "z_850", "t_850"]
    config = AuroraConfig(
        "v1p5",
        channels=channels,
        static_channels=["lsm", "z"],
        latitude=np.linspace(60, 25, 8),
        longitude=np.arange(16) * 2.5,
        loss_weights="uniform",
        **settings,
    )
    torch.manual_seed(0)
    model = AuroraForForecasting(config).eval()
    randomise_weights(model.aurora)
    model.set_static_fields(np.random.default_rng(0).random((2, 8, 16)))
    batch = make_batch(config, steps=2)
    for name in ("scaled_sd", "scaled_tp_1h"):
        batch["fields"][:, :, channels.index(name)] = torch.rand(2, 2, 8, 16)
        batch["target_fields"][:, :, channels.index(name)] = torch.rand(2, 2, 8, 16)
    output = model(**batch)
    assert torch.isfinite(output.loss)

    times = [
        datetime.datetime.fromtimestamp(int(t), tz=datetime.timezone.utc) for t in batch["times"]
    ]
    sun = torch.stack(
        [
            torch.from_numpy(
                insolation(
                    [(t - datetime.timedelta(hours=h)).replace(tzinfo=None) for h in (6, 0)],
                    np.asarray(config.latitude),
                    np.asarray(config.longitude),
                    enforce_2d=True,
                )
            ).float()
            for t in times
        ]
    )
    fields = batch["fields"]
    start = aurora.Batch(
        surf_vars={n: fields[:, :, i] for i, n in enumerate(channels[:3])} | {"insolation": sun},
        static_vars=dict(zip(("lsm", "z"), model.static_fields, strict=True)),
        atmos_vars={"z": fields[:, :, [5, 7]], "t": fields[:, :, [6, 8]]},
        metadata=aurora.Metadata(
            torch.tensor(config.latitude),
            torch.tensor(config.longitude),
            tuple(t.replace(tzinfo=None) for t in times),
            (500, 850),
        ),
    )
    monkeypatch.setenv("TZ", "UTC")
    with torch.no_grad():
        expected = list(aurora.rollout(model.aurora, start, 2))
    for step, prediction in enumerate(expected):
        for i, channel in enumerate(channels):
            name, _, level = channel.rpartition("_")
            if level in ("500", "850"):
                field = prediction.atmos_vars[name][:, 0, (500, 850).index(int(level))]
            else:
                field = prediction.surf_vars[channel][:, 0]
            scale = field.abs().max()
            error = (output.prediction[:, step, i] - field).abs().max() / scale
            assert error < 1e-4, (step, channel)
    with pytest.raises(ConfigurationError, match="insolation is computed by the model"):
        AuroraConfig("v1p5", channels=["2t", "insolation"], static_channels=[])
