"""The Aurora recipe from data to report, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import Script

pytest.importorskip("aurora")

SMALL = {
    "embed_dim": 16,
    "num_heads": 2,
    "depths": [1, 1],
    "loss_function": "mse",
    "learning_rate": 2e-3,
    "max_steps": 12,
    "eval_strategy": "steps",
    "eval_steps": 6,
    "save_strategy": "steps",
    "save_steps": 6,
    "logging_steps": 3,
    "load_best_model_at_end": True,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 32,
    "ema_decay": 0.9,
    "drop_path": 0.1,
    "lead_hours": [24, 48],
}
PRODUCTS = ("audit.json", "report.html", "run.json", "scores.json", "model/model.safetensors")


@pytest.fixture(scope="module")
def atmosphere(tmp_path_factory) -> Path:
    from hftune.tasks.weather.simulation import write_simulation

    path = tmp_path_factory.mktemp("atmosphere") / "fields.nc"
    return write_simulation(path, years=1.2, latitudes=8, longitudes=16, levels=(500, 850))


@pytest.fixture(scope="module")
def config(tmp_path_factory, atmosphere) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(json.dumps({**SMALL, "data": [str(atmosphere)]}))
    return path


@pytest.fixture(scope="module")
def finished(repository, config, tmp_path_factory) -> Path:
    """The folder of a run that went through without interruption."""
    folder = tmp_path_factory.mktemp("run")
    os.environ["HFTUNE_HOME"] = str(folder / "home")
    launch = [Path(sys.executable).parent / "accelerate", "launch"]
    launch += ["--config_file", repository / "accelerate_configs/cpu.yaml"]
    done = subprocess.run(
        [*launch, "recipes/aurora.py", "--config", config, "--output_dir", folder / "out"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=repository,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return folder / "out"


def test_leaves_every_file_that_a_run_promises(finished, atmosphere):
    for name in PRODUCTS:
        assert (finished / name).stat().st_size > 0, name
    run = json.loads((finished / "run.json").read_text())
    assert run["status"] == "completed"
    assert run["configuration"]["model"]["embed_dim"] == {
        "value": 16,
        "source": run["configuration"]["model"]["embed_dim"]["source"],
    }
    assert run["data"]["sources"] == [str(atmosphere)] or run["data"]["sources"]
    assert run["data"]["splits"]["train"]["samples"] > 300
    # Nothing temporary stays.
    assert not [p for p in finished.rglob("*") if p.name.endswith(".tmp")]


def test_is_tracked_and_registered_with_no_flag(finished, monkeypatch):
    from hftune import AuroraForForecasting, ExperimentTracker, ModelRegistry
    from hftune.tracking.run_view import RunView

    monkeypatch.setenv("HFTUNE_HOME", str(finished.parent / "home"))
    run = ExperimentTracker().get_experiment("latest")
    assert run["status"] == "completed" and run["task"] == "aurora" and run["name"] == "out"
    assert run["folder"] == str(finished) and run["data"]["fingerprint"]
    assert run["config"]["model"]["embed_dim"] == 16
    assert run["config_sources"]["training.seed"] == "default"
    assert [Path(point["path"]).name for point in run["checkpoints"]] == [
        "checkpoint-6", "checkpoint-12"
    ]  # fmt: skip
    scores = json.loads((finished / "scores.json").read_text())
    ratio = scores["summary"]["mean_rmse_to_persistence"]
    assert run["metrics"]["test_rmse_to_persistence"] == pytest.approx(ratio)
    view = RunView.from_folder(finished)
    state = json.loads((finished / "checkpoint-12" / "trainer_state.json").read_text())
    logged = [(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry]
    assert list(zip(*view.curve("loss"), strict=True)) == logged

    registry = ModelRegistry()
    [model] = registry.get_best_models("test_rmse_to_persistence")
    assert model["experiment_id"] == run["experiment_id"] and model["name"] == "out"
    assert run["model_info"]["model_id"] == model["model_id"]
    loaded = AuroraForForecasting.from_pretrained(registry.folder("out"))
    saved = AuroraForForecasting.from_pretrained(finished / "model")
    for name, value in saved.state_dict().items():
        assert loaded.state_dict()[name].equal(value), name
    page = (finished / "report.html").read_text()
    assert run["experiment_id"] in page and model["model_id"] in page


def test_tracking_off_leaves_the_store_alone(repository, config, tmp_path):
    home = tmp_path / "home"
    process = Script(
        repository / "recipes/aurora.py", "--config", config, "--output_dir", tmp_path / "out",
        "--tracking", "off", "--max_steps", "6", HFTUNE_HOME=str(home),
    )  # fmt: skip
    assert process.wait() == 0, process.printed()
    assert not (home / "tracking.db").exists() and not (home / "runs").exists()
    assert not (home / "models").exists()
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["status"] == "completed" and run.get("experiment_id") is None
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_scores_of_persistence_and_model_are_those_of_a_plain_computation(finished, atmosphere):
    import torch
    import xarray

    from hftune.tasks.aurora import AuroraForForecasting
    from hftune.tasks.weather.dates import select_rows
    from hftune.tasks.weather.store import open_fields

    scores = json.loads((finished / "scores.json").read_text())
    assert scores["lead_hours"] == [24, 48]
    with xarray.open_dataset(atmosphere) as data:
        z = data["z"].sel(level=500).transpose("time", "latitude", "longitude").to_numpy()
        latitude = data["latitude"].to_numpy().astype(float)
    fields = open_fields(atmosphere)
    rows = select_rows(fields.times, "90%:100%")
    starts = [r for r in rows if r - 1 in rows and r + 2 in rows]
    assert scores["samples"] == len(starts)

    middle = (latitude[1:] + latitude[:-1]) / 2
    half = (latitude[0] - latitude[1]) / 2
    edges = np.r_[latitude[0] + half, middle, latitude[-1] - half]
    weight = np.abs(np.diff(np.sin(np.deg2rad(edges))))
    weight = (weight / weight.mean())[:, None]

    def rmse(forecast, lead):
        squares = [((forecast[i] - z[r + lead]) ** 2 * weight).mean() for i, r in enumerate(starts)]
        return np.sqrt(np.mean(squares))

    expected = [rmse([z[r] for r in starts], lead) for lead in (1, 2)]
    np.testing.assert_allclose(
        scores["variables"]["z_500"]["persistence_rmse"], expected, rtol=1e-5
    )

    model = AuroraForForecasting.from_pretrained(finished / "model").eval()
    index = fields.layout.channels.index("z_500")
    inputs = torch.from_numpy(np.stack([fields.read([r - 1, r]) for r in starts]))
    with torch.no_grad():
        forecast = model(inputs, torch.from_numpy(fields.times[starts]), steps=2).prediction
    expected = [rmse(forecast[:, lead, index].double().numpy(), lead + 1) for lead in (0, 1)]
    np.testing.assert_allclose(scores["variables"]["z_500"]["rmse"], expected, rtol=1e-4)


def test_report_is_one_page_without_network(finished):
    page = (finished / "report.html").read_text()
    assert "z_500" in page
    assert 'src="http' not in page and 'href="http' not in page and "@import" not in page


def test_saved_run_reproduces_its_configuration(finished):
    from hftune.configuration.resolve import parse
    from hftune.configuration.tracking_arguments import TrackingArguments
    from hftune.tasks.aurora.arguments_aurora import AuroraModelArguments
    from hftune.tasks.weather.arguments_weather import WeatherDataArguments

    types = (WeatherDataArguments, AuroraModelArguments, TrackingArguments)
    run = json.loads((finished / "run.json").read_text())
    run["configuration"].pop("training")
    partial = finished.parent / "data_and_model.json"
    partial.write_text(json.dumps(run))
    resolved = parse(*types, argv=["--config", str(partial)], environ={})
    for section, settings in run["configuration"].items():
        again = resolved.as_dict()[section]
        assert {k: v["value"] for k, v in again.items()} == {
            k: v["value"] for k, v in settings.items()
        }


def test_a_killed_run_ends_with_the_same_weights_and_scores(repository, config, finished, tmp_path):
    out = tmp_path / "out"
    command = (repository / "recipes/aurora.py", "--config", config, "--output_dir", out)
    home = {"HFTUNE_HOME": str(finished.parent / "home")}
    process = Script(*command, **home)
    deadline = time.monotonic() + 240
    while not (out / "checkpoint-6" / "hftune_manifest.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.printed()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "scores.json").exists()

    process = Script(*command, **home)
    assert process.wait() == 0, process.printed()
    assert "checkpoint-" in process.printed()
    for name in ("model/model.safetensors", "scores.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name
    run = json.loads((out / "run.json").read_text())
    assert [attempt["status"] for attempt in run["attempts"]] == ["crashed", "completed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no_such_file.nc"], "no_such_file.nc"),
        (["--embed_dims", "16"], "embed_dim"),
        (["--variables", "2t", "zz"], "zz"),
        (["--levels", "700"], "500"),
        (["--train_dates", "1950", "--validation_dates", "1951", "--test_dates", "1952"], "1950"),
        (["--train_dates", "2000", "--validation_dates", "2000-06:2001", "--test_dates", "2002"],
         "overlap"),
        (["--patch_size", "3"], "patch"),
        (["--lead_hours", "24", "36"], "multiples"),
    ],
)  # fmt: skip
def test_wrong_settings_end_with_a_message_and_without_a_model(
    config, tmp_path, monkeypatch, arguments, message
):
    from hftune.recipes.aurora import main

    from hftune.utils.errors import HftuneError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(HftuneError, match=message):
        main(["--config", str(config), "--output_dir", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out" / "model").exists()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_the_wrong_architecture_is_named(config, finished, tmp_path):
    from hftune.recipes.aurora import main

    from hftune.utils.errors import CheckpointError

    other = tmp_path / "model"
    shutil.copytree(finished / "model", other)
    saved = json.loads((other / "config.json").read_text())
    saved["embed_dim"] = 32
    (other / "config.json").write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="another architecture"):
        main(
            ["--config", str(config), "--output_dir", str(tmp_path / "out"), "--model_name_or_path"]
            + [str(other)]
        )


def test_davos_pair_and_global_file_train_a_step_as_they_are(test_data, tmp_path):
    from hftune.recipes.aurora import main

    weather = test_data / "weather"
    small = ["--embed_dim", "16", "--num_heads", "2", "--depths", "1", "1", "--max_steps", "1"]
    davos = weather / "era5_davos_hourly_2020_01"
    pair = [str(davos / "pressure_levels.nc"), str(davos / "single_levels.nc")]
    out = tmp_path / "davos"
    main(["--data", *pair, "--lead_hours", "6", "--output_dir", str(out), *small])
    assert (out / "model" / "model.safetensors").exists()
    assert json.loads((out / "audit.json").read_text())["verdict"] != "errors"

    out = tmp_path / "global"
    main(
        ["--data", str(weather / "ncep_global_daily_2022_01.nc"), "--output_dir", str(out), *small]
    )
    assert (out / "model" / "model.safetensors").exists()
    assert json.loads((out / "scores.json").read_text())["variables"]["z_500"]["rmse"][0] > 0
