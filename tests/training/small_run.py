"""A small run with everything that makes resume hard: dropout, accumulation, augmentation, a moving
average, logs that do not line up with saves. The tests import it; it is also a script:

python small_run.py OUTPUT_DIR ['{"setting": value, "kill": "step:7"}']
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hftune.configuration.arguments import HFTuneArguments
from hftune.training import checkpoints, saving
from hftune.training.trainer import HFTuneTrainer

SAMPLES = 75


class SmallModel(nn.Module):
    """Two targets, dropout, and a module that a learning rate pattern finds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 16))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 2)

    def forward(self, x, target):
        parts = ((self.head(self.norm(self.body(x))) - target) ** 2).mean(0)
        return {
            "loss": parts.mean(),
            "losses": {"first": parts[0].detach(), "second": parts[1].detach()},
        }


class SmallData(torch.utils.data.Dataset):
    """Samples with noise that is drawn anew each epoch, from (epoch, index)."""

    def __init__(self, noise: float = 0.1) -> None:
        self.epoch = 0
        self.noise = noise

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        x = np.random.default_rng(index).normal(size=6).astype(np.float32)
        noise = np.random.default_rng((self.epoch, index)).normal(size=6).astype(np.float32)
        return {"x": x + self.noise * noise, "target": np.stack([x[0] * x[1], np.sin(x[2])])}


class Evaluate:
    """The loss on fixed samples."""

    primary_metric = "error"
    greater_is_better = False

    def __call__(self, trainer) -> dict[str, float]:
        data = SmallData(noise=0.0)
        batch = [data[i] for i in range(16)]
        x, target = (torch.tensor(np.stack([b[k] for b in batch])) for k in ("x", "target"))
        model = trainer.model
        training = model.training
        model.eval()
        with torch.no_grad():
            error = model(x, target)["loss"].item()
        model.train(training)
        return {"error": error}


def make_trainer(output_dir, **settings) -> HFTuneTrainer:
    defaults = dict(
        output_dir=str(output_dir),
        num_train_epochs=3,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        learning_rate_patterns={"head": 3e-3},
        weight_decay=0.01,
        ema_decay=0.8,
        logging_steps=2,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        disable_tqdm=True,
        use_cpu=True,
    )
    torch.manual_seed(0)
    return HFTuneTrainer(
        SmallModel(),
        HFTuneArguments(**{**defaults, **settings}),
        train_dataset=SmallData(),
        evaluator=Evaluate(),
    )


def results(trainer: HFTuneTrainer) -> dict:
    """Everything of a finished run that must not depend on how often it was interrupted."""
    times = ("_runtime", "_per_second")
    return {
        "weights": {k: v.numpy().tobytes().hex() for k, v in trainer.model.state_dict().items()},
        "log": [
            {k: v for k, v in line.items() if not k.endswith(times)}
            for line in trainer.state.log_history
            if "train_runtime" not in line
        ],
        "best": trainer.state.best_global_step,
        "health": trainer.gradient_health and trainer.gradient_health.as_dict(),
    }


def arm(trainer: HFTuneTrainer, point: str) -> None:
    """Has this process killed at a point: ``step:N``, ``evaluation:N``, or in the save of step N at
    ``model:N``, ``optimizer:N``, ``manifest:N`` (each before that file), ``rotation:N``,
    ``deleting:N`` (an old checkpoint is no longer one, its files are there), ``quarantine:0``.
    """
    kind, _, number = point.partition(":")

    def kill_at(owner, name):
        original = getattr(owner, name)

        def killed(*args, **kwargs):
            if trainer.state.global_step == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, killed)

    places = {
        "step": (trainer, "floating_point_ops"),
        "model": (trainer, "save_model"),
        "optimizer": (trainer, "_save_optimizer_and_scheduler"),
        "manifest": (saving, "seal_checkpoint"),
        "rotation": (saving, "rotate_checkpoints"),
        "deleting": (checkpoints.shutil, "rmtree"),
        "quarantine": (checkpoints.os, "replace"),
    }
    if kind == "evaluation":
        inner = trainer.evaluator

        def evaluate(trainer):
            if trainer.state.global_step == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(trainer)

        trainer.evaluator = evaluate
    else:
        kill_at(*places[kind])


def signal_at(trainer: HFTuneTrainer, step: int, number: int = signal.SIGTERM) -> None:
    """Has this process sent a signal within the step after ``step``, once."""
    original, sent = trainer.floating_point_ops, []

    def signalled(inputs):
        if trainer.state.global_step == step and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)
        return original(inputs)

    trainer.floating_point_ops = signalled


def wait_at(trainer: HFTuneTrainer, step: int) -> None:
    """Has this process wait for a signal within the step after ``step``."""
    original = trainer.floating_point_ops

    def waiting(inputs):
        if trainer.state.global_step == step:
            Path(trainer.args.output_dir, f"waiting_{trainer.args.process_index}").touch()
            end = time.monotonic() + 60
            while trainer._stop_request.heard is None and time.monotonic() < end:
                time.sleep(0.02)
        return original(inputs)

    trainer.floating_point_ops = waiting


def run(output_dir: str | Path, settings: dict, change: Callable | None = None) -> None:
    """A run from start to results; ``kill``, ``stop`` and ``stop_rank`` say what happens to it.

    With ``wait`` each process stays within the step after that one until a signal comes; the file
    ``waiting_RANK`` says that it does. ``change`` is given the trainer before it trains.
    """
    settings = dict(settings)
    kill, stop = settings.pop("kill", None), settings.pop("stop", None)
    rank, wait = settings.pop("stop_rank", 0), settings.pop("wait", None)
    trainer = make_trainer(output_dir, **settings)
    if wait:
        wait_at(trainer, wait)
    if change is not None:
        change(trainer)
    if kill:
        arm(trainer, kill)
    if stop and trainer.args.process_index == rank:
        signal_at(trainer, stop)
    trainer.train()
    if trainer.is_world_process_zero():
        Path(output_dir, "results.json").write_text(json.dumps(results(trainer)))
    trainer.end()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
