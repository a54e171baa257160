"""hftune aardvark era5-to-netcdf and netcdf-to-era5."""

from __future__ import annotations

import numpy as np
import pytest

from hftune.cli.main import main

xarray = pytest.importorskip("xarray")

CHANNELS = ("2t", "z_500", "z_200")  # not hftune's own order
DAYS = {2007: 365, 2008: 366}


@pytest.fixture
def era5(tmp_path):
    """Two years at 12 hours as Aardvark has them, their grid files, and the numbers."""
    folder = tmp_path / "era5"
    folder.mkdir()
    states = {}
    for year, days in DAYS.items():
        states[year] = np.random.default_rng(year).normal(250, 9, (days * 2, 3, 5, 4))
        states[year] = states[year].astype("<f4")
        states[year].tofile(folder / f"era5_4u_1_12_{year}.memmap")
    np.save(folder / "era5_x_1.npy", np.arange(5) * 72.0)
    np.save(folder / "era5_y_1.npy", np.array([-60.0, -20.0, 20.0, 60.0]))
    np.save(folder / "elev_vars_1.npy", np.arange(40, dtype=np.float32).reshape(2, 5, 4))
    return folder, states


def options(folder):
    return ["--grid", str(folder), "--channels", ",".join(CHANNELS), "--frequency", "12"]


def test_there_and_back(era5, tmp_path, capsys):
    folder, states = era5
    out = tmp_path / "era5.nc"
    command = ["aardvark", "era5-to-netcdf", str(folder), str(out), *options(folder)]
    assert main([*command, "--static", str(folder / "elev_vars_1.npy")]) == 0
    assert capsys.readouterr().out.startswith(
        f"{out}: 1,462 times from 2007-01-01 to 2008-12-31T12:00, every 12 h, 3 channels, "
        "4 x 5 points, 60 to -60 N, 0 to 288 E, "
    )
    with xarray.open_dataset(out) as data:
        assert data["2m_temperature"].attrs["units"] == "K"
        field = data["geopotential"].sel(time="2008-02-29T12", level=200)
        stored = states[2008][59 * 2 + 1, 2]
        assert np.array_equal(field.sel(latitude=-60), stored[:, 0])
        assert np.array_equal(field.sel(longitude=72), stored[1, ::-1])
        assert np.array_equal(data["static2"].sel(latitude=60, longitude=0), 23)

    back = tmp_path / "back"
    assert main(["aardvark", "netcdf-to-era5", str(out), str(back), *options(folder)[2:]]) == 0
    for year in DAYS:
        name = f"era5_4u_1_12_{year}.memmap"
        assert (back / name).read_bytes() == (folder / name).read_bytes()
    command = ["aardvark", "netcdf-to-era5", str(out), str(tmp_path / "one"), "--dates", "2008"]
    assert main([*command, *options(folder)]) == 0
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["era5_4u_1_12_2008.memmap"]


def test_errors(era5, tmp_path, capsys):
    folder, _ = era5

    def failure(*changed):
        assert (
            main(["aardvark", "era5-to-netcdf", str(folder), str(tmp_path / "x.nc"), *changed]) == 2
        )
        return capsys.readouterr().err

    assert "holds no file era5_4u_1_6_YEAR.memmap; it holds era5_4u_1_12" in failure()
    assert failure("--channels", "2t,zz_500,2t") == (
        "hftune aardvark: 2 problems in the configuration:\n"
        "  1. --channels: zz_500 is not known. Did you mean 'z'?\n"
        "  2. --channels names 2t more than once.\n"
    )
    assert "era5_4u_1_12_2007.memmap has" in failure("--frequency", "12")
    assert failure("--grid", str(tmp_path)) == (
        f"hftune aardvark: --grid {tmp_path}: there is no era5_y_1.npy in it; give the folder of "
        "Aardvark's grid files, or the word published.\n"
    )
    np.save(folder / "era5_y_1.npy", np.array([60.0, 20.0]))
    assert "era5_y_1.npy has the shape [2]; expected increasing degrees" in failure(
        "--grid", str(folder)
    )
    np.save(folder / "era5_y_1.npy", np.array([object()]), allow_pickle=True)
    assert "era5_y_1.npy is no plain array of numbers" in failure("--grid", str(folder))
    assert not (tmp_path / "x.nc").exists()


def test_published_grid(test_data):
    from hftune.cli.aardvark_era5 import _grid

    class Arguments:
        res = 1

    for found, expected in zip(
        _grid(Arguments, "published"), _grid(Arguments, str(test_data / "aardvark")), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
