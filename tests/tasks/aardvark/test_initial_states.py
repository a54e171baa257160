"""Where initial conditions come from."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import chain_run

from hftune.tasks.aardvark.arguments_aardvark_encoder import AardvarkEncoderArguments
from hftune.tasks.aardvark.initial_states import (
    AnalysisStates,
    EncoderStates,
    ForecastStates,
    initial_conditions,
    write_conditions,
)
from hftune.tasks.aardvark.modeling_aardvark_encoder import AardvarkEncoder
from hftune.tasks.aardvark.prepare_aardvark_encoder import station_encoder_config
from hftune.tasks.weather.initial_conditions import open_initial_conditions
from hftune.tasks.weather.simulated_stations import simulated_stations
from hftune.tasks.weather.statistics import compute_statistics
from hftune.utils.errors import ConfigurationError, DataError

torch.set_num_threads(1)
FIELDS = chain_run.make_fields()
STATISTICS = compute_statistics(FIELDS, slice(0, 60))
TIMES = {"train": FIELDS.times[:60], "val": FIELDS.times[60:80], "test": FIELDS.times[80:]}


@pytest.fixture(scope="module")
def encoder() -> AardvarkEncoder:
    stations = simulated_stations(FIELDS, count=5)
    arguments = AardvarkEncoderArguments(
        background_hours=24, embed_dim=16, num_heads=2, depth=1, mixer_hidden=8, mixer_width=8
    )
    config = station_encoder_config(
        arguments, FIELDS.layout, STATISTICS, stations, FIELDS.times[:60]
    )
    torch.manual_seed(0)
    model = AardvarkEncoder(config)
    model.set_static_fields(FIELDS.static_fields)
    return model.eval()


def test_the_data_themselves(tmp_path):
    config = SimpleNamespace(
        channels=["z_500", "2t"],
        latitude=FIELDS.layout.latitude[:2],
        longitude=FIELDS.layout.longitude,
        history=2,
        timestep_hours=48,
    )
    written = write_conditions(tmp_path, AnalysisStates(FIELDS, config), TIMES, STATISTICS)
    # Two days before the first there is nothing.
    np.testing.assert_array_equal(written["train"].times, FIELDS.times[2:60])
    expected = FIELDS.values[[58, 60]][:, [2, 0], :2]
    np.testing.assert_array_equal(written["val"].read(0), expected)
    assert written["val"].manifest["statistics"]["mean"] == STATISTICS.mean[[2, 0]].tolist()


def test_an_encoder_and_what_it_depends_on(encoder, tmp_path):
    stations = simulated_stations(FIELDS, count=5)
    source = EncoderStates(encoder, stations, FIELDS)
    written = write_conditions(tmp_path, source, TIMES, STATISTICS, batch_size=7)
    np.testing.assert_array_equal(written["train"].times, FIELDS.times[1:60])
    observations = {
        "stations": torch.from_numpy(stations.at(FIELDS.times[60:61])),
        "background": torch.from_numpy(FIELDS.values[59:60].swapaxes(2, 3).copy()),
    }
    with torch.no_grad():
        expected = encoder(observations, torch.from_numpy(FIELDS.times[60:61])).prediction
    np.testing.assert_allclose(written["val"].read([0]), expected, rtol=1e-5)

    before = (tmp_path / "ic_val.mmap").stat().st_mtime_ns
    write_conditions(tmp_path, source, TIMES, STATISTICS, batch_size=9)  # states all the same
    assert (tmp_path / "ic_val.mmap").stat().st_mtime_ns == before
    with torch.no_grad():
        encoder.network.decoder_lr.norm.bias[0] += 1
    write_conditions(tmp_path, EncoderStates(encoder, stations, FIELDS), TIMES, STATISTICS)
    changed = open_initial_conditions(tmp_path / "ic_val.mmap").read([0])
    assert not np.allclose(changed, expected, rtol=1e-5)


def test_the_forecasts_of_another_model(tmp_path):
    model = chain_run.make_model(FIELDS).eval()
    written = write_conditions(tmp_path, ForecastStates(model, FIELDS, 48), TIMES, STATISTICS)
    np.testing.assert_array_equal(written["train"].times, FIELDS.times[2:60])
    with torch.no_grad():
        expected = model(
            torch.from_numpy(FIELDS.values[58:59, None]), torch.tensor(FIELDS.times[58:59]), steps=2
        ).prediction[:, 1:]
    np.testing.assert_allclose(written["val"].read([0]), expected, rtol=1e-5)
    with pytest.raises(ConfigurationError) as error:
        ForecastStates(model, FIELDS, 36)
    assert str(error.value) == (
        "forecast_hours: found 36, expected a multiple of 24, the model's time step"
    )


def test_an_encoder_and_a_processor_of_different_channels(encoder):
    config = chain_run.make_model(FIELDS).config
    config.channels = ["2t", "msl", "z_850"]
    config.latitude = [60.0, 57.5, 55.0, 52.5]
    with pytest.raises(DataError) as error:
        EncoderStates(encoder, simulated_stations(FIELDS, count=5), FIELDS, config)
    assert str(error.value) == (
        "the encoder finds the channels 2t, msl, z_500, the processor knows 2t, msl, z_850; the "
        "encoder has 4 values of latitude from 50 to 42.5, the processor 4 from 60 to 52.5. Train "
        "both on the same variables, levels and grid."
    )


def test_a_disk_that_is_too_small_for_all_three_is_told_before(tmp_path, monkeypatch, capsys):
    config = chain_run.make_model(FIELDS).config
    source = AnalysisStates(FIELDS, config)
    monkeypatch.setattr("hftune.tasks.aardvark.initial_states.free_bytes", lambda path: 20_000)
    with pytest.raises(DataError) as error:
        write_conditions(tmp_path, source, TIMES, STATISTICS)
    assert str(error.value) == (
        "ic_train.mmap, ic_val.mmap, ic_test.mmap need 0.0 MB, 0.0 MB are free on their disk: use "
        "--ic_dtype float16 (0.0 MB) or another folder (--initial_conditions_dir)."
    )
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    write_conditions(tmp_path, source, TIMES, STATISTICS)
    assert "initial conditions: ic_train.mmap, ic_val.mmap, ic_test.mmap take" in " ".join(
        capsys.readouterr().err.split()
    )


def test_plain_files_are_never_replaced(tmp_path):
    config = SimpleNamespace(
        channels=FIELDS.layout.channels,
        latitude=FIELDS.layout.latitude,
        longitude=FIELDS.layout.longitude,
        history=1,
        timestep_hours=24,
    )
    source = AnalysisStates(FIELDS, config)
    arguments = (TIMES, FIELDS.layout, STATISTICS)
    initial_conditions(tmp_path, source, *arguments)
    contents = {}
    for split in TIMES:
        path = tmp_path / f"ic_{split}.mmap"
        Path(f"{path}.json").unlink()
        values = np.memmap(path, dtype="<f4", mode="r+")
        values += 1
        values.flush()
        contents[split] = path.read_bytes()
    found = initial_conditions(tmp_path, source, *arguments)
    np.testing.assert_array_equal(found["test"].read(0)[0], FIELDS.values[80] + 1)
    assert {split: (tmp_path / f"ic_{split}.mmap").read_bytes() for split in TIMES} == contents
