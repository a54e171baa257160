"""Every format and layout gives the same fields."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from hftune.tasks.weather.fields import WeatherFields
from hftune.tasks.weather.store import open_fields
from hftune.tasks.weather.streams import Part
from hftune.tasks.weather.values import InPlaceValues, StoredValues

CHANNELS = ("2t", "z_500", "z_850")


def expected_values(dataset) -> np.ndarray:
    """[N, C, H, W] of the fixture's default data set."""
    return np.concatenate([dataset.t2m.values[:, None], dataset.z.values], axis=1)


def check(fields: WeatherFields, dataset) -> None:
    assert fields.layout.channels == CHANNELS
    assert fields.layout.units == ("K", "m2 s-2", "m2 s-2")
    assert fields.layout.latitude.tolist() == [50, 47.5, 45, 42.5]
    assert fields.layout.longitude.tolist() == [0, 2.5, 5]
    assert fields.times.tolist() == dataset.time.values.astype("datetime64[s]").astype(int).tolist()
    np.testing.assert_array_equal(fields.read(slice(None)), expected_values(dataset))


def cached(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("cache/weather/*/manifest.json"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HFTUNE_HOME", str(tmp_path))


def test_plain_netcdf_is_read_in_place(tmp_path, make_dataset):
    dataset = make_dataset()
    dataset.to_netcdf(tmp_path / "a.nc")
    fields = open_fields(tmp_path / "a.nc")
    assert isinstance(fields.values, InPlaceValues)
    assert not cached(tmp_path)
    check(fields, dataset)
    # One row, rows in any order, and a part of the times.
    np.testing.assert_array_equal(fields.read(3), expected_values(dataset)[3])
    np.testing.assert_array_equal(fields.read([5, 0, 5]), expected_values(dataset)[[5, 0, 5]])
    part = open_fields(tmp_path / "a.nc", times="2020-01-03:2020-01-05")
    assert isinstance(part.values, InPlaceValues)
    np.testing.assert_array_equal(part.read(slice(None)), expected_values(dataset)[2:5])


def test_in_place_with_latitudes_from_the_south(tmp_path, make_dataset):
    dataset = make_dataset()
    dataset.isel(latitude=slice(None, None, -1)).to_netcdf(tmp_path / "a.nc")
    fields = open_fields(tmp_path / "a.nc")
    assert isinstance(fields.values, InPlaceValues)
    check(fields, dataset)
    assert fields.audit_notes == ("a.nc: latitudes put north to south",)


def test_compressed_netcdf_is_cached_once(tmp_path, make_dataset, monkeypatch):
    dataset = make_dataset()
    dataset.to_netcdf(tmp_path / "a.nc", encoding={"z": {"zlib": True}})
    check(open_fields(tmp_path / "a.nc"), dataset)
    assert len(cached(tmp_path)) == 1
    # The second time, and under another name, it is found without reading the data.
    (tmp_path / "a.nc").rename(tmp_path / "b.nc")
    monkeypatch.setattr("hftune.tasks.weather.merge.open_source", None)
    fields = open_fields(tmp_path / "b.nc")
    assert isinstance(fields.values, StoredValues)
    assert fields.sources == (str(tmp_path / "b.nc"),)
    check(fields, dataset)


def test_ctrl_c_while_caching(tmp_path, make_dataset, monkeypatch):
    dataset = make_dataset(days=12, dtype="float64")
    dataset.to_netcdf(tmp_path / "a.nc")
    monkeypatch.setattr("hftune.tasks.weather.cache._BLOCK_BYTES", 3 * 3 * 12 * 4)
    reads = []
    read = Part.read

    def interrupted(self, rows=None, levels=None):
        if len(reads) == 4:  # two variables of two blocks
            raise KeyboardInterrupt
        reads.append(rows.tolist())
        return read(self, rows, levels)

    monkeypatch.setattr(Part, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_fields(tmp_path / "a.nc")
    assert not cached(tmp_path)
    reads += [None]
    fields = open_fields(tmp_path / "a.nc")
    assert reads[0] == [0, 1, 2] and reads[5] == [6, 7, 8] and len(reads) == 9
    np.testing.assert_array_equal(fields.read(slice(None)), expected_values(dataset).astype("f4"))


def test_in_place_and_cached_agree(tmp_path, make_dataset):
    make_dataset().to_netcdf(tmp_path / "a.nc")
    one = open_fields(tmp_path / "a.nc")
    other = open_fields(tmp_path / "a.nc", in_place=False)
    assert one.fingerprint == other.fingerprint
    np.testing.assert_array_equal(one.read(slice(None)), other.read(slice(None)))
    assert type(one.values) is not type(other.values)


def test_changed_content_is_noticed(tmp_path, make_dataset):
    make_dataset(dtype="float64").to_netcdf(tmp_path / "a.nc")
    before = open_fields(tmp_path / "a.nc")
    dataset = make_dataset(dtype="float64", seed=1)
    dataset.to_netcdf(tmp_path / "a.nc")
    after = open_fields(tmp_path / "a.nc")
    assert before.fingerprint != after.fingerprint
    np.testing.assert_array_equal(
        after.read(slice(None)), expected_values(dataset).astype("float32")
    )


@pytest.mark.parametrize(
    "change",
    [
        "plain", "float64", "packed", "netcdf3", "valid_time", "pressure_level", "isobaricInhPa",
        "plev_in_pa", "west", "transposed", "unlimited", "big_endian", "number", "fill_value",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:saving variable")
def test_layouts(tmp_path, make_dataset, change):
    dataset = make_dataset()
    stored, options = dataset, {}
    if change == "float64":
        stored = dataset.astype("float64")
    elif change == "packed":
        dataset = (dataset * 100).round()
        stored = dataset
        options = {"encoding": dict.fromkeys(dataset.data_vars, {"dtype": "i2"})}
        for name in dataset.data_vars:
            dataset[name].attrs = stored[name].attrs = make_dataset()[name].attrs
    elif change == "netcdf3":
        options = {"format": "NETCDF3_CLASSIC"}
    elif change == "valid_time":
        stored = dataset.rename(time="valid_time")
    elif change in ("pressure_level", "isobaricInhPa"):
        stored = dataset.rename(level=change)
    elif change == "plev_in_pa":
        stored = dataset.assign_coords(level=("level", dataset.level.values * 100, {"units": "Pa"}))
        stored = stored.rename(level="plev")
    elif change == "west":
        stored = dataset.assign_coords(longitude=[-360, -357.5, -355])
    elif change == "transposed":
        stored = dataset.transpose("longitude", "level", "latitude", "time")
    elif change == "unlimited":
        options = {"unlimited_dims": ["time"]}
    elif change == "big_endian":
        options = {"encoding": {"z": {"dtype": ">f4"}}}
    elif change == "number":
        stored = dataset.expand_dims("number").assign_coords(
            number=[0], expver=("number", ["0001"])
        )
    elif change == "fill_value":
        options = {"encoding": {"z": {"_FillValue": np.float32(-9999)}}}
    stored.to_netcdf(tmp_path / "a.nc", **options)
    check(open_fields(tmp_path / "a.nc", progress=False), dataset)


def test_missing_values_become_nan(tmp_path, make_dataset):
    dataset = make_dataset()
    dataset.z[2, 0, 1, 1] = np.nan
    dataset.to_netcdf(tmp_path / "a.nc", encoding={"z": {"_FillValue": np.float32(-9999)}})
    check(open_fields(tmp_path / "a.nc"), dataset)


def test_units_are_converted_and_noted(tmp_path, make_dataset):
    dataset = make_dataset(("t2m", "msl", "tp", "z"), levels=[500])
    for name, units in {"t2m": "degC", "msl": "hPa", "tp": "mm", "z": "gpm"}.items():
        dataset[name].attrs["units"] = units
    dataset.to_netcdf(tmp_path / "a.nc")
    fields = open_fields(tmp_path / "a.nc")
    assert fields.layout.channels == ("2t", "msl", "tp", "z_500")
    assert fields.layout.units == ("K", "Pa", "m", "m2 s-2")
    for index, (name, scale, offset) in enumerate(
        [("t2m", 1, 273.15), ("msl", 100, 0), ("tp", 0.001, 0), ("z", 9.80665, 0)]
    ):
        wanted = (dataset[name].values.astype("float64") * scale + offset).astype("float32")
        np.testing.assert_array_equal(fields.read(slice(None))[:, index], wanted.squeeze())
    assert fields.audit_notes == (
        "a.nc: t2m converted from degC to K",
        "a.nc: msl converted from hPa to Pa",
        "a.nc: tp converted from mm to m",
        "a.nc: z converted from gpm to m2 s-2",
    )


def test_missing_units_are_assumed_and_noted(tmp_path, make_dataset):
    dataset = make_dataset()
    del dataset.t2m.attrs["units"], dataset.level.attrs["units"]
    dataset.to_netcdf(tmp_path / "a.nc")
    fields = open_fields(tmp_path / "a.nc")
    check(fields, dataset)
    assert fields.audit_notes == (
        "a.nc: levels have no units; hPa assumed",
        "a.nc: t2m has no units; K assumed",
    )


def weatherbench(dataset, **chunks):
    """Names, order of axes and chunks as WeatherBench 2 has them."""
    stored = dataset.rename(t2m="2m_temperature", z="geopotential")
    stored["2m_temperature"].attrs = stored["geopotential"].attrs = {}
    stored = stored.isel(latitude=slice(None, None, -1))
    stored = stored.transpose("time", "level", "longitude", "latitude")
    chunks = chunks or {"time": 5}
    for array in stored.data_vars.values():
        array.encoding["chunks"] = tuple(chunks.get(d, n) for d, n in array.sizes.items())
    return stored


@pytest.mark.parametrize("url", ["{}/a.zarr", "file://{}/a.zarr", "memory://hftune{}/a.zarr"])
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_weatherbench_zarr(tmp_path, make_dataset, url, version):
    dataset = make_dataset()
    orography = np.arange(12.0, dtype="float32").reshape(3, 4)  # [longitude, latitude ascending]
    stored = weatherbench(dataset)
    stored["geopotential_at_surface"] = (("longitude", "latitude"), orography)
    url = url.format(tmp_path)
    stored.to_zarr(url.removeprefix("file://"), zarr_format=version)
    fields = open_fields(url)
    check(fields, dataset)
    assert fields.layout.static_channels == ("z",)
    np.testing.assert_array_equal(fields.static_fields[0], orography.T[::-1])
    check(open_fields(url), dataset)
    assert len(cached(tmp_path)) == 1


def test_netcdf_by_url(tmp_path, make_dataset):
    dataset = make_dataset()
    dataset.to_netcdf(tmp_path / "a.nc")
    check(open_fields(f"file://{tmp_path}/a.nc"), dataset)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_only_what_is_selected_is_cached(tmp_path, make_dataset):
    dataset = make_dataset(("t2m", "msl", "z", "t"), levels=(300, 500, 850))
    weatherbench(dataset[["t2m", "z"]]).to_zarr(tmp_path / "a.zarr")
    fields = open_fields(
        tmp_path / "a.zarr", variables=["z"], levels=[850, 300], times="2020-01-02:2020-01-04"
    )
    assert fields.layout.channels == ("z_300", "z_850")
    np.testing.assert_array_equal(fields.read(slice(None)), dataset.z.values[1:4, [0, 2]])
    assert (cached(tmp_path)[0].parent / "fields.f32").stat().st_size == 3 * 2 * 4 * 3 * 4


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_only_the_chunks_of_a_selection_are_fetched(make_dataset, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    dataset = make_dataset(days=100)
    url = "memory://hftune/chunks.zarr"
    weatherbench(dataset, time=10, level=1).to_zarr(url, zarr_format=2)
    fetched = []
    cat_file = MemoryFileSystem.cat_file

    def counted(self, path, *arguments, **options):
        fetched.append(path)
        return cat_file(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    fields = open_fields(url, variables=["z"], levels=[850], times="2020-01-15:2020-01-24")
    np.testing.assert_array_equal(fields.read(slice(None)), dataset.z.values[14:24, 1:])
    chunks = [path for path in fetched if "/geopotential/" in path and "/.z" not in path]
    assert sorted(chunks) == [f"/hftune/chunks.zarr/geopotential/{time}.1.0.0" for time in (1, 2)]
    assert not any("/2m_temperature/0" in path for path in fetched)


def test_selection_by_alias(tmp_path, make_dataset):
    make_dataset(("t2m", "msl", "z")).to_netcdf(tmp_path / "a.nc")
    fields = open_fields(tmp_path / "a.nc", variables=["t2m", "geopotential"], levels=[500])
    assert fields.layout.channels == ("2t", "z_500")


def test_cache_folder_is_opened_in_place(tmp_path, make_dataset):
    dataset = make_dataset(dtype="float64")
    dataset.to_netcdf(tmp_path / "a.nc")
    whole = open_fields(tmp_path / "a.nc")
    folder = cached(tmp_path)[0].parent
    assert open_fields(folder).fingerprint == whole.fingerprint
    part = open_fields(folder, variables=["z"], levels=[850], times="2020-01-05:")
    assert part.layout.channels == ("z_850",)
    np.testing.assert_array_equal(part.read(slice(None)), whole.read(slice(4, None))[:, 2:])
    np.testing.assert_array_equal(part.read(1), whole.read(5)[2:])
    assert part.fingerprint != whole.fingerprint


def test_streams_are_merged(tmp_path, make_dataset):
    dataset = make_dataset(days=10)
    dataset[["t2m"]].to_netcdf(tmp_path / "single.nc")
    dataset[["z"]].isel(time=slice(0, 6)).to_netcdf(tmp_path / "pressure_1.nc")
    dataset[["z"]].isel(time=slice(6, 10)).to_netcdf(tmp_path / "pressure_2.nc")
    check(open_fields(str(tmp_path / "*.nc")), dataset)
    check(
        open_fields([tmp_path / "pressure_2.nc", tmp_path / "single.nc", tmp_path / "p*_1.nc"]),
        dataset,
    )


def test_levels_from_several_files(tmp_path, make_dataset):
    dataset = make_dataset()
    dataset[["t2m"]].to_netcdf(tmp_path / "t.nc")
    dataset[["z"]].isel(level=[1]).to_netcdf(tmp_path / "z850.nc")
    # One level as a scalar coordinate, as xarray leaves it after a selection.
    dataset[["z"]].isel(level=0).to_netcdf(tmp_path / "z500.nc")
    check(open_fields(str(tmp_path / "*.nc")), dataset)


def test_levels_interleaved_between_files(tmp_path, make_dataset):
    dataset = make_dataset(("z",), levels=(300, 500, 850))
    dataset.isel(level=[0, 2]).to_netcdf(tmp_path / "a.nc")
    dataset.isel(level=[1]).to_netcdf(tmp_path / "b.nc")
    fields = open_fields(str(tmp_path / "*.nc"))
    assert fields.layout.channels == ("z_300", "z_500", "z_850")
    np.testing.assert_array_equal(fields.read(slice(None)), dataset.z.values)


def test_notes_name_many_files_once(tmp_path, make_dataset):
    dataset = make_dataset().isel(latitude=slice(None, None, -1))
    for day in range(12):
        dataset.isel(time=[day]).to_netcdf(tmp_path / f"{day:02d}.nc")
    fields = open_fields(str(tmp_path / "*.nc"))
    check(fields, make_dataset())
    assert fields.audit_notes == (
        "00.nc, 01.nc, 02.nc, 03.nc and 8 more: latitudes put north to south",
    )


def test_overlapping_files(tmp_path, make_dataset):
    dataset = make_dataset(days=10)
    dataset.isel(time=slice(0, 6)).to_netcdf(tmp_path / "a.nc")
    dataset.isel(time=slice(4, 10)).to_netcdf(tmp_path / "b.nc")
    fields = open_fields(str(tmp_path / "*.nc"))
    check(fields, dataset)
    assert fields.audit_notes == (
        "2t: 2 duplicated times with equal values dropped, the first 2020-01-05",
        "z: 2 duplicated times with equal values dropped, the first 2020-01-05",
    )


@pytest.mark.parametrize("order", [[3, 0, 1, 2, *range(11, 3, -1)], [0, 2, 1, *range(3, 12)]])
def test_times_out_of_order(tmp_path, make_dataset, order):
    dataset = make_dataset()
    dataset.isel(time=order).to_netcdf(tmp_path / "a.nc")
    check(open_fields(tmp_path / "a.nc"), dataset)


def test_times_as_fractions_of_a_day(tmp_path, make_dataset):
    dataset = make_dataset(days=48, hours=1)
    stored = dataset.assign_coords(
        time=("time", 43829 + np.arange(48) / 24, {"units": "days since 1900-01-01"})
    )
    stored.to_netcdf(tmp_path / "a.nc")
    check(open_fields(tmp_path / "a.nc"), dataset)


def test_time_zone_of_the_units(tmp_path, make_dataset):
    dataset = make_dataset(days=3)
    stored = dataset.assign_coords(
        time=("time", np.arange(3) * 24 + 2, {"units": "hours since 2020-01-01 00:00:00 +02:00"})
    )
    stored.to_netcdf(tmp_path / "a.nc")
    check(open_fields(tmp_path / "a.nc"), dataset)


def test_gaps_stay_and_are_noted(tmp_path, make_dataset):
    dataset = make_dataset().isel(time=[0, 1, 2, 5, 6, 7])
    dataset.to_netcdf(tmp_path / "a.nc")
    fields = open_fields(tmp_path / "a.nc")
    check(fields, dataset)
    assert fields.audit_notes == (
        "1 gap(s) in time, about 2 times missing, the first after 2020-01-03; "
        "no sample spans a gap",
    )


def test_times_that_only_one_stream_has(tmp_path, make_dataset):
    dataset = make_dataset(days=10)
    dataset[["t2m"]].to_netcdf(tmp_path / "a.nc")
    dataset[["z"]].isel(time=slice(2, 10)).to_netcdf(tmp_path / "b.nc")
    fields = open_fields(str(tmp_path / "*.nc"))
    check(fields, dataset.isel(time=slice(2, 10)))
    assert fields.audit_notes == ("2t: 2 times dropped that other variables do not have",)


def test_static_fields(tmp_path, make_dataset):
    dataset = make_dataset()
    height = np.arange(12.0).reshape(4, 3)
    mask = (height > 5).astype("int8")
    stored = dataset.rename(z="zz")
    stored["zz"].attrs["standard_name"] = "geopotential"
    # Repeated at every time, as the Copernicus store does, and without a time axis.
    stored["z"] = (("time", "latitude", "longitude"), np.tile(height, (12, 1, 1)))
    stored["z"].attrs["units"] = "m**2 s**-2"
    stored["lsm"] = (("latitude", "longitude"), mask, {"units": "(0 - 1)"})
    stored.to_netcdf(tmp_path / "a.nc")
    fields = open_fields(tmp_path / "a.nc")
    check(fields, dataset)
    assert fields.layout.static_channels == ("z", "lsm")
    np.testing.assert_array_equal(fields.static_fields, np.stack([height, mask]))
    assert fields.audit_notes == ("a.nc: z does not vary in time; taken as static",)


def test_varying_mask_is_a_channel(tmp_path, make_dataset):
    dataset = make_dataset(("t2m", "lsm"))
    dataset.to_netcdf(tmp_path / "a.nc")
    fields = open_fields(tmp_path / "a.nc")
    assert fields.layout.channels == ("2t", "lsm") and fields.layout.static_channels == ()
    assert fields.audit_notes == ("a.nc: lsm varies in time; kept as a channel",)


def test_static_data_of_a_larger_region(tmp_path, make_dataset):
    dataset = make_dataset()
    dataset.to_netcdf(tmp_path / "a.nc")
    globe = make_dataset(
        ("lsm",), days=1, latitude=np.arange(-90, 91, 2.5), longitude=np.arange(-180, 180, 2.5)
    )
    globe.to_netcdf(tmp_path / "static.nc")
    fields = open_fields(tmp_path / "a.nc", static_data=tmp_path / "static.nc")
    check(fields, dataset)
    assert fields.layout.static_channels == ("lsm",)
    wanted = globe.lsm[0].sel(latitude=dataset.latitude, longitude=dataset.longitude)
    np.testing.assert_array_equal(fields.static_fields[0], wanted.values)


def test_values_travel_to_workers_by_path(tmp_path, make_dataset):
    dataset = make_dataset(days=400, dtype="float64")
    dataset.to_netcdf(tmp_path / "a.nc")
    dataset.astype("float32").to_netcdf(tmp_path / "b.nc")
    for name, kind in {"a.nc": StoredValues, "b.nc": InPlaceValues}.items():
        fields = open_fields(tmp_path / name)
        assert isinstance(fields.values, kind)
        packed = pickle.dumps(fields.values)
        assert len(packed) < 1500
        np.testing.assert_array_equal(pickle.loads(packed)[7], fields.read(7))


def test_grib(tmp_path, monkeypatch):
    pytest.importorskip("cfgrib", exc_type=ImportError)
    eccodes = pytest.importorskip("eccodes", exc_type=ImportError)
    path = tmp_path / "a.grib"
    values = {}
    with open(path, "wb") as stream:
        for day in range(3):
            for name, level in (("2t", 0), ("z", 500), ("z", 850)):
                message = eccodes.codes_grib_new_from_samples(
                    "regular_ll_pl_grib1" if level else "regular_ll_sfc_grib1"
                )
                for key, value in {
                    "Ni": 3, "Nj": 4, "latitudeOfFirstGridPointInDegrees": 50.0,
                    "latitudeOfLastGridPointInDegrees": 42.5,
                    "longitudeOfFirstGridPointInDegrees": 0.0,
                    "longitudeOfLastGridPointInDegrees": 5.0, "iDirectionIncrementInDegrees": 2.5,
                    "jDirectionIncrementInDegrees": 2.5, "dataDate": 20200101 + day, "dataTime": 0,
                    "shortName": name, "bitsPerValue": 16,
                }.items():  # fmt: skip
                    eccodes.codes_set(message, key, value)
                if level:
                    eccodes.codes_set(message, "level", level)
                field = 100.0 * day + level + np.arange(12.0)
                eccodes.codes_set_values(message, field)
                eccodes.codes_write(message, stream)
                eccodes.codes_release(message)
                values[day, name, level] = field.reshape(4, 3)
    fields = open_fields(path)
    assert fields.layout.channels == CHANNELS
    assert fields.layout.latitude.tolist() == [50, 47.5, 45, 42.5]
    wanted = [[values[d, "2t", 0], values[d, "z", 500], values[d, "z", 850]] for d in range(3)]
    np.testing.assert_allclose(fields.read(slice(None)), wanted, atol=0.01)
    assert list(tmp_path.glob("*.idx")) == []


def test_grib_without_cfgrib(tmp_path, monkeypatch):
    from hftune.utils.errors import DataError

    (tmp_path / "a.grib").write_bytes(b"GRIB" + bytes(100))
    monkeypatch.setitem(sys.modules, "cfgrib", None)
    with pytest.raises(
        DataError, match=r"a.grib needs cfgrib and eccodes .*pip install 'hftune\[grib\]'"
    ):
        open_fields(tmp_path / "a.grib")


def test_iberia(test_data):
    fields = open_fields(test_data / "weather/ncep_iberia_daily_1961_1999.nc")
    assert fields.layout.channels[:5] == ("2t", "msl", "tp", "z_500", "z_850")
    assert fields.values.shape == (14244, 12, 6, 9)
    assert fields.layout.longitude[[0, -1]].tolist() == [345, 365]
    assert fields.times[0] == -9 * 365.25 * 86400 + 0.25 * 86400
    assert np.isfinite(fields.read(slice(None, None, 97))).all()


def test_davos_pair(test_data):
    folder = test_data / "weather/era5_davos_hourly_2020_01"
    fields = open_fields(folder)
    assert fields.values.shape == (744, 46, 4, 5)
    assert fields.layout.static_channels == ("z",)
    assert fields.static_fields[0, 0, 0] == pytest.approx(10450.17, abs=0.1)
    assert "single_levels.nc: z does not vary in time; taken as static" in fields.audit_notes
    assert (
        "single_levels.nc: zust is unknown to hftune; kept as zust in m s**-1" in fields.audit_notes
    )
    listed = open_fields([folder / "pressure_levels.nc", folder / "single_levels.nc"])
    assert listed.fingerprint == fields.fingerprint

    import xarray

    with xarray.open_dataset(folder / "pressure_levels.nc") as dataset:
        wanted = dataset.q.sel(level=700).values.astype("float32")
    index = fields.layout.channels.index("q_700")
    np.testing.assert_array_equal(fields.read(slice(None))[:, index], wanted)


def test_global_file_without_surface(test_data):
    fields = open_fields(test_data / "weather/ncep_global_daily_2022_01.nc")
    assert fields.values.shape == (5, 25, 73, 144)
    assert {channel.split("_")[0] for channel in fields.layout.channels} == {
        "z",
        "u",
        "v",
        "t",
        "q",
    }
    assert fields.layout.latitude[[0, -1]].tolist() == [90, -90]
    assert fields.audit_notes == ()
