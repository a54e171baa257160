"""The hftune command: its table, errors and exit codes."""

from __future__ import annotations

import importlib
import re
import sys
import types

import pytest

from hftune import __version__
from hftune.cli import main as command
from hftune.utils.errors import DataError


def test_help_lists_every_command(capsys):
    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in command.COMMANDS:
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE)
    assert command.main([]) == 2


@pytest.mark.parametrize("name", sorted(command.COMMANDS))
def test_every_command_is_there_and_has_help(name, capsys):
    assert callable(importlib.import_module(f"hftune.cli.{name}").main)
    with pytest.raises(SystemExit) as stopped:
        command.main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: hftune {name}" in capsys.readouterr().out


def test_version(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hftune {__version__}\n"


def test_unknown_command_has_a_suggestion(capsys):
    assert command.main(["docter"]) == 2
    assert capsys.readouterr().err == "hftune: 'docter' is not a command. Did you mean 'doctor'?\n"
    assert command.main(["xyz"]) == 2
    assert "Commands: aardvark, audit, background, callbacks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DataError("no file x.nc"), 2, "hftune doctor: no file x.nc\n"),
        (KeyboardInterrupt(), 130, "\nhftune doctor: interrupted\n"),
    ],
)
def test_errors_that_a_user_can_act_on_have_no_traceback(monkeypatch, capsys, error, code, text):
    def fail(argv):
        raise error

    monkeypatch.setitem(sys.modules, "hftune.cli.doctor", types.SimpleNamespace(main=fail))
    assert command.main(["doctor"]) == code
    assert capsys.readouterr().err == text


def test_mistakes_of_hftune_keep_their_traceback(monkeypatch):
    def fail(argv):
        raise RuntimeError("a bug")

    monkeypatch.setitem(sys.modules, "hftune.cli.doctor", types.SimpleNamespace(main=fail))
    with pytest.raises(RuntimeError, match="a bug"):
        command.main(["doctor"])
