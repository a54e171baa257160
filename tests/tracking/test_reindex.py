"""The index is built again from the runs' own files, whatever happened to it or to them."""

import datetime
import json
import os
import shutil

import pytest
import sqlalchemy as sa
from processes import run_alone
from recorded_runs import record_run

from hftune.tracking import index
from hftune.tracking.deletion import delete_run
from hftune.tracking.query import find_run, search_runs
from hftune.tracking.reindex import reindex
from hftune.tracking.run_record import RunRecord
from hftune.tracking.run_view import RunView
from hftune.tracking.store import Store, StoreError, next_id
from hftune.tracking.tables import (
    counters,
    directions,
    events,
    metrics,
    models,
    params,
    runs,
    summaries,
)
from hftune.tracking.tracker import ExperimentTracker
from hftune.utils.errors import ConfigurationError
from hftune.utils.files import read_json
from hftune.utils.home import hftune_home


@pytest.fixture
def store(store_url):
    return Store(store_url)


def content(store):
    """Everything that the store says of runs."""
    with store.read() as connection:
        return {
            table.name: connection.execute(sa.select(table).order_by(*table.primary_key)).all()
            for table in (runs, params, metrics, summaries, events, directions)
        }


def lose(store):
    """The database is a new one."""
    with store.write() as connection:
        for table in (runs, directions, counters):  # the others go with the runs
            connection.execute(table.delete())
    assert not any(content(store).values())


def links():
    folder = index.run_links()
    return {entry.name: entry.resolve() for entry in folder.iterdir() if entry.name[0] != "."}


def test_a_lost_database_is_built_again(store, tmp_path):
    table = {"training": {"rate": {"value": 1e-4, "source": "default"}, "bf16": True}}
    logs = [{"loss": 0.5, "skill": "NaN"}, {"loss": 0.25}]
    record_run(store, tmp_path / "a", 1, "first", logs, configuration=table,
               metric_directions={"skill": True})  # fmt: skip
    record_run(store, tmp_path / "b", 2, "second", logs, status="failed", error="no")
    folder = tmp_path / "c"
    for step in (None, 2):
        record = RunRecord.start(folder, task="t", configuration={}, name="resumed",
                                 experiment_id="exp_20260101_003", uid="3" * 32)  # fmt: skip
        record.begin_stage("only")
        if step:
            record.resumed(step)
        for n in range(1, 5):
            record.log_metrics({"loss": n}, step=(step or 0) + n)
        record.log_event("checkpoint", step=4, path="checkpoint-4")
        record.finish()
    index.link(folder, "exp_20260101_003")
    index.catch_up(store, folder)
    before = content(store)
    assert len(before["hftune_runs"]) == 3 and len(before["hftune_metrics"]) == 12
    lose(store)
    done = reindex(store)
    assert done.runs == ["exp_20260101_001", "exp_20260101_002", "exp_20260101_003"]
    assert done.problems == []
    assert content(store) == before
    assert not list(index.pending().iterdir())
    assert reindex(store).runs == done.runs and content(store) == before  # over what is there


def test_ids_that_are_taken_are_not_given_out_again(store, tmp_path):
    for number in (1, 12):
        record_run(store, tmp_path / str(number), number)
    lose(store)
    reindex(store)
    with store.write() as connection:
        when = datetime.datetime(2026, 1, 1)
        assert next_id(connection, "exp", when) == "exp_20260101_013"
    reindex(store)
    with store.write() as connection:
        assert next_id(connection, "exp", when) == "exp_20260101_014"


def test_what_is_damaged_or_gone_is_reported_and_left_out(store, tmp_path):
    for number in range(1, 8):
        record_run(store, tmp_path / str(number), number, logs=[{"loss": 1.0}])
    before = content(store)["hftune_runs"]
    shutil.rmtree(tmp_path / "1")
    (tmp_path / "2" / "run.json").write_text('{"format": 2, "exp')
    (tmp_path / "3" / "run.json").write_text('["no", "record"]')
    values = read_json(tmp_path / "4" / "run.json")
    del values["uid"]
    (tmp_path / "4" / "run.json").write_text(json.dumps(values))
    (tmp_path / "5" / "metrics.jsonl").open("a").write('{"metrics": {"loss": 2}}\n')
    (tmp_path / "6" / "metrics.jsonl").open("a").write('no json\n{"time": 1, "metr')
    done = reindex(store)
    home = index.run_links()
    assert done.runs == ["exp_20260101_006", "exp_20260101_007"]
    gone, torn, *other = done.problems
    assert gone == (
        f"{home}/exp_20260101_001: its folder {tmp_path}/1 is gone; what the index has of it stays"
    )
    assert torn.startswith(f"{home}/exp_20260101_002: run.json cannot be read (")
    assert other == [
        f"{home}/exp_20260101_003: run.json is not the record of a run",
        f"{home}/exp_20260101_004: its files are not those of a whole run ('uid' is missing)",
        f"{home}/exp_20260101_005: its files are not those of a whole run ('attempt' is missing)",
    ]
    assert content(store)["hftune_runs"][:5] == before[:5]
    assert RunView.from_store(store, "exp_20260101_006").curve("loss") == ([1], [1.0])


def test_two_runs_with_one_id(store, tmp_path):
    """As two stores give them out: both are kept, with the same ids each time."""
    first = record_run(store, tmp_path / "a", 1, "first", [{"loss": 1.0}])
    lose(store)
    second = record_run(store, tmp_path / "b", 1, "second", [{"loss": 2.0}], uid="abcdef0123456789")
    lose(store)
    index.link(first.folder, "exp_20260101_001")
    for _ in range(2):
        done = reindex(store, [second.folder])
        assert done.problems == []
        assert find_run(store, "exp_20260101_001").name == "first"
        assert find_run(store, "exp_20260101_xabcdef01").name == "second"
        assert links() == {
            "exp_20260101_001": tmp_path / "a", "exp_20260101_xabcdef01": tmp_path / "b"
        }  # fmt: skip
    assert index.catch_up(store, second.folder) == "completed"  # as the run itself would
    assert RunView.from_store(store, "exp_20260101_xabcdef01").curve("loss")[1] == [2.0]
    assert RunView.from_store(store, "exp_20260101_001").curve("loss")[1] == [1.0]
    assert reindex(store).runs == ["exp_20260101_001", "exp_20260101_xabcdef01"]


def test_folders_are_searched_and_become_known(store, tmp_path):
    shared = tmp_path / "shared"
    for number, place in enumerate(["one", "deep/er/two", "deep/er/two/three", ".hidden"], 1):
        record_run(store, shared / place, number)
    record_run(store, tmp_path / "mine", 9)
    for name in sorted(links())[:4]:
        (index.run_links() / name).unlink()
    assert list(links()) == ["exp_20260101_009"]
    lose(store)
    done = reindex(store, [shared, tmp_path / "nothing"])
    assert done.problems == [f"{tmp_path}/nothing: no run.json there or below it"]
    assert sorted(done.runs) == [f"exp_20260101_00{n}" for n in (1, 2, 3, 9)]
    assert links()["exp_20260101_003"] == shared / "deep/er/two/three"
    # A store that has the others is only given what is new.
    assert reindex(store, [shared / "one"]).runs == ["exp_20260101_001"]


def test_copies_and_moves(store, tmp_path):
    record_run(store, tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    done = reindex(store, [tmp_path / "copy"])
    assert done.runs == [] and find_run(store, "001").folder == str(tmp_path / "a")
    assert done.problems == [
        f"{tmp_path}/copy: is a copy of the run exp_20260101_001 in {tmp_path}/a, which is indexed"
    ]
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "a").rename(tmp_path / "moved")
    assert reindex(store, [tmp_path / "moved"]).runs == ["exp_20260101_001"]
    assert find_run(store, "001").folder == str(tmp_path / "moved")
    assert links() == {"exp_20260101_001": tmp_path / "moved"}
    (tmp_path / "moved").rename(tmp_path / "further")
    lose(store)
    done = reindex(store, [tmp_path / "further"])
    assert (done.runs, done.problems) == (["exp_20260101_001"], [])


def test_a_run_that_nothing_tracked_gets_an_id(store, tmp_path):
    record_run(store, tmp_path / "a", 1)
    with RunRecord.start(tmp_path / "untracked", task="aurora", configuration={}) as record:
        record.log_metrics({"loss": 1.0}, step=1)
        day = record.values["started"][:10].replace("-", "")
    [run_id] = reindex(store, [tmp_path / "untracked"]).runs
    assert run_id == f"exp_{day}_001"
    run = find_run(store, run_id)
    assert (run.name, run.task, run.status) == ("untracked", "aurora", "completed")
    values = read_json(tmp_path / "untracked" / "run.json")
    assert values["experiment_id"] == run_id and values["uid"] == run.uid
    assert reindex(store, [tmp_path / "untracked"]).runs == [run_id]
    assert [r["id"] for r in search_runs(store, "metrics.loss=1")] == [run_id]


def test_ids_from_files_lead_nowhere_else(store, tmp_path):
    record_run(store, tmp_path / "a", 1)
    lose(store)
    for number, name in enumerate(["../../outside", "x" * 300, "a\nb", 7]):
        values = read_json(tmp_path / "a" / "run.json")
        values |= {"experiment_id": name, "uid": f"{number:032x}"}
        folder = tmp_path / f"bad{number}"
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(values))
    done = reindex(store, [tmp_path / f"bad{n}" for n in range(4)])
    assert done.runs == ["exp_20260101_001"] and len(done.problems) == 4
    assert "cannot be a file name" in done.problems[0]
    assert list(links()) == ["exp_20260101_001"]


def test_a_run_that_goes_on_stays_what_it_is(store, tmp_path):
    tracker = ExperimentTracker(store)
    running = tracker.start_experiment("running", output_dir=tmp_path / "running")
    tracker.log_metrics({"loss": 1.0}, step=1)

    def crash():
        ExperimentTracker(store).start_experiment("crashed", output_dir=tmp_path / "crashed")
        os._exit(9)

    assert run_alone(crash) == 9
    done = reindex(store)
    assert done.problems == [] and len(done.runs) == 2
    assert {r["name"]: r["status"] for r in search_runs(store)} == {
        "running": "running", "crashed": "crashed"
    }  # fmt: skip
    tracker.log_metrics({"loss": 2.0}, step=2)
    tracker.end_experiment(running)
    assert RunView.from_store(store, running).curve("loss") == ([1, 2], [1.0, 2.0])
    assert find_run(store, running).status == "completed"


def test_a_damaged_database_file(tmp_path):
    store = Store()
    record_run(store, tmp_path / "a", 1, logs=[{"loss": 1.0}])
    store.path.write_bytes(b"no database" * 1000)
    for name in ("-wal", "-shm"):
        store.path.with_name(store.path.name + name).unlink(missing_ok=True)
    with pytest.raises(StoreError, match="damaged; move it away, then: hftune runs reindex"):
        reindex(Store())
    store.path.rename(tmp_path / "damaged.db")
    assert reindex(Store()).runs == ["exp_20260101_001"]
    assert RunView.from_store(Store(), "exp_20260101_001").curve("loss") == ([1], [1.0])


# Deleting


def test_deleting_a_run_of_an_output_folder(store, tmp_path):
    record_run(store, tmp_path / "a", 1, logs=[{"loss": 1.0}])
    assert delete_run(store, find_run(store, "001")) is None
    assert not any(content(store).values()) and links() == {}
    assert (tmp_path / "a" / "metrics.jsonl").is_file()
    assert reindex(store).runs == []
    assert reindex(store, [tmp_path / "a"]).runs == ["exp_20260101_001"]


def test_deleting_a_run_of_the_home(store):
    folder = index.run_links() / "exp_20260101_001"
    for place in (hftune_home() / "trash" / f"exp_20260101_001{n}" for n in ("", "-2")):
        record_run(store, folder, 1)
        assert delete_run(store, find_run(store, "001")) == place
        assert (place / "run.json").is_file() and not folder.exists()
    assert not any(content(store).values())
    assert reindex(store, [place]).runs == ["exp_20260101_001"]
    assert links() == {"exp_20260101_001": place}


def test_a_run_of_the_same_path_on_another_machine_keeps_its_folder(store):
    folder = index.run_links() / "exp_20260101_001"
    record_run(store, folder, 1)
    values = read_json(folder / "run.json")
    (folder / "run.json").write_text(json.dumps(values | {"uid": "other"}))
    assert delete_run(store, find_run(store, "001")) is None
    assert (folder / "run.json").is_file()


def test_what_cannot_be_deleted(store, tmp_path):
    record_run(store, tmp_path / "a", 1)
    row = dict(name="net", architecture="x", bytes=1, created=0.0,
               experiment_id="exp_20260101_001", record={})  # fmt: skip
    with store.write() as connection:
        for n in (1, 2):
            connection.execute(
                models.insert().values(id=f"model_20260101_00{n}", version=n, digest=str(n), **row)
            )
    with pytest.raises(ConfigurationError) as error:
        delete_run(store, find_run(store, "001"))
    assert str(error.value) == (
        "exp_20260101_001 is where registered models come from: model_20260101_001 (net version "
        "1), model_20260101_002 (net version 2). Delete those first"
    )
    tracker = ExperimentTracker(store)
    running = tracker.start_experiment("running", output_dir=tmp_path / "b")
    index.catch_up(store, tmp_path / "b")
    with pytest.raises(ConfigurationError, match=f"{running} is running on .*: stop it first"):
        delete_run(store, find_run(store, running))
    tracker.end_experiment(running)
    assert len(search_runs(store)) == len(links()) == 2
