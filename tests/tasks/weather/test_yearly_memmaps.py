"""ERA5 as the reference keeps it: read in place, written from any fields, and back."""

import dataclasses
import os

import numpy as np
import pytest

from hftune.tasks.weather import yearly_memmaps
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.tasks.weather.store import open_fields
from hftune.tasks.weather.values import InPlaceValues
from hftune.tasks.weather.yearly_memmaps import (
    memmaps_to_netcdf,
    open_yearly_memmaps,
    read_static_file,
    write_yearly_memmaps,
)
from hftune.utils.errors import ConfigurationError, DataError

# The order of the reference, cut down: winds, temperature, pressure, then levels from the top.
CHANNELS = ("10u", "10v", "2t", "msl", "z_200", "z_500", "q_200", "q_500")
LAYOUT = FieldLayout(
    CHANNELS,
    ("m s-1", "m s-1", "K", "Pa", "m2 s-2", "m2 s-2", "kg kg-1", "kg kg-1"),
    (),
    np.array([90.0, 30.0, -30.0, -90.0]),
    np.arange(5) * 72.0,
)
C, H, W = 8, 4, 5


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """2007, 2008 (a leap year) and 2009 at 6 h, as the reference reads them; the states by year."""
    folder = tmp_path_factory.mktemp("era5")
    states = {}
    for year, days in ((2007, 365), (2008, 366), (2009, 365)):
        file = np.memmap(
            folder / f"era5_4u_1_6_{year}.memmap", "float32", "w+", shape=(days * 4, C, W, H)
        )
        file[:] = np.random.default_rng(year).normal(300, 10, file.shape)
        file.flush()
        states[year] = np.array(file)
    static = np.random.default_rng(0).normal(size=(3, W, H)).astype("float32")
    np.save(folder / "elev_vars_1.npy", static)
    return folder, states, static


def test_all_years(reference):
    folder, states, _ = reference
    fields = open_yearly_memmaps(folder, layout=LAYOUT)
    assert len(fields) == 4 * (365 + 366 + 365)
    assert fields.times.dtype == np.int64 and set(np.diff(fields.times)) == {21600}
    assert fields.layout.channels == CHANNELS and fields.static_fields.shape == (0, H, W)
    for when in ("2007-01-01T00", "2008-02-29T18", "2008-12-31T18", "2009-01-01T00"):
        time = np.datetime64(when, "s")
        row = int(np.searchsorted(fields.times, time.astype(np.int64)))
        # The reference's index: (day of the year - 1) * 4 + hour // 6.
        year = time.astype("datetime64[Y]")
        index = int((time.astype("datetime64[D]") - year.astype("datetime64[D]")).astype(int)) * 4
        index += int(when[-2:]) // 6
        stored = states[int(str(year))][index]
        read = fields.read(row)
        for latitude in range(H):
            np.testing.assert_array_equal(read[:, latitude], stored[:, :, H - 1 - latitude])
    # Across the end of a year.
    np.testing.assert_array_equal(
        fields.read(slice(1458, 1462)), np.stack([fields.read(row) for row in range(1458, 1462)])
    )


def test_fingerprint(reference, tmp_path):
    folder, _, _ = reference
    before = open_yearly_memmaps(folder, layout=LAYOUT)
    assert before.fingerprint == open_yearly_memmaps(folder, layout=LAYOUT).fingerprint
    renamed = dataclasses.replace(LAYOUT, channels=("u", *CHANNELS[1:]))
    assert open_yearly_memmaps(folder, layout=renamed).fingerprint != before.fingerprint
    static = open_yearly_memmaps(folder, layout=LAYOUT, static=folder / "elev_vars_1.npy")
    assert static.fingerprint != before.fingerprint


def test_static_fields(reference):
    folder, _, static = reference
    path = folder / "elev_vars_1.npy"
    fields = open_yearly_memmaps(folder, layout=LAYOUT, static=path)
    assert fields.layout.static_channels == ("static1", "static2", "static3")
    assert fields.static_fields.dtype == np.float32
    for latitude in range(H):
        np.testing.assert_array_equal(
            fields.static_fields[:, latitude], static[:, :, H - 1 - latitude]
        )
    named = dataclasses.replace(LAYOUT, static_channels=("z", "lsm", "slt"))
    assert read_static_file(path, named)[0].static_channels == ("z", "lsm", "slt")
    with pytest.raises(DataError) as error:
        read_static_file(path, dataclasses.replace(LAYOUT, static_channels=("z", "lsm")))
    assert str(error.value) == "elev_vars_1.npy has 3 channels; expected 2: z, lsm."


def test_static_file_of_another_grid(reference, tmp_path):
    path = tmp_path / "elev_vars_1.npy"
    np.save(path, np.zeros((7, 240, 121), "float32"))
    with pytest.raises(DataError) as error:
        open_yearly_memmaps(reference[0], layout=LAYOUT, static=path)
    assert str(error.value) == (
        "elev_vars_1.npy holds float32 of the shape [7, 240, 121]; expected numbers of the shape "
        "[channels, 5, 4]: longitudes, and latitudes from the south."
    )
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="elev_vars_1.npy is no array file that can be read safe"):
        read_static_file(path, LAYOUT)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"is no array file .*: save plain numbers with numpy.save"):
        read_static_file(path, LAYOUT)
    with pytest.raises(DataError, match="other.npy does not exist"):
        read_static_file(tmp_path / "other.npy", LAYOUT)


def test_missing_years_and_wrong_sizes(tmp_path):
    row = C * H * W * 4
    for year, size in ((2007, 1460 * row), (2009, 1459 * row), (2010, 1461 * row + row // 2)):
        (tmp_path / f"era5_4u_1_6_{year}.memmap").touch()
        os.truncate(tmp_path / f"era5_4u_1_6_{year}.memmap", size)
    with pytest.raises(DataError) as error:
        open_yearly_memmaps(tmp_path, layout=LAYOUT)
    told = "8 channels, 5 longitudes and 4 latitudes"
    assert str(error.value).splitlines() == [
        f"the years 2007 to 2010 lack 2008 in {tmp_path}.",
        f"era5_4u_1_6_2009.memmap has 1,459 rows of {told}; 2009 has 1,460 times, every 6 h.",
        f"era5_4u_1_6_2010.memmap has 1,461.5 rows of {told}; 2010 has 1,460 times, every 6 h.",
    ]


def test_nothing_there(tmp_path):
    with pytest.raises(DataError) as error:
        open_yearly_memmaps(tmp_path, layout=LAYOUT, mode="13u")
    assert str(error.value) == f"the folder {tmp_path} holds no file era5_13u_1_6_YEAR.memmap."
    (tmp_path / "era5_4u_1_6_2007.memmap").touch()
    with pytest.raises(DataError) as error:
        open_yearly_memmaps(tmp_path, layout=LAYOUT, mode="13u")
    assert str(error.value) == (
        f"the folder {tmp_path} holds no file era5_13u_1_6_YEAR.memmap; it holds era5_4u_1_6: set "
        "mode, res and frequency."
    )
    with pytest.raises(DataError, match="the folder .*nowhere does not exist"):
        open_yearly_memmaps(tmp_path / "nowhere", layout=LAYOUT)
    with pytest.raises(ConfigurationError, match="frequency is 5; it has to divide a day: 1, 2"):
        open_yearly_memmaps(tmp_path, layout=LAYOUT, frequency=5)


def in_memory(start, stop, hours, layout=LAYOUT):
    times = np.arange(np.datetime64(start, "s"), np.datetime64(stop, "s"), 3600 * hours)
    values = np.random.default_rng(1).normal(size=(len(times), len(layout.channels), *layout.grid))
    return WeatherFields(layout, times.astype(np.int64), values.astype("float32"), np.empty((0,)))


def test_written_and_read(reference, tmp_path):
    """What is written from the files of the reference is those files."""
    folder, states, _ = reference
    done = []
    paths = write_yearly_memmaps(
        tmp_path, open_yearly_memmaps(folder, layout=LAYOUT), progress=done.append
    )
    assert [path.name for path in paths] == [f"era5_4u_1_6_{year}.memmap" for year in states]
    for path in paths:
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert done[-1] == 4384 and done == sorted(done)
    assert sorted(os.listdir(tmp_path)) == [path.name for path in paths]


def test_part_of_the_times_and_channels(tmp_path):
    fields = in_memory("2019-01-01", "2020-01-01", 3)
    layout = FieldLayout(
        ("msl", "10u"), ("Pa", "m s-1"), (), LAYOUT.latitude[1:3], LAYOUT.longitude
    )
    (path,) = write_yearly_memmaps(tmp_path, fields, layout=layout, mode="2u", frequency=12)
    assert path.name == "era5_2u_1_12_2019.memmap"
    read = open_yearly_memmaps(tmp_path, layout=layout, mode="2u", frequency=12)
    np.testing.assert_array_equal(read.times, fields.times[::4])
    np.testing.assert_array_equal(read.read(slice(None)), fields.values[::4][:, [3, 0], 1:3])


def test_incomplete_years(tmp_path):
    fields = in_memory("2018-12-31T12", "2020-01-01", 6)
    times = np.delete(fields.times, [10, 100, 101, 200, 300, 400, 500])
    fields = dataclasses.replace(fields, times=times, values=fields.values[: len(times)])
    with pytest.raises(DataError) as error:
        write_yearly_memmaps(tmp_path / "era5", fields)
    assert str(error.value).splitlines() == [
        "the data lack 1,458 of the 1,460 times of 2018, every 6 h: 2018-01-01 to "
        "2018-12-31T06:00.",
        "the data lack 7 of the 1,460 times of 2019, every 6 h: 2019-01-03, 2019-01-25T12:00 to "
        "2019-01-25T18:00, 2019-02-19T12:00, 2019-03-16T12:00 and 2 more stretches.",
        "They have 1,455 times from 2018-12-31T12:00 to 2019-12-31T18:00, every 6 h. Select whole "
        "years.",
    ]
    assert not (tmp_path / "era5").exists()


def test_interrupted(tmp_path, monkeypatch):
    fields = in_memory("2018-01-01", "2020-01-01", 24)
    monkeypatch.setattr(yearly_memmaps, "_BLOCK_BYTES", 100 * C * H * W * 4)

    def stop(done):
        if done > 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_yearly_memmaps(tmp_path, fields, frequency=24, progress=stop)
    whole = [name for name in os.listdir(tmp_path) if not name.startswith(".")]
    assert whole == ["era5_4u_1_24_2018.memmap"]
    write_yearly_memmaps(tmp_path, fields, frequency=24)
    read = open_yearly_memmaps(tmp_path, layout=LAYOUT, frequency=24)
    np.testing.assert_array_equal(read.read(slice(None)), fields.values)
    assert len(os.listdir(tmp_path)) == 2


def test_disk_too_small(reference, tmp_path, monkeypatch):
    monkeypatch.setattr(yearly_memmaps, "free_bytes", lambda folder: 1_200_000)
    fields = open_yearly_memmaps(reference[0], layout=LAYOUT)
    with pytest.raises(DataError) as error:
        write_yearly_memmaps(tmp_path, fields)
    assert str(error.value) == (
        f"writing 3 yearly files needs 2.8 MB, 1.2 MB are free on the disk of {tmp_path}: make "
        "room or name another folder."
    )
    with pytest.raises(DataError, match="writing era5.nc needs 2.8 MB, 1.2 MB are free on the dis"):
        memmaps_to_netcdf(reference[0], tmp_path / "era5.nc", layout=LAYOUT)
    assert os.listdir(tmp_path) == []


def test_names_that_leave_the_folder(tmp_path):
    fields = in_memory("2019-01-01", "2020-01-01", 24)
    with pytest.raises(ConfigurationError, match="cannot be a file name"):
        write_yearly_memmaps(tmp_path, fields, mode="../4u", frequency=24)


@pytest.mark.parametrize("longitude", [np.arange(5) * 72.0, np.array([345.0, 350, 355, 360, 365])])
def test_netcdf_and_back(reference, tmp_path, longitude):
    folder, _, static = reference
    layout = dataclasses.replace(
        LAYOUT, longitude=longitude, static_channels=("z", "lsm", "roughness")
    )
    done = []
    path = memmaps_to_netcdf(
        folder,
        tmp_path / "era5.nc",
        layout=layout,
        static=folder / "elev_vars_1.npy",
        progress=done.append,
    )
    assert done[-1] == 4384 and os.listdir(tmp_path) == ["era5.nc"]
    read = open_fields(path)
    original = open_yearly_memmaps(folder, layout=layout, static=folder / "elev_vars_1.npy")
    assert sorted(read.layout.channels) == sorted(CHANNELS)
    assert dict(zip(read.layout.channels, read.layout.units, strict=True)) == dict(
        zip(CHANNELS, LAYOUT.units, strict=True)
    )
    np.testing.assert_array_equal(read.times, original.times)
    np.testing.assert_array_equal(read.layout.latitude, LAYOUT.latitude)
    np.testing.assert_array_equal(read.layout.longitude, longitude)
    order = [read.layout.channels.index(channel) for channel in CHANNELS]
    np.testing.assert_array_equal(
        read.read(slice(None))[:, order].view(np.int32),
        original.read(slice(None)).view(np.int32),
    )
    static_order = [read.layout.static_channels.index(n) for n in ("z", "lsm", "roughness")]
    np.testing.assert_array_equal(read.static_fields[static_order], original.static_fields)
    # Read from where they lie, no copy in a cache.
    assert isinstance(read.values, InPlaceValues)
    # And round again: the raw files come out as they were.
    paths = write_yearly_memmaps(tmp_path, read, layout=layout)
    assert paths[1].read_bytes() == (folder / paths[1].name).read_bytes()


def test_netcdf_has_the_names_of_weatherbench(reference, tmp_path):
    import netCDF4

    memmaps_to_netcdf(reference[0], tmp_path / "era5.nc", layout=LAYOUT)
    with netCDF4.Dataset(tmp_path / "era5.nc") as file:
        grid = ("latitude", "longitude")
        assert file["geopotential"].dimensions == ("time", "level", *grid)
        assert file["level"][:].tolist() == [200, 500]
        assert file["2m_temperature"].dimensions == ("time", *grid)
        assert file["mean_sea_level_pressure"].units == "Pa"
        assert file["specific_humidity"].dimensions == ("time", "level", *grid)
        assert file["latitude"][:].tolist() == [90, 30, -30, -90]
        assert file["time"].units == "seconds since 1970-01-01 00:00:00"


def test_netcdf_of_variables_on_different_levels(reference, tmp_path):
    layout = dataclasses.replace(LAYOUT, channels=(*CHANNELS[:4], "z_200", "z_500", "q_850", "q"))
    with pytest.raises(DataError) as error:
        memmaps_to_netcdf(reference[0], tmp_path / "era5.nc", layout=layout)
    assert str(error.value) == (
        "a file in the layout of WeatherBench 2 has one set of levels for all variables; these "
        "have their own: z (200, 500); q (surface, 850)."
    )
    assert os.listdir(tmp_path) == []
