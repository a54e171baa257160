"""The tracker: the manual's calls, ids, states, and every way in which the store can fail."""

import contextlib
import json
import logging
import math
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import sqlalchemy as sa
from processes import finish, run_alone, start

from hftune.tracking import exits, index
from hftune.tracking.run_record import RunRecord
from hftune.tracking.run_view import RunView
from hftune.tracking.store import Store
from hftune.tracking.tables import metrics, records, runs
from hftune.tracking.tracker import ExperimentTracker
from hftune.utils.errors import ConfigurationError
from hftune.utils.files import read_json


@pytest.fixture
def tracker(store_url):
    return ExperimentTracker(Store(store_url))


def known(store):
    index.refresh(store)
    with store.read() as connection:
        found = sa.select(runs, records.c.content.label("record")).join(records)
        return {row.id: row for row in connection.execute(found.order_by(runs.c.id))}


def test_the_calls_of_the_manual(tracker):
    experiment_id = tracker.start_experiment(
        name="bart_base_experiment",
        description="KoBART 기본 실험",
        config={"model": {"architecture": "kobart"}, "training": {"learning_rate": 5e-5}},
        model_type="kobart",
        dataset_info={"train_size": 1000, "val_size": 200},
        wandb_run_id="wandb_run_123",
    )
    assert re.fullmatch(r"exp_\d{8}_001", experiment_id)
    tracker.update_experiment_status(experiment_id, "in_progress", "학습 진행 중")
    tracker.log_metrics({"learning_rate": 5e-5, "batch_size": 16, "custom_metric": 0.85}, step=100)
    tracker.end_experiment(
        experiment_id=experiment_id,
        final_metrics={"loss": 1.23},
        best_metrics={"rouge_combined_f1": 0.47},
        status="completed",
    )
    [run] = known(tracker.store).values()
    assert run.status == "completed" and run.notes == "학습 진행 중" and run.step == 100
    assert run.wandb_run_id == "wandb_run_123" and run.model_type == "kobart"
    assert run.record["data"] == {"train_size": 1000, "val_size": 200}
    assert run.record["best_metrics"] == {"rouge_combined_f1": 0.47}
    view = RunView.from_store(tracker.store, experiment_id)
    assert view.metric_names() == [
        "learning_rate", "batch_size", "custom_metric", "final_loss", "best_rouge_combined_f1"
    ]  # fmt: skip
    record = view.record
    assert record["versions"]["python"] and record["hardware"]["host"] and record["command"]
    assert len(record["git"]["commit"]) == 40 and record["attempts"][0]["process"]["pid"]


def test_ids_count_up_and_runs_do_not_mix(tracker):
    first = tracker.start_experiment("first")
    second = tracker.start_experiment("second")
    tracker.log_metrics({"loss": 1}, step=1, experiment_id=first)
    tracker.log_metrics({"loss": 2}, step=1)
    tracker.end_experiment(first)
    tracker.end_experiment(second, status="failed", notes="it did not learn")
    assert [first[-3:], second[-3:]] == ["001", "002"]
    assert RunView.from_store(tracker.store, first).curve("loss") == ([1], [1.0])
    assert RunView.from_store(tracker.store, second).curve("loss") == ([1], [2.0])
    assert [run.status for run in known(tracker.store).values()] == ["completed", "failed"]


def test_another_process_can_add_notes_and_end_it(tracker, store_url):
    experiment_id = tracker.start_experiment("a")
    other = ExperimentTracker(Store(store_url))

    def work():
        other.update_experiment_status(experiment_id, "running", "seen from outside")

    assert run_alone(work) == 0
    tracker.log_metrics({"loss": 1}, step=1)
    tracker.end_experiment(experiment_id)
    [run] = known(tracker.store).values()
    assert run.notes == "seen from outside" and run.status == "completed"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.log_metrics({"a": 1}), "no experiment was started by this tracker"),
        (lambda t: t.end_experiment("exp_20260101_999"), "exp_20260101_999"),
        (
            lambda t: t.update_experiment_status(t.start_experiment("x"), "compleet"),
            "found the status 'compleet', expected one of created, .* Did you mean 'completed'",
        ),
    ],
)
def test_wrong_calls(tracker, call, message):
    with pytest.raises(ConfigurationError, match=message):
        call(tracker)
    for record in exits.open_records():
        record.finish()


def test_what_is_no_metric(tracker, capsys):
    import numpy as np
    import torch

    experiment_id = tracker.start_experiment("odd")
    tracker.log_metrics(
        {
            "numpy": np.float32(0.5),
            "tensor": torch.tensor(2.0),
            "nan": math.nan,
            "minus": -math.inf,
            "whole": 7,
            "text": "0.5 or so",
            "vector": torch.zeros(3),
            "none": None,
            "이름\nwith a line": 1,
        },
        step=np.int64(3),
    )
    tracker.log_metrics({"text": "again"}, step=4)
    tracker.end_experiment(experiment_id)
    point = RunView.from_store(tracker.store, experiment_id).points[0]
    assert math.isnan(point.metrics.pop("nan"))
    assert point.step == 3 and point.metrics == {
        "numpy": 0.5, "tensor": 2.0, "minus": -math.inf, "whole": 7.0, "이름\nwith a line": 1.0
    }  # fmt: skip
    said = capsys.readouterr().err
    assert said.count("metric 'text': found str, expected a number; left out") == 1
    assert "metric 'vector': found Tensor" in said and "metric 'none': found NoneType" in said
    kinds = [event["kind"] for event in RunView.from_store(tracker.store, experiment_id).events]
    assert kinds == ["warning"] * 3


def test_settings_of_any_kind(tracker):
    loop = {}
    loop["self"] = loop
    experiment_id = tracker.start_experiment(
        "settings",
        config={
            "path": Path("a/b"),
            "callable": len,
            "set": {3},
            "nan": math.nan,
            "hub_token": "hf_secret_word",
            "url": "postgresql://me:hf_secret_word@host/db",
            7: "seven",
            "nul": "a\x00b",
            "half": "\ud800",
            "decomposed": "요",
        },
    )
    tracker.end_experiment(experiment_id)
    settings = RunView.from_store(tracker.store, experiment_id).record["configuration"]
    assert settings["path"] == "a/b" and settings["callable"] == "<built-in function len>"
    assert settings["set"] == [3] and settings["nan"] == "nan" and settings["7"] == "seven"
    assert settings["hub_token"] is None and settings["url"] == "postgresql://***@host/db"
    assert settings["decomposed"] == "요" and settings["nul"] == "a\ufffdb"
    for path in index.run_links().rglob("*"):
        assert path.is_dir() or b"hf_secret_word" not in path.read_bytes()
    again = tracker.start_experiment("loop", config=loop)
    tracker.end_experiment(again)
    assert "contains itself" in json.dumps(RunView.from_store(tracker.store, again).record)


def test_warnings_are_kept_and_shown(tracker, tmp_path):
    with tracker.start(tmp_path, task="t", configuration={}):
        for _ in range(3):
            logging.getLogger("transformers.trainer").warning("the %s is odd", "loss")
        logging.getLogger("some.library").error("no such thing")
        logging.getLogger("some.library").info("nothing of note")
        with pytest.warns(UserWarning, match="old name"):
            warnings.warn("old name", UserWarning, stacklevel=1)
    logging.getLogger("some.library").error("after the end")
    events = RunView.from_folder(tmp_path).events
    assert [(event["kind"], event["message"], event["source"]) for event in events] == [
        ("warning", "the loss is odd", "transformers.trainer"),
        ("warning", "no such thing", "some.library"),
    ]
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "import warnings; from hftune.tracking.tracker import ExperimentTracker as T\n"
            f"with T().start({str(tmp_path / 'out')!r}):\n    warnings.warn('old name')",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "UserWarning: old name" in shown.stderr
    [event] = RunView.from_folder(tmp_path / "out").events
    assert event["message"] == "UserWarning: old name" and event["source"] == "<string>"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "two\nlines", "x" * 300, "요약 실험", "", "\x00"]
)
def test_names_are_texts_and_never_paths(tracker, name):
    experiment_id = tracker.start_experiment(name, description=name, tags=[name])
    tracker.end_experiment(experiment_id)
    [run] = known(tracker.store).values()
    assert run.name == (name.replace("\x00", "\ufffd") or "run")
    assert Path(run.folder) == (index.run_links() / experiment_id).resolve()


# States


def script(body):
    """Runs Python in a process of its own, with the same home."""
    code = (
        "from hftune.tracking.tracker import ExperimentTracker\n"
        "tracker = ExperimentTracker()\n"
        "tracker.start_experiment('script')\n"
        "tracker.log_metrics({'loss': 1.0}, step=5)\n" + body
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("body", "code", "status", "error"),
    [
        ("tracker.end_experiment()", 0, "completed", None),
        ("raise ValueError('no such field')", 1, "failed", "ValueError: no such field"),
        ("", 0, "failed", "the process ended before the run did"),
        ("import sys; sys.exit(3)", 3, "failed", "the process ended before the run did"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143, "killed", "SIGTERM"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGHUP)", 129, "killed", "SIGHUP"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -2, "killed", "SIGINT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "crashed", None),
        ("import os; os._exit(0)", 0, "crashed", None),
    ],
)
def test_how_a_process_can_end(body, code, status, error):
    ended = script(body)
    assert ended.returncode == code, ended.stderr
    store = Store()
    [run] = known(store).values()
    assert run.status == status and run.step == 5 and run.ended is not None
    assert (error or "") in (run.record["attempts"][0]["error"] or "")
    if "ValueError" in body:
        assert "Traceback" in ended.stderr  # the error is still shown


def test_children_do_not_end_their_parent_s_run(tracker):
    experiment_id = tracker.start_experiment("parent")

    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    assert run_alone(work) == -signal.SIGTERM
    tracker.log_metrics({"loss": 1.0}, step=1)
    assert known(tracker.store)[experiment_id].status == "running"
    tracker.end_experiment()
    assert known(tracker.store)[experiment_id].status == "completed"


def test_a_handler_that_is_there_stays(tmp_path):
    code = (
        "import signal, os\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('mine'))\n"
        "from hftune.tracking.tracker import ExperimentTracker\n"
        "t = ExperimentTracker(); t.start_experiment('x')\n"
        "os.kill(os.getpid(), signal.SIGTERM); t.end_experiment()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout == "mine\n"


def test_the_next_attempt_is_the_same_run(tracker, tmp_path):
    with tracker.start(tmp_path / "out", task="aurora", configuration={}) as record:
        record.log_metrics({"loss": 2.0}, step=10)
    with tracker.start(tmp_path / "out", task="aurora", configuration={}) as again:
        again.resumed(10)
        again.log_metrics({"loss": 1.0}, step=20)
    assert again.experiment_id == record.experiment_id
    [run] = known(tracker.store).values()
    assert run.attempts == 2 and run.name == "out" and run.status == "completed"
    assert RunView.from_store(tracker.store, run.id).curve("loss") == ([10, 20], [2.0, 1.0])


def test_a_copy_of_a_folder_is_another_run_and_a_moved_one_is_not(tracker, tmp_path):
    with tracker.start(tmp_path / "a", task="t", configuration={}) as record:
        record.log_metrics({"loss": 2.0}, step=10)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with tracker.start(tmp_path / "b", task="t", configuration={}) as copy:
        copy.resumed(10)
    assert copy.experiment_id != record.experiment_id
    runs_now = known(tracker.store)
    assert runs_now[copy.experiment_id].parent_run == record.experiment_id
    shutil.move(tmp_path / "a", tmp_path / "c")
    with tracker.start(tmp_path / "c", task="t", configuration={}) as moved:
        pass
    assert moved.experiment_id == record.experiment_id
    assert known(tracker.store)[record.experiment_id].folder == str(tmp_path / "c")


def test_two_runs_cannot_have_one_folder(tracker, tmp_path):
    with tracker.start(tmp_path, task="t", configuration={}) as record:
        before = (tmp_path / "run.json").read_bytes()

        def work():
            with pytest.raises(ConfigurationError, match=f"in use by process {os.getppid()} on"):
                tracker.start(tmp_path, task="t", configuration={})

        assert run_alone(work) == 0
        assert (tmp_path / "run.json").read_bytes() == before
        assert record.attempt["finished"] is None


# Stores and disks that fail


def test_a_store_out_of_reach_neither_stops_nor_loses_a_run(capsys, monkeypatch):
    away = Store("postgresql://me@127.0.0.1:9/none")
    tracker = ExperimentTracker(away)
    experiment_id = tracker.start_experiment("offline")
    assert re.fullmatch(r"exp_\d{8}_x[0-9a-f]{8}", experiment_id)
    for step in range(100):
        tracker.log_metrics({"loss": step}, step=step)
    tracker.end_experiment()
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("Training goes on") == 1 and "the next 'hftune runs' command" in said
    here = Store()
    assert known(here)[experiment_id].status == "completed"
    assert len(RunView.from_store(here, experiment_id).points) == 100


def test_a_locked_store_holds_nothing_up(tmp_path):
    tracker = ExperimentTracker(Store(f"sqlite:///{tmp_path}/tracking.db", patience=100))
    experiment_id = tracker.start_experiment("busy")
    with contextlib.closing(sqlite3.connect(tmp_path / "tracking.db")) as another:
        another.execute("BEGIN IMMEDIATE")
        begin = time.monotonic()
        for step in range(1000):
            tracker.log_metrics({"loss": step}, step=step)
        assert time.monotonic() - begin < 100  # not one of them waited for the lock
    tracker.end_experiment()
    assert len(RunView.from_store(tracker.store, experiment_id).points) == 1000


def test_a_locked_store_catches_up_and_says_so(tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/tracking.db"
    tracker = ExperimentTracker(Store(url, patience=0.2))
    experiment_id = tracker.start_experiment("busy")
    with contextlib.closing(sqlite3.connect(tmp_path / "tracking.db")) as another:
        another.execute("BEGIN IMMEDIATE")
        begin = time.monotonic()
        for step in range(1000):
            tracker.log_metrics({"loss": step}, step=step)
        while "locked" not in capsys.readouterr().err:
            assert time.monotonic() - begin < 200
            time.sleep(0.05)
    said = ""
    while "the experiment store has caught up" not in said:
        assert time.monotonic() - begin < 300
        time.sleep(0.1)
        said += capsys.readouterr().err
    assert len(RunView.from_store(tracker.store, experiment_id).points) == 1000
    tracker.end_experiment()


def test_a_home_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HFTUNE_HOME", str(tmp_path / "file" / "home"))
    tracker = ExperimentTracker()
    with tracker.start(tmp_path / "out", task="t", configuration={}) as record:
        record.log_metrics({"loss": 1.0}, step=1)
    said = " ".join(capsys.readouterr().err.split())
    assert f"recorded in {tmp_path}/out alone; 'hftune runs reindex {tmp_path}/out'" in said
    assert read_json(tmp_path / "out" / "run.json")["status"] == "completed"
    assert RunView.from_folder(tmp_path / "out").curve("loss") == ([1], [1.0])


def test_a_full_disk_does_not_end_a_run(tmp_path):
    def work():
        tracker = ExperimentTracker()
        record = tracker.start(tmp_path / "out", task="t", configuration={"x": "y" * 2000})
        record.log_metrics({"loss": 0}, step=0)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
        for step in range(1, 50):
            record.log_metrics({"loss": step}, step=step)
        record.update(results={"best": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        record.log_metrics({"loss": 50}, step=50)
        record.finish()

    assert run_alone(work) == 0
    view = RunView.from_folder(tmp_path / "out")
    assert view.status == "completed" and view.record["results"] == {"best": 1}
    assert view.curve("loss")[0] == list(range(51))
    known(store := Store())
    assert len(RunView.from_store(store, view.record["experiment_id"]).points) == 51


def test_16_processes_log_1000_times_each(tracker, store_url):
    def work():
        mine = ExperimentTracker(Store(store_url))
        mine.start_experiment("one of many")
        for step in range(1000):
            mine.log_metrics({"loss": 1 / (step + 1), "rate": step}, step=step)
        mine.end_experiment()

    children = [start(work) for _ in range(16)]
    assert [finish(child) for child in children] == [0] * 16
    found = known(tracker.store)
    assert len(found) == 16 and {run.status for run in found.values()} == {"completed"}
    with tracker.store.read() as connection:
        count = sa.select(metrics.c.run_id, sa.func.count()).group_by(metrics.c.run_id)
        assert [number for _, number in connection.execute(count)] == [1000] * 16


def test_a_run_without_a_store_has_its_own_files(tmp_path):
    with RunRecord.start(tmp_path, task="t", configuration={}) as record:
        record.log_metrics({"loss": 1.0}, step=1)
    view = RunView.from_folder(tmp_path)
    assert view.status == "completed" and view.record.get("experiment_id") is None
    assert not Path(os.environ["HFTUNE_HOME"], "tracking.db").exists()


def test_an_id_of_a_store_that_is_no_more_is_not_given_again(tmp_path):
    first = ExperimentTracker()
    old = first.start_experiment("old")
    first.log_metrics({"loss": 1.0}, step=1)
    first.end_experiment()
    shutil.move(os.environ["HFTUNE_HOME"] + "/tracking.db", tmp_path / "moved.db")
    second = ExperimentTracker()
    new = second.start_experiment("new")
    second.end_experiment()
    assert new != old
    assert RunView.from_folder(index.run_links() / old).record["name"] == "old"


def test_names_longer_than_an_index_takes(tracker):
    name = "loss" * 2000
    experiment_id = tracker.start_experiment(name, config={name: 1, name + "2": 2})
    tracker.log_metrics({name: 0.5}, step=1)
    tracker.end_experiment()
    assert known(tracker.store)[experiment_id].status == "completed"
    view = RunView.from_store(tracker.store, experiment_id)
    assert view.curve(name) == ([1], [0.5]) and view.record["name"] == name


def test_the_other_processes_of_a_group_write_nothing_and_go_on(tracker, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for folder in (tmp_path / "out", None):
        experiment_id = tracker.start_experiment("group", output_dir=folder)
        tracker.log_metrics({"loss": 1.0}, step=1)
        tracker.update_experiment_status(experiment_id, "in_progress", "a note")
        tracker.log_metrics({"loss": 0.5}, step=2, experiment_id=experiment_id)
        tracker.end_experiment(experiment_id, final_metrics={"loss": 0.5})
    assert not (tmp_path / "out").exists() and not index.run_links().exists()
    assert not Path("run.json").exists() and not Path("metrics.jsonl").exists()
    assert known(tracker.store) == {}
