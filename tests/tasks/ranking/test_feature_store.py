"""Rows on the disk: what a kill, a second process or a damaged disk leaves is right or absent."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import signal
import time

import numpy as np
import pytest
from processes import finish, run_alone, start

from hftune.tasks.ranking.feature_store import FeatureCache, feature_root
from hftune.utils.errors import DataError

SIZE = 5
SPACE = {"feature_size": SIZE, "stored_dtype": "float32", "weights": "a"}
RECORD = 40
ROW = 4 * SIZE


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def keys(numbers) -> list[bytes]:
    return [key(number) for number in numbers]


def values(numbers) -> np.ndarray:
    """Rows that say whose they are."""
    return np.array([[number + place / 8 for place in range(SIZE)] for number in numbers], "f4")


def fill(folder, numbers, block=4) -> None:
    """What a run does: appends what is missing, block by block."""
    cache = FeatureCache.open(folder, SPACE)
    rows = cache.rows(keys(numbers))
    cache.verify(rows[rows >= 0])
    missing = set(cache.missing(keys(numbers)))
    left = [number for number in numbers if key(number) in missing]
    for begin in range(0, len(left), block):
        part = left[begin : begin + block]
        cache.append(keys(part), values(part))


def found(folder, numbers) -> list[int]:
    """Those of the numbers that have a row; each row that is found must be right."""
    cache = FeatureCache.open(folder, SPACE)
    rows = cache.rows(keys(numbers))
    there = [number for number, row in zip(numbers, rows, strict=True) if row >= 0]
    assert cache.verify(rows[rows >= 0]).all()
    np.testing.assert_array_equal(cache.array[rows[rows >= 0]], values(there).reshape(-1, SIZE))
    return there


def space_folder(folder):
    (place,) = folder.iterdir()
    return place


def test_rows_are_found_by_their_keys(tmp_path):
    cache = FeatureCache.open(tmp_path, SPACE)
    assert cache.rows(keys([1, 2])).tolist() == [-1, -1]
    assert cache.rows([]).tolist() == []
    cache.append(keys([1, 2, 3]), values([1, 2, 3]))
    cache.append(keys([4]), values([4]))
    assert cache.rows(keys([4, 9, 1, 4])).tolist() == [3, -1, 0, 3]
    assert cache.missing(keys([9, 4, 8, 9])) == keys([9, 8])
    np.testing.assert_array_equal(cache.array, values([1, 2, 3, 4]))
    assert len(cache.array) == 4
    assert not cache.array.flags.writeable


def test_keys_that_end_in_zeros_are_different_keys(tmp_path):
    cache = FeatureCache.open(tmp_path, SPACE)
    cache.append([b"\1" * 31 + b"\0", b"\1" * 30 + b"\0\0"], values([1, 2]))
    assert cache.rows([b"\1" * 30 + b"\0\0", b"\1" * 31 + b"\0", b"\1" * 32]).tolist() == [1, 0, -1]


def test_the_default_folder_is_in_the_home():
    place = FeatureCache.open(None, SPACE).folder
    assert place.parent == feature_root()
    assert place.parent.parts[-2:] == ("cache", "features")
    assert str(place).startswith(os.environ["HFTUNE_HOME"])


def test_spaces_that_differ_lie_apart(tmp_path):
    first = FeatureCache.open(tmp_path, SPACE)
    first.append(keys([1]), values([1]))
    other = FeatureCache.open(tmp_path, SPACE | {"weights": "b"})
    assert other.rows(keys([1])).tolist() == [-1]
    again = FeatureCache.open(tmp_path, dict(reversed(SPACE.items())))
    assert again.folder == first.folder
    assert again.rows(keys([1])).tolist() == [0]


def test_float16_takes_half_the_disk(tmp_path):
    cache = FeatureCache.open(tmp_path, SPACE | {"stored_dtype": "float16"})
    cache.append(keys([1, 2]), values([1, 2]) + 1 / 3)
    assert (cache.folder / "features.bin").stat().st_size == 2 * 2 * SIZE
    np.testing.assert_array_equal(cache.array, (values([1, 2]) + 1 / 3).astype(np.float16))
    assert cache.verify([0, 1]).all()


def test_rows_of_another_size_are_refused(tmp_path):
    cache = FeatureCache.open(tmp_path, SPACE)
    with pytest.raises(ValueError, match=r"found rows \[2, 5\] for 1 keys, expected \[1, 5\]"):
        cache.append(keys([1]), values([1, 2]))
    with pytest.raises(ValueError, match="keys of 32 bytes"):
        cache.append([b"short"], values([1]))
    assert len(FeatureCache.open(tmp_path, SPACE).array) == 0


def test_another_process_s_rows_are_seen(tmp_path):
    cache = FeatureCache.open(tmp_path, SPACE)
    cache.append(keys([1]), values([1]))
    assert run_alone(lambda: fill(tmp_path, range(10))) == 0
    assert (cache.rows(keys(range(10))) >= 0).all()
    np.testing.assert_array_equal(cache.array[cache.rows(keys([7]))], values([7]))


def test_a_copy_in_another_process_opens_the_files(tmp_path):
    fill(tmp_path, range(2000))
    cache = FeatureCache.open(tmp_path, SPACE)
    packed = pickle.dumps(cache)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).array, cache.array)


# What a kill leaves


def test_a_tail_that_was_torn_anywhere_is_written_over(tmp_path):
    """Both files cut at every byte of the last row and of the last record."""
    fill(tmp_path / "whole", range(3))
    place = space_folder(tmp_path / "whole")
    index, data = (place / "index.bin").read_bytes(), (place / "features.bin").read_bytes()
    assert (len(index), len(data)) == (3 * RECORD, 3 * ROW)
    cuts = [(cut, 3 * ROW) for cut in range(2 * RECORD, 3 * RECORD)]
    cuts += [(2 * RECORD, cut) for cut in range(2 * ROW, 3 * ROW)]
    torn = tmp_path / "torn"
    for index_cut, data_cut in cuts:
        fill(torn, [])
        place = space_folder(torn)
        (place / "index.bin").write_bytes(index[:index_cut])
        (place / "features.bin").write_bytes(data[:data_cut])
        assert found(torn, range(5)) == [0, 1]
        fill(torn, [7, 2, 3], block=1)
        assert found(torn, range(9)) == [0, 1, 2, 3, 7]
        assert (place / "index.bin").stat().st_size == 5 * RECORD
        assert (place / "features.bin").stat().st_size == 5 * ROW


def test_zeros_where_the_power_failed_are_no_rows(tmp_path):
    """A file system may have made the files longer, but not written into them."""
    fill(tmp_path, range(3))
    place = space_folder(tmp_path)
    os.truncate(place / "index.bin", 6 * RECORD + 7)
    os.truncate(place / "features.bin", 5 * ROW)
    assert found(tmp_path, range(9)) == [0, 1, 2]
    fill(tmp_path, range(9))
    assert found(tmp_path, range(9)) == list(range(9))


def test_records_whose_rows_were_cut_off_are_none(tmp_path):
    fill(tmp_path, range(6))
    os.truncate(space_folder(tmp_path) / "features.bin", 3 * ROW + 1)
    assert found(tmp_path, range(6)) == [0, 1, 2]
    fill(tmp_path, range(6))
    assert found(tmp_path, range(6)) == list(range(6))


@pytest.mark.parametrize("synced", range(1, 7))
def test_killed_at_each_write(tmp_path, synced):
    """The files are synced in turns: the rows, then their records."""

    def killed() -> None:
        count, fsync = 0, os.fsync

        def counting(descriptor: int) -> None:
            nonlocal count
            if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".bin"):
                count += 1
                if count == synced:
                    os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = counting
        fill(tmp_path, range(12))

    assert run_alone(killed) == -signal.SIGKILL
    assert found(tmp_path, range(12)) == list(range(synced // 2 * 4))
    assert (space_folder(tmp_path) / "features.bin").stat().st_size == (synced + 1) // 2 * 4 * ROW
    fill(tmp_path, range(12))
    assert found(tmp_path, range(12)) == list(range(12))
    assert len(FeatureCache.open(tmp_path, SPACE).array) == 12


def test_killed_at_any_time(tmp_path):
    draw = random.Random(0)
    numbers = list(range(3000))
    fill(tmp_path, [])
    index = space_folder(tmp_path) / "index.bin"
    landed = 0
    for until in range(100, 1000, 100):
        child = start(lambda: fill(tmp_path, numbers, block=1))
        while index.stat().st_size < until * RECORD:
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.002))
        os.kill(child, signal.SIGKILL)
        landed += finish(child) == -signal.SIGKILL
        there = found(tmp_path, numbers)
        assert there == numbers[: len(there)]
        assert until <= len(there) < len(numbers)
    assert landed == 9
    fill(tmp_path, numbers, block=500)
    assert found(tmp_path, numbers) == numbers
    assert len(FeatureCache.open(tmp_path, SPACE).array) == len(
        numbers
    )  # nothing was written twice


def test_two_processes_fill_a_space_at_once(tmp_path):
    children = [
        start(lambda: fill(tmp_path, range(0, 300), block=3)),
        start(lambda: fill(tmp_path, range(200, 500), block=7)),
    ]
    assert [finish(child) for child in children] == [0, 0]
    assert found(tmp_path, range(500)) == list(range(500))
    cache = FeatureCache.open(tmp_path, SPACE)
    assert cache.verify(range(len(cache.array))).all()
    assert 500 <= len(cache.array) <= 600
    owners = cache.array[:, 0].astype(int).tolist()
    rows = cache.rows(keys(owners))
    np.testing.assert_array_equal(cache.array[rows], cache.array)


def test_one_of_two_is_killed(tmp_path):
    other = start(lambda: fill(tmp_path, range(1000, 1400), block=2))
    killed = start(lambda: fill(tmp_path, range(1000), block=1))
    index = FeatureCache.open(tmp_path, SPACE).folder / "index.bin"
    while index.stat().st_size < 100 * RECORD:
        time.sleep(0.001)
    os.kill(killed, signal.SIGKILL)
    assert [finish(killed), finish(other)] == [-signal.SIGKILL, 0]
    assert set(range(1000, 1400)) <= set(found(tmp_path, range(1400)))
    fill(tmp_path, range(1400), block=100)
    assert found(tmp_path, range(1400)) == list(range(1400))


# What a disk does


@pytest.mark.parametrize("bit", [0, 7, 8 * ROW - 1])
def test_a_row_with_a_flipped_bit_is_not_used(tmp_path, bit):
    fill(tmp_path, range(4))
    path = space_folder(tmp_path) / "features.bin"
    content = bytearray(path.read_bytes())
    content[2 * ROW + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    cache = FeatureCache.open(tmp_path, SPACE)
    assert cache.rows(keys(range(4))).tolist() == [0, 1, 2, 3]
    assert cache.verify([3, 2, 0]).tolist() == [True, False, True]
    assert cache.rows(keys(range(4))).tolist() == [0, 1, -1, 3]
    cache.append(keys([2]), values([2]))
    assert cache.rows(keys(range(4))).tolist() == [0, 1, 4, 3]
    assert found(tmp_path, range(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("byte", [0, 31, 32, 39])
def test_a_record_with_a_flipped_bit_is_not_used(tmp_path, byte):
    fill(tmp_path, range(4))
    path = space_folder(tmp_path) / "index.bin"
    content = bytearray(path.read_bytes())
    content[RECORD + byte] ^= 4
    path.write_bytes(content)
    fill(tmp_path, range(4))
    assert found(tmp_path, range(4)) == [0, 1, 2, 3]
    assert len(FeatureCache.open(tmp_path, SPACE).array) == 5


def test_a_full_disk_loses_nothing(tmp_path):
    import resource

    def write_until_full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 * ROW, 10 * ROW))
        fill(tmp_path, range(30), block=3)

    assert run_alone(write_until_full) != 0
    assert found(tmp_path, range(30)) == list(range(found(tmp_path, range(30))[-1] + 1))
    fill(tmp_path, range(30))
    assert found(tmp_path, range(30)) == list(range(30))


def test_a_full_disk_is_named(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    cache = FeatureCache.open(tmp_path, SPACE)
    (cache.folder / "features.bin").unlink()
    (cache.folder / "features.bin").symlink_to("/dev/full")
    with pytest.raises(DataError, match="cannot be written: No space left on device. Make room"):
        cache.append(keys([1]), values([1]))
