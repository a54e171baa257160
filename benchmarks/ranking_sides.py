"""The two sides of ``benchmarks/ranking_pairs.py``: the same images, weights, head and loss."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ranking_reference import (
    CachedReferencePairs,
    ReferencePairs,
    ReferenceTrainer,
    guide_transform,
    pair_loss,
)

from hftune.tasks.ranking.arguments_ranking import (
    RankingDataArguments,
    RankingModelArguments,
    RankingTrainingArguments,
)
from hftune.tasks.ranking.data_ranking import (
    FeatureImages,
    ImageCollator,
    PairCollator,
    PixelImages,
    TrainingPairs,
)
from hftune.tasks.ranking.evaluation_ranking import RankingEvaluator
from hftune.tasks.ranking.example_ranking import TIERS, write_example
from hftune.tasks.ranking.image_files import inspect_images
from hftune.tasks.ranking.modeling_ranking import PairwiseRankingModel
from hftune.tasks.ranking.pairs_ranking import ImageSampler, PairIndex
from hftune.tasks.ranking.prepare_ranking import RankingSplit, build_model, make_images
from hftune.tasks.ranking.scores_ranking import pair_counts
from hftune.tasks.ranking.scoring_ranking import score_images
from hftune.tasks.ranking.tables_ranking import ImageTable, read_images
from hftune.tasks.ranking.trainer_ranking import RankingTrainer
from hftune.utils.seeds import derive_seed, seed_everything

# Data and model, the same for all sides


def make_data(task: dict[str, Any]) -> None:
    """Draws the images."""
    write_example(task["data"], task["images"] + task["held_out"], 224)


def read_data(task: dict[str, Any], images: int) -> tuple[ImageTable, ImageTable]:
    """``images`` of the images, as many of each tier, and the held-out ones."""
    (metadata,) = Path(task["data"]).glob("*/metadata.csv")
    table = read_images(metadata, metadata.parent / "images")
    by_tier = [np.flatnonzero(table.targets == tier) for tier in range(len(TIERS))]
    most = task["images"] // len(TIERS)
    train = np.concatenate([rows[: images // len(TIERS)] for rows in by_tier])
    return table.select(train), table.select(np.concatenate([rows[most:] for rows in by_tier]))


def make_model(task: dict[str, Any], seed: int = 0) -> PairwiseRankingModel:
    """The same seed gives the same weights."""
    arguments = RankingModelArguments(
        backbone="new",
        backbone_type="dinov2",
        hidden_size=task["hidden_size"],
        num_hidden_layers=task["num_hidden_layers"],
        image_size=task["image_size"],
        loss_function="margin",
    )
    return build_model(arguments, tiers=TIERS, seed=seed)


def ordered_pairs(table: ImageTable) -> int:
    """How many the guide makes of the images."""
    return 2 * len(PairIndex(table.targets))


# hftune


class CountingTrainer(RankingTrainer):
    """Counts the pairs that it makes steps for, and knows when the steps began."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.pair_updates, self.began = 0, []
        super().__init__(*args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        self.began.append(time.perf_counter())
        if "pairs" in inputs:
            self.pair_updates += len(inputs["pairs"])
        else:
            targets = inputs["targets"]
            self.pair_updates += int((targets[:, None] > targets[None, :]).sum())
        return super().training_step(model, inputs, *args)


def train_hftune(
    task: dict[str, Any], images: int, *, seed: int = 0, steps: int | None = None, **how: Any
) -> dict[str, Any]:
    """Trains from nothing and saves the model.

    Args:
        task (dict): Sizes and folders.
        images (int): Training images.
        seed (int): Of weights and order.
        steps (int, *optional*): Of the optimizer. Defaults to as many as give the guide's number of
            pair-updates.
        **how: ``single`` (bool): pairs, one by one; ``evaluations`` (int): and checkpoints.
    """
    table, held_out = read_data(task, images)
    model = make_model(task, seed)
    with tempfile.TemporaryDirectory(dir=task["folder"]) as folder:
        os.environ["HFTUNE_HOME"] = f"{folder}/home"
        begin = time.perf_counter()
        seed_everything(seed)
        args = RankingTrainingArguments(
            output_dir=f"{folder}/run", seed=seed, per_device_train_batch_size=task["batch"],
            learning_rate=task["learning_rate"], early_stopping_patience=0, eval_strategy="no",
            save_strategy="no", load_best_model_at_end=False, disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        updates = task["epochs"] * ordered_pairs(table)
        pairs = TrainingPairs(PairIndex(table.targets)) if how.get("single") else None
        if steps is None and pairs is not None:
            epoch = len(pairs)  # half of the guide's
            steps = updates // epoch * -(-epoch // task["batch"])
        args.max_steps = steps or steps_of(updates, table.targets, args)
        if how.get("evaluations"):
            args.eval_strategy = args.save_strategy = "steps"
            args.eval_steps = args.save_steps = -(-args.max_steps // how["evaluations"])
        splits = [
            RankingSplit(name, part, tuple(facts.sha256 for facts in inspect_images(part.paths)))
            for name, part in (("train", table), ("validation", held_out))
        ]
        arguments = RankingDataArguments()
        train, others = (make_images(split, model, arguments, args) for split in splits)
        features = time.perf_counter() - begin
        evaluator = RankingEvaluator(others, held_out.targets, tiers=TIERS)
        trainer = CountingTrainer(model, args, images=train, evaluator=evaluator, pairs=pairs)
        trainer.train()
        trainer.save_model(f"{folder}/model")
        seconds = time.perf_counter() - begin
        began = trainer.began[len(trainer.began) // 4 :]  # the others warm up
        return {
            "seconds": seconds,
            "features": features,
            "updates": trainer.pair_updates,
            "steps": args.max_steps,
            "step": (began[-1] - began[0]) / (len(began) - 1),
            "accuracy": accuracy(model, others, held_out),
        }


def steps_of(updates: int, targets: np.ndarray, args: RankingTrainingArguments) -> int:
    """How many batches of images have so many pairs in all."""
    sampler = ImageSampler(targets, derive_seed(args.data_seed, "order"))
    batch, done, steps = args.per_device_train_batch_size, 0, 0
    while True:
        sampler.set_epoch(steps // -(-len(targets) // batch))
        order = targets[list(sampler)]
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            done, steps = done + int((part[:, None] > part).sum()), steps + 1
            if done >= updates:
                return steps


def accuracy(model: PairwiseRankingModel, images: Any, table: ImageTable) -> float:
    """Exact pair accuracy."""
    return pair_counts(score_images(model, images), table.targets).accuracy


def hftune_side(task: dict[str, Any]) -> dict[str, Any]:
    """A whole training, and the time of a step of single pairs."""
    found = train_hftune(task, task["images"], evaluations=task["epochs"])
    table, _ = read_data(task, task["images"])
    expected = task["epochs"] * ordered_pairs(table)
    if found["updates"] < expected:
        raise SystemExit(f"{found['updates']} pair-updates were made, expected {expected}")
    single = train_hftune(task, task["images"], steps=task["single_steps"], single=True)
    return {**found, "single_step": single["step"]}


# The guide's way


def guide_side(task: dict[str, Any], cached: bool = False) -> dict[str, Any]:
    """The time of some steps, and how many there are."""
    table, _ = read_data(task, task["images"])
    pairs = (CachedReferencePairs if cached else ReferencePairs)(
        table.paths, table.targets, guide_transform(task["image_size"])
    )
    trainer = ReferenceTrainer(
        make_model(task), pairs, task["epochs"], task["batch"], task["learning_rate"]
    )
    steps, times = trainer.steps(), []
    for _ in range(task["warm_up"] + task["steps"]):
        begin = time.perf_counter()
        next(steps)
        times.append(time.perf_counter() - begin)
    step = statistics.median(times[task["warm_up"] :])
    updates = task["epochs"] * len(pairs)
    return {"step": step, "steps": len(trainer), "seconds": step * len(trainer), "updates": updates}


def compare(task: dict[str, Any]) -> dict[str, float]:
    """Relative differences of the two ways, with the same weights and ordered pairs: loss, and
    largest of the gradients, of single pairs and of all pairs of a batch of images.
    """
    count = min(16, task["images"])
    table, _ = read_data(task, count)
    model = make_model(task).eval()  # no dropout
    process = model.image_processor.process
    pairs = ReferencePairs(table.paths, table.targets, process)
    batch = torch.utils.data.default_collate([pairs[i] for i in range(len(pairs))])
    expected = pair_loss(*model(*batch[:2]), batch[2])
    gradients = torch.autograd.grad(expected, list(model.head.parameters()))

    images = PixelImages(table.paths, process, table.targets)
    with torch.no_grad():
        features = model.encode(ImageCollator()([images[i] for i in range(count)])["pixel_values"])
    images = FeatureImages(_Features(features.numpy()), table.targets)
    row = {path: i for i, path in enumerate(table.paths)}
    listed = [
        (np.array([row[a], row[b]]), np.array([label > 0, label < 0], float))
        for a, b, label in pairs.pairs
    ]
    found = {}
    for name, inputs in (
        ("pairs", PairCollator(images)(listed)),
        ("batch", ImageCollator()(images.__getitems__(range(count)))),
    ):
        loss = model(**inputs).loss
        ours = torch.autograd.grad(loss, list(model.head.parameters()))
        found[f"loss, {name}"] = float((loss - expected).detach().abs() / expected.detach())
        found[f"gradients, {name}"] = max(
            float((a - b).norm() / b.norm().clamp(min=1e-12))
            for a, b in zip(ours, gradients, strict=True)
            if b.norm() > 1e-7  # that of the last bias is 0
        )
    return found


class _Features:
    """Features in memory, read as those of the cache."""

    def __init__(self, values: np.ndarray) -> None:
        self._values, self.views = values, 1

    def __len__(self) -> int:
        return len(self._values)

    def read(self, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        return self._values[rows]


# Quality


class OnFeatures(torch.nn.Module):
    """The head of a model as a model of pairs of features."""

    def __init__(self, model: PairwiseRankingModel) -> None:
        super().__init__()
        self.head = model.head

    def forward(self, features1: torch.Tensor, features2: torch.Tensor) -> tuple[Any, Any]:
        return self.head(features1), self.head(features2)


def train_guide(
    task: dict[str, Any], images: int, seed: int, on_features: bool = False
) -> dict[str, Any]:
    """The guide's loop to its end.

    With ``on_features`` its numbers are the same but for rounding, and it takes minutes: the
    backbone, which does not train, has passed each image before.
    """
    table, held_out = read_data(task, images)
    model = make_model(task, seed)
    process = model.image_processor.process
    train, others = (PixelImages(part.paths, process) for part in (table, held_out))
    parts = torch.arange(images).split(32)
    with torch.no_grad():
        features = torch.cat(
            [model.encode(ImageCollator()([train[i] for i in part])["pixel_values"])
             for part in parts]
        )  # fmt: skip
    model.head.set_statistics(features.mean(0), features.std(0, correction=0))
    if on_features:
        pairs = CachedReferencePairs(table.paths, table.targets, lambda values: values)
        pairs.cache = dict(zip(table.paths, features, strict=True))
    else:
        pairs = CachedReferencePairs(table.paths, table.targets, process)
    torch.manual_seed(seed)
    trainer = ReferenceTrainer(
        OnFeatures(model) if on_features else model,
        pairs, task["epochs"], task["batch"], task["learning_rate"], seed,
    )  # fmt: skip
    for _ in trainer.steps():
        pass
    scores = score_images(model, others)
    return {
        "accuracy": pair_counts(scores, held_out.targets).accuracy,
        "updates": trainer.pair_updates,
        "steps": len(trainer),
        "scores": scores.tolist(),
    }


def quality(task: dict[str, Any]) -> dict[str, Any]:
    """Pair accuracy on held-out images after the same number of pair-updates."""
    few, more = task["finished_images"], task["quality_images"]
    found: dict[str, Any] = {
        "finished": {
            "the guide": train_guide(task, few, 0),
            "the guide's loop on kept features": train_guide(task, few, 0, on_features=True),
            "hftune, batches": train_hftune(task, few),
            "hftune, single pairs": train_hftune(task, few, single=True),
        }
    }
    sides = found["seeds"] = {"the guide's loop on kept features": [], "hftune, batches": []}
    if more < task["images"]:  # else it takes half an hour
        sides["hftune, single pairs"] = []
    for seed in range(task["quality_seeds"]):
        for side, made in sides.items():
            if side.startswith("hftune"):
                made.append(train_hftune(task, more, seed=seed, single=side.endswith("pairs")))
            else:
                made.append(train_guide(task, more, seed, on_features=True))
    return found
