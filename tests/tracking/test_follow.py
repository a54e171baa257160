"""A run that is read while it goes on, from its files and, where they are elsewhere, the store."""

import math
import os

import pytest
from processes import run_alone
from recorded_runs import record_run

from hftune.tracking import index
from hftune.tracking.follow import Follower
from hftune.tracking.query import find_run
from hftune.tracking.run_record import RunRecord
from hftune.tracking.run_view import RunView
from hftune.tracking.store import Store


@pytest.fixture
def store(store_url):
    return Store(store_url)


def begin(store, folder):
    record = RunRecord.start(
        folder, task="t", configuration={}, name="x", experiment_id="exp_20260101_001", uid="1" * 32
    )
    record.running()
    index.catch_up(store, folder, heartbeat=(record.heartbeat.last, 0.0))
    return record


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_is_new_is_read_once(store, tmp_path, elsewhere, monkeypatch):
    """The same from the files as from a store whose runs have their folders on other machines."""
    folder = tmp_path / "run"
    record = begin(store, folder)
    record.log_metrics({"loss": 4.0}, step=1)
    record.log_event("checkpoint", step=1, path="checkpoint-1")
    if elsewhere:
        monkeypatch.setattr("hftune.tracking.follow.read_json", lambda path: {})

    def catch_up():
        if elsewhere:
            index.catch_up(store, folder, heartbeat=(record.heartbeat.last, 0.0))

    catch_up()
    follower = Follower(store, find_run(store, "001"))
    assert follower.is_alive and follower.step == 1 and follower.rate() is None
    assert [event["kind"] for event in follower.view.events] == ["checkpoint"]
    assert follower.poll() == []
    record.log_metrics({"loss": math.nan, "other": 1}, step=3)
    record.log_metrics({"loss": 2.0})
    catch_up()
    first, second = follower.poll()
    assert math.isnan(first.metrics["loss"]) and first.step == 3 and second.step is None
    assert follower.rate() > 0 and follower.step == 3
    assert follower.heard >= second.time
    record.finish()
    catch_up()
    assert follower.poll() == [] and not follower.is_alive
    assert follower.view.status == "completed"
    assert str(follower.view.points) == str(RunView.from_folder(folder).points)


def test_an_attempt_that_goes_back_supersedes_what_was_read(store, tmp_path):
    folder = tmp_path / "run"
    record = begin(store, folder)
    for step in (1, 2, 3):
        record.log_metrics({"loss": step}, step=step)
    follower = Follower(store, find_run(store, "001"))
    record.finish("preempted")
    assert follower.poll() == [] and follower.view.status == "preempted"
    record = begin(store, folder)
    record.resumed(2)
    record.log_metrics({"loss": 9.0}, step=3)
    follower.poll()
    assert [point.superseded for point in follower.view.points] == [False, False, True, False]
    assert follower.is_alive and follower.view.curve("loss") == ([1, 2, 3], [1, 2, 9.0])
    record.finish()


def test_a_process_that_is_gone_has_crashed(store, tmp_path):
    folder = tmp_path / "run"

    def crash():
        begin(store, folder).log_metrics({"loss": 1.0}, step=1)
        os._exit(9)

    assert run_alone(crash) == 9
    follower = Follower(store, find_run(store, "001"))
    assert follower.view.status == "crashed" and not follower.is_alive
    assert follower.step == 1 and follower.heard == pytest.approx(os.stat(folder).st_mtime, abs=60)


def test_the_rate_is_that_of_this_stage(store, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("hftune.tracking.run_record.time.time", lambda: now[0])
    record = record_run(store, tmp_path / "run", 1)
    for stage, seconds in (("slow", 10.0), ("fast", 0.5)):
        record.begin_stage(stage)
        for step in (10, 20, 30):
            now[0] += 10 * seconds
            record.log_metrics({"loss": 1.0}, step=step)
    follower = Follower(store, find_run(store, "001"))
    assert follower.rate() == 2.0
