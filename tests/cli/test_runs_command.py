"""``hftune runs``, as a user types it."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import sqlite3
import time
import types
from pathlib import Path

import pytest
from processes import run_alone
from rich.cells import cell_len

from hftune.cli import tables
from hftune.cli.main import main
from hftune.tracking import index
from hftune.tracking.store import Store
from hftune.tracking.tables import VERSION_TABLE, models
from hftune.tracking.tracker import ExperimentTracker
from hftune.utils.files import read_json
from hftune.utils.home import hftune_home

KOREAN = "한국어 대화 요약 KoBART 기본 실험을 처음부터 다시 학습한 두 번째 시도"


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("HFTUNE_TRACKING_URL", raising=False)


def train(folder, name="run", rate=3e-5, losses=(0.9, 0.5), *, end=True, **more):
    """Records a run; returns its tracker and id."""
    tracker = ExperimentTracker()
    settings = {
        "training": {
            "learning_rate": {"value": rate, "source": "command line"},
            "batch_size": {"value": 8, "source": "default"},
        }
    }
    experiment_id = tracker.start_experiment(
        name, config=settings, output_dir=folder, task="aurora", max_steps=100,
        metric_directions={"eval_loss": False}, **more,
    )  # fmt: skip
    for number, loss in enumerate(losses, 1):
        tracker.log_metrics({"loss": loss, "process_memory_bytes": 2**30}, step=10 * number)
        tracker.log_metrics({"eval_loss": loss + 0.1}, step=10 * number)
    if end:
        tracker.end_experiment(experiment_id)
    return tracker, experiment_id


@pytest.fixture
def three(tmp_path):
    """A good run, one with a long Korean name that is worse, and one that failed."""
    train(tmp_path / "a", "aurora-korea", tags=["baseline"])
    train(tmp_path / "b", KOREAN, 1e-4, [0.9, 0.7], parent_run="exp_20260101_001")
    tracker = ExperimentTracker()
    try:
        with tracker.start(tmp_path / "c", name="diverged", task="aurora", configuration={}) as run:
            run.log_metrics({"loss": math.nan, "eval_loss": math.inf}, step=10)
            run.log_event("checkpoint", step=10, path="checkpoint-10")
            run.trouble("odd", "the gradient norm is inf at step 10")
            raise RuntimeError("CUDA out of memory")
    except RuntimeError:
        pass
    day = run.experiment_id[4:12]
    return [f"exp_{day}_{number:03d}" for number in (1, 2, 3)]


def said(capsys, *arguments, code=0):
    """What a command prints, its result checked."""
    assert main(["runs", *map(str, arguments)]) == code
    return capsys.readouterr().out


def fits(text, width=80):
    return all(cell_len(line.rstrip()) <= width for line in text.splitlines())


def test_list(three, capsys):
    head, _, *rows = said(capsys, "list").splitlines()
    assert head.split() == ["run", "name", "status", "step", "eval_loss", "loss", "begun", "took"]
    rows = rows[:3]
    assert [row.split()[0] for row in rows] == three[::-1]
    assert re.fullmatch(rf"{three[2]}  diverged +failed +10 +inf +NaN +\d+ s  0:00\s*", rows[0])
    assert re.match(rf"{three[1]}  한국어 .*…  completed +20 +0.8 +0.7 ", rows[1])
    # A Korean letter takes two cells: the columns stand under each other all the same.
    ends = {
        cell_len(row[: row.index("failed" if "failed" in row else "completed")]) for row in rows
    }
    assert len(ends) == 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_everything_fits_the_terminal(three, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for command in (
        ["list"],
        ["show", three[0]],
        ["show", three[1], "--all"],
        ["compare", *three[:2]],
        ["watch", three[0]],
    ):
        text = said(capsys, *command)
        assert fits(text, width), text


def test_list_with_a_filter(three, capsys):
    text = said(capsys, "list", "--where", "status=completed and config.learning_rate<1e-3",
                "--sort", "metrics.eval_loss")  # fmt: skip
    head, _, *rows = text.splitlines()
    assert head.split()[3:6] == ["step", "learning_rate", "eval_loss"]
    assert [row.split()[0] for row in rows if row.startswith("exp")] == three[:2]
    text = said(capsys, "list", "--limit", "1", "--columns", "best.eval_loss,tags")
    assert text.splitlines()[0].split()[3:6] == ["step", "best.eval_loss", "tags"]
    assert "There are more than 1 runs" in text
    assert said(capsys, "list", "--where", "tags=nothing") == "No run is like that.\n"


def test_list_as_json(three, capsys):
    found = json.loads(said(capsys, "list", "--json"))
    assert [run["experiment_id"] for run in found] == three[::-1]
    assert found[0]["metrics"] == {"eval_loss": "Infinity", "loss": "NaN"}
    assert "values" not in found[0] and found[2]["tags"] == ["baseline"]
    columns = ["--columns", "best.loss,config.learning_rate"]
    found = json.loads(said(capsys, "list", "--json", *columns, "--limit", "all"))
    assert found[2]["values"] == {"best.loss": 0.5, "config.learning_rate": 3e-5}


def test_a_running_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    tracker, experiment_id = train(tmp_path / "a", end=False)
    listed, end = said(capsys, "list"), time.monotonic() + 60
    while "seen" not in listed and time.monotonic() < end:  # the run's thread is on its way
        listed = said(capsys, "list")
    head, _, row = listed.splitlines()
    assert head.split()[-4:] == ["begun", "seen", "took", "task"]
    assert re.search(r"running +20/100 +0.6 +0.5 +\d+ s +\d+ s +0:\d\d  aurora", row)
    text = said(capsys, "watch", "--once")  # the newest that is running
    assert f"{experiment_id}  run  running" in text and "20 of 100, 20 %" in text
    assert re.search(r"last sign +\d+ s ago, on ", text) and "process_memory_bytes  1.0 GiB" in text
    assert re.search(r"^loss +0.5  █▁  0.5 to 0.9", text, re.MULTILINE)
    state = json.loads(said(capsys, "watch", "--once", "--json"))
    assert state["status"] == "running" and state["step"] == 20 and state["max_steps"] == 100
    assert state["metrics"]["loss"] == 0.5
    assert main(["runs", "delete", experiment_id, "--yes"]) == 2
    assert f"{experiment_id} is running on" in capsys.readouterr().err
    tracker.end_experiment(experiment_id)
    assert main(["runs", "watch"]) == 2
    assert (
        f"no run is going on; the newest is {experiment_id} (completed)" in capsys.readouterr().err
    )


def between_looks(monkeypatch, *happens):
    """Has the run do one thing in each pause of a command that follows it."""
    happenings = iter(happens)
    clock = types.SimpleNamespace(**{**vars(time), "sleep": lambda _: next(happenings)()})
    monkeypatch.setattr("hftune.cli.runs_watch.time", clock)


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1)])
def test_watching_until_the_end(tmp_path, capsys, monkeypatch, status, code):
    tracker, experiment_id = train(tmp_path / "a", end=False)
    between_looks(
        monkeypatch,
        lambda: tracker.log_metrics({"loss": 0.25}, step=30),
        lambda: tracker.end_experiment(experiment_id, status=status),
    )
    lines = said(capsys, "watch", experiment_id, "--json", code=code).splitlines()
    states = [json.loads(line) for line in lines]
    assert [state["status"] for state in states] == ["running", "running", status]
    assert [state["step"] for state in states] == [20, 30, 30]
    # It has ended: one frame, the same code.
    assert status in said(capsys, "watch", experiment_id, code=code)


def test_watch_without_a_terminal_prints_lines(tmp_path, capsys, monkeypatch):
    tracker, experiment_id = train(tmp_path / "a", end=False)
    between_looks(monkeypatch, lambda: tracker.end_experiment(experiment_id))
    first, *frame = said(capsys, "watch").splitlines()
    state = f"{experiment_id}  running  step 20 of 100  loss 0.5  eval_loss 0.6  "
    assert first.startswith(state) and first.endswith(" left")
    assert frame[0] == f"{experiment_id}  run  completed"


def test_tail(three, tmp_path, capsys, monkeypatch):
    one, two = said(capsys, "tail", three[0], "-n", "2").splitlines()
    assert re.fullmatch(
        r"\d\d-\d\d \d\d:\d\d:\d\d +20  loss 0.5  process_memory_bytes 1.0 GiB", one
    )
    assert re.fullmatch(r"\d\d-\d\d \d\d:\d\d:\d\d +20  eval_loss 0.6", two)
    [line] = said(capsys, "tail", three[2], "--json").splitlines()
    assert json.loads(line)["metrics"] == {"loss": "NaN", "eval_loss": "Infinity"}
    assert said(capsys, "tail", three[0], "-n", "0") == ""
    tracker, experiment_id = train(tmp_path / "d", end=False)
    between_looks(
        monkeypatch,
        lambda: tracker.log_metrics({"loss": 0.25}, step=30),
        lambda: tracker.end_experiment(experiment_id),
    )
    lines = said(capsys, "tail", experiment_id, "-n", "1", "-f").splitlines()
    assert [line.split()[2:] for line in lines] == [
        ["20", "eval_loss", "0.6"],
        ["30", "loss", "0.25"],
    ]


def test_show(three, capsys):
    text = said(capsys, "show", "diverged")
    assert text.startswith(f"{three[2]}  diverged  failed\n")
    assert re.search(r"^loss +NaN +10", text, re.MULTILINE)
    assert re.search(r"^  10  .* UTC|^  10  \d{4}-\d\d-\d\d \d\d:\d\d  checkpoint-10", text, re.M)
    assert "the gradient norm is inf at step 10" in text
    assert text.endswith("  RuntimeError: CUDA out of memory\n")
    text = said(capsys, "show", three[0])
    assert "Settings that are not the default (1 of 2, --all)" in text
    assert re.search(r"^training.learning_rate +3e-05 +command line", text, re.MULTILINE)
    assert "batch_size" not in text and re.search(r"^tags +baseline", text, re.MULTILINE)
    assert "training.batch_size" in said(capsys, "show", three[0], "--all")
    known = json.loads(said(capsys, "show", three[0], "--json"))
    assert known["experiment_id"] == three[0] and known["config"]["training"]["batch_size"] == 8
    assert known["metrics"] == {"loss": 0.5, "process_memory_bytes": 2.0**30, "eval_loss": 0.6}


def test_show_tells_of_every_attempt_and_of_models(tmp_path, capsys):
    folder = tmp_path / "a"
    for number in (1, 2):
        tracker, experiment_id = train(folder, rate=number, end=False)
        record = tracker.record(experiment_id)
        if number == 2:
            record.resumed(10, "checkpoint-10")
        with record.timed("train"):
            pass
        record.finish(
            *[("preempted", "stopped by SIGTERM after step 20"), ("completed",)][number - 1]
        )
    with Store().write() as connection:
        row = dict(id="model_20260101_001", name="net", version=3, architecture="x", digest="d",
                   bytes=1, created=0.0, experiment_id=experiment_id, record={})  # fmt: skip
        connection.execute(models.insert().values(**row))
    text = said(capsys, "show", "latest")
    assert re.search(r"^models +model_20260101_001 \(net version 3\)", text, re.MULTILINE)
    assert re.search(r"^1  preempted .*train 0:00", text, re.MULTILINE)
    assert "stopped by SIGTERM after step" in text
    assert re.search(r"^2  completed .* step 10  training.learning_rate: 1 → 2", text, re.MULTILINE)
    assert main(["runs", "delete", "latest", "--yes"]) == 2
    assert "model_20260101_001 (net version 3)" in capsys.readouterr().err


def test_show_of_a_run_whose_process_is_gone(tmp_path, capsys):
    def crash():
        train(tmp_path / "a", end=False)
        os._exit(9)

    assert run_alone(crash) == 9
    text = said(capsys, "show", "latest")
    assert "  crashed\n" in text and "Its process is gone and never said how it ended" in text
    assert "its process is gone" in said(capsys, "watch", "latest", code=1)


def test_compare(three, capsys):
    text = said(capsys, "compare", *three[:2])
    assert re.search(r"training.learning_rate +3e-05 +0.0001", text)
    assert re.search(r"eval_loss +0.6 +0.8", text) and "batch_size" not in text
    assert "Versions" not in text
    text = said(capsys, "compare", *three[:2], "--all")
    assert re.search(r"training.batch_size +8 +8", text) and "Versions" in text
    compared = json.loads(said(capsys, "compare", *three, "--json"))
    assert compared["runs"] == three
    assert compared["config"] == {
        "training.learning_rate": [3e-5, 1e-4, None], "training.batch_size": [8, 8, None]
    }  # fmt: skip
    assert compared["metrics"]["loss"] == [0.5, 0.7, "NaN"]
    assert main(["runs", "compare", three[0], three[0]]) == 2
    assert f"found one run, {three[0]}; expected at least two" in capsys.readouterr().err


def test_export(three, tmp_path, capsys):
    path = tmp_path / "metrics.csv"
    assert "14 rows, 3 runs" in said(capsys, "export", "-o", path, "--sort", "created")
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert list(rows[0]) == ["run", "attempt", "stage", "step", "time", "metric", "value"]
    values = [(row["run"], row["step"], row["metric"], row["value"]) for row in rows]
    assert values[2] == (three[0], "10", "eval_loss", "1.0")
    assert values[-2:] == [
        (three[2], "10", "loss", "NaN"),
        (three[2], "10", "eval_loss", "Infinity"),
    ]
    assert math.isnan(float(values[-2][3])) and float(values[-1][3]) == math.inf
    path = tmp_path / "metrics.jsonl"
    said(capsys, "export", three[1], "-o", path, "--wide")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line.get("loss") for line in lines] == [0.9, None, 0.7, None]
    path = tmp_path / "metrics.json"
    result = json.loads(said(capsys, "export", "--where", "status=failed", "-o", path, "--json"))
    assert result == {"file": str(path), "runs": [three[2]], "rows": 2}
    assert [row["value"] for row in read_json(path)] == ["NaN", "Infinity"]


def test_export_of_what_was_gone_back_behind(tmp_path, capsys):
    for number in (1, 2):
        tracker, experiment_id = train(tmp_path / "a", losses=[number], end=False)
        if number == 2:
            tracker.record(experiment_id).resumed(0)
        tracker.log_metrics({"loss": number}, step=20)
        tracker.end_experiment(experiment_id)
    path = tmp_path / "metrics.csv"
    said(capsys, "export", experiment_id, "-o", path, "--wide", "--superseded")
    rows = list(csv.DictReader(path.open()))
    assert [(row["loss"], row["superseded"]) for row in rows if row["step"] == "20"] == [
        ("1.0", "True"), ("2.0", "False")
    ]  # fmt: skip


def test_report(three, tmp_path, capsys):
    path = tmp_path / "report.html"
    assert said(capsys, "report", *three, "-o", path).startswith("✓ ")
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "aurora-korea" in page and KOREAN in page
    result = json.loads(said(capsys, "report", three[0], "-o", path, "--json"))
    assert result == {"file": str(path), "runs": three[:1]}


def test_reindex_after_the_database_was_damaged(three, capsys):
    path = Store().path
    for name in ("-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    path.write_bytes(b"no database" * 1000)
    for command in (["list"], ["reindex"], ["show", "latest"]):
        assert main(["runs", *command]) == 2
        assert (
            "the file is damaged; move it away, then: hftune runs reindex"
            in capsys.readouterr().err
        )
    path.rename(path.with_suffix(".damaged"))
    assert said(capsys, "reindex") == "✓ 3 runs indexed from their files\n"
    assert len(json.loads(said(capsys, "list", "--json"))) == 3
    (index.run_links() / three[0]).unlink()
    text = said(capsys, "reindex", "nowhere", code=1)
    assert text.splitlines()[0] == "✗ nowhere: no run.json there or below it"
    assert json.loads(said(capsys, "reindex", "--json")) == {"runs": three[1:], "problems": []}


def test_delete(three, tmp_path, capsys, monkeypatch):
    text = said(capsys, "delete", three[0], "--yes")
    assert text == (
        f"{three[0]} (aurora-korea, completed) is out of the store.\n"
        f"Its folder {tmp_path}/a was left as it is.\n"
        f"To bring it back: hftune runs reindex {tmp_path}/a\n"
    )
    assert main(["runs", "delete", three[1]]) == 2  # nobody to ask
    assert "There is no terminal to ask on: give --yes." in capsys.readouterr().err
    monkeypatch.setattr(tables.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    said(capsys, "delete", three[1], code=1)
    monkeypatch.setattr("builtins.input", lambda question: "y")
    said(capsys, "delete", three[1])
    assert [run["experiment_id"] for run in json.loads(said(capsys, "list", "--json"))] == three[2:]
    said(capsys, "reindex", tmp_path)
    assert len(json.loads(said(capsys, "list", "--json"))) == 3
    tracker = ExperimentTracker()
    at_home = tracker.start_experiment("at home")
    tracker.end_experiment(at_home)
    result = json.loads(said(capsys, "delete", at_home, "--yes", "--json"))
    assert result == {"experiment_id": at_home, "folder": str(hftune_home() / "trash" / at_home)}
    assert (hftune_home() / "trash" / at_home / "metrics.jsonl").exists() is False
    assert (hftune_home() / "trash" / at_home / "run.json").is_file()


# What goes wrong


def test_a_run_that_nobody_knows(three, capsys):
    for command in ("show", "watch", "tail", "compare", "delete", "report", "export -o x.csv"):
        assert main(["runs", *command.split(), three[0].replace("001", "0O1")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"hftune runs: no run '{three[0][:13]}0O1' in the store sqlite:///")
        assert f"Did you mean '{three[0]}'" in error and "'hftune runs list'" in error
    assert not Path("x.csv").exists()


def test_a_filter_that_cannot_be_read(three, capsys):
    assert main(["runs", "list", "--where", "status=completed and metrics.evalloss<0.5"]) == 2
    assert capsys.readouterr().err == (
        "hftune runs: the filter: no run has logged a metric 'evalloss'. Did you mean "
        "'eval_loss'?\n"
        "  status=completed and metrics.evalloss<0.5\n"
        "                       ^^^^^^^^^^^^^^^^\n"
    )
    assert main(["runs", "list", "--sort", "metrics.los"]) == 2
    assert capsys.readouterr().err == (
        "hftune runs: no run has logged a metric 'los'. Did you mean 'loss'?\n"
    )
    assert main(["runs", "export", three[0], "--where", "name=x", "-o", "x.csv"]) == 2
    assert "expected one of the two" in capsys.readouterr().err
    assert main(["runs", "export", "-o", "x.txt"]) == 2
    assert "expected a name that ends in .csv, .jsonl, .json" in capsys.readouterr().err


def test_names_that_would_steer_the_terminal(tmp_path, capsys):
    name = "[bold]\x1b[31mred\n../../" + "x" * 300
    train(tmp_path / "a", name, tags=["[red]"], losses=[1.0])
    for command in (["list"], ["show", "latest"], ["watch", "latest"]):
        text = said(capsys, *command)
        assert "\x1b" not in text and "[bold]�[31m" in text and fits(text)
    assert json.loads(said(capsys, "show", "latest", "--json"))["name"] == name


def test_a_database_of_a_newer_hftune(three, capsys):
    with sqlite3.connect(Store().path) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9000'")
    assert main(["runs", "list"]) == 2
    error = capsys.readouterr().err
    assert "written by a newer hftune" in error and "upgrade hftune" in error


def test_a_home_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()  # root may write into any folder, not into a file
    monkeypatch.setenv("HFTUNE_HOME", str(tmp_path / "file" / "home"))
    for command in (["list"], ["show", "x"], ["reindex"]):
        assert main(["runs", *command]) == 2
        error = capsys.readouterr().err
        assert "the experiment store" in error and "Not a directory" in error


def test_a_run_that_cannot_be_caught_up_with_is_said_in_one_line(three, tmp_path, capsys):
    for number in (1, 2):
        folder = tmp_path / f"bad{number}"
        folder.mkdir()
        (folder / "run.json").write_text("{\n")
        (index.pending() / f"exp_20260101_00{number}").symlink_to(folder)
    assert main(["runs", "list"]) == 0
    out, error = capsys.readouterr()
    assert three[0] in out
    assert re.fullmatch(r"hftune runs: exp_20260101_001: .* \(and 1 more\)\n", error)


def test_nothing_was_recorded_yet(capsys):
    # Where the line breaks depends on how long the folder's name is.
    assert "No runs yet in sqlite:///" in " ".join(said(capsys, "list").split())
    assert json.loads(said(capsys, "list", "--json")) == []
    assert said(capsys, "reindex") == "✓ 0 runs indexed from their files\n"
    assert main(["runs", "watch"]) == 2
    assert capsys.readouterr().err == "hftune runs: no run is going on\n"


def test_without_a_command(capsys):
    assert main(["runs"]) == 2
    assert "reindex" in capsys.readouterr().err


def test_a_name_cannot_speak_to_the_terminal(capsys):
    tracker = ExperimentTracker()
    tracker.start_experiment("bad\x1b[31m name")
    tracker.end_experiment()
    assert main(["runs", "show", "bad name"]) == 2
    said = capsys.readouterr().err
    assert "Did you mean 'bad" in said and "\x1b" not in said
