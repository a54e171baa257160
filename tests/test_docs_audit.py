"""The snippets of docs/audit.md and docs/simulated_atmosphere.md run, and say what is true."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("netCDF4")


def test_snippets(repository, tmp_path, monkeypatch, capsys):
    from hftune.cli.main import main

    monkeypatch.chdir(tmp_path)
    for page in ("simulated_atmosphere.md", "audit.md"):
        text = (repository / "docs" / page).read_text(encoding="utf-8")
        names: dict = {}
        for language, block in re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL):
            if language == "bash":
                assert main(block.split()[1:]) == 0
            else:
                exec(compile(block, page, "exec"), names)
    assert names["audit"].verdict == "ok" and names["audit"].times["count"] == 366
    assert "✓ nothing wrong found" in capsys.readouterr().out


def test_every_check_is_documented(repository):
    text = (repository / "docs" / "audit.md").read_text(encoding="utf-8")
    folder = repository / "hftune" / "tasks" / "weather"
    source = "".join(path.read_text(encoding="utf-8") for path in folder.glob("audit*.py"))
    found = set(re.findall(r'Finding\(\s*"(?:error|warning|info)[^,]*,\s*"(\w+)"', source))
    found |= set(
        re.findall(r'^\s+\(?"(zeros|constant|stuck|duplicates|backwards)"[:,]', source, re.M)
    )
    assert {"missing", "zeros", "duplicates", "orientation"} <= found
    documented = set(re.findall(r"`(\w+)`", text))
    assert found <= documented, found - documented


def test_every_option_is_documented(repository, capsys):
    from hftune.cli.audit import _parser

    text = (repository / "docs" / "audit.md").read_text(encoding="utf-8")
    options = set(re.findall(r"`--(\w+)", text)) - {"audit"}
    known = {name.lstrip("-") for action in _parser()._actions for name in action.option_strings}
    assert options <= known
