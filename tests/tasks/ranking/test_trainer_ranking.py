"""Training of rankings: on features or pixels alike, small checkpoints, exact resume."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_alone
from safetensors.torch import load_file
from small_ranking import BACKBONES, HEAD, SIZE, small_model
from transformers import TrainerCallback

from hftune.tasks.ranking.arguments_ranking import RankingTrainingArguments
from hftune.tasks.ranking.augmentation_ranking import Augmentation
from hftune.tasks.ranking.calibration_ranking import fit_temperature
from hftune.tasks.ranking.data_ranking import FeatureImages, PixelImages, TrainingPairs
from hftune.tasks.ranking.evaluation_ranking import RankingEvaluator
from hftune.tasks.ranking.feature_cache import FeatureCache, compute_features, features_space
from hftune.tasks.ranking.image_files import inspect_images
from hftune.tasks.ranking.modeling_ranking import PairwiseRankingModel
from hftune.tasks.ranking.pairs_ranking import PairIndex, tier_pair_matrix
from hftune.tasks.ranking.tables_ranking import ImageTable, read_images
from hftune.tasks.ranking.trainer_ranking import LAST_MODEL, RankingTrainer
from hftune.utils.errors import CheckpointError, ConfigurationError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def table(tiered_images) -> ImageTable:
    return read_images(tiered_images, tiered_images.parent)


@pytest.fixture(scope="module")
def train(table) -> ImageTable:
    return table.select([row for row in range(20) if row % 5 < 3])


@pytest.fixture(scope="module")
def validation(table) -> ImageTable:
    return table.select([row for row in range(20) if row % 5 >= 3])


def pixels(model, table, augmentation=None) -> PixelImages:
    return PixelImages(table.paths, model.image_processor.process, table.targets, augmentation, 3)


def features(model, table, folder, views=1, augmentation=None) -> FeatureImages:
    cache = FeatureCache.open(folder, features_space(model, model.image_processor))
    hashes = [facts.sha256 for facts in inspect_images(table.paths)]
    found = compute_features(
        model, cache, table.paths, hashes, model.image_processor,
        views=views, augmentation=augmentation, seed=3, progress=False,
    )  # fmt: skip
    return FeatureImages(found, table.targets, draw_views=True, seed=3)


def arguments(folder, **settings) -> RankingTrainingArguments:
    given = {
        "num_train_epochs": 4, "per_device_train_batch_size": 6, "learning_rate": 3e-3,
        "logging_steps": 1, "save_total_limit": None, "early_stopping_patience": 0,
    }  # fmt: skip
    return RankingTrainingArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, **{**given, **settings}
    )


def trainer(model, folder, train, validation, images=None, evaluates=pixels, **options):
    settings = options.pop("settings", {})
    return RankingTrainer(
        model,
        arguments(folder, **settings),
        images=pixels(model, train) if images is None else images,
        evaluator=RankingEvaluator(
            evaluates(model, validation), validation.targets, tiers=validation.tiers
        ),
        **options,
    )


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("family", ["dinov2", "resnet"])
@pytest.mark.parametrize("pairs", [False, True], ids=["batches", "pairs"])
def test_training_on_kept_features_is_training_on_images(
    train, validation, tmp_path, family, pairs
):
    scores = {}
    for kind in ("kept", "pixels"):
        model = small_model(family, projector_dropout=0.1)
        images = None
        if kind == "kept":
            images = features(model, train, tmp_path / "cache")
        options = {"pairs": TrainingPairs(PairIndex(train.targets))} if pairs else {}
        run = trainer(model, tmp_path / kind, train, validation, images, **options)
        run.train()
        run.save_model(str(tmp_path / f"{kind}_model"))
        new = PairwiseRankingModel.from_pretrained(tmp_path / f"{kind}_model")
        scores[kind] = new.score([str(path) for path in validation.paths]).numpy()
    assert np.ptp(scores["kept"]) > 0.1
    np.testing.assert_allclose(scores["kept"], scores["pixels"], rtol=0, atol=1e-5)


def test_it_learns_what_is_the_better_image(train, validation, tmp_path):
    model = small_model("resnet")
    run = trainer(
        model, tmp_path, train, validation, features(model, train, tmp_path / "cache"),
        settings={"num_train_epochs": 15, "learning_rate": 1e-2},
    )  # fmt: skip
    run.train()
    logs = run.state.log_history
    assert run.state.best_metric > 0.9
    for name in ("loss", "accuracy", "margin", "score_mean", "score_std", "learning_rate"):
        assert any(name in entry for entry in logs), name
    for name in ("accuracy", "adjacent_accuracy", "loss", "srcc", "krcc", "plcc"):
        assert any(f"eval_{name}" in entry for entry in logs), name
    losses = [entry["loss"] for entry in logs if "loss" in entry]
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:2])


def test_the_head_knows_its_features_before_the_first_step(train, validation, tmp_path):
    model = small_model("dinov2")
    images = features(model, train, tmp_path / "cache")
    run = trainer(model, tmp_path / "run", train, validation, images, settings={"max_steps": 1})
    values = images.features.read(np.arange(len(train))).astype(np.float64)
    run.train()
    saved = load_file(tmp_path / "run" / "checkpoint-1" / "model.safetensors")
    np.testing.assert_allclose(saved["head.mean"], values.mean(0), rtol=1e-5, atol=1e-6)
    std = values.std(0)
    varies = std > 1e-3 * np.sqrt((std**2).mean())
    np.testing.assert_allclose(saved["head.std"][varies], std[varies], rtol=1e-4)
    assert (saved["head.std"][~varies] == 1).all()


def test_checkpoints_leave_out_what_is_frozen(train, validation, tmp_path):
    model = small_model("dinov2")
    before = weights(model.backbone)
    images = features(model, train, tmp_path / "cache")
    run = trainer(model, tmp_path / "run", train, validation, images)
    run.train()
    saved = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    assert set(saved) == {f"head.{name}" for name in model.head.state_dict()}
    assert same(weights(model.backbone), before)
    with pytest.raises(CheckpointError, match="whole models are in the run's model/"):
        PairwiseRankingModel.from_pretrained(tmp_path / "run" / "checkpoint-4")

    run.save_model(str(tmp_path / "model"))
    whole = PairwiseRankingModel.from_pretrained(tmp_path / "model")
    assert same(weights(whole), weights(model))
    last = PairwiseRankingModel.from_pretrained(tmp_path / "run" / LAST_MODEL)
    newest = load_file(tmp_path / "run" / "checkpoint-8" / "model.safetensors")
    assert same({n: last.state_dict()[n] for n in newest}, newest)
    assert same({n: v for n, v in weights(last.backbone).items()}, before)
    best = load_file(Path(run.state.best_model_checkpoint, "model.safetensors"))
    assert same({n: model.state_dict()[n] for n in best}, best)


@pytest.mark.parametrize("setting", [{"lora_rank": 2}, {"unfreeze_last_blocks": 1}])
def test_checkpoints_of_a_part_of_the_backbone(train, validation, tmp_path, setting):
    model = small_model("dinov2", **setting)
    run = trainer(model, tmp_path, train, validation, settings={"max_steps": 2})
    run.train()
    saved = set(load_file(tmp_path / "checkpoint-2" / "model.safetensors"))
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.startswith("backbone.") for name in trains)
    assert saved == trains | {"head.mean", "head.std"}
    before = weights(model)
    again = trainer(
        small_model("dinov2", **setting), tmp_path, train, validation, settings={"max_steps": 2}
    )
    again.train()
    assert same(weights(again.model), before)


def test_another_backbone_is_not_gone_on_with(train, validation, tmp_path):
    model = small_model("dinov2")
    run = trainer(model, tmp_path, train, validation, settings={"max_steps": 2})
    run.train()
    other = small_model("dinov2", seed=1)
    with pytest.raises(ConfigurationError, match="^backbone: the checkpoint has '"):
        trainer(other, tmp_path, train, validation, settings={"max_steps": 2}).train()


class _Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _run(kind: str, folder: Path, train, validation, kill: int | None = None) -> None:
    """A run of one kind, which writes what it reached."""
    changes = Augmentation(flip=0.5, brightness=0.2, crop=0.2)
    options: dict = {}
    if kind == "views":
        model = small_model("resnet", projector_dropout=0.2)
        images = features(model, train, folder.parent / "cache", 3, changes)
    elif kind == "pixels":
        model = small_model("dinov2", projector_dropout=0.2, freeze_backbone=False)
        images = pixels(model, train, changes)
    else:
        model = small_model("resnet", projector_dropout=0.2)
        images = features(model, train, folder.parent / "cache")
        weighted = tier_pair_matrix({"S>C": 3.0}, train.tiers)
        options = {
            "pairs": TrainingPairs(PairIndex(train.targets)),
            "pairs_per_epoch": 20,
            "pair_weights": weighted if kind == "weighted_pairs" else None,
        }
    run = trainer(
        model, folder, train, validation, images,
        callbacks=[_Kill(kill)] if kill is not None else [],
        settings={"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 3,
                  "eval_steps": 3, "load_best_model_at_end": True},
        **options,
    )  # fmt: skip
    run.train()
    run.calibrate()
    run.save_model(str(folder / "model"))
    keep = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    logs = [{k: v for k, v in entry.items() if k not in keep} for entry in run.state.log_history]
    (folder / "logs.json").write_text(json.dumps(logs[:-1], sort_keys=True))


@pytest.mark.parametrize("kind", ["views", "pixels", "pairs", "weighted_pairs"])
def test_a_killed_run_ends_like_one_that_was_not(train, validation, tmp_path, kind):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_alone(lambda: _run(kind, whole, train, validation)) == 0
    for step in (2, 5, 7):
        status = run_alone(lambda s=step: _run(kind, killed, train, validation, s))
        assert status == -signal.SIGKILL
    assert run_alone(lambda: _run(kind, killed, train, validation)) == 0
    for name in ("model/model.safetensors", "last_model/model.safetensors", "logs.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    config = json.loads((killed / "model" / "config.json").read_text())
    assert config == json.loads((whole / "model" / "config.json").read_text())


def test_early_stopping_is_on_by_its_setting(train, validation, tmp_path, capsys):
    model = small_model("resnet")
    run = trainer(
        model, tmp_path, train, validation, features(model, train, tmp_path / "cache"),
        settings={"num_train_epochs": 50, "learning_rate": 1e-9, "early_stopping_patience": 3,
                  "min_learning_rate": 0.0},
    )  # fmt: skip
    run.train()
    assert run.state.global_step == 4 * 2  # the first is the best, three more do not beat it
    assert "Ended early: accuracy has not been better than" in capsys.readouterr().err


def test_calibration_is_kept_with_the_model(train, validation, tmp_path):
    model = small_model("resnet")
    run = trainer(model, tmp_path / "run", train, validation, settings={"max_steps": 6})
    run.train()
    temperature = run.calibrate()
    assert temperature == fit_temperature(run.evaluator.scores, validation.targets)
    run.save_model(str(tmp_path / "model"))
    again = PairwiseRankingModel.from_pretrained(tmp_path / "model")
    assert again.config.score_temperature == temperature


def test_the_cosine_has_a_floor(train, validation, tmp_path):
    run = trainer(
        small_model("resnet"), tmp_path, train, validation,
        settings={"num_train_epochs": 4, "min_learning_rate": 1e-3, "warmup_steps": 2},
    )  # fmt: skip
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    assert rates[:3] == pytest.approx([0, 1.5e-3, 3e-3])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 1e-3 <= rates[-1] < 1.3e-3


def test_images_of_many_shapes_train(train, validation, tmp_path):
    model = small_model("dinov2", freeze_backbone=False)
    model.image_processor.resize_mode = "native"
    model.image_processor.size = SIZE
    run = trainer(model, tmp_path, train, validation, settings={"max_steps": 3})
    before = weights(model)
    run.train()
    assert not same(weights(model), before)


def test_small_models_are_what_they_are_said_to_be():
    assert HEAD["projector_output_dim"] == 8
    assert small_model("dinov2").backbone.config.hidden_size == BACKBONES["dinov2"].hidden_size
