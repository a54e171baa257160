"""A plain `transformers.Trainer` with the tracking callback, and ends that a whole process has.

The tests import it; it is also a script: python tracked_trainer.py FOLDER CASE...
runs each case in a child of its own, in FOLDER/CASE, and prints the exit statuses as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hftune.callbacks.tracking import ExperimentTrackingCallback
from hftune.configuration.arguments import HFTuneArguments
from hftune.tracking.tracker import ExperimentTracker
from hftune.training.trainer import HFTuneTrainer


class Data(torch.utils.data.Dataset):
    """Two numbers and their product."""

    def __init__(self, samples: int = 32) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        x = np.random.default_rng(index).normal(size=2).astype(np.float32)
        return {"x": x, "labels": x[:1] * x[1:]}


class Model(nn.Module):
    """Something happens at its forward pass of step ``at``, counted from 1 in this process."""

    def __init__(self, at: int = 0, happens=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 1))
        self.at, self.happens, self.passes = at, happens, 0

    def forward(self, x, labels=None):
        if self.training:
            self.passes += 1
            if self.passes == self.at:
                self.happens()
        out = self.layers(x)
        return {"loss": ((out - labels) ** 2).mean(), "logits": out}


class At(TrainerCallback):
    """Does something once, at the end of a step."""

    def __init__(self, step, happens):
        self.step, self.happens = step, happens

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.happens is not None:
            happens, self.happens = self.happens, None
            happens()


def make_trainer(
    output_dir, callbacks, model=None, kind=Trainer, arguments=TrainingArguments, **more
):
    """Twelve steps: a log every second, an evaluation and a save every fourth."""
    settings = dict(
        output_dir=str(output_dir),
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=4,
        save_steps=4,
        use_cpu=True,
        disable_tqdm=True,
        seed=7,
    )
    return kind(
        model or Model(),
        arguments(**{**settings, **more}),
        train_dataset=Data(),
        eval_dataset=Data(8),
        callbacks=callbacks,
    )


def send(number: int):
    return lambda: os.kill(os.getpid(), number)


def fail() -> None:
    raise ValueError("the data of step 7 are wrong")


def tracked(folder, **settings):
    return make_trainer(folder, [ExperimentTrackingCallback()], **settings)


def hftune(folder, callback, **settings):
    more = [callback, At(6, send(signal.SIGTERM))]
    return make_trainer(folder, more, kind=HFTuneTrainer, arguments=HFTuneArguments, **settings)


def recipe(folder) -> None:
    with ExperimentTracker().start(folder, name="of a recipe") as record:
        hftune(folder, ExperimentTrackingCallback(record)).train()


def jit_checkpoint(folder) -> None:
    trainer = tracked(folder, enable_jit_checkpoint=True, save_strategy="no")
    for callback in trainer.callback_handler.callbacks:
        if hasattr(callback, "jit_manager"):
            callback.jit_manager.kill_wait = 0
    trainer.add_callback(At(6, send(signal.SIGTERM)))
    # The request is made by a timer's thread.
    trainer.add_callback(At(8, lambda: __import__("time").sleep(0.5)))
    trainer.train()


def no_save(folder) -> None:
    """Under a signal, with a checkpoint neither saved nor found."""
    trainer = hftune(folder, ExperimentTrackingCallback())
    trainer._save_checkpoint = lambda model, trial: None
    trainer.train()


CASES = {
    "error": lambda folder: tracked(folder, model=Model(7, fail)).train(),
    "SIGTERM": lambda folder: tracked(folder, model=Model(7, send(signal.SIGTERM))).train(),
    "SIGINT": lambda folder: tracked(folder, model=Model(7, send(signal.SIGINT))).train(),
    "SIGKILL": lambda folder: tracked(folder, model=Model(7, send(signal.SIGKILL))).train(),
    "hftune": lambda folder: hftune(folder, ExperimentTrackingCallback()).train(),
    "recipe": recipe,
    "jit": jit_checkpoint,
    "no_save": no_save,
    "after_hftune": lambda folder: (
        make_trainer(
            folder,
            [ExperimentTrackingCallback()],
            kind=HFTuneTrainer,
            arguments=HFTuneArguments,
            max_steps=2,
        ).train(),
        tracked(folder, model=Model(7, send(signal.SIGTERM))).train(),
    ),
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    statuses = {}
    for case in sys.argv[2:]:
        child = os.fork()
        if child == 0:  # goes out of the script as any process does
            CASES[case](Path(sys.argv[1], case))
            sys.exit()
        statuses[case] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(statuses))
