"""Files that are whole or absent."""

from __future__ import annotations

import os

import numpy as np
import pytest

from hftune.utils.errors import ConfigurationError
from hftune.utils.files import (
    atomic_write,
    checked_name,
    file_hash,
    free_bytes,
    human_bytes,
    read_json,
    write_json,
)


def test_atomic_write_replaces_whole_files(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as stream:
        stream.write("één")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "één"
    with atomic_write(path, "wb") as stream:
        stream.write(b"\x00")
    assert path.read_bytes() == b"\x00"
    assert os.listdir(path.parent) == ["a.txt"]


def test_atomic_write_keeps_the_old_file_after_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as stream:
        stream.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_write_gives_the_permissions_of_a_plain_open(tmp_path):
    with atomic_write(tmp_path / "a") as stream:
        stream.write("x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_json_has_no_nan_and_knows_numpy(tmp_path):
    path = tmp_path / "a.json"
    value = {"a": float("nan"), 1: np.float32(0.5), "b": np.array([1.0, np.inf]), "c": tmp_path}
    write_json(path, value)
    assert read_json(path) == {"a": None, "1": 0.5, "b": [1.0, None], "c": str(tmp_path)}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path)["1"] == 0.5


def test_file_hash_depends_on_the_bytes_only(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 5_000_000)
    (tmp_path / "b").write_bytes(b"x" * 5_000_000)
    (tmp_path / "c").write_bytes(b"x" * 4_999_999 + b"y")
    hashes = [file_hash(tmp_path / name) for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(hashes[0]) == 32


def test_free_bytes_of_a_folder_that_is_not_there_yet(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") > 0


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1536, "1.5 KiB"), (3 * 1024**3, "3.0 GiB"), (5 * 1024**4, "5.0 TiB")],
)
def test_human_bytes(size, text):
    assert human_bytes(size) == text


@pytest.mark.parametrize("name", ["run-1", "Versuch 2", "été_3.1"])
def test_names_that_are_safe(name):
    assert checked_name(name, "run name") == name


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a\0", "x" * 129, "end "])
def test_names_that_could_leave_their_folder(name):
    with pytest.raises(ConfigurationError, match="run name .* cannot be a file name"):
        checked_name(name, "run name")
