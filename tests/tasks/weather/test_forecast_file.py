import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hftune.tasks.weather import forecast_file
from hftune.tasks.weather.evaluation_weather import model_predictor
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.tasks.weather.forecast_file import match_inputs, write_forecasts
from hftune.utils.errors import DataError

xarray = pytest.importorskip("xarray")
DAY = 86400
LONGITUDE = np.array([355.0, 357.5, 360.0, 362.5])
CONFIG = SimpleNamespace(
    channels=["z_850", "2t", "z_500", "t_850"],
    latitude=[45.0, 42.5, 40.0],
    longitude=LONGITUDE.tolist(),
    history=2,
    timestep_hours=24,
)


class Drift(torch.nn.Module):
    """Adds the change of the last step again and again, and crops the last row."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.config = CONFIG
        self.seen = []

    def forward(self, fields, times, steps):
        self.seen.append(tuple(fields.shape))
        change = (fields[:, -1] - fields[:, -2]) * self.weight
        states = [fields[:, -1] + (i + 1) * change for i in range(steps)]
        return SimpleNamespace(prediction=torch.stack(states, 1)[..., :2, :])


def make_fields(rows=(0, 1, 2, 3, 5, 6)):
    """More channels and one more row and column than the model has; day 4 is missing."""
    layout = FieldLayout(
        ("2t", "msl", "z_500", "z_850", "t_850"),
        ("K", "Pa", "m2 s-2", "m2 s-2", "K"),
        ("lsm",),
        np.array([47.5, 45.0, 42.5, 40.0]),
        np.concatenate([LONGITUDE, [365.0]]),
    )
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (len(rows), 5, 4, 5)).astype(np.float32)
    land = random.random((1, 4, 5), np.float32)
    return WeatherFields(layout, np.array(rows) * DAY, values, land)


def test_forecasts_are_written_where_and_when_they_belong(tmp_path):
    fields, model, done = make_fields(), Drift(), []
    inputs = match_inputs(fields, CONFIG, "1970")
    assert (inputs.times // DAY).tolist() == [1, 2, 3, 6]
    leads = [24, 72]
    write_forecasts(
        tmp_path / "deep" / "out.nc",
        model_predictor(model, leads),
        inputs,
        leads,
        latitudes=2,
        batch_size=3,
        source="a test",
        progress=done.append,
    )
    assert model.seen == [(3, 2, 4, 3, 4), (1, 2, 4, 3, 4)] and done == [3, 4]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.nc"]

    with xarray.open_dataset(tmp_path / "deep" / "out.nc", decode_timedelta=True) as data:
        assert dict(data.sizes) == {
            "time": 4, "prediction_timedelta": 2, "level": 2, "latitude": 2, "longitude": 4
        }  # fmt: skip
        assert data.longitude.values.tolist() == [-5, -2.5, 0, 2.5]
        assert data.level.values.tolist() == [500, 850] and data.level.attrs["units"] == "hPa"
        assert data.z.attrs["units"] == "m2 s-2" and data.z.attrs["standard_name"] == "geopotential"
        assert data.attrs["Conventions"].startswith("CF-") and data.attrs["source"] == "a test"
        assert set(data.data_vars) == {"2t", "z", "t"}
        at = {"time": "1970-01-07", "prediction_timedelta": np.timedelta64(72, "h")}
        one = data.sel(at).squeeze()
        assert one.valid_time.values == np.datetime64("1970-01-10")
        before, last = fields.values[4], fields.values[5]
        for name, level, channel in (("2t", None, 0), ("z", 500, 2), ("z", 850, 3), ("t", 850, 4)):
            expected = last[channel] + 3 * (last[channel] - before[channel])
            values = one[name] if level is None else one[name].sel(level=level)
            np.testing.assert_allclose(values, expected[1:3, :4], rtol=1e-6)
        assert np.isnan(one["t"].sel(level=500)).all()  # the model has no such channel


def test_without_dates_one_forecast_from_the_last_time():
    assert match_inputs(make_fields(), CONFIG).times.tolist() == [6 * DAY]
    assert match_inputs(make_fields((0, 1, 2, 4)), CONFIG).times.tolist() == [2 * DAY]


def test_static_fields_are_cut_to_the_grid_of_the_model():
    fields = make_fields()
    inputs = match_inputs(fields, CONFIG)
    np.testing.assert_array_equal(inputs.read_static(["lsm"]), fields.static_fields[:, 1:, :4])
    with pytest.raises(DataError, match="needs the static fields z, slt; the data have lsm"):
        inputs.read_static(["z", "lsm", "slt"])


def changed(**values):
    return SimpleNamespace(**{**vars(CONFIG), **values})


def test_what_is_missing_is_named():
    fields = make_fields()
    with pytest.raises(DataError, match="lack 1 of the model's 2 channels: z_5000.*mean 'z_500'"):
        match_inputs(fields, changed(channels=["2t", "z_5000"]))
    with pytest.raises(DataError, match="2 x 4 points, 30 to 27.5 N, 355 to 362.5 E; the data"):
        match_inputs(fields, changed(latitude=[30.0, 27.5]))
    with pytest.raises(DataError, match="within '1970-01-06': the model needs 2 states 24 h apart"):
        match_inputs(fields, CONFIG, "1970-01-06")
    with pytest.raises(DataError, match="No forecast can start: .* 6 times from 1970-01-01"):
        match_inputs(fields, changed(history=5))


def test_a_disk_that_is_too_small_and_a_model_that_fails_leave_nothing(tmp_path, monkeypatch):
    inputs = match_inputs(make_fields(), CONFIG)

    def fail(batch):
        raise DataError("NaN in the input")

    with pytest.raises(DataError, match="NaN in the input"):
        write_forecasts(tmp_path / "out.nc", fail, inputs, [24])
    monkeypatch.setattr(forecast_file, "free_bytes", lambda folder: 100)
    with pytest.raises(DataError, match="need up to 192 B and .* has 100 B"):
        write_forecasts(tmp_path / "out.nc", fail, inputs, [24])
    assert list(tmp_path.iterdir()) == []


def test_the_memory_does_not_grow_with_the_number_of_forecasts(tmp_path):
    """Only one batch is ever asked of the fields."""
    fields, asked = make_fields(range(40)), []
    reading = dataclasses.replace(fields, values=SimpleNamespace())

    class Counted:
        def __getitem__(self, rows):
            asked.append(len(rows))
            return fields.values[rows]

    reading = dataclasses.replace(fields, values=Counted())
    inputs = match_inputs(reading, CONFIG, "1970")
    predict = model_predictor(Drift(), [24])
    write_forecasts(tmp_path / "out.nc", predict, inputs, [24], latitudes=2, batch_size=4)
    assert len(inputs.times) == 39 and asked == [8] * 9 + [6]
