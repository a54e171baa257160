"""What a ranking with DINOv2 ViT-L needs on a GPU, beside the guide's targets.

    python benchmarks/ranking_gpu.py [--sizes 518 756] [--batch_size 32] [--json FILE]
    python benchmarks/ranking_gpu.py --small --device cpu  # a tiny model: a test of the script

The model has the published configuration (width 1024, 24 blocks, 16 heads, patches of 14 pixels,
embeddings for 518) and random weights, on which no time depends; bfloat16 by autocast, float32
weights. Prints a Markdown table:

- Time of a pair and of an image, memory at ``--batch_size``: of
  :class:`~hftune.tasks.ranking.benchmarks_ranking.PerformanceBenchmarks`, on pixels that are on the
  device already: medians, with the device synchronised.
- Training where the last 2 blocks train, and with LoRA of rank 8, in batches of ``--train_batch``:
  time of a step and the most memory.
- JPEG files of 1,024 pixels decoded and processed a second by one worker: one process, one thread.
- Projections to 10,000 images and 100 epochs: each image through the backbone once, then measured
  steps of the head on features (100 epochs over the images, with all pairs of a batch); and the
  guide's way, for 10,000 pairs an epoch (which is what its 6 hours are for) and for all ordered
  pairs, each with two passes and a step of the head. Decoding runs beside either, where there are
  enough workers: how many are needed to keep up with the backbone is told.

Exits with 1 where a target of the guide's is missed on a GPU.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Dinov2Config

from hftune.tasks.ranking.backbones_ranking import new_backbone
from hftune.tasks.ranking.benchmarks_ranking import PerformanceBenchmarks, set_seed
from hftune.tasks.ranking.example_ranking import draw_scene
from hftune.tasks.ranking.image_files import load_image
from hftune.tasks.ranking.image_processing_ranking import RankingImageProcessor
from hftune.tasks.ranking.modeling_ranking import (
    PairwiseRankingModel,
    make_processor,
    ranking_config,
)

VIT_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
IMAGES, EPOCHS, TIERS, JPEG_SIDE = 10_000, 100, 4, 1024
PAIR_MS, MEMORY_GB, HOURS = 100, 12, 6
"""The guide's targets: a pair, a batch of 32, 10,000 samples and 100 epochs."""


def make_model(sizes: dict[str, int], image_size: int, **settings: Any) -> PairwiseRankingModel:
    """A model with random weights."""
    set_seed(0)
    # The published embeddings are for 518 pixels; other sizes resize them, as they would.
    vision = Dinov2Config(**sizes, patch_size=14, image_size=518)
    backbone = new_backbone(vision)
    model = PairwiseRankingModel(ranking_config(backbone, **settings), backbone=backbone)
    model.image_processor = make_processor(vision, image_size, "letterbox")
    return model


def measure(options: argparse.Namespace, image_size: int) -> dict[str, Any]:
    """All of one image size."""
    sizes = SMALL if options.small else VIT_L
    found = {}
    for name, batch, settings in (
        ("frozen", options.batch_size, {}),
        ("last 2 blocks", options.train_batch, {"unfreeze_last_blocks": 2}),
        ("LoRA rank 8", options.train_batch, {"lora_rank": 8}),
    ):
        model = make_model(sizes, image_size, **settings)
        benchmarks = PerformanceBenchmarks(model, options.device, image_size, batch, options.dtype)
        found[name] = benchmarks.run_full_benchmark()
        print(f"{image_size} pixels, {name}: done", file=sys.stderr, flush=True)
        del model, benchmarks
        if options.device == "cuda":
            torch.cuda.empty_cache()
    side = 64 if options.small else JPEG_SIDE
    return found | {"decoded": images_per_second(image_size, side), "jpeg_side": side}


def images_per_second(image_size: int, side: int) -> float:
    """JPEG files of a side that one worker makes pixels of."""
    picture, stream = draw_scene(np.random.default_rng(0), side), io.BytesIO()
    picture.save(stream, "JPEG", quality=92)
    processor = RankingImageProcessor(size=image_size, patch_size=14)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for _ in range(17):  # the first warms up
        begin = time.perf_counter()
        processor.process(load_image(Image.open(io.BytesIO(stream.getvalue()))))
        times.append(time.perf_counter() - begin)
    torch.set_num_threads(threads)
    return 1 / statistics.median(times[1:])


def project(report: dict[str, Any]) -> dict[str, float]:
    """Hours of 10,000 images and 100 epochs with a backbone that does not train."""
    image, step = report["backbone_ms_per_image"] / 3.6e6, report["training_step_ms"] / 3.6e6
    pair = 2 * image + step / report["batch_size"]
    ordered = IMAGES**2 - TIERS * (IMAGES // TIERS) ** 2
    return {
        "features": IMAGES * image,
        "hftune": report["training_hours_10k"],
        "guide, 10,000 pairs": EPOCHS * IMAGES * pair,
        "guide, all pairs": EPOCHS * ordered * pair,
    }


def rows_of(size: int, found: dict[str, Any]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The rows of one image size, and the targets that were missed."""
    report, hours = found["frozen"], project(found["frozen"])
    image, batch = report["backbone_ms_per_image"], report["batch_size"]
    workers = 1000 / image / found["decoded"]
    rows = [
        ("a pair, `model(img1, img2)`", f"{report['inference_time_ms']:.2f} ms", f"< {PAIR_MS} ms"),
        (f"an image, in batches of {batch}", f"{image:.2f} ms", ""),
        (f"a pair, in batches of {batch}", f"{2 * image:.2f} ms", f"< {PAIR_MS} ms"),
        (
            f"memory, {batch} pairs scored and a step of {batch} images, frozen backbone",
            f"{report['memory_usage_gb']:.2f} GiB",
            f"< {MEMORY_GB} GB",
        ),
    ]
    for name in ("last 2 blocks", "LoRA rank 8"):
        other = found[name]
        rows.append(
            (
                f"a step of {other['batch_size']} images, {name} training",
                f"{other['training_step_ms']:.1f} ms, {other['memory_usage_gb']:.2f} GiB",
                "",
            )
        )
    rows += [
        (
            f"JPEG files of {found['jpeg_side']:,} pixels decoded and processed, one worker",
            f"{found['decoded']:.0f} a second; {workers:.1f} workers keep up with the backbone",
            "",
        ),
        (
            f"{IMAGES:,} images x {EPOCHS} epochs, projected: features once, then the head",
            f"{_time(hours['hftune'])} (features {_time(hours['features'])})",
            f"< {HOURS} h",
        ),
        (
            f"- the guide's way, {IMAGES:,} pairs an epoch, projected",
            _time(hours["guide, 10,000 pairs"]),
            f"< {HOURS} h",
        ),
        (
            "- the guide's way, all ordered pairs, projected",
            _time(hours["guide, all pairs"]),
            f"< {HOURS} h",
        ),
    ]
    missed = [
        f"{size} pixels: {name}"
        for name, met in (
            (f"a pair takes {report['inference_time_ms']:.0f} ms", "inference"),
            (f"a batch needs {report['memory_usage_gb']:.1f} GiB", "memory"),
            (f"a training takes {hours['hftune']:.1f} h", "training"),
        )
        if not report[f"meets_{met}_requirement"]
    ]
    return [(str(size), *row) for row in rows], missed


def _time(hours: float) -> str:
    if hours < 0.1:
        return f"{60 * hours:.1f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:,.0f} days"


def main(argv: list[str] | None = None) -> int:
    """Measures, prints a table, and says whether the guide's targets are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", help="sides of the images (default: 518 756)")
    add("--batch_size", type=int, help="(default: 32)")
    add("--train_batch", type=int, help="where blocks or adapters train (default: 8)")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--small", action="store_true", help="a tiny model and images, which say nothing")
    add("--json", help="write all that was found into this file")
    options = parser.parse_args(argv)
    defaults = {
        "sizes": [28, 42] if options.small else [518, 756],
        "batch_size": 4 if options.small else 32,
        "train_batch": 2 if options.small else 8,
    }
    for name, value in defaults.items():
        setattr(options, name, getattr(options, name) or value)
    rows, missed, results = [], [], {}
    for size in options.sizes:
        results[size] = found = measure(options, size)
        more, failed = rows_of(size, found)
        rows, missed = rows + more, missed + failed
        found["hours"] = project(found["frozen"])
    report = results[options.sizes[0]]["frozen"]
    print(
        f"{report['device_name']}, torch {torch.__version__}, {report['dtype']}, "
        f"{report['parameters']:,} parameters\n"
    )
    for row in (("pixels", "", "measured", "the guide's target"), ("---",) * 4, *rows):
        print(f"| {' | '.join(row)} |")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    if options.device == "cpu":  # the targets are meant for a GPU
        return 0
    for text in missed:
        print(f"missed: {text}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
