"""Memory and processor time of trainings, measured where it is known what they are."""

from __future__ import annotations

import json
import mmap
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from processes import finish, run_alone, run_together, start
from tracked_trainer import Data, Model, make_trainer
from transformers import TrainerCallback

import hftune
from hftune.callbacks.plugins import load_callbacks
from hftune.callbacks.resources import ResourceMonitor
from hftune.callbacks.tracking import ExperimentTrackingCallback
from hftune.configuration.arguments import HFTuneArguments
from hftune.tracking.run_view import RunView
from hftune.training.trainer import HFTuneTrainer
from hftune.utils.errors import ConfigurationError

torch.set_num_threads(1)

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def in_child(work, tmp_path) -> dict:
    """What ``work`` returns, in a process that nothing else is done in."""
    path = tmp_path / "found.json"
    assert run_alone(lambda: path.write_text(json.dumps(work()))) == 0
    return json.loads(path.read_text())


def taken(size: int) -> np.ndarray:
    """Memory in bytes, written to, that is the system's again when nobody holds it: malloc may give
    out what it has kept from earlier tests.
    """
    own = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = np.frombuffer(mmap.mmap(-1, max(1, int(size)), flags=own), np.uint8)
    memory[:] = 1
    return memory


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert path.exists()


# What is measured


@linux
def test_a_peak_between_two_measurements_is_seen(tmp_path):
    def work():
        monitor, process = ResourceMonitor(), psutil.Process()
        args = HFTuneArguments(output_dir=str(tmp_path), use_cpu=True)
        before = process.memory_info().rss
        taken(300 * MIB)  # gone before the monitor looks
        first = monitor.peak
        monitor.on_stage_begin(args, None, None)
        between = process.memory_info().rss
        taken(100 * MIB)
        return [before, first["memory_bytes"], between, monitor.peak["memory_bytes"]]

    before, first, between, second = in_child(work, tmp_path)
    assert 295 * MIB < first - before < 330 * MIB
    assert 95 * MIB < second - between < 130 * MIB


@linux
@pytest.mark.parametrize("written", [0, 300])
def test_pages_that_a_child_shares_are_counted_once(tmp_path, written):
    def work():
        inherited = psutil.Process().memory_info().rss
        shared = taken(400 * MIB)

        def child(number):
            own = taken(written * MIB)
            (tmp_path / f"there_{number}").touch()
            wait_for(tmp_path / "measured")
            return own, shared

        children = [start(lambda n=n: child(n)) for n in range(2)]
        for number in range(2):
            wait_for(tmp_path / f"there_{number}")
        monitor = ResourceMonitor()
        peak = monitor.peak
        rss = sum(psutil.Process(c).memory_info().rss for c in children)
        (tmp_path / "measured").touch()
        assert [finish(c) for c in children] == [0, 0]
        return peak | {"rss": rss, "inherited": inherited}

    peak = in_child(work, tmp_path)
    assert peak["rss"] > 2 * (400 + written) * MIB
    # (Less by what this process, which was forked itself, shares with the one that it came from.)
    beside = peak["children_memory_bytes"] - 2 * written * MIB
    assert -peak["inherited"] < beside < 80 * MIB
    both = peak["process_memory_bytes"] + peak["children_memory_bytes"]
    assert peak["memory_bytes"] == both and peak["process_memory_bytes"] > 400 * MIB
    assert (peak["gpu_memory_bytes"], peak["max_memory_mb"], peak["exceeded"]) == (
        None,
        None,
        False,
    )


def test_processor_time_of_children_counts_also_when_they_have_ended(tmp_path):
    def burn():
        while time.process_time() < 0.5:
            pass

    def work():
        began, own = time.monotonic(), time.process_time()
        monitor = ResourceMonitor()
        assert finish(start(burn)) == 0
        percent = monitor.peak["cpu_percent"]
        return [percent * (time.monotonic() - began) / 100, time.process_time() - own]

    # (The processor time of a forked child begins at 0.)
    seconds, own = in_child(work, tmp_path)
    assert 0.4 < seconds < 0.75 + own


# In a training


def test_logs_are_recorded_and_the_history_is_left_alone(tmp_path):
    monitor = ResourceMonitor(interval_seconds=0)
    callbacks = [monitor, ExperimentTrackingCallback()]
    trainer = make_trainer(tmp_path / "out", callbacks, dataloader_num_workers=2)
    trainer.train()
    run = RunView.from_folder(tmp_path / "out")
    for name in ("memory_peak_bytes", "children_memory_bytes", "cpu_percent"):
        assert run.curve(name)[0] == [2, 4, 6, 8, 10, 12]
        assert not any(name in logs for logs in trainer.state.log_history)
    peaks, children = (run.curve(n)[1] for n in ("memory_peak_bytes", "children_memory_bytes"))
    resident = run.curve("process_memory_bytes")[1]
    assert max(children) > MIB
    assert all(peak >= 0.9 * here for peak, here in zip(peaks, resident, strict=True))
    found = monitor.peak
    assert found["memory_bytes"] >= max(peaks) and found["children_memory_bytes"] == max(children)
    assert found["cpu_percent"] > 0


def test_not_measured_more_often_than_asked(tmp_path):
    seen = []

    class Logs(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append("memory_peak_bytes" in logs)

    make_trainer(tmp_path, [ResourceMonitor(interval_seconds=3600), Logs()]).train()
    assert len(seen) == 10 and sum(seen) == 1 and seen[0]


def test_training_is_not_changed(tmp_path):
    def train(name, callbacks):
        trainer = make_trainer(tmp_path / name, callbacks, dataloader_num_workers=1)
        trainer.train()
        weights = {k: v.tolist() for k, v in trainer.model.state_dict().items()}
        logs = [
            {k: v for k, v in line.items() if not k.endswith(("_runtime", "_per_second"))}
            for line in trainer.state.log_history
        ]
        return weights, logs, torch.get_rng_state().tolist()

    monitor = ResourceMonitor(interval_seconds=0, max_memory_mb=1)
    assert train("watched", [monitor]) == train("plain", [])


def test_in_an_hftune_trainer_by_name(tmp_path, capsys):
    named = ["resources:max_memory_mb=10,interval_seconds=0"]
    args = HFTuneArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=2, callbacks=named)
    trainer = HFTuneTrainer(Model(), args, train_dataset=Data())
    trainer.train()
    (monitor,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, ResourceMonitor)]
    assert isinstance(monitor, hftune.ResourceMonitor)
    assert monitor.peak["exceeded"] and monitor.peak["max_memory_mb"] == 10
    assert "expected at most 10.0 MiB (max_memory_mb 10)" in capsys.readouterr().err


def test_each_stage_has_a_peak_of_its_own(tmp_path):
    """A training within a stage does not forget what the stage needed before it began."""

    def work():
        monitor = ResourceMonitor(interval_seconds=0)
        trainer = make_trainer(tmp_path / "out", [monitor], max_steps=2)
        event = (trainer.args, trainer.state, trainer.control)
        peaks = []
        for size in (400, 10):
            monitor.on_stage_begin(*event, stage=None)
            taken(size * MIB)
            trainer.train()
            peaks.append(monitor.peak["memory_bytes"])
            monitor.on_stage_end(*event, stage=None, result={})
        trainer.train()
        return [*peaks, monitor.peak["memory_bytes"]]

    first, second, third = in_child(work, tmp_path)
    assert first - second > 200 * MIB
    assert abs(third - second) < 150 * MIB


# The limit


def test_warned_once_and_again_when_it_has_grown(tmp_path, capfd):
    def work():
        base = psutil.Process().memory_info().rss
        held = []

        def hold(share):
            held.clear()
            held.append(taken(int(base * share)))

        # The limit is 1.3 of what there is before; crossed at 2, 10 % more at 4, crossed anew at 8.
        shares = {2: 0.4, 3: 0.45, 4: 0.7, 5: 0.5, 6: 0.0, 8: 0.4, 9: 0.45}

        class Change(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step in shares:
                    hold(shares[state.global_step])

        monitor = ResourceMonitor(max_memory_mb=1.3 * base / MIB, interval_seconds=0)
        make_trainer(
            tmp_path / "out", [Change(), monitor, ExperimentTrackingCallback()],
            eval_strategy="no", save_strategy="no",
        ).train()  # fmt: skip
        return [base, monitor.peak["exceeded"]]

    base, exceeded = in_child(work, tmp_path)
    assert exceeded
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("memory: ")]
    events = [e for e in RunView.from_folder(tmp_path / "out").events if "max_memory_mb" in e]
    assert [event["step"] for event in events] == [2, 4, 8]
    assert [event["message"] for event in events] == said
    assert all(1.3 * base < event["memory_bytes"] < 2 * base for event in events)
    assert said[0].endswith(
        "Training goes on. Less is needed with a smaller --per_device_train_batch_size and more "
        "--gradient_accumulation_steps, fewer --dataloader_num_workers, a shorter --max_length, or "
        "--isolate_stages"
    )
    assert " at step 2, expected at most " in said[0]


def test_two_processes_watch_themselves_and_one_speaks(tmp_path, capfd):
    def work(rank):
        monitor = ResourceMonitor(max_memory_mb=50, interval_seconds=0)
        held = taken((1 + 300 * rank) * MIB)
        trainer = make_trainer(
            tmp_path / "out", [monitor], kind=HFTuneTrainer, arguments=HFTuneArguments, max_steps=4
        )
        trainer.train()
        (tmp_path / f"{rank}.json").write_text(json.dumps([monitor.peak, len(held)]))
        trainer.end()

    assert run_together(work) == [0, 0]
    peaks = [json.loads((tmp_path / f"{rank}.json").read_text())[0] for rank in range(2)]
    assert all(peak["exceeded"] for peak in peaks)
    assert peaks[1]["memory_bytes"] - peaks[0]["memory_bytes"] > 200 * MIB
    assert capfd.readouterr().err.count("memory: found") == 1


@pytest.mark.parametrize("error", [psutil.AccessDenied(1), psutil.NoSuchProcess(1), OSError(5)])
def test_what_cannot_be_measured_does_no_harm(tmp_path, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(psutil.Process, "children", fails)
    monitor = ResourceMonitor(max_memory_mb=1, interval_seconds=0)
    trainer = make_trainer(tmp_path, [monitor, ExperimentTrackingCallback()])
    trainer.train()
    assert trainer.state.global_step == 12
    assert monitor.peak["memory_bytes"] == 0 and not monitor.peak["exceeded"]
    assert RunView.from_folder(tmp_path).curve("memory_peak_bytes") == ([], [])


def test_without_what_linux_knows_resident_memory_is_counted(tmp_path, monkeypatch):
    def work():
        there = Path.read_text

        def not_here(path, *args, **kwargs):
            if str(path).startswith("/proc"):
                raise FileNotFoundError(path)
            return there(path, *args, **kwargs)

        monkeypatch.setattr(Path, "read_text", not_here)
        child = start(lambda: wait_for(tmp_path / "measured"))
        peak = ResourceMonitor().peak
        resident = psutil.Process(child).memory_info().rss
        (tmp_path / "measured").touch()
        finish(child)
        return [peak["children_memory_bytes"], resident]

    found, resident = in_child(work, tmp_path)
    assert found > 50 * MIB and abs(found - resident) < 30 * MIB


def test_wrong_settings(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        ResourceMonitor(max_memory_mb=0, interval_seconds=-1)
    assert caught.value.problems == (
        "max_memory_mb: found 0, expected more than 0 MiB",
        "interval_seconds: found -1, expected 0 s or more",
    )
    with pytest.raises(ConfigurationError, match="max_memory_mb: found -5"):
        load_callbacks(["resources:max_memory_mb=-5"])
