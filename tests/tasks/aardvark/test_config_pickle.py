"""config.pkl: plain values are read, everything else is refused before anything of it runs."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle

import pytest

from hftune.tasks.aardvark.config_pickle import read_config_pickle
from hftune.utils.errors import CheckpointError

PUBLISHED = {
    "mode": "assimilation",
    "decoder": "vit_assimilation",
    "in_channels": 277,
    "lr": 5e-4,
    "film": None,
    "two_frames": False,
    "huge": 2**80,
    "이름": "아드바크",
    "nested": {"list": [1, 2.5, True, ["x"]], "tuple": (), "other": ()},
}


class RunsCommand:
    """What a hostile file holds."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def refusal(path):
    with pytest.raises(CheckpointError) as raised:
        read_config_pickle(path)
    message = str(raised.value)
    assert str(path) in message
    return message.replace(str(path), "PATH")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(tmp_path, protocol):
    assert read_config_pickle(write(tmp_path / "config.pkl", PUBLISHED, protocol)) == PUBLISHED


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("nest", [lambda x: x, lambda x: {"lr": [x]}])
def test_code_is_named_and_never_run(tmp_path, protocol, nest):
    trace = tmp_path / "trace"
    content = nest(RunsCommand(f"touch {trace}"))
    path = write(tmp_path / "config.pkl", content, protocol)
    assert refusal(path) == (
        f"PATH holds {os.system.__module__}.system: it would run code when it is loaded. Nothing "
        "of it was run. Expected a dict of text, numbers, lists and dicts: get the file from "
        "where the model was published, or write one of plain values."
    )
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        (collections.OrderedDict(lr=1), "collections.OrderedDict"),
        ({"f": eval}, "builtins.eval"),
        ({"z": 1j}, "builtins.complex"),
    ],
)
def test_harmless_objects_are_refused_by_name_too(tmp_path, content, name):
    assert f"PATH holds {name}:" in refusal(write(tmp_path / "config.pkl", content))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "a list"),
        ("text", "a str"),
        ({"a": {1, 2}}, "a value of type set"),
        ({"a": [b"bytes"]}, "a value of type bytes"),
        ({"a": {1: 2}}, "the key '1' (int)"),
    ],
)
def test_only_a_dict_of_plain_values(tmp_path, content, found):
    assert refusal(write(tmp_path / "config.pkl", content)) == (
        f"PATH holds {found}; expected a dict of text, numbers, lists and dicts."
    )


def test_containers_that_grow_when_they_are_walked(tmp_path):
    itself = []
    itself.append(itself)
    doubled = [0]
    for _ in range(60):
        doubled = [doubled, doubled]
    for content in ({"a": itself}, {"a": doubled}):
        assert "themselves or are used several times" in refusal(
            write(tmp_path / "config.pkl", content)
        )


def test_objects_outside_of_the_file(tmp_path):
    class Outside(pickle.Pickler):
        def persistent_id(self, value):
            return "elsewhere" if value == "x" else None

    stream = io.BytesIO()
    Outside(stream, 4).dump({"a": "x"})
    path = tmp_path / "config.pkl"
    path.write_bytes(stream.getvalue())
    assert refusal(path) == (
        "PATH refers to objects outside of it; expected a dict of plain values."
    )


def test_files_that_are_none(tmp_path):
    path = tmp_path / "config.pkl"
    assert refusal(path) == "PATH cannot be read: No such file or directory."
    whole = pickle.dumps(PUBLISHED, 4)
    # The last asks for a memo of 2**31 entries.
    for data in (b"", b"mode: assimilation", whole[:-20], b"\x80\x02}r\xff\xff\xff\x7f."):
        path.write_bytes(data)
        assert refusal(path).startswith("PATH is damaged or no pickle (")
    path.write_bytes(bytes((1 << 20) + 1))
    assert refusal(path) == (
        "PATH has 1.0 MiB; a configuration has 1.0 MiB at the most. Is it another file, such as a "
        "checkpoint?"
    )
