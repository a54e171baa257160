"""What docs/stages.md says is what happens."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import shlex

import pytest
from processes import run_alone

from hftune.cli.main import main
from hftune.configuration.stage_arguments import StageArguments
from hftune.training.stage_spec import STAGE_ARGUMENTS, StageSpec


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "docs" / "stages.md").read_text(encoding="utf-8")


def without_numbers(text: str) -> list[list[str]]:
    return [re.sub(r"\d[\d.,:]*|─+", "0", line).split() for line in text.strip().splitlines()]


def test_the_program_and_the_commands(page, tmp_path, monkeypatch, capfd):
    programs = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL))
    program = programs["staged.py"]
    for count in ("1000", "2000", "4000"):
        assert f"Products({count}, " in program
        program = program.replace(f"Products({count}, ", f"Products({count[0]}0, ")
    hears = "evaluator=Evaluate(),\n"
    assert hears in program
    program = program.replace(hears, f"{hears} callbacks=[__import__('stage_times').StageTimes()],")
    (tmp_path / "staged.py").write_text(program)
    (tmp_path / "stage_times.py").write_text(programs["stage_times.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    shown = []
    commands = "".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL)).splitlines()
    assert len(commands) == 4
    for command in commands:
        name, *words = shlex.split(command)
        if name == "python":
            assert run_alone(lambda: runpy.run_path("staged.py", run_name="__main__")) == 0
            heard = capfd.readouterr().out
            assert "3 of 3: more of it, in runs/staged/stage_3_all\n" in heard
            assert re.search(r"^stage_3_all: [\d.]+ s, {'error': ", heard, re.MULTILINE)
        else:
            assert name == "hftune" and main(words) == 0
            shown.append(capfd.readouterr().out)
    table, moved = re.findall(r"```\n((?:#  stage|moved ).*?)```", page, re.DOTALL)
    assert without_numbers(shown[0]) == without_numbers(table)
    assert shown[1] == moved

    named = page.split("`trainer.results` has")[1].split("is done:")[1].split("\n\n")[0]
    journal = json.loads((tmp_path / "runs/staged/stages.json").read_text())
    for entry in journal["stages"].values():
        assert set(re.findall(r"`(\w+)`", named)) <= entry["result"].keys()
    stage = tmp_path / "runs" / "staged" / "stage_1_clean"
    assert {p.name for p in stage.iterdir()} == {
        *("checkpoints", "logs", "training_metrics.json", "trainer_state.json"),
    }
    assert not os.path.exists(stage / "checkpoints" / "epoch_1")


@pytest.mark.parametrize("described", [StageSpec, StageArguments])
def test_the_settings(page, described):
    table = page.split(f"| `{described.__name__}` |")[1].split("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert named == [field.name for field in dataclasses.fields(described)]
    if described is StageSpec:
        (line,) = re.findall(r"^\| `arguments` \|.*$", table, re.MULTILINE)
        assert re.findall(r"`(\w+)`", line)[1:] == list(STAGE_ARGUMENTS)
    else:
        defaults = re.findall(r"^\| `\w+` \| `?(\w+)`? \|", table, re.MULTILINE)
        assert defaults == [str(f.default).lower() for f in dataclasses.fields(described)]
