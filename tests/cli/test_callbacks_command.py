"""hftune callbacks: what is installed, also where it cannot be imported."""

from __future__ import annotations

import json
import sys

import pytest
from plugin_probes import declare, declare_probes

from hftune.cli.callbacks import main

BROKEN = 'print("noise")\nimport a_package_that_is_not_there'


@pytest.fixture
def probes(tmp_path, monkeypatch):
    declare_probes(tmp_path / "site")
    modules = {"hftune_test_broken_listed": BROKEN}
    entries = {"broken": "hftune_test_broken_listed:Broken", "counter": "hftune_test_probes:Fails"}
    declare(tmp_path / "broken", "broken-probes", entries, modules, "0.2")
    for folder in ("site", "broken"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    yield
    sys.modules.pop("hftune_test_probes", None)


def test_json(probes, capsys):
    assert main(["--json"]) == 0
    captured = capsys.readouterr()
    rows = [row for row in json.loads(captured.out) if row["package"].endswith("-probes")]
    assert "noise" in captured.err
    names = [(row["name"], row["package"]) for row in rows]
    assert names == sorted(names) and len(names) == 11
    found = {name: row for name, row in zip(names, rows, strict=True)}
    assert found["fails", "hftune-probes"] == {
        "name": "fails",
        "package": "hftune-probes",
        "version": "1.0",
        "target": "hftune_test_probes:Fails",
        "summary": "Counts steps, fails at one of them.",
        "arguments": [
            {"name": "step", "type": "whole number", "required": False, "default": 2},
            {"name": "event", "type": "text", "required": False, "default": "on_step_end"},
            {"name": "process", "type": "whole number", "required": False, "default": 0},
        ],
        "error": None,
    }
    assert found["needs", "hftune-probes"]["arguments"][0] == {
        "name": "url", "type": "anything", "required": True,
    }  # fmt: skip
    assert found["broken", "broken-probes"]["error"] == (
        "'broken' of broken-probes 0.2 (hftune_test_broken_listed:Broken) cannot be imported: "
        "ModuleNotFoundError: No module named 'a_package_that_is_not_there'; is it installed here, "
        "or its folder on PYTHONPATH?"
    )
    assert "expected a class derived from" in found["no_callback", "hftune-probes"]["error"]
    for package, target in (("hftune-probes", "Counter"), ("broken-probes", "Fails")):
        assert found["counter", package]["error"] == (
            "another package declares this name too: give its path, hftune_test_probes:" + target
        )


@pytest.mark.parametrize("width", ["60", "200"])
def test_table(probes, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    assert main([]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= int(width)
    words = " ".join(text.split())
    for name in ("unresolved ", "wrong_result ", "rate=0.1 ", "step=3 "):
        assert name in words
    if width == "200":
        assert 'event="on_step_end"' in words and "url (required)" in words
        assert "fails hftune-probes 1.0 Counts steps, fails at one of them. step=2" in words
        assert "broken-probes 0.2 'broken' of broken-probes 0.2" in words
