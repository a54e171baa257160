"""The cache survives interruptions, kills and company."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from hftune.tasks.weather import cache
from hftune.tasks.weather.cache import build_cache, load_cache
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.utils.errors import DataError

N = 40
LAYOUT = FieldLayout(
    ("2t", "z_500"), ("K", "m2 s-2"), ("lsm",), np.array([1.0, 0.0]), np.arange(3.0)
)
VALUES = np.random.default_rng(0).normal(size=(N, 2, 2, 3)).astype("float32")
FIELDS = WeatherFields(
    LAYOUT, np.arange(N) * 3600, None, np.ones((1, 2, 3), "float32"), "abc", ("a.nc",), ("a note",)
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(cache, "_BLOCK_BYTES", 4 * VALUES[0].nbytes)


def reader(log, stop_at=None, error=KeyboardInterrupt):
    def read(start, stop):
        if stop_at is not None and start >= stop_at:
            raise error
        log.append((start, stop))
        return VALUES[start:stop]

    return read


def check(fields):
    np.testing.assert_array_equal(fields.read(slice(None)), VALUES)
    np.testing.assert_array_equal(fields.times, FIELDS.times)
    np.testing.assert_array_equal(fields.static_fields, FIELDS.static_fields)
    assert fields.layout.channels == LAYOUT.channels
    assert fields.layout.units == LAYOUT.units
    assert fields.layout.static_channels == LAYOUT.static_channels
    assert fields.fingerprint == "abc"
    assert fields.sources == ("a.nc",)
    assert fields.audit_notes == ("a note",)


def test_written_once(tmp_path):
    log = []
    check(build_cache(tmp_path / "k", FIELDS, reader(log)))
    assert log == [(start, start + 4) for start in range(0, N, 4)]
    check(build_cache(tmp_path / "k", FIELDS, reader(log, stop_at=0)))
    assert sorted(os.listdir(tmp_path / "k")) == ["fields.f32", "manifest.json", "static.f32"]


def test_blocks_follow_the_chunks_of_the_source(tmp_path):
    log = []
    build_cache(tmp_path / "a", FIELDS, reader(log), time_chunk=3)
    assert log[:2] == [(0, 3), (3, 6)]
    log.clear()
    build_cache(tmp_path / "b", FIELDS, reader(log), time_chunk=15)
    assert log == [(0, 15), (15, 30), (30, 40)]


def test_ctrl_c_and_continue(tmp_path, caplog):
    log = []
    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path / "k", FIELDS, reader(log, stop_at=12))
    assert "interrupted; 12 of 40 times are kept, the next run continues" in caplog.text
    assert not (tmp_path / "k").exists()
    check(build_cache(tmp_path / "k", FIELDS, reader(log)))
    assert log == [(start, start + 4) for start in range(0, N, 4)]  # nothing was read twice


def test_full_disk_and_continue(tmp_path):
    log = []
    full = OSError(28, "No space left on device")
    with pytest.raises(DataError, match="is full after 8 of 40 times. Make room and run again"):
        build_cache(tmp_path / "k", FIELDS, reader(log, stop_at=8, error=full))
    check(build_cache(tmp_path / "k", FIELDS, reader(log)))
    assert log == [(start, start + 4) for start in range(0, N, 4)]


def test_half_written_block_is_written_again(tmp_path):
    log = []
    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path / "k", FIELDS, reader(log, stop_at=12))
    with open(tmp_path / "k.partial" / "fields.f32", "ab") as stream:
        stream.write(b"half a block")
    check(build_cache(tmp_path / "k", FIELDS, reader(log)))
    assert log == [(start, start + 4) for start in range(0, N, 4)]


def test_damaged_cache_is_named(tmp_path):
    build_cache(tmp_path / "k", FIELDS, reader([]))
    with open(tmp_path / "k" / "fields.f32", "r+b") as stream:
        stream.truncate(100)
    with pytest.raises(
        DataError, match="fields.f32 has 100 bytes, expected 1920: remove the folder"
    ):
        load_cache(tmp_path / "k")
    (tmp_path / "k" / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="is no weather cache of format 1"):
        load_cache(tmp_path / "k")


SCRIPT = """
import sys, time
import numpy as np
from pathlib import Path
from hftune.tasks.weather import cache
from hftune.tasks.weather.fields import FieldLayout, WeatherFields

layout = FieldLayout(("2t",), ("K",), (), np.array([1.0, 0.0]), np.arange(4.0))
fields = WeatherFields(layout, np.arange(50) * 3600, None, np.empty((0, 2, 4), "float32"), "abc")
cache._BLOCK_BYTES = 32

def read(start, stop):
    print(start, flush=True)
    time.sleep(600 if str(start) in sys.argv[2:] else 0.02)
    return np.full((stop - start, 1, 2, 4), start, "float32")

opened = cache.build_cache(Path(sys.argv[1]), fields, read)
assert (opened.read(slice(None))[:, 0, 0, 0] == np.arange(50)).all()
print("done", flush=True)
"""


def start(folder, *stands_still_at):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), *stands_still_at],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_process_is_continued(tmp_path, kill):
    process = start(tmp_path / "k", "10")
    while (line := process.stdout.readline()) != "10\n":
        assert line, "the process ended before row 10"
    process.send_signal(kill)
    process.wait()
    process.stdout.close()
    output = start(tmp_path / "k").communicate()[0].split()
    assert 8 <= int(output[0]) <= 12
    assert output[-2:] == ["49", "done"]


def test_two_processes_at_once(tmp_path):
    processes = [start(tmp_path / "k") for _ in range(2)]
    outputs = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    # One wrote everything, the other waited.
    assert sorted(map(len, outputs)) == [1, 51]
