"""Official checkpoints, made here with the published names of weights, and the way back."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from hftune.tasks.aardvark.configuration_aardvark import AardvarkProcessorConfig, published_config
from hftune.tasks.aardvark.configuration_aardvark_encoder import AardvarkEncoderConfig, Modality
from hftune.tasks.aardvark.convert_aardvark import (
    kinds_of_checkpoint,
    load_encoder,
    load_official_encoder,
    load_official_processor,
    load_processor,
    save_official,
)
from hftune.tasks.aardvark.modeling_aardvark import AardvarkProcessor
from hftune.tasks.aardvark.modeling_aardvark_encoder import AardvarkEncoder
from hftune.tasks.aardvark.norm_factors import read_norm_factors
from hftune.tasks.aardvark.official_files import read_official
from hftune.utils.errors import CheckpointError, ConfigurationError, DataError

torch.set_num_threads(1)

CHANNELS = ["10u", "2t", "msl", "z_500"]
LONGITUDE, LATITUDE = (np.arange(12) * 30.0).tolist(), np.linspace(75, -75, 11).tolist()
SIZES = {"patch_size": 5, "embed_dim": 16, "depth": 2, "num_heads": 4, "head_depth": 2}
# What the shapes of weights cannot tell.
SETTINGS = {
    "channels": CHANNELS, "longitude": LONGITUDE, "latitude": LATITUDE, "num_heads": 4
}  # fmt: skip
DEAD = [
    "ascat_setconvs.init_ls",
    "sc_out.init_ls",
    *(
        f"mlp.mlp.{i}.{w}"
        for i in ("0", "2.0", "3.0", "4.0", "5.0", "6")
        for w in ("weight", "bias")
    ),
]
FACTORS = {
    "mean": "mean",
    "std": "std",
    "difference_mean": "mean_diff",
    "difference_std": "std_diff",
}


@pytest.fixture(scope="module")
def factors(tmp_path_factory):
    """A folder of normalisation factors and what is in it."""
    folder = tmp_path_factory.mktemp("aux") / "norm_factors"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in FACTORS.values():
        np.save(folder / f"{name}_4u_1.npy", random.uniform(0.5, 2, 4).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def static():
    """Static fields as the scripts have them: longitudes, latitudes from south to north."""
    return np.random.default_rng(1).normal(3, 2, (2, 12, 11)).astype(np.float32)


def random_weights(module):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module.eval()


@pytest.fixture(scope="module")
def processor(factors, static):
    """A processor with the tensors that nothing uses."""
    config = AardvarkProcessorConfig(
        **SETTINGS | SIZES,
        **read_norm_factors(factors, channels=4),
        static_channels=["static1", "static2"],
        static_mean=static.mean(axis=(1, 2), dtype=np.float64).tolist(),
        static_std=static.std(axis=(1, 2), dtype=np.float64).tolist(),
        reference_tensors=True,
    )
    model = random_weights(AardvarkProcessor(config))
    model.set_static_fields(np.ascontiguousarray(static.transpose(0, 2, 1)[:, ::-1]))
    return model


def encoder_config(factors, **changes):
    found = read_norm_factors(factors, channels=4)
    values = {
        **SETTINGS,
        "mean": found["mean"],
        "std": found["std"],
        "modalities": [
            Modality("stations", "points", ["tas", "psl"], length_scale=20.0),
            Modality("swath", "resize", ["a", "b", "c"], density=False),
        ],
        "static_channels": ["static1", "static2"],
        "climatology_channels": CHANNELS,
        "stack_longitude": np.linspace(0, 360, 12).tolist(),
        "vit_grid": (14, 13),
        "resize": "nearest",
        "distance": "expanded",
        "patch_size": 3,
        "embed_dim": 16,
        "depth": 2,
        "head_depth": 2,
        "mixer_hidden": 8,
        "mixer_width": 12,
        "reference_tensors": True,
    }
    return AardvarkEncoderConfig(**values | changes)


ENCODER_SETTINGS = (
    "modalities",
    "climatology_channels",
    "stack_longitude",
    "stack_latitude",
    "vit_grid",
)


@pytest.fixture(scope="module")
def encoder(factors, static):
    model = random_weights(AardvarkEncoder(encoder_config(factors)))
    model.set_static_fields(np.ascontiguousarray(static.transpose(0, 2, 1)[:, ::-1]))
    return model


def save(folder, weights, *, epoch=0, settings=None, **more):
    """Writes an epoch as DDPTrainer does."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"module.{name}": weight for name, weight in weights.items()}
    content = {"epoch": epoch, "model_state_dict": state, "loss": np.float64(0.5), **more}
    torch.save(content, folder / f"epoch_{epoch}")
    losses = np.ones(epoch + 1)
    losses[epoch] = 0.5
    np.save(folder / "losses_0.npy", losses)
    if settings is not None:
        (folder / "config.pkl").write_bytes(pickle.dumps(settings))
    return folder


@pytest.fixture
def official(tmp_path, processor):
    """The processor's folder as Aardvark's scripts leave it."""
    settings = {"era5_mode": "4u", "res": 1, "diff": 1, "film": None, "lr": 5e-4}
    weights = processor.network.state_dict()
    return save(tmp_path / "forecast_1", weights, epoch=3, settings=settings)


def fields_of(model):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 1, 4, 11, 12, generator=generator), torch.tensor([1_577_836_800, 10**9])


def observations():
    generator = torch.Generator().manual_seed(2)
    return {
        "stations": torch.randn(1, 2, 6, generator=generator),
        "stations_longitude": torch.rand(6, generator=generator) * 350,
        "stations_latitude": torch.rand(6, generator=generator) * 140 - 70,
        "swath": torch.randn(1, 3, 24, 13, generator=generator),
        "climatology": torch.randn(1, 4, 12, 11, generator=generator),
    }


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_processor_is_the_one_that_was_saved(official, processor, factors, static, tmp_path):
    np.save(tmp_path / "elev_vars_1.npy", static)
    for where in (static, tmp_path / "elev_vars_1.npy"):
        model = load_official_processor(
            official, norm_factors=factors, static=where, **SETTINGS
        ).eval()
        assert same(model, processor)
        inputs = fields_of(model)
        # The statistics of the static fields come from the same numbers, summed in another order.
        torch.testing.assert_close(
            model(*inputs).prediction, processor(*inputs).prediction, rtol=1e-6, atol=1e-6
        )
    assert model.config.static_channels == ["static1", "static2"]
    own = {"static_mean", "static_std", "license"}
    found, expected = model.config.to_dict(), processor.config.to_dict()
    assert {n: v for n, v in found.items() if n not in own} == {
        n: v for n, v in expected.items() if n not in own
    }
    assert not any(p.requires_grad for n, p in model.named_parameters() if n[8:] in DEAD)


def test_without_the_tensors_that_nothing_uses(official, processor, factors, static):
    model = load_official_processor(
        official, norm_factors=factors, static=static, reference_tensors=False, **SETTINGS
    )
    full = processor.network.state_dict()
    assert full.keys() - model.network.state_dict().keys() == set(DEAD)
    assert all(torch.equal(full[n], w) for n, w in model.network.state_dict().items())
    inputs = fields_of(model)
    torch.testing.assert_close(model.eval()(*inputs).prediction, processor(*inputs).prediction)


def test_the_file_may_lack_what_nothing_uses_only_then(tmp_path, processor, factors):
    weights = {n: w for n, w in processor.network.state_dict().items() if n not in DEAD}
    folder = save(tmp_path / "cleaned", weights)
    load_official_processor(folder, norm_factors=factors, reference_tensors=False, **SETTINGS)
    with pytest.raises(CheckpointError, match=r"14 missing from it: ascat_setconvs.init_ls, mlp"):
        load_official_processor(folder, norm_factors=factors, **SETTINGS)


def test_weights_that_do_not_fit_are_listed(tmp_path, processor, factors):
    weights = dict(processor.network.state_dict())
    weights["decoder_lr.norm.scale"] = weights.pop("decoder_lr.norm.weight")
    weights["decoder_lr.norm.bias"] = torch.zeros(3)
    folder = save(tmp_path / "other", weights)
    for keep in (True, False):
        with pytest.raises(CheckpointError) as raised:
            load_official_processor(
                folder, norm_factors=factors, reference_tensors=keep, **SETTINGS
            )
        assert str(raised.value) == (
            f"the weights in {folder / 'epoch_0'} are of another architecture than the "
            "configuration:\n"
            "  1 missing from it: decoder_lr.norm.weight\n"
            "  1 that the model does not have: decoder_lr.norm.scale\n"
            "  1 of another shape: decoder_lr.norm.bias\n"
            "The configuration has 4 channels on 12 x 11 points: give the grid and the sizes that "
            "the weights were trained with."
        )
    # The published grid, where none is given.
    with pytest.raises(CheckpointError, match="1 of another shape: decoder_lr.pos_embed\n.*240"):
        load_official_processor(
            save(tmp_path / "grid", processor.network.state_dict()),
            norm_factors=factors,
            channels=CHANNELS,
            num_heads=4,
        )
    del weights["decoder_lr.token_embeds.0.proj.weight"]
    with pytest.raises(CheckpointError, match="1 missing from it: decoder_lr.token_embeds.0.proj"):
        load_official_processor(save(folder, weights), norm_factors=factors, **SETTINGS)


def test_what_has_to_be_given(official, factors, static):
    with pytest.raises(ConfigurationError, match="does not hold the normalisation factors: give"):
        load_official_processor(official, **SETTINGS)
    with pytest.raises(DataError, match=r"shape \[1, 12, 11\]; the weights are for 2 static"):
        load_official_processor(official, norm_factors=factors, static=static[:1], **SETTINGS)
    with pytest.raises(DataError, match=r"shape \[2, 12, 11\]; expected \[2, 11, 12\]"):
        load_official_processor(
            official, norm_factors=factors, static=static.transpose(0, 2, 1), **SETTINGS
        )
    holes = static.copy()
    holes[1, 0, 0] = np.nan
    with pytest.raises(Exception, match="channel static2 has static_mean nan"):
        load_official_processor(official, norm_factors=factors, static=holes, **SETTINGS)


def test_pickled_static_fields_are_refused(official, factors, static, tmp_path):
    np.save(tmp_path / "static.npy", static.astype(object), allow_pickle=True)
    with pytest.raises(DataError, match="static.npy cannot be read as a plain array of numbers"):
        load_official_processor(
            official, norm_factors=factors, static=tmp_path / "static.npy", **SETTINGS
        )


def test_encoder_is_the_one_that_was_saved(tmp_path, encoder, factors, static):
    folder = save(tmp_path / "encoder", encoder.network.state_dict(), epoch=1)
    settings = SETTINGS | {name: getattr(encoder.config, name) for name in ENCODER_SETTINGS}
    for keep in (True, False):
        model = load_official_encoder(
            folder, norm_factors=factors, static=static, reference_tensors=keep, **settings
        ).eval()
        lacking = encoder.state_dict().keys() - model.state_dict().keys()
        assert all(torch.equal(encoder.state_dict()[n], w) for n, w in model.state_dict().items())
        assert len(lacking) == (0 if keep else 20)
        batch = observations(), torch.tensor([1_577_836_800])
        assert torch.equal(model(*batch).prediction, encoder(*batch).prediction)
    assert model.config.static_channels == ["static1", "static2"]
    # Two swaths, and nothing is left that could be static fields.
    settings["modalities"] = [
        *settings["modalities"],
        Modality("more", "resize", ["a", "b", "c"], density=False),
    ]
    with pytest.raises(CheckpointError, match="takes 18 channels; without static .* 19 already"):
        load_official_encoder(folder, norm_factors=factors, **settings)


def test_the_other_network_is_refused(tmp_path, processor, encoder, factors):
    one = save(tmp_path / "encoder", encoder.network.state_dict())
    other = save(tmp_path / "processor", processor.network.state_dict())
    with pytest.raises(CheckpointError, match="holds encoder weights .*; expected those of a pro"):
        load_official_processor(one, norm_factors=factors)
    with pytest.raises(CheckpointError, match="holds processor weights .*; expected those of an e"):
        load_official_encoder(other, norm_factors=factors)
    station = save(tmp_path / "decoder", {"film.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"no weights of Aardvark's networks \(film.weight"):
        load_official_encoder(station, norm_factors=factors)


def test_end_to_end_checkpoints(tmp_path, processor, encoder, factors):
    weights = {f"se_model.{n}": w for n, w in encoder.network.state_dict().items()}
    for day in (1, 2):
        weights |= {
            f"forecast_model.{day}.{n}": w * day for n, w in processor.network.state_dict().items()
        }
    folder = save(tmp_path / "e2e", weights | {"sf_model.film.weight": torch.zeros(1)})
    assert kinds_of_checkpoint(read_official(folder)) == ["processor", "encoder"]
    model = load_official_processor(folder, norm_factors=factors, forecast_model=2, **SETTINGS)
    name = "decoder_lr.pos_embed"
    assert torch.equal(model.network.state_dict()[name], 2 * processor.network.state_dict()[name])
    with pytest.raises(CheckpointError, match="the processors 1, 2: say which one"):
        load_official_processor(folder, norm_factors=factors, **SETTINGS)
    settings = SETTINGS | {n: getattr(encoder.config, n) for n in ENCODER_SETTINGS}
    found = load_official_encoder(folder, norm_factors=factors, **settings)
    assert torch.equal(found.network.state_dict()[name], encoder.network.state_dict()[name])


@pytest.mark.parametrize("kind", ["processor", "encoder"])
def test_round_trip_through_the_official_form(tmp_path, kind, request):
    model = request.getfixturevalue(kind)
    load = {"processor": load_official_processor, "encoder": load_official_encoder}[kind]
    path = save_official(model, tmp_path / "first", epoch=2, loss=0.125)
    assert path == tmp_path / "first" / "epoch_2"
    plain = torch.load(path, weights_only=True)
    assert (plain["epoch"], plain["loss"]) == (2, 0.125)
    assert list(plain["model_state_dict"]) == [f"module.{n}" for n in model.network.state_dict()]

    again = load(path.parent)
    assert same(again, model)
    assert again.config.to_dict() == model.config.to_dict()
    save_official(again, tmp_path / "second", epoch=2, loss=0.125)
    for name in ("epoch_2", "losses_0.npy", "config.pkl", "elev_vars_1.npy"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_exports_have_what_the_scripts_look_up(tmp_path, processor, encoder, static):
    for model, mode, decoder, diff in (
        (processor, "forecast", "vit", 1),
        (encoder, "assimilation", "vit_assimilation", 0),
    ):
        save_official(model, tmp_path / mode)
        settings = read_official(tmp_path / mode).settings
        assert (settings["mode"], settings["decoder"], settings["diff"]) == (mode, decoder, diff)
        assert (settings["era5_mode"], settings["res"], settings["out_channels"]) == ("4u", 1, 4)
        assert "_name_or_path" not in settings["hftune_config"]
        fields = np.load(tmp_path / mode / "elev_vars_1.npy", allow_pickle=False)
        assert np.array_equal(fields, static)
    assert read_official(tmp_path / "forecast").settings["in_channels"] == 4 + 2 + 4


def test_tensors_that_nothing_uses_are_made_for_the_export(tmp_path, official, factors, processor):
    lean = load_official_processor(
        official, norm_factors=factors, reference_tensors=False, **SETTINGS
    )
    torch.manual_seed(5)
    before = torch.get_rng_state()
    path = save_official(lean, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)
    weights = read_official(path).weights
    assert list(weights) == list(processor.network.state_dict())
    assert weights["sc_out.init_ls"].tolist() == [pytest.approx(0.001)]
    assert weights["mlp.mlp.3.0.weight"].shape == (128, 128)
    assert weights["mlp.mlp.3.0.weight"].std() > 0
    assert (tmp_path / "out" / "elev_vars_1.npy").exists() is False
    first = path.read_bytes()
    save_official(lean, tmp_path / "out")
    assert path.read_bytes() == first
    again = load_official_processor(tmp_path / "out").network.state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    assert same(load_processor(tmp_path / "out").network, lean.network)


def test_trained_length_scales_cannot_be_exported(tmp_path, factors):
    modality = Modality(
        "stations", "points", ["tas"], length_scale=20.0, trainable_length_scale=True
    )
    model = AardvarkEncoder(encoder_config(factors, modalities=[modality]))
    with pytest.raises(ConfigurationError, match="has length_scales.stations, which Aardvark's"):
        save_official(model, tmp_path / "out")


def test_license_of_published_weights(tmp_path, official, factors, processor, capfd):
    model = load_official_processor(official, norm_factors=factors, **SETTINGS)
    assert model.config.license == "cc-by-nc-nd-4.0"
    model.save_pretrained(tmp_path / "model")
    saved = AardvarkProcessor.from_pretrained(tmp_path / "model")
    assert saved.config.license == "cc-by-nc-nd-4.0"
    save_official(saved, tmp_path / "out")
    assert load_official_processor(tmp_path / "out").config.license == "cc-by-nc-nd-4.0"
    # One's own are one's own.
    save_official(processor, tmp_path / "own")
    assert not hasattr(load_official_processor(tmp_path / "own").config, "license")


def test_settings_that_the_weights_do_not_show(tmp_path, processor, factors, capsys, monkeypatch):
    folder = save(tmp_path / "states", processor.network.state_dict(), settings={"diff": 0})
    load_official_processor(folder, norm_factors=factors, **SETTINGS)
    assert "config.pkl has diff 0. hftune's processor predicts changes" in " ".join(
        capsys.readouterr().err.split()
    )


def test_either_kind_of_folder(tmp_path, official, processor, encoder):
    processor.save_pretrained(tmp_path / "model")
    encoder.save_pretrained(tmp_path / "encoder")
    save_official(processor, tmp_path / "exported")
    for folder in ("model", "exported"):
        found = load_processor(tmp_path / folder)
        weights = found.network.state_dict()
        assert all(torch.equal(w, processor.network.state_dict()[n]) for n, w in weights.items())
    assert same(load_encoder(tmp_path / "encoder"), encoder)

    def refusal(load, source):
        with pytest.raises(CheckpointError) as raised:
            load(source)
        return str(raised.value).replace(str(tmp_path), "DIR")

    assert refusal(load_processor, tmp_path / "encoder") == (
        "DIR/encoder holds an encoder; expected a processor."
    )
    assert refusal(load_encoder, tmp_path / "model") == (
        "DIR/model holds a processor; expected an encoder."
    )
    assert refusal(load_encoder, tmp_path) == (
        "DIR is no model folder: expected config.json and model.safetensors, as hftune saves them, "
        "or a file such as epoch_0, as Aardvark's scripts do. Did you mean DIR/encoder?"
    )
    assert refusal(load_encoder, tmp_path / "nothing").startswith(
        "DIR/nothing is neither a model folder here nor a repository on the Hub that can be reached"
    )
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    assert refusal(load_processor, tmp_path / "model") == (
        "DIR/model holds a model of the type bert; expected a processor or an encoder of "
        "Aardvark's."
    )
    with pytest.raises(ConfigurationError, match="give norm_factors"):
        load_processor(official)


def test_pickled_objects_are_refused_before_they_run(tmp_path, official, processor, factors):
    class RunsCommand:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'trace'}",)

    name = f"{os.system.__module__}.system"
    bad = save(tmp_path / "epoch", processor.network.state_dict(), optimizer=RunsCommand())
    with pytest.raises(CheckpointError, match=f"epoch_0 holds {name}: it could run code"):
        load_processor(bad, factors)
    (official / "config.pkl").write_bytes(pickle.dumps({"lr": RunsCommand()}))
    with pytest.raises(CheckpointError, match=f"config.pkl holds {name}: it would run code"):
        load_processor(official, factors)
    assert not (tmp_path / "trace").exists()


def test_published_sizes_are_those_of_the_weights(test_data, tmp_path):
    """297 tensors and 53,995,762 numbers, on disk without their values."""
    factors = read_norm_factors(test_data / "aardvark")
    with torch.device("meta"):
        expected = AardvarkProcessor(
            published_config(**factors, static_channels=[f"static{i + 1}" for i in range(7)])
        ).network.state_dict()
    assert (len(expected), sum(w.numel() for w in expected.values())) == (297, 53_995_762)
    # Views of one number: a small file.
    weights = {n: torch.zeros(1).expand(w.shape) for n, w in expected.items()}
    folder = save(tmp_path / "forecast_1", weights)
    assert (folder / "epoch_0").stat().st_size < 200_000
    model = load_official_processor(folder, norm_factors=test_data / "aardvark")
    assert model.network.state_dict().keys() == expected.keys()
    assert model.config.static_channels == [f"static{i + 1}" for i in range(7)]
    assert (model.config.depth, model.config.num_heads, model.config.head_depth) == (16, 16, 4)
    assert model.config.mean == factors["mean"]


def test_published_encoder_loads_strictly(test_data, tmp_path):
    """145 tensors, by the list of their names and shapes, whose order exports keep."""
    lines = (test_data / "aardvark" / "encoder_keys.tsv").read_text().splitlines()
    shapes = {
        name: tuple(map(int, shape.split("x"))) for name, shape, _ in (x.split("\t") for x in lines)
    }
    weights = {n: torch.zeros(1).expand(shape) for n, shape in shapes.items()}
    settings = {"era5_mode": "4u", "res": 1, "diff": 0, "film": None, "mode": "assimilation"}
    folder = save(tmp_path / "encoder", weights, epoch=96, settings=settings)
    model = load_official_encoder(folder, norm_factors=test_data / "aardvark")
    own = model.network.state_dict()
    assert {n: tuple(w.shape) for n, w in own.items()} == shapes
    assert (len(own), sum(w.numel() for w in own.values())) == (145, 30_696_178)
    assert len(model.config.static_channels) == 7
    assert list(load_encoder(folder, test_data / "aardvark").network.state_dict()) == [
        name for name, parameter in model.network.named_parameters() if parameter.requires_grad
    ]
