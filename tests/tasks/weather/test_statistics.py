import json

import numpy as np
import pytest

from hftune.tasks.weather import statistics
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.tasks.weather.statistics import FieldStatistics, compute_statistics
from hftune.utils.errors import DataError

DAY = 86400


def make_fields(values, times=None, fingerprint=""):
    layout = FieldLayout(
        tuple(f"x{i}" for i in range(values.shape[1])), ("1",) * values.shape[1], ("lsm", "z"),
        np.arange(values.shape[2])[::-1].astype(float), np.arange(values.shape[3]).astype(float),
    )  # fmt: skip
    static = np.random.default_rng(1).normal(size=(2, *values.shape[2:])).astype("float32")
    times = np.arange(len(values)) * DAY if times is None else times
    return WeatherFields(layout, times, values, static, fingerprint)


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    # A large mean over a small spread, which sums of squares in float32 would lose.
    offset = np.array([1e5, 0.0, -3.0])[:, None, None]
    return (rng.normal(size=(200, 3, 4, 5)) + offset).astype("float32")


@pytest.mark.parametrize("block_times", [1, 7, 200])
@pytest.mark.parametrize("lag", [1, 3, 30])
def test_one_pass_equals_two(values, monkeypatch, block_times, lag):
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", block_times * values[0].nbytes)
    fields = make_fields(values)
    found = compute_statistics(fields, difference_hours=24 * lag)
    exact = values.astype("float64")
    axes = (0, 2, 3)
    np.testing.assert_allclose(found.mean, exact.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(found.std, exact.std(axes), rtol=1e-9)
    differences = exact[lag:] - exact[:-lag]
    np.testing.assert_allclose(found.difference_mean, differences.mean(axes), atol=1e-12)
    np.testing.assert_allclose(found.difference_std, differences.std(axes), rtol=1e-9)
    np.testing.assert_array_equal(found.minimum, exact.min(axes))
    np.testing.assert_array_equal(found.maximum, exact.max(axes))
    static = fields.static_fields.astype("float64")
    np.testing.assert_allclose(found.static_mean, static.mean((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.static_std, static.std((1, 2)), rtol=1e-12)
    assert found.count == 200 and found.difference_hours == 24 * lag
    assert found.channels == ("x0", "x1", "x2") and found.static_channels == ("lsm", "z")


def test_nan_are_left_out(values):
    values[3, 1, 2, :] = np.nan
    values[:, 2] = np.nan
    found = compute_statistics(make_fields(values))
    exact = values.astype("float64")
    np.testing.assert_allclose(found.mean[:2], np.nanmean(exact[:, :2], (0, 2, 3)), rtol=1e-12)
    differences = exact[1:] - exact[:-1]
    np.testing.assert_allclose(
        found.difference_std[:2], np.nanstd(differences[:, :2], (0, 2, 3)), rtol=1e-9
    )
    assert np.isnan([found.mean[2], found.std[2], found.minimum[2], found.difference_std[2]]).all()


def test_rows_and_gaps(values):
    # Days 0..99 and 110..209: differences never cross the gap.
    times = np.concatenate([np.arange(100), np.arange(110, 210)]) * DAY
    found = compute_statistics(make_fields(values, times), rows="1970-03-01:1970-05-31")
    rows = np.flatnonzero((times >= 59 * DAY) & (times < 151 * DAY))
    exact = values[rows].astype("float64")
    pairs = np.flatnonzero(np.diff(times[rows]) == DAY)
    assert found.count == len(rows) and len(pairs) == len(rows) - 2
    np.testing.assert_allclose(found.mean, exact.mean((0, 2, 3)), rtol=1e-12)
    differences = exact[pairs + 1] - exact[pairs]
    np.testing.assert_allclose(found.difference_std, differences.std((0, 2, 3)), rtol=1e-9)


def test_no_pair_apart(values):
    found = compute_statistics(make_fields(values), difference_hours=6)
    assert np.isnan(found.difference_std).all() and np.isfinite(found.std).all()


def test_through_json(values):
    values[:, 2] = np.nan
    found = compute_statistics(make_fields(values))
    text = json.dumps(found.as_dict())
    back = FieldStatistics.from_dict(json.loads(text))
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(back, name), value)


def test_kept_by_content_rows_and_lag(values, monkeypatch):
    fields = make_fields(values, fingerprint="abc")
    first = compute_statistics(fields, rows="0%:50%")
    other = compute_statistics(fields, rows="0%:60%")
    monkeypatch.setattr(WeatherFields, "read", None)
    again = compute_statistics(fields, rows="0%:50%")
    np.testing.assert_array_equal(again.std, first.std)
    assert again.std.dtype == np.float64 and again.count == 100 and other.count == 120
    with pytest.raises(TypeError):
        compute_statistics(fields, rows="0%:50%", difference_hours=48)


def test_no_rows(values):
    with pytest.raises(DataError, match=r"no time lies within \[\]: the data have 200 times"):
        compute_statistics(make_fields(values), rows=[])
