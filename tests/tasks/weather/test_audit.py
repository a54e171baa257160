"""The audit: nothing to say about good data, and every planted fault named with its place."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from hftune.tasks.weather.audit import audit_fields
from hftune.tasks.weather.dates import format_time
from hftune.tasks.weather.fields import WeatherFields
from hftune.tasks.weather.simulation import simulate_atmosphere
from hftune.tasks.weather.statistics import compute_statistics
from hftune.utils.errors import DataError


@pytest.fixture(scope="module")
def good():
    return simulate_atmosphere(years=3, latitudes=8, longitudes=16, levels=(500, 850))


@pytest.fixture
def fields(good):
    """A copy to spoil."""
    return dataclasses.replace(
        good, values=good.values.copy(), static_fields=good.static_fields.copy()
    )


def channel(fields, name):
    return fields.values[:, fields.layout.channels.index(name)]


def day(fields, row):
    return format_time(fields.times[row])


def point(fields, y, x):
    return float(fields.layout.latitude[y]), float(fields.layout.longitude[x])


def faults(fields, **settings):
    """Errors and warnings."""
    audit = audit_fields(fields, **settings)
    return [finding for finding in audit.findings if finding.severity != "info"]


def only(fields, **settings):
    found = faults(fields, **settings)
    assert len(found) == 1, [(f.check, f.channel, f.message) for f in found]
    return found[0]


def shown(finding):
    return finding.severity, finding.check, finding.channel, finding.count, finding.where


def test_good_data_have_no_faults(good):
    audit = audit_fields(good)
    assert audit.verdict == "ok"
    assert {finding.check for finding in audit.findings} <= {"below_ground"}
    audit.raise_on_errors()
    assert audit.times == {
        "count": 1096, "first": "2000-01-01", "last": "2002-12-31", "step_hours": 24.0,
        "text": "1,096 times from 2000-01-01 to 2002-12-31, every 24 h",
    }  # fmt: skip
    summary = audit.per_channel["t_850"]
    values = channel(good, "t_850").astype(np.float64)
    assert summary["units"] == "K"
    assert summary["mean"] == pytest.approx(values.mean(), rel=1e-9)
    assert summary["std"] == pytest.approx(values.std(), rel=1e-9)
    assert (summary["minimum"], summary["maximum"]) == (values.min(), values.max())
    assert set(summary["seasons"]) == {"DJF", "MAM", "JJA", "SON"}
    assert summary["years"]["2001"] == pytest.approx(values[366:731].mean(), rel=1e-6)
    assert len(summary["series"]["times"]) == 120
    assert sum(summary["histogram"]["counts"]) == 300 * 8 * 16


def test_the_result_is_json(fields):
    channel(fields, "2t")[7, 0, 0] = np.nan
    result = json.loads(json.dumps(audit_fields(fields).as_dict(), allow_nan=False))
    assert result["verdict"] == "errors" and result["errors"] == 1
    assert result["findings"][0]["check"] == "missing"
    assert result["findings"][0]["place"] == "66.875 N 0 E, 2000-01-08"


def test_rows_select_what_is_audited(fields):
    channel(fields, "2t")[7, 0, 0] = np.nan
    assert faults(fields, rows="2001") == []
    assert only(fields, rows="2000").when == "2000-01-08"


# Missing and infinite values


def test_one_missing_value(fields):
    channel(fields, "z_500")[400, 2, 3] = np.nan
    finding = only(fields)
    assert shown(finding) == ("error", "missing", "z_500", 1, point(fields, 2, 3))
    assert finding.when == day(fields, 400)
    assert finding.message == (
        "1 value missing (NaN) at 1 of 1096 times and 1 of 128 points: 2001-02-04."
    )


def test_missing_fields(fields):
    channel(fields, "q_850")[[10, 11]] = np.nan
    finding = only(fields)
    assert shown(finding)[:4] == ("error", "missing", "q_850", 256)
    assert finding.message == "2 fields missing (all NaN): 2000-01-11, 2000-01-12."


def test_points_that_are_always_missing_are_named_a_mask(fields):
    channel(fields, "t_850")[:, 3:5, 4] = np.nan
    finding = only(fields)
    assert shown(finding) == ("error", "missing", "t_850", 2 * 1096, point(fields, 3, 4))
    assert finding.message.startswith("2 of 128 points are missing (NaN) at all times: below the")


def test_a_variable_without_values(fields):
    channel(fields, "msl")[:] = np.nan
    assert only(fields).message == "all values are missing (NaN): leave the variable out."
    summary = json.loads(json.dumps(audit_fields(fields).as_dict(), allow_nan=False))["channels"]
    assert summary["msl"]["mean"] is None and summary["msl"]["missing"] == 1096 * 128
    assert summary["msl"]["series"] == {"times": [], "mean": []}


def test_infinities(fields):
    channel(fields, "v_500")[[20, 30], 1, 2] = [np.inf, -np.inf]
    finding = only(fields)
    assert shown(finding) == ("error", "infinite", "v_500", 2, point(fields, 1, 2))
    assert finding.when == day(fields, 20)


# Empty and repeated fields


def test_fields_of_zeros(fields):
    for name in ("t_500", "u_500", "q_500", "msl"):  # with zero possible and not
        channel(fields, name)[[500, 501]] = 0
    found = faults(fields)
    assert [shown(f) for f in found] == [
        ("error", "zeros", name, 2, None) for name in ("msl", "u_500", "t_500", "q_500")
    ]
    assert {f.when for f in found} == {day(fields, 500)}
    assert found[0].message == "2 fields all zeros: 2001-05-15, 2001-05-16."


def test_fields_of_one_value(fields):
    channel(fields, "2t")[77] = 280.0
    finding = only(fields)
    assert shown(finding)[:4] == ("error", "constant", "2t", 1)
    assert finding.when == day(fields, 77)


def test_fields_that_repeat(fields):
    channel(fields, "2t")[100:104] = channel(fields, "2t")[99]
    finding = only(fields)
    assert shown(finding)[:4] == ("warning", "stuck", "2t", 4)
    assert finding.when == day(fields, 100)
    assert finding.message.endswith("2000-04-10 to 2000-04-13, without a break.")


def test_many_fields_that_repeat_are_an_error(fields):
    values = channel(fields, "2t")
    values[1::2] = values[::2]  # daily data made of two-daily ones
    finding = only(fields)
    assert shown(finding)[:4] == ("error", "stuck", "2t", 548)


def test_a_point_that_is_stuck(fields):
    channel(fields, "10u")[200:250, 5, 6] = 3.25
    finding = only(fields)
    assert shown(finding) == ("warning", "stuck", "10u", 1, point(fields, 5, 6))
    assert finding.when == day(fields, 249)
    assert "for 50 steps at 3.25" in finding.message


def test_a_channel_that_never_changes(fields):
    channel(fields, "10v")[:] = channel(fields, "10v")[0]
    finding = only(fields)
    assert shown(finding)[:3] == ("warning", "constant", "10v")


def test_rain_may_rest(fields):
    layout = dataclasses.replace(
        fields.layout, channels=(*fields.layout.channels[:-1], "tp"), units=("K",) * 14
    )
    fields.values[:, -1] = 0
    fields.values[::3, -1] = np.random.default_rng(0).exponential(0.002, (366, 8, 16))
    assert faults(dataclasses.replace(fields, layout=layout)) == []


# Units and ranges


@pytest.mark.parametrize(
    ("name", "factor", "offset", "looks"),
    [
        ("2t", 1, -273.15, "look like degC"),
        ("t_500", 1, -273.15, "look like degC"),
        ("2t", 9 / 5, -459.67, "look like degF"),
        ("msl", 0.01, 0, "look like hPa"),
        ("z_500", 1 / 9.80665, 0, "look like m (geopotential height)"),
        ("z_850", 1 / 9.80665, 0, "look like m (geopotential height)"),
        ("q_850", 1000, 0, "look like g/kg"),
    ],
)
def test_other_units(fields, name, factor, offset, looks):
    values = channel(fields, name)
    values[:] = values * factor + offset
    finding = [f for f in faults(fields) if f.check == "units"]
    assert [shown(f)[:3] for f in finding] == [("error", "units", name)]
    assert f"values {looks} (mean " in finding[0].message


def test_a_level_that_is_another(fields):
    channel(fields, "z_500")[:], channel(fields, "z_850")[:] = (
        channel(fields, "z_850").copy(),
        channel(fields, "z_500").copy(),
    )
    assert {f.check for f in faults(fields) if f.severity == "error"} == {"units", "levels"}


def test_an_impossible_value(fields):
    channel(fields, "2t")[50, 1, 1] = 400.0
    finding = only(fields)
    assert shown(finding) == ("error", "range", "2t", 1, point(fields, 1, 1))
    assert finding.when == day(fields, 50)
    assert finding.message == "1 value above 335 K, the worst 400."


def test_fill_values_leave_the_statistics_alone(fields, good):
    channel(fields, "msl")[[60, 70], 1, 1] = -9999.0
    channel(fields, "u_500")[80, 0, 0] = 9.96921e36
    found = faults(fields)
    assert [shown(f) for f in found] == [
        ("error", "range", "msl", 2, point(fields, 1, 1)),
        ("error", "range", "u_500", 1, point(fields, 0, 0)),
    ]
    assert [f.when for f in found] == [day(fields, 60), day(fields, 80)]
    assert all("looks like a fill value" in f.message for f in found)
    summary = audit_fields(fields).per_channel["u_500"]
    assert summary["mean"] == pytest.approx(channel(good, "u_500").mean(dtype=float), abs=1e-3)
    assert summary["impossible"] == 1


def test_negative_rain_from_packing_is_a_warning(fields):
    layout = dataclasses.replace(
        fields.layout, channels=(*fields.layout.channels[:-1], "tp"), units=("K",) * 14
    )
    fields.values[:, -1] = np.random.default_rng(0).exponential(0.002, (1096, 8, 16))
    fields.values[40, -1, 2, 2] = -2e-9
    finding = only(dataclasses.replace(fields, layout=layout))
    assert shown(finding) == ("warning", "range", "tp", 1, point(fields, 2, 2))
    assert finding.message == "1 negative value, the lowest -2e-09 K."


# Outliers and drift


def test_a_value_that_sticks_out(fields):
    channel(fields, "2t")[333, 4, 7] += 45
    finding = only(fields)
    assert shown(finding) == ("warning", "outlier", "2t", 1, point(fields, 4, 7))
    assert finding.when == day(fields, 333)


@pytest.mark.parametrize("row", [0, 1095])
def test_a_value_that_sticks_out_at_an_end(fields, row):
    channel(fields, "t_850")[row, 4, 7] -= 60
    finding = only(fields)
    assert shown(finding) == ("warning", "outlier", "t_850", 1, point(fields, 4, 7))
    assert finding.when == day(fields, row)


def test_a_field_that_sticks_out(fields):
    channel(fields, "z_500")[600] += 3000
    found = [f for f in faults(fields) if "1 field whose mean" in f.message]
    assert [shown(f) for f in found] == [("warning", "outlier", "z_500", 1, None)]
    assert found[0].when == day(fields, 600)


def test_a_level_that_jumps(fields):
    channel(fields, "msl")[700:] += 1500
    finding = only(fields)
    assert shown(finding)[:3] == ("warning", "drift", "msl")
    assert "the level changes by +1" in finding.message
    assert finding.when in ("2001-11", "2001-12", "2002-01")


def test_a_level_that_drifts(fields):
    channel(fields, "t_850")[:] += np.linspace(0, 12, 1096)[:, None, None]
    finding = only(fields)
    assert shown(finding)[:3] == ("warning", "drift", "t_850")
    assert "a decade" in finding.message


def test_a_spread_that_changes(fields):
    values = channel(fields, "10v")
    values[500:] = values[500:] * 0.4
    finding = only(fields)
    assert shown(finding)[:3] == ("warning", "drift", "10v")
    assert finding.when in ("2001-04", "2001-05", "2001-06")


# Time


def test_gaps(fields):
    keep = np.delete(np.arange(1096), [*range(100, 103), 500])
    holed = dataclasses.replace(fields, times=fields.times[keep], values=fields.values[keep])
    finding = only(holed)
    assert shown(finding) == ("warning", "gaps", None, 4, None)
    assert finding.when == day(fields, 100)
    assert "4 times missing in 2 gaps, the first 2000-04-10, the longest of 3 days after" in (
        finding.message
    )


def test_duplicates_and_disorder(fields):
    times = fields.times.copy()
    times[10] = times[9]
    finding = only(dataclasses.replace(fields, times=times))
    assert shown(finding) == ("error", "duplicates", None, 1, None)
    assert finding.when == day(fields, 9)
    times = fields.times.copy()
    times[[20, 21]] = times[[21, 20]]
    finding = only(dataclasses.replace(fields, times=times))
    assert shown(finding) == ("error", "backwards", None, 1, None)


def test_local_days_and_daylight_saving(fields):
    korean = dataclasses.replace(fields, times=fields.times + 15 * 3600)
    finding = only(korean)
    assert shown(finding)[:4] == ("warning", "time_zone", None, 1096)
    assert "times are at 15:00, which is unusual" in finding.message
    times = fields.times.copy()
    times[90:300] -= 3600
    finding = only(dataclasses.replace(fields, times=times))
    assert shown(finding)[:4] == ("warning", "time_zone", None, 210)
    assert finding.when == "2000-03-30T23:00"


def test_the_warmest_hour_tells_local_time():
    fields = simulate_atmosphere(years=0.1, step_hours=3, latitudes=8, longitudes=16, levels=(500,))
    assert faults(fields) == []
    shifted = dataclasses.replace(fields, times=fields.times + 6 * 3600)
    finding = only(shifted)
    assert shown(finding)[:3] == ("warning", "time_zone", "2t")
    assert "+5 h off the early afternoon" in finding.message


def test_times_that_cannot_be(fields):
    far = dataclasses.replace(fields, times=fields.times * 30)
    assert only(far).check == "time_units"


def test_a_step_that_the_data_do_not_have(fields):
    assert faults(fields, step_hours=48) == []
    finding = only(fields, step_hours=6)
    assert (finding.severity, finding.check) == ("error", "step")
    assert "a step of 6 h was asked for; there are 1,096 times" in finding.message


# Place


def test_latitudes_upside_down(fields):
    fields.values[:] = fields.values[:, :, ::-1].copy()
    found = [f for f in faults(fields) if f.check == "orientation"]
    assert [f.severity for f in found] == ["error"]
    assert "u against the gradient of z over latitude" in found[0].message


def test_latitudes_upside_down_without_winds(fields):
    keep = [0, 3, 4, 5, 10, 11]  # 2t, msl, z, t
    values = fields.values[:, keep][:, :, ::-1]
    layout = dataclasses.replace(
        fields.layout,
        channels=tuple(fields.layout.channels[i] for i in keep),
        units=tuple(fields.layout.units[i] for i in keep),
    )
    finding = only(dataclasses.replace(fields, layout=layout, values=values))
    assert shown(finding)[:3] == ("error", "orientation", "t_850")


def test_longitudes_the_other_way(fields):
    fields.values[:] = fields.values[:, :, :, ::-1].copy()
    found = [f for f in faults(fields) if f.check == "orientation"]
    assert "v against that over longitude" in found[0].message


def test_filled_values_below_the_ground(fields):
    below = fields.static_fields[1] > channel(fields, "z_850").mean(0)
    fields.static_fields[1, 2, 2] = 20000
    channel(fields, "t_850")[:, 2, 2] = channel(fields, "q_850")[:, 2, 2] = 0.005
    channel(fields, "t_850")[:, 2, 2] = 273
    found = [f for f in faults(fields) if f.check == "below_ground"]
    if not below.any():
        assert shown(found[0]) == ("warning", "below_ground", None, 1, point(fields, 2, 2))
        assert "; t_850, q_850 never change there" in found[0].message


def test_static_fields(fields):
    fields.static_fields[0] *= 100
    fields.static_fields[1, 3, 3] = np.nan
    found = faults(fields)
    assert [shown(f) for f in found] == [
        ("error", "static", "lsm", 1, None),
        ("error", "static", "z", 1, point(fields, 3, 3)),
    ]


# Statistics, errors, real data


def test_statistics_of_a_model(fields, good):
    statistics = compute_statistics(good)
    assert faults(fields, reference=statistics) == []
    statistics.mean[fields.layout.channels.index("t_850")] += 60
    finding = only(fields, reference=statistics)
    assert shown(finding)[:3] == ("warning", "statistics", "t_850")
    audit = audit_fields(fields, reference=statistics)
    assert audit.per_channel["t_850"]["reference_z"] == pytest.approx(-6, abs=1)
    assert audit.per_channel["t_500"]["reference_z"] == pytest.approx(0, abs=1e-6)


def test_errors_stop_a_run_and_say_where(fields):
    channel(fields, "z_500")[400, 2, 3] = np.nan
    channel(fields, "t_850")[5] = 0
    with pytest.raises(DataError) as caught:
        audit_fields(fields).raise_on_errors()
    text = str(caught.value)
    assert "the audit found 2 errors in the data:" in text
    assert "z_500: 1 value missing (NaN)" in text and "2001-02-04)" in text
    assert "t_850: 1 field all zeros: 2000-01-06." in text
    assert "--audit warn" in text


def test_memory_stays_flat(good):
    """Blocks are read one after the other, a few rows at a time."""

    class Counting:
        most = 0

        def __getitem__(self, rows):
            read = good.values[rows]
            Counting.most = max(Counting.most, len(read) if read.ndim == 4 else 1)
            return np.repeat(np.repeat(read, 8, axis=-1), 8, axis=-2)

    layout = dataclasses.replace(
        good.layout, latitude=np.linspace(70, 20, 64), longitude=np.arange(128) * 2.8
    )
    large = WeatherFields(layout, good.times[:400], Counting(), np.empty((0, 64, 128), np.float32))
    large = dataclasses.replace(
        large, layout=dataclasses.replace(layout, static_channels=()), audit_notes=("a note",)
    )
    audit = audit_fields(large)
    assert Counting.most <= 150
    assert audit.findings[-1].check == "reader"


@pytest.mark.parametrize(
    "files",
    [
        ["ncep_iberia_daily_1961_1999.nc"],
        ["ncep_global_daily_2022_01.nc"],
        [
            "era5_davos_hourly_2020_01/single_levels.nc",
            "era5_davos_hourly_2020_01/pressure_levels.nc",
        ],
    ],
)
def test_real_data_have_no_errors(test_data, files):
    from hftune.tasks.weather.store import open_fields

    fields = open_fields([test_data / "weather" / name for name in files], progress=False)
    # The points of the Iberian extract are mixed up, truly: see test_audit_order.py.
    allowed = {("warning", "order")} if len(files) == 1 and "iberia" in files[0] else set()
    assert {(f.severity, f.check) for f in faults(fields)} <= allowed
