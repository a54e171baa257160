"""Step time and peak memory of HFTuneTrainer against a bare loop around ``aurora.Aurora``.

    python benchmarks/aurora_step.py [--blocks 12] [--steps 10] [--device cpu]

Both train the same network (1.5 M parameters, 24 channels on 24 x 32 points, 4 samples a step) with
the same data, loss, optimizer (fused AdamW), clipping and schedule. The bare loop is what a user of
the package writes: an ``aurora.Batch`` from each batch, the package's forward pass, a loss variable
by variable. A third row is a bare loop around ``AuroraForForecasting``, to tell the cost of the
Trainer from that of the model around the network.

For times the loops take turns, ``--steps`` steps each, so that what else the machine does falls on
all of them; medians over the turns are shown. For memory each runs in a process of its own, with
a batch of 32 samples so that the tensors outweigh the libraries, which all of them have loaded: the
peak is that of the resident set on CPU, of the allocator on a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from torch import nn

from hftune import AuroraConfig, AuroraForForecasting, HFTuneArguments, HFTuneTrainer

SURFACE = ["2t", "10u", "10v", "msl"]
LEVELS = [250, 500, 700, 850]
CHANNELS = SURFACE + [f"{name}_{level}" for name in "ztuvq" for level in LEVELS]
GRID = (24, 32)
CLIP, RATE, TOTAL = 1.0, 1e-4, 1_000_000


class Samples(torch.utils.data.Dataset):
    """Random fields of unit size: statistics are zero and one."""

    def __init__(self, count: int = 256) -> None:
        generator = torch.Generator().manual_seed(0)
        self.fields = torch.randn(count, 3, len(CHANNELS), *GRID, generator=generator)

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        fields = self.fields[index]
        time = torch.tensor(1_577_836_800 + 86_400 * index)
        return {"fields": fields[:2], "times": time, "target_fields": fields[2:]}


def make_model() -> AuroraForForecasting:
    """A small Aurora of a regional grid."""
    torch.manual_seed(0)
    config = AuroraConfig(
        variant="custom",
        channels=CHANNELS,
        static_channels=["lsm"],
        static_mean=[0.0],
        static_std=[1.0],
        latitude=np.linspace(60, 37, GRID[0]).tolist(),
        longitude=np.arange(GRID[1], dtype=float).tolist(),
        timestep_hours=24,
        mean=[0.0] * len(CHANNELS),
        std=[1.0] * len(CHANNELS),
        embed_dim=64,
        num_heads=4,
        encoder_depths=(2, 2),
        encoder_num_heads=(4, 8),
        decoder_depths=(2, 2),
        decoder_num_heads=(8, 4),
        window_size=(2, 4, 4),
        latent_levels=4,
        patch_size=4,
    )
    model = AuroraForForecasting(config)
    model.set_static_fields(torch.rand(1, *GRID).numpy())
    return model


def package_loss(model: AuroraForForecasting) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """The loss as written around ``aurora.Aurora``, with the package's own normalisation."""
    import aurora.normalisation as tables
    from aurora import Batch, Metadata

    for name in [*CHANNELS, "lsm"]:
        tables.locations[name], tables.scales[name] = 0.0, 1.0
    config, network = model.config, model.aurora
    weights = dict(zip(CHANNELS, config.channel_weights(), strict=True))
    variables = list(dict.fromkeys(c.rpartition("_")[0] for c in CHANNELS if "_" in c))
    latitude, longitude = torch.tensor(config.latitude), torch.tensor(config.longitude)

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        fields, target = batch["fields"], batch["target_fields"][:, 0]
        index = CHANNELS.index
        prediction = network(
            Batch(
                surf_vars={name: fields[:, :, index(name)] for name in SURFACE},
                static_vars={"lsm": model.static_fields[0]},
                atmos_vars={
                    name: fields[:, :, index(f"{name}_{LEVELS[0]}") :][:, :, : len(LEVELS)]
                    for name in variables
                },
                metadata=Metadata(
                    lat=latitude,
                    lon=longitude,
                    time=tuple(
                        datetime.datetime.fromtimestamp(second, tz=datetime.timezone.utc)
                        for second in batch["times"].tolist()
                    ),
                    atmos_levels=tuple(LEVELS),
                ),
            )
        )
        total = 0.0
        for name in SURFACE:
            error = (prediction.surf_vars[name][:, 0] - target[:, index(name)]).abs().mean()
            total = total + weights[name] * error
        for name in variables:
            for k, level in enumerate(LEVELS):
                channel = f"{name}_{level}"
                error = prediction.atmos_vars[name][:, 0, k] - target[:, index(channel)]
                total = total + weights[channel] * error.abs().mean()
        return total

    return loss


def bare_steps(
    model: nn.Module, loss: Callable[[Any], torch.Tensor], samples: Samples, batch: int, device: str
) -> Iterator[None]:
    """A training loop without a trainer; a step is done at each ``next``."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, TOTAL)
    model.train()
    step = 0
    while True:
        for inputs in torch.utils.data.DataLoader(samples, batch, shuffle=True):
            value = loss({name: tensor.to(device) for name, tensor in inputs.items()})
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 10 == 0:
                value.item()  # for the log
            yield


def make_trainer(
    samples: Samples, batch: int, steps: int, device: str, callbacks: list[Any]
) -> HFTuneTrainer:
    """The same training by the trainer, with all that it does by default."""
    args = HFTuneArguments(
        output_dir=tempfile.mkdtemp(prefix="aurora_step_"),
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=RATE,
        max_grad_norm=CLIP,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=device == "cpu",
    )
    model = make_model()
    return HFTuneTrainer(model, args, train_dataset=samples, callbacks=callbacks)


class TakeTurns(transformers.TrainerCallback):
    """Lets the other loops run a block after each block of the trainer's, and times all."""

    def __init__(self, others: dict[str, Iterator[None]], block: int, synchronize: Any) -> None:
        self.others, self.block, self.synchronize = others, block, synchronize
        self.times: dict[str, list[float]] = {"HFTuneTrainer": [], **{name: [] for name in others}}
        self.start = 0.0

    def now(self) -> float:
        self.synchronize()
        return time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = self.now()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.block:
            return
        self.times["HFTuneTrainer"].append((self.now() - self.start) / self.block)
        for name, steps in self.others.items():
            start = self.now()
            for _ in range(self.block):
                next(steps)
            self.times[name].append((self.now() - start) / self.block)
        self.start = self.now()


def measure_times(blocks: int, block: int, device: str) -> dict[str, list[float]]:
    """Seconds a step of each loop, in each of its turns but the first."""
    samples = Samples()
    package, wrapped = make_model().to(device), make_model().to(device)
    others = {
        "bare loop, aurora.Aurora": bare_steps(package, package_loss(package), samples, 4, device),
        "bare loop, AuroraForForecasting": bare_steps(
            wrapped, lambda batch: wrapped(**batch).loss, samples, 4, device
        ),
    }
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    turns = TakeTurns(others, block, synchronize)
    make_trainer(samples, 4, (blocks + 1) * block, device, [turns]).train()
    return {name: times[1:] for name, times in turns.times.items()}


def measure_memory(which: str, device: str) -> float:
    """Peak memory of a loop of 5 steps in this process, MiB."""
    samples = Samples()
    if which == "HFTuneTrainer":
        make_trainer(samples, 32, 5, device, []).train()
    else:
        model = make_model().to(device)
        loss = package_loss(model)
        if which != "bare loop, aurora.Aurora":
            loss = lambda batch: model(**batch).loss  # noqa: E731
        steps = bare_steps(model, loss, samples, 32, device)
        for _ in range(5):
            next(steps)
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=12, help="turns of each loop")
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        print(json.dumps(measure_memory(args.memory_of, args.device)))
        return
    times = measure_times(args.blocks, args.steps, args.device)
    base = "bare loop, aurora.Aurora"
    memory = {}
    for name in times:
        command = [sys.executable, __file__, "--memory_of", name, "--device", args.device]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        memory[name] = json.loads(result.stdout.splitlines()[-1])
    print(f"{'':34}{'ms a step':>10}{'ratio':>8}{'peak MiB':>10}{'ratio':>8}")
    for name in (base, "bare loop, AuroraForForecasting", "HFTuneTrainer"):
        # Of turns side by side, so that a slow minute of the machine counts for both.
        ratio = statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))
        print(
            f"{name:34}{1000 * statistics.median(times[name]):10.1f}{ratio:8.3f}"
            f"{memory[name]:10.0f}{memory[name] / memory[base]:8.3f}"
        )


if __name__ == "__main__":
    main()
