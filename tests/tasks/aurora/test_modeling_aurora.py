"""The model against the package's own forward pass, and every trap that it is there to avoid."""

from __future__ import annotations

import copy
import datetime
import time

import numpy as np
import pytest
import torch

from hftune.tasks.aurora import AuroraForForecasting
from hftune.utils.errors import ConfigurationError, DataError

UTC = datetime.timezone.utc


def bare_statistics(monkeypatch, config):
    """Puts a configuration's statistics into the package's process-wide tables, for the test."""
    import aurora.normalisation as tables

    names = [*config.channels, *config.static_channels]
    means, stds = [*config.mean, *config.static_mean], [*config.std, *config.static_std]
    for name, mean, std in zip(names, means, stds, strict=True):
        monkeypatch.setitem(tables.locations, name, mean)
        monkeypatch.setitem(tables.scales, name, std)


def bare_batch(config, fields, times, static):
    """The same batch as a user of the package writes it."""
    from aurora import Batch, Metadata

    surface, atmospheric = {}, {}
    for i, channel in enumerate(config.channels):
        name, _, level = channel.partition("_")
        if level:
            atmospheric.setdefault(name, []).append(fields[:, :, i])
        else:
            surface[name] = fields[:, :, i]
    return Batch(
        surf_vars=surface,
        static_vars=dict(zip(config.static_channels, static, strict=True)),
        atmos_vars={name: torch.stack(levels, dim=2) for name, levels in atmospheric.items()},
        metadata=Metadata(
            lat=torch.tensor(config.latitude),
            lon=torch.tensor(config.longitude),
            time=tuple(datetime.datetime.fromtimestamp(int(s), tz=UTC) for s in times),
            atmos_levels=tuple(config.levels),
        ),
    )


def bare_loss(model, batch, power=1, area=None):
    """A plain loop over steps, variables and levels around the package's own roll-out."""
    from aurora import rollout

    config, network = model.config, model.aurora
    weights = config.channel_weights()
    targets = batch["target_fields"][..., : config.output_rows, :]
    start = bare_batch(config, batch["fields"], batch["times"], model.static_fields)
    loss, predictions = 0.0, []
    for step, prediction in enumerate(rollout(network, start, targets.shape[1])):
        for i, channel in enumerate(config.channels):
            name, _, level = channel.partition("_")
            if level:
                k = config.levels.index(int(level))
                field = prediction.atmos_vars[name][:, 0, k]
            else:
                field = prediction.surf_vars[name][:, 0]
            predictions.append(field)
            mean, std = config.mean[i], config.std[i]
            error = (field - mean) / std - (targets[:, step, i] - mean) / std
            error = error.abs() ** power
            if area is not None:
                error = error * area[:, None]
            loss = loss + weights[i] * error.mean() / targets.shape[1]
    samples, steps, channels = targets.shape[:3]
    stacked = torch.stack(predictions, dim=1).view(samples, steps, channels, *targets.shape[-2:])
    return loss, stacked


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({}, 1),
        ({"loss_function": "mse", "loss_weights": "uniform", "area_weights": True}, 1),
        ({"use_lora": True, "lora_mode": "from_second"}, 2),
        ({"level_condition": (500, 850), "dynamic_vars": True, "atmos_static_vars": True}, 1),
        ({"positive_surf_vars": ("2t",), "positive_atmos_vars": ("t",)}, 2),
        ({"stabilise_level_agg": True, "separate_perceiver": ("t",)}, 1),
    ],
)
def test_loss_and_gradients_are_those_of_a_loop_around_aurora(
    monkeypatch, make_model, make_batch, arguments, steps
):
    from hftune.tasks.weather.scores import cell_area_weights

    model = make_model(**arguments)
    batch = make_batch(model.config, samples=3, steps=steps)
    bare_statistics(monkeypatch, model.config)
    power = {"mae": 1, "mse": 2}[model.config.loss_function]
    area = None
    if model.config.area_weights:
        area = torch.tensor(cell_area_weights(model.output_latitude), dtype=torch.float32)

    expected, prediction = bare_loss(model, batch, power, area)
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()

    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    std = torch.tensor(model.config.std).view(-1, 1, 1)
    assert ((output.prediction - prediction) / std).abs().max() < 2e-5
    assert gradients.keys() == {n for n, p in model.named_parameters() if p.grad is not None}
    # Of one step to 1e-6. Later ones go through physical units there, which rounds z to 1e-6 sigma.
    tolerance = 1e-6 if steps == 1 else 2e-5
    whole = torch.sqrt(sum(g.square().sum() for g in gradients.values()))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert (parameter.grad - gradients[name]).norm() <= tolerance * whole, name


def test_every_weight_that_is_trained_has_a_gradient(make_model, make_batch):
    """DistributedDataParallel waits for each of them."""
    for arguments in ({}, {"channels": ["2t"]}, {"channels": ["z_500"], "static_channels": []}):
        model = make_model(**arguments)
        model(**make_batch(model.config)).loss.backward()
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trained == {n for n, p in model.named_parameters() if p.grad is not None}


def test_transformers_leaves_the_first_weights_alone(make_config):
    from hftune.tasks.aurora.network_aurora import build_network

    config = make_config()
    torch.manual_seed(7)
    expected = build_network(config).state_dict()
    torch.manual_seed(7)
    model = AuroraForForecasting(config)
    assert all(torch.equal(v, expected[k]) for k, v in model.aurora.state_dict().items())


def test_layers_of_a_custom_network_keep_the_size_of_what_they_pass_on(make_config):
    model = AuroraForForecasting(make_config(embed_dim=64)).aurora
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    begun = [m for m in layers if m.weight.any()]
    assert len(begun) > 30
    for layer in begun:
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.2)
    modulation = [m for n, m in model.named_modules() if n.endswith("ln_modulation.1")]
    assert modulation and not any(m.weight.any() for m in modulation)  # adaLN begins at identity
    assert model.encoder.atmos_latents.std().item() == pytest.approx(1 / 8, rel=0.2)


def test_time_zone_of_the_machine_does_not_matter(monkeypatch, make_model, make_batch):
    model = make_model().eval()
    batch = make_batch(model.config)
    forecasts = []
    for zone in ("UTC", "Asia/Seoul"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        forecasts.append(model(**batch).prediction)
    monkeypatch.undo()
    time.tzset()
    assert torch.equal(*forecasts)


def test_times_matter_and_may_be_before_1970(make_model, make_batch):
    model = make_model().eval()
    batch = make_batch(model.config, samples=1)
    early = model(batch["fields"], torch.tensor([-283_996_800])).prediction
    assert torch.isfinite(early).all()
    assert not torch.equal(early, model(batch["fields"], batch["times"]).prediction)


def test_one_missing_pixel_is_named(make_model, make_batch):
    model = make_model()
    batch = make_batch(model.config)
    batch["fields"][1, 0, 3, 4, 5] = float("nan")
    batch["fields"][1, 1, 0] = float("inf")
    with pytest.raises(
        DataError,
        match=r"1 values of z at 850 hPa \(channel z_850\) in the state of 2020-02-19 18:00 "
        r"UTC are NaN or infinite, and values of 2t too",
    ):
        model(**batch)


def test_missing_targets_are_left_out(make_model, make_batch):
    model = make_model(area_weights=True)
    batch = make_batch(model.config, steps=2)
    whole = copy.deepcopy(batch)
    hole = torch.zeros_like(batch["target_fields"], dtype=torch.bool)
    hole[:, :, 0] = True  # all of 2t
    hole[0, 1, 3, 2:5] = True
    batch["target_fields"][hole] = float("nan")
    output = model(**batch)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    from hftune.tasks.weather.scores import cell_area_weights

    std = np.array(model.config.std)[:, None, None]
    error = (output.prediction.detach() - whole["target_fields"][..., :8, :]).numpy() / std
    area = np.broadcast_to(cell_area_weights(model.output_latitude)[:, None], error.shape)
    there = ~hole[..., :8, :].numpy()
    expected = [
        np.average(abs(error[:, :, c]), weights=area[:, :, c] * there[:, :, c]) if c else 0.0
        for c in range(6)
    ]
    loss = (model.config.channel_weights() * expected).sum()
    assert output.loss.item() == pytest.approx(loss, rel=1e-4)
    assert output.losses["2t"] == 0
    assert output.losses["z"].item() == pytest.approx((expected[2] + expected[3]) / 2, rel=1e-4)


def test_southernmost_row_is_left_out(make_model, make_batch):
    model = make_model()
    batch = make_batch(model.config)
    output = model(**batch)
    assert model.output_latitude.tolist() == np.linspace(60, 20, 9)[:8].tolist()
    assert output.prediction.shape == (2, 1, 6, 8, 16)
    cropped = batch | {"target_fields": batch["target_fields"][..., :8, :]}
    assert model(**cropped).loss == output.loss
    even = make_model(grid=(8, 16))
    assert len(even.output_latitude) == 8


def test_latitude_must_decrease_and_fit_the_patch(make_config):
    with pytest.raises(ConfigurationError, match=r"strictly decreasing .* it is 20, 25 \.\.\. 5"):
        make_config(latitude=np.linspace(20, 60, 9))
    with pytest.raises(
        ConfigurationError,
        match=r"10 latitudes are 2 too many for patch_size 4.*"
        r"Sizes that fit: 2, 3, 5\.",
    ):
        make_config(grid=(10, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": torch.zeros(2, 2, 5, 9, 16)}, r"expected \[samples, 2, 6, 9, 16\]"),
        ({"times": torch.tensor([0])}, r"expected one int64 for each of 2 samples"),
        ({"times": torch.zeros(2)}, r"type torch.float32; expected one int64"),
        ({"target_fields": torch.zeros(2, 1, 6, 7, 16)}, r"expected \[2, steps, 6, 9, 16\]"),
        ({"steps": 3}, r"steps is 3, but target_fields hold 1"),
        ({"target_fields": None, "steps": 0}, r"steps is 0; it must be 1 or more"),
    ],
)
def test_shapes_that_do_not_fit_are_named(make_model, make_batch, change, message):
    model = make_model()
    with pytest.raises(DataError, match=message):
        model(**(make_batch(model.config) | change))


def test_static_fields_must_be_set(make_config, make_batch):
    model = AuroraForForecasting(make_config())
    batch = make_batch(model.config)
    with pytest.raises(DataError, match="static fields lsm, z are not set: call model.set_static"):
        model(**batch)
    with pytest.raises(DataError, match=r"shape \[1, 9, 16\]; expected \[2, 9, 16\]: lsm, z"):
        model.set_static_fields(np.zeros((1, 9, 16)))
    with pytest.raises(DataError, match="static field z is not finite"):
        model.set_static_fields(np.stack([np.zeros((9, 16)), np.full((9, 16), np.nan)]))
    values = np.random.default_rng(0).random((2, 9, 16), dtype=np.float32)
    one = model(**batch, static_fields=torch.tensor(values)).prediction
    batched = torch.tensor(values).expand(2, 2, 9, 16)
    assert torch.equal(model(**batch, static_fields=batched).prediction, one)
    model.set_static_fields(values)
    assert torch.equal(model(**batch).prediction, one)


def test_untrained_residual_model_is_persistence(make_config, make_batch):
    config = make_config(residual_prediction=True, static_channels=[])
    model = AuroraForForecasting(config)
    batch = make_batch(config, steps=3)
    output = model(**batch)
    last = batch["fields"][:, -1:, :, :8].expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(output.prediction, last, rtol=1e-6, atol=1e-4)
    output.loss.backward()
    assert any(p.grad.any() for n, p in model.named_parameters() if "_heads" in n)
    with pytest.raises(ConfigurationError, match="residual_prediction needs difference_std"):
        make_config(residual_prediction=True, difference_std=None)


def test_rollout_is_one_step_after_another(make_model, make_batch):
    model = make_model(grid=(8, 16), history=3, residual_prediction=True).eval()
    batch = make_batch(model.config)
    fields, times = batch["fields"], batch["times"]
    long = model(fields, times, steps=3).prediction
    for step in range(3):
        next_state = model(fields, times).prediction
        std = torch.tensor(model.config.std).view(-1, 1, 1)
        assert ((next_state[:, 0] - long[:, step]) / std).abs().max() < 1e-4
        fields = torch.cat([fields[:, 1:], next_state], dim=1)
        times = times + 6 * 3600


def test_channels_in_any_order_and_without_some_levels(make_model, make_batch):
    tidy = ["2t", "msl", "z_500", "z_850", "t_500", "t_850"]
    mixed = ["t_850", "2t", "z_500", "t_500", "msl", "z_850"]
    forecasts = {}
    for name, channels in (("tidy", tidy), ("mixed", mixed)):
        model = make_model(channels=channels).eval()
        for key, value in make_model(channels=tidy).state_dict().items():
            model.state_dict()[key].copy_(value)
        batch = make_batch(make_model(channels=tidy).config)
        order = [tidy.index(c) for c in channels]
        fields = batch["fields"][:, :, order]
        forecasts[name] = model(fields, batch["times"]).prediction
    back = [mixed.index(c) for c in tidy]
    std = torch.tensor(make_model(channels=tidy).config.std).view(-1, 1, 1)
    assert ((forecasts["mixed"][:, :, back] - forecasts["tidy"]) / std).abs().max() < 2e-5

    ragged = make_model(channels=["z_500", "t_850", "t_500"])
    output = ragged(**make_batch(ragged.config))
    assert output.prediction.shape == (2, 1, 3, 8, 16)
    assert set(output.losses) == {"z", "t"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"channels": ["2t", "msl"], "static_channels": []},  # as a station product has it
        {"channels": ["z_500", "t_500"]},  # as the global NCEP file has it
    ],
)
def test_data_without_a_kind_of_variable(make_model, make_batch, arguments):
    model = make_model(**arguments).eval()
    batch = make_batch(model.config)
    before = model(**batch).prediction
    frozen = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
    unused = ("level_decoder", "decoder.atmos_levels_embed")
    assert frozen and all(".no_" in n or any(u in n for u in unused) for n, _ in frozen)
    with torch.no_grad():
        for _, parameter in frozen:
            parameter.fill_(1e6)
    assert torch.equal(model(**batch).prediction, before)


def test_region_across_greenwich_is_moved_as_little_as_needed(make_config, make_model, make_batch):
    from hftune.tasks.aurora.constants_aurora import encoded_longitude

    crossing = [345 + 2.5 * i for i in range(9)]
    assert encoded_longitude(crossing).tolist() == [337.5 + 2.5 * i for i in range(9)]
    assert encoded_longitude(np.arange(144) * 2.5).tolist() == (np.arange(144) * 2.5).tolist()
    assert encoded_longitude([359.5, 360.0]).tolist() == [359.0, 359.5]

    model = make_model(longitude=[330 + 2.5 * i for i in range(16)])
    moved = AuroraForForecasting(make_config(longitude=[320 + 2.5 * i for i in range(16)]))
    moved.load_state_dict(model.state_dict())
    batch = make_batch(model.config)
    assert torch.equal(model(**batch).prediction, moved(**batch).prediction)
    with pytest.raises(ConfigurationError, match=r"it is -15, -12\.5 .* goes on past 360"):
        make_config(longitude=[-15 + 2.5 * i for i in range(16)])


def test_longitudes_that_do_not_fill_the_patches_are_continued(make_model, make_batch):
    narrow = make_model(grid=(8, 14)).eval()
    wide = make_model(grid=(8, 16)).eval()
    assert narrow.config.padded_longitude == wide.config.longitude
    wide.aurora.load_state_dict(narrow.aurora.state_dict())
    static = narrow.static_fields

    def continued(values):
        return torch.cat([values, values[..., -1:], values[..., -1:]], dim=-1)

    wide.set_static_fields(continued(static))
    batch = make_batch(narrow.config)
    output = narrow(**batch)
    assert output.prediction.shape == (2, 1, 6, 8, 14)
    expected = wide(continued(batch["fields"]), batch["times"]).prediction
    assert torch.equal(output.prediction, expected[..., :14])


def test_two_models_with_different_statistics(make_model, make_batch):
    import aurora.normalisation as tables

    before = dict(tables.locations), dict(tables.scales)
    one = make_model().eval()
    other = make_model(mean=[m + 1 for m in one.config.mean]).eval()
    batch = make_batch(one.config)
    first = one(**batch).prediction
    second = other(**batch).prediction
    assert not torch.allclose(first, second)
    assert torch.equal(one(**batch).prediction, first)
    shifted = batch["fields"] + 1
    std = torch.tensor(one.config.std).view(-1, 1, 1)
    difference = other(shifted, batch["times"]).prediction - (first + 1)
    assert (difference / std).abs().max() < 1e-4
    assert (tables.locations, tables.scales) == before


@pytest.mark.parametrize("mode", ["none", "backbone", "full"])
@pytest.mark.parametrize("outer", [False, True])
def test_autocast_is_where_it_should_be(monkeypatch, make_model, make_batch, mode, outer):
    # A GPU that is there but not used must not turn autocast off.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = make_model(autocast=mode)
    seen = {}
    for name, layer in (
        ("encoder", model.aurora.encoder.pos_embed),
        ("backbone", model.aurora.backbone.encoder_layers[0].blocks[0].attn.qkv),
        ("decoder", model.aurora.decoder.surf_heads["2t"]),
    ):
        layer.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
        output = model(**make_batch(model.config))
    output.loss.backward()
    low, high = torch.bfloat16, torch.float32
    everywhere = mode == "full" or (mode == "none" and outer)
    assert seen == {
        "encoder": low if everywhere else high,
        "backbone": low if everywhere or mode == "backbone" else high,
        "decoder": low if everywhere else high,
    }
    assert output.loss.dtype == output.prediction.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_bfloat16_changes_little(make_model, make_batch):
    plain, backbone = make_model(), make_model(autocast="backbone")
    batch = make_batch(plain.config)
    assert plain(**batch).loss.item() == pytest.approx(backbone(**batch).loss.item(), rel=1e-3)


def test_activation_checkpointing_changes_nothing_but_memory(make_model, make_batch):
    model = make_model(drop_rate=0.1, drop_path=0.1, autocast="backbone")
    names = [name for name, _ in model.named_parameters()]
    batch = make_batch(model.config, steps=2)

    def gradients():
        torch.manual_seed(0)
        model.zero_grad()
        model(**batch).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    calls = []
    model.aurora.backbone.encoder_layers[0].blocks[0].attn.register_forward_hook(
        lambda *_: calls.append(1)
    )
    plain = gradients()
    assert len(calls) == 2 and not model.is_activation_checkpointing
    model.activation_checkpointing_enable()
    model.activation_checkpointing_enable()  # once is enough, twice does no harm
    assert model.is_activation_checkpointing
    assert torch.equal(gradients(), plain)
    assert len(calls) == 2 + 4
    assert [name for name, _ in model.named_parameters()] == names
    twin = copy.deepcopy(model)
    assert twin.aurora.encoder.forward.args[1].__self__ is twin.aurora.encoder
    model.activation_checkpointing_disable()
    assert torch.equal(gradients(), plain)
    assert len(calls) == 2 + 4 + 2


def test_checkpointing_is_right_with_noise(make_model, make_batch):
    """The package's own wrappers draw the noise again in the backward pass: wrong gradients."""
    model = make_model(stochastic=True, static_channels=[])
    batch = make_batch(model.config, steps=3)
    found = []
    for enable in (False, True):
        model._set_gradient_checkpointing(enable)
        model.aurora.set_noise_accumulation(3)
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch).loss.backward()
        found.append(model.aurora.backbone.noise_mlp[0].weight.grad.clone())
    assert torch.equal(*found) and found[0].any()


def test_fsdp_wraps_the_blocks(make_model):
    from accelerate.utils.dataclasses import get_module_class_from_name

    model = make_model()
    assert set(model._no_split_modules) == {"Swin3DTransformerBlock", "PerceiverResampler"}
    for name in model._no_split_modules:
        assert get_module_class_from_name(model, name).__name__ == name
    wrapped = [m for m in model.modules() if type(m).__name__ in model._no_split_modules]
    assert len(wrapped) == 4 + 2
