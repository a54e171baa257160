"""Aurora in a lead-time chain: two past states, two time steps in a day."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "aardvark"))
import chain_run

from hftune.tasks.aurora.configuration_aurora import build_config_from_fields
from hftune.tasks.aurora.modeling_aurora import AuroraForForecasting
from hftune.tasks.weather.initial_conditions import open_initial_conditions
from hftune.tasks.weather.statistics import compute_statistics
from hftune.training.plan import best_model

torch.set_num_threads(1)


def make_aurora(fields) -> AuroraForForecasting:
    torch.manual_seed(0)
    config = build_config_from_fields(
        fields.layout,
        compute_statistics(fields, slice(0, 120), 12),
        history=2,
        timestep_hours=12,
        patch_size=2,
        residual_prediction=True,
        embed_dim=16,
        num_heads=2,
        encoder_depths=[1, 1],
        encoder_num_heads=[2, 4],
        decoder_depths=[1, 1],
        decoder_num_heads=[4, 2],
        latent_levels=2,
        window_size=[2, 2, 2],
    )
    model = AuroraForForecasting(config)
    model.set_static_fields(fields.static_fields)
    return model


def test_aurora_goes_on_from_its_own_states(tmp_path):
    fields = chain_run.make_fields(hours=12)
    model = make_aurora(fields)
    options = {"fields": fields, "lead_times": 2, "keep_train_ics": -1, "clock": "valid"}
    trainer = chain_run.make_trainer(tmp_path, options, model=model, num_train_epochs=1)
    trainer.train()

    # By hand: two steps of 12 hours a day, the last two states are what the next day begins with.
    first, last = (2 * day for day in chain_run.DAYS["test"])
    times = fields.times[first + 1 : last - 2]  # the first has no state 12 hours before
    rows = np.searchsorted(fields.times, times)
    states = torch.from_numpy(np.stack([fields.values[rows - 1], fields.values[rows]], axis=1))
    for lead_time in (1, 2):
        day = AuroraForForecasting.from_pretrained(
            best_model(tmp_path, f"forecast_{lead_time}")
        ).eval()
        with torch.no_grad():
            told = torch.from_numpy(times + (lead_time - 1) * 86400)
            states = day(states, told, steps=2).prediction
        stored = open_initial_conditions(tmp_path / f"ic_test_{lead_time}.mmap")
        assert stored.history == 2
        known = np.isin(times, stored.times)
        found = stored.read(np.searchsorted(stored.times, times[known]))
        np.testing.assert_allclose(found, states[known], rtol=1e-5)
    scores = trainer.chain.scores([tmp_path / "forecast_1", tmp_path / "forecast_2"])
    assert np.isfinite(scores.measure("model", "rmse")).all()
