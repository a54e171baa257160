"""Real files, from opening to a training step, without a word of configuration."""

from __future__ import annotations

import pytest
import torch

from hftune.tasks.aurora import AuroraForForecasting, build_config_from_fields
from hftune.tasks.weather.samples import collate, make_samples
from hftune.tasks.weather.statistics import compute_statistics
from hftune.tasks.weather.store import open_fields


@pytest.mark.parametrize(
    ("name", "step_hours", "patch"),
    [
        ("era5_davos_hourly_2020_01", 1, 2),
        ("ncep_global_daily_2022_01.nc", 24, 4),
        ("ncep_iberia_daily_1961_1999.nc", 24, 3),
    ],
)
def test_a_training_step(test_data, name, step_hours, patch):
    fields = open_fields(str(test_data / "weather" / name), progress=False)
    rows = range(min(200, len(fields)))
    statistics = compute_statistics(fields, rows, difference_hours=step_hours)
    torch.manual_seed(0)
    config = build_config_from_fields(fields.layout, statistics)
    assert config.patch_size == patch
    model = AuroraForForecasting(config)
    if fields.layout.static_channels:
        model.set_static_fields(fields.static_fields)
    samples = make_samples(
        fields,
        history=config.history,
        step_hours=step_hours,
        lead_hours=[step_hours],
        rows=rows,
    )
    batch = collate([samples[i] for i in range(2)])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0]
    assert output.prediction.shape[-2:] == (config.output_rows, fields.layout.grid[1])
    # The first forecast is persistence, so the first loss is near one typical change.
    assert 0.1 < losses[0] < 3
