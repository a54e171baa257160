import numpy as np
import pytest

from hftune.tasks.weather.climatology import compute_climatology
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.utils.errors import DataError

DAY = 86400


def make_fields(times, values, latitude=(10.0, 0.0), longitude=(0.0, 5.0, 10.0)):
    layout = FieldLayout(
        tuple(f"x{i}" for i in range(values.shape[1])),
        ("K",) * values.shape[1],
        (),
        np.array(latitude),
        np.array(longitude),
    )
    static = np.zeros((0, *layout.grid), np.float32)
    return WeatherFields(layout, np.asarray(times), values.astype(np.float32), static)


def days(first, last, hours=24):
    begin = np.datetime64(first, "s").astype(np.int64)
    return np.arange(begin, np.datetime64(last, "s").astype(np.int64), hours * 3600)


def season(times):
    """A yearly course with two harmonics, by the exact fraction of the year."""
    stamps = times.astype("datetime64[s]")
    begin = stamps.astype("datetime64[Y]").astype("datetime64[s]")
    after = (stamps.astype("datetime64[Y]") + 1).astype("datetime64[s]")
    phase = 2 * np.pi * ((stamps - begin) / (after - begin))
    return 280 + 9 * np.cos(phase - 0.5) + 3 * np.sin(2 * phase)


def test_the_course_of_the_year_is_found_under_noise_and_continues_into_other_years():
    times = days("1980-01-01", "1990-01-01")
    noise = np.random.default_rng(0).normal(0, 4, (len(times), 1, 2, 3))
    values = season(times)[:, None, None, None] + noise
    climatology = compute_climatology(make_fields(times, values))
    later = days("1996-01-01", "1998-01-01")  # with a 29 February
    found = climatology.at(later)
    assert found.shape == (len(later), 1, 2, 3) and found.dtype == np.float32
    assert climatology.seasonal and not climatology.diurnal
    # 9 terms from 3653 values of noise 4 K: an error of about 4 * sqrt(9 / 3653) = 0.2 K.
    assert np.sqrt(np.mean((found - season(later)[:, None, None, None]) ** 2)) < 0.25


def test_it_equals_the_least_squares_of_the_same_terms_cell_by_cell_with_missing_values():
    times = days("1980-01-01", "1982-01-01", hours=12)
    random = np.random.default_rng(1)
    values = random.normal(0, 1, (len(times), 2, 2, 3)) + 5e4
    values[random.random(values.shape) < 0.2] = np.nan
    values[:, 1, 1, 2] = np.nan  # never known, as the sea surface temperature on land
    values[:, 0, 0, 0] = 7.0
    climatology = compute_climatology(make_fields(times, values))
    assert climatology.diurnal and climatology.seasonal

    stamps = times.astype("datetime64[s]")
    begin = stamps.astype("datetime64[Y]").astype("datetime64[s]")
    length = (stamps.astype("datetime64[Y]") + 1).astype("datetime64[s]") - begin
    year = 2 * np.pi * ((stamps - begin) / length)
    day = 2 * np.pi * (times % DAY) / DAY
    annual = [np.ones(len(times))]
    for k in range(1, 5):
        annual += [np.cos(k * year), np.sin(k * year)]
    course = [f(k * day) * a for k in (1, 2) for f in (np.cos, np.sin) for a in annual[:3]]
    terms = np.stack(annual + course, axis=1)
    for channel, row, column in np.ndindex(2, 2, 3):
        series = values[:, channel, row, column].astype(np.float32).astype(np.float64)
        known = ~np.isnan(series)
        got = climatology.at(times)[:, channel, row, column]
        if not known.any():
            assert np.isnan(got).all()
            continue
        fit = np.linalg.lstsq(terms[known], series[known], rcond=1e-10)[0]
        np.testing.assert_allclose(got, terms @ fit, rtol=2e-7, atol=1e-4)


def test_only_the_given_rows_count_and_blocks_do_not_change_the_result(monkeypatch):
    times = days("1980-01-01", "1983-01-01")
    values = np.random.default_rng(2).normal(0, 1, (len(times), 1, 2, 3))
    values[366:] += 100
    fields = make_fields(times, values)
    whole = compute_climatology(fields, np.arange(366))
    assert np.abs(whole.at(times)).max() < 1
    monkeypatch.setattr("hftune.tasks.weather.climatology._BLOCK", 100)
    parts = compute_climatology(fields, np.arange(366)[::-1])
    np.testing.assert_allclose(parts.coefficients, whole.coefficients, atol=1e-12)


def test_half_a_year_gives_the_mean_alone():
    times = days("1980-01-01", "1980-07-01")
    values = season(times)[:, None, None, None] * np.ones((1, 1, 2, 3))
    climatology = compute_climatology(make_fields(times, values))
    assert not climatology.seasonal
    december = climatology.at(days("1980-12-01", "1980-12-03"))
    np.testing.assert_allclose(december, values.mean(), rtol=1e-6)


def test_no_rows():
    times = days("1980-01-01", "1980-01-05")
    with pytest.raises(DataError, match="needs training rows"):
        compute_climatology(make_fields(times, np.zeros((4, 1, 2, 3))), [])
