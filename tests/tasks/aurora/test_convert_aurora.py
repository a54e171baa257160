"""Official checkpoints, made here from tiny models of the package."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
import torch

from hftune.tasks.aurora import AuroraConfig, AuroraForForecasting, load_aurora_checkpoint
from hftune.utils.errors import CheckpointError, ConfigurationError

# As the published classes have three stages, so does the tiny one.
SIZES = {
    "embed_dim": 16,
    "num_heads": 2,
    "encoder_depths": (1, 1, 1),
    "encoder_num_heads": (2, 4, 8),
    "decoder_depths": (1, 1, 1),
    "decoder_num_heads": (8, 4, 2),
    "window_size": (2, 2, 4),
}
CHANNELS = ["2t", "10u", "10v", "msl", *(f"{v}_{p}" for v in "zuvtq" for p in (500, 850))]
GRID = {"latitude": np.linspace(60, 20, 17).tolist(), "longitude": (np.arange(32) * 2.5).tolist()}


@pytest.fixture(scope="module")
def official(tmp_path_factory, randomise_weights):
    """A model of the package and its checkpoint, named like the published one."""
    from aurora import AuroraPretrained

    torch.manual_seed(0)
    network = AuroraPretrained(**SIZES).eval()
    randomise_weights(network)
    path = tmp_path_factory.mktemp("official") / "aurora-0.25-pretrained.ckpt"
    torch.save({f"net.{name}": value for name, value in network.state_dict().items()}, path)
    return network, path


def config_of(**arguments):
    values = {"channels": CHANNELS, "static_channels": ["lsm", "z", "slt"], **GRID, **SIZES}
    return AuroraConfig("pretrained", **(values | arguments))


def make_inputs(config):
    generator = torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (config.mean, config.std))
    shape = (2, config.history, len(config.channels), 17, 32)
    fields = torch.randn(shape, generator=generator) * std + mean
    static = torch.rand(3, 17, 32, generator=generator)
    return fields, torch.tensor([1_577_836_800, 1_580_000_400]), static


def test_forecast_is_that_of_the_package(official):
    from aurora import Batch, Metadata

    network, path = official
    model = AuroraForForecasting.from_pretrained(path, config=config_of()).eval()
    assert all(
        torch.equal(v, model.aurora.state_dict()[k]) for k, v in network.state_dict().items()
    )
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    fields, times, static = make_inputs(model.config)
    model.set_static_fields(static)
    prediction = model(fields, times).prediction

    batch = Batch(
        {n: fields[:, :, i] for i, n in enumerate(CHANNELS[:4])},
        dict(zip(("lsm", "z", "slt"), static, strict=True)),
        {n: fields[:, :, 4 + 2 * i : 6 + 2 * i] for i, n in enumerate("zuvtq")},
        Metadata(
            torch.tensor(GRID["latitude"]),
            torch.tensor(GRID["longitude"]),
            tuple(datetime.datetime.fromtimestamp(int(t), datetime.timezone.utc) for t in times),
            (500, 850),
        ),
    )
    expected = network(batch)
    joined = [expected.surf_vars[n] for n in CHANNELS[:4]]
    joined += [expected.atmos_vars[n][:, 0] for n in "zuvtq"]
    std = torch.tensor(model.config.std).view(-1, 1, 1)
    error = (prediction[:, 0] - torch.cat(joined, dim=1)) / std
    assert error.abs().max() < 2e-5


def test_data_without_some_variables(official):
    _, path = official
    config = config_of(channels=["2t", "z_500", "t_500"], static_channels=[])
    model = load_aurora_checkpoint(path, config=config)
    fields = make_inputs(config)[0]
    assert torch.isfinite(model(fields, torch.tensor([0, 0])).prediction).all()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "aurora.decoder.surf_heads.msl.weight" in frozen
    assert "aurora.encoder.surf_token_embeds.weights.lsm" in frozen
    assert not any(".2t" in name for name in frozen)


def test_new_variables_leave_the_others_as_they_were(official):
    _, path = official
    old = load_aurora_checkpoint(path, config=config_of()).eval()
    fields, times, static = make_inputs(old.config)
    old.set_static_fields(static)
    expected = old(fields, times).prediction

    new = ["soil", *CHANNELS, "w_500", "w_850"]
    statistics = {"mean": [0.3, *old.config.mean, 0, 0], "std": [0.1, *old.config.std, 1, 1]}
    config = config_of(channels=new, **statistics)
    more = torch.randn(2, 2, 3, 17, 32)
    wide = torch.cat([more[:, :, :1], fields, more[:, :, 1:]], dim=2)
    for zero in (True, False):
        model = load_aurora_checkpoint(path, config=config, zero_new_variables=zero).eval()
        model.set_static_fields(static)
        output = model(wide, times, target_fields=wide[:, :1])
        same = torch.allclose(output.prediction[:, :, 1:-2], expected, rtol=1e-6, atol=1e-6)
        assert same is zero
        output.loss.backward()
        gradient = model.aurora.encoder.surf_token_embeds.weights["soil"].grad
        assert gradient.any()


def test_longer_history_lora_and_stabilised_aggregation(official):
    network, path = official
    plain = load_aurora_checkpoint(path, config=config_of()).eval()
    fields, times, static = make_inputs(plain.config)
    expected = plain(fields, times, static).prediction
    lora = load_aurora_checkpoint(path, config=config_of(use_lora=True)).eval()
    assert torch.equal(lora(fields, times, static).prediction, expected)

    long = load_aurora_checkpoint(path, config=config_of(max_history_size=3)).eval()
    assert long.config.history == 3
    weight = long.aurora.encoder.surf_token_embeds.weights["2t"]
    assert torch.equal(weight[:, :, :2], network.encoder.surf_token_embeds.weights["2t"])
    assert not weight[:, :, 2].any()
    stable = load_aurora_checkpoint(path, config=config_of(stabilise_level_agg=True))
    assert "aurora.encoder.level_agg.layers.0.0.ln_k.weight" in stable.state_dict()
    with pytest.raises(CheckpointError, match="trained with 2 past states, the model takes 1"):
        load_aurora_checkpoint(path, config=config_of(max_history_size=1, history=1))


def test_hub_file_of_the_variant_is_taken_at_the_pinned_revision(monkeypatch, official):
    import aurora
    import huggingface_hub

    network, path = official
    asked = []

    def download(*arguments, **options):
        asked.append((arguments, options))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    arguments = {"channels": CHANNELS, **GRID, **SIZES}
    model = AuroraForForecasting.from_pretrained("microsoft/aurora", **arguments)
    pinned = aurora.AuroraPretrained.default_checkpoint_revision
    file = "aurora-0.25-pretrained.ckpt"
    assert asked == [(("microsoft/aurora", file), {"revision": pinned})]
    assert model.config.static_channels == ["lsm", "z", "slt"]
    AuroraForForecasting.from_pretrained("microsoft/aurora", revision="main", config=config_of())
    assert asked[1][1] == {"revision": "main"}
    with pytest.raises(ConfigurationError, match="no published checkpoint: choose a variant, one"):
        load_aurora_checkpoint(variant="custom", channels=["2t"], **GRID, **SIZES)


def test_variant_is_known_by_the_name_of_the_file(tmp_path, official):
    path = tmp_path / "aurora-0.25-12h-pretrained.ckpt"
    path.write_bytes(official[1].read_bytes())
    assert load_aurora_checkpoint(path, channels=CHANNELS, **GRID, **SIZES).config.variant == "12h"
    with pytest.raises(ConfigurationError, match="beside a config of the variant 'pretrained'"):
        load_aurora_checkpoint(path, "12h", config=config_of())


def test_weights_of_a_training_loop_are_found(tmp_path, official):
    network, _ = official
    path = tmp_path / "step_100.ckpt"
    torch.save({"model": network.state_dict(), "step": 100}, path)
    model = load_aurora_checkpoint(path, config=config_of())
    weight = model.aurora.encoder.pos_embed.weight
    assert torch.equal(weight, network.encoder.pos_embed.weight)


class Trap:
    def __reduce__(self):
        return print, ("code in a checkpoint ran",)


def test_what_is_no_checkpoint_of_this_architecture(tmp_path, official, capsys):
    network, path = official
    with pytest.raises(CheckpointError, match=r"of another shape: .*\nThe variant is 'pretrained'"):
        load_aurora_checkpoint(path, config=config_of(embed_dim=32))
    with pytest.raises(CheckpointError, match=r"\d+ that the model does not have: .*blocks\.0"):
        load_aurora_checkpoint(
            path, config=config_of(encoder_depths=(1, 1, 0), decoder_depths=(0, 1, 1))
        )
    with pytest.raises(CheckpointError, match=r"\d+ missing from it: .*backbone"):
        load_aurora_checkpoint(
            path, config=config_of(encoder_depths=(1, 1, 2), decoder_depths=(2, 1, 1))
        )
    other = tmp_path / "other.ckpt"
    torch.save({"layer.weight": torch.zeros(2)}, other)
    with pytest.raises(CheckpointError, match=r"1 that the model does not have: layer\.weight"):
        load_aurora_checkpoint(other, config=config_of())
    torch.save({"epoch": 3}, other)
    with pytest.raises(CheckpointError, match="holds epoch ...; expected weights by name, such as"):
        load_aurora_checkpoint(other, config=config_of())
    torch.save({"model": Trap()}, other)
    with pytest.raises(CheckpointError, match="damaged, or holds objects that would run code"):
        load_aurora_checkpoint(other, config=config_of())
    other.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint of tensors"):
        load_aurora_checkpoint(other, config=config_of())
    assert "ran" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        AuroraForForecasting.from_pretrained(tmp_path / "none.ckpt", config=config_of())
