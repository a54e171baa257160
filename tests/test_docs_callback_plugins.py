"""A real package, installed by pip, and the page that tells how to write one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hftune.configuration.arguments import HFTuneArguments
from hftune.configuration.resolve import parse
from hftune.utils.errors import ConfigurationError
from hftune.utils.files import read_json


@pytest.fixture(scope="module")
def installed(repository, tmp_path_factory) -> Path:
    """Where pip has put ``tests/plugin_package``."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"
    # A copy: setuptools builds beside the sources.
    shutil.copytree(repository / "tests" / "plugin_package", source)
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    offline = ["--no-build-isolation", "--no-deps", "--no-index"]
    site = folder / "site"
    run = subprocess.run(
        [*command, *offline, "--target", str(site), str(source)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return site


@pytest.fixture(scope="module")
def page(repository) -> dict[str, str]:
    """The files of docs/callback_plugins.md by name."""
    text = (repository / "docs" / "callback_plugins.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\w+\n# (\S+\.\w+)\n(.*?)```", text, re.DOTALL)
    return dict(blocks)


def test_the_page_shows_the_package(repository, page):
    for name in ("pyproject.toml", "hftune_custom_metric.py"):
        assert page[name] == (repository / "tests/plugin_package" / name).read_text("utf-8")


def test_a_run_with_an_installed_package(installed, page, tmp_path):
    for name in ("train.py", "step_counter.py", "callbacks.yaml"):
        (tmp_path / name).write_text(page[name], encoding="utf-8")
    settings = [
        *("--output_dir", "out", "--max_steps", "8", "--disable_tqdm", "--use_cpu"),
        *("--eval_strategy", "steps", "--eval_steps", "4", "--save_steps", "4"),
        *("--metric_for_best_model", "custom_score", "--greater_is_better"),
        *("--config", "callbacks.yaml", "--callback_errors", "disable"),
    ]
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, "train.py", *settings],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "callback 'failing' of hftune-custom-metric 0.1.0 failed in on_step_end at step 3:" in (
        run.stderr
    )
    state = read_json(tmp_path / "out" / "checkpoint-8" / "trainer_state.json")
    evaluations = [line for line in state["log_history"] if "eval_rouge1" in line]
    assert [line["step"] for line in evaluations] == [4, 8]
    for line in evaluations:  # the manual's formula
        expected = (line["eval_rouge1"] + line["eval_rouge2"] * 2) / 3
        assert line["eval_custom_score"] == pytest.approx(expected, rel=1e-12)
    assert state["best_metric"] == evaluations[1]["eval_custom_score"]
    kept = read_json(tmp_path / "out" / "checkpoint-8" / "callbacks" / "step_counter.json")
    assert kept == {"steps": 8}
    record = read_json(tmp_path / "out" / "run.json")
    assert record["status"] == "completed"
    setting = record["configuration"]["training"]["callbacks"]
    assert setting["source"].startswith("callbacks.yaml:")
    lines = (tmp_path / "out" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    (event,) = [e for e in map(json.loads, lines) if e["kind"] == "warning"]
    assert (event["callback"], event["step"]) == ("failing", 3)


def test_every_command_has_settings_that_are_right(
    repository, installed, page, tmp_path, monkeypatch
):
    (tmp_path / "step_counter.py").write_text(page["step_counter.py"], encoding="utf-8")
    (tmp_path / "callbacks.yaml").write_text(page["callbacks.yaml"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, installed):
        monkeypatch.syspath_prepend(folder)
    text = (repository / "docs" / "callback_plugins.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    small = re.search(r'SMALL="(.*)"', blocks)[1]
    commands = [line for line in blocks.splitlines() if "python train.py" in line]
    assert len(commands) == 11
    problems = {}
    for command in commands:
        before, _, rest = command.replace("$SMALL", small).partition("python train.py")
        environ = dict(part.split("=", 1) for part in shlex.split(before))
        try:
            parse(HFTuneArguments, argv=shlex.split(rest, comments=True), environ=environ)
        except ConfigurationError as error:
            problems[command] = str(error)
    ((command, found),) = problems.items()
    assert "--callbacks custom_metrics failing:steps=3 nowhere.Callback" in command
    # Apart from the list of what is installed, which is another one where the tests run.
    before, _, after = found.partition(" Installed: ")
    assert f"error: {before}" in text and after.partition(" ('hftune")[2] in text
