import dataclasses

import numpy as np
import pytest
import torch

from hftune.tasks.aardvark.arguments_aardvark_encoder import AardvarkEncoderArguments
from hftune.tasks.aardvark.configuration_aardvark_encoder import AardvarkEncoderConfig
from hftune.tasks.aardvark.modeling_aardvark_encoder import AardvarkEncoder
from hftune.tasks.aardvark.observations import (
    collate_observations,
    encoder_samples,
    observation_samples,
)
from hftune.tasks.aardvark.prepare_aardvark_encoder import station_encoder_config
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.tasks.weather.stations import Stations
from hftune.tasks.weather.statistics import compute_statistics
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


# Samples for an encoder that knows what it wants


def make_encoder_config(stations, fields, *, background_hours=0, log_variables=("rain",)):
    arguments = AardvarkEncoderArguments(
        background_hours=background_hours, log_variables=list(log_variables)
    )
    return station_encoder_config(
        arguments,
        fields.layout,
        compute_statistics(fields),
        stations,
        fields.times[:8],
    )


def test_a_config_says_what_a_saved_encoder_needs(tmp_path):
    fields, stations = make_fields(range(10)), make_stations(range(10))
    config = make_encoder_config(stations, fields, background_hours=24)
    config.save_pretrained(tmp_path)
    again = AardvarkEncoderConfig.from_pretrained(tmp_path)
    assert again.background_hours == 24 and again.modalities == config.modalities
    first, second = again.modalities
    assert first["variables"] == ["tmax", "log1p(rain)"] and second["variables"] == ["2t", "z_500"]
    assert first["longitude"] == first["latitude"] == [0.5, 1.5]
    assert first["length_scale"] == 1.0
    seen = stations.values[:8].astype(np.float64)
    seen[:, 1] = np.log1p(seen[:, 1])
    np.testing.assert_allclose(first["mean"], np.nanmean(seen, axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(first["std"], np.nanstd(seen, axis=(0, 2)), rtol=1e-6)
    assert second["mean"] == config.mean and second["std"] == config.std
    assert again.patch_size == 1  # of 3 x 4 points


def test_samples_follow_the_config():
    fields, stations = make_fields(range(10)), make_stations(range(10))
    config = make_encoder_config(stations, fields, background_hours=24)
    # Another order, one more station, and a longitude written the other way.
    turned = Stations(
        ("C", "B", "A"), np.array([9, 1.5 - 360, 0.5]), np.array([9, 1.5, 0.5]), ("rain", "tmax"),
        stations.times, np.stack([
            np.stack([stations.values[:, 1, 0] * 0, *stations.values[:, 1, ::-1].T], axis=-1),
            np.stack([stations.values[:, 0, 0] * 0, *stations.values[:, 0, ::-1].T], axis=-1),
        ], axis=1),
    )  # fmt: skip
    for given in (stations, turned):
        samples = encoder_samples(config, given, fields.times, fields=fields, targets=True)
        assert len(samples) == 9
        sample = samples[2]
        assert set(sample) == {"observations", "times", "target_fields"}
        np.testing.assert_allclose(
            sample["observations"]["stations"], [[3, 3.25], [np.log1p(3.5), np.nan]], rtol=1e-6
        )
        np.testing.assert_array_equal(
            sample["observations"]["background"], fields.values[2].swapaxes(1, 2)
        )
    plain = make_encoder_config(stations, fields)
    assert list(encoder_samples(plain, stations, fields.times)[0]["observations"]) == ["stations"]


def test_an_encoder_takes_its_samples():
    fields, stations = make_fields(range(10)), make_stations(range(10))
    config = make_encoder_config(stations, fields, background_hours=48)
    model = AardvarkEncoder(config).eval()
    samples = encoder_samples(config, stations, fields.times, fields=fields, targets=True)
    batch = collate_observations([samples[i] for i in range(len(samples))])
    with torch.no_grad():
        output = model(**batch)
        # Fields are known to lie north first and longitudes first where they should.
        features = model.features(batch["observations"], model.time_features(batch["times"]))
    assert output.prediction.shape == (8, 1, 2, 3, 4) and float(output.loss) > 0
    before = torch.from_numpy(fields.values[:8].astype("f4"))
    scaled = (before - torch.tensor(config.mean)[:, None, None].float()) / torch.tensor(
        config.std
    ).float()[:, None, None]
    torch.testing.assert_close(features[:, 4:6], scaled.flip(-2).transpose(-1, -2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": None}, "needs fields of 48 hours before: give the gridded data too"),
        ({"fields": make_fields(range(10), (2, 4))}, "2t, z_500 on 3 x 4 points, the fields have"),
        ({"stations": make_stations(range(10)).select(["tmax"])}, "do not observe rain, but tmax"),
        ({"stations": dataclasses.replace(make_stations(range(10)), latitude=np.array([0.5, 1]))},
         "knows 2 stations, of which 1 are not among the 2 given, the first at longitude 1.5, "
         "latitude 1.5"),
        ({"stations": make_stations(range(20, 30))}, "the stations lack 10, the fields 48 h "),
    ],
)  # fmt: skip
def test_what_an_encoder_does_not_know(change, message):
    fields, stations = make_fields(range(10)), make_stations(range(10))
    config = make_encoder_config(stations, fields, background_hours=48)
    given = {"stations": stations, "fields": fields} | change
    with pytest.raises(DataError, match=message):
        encoder_samples(config, given["stations"], fields.times, fields=given["fields"])


def test_other_observations_cannot_be_read_from_files():
    fields, stations = make_fields(range(10)), make_stations(range(10))
    values = make_encoder_config(stations, fields).to_dict()
    values["modalities"][0]["name"] = "ships"
    config = AardvarkEncoderConfig.from_dict(values)
    with pytest.raises(DataError, match="the encoder observes ships; only stations"):
        encoder_samples(config, stations, fields.times)
