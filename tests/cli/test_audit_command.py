"""``hftune audit``."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hftune.cli.audit import main
from hftune.tasks.weather.simulation import write_simulation
from hftune.utils.errors import ConfigurationError

pytest.importorskip("netCDF4")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_simulation(
        tmp_path_factory.mktemp("data") / "simulated.nc", years=0.2, latitudes=6, longitudes=8
    )


@pytest.fixture
def spoilt(file, tmp_path):
    import netCDF4

    path = tmp_path / "spoilt.nc"
    path.write_bytes(file.read_bytes())
    with netCDF4.Dataset(path, "a") as data:
        data["t2m"][30] = 0.0
    return path


def test_good_data(file, capsys):
    assert main([str(file)]) == 0
    shown = capsys.readouterr().out
    assert f"Audit of {file}" in shown.replace("\n", "")
    assert "73 times from 2000-01-01 to 2000-03-13, every 24 h" in shown
    assert "✓ 2t " in shown and shown.rstrip().endswith("✓ nothing wrong found")
    assert max(map(len, shown.splitlines()[1:])) <= 80


def test_bad_data_exit_with_one(spoilt, capsys):
    assert main([str(spoilt), "--variables", "t2m", "msl"]) == 1
    shown = capsys.readouterr().out
    assert "error" in shown and "1 field all zeros: 2000-01-31." in shown
    assert "✗ 2t " in shown and "✓ msl " in shown and "z_500" not in shown
    assert shown.rstrip().endswith("✗ 1 error: a training run would stop here")


def test_dates_and_json(spoilt, capsys):
    assert main([str(spoilt), "--dates", "2000-02", "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verdict"] == "ok" and result["times"]["count"] == 29
    assert list(result["channels"])[:2] == ["2t", "10u"]


def test_report(spoilt, tmp_path, capsys):
    page, text = tmp_path / "audit.html", tmp_path / "audit.json"
    assert main([str(spoilt), "--report", str(page), "--json", str(text)]) == 1
    assert "1 field all zeros: 2000-01-31." in page.read_text()
    assert json.loads(text.read_text())["errors"] == 1


def test_statistics_of_a_model(file, tmp_path, capsys):
    config = {"channels": ["2t", "msl"], "mean": [286.0, 0.0], "std": [10.0, 1000.0]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main([str(file), "--model", str(tmp_path)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "error msl mean 1.0" in shown and "standard deviations off" in shown
    with pytest.raises(ConfigurationError, match="there is no .*config.json"):
        main([str(file), "--model", str(tmp_path / "absent")])


def test_the_published_statistics(file, capsys):
    pytest.importorskip("aurora")
    assert main([str(file), "--model", "aurora", "--json", "-"]) == 0
    channels = json.loads(capsys.readouterr().out)["channels"]
    assert all(abs(entry["reference_z"]) < 3 for entry in channels.values())
    assert np.isfinite(channels["q_850"]["reference_z"])
