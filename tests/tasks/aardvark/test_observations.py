import numpy as np
import pytest
import torch

from hftune.tasks.aardvark.observations import collate_observations, observation_samples
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.tasks.weather.stations import Stations
from hftune.utils.errors import DataError

DAY = 86400
torch.set_num_threads(1)


def make_fields(days, shape=(3, 4)):
    times = DAY * np.asarray(days)
    random = np.random.default_rng(0)
    values = random.standard_normal((len(times), 2, *shape)).astype("float32")
    latitude, longitude = np.arange(float(shape[0]))[::-1], np.arange(float(shape[1]))
    layout = FieldLayout(("2t", "z_500"), ("K", "m2 s-2"), (), latitude, longitude)
    return WeatherFields(layout, times, values, np.empty((0, *shape), "float32"))


def make_stations(days):
    days = np.asarray(days)
    values = days[:, None, None] + np.array([[0, 0.25], [0.5, np.nan]])
    place = np.array([0.5, 1.5])
    return Stations(("A", "B"), place, place, ("tmax", "rain"), DAY * days, values.astype("f4"))


def test_a_sample_with_everything():
    fields, stations = make_fields(range(10)), make_stations(range(3, 8))
    samples = observation_samples(stations, fields.times, targets=fields, background=fields)
    assert [int(t) // DAY for t in samples.with_format(None)["time"]] == [3, 4, 5, 6, 7]
    sample = samples[1]
    assert set(sample) == {"observations", "times", "target_fields"}
    assert list(sample["observations"]) == ["stations", "background"]
    assert sample["times"].dtype == torch.int64 and int(sample["times"]) == 4 * DAY
    np.testing.assert_array_equal(sample["observations"]["stations"], [[4, 4.25], [4.5, np.nan]])
    # The day before, longitudes first.
    np.testing.assert_array_equal(
        sample["observations"]["background"], fields.values[3].swapaxes(1, 2)
    )
    np.testing.assert_array_equal(sample["target_fields"], fields.values[4][None])
    assert sample["target_fields"].dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 4), (3, 3), (1, 4)])
def test_batches_hold_what_samples_hold_without_a_copy(shape):
    fields, stations = make_fields(range(10), shape), make_stations(range(10))
    samples = observation_samples(stations, fields.times, targets=fields, background=fields)
    loader = torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=collate_observations)
    batch = next(iter(loader))
    assert batch["observations"]["stations"].shape == (4, 2, 2)
    for row in range(4):
        sample = samples[row]
        for name, values in sample["observations"].items():
            torch.testing.assert_close(
                batch["observations"][name][row], values, equal_nan=True, rtol=0, atol=0
            )
        assert batch["target_fields"][row].equal(sample["target_fields"])
        assert batch["times"][row] == sample["times"]
    read = samples.__getitems__([0, 5])
    joined = collate_observations(read)
    assert joined["target_fields"].data_ptr() == read[0]["target_fields"].data_ptr()


def test_only_what_was_asked_for():
    stations = make_stations(range(3, 8))
    samples = observation_samples(stations, stations.times[[4, 0]])
    assert set(samples[0]) == {"observations", "times"}
    assert list(samples[0]["observations"]) == ["stations"]
    assert [int(samples[i]["times"]) // DAY for i in (0, 1)] == [7, 3]


def test_another_time_before():
    fields, stations = make_fields(range(10)), make_stations(range(10))
    samples = observation_samples(stations, fields.times, background=fields, background_hours=72)
    assert len(samples) == 7
    np.testing.assert_array_equal(
        samples[0]["observations"]["background"], fields.values[0].swapaxes(1, 2)
    )


def test_reading_a_batch_changes_nothing():
    fields, stations = make_fields(range(10)), make_stations(range(10))
    samples = observation_samples(stations, fields.times, targets=fields)
    samples[2]["observations"]["stations"].zero_()
    samples[2]["target_fields"].zero_()
    assert float(samples[2]["observations"]["stations"][0, 0]) == 2
    assert samples[2]["target_fields"].abs().sum() > 0


def test_times_that_no_source_has():
    fields, stations = make_fields(range(5)), make_stations(range(3, 8))
    with pytest.raises(DataError) as error:
        observation_samples(stations, fields.times[:3], targets=fields)
    assert str(error.value) == (
        "of 3 times from 1970-01-01 to 1970-01-03, every 24 h, 3 cannot be samples (the stations "
        "lack 3, the fields lack 0, the first 1970-01-01). The stations have 5 times from "
        "1970-01-04 to 1970-01-08, every 24 h: change the dates."
    )
    with pytest.raises(DataError, match="the fields 24 h before lack 2, the first 1969-12-31"):
        observation_samples(stations, fields.times[:3] - DAY, background=fields)
    with pytest.raises(DataError, match="of no times"):
        observation_samples(stations, [])


def test_every_time_can_be_insisted_on():
    fields, stations = make_fields(range(5)), make_stations(range(3, 8))
    assert len(observation_samples(stations, fields.times, targets=fields)) == 2
    with pytest.raises(DataError, match=r"3 cannot be samples \(the stations lack 3, the fields"):
        observation_samples(stations, fields.times, targets=fields, every=True)
    assert len(observation_samples(stations, fields.times[3:], targets=fields, every=True)) == 2
