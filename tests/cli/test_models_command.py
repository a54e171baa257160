"""``hftune models``, as a user types it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hftune.cli import models, tables
from hftune.cli.main import main
from hftune.tracking.registry import ModelRegistry
from hftune.tracking.store import Store
from hftune.tracking.tracker import ExperimentTracker
from tests.processes import run_alone

ROUGE = "rouge_combined_f1"


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("HFTUNE_TRACKING_URL", raising=False)
    monkeypatch.delenv("HFTUNE_MODELS_DIR", raising=False)


def registered(place, name="kobart", rouge=0.37, size=1000, **more):
    """Registers a model of its own content; returns its id."""
    number = len(list(place.glob("model_*")))
    folder = place / f"model_{number}"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["BartForConditionalGeneration"]}')
    save_file({"weight": np.full(size, number, np.float32)}, folder / "model.safetensors")
    facts = {
        "architecture": "kobart",
        "checkpoint": "gogamza/kobart-base-v2",
        "config": {"training": {"learning_rate": 5e-5, "seed": 42}},
        "performance": {ROUGE: rouge, "eval_loss": round(2 - rouge, 2)},
        "training_info": {"epochs": 3},
    }
    return ModelRegistry().register_model(name=name, file_path=folder, **(facts | more))


@pytest.fixture
def register(tmp_path):
    return functools.partial(registered, tmp_path)


@pytest.fixture(scope="module")
def home_of_three(tmp_path_factory):
    home = tmp_path_factory.mktemp("home_of_three")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTUNE_HOME", str(home / "home"))
        ids = [registered(home), registered(home, rouge=0.39)]
        ids.append(registered(home, "t5", 0.2, architecture="t5"))
        ModelRegistry().promote("kobart", 1, "production")
    return home, ids


@pytest.fixture
def three(home_of_three, tmp_path):
    """Two versions of kobart and one of t5, the first in production."""
    home, ids = home_of_three
    # cp keeps the hard links between the registry's files.
    subprocess.run(["cp", "-a", f"{home}/home/.", os.environ["HFTUNE_HOME"]], check=True)
    subprocess.run(["cp", "-a", home / "model_0", tmp_path], check=True)
    return ids


@pytest.fixture
def run(capsys):
    """Runs ``hftune models ...``; returns the exit code, what it printed and its errors."""

    def of(*arguments):
        try:
            code = main(["models", *map(str, arguments)])
        except SystemExit as stop:  # argparse
            code = stop.code
        return (code, *capsys.readouterr())

    return of


def lines(text):
    """What was printed, without the spaces at the ends and with every age as AGE."""
    text = re.sub(r" +\d+ (s|min)$", " AGE", text, flags=re.M)
    return [line.rstrip() for line in text.splitlines()]


def width(text):
    from rich.cells import cell_len

    return max(map(cell_len, text.splitlines()))


# Lists


def test_list(run, three):
    code, shown, errors = run("list")
    assert (code, errors) == (0, "")
    assert lines(shown)[0].split() == ["name", "v", "id", "aliases", ROUGE, "size", "age"]
    assert [line.split() for line in lines(shown)[2:5]] == [
        ["t5", "1", three[2], "0.2", "4.0", "KiB", "AGE"],
        ["kobart", "2", three[1], "0.39", "4.0", "KiB", "AGE"],
        ["kobart", "1", three[0], "production", "0.37", "4.0", "KiB", "AGE"],
    ]
    assert lines(shown)[5:] == ["", "No room for eval_loss, architecture."]
    assert width(shown) <= 80


def test_list_as_wide_as_the_terminal(run, three, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    _, shown, _ = run("list", "--name", "t5")
    heading, _, row = lines(shown)
    assert heading.split() == ["name", "v", "id", ROUGE, "eval_loss", "size", "age", "architecture"]
    assert (
        row.split()[4:7] == ["1.8", "4.0", "KiB"] and row.endswith("t5") and "No room" not in shown
    )


def test_korean_names_keep_the_columns(run, register):
    register("한국어 요약 모델")
    register("plain")
    _, shown, _ = run("list")
    first, second = lines(shown)[2:4]
    assert first.startswith("plain             1  model_")
    assert second.startswith("한국어 요약 모델  1  model_")  # 16 cells, 9 letters


def test_a_long_name_is_folded_and_the_id_is_whole(run, register):
    key = register("n" * 100)
    _, shown, _ = run("list")
    assert shown.count("n" * 20) >= 2 and key in shown and width(shown) <= 80
    assert "".join(re.findall("n{2,}", shown)) == "n" * 100


def test_list_json_has_everything(run, three):
    code, shown, _ = run("list", "--json", "--name", "kobart")
    found = json.loads(shown)
    assert code == 0 and [model["model_id"] for model in found] == [three[1], three[0]]
    assert found[1]["aliases"] == ["production"] and found[1]["performance"][ROUGE] == 0.37
    assert found == json.loads(json.dumps(ModelRegistry().search_models(name="kobart")))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--latest"], [2, 1]),
        (["--limit", "1"], [2]),
        (["--limit", "all"], [2, 1, 0]),
        (["--alias", "production"], [0]),
        (["--architecture", "kobart"], [1, 0]),
        (["--sort", ROUGE], [1, 0, 2]),
        (["--sort", "eval_loss"], [1, 0, 2]),
        (["--sort", ROUGE, "--smaller-is-better"], [2, 0, 1]),
        (["--sort", "name"], [1, 0, 2]),
        (["--sort", "-name"], [2, 1, 0]),
        (["--sort", "-created"], [2, 1, 0]),
        (["--sort=-created"], [2, 1, 0]),
        (["--sort", "-eval_loss", "--latest"], [2, 1]),
        (["--sort", "-eval_loss", "--limit", "1"], [2]),
        (["--run", "exp_20250128_001"], []),
    ],
)
def test_list_filters_and_sorts(run, three, arguments, expected):
    code, shown, _ = run("list", "--json", *arguments)
    assert code == 0
    assert [three.index(model["model_id"]) for model in json.loads(shown)] == expected


def test_an_order_that_nobody_knows(run, three):
    code, _, errors = run("list", "--sort", "-craeted")
    assert code == 2 and errors == (
        "hftune models: no registered model has the metric 'craeted'. Did you mean 'created'?\n"
    )
    code, _, errors = run("list", "--sort", "--json")
    assert code == 2 and "--sort: expected one argument" in errors


def test_list_sorted_by_size(run, register):
    small, large = register(size=10), register(size=5000)
    _, shown, _ = run("list", "--sort", "size", "--json")
    assert [model["model_id"] for model in json.loads(shown)] == [large, small]


def test_more_than_the_limit_is_said(run, three):
    _, shown, _ = run("list", "--limit", "2")
    assert lines(shown)[-1] == "There are more than 2: --limit N."
    _, shown, _ = run("list", "--limit", "3")
    assert "There are more" not in shown


def test_nothing_registered(run):
    assert run("list") == (
        0,
        "No model is registered yet. ModelRegistry().register_model(...) registers one.\n",
        "",
    )
    assert run("list", "--json") == (0, "[]\n", "")
    assert run("verify")[:2] == (0, "✓ 0 models (0 B): every byte is as it was registered\n")
    assert run("gc") == (0, "Nothing to remove.\n", "")
    code, _, errors = run("show", "kobart")
    assert code == 2
    assert errors == "hftune models: found no model 'kobart'. No model is registered.\n"


def test_a_name_that_is_near(run, three):
    code, shown, _ = run("list", "--name", "kobrat", "--architecture", "t55")
    assert code == 0
    assert " ".join(shown.split()) == (
        "None of the 3 registered models fulfils this. Did you mean 'kobart'? Did you mean 't5'?"
    )


def test_not_finite_metrics_come_last_and_are_kept(run, register):
    names = {"nan": float("nan"), "infinite": float("inf"), "low": 0.1, "high": 0.9}
    for name, rouge in names.items():
        register(name, performance={ROUGE: rouge})
    register("without", performance={})
    _, shown, _ = run("list", "--sort", ROUGE, "--json")
    found = json.loads(shown)
    assert [model["name"] for model in found] == ["high", "low", "infinite", "nan", "without"]
    assert [model["performance"].get(ROUGE) for model in found] == [
        0.9, 0.1, "Infinity", "NaN", None,
    ]  # fmt: skip
    _, shown, _ = run("best", "--metric", ROUGE)
    rows = [line.split() for line in lines(shown)[4:]]
    assert [(row[0], row[3]) for row in rows] == [
        ("high", "0.9"), ("low", "0.1"), ("infinite", "inf"), ("nan", "NaN"),
    ]  # fmt: skip


def test_best(run, three):
    code, shown, _ = run("best", "--metric", ROUGE, "--limit", "2")
    assert code == 0 and lines(shown)[0] == f"{ROUGE}: higher is better"
    assert [line.split()[2] for line in lines(shown)[4:6]] == [three[1], three[0]]
    _, shown, _ = run("best", "--metric", "eval_loss", "--json")
    assert [model["model_id"] for model in json.loads(shown)] == [three[1], three[0], three[2]]


def test_metrics_that_nobody_knows(run, register):
    first = register(performance={"내점수": 3.0})
    second = register(performance={"내점수": 1.0})
    code, _, errors = run("best", "--metric", "rouge")
    assert code == 2 and errors.startswith(
        "hftune models: no registered model has the metric 'rouge'."
    )
    code, _, errors = run("best", "--metric", "내점수")
    assert code == 2 and "--greater_is_better or --smaller_is_better" in errors
    for option, order in (("--greater_is_better", [first, second]), ("--smaller-is-better",
                                                                     [second, first])):  # fmt: skip
        _, shown, _ = run("best", "--metric", "내점수", option, "--json")
        assert [model["model_id"] for model in json.loads(shown)] == order
    _, shown, _ = run("search", "--min", "내점수=2", "--greater_is_better", "--json")
    assert [model["model_id"] for model in json.loads(shown)] == [first]


def test_search(run, three):
    _, shown, _ = run("search", "--min", f"{ROUGE}=0.35", "--min", "eval_loss=1.62", "--json")
    assert [model["model_id"] for model in json.loads(shown)] == [three[1]]
    _, shown, _ = run("search", "--min", f"{ROUGE}=0.1", "--architecture", "t5")
    assert lines(shown)[0].split()[3] == ROUGE and lines(shown)[2].split()[2] == three[2]
    code, _, errors = run("search", "--min", "rouge", "--min", "=1", "--min", "a=nan")
    assert code == 2
    assert errors.splitlines()[1:] == [
        f"  {n}. --min: found '{text}', expected METRIC=NUMBER such as rouge1_f1=0.4"
        for n, text in enumerate(("rouge", "=1", "a=nan"), 1)
    ]
    assert run("search")[0] == 2  # that is 'list'


# One model


def test_show(run, register):
    parent = register()
    child = register(
        parent_model=parent,
        experiment_id="exp_20250128_001",
        stage="fine-tuning",
        step=1200,
        data_fingerprint="3f2a91",
    )
    grandchild = register("요약", parent_model=child)
    ModelRegistry().promote("kobart", 2, "staging")
    code, shown, errors = run("show", "kobart@staging")
    text = lines(shown)
    digest = ModelRegistry().get_model_info(child)["digest"]
    assert (code, errors) == (0, "")
    assert text[0] == f"kobart:2  {child}  @staging"
    assert f"digest        {digest}" in text and "training.learning_rate  5e-05" in text
    assert f"{ROUGE}  0.37" in text and "epochs  3" in text
    begin = text.index("Lineage")
    assert text[begin : begin + 9] == [
        "Lineage",
        f"kobart:2  {child}  @staging",
        "├── trained by the run exp_20250128_001",
        "│   ├── on the data 3f2a91",
        "│   ├── stage fine-tuning",
        "│   ├── checkpoint at step 1,200",
        "│   └── began with gogamza/kobart-base-v2",
        f"├── from the model kobart:1  {parent}",
        "│   └── began with gogamza/kobart-base-v2",
    ]
    assert text[begin + 9] == f"└── led to the model 요약:1  {grandchild}"
    assert any(re.fullmatch(r"model\.safetensors  4\.\d KiB  [0-9a-f]{12}", row) for row in text)
    assert [row.split("  ")[1] for row in text if " UTC  " in row] == [
        "registered",
        "became staging",
    ]
    assert text[-3:] == [
        "from hftune.tracking.registry import ModelRegistry",
        'folder = ModelRegistry().folder("kobart:2")  # every byte is verified',
        "model = BartForConditionalGeneration.from_pretrained(folder)",
    ]
    exec("\n".join(text[-3:-1]), names := {})
    assert (names["folder"] / "model.safetensors").is_file()


def test_show_json(run, three):
    code, shown, _ = run("show", three[0], "--json")
    model = json.loads(shown)
    assert code == 0 and model["model_id"] == three[0] and model["aliases"] == ["production"]
    assert model["files"]["model.safetensors"]["bytes"] > 4000
    assert [event["kind"] for event in model["history"]] == ["registered", "promoted"]
    assert model["lineage"]["ancestors"] == [] and model["children"] == []


def test_what_users_wrote_does_not_steer_the_terminal(run, register):
    register(architecture="[red]a\x1b[31m\nb:smile:", performance={"[b]x\x1b": 1.0},
             training_info={"note": "\x1b]0;title\x07 :smile: [link]"})  # fmt: skip
    for command in (["list"], ["show", "kobart"], ["compare", "kobart", "kobart", "--all"]):
        _, shown, _ = run(*command)
        assert "\x1b" not in shown and "\x07" not in shown and "[b]x�" in shown
    _, shown, _ = run("show", "kobart")
    assert "[red]a�[31m�b:smile:" in shown and "�]0;title� :smile: [link]" in shown


def test_show_names_the_run(run, register, tmp_path):
    record = ExperimentTracker().start(tmp_path / "run", name="기준 실험")
    record.finish("completed")
    register(experiment_id=record.experiment_id)
    _, shown, _ = run("show", "kobart")
    said = f"trained by the run {record.experiment_id} '기준 실험' (completed)"
    assert said in shown


@pytest.mark.parametrize(
    ("ref", "hint"),
    [
        ("kobrat", " Did you mean 'kobart'?"),
        ("kobart:7", " 'kobart' has the versions 2, 1 and the aliases: production."),
        ("kobart@prod", " 'kobart' has the versions 2, 1 and the aliases: production."),
    ],
)
def test_unknown_models(run, three, ref, hint):
    for command in (
        ["show"], ["verify"], ["delete", "--yes"], ["export", "-o", "x"], ["history"],
        ["promote", "--alias", "a"], ["compare", "kobart"],
    ):  # fmt: skip
        assert run(*command, ref) == (2, "", f"hftune models: found no model '{ref}'.{hint}\n")


def test_unknown_ids_name_near_ones(run, three):
    code, _, errors = run("show", three[0][:-1] + "9")
    assert code == 2 and three[0] in errors


def test_history(run, three):
    code, shown, _ = run("history", "kobart")
    rows = [re.split(r"  +", line) for line in lines(shown)[2:]]
    assert code == 0 and [row[1:3] for row in rows] == [
        ["1", "registered"], ["2", "registered"], ["1", "became production"],
    ]  # fmt: skip
    _, shown, _ = run("history", "kobart:2", "--json")
    assert [event["model_id"] for event in json.loads(shown)] == [three[1]]


# Side by side


def test_compare(run, register):
    first = register(rouge=float("nan"), training_info={"epochs": 3, "batch_size": 16})
    second = register(rouge=0.39, config={"training": {"learning_rate": 1e-5, "seed": 42}})
    third = register(rouge=0.41, performance={ROUGE: 0.41, "내점수": 1.0})
    code, shown, _ = run("compare", first, second, "kobart:3")
    assert code == 0 and width(shown) <= 80
    assert [line.split() for line in lines(shown) if not line.startswith("─")] == [
        ["metric", "kobart:1", "kobart:2", "kobart:3"],
        [ROUGE, "NaN", "0.39", "0.41", "*"],
        ["eval_loss", "NaN", "1.61", "–"],
        ["내점수", "–", "–", "1"],
        ["*", "the", "best"],
        [],
        ["setting", "kobart:1", "kobart:2", "kobart:3"],
        ["training_info.batch_size", "16", "–", "–"],
        ["training.learning_rate", "5e-05", "1e-05", "5e-05"],
    ]
    _, shown, _ = run("compare", first, second, third, "--all")
    assert "training.seed" in shown and "gogamza" in shown
    _, shown, _ = run("compare", first, second, third, "--json")
    assert json.loads(shown) == {
        ROUGE: ["NaN", 0.39, 0.41],
        "eval_loss": ["NaN", 1.61, None],
        "내점수": [None, None, 1.0],
    }


def test_compare_shows_where_long_settings_differ(run, register):
    for end in ("one", "two"):
        register(config={"output_dir": "/data/" + "x" * 200 + end})
    _, shown, _ = run("compare", "kobart:1", "kobart:2")
    row = "".join(line for line in lines(shown) if "xx" in line)
    assert "one" in row and "two" in row and width(shown) <= 80


def test_compare_needs_two_that_are_there(run, three):
    code, _, errors = run("compare", "kobart")
    assert (code, errors) == (2, "hftune models: compare: found one model, expected two or more\n")
    code, _, errors = run("compare", "t5", "nope1", "nope2")
    assert code == 2 and "found no model 'nope1'" in errors and "found no model 'nope2'" in errors


# Aliases


def test_promote_behind_gates(run, three):
    gate = ["--must_beat", "production", "--metric", ROUGE]
    code, shown, errors = run("promote", "kobart", 2, "--alias", "production", *gate)
    assert (code, errors) == (0, "")
    assert shown == "kobart@production is version 2 now (was version 1).\n"
    code, shown, errors = run("promote", "kobart:1", "--alias", "production", *gate)
    assert (code, shown) == (1, "")
    assert errors == (
        "hftune models: kobart:1 does not become 'production': its rouge_combined_f1 is 0.37, "
        "expected higher than 0.39 of kobart:2\n"
    )
    code, shown, _ = run(
        "promote", three[0], "--alias", "staging", "--min-metric", "eval_loss=1.7", "--json"
    )
    assert code == 0 and json.loads(shown)["aliases"] == ["staging"]
    code, _, errors = run("promote", "kobart", 1, "--alias", "x", "--min_metric", f"{ROUGE}=0.38")
    assert code == 1 and "its rouge_combined_f1 is 0.37, expected 0.38 or more" in errors
    assert ModelRegistry().get_model_info("kobart@production")["version"] == 2


def test_gates_of_metrics_that_nobody_knows(run, register):
    for score in (1.0, 2.0, 3.0):
        register(performance={"내점수": score, "잡음": score, "loss": score})
    run("promote", "kobart", 2, "--alias", "production")
    gates = ["--alias", "production", "--must_beat", "production", "--metric", "내점수"]
    gates += ["--min_metric", "잡음=2.5", "--min_metric", "loss=3"]
    code, _, errors = run("promote", "kobart", 3, *gates)
    assert code == 2 and "--greater_is_better or --smaller_is_better" in errors
    code, _, errors = run("promote", "kobart", 3, *gates, "--smaller_is_better")
    assert code == 1 and errors == (
        "hftune models: kobart:3 does not become 'production': its 내점수 is 3, expected lower "
        "than 2 of kobart:2; its 잡음 is 3, expected 2.5 or less\n"
    )
    code, shown, _ = run("promote", "kobart", 3, *gates, "--greater_is_better")
    assert (code, shown) == (0, "kobart@production is version 3 now (was version 2).\n")


def test_promote_only_from_what_is_expected(run, three):
    code, _, errors = run("promote", "kobart", 2, "--alias", "production", "--expect", "2")
    assert code == 1
    assert errors == (
        "hftune models: kobart@production is version 1, expected version 2: somebody moved it; "
        "look at the model's history, then decide again\n"
    )
    code, _, errors = run("promote", "kobart", 2, "--alias", "production", "--expect", "none")
    assert code == 1 and "is version 1, expected not set" in errors
    assert ModelRegistry().get_model_info("kobart@production")["version"] == 1
    assert run("promote", "kobart", 2, "--alias", "production", "--expect", "1")[0] == 0
    assert run("promote", "kobart", 2, "--alias", "new", "--expect", "none")[1] == (
        "kobart@new is version 2 now (was not set).\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["kobart", "2"],
        ["kobart", "2", "--alias", "../x"],
        ["kobart", "2", "--alias", "a", "--must_beat", "production"],
        ["kobart", "2", "--alias", "a", "--expect", "two"],
        ["kobart", "2", "--alias", "a", "--min_metric", "rouge1_f1"],
        ["kobart", "two", "--alias", "a"],
    ],
)
def test_promote_used_wrongly(run, three, arguments):
    code, shown, errors = run("promote", *arguments)
    assert code == 2 and not shown and errors
    assert ModelRegistry().search_models(alias="a") == []


def test_demote(run, three):
    code, _, errors = run("demote", "kobart", "--alias", "production", "--expect", "2")
    assert code == 1 and "is version 1, expected version 2" in errors
    code, shown, _ = run("demote", "kobart", "--alias", "production")
    assert (code, shown) == (0, "kobart@production is removed; it was version 1.\n")
    assert ModelRegistry().get_model_info("kobart:1")["aliases"] == []
    assert run("demote", "kobart", "--alias", "production")[0] == 2


# Files


def flip(ref):
    """Changes one byte of a model's weights and not their size."""
    path = Path(ModelRegistry().get_model_info(ref)["file_path"]) / "model.safetensors"
    os.chmod(path, 0o644)
    with open(path, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 1]))


def test_verify(run, three, tmp_path):
    assert run("verify", "--all") == (
        0, "✓ 3 models (12.1 KiB): every byte is as it was registered\n", "",
    )  # fmt: skip
    flip("kobart:2")
    code, shown, _ = run("verify")
    assert code == 1 and width(shown) <= 80
    row = " ".join(" ".join(lines(shown)[2:4]).split())
    assert row.startswith(f"kobart:2 {three[1]} model.safetensors has changed since it was")
    assert lines(shown)[-1] == "✗ 1 of 3 models (12.1 KiB): something is wrong"
    assert run("verify", "kobart:1", "t5")[0] == 0
    code, shown, _ = run("verify", "kobart:1", "kobart@production", three[1], "--json")
    assert code == 1 and json.loads(shown) == {
        three[0]: [],
        three[1]: ["model.safetensors has changed since it was registered (other sha256)"],
    }
    assert run("verify", "kobart", "--all")[0] == 2
    for command in (["promote", "--alias", "a"], ["export", "-o", tmp_path / "copy"]):
        code, _, errors = run(*command, "kobart:2")
        assert code == 1 and "has changed since it was registered" in errors
    assert not (tmp_path / "copy").exists()


def test_verify_shows_how_far_it_is_within_a_file(run, register, monkeypatch):
    register(size=3_000_000)
    monkeypatch.setattr(models, "_PATIENCE", -1.0)
    monkeypatch.setattr("hftune.utils.terminal.LOG_SECONDS", 0.0)
    code, _, errors = run("verify")
    assert code == 0
    assert [line.split(",")[0] for line in errors.splitlines()[-3:]] == [
        "Verifying: 8/11 MiB (73 %)",
        "Verifying: 11/11 MiB (100 %)",
        "Verifying: 11/11 MiB (100 %)",
    ]


def test_verify_and_reindex_after_the_database_was_lost(run, three):
    database = Path(Store().url.removeprefix("sqlite:///"))
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()
    code, shown, _ = run("verify", "--json")
    assert code == 1 and json.loads(shown) == {
        key: ["the database does not know it: hftune models reindex"] for key in three
    }
    assert run("reindex") == (0, "Added 3 models and 4 of their events.\n", "")
    assert run("reindex") == (0, "Nothing to add.\n", "")
    assert ModelRegistry().get_model_info("kobart@production")["model_id"] == three[0]


def test_delete_and_gc(run, three, monkeypatch):
    code, shown, errors = run("delete", "kobart:1", "--yes")
    assert (code, shown) == (1, "")
    assert errors == (
        f"hftune models: kobart:1 ({three[0]}) is in use: the alias production points to it. Move "
        "the alias or delete the other model first.\n"
    )
    code, _, errors = run("delete", "t5")
    assert code == 2 and errors == (
        f"hftune models: Delete t5:1 ({three[2]}), 4.0 KiB? There is no terminal to ask on: give "
        "--yes.\n"
    )
    code, shown, _ = run("delete", "t5", "--yes")
    assert code == 0 and shown.startswith(f"t5:1 ({three[2]}) is deleted.")
    folders = Path(ModelRegistry().get_model_info("kobart")["file_path"]).parent
    code, shown, _ = run("gc", "--dry-run")
    assert code == 0 and [line.split()[-1] for line in lines(shown)[2:5]] == ["1", "1", "0"]
    assert lines(shown)[-1] == "4.3 KiB would be free." and len(list(folders.iterdir())) == 3
    assert run("gc")[0] == 2 and len(list(folders.iterdir())) == 3
    code, shown, _ = run("gc", "--yes", "--json")
    assert code == 0 and json.loads(shown)["removed"] and json.loads(shown)["contents"] == 1
    assert len(list(folders.iterdir())) == 2 and run("verify")[0] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_gc_says_what_is_another_users(three, monkeypatch):
    home = Path(tempfile.mkdtemp(prefix="hftune-team-", dir="/tmp"))
    subprocess.run(["cp", "-a", f"{os.environ['HFTUNE_HOME']}/.", home], check=True)
    monkeypatch.setenv("HFTUNE_HOME", str(home))
    digest = ModelRegistry().get_model_info("t5")["digest"]
    ModelRegistry().delete_model("t5")
    for folder, _, names in os.walk(home):
        if "contents" not in folder:
            os.chmod(folder, 0o777)
            for name in names:
                os.chmod(Path(folder) / name, 0o666)
    for path in (home / "models" / "contents" / digest, home / "models" / "contents"):
        os.chown(path, 54321, -1)

    def work():
        os.setgid(54322)
        os.setuid(54322)
        with open(home / "printed", "w") as stream, contextlib.redirect_stdout(stream):
            assert main(["models", "gc", "--yes"]) == 0

    assert run_alone(work) == 0
    assert (home / "printed").read_text() == (
        f"Nothing to remove.\ncontents/{digest}: only user 54321 or root can remove it\n"
    )
    shutil.rmtree(home)


def test_it_asks_on_a_terminal(run, three, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: print(question) or "n")
    code, shown, _ = run("delete", "t5")
    assert (code, shown) == (1, f"Delete t5:1 ({three[2]}), 4.0 KiB? [y/N] \n")
    assert ModelRegistry().get_model_info("t5")["version"] == 1
    monkeypatch.setattr("builtins.input", lambda question: " Y ")
    assert run("delete", "t5")[0] == 0


def test_export(run, three, tmp_path):
    target = tmp_path / "copy"
    code, shown, _ = run("export", "kobart@production", "-o", target)
    assert code == 0
    assert shown == f"kobart:1 ({three[0]}, 4.0 KiB, verified) is in {target}\n"
    assert (target / "model.safetensors").read_bytes() == (
        tmp_path / "model_0" / "model.safetensors"
    ).read_bytes()
    code, _, errors = run("export", "kobart", "-o", target)
    assert code == 2
    assert errors == f"hftune models: {target} exists already: name a new or an empty folder\n"
    code, shown, _ = run("export", "t5", "-o", tmp_path / "json", "--json")
    assert json.loads(shown)["folder"] == str(tmp_path / "json")


@pytest.mark.parametrize("form", ["--json", "--limit=5"])
def test_a_reader_that_is_gone_is_no_error(three, form):
    program = "import sys; from hftune.cli.main import main; sys.exit(main())"
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-c", program, "models", "list", form],
        stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert result.stderr == ""


# Help


def test_help(run):
    code, shown, _ = run("--help")
    assert code == 0 and width(shown) <= 80 and "NAME@production" in shown
    assert run()[0] == 2
    for command in re.findall(r"^    (\w+) ", shown, flags=re.M):
        code, text, _ = run(command, "--help")
        assert code == 0 and f"\n  hftune models {command}" in text and width(text) <= 80


def test_every_option_has_both_spellings(run):
    parser = models._parser()
    [commands] = [action for action in parser._actions if action.choices]
    for one in commands.choices.values():
        for action in one._actions:
            names = [name for name in action.option_strings if name.startswith("--")]
            assert {name.replace("_", "-") for name in names} <= set(names)
            assert all(re.sub("(?<=\\w)-", "_", name) in names for name in names)


# Tables


def test_columns_that_do_not_fit_are_left_out():
    columns = [
        tables.Column("a", ["x" * 10]),
        tables.Column("b", ["y" * 10], rank=2),
        tables.Column("c", ["z" * 10], rank=1),
        tables.Column("empty", [""], rank=3),
    ]
    assert [tables.fitted(columns, width)[1] for width in (34, 33, 22, 21, 5)] == [
        [], ["b"], ["b"], ["b", "c"], ["b", "c"],
    ]  # fmt: skip


def test_ages_and_numbers(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 2e9)
    ages = [0, 59, 60, 3599, 3600, 86399, 86400, 59 * 86400, 60 * 86400]
    assert [tables.age(2e9 - seconds) for seconds in ages] == [
        "0 s", "59 s", "1 min", "59 min", "1 h", "23 h", "1 d", "59 d", "2033-03-19",
    ]  # fmt: skip
    assert tables.age("2033-05-18T03:33:18+00:00") == "2 s" and tables.age(2e9 + 5) == "0 s"
    assert [tables.number(value) for value in (0.41237, 12345678, float("nan"), None)] == [
        "0.4124", "1.235e+07", "NaN", "",
    ]  # fmt: skip
