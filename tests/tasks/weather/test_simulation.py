"""The simulated atmosphere: reproducible, plausible, chaotic, predictable a day ahead."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from hftune.tasks.weather import simulation
from hftune.tasks.weather.fields import split_channel
from hftune.tasks.weather.simulation import (
    Simulation,
    simulate_atmosphere,
    simulated_atmosphere_path,
    write_simulation,
)
from hftune.tasks.weather.variables import VARIABLES
from hftune.utils.errors import ConfigurationError


@pytest.fixture(scope="module")
def fields():
    return simulate_atmosphere(years=1.5)


def channel(fields, name):
    return fields.values[:, fields.layout.channels.index(name)]


def test_the_layout_is_that_of_reanalysis(fields):
    layout = fields.layout
    assert layout.channels[:7] == ("2t", "10u", "10v", "msl", "z_500", "z_850", "z_1000")
    assert len(layout.channels) == 4 + 5 * 3 == len(layout.units)
    assert layout.units[:5] == ("K", "m s-1", "m s-1", "Pa", "m2 s-2")
    assert fields.values.shape == (548, 19, 16, 32) and fields.values.dtype == np.float32
    assert fields.static_fields.shape == (3, 16, 32)
    assert (np.diff(layout.latitude) < 0).all() and (np.diff(layout.longitude) > 0).all()
    assert (np.diff(fields.times) == 86400).all() and fields.times[0] == 946684800


def test_values_are_those_of_an_atmosphere(fields):
    assert np.isfinite(fields.values).all()
    for name in fields.layout.channels:
        info = VARIABLES[split_channel(name)[0]]
        values = channel(fields, name)
        assert info.minimum < values.min() and values.max() < info.maximum, name
    temperature = channel(fields, "t_850").mean((0, 2))
    assert (np.diff(temperature) > 0).all()  # rows go from north to south
    winter, summer = channel(fields, "2t")[:60].mean(), channel(fields, "2t")[180:240].mean()
    assert 8 < summer - winter < 30
    assert 5 < channel(fields, "u_500").std() < 20


def test_winds_blow_along_the_isobars(fields):
    height, u = channel(fields, "z_500"), channel(fields, "u_500")
    metres = 6.67e6 / 60 * np.diff(fields.layout.latitude[:2])[0]
    geostrophic = -np.gradient(height, metres, axis=1) / 1e-4
    assert np.corrcoef(geostrophic[:, 1:-1].ravel(), u[:, 1:-1].ravel())[0, 1] > 0.98


def test_thickness_is_temperature(fields):
    thickness = channel(fields, "z_500") - channel(fields, "z_850")
    mean = (channel(fields, "t_500") + channel(fields, "t_850")) / 2
    ratio = thickness.std() / (287 * np.log(850 / 500) * mean.std())
    assert 0.9 < ratio < 1.1


def test_a_day_ahead_is_predictable_and_not_trivial(fields):
    """Ridge regression on the leading patterns, trained on 400 days, against persistence."""
    values = fields.values.reshape(len(fields), -1).astype(np.float64)
    scale = fields.values.std((0, 2, 3)).repeat(16 * 32)
    values = (values - values[:400].mean(0)) / scale
    patterns = np.linalg.svd(values[:400], full_matrices=False)[2][:60].T
    start = values[:399] @ patterns
    change = values[1:400] - values[:399]
    weights = np.linalg.solve(start.T @ start + 2.0 * np.eye(60), start.T @ change)
    tested = values[400:]
    persistence = (tested[1:] - tested[:-1]).reshape(-1, 19, 512)
    error = persistence - (tested[:-1] @ patterns @ weights).reshape(persistence.shape)
    ratio = np.sqrt((error**2).mean((0, 2)) / (persistence**2).mean((0, 2)))
    assert 0.4 < ratio[fields.layout.channels.index("z_500")] < 0.85
    assert 0.4 < ratio[fields.layout.channels.index("msl")] < 0.85
    assert ratio.mean() < 0.9


def test_the_same_seed_gives_the_same_bits():
    one, same = simulate_atmosphere(years=0.1, seed=3), simulate_atmosphere(years=0.1, seed=3)
    other = simulate_atmosphere(years=0.1, seed=4)
    assert one.values.tobytes() == same.values.tobytes() and one.fingerprint == same.fingerprint
    assert other.fingerprint != one.fingerprint
    # The same planet and another weather, as far apart as two days of different years.
    assert np.array_equal(one.static_fields, other.static_fields)
    assert np.abs(channel(one, "msl") - channel(other, "msl")).mean() > 500


def test_the_file_holds_the_same_numbers(tmp_path):
    xarray = pytest.importorskip("xarray")
    settings = Simulation(years=0.03, step_hours=6, latitudes=4, longitudes=8, levels=(850, 500))
    path = write_simulation(tmp_path / "sub" / "simulated.nc", settings)
    assert [p.name for p in path.parent.iterdir()] == ["simulated.nc"]
    fields = simulate_atmosphere(settings)
    with xarray.open_dataset(path) as data:
        assert data.time.values[1] - data.time.values[0] == np.timedelta64(6, "h")
        assert np.array_equal(data.level, [850, 500])
        assert data.t2m.units == "K" and data.z.units == "m2 s-2" and data.q.units == "kg kg-1"
        assert data.z.standard_name == "geopotential"
        assert np.array_equal(data.t2m, channel(fields, "2t"))
        assert np.array_equal(data.q.sel(level=500), channel(fields, "q_500"))
        assert np.array_equal(data.geopotential_at_surface, fields.static_fields[1])
        assert data.lsm.dims == ("latitude", "longitude")


def test_the_cached_file_is_made_once(tmp_path, monkeypatch):
    pytest.importorskip("netCDF4")
    monkeypatch.setenv("HFTUNE_HOME", str(tmp_path))
    path = simulated_atmosphere_path(years=0.02, latitudes=4, longitudes=8)
    assert path.parent == tmp_path / "simulated" and path.is_file()
    before = path.stat()
    assert simulated_atmosphere_path(Simulation(years=0.02, latitudes=4, longitudes=8)) == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert simulated_atmosphere_path(years=0.02, latitudes=4, longitudes=8, seed=1) != path


def test_two_processes_make_it_once(tmp_path):
    pytest.importorskip("netCDF4")
    code = """
from hftune.tasks.weather import simulation
write = simulation._write_netcdf
def say(*arguments):
    print("made")
    write(*arguments)
simulation._write_netcdf = say
print(simulation.simulated_atmosphere_path(years=1, latitudes=4, longitudes=8))
"""
    environment = {**os.environ, "HFTUNE_HOME": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    shown = [process.communicate()[0].decode().split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(map(len, shown)) == [1, 2]
    assert shown[0][-1] == shown[1][-1] and shown[0][-1].endswith(".nc")


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "_write_netcdf", fail)
    with pytest.raises(KeyboardInterrupt):
        write_simulation(tmp_path / "a.nc", years=0.01)
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings_are_reported_together():
    with pytest.raises(ConfigurationError) as caught:
        Simulation(years=0, levels=(50,), start="soon")
    assert caught.value.problems == (
        "years is 0; it has to be positive.",
        "levels are (50,); they have to lie between 200 and 1000 hPa.",
        "start is 'soon'; it has to be a day like 2000-01-01.",
    )
