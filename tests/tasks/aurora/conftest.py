"""Tiny Aurora models and batches for them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("aurora", reason="microsoft-aurora is not installed")

torch.set_num_threads(1)

# Sizes of the smallest network that is still an Aurora.
TINY = {
    "embed_dim": 16,
    "num_heads": 2,
    "encoder_depths": (1, 1),
    "encoder_num_heads": (2, 4),
    "decoder_depths": (1, 1),
    "decoder_num_heads": (4, 2),
    "window_size": (2, 2, 4),
    "latent_levels": 4,
    "patch_size": 4,
}
# Rough means and standard deviations by variable.
STATISTICS = {
    "2t": (280.0, 20.0),
    "10u": (0.0, 5.0),
    "10v": (0.0, 5.0),
    "msl": (101000.0, 1300.0),
    "tp": (0.002, 0.004),
    "soil": (0.3, 0.1),
    "z": (54000.0, 3300.0),
    "t": (250.0, 12.0),
    "q": (0.002, 0.001),
    "u": (5.0, 10.0),
    "v": (0.0, 8.0),
    "lsm": (0.3, 0.4),
}


def variable_of(channel: str) -> str:
    return channel.rpartition("_")[0] or channel


@pytest.fixture(scope="session")
def tiny():
    """Constructor arguments of the smallest network."""
    return dict(TINY)


@pytest.fixture(scope="session")
def make_config():
    """Makes the configuration of a tiny custom model; arguments replace its own."""
    from hftune.tasks.aurora import AuroraConfig

    def make(**arguments):
        channels = arguments.pop("channels", ["2t", "msl", "z_500", "z_850", "t_500", "t_850"])
        static = arguments.pop("static_channels", ["lsm", "z"])
        rows, columns = arguments.pop("grid", (9, 16))
        values = {
            "variant": "custom",
            "channels": channels,
            "static_channels": static,
            "latitude": np.linspace(60, 20, rows).tolist(),
            "longitude": (np.arange(columns) * 2.5).tolist(),
            "timestep_hours": 6,
            "mean": [STATISTICS[variable_of(c)][0] for c in channels],
            "std": [STATISTICS[variable_of(c)][1] for c in channels],
            "static_mean": [STATISTICS[c][0] for c in static],
            "static_std": [STATISTICS[c][1] for c in static],
            **TINY,
        }
        if values["variant"] == "custom":
            changes = [0.1 * STATISTICS[variable_of(c)][1] for c in channels]
            values["difference_std"] = changes
        return AuroraConfig(**(values | arguments))

    return make


@pytest.fixture(scope="session")
def make_batch():
    """Makes random fields, times and targets that fit a configuration."""

    def make(config, samples=2, steps=1, seed=0):
        generator = torch.Generator().manual_seed(seed)
        mean = torch.tensor(config.mean).view(-1, 1, 1)
        std = torch.tensor(config.std).view(-1, 1, 1)
        grid = (len(config.latitude), len(config.longitude))

        def fields(count):
            shape = (samples, count, len(config.channels), *grid)
            return torch.randn(shape, generator=generator) * std + mean

        return {
            "fields": fields(config.history),
            "times": torch.arange(samples) * 86400 * 50 + 1_577_836_800,
            "target_fields": fields(steps),
        }

    return make


@pytest.fixture(scope="session")
def make_model(make_config):
    """Makes a tiny model whose layers all matter, with static fields set."""
    from hftune.tasks.aurora import AuroraForForecasting

    def make(config=None, seed=0, **arguments):
        config = config or make_config(**arguments)
        torch.manual_seed(seed)
        model = AuroraForForecasting(config)
        randomise(model.aurora, seed)
        if config.static_channels:
            model.set_static_fields(torch.rand(model.static_fields.shape).numpy())
        return model

    return make


@pytest.fixture(scope="session")
def randomise_weights():
    """Gives every weight of a network a random value: some begin at zero and would hide errors."""
    return randomise


def randomise(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
