"""Ranking of images: hftune beside the guide's own way, and what pairs cost.

    python benchmarks/ranking_pairs.py [--repeats 3] [--images 500] [--epochs 20]
    taskset -c 0 python benchmarks/ranking_pairs.py

Prints one table, progress goes to stderr. Exits with 1 where a target is missed.

**Training**: images that code draws and makes worse in four tiers (JPEG, 224 pixels), a DINOv2 of
0.9 million parameters with new weights that stay as they are, the same weights, head (the
dropout too), loss (margin 1) and learning rate on all sides, one thread, float32.

- The guide (``ranking_reference.py``): all ordered pairs, 32 of them a step, both images of each
  decoded and passed through the backbone. It takes hours: some steps are timed, after others that
  warm up, and the median is **multiplied by the number of steps**. Its evaluations, its checkpoints
  and the making of its list are left out, in its favour.
- The guide with its tip to keep the decoded images in memory. They are decoded before the clock
  starts.
- hftune, **run whole**: hashes and features of the images (nothing is cached before), then
  ``RankingTrainer`` with 32 images a step and all pairs among them, as the recipe does it, until
  it has made as many pair-updates as the guide: an ordered pair of the guide's is counted as one,
  a pair of a batch as one. (A pair and its mirror image have the same gradient, so that half of the
  guide's are repeats; that is not made use of.) 20 evaluations on other images, 20 checkpoints and
  the saved model are within the time.
- hftune with single pairs, 32 a step: as many pair-updates **and as many steps** of the optimizer
  as the guide. Steps are timed and multiplied as the guide's, the features added.

The clock starts with the libraries imported and the model built. Each turn is a process of its own,
the sides take turns in going first; medians of the turns, and of their ratios.

**Quality**: the same number of pair-updates with the same learning rate; the exact pair accuracy of
the last model on the held-out images. On few images the guide's way is run to its end. So is its
loop on features that were computed before, which differs by rounding alone (how far the scores are
apart is shown) and can be run on more images. Batches of images make a tenth of the steps of the
optimizer for that number, which tells where these are few. The guide's model is told the mean and
deviation of the features as ours is.

**Memory** of pairs: growth of the resident set's peak (VmHWM) in a process that makes the data set
and draws pairs; the same of the guide's list for fewer images, multiplied by the number of pairs.
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
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ranking_reference import ReferencePairs
from ranking_sides import (
    compare,
    guide_side,
    hftune_side,
    make_data,
    make_model,
    quality,
    read_data,
)

from hftune.tasks.ranking.data_ranking import PairwiseDataset, PixelImages
from hftune.tasks.ranking.example_ranking import TIERS
from hftune.tasks.ranking.inference_ranking import batch_compare
from hftune.tasks.ranking.pairs_ranking import PairSampler
from hftune.tasks.ranking.scores_ranking import pair_counts
from hftune.tasks.ranking.scoring_ranking import score_images
from hftune.tasks.ranking.tables_ranking import ImageTable

FASTER, LIMIT_MB, LIMIT_MS = 50, 200, 50
"""Targets: times as fast, memory of the pairs of 10,000 images, time of an exact accuracy."""

FULL = {
    "images": 500, "held_out": 100, "image_size": 112, "epochs": 20, "batch": 32,
    "learning_rate": 1e-4, "hidden_size": 128, "num_hidden_layers": 4,
    "warm_up": 5, "steps": 15, "single_steps": 300,
    "finished_images": 24, "quality_images": 48, "quality_seeds": 3,
    "many": 10_000, "listed": 2_000, "drawn": 100_000, "passes": 40,
}  # fmt: skip
TINY = {
    "images": 16, "held_out": 8, "image_size": 28, "epochs": 2, "batch": 8,
    "hidden_size": 16, "num_hidden_layers": 1, "warm_up": 1, "steps": 2, "single_steps": 4,
    "finished_images": 8, "quality_images": 12, "quality_seeds": 1,
    "many": 200, "listed": 100, "drawn": 300, "passes": 5,
}  # fmt: skip
SIDES = ("hftune", "guide", "guide_cached")


# Memory, accuracy and passes


def _table(count: int) -> ImageTable:
    """Images that need no files."""
    paths = tuple(Path(f"{i:05d}.jpg") for i in range(count))
    tiers = len(TIERS)
    return ImageTable(tuple(map(str, paths)), paths, np.arange(count) % tiers * 1.0, TIERS)


def pairs_memory(task: dict[str, Any]) -> dict[str, float]:
    """MB of the pairs of many images, of which some are drawn."""
    with _Memory(task["traced"]) as memory:
        dataset = PairwiseDataset(_table(task["many"]))
        sampler = PairSampler(dataset.index, 0, task["drawn"])
        drawn = 0
        for batch in torch.utils.data.BatchSampler(sampler, 32, drop_last=False):
            drawn += len(dataset.pairs(np.array(batch))[0])
    assert drawn == len(sampler)
    return {"MB": memory.megabytes, "pairs": 2 * len(dataset)}


def list_memory(task: dict[str, Any]) -> dict[str, float]:
    """MB of the guide's list of the pairs of fewer images."""
    with _Memory(task["traced"]) as memory:
        table = _table(task["listed"])
        pairs = ReferencePairs(table.paths, table.targets)
    return {"MB": memory.megabytes, "pairs": len(pairs)}


class _Memory:
    """The most memory inside over that before, in MB (10^6 bytes)."""

    def __init__(self, traced: bool) -> None:
        self._traced, self.megabytes = traced, 0.0

    def __enter__(self) -> _Memory:
        if self._traced:
            tracemalloc.start()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.megabytes = (_status("VmHWM") - self._before) / 1e6
        if self._traced:
            self.megabytes = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1])


def exact_accuracy(task: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of the exact accuracy of many images, by rank sums and by all pairs."""
    draw = np.random.default_rng(0)
    targets = np.arange(task["many"]) % len(TIERS) * 1.0
    scores = np.round(targets + 2 * draw.standard_normal(len(targets)), 3)  # some are equal

    def all_pairs() -> float:
        better = targets[:, None] > targets
        right = np.count_nonzero(better & (scores[:, None] > scores))
        return right + np.count_nonzero(better & (scores[:, None] == scores)) / 2

    def milliseconds(work: Any, repeats: int) -> float:
        times = []
        for _ in range(repeats + 1):  # the first warms up
            begin = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - begin))
        return statistics.median(times[1:])

    counts = pair_counts(scores, targets)
    return {
        "ours": milliseconds(lambda: pair_counts(scores, targets), 20),
        "all pairs": milliseconds(all_pairs, 3),
        "pairs": counts.total_pairs,
        "same": bool(counts.correct_predictions == all_pairs()),
    }


def backbone_passes(task: dict[str, Any]) -> dict[str, int]:
    """Images that pass the backbone, where all pairs of some images are compared."""
    model = make_model(task)
    paths = read_data(task, task["images"])[0].paths[: task["passes"]]
    passed = 0

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal passed
        passed += len(kwargs["pixel_values"])

    model.backbone.register_forward_pre_hook(count, with_kwargs=True)
    pairs = [(a, b) for i, a in enumerate(paths) for b in paths[:i]]
    found = {"images": len(paths), "pairs": len(pairs)}
    score_images(model, PixelImages(paths, model.image_processor.process))
    found["score_images"], passed = passed, 0
    batch_compare(model, pairs)
    found["batch_compare"] = passed
    return found


# Side by side

PARTS = {
    "data": make_data,
    "compare": compare,
    "hftune": hftune_side,
    "guide": guide_side,
    "guide_cached": lambda task: guide_side(task, cached=True),
    "quality": quality,
    "pairs_memory": pairs_memory,
    "list_memory": list_memory,
    "exact_accuracy": exact_accuracy,
    "backbone_passes": backbone_passes,
}


def run_part(what: str, task: dict[str, Any], options: argparse.Namespace) -> Any:
    """Runs a part in a process of its own, with one thread."""
    begin = time.perf_counter()
    if options.one_process:
        found = PARTS[what](task)
    else:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, __file__, "--process", what, json.dumps(task)],
            env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{what} ended with {done.returncode}:\n{done.stdout[-3000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    print(f"{what}: {time.perf_counter() - begin:.0f} s (load {load})", file=sys.stderr, flush=True)
    return found


def measure(task: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Runs all parts; what each of them found."""
    run_part("data", task, options)
    found = {"compare": run_part("compare", task, options)}
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for turn in range(options.repeats):
        for place in range(len(SIDES)):
            side = SIDES[(place + turn) % len(SIDES)]
            turns[side].append(run_part(side, task, options))
    found["turns"] = turns
    for part in ("exact_accuracy", "backbone_passes"):
        found[part] = run_part(part, task, options)
    for part in ("pairs_memory", "list_memory"):
        for traced in (False, True):
            name = f"{part}, traced" if traced else part
            found[name] = run_part(part, {**task, "traced": traced}, options)
    found["quality"] = run_part("quality", task, options)
    return found


def rows_of(found: dict[str, Any], task: dict[str, Any]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The rows of the table, and the targets that were missed."""
    turns = found["turns"]
    ours = turns["hftune"]

    def middle(values: Any) -> float:
        return statistics.median(list(values))

    steps = turns["guide"][0]["steps"]
    singles = [turn["features"] + turn["single_step"] * steps for turn in ours]
    whole, single = middle(turn["seconds"] for turn in ours), middle(singles)
    rows, missed = [], []
    work = f"{task['images']} images x {task['epochs']} epochs"
    for side, name in (("guide", "the guide's way"), ("guide_cached", "the same, images cached")):
        theirs = turns[side]
        seconds, step = (middle(turn[key] for turn in theirs) for key in ("seconds", "step"))
        ratio = middle(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True))
        rows.append(
            (
                f"training, {work}, {ours[0]['updates']:,} pair-updates, against {name}",
                f"{whole:.1f} s whole ({ours[0]['steps']:,} steps of {task['batch']} images; of it "
                f"features {middle(turn['features'] for turn in ours):.1f} s)",
                f"{seconds:,.0f} s projected ({steps:,} steps x {1000 * step:.0f} ms)",
                f"{ratio:.0f} x",
                f">= {FASTER} x",
            )
        )
        if ratio < FASTER:
            missed.append(f"{ratio:.0f} times as fast as {name}, under {FASTER}")
        ratio = middle(b["seconds"] / a for a, b in zip(singles, theirs, strict=True))
        rows.append(
            (
                f"- single pairs, the same number of steps too, against {name}",
                f"{single:.0f} s projected "
                f"({1000 * middle(turn['single_step'] for turn in ours):.2f} ms a step)",
                f"{seconds:,.0f} s projected",
                f"{ratio:.0f} x",
                "",
            )
        )
    rows.append(
        ("- held-out pair accuracy of the whole run", f"{ours[0]['accuracy']:.3f}", "", "", "")
    )
    rows += quality_rows(found["quality"], task)
    ours, listed = (found[part] for part in ("pairs_memory", "list_memory"))
    traced = [found[f"{part}, traced"]["MB"] for part in ("pairs_memory", "list_memory")]
    grown = ours["pairs"] / listed["pairs"]
    rows.append(
        (
            f"memory of the pairs of {task['many']:,} images ({ours['pairs']:,} ordered), "
            f"{task['drawn']:,} drawn",
            f"{ours['MB']:.1f} MB (traced {traced[0]:.1f})",
            f"{listed['MB'] * grown:,.0f} MB extrapolated; {listed['MB']:.0f} (traced "
            f"{traced[1]:.0f}) for {task['listed']:,} images, {listed['pairs']:,} pairs",
            f"1/{listed['MB'] * grown / max(ours['MB'], 0.1):.0f}",
            f"< {LIMIT_MB} MB",
        )
    )
    if ours["MB"] >= LIMIT_MB:
        missed.append(f"pairs use {ours['MB']:.0f} MB, over {LIMIT_MB}")
    exact = found["exact_accuracy"]
    rows.append(
        (
            f"exact accuracy of {exact['pairs']:,} pairs",
            f"{exact['ours']:.1f} ms",
            f"{exact['all pairs']:.0f} ms (all pairs in NumPy)",
            f"{exact['all pairs'] / exact['ours']:.0f} x",
            f"< {LIMIT_MS} ms",
        )
    )
    if exact["ours"] >= LIMIT_MS or not exact["same"]:
        missed.append(f"the exact accuracy took {exact['ours']:.0f} ms, the same: {exact['same']}")
    passes = found["backbone_passes"]
    for name in ("score_images", "batch_compare"):
        rows.append(
            (
                f"backbone passes, all {passes['pairs']:,} pairs of {passes['images']} images: "
                f"{name}",
                str(passes[name]),
                f"{2 * passes['pairs']:,}",
                f"1/{2 * passes['pairs'] / passes[name]:.0f}",
                f"= {passes['images']}",
            )
        )
        if passes[name] != passes["images"]:
            missed.append(f"{name} made {passes[name]} passes of {passes['images']} images")
    worst = max(found["compare"].values())
    rows.append(("largest relative difference of loss and gradients", f"{worst:.0e}", "", "", ""))
    if worst > 1e-4:
        missed.append(f"the two sides' numbers differ: {found['compare']}")
    return rows, missed


def quality_rows(found: dict[str, Any], task: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the held-out accuracies."""
    rows = []
    sides = [
        (f"{task['finished_images']} images", {k: [v] for k, v in found["finished"].items()}),
        (f"{task['quality_images']} images (seeds: {task['quality_seeds']})", found["seeds"]),
    ]
    for images, results in sides:
        for name, made in results.items():
            text = _range([result["accuracy"] for result in made])
            done = f"{made[0]['updates']:,} pair-updates in {made[0]['steps']:,} steps"
            what = f"held-out pair accuracy, {images} x {task['epochs']} epochs, {done}: {name}"
            texts = (text, "") if name.startswith("hftune") else ("", text)
            rows.append((what, *texts, "", ""))
    whole, kept = (np.array(result["scores"]) for result in list(found["finished"].values())[:2])
    apart = np.abs(whole - kept).max() / whole.std()
    rows.append(("- scores of these two, apart, in deviations", "", f"{apart:.0e}", "", ""))
    return [*rows[:2], rows[-1], *rows[2:-1]]


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.3f}" + (
        f" ({low:.3f} to {high:.3f})" if len(values) > 1 else ""
    )


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Prints Markdown."""
    for row in (head, ("---",) * len(head), *rows):
        print(f"| {' | '.join(row)} |")


def main(argv: list[str] | None = None) -> int:
    """Measures, prints a table, and says whether the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--images", type=int, help=f"training images (default: {FULL['images']})")
    add("--epochs", type=int, help=f"of the guide (default: {FULL['epochs']})")
    add("--steps", type=int, help=f"of the guide that are timed (default: {FULL['steps']})")
    add("--repeats", type=int, default=3, help="turns of each side (default: 3)")
    add("--tiny", action="store_true", help="sizes that take no time and say nothing")
    add("--one_process", action="store_true", help="no processes of their own, to look for errors")
    add("--json", help="write all that was found into this file")
    add("--process", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.process:
        what, task = options.process[0], json.loads(options.process[1])
        print("\n" + json.dumps(PARTS[what](task)))
        return 0
    task = {**FULL, **(TINY if options.tiny else {})}
    for name in ("images", "epochs", "steps"):
        task[name] = getattr(options, name) or task[name]
    with tempfile.TemporaryDirectory(prefix="ranking_pairs_") as root:
        task |= {"data": f"{root}/data", "folder": root}
        found = measure(task, options)
    rows, missed = rows_of(found, task)
    parameters = sum(p.numel() for p in make_model(task).backbone.parameters())
    print(
        f"DINOv2 {task['hidden_size']} x {task['num_hidden_layers']} ({parameters:,} parameters), "
        f"{task['image_size']} pixels, one thread, torch {torch.__version__}, medians of "
        f"{options.repeats} turns\n"
    )
    print_table(("", "hftune", "the guide's way", "ratio", "target"), rows)
    if options.json:
        Path(options.json).write_text(json.dumps({"task": task, **found}, indent=1))
    for text in missed:
        print(f"missed: {text}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
