"""The programs and commands of docs/model_registry.md run, and print what the page says."""

from __future__ import annotations

import re
import shlex

import torch

from hftune.cli.main import main


def normal(text):
    """Without what differs from one day and one version of a library to the next."""
    text = re.sub(r"model_\d{8}", "model_DAY", text)
    text = re.sub(r"\b[\d.]+ KiB", "SIZE", text)
    text = re.sub(r"\b\d+ (s|min)\b", "AGE", text)
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_page(repository, tmp_path, monkeypatch, capsys):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    page = (repository / "docs" / "model_registry.md").read_text(encoding="utf-8")
    names, printed, commands = {}, [], 0
    for language, block in re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL):
        if language == "python":
            exec(compile(block, "docs/model_registry.md", "exec"), names)
        elif language == "bash":
            for line in block.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                if program == "hftune":
                    assert main(arguments) == ("# exits with 1" in line), line
                    commands += 1
            shown = capsys.readouterr()
            printed += normal(shown.out + shown.err)
        else:
            missing = [line for line in normal(block) if line not in printed]
            assert not missing, f"{missing} not in {printed}"
    assert commands == 21
    assert names["model_id"].endswith("_001")
    assert sorted(path.name for path in (tmp_path / "kobart_production").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip


def test_every_command_is_in_the_page(repository, capsys):
    from hftune.cli import models

    page = (repository / "docs" / "model_registry.md").read_text(encoding="utf-8")
    [subcommands] = [action for action in models._parser()._actions if action.choices]
    missing = [name for name in subcommands.choices if f"hftune models {name}" not in page]
    assert not missing
