"""Training from two DataLoaders, as the guide has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_ranking import SIZE, small_model
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms
from transformers import get_scheduler

from hftune.callbacks import wandb_mirror
from hftune.tasks.ranking import fit_ranking
from hftune.tasks.ranking.data_ranking import PairwiseDataset
from hftune.tasks.ranking.evaluation_ranking import Evaluator
from hftune.tasks.ranking.fit_ranking import Trainer, TrainingConfig
from hftune.tasks.ranking.image_processing_ranking import RankingImageProcessor
from hftune.tasks.ranking.modeling_ranking import PairwiseRankingModel
from hftune.utils.errors import CheckpointError, ConfigurationError

torch.set_num_threads(1)

FIXED = transforms.Compose([
    transforms.Resize((SIZE, SIZE)),
    transforms.ToTensor(),
    transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
])  # fmt: skip
RANDOM = transforms.Compose([transforms.RandomHorizontalFlip(), *FIXED.transforms])


@pytest.fixture(scope="module")
def frames(tiered_images) -> tuple[pd.DataFrame, pd.DataFrame]:
    metadata = pd.read_csv(tiered_images)
    number = metadata["image_id"].str[-1].astype(int)
    return metadata[number < 3], metadata[number >= 3]


@pytest.fixture
def loaders(frames, tiered_images):
    def make(transform=FIXED):
        return [
            DataLoader(
                PairwiseDataset(frame, tiered_images.parent / "images", transform), batch_size=8
            )
            for frame in frames
        ]

    return make


def config(folder, **settings) -> TrainingConfig:
    given = {
        "max_epochs": 4, "learning_rate": 1e-2, "batch_size": 6, "device": "cpu",
        "save_every_n_epochs": 2,
    }  # fmt: skip
    return TrainingConfig(checkpoint_dir=str(folder), **{**given, **settings})


def count_images(model) -> list[int]:
    """A list that grows by the number of images of each pass of the backbone."""
    passed: list[int] = []
    model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: passed.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return passed


def test_it_trains_and_leaves_what_the_guide_names(loaders, tmp_path):
    model = small_model("resnet")
    trainer = Trainer(model=model, config=config(tmp_path))
    train, validation = loaders()
    metrics = trainer.fit(train, validation)
    assert metrics["best_accuracy"] == trainer.best_accuracy > 0.8
    assert {"best_model", "last_model", "checkpoint_epoch_2", "checkpoint_epoch_4"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert Evaluator(model=model, device="cpu").evaluate(validation) == trainer.best_accuracy
    best = PairwiseRankingModel.from_pretrained(tmp_path / "best_model")
    assert Evaluator(best).evaluate(validation) == trainer.best_accuracy
    assert any("eval_accuracy" in entry for entry in trainer.history)


def test_each_image_passes_a_frozen_backbone_once(loaders, frames, tmp_path):
    model = small_model("resnet")
    passed = count_images(model)
    train, validation = loaders()
    Trainer(model, config(tmp_path)).fit(train, validation)
    assert sum(passed) == len(frames[0]) + len(frames[1])


def test_a_random_transform_is_applied_anew(loaders, frames, tmp_path, capsys):
    model = small_model("resnet")
    passed = count_images(model)
    train, validation = loaders(RANDOM)
    Trainer(model, config(tmp_path, max_epochs=2)).fit(train, validation)
    assert "The transform may change images at random" in capsys.readouterr().err
    # statistics and two epochs of training; two evaluations and the calibration
    assert sum(passed) == 3 * len(frames[0]) + 3 * len(frames[1])


def test_an_interrupted_training_goes_on(loaders, tmp_path, monkeypatch):
    whole = small_model("resnet")
    Trainer(whole, config(tmp_path / "whole")).fit(*loaders())

    class Stop(Exception):
        pass

    class StopAfterTwo(fit_ranking._KeepEpochs):
        def on_save(self, args, state, control, **kwargs):
            super().on_save(args, state, control, **kwargs)
            if state.epoch == 2:
                raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(fit_ranking, "_KeepEpochs", StopAfterTwo)
        with pytest.raises(Stop):
            Trainer(small_model("resnet"), config(tmp_path / "part")).fit(*loaders())
    again = small_model("resnet")
    trainer = Trainer(again, config(tmp_path / "part"))
    trainer.load_checkpoint(tmp_path / "part" / "checkpoint_epoch_2.pt")
    trainer.fit(*loaders())
    want = whole.state_dict()
    assert all(torch.equal(want[name], value) for name, value in again.state_dict().items())


def test_what_can_be_loaded(loaders, tmp_path):
    model = small_model("resnet")
    Trainer(model, config(tmp_path)).fit(*loaders())
    done = Trainer(small_model("resnet"), config(tmp_path))
    done.load_checkpoint(tmp_path / "last_model.pt")  # nothing is left to train
    assert done.fit(*loaders())["best_accuracy"] > 0.8

    fresh = small_model("resnet", seed=5)
    Trainer(fresh, config(tmp_path / "new")).load_checkpoint(tmp_path / "best_model.pt")
    want = model.state_dict()
    assert all(torch.equal(want[name], value) for name, value in fresh.state_dict().items())
    assert fresh.config.score_temperature == model.config.score_temperature

    with pytest.raises(CheckpointError, match="there is neither a file .*nothing.pt nor a folder"):
        done.load_checkpoint(tmp_path / "nothing.pt")
    torch.save({"epoch": 1}, tmp_path / "guide.pt")
    with pytest.raises(CheckpointError, match="guide.pt is a pickle, which can run any program"):
        done.load_checkpoint(tmp_path / "guide.pt")
    (tmp_path / "empty" / "last_model").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint to go on from"):
        done.load_checkpoint(tmp_path / "empty" / "last_model")


def test_without_a_validation_the_last_model_is_kept(loaders, tmp_path):
    trainer = Trainer(small_model("resnet"), config(tmp_path, max_epochs=2))
    assert "best_accuracy" not in trainer.fit(loaders()[0])
    assert trainer.best_accuracy is None
    assert (tmp_path / "last_model" / "model.safetensors").is_file()
    assert not (tmp_path / "best_model").exists()


@pytest.mark.parametrize("t_max", [None, 2, 8])
def test_the_schedule_is_that_of_cosine_annealing(t_max, tmp_path):
    args = config(tmp_path, scheduler_t_max=t_max, scheduler_eta_min=1e-3).arguments()
    parameter = torch.nn.Parameter(torch.zeros(1))
    steps = 40  # of 4 epochs
    optimizer = torch.optim.SGD([parameter], lr=args.learning_rate)
    found = get_scheduler(
        args.lr_scheduler_type, optimizer, 0, steps,
        scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs),
    )  # fmt: skip
    other = torch.optim.SGD([parameter], lr=args.learning_rate)
    wanted = torch.optim.lr_scheduler.CosineAnnealingLR(other, 10 * (t_max or 4), 1e-3)
    for _ in range(steps - 1):
        assert found.get_last_lr() == pytest.approx(wanted.get_last_lr(), rel=1e-6)
        for scheduler in (found, wanted):
            scheduler.optimizer.step()
            scheduler.step()


def test_settings_that_cannot_be_meant_are_named_together(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        TrainingConfig(batch_size=0, scheduler_eta_min=1.0, device="meta")
    assert caught.value.problems == (
        "batch_size: found 0, expected 1 or more",
        "scheduler_eta_min: found 1, expected 0 to the learning_rate, 0.0001",
        *(p for p in caught.value.problems if p.startswith("device: found 'meta', but this")),
    )
    assert len(caught.value.problems) == 3


def test_the_guides_defaults():
    found = TrainingConfig()
    assert (found.learning_rate, found.weight_decay, found.batch_size) == (1e-4, 0.01, 32)
    assert (found.max_epochs, found.gradient_clip_norm, found.seed) == (100, 1.0, 42)
    assert (found.early_stopping_patience, found.save_every_n_epochs) == (10, 5)
    assert found.scheduler_eta_min == 1e-6


def test_loaders_of_something_else_are_refused(loaders, tmp_path):
    other = DataLoader(TensorDataset(torch.zeros(3)))
    with pytest.raises(ConfigurationError, match="train_loader: found a loader of TensorDataset"):
        Trainer(small_model("resnet"), config(tmp_path)).fit(other, loaders()[1])
    assert not list(Path(tmp_path).glob("checkpoint*"))


def test_weights_and_biases_has_the_guides_names(loaders, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    logged: list[str] = []
    monkeypatch.setattr(
        wandb_mirror.WandbCallback,
        "on_log",
        lambda self, args, state, control, logs=None, **kwargs: logged.extend(self._named(logs)),
    )
    trainer = Trainer(
        small_model("resnet"), config(tmp_path / "run", wandb_enabled=True, max_epochs=2)
    )
    trainer.fit(*loaders())
    assert {"val/accuracy", "val/loss", "eval/accuracy"} <= set(logged)
    summary = json.loads((tmp_path / "run" / "best_model" / "config.json").read_text())
    assert summary["model_type"] == "hftune_ranking"


@pytest.mark.parametrize("mode", ["BILINEAR", "BICUBIC"])
def test_the_model_remembers_what_it_was_trained_on(loaders, frames, tiered_images, tmp_path, mode):
    resize = transforms.Resize((SIZE, SIZE), transforms.InterpolationMode[mode])
    transform = transforms.Compose([resize, *FIXED.transforms[1:]])
    model = small_model("resnet")
    Trainer(model, config(tmp_path, max_epochs=1)).fit(*loaders(transform))
    saved = PairwiseRankingModel.from_pretrained(tmp_path / "best_model").image_processor
    assert (saved.size, saved.resize_mode, saved.resample) == (SIZE, "squash", mode.lower())
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 256, (47, 71, 3), np.uint8))
    torch.testing.assert_close(saved.process(image), transform(image), rtol=0, atol=1e-6)


def test_a_transform_that_it_cannot_make_is_said(loaders, tmp_path, capsys):
    model = small_model("resnet")
    Trainer(model, config(tmp_path, max_epochs=1)).fit(*loaders(RANDOM))
    assert "The model cannot make such pixels of files itself" in capsys.readouterr().err
    assert not (tmp_path / "best_model" / "preprocessor_config.json").exists()


def test_the_process_of_an_image_processor_is_kept(loaders, tmp_path):
    model = small_model("dinov2")
    processor = RankingImageProcessor(SIZE, "crop", 8)
    Trainer(model, config(tmp_path, max_epochs=1)).fit(*loaders(processor.process))
    saved = PairwiseRankingModel.from_pretrained(tmp_path / "best_model").image_processor
    assert saved.settings() == processor.settings()
