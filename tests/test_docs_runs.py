"""The snippets and commands of docs/runs_command.md run, and what it lists is all there is."""

from __future__ import annotations

import re
import shlex

from hftune.cli.main import main
from hftune.tracking.terms import FIELDS


def test_snippets_and_commands(repository, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    text = (repository / "docs" / "runs_command.md").read_text(encoding="utf-8")
    names: dict = {}
    printed = {}
    for language, block in re.findall(r"```(python|bash)\n(.*?)```", text, flags=re.DOTALL):
        if language == "python":
            exec(compile(block, "runs_command.md", "exec"), names)
            continue
        for command in block.splitlines():
            assert main(shlex.split(command)[1:]) == 0, command
            printed[command] = capsys.readouterr().out
    rows = [
        re.sub(r"exp_\d{8}|\b\d+ s\b", "", row).split()
        for row in printed["hftune runs list"].splitlines()
    ]
    shown = text.split("```bash\nhftune runs list\n```\n```text\n")[1].split("\n```")[0]
    assert rows == [re.sub(r"exp_\d{8}|\b\d+ s\b", "", row).split() for row in shown.splitlines()]
    compared = printed["hftune runs compare korea korea_fast"]
    shown = text.split("marked in colour:\n\n```text\n")[1].split("\n```")[0]
    assert re.sub(r"exp_\d{8}", "", compared).split() == re.sub(r"exp_\d{8}", "", shown).split()
    assert (tmp_path / "report.html").is_file() and len(names["metrics"]) == 12


def test_every_field_is_documented(repository):
    text = (repository / "docs" / "runs_command.md").read_text(encoding="utf-8")
    table = text[text.index("| in a filter") : text.index("`--sort` takes")]
    assert set(FIELDS) <= set(re.findall(r"`(\w+)`", table))
