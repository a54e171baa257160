"""Runs whose disk fails them: damaged checkpoints, full and read-only disks, two runs in a folder.

Real runs on real files: what is damaged was written by a training, and disks that are full are
small file systems in memory (where mounting is not allowed, a limit on the size of files).
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from processes import finish, run_alone, run_together, start
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import small_run

from hftune.training import checkpoints, saving
from hftune.training.checkpoints import MANIFEST, find_checkpoints, verify_checkpoint
from hftune.utils.errors import CheckpointError, ConfigurationError

torch.set_num_threads(1)


def heard(work: Callable[[], object]) -> tuple[object, str]:
    """Does ``work``, which starts processes; returns its result and what they said."""
    saved, (reading, writing) = os.dup(2), os.pipe()
    # Not a file: those are limited here in their size.
    listener = subprocess.Popen(["cat"], stdin=reading, stdout=subprocess.PIPE, text=True)
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        with contextlib.redirect_stderr(
            open(2, "w", buffering=1, closefd=False)
        ):  # pytest has one of its own
            result = work()
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    return result, " ".join(listener.communicate(timeout=60)[0].split())


def run(output_dir, change: Callable | None = None, **settings) -> tuple[int, str]:
    """A run in a process of its own; ``change`` is given its trainer before it trains."""

    def work() -> None:
        small_run.run(output_dir, settings, change)

    return heard(lambda: run_alone(work))


def outcome(output_dir) -> dict:
    return json.loads((Path(output_dir) / "results.json").read_text())


def at_step(trainer, step: int, action: Callable[[], None]) -> None:
    """Has something happen within the step after ``step``, once."""
    original, done = trainer.floating_point_ops, []

    def with_action(inputs):
        if trainer.state.global_step == step and not done:
            done.append(True)
            action()
        return original(inputs)

    trainer.floating_point_ops = with_action


def steps(folder) -> list[int]:
    return [int(f.name.partition("-")[2]) for f in find_checkpoints(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder)[0] == 0
    return outcome(folder)


NO_HEALTH = dict(gradient_health="off")
"""Its record is no part of these tests: what becomes of it on a full disk has one of its own."""


@pytest.fixture(scope="module")
def whole_without_health(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("without")
    assert run(folder, **NO_HEALTH)[0] == 0
    return outcome(folder)


# Damaged checkpoints


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A run that was killed after step 10: checkpoints 6 and 9, the newest is the best."""
    folder = tmp_path_factory.mktemp("killed")
    assert run(folder, kill="step:10")[0] == -signal.SIGKILL
    assert steps(folder) == [6, 9]
    return folder


def truncate(name):
    def damage(checkpoint):
        path = checkpoint / name
        os.truncate(path, path.stat().st_size // 2)

    return damage


def flip(name):
    def damage(checkpoint):
        content = bytearray((checkpoint / name).read_bytes())
        content[len(content) // 2] ^= 1
        (checkpoint / name).write_bytes(content)

    return damage


def remove(name):
    return lambda checkpoint: (checkpoint / name).unlink()


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGES = {
    "weights truncated": (truncate("model.safetensors"), "model.safetensors has "),
    "weights flipped": (flip("model.safetensors"), "model.safetensors has changed since"),
    "average flipped": (flip("ema.safetensors"), "ema.safetensors has changed since"),
    "optimizer truncated": (truncate("optimizer.pt"), "optimizer.pt has "),
    "optimizer missing": (remove("optimizer.pt"), "optimizer.pt is missing"),
    "scheduler missing": (remove("scheduler.pt"), "scheduler.pt is missing"),
    "random state missing": (remove("rng_state.pth"), "rng_state.pth is missing"),
    "state missing": (remove("trainer_state.json"), "trainer_state.json is missing"),
    "state truncated": (truncate("trainer_state.json"), "trainer_state.json has "),
    "manifest torn": (truncate(MANIFEST), f"{MANIFEST} cannot be read"),
    "manifest missing": (remove(MANIFEST), f"no {MANIFEST}"),
    "folder empty": (empty, "the folder is empty"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(whole, killed, tmp_path, damage):
    """The newest, which is the best too."""
    folder = shutil.copytree(killed, tmp_path / "run")
    act, reason = DAMAGES[damage]
    act(folder / "checkpoint-9")
    status, said = run(folder)
    assert status == 0, said
    written = (folder / "quarantine" / "checkpoint-9.reason.txt").read_text().strip()
    assert written.startswith(reason)
    assert f"resume: checkpoint-9 moved to {folder}/quarantine/checkpoint-9: {reason}" in said
    assert f"resume: going on from {folder}/checkpoint-6, verified" in said
    assert outcome(folder) == whole


def test_a_folder_that_only_looks_like_a_checkpoint(whole, killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    (folder / "checkpoint-9999").mkdir()
    status, said = run(folder)
    assert status == 0, said
    assert f"going on from {folder}/checkpoint-9, verified" in said
    assert (folder / "quarantine" / "checkpoint-9999").is_dir()
    assert outcome(folder) == whole


@pytest.mark.parametrize("damage", ["weights flipped", "optimizer missing", "manifest torn"])
def test_the_only_checkpoint_is_damaged(whole, tmp_path, damage):
    assert run(tmp_path, kill="step:4")[0] == -signal.SIGKILL
    assert steps(tmp_path) == [3]
    DAMAGES[damage][0](tmp_path / "checkpoint-3")
    status, said = run(tmp_path)
    assert status == 0, said
    assert "resume: no whole checkpoint is left: the run starts anew" in said
    assert outcome(tmp_path) == whole


def test_the_best_checkpoint_is_damaged_and_an_old_one(tmp_path):
    """It cannot be had again: the run says so, and chooses among what it still evaluates."""
    settings = dict(greater_is_better=True, metric_for_best_model="eval_error")
    assert run(tmp_path / "whole", **settings)[0] == 0
    whole = outcome(tmp_path / "whole")
    assert whole["best"] == 3
    folder = tmp_path / "run"
    assert run(folder, kill="step:10", **settings)[0] == -signal.SIGKILL
    assert steps(folder) == [3, 6, 9]
    flip("model.safetensors")(folder / "checkpoint-3")

    status, said = run(folder, **settings)
    assert status == 0, said
    assert (
        "resume: the best model so far, checkpoint-3, is damaged: model.safetensors has changed "
        f"since it was written (other hash); moved to {folder}/quarantine/checkpoint-3. The best "
        "is chosen from the evaluations to come." in said
    )
    found = outcome(folder)
    assert found["log"] == whole["log"]  # training itself is that of the whole run
    assert found["best"] == 12
    weights = load_file(folder / "checkpoint-12" / "ema.safetensors")
    assert found["weights"] == {k: v.numpy().tobytes().hex() for k, v in weights.items()}


def test_the_best_model_stays_where_another_run_is_gone_on_from(tmp_path):
    settings = dict(greater_is_better=True, metric_for_best_model="eval_error")
    assert run(tmp_path / "first", kill="step:10", **settings)[0] == -signal.SIGKILL
    resume = str(tmp_path / "first" / "checkpoint-9")
    assert run(tmp_path / "second", resume=resume, **settings)[0] == 0
    assert run(tmp_path / "first", **settings)[0] == 0
    assert outcome(tmp_path / "second") == outcome(tmp_path / "first")
    assert outcome(tmp_path / "second")["best"] == 3


# Full disks


@contextlib.contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """A file system of its own in memory; skips where that is not allowed."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
        try:
            mounted = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("no mount here")
        if mounted.returncode:
            pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def fill(path: Path) -> None:
    """Takes what is left of a disk, to the last byte."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as stream:
        while True:
            stream.write(b"x" * 512)


def no_preflight(trainer) -> None:
    """Room was there when the save began."""
    trainer._make_ready = lambda folder: None


def full_between(trainer, first: int, last: int, filler: Path, preflight: bool = False) -> None:
    """The disk is full from the step after ``first`` to the one after ``last``."""
    make_ready = trainer._make_ready

    def full() -> None:
        fill(filler)
        if not preflight:
            no_preflight(trainer)

    def free() -> None:
        filler.unlink()
        trainer._make_ready = make_ready

    if trainer.is_world_process_zero():
        at_step(trainer, first, full)
        at_step(trainer, last, free)


def check_outlived(folder: Path, status: int, said: str, expected: dict) -> None:
    assert status == 0, said
    assert said.count("NOT SAVED: checkpoint-6") == 1
    assert "Training goes on; the last whole checkpoint is checkpoint-3." in said
    assert steps(folder) == [12, 15]
    assert not any(verify_checkpoint(checkpoint) for checkpoint in find_checkpoints(folder))
    assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp") or ".tmp" in p.name]
    assert outcome(folder) == expected


def check(right: bool) -> None:
    assert right


@pytest.mark.parametrize("preflight", [True, False], ids=["seen before", "in the save"])
def test_a_full_disk(whole_without_health, preflight):
    with small_disk("1m") as disk:
        folder = disk / "run"

        def change(trainer):
            full_between(trainer, 4, 7, disk / "filler", preflight)
            # The last good checkpoint is untouched and nothing half-written beside it.
            at_step(trainer, 6, lambda: check(steps(folder) == [3]))
            at_step(trainer, 6, lambda: check(not verify_checkpoint(folder / "checkpoint-3")))

        status, said = run(folder, change, **NO_HEALTH)
        check_outlived(folder, status, said, whole_without_health)
        reason = "needs about" if preflight else "could not be written (Error while serializing"
        assert f"NOT SAVED: checkpoint-6 {reason}" in said


def test_records_on_a_full_disk(whole):
    """What the run notes beside its checkpoints: gradient health, metrics, the run's record."""
    with small_disk("1m") as disk:

        def change(trainer):
            from hftune import ExperimentTrackingCallback

            trainer.add_callback(ExperimentTrackingCallback())
            full_between(trainer, 4, 7, disk / "filler")

        status, said = run(disk / "run", change)
        check_outlived(disk / "run", status, said, whole)


def limited(size: int | None) -> None:
    """Files of this process can grow to ``size`` bytes."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


# The order of the files in a save: weights 2.6 KB, optimizer 15 KB, random state 14 KB.
@pytest.mark.parametrize("size", [2000, 5000])
def test_files_that_cannot_be_written_to_their_end(whole, tmp_path, size):
    """As on a full disk, where nothing may be mounted."""

    def change(trainer):
        at_step(trainer, 5, lambda: limited(size))
        at_step(trainer, 6, lambda: check(steps(tmp_path) == [3]))
        at_step(trainer, 6, lambda: limited(None))

    status, said = run(tmp_path, change)
    check_outlived(tmp_path, status, said, whole)


def test_the_best_model_could_not_be_saved(tmp_path):
    """The best is then the best of those that were."""

    def change(trainer):
        at_step(trainer, 14, lambda: limited(2000))

    def work():
        trainer = small_run.make_trainer(tmp_path)
        change(trainer)
        trainer.train()
        limited(None)
        (tmp_path / "results.json").write_text(json.dumps(small_run.results(trainer)))

    status, said = heard(lambda: run_alone(work))
    assert status == 0, said
    assert "NOT SAVED: checkpoint-15" in said
    found = outcome(tmp_path)
    assert found["best"] == 12
    weights = load_file(tmp_path / "checkpoint-12" / "ema.safetensors")
    assert found["weights"] == {k: v.numpy().tobytes().hex() for k, v in weights.items()}


# Several processes


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("two")
    assert run_two(folder)[0] == [0, 0]
    return outcome(folder)


def run_two(output_dir, change=lambda trainer: None, **settings) -> tuple[list[int], str]:
    return heard(lambda: run_together(lambda _: small_run.run(output_dir, settings, change)))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("size", [2000, 5000])
def test_two_processes_whose_disk_is_full(whole_of_two, tmp_path, rank, size):
    """One process fails, before the others' barrier (weights) or behind it; all agree on it."""

    def change(trainer):
        if trainer.args.process_index == rank:
            at_step(trainer, 5, lambda: limited(size))
            at_step(trainer, 7, lambda: limited(None))
        at_step(trainer, 7, lambda: check(steps(tmp_path) == [3]))

    status, said = run_two(tmp_path, change)
    assert status == [0, 0], said
    assert said.count("NOT SAVED: checkpoint-6") == 1
    assert steps(tmp_path) == [3, 9]
    assert outcome(tmp_path) == whole_of_two


def test_each_process_says_where_it_goes_on_from(tmp_path):
    assert -signal.SIGKILL in run_two(tmp_path, kill="step:4")[0]
    status, said = run_two(tmp_path)
    assert status == [0, 0], said
    for rank in (0, 1):
        assert f"rank {rank} of 2: going on from {tmp_path}/checkpoint-3" in said


@pytest.mark.parametrize("there", [False, True], ids=["missing", "another one"])
def test_a_checkpoint_that_not_all_processes_see(tmp_path, there):
    """As on two machines, each with a disk of its own."""
    assert -signal.SIGKILL in run_two(tmp_path / "0" / "run", kill="step:4")[0]
    (tmp_path / "1").mkdir()
    if there:
        assert -signal.SIGKILL in run_two(tmp_path / "1" / "run", kill="step:4")[0]

    def work(rank):
        os.chdir(tmp_path / str(rank))
        with pytest.raises(CheckpointError) as caught:
            small_run.run("run", {})
        assert str(caught.value) == (
            "run/checkpoint-3 is missing or another one for the processes 1 of 2: output_dir must "
            "be on storage that all machines of the run share"
        )

    assert run_together(work) == [0, 0]
    assert steps(tmp_path / "0" / "run") == [3]


def test_another_number_of_processes(tmp_path, whole):
    assert run(tmp_path, kill="step:4")[0] == -signal.SIGKILL
    status, said = run_two(tmp_path)
    assert status == [1, 1]
    assert "processes: the checkpoint has 1, this run 2" in said
    status, said = run_two(tmp_path, allow_resume_changes=True)
    assert status == [0, 0], said
    assert "resume: changed: processes: the checkpoint has 1, this run 2" in said
    assert steps(tmp_path)[-1] == 9  # of the new plan


# Folders that cannot be written


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that any user reaches and owns: root may write everywhere, so others must try."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "run").mkdir()
        os.chmod(Path(folder) / "run", 0o777)
        yield Path(folder) / "run"


def as_nobody(work: Callable[[], None]) -> tuple[int, str]:
    """In a process that permissions bind."""

    codecs.lookup("latin1")  # loaded late, from where only root may read it

    def bound() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        work()

    return heard(lambda: run_alone(bound))


@pytest.mark.parametrize("used_before", [False, True])
def test_a_folder_that_cannot_be_written(used_before):
    """It is an error before anything is trained."""
    with open_folder() as folder:
        if used_before:
            (folder / ".hftune.lock").touch(mode=0o666)

        def work():
            trainer = small_run.make_trainer(folder)
            with pytest.raises(ConfigurationError) as caught:
                trainer.train()
            assert str(caught.value) == (
                f"{folder} cannot be written (Permission denied): checkpoints could not be saved "
                "there; make it writable, make room, or take another output_dir"
            )
            assert trainer.state.global_step == 0

        os.chmod(folder, 0o555)
        status, said = as_nobody(work)
        assert status == 0, said


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file/run cannot be written \(Not a directory\)"):
        small_run.make_trainer(tmp_path / "file" / "run").train()


def test_a_disk_that_is_full_at_the_start():
    with small_disk("64k") as disk:
        fill(disk / "filler")
        with pytest.raises(ConfigurationError, match=r"written \(No space left on device\)"):
            small_run.make_trainer(disk / "run").train()


def test_a_folder_that_turns_read_only(whole_without_health):
    with open_folder() as folder:

        def work():
            os.mkdir(folder / "inner")
            inner = folder / "inner"

            def change(trainer):
                at_step(trainer, 4, lambda: os.chmod(inner, 0o555))
                at_step(trainer, 6, lambda: check(steps(inner) == [3]))
                at_step(trainer, 7, lambda: os.chmod(inner, 0o755))

            small_run.run(inner, NO_HEALTH, change)

        status, said = as_nobody(work)
        check_outlived(folder / "inner", status, said, whole_without_health)


def test_an_unreadable_file_of_a_checkpoint(whole, killed):
    with open_folder() as folder:
        shutil.copytree(killed, folder / "run")
        if os.geteuid() == 0:
            for path in [folder / "run", *(folder / "run").rglob("*")]:
                os.chown(path, 65534, 65534)
        os.chmod(folder / "run" / "checkpoint-9" / "optimizer.pt", 0)
        status, said = as_nobody(lambda: small_run.run(folder / "run", {}))
        assert status == 0, said
        assert "checkpoint-9: optimizer.pt cannot be read: Permission denied" in said
        assert outcome(folder / "run") == whole


# Two runs in one folder


@pytest.mark.parametrize("attempt", range(3))
def test_two_runs_that_start_at_the_same_moment(tmp_path, attempt):
    """One of them trains, the other is told who does."""
    waiting, go = os.pipe()

    def change(trainer):
        os.read(waiting, 1)

        def wait():
            for _ in range(600):
                if (tmp_path / "refused").exists():
                    return
                time.sleep(0.05)

        at_step(trainer, 2, wait)

    def work():
        try:
            small_run.run(tmp_path / "run", {}, change)
            (tmp_path / "trained").write_text(str(os.getpid()))
        except ConfigurationError as error:
            (tmp_path / "refused").write_text(str(error))
            raise SystemExit(3) from None

    children = [start(work), start(work)]
    os.write(go, b"go")
    assert sorted(finish(child) for child in children) == [0, 3]
    trained, refused = (tmp_path / name for name in ("trained", "refused"))
    assert refused.read_text().startswith(
        f"{tmp_path}/run is in use by process {trained.read_text()} on "
    )
    assert steps(tmp_path / "run") == [12, 15]


# Rotation


OLD_BEST = dict(greater_is_better=True, metric_for_best_model="eval_error")
"""The first evaluation has the highest error."""


def test_a_limit_of_one_keeps_the_best_and_the_newest(tmp_path):
    def change(trainer):
        at_step(trainer, 6, lambda: check(steps(tmp_path) == [3, 6]))
        at_step(trainer, 9, lambda: check(steps(tmp_path) == [3, 9]))

    status, said = run(tmp_path, change, save_total_limit=1, **OLD_BEST)
    assert status == 0, said
    assert steps(tmp_path) == [3, 15]
    assert outcome(tmp_path)["best"] == 3
    assert "nothing to train" in run(tmp_path, save_total_limit=1, **OLD_BEST)[1]


def test_a_stopped_run_with_a_limit_of_one(tmp_path):
    """The Trainer would delete what it has just saved, for the best."""
    settings = dict(save_total_limit=1, **OLD_BEST)
    assert run(tmp_path / "whole", **settings)[0] == 0
    assert run(tmp_path / "run", stop=7, **settings)[0] == 75
    assert steps(tmp_path / "run") == [3, 8]
    status, said = run(tmp_path / "run", **settings)
    assert status == 0
    assert "checkpoint-8, verified" in said
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_checkpoint_that_does_not_verify_replaces_none(whole, tmp_path):
    """Its disk lost a part of it: the old one stays until a new one is whole."""

    def change(trainer):
        seal = saving.seal_checkpoint

        def lossy(folder, **kwargs):
            seal(folder, **kwargs)
            if folder.name == "checkpoint-6":
                truncate("optimizer.pt")(folder)

        saving.seal_checkpoint = lossy
        at_step(trainer, 6, lambda: check(steps(tmp_path) == [3]))
        at_step(trainer, 9, lambda: check(steps(tmp_path) == [9]))

    status, said = run(tmp_path, change, save_total_limit=1)
    assert status == 0, said
    assert "NOT SAVED: checkpoint-6 could not be written" in said and "optimizer.pt has" in said
    assert outcome(tmp_path) == whole


def test_killed_while_it_deletes(whole, tmp_path):
    def change(trainer):
        def die(folder):
            (folder / "model.safetensors").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

        checkpoints.shutil.rmtree = die

    assert run(tmp_path, change)[0] == -signal.SIGKILL
    assert steps(tmp_path) == [6, 9]
    assert (tmp_path / ".checkpoint-3.deleted").is_dir()
    assert run(tmp_path)[0] == 0
    assert outcome(tmp_path) == whole
    assert not list(tmp_path.glob(".checkpoint*"))


# Ends and changes


def test_a_finished_run_within_an_epoch(tmp_path):
    """The Trainer's own resume trains one step more."""
    settings = dict(max_steps=7, eval_strategy="no", load_best_model_at_end=False)
    assert run(tmp_path, **settings)[0] == 0
    finished = outcome(tmp_path)
    assert steps(tmp_path) == [6, 7]
    for _ in range(2):
        status, said = run(tmp_path, **settings)
        assert status == 0
        assert "resume: checkpoint-7 is the last step of this run, nothing to train" in said
        assert outcome(tmp_path) == finished
    assert steps(tmp_path) == [6, 7]


def fewer_samples(trainer):
    trainer.train_dataset = torch.utils.data.Subset(trainer.train_dataset, range(40))


def other_data(trainer):
    trainer.data_fingerprint = "other"


CHANGES = {
    "learning_rate": (dict(learning_rate=2e-2), None, "learning_rate: the checkpoint has 0.01"),
    "batch": (dict(per_device_train_batch_size=4), None, "per_device_train_batch_size: the"),
    "accumulation": (dict(gradient_accumulation_steps=1), None, "gradient_accumulation_steps: "),
    "seed": (dict(seed=7), None, "seed: the checkpoint has 42, this run 7"),
    "data": ({}, other_data, "data: the checkpoint has None, this run 'other'"),
    "length": ({}, fewer_samples, "training_samples: the checkpoint has 75, this run 40"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_run_is_refused_unless_that_is_allowed(killed, tmp_path, change):
    folder = shutil.copytree(killed, tmp_path / "run")
    settings, act, expected = CHANGES[change]
    status, said = run(folder, act, **settings)
    assert status == 1 and expected in said
    assert steps(folder) == [6, 9]
    status, said = run(folder, act, allow_resume_changes=True, **settings)
    assert status == 0, said
    assert f"resume: changed: {expected}" in said


def test_all_changes_are_named_at_once(killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    settings = {}
    for some, _, _ in CHANGES.values():
        settings |= some
    trainer = small_run.make_trainer(folder, **settings)
    fewer_samples(trainer)
    other_data(trainer)
    with pytest.raises(ConfigurationError) as caught:
        trainer.train()
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "data",
        "data_seed",
        "gradient_accumulation_steps",
        "learning_rate",
        "per_device_train_batch_size",
        "seed",
        "training_samples",
    ]


def test_a_changed_schedule_is_the_new_one(killed, tmp_path):
    """The checkpoint's optimizer and scheduler remember the old one."""
    folder = shutil.copytree(killed, tmp_path / "run")
    trainer = small_run.make_trainer(
        folder,
        learning_rate=2e-2,
        weight_decay=0.5,
        num_train_epochs=4,
        logging_steps=1,
        allow_resume_changes=True,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log and log["step"] > 9]
    assert logs[-1]["step"] == 20
    for log in logs:  # linear to 0 over 4 epochs of 5 steps, as of before the step
        assert log["learning_rate"] == pytest.approx(2e-2 * (1 - (log["step"] - 1) / 20))
    groups = trainer.optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    assert {group["initial_lr"] for group in groups} == {2e-2, 3e-3}


@pytest.mark.parametrize(
    "setting", [dict(optim="sgd"), dict(learning_rate_patterns={"norm": 1e-3})], ids=str
)
def test_changes_that_nothing_can_be_done_about(killed, tmp_path, setting):
    folder = shutil.copytree(killed, tmp_path / "run")
    trainer = small_run.make_trainer(folder, allow_resume_changes=True, **setting)
    with pytest.raises(ConfigurationError, match="the optimizer's state does not fit the new one"):
        trainer.train()
