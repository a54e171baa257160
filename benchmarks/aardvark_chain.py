"""Aardvark's lead-time chain against the reference's way of doing it.

    python benchmarks/aardvark_chain.py [--rows 120] [--lead_times 3] [--published] [--threads 1]

Both start from the same weights and initial conditions, train each lead time on the states of the
one before with the same samples in the same order, batches, learning rate, loss and precision
(float32), and write the states of the training, validation and test rows and the test targets:

- hftune: ``LeadTimeTrainer`` on a ``WeatherChain``, with all that they do besides (journal, sealed
  checkpoints, manifests and hashes of the states, scores of the test states, drift).
- reference: a plain PyTorch loop in one process (``aardvark_reference.py``): a fresh loader on
  float32 memory maps for each lead time, which makes each sample in ``__getitem__`` (transposing,
  normalising, the static channels too); a convolution for each channel, full keys and values for a
  query repeated at all places, explicit attention matrices; an evaluation before training and
  after each epoch; the best epoch saved with its optimizer and read back; predictions with their
  graph, into ``np.memmap``.

Each turn is a process of its own, the sides take turns in going first, and medians are shown. The
clock starts when the libraries are imported (both import the same ones) and stops when the last
file is written. Memory is the peak of the resident set (VmHWM, set back at the start of the clock)
over the resident set then; on a GPU, the peak of the allocator. The resident set counts what is
mapped of files, which only the reference does: so anonymous memory (RssAnon), read from outside
every 10 ms, is shown too, and has the same limit.

Before that the two are compared in one process: loss and gradients of a batch, and predictions, of
the same weights. After it, the states that the two chains have arrived at. Last, both run a small
network on ten times the rows, to tell what grows with them.

What the ratio of times depends on: the depth of the network (all blocks are alike on both sides,
but for their attention matrices; the tokens of the channels are not) and the allocator. With the
default one a good quarter of the reference's time is first touches of memory that was given back.
Other work on the machine counts for both sides: the processor times say more than the wall times.

Exits with 1 where a limit does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from aardvark_reference import (
    BETAS,
    DECAY,
    PARTS,
    RATE,
    SEED,
    SPLITS,
    YEAR,
    ReferenceChain,
    ReferenceNetwork,
    ReferenceSamples,
    read_config,
    read_weights,
    reference_loss,
    split_rows,
    timed,
    truth_file,
)

from hftune.configuration.staged_training_arguments import StagedTrainingArguments
from hftune.tasks.aardvark.configuration_aardvark import OFFICIAL_CHANNELS, build_processor_config
from hftune.tasks.aardvark.modeling_aardvark import AardvarkProcessor
from hftune.tasks.weather.chain import WeatherChain
from hftune.tasks.weather.fields import FieldLayout, WeatherFields, split_channel
from hftune.tasks.weather.initial_conditions import open_initial_conditions
from hftune.tasks.weather.initial_conditions_write import copy_initial_conditions
from hftune.tasks.weather.samples import collate
from hftune.tasks.weather.statistics import FieldStatistics, compute_statistics
from hftune.tasks.weather.yearly_memmaps import open_yearly_memmaps
from hftune.training.lead_time import LeadTimeTrainer
from hftune.utils.files import read_json, write_json

STATIC = tuple(f"static{i + 1}" for i in range(7))
SAME = 1e-5
# Latitudes and longitudes, hours between rows, and the network.
MIDDLE = {
    "grid": (61, 120), "frequency": 6, "batch": 12,
    "embed_dim": 128, "depth": 4, "num_heads": 4, "head_depth": 4, "patch_size": 5,
}  # fmt: skip
PUBLISHED = {
    "grid": (121, 240), "frequency": 24, "batch": 2,
    "embed_dim": 512, "depth": 16, "num_heads": 16, "head_depth": 4, "patch_size": 5,
}  # fmt: skip
GROWTH = {**MIDDLE, "grid": (31, 60), "embed_dim": 32, "depth": 1, "head_depth": 1}
NETWORK = ("embed_dim", "depth", "num_heads", "head_depth", "patch_size")
# Typical mean and standard deviation.
UNITS = {
    "10u": (0, 5), "10v": (0, 5), "2t": (280, 20), "msl": (1e5, 1e3), "z": (5e4, 3e3),
    "q": (2e-3, 1e-3), "t": (250, 15), "u": (5, 12), "v": (0, 10),
}  # fmt: skip


def make_data(task: dict[str, Any]) -> None:
    """Writes truth, static fields, initial conditions and a model into ``task["data"]``."""
    folder, (height, width) = Path(task["data"]), task["grid"]
    step = min(1.5, 180 / (height - 1))
    layout = FieldLayout(
        channels=OFFICIAL_CHANNELS,
        units=("1",) * len(OFFICIAL_CHANNELS),
        static_channels=STATIC,
        latitude=(height - 1) / 2 * step - np.arange(height) * step,
        longitude=np.arange(width) * step,
    )
    draw = np.random.default_rng(0)
    count = split_rows(task)["test"].stop
    mean, std = (
        np.array([UNITS[split_channel(name)[0]][i] for name in OFFICIAL_CHANNELS], np.float32)
        for i in (0, 1)
    )
    values = np.empty((count, len(mean), height, width), np.float32)
    shape = np.cos(np.linspace(-1, 1, height))[:, None]
    phase = np.arange(width) / width * 4 * np.pi + np.arange(len(mean))[:, None]
    for row in range(count):  # waves that travel east, and noise
        waves = np.sin(phase - row * task["frequency"] / 24)[:, None] * shape
        values[row] = waves + 0.3 * draw.standard_normal(values.shape[1:], np.float32)
    values = values * std[:, None, None] + mean[:, None, None]
    times = np.datetime64(f"{YEAR}-01-01", "s").astype(np.int64)
    times = times + np.arange(count) * 3600 * task["frequency"]
    static = draw.normal(size=(len(STATIC), height, width)).astype(np.float32) + 3
    fields = WeatherFields(layout, times, values, static)

    (folder / "era5").mkdir(parents=True)
    with open(truth_file(task), "wb") as stream:
        stream.write(np.ascontiguousarray(values[:, :, ::-1].transpose(0, 1, 3, 2)))
        stream.truncate(365 * 24 // task["frequency"] * values[0].nbytes)  # nobody reads the rest
    np.save(folder / "elev_vars_1.npy", static[:, ::-1].transpose(0, 2, 1))
    for split, rows in split_rows(task).items():
        copy_initial_conditions(folder / f"ic_{split}.mmap", fields, times[rows.start : rows.stop])
    torch.manual_seed(0)
    spread = compute_statistics(fields)
    write_json(folder / "statistics.json", spread.as_dict())
    config = build_processor_config(layout, spread, **{name: task[name] for name in NETWORK})
    model = AardvarkProcessor(config)
    with torch.no_grad():  # a query and biases of zero would hide half of the network
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.set_static_fields(static)
    model.save_pretrained(folder / "model")


# The two sides


class TimedTrainer(LeadTimeTrainer):
    """Tells the seconds of :data:`PARTS`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)
        super().__init__(*args, **kwargs)

    def _train_once(self, *args: Any) -> Any:
        before = self.spent["evaluating"]
        with timed(self.spent, "training"):
            found = super()._train_once(*args)
        self.spent["training"] -= self.spent["evaluating"] - before
        return found

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with timed(self.spent, "evaluating"):
            return super().evaluate(*args, **kwargs)

    def stage_result(self, *args: Any) -> dict[str, Any]:
        with timed(self.spent, "predicting"):
            return super().stage_result(*args)


def reference_chain(task: dict[str, Any]) -> dict[str, float]:
    """All lead times; returns seconds of :data:`PARTS`."""
    chain = ReferenceChain(task)
    chain.run()
    return chain.spent


def make_chain(task: dict[str, Any], config: Any) -> WeatherChain:
    """Opens the data as a chain."""
    data = Path(task["data"])
    initial = {split: open_initial_conditions(data / f"ic_{split}.mmap") for split in SPLITS}
    truth = open_yearly_memmaps(
        data / "era5", layout=initial["train"].layout, frequency=task["frequency"]
    )
    return WeatherChain(
        task["folder"],
        initial,
        truth,
        config,
        statistics=FieldStatistics.from_dict(read_json(data / "statistics.json")),
        lead_times=task["lead_times"],
        batch_size=task["batch"],
        write_targets=True,
    )


def hftune_chain(task: dict[str, Any], **arguments: Any) -> dict[str, float]:
    """All lead times; returns seconds of :data:`PARTS`."""
    model = AardvarkProcessor.from_pretrained(Path(task["data"]) / "model")
    args = StagedTrainingArguments(
        **{
            "output_dir": task["folder"],
            "num_train_epochs": task["epochs"],
            "per_device_train_batch_size": task["batch"],
            "learning_rate": RATE,
            "weight_decay": DECAY,
            "adam_beta1": BETAS[0],
            "adam_beta2": BETAS[1],
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0,
            "seed": SEED,
            "disable_tqdm": True,
            "use_cpu": task["device"] == "cpu",
            **arguments,
        }
    )
    trainer = TimedTrainer(model, args, chain=make_chain(task, model.config))
    trainer.train()
    trainer.end()
    return trainer.spent


# Side by side


def compare(task: dict[str, Any]) -> dict[str, float]:
    """Relative differences of the two, with the same weights: loss, largest of the gradients, and
    predictions (root mean square of the worst channel, in standard deviations).
    """
    model = AardvarkProcessor.from_pretrained(Path(task["data"]) / "model").to(task["device"])
    chain = make_chain(task, model.config)
    network = ReferenceNetwork(task).to(task["device"])
    network.load_state_dict(read_weights(task))
    samples = ReferenceSamples(task, "train", 1)
    batch = torch.utils.data.default_collate([samples[i] for i in range(task["batch"])])
    output = network(batch["x"], torch.zeros(1, 1, device=task["device"]))
    loss = reference_loss(task)(output, batch["target"])
    loss.backward()
    expected = samples.unnormalised(output, batch["x"]).detach().permute(0, 3, 1, 2).flip(-2)

    ours = chain.samples("train", 1)
    ours = collate([ours[i] for i in range(task["batch"])])
    found = model(**{name: values.to(task["device"]) for name, values in ours.items()})
    found.loss.backward()
    apart = (found.prediction[:, 0].detach() - expected) / samples.std
    gradients = {name: p.grad for name, p in model.network.decoder_lr.named_parameters()}

    def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))

    return {
        "loss": difference(found.loss.detach(), loss.detach()),
        "gradients": max(difference(gradients[k], p.grad) for k, p in network.named_parameters()),
        "predictions": float(apart.square().mean(dim=(0, 2, 3)).sqrt().max()),
    }


def states_differ(task: dict[str, Any], ours: Path, theirs: Path) -> float:
    """Root mean square difference of the chains' last test states, in standard deviations."""
    name, std = f"ic_test_{task['lead_times']}.mmap", np.array(read_config(task)["std"])
    a, b = (
        np.fromfile(folder / name, "<f4").astype(np.float64).reshape(-1, len(std))
        for folder in (ours, theirs)
    )
    return float(np.sqrt((((a - b) / std) ** 2).mean()))


def memory(name: str, process: int | str = "self") -> float:
    """A line of a process's status, MiB."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1]) / 1024


def measure(side: str, task: dict[str, Any]) -> dict[str, Any]:
    """Runs a chain in this process: seconds, and MiB over those at the start."""
    on_gpu = task["device"] == "cuda"
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = {name: memory(name) for name in ("VmRSS", "RssAnon")}
    begin, used = time.perf_counter(), time.process_time()
    if side == "hftune":
        parts = hftune_chain(task)
    else:
        parts = reference_chain(task)
    if on_gpu:
        torch.cuda.synchronize()
    wall = time.perf_counter() - begin
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else memory("VmHWM")
    return {
        **parts,
        "the rest": wall - sum(parts.values()),
        "wall": wall,
        "processor": time.process_time() - used,
        "peak": peak - (0 if on_gpu else before["VmRSS"]),
        "start": before["VmRSS"],
        "anonymous at start": before["RssAnon"],
    }


def run_process(what: str, task: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Runs a part in a process of its own, watching its anonymous memory."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, __file__, "--process", what, json.dumps(task)],
            env=variables, stdout=said, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if options.core is not None:
            os.sched_setaffinity(process.pid, {options.core})
        peak = 0.0
        while process.poll() is None:
            try:
                peak = max(peak, memory("RssAnon", process.pid))
            except (OSError, TypeError):  # it has just ended
                pass
            time.sleep(0.01)
        said.seek(0)
        text = said.read()
    if process.returncode:
        sys.exit(f"{what} ended with {process.returncode}:\n{text[-3000:]}")
    found = json.loads(text.splitlines()[-1])
    if found and "anonymous at start" in found:
        found["anonymous"] = peak - found["anonymous at start"]
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def take_turns(
    task: dict[str, Any], root: Path, repeats: int, options: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """What each side did in each of its turns; the folders stay."""
    done: dict[str, list[dict[str, Any]]] = {"hftune": [], "reference": []}
    for turn in range(repeats):
        for side in sorted(done, reverse=turn % 2 == 1):
            folder = root / f"{side}_{turn}"
            folder.mkdir()
            found = run_process(side, {**task, "folder": str(folder)}, options)
            done[side].append(found)
            load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
            say(f"{side}: {found['wall']:.1f} s, {found['peak']:.0f} MiB (load {load})")
    return done


def main() -> int:
    """Measures, prints tables, and says whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--published", action="store_true", help="the published grid and network, few daily rows")
    add("--rows", type=int, help="training rows (default: 120, published 6)")
    add("--lead_times", type=int, help="(default: 3, published 2)")
    add("--epochs", type=int, default=1, help="of each lead time (default: 1)")
    add("--repeats", type=int, default=3, help="turns of each side (default: 3)")
    add("--threads", type=int, default=1, help="of each process (default: 1)")
    add("--core", type=int, help="keep all processes on this processor core")
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--no_growth", action="store_true", help="leave out the part with ten times the rows")
    add("--faster", type=float, default=1.5, help="least ratio of wall times (default: 1.5)")
    add("--process", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        what, task = options.process[0], json.loads(options.process[1])
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        run = {"data": make_data, "compare": compare}.get(what, lambda task: measure(what, task))
        print("\n" + json.dumps(run(task)))
        return 0

    sizes = {**(PUBLISHED if options.published else MIDDLE)}
    sizes["rows"] = options.rows or (6 if options.published else 120)
    sizes["lead_times"] = options.lead_times or (2 if options.published else 3)
    sizes |= {"epochs": options.epochs, "device": options.device}
    missed = []
    with tempfile.TemporaryDirectory(prefix="aardvark_chain_") as temporary:
        root = Path(temporary)
        task = {**sizes, "data": str(root / "data"), "folder": str(root)}
        run_process("data", task, options)
        same = run_process("compare", task, options)
        print("Differences, same weights: " + ", ".join(f"{k} {v:.1e}" for k, v in same.items()))
        if max(same.values()) > SAME:
            missed.append(f"the numbers differ by more than {SAME:g}")
        done = take_turns(task, root, options.repeats, options)
        apart = states_differ(task, root / "hftune_0", root / "reference_0")
        missed += print_turns(done, sizes, apart, options)
    if not options.no_growth:
        missed += grow(options)
    for text in missed:
        say(text)
    return int(bool(missed))


def print_turns(
    done: dict[str, list[dict[str, Any]]],
    sizes: dict[str, Any],
    apart: float,
    options: argparse.Namespace,
) -> list[str]:
    """Prints what the sides took; returns the limits that do not hold."""
    from rich.console import Console
    from rich.table import Table

    rows = split_rows(sizes)
    print(
        f"{sizes['grid'][1]} x {sizes['grid'][0]} points, "
        f"{', '.join(f'{len(of)} {split}' for split, of in rows.items())} rows every "
        f"{sizes['frequency']} h, {sizes['lead_times']} lead times of {sizes['epochs']} epochs, "
        f"batch {sizes['batch']}, {', '.join(f'{name} {sizes[name]}' for name in NETWORK)}; "
        f"{options.device}, threads: {options.threads}"
    )
    table = Table(title=f"medians of {options.repeats} turns")
    for column in ("", "hftune", "reference", "reference / hftune"):
        table.add_column(column, justify="right" if column else "left")
    ratios = {}
    memories = {"peak": "peak memory, MiB", "anonymous": "of it not mapped files, MiB"}
    if options.device == "cuda":
        memories = {"peak": "peak of the allocator, MiB"}
    names = {part: f"{part}, s" for part in (*PARTS, "the rest", "wall", "processor")}
    for part, shown in {**names, **memories}.items():
        ours, theirs = (statistics.median(turn[part] for turn in turns) for turns in done.values())
        pairs = zip(done["hftune"], done["reference"], strict=True)
        ratios[part] = statistics.median(b[part] / a[part] for a, b in pairs)
        format = ".0f" if part in memories else ".2f"
        table.add_row(shown, f"{ours:{format}}", f"{theirs:{format}}", f"{ratios[part]:.2f}")
    Console().print(table)
    print(f"The chains' last test states are {apart:.1e} standard deviations apart.")
    missed = []
    if ratios["wall"] < options.faster:
        missed.append(f"{ratios['wall']:.2f} times as fast, under {options.faster:g}")
    missed += [
        f"{shown} {1 / ratios[part]:.2f} of the reference's, over 0.5"
        for part, shown in memories.items()
        if ratios[part] < 2
    ]
    return missed


def grow(options: argparse.Namespace) -> list[str]:
    """Prints the peaks on some rows and on ten times as many; returns the limits not held."""
    peaks: dict[str, list[float]] = {}
    sizes = {**GROWTH, "lead_times": 1, "epochs": 1, "device": options.device}
    bytes_a_row = 4 * len(OFFICIAL_CHANNELS) * sizes["grid"][0] * sizes["grid"][1]
    few, many = 100, 1000
    for count in (few, many):
        with tempfile.TemporaryDirectory(prefix="aardvark_chain_") as temporary:
            task = {**sizes, "rows": count, "data": f"{temporary}/data", "folder": temporary}
            run_process("data", task, options)
            for side, turns in take_turns(task, Path(temporary), 1, options).items():
                peaks.setdefault(side, []).append(turns[0]["peak"])
    more = (many - few) * bytes_a_row / 2**20
    for side, (small, large) in peaks.items():
        print(
            f"{side}: peak {small:.0f} MiB with {few} training rows, {large:.0f} MiB with {many}: "
            f"{large - small:+.0f} MiB for {more:.0f} MiB more states in the file"
        )
    small, large = peaks["hftune"]
    if large - small > 0.05 * more:
        return [f"peak memory grew by {large - small:.0f} MiB with the rows"]
    return []


if __name__ == "__main__":
    sys.exit(main())
