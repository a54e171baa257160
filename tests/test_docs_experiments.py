"""The programs and commands of docs/experiments.md do what the page says."""

from __future__ import annotations

import json
import os
import re
import runpy

from processes import run_alone

from hftune.cli.main import main
from hftune.tracking.run_record import STATES


def test_programs_and_commands(repository, tmp_path, monkeypatch, capsys):
    text = (repository / "docs" / "experiments.md").read_text(encoding="utf-8")
    for program in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL):
        (tmp_path / program[0]).write_text(program[1], encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def run(name):
        os.chdir(tmp_path)
        runpy.run_path(name, run_name="__main__")

    assert run_alone(lambda: run("own_trainer.py")) == 0
    assert run_alone(lambda: run("by_hand.py")) == 0
    capsys.readouterr()
    assert main(["runs", "list", "--json"]) == 0
    found = {run["name"]: run for run in json.loads(capsys.readouterr().out)}
    assert found["own"]["status"] == found["bart_base_experiment"]["status"] == "completed"
    assert found["own"]["tags"] == ["own"] and found["own"]["step"] == 114
    for command in (["runs", "show", "own"], ["models", "show", "own-bert"]):
        assert "hftune " + " ".join(command) in text
        assert main(command) == 0
    shown = capsys.readouterr().out
    assert found["own"]["experiment_id"] in shown and "own-bert:1" in shown
    assert main(["runs", "report", "latest", "-o", "report.html"]) == 0
    assert "KoBART 기본 실험" in (tmp_path / "report.html").read_text(encoding="utf-8")
    first = json.loads((tmp_path / "runs/own/metrics.jsonl").read_text().splitlines()[0])
    assert list(first) == ["time", "attempt", "stage", "step", "metrics"]


def test_every_state_is_explained(repository):
    text = (repository / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text.split("## States")[1].split("## ")[0], re.M) == list(
        STATES
    )
