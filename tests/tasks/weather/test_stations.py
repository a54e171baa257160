import numpy as np
import pytest

from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.tasks.weather.simulated_stations import simulated_stations
from hftune.tasks.weather.simulation import simulate_atmosphere
from hftune.tasks.weather.stations import Stations, read_stations, write_stations
from hftune.utils.errors import DataError

DAY = 86400
POSITIONS = "station_id,longitude,latitude,name\nA,-2.5,43,서울\nB,358,41.25,Salamanca\n"


def write(folder, positions=POSITIONS, **variables):
    folder.mkdir(exist_ok=True)
    (folder / "stations.csv").write_text(positions, encoding="utf-8")
    for name, text in variables.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    return folder


def message(folder):
    with pytest.raises(DataError) as error:
        read_stations(folder)
    return str(error.value)


def test_reads_a_folder(tmp_path):
    folder = write(
        tmp_path,
        # Columns in another order, a missing station, dates that differ from the other file's.
        tmax="date,B,A\n1979-01-01,18.5,11\n1979-01-03,,NA\n",
        tmin="date,A\n1979-01-02,-4.25\n1979-01-03T00:00,nan\n",
    )
    stations = read_stations(folder)
    assert stations.names == ("A", "B") and stations.variables == ("tmax", "tmin")
    assert stations.longitude.tolist() == [-2.5, 358] and stations.latitude.tolist() == [43, 41.25]
    first = int(np.datetime64("1979-01-01", "s").astype(int))
    assert stations.times.tolist() == [first, first + DAY, first + 2 * DAY]
    assert stations.times.dtype == np.int64 and stations.values.dtype == np.float32
    nan = np.nan
    np.testing.assert_array_equal(
        stations.values,
        [[[11, 18.5], [nan, nan]], [[nan, nan], [-4.25, nan]], [[nan, nan], [nan, nan]]],
    )
    np.testing.assert_array_equal(
        stations.at([first + 2 * DAY, first, first - DAY, first + 60])[:, 0],
        [[nan, nan], [11, 18.5], [nan, nan], [nan, nan]],
    )
    assert stations.values[0, 0, 0] == 11  # what at() gives is a copy


def test_a_byte_order_mark_and_empty_lines_do_not_matter(tmp_path):
    folder = write(tmp_path, "\ufeff" + POSITIONS + "\n", tmax="\ufeffdate,A,B\r\n2000,1,2\r\n\r\n")
    assert read_stations(folder).values.tolist() == [[[1, 2]]]


@pytest.mark.parametrize(
    ("positions", "tmax", "expected"),
    [
        ("id,lon,lat\nA,1,2\n", "date,A\n2000-01-01,1\n",
         "stations.csv has no column station_id, longitude, latitude; it has id, lon, lat."),
        (POSITIONS, "time,A\n2000-01-01,1\n",
         "tmax.csv: the first column is 'time', expected 'date'."),
        ("station_id,longitude,latitude\nSP8027,1,2\n", "date,SP8072\n2000-01-01,1\n",
         "tmax.csv has a column 'SP8072', a station that stations.csv does not know. "
         "Did you mean 'SP8027'?"),
        (POSITIONS, "date,A,A\n2000-01-01,1,2\n", "tmax.csv has two columns A."),
        (POSITIONS, "date,A\n2000-01-01,1\n2000-01-01,2\n",
         "tmax.csv:3: 2000-01-01 is there twice: dates have to increase."),
        (POSITIONS, "date,A\n2000-01-02,1\n2000-01-01,2\n",
         "tmax.csv:3: 2000-01-01 follows 2000-01-02: dates have to increase."),
        (POSITIONS, "date,A\n01/02/2000,1\n2000-01-01,2\n",
         "tmax.csv:2: cannot read the date '01/02/2000'; write 1995-06-01 or 1995-06-01T12:00 "
         "(UTC)."),
        (POSITIONS, "date,A\n2000-01-02,1\n,2\n",
         "tmax.csv:3: cannot read the date ''; write 1995-06-01 or 1995-06-01T12:00 (UTC)."),
        (POSITIONS, "date,A\n2000-01-01,warm\n2000-01-02,1\n",
         "tmax.csv:2: could not convert string to float: 'warm'; leave a missing value empty."),
        (POSITIONS, "date,A\n2000-01-01,inf\n",
         "tmax.csv:2: a value is infinite; leave a missing value empty."),
        (POSITIONS, "date,A,B\n2000-01-01,1\n2000-01-02,1,2\n",
         "tmax.csv:2: 2 cells, the head of the table has 3."),
        (POSITIONS, "date,A\n", "tmax.csv has no observation that can be read."),
        ("station_id,longitude,latitude\nA,1,\n", "date,A\n2000-01-01,1\n",
         "stations.csv:2: the station A has no position: longitude '1', latitude ''. Give both in "
         "degrees, or leave the station out everywhere."),
        ("station_id,longitude,latitude\nA,1,91\n", "date,A\n2000-01-01,1\n",
         "stations.csv:2: the station A lies at longitude 1, latitude 91; expected -180 to 360 and "
         "-90 to 90 degrees."),
        ("station_id,longitude,latitude\nA,1,2\nA,1,3\n", "date,A\n2000-01-01,1\n",
         "stations.csv:3: the station A is there twice."),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_named(tmp_path, positions, tmax, expected):
    assert message(write(tmp_path, positions, tmax=tmax)) == expected


def test_problems_are_reported_together(tmp_path):
    folder = write(
        tmp_path, "station_id,longitude,latitude\nA,1,91\n", tmax="date,A\n2000-01-01,warm\n"
    )
    text = message(folder)
    assert text.startswith(f"3 problems in {folder}:\n  stations.csv:2: ")
    assert "\n  tmax.csv:2: " in text and "\n  tmax.csv has no observation" in text


def test_folders_that_are_none(tmp_path):
    assert message(tmp_path / "none") == (
        f"there is no folder {tmp_path / 'none'}: give one with stations.csv and one CSV a "
        "variable."
    )
    assert "has no stations.csv" in message(tmp_path)
    assert "has no observations: for each variable a file such as tmax.csv" in message(
        write(tmp_path)
    )


def test_selects_variables_and_their_logarithms(tmp_path):
    folder = write(
        tmp_path, rain="date,A,B\n2000-01-01,0,\n", snow="date,A\n2000-01-01,-1\n",
        tmax="date,A,B\n2000-01-01,1,2\n",
    )  # fmt: skip
    stations = read_stations(folder)
    chosen = stations.select(["tmax", "log1p(rain)"])
    assert chosen.variables == ("tmax", "log1p(rain)") and chosen.names == stations.names
    np.testing.assert_array_equal(chosen.values, [[[1, 2], [0, np.nan]]])
    assert stations.select(["log1p(tmax)"]).values[0, 0].tolist() == pytest.approx(
        np.log([2, 3]), rel=1e-6
    )
    with pytest.raises(DataError) as error:
        stations.select(["tmx", "log1p(snow)"])
    assert str(error.value) == (
        "the stations do not observe tmx, but rain, snow, tmax. Did you mean 'tmax'?\n"
        "log1p(snow) needs values of 0 or more, and A has -1 on 2000-01-01: make it 0, or leave it "
        "empty where it stands for a missing value."
    )


def test_what_is_written_is_read_back(tmp_path):
    values = np.array([[[0.1, np.nan]], [[1e-7, -12345.678]]], dtype=np.float32)
    times = np.array([0, 6 * 3600])
    stations = Stations(
        ("A", "B"), np.array([0.1, 359]), np.array([1 / 3, 2]), ("x",), times, values
    )
    back = read_stations(write_stations(stations, tmp_path / "new"))
    assert back.fingerprint == stations.fingerprint
    np.testing.assert_array_equal(back.values, values)
    assert (tmp_path / "new" / "x.csv").read_text().splitlines()[2].startswith("1970-01-01T06:00,")
    other = Stations(*(getattr(stations, n) for n in ("names", "longitude", "latitude")), ("y",),
                     times, values)  # fmt: skip
    assert other.fingerprint != stations.fingerprint


def test_real_stations(test_data):
    stations = read_stations(test_data / "weather" / "gsn_iberia_stations")
    assert stations.variables == ("precip", "tmax", "tmin") and len(stations.names) == 6
    assert stations.values.shape == (7670, 3, 6)
    assert 0.02 < np.isnan(stations.values[:, 2]).mean() < 0.05
    assert np.nanmean(stations.values[:, 1]) > np.nanmean(stations.values[:, 2])


def linear_fields(times=50):
    layout = FieldLayout(
        ("2t", "z_500"), ("K", "m2 s-2"), (), np.array([47.5, 45, 42.5]), 345 + 2.5 * np.arange(9)
    )
    plane = layout.latitude[:, None] + 10 * layout.longitude
    values = np.stack([plane, 0 * plane])[None] + np.arange(times)[:, None, None, None]
    return WeatherFields(
        layout, DAY * np.arange(times), values.astype("float32"), np.empty((0, 3, 9), "float32")
    )


def test_simulated_stations_observe_the_fields():
    fields = linear_fields()
    stations = simulated_stations(fields, count=30, seed=1, noise=0, missing=0)
    assert stations.variables == ("2t",) and stations.names[0] == "S01"
    assert stations.latitude.min() >= 42.5 and stations.latitude.max() <= 47.5
    assert stations.longitude.min() >= 345 and stations.longitude.max() <= 365
    # Bilinear interpolation is exact on a plane.
    expected = stations.latitude + 10 * stations.longitude + np.arange(50)[:, None]
    np.testing.assert_allclose(stations.values[:, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(stations.times, fields.times)


def test_simulated_stations_err_and_miss_by_their_seed():
    fields = linear_fields(400)
    exact = simulated_stations(fields, noise=0, missing=0)
    one = simulated_stations(fields, noise=0.2, missing=0.3)
    error = one.values - exact.values
    assert np.isnan(error).mean() == pytest.approx(0.3, abs=0.02)
    assert np.nanstd(error) == pytest.approx(0.2 * exact.values.std(), rel=0.03)
    assert simulated_stations(fields, noise=0.2, missing=0.3).fingerprint == one.fingerprint
    other = simulated_stations(fields, noise=0.2, missing=0.3, seed=1)
    assert other.fingerprint != one.fingerprint


def test_simulated_stations_without_surface_channels_observe_the_lowest_level():
    fields = simulate_atmosphere(years=0.05, latitudes=4, longitudes=8, levels=(500, 850))
    levels = WeatherFields(
        FieldLayout(fields.layout.channels[4:], fields.layout.units[4:], (),
                    fields.layout.latitude, fields.layout.longitude),
        fields.times, fields.values[:, 4:], fields.static_fields[:0],
    )  # fmt: skip
    assert simulated_stations(levels).variables == ("z_850", "u_850", "v_850", "t_850", "q_850")
    assert simulated_stations(fields).variables == ("2t", "10u", "10v", "msl")
