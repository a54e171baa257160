"""What a recipe starts its record with, and the callbacks that its settings ask for."""

import os
from pathlib import Path

import pytest

from hftune.callbacks.tracked_run import run_callbacks, start_run
from hftune.callbacks.tracking import ExperimentTrackingCallback
from hftune.callbacks.wandb_mirror import WandbCallback
from hftune.configuration.resolve import parse
from hftune.configuration.tracking_arguments import TrackingArguments
from hftune.tracking.tracker import ExperimentTracker
from hftune.utils.errors import ConfigurationError

TABLE = {"training": {"seed": {"value": 7, "source": "default"}}}


def settings(*argv: str) -> TrackingArguments:
    return parse(TrackingArguments, argv=argv, environ={}).values[0]


def started(folder: Path, *argv: str):
    return start_run(folder, settings(*argv), task="test", configuration=TABLE, seeds={"seed": 7})


def test_what_the_settings_say_is_recorded(tmp_path):
    with started(tmp_path / "a") as first:
        pass
    argv = (
        "--experiment_name", "요약", "--experiment_description", "second try",
        "--tags", "v2", "baseline", "--parent_run", "a",
    )  # fmt: skip
    with started(tmp_path / "b", *argv) as second:
        pass
    run = ExperimentTracker().get_experiment(second.experiment_id)
    assert (run["name"], run["description"]) == ("요약", "second try")
    assert run["tags"] == ["v2", "baseline"] and run["parent_run"] == first.experiment_id
    assert run["seeds"] == {"seed": 7} and run["config"] == {"training": {"seed": 7}}
    assert ExperimentTracker().get_experiment(first.experiment_id)["children"] == [
        run["experiment_id"]
    ]


def test_a_parent_that_is_not_there_leaves_nothing_behind(tmp_path):
    with pytest.raises(ConfigurationError, match="no run 'exp_20260101_001'"):
        started(tmp_path / "out", "--parent_run", "exp_20260101_001")
    assert not (tmp_path / "out").exists()


def test_off_is_off(tmp_path):
    with started(tmp_path / "out", "--tracking", "off", "--tags", "x") as record:
        record.log_metrics({"loss": 1}, step=1)
    assert record.values["name"] == "out" and record.values["tags"] == ["x"]
    assert os.listdir(os.environ["HFTUNE_HOME"]) == []


def test_callbacks(tmp_path):
    with started(tmp_path / "out") as record:
        [tracking] = run_callbacks(record, settings())
        assert isinstance(tracking, ExperimentTrackingCallback) and tracking.record is record
        _, mirror = run_callbacks(record, settings("--wandb", "offline", "--wandb_project", "p"))
        assert isinstance(mirror, WandbCallback)
        assert (mirror.project, mirror.name, mirror.mode) == ("p", "out", "offline")
        assert mirror.config == {"training": {"seed": 7}}
        mirror.on_run_id("abc123")
        assert record.values["wandb_run_id"] == "abc123"
        _, again = run_callbacks(record, settings("--wandb", "offline"))
        assert again.run_id == "abc123"  # a resumed run goes on there


def test_a_name_that_no_model_can_have():
    with pytest.raises(ConfigurationError, match="registered_name '../up' cannot be a file name"):
        settings("--registered_name", "../up")
