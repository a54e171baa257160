"""The encoder: the published numbers and names of weights, gaps, gradients, saved models."""

from __future__ import annotations

import copy
import json
import zlib

import numpy as np
import pytest
import torch
from transformers import AutoModel

from hftune.tasks.aardvark.configuration_aardvark_encoder import AardvarkEncoderConfig, Modality
from hftune.tasks.aardvark.encoder_presets import (
    background_modality,
    build_encoder_config,
    published_encoder_config,
    task_observations,
    task_static_fields,
)
from hftune.tasks.aardvark.modeling_aardvark_encoder import AardvarkEncoder
from hftune.tasks.aardvark.network_aardvark_encoder import EncoderTransformer
from hftune.tasks.weather.fields import FieldLayout
from hftune.tasks.weather.statistics import FieldStatistics
from hftune.utils.errors import CheckpointError, DataError

NAN = float("nan")


# Inputs and weights of the published numbers, made by formula.


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers from -0.5 to 0.5, by a hash of the name and the index."""
    x = np.arange(np.prod(shape), dtype=np.uint32) + np.uint32(zlib.crc32(name.encode()))
    x *= np.uint32(0x9E3779B1)
    for shift, factor in ((15, 0x85EBCA77), (13, 0xC2B2AE3D)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return (x / 2.0**32 - 0.5).reshape(shape)


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    u = uniform(key, shape)
    if key.endswith("init_ls"):
        return np.full(shape, 0.001)
    if key.endswith(("pos_embed", "var_embed", "var_query")):
        return u
    if key.endswith("bias"):
        return 0.1 * u
    if "norm" in key:
        return 1 + 0.2 * u
    return 1.5 * np.sqrt(12) * u / np.sqrt(np.prod(shape[1:]))


def fill(module: torch.nn.Module, prefix: str = "") -> None:
    for key, tensor in module.state_dict().items():
        tensor.copy_(torch.from_numpy(weight(prefix + key, tuple(tensor.shape))))


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def values(name: str, shape: tuple[int, ...], missing: float = 0.0) -> torch.Tensor:
    found = np.sqrt(12) * uniform(name, shape)
    return tensor(np.where(uniform(f"{name}/nan", shape) + 0.5 < missing, np.nan, found))


def line(first: float, last: float, count: int) -> torch.Tensor:
    return tensor(np.linspace(first, last, count) / 360)[None]


def points(name: str, count: int) -> list[torch.Tensor]:
    longitude = uniform(f"{name}/lon", (1, count)) + 0.5
    return [tensor(longitude), tensor(0.5 * uniform(f"{name}/lat", (1, count)))]


def make_task() -> dict:
    """What the published encoder's code takes, with small grids of observations."""
    around = tensor(np.arange(-180, 180, 10) % 360 / 360)[None]
    degrees = [line(0, 350, 36), line(90, -90, 19)]
    task = {
        "x_context_hadisd": [torch.stack(points(f"hadisd{i}", 40 + i), dim=1) for i in range(5)],
        "y_context_hadisd": [values(f"hadisd{i}", (1, 40 + i), 0.2) for i in range(5)],
        "icoads_x": points("icoads", 300),
        "icoads": values("icoads", (1, 5, 300), 0.3),
        "igra_x": points("igra", 60),
        "igra": values("igra", (1, 24, 60), 0.3),
        "sat_x": [line(0.2, 359.5, 51), line(-69.7, 69.6, 20)],
        "sat": values("sat", (1, 2, 51, 20), 0.05),
        "amsua_x": [around, line(90, -90, 18)],
        "amsua": values("amsua", (1, 18, 36, 13), 0.2),
        "amsub_x": degrees,
        "amsub": values("amsub", (1, 36, 19, 12), 0.2),
        "hirs_x": degrees,
        "hirs": values("hirs", (1, 36, 19, 26), 0.2),
        "iasi": values("iasi", (1, 36, 19, 52), 0.2),
        "ascat": values("ascat", (1, 36, 19, 17), 0.2),
        "era5_elev": values("elev", (1, 7, 121, 240)),
        "climatology": values("clim", (1, 24, 240, 121)),
        "aux_time": values("aux", (1, 5)),
    }
    for name in ("amsua", "amsub", "hirs", "iasi", "ascat"):
        task[name].view(-1)[::11] = 0
    return {f"{name}_current": value for name, value in task.items()}


@pytest.fixture(scope="module")
def golden(test_data):
    with np.load(test_data / "aardvark" / "encoder_golden.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def published_run(test_data):
    """One pass of the published encoder at its full size, and what it met on the way."""
    folder = test_data / "aardvark"
    mean, std = (
        np.load(folder / f"{name}_4u_1.npy", allow_pickle=False) for name in ("mean", "std")
    )
    model = AardvarkEncoder(published_encoder_config(mean, std)).eval()
    fill(model.network)
    task = make_task()
    before = copy.deepcopy(task)
    model.set_static_fields(task_static_fields(task))

    seen = {}
    network = model.network.decoder_lr
    network.mlp.register_forward_hook(lambda _, inputs, out: seen.update(mlp=(inputs[0], out)))
    network.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.update(tokens=inputs[0]))
    network.norm.register_forward_hook(lambda *call: seen.update(tokens_norm=call[2]))
    network.register_forward_hook(lambda *call: seen.update(vit_out=call[2]))
    with torch.no_grad():
        seen["features"] = model.features(task_observations(task), task["aux_time_current"])
        seen["y"] = model.network(seen["features"])
    return seen, task, before


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_published_features(published_run, golden):
    seen, _, _ = published_run
    features = seen["features"][0].numpy()
    assert features.shape == (277, 240, 121)
    close(features.mean(axis=(1, 2)), golden["feat_mean"])
    close(np.abs(features).mean(axis=(1, 2)), golden["feat_absmean"])
    x, y = golden["feat_points"].T
    close(features[:, x, y], golden["feat_values"])
    assert not features[115:117].any()  # the last variable of AMSU-A is blanked


def test_published_network(published_run, golden):
    seen, _, _ = published_run
    inputs, outputs = (found[0, ::16, ::16].numpy() for found in seen["mlp"])
    close(inputs[::2].transpose(2, 0, 1), golden["mlp_in"])
    close(outputs, golden["mlp_out"])
    close(seen["tokens"][0, ::100].numpy(), golden["tokens"])
    close(seen["tokens_norm"][0, ::100].numpy(), golden["tokens_norm"])
    close(seen["vit_out"][0, :, ::16, ::16].permute(1, 2, 0).numpy(), golden["vit_out"])
    state = seen["y"][0].permute(2, 1, 0).numpy()  # latitude, longitude, channel
    close(state[::20, ::40], golden["y"])
    close(state.mean(axis=(0, 1)), golden["y_mean"])
    close(state.std(axis=(0, 1)), golden["y_std"])


def test_a_task_is_not_changed(published_run):
    _, task, before = published_run

    def flat(value):
        return value if isinstance(value, list) else [value]

    for name in before:
        for found, expected in zip(flat(task[name]), flat(before[name]), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_published_transformer_of_a_small_size(golden):
    network = EncoderTransformer(
        277,
        (25, 14),
        mixer_hidden=64,
        mixer_layers=4,
        mixer_width=256,
        patch_size=3,
        embed_dim=32,
        depth=2,
        num_heads=4,
        mlp_ratio=4,
        head_depth=2,
        out_channels=5,
    )
    fill(network)
    with torch.no_grad():
        found = network(values("mini_x", (2, 277, 25, 14)))
    close(found.permute(0, 2, 3, 1).numpy(), golden["mini_y"])


def test_published_names_of_weights(test_data):
    rows = (test_data / "aardvark" / "encoder_keys.tsv").read_text().splitlines()
    published = {
        key: tuple(int(size) for size in shape.split("x"))
        for key, shape, _ in (row.removeprefix("module.").split("\t") for row in rows)
        if shape[:1].isdigit()
    }
    with torch.device("meta"):
        model = AardvarkEncoder(published_encoder_config([0.0] * 24, [1.0] * 24))
    found = model.network.state_dict()
    assert {key: tuple(value.shape) for key, value in found.items()} == published
    assert len(found) == 145
    assert sum(value.numel() for value in found.values()) == 30_696_178
    frozen = [p for p in model.network.parameters() if not p.requires_grad]
    assert len(frozen) == 20
    assert sum(p.numel() for p in frozen) == 1_254_554


def test_a_task_that_lacks_keys():
    task = make_task()
    del task["hirs_current"], task["sat_x_current"]
    with pytest.raises(DataError, match="the task lacks sat_x_current, hirs_current"):
        task_observations(task)


# Small encoders for stations, across Greenwich.

CHANNELS = ("2t", "msl", "z_500")
LATITUDE = np.array([45.0, 42.5, 40, 37.5])
LONGITUDE = np.array([352.5, 355, 357.5, 360, 362.5])
STATIONS = Modality(
    "stations",
    "points",
    ["tmax", "tmin"],
    mean=[20.0, 8.0],
    std=[8.0, 6.0],
    length_scale=2.5,
)


def make_config(modalities=(STATIONS,), **settings) -> AardvarkEncoderConfig:
    layout = FieldLayout(CHANNELS, ("K", "Pa", "m2/s2"), (), LATITUDE, LONGITUDE)
    return build_encoder_config(
        layout, make_statistics(), modalities, **{"embed_dim": 16, "depth": 1} | settings
    )


def make_statistics() -> FieldStatistics:
    mean, std, none = np.array([285.0, 101300, 55000]), np.array([8.0, 700, 1500]), np.array([])
    return FieldStatistics(CHANNELS, mean, std, mean, std, mean, mean, (), none, none, 24.0, 10)


def make_model(modalities=(STATIONS,), seed=0, **settings) -> AardvarkEncoder:
    torch.manual_seed(seed)
    return AardvarkEncoder(make_config(modalities, **settings)).eval()


def make_observations(batch=2, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "stations": torch.randn(batch, 2, 6, generator=generator) * 8 + 15,
        "stations_longitude": torch.rand(6, generator=generator) * 10 - 7,
        "stations_latitude": torch.rand(6, generator=generator) * 7 + 38,
    }


TIMES = torch.tensor([0, 86400 * 200])


def test_the_prediction_is_in_physical_units_and_north_first():
    model = make_model()
    with torch.no_grad():
        state = model.network(model.features(make_observations(), model.time_features(TIMES)))
        output = model(make_observations(), TIMES)
    assert output.loss is None
    assert output.prediction.shape == (2, 1, 3, 4, 5)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.config.mean, model.config.std))
    expected = state.flip(-1).transpose(2, 3) * std + mean
    torch.testing.assert_close(output.prediction[:, 0], expected)


def test_features_are_where_stations_are():
    """One station on the node 40 N, 5 W, the third longitude and the second latitude inside."""
    model = make_model([STATIONS, Modality("ship", "points", ["sst"], length_scale=1.0)])
    observations = {
        "stations": torch.tensor([[[28.0], [NAN]]]),
        "stations_longitude": torch.tensor([-5.0]),
        "stations_latitude": torch.tensor([40.0]),
        "ship": torch.tensor([[[3.0]]]),
        "ship_longitude": torch.tensor([[2.5]]),
        "ship_latitude": torch.tensor([[45.0]]),
    }
    with torch.no_grad():
        features = model.features(observations, torch.arange(5.0)[None])[0]
    assert features.shape == (2 * 2 + 2 + 5, 5, 4)
    assert features[:4, 1, 1].tolist() == [1, 1, 0, 0]  # density, (28 - 20) / 8, none, none
    assert not features[2:4].any()
    assert features[4:6, 4, 3].tolist() == [1, 3]
    assert features[6:, 2, 2].tolist() == [0, 1, 2, 3, 4]


def test_features_come_in_the_order_of_the_modalities():
    ships = Modality("ships", "points", ["sst"], length_scale=1.0)
    observations = make_observations() | {
        "ships": torch.rand(2, 1, 3),
        "ships_longitude": torch.tensor([-5.0, 0.0, 2.0]),
        "ships_latitude": torch.tensor([38.0, 41.0, 44.0]),
    }
    with torch.no_grad():
        found = make_model([STATIONS, ships]).features(observations, torch.zeros(2, 5))
        turned = make_model([ships, STATIONS]).features(observations, torch.zeros(2, 5))
    assert torch.equal(turned[:, :6], torch.cat([found[:, 4:6], found[:, :4]], dim=1))


def test_positions_may_be_in_the_configuration_and_in_any_convention_of_longitudes():
    observations = make_observations()
    longitude, latitude = (
        observations[f"stations_{n}"].tolist() for n in ("longitude", "latitude")
    )
    fixed = Modality(**vars(STATIONS) | {"longitude": longitude, "latitude": latitude})
    with torch.no_grad():
        expected = make_model()(observations, TIMES).prediction
        found = make_model([fixed])({"stations": observations["stations"]}, TIMES).prediction
        observations["stations_longitude"] = observations["stations_longitude"] % 360
        around = make_model()(observations, TIMES).prediction
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(around, expected)


def test_fields_on_the_grid_are_passed_on():
    layout = FieldLayout(CHANNELS, ("K", "Pa", "m2/s2"), (), LATITUDE, LONGITUDE)
    fields = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    background = background_modality(layout, make_statistics())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (background.mean, background.std))
    given = fields * std + mean
    given[0, 1, 2, 3] = NAN
    expected = fields.clone()
    expected[0, 1, 2, 3] = 0
    model = make_model([STATIONS, background])
    observations = make_observations() | {"background": given}
    with torch.no_grad():
        found = model.features(observations, model.time_features(TIMES))
    assert found.shape[1] == 4 + 3 + 5
    torch.testing.assert_close(found[:, 4:7], expected.flip(-1), rtol=0, atol=1e-4)
    masked = make_model([STATIONS, background_modality(layout, make_statistics(), density=True)])
    with torch.no_grad():
        found = masked.features(observations, model.time_features(TIMES))
    torch.testing.assert_close(found[:, 5:10:2], expected.flip(-1), rtol=0, atol=1e-4)
    assert found[:, 4:10:2].sum() == 2 * 3 * 20 - 1


def test_static_fields_and_climatology_follow_the_modalities():
    model = make_model(
        static_channels=["lsm", "z"],
        static_mean=[0.5, 300.0],
        static_std=[0.5, 100.0],
        climatology_channels=["2t"],
        time_scheme="processor4",
    )
    with pytest.raises(DataError, match="static fields lsm, z are not set"):
        model(make_observations() | {"climatology": torch.zeros(2, 1, 5, 4)}, TIMES)
    static = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(2, 1, 1) for values in ([0.5, 300], [0.5, 100]))
    model.set_static_fields(static * std + mean)
    climatology = torch.randn(2, 1, 5, 4)
    with torch.no_grad():
        found = model.features(
            make_observations() | {"climatology": climatology}, model.time_features(TIMES)
        )
    expected = static.transpose(1, 2).flip(-1)  # longitude first, south first
    torch.testing.assert_close(found[1, 4:6], expected, rtol=0, atol=1e-5)
    assert torch.equal(found[:, 6:7], climatology.flip(-1))
    assert found.shape[1] == 4 + 2 + 1 + 4


def test_what_the_network_is_told_of_the_time():
    model = make_model()
    # 2008-12-31 18 UTC is the day 366 of a leap year, a quarter before midnight; 1961-01-01 00 UTC.
    times = torch.tensor([1230746400, -283996800])
    expected = [
        [1, 0, 0, -1, 1 / 15],
        [np.cos(2 * np.pi / 366), np.sin(2 * np.pi / 366), 1, 0, -46 / 15],
    ]
    close(model.time_features(times).numpy(), expected)
    assert make_model(time_scheme="none").time_features(times).shape == (2, 0)
    processor = make_model(time_scheme="processor4").time_features(times)
    assert processor[0, :2].tolist() == pytest.approx([-1, 0], abs=1e-6)


def test_the_loss_is_that_of_the_reference():
    model = make_model()
    target = torch.randn(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.config.mean, model.config.std))
    target = target * std + mean
    target[1, 0, 2, :2] = NAN
    with torch.no_grad():
        output = model(make_observations(), TIMES, target)
        again = model(make_observations(), TIMES, target[:, 0])
    assert torch.equal(output.loss, again.loss)
    difference = ((output.prediction - target) / std).double().numpy()
    area = np.cos(np.deg2rad(LATITUDE))
    squares = difference**2 * (area / area.mean())[:, None]
    expected = np.sqrt(np.nanmean(squares, axis=(1, 2, 3, 4))).mean()
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(DataError, match=r"shape \[2, 2, 3, 4, 5\]; expected \[2, 1, 3, 4, 5\]"):
        model(make_observations(), TIMES, target.expand(-1, 2, -1, -1, -1))


def test_observations_that_are_all_missing_give_a_finite_state():
    observations = make_observations()
    observations["stations"] = torch.full_like(observations["stations"], NAN)
    model = make_model()
    assert torch.isfinite(model(observations, TIMES).prediction).all()
    none = {"stations": torch.empty(2, 2, 0)}
    none |= {"stations_longitude": torch.empty(0), "stations_latitude": torch.empty(0)}
    with torch.no_grad():
        expected = model(observations, TIMES).prediction
        torch.testing.assert_close(model(none, TIMES).prediction, expected)


def test_zeros_and_blanked_variables_are_missing():
    instrument = Modality(
        "instrument",
        "points",
        ["a", "b"],
        mean=[3.0, 0.0],
        std=[2.0, 1.0],
        length_scale=2.5,
        zero_is_missing=True,
        blanked=["b"],
    )
    model = make_model([instrument])
    observations = {
        "instrument": torch.tensor([[[3.0, 5.0], [1.0, 1.0]]]),
        "instrument_longitude": torch.tensor([355.0, 360.0]),
        "instrument_latitude": torch.tensor([40.0, 45.0]),
    }
    with torch.no_grad():
        found = model.features(observations, torch.zeros(1, 5))
        observations["instrument"] = torch.tensor([[[NAN, 5.0], [NAN, NAN]]])
        assert torch.equal(model.features(observations, torch.zeros(1, 5)), found)
    assert found[0, :4, 3, 3].tolist() == [1, 1, 0, 0]


def test_nothing_that_is_passed_in_is_changed():
    observations = make_observations()
    observations["stations"][0, 0, 1] = NAN
    observations["stations_longitude"][2] = NAN
    before = copy.deepcopy(observations)
    make_model()(observations, TIMES)
    for name, expected in before.items():
        torch.testing.assert_close(observations[name], expected, rtol=0, atol=0, equal_nan=True)


def test_autocast_leaves_the_features_exact():
    model = make_model()
    observations, times = make_observations(), model.time_features(TIMES)
    with torch.no_grad():
        expected = model.features(observations, times)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model.features(observations, times), expected)
            prediction = model(observations, TIMES).prediction
        assert prediction.dtype == torch.float32
        assert not torch.equal(prediction, model(observations, TIMES).prediction)


def test_every_live_parameter_gets_a_gradient():
    """Or DDP would wait for it; also where no observation is there."""
    learned = Modality(**vars(STATIONS) | {"trainable_length_scale": True})
    model = make_model([learned], reference_tensors=True).train()
    observations = make_observations()
    for _ in range(2):
        model.zero_grad()
        model(observations, TIMES, torch.zeros(2, 1, 3, 4, 5)).loss.backward()
        lacking = [n for n, p in model.named_parameters() if (p.grad is None) == p.requires_grad]
        assert lacking == []
        observations["stations"] = torch.full_like(observations["stations"], NAN)
    frozen = {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"ascat_setconvs", "sc_out", "mlp", "decoder_lr"}


def test_a_length_scale_can_be_learned():
    """From half of the right one, both variables find it."""
    scales = {"length_scale": 1.25, "trainable_length_scale": True}
    model = make_model([Modality(**vars(STATIONS) | scales)])
    observations = make_observations(batch=8)
    with torch.no_grad():
        expected = make_model().features(observations, torch.zeros(8, 5))
    optimizer = torch.optim.Adam(model.length_scales.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        found = model.features(observations, torch.zeros(8, 5))
        (found[:, :4:2] - expected[:, :4:2]).square().mean().backward()
        optimizer.step()
    learned = 1.25 * model.length_scales["stations"].exp()
    torch.testing.assert_close(learned, torch.tensor([2.5, 2.5]), rtol=0.02, atol=0)


def test_a_saved_model_predicts_the_same(tmp_path):
    learned = Modality(**vars(STATIONS) | {"trainable_length_scale": True})
    model = make_model([learned], static_channels=["lsm"], reference_tensors=True)
    model.set_static_fields(torch.rand(1, 4, 5))
    with torch.no_grad():
        model.length_scales["stations"] += 0.3
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, AardvarkEncoder)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    with torch.no_grad():
        expected = model(make_observations(), TIMES).prediction
        assert torch.equal(loaded(make_observations(), TIMES).prediction, expected)
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, loaded)]
    assert trained[0] == trained[1]
    assert "network.sc_out.init_ls" not in trained[1]


def test_length_scales_that_a_file_lacks_begin_with_the_configured_ones(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    learned = Modality(**vars(STATIONS) | {"trainable_length_scale": True})
    loaded = AardvarkEncoder.from_pretrained(tmp_path, config=make_config([learned]))
    assert torch.equal(loaded.length_scales["stations"], torch.zeros(2))
    with torch.no_grad():
        expected = model(make_observations(), TIMES).prediction
        found = loaded(make_observations(), TIMES).prediction
    torch.testing.assert_close(found, expected)


def test_weights_of_another_size_are_refused(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="of another architecture"):
        AardvarkEncoder.from_pretrained(tmp_path, config=make_config(depth=2))


def test_the_configuration_is_json(tmp_path):
    make_model().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["modalities"][0]["variables"] == ["tmax", "tmin"]


def test_observations_that_do_not_fit_are_named():
    model = make_model()
    observations = make_observations()
    observations["station"] = observations.pop("stations")
    with pytest.raises(DataError) as caught:
        model(observations, TIMES)
    assert str(caught.value) == (
        "observations lack 'stations'.\n"
        "observations hold 'station', which the model does not know. Did you mean 'stations'?"
    )
    observations = make_observations(batch=1)
    observations["stations_latitude"] = observations["stations_latitude"][:5]
    with pytest.raises(DataError) as caught:
        model(observations, TIMES)
    assert str(caught.value) == (
        "'stations_latitude' has the shape [5]; expected [6].\n"
        "'stations' has the shape [1, 2, 6]; expected [2, 2, 6]."
    )
    with pytest.raises(DataError, match="observations lack 'stations_longitude'"):
        model({"stations": torch.zeros(2, 2, 6)}, TIMES)


def test_the_trainer_counts_a_tensor():
    assert AardvarkEncoder.main_input_name == "times"
    assert AardvarkEncoder.accepts_loss_kwargs is False
