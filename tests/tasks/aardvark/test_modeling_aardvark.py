"""The processor against a plain computation written from the specification, and as a model."""

from __future__ import annotations

import datetime
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from hftune.tasks.aardvark import AardvarkProcessor, AardvarkProcessorConfig, published_config
from hftune.tasks.aardvark.time_channels import time_channels
from hftune.utils.errors import CheckpointError, DataError

torch.set_num_threads(1)

CHANNELS = ["2t", "msl", "z_500", "z_850", "q_700"]
MEAN = [280.0, 101000.0, 54000.0, 14000.0, 0.0025]
STD = [20.0, 1300.0, 3300.0, 1500.0, 0.0026]
DIFFERENCE_MEAN = [0.01, -0.3, 2.0, -1.0, 1e-5]
DIFFERENCE_STD = [2.5, 670.0, 660.0, 490.0, 0.0014]
GRIDS = [((10, 11), 5), ((9, 6), 1), ((7, 8), 3), ((4, 4), 4)]  # longitudes, latitudes; patch


def make_model(grid=(10, 11), patch_size=5, static=("lsm", "z"), seed=0, **arguments):
    """A small model with weights that all matter."""
    config = AardvarkProcessorConfig(
        channels=CHANNELS,
        static_channels=static,
        latitude=np.linspace(90, -60, grid[1]),
        longitude=np.arange(grid[0]) * 2.5,
        mean=MEAN,
        std=STD,
        difference_mean=DIFFERENCE_MEAN,
        difference_std=DIFFERENCE_STD,
        static_mean=[0.3, 900.0][: len(static)],
        static_std=[0.4, 3000.0][: len(static)],
        patch_size=patch_size,
        **{"embed_dim": 16, "num_heads": 4, "depth": 2, "head_depth": 1} | arguments,
    )
    torch.manual_seed(seed)
    model = AardvarkProcessor(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    if static:
        scale = torch.tensor([1.0, 3000.0])[: len(static)].view(-1, 1, 1)
        model.set_static_fields(torch.rand(len(static), grid[1], grid[0]) * scale)
    return model


def make_batch(config, samples=2, steps=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(config.channels), len(config.latitude), len(config.longitude))
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (config.mean, config.std))
    change = torch.tensor(config.difference_std).view(-1, 1, 1)
    fields = torch.randn(samples, 1, *shape, generator=generator) * std + mean
    noise = torch.randn(samples, steps, *shape, generator=generator) * change
    return {
        "fields": fields,
        "times": torch.arange(samples) * (86400 * 50 + 6 * 3600) + 1_577_836_800,
        "target_fields": fields + noise.cumsum(dim=1),
    }


def plain_network(weights, x, lead_time, patch, heads):
    """The forward of the specification, step by step: every token, key and value is formed."""
    w = {name.removeprefix("decoder_lr."): value for name, value in weights.items()}
    batch, channels, columns, rows = x.shape
    tokens = [
        F.conv2d(
            x[:, v : v + 1],
            w[f"token_embeds.{v}.proj.weight"],
            w[f"token_embeds.{v}.proj.bias"],
            stride=patch,
        )
        .flatten(2)
        .transpose(1, 2)
        for v in range(channels)
    ]
    tokens = torch.stack(tokens, dim=2) + w["var_embed"][0]  # [B, N, V, D]
    width = tokens.shape[-1]

    def attend(query, key, value):
        split = [t.unflatten(-1, (heads, -1)).transpose(-2, -3) for t in (query, key, value)]
        scores = split[0] @ split[1].transpose(-1, -2) / math.sqrt(width // heads)
        return (scores.softmax(dim=-1) @ split[2]).transpose(-2, -3).flatten(-2)

    weight, bias = w["var_agg.in_proj_weight"], w["var_agg.in_proj_bias"]
    query, key, value = (
        F.linear(source, weight[i * width : (i + 1) * width], bias[i * width : (i + 1) * width])
        for i, source in enumerate((w["var_query"][None], tokens, tokens))
    )
    x = attend(query.expand(*tokens.shape[:2], 1, width), key, value)[:, :, 0]
    x = F.linear(x, w["var_agg.out_proj.weight"], w["var_agg.out_proj.bias"])
    x = x + w["pos_embed"]
    x = x + F.linear(lead_time, w["lead_time_embed.weight"], w["lead_time_embed.bias"])[:, None]

    def norm(x, name):
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    for i in range(sum(name.endswith("attn.qkv.weight") for name in w)):
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, dim=-1)
        x = x + linear(attend(*qkv), f"blocks.{i}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
    x = norm(x, "norm")
    layers = sorted(int(n.split(".")[1]) for n in w if n.startswith("head.") and "weight" in n)
    for layer in layers[:-1]:
        x = F.gelu(linear(x, f"head.{layer}"))
    x = linear(x, f"head.{layers[-1]}")
    across, along = columns // patch, rows // patch
    x = x.view(batch, across, along, patch, patch, -1)
    x = torch.einsum("nhwpqc->nchpwq", x).reshape(batch, -1, across * patch, along * patch)
    # Nearest neighbours: cell i of n reads cell floor(i * m / n) of m.
    west = torch.arange(columns) * (across * patch) // columns
    south = torch.arange(rows) * (along * patch) // rows
    return x[:, :, west][..., south]


def relative(value, expected):
    return ((value - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("grid", "patch"), GRIDS)
def test_network_is_that_of_the_specification(grid, patch):
    network = make_model(grid, patch).network
    x = torch.randn(3, 11, *grid)
    lead_time = torch.tensor([[0.0], [2.0], [3.0]])
    output = network(x, lead_time)
    weights = {
        name: value.double().requires_grad_() for name, value in network.state_dict().items()
    }
    expected = plain_network(weights, x.double(), lead_time.double(), patch, 4)
    assert output.shape == expected.shape == (3, 5, *grid)
    assert relative(output, expected) < 1e-5

    direction = torch.randn(expected.shape)
    (output * direction).sum().backward()
    (expected * direction.double()).sum().backward()
    scale = max(value.grad.abs().max() for value in weights.values())
    for name, parameter in network.named_parameters():
        gradient = weights[name].grad
        assert (parameter.grad - gradient).abs().max() < 1e-5 * scale, name
        # Only the bias of the keys (a third of in_proj_bias) has no effect.
        assert parameter.grad.abs().max() > 1e-6 * scale, name


def published_keys():
    """Section 1.2 of the notes, written out."""
    keys = {"ascat_setconvs.init_ls": (1,), "sc_out.init_ls": (1,)}
    decoder = {
        "var_embed": (1, 35, 512),
        "var_query": (1, 1, 512),
        "pos_embed": (1, 1152, 512),
        "var_agg.in_proj_weight": (1536, 512),
        "var_agg.in_proj_bias": (1536,),
    }
    layers = {
        "var_agg.out_proj": (512, 512),
        "lead_time_embed": (512, 1),
        "norm": (512,),
        **{f"token_embeds.{v}.proj": (512, 1, 5, 5) for v in range(35)},
        **{f"head.{i}": (512, 512) for i in (0, 2, 4, 6)},
        "head.8": (600, 512),
    }
    for i in range(16):
        layers |= {
            f"blocks.{i}.norm1": (512,),
            f"blocks.{i}.norm2": (512,),
            f"blocks.{i}.attn.qkv": (1536, 512),
            f"blocks.{i}.attn.proj": (512, 512),
            f"blocks.{i}.mlp.fc1": (2048, 512),
            f"blocks.{i}.mlp.fc2": (512, 2048),
        }
    for name, shape in layers.items():
        decoder |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    keys |= {f"decoder_lr.{name}": shape for name, shape in decoder.items()}
    for name, shape in (
        ("0", (128, 24)),
        *((f"{i}.0", (128, 128)) for i in (2, 3, 4, 5)),
        ("6", (24, 128)),
    ):
        keys |= {f"mlp.mlp.{name}.weight": shape, f"mlp.mlp.{name}.bias": shape[:1]}
    return keys


def make_published(**settings):
    ones = np.ones(24)
    names = [f"static{i + 1}" for i in range(7)]
    with torch.device("meta"):
        return AardvarkProcessor(
            published_config(
                mean=0 * ones,
                std=ones,
                difference_mean=0 * ones,
                difference_std=ones,
                static_channels=names,
                **settings,
            )
        )


def test_published_network_has_the_published_keys():
    model = make_published()
    found = {name: tuple(value.shape) for name, value in model.network.state_dict().items()}
    assert found == published_keys()
    assert len(found) == 297
    assert sum(p.numel() for p in model.network.parameters()) == 53_995_762
    frozen = {name for name, p in model.network.named_parameters() if not p.requires_grad}
    unused = ("ascat_setconvs.", "sc_out.", "mlp.")
    assert frozen == {name for name in found if name.startswith(unused)} and len(frozen) == 14

    lean = make_published(reference_tensors=False).network
    assert lean.state_dict().keys() == found.keys() - frozen
    assert all(p.requires_grad for p in lean.parameters())


def test_northernmost_row_is_not_read_and_the_southernmost_is_doubled():
    model = make_model()  # 11 latitudes, patches of 5
    batch = make_batch(model.config)
    fields, times = batch["fields"], batch["times"]
    changed = fields.clone()
    changed[..., 0, :] += 1000.0 * torch.tensor(STD).view(-1, 1)
    raw = []
    model.network.register_forward_hook(lambda module, inputs, output: raw.append(output))
    with torch.no_grad():
        model(fields, times), model(changed, times)
    assert torch.equal(*raw)
    assert torch.equal(raw[0][..., 0], raw[0][..., 1])
    assert not torch.equal(raw[0][..., 1], raw[0][..., 2])


def plain_prediction(model, fields, times, steps=1):
    """What the model does around its network, with a new array for each plane."""
    config = model.config
    states, state = [], fields[:, 0].double()
    for step in range(steps):
        samples = []
        for sample, second in zip(state, times.tolist(), strict=True):
            planes = [
                (plane - mean) / std
                for plane, mean, std in zip(sample, config.mean, config.std, strict=True)
            ]
            planes += [
                (plane.double() - mean) / std
                for plane, mean, std in zip(
                    model.static_fields, config.static_mean, config.static_std, strict=True
                )
            ]
            if config.time_channels == "valid":
                second += step * 86400
            planes += [torch.full_like(sample[0], value) for value in clock(second)]
            samples.append(torch.stack([plane.flipud().T for plane in planes]))
        weights = {n: v.double() for n, v in model.network.state_dict().items()}
        lead_time = torch.zeros(len(samples), 1, dtype=torch.float64)
        change = plain_network(weights, torch.stack(samples), lead_time, config.patch_size, 4)
        change = torch.stack([torch.stack([c.T.flipud() for c in s]) for s in change])
        std = torch.tensor(config.difference_std).double().view(-1, 1, 1)
        mean = torch.tensor(config.difference_mean).double().view(-1, 1, 1)
        state = state + change * std + mean
        states.append(state)
    return torch.stack(states, dim=1)


def clock(second):
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=second)
    hour = moment.hour + moment.minute / 60 + moment.second / 3600
    day = moment.timetuple().tm_yday - 1
    length = 366 if moment.year % 4 == 0 else 365
    angles = (hour * math.pi / 12, 2 * math.pi * day / length)
    return [f(angle) for angle in angles for f in (math.sin, math.cos)]


@pytest.mark.parametrize("told", ["initial", "valid"])
@pytest.mark.parametrize(("grid", "patch"), GRIDS[:2])
def test_prediction_and_rollout(grid, patch, told):
    model = make_model(grid, patch, time_channels=told).eval()
    batch = make_batch(model.config)
    output = model(batch["fields"], batch["times"], steps=3)
    assert output.loss is None and output.losses is None
    expected = plain_prediction(model, batch["fields"], batch["times"], steps=3)
    assert output.prediction.shape == (2, 3, 5, grid[1], grid[0])
    assert output.prediction.dtype == torch.float32
    error = (output.prediction - expected).abs().amax(dim=(0, 1, 3, 4))
    assert (error / torch.tensor(STD) < 2e-5).all()

    # The same as calling it a step at a time, as the chain of lead times does.
    fields, times = batch["fields"], batch["times"]
    for step in range(3):
        fields = model(fields, times + (step * 86400 if told == "valid" else 0)).prediction
        assert torch.equal(fields[:, 0], output.prediction[:, step])


@pytest.mark.parametrize("loss_function", ["lw_rmse_pressure_weighted", "lw_rmse", "rmse"])
def test_loss_and_losses(loss_function):
    model = make_model(loss_function=loss_function).eval()
    batch = make_batch(model.config, steps=2)
    batch["target_fields"][0, 0, 2, 3, 4:8] = float("nan")
    batch["target_fields"][1, 1] = float("nan")
    output = model(**batch)
    prediction = plain_prediction(model, batch["fields"], batch["times"], steps=2).numpy()
    target = batch["target_fields"].double().numpy()
    error = (prediction - target) / np.array(DIFFERENCE_STD)[:, None, None]
    area = np.cos(np.deg2rad(np.linspace(90, -60, 11)))
    area = (area / area.mean())[:, None] if loss_function != "rmse" else 1.0
    pressure = np.ones(5)
    if loss_function == "lw_rmse_pressure_weighted":
        pressure = np.array([1, 1, 0.5, 0.85, 0.7])
    squares = error**2 * area
    given = [(0, 0), (0, 1), (1, 0)]
    each = [np.sqrt(np.nanmean(squares[i] * pressure[:, None, None])) for i in given]
    assert output.loss.item() == pytest.approx(np.mean(each), rel=1e-5)
    channel = np.mean([np.sqrt(np.nanmean(squares[i], axis=(1, 2))) for i in given], axis=0)
    expected = {"2t": channel[0], "msl": channel[1], "z": channel[2:4].mean(), "q": channel[4]}
    assert not any(value.requires_grad for value in output.losses.values())
    found = {name: value.item() for name, value in output.losses.items()}
    assert found == pytest.approx(expected, rel=1e-5)
    output.loss.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(torch.isfinite(g).all() for g in gradients) and all(g is not None for g in gradients)


def test_a_model_without_static_fields():
    model = make_model(static=()).eval()
    assert model.static_fields is None and model.config.in_channels == 9
    batch = make_batch(model.config)
    assert torch.isfinite(model(**batch).loss)


def test_zero_head_predicts_the_mean_change():
    model = AardvarkProcessor(make_model(static=(), zero_head=True).config).eval()
    batch = make_batch(model.config)
    output = model(batch["fields"], batch["times"], steps=2)
    mean = torch.tensor(DIFFERENCE_MEAN).view(-1, 1, 1)
    torch.testing.assert_close(output.prediction[:, :1], batch["fields"] + mean, rtol=0, atol=0)
    torch.testing.assert_close(output.prediction[:, 1:], output.prediction[:, :1] + mean)


def test_an_untrained_network_begins_as_published():
    config = make_model(embed_dim=64, reference_tensors=True).config
    decoder = AardvarkProcessor(config).network.decoder_lr
    assert decoder.head[-1].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert decoder.head[-1].bias.abs().max() == 0
    patch = decoder.token_embeds[0]["proj"]
    assert patch.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert 0 < patch.bias.abs().max() <= 1 / 5  # torch's default: 1 / sqrt(25)
    bound = math.sqrt(6 / (64 + 3 * 64))  # Xavier
    assert 0.95 * bound < decoder.var_agg.in_proj_weight.abs().max() <= bound
    assert decoder.var_query.abs().max() == 0 and decoder.var_agg.out_proj.bias.abs().max() == 0
    angles = 7 / 10000 ** (np.arange(32) / 32)
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(decoder.var_embed[0, 7].detach(), expected, atol=1e-6)


def test_a_network_of_ones_own_begins_with_weights_for_its_width():
    decoder = AardvarkProcessor(make_model(embed_dim=64).config).network.decoder_lr
    fc2 = decoder.blocks[0].mlp.fc2
    patch = decoder.token_embeds[0]["proj"]
    # A normal distribution that is cut at 2, which here are many standard deviations.
    assert decoder.head[-1].weight.std().item() == pytest.approx(1 / 8, rel=0.1)
    assert fc2.weight.std().item() == pytest.approx(1 / 16, rel=0.1)
    assert patch.weight.std().item() == pytest.approx(1 / 5, rel=0.1)
    assert fc2.bias.abs().max() == 0 and patch.bias.abs().max() <= 1 / 5


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        model = make_model(reference_tensors=True).train()
        if recompute:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model(**make_batch(model.config, steps=2)).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_low_precision_keeps_state_and_loss_in_float32():
    model = make_model().eval()
    batch = make_batch(model.config)
    exact = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    assert output.prediction.dtype == output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    assert not torch.equal(output.prediction, exact.prediction)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_it_learns():
    model = AardvarkProcessor(make_model((9, 6), 3, static=(), zero_head=True).config)
    batch = make_batch(model.config, samples=4)
    anomalies = batch["fields"] - torch.tensor(MEAN).view(-1, 1, 1)
    batch["target_fields"] = batch["fields"] - 0.1 * anomalies
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(50):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_saved_model_is_equal_to_the_bit(tmp_path):
    model = make_model(reference_tensors=True).eval()
    batch = make_batch(model.config)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is AardvarkProcessorConfig
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is AardvarkProcessor
    own, state = model.state_dict(), loaded.state_dict()
    assert own.keys() == state.keys() and "static_fields" in own
    assert all(torch.equal(value, own[name]) for name, value in state.items())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert len(frozen) == 14
    assert frozen == {name for name, p in loaded.named_parameters() if not p.requires_grad}
    output, expected = loaded(**batch), model(**batch)
    assert torch.equal(output.prediction, expected.prediction)
    assert torch.equal(output.loss, expected.loss)
    with pytest.raises(CheckpointError, match="of another shape: network.decoder_lr"):
        other = make_model(embed_dim=32).config
        AardvarkProcessor.from_pretrained(tmp_path, config=other)


def test_times_are_told_as_the_calendar_has_them():
    seconds = [
        int((datetime.datetime(*date) - datetime.datetime(1970, 1, 1)).total_seconds())
        for date in [
            (1970, 1, 1),
            (1959, 12, 31, 23, 59, 59),
            (1900, 2, 28, 18),  # 365 days, counted as 366
            (1900, 3, 1),
            (2000, 2, 29, 6),
            (2000, 12, 31, 12),
            (2019, 3, 1, 12, 30),
            (2020, 2, 29),
            (2020, 3, 1, 18),
            (2024, 12, 31, 18),
            (2100, 12, 31),
        ]
    ]
    generator = np.random.default_rng(0)
    seconds += generator.integers(-4_000_000_000, 8_000_000_000, 2000).tolist()
    found = time_channels(torch.tensor(seconds))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, [clock(second) for second in seconds], atol=2e-6)


def test_bad_input_is_named():
    model = make_model()
    batch = make_batch(model.config)
    fields = batch["fields"].clone()
    fields[1, 0, 3, 4, 5] = float("nan")
    fields[1, 0, 0, 0] = float("inf")
    fields[1, 0, 3, 4, 6] = float("-inf")
    with pytest.raises(DataError) as caught:
        model(fields, batch["times"])
    assert str(caught.value) == (
        "10 values of 2t (channel 2t) in the state of 2020-02-20 06:00 UTC are NaN or infinite, "
        "and values of z_850 too. One such value makes the whole forecast NaN: fill the gaps, or "
        "leave these times or variables out (hftune audit lists them)."
    )
    fields[1, 0, 0] = 280.0
    with pytest.raises(DataError, match=r"^2 values of z at 850 hPa \(channel z_850\) in the st"):
        model(fields, batch["times"])
    empty = AardvarkProcessor(model.config)
    with pytest.raises(DataError) as caught:
        empty(batch["fields"], batch["times"])
    assert str(caught.value) == (
        "static fields lsm, z are not set: call model.set_static_fields(fields.static_fields)."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fields": torch.zeros(2, 2, 5, 11, 10)},
            r"fields have the shape \[2, 2, 5, 11, 10\]; expected \[samples, 1, 5, 11, 10\]: 1 "
            "past state of the channels 2t, msl, z_500, z_850, q_700 on the model's 11 x 10 grid",
        ),
        ({"times": torch.zeros(2)}, r"times have the shape \[2\] and type torch.float32; expected"),
        ({"times": torch.zeros(3, dtype=torch.int64)}, r"times have the shape \[3\]"),
        (
            {"target_fields": torch.zeros(2, 1, 5, 10, 11)},
            r"target_fields have the shape \[2, 1, 5, 10, 11\]; expected \[2, steps, 5, 11, 10\]",
        ),
        ({"steps": 2}, "steps is 2, but target_fields hold 1 steps"),
        ({"steps": 0, "target_fields": None}, "steps is 0; it must be 1 or more"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    model = make_model()
    with pytest.raises(DataError, match=message):
        model(**(make_batch(model.config) | change))
