"""The recipe of Aardvark's encoder from data to report, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hftune.recipes.aardvark_encoder import main

from hftune.tasks.aardvark.modeling_aardvark_encoder import AardvarkEncoder
from hftune.tasks.aardvark.observations import collate_observations, encoder_samples
from hftune.tasks.weather.simulated_stations import simulated_stations
from hftune.tasks.weather.simulation import write_simulation
from hftune.tasks.weather.stations import read_stations, write_stations
from hftune.tasks.weather.store import open_fields
from hftune.utils.errors import HftuneError

torch.set_num_threads(1)

SMALL = {
    "embed_dim": 16,
    "num_heads": 2,
    "depth": 1,
    "mixer_hidden": 16,
    "mixer_layers": 0,
    "mixer_width": 16,
    "simulated_stations": 8,
    "background_hours": 24,
    "learning_rate": 2e-3,
    "num_train_epochs": 2,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "logging_steps": 5,
}
PRODUCTS = (
    "audit.json",
    "report.html",
    "run.json",
    "scores.json",
    "model/model.safetensors",
    "stations/stations.csv",
    "stations/msl.csv",
)


@pytest.fixture(scope="module")
def atmosphere(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("atmosphere") / "fields.nc"
    return write_simulation(path, years=1.2, latitudes=6, longitudes=9, levels=(500, 850))


@pytest.fixture(scope="module")
def config(tmp_path_factory, atmosphere) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(json.dumps({**SMALL, "data": [str(atmosphere)]}))
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """The folder of a run with simulated stations and a background."""
    folder = tmp_path_factory.mktemp("run")
    os.environ["HFTUNE_HOME"] = str(folder / "home")
    main(["--config", str(config), "--output_dir", str(folder / "out")])
    return folder / "out"


def test_leaves_every_file_that_a_run_promises(finished):
    for name in PRODUCTS:
        assert (finished / name).stat().st_size > 0, name
    run = json.loads((finished / "run.json").read_text())
    assert run["status"] == "completed" and run["task"] == "aardvark_encoder"
    assert run["data"]["stations"]["count"] == 8
    # The first day has no day before.
    assert [split["samples"] for split in run["data"]["splits"].values()] == [349, 44, 44]
    page = (finished / "report.html").read_text()
    assert "z_500" in page and "One analysis" in page and "ridge" in page
    assert 'src="http' not in page and 'href="http' not in page


@pytest.fixture(scope="module")
def with_two_processes(repository, config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    command = [
        Path(sys.executable).parent / "accelerate", "launch", "--num_processes", "2", "--cpu",
        "--main_process_port", "0", repository / "recipes/aardvark_encoder.py", "--config", config,
        "--output_dir", folder / "out", "--num_train_epochs", "1",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HFTUNE_HOME": str(folder / "home")}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=repository, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return folder / "out"


@pytest.mark.parametrize("run", ["finished", "with_two_processes"])
def test_the_saved_model_scores_what_the_run_says(run, atmosphere, request):
    """Nothing but the model's folder, the stations and the fields is needed."""
    finished = request.getfixturevalue(run)
    model = AardvarkEncoder.from_pretrained(finished / "model").eval()
    fields = open_fields(atmosphere)
    stations = read_stations(finished / "stations")
    times = fields.times[round(0.9 * len(fields)) :]
    samples = encoder_samples(model.config, stations, times, fields=fields, every=True)
    batch = collate_observations([samples[i] for i in range(len(samples))])
    assert set(batch) == {"observations", "times"}
    with torch.no_grad():
        analysis = model(**batch).prediction[:, 0].double().numpy()

    scores = json.loads((finished / "scores.json").read_text())
    assert scores["samples"] == len(times)
    latitude = fields.layout.latitude
    half = (latitude[0] - latitude[1]) / 2
    weights = np.sin(np.deg2rad(latitude + half)) - np.sin(np.deg2rad(latitude - half))
    weights = (weights / weights.mean())[:, None]
    truth = fields.read(slice(round(0.9 * len(fields)), None))
    rmse = np.sqrt(((analysis - truth) ** 2 * weights).mean(axis=(0, 2, 3)))
    std = fields.read(slice(0, round(0.8 * len(fields)))).astype(np.float64).std(axis=(0, 2, 3))
    for index, (channel, entry) in enumerate(scores["variables"].items()):
        assert entry["rmse"] == pytest.approx(rmse[index], rel=1e-4), channel
        assert entry["rmse_normalised"] == pytest.approx(rmse[index] / std[index], rel=1e-4)
    summary = scores["summary"]
    assert summary["rmse_normalised"] == pytest.approx((rmse / std).mean(), rel=1e-4)
    before = fields.read(slice(round(0.9 * len(fields)) - 1, -1)).astype(np.float64)
    rmse = np.sqrt(((before - truth) ** 2 * weights).mean(axis=(0, 2, 3)))
    assert summary["background_rmse_normalised"] == pytest.approx((rmse / std).mean(), rel=1e-4)
    assert {"climatology_rmse_normalised", "ridge_rmse_normalised"} < set(summary)


def test_stations_of_a_folder(config, atmosphere, tmp_path):
    """Rain by its logarithm, dates that only some have, stations alone."""
    fields = open_fields(atmosphere)
    simulated = simulated_stations(fields, count=5, missing=0.3).select(["2t"])
    folder = write_stations(simulated, tmp_path / "stations")
    rain = (folder / "2t.csv").read_text().splitlines()
    (folder / "rain.csv").write_text("\n".join(rain[:300]) + "\n")
    out = tmp_path / "out"
    main(
        ["--config", str(config), "--output_dir", str(out), "--stations", str(folder),
         "--background_hours", "0", "--num_train_epochs", "1", "--tracking", "off",
         "--trainable_length_scale", "true"]
    )  # fmt: skip
    saved = AardvarkEncoder.from_pretrained(out / "model").config
    [modality] = saved.modalities
    assert modality["variables"] == ["2t", "log1p(rain)"]
    values = np.log1p(read_stations(folder).values[:350, 1])
    assert modality["mean"][1] == pytest.approx(np.nanmean(values), rel=1e-4)
    assert saved.background_hours == 0
    assert not (out / "stations").exists()
    assert "background_rmse" not in (out / "scores.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stations", "no_such_folder"], "there is no folder no_such_folder"),
        (["--log_variables", "rain"], "do not observe rain, but 2t, 10u, 10v, msl"),
        (["--patch_size", "2"], "patch_size 2 does not divide"),
        (["--num_heads", "3"], "embed_dim 16 must be a multiple"),
        (["--background_hours", "-24"], "how many hours old the background is"),
        (["--background_hours", "5"], "a step of 5 h was asked for"),
        (["--simulated_stations", "0"], "simulated_stations is 0"),
        (["--length_scale", "0.01"], "points reach no grid point"),
    ],
)
def test_wrong_settings_end_with_a_message_and_without_a_model(
    config, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HftuneError, match=message):
        main(["--config", str(config), "--output_dir", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out" / "model").exists()


def test_stations_of_another_time(config, atmosphere, tmp_path):
    simulated = simulated_stations(open_fields(atmosphere), count=3).select(["2t"])
    folder = write_stations(simulated, tmp_path / "stations")
    table = (folder / "2t.csv").read_text()
    (folder / "2t.csv").write_text(table.replace("\n200", "\n160"))
    with pytest.raises(HftuneError, match="the stations have 438 times from 1600-01-01 .* not one"):
        main(
            ["--config", str(config), "--output_dir", str(tmp_path / "out"),
             "--stations", str(folder)]
        )  # fmt: skip
