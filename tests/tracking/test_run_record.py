import datetime
import os
import subprocess
import sys

import pytest
from processes import run_alone

from hftune.tracking.environment import git_state
from hftune.tracking.run_record import RunRecord
from hftune.tracking.tracker import ExperimentTracker
from hftune.utils.errors import ConfigurationError, TrainingInterrupted
from hftune.utils.files import read_json
from hftune.utils.secrets import without_secrets

TABLE = {"training": {"learning_rate": {"value": 1e-4, "source": "default"}}}


def changed(rate):
    return {"training": {"learning_rate": {"value": rate, "source": "command line"}}}


def test_a_run_that_completes(tmp_path):
    with RunRecord.start(
        tmp_path / "out", task="aurora", configuration=TABLE, seeds={"seed": 7}
    ) as record:
        assert read_json(record.path)["status"] == "created"
        with record.timed("audit"):
            pass
        with record.timed("audit"):
            pass
        record.update(data={"fingerprint": "abc"}, results={"best": 0.7})
        record.update(data={"sources": ["x.nc"]})
    saved = read_json(tmp_path / "out" / "run.json")
    assert saved["status"] == "completed" and saved["finished"] >= saved["started"]
    assert saved["configuration"] == TABLE and saved["seeds"] == {"seed": 7}
    assert saved["data"] == {"fingerprint": "abc", "sources": ["x.nc"]}
    assert saved["versions"]["python"] and saved["versions"]["numpy"]
    assert saved["hardware"]["cores"] >= 1 and saved["hardware"]["memory_bytes"] > 1e8
    assert saved["command"][0] == sys.executable
    [attempt] = saved["attempts"]
    assert attempt["number"] == 1 and attempt["status"] == "completed"
    assert list(attempt["timings"]) == ["audit"] and attempt["error"] is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no such field"), "failed"),
        (KeyboardInterrupt(), "killed"),
        (SystemExit(75), "preempted"),
        (TrainingInterrupted("SIGTERM", 7, "checkpoint-7"), "preempted"),
        (TrainingInterrupted("SIGTERM", 7, None), "killed"),
        (TrainingInterrupted("SIGINT", 7, "checkpoint-7"), "killed"),
        (SystemExit(1), "failed"),
        (SystemExit(0), "completed"),
    ],
)
def test_how_it_ended(tmp_path, error, status):
    with pytest.raises(type(error)):
        with RunRecord.start(tmp_path, task="aurora", configuration={}):
            raise error
    saved = read_json(tmp_path / "run.json")
    assert saved["status"] == saved["attempts"][0]["status"] == status
    if isinstance(error, ValueError):
        assert saved["attempts"][0]["error"].endswith("ValueError: no such field")
        assert "test_run_record.py" in saved["attempts"][0]["error"]


def test_attempts_are_kept_and_one_that_never_ended_has_crashed(tmp_path):
    RunRecord.start(tmp_path, task="aurora", configuration=TABLE)  # and then kill -9
    started = read_json(tmp_path / "run.json")["started"]
    record = RunRecord.start(
        tmp_path, task="aurora", configuration=changed(3e-4), resumed_from="checkpoint-10"
    )
    record.finish("preempted")
    record.finish("completed")  # says nothing new
    saved = read_json(tmp_path / "run.json")
    first, second = saved["attempts"]
    assert first["status"] == "crashed" and first["finished"]
    assert second["number"] == 2 and second["resumed_from"] == "checkpoint-10"
    assert second["changed"] == {"training.learning_rate": [1e-4, 3e-4]}
    assert saved["status"] == "preempted" and saved["started"] == started


def test_a_crashed_attempt_lasted_until_it_last_wrote(tmp_path):
    def work():
        RunRecord.start(tmp_path, task="t", configuration={}).log_metrics({"loss": 1}, step=1)
        os._exit(9)

    assert run_alone(work) == 9
    began = read_json(tmp_path / "run.json")["attempts"][0]["started"]
    later = datetime.datetime.fromisoformat(began).timestamp() + 100
    os.utime(tmp_path / "metrics.jsonl", (later, later))
    RunRecord.start(tmp_path, task="t", configuration={}).finish()
    attempt = read_json(tmp_path / "run.json")["attempts"][0]
    assert attempt["status"] == "crashed" and attempt["seconds"] == 100
    assert datetime.datetime.fromisoformat(attempt["finished"]).timestamp() == later


def test_only_the_first_process_of_a_group_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with RunRecord.start(tmp_path, task="aurora", configuration={}):
        pass
    assert not (tmp_path / "run.json").exists()


def test_secrets_are_not_written(tmp_path):
    table = {
        "training": {"hub_token": {"value": "hf_secret", "source": "environment"}, "seed": 3},
        "tracking": {"url": "postgresql://me:hf_secret@db.example/runs"},
    }
    command = ["aurora.py", "--hub_token", "hf_secret", "--hub-token=hf_secret", "--seed", "1"]
    RunRecord.start(tmp_path, task="aurora", configuration=table, command=command)
    text = (tmp_path / "run.json").read_text()
    assert "hf_secret" not in text and "postgresql://***@db.example/runs" in text
    saved = read_json(tmp_path / "run.json")
    assert saved["command"] == [
        "aurora.py", "--hub_token", "***", "--hub-token=***", "--seed", "1"
    ]  # fmt: skip
    assert saved["configuration"]["training"]["seed"] == 3
    assert without_secrets({"tokenizer": "gpt2"}) == {"tokenizer": "gpt2"}


def test_git_state(tmp_path):
    assert git_state(tmp_path) is None

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    git("init", "-q", "-b", "main")
    assert git_state(tmp_path) is None
    (tmp_path / "a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-q", "-m", "first")
    state = git_state(tmp_path)
    assert state["branch"] == "main" and len(state["commit"]) == 40 and not state["dirty"]
    (tmp_path / "a.txt").write_text("2")
    assert git_state(tmp_path)["dirty"]


@pytest.mark.parametrize("content", ["{", "[]", '{"attempts": []}', '{"attempts": [{}]}'])
def test_a_file_that_is_no_record_is_left_as_it_is(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    for start in (RunRecord.start, ExperimentTracker().start):
        with pytest.raises(ConfigurationError, match="run.json is no record of a run .*move it"):
            start(tmp_path, task="test", configuration={})
    assert (tmp_path / "run.json").read_text() == content
    # and the folder is free
    (tmp_path / "run.json").unlink()
    RunRecord.start(tmp_path, task="test", configuration={}).finish()
