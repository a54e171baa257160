"""The commands of docs/progressive.md, on small data, do what the page says."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib
import io
import json
import os
import re
import shlex

import pytest
from processes import run_alone

from hftune.cli.main import main
from hftune.configuration.stage_arguments import ProgressiveArguments, StageArguments
from hftune.tasks.classification.example_classification import example_rows
from hftune.training import progressive_results

SMALLER = [
    *("--step_size", "0.4", "--per_device_train_batch_size", "32", "--use_cpu"),
    *("--tracking", "off", "--keep_epoch_weights", "false", "--logging_steps", "50"),
]
NEW_MODEL = [
    *("--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2"),
    *("--intermediate_size", "16", "--vocab_size", "600"),
]


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "docs" / "progressive.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(page, repository, tmp_path_factory):
    """Folder in which all commands of the page were given, and what ``hftune`` printed."""
    folder = tmp_path_factory.mktemp("progressive")
    with open(folder / "intents.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "intent"), *example_rows(300)])
    (folder / "recipes").symlink_to(repository / "recipes")
    before = os.getcwd()
    os.chdir(folder)
    try:
        shown = [
            give(shlex.split(line))
            for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
            for line in block.splitlines()
        ]
    finally:
        os.chdir(before)
    return folder, [text for text in shown if text]


def give(words: list[str]) -> str:
    """One command of the page, with small models on less data."""
    if words[0] == "hftune":
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            assert main(words[1:]) == 0
        return shown.getvalue()
    assert words[:3] == ["accelerate", "launch", "recipes/progressive.py"]
    words = words[3:] + SMALLER
    if "--pretrained" in words:  # what the first run has left, there is no network
        words[words.index("distilbert-base-uncased")] = "runs/progressive/model"
    else:
        words += NEW_MODEL
    if "--data" not in words:
        words += ["--data", "intents.csv"]
    # Shares of a step as small as the page's would be ten stages.
    words = [w for i, w in enumerate(words) if "--step-size" not in (w, words[i - 1])]
    recipe = importlib.import_module("hftune.recipes.progressive")
    assert run_alone(lambda: recipe.main(words)) == 0
    return ""


def stages(folder) -> dict[str, dict]:
    return json.loads((folder / "stages.json").read_text())["stages"]


def test_the_first_run_and_a_table_of_ones_own(page, runs):
    folder, shown = runs
    for name in ("progressive", "intents"):
        run = folder / "runs" / name
        assert list(stages(run)) == ["stage_1_10pct", "stage_2_50pct", "stage_3_90pct"] + [
            "stage_4_100pct"
        ]
        for product in ("report.html", "scores.json", "model/model.safetensors", "plan.json"):
            assert (run / product).is_file()
            assert product.split("/")[0] in page
    assert "finished: all 4 stages are done" in shown[0]
    config = json.loads((folder / "runs/intents/model/config.json").read_text())
    assert config["hidden_size"] == 16  # the pretrained one's


def test_the_three_steps(runs):
    """Also: --restart 2 has set aside what was there; the copy of the journal tells of it."""
    folder, shown = runs
    done = stages(folder / "runs/steps/quarantine/run_1")
    assert list(done) == ["stage_1_10pct", "stage_2_50pct", "stage_3_90pct", "stage_4_100pct"]
    results = [entry["result"] for entry in done.values()]
    assert [r["epochs"] for r in results] == [2, 2, 3, 3]
    assert results[2]["start_weights"] == "stage_2_50pct/checkpoints/best_model"
    assert all(r["attempts"] == 1 for r in results)
    assert "finished: all 4 stages are done" in shown[1]
    assert "moved runs/steps/stage_2_50pct to runs/steps/quarantine/run_1/" in shown[2]
    assert "results and summary are written again when the next stage ends" in shown[2]
    assert list(stages(folder / "runs/steps")) == ["stage_1_10pct"]


def test_the_summary(page, runs):
    (example,) = re.findall(r"```\n(Progressive training: .*?)```", page, re.DOTALL)
    written = (runs[0] / "runs/intents" / progressive_results.SUMMARY).read_text()

    def words(text: str) -> list[str]:
        without_numbers = re.sub(r"\d[\d.,:]*(e[-+]\d+)?", "", text.replace("GiB", "MiB"))
        return re.findall(r"[A-Za-z_%*]+", without_numbers)

    rows = [line for line in written.splitlines() if re.match(r" +\d+  ", line)]
    assert len(rows) == 4
    like = [line for line in example.splitlines() if re.match(r" +\d+  ", line)]
    for row in rows[1:]:
        assert words(row) == words(like[1])
    for line in written.splitlines():
        if line.startswith(("stage ", "Weights went", "Through", "Expected with")):
            heads = {" ".join(words(other)) for other in example.splitlines()}
            assert " ".join(words(line)) in heads


def test_the_options(page):
    table = page.split("| option |")[1].split("\n\n")[0]
    named = {n.replace("-", "_") for n in re.findall(r"^\| `--([\w-]+)`", table, re.MULTILINE)}
    fields = {
        field.name: field.default
        for arguments in (ProgressiveArguments, StageArguments)
        for field in dataclasses.fields(arguments)
    }
    assert named == (fields.keys() - {"progressive"}) | {"no_progressive", "pretrained"} | {
        "output_dir"
    }
    for name, default in re.findall(r"^\| `--([\w-]+)` \| `?([\w.]+)`? \|", table, re.MULTILINE):
        value = fields.get(name.replace("-", "_"))
        if value is not None:
            assert default == str(value).lower()
