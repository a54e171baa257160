"""Signals as launchers and schedulers send them, to real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from processes import run_alone, run_together

sys.path.insert(0, str(Path(__file__).parent))
import small_run

from hftune.training import interrupt
from hftune.training.checkpoints import find_checkpoints, verify_checkpoint

torch.set_num_threads(1)
SCRIPT = Path(small_run.__file__)


def outcome(output_dir) -> dict:
    return json.loads((Path(output_dir) / "results.json").read_text())


def signalled(output_dir, *numbers, environment=None, same_request=None, **settings) -> int:
    """A run in a process of its own that is sent signals, all within the step after step 7."""

    def work() -> None:
        os.environ |= environment or {}
        if same_request is not None:
            interrupt._SAME_REQUEST = same_request

        def change(trainer):
            original, left = trainer.floating_point_ops, list(numbers)

            def send(inputs):
                while trainer.state.global_step == 7 and left:
                    os.kill(os.getpid(), left.pop(0))
                return original(inputs)

            trainer.floating_point_ops = send

        small_run.run(output_dir, settings, change)

    return run_alone(work)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_alone(lambda: small_run.run(folder, {})) == 0
    return outcome(folder)


LAUNCHED = {"TORCHELASTIC_RUN_ID": "none"}
SLURM = {"SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("numbers", "environment"),
    [
        ([signal.SIGTERM], {}),
        ([signal.SIGINT], {}),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGINT], LAUNCHED),
        ([signal.SIGUSR1], SLURM),
        ([signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM], SLURM),
        ([signal.SIGTERM, signal.SIGUSR1], SLURM),
    ],
    ids=["TERM", "INT", "launched, TERM TERM INT", "USR1", "USR1 USR1 TERM", "TERM USR1"],
)
def test_requests_to_stop(whole, tmp_path, numbers, environment):
    assert signalled(tmp_path, *numbers, environment=environment) == 75
    assert verify_checkpoint(tmp_path / "checkpoint-8") == []
    assert not (tmp_path / "results.json").exists()
    assert signalled(tmp_path) == 0
    assert outcome(tmp_path) == whole


@pytest.mark.parametrize(
    ("numbers", "settings"),
    [
        ([signal.SIGTERM, signal.SIGTERM], {}),
        ([signal.SIGTERM, signal.SIGINT], {}),
        # The second comes when it can no longer be the launcher's.
        ([signal.SIGTERM, signal.SIGTERM], dict(environment=LAUNCHED, same_request=0.0)),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM], dict(environment=SLURM)),
        ([signal.SIGUSR1], {}),  # without SLURM it is not ours
    ],
    ids=["TERM TERM", "TERM INT", "launched, later", "USR1 TERM TERM", "USR1"],
)
def test_ends_at_once(whole, tmp_path, numbers, settings):
    assert signalled(tmp_path, *numbers, **settings) == -numbers[-1]
    assert not (tmp_path / "checkpoint-8").exists()
    assert signalled(tmp_path) == 0
    assert outcome(tmp_path) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_spares_data_workers(tmp_path, number):
    settings = dict(dataloader_num_workers=2)

    def work() -> None:
        os.setpgid(0, 0)
        os.environ |= SLURM

        def change(trainer):
            original, sent = trainer.floating_point_ops, []

            def send(inputs):
                if trainer.state.global_step == 7 and not sent:
                    sent.append(True)
                    os.killpg(0, number)
                return original(inputs)

            trainer.floating_point_ops = send

        small_run.run(tmp_path, settings, change)

    assert run_alone(work) == 75
    assert verify_checkpoint(tmp_path / "checkpoint-8") == []


def test_a_signal_after_the_last_step_ends_all_processes(tmp_path):
    """One of them hears it, in the evaluation of the last step; none goes on alone."""

    def change(trainer):
        inner = trainer.evaluator

        def evaluate(trainer):
            if trainer.state.global_step == 9 and trainer.args.process_index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(trainer)

        trainer.evaluator = evaluate

    assert run_together(lambda _: small_run.run(tmp_path, {}, change)) == [75, 75]
    assert run_together(lambda _: small_run.run(tmp_path, {})) == [0, 0]
    assert outcome(tmp_path)["log"][-1]["step"] == 9


# Launchers


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("two")
    assert run_together(lambda _: small_run.run(folder, {})) == [0, 0]
    return outcome(folder)


def launch(command: list[str], output_dir: Path, processes: int) -> subprocess.Popen:
    """Starts a launcher in a process group of its own, as a shell does; waits until it trains."""
    launcher = subprocess.Popen(
        [*command, str(SCRIPT), str(output_dir), '{"wait": 5}'],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    end = time.monotonic() + 120
    while len(list(output_dir.glob("waiting_*"))) < processes:
        assert launcher.poll() is None and time.monotonic() < end, launcher.communicate()[1]
        time.sleep(0.05)
    return launcher


def torchrun(output_dir: Path) -> subprocess.Popen:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    return launch([*command, "--master_port", str(port)], output_dir, 2)


def to_agent(launcher: subprocess.Popen) -> None:
    """``kill PID``."""
    launcher.send_signal(signal.SIGTERM)


def to_all(launcher: subprocess.Popen) -> None:
    """``scancel``: workers get it, and once more from the agent."""
    for process in psutil.Process(launcher.pid).children(recursive=True):
        process.send_signal(signal.SIGTERM)
    launcher.send_signal(signal.SIGTERM)


def to_group(launcher: subprocess.Popen) -> None:
    """Ctrl-C."""
    os.killpg(launcher.pid, signal.SIGINT)


@pytest.mark.parametrize("send", [to_agent, to_all, to_group], ids=lambda send: send.__name__)
def test_torchrun(whole_of_two, tmp_path, send):
    launcher = torchrun(tmp_path)
    send(launcher)
    said = launcher.communicate(timeout=100)[1]
    # The status is torchrun's own, whatever those of its workers are.
    assert launcher.returncode == 1, said
    assert f"the same command goes on from {tmp_path}/checkpoint-6" in "".join(said.split("\n"))
    assert find_checkpoints(tmp_path)[-1].name == "checkpoint-6"
    assert verify_checkpoint(tmp_path / "checkpoint-6") == []
    assert not (tmp_path / "results.json").exists()
    assert run_together(lambda _: small_run.run(tmp_path, {})) == [0, 0]
    assert outcome(tmp_path) == whole_of_two


def test_accelerate_launch_with_one_process(whole, tmp_path):
    """It passes nothing on: what reaches its process group reaches the training too."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"]
    command += ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    launcher = launch([*command, "--dynamo_backend", "no"], tmp_path, 1)
    children = psutil.Process(launcher.pid).children(recursive=True)
    os.killpg(launcher.pid, signal.SIGTERM)
    said = launcher.communicate(timeout=100)[1]
    psutil.wait_procs(children, timeout=60)
    assert launcher.returncode == -signal.SIGTERM
    assert f"the same command goes on from {tmp_path}/checkpoint-6" in said.replace("\n", "")
    assert verify_checkpoint(tmp_path / "checkpoint-6") == []
    assert run_alone(lambda: small_run.run(tmp_path, {})) == 0
    assert outcome(tmp_path) == whole
