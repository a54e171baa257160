"""Reading initial conditions: ours by their manifest, the reference's by what is stated."""

import dataclasses
import json
import os
import pickle
import re

import numpy as np
import pytest
from processes import run_alone

from hftune.tasks.weather.fields import FieldLayout
from hftune.tasks.weather.initial_conditions import manifest_path, open_initial_conditions
from hftune.tasks.weather.initial_conditions_write import write_initial_conditions
from hftune.tasks.weather.statistics import compute_statistics
from hftune.utils.errors import ConfigurationError, DataError

N = 12
LAYOUT = FieldLayout(
    ("2t", "msl", "z_500"),
    ("K", "Pa", "m2 s-2"),
    (),
    np.array([45.0, 43.5, 42.0, 40.5]),
    np.array([355.0, 357.5, 360.0, 362.5, 365.0]),
)
TIMES = np.datetime64("2018-01-01", "s").astype(np.int64) + 21600 * np.arange(N)
STATES = np.random.default_rng(0).normal(300, 10, (N, 1, 3, 4, 5)).astype("float32")


@pytest.fixture
def plain(tmp_path):
    """A file as the reference makes it: the last two rows are never filled."""
    path = tmp_path / "ic_test.mmap"
    file = np.memmap(path, "float32", "w+", shape=(N, 4, 5, 3))
    for row in range(N - 2):
        for latitude in range(4):
            file[row, 3 - latitude] = STATES[row, 0, :, latitude].T
    file.flush()
    return path


def write(path, **options):
    states = options.pop("states", STATES)
    options = {"layout": LAYOUT, "times": TIMES, "source": {"kind": "encoder"}} | options
    return write_initial_conditions(path, compute=states.__getitem__, block_rows=5, **options)


def test_a_file_of_the_reference(plain):
    conditions = open_initial_conditions(plain, layout=LAYOUT, times=TIMES)
    assert len(conditions) == N and conditions.rows == N - 2
    assert (conditions.lead_hours, conditions.history, conditions.timestep_hours) == (0, 1, 24)
    assert conditions.manifest["source"] == {"kind": "plain"}
    np.testing.assert_array_equal(conditions.read([9, 0, 3]), STATES[[9, 0, 3]])
    np.testing.assert_array_equal(conditions.read(4), STATES[4])
    np.testing.assert_array_equal(conditions.read(slice(10, None)), np.zeros((2, 1, 3, 4, 5)))
    assert os.listdir(plain.parent) == ["ic_test.mmap"]
    fields = conditions.as_fields()
    assert len(fields) == N - 2
    np.testing.assert_array_equal(fields.read(slice(None)), STATES[:-2, 0])


def test_a_file_of_the_reference_in_float16(tmp_path):
    stored = STATES[:, 0, :, ::-1].transpose(0, 2, 3, 1).astype("float16")
    stored.tofile(tmp_path / "ic")
    options = {"layout": LAYOUT, "times": TIMES}
    conditions = open_initial_conditions(tmp_path / "ic", dtype="float16", **options)
    np.testing.assert_array_equal(conditions.read(slice(None)), STATES.astype("float16"))
    with pytest.raises(DataError, match="ic has 6 rows, expected 12: another grid"):
        open_initial_conditions(tmp_path / "ic", **options)


@pytest.mark.parametrize(("count", "told"), [(11, "11 rows"), (13, "13 rows")])
def test_shorter_or_longer_than_its_dates(plain, count, told):
    os.truncate(plain, count * 240)
    with pytest.raises(DataError) as error:
        open_initial_conditions(plain, layout=LAYOUT, times=TIMES)
    assert str(error.value) == (
        f"ic_test.mmap has {told}, expected 12: another grid, other channels or times, or an "
        "incomplete file."
    )


def test_interrupted_file_of_the_reference(plain):
    with open(plain, "r+b") as stream:
        stream.seek(7 * 240)
        stream.write(bytes(3 * 240))
    with pytest.raises(DataError) as error:
        open_initial_conditions(plain, layout=LAYOUT, times=TIMES)
    assert str(error.value) == (
        "ic_test.mmap has 12 rows, but all after the first 7 are zeros: its writing was "
        "interrupted. Write it again."
    )


def test_shape_not_stated(plain):
    with pytest.raises(ConfigurationError) as error:
        open_initial_conditions(plain, layout=LAYOUT)
    assert str(error.value) == (
        "ic_test.mmap has no manifest (ic_test.mmap.json): state its layout (channels and grid) "
        "and its times."
    )


def test_missing(tmp_path):
    with pytest.raises(DataError, match=r"ic\.mmap does not exist: write the initial conditions f"):
        open_initial_conditions(tmp_path / "ic.mmap")


def test_everything_from_the_manifest(tmp_path):
    write(tmp_path / "ic", lead_hours=72, history=1, timestep_hours=6)
    conditions = open_initial_conditions(tmp_path / "ic")
    np.testing.assert_array_equal(conditions.read(slice(None)), STATES)
    assert conditions.times.dtype == np.int64
    np.testing.assert_array_equal(conditions.times, TIMES)
    np.testing.assert_array_equal(conditions.valid_times, TIMES + 3 * 86400)
    for name in ("channels", "units", "static_channels"):
        assert getattr(conditions.layout, name) == getattr(LAYOUT, name)
    np.testing.assert_array_equal(conditions.layout.latitude, LAYOUT.latitude)
    np.testing.assert_array_equal(conditions.layout.longitude, LAYOUT.longitude)
    assert (conditions.lead_hours, conditions.history, conditions.timestep_hours) == (72, 1, 6)
    assert conditions.rows == len(conditions) == N
    # What is stated and agrees is welcome.
    open_initial_conditions(
        tmp_path / "ic", layout=LAYOUT, times=TIMES, dtype="float32", history=1, lead_hours=72.0
    )


@pytest.mark.parametrize(
    "times",
    [TIMES[[0, 1, 3, 7]], TIMES[:1], TIMES[:2], TIMES[:4] // 3600 * 1800 + 45, TIMES[:4] // 7],
)
def test_times_survive_the_manifest(tmp_path, times):
    conditions = write(tmp_path / "ic", times=times)
    np.testing.assert_array_equal(conditions.times, times)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (
            {"layout": dataclasses.replace(LAYOUT, latitude=LAYOUT.latitude - 1.5)},
            "ic is on a grid of 4 x 5 points, 45 to 40.5 N, 355 to 365 E; expected 4 x 5 points, "
            "43.5 to 39 N, 355 to 365 E.",
        ),
        (
            {"times": TIMES[:-2]},
            "ic has 12 times from 2018-01-01 to 2018-01-03T18:00, every 6 h; expected 10 times "
            "from 2018-01-01 to 2018-01-03T06:00, every 6 h.",
        ),
        (
            {"times": np.concatenate([TIMES[:-1], TIMES[-1:] + 21600])},
            "ic has 12 times from 2018-01-01 to 2018-01-03T18:00, every 6 h; expected 12 times "
            "from 2018-01-01 to 2018-01-04, every 6 h with gaps.",
        ),
        ({"dtype": "float16"}, "ic has dtype float32; expected float16."),
        ({"history": 2}, "ic has history 1; expected 2."),
        ({"lead_hours": 24}, "ic has lead_hours 0; expected 24."),
    ],
)
def test_what_is_stated_has_to_agree(tmp_path, stated, message):
    write(tmp_path / "ic")
    with pytest.raises(DataError) as error:
        open_initial_conditions(tmp_path / "ic", **stated)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        (("2t", "msl"), "3 channels, the model reads 2: it has z_500 besides"),
        (
            ("2t", "z_500", "z_850", "q_850"),
            "3 channels, the model reads 4: it lacks z_850, q_850 and it has msl besides",
        ),
        (
            ("msl", "2t", "z_500"),
            "3 channels, the model reads 3: they are the same in another order (2t, msl, z_500)",
        ),
    ],
)
def test_channels_of_another_model(tmp_path, expected, told):
    conditions = write(tmp_path / "ic")
    conditions.check_channels(LAYOUT.channels)
    with pytest.raises(DataError) as error:
        conditions.check_channels(expected)
    assert str(error.value) == (
        f"ic holds {told}. Write the initial conditions again, with an encoder of the model's "
        "channels."
    )
    layout = dataclasses.replace(LAYOUT, channels=expected)
    with pytest.raises(DataError, match=re.escape(told)):
        open_initial_conditions(tmp_path / "ic", layout=layout)


def test_damaged_manifests(tmp_path):
    write(tmp_path / "ic")
    manifest = manifest_path(tmp_path / "ic")
    os.truncate(tmp_path / "ic", 11 * 240)
    with pytest.raises(DataError, match="ic has 11 rows, expected 12"):
        open_initial_conditions(tmp_path / "ic")
    manifest.write_text(json.dumps({"format": "other"}))
    with pytest.raises(DataError) as error:
        open_initial_conditions(tmp_path / "ic")
    assert str(error.value) == (
        f"{manifest} is no manifest of initial conditions: its format is 'other', expected "
        "'hftune initial conditions 1'. Write ic again, or remove the manifest and state the shape."
    )
    manifest.write_text("{")
    with pytest.raises(DataError, match="cannot read .*ic.json: Expecting property name"):
        open_initial_conditions(tmp_path / "ic")


def test_as_fields(tmp_path, plain):
    conditions = write(tmp_path / "ic", lead_hours=24)
    fields = conditions.as_fields()
    np.testing.assert_array_equal(fields.times, TIMES + 86400)
    np.testing.assert_array_equal(fields.read([1, 0]), STATES[[1, 0], 0])
    assert fields.sources == ("ic",)
    statistics = compute_statistics(fields, slice(0, 8))
    expected = STATES[:8].astype(np.float64).mean(axis=(0, 1, 3, 4))
    np.testing.assert_allclose(statistics.mean, expected)
    assert os.listdir(tmp_path).count("statistics") == 0

    # The same data have the same fingerprint, others another, with and without a manifest.
    same = write(tmp_path / "copy", lead_hours=24)
    assert same.fingerprint == fields.fingerprint
    other = write(tmp_path / "other", states=-STATES, lead_hours=24)
    assert other.fingerprint != fields.fingerprint
    stated = {"layout": LAYOUT, "times": TIMES}
    before = open_initial_conditions(plain, **stated).fingerprint
    assert open_initial_conditions(plain, **stated).fingerprint == before
    with open(plain, "r+b") as stream:
        stream.write(b"\0\0\0\0")
    assert open_initial_conditions(plain, **stated).fingerprint != before


def test_no_fields_of_a_history(tmp_path):
    conditions = write(tmp_path / "ic", states=np.repeat(STATES, 2, axis=1), history=2)
    with pytest.raises(DataError, match="each row of ic has 2 states: it cannot be read as fields"):
        conditions.as_fields()


def test_pickled(tmp_path):
    conditions = write(
        tmp_path / "ic", dtype="float16", statistics={"mean": [300] * 3, "std": [10] * 3}
    )
    pickled = pickle.loads(pickle.dumps(conditions))
    np.testing.assert_array_equal(pickled.read([5, 2]), conditions.read([5, 2]))
    np.testing.assert_array_equal(pickled.times, TIMES)


def test_memory_of_writing_does_not_grow_with_the_rows(tmp_path):
    layout = dataclasses.replace(
        LAYOUT, latitude=np.linspace(60, 0, 100), longitude=np.arange(100.0)
    )

    def work(rows):
        def compute(chosen):
            return np.full((len(chosen), 1, 3, 100, 100), 280.0, np.float32)

        def written(name, count):
            write_initial_conditions(
                tmp_path / name,
                layout=layout,
                times=TIMES[0] + 21600 * np.arange(count),
                compute=compute,
                source={},
                block_rows=10,
            )

        written("few", 30)
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
        before = resident("VmRSS")
        written(f"ic{rows}", rows)
        assert resident("VmHWM") - before < 12 << 20  # blocks have 1.2 MB

    for rows in (50, 500):
        assert run_alone(lambda n=rows: work(n)) == 0
    assert (tmp_path / "ic500").stat().st_size == 60_000_000


def resident(name):
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) << 10 for line in stream if line.startswith(name))
