"""Raw files of another axis order: the same numbers as a memory map, in flat memory."""

import os
import pickle

import numpy as np
import pytest
from processes import run_alone

from hftune.tasks.weather.raw_values import RawValues
from hftune.utils.errors import DataError

C, H, W = 3, 4, 5
COUNTS = (7, 1, 5)


@pytest.fixture
def written(tmp_path):
    """Three files (channel, longitude, latitude from the south), and what is in them."""
    states = np.random.default_rng(0).normal(size=(sum(COUNTS), C, H, W)).astype("float32")
    parts, first = [], 0
    for index, count in enumerate(COUNTS):
        path = tmp_path / f"part{index}"
        map_ = np.memmap(path, "<f4", "w+", shape=(count, C, W, H))
        for row in range(count):
            for latitude in range(H):
                map_[row, :, :, H - 1 - latitude] = states[first + row, :, latitude]
        map_.flush()
        parts.append((path, count))
        first += count
    return parts, states


@pytest.mark.parametrize(
    "rows",
    [
        0, -1, 7, slice(None), slice(2, 11), slice(11, 2, -2), slice(5, 5), [12, 0, 3],
        [6, 7, 8, 8, 9], np.array([1]), np.arange(0), [-1, 0], np.arange(13) % 2 == 0,
    ],
)  # fmt: skip
def test_rows(written, rows):
    parts, states = written
    values = RawValues(parts, (C, H, W), "cwh")
    assert values.shape == states.shape and len(values) == 13
    read = values[rows]
    assert read.dtype == np.float32 and read.flags.c_contiguous
    np.testing.assert_array_equal(read, states[rows])


def test_rows_that_do_not_exist(written):
    values = RawValues(written[0], (C, H, W), "cwh")
    for rows in (13, [0, 13], -14):
        with pytest.raises(IndexError):
            values[rows]


@pytest.mark.parametrize("order", ["hwc", "cwh", "chw", "whc"])
@pytest.mark.parametrize("states", [(), (2,)])
def test_orders(tmp_path, order, states):
    house = np.random.default_rng(0).normal(size=(6, *states, C, H, W)).astype("float32")
    places = {"c": -3, "h": -2, "w": -1}
    stored = np.moveaxis(house[..., ::-1, :], [places[axis] for axis in order], [-3, -2, -1])
    stored.tofile(tmp_path / "raw")
    values = RawValues([(tmp_path / "raw", 6)], house.shape[1:], order)
    np.testing.assert_array_equal(values[:], house)
    np.testing.assert_array_equal(values[[4, 5, 1]], house[[4, 5, 1]])


def test_float16_and_scale(tmp_path):
    stored = np.random.default_rng(0).normal(size=(6, H, W, C)).astype("<f2")
    stored.tofile(tmp_path / "raw")
    house = stored[:, ::-1].transpose(0, 3, 1, 2).astype("float32")
    options = {"shape": (C, H, W), "order": "hwc", "dtype": "float16"}
    values = RawValues([(tmp_path / "raw", 6)], **options)
    np.testing.assert_array_equal(values[:], house)
    mean, std = [280, 101325, 5.4e4], [20, 1300, 3.4e3]
    values = RawValues([(tmp_path / "raw", 6)], **options, mean=mean, std=std)
    scaled = house * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))
    np.testing.assert_allclose(values[:], scaled, rtol=2e-7)


def test_part_of_the_rows(written):
    values = RawValues(written[0], (C, H, W), "cwh", count=9)
    np.testing.assert_array_equal(values[:], written[1][:9])
    np.testing.assert_array_equal(values[-1], written[1][8])


def test_pickled_and_forked(written):
    parts, states = written
    values = RawValues(parts, (C, H, W), "cwh", count=12)
    pickled = pickle.dumps(values)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled)[:], states[:12])

    def read():
        for row in np.random.default_rng(os.getpid()).integers(0, 12, 300):
            assert (values[row] == states[row]).all()

    children = [os.fork() or os._exit(run_alone(read)) for _ in range(2)]
    read()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def test_wrong_size(written):
    parts, _ = written
    path = parts[0][0]
    os.truncate(path, 6 * C * H * W * 4)
    with pytest.raises(DataError) as error:
        RawValues(parts, (C, H, W), "cwh")
    assert str(error.value) == (
        "part0 has 6 rows, expected 7: another grid, other channels or times, or an incomplete "
        "file."
    )
    os.truncate(path, 8 * C * H * W * 4 + 2)
    with pytest.raises(DataError, match="part0 has 8 rows and 2 bytes, expected 7: "):
        RawValues(parts, (C, H, W), "cwh")


def test_shortened_while_open(written):
    values = RawValues(written[0], (C, H, W), "cwh")
    os.truncate(written[0][0][0], 5 * C * H * W * 4 + 8)
    np.testing.assert_array_equal(values[:5], written[1][:5])
    with pytest.raises(OSError, match="part0 ends before byte 1440"):
        values[5]


def test_memory_does_not_grow_with_the_rows(tmp_path):
    shape = (24, 60, 60)

    def work(rows):
        os.posix_fallocate(file.fileno(), 0, rows * 24 * 60 * 60 * 4)
        values = RawValues([(file.name, rows)], shape, "hwc")
        values[:4]
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
        before = resident("VmRSS")
        for start in range(0, rows, 4):
            values[start : start + 4]
        assert resident("VmHWM") - before < 8 << 20  # twice 1.4 MB are read at a time

    for rows in (25, 250):
        with open(tmp_path / f"raw{rows}", "w+b") as file:
            assert run_alone(lambda n=rows: work(n)) == 0


def resident(name):
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) << 10 for line in stream if line.startswith(name))
