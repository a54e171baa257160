"""Manifests, quarantine, rotation, and what a resume refuses."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from processes import run_alone

sys.path.insert(0, str(Path(__file__).parent))
import small_run

from hftune.training import checkpoints, durable, saving
from hftune.training.checkpoints import (
    MANIFEST,
    find_checkpoints,
    resolve_resume,
    rotate_checkpoints,
    run_changes,
    seal_checkpoint,
    verify_checkpoint,
)
from hftune.utils.errors import CheckpointError, ConfigurationError

torch.set_num_threads(1)


def make(folder: Path, step: int, **run) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "callbacks").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (checkpoint / "optimizer.pt").write_bytes(b"moments" * step)
    (checkpoint / "callbacks" / "health.json").write_text("{}")
    seal_checkpoint(checkpoint, step=step, run=run)
    return checkpoint


def truncate(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip(checkpoint):
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


FAULTS = {
    "truncated": (truncate, "model.safetensors has 2047 bytes, the manifest says 2048"),
    "flipped": (flip, "model.safetensors has changed since it was written (other hash)"),
    "missing": (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "nested": (
        lambda c: (c / "callbacks/health.json").unlink(),
        "callbacks/health.json is missing",
    ),
    "empty": (empty, "the folder is empty"),
    "unsealed": (
        lambda c: (c / MANIFEST).unlink(),
        f"no {MANIFEST}: the save was not finished, or another program wrote it",
    ),
    "torn manifest": (lambda c: (c / MANIFEST).write_text('{"files'), f"{MANIFEST} cannot be read"),
    "other format": (
        lambda c: (c / MANIFEST).write_text('{"format": 9, "files": {}}'),
        f"{MANIFEST} has format 9, this hftune reads 1",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_and_set_aside(tmp_path, fault, capsys):
    damage, message = FAULTS[fault]
    good, bad = make(tmp_path, 5), make(tmp_path, 10)
    assert verify_checkpoint(bad) == []
    damage(bad)
    (problem,) = verify_checkpoint(bad)
    assert problem.startswith(message)

    with pytest.raises(CheckpointError, match="the checkpoint is not whole"):
        resolve_resume(tmp_path, str(bad))
    assert bad.is_dir()

    assert resolve_resume(tmp_path) == good
    assert find_checkpoints(tmp_path) == [good]
    moved = tmp_path / "quarantine" / "checkpoint-10"
    assert moved.is_dir()
    reason = (tmp_path / "quarantine" / "checkpoint-10.reason.txt").read_text()
    assert reason.strip() == problem
    said = capsys.readouterr().err.replace("\n", "")
    assert "checkpoint-10 moved to" in said
    assert "checkpoint-5, verified" in said


def test_sizes_alone_do_not_see_a_flipped_bit(tmp_path):
    checkpoint = make(tmp_path, 1)
    flip(checkpoint)
    assert verify_checkpoint(checkpoint, hashes=False) == []


def test_names_in_quarantine_do_not_collide(tmp_path):
    for _ in range(2):
        empty(make(tmp_path, 3))
        assert resolve_resume(tmp_path) is None
    assert {p.name for p in (tmp_path / "quarantine").iterdir()} == {
        "checkpoint-3",
        "checkpoint-3.reason.txt",
        "checkpoint-3.2",
        "checkpoint-3.2.reason.txt",
    }


def test_resume_choices(tmp_path):
    assert resolve_resume(tmp_path / "new") is None
    old, new = make(tmp_path, 9), make(tmp_path, 10)
    assert resolve_resume(tmp_path) == new
    assert resolve_resume(tmp_path, str(old)) == old
    assert resolve_resume(tmp_path / "other", str(tmp_path)) == new  # a run's folder
    with pytest.raises(CheckpointError, match="no such folder; expected auto, never"):
        resolve_resume(tmp_path, str(tmp_path / "checkpoint-11"))
    with pytest.raises(CheckpointError, match="no whole checkpoint in it"):
        resolve_resume(tmp_path, str(tmp_path.parent))
    assert resolve_resume(tmp_path, "never") is None
    assert find_checkpoints(tmp_path) == []
    assert (tmp_path / "quarantine" / "checkpoint-9").is_dir()


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    folders = {step: make(tmp_path, step) for step in (1, 2, 3, 10, 20)}
    torn = tmp_path / "checkpoint-30"
    torn.mkdir()
    deleted = rotate_checkpoints(tmp_path, 2, [folders[2]])
    assert deleted == [folders[1], folders[3]]
    # One that is not whole counts for nothing, and is left for the next resume to judge.
    assert find_checkpoints(tmp_path) == [folders[2], folders[10], folders[20], torn]
    assert rotate_checkpoints(tmp_path, 0) == [folders[2], folders[10]]


def test_changes_are_named(tmp_path):
    checkpoint = make(tmp_path, 1, seed=1, optim="adamw", data=None)
    assert run_changes(checkpoint, {"seed": 1, "optim": "adamw", "data": None}) == []
    assert run_changes(checkpoint, {"seed": 2, "optim": "adamw", "processes": 2}) == [
        "processes: the checkpoint has None, this run 2",
        "seed: the checkpoint has 1, this run 2",
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    small_run.make_trainer(folder, max_steps=6).train()
    return folder


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "copy")


def test_what_a_checkpoint_holds(trained):
    manifest = json.loads((trained / "checkpoint-6" / MANIFEST).read_text())
    assert set(manifest["files"]) == {
        "callbacks/gradient_health.json",
        "ema.safetensors",
        "loss_window_0.json",
        "model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
        "training_args.json",
    }
    assert manifest["step"] == 6
    assert manifest["run"]["processes"] == 1
    assert manifest["run"]["training_samples"] == small_run.SAMPLES


@pytest.mark.parametrize("fault", ["truncated", "flipped", "missing", "empty", "unsealed"])
def test_a_run_falls_back_to_the_last_whole_checkpoint(trained, copy, fault):
    FAULTS[fault][0](copy / "checkpoint-6")
    trainer = small_run.make_trainer(copy, max_steps=6)
    trainer.train()
    assert trainer._resumed_from == copy / "checkpoint-3"
    weights = [
        (folder / "checkpoint-6/model.safetensors").read_bytes() for folder in (trained, copy)
    ]
    assert weights[0] == weights[1]


def test_changes_on_resume_are_refused(copy):
    settings = dict(max_steps=8, per_device_train_batch_size=4)
    with pytest.raises(ConfigurationError) as caught:
        small_run.make_trainer(copy, **settings).train()
    assert [problem.partition(". ")[0] for problem in caught.value.problems] == [
        "max_steps: the checkpoint has 6, this run 8",
        "per_device_train_batch_size: the checkpoint has 8, this run 4",
    ]
    assert "--allow_resume_changes" in str(caught.value)
    trainer = small_run.make_trainer(copy, allow_resume_changes=True, **settings)
    assert trainer.train().global_step == 8


def test_other_data_on_resume_are_refused(tmp_path):
    def trainer(fingerprint):
        made = small_run.make_trainer(tmp_path, max_steps=3)
        made.data_fingerprint = fingerprint
        return made

    trainer("1961-1994").train()
    with pytest.raises(ConfigurationError, match="data: the checkpoint has '1961-1994'"):
        trainer("1961-1995").train()


def test_the_best_model_is_found_in_a_moved_folder(trained, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    trainer = small_run.make_trainer(moved, max_steps=6)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best == moved / f"checkpoint-{trainer.state.best_global_step}"


def test_a_full_disk_leaves_the_run_alive(tmp_path, monkeypatch, capsys):
    trainer = small_run.make_trainer(tmp_path, max_steps=9)
    whole = trainer._save_optimizer_and_scheduler

    def save(folder):
        if folder.endswith("-6"):
            Path(folder, "optimizer.pt").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        whole(folder)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", save)
    assert trainer.train().global_step == 9
    assert trainer.failed_saves == 1
    assert [folder.name for folder in find_checkpoints(tmp_path)] == [
        "checkpoint-3",
        "checkpoint-9",
    ]
    said = " ".join(capsys.readouterr().err.split())
    assert "NOT SAVED: checkpoint-6 could not be written" in said
    assert "the last whole checkpoint is checkpoint-3" in said


def test_room_is_looked_for_before_a_save(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saving, "free_bytes", lambda path: 100)
    trainer = small_run.make_trainer(tmp_path, max_steps=3)
    trainer.train()
    assert find_checkpoints(tmp_path) == []
    said = " ".join(capsys.readouterr().err.split())
    assert "checkpoint-3 needs about" in said and "100 B are free" in said
    assert "the last whole checkpoint is none yet" in said


def test_a_stopped_save_counts_for_nothing(tmp_path, monkeypatch):
    """Saving a step again takes the manifest away first."""
    folder = make(tmp_path, 3)
    assert verify_checkpoint(folder) == []
    trainer = small_run.make_trainer(tmp_path, max_steps=3, resume=str(folder))
    monkeypatch.setattr(trainer, "_resolve_resume", lambda asked: None)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert verify_checkpoint(folder)[0].startswith(f"no {MANIFEST}")


def test_private_names_of_the_trainer_that_are_used():
    """A release of transformers without these must be looked at before it is let in."""
    from transformers import Trainer

    for name in (
        "_finalize_training",
        "_init_training_state",
        "_load_best_model",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_save",
        "_save_checkpoint",
        "_save_optimizer_and_scheduler",
        "create_accelerator_and_postprocess",
        "evaluation_loop",
    ):
        assert callable(getattr(Trainer, name))
    assert checkpoints.find_checkpoints("nowhere") == []


def test_two_runs_in_one_folder(tmp_path):
    first = small_run.make_trainer(tmp_path, max_steps=1)

    def second():
        with pytest.raises(ConfigurationError, match=f"in use by process {os.getppid()} on "):
            small_run.make_trainer(tmp_path, max_steps=1).train()

    with first._locked():
        assert run_alone(second) == 0
    assert first.train().global_step == 1


def test_another_environment_is_mentioned(copy, monkeypatch, capsys):
    trainer = small_run.make_trainer(copy, max_steps=6)
    monkeypatch.setattr(durable.torch, "get_num_threads", lambda: 64)
    trainer.train()
    said = " ".join(capsys.readouterr().err.split())
    assert "the last bits may differ: threads: the checkpoint has 1, this run 64" in said
