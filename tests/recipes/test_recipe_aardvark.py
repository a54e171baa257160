"""Aardvark's recipes, from observations to a chain of lead times, as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hftune.recipes import aardvark, aardvark_initial_conditions
from processes import Script

from hftune.tasks.aardvark.modeling_aardvark import AardvarkProcessor
from hftune.tasks.aardvark.modeling_aardvark_encoder import AardvarkEncoder
from hftune.tasks.weather.initial_conditions import open_initial_conditions
from hftune.tasks.weather.simulation import write_simulation
from hftune.tasks.weather.store import open_fields
from hftune.tasks.weather.yearly_memmaps import write_yearly_memmaps
from hftune.utils.errors import ConfigurationError, DataError

torch.set_num_threads(1)

SIZES = {"patch_size": 3, "embed_dim": 16, "num_heads": 2, "depth": 1, "head_depth": 1}
TRAINING = {
    "learning_rate": 2e-3,
    "num_train_epochs": 1,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
}
ENCODER = {**SIZES, **TRAINING, "mixer_hidden": 16, "mixer_layers": 0, "mixer_width": 16}
ENCODER |= {"background_hours": 24, "simulated_stations": 8}
CHAIN = {"lead_time": 2, "lr": 1e-3, "finetune_epochs": 1, "batch_size": 32, "ic_batch_size": 64}
LEFT = ["ic_test_1.mmap", "ic_test_2.mmap", "ic_train_2.mmap", "ic_val_1.mmap", "ic_val_2.mmap"]


@pytest.fixture(scope="module")
def atmosphere(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("atmosphere") / "fields.nc"
    return write_simulation(path, years=1.1, latitudes=6, longitudes=9, levels=(500,))


@pytest.fixture(scope="module")
def config(tmp_path_factory, atmosphere) -> Path:
    folder = tmp_path_factory.mktemp("config")
    parts = {"encoder": ENCODER, "processor": {**SIZES, **TRAINING}}
    chain = {**CHAIN, "variables": ["2t", "z"], "simulation_years": 1}
    for name, settings in parts.items():
        (folder / f"{name}.yaml").write_text(json.dumps(settings))
        chain[f"{name}_config"] = str(folder / f"{name}.yaml")
    (folder / "chain.yaml").write_text(json.dumps(chain))
    return folder / "chain.yaml"


@pytest.fixture(scope="module")
def stations(tmp_path_factory, atmosphere) -> Path:
    from hftune.tasks.weather.simulated_stations import simulated_stations
    from hftune.tasks.weather.stations import write_stations

    folder = tmp_path_factory.mktemp("stations")
    write_stations(simulated_stations(open_fields(atmosphere), count=8), folder)
    return folder


def words(config, atmosphere, *more) -> list[str]:
    return [str(w) for w in ("--config", config, "--data", atmosphere, *more)]


@pytest.fixture(scope="module")
def finished(config, atmosphere, stations, tmp_path_factory) -> Path:
    """The folder of a run that trained an encoder and a processor first."""
    folder = tmp_path_factory.mktemp("run")
    os.environ["HFTUNE_HOME"] = str(folder / "home")
    aardvark.main(words(config, atmosphere, "--stations", stations, "--output_dir", folder / "out"))
    return folder / "out"


def test_leaves_every_file_that_a_run_promises(finished):
    for name in ("report.html", "scores.json", "run.json", "audit.json", "model/config.json",
                 "forecast_2/checkpoints/best_model/model.safetensors", "encoder/report.html",
                 "encoder/model/ic_train.mmap.json", "processor/report.html"):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    assert sorted(p.name for p in finished.glob("ic_*.mmap")) == LEFT
    run = json.loads((finished / "run.json").read_text())
    assert run["status"] == "completed" and run["task"] == "aardvark"
    scores = json.loads((finished / "scores.json").read_text())
    assert scores["lead_hours"] == [24, 48]
    assert set(scores["summary"]["rmse_normalised"]) == {
        "model", "untuned", "persistence", "climatology"
    }  # fmt: skip
    assert [entry["lead_hours"] for entry in scores["drift"]] == [0, 24, 48]


def test_initial_conditions_are_what_the_encoder_finds(finished, atmosphere, stations):
    from hftune.tasks.aardvark.observations import collate_observations, encoder_samples
    from hftune.tasks.weather.stations import read_stations

    encoder = AardvarkEncoder.from_pretrained(finished / "encoder" / "model").eval()
    states = open_initial_conditions(finished / "encoder" / "model" / "ic_val.mmap")
    samples = encoder_samples(
        encoder.config,
        read_stations(stations),
        states.times,
        fields=open_fields(atmosphere, variables=["2t", "z"]),
    )
    batch = collate_observations([samples[i] for i in range(len(samples))])
    with torch.no_grad():
        expected = encoder(batch["observations"], batch["times"]).prediction
    np.testing.assert_allclose(states.read(slice(None)), expected, rtol=1e-5, atol=1e-2)


def test_the_same_command_trains_nothing(finished, config, atmosphere, stations):
    def contents():
        paths = [finished / name for name in LEFT] + [*finished.rglob("*.safetensors")]
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths
                if "/model/" not in str(path)}  # fmt: skip

    before, scores = contents(), (finished / "scores.json").read_text()
    aardvark.main(words(config, atmosphere, "--stations", stations, "--output_dir", finished))
    assert contents() == before
    assert (finished / "scores.json").read_text() == scores


def test_the_parts_of_one_run_serve_another(finished, config, atmosphere, tmp_path):
    """The encoder's files and the processor, as the guide names them; nothing is trained first."""
    aardvark.main(
        words(config, atmosphere,
              "--assimilation_model_path", finished / "encoder" / "model",
              "--forecast_model_path", finished / "processor" / "model",
              "--lead_time", 1, "--loss", "rmse", "--weight_decay", 0.01,
              "--output_dir", tmp_path / "out")
    )  # fmt: skip
    assert not (tmp_path / "out" / "encoder").exists()
    model = AardvarkProcessor.from_pretrained(tmp_path / "out" / "model")
    assert model.config.loss_function == "rmse"
    assert (tmp_path / "out" / "ic_test_1.mmap").exists()


def test_yearly_memory_maps_and_plain_files_of_the_reference(finished, tmp_path):
    fields = open_fields(write_simulation(
        tmp_path / "six_hourly.nc", years=1.0, latitudes=6, longitudes=9, levels=(500,),
        step_hours=24, start="2018-01-01"), variables=["2t", "z"])  # fmt: skip
    write_yearly_memmaps(tmp_path / "era5", fields, frequency=24)
    data = ["--data", tmp_path / "era5", "--frequency", 24, "--audit", "off",
            "--train_dates", "2018-01-02:2018-08-31", "--validation_dates", "2018-09",
            "--test_dates", "2018-10"]  # fmt: skip
    states = tmp_path / "states"
    common = [*data, "--initial_conditions_dir", states, "--ic_batch_size", 64]
    source = ["--forecast_model_path", finished / "processor" / "model", "--forecast_hours", 24]
    aardvark_initial_conditions.main([str(w) for w in (*common, *source)])
    written = open_initial_conditions(states / "ic_val.mmap")
    september = (fields.times >= 1535760000) & (fields.times < 1538352000)
    np.testing.assert_array_equal(written.times, fields.times[september])
    model = AardvarkProcessor.from_pretrained(finished / "processor" / "model").eval()
    row = np.flatnonzero(september)[3] - 1
    with torch.no_grad():
        expected = model(
            torch.from_numpy(fields.read([row]))[None], torch.tensor([fields.times[row]])
        ).prediction[0]
    np.testing.assert_allclose(written.read(3), expected, rtol=1e-5, atol=1e-2)

    # Without their manifests they are what the reference's scripts leave.
    for path in states.glob("*.json"):
        path.unlink()
    (tmp_path / "out").mkdir()
    chain = ["--assimilation_model_path", states, "--forecast_model_path",
             finished / "processor" / "model", "--lead_time", 1, "--finetune_epochs", 1,
             "--output_dir", tmp_path / "out"]  # fmt: skip
    aardvark.main([str(w) for w in (*data, *chain)])
    assert (tmp_path / "out" / "ic_test_1.mmap").stat().st_size == 30 * 2 * 6 * 9 * 4
    with open(states / "ic_test.mmap", "ab") as stream:
        stream.truncate(10 * 2 * 6 * 9 * 4)
    with pytest.raises(DataError, match="ic_test.mmap"):
        aardvark.main([str(w) for w in (*data, *chain, "--output_dir", tmp_path / "other")])


def test_an_aurora_goes_through_the_chain(atmosphere, tmp_path):
    pytest.importorskip("aurora")
    from hftune.recipes import aurora

    small = {"embed_dim": 16, "num_heads": 2, "depths": [1, 1], "max_steps": 2, "history": 1}
    (tmp_path / "aurora.yaml").write_text(json.dumps({**small, "variables": ["2t", "z"]}))
    out = tmp_path / "aurora"
    aurora.main(words(tmp_path / "aurora.yaml", atmosphere, "--output_dir", out))
    (tmp_path / "chain.yaml").write_text(json.dumps({**CHAIN, "variables": ["2t", "z"]}))
    aardvark.main(
        words(tmp_path / "chain.yaml", atmosphere, "--task", "aurora",
              "--forecast_model_path", out / "model", "--output_dir", tmp_path / "chain")
    )  # fmt: skip
    scores = json.loads((tmp_path / "chain" / "scores.json").read_text())
    assert scores["lead_hours"] == [24, 48]
    assert (tmp_path / "chain" / "initial_conditions" / "ic_train.mmap").exists()


def test_two_processes_that_are_killed_go_on(repository, finished, config, atmosphere, tmp_path):
    """From a kill in the middle to the end, with two processes."""
    command = (
        repository / "recipes/aardvark.py", *words(
            config, atmosphere, "--forecast_model_path", finished / "processor" / "model",
            "--output_dir", tmp_path / "out",
        ),
    )  # fmt: skip
    home = {"HFTUNE_HOME": str(tmp_path / "home")}
    process = Script(*command, processes=2, **home)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "ic_train_1.mmap").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.printed()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process = Script(*command, processes=2, **home)
    assert process.wait() == 0, process.printed()
    assert sorted(p.name for p in (tmp_path / "out").glob("ic_*.mmap")) == LEFT
    assert process.printed().count("Report: ") == 1


def test_settings_that_contradict_each_other(atmosphere, monkeypatch, tmp_path):
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ConfigurationError) as error:
        aardvark.main(
            ["--data", str(atmosphere), "--task", "aurora", "--lead_time", "0", "--cross_fit", "1",
             "--master_port", "1234", "--output_dir", str(tmp_path / "out")]
        )  # fmt: skip
    text = str(error.value)
    for part in (
        "forecast_model_path: an Aurora has to be given",
        "lead_time: found 0, expected 1 day or more",
        "cross_fit: found 1, expected 0, or 2 parts or more",
        "accelerate launch --main_process_port 1234",
    ):
        assert part in text
    assert not (tmp_path / "out").exists()


def test_an_encoder_without_observations(finished, atmosphere, tmp_path):
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    with pytest.raises(DataError) as error:
        aardvark.main(
            ["--data", str(atmosphere), "--variables", "2t", "z",
             "--assimilation_model_path", str(encoder), "--audit", "off",
             "--forecast_model_path", str(finished / "processor" / "model"),
             "--output_dir", str(tmp_path / "out")]
        )  # fmt: skip
    assert str(error.value) == (
        f"{encoder} has no ic_train.mmap, ic_val.mmap, ic_test.mmap, and nothing to make them of: "
        "give the observations (--stations) for the encoder, or leave --assimilation_model_path "
        "out to start from the data."
    )
