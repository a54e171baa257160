"""Files of initial conditions: the same by any number of processes and after any kill."""

import errno
import json
import os
import re
import signal

import numpy as np
import pytest
import torch
from processes import finish, run_alone, start

from hftune.tasks.weather import initial_conditions_partial as partial
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.tasks.weather.initial_conditions import manifest_path, open_initial_conditions
from hftune.tasks.weather.initial_conditions_partial import gigabytes
from hftune.tasks.weather.initial_conditions_write import (
    copy_initial_conditions,
    initial_condition_bytes,
    write_initial_conditions,
)
from hftune.utils.errors import ConfigurationError, DataError
from hftune.utils.files import read_json

N, ROWS = 30, 4
LAYOUT = FieldLayout(
    ("2t", "msl", "z_500"),
    ("K", "Pa", "m2 s-2"),
    (),
    np.array([45.0, 43.5, 42.0, 40.5]),
    np.arange(5) * 1.5,
)
TIMES = np.datetime64("2007-01-02", "s").astype(np.int64) + 21600 * np.arange(N)
MEAN, STD = np.array([280.0, 101325.0, 54000.0]), np.array([20.0, 1300.0, 3400.0])
STATES = (
    np.random.default_rng(0).normal(size=(N, 1, 3, 4, 5)) * STD[:, None, None] + MEAN[:, None, None]
).astype("float32")
STATISTICS = {"mean": MEAN, "std": STD}
SOURCE = {"kind": "encoder", "model": "0123abcd"}


def write(path, compute=STATES.__getitem__, **options):
    options = {"layout": LAYOUT, "times": TIMES, "block_rows": ROWS, "source": SOURCE} | options
    return write_initial_conditions(path, compute=compute, **options)


def reference_bytes(states=STATES):
    """The bytes that the reference writes: (time, lat from the south, lon, channel)."""
    return b"".join(
        state[channel, latitude, longitude].tobytes()
        for (state,) in states
        for latitude in reversed(range(4))
        for longitude in range(5)
        for channel in range(3)
    )


def test_bytes_of_the_reference(tmp_path):
    path = tmp_path / "runs" / "ic_train.mmap"
    conditions = write(path)
    assert path.read_bytes() == reference_bytes()
    np.testing.assert_array_equal(conditions.read(slice(None)), STATES)
    assert sorted(os.listdir(path.parent)) == ["ic_train.mmap", "ic_train.mmap.json"]
    manifest = read_json(manifest_path(path))
    assert re.fullmatch(r"[0-9a-f]{32}", manifest.pop("digest"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00", manifest.pop("created"))
    assert manifest == {
        "format": "hftune initial conditions 1",
        "shape": [30, 4, 5, 3],
        "order": ["time", "latitude", "longitude", "channel"],
        "dtype": "float32",
        "scaled": False,
        "channels": ["2t", "msl", "z_500"],
        "units": ["K", "Pa", "m2 s-2"],
        "latitude": [40.5, 42.0, 43.5, 45.0],
        "longitude": [0.0, 1.5, 3.0, 4.5, 6.0],
        "times": {"start": "2007-01-02T00:00:00", "interval_hours": 6.0, "count": 30},
        "lead_hours": 0,
        "history": 1,
        "timestep_hours": 24,
        "statistics": None,
        "source": SOURCE,
        "block_rows": 4,
        "rows": 30,
    }


def test_tensors_history_and_lead(tmp_path):
    states = np.random.default_rng(1).normal(size=(N, 2, 3, 4, 5)).astype("float32")
    options = {"history": 2, "timestep_hours": 6, "lead_hours": 48}
    conditions = write(
        tmp_path / "ic", lambda rows: torch.tensor(states[rows]).requires_grad_(), **options
    )
    stored = np.fromfile(tmp_path / "ic", "<f4").reshape(N, 2, 4, 5, 3)
    np.testing.assert_array_equal(stored[:, :, ::-1].transpose(0, 1, 4, 2, 3), states)
    np.testing.assert_array_equal(conditions.read([3, 1]), states[[3, 1]])
    assert (conditions.history, conditions.timestep_hours, conditions.lead_hours) == (2, 6, 48)
    assert conditions.manifest["order"] == ["time", "history", "latitude", "longitude", "channel"]


def test_float16_keeps_pressure_and_geopotential(tmp_path):
    conditions = write(tmp_path / "ic", dtype="float16", statistics=STATISTICS)
    assert os.path.getsize(tmp_path / "ic") == N * 3 * 4 * 5 * 2
    read = conditions.read(slice(None))
    assert read.dtype == np.float32
    error = np.abs(read - STATES) / STD[:, None, None]
    assert 0 < error.max() < 4 * 2.0**-11  # values go up to four standard deviations
    stored = np.fromfile(tmp_path / "ic", "<f2").reshape(N, 4, 5, 3)
    scaled = (STATES[:, 0] - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(stored[:, ::-1].transpose(0, 3, 1, 2), scaled, atol=2e-3)


def test_wrong_settings(tmp_path):
    with pytest.raises(ConfigurationError) as error:
        write(tmp_path / "ic", dtype="float16")
    assert str(error.value) == (
        "ic: float16 ends at 65504, less than pressure in Pa or geopotential, so values are stored "
        "as (value - mean) / std: give the statistics of the channels."
    )
    with pytest.raises(ConfigurationError, match="dtype is 'bfloat16'; expected one of float32, f"):
        write(tmp_path / "ic", dtype="bfloat16")
    with pytest.raises(ConfigurationError, match="have 3 means and 2 standard deviations; exp"):
        write(tmp_path / "ic", statistics={"mean": MEAN, "std": STD[:2]})
    with pytest.raises(ConfigurationError) as error:
        write(tmp_path / "ic", statistics={"mean": [np.nan, 1, 1], "std": [1, 0, 1]})
    assert str(error.value) == (
        "ic: mean and std of 2t (nan, 1), msl (1, 0) cannot be used; both have to be finite and "
        "std positive."
    )
    with pytest.raises(ConfigurationError, match="ic: there are no initial times to write"):
        write(tmp_path / "ic", times=TIMES[:0])
    assert os.listdir(tmp_path) == []


def test_states_of_another_shape(tmp_path):
    with pytest.raises(DataError) as error:
        write(tmp_path / "ic", lambda rows: STATES[rows, 0])
    assert str(error.value) == (
        "ic: the states of rows 0 to 3 have the shape [4, 3, 4, 5]; expected [4, 1, 3, 4, 5] "
        "(rows, states, channels, latitudes, longitudes)."
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path, value, dtype):
    states = STATES.copy()
    states[9, 0, 1, 2, 3:] = value
    options = {"dtype": dtype, "statistics": STATISTICS}
    with pytest.raises(DataError) as error:
        write(tmp_path / "ic", states.__getitem__, **options)
    assert str(error.value) == (
        "ic: row 9 (2007-01-04T06:00) has 2 values of msl that are not finite. Its block is not "
        "kept: look at what computes it."
    )
    assert not (tmp_path / "ic").exists()
    # Its two neighbours before are kept.
    rows = []
    write(tmp_path / "ic", lambda r: rows.append(r[0]) or STATES[r], **options)
    assert rows == [8, 12, 16, 20, 24, 28]


def test_finished_files_are_not_written_again(tmp_path):
    def never(rows):
        raise AssertionError("computed again")

    write(tmp_path / "ic")
    before = os.stat(tmp_path / "ic"), read_json(tmp_path / "ic.json")
    write(tmp_path / "ic", never)
    assert (os.stat(tmp_path / "ic").st_ino, read_json(tmp_path / "ic.json")) == (
        before[0].st_ino,
        before[1],
    )


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"kind": "encoder", "model": "other"}},
        {"times": TIMES + 86400},
        {"layout": FieldLayout(("2t", "msl", "z_850"), *list(vars(LAYOUT).values())[1:])},
        {"lead_hours": 24},
    ],
)
def test_other_settings_make_the_file_anew(tmp_path, change):
    def stop(rows):
        if rows[0] >= 16:
            raise KeyboardInterrupt
        return STATES[rows]

    write(tmp_path / "ic")
    other = -STATES
    conditions = write(tmp_path / "ic", other.__getitem__, **change)
    np.testing.assert_array_equal(conditions.read(slice(None)), other)
    # The same for what was only begun.
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "begun", stop)
    conditions = write(tmp_path / "begun", other.__getitem__, **change)
    np.testing.assert_array_equal(conditions.read(slice(None)), other)


def test_how_many_rows_a_block_has_matters_only_while_it_is_written(tmp_path):
    def stop(rows):
        if rows[0] >= 16:
            raise KeyboardInterrupt
        return STATES[rows]

    write(tmp_path / "ic")
    write(tmp_path / "ic", (-STATES).__getitem__, block_rows=5)
    np.testing.assert_array_equal(
        open_initial_conditions(tmp_path / "ic").read(slice(None)), STATES
    )
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "begun", stop)
    other = write(tmp_path / "begun", (-STATES).__getitem__, block_rows=5)
    np.testing.assert_array_equal(other.read(slice(None)), -STATES)


def test_ctrl_c_and_progress(tmp_path, caplog):
    def stop(rows):
        if rows[0] == 12:
            raise KeyboardInterrupt
        return STATES[rows]

    told = []
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "ic", stop, progress=told.append)
    assert told == [0, 4, 8]
    rows, told = [], []
    write(tmp_path / "ic", lambda r: rows.append(r[0]) or STATES[r], progress=told.append)
    assert rows == [12, 16, 20, 24, 28]
    assert told == [12, 16, 20, 24, 28, 30]
    assert "3 of 8 blocks are there" in caplog.text
    assert (tmp_path / "ic").read_bytes() == reference_bytes()


# Kills. Each of them replaces a call of the system by one at which the process dies.


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_compute(monkeypatch):
    return lambda rows: die() if rows[0] == 12 else STATES[rows]


def die_in_block(monkeypatch):
    real, count = os.pwrite, iter(range(100))

    def pwrite(descriptor, data, place):
        if next(count) == 4:
            real(descriptor, data[: len(data) // 2], place)
            die()
        return real(descriptor, data, place)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return STATES.__getitem__


def die_before_mark(monkeypatch):
    real, count = os.fdatasync, iter(range(100))

    def fdatasync(descriptor):
        real(descriptor)
        if next(count) == 3:
            die()

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return STATES.__getitem__


def die_before_rename(monkeypatch):
    monkeypatch.setattr(os, "replace", die)
    return STATES.__getitem__


def die_before_manifest(monkeypatch):
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (real(*paths), die()))
    return STATES.__getitem__


def die_before_cleaning(monkeypatch):
    monkeypatch.setattr(partial.PartialFile, "clean", die)
    return STATES.__getitem__


def die_while_preparing(monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", die)
    return STATES.__getitem__


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    ("kill", "left"),
    [
        (die_while_preparing, range(0, 32, 4)),
        (die_in_compute, None),
        (die_in_block, None),
        (die_before_mark, range(12, 32, 4)),
        (die_before_rename, []),
        (die_before_manifest, []),
        (die_before_cleaning, []),
    ],
)
def test_killed_anywhere(tmp_path, monkeypatch, kill, left, older):
    path = tmp_path / "ic"
    if older:  # a whole file of another model is there
        write(path, (-STATES).__getitem__, source={"kind": "encoder", "model": "older"})
    monkeypatch.setattr(partial, "_SYNC_SECONDS", 0.0)

    def work():
        with pytest.MonkeyPatch.context() as patch:
            write(path, kill(patch))

    assert run_alone(work) == -signal.SIGKILL
    if older and kill in (die_in_compute, die_before_rename):
        # What is there stays readable until the new one takes its place.
        assert path.exists()
    rows = []
    conditions = write(path, lambda r: rows.append(r[0]) or STATES[r])
    if left is None:  # where the other thread was is not known
        assert rows in ([8, 12, 16, 20, 24, 28], [12, 16, 20, 24, 28])
    else:
        assert rows == list(left)
    assert path.read_bytes() == reference_bytes()
    np.testing.assert_array_equal(conditions.read(slice(None)), STATES)
    write(tmp_path / "undisturbed")
    manifests = [read_json(manifest_path(p)) for p in (path, tmp_path / "undisturbed")]
    for manifest in manifests:
        del manifest["created"]
    assert manifests[0] == manifests[1]
    assert sorted(os.listdir(tmp_path)) == ["ic", "ic.json", "undisturbed", "undisturbed.json"]


def test_a_stranger_under_the_name(tmp_path):
    """The marks are all there, but the file that has the name is not the one that was written."""
    path = tmp_path / "ic"

    def work():
        with pytest.MonkeyPatch.context() as patch:
            write(path, die_before_manifest(patch))

    assert run_alone(work) == -signal.SIGKILL
    path.write_bytes(bytes(path.stat().st_size))
    assert (write(path).read(slice(None)) == STATES).all()


# Several processes, with a barrier of pipes.


class Barrier:
    """Lets processes go on once all have arrived; one that dies leaves the others waiting."""

    def __init__(self, count):
        self.count = count
        self.arrivals, self.departures = os.pipe(), [os.pipe() for _ in range(count)]

    def wait(self, rank):
        os.write(self.arrivals[1], b".")
        if rank == 0:
            for _ in range(self.count):
                os.read(self.arrivals[0], 1)
            for pipe in self.departures:
                os.write(pipe[1], b".")
        os.read(self.departures[rank][0], 1)


def together(work, count=2):
    barrier = Barrier(count)
    children = [
        start(lambda r=rank: work(r, count, lambda: barrier.wait(r))) for rank in range(count)
    ]
    return [finish(child) for child in children]


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes(tmp_path, count):
    def compute(rows):
        with open(tmp_path / "log", "a") as log:
            log.write(f"{os.getpid()} {rows.tolist()}\n")
        return STATES[rows]

    def work(rank, world, wait):
        conditions = write(tmp_path / "ic", compute, rank=rank, world=world, wait=wait)
        assert (conditions.read(slice(None)) == STATES).all()

    assert together(work, count) == [0] * count
    assert (tmp_path / "ic").read_bytes() == reference_bytes()
    lines = [line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()]
    assert len({pid for pid, _ in lines}) == count
    rows = sorted(json.loads(text) for _, text in lines)
    assert rows == [list(range(b, min(b + ROWS, N))) for b in range(0, N, ROWS)]


def test_another_number_of_processes_goes_on(tmp_path):
    def stop(rows):
        if rows[0] == 12:
            raise KeyboardInterrupt
        return STATES[rows]

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "ic", stop)

    def work(rank, world, wait):
        write(
            tmp_path / "ic",
            lambda rows: STATES[rows] if rows[0] >= 12 else 1 / 0,
            rank=rank,
            world=world,
            wait=wait,
        )

    assert together(work) == [0, 0]
    assert (tmp_path / "ic").read_bytes() == reference_bytes()


def test_one_process_fails(tmp_path):
    """The others are not left waiting; they say so, and the next call computes only the rest."""

    def work(rank, world, wait):
        def compute(rows):
            if rank == 1 and rows[0] == 12:
                raise RuntimeError("out of memory")
            return STATES[rows]

        with pytest.raises(RuntimeError if rank else DataError) as error:
            write(tmp_path / "ic", compute, rank=rank, world=world, wait=wait)
        if rank == 0:
            assert str(error.value) == "ic is not whole: another process failed, see its message."

    assert together(work) == [0, 0]
    rows = []
    write(tmp_path / "ic", lambda r: rows.append(r[0]) or STATES[r])
    assert rows == [12, 20, 28]


# Disks


def test_the_disk_is_too_small(tmp_path, monkeypatch):
    layout = FieldLayout(
        tuple(f"c{i}" for i in range(24)),
        ("1",) * 24,
        (),
        np.linspace(90, -90, 121),
        np.arange(240) * 1.5,
    )
    times = TIMES[0] + 21600 * np.arange(16065)
    assert initial_condition_bytes(16065, layout) == 44_786_649_600
    assert initial_condition_bytes(16065, layout, "float16") == 44_786_649_600 // 2
    assert initial_condition_bytes(16065, layout, history=2) == 44_786_649_600 * 2
    monkeypatch.setattr(partial, "free_bytes", lambda path: 12_300_000_000)
    with pytest.raises(DataError) as error:
        write(tmp_path / "ic_train.mmap", layout=layout, times=times)
    assert str(error.value) == (
        "writing ic_train.mmap needs 44.8 GB, 12.3 GB are free on its disk: use --ic_dtype float16 "
        "(22.4 GB) or another folder."
    )
    statistics = {"mean": np.zeros(24), "std": np.ones(24)}
    with pytest.raises(DataError) as error:
        write(
            tmp_path / "ic_train.mmap",
            layout=layout,
            times=times,
            dtype="float16",
            statistics=statistics,
        )
    assert str(error.value) == (
        "writing ic_train.mmap needs 22.4 GB, 12.3 GB are free on its disk: use another folder."
    )
    assert os.listdir(tmp_path) == []


def test_the_disk_is_too_small_for_all_processes(tmp_path):
    def work(rank, world, wait):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(partial, "free_bytes", lambda path: 100)
            with pytest.raises(DataError) as error:
                write(tmp_path / "ic", rank=rank, world=world, wait=wait)
        assert str(error.value) == (
            "ic is not whole: another process failed, see its message."
            if rank
            else "writing ic needs 0.0 MB, 0.0 MB are free on its disk: use --ic_dtype float16 "
            "(0.0 MB) or another folder."
        )

    assert together(work) == [0, 0]


def test_what_is_preallocated_counts(tmp_path, monkeypatch):
    def stop(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "ic", stop)
    monkeypatch.setattr(partial, "free_bytes", lambda path: 0)
    write(tmp_path / "ic")  # goes on
    (tmp_path / ".other.partial").write_bytes(b"x" * N * 240)
    write(tmp_path / "other")  # killed before it was ready


def test_the_disk_fills_up_while_it_is_allocated(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match="writing ic needs 0.0 MB, .* are free on its disk"):
        write(tmp_path / "ic")


@pytest.mark.parametrize(
    ("size", "text"), [(44.79e9, "44.8 GB"), (1.5e12, "1,500.0 GB"), (4.2e6, "4.2 MB")]
)
def test_gigabytes(size, text):
    assert gigabytes(size) == text


# From fields


def fields(values=STATES[:, 0], times=TIMES):
    return WeatherFields(LAYOUT, times, values, np.empty((0, 4, 5)), "abc", ("/data/era5.nc",))


def test_copied_from_fields(tmp_path):
    conditions = copy_initial_conditions(tmp_path / "ic", fields(), block_rows=ROWS)
    assert (tmp_path / "ic").read_bytes() == reference_bytes()
    assert conditions.manifest["source"] == {
        "kind": "fields",
        "fingerprint": "abc",
        "names": ["era5.nc"],
    }
    np.testing.assert_array_equal(conditions.times, TIMES)


def test_copied_with_history_and_part_of_the_channels(tmp_path):
    layout = FieldLayout(
        ("z_500", "2t"), ("m2 s-2", "K"), (), LAYOUT.latitude[1:], LAYOUT.longitude[:3]
    )
    conditions = copy_initial_conditions(
        tmp_path / "ic", fields(), TIMES[8::4], layout=layout, history=3, timestep_hours=12
    )
    expected = np.stack([STATES[row - 4 : row + 1 : 2, 0] for row in range(8, N, 4)])
    expected = expected[:, :, [2, 0], 1:, :3]
    np.testing.assert_array_equal(conditions.read(slice(None)), expected)
    np.testing.assert_array_equal(conditions.times, TIMES[8::4])
    assert conditions.layout.units == ("m2 s-2", "K")
    whole = copy_initial_conditions(tmp_path / "whole", fields(), history=3, timestep_hours=12)
    np.testing.assert_array_equal(whole.times, TIMES[4:])


def test_copied_times_that_are_not_there(tmp_path):
    with pytest.raises(DataError) as error:
        copy_initial_conditions(tmp_path / "ic", fields(), TIMES, history=2)
    assert str(error.value) == (
        "ic: the data lack 4 of 30 initial times or what lies 24 h apart before them. The first is "
        "2007-01-02; the data have 30 times from 2007-01-02 to 2007-01-09T06:00, every 6 h."
    )
    with pytest.raises(DataError, match="ic: the data lack 1 of 2 initial times. The first"):
        copy_initial_conditions(tmp_path / "ic", fields(), TIMES[-2:] + 21600)
    with pytest.raises(DataError, match="ic: row 2 .* has 20 values of msl that are not finite"):
        states = STATES[:, 0].copy()
        states[2, 1] = np.nan
        copy_initial_conditions(tmp_path / "ic", fields(states))


def test_opened_again(tmp_path):
    write(tmp_path / "ic")
    np.testing.assert_array_equal(open_initial_conditions(tmp_path / "ic").read(7), STATES[7])
