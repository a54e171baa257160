"""Settings of the ranking recipe: the guide's names and defaults, presets, what does not fit."""

from __future__ import annotations

import dataclasses

import pytest

from hftune.configuration.arguments import HFTuneArguments
from hftune.configuration.resolve import parse
from hftune.configuration.tracking_arguments import TrackingArguments
from hftune.tasks.ranking.arguments_ranking import (
    RankingDataArguments,
    RankingModelArguments,
    RankingTrainingArguments,
    augmentation_of,
    preset_for,
)
from hftune.tasks.ranking.augmentation_ranking import Augmentation
from hftune.utils.errors import ConfigurationError

KINDS = (RankingDataArguments, RankingModelArguments, RankingTrainingArguments, TrackingArguments)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def resolve(*argv):
    return parse(*KINDS, argv=["--output_dir", "out", *argv], environ={})


def problems_of(*argv):
    with pytest.raises(ConfigurationError) as error:
        resolve(*argv)
    return "\n".join(error.value.problems)


def test_the_guides_defaults():
    data, model, args, tracking = resolve().values
    assert (args.num_train_epochs, args.per_device_train_batch_size) == (100, 32)
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (1e-4, 0.01, 1.0)
    assert (args.early_stopping_patience, args.seed) == (10, 42)
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == (
        "cosine_with_min_lr",
        {"min_lr": 1e-6},
    )
    assert model.backbone == "facebook/dinov2-large"
    assert (model.projector_output_dim, model.projector_dropout, model.freeze_backbone) == (
        256,
        0.1,
        True,
    )
    assert (data.train_ratio, data.val_ratio, data.test_ratio, data.split_seed) == (
        0.8,
        0.1,
        0.1,
        42,
    )
    assert tracking.wandb == "off"


def test_the_guides_command_lines():
    data, model, args, tracking = resolve(
        *"--data-dir data/images --metadata data/train_metadata.csv".split(),
        *"--val-metadata data/val_metadata.csv --output-dir ./checkpoints --epochs 7".split(),
        *"--batch-size 8 --learning-rate 5e-5 --weight-decay 0.001".split(),
        *"--gradient-clip-norm 0.5 --early-stopping-patience 3 --seed 7".split(),
        *"--gradient-accumulation-steps 4 --backbone-name timm:resnet18".split(),
        *"--wandb-project mirip-ranking --wandb-run-name experiment-001".split(),
    ).values
    assert (data.data_dir, data.metadata, data.val_metadata) == (
        "data/images",
        "data/train_metadata.csv",
        "data/val_metadata.csv",
    )
    assert model.backbone == "timm:resnet18"
    assert (args.output_dir, args.num_train_epochs) == ("./checkpoints", 7)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 4)
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (5e-5, 0.001, 0.5)
    assert (args.early_stopping_patience, args.seed) == (3, 7)
    assert (tracking.wandb_project, tracking.experiment_name) == ("mirip-ranking", "experiment-001")


@pytest.mark.parametrize("kind", KINDS[:3])
def test_every_setting_of_its_own_is_explained(kind):
    trainers = {field.name for field in dataclasses.fields(HFTuneArguments)}
    for field in dataclasses.fields(kind):
        if field.name not in trainers:
            assert len(field.metadata["help"]) > 10, field.name
            assert field.name in kind.__doc__, field.name


@pytest.mark.parametrize(
    ("images", "name"),
    [
        (2, "small"),
        (999, "small"),
        (1_000, "medium"),
        (9_999, "medium"),
        (10_000, "large"),
        (99_999, "large"),
        (100_000, "huge"),
        (5_000_000, "huge"),
    ],
)
def test_preset_for(images, name):
    assert preset_for(images) == name


def test_scheduler():
    args = resolve("--min-learning-rate", "1e-5").values[2]
    assert args.lr_scheduler_kwargs == {"min_lr": 1e-5}
    more = resolve("--lr_scheduler_kwargs", '{"num_cycles": 1.5}').values[2]
    assert more.lr_scheduler_kwargs == {"min_lr": 1e-6, "num_cycles": 1.5}
    other = resolve("--lr_scheduler_type", "linear", "--learning_rate", "1e-7").values[2]
    assert (other.lr_scheduler_type, other.lr_scheduler_kwargs) == ("linear", None)
    assert problems_of("--learning_rate", "1e-7") == (
        "min_learning_rate: found 1e-06, which is above the learning_rate, 1e-07"
    )


def test_augmentation_of():
    data = resolve(
        *"--feature_cache off --horizontal_flip 0.5 --rotation 10 --brightness 0.1".split(),
        *"--contrast 0.2 --random_crop 0.05".split(),
    ).values[0]
    assert augmentation_of(vars(data)) == Augmentation(
        flip=0.5, rotation=10.0, brightness=0.1, contrast=0.2, crop=0.05
    )
    assert augmentation_of(vars(resolve().values[0])).is_off


def test_sizes_of_a_new_backbone():
    model = resolve("--backbone", "new", "--hidden_size", "64").values[1]
    assert model.sizes == {
        "backbone_type": "resnet",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "patch_size": 14,
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--train_ratio 0.9",
         "train_ratio, val_ratio and test_ratio are 0.9, 0.1, 0.1; they must be 0 or more, the "
         "first above 0, and add up to 1, not 1.1."),
        ("--train_ratio -0.1 --val_ratio 1.0",
         "train_ratio, val_ratio and test_ratio are -0.1, 1, 0.1; they must be 0 or more, the "
         "first above 0, and add up to 1, not 1."),
        ("--val_ratio 0 --train_ratio 0.9",
         "val_ratio is 0, and the best model must be chosen on some images: make it larger, or add "
         "--val_metadata FILE."),
        ("--data_dir d --train_on comparisons",
         "--train_on comparisons needs --comparisons FILE."),
        ("--metadata a.csv --comparisons b.csv",
         "--metadata given without --data_dir.\n--comparisons given without --data_dir."),
        ("--pairs_per_epoch 5", "pairs_per_epoch is for single pairs: add --pairing pairs."),
        ("--pairing pairs --pairs_per_epoch 0", "pairs_per_epoch is 0; it must be 1 or more."),
        ("--min_tier_gap 0", "min_tier_gap is 0; it must be 1 or more."),
        ("--feature_views 4",
         "feature_views is 4, but nothing changes the views: add --horizontal_flip 0.5, "
         "--rotation 10, --brightness 0.1 or --random_crop 0.1."),
        ("--horizontal_flip 0.5 --feature_views 1",
         "images are to be changed at random, but the features of one view alone are kept: leave "
         "--feature_views 1 out, or add --feature_cache off."),
        ("--feature_views 4 --horizontal_flip 0.5 --no_freeze_backbone",
         "feature_views is for features that are kept: the backbone must not train, and "
         "--feature_cache must be auto."),
        ("--hidden_size 64 --patch_size 8",
         "--hidden_size, --patch_size are sizes of a new backbone, and --backbone is "
         "facebook/dinov2-large: add --backbone new, or leave them out."),
        ("--backbone new --backbone_type dinov2 --hidden_size 30",
         "hidden_size 30 must be a multiple of num_attention_heads, 4."),
        ("--backbone new --num_hidden_layers 0", "num_hidden_layers is 0; it must be 1 or more."),
        ("--image_size 8", "image_size is 8; it must be 14 or more."),
        ("--projector_dropout 1", "projector_dropout is 1.0; it must lie in [0, 1)."),
        ("--lora_rank 4 --no_freeze_backbone",
         "lora_rank is for a frozen backbone: leave freeze_backbone true."),
        ("--lora_rank 4 --unfreeze_last_blocks 1",
         "lora_rank and unfreeze_last_blocks exclude each other."),
        ("--early_stopping_patience -1",
         "early_stopping_patience: found -1, expected 0 or more"),
    ],
)  # fmt: skip
def test_what_does_not_fit(argv, message):
    assert problems_of(*argv.split()) == message


def test_all_problems_are_told_at_once():
    told = problems_of(
        *"--horizontal_flip 2 --rotation -1 --train_ratio 2 --image_size 0 --margin 0".split(),
        *"--loss_function hinge --epochs many --lr_scheduler_type cosin".split(),
    )
    for name in (
        "flip", "rotation", "train_ratio", "image_size", "margin", "loss_function",
        "num_train_epochs", "lr_scheduler_type",
    ):  # fmt: skip
        assert name in told, name
    assert "Did you mean 'cosine'" in told


def test_images_that_change_have_eight_views():
    assert RankingDataArguments().views == 1
    assert RankingDataArguments(rotation=5.0).views == 8
    assert RankingDataArguments(rotation=5.0, feature_views=3).views == 3
