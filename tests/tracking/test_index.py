"""The index has every line of a run's files once, whoever writes it and whatever is killed."""

import json
import math
import os
import random
import shutil
import time

import numpy as np
import pytest
import sqlalchemy as sa
from processes import finish, start

from hftune.tracking import index
from hftune.tracking.run_record import RunRecord
from hftune.tracking.run_view import RunView
from hftune.tracking.store import Store, StoreError
from hftune.tracking.tables import (
    directions,
    events,
    metrics,
    params,
    records,
    runs,
    summaries,
)

TABLE = {
    "training": {
        "learning_rate": {"value": 1e-4, "source": "command line"},
        "name": {"value": "요약", "source": "default"},
    },
    "model": {"depths": {"value": [2, 2], "source": "default"}},
}


@pytest.fixture
def store(store_url):
    return Store(store_url)


def new_run(folder, number=1, **more):
    return RunRecord.start(
        folder,
        task="test",
        configuration=TABLE,
        experiment_id=f"exp_20260101_{number:03d}",
        uid=f"{number:032x}",
        name=f"run {number}",
        **more,
    )


def rows(store, table, *where):
    with store.read() as connection:
        found = connection.execute(sa.select(table).where(*where).order_by(*table.primary_key))
        return found.mappings().all()


def test_a_run_and_what_it_logged(store, tmp_path):
    record = new_run(tmp_path, tags=["baseline"], metric_directions={"skill": True})
    record.log_metrics({"loss": 0.5, "skill": 0.1}, step=10)
    record.log_metrics({"loss": math.nan}, step=20)
    record.log_metrics({"loss": 0.25, "skill": math.inf}, step=30)
    record.log_event("checkpoint", step=30, path="checkpoint-30")
    assert index.catch_up(store, tmp_path) == "running"
    [run] = rows(store, runs)
    assert run["name"] == "run 1" and run["status"] == "running" and run["tags"] == ["baseline"]
    assert run["step"] == 30 and run["last_checkpoint"] == "checkpoint-30"
    assert rows(store, records)[0]["content"]["configuration"] == TABLE
    settings = {
        row["key"]: (json.loads(row["value"]), row["number"]) for row in rows(store, params)
    }
    assert settings == {
        "training.learning_rate": (1e-4, 1e-4),
        "training.name": ("요약", None),
        "model.depths": ([2, 2], None),
    }
    known = {row["key"]: row for row in rows(store, summaries)}
    loss, skill = known["loss"], known["skill"]
    assert (loss["last"], loss["last_step"], loss["count"]) == (0.25, 30, 3)
    assert (loss["low"], loss["low_step"], loss["high"], loss["high_step"]) == (0.25, 30, 0.5, 10)
    assert (skill["last"], skill["high"], skill["high_step"]) == (math.inf, 0.1, 10)
    assert [row["greater_is_better"] for row in rows(store, directions)] == [True]
    [event] = rows(store, events)
    assert event["kind"] == "checkpoint" and event["content"] == {"path": "checkpoint-30"}
    record.finish("failed", "it went wrong\nValueError: no")
    assert index.catch_up(store, tmp_path) == "failed"
    assert rows(store, runs)[0]["ended"] is not None
    assert len(rows(store, metrics)) == 3 and len(rows(store, events)) == 1


def test_summaries_are_those_of_the_whole_curve(store, tmp_path):
    record = new_run(tmp_path)
    values = np.random.default_rng(0).normal(size=500)
    for step, value in enumerate(values):
        record.log_metrics({"x": value}, step=step)
        if step % 37 == 0:
            index.catch_up(store, tmp_path)
    index.catch_up(store, tmp_path)
    [x] = rows(store, summaries)
    assert x["count"] == 500 and x["last"] == values[-1]
    assert (x["low"], x["low_step"]) == (values.min(), values.argmin())
    assert (x["high"], x["high_step"]) == (values.max(), values.argmax())
    record.finish()


def test_processes_that_catch_up_at_once_write_each_line_once(store, tmp_path):
    record = new_run(tmp_path)

    def work():
        for _ in range(15):
            index.catch_up(Store(store._url.render_as_string(hide_password=False)), tmp_path)

    children = [start(work) for _ in range(3)]
    for step in range(300):
        record.log_metrics({"loss": step}, step=step)
        record.log_event("note", step=step)
    assert [finish(child) for child in children] == [0] * 3
    index.catch_up(store, tmp_path)
    assert [row["step"] for row in rows(store, metrics)] == list(range(300))
    assert [row["step"] for row in rows(store, events)] == list(range(300))
    record.finish()


def test_a_resume_takes_what_it_went_back_behind_out_of_the_curve(store, tmp_path):
    record = new_run(tmp_path)
    for step in range(1, 16):
        record.log_metrics({"loss": 100 - step}, step=step)
    index.catch_up(store, tmp_path)
    assert rows(store, summaries)[0]["low"] == 85
    record.finish("killed")
    record = new_run(tmp_path)
    record.resumed(10, "checkpoint-10")
    for step in range(11, 21):
        record.log_metrics({"loss": 200 - step}, step=step)
    record.finish()
    index.catch_up(store, tmp_path)
    kept = rows(store, metrics)
    assert len(kept) == 25 and sum(row["superseded"] for row in kept) == 5
    [loss] = rows(store, summaries)
    assert (loss["count"], loss["low"], loss["low_step"], loss["last"]) == (20, 90, 10, 180)
    for view in (
        RunView.from_folder(tmp_path),
        RunView.from_store(store, record.experiment_id),
    ):
        steps, values = view.curve("loss")
        assert steps == list(range(1, 21))
        assert values == [100 - s for s in range(1, 11)] + [200 - s for s in range(11, 21)]
        assert view.curve("loss", attempt=1)[0] == list(range(1, 16))
        assert [point["step"] for point in view.log_history()] == steps


def test_stages_count_their_own_steps(store, tmp_path):
    record = new_run(tmp_path)
    for stage in ("10 %", "20 %", "30 %"):
        record.begin_stage(stage)
        for step in range(1, 6):
            record.log_metrics({"loss": step}, step=step)
    index.catch_up(store, tmp_path)
    record.finish("killed")
    record = new_run(tmp_path)
    record.begin_stage("20 %")
    record.resumed(2)
    record.log_metrics({"loss": 30}, step=3)
    record.finish()
    index.catch_up(store, tmp_path)
    current = [(r["stage"], r["step"]) for r in rows(store, metrics) if not r["superseded"]]
    assert current == [(0, s) for s in range(1, 6)] + [(1, 1), (1, 2), (1, 3)]
    view = RunView.from_store(store, record.experiment_id)
    assert view.curve("loss", stage=1) == ([1, 2, 3], [1.0, 2.0, 30.0])
    assert view.record["stages"] == ["10 %", "20 %", "30 %"]


def test_a_run_that_is_gone_has_crashed_and_one_that_writes_again_runs(store, tmp_path):
    def work():
        new_run(tmp_path / "run").log_metrics({"loss": 1.0}, step=7)
        os._exit(9)  # as kill -9: nothing is said

    assert finish(start(work)) == 9
    index.link(tmp_path / "run", "exp_20260101_001")
    assert index.refresh(store) == []
    [run] = rows(store, runs)
    assert run["status"] == "crashed" and run["step"] == 7 and run["ended"] >= run["created"]
    assert not any(index.pending().iterdir())
    record = new_run(tmp_path / "run")
    assert index.catch_up(store, tmp_path / "run") == "created"
    assert rows(store, runs)[0]["status"] == "created"
    assert record.values["attempts"][0]["status"] == "crashed"
    record.finish()


def test_a_run_elsewhere_is_judged_by_its_heartbeat(store, tmp_path):
    record = new_run(tmp_path)
    index.catch_up(store, tmp_path)
    far = json.loads(json.dumps(record.values))
    far["attempts"][0]["process"] = {"host": "far", "boot_id": "x", "pid": 1, "started": 0.0}
    (tmp_path / "heartbeat").unlink()
    for age, status in ((30, "running"), (90, "crashed")):
        with store.write() as connection:
            connection.execute(records.update().values(content=far))
            connection.execute(
                runs.update().values(
                    status="running",
                    folder="/nowhere",
                    heartbeat=time.time() - age,
                )
            )
        index.refresh(store)
        assert rows(store, runs)[0]["status"] == status
    record.finish()


def test_a_store_that_was_away_catches_up(store, tmp_path, monkeypatch):
    record = new_run(tmp_path / "run")
    index.link(tmp_path / "run", record.experiment_id)
    for step in range(5):
        record.log_metrics({"loss": step}, step=step)
    record.finish()
    monkeypatch.setattr(Store, "write", broken := Broken(Store.write))
    assert index.refresh(store) == ["exp_20260101_001: the store is away"]
    broken.mended = True
    assert index.refresh(store) == []
    assert rows(store, runs)[0]["status"] == "completed" and len(rows(store, metrics)) == 5
    assert index.refresh(store) == [] and not any(index.pending().iterdir())


class Broken:
    """A store's ``write`` that fails until it is mended."""

    def __init__(self, write):
        self.write, self.mended = write, False

    def __get__(self, store, kind):
        if not self.mended:
            raise StoreError("the store is away")
        return self.write.__get__(store)


def test_a_file_that_lost_its_end_with_the_machine(store, tmp_path):
    record = new_run(tmp_path)
    for step in range(10):
        record.log_metrics({"loss": step}, step=step)
    index.catch_up(store, tmp_path)
    record.finish()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-150])
    kept = [point.step for point in RunView.from_folder(tmp_path).points]
    record = new_run(tmp_path)
    record.resumed(5)
    record.log_metrics({"loss": 60}, step=6)
    record.finish()
    index.catch_up(store, tmp_path)
    assert [row["step"] for row in rows(store, metrics)] == [*kept, 6]
    assert RunView.from_store(store, record.experiment_id).curve("loss")[1] == [
        0, 1, 2, 3, 4, 5, 60
    ]  # fmt: skip


def test_links(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in ("a", "b"):  # a run whose folder was moved
        index.link(tmp_path / folder, "exp_1")
    assert (index.run_links() / "exp_1").resolve() == tmp_path / "b"
    assert (index.pending() / "exp_1").resolve() == tmp_path / "b"
    own = index.run_links() / "exp_2"
    own.mkdir()
    index.link(own, "exp_2")
    assert own.is_dir() and not own.is_symlink()
    assert (index.pending() / "exp_2").resolve() == own.resolve()


def test_a_folder_that_was_deleted_leaves_what_is_known(store, tmp_path):
    record = new_run(tmp_path / "run")
    index.link(tmp_path / "run", record.experiment_id)
    record.log_metrics({"loss": 1}, step=1)
    index.catch_up(store, tmp_path / "run")
    record.finish()
    shutil.rmtree(tmp_path / "run")
    assert index.refresh(store) == []
    assert len(rows(store, metrics)) == 1 and not any(index.pending().iterdir())


def test_many_lines_are_written_in_parts(store, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_ROWS", 7)
    record = new_run(tmp_path)
    random.seed(0)
    for step in range(40):
        record.log_metrics({"loss": random.random()}, step=step)
        record.log_event("note", step=step)
    index.catch_up(store, tmp_path)
    assert [row["step"] for row in rows(store, metrics)] == list(range(40))
    assert [row["step"] for row in rows(store, events)] == list(range(40))
    assert rows(store, summaries)[0]["count"] == 40
    record.finish()


def test_what_a_run_was_given():
    leaf = {"value": 3, "source": "default"}
    mine = {"value": {"a": 1}, "source": "command line"}
    assert index.given({"a": {"x": leaf, "y": mine}, "b": {"z": leaf}}) == {"a": {"y": {"a": 1}}}
    assert index.given({"a": {"x": 1}, "empty": {}}) == {"a": {"x": 1}, "empty": {}}
    assert index.plain({"a": {"x": leaf, "y": mine}}) == {"a": {"x": 3, "y": {"a": 1}}}
