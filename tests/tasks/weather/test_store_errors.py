"""Bad input, each with its message: what was found, what was expected, what to do."""

import re

import numpy as np
import pytest

from hftune.tasks.weather.store import open_fields
from hftune.utils.errors import DataError


def message(*arguments, **options) -> str:
    with pytest.raises(DataError) as error:
        open_fields(*arguments, **options)
    return str(error.value)


@pytest.fixture
def path(tmp_path, make_dataset):
    make_dataset(("t2m", "msl", "z")).to_netcdf(tmp_path / "era5.nc")
    return tmp_path / "era5.nc"


def test_file_missing(path):
    assert message(path.with_name("era4.nc")) == (
        f"{path.with_name('era4.nc')} does not exist. Did you mean 'era5.nc'?"
    )
    assert message(path.with_name("something_else.nc")) == (
        f"{path.with_name('something_else.nc')} does not exist. "
        f"The folder {path.parent} holds era5.nc."
    )
    assert message(path.parent / "no" / "where" / "a.nc") == (
        f"{path.parent / 'no' / 'where' / 'a.nc'} does not exist. Its folder does not exist "
        f"either; the nearest that does is {path.parent}."
    )


def test_glob_without_a_match(path):
    assert message(str(path.parent / "*.grib")).startswith("no file matches ")


def test_nothing_given():
    assert message([]) == "no data given: name a file, a glob, a Zarr store or a URL."


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"<!DOCTYPE html>", "It looks like a web page or JSON: the download may have failed."),
        (b"PK\x03\x04....", "It is a ZIP archive, as the Copernicus store sends them: unzip it"),
        (b"", "It is empty: fetch it again."),
        (b"time,t2m", "It begins with the bytes b'time,t2m'."),
    ],
)
def test_not_a_netcdf(tmp_path, content, hint):
    (tmp_path / "a.nc").write_bytes(content)
    text = message(tmp_path / "a.nc")
    assert text.startswith(f"{tmp_path / 'a.nc'} is not a NetCDF, GRIB or Zarr file. {hint}")


def test_truncated_netcdf(path):
    with open(path, "r+b") as stream:
        stream.truncate(1000)
    assert re.match(
        rf"cannot read {path} as hdf5: .*\. The file may be incomplete; compare its size",
        message(path),
    )


def test_folder_without_data(tmp_path):
    (tmp_path / "folder").mkdir()
    assert "is no Zarr store and holds no file that ends in .nc, " in message(tmp_path / "folder")


def test_url_missing():
    assert message("memory://hftune/nothing.zarr") == (
        "memory://hftune/nothing.zarr does not exist, or is no Zarr store (it has none of "
        ".zmetadata, zarr.json, .zgroup)."
    )
    assert "cannot open nonsense://a: Protocol not known: nonsense" in message("nonsense://a")


def test_empty_time_selection(path):
    assert message(path, times="1999") == (
        "no time lies within '1999': the data have 12 times from 2020-01-01 to 2020-01-12, "
        "every 24 h."
    )


def test_variable_absent(path):
    assert message(path, variables=["2t", "msll"]) == (
        "there is no variable 'msll' in era5.nc. Did you mean 'msl'? It has 2t, msl, z."
    )
    assert message(path, variables=["2m_temperatur"]) == (
        "there is no variable '2m_temperatur' in era5.nc. Did you mean '2m_temperature'? "
        "It has 2t, msl, z."
    )


def test_variable_that_cannot_be_used(path, make_dataset):
    dataset = make_dataset()
    dataset["ssrd"] = dataset.t2m.expand_dims(step=[1, 2]).assign_attrs(units="J m**-2")
    dataset.to_netcdf(path)
    assert message(path, variables=["ssrd"]) == (
        "there is no variable 'ssrd' in era5.nc. It has 2t, z. era5.nc: ssrd left out, it also "
        "varies along step; select one forecast step."
    )


def test_level_absent(path):
    assert message(path, levels=[500, 700]) == (
        "z in era5.nc has no level 700 hPa. Its levels are 500, 850 hPa."
    )


def test_levels_without_any(path):
    assert message(path, variables=["2t", "msl"], levels=[500]) == (
        "levels were asked for, but no variable of era5.nc that is taken (2t, msl) lies on "
        "pressure levels."
    )


def test_two_grids(path, make_dataset):
    make_dataset(("u",), longitude=(0, 1.25, 2.5)).to_netcdf(path.with_name("wind.nc"))
    assert message([path, path.with_name("wind.nc")]) == (
        f"two grids: {path} has 4 x 3 points, 50 to 42.5 N, 0 to 5 E; "
        f"{path.with_name('wind.nc')} has 4 x 3 points, 50 to 42.5 N, 0 to 2.5 E. "
        "Cut or regrid them to the same points."
    )


def test_static_fields_elsewhere(path, make_dataset):
    make_dataset(("lsm",), days=1, longitude=(10, 11)).to_netcdf(path.with_name("static.nc"))
    assert "which do not contain the data's 4 x 3 points" in message(
        path, static_data=path.with_name("static.nc")
    )


def test_unsafe_units(path, make_dataset):
    dataset = make_dataset(("tp",))
    dataset.tp.attrs["units"] = "mm/day"
    dataset.to_netcdf(path.with_name("rain.nc"))
    assert "has units 'mm/day'; expected 'm'" in message(path.with_name("rain.nc"))


def test_duplicates_that_differ(path, make_dataset):
    make_dataset(("t2m", "msl", "z"), seed=1, start="2020-01-12").to_netcdf(
        path.with_name("more.nc")
    )
    assert message([path, path.with_name("more.nc")]) == (
        "the time 2020-01-12 of 2t is there twice with different values "
        f"({path}, {path.with_name('more.nc')}). Remove one of them."
    )


def test_streams_without_a_common_time(path, make_dataset):
    make_dataset(("u",), start="2021-01-01").to_netcdf(path.with_name("wind.nc"))
    text = message([path, path.with_name("wind.nc")])
    assert text.startswith("the variables of era5.nc, wind.nc have no time in common. 2t: 12 times")
    assert "u: 12 times from 2021-01-01 to 2021-01-12, every 24 h" in text


def test_curvilinear_grid(tmp_path):
    import xarray

    dims = ("time", "south_north", "west_east")
    corners = np.zeros((3, 4))
    xarray.Dataset(
        {"T2": (dims, np.zeros((2, 3, 4), "float32"))},
        {"time": np.array(["2020-01-01", "2020-01-02"], "datetime64[ns]"),
         "lat": (dims[1:], corners), "lon": (dims[1:], corners)},
    ).to_netcdf(tmp_path / "wrf.nc")  # fmt: skip
    assert "its latitude 'lat' has two dimensions (a curvilinear or projected grid)" in message(
        tmp_path / "wrf.nc"
    )


def test_other_calendar(tmp_path, make_dataset):
    dataset = make_dataset(("t2m",), days=3)
    dataset["time"] = ("time", [0, 1, 2], {"units": "days since 2000-02-28", "calendar": "noleap"})
    dataset.to_netcdf(tmp_path / "a.nc")
    assert "has the calendar 'noleap'; expected dates of the standard calendar" in message(
        tmp_path / "a.nc"
    )


def test_times_without_dates(tmp_path, make_dataset):
    make_dataset(("t2m",), days=3).assign_coords(time=[0, 1, 2]).to_netcdf(tmp_path / "a.nc")
    assert "has no dates (int64 values)" in message(tmp_path / "a.nc")


def test_unmerged_expver(tmp_path, make_dataset):
    dataset = make_dataset(("t2m",)).expand_dims(expver=[1, 5])
    dataset.to_netcdf(tmp_path / "a.nc")
    assert message(tmp_path / "a.nc") == (
        f"no usable field in {tmp_path / 'a.nc'}. a.nc: t2m left out, it also varies along expver; "
        "merge ERA5 and ERA5T: ds.sel(expver=1).combine_first(ds.sel(expver=5))"
    )


def test_static_only(tmp_path, make_dataset):
    make_dataset(("lsm",), days=2).isel(time=0, drop=True).to_netcdf(tmp_path / "a.nc")
    assert message(tmp_path / "a.nc") == (
        "a.nc has static fields only (lsm): no field has a time axis."
    )


def test_disk_too_small(path, monkeypatch):
    monkeypatch.setattr("hftune.tasks.weather.cache.free_bytes", lambda folder: 1000)
    text = message(path, in_place=False, cache_dir=path.parent / "cache")
    assert text == (
        "the cache of 12 times x 4 channels x 4 x 3 points needs 2.2 KiB, but the disk of "
        f"{path.parent / 'cache'} has 1000 B free. Select fewer variables, levels or times, or set "
        "cache_dir (or HFTUNE_HOME) to a larger disk."
    )
    assert not (path.parent / "cache").exists()
