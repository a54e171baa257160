"""A small lead-time chain, for tests and the kill harness; also a script:

python chain_run.py OUTPUT_DIR ['{"setting": value, "kill": "write:2"}']
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
import staged_run

from hftune.configuration.stage_arguments import StageArguments
from hftune.configuration.staged_training_arguments import StagedTrainingArguments
from hftune.tasks.aardvark.configuration_aardvark import build_processor_config
from hftune.tasks.aardvark.modeling_aardvark import AardvarkProcessor
from hftune.tasks.weather import initial_conditions_partial
from hftune.tasks.weather.chain import WeatherChain
from hftune.tasks.weather.climatology import compute_climatology
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.tasks.weather.initial_conditions_write import copy_initial_conditions
from hftune.tasks.weather.statistics import compute_statistics
from hftune.training.lead_time import LeadTimeTrainer
from hftune.utils.recipes import run_recipe

DAYS = {"train": (0, 60), "val": (60, 80), "test": (80, 100)}
LEAD_TIMES = 3


def make_fields(days: int = 100, hours: int = 24, seed: int = 0) -> WeatherFields:
    """Waves that travel, with noise: something that can be forecast."""
    layout = FieldLayout(
        channels=("2t", "msl", "z_500"),
        units=("K", "Pa", "m2 s-2"),
        static_channels=("lsm",),
        latitude=np.array([50.0, 47.5, 45.0, 42.5]),
        longitude=np.arange(6) * 2.5 + 350,
    )
    draw = np.random.default_rng(seed)
    steps = days * 24 // hours
    phase = np.arange(6) / 6 * 2 * np.pi - np.arange(steps)[:, None] * hours / 24
    waves = np.stack([np.sin(phase + k) for k in range(3)], axis=1)[:, :, None]
    values = waves * np.linspace(0.5, 1.5, 4)[:, None] + 0.3 * draw.normal(size=(steps, 3, 4, 6))
    scale = np.array([8.0, 700.0, 900.0])[:, None, None]
    mean = np.array([285.0, 101300.0, 54000.0])[:, None, None]
    static = (np.arange(24).reshape(1, 4, 6) % 5).astype(np.float32)
    times = 1_000_000_000 // 86400 * 86400 + np.arange(steps) * hours * 3600
    fields = (mean + scale * values).astype(np.float32)
    return WeatherFields(layout, times, fields, static, fingerprint=f"waves {days} {hours} {seed}")


def make_chain(
    output_dir, model=None, fields=None, lead_times=LEAD_TIMES, **options
) -> WeatherChain:
    fields = make_fields() if fields is None else fields
    statistics = compute_statistics(fields, slice(0, 60))
    model = make_model(fields) if model is None else model
    rows, past = len(fields) // 100, model.config.history - 1
    folder = Path(output_dir) / "initial"
    initial = {
        split: copy_initial_conditions(
            folder / f"ic_{split}.mmap",
            fields,
            fields.times[first * rows + past : last * rows],
            history=model.config.history,
            timestep_hours=model.config.timestep_hours,
        )
        for split, (first, last) in DAYS.items()
    }
    return WeatherChain(
        output_dir,
        initial,
        fields,
        model.config,
        statistics=statistics,
        climatology=compute_climatology(fields, np.arange(60 * rows)),
        lead_times=lead_times,
        batch_size=16,
        **options,
    )


def make_model(fields: WeatherFields | None = None, **sizes) -> AardvarkProcessor:
    fields = make_fields() if fields is None else fields
    torch.manual_seed(0)
    config = build_processor_config(
        fields.layout,
        compute_statistics(fields, slice(0, 60)),
        **{"patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2, "head_depth": 1, **sizes},
    )
    model = AardvarkProcessor(config)
    model.set_static_fields(fields.static_fields)
    return model


def make_trainer(output_dir, chain_options=None, staging=None, callbacks=None, model=None, **args):
    defaults = dict(
        output_dir=str(output_dir),
        num_train_epochs=2,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        logging_steps=2,
        disable_tqdm=True,
        use_cpu=True,
    )
    model = make_model() if model is None else model
    return LeadTimeTrainer(
        model,
        StagedTrainingArguments(**{**defaults, **args}),
        chain=make_chain(output_dir, model, **(chain_options or {})),
        staging=StageArguments(**(staging or {})),
        callbacks=callbacks,
    )


def outcome(output_dir) -> dict:
    """Everything that must not depend on how often the run was interrupted."""
    root = Path(output_dir)
    found = staged_run.outcome(root)
    found["states"] = {p.name: p.read_bytes().hex() for p in sorted(root.glob("ic_*.mmap"))}
    found["scores"] = {
        str(p.relative_to(root)): p.read_text() for p in sorted(root.glob("*/test_scores.json"))
    }
    found["left"] = sorted(p.name for p in root.iterdir() if p.name.startswith(("ic_", ".ic_")))
    return found


def arm(trainer: LeadTimeTrainer, point: str) -> None:
    """Has this process killed, beside the points of :func:`staged_run.arm`, at a point of lead time
    N: ``block:N`` (a block of the training states is written, not marked), ``finish:N`` (before
    they get their name), ``manifest:N`` (they have it, their manifest is not there), ``tidy:N``
    (before old states are removed).
    """
    kind, number = point.split(":")[:2]
    partial, name = initial_conditions_partial.PartialFile, f"ic_train_{number}.mmap"

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if kind == "block":
        write = partial.write

        def written(file, block, chunks):
            write(file, block, chunks)
            if file.path.name == name and block == 1:
                kill()

        partial.write = written
    elif kind in ("finish", "manifest"):
        replace = initial_conditions_partial.os.replace

        def replaced(source, target):
            if Path(target).name == name and kind == "finish":
                kill()
            replace(source, target)
            if Path(target).name == name:
                kill()

        initial_conditions_partial.os.replace = replaced
    elif kind == "tidy":
        tidy = trainer.tidy

        def tidied(done):
            if done == int(number):
                kill()
            tidy(done)

        trainer.tidy = tidied
    else:
        staged_run.arm(trainer, point)


def run(output_dir: str | Path, settings: dict) -> None:
    """A run from start to end; ``kill`` as in :func:`arm`."""
    settings = dict(settings)
    kill = settings.pop("kill", None)
    trainer = make_trainer(output_dir, **settings)
    if kill:
        arm(trainer, kill)
    trainer.train()
    trainer.end()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_recipe(lambda: run(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}))
