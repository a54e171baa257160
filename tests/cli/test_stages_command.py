"""``hftune stages``: what it shows of runs in all states, and stages that are trained again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from processes import finish, run_alone, start

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import progressive_run
import staged_run
from staged_run import outcome, specs

from hftune.cli import main as command
from hftune.cli.stages import main
from hftune.training.folder_lock import locked_folder
from hftune.utils.errors import CheckpointError, ConfigurationError

torch.set_num_threads(1)
NAMES = ["part_1_20", "part_2_40", "part_3_75"]
SHORT = {"num_train_epochs": 1}


def run(output_dir, **settings) -> int:
    return run_alone(lambda: staged_run.run(output_dir, settings))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stages") / "whole"
    assert run(folder, **SHORT) == 0
    return folder


@pytest.fixture
def copy(whole, tmp_path, monkeypatch) -> Path:
    """A copy of the finished run, ``run`` in the current folder."""
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "180")
    return Path("run")


def view(folder, capsys) -> dict:
    capsys.readouterr()
    assert main([str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def content(folder: Path) -> dict[str, bytes]:
    """What each file holds, but for logs and the lock, which says who had the folder last."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".hftune.lock"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.parent.name != "logs"}


def test_a_finished_run(copy, capsys):
    results = [
        e["result"] for e in json.loads((copy / "stages.json").read_text())["stages"].values()
    ]
    found = view(copy, capsys)
    assert (found["kind"], found["metric"], found["process"]) == ("stages", "error", None)
    assert found["next"] == "finished: all 3 stages are done"
    for place, (stage, result) in enumerate(zip(found["stages"], results, strict=True)):
        assert stage["name"] == NAMES[place] and stage["number"] == place + 1
        assert (stage["status"], stage["problems"]) == ("done", [])
        for name in ("samples", "steps", "epochs", "batch", "seconds"):
            assert stage[name] == result[name]
        assert stage["score"] == result["best_metric"]
        assert stage["best_model"] == f"run/{NAMES[place]}/checkpoints/best_model"
    gain = results[1]["best_metric"] - results[0]["best_metric"]
    assert [found["stages"][i]["gain"] for i in (0, 1)] == [None, gain]

    assert main(["run"]) == 0
    shown = capsys.readouterr().out
    head, _, *rows = shown.splitlines()
    assert head.split() == [
        *("#", "stage", "title", "samples", "status", "steps", "error", "gain", "epochs"),
        *("batch", "time", "best", "model"),
    ]
    assert f"{results[2]['best_metric']:.4g}" in rows[2] and " 4 x 2 " in rows[2]
    assert "\nfinished: all 3 stages are done\n" in shown


def test_a_narrow_terminal(copy, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["run"]) == 0
    shown = capsys.readouterr().out
    assert "No room for title, epochs, batch, time, best model; --json has all." in shown
    assert "run/part_3_75/checkpoints/best_model" in shown


def test_a_stage_that_was_stopped(tmp_path, capsys):
    assert run(tmp_path, kill="step:2:7") == -signal.SIGKILL
    found = view(tmp_path, capsys)
    assert [s["status"] for s in found["stages"]] == ["done", "interrupted", "not begun"]
    assert [s["steps"] for s in found["stages"]] == [6, 5, 0]
    assert [s["planned_steps"] for s in found["stages"]] == [6, 10, 20]
    expected = "the same command goes on with stage 2 of 3 (40 samples) from checkpoint-5"
    assert found["next"] == expected
    assert main([str(tmp_path)]) == 0
    assert "5/10" in capsys.readouterr().out
    # The newest one was being written: a start takes the one before it, or begins.
    (tmp_path / "part_2_40/checkpoints/checkpoint-5/hftune_manifest.json").unlink()
    expected = (
        "the same command begins stage 2 of 3 (40 samples) again, which has no checkpoint yet"
    )
    assert view(tmp_path, capsys)["next"] == expected


def test_between_two_stages(tmp_path, capsys):
    assert run(tmp_path, kill="between:1", **SHORT) == -signal.SIGKILL
    found = view(tmp_path, capsys)
    assert [s["status"] for s in found["stages"]] == ["done", "not begun", "not begun"]
    assert found["next"] == "the same command goes on with stage 2 of 3 (40 samples)"


def test_a_run_that_goes_on(tmp_path, capsys):
    """The process that has the folder is seen and not disturbed."""
    assert run(tmp_path, kill="step:2:7") == -signal.SIGKILL
    ready, go = os.pipe(), os.pipe()

    def hold() -> None:
        with locked_folder(tmp_path):
            os.write(ready[1], b"x")
            os.read(go[0], 1)

    child = start(hold)
    os.read(ready[0], 1)
    try:
        found = view(tmp_path, capsys)
        assert [s["status"] for s in found["stages"]] == ["done", "running", "not begun"]
        assert found["process"] == f"process {child} on {os.uname().nodename}"
        assert found["next"] == f"running: {found['process']}"
        before = content(tmp_path)
        with pytest.raises(ConfigurationError, match=f"is in use by process {child} on .*stop it"):
            main([str(tmp_path), "--restart", "2"])
        assert content(tmp_path) == before
    finally:
        os.write(go[1], b"x")
        assert finish(child) == 0
    assert view(tmp_path, capsys)["stages"][1]["status"] == "interrupted"


def test_a_run_that_ended_before_its_plan(tmp_path, capsys):
    """Also: its results are moved along, and the reason goes."""
    gain = {"step_size": 0.2, "stop_when_gain_below": 100.0, "epochs_per_stage": 1}
    settings = {"progressive": gain}
    assert run_alone(lambda: progressive_run.run(tmp_path, settings)) == 0
    found = view(tmp_path, capsys)
    assert found["next"].startswith(
        "ended before stage 4 of 6 (70 % of the data): the next stage is"
    )
    assert found["next"].endswith("less than stop_when_gain_below 100")
    assert found["metric"] == "error"
    results = json.loads((tmp_path / "progressive_training_results.json").read_text())
    assert [s["score"] for s in found["stages"][:3]] == [s["score"] for s in results["stages"]]

    assert main([str(tmp_path), "--restart", "3"]) == 0
    shown = capsys.readouterr().out
    assert "results and summary are written again when the next stage ends" in shown
    assert shown.endswith("\nthe same command goes on with stage 3 of 6 (50 % of the data)\n")
    aside = tmp_path / "quarantine/run_1"
    assert json.loads((aside / "progressive_training_results.json").read_text()) == results
    assert not list(tmp_path.glob("progressive_training_*.*"))
    assert view(tmp_path, capsys)["ended"] is None


def test_stages_are_trained_again(whole, copy, capsys):
    before = content(copy)
    stages = {name: content(copy / name) for name in NAMES}
    assert main(["run", "--restart", "2"]) == 0
    assert capsys.readouterr().out == (
        "moved run/part_2_40 to run/quarantine/run_1/part_2_40\n"
        "moved run/part_3_75 to run/quarantine/run_1/part_3_75\n"
        "plan.json and stages.json as they were are in run/quarantine/run_1\n"
        "the same command goes on with stage 2 of 3 (40 samples)\n"
    )
    aside = content(copy / "quarantine/run_1")
    assert aside["plan.json"] == before["plan.json"] == (copy / "plan.json").read_bytes()
    assert aside["stages.json"] == before["stages.json"]
    for name in NAMES[1:]:
        assert content(copy / "quarantine/run_1" / name) == stages[name]
    assert content(copy / NAMES[0]) == stages[NAMES[0]]
    assert list(json.loads((copy / "stages.json").read_text())["stages"]) == NAMES[:1]

    assert run(copy, **SHORT) == 0
    assert outcome(copy) == outcome(whole)
    assert content(copy / NAMES[0]) == stages[NAMES[0]]


@pytest.mark.parametrize(
    ("staging", "place"),
    [({}, 1), ({"fresh_each_stage": True}, 1), ({"stage_optimizer": "carry"}, 2)],
)
def test_whatever_goes_from_stage_to_stage(tmp_path, staging, place):
    settings = {"stage_specs": specs((20, 40)), "staging": staging, **SHORT}
    assert run(tmp_path, **settings) == 0
    expected = outcome(tmp_path)
    assert main([str(tmp_path), "--restart", str(place)]) == 0
    assert run(tmp_path, **settings) == 0
    assert outcome(tmp_path) == expected


# Of its three renames (stage 2, stage 3, the journal) the first that does not happen.
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_at_any_moment(whole, copy, capsys, renames):
    def killed() -> None:
        original, done = os.replace, []

        def replace(source, target):
            if len(done) == renames:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(target)
            original(source, target)

        os.replace = replace
        main(["run", "--restart", "2"])

    assert run_alone(killed) == -signal.SIGKILL
    found = view(copy, capsys)
    if renames:  # a start says what to do, and changes nothing
        moved = content(copy)
        with pytest.raises(CheckpointError) as caught:
            staged_run.make_trainer("run", **SHORT).train()
        assert "hftune stages run --restart NUMBER" in str(caught.value)
        assert content(copy) == moved
        assert found["next"].startswith("the next start would refuse to go on: stage 2 is done, ")
        assert found["next"].endswith("hftune stages run --restart 2")
    else:
        assert found["next"] == "finished: all 3 stages are done"
    assert main(["run", "--restart", "2"]) == 0
    assert run(copy, **SHORT) == 0
    assert outcome(copy) == outcome(whole)
    kept = {p.name for p in (copy / "quarantine").glob("run_*/part_*")}
    assert kept == set(NAMES[1:])
    assert len(list((copy / "quarantine").glob("run_*/stages.json"))) >= 1


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("0", "--restart 0: there is no such stage, the plan in {} has 3"),
        ("4", "--restart 4: there is no such stage, the plan in {} has 3"),
        (
            "3",
            "--restart 3: stage 3 has not begun, there is nothing to train again; the same command "
            "goes on with stage 2 of 3 (40 samples)",
        ),
    ],
)
def test_what_cannot_be_restarted(tmp_path, capsys, place, message):
    assert run(tmp_path, kill="between:1", **SHORT) == -signal.SIGKILL
    before = content(tmp_path)
    assert command.main(["stages", str(tmp_path), "--restart", place]) == 2
    assert capsys.readouterr().err == f"hftune stages: {message.format(tmp_path)}\n"
    assert content(tmp_path) == before


def test_where_there_is_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="There is no checkpoints_transfer here"):
        main([])
    with pytest.raises(ConfigurationError, match="^nowhere: no such folder"):
        main(["nowhere"])
    Path("checkpoints_transfer").mkdir()
    with pytest.raises(ConfigurationError, match="checkpoints_transfer has no plan.json"):
        main([])


def test_without_torch(whole):
    """It answers at once."""
    import subprocess

    code = (
        "import sys, hftune.cli.main as m; m.main(['stages', sys.argv[1]]); "
        "print(*sorted({n.split('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(whole)], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "transformers", "numpy"}
