"""The ``data:``, ``model:`` and ``training:`` sections of the ranking recipe's configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal

from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from ...configuration.arguments import HFTuneArguments, redeclare
from ...utils.errors import ConfigurationError
from .augmentation_ranking import Augmentation
from .configuration_ranking import LOSS_FUNCTIONS, POOLINGS

__all__ = [
    "NEW_BACKBONE",
    "PRESETS",
    "RankingDataArguments",
    "RankingModelArguments",
    "RankingTrainingArguments",
    "augmentation_of",
    "preset_for",
]


@dataclasses.dataclass
class RankingDataArguments:
    """Which images to learn from, what is known of them, and how they are read.

    Args:
        data_dir (str, *optional*): Folder of the images, or one that holds ``images/`` and
            ``metadata.csv``. Defaults to none: a small set that is made by code, pictures that were
            degraded in steps.
        metadata (str, *optional*): Table with ``image_id``, ``filename`` and ``tier`` or ``score``.
            Defaults to ``metadata.csv`` in or beside ``data_dir``.
        val_metadata (str, *optional*): The same of the images that choose the best model. Defaults
            to ``val_ratio`` of ``metadata``.
        test_metadata (str, *optional*): The same of the images that score it. Defaults to
            ``test_ratio`` of ``metadata``; none where ``val_metadata`` is given.
        comparisons (str, *optional*): Table with ``image_1``, ``image_2``, ``votes_1`` and
            ``votes_2``: people's votes on pairs.
        train_on (str, *optional*): ``"tiers"``, all pairs of images of different tiers, or
            ``"comparisons"``. Defaults to tiers where there are any.
        tiers (list of str): Names of the tiers, best first. Defaults to S, A, B, C, D, E, F.
        rank_by (str, *optional*): ``"tier"`` or ``"score"``. Defaults to the tier, if there is one.
        train_ratio, val_ratio, test_ratio (float): Shares of ``metadata``. Default to 0.8, 0.1
            and 0.1.
        group_column (str, *optional*): Images with the same value here (an artist, a scene) are
            never in different parts.
        split_seed (int): Of the split. Defaults to 42; it is not the run's, so that runs with
            different seeds are scored on the same images.
        on_duplicates (str): What the same picture in two given tables does: ``"stop"`` or
            ``"drop"``, which leaves it out of the training. Defaults to ``"stop"``.
        pairing (str): ``"batch"`` compares all images of a batch with each other, ``"pairs"`` draws
            single pairs. Defaults to ``"batch"``.
        pairs_per_epoch (int, *optional*): With ``"pairs"``. Defaults to all pairs.
        min_tier_gap (int): Least number of tiers between two images of a pair. Defaults to 1.
        tier_pair_weights (dict, *optional*): Weights of pairs by their tiers,
            ``{"S>A": 2, "S>C": 0.5}``. Defaults to 1 for all.
        feature_cache (str): ``"auto"`` keeps the features of a backbone that does not train,
            ``"off"`` computes them anew for each batch. Defaults to ``"auto"``.
        feature_views (int, *optional*): Views of each training image that are kept: the image as
            it is and ``feature_views - 1`` that were changed at random. Defaults to 8 where images
            are to be changed at random, else 1.
        feature_dtype (str): What kept features are stored in: ``"float32"`` or ``"float16"``.
            Defaults to ``"float32"``.
        horizontal_flip (float): Chance that a training image is mirrored. Defaults to 0.
        rotation (float): Largest rotation, in degrees. Defaults to 0.
        brightness, contrast (float): Largest relative changes. Default to 0.
        random_crop (float): Largest share of the sides that is cut off. Defaults to 0.
    """

    _section: ClassVar[str] = "data"

    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the images, or one with images/ and metadata.csv. None: a small "
            "set made by code."
        },
    )
    metadata: str | None = field(
        default=None,
        metadata={"help": "Table: image_id, filename, tier or score. Default: metadata.csv."},
    )
    val_metadata: str | None = field(
        default=None,
        metadata={"help": "Images to choose the best model on. Default: a part of metadata."},
    )
    test_metadata: str | None = field(
        default=None,
        metadata={"help": "Images to score the best model on. Default: a part of metadata."},
    )
    comparisons: str | None = field(
        default=None,
        metadata={"help": "People's votes on pairs: image_1, image_2, votes_1, votes_2."},
    )
    train_on: Literal["tiers", "comparisons"] | None = field(
        default=None, metadata={"help": "What training follows. Default: tiers, if there are any."}
    )
    tiers: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of the tiers, best first. Default: S A B C D E F."},
    )
    rank_by: Literal["tier", "score"] | None = field(
        default=None, metadata={"help": "Which column ranks the images. Default: tier, if there."}
    )
    train_ratio: float = field(default=0.8, metadata={"help": "Share of the images to train on."})
    val_ratio: float = field(
        default=0.1, metadata={"help": "Share of the images to choose the best model on."}
    )
    test_ratio: float = field(
        default=0.1, metadata={"help": "Share of the images to score the best model on."}
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "Images that share this column's value stay together (artist, scene)."},
    )
    split_seed: int = field(default=42, metadata={"help": "Seed of the split, not of the run."})
    on_duplicates: Literal["stop", "drop"] = field(
        default="stop",
        metadata={"help": "When one picture is in two tables: stop, or drop it from training."},
    )
    pairing: Literal["batch", "pairs"] = field(
        default="batch",
        metadata={
            "help": "batch: compare all images of a batch with each other; pairs: draw pairs."
        },
    )
    pairs_per_epoch: int | None = field(
        default=None, metadata={"help": "With --pairing pairs. Default: all."}
    )
    min_tier_gap: int = field(
        default=1, metadata={"help": "Least number of tiers between two images of a pair."}
    )
    tier_pair_weights: dict[str, float] | None = field(
        default=None,
        metadata={"help": 'Weights of pairs by tiers, for example {"S>A": 2, "S>C": 0.5}.'},
    )
    feature_cache: Literal["auto", "off"] = field(
        default="auto",
        metadata={"help": "auto: keep the features of a backbone that does not train; off."},
    )
    feature_views: int | None = field(
        default=None,
        metadata={
            "help": "Views of each training image that are kept, the first as it is. Default: 8 "
            "where images change at random, else 1."
        },
    )
    feature_dtype: Literal["float32", "float16"] = field(
        default="float32", metadata={"help": "What kept features are stored in."}
    )
    horizontal_flip: float = field(
        default=0.0, metadata={"help": "Chance that a training image is mirrored."}
    )
    rotation: float = field(default=0.0, metadata={"help": "Largest rotation, in degrees."})
    brightness: float = field(default=0.0, metadata={"help": "Largest change of brightness, 0.1."})
    contrast: float = field(default=0.0, metadata={"help": "Largest change of contrast, 0.1."})
    random_crop: float = field(
        default=0.0, metadata={"help": "Largest share of the sides that is cut off, 0.1."}
    )

    @classmethod
    def check(cls, values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        problems = []
        ratios = [values[f"{part}_ratio"] for part in ("train", "val", "test")]
        if not min(ratios) >= 0 or abs(sum(ratios) - 1) > 1e-6 or ratios[0] == 0:
            problems.append(
                f"train_ratio, val_ratio and test_ratio are {', '.join(f'{r:g}' for r in ratios)}; "
                f"they must be 0 or more, the first above 0, and add up to 1, not {sum(ratios):g}."
            )
        elif ratios[1] == 0 and values["val_metadata"] is None:
            problems.append(
                "val_ratio is 0, and the best model must be chosen on some images: make it larger, "
                "or add --val_metadata FILE."
            )
        if values["train_on"] == "comparisons" and values["comparisons"] is None:
            problems.append("--train_on comparisons needs --comparisons FILE.")
        if values["data_dir"] is None:
            given = ("metadata", "val_metadata", "test_metadata", "comparisons")
            problems += [f"--{name} given without --data_dir." for name in given if values[name]]
        if values["pairs_per_epoch"] is not None:
            if values["pairing"] == "batch":
                problems.append("pairs_per_epoch is for single pairs: add --pairing pairs.")
            elif values["pairs_per_epoch"] < 1:
                problems.append(
                    f"pairs_per_epoch is {values['pairs_per_epoch']}; it must be 1 or more."
                )
        views = values["feature_views"]
        for name in ("min_tier_gap", "feature_views"):
            if values[name] is not None and values[name] < 1:
                problems.append(f"{name} is {values[name]}; it must be 1 or more.")
        try:
            changes = not augmentation_of(values).is_off
        except ConfigurationError as error:
            problems += error.problems
            changes = False
        frozen = values.get("freeze_backbone", True) and not (
            values.get("lora_rank") or values.get("unfreeze_last_blocks")
        )
        if values["feature_cache"] == "auto" and frozen:
            if views is not None and views > 1 and not changes:
                problems.append(
                    f"feature_views is {views}, but nothing changes the views: "
                    "add --horizontal_flip 0.5, --rotation 10, --brightness 0.1 or "
                    "--random_crop 0.1."
                )
            if views == 1 and changes:
                problems.append(
                    "images are to be changed at random, but the features of one view alone are "
                    "kept: leave --feature_views 1 out, or add --feature_cache off."
                )
        elif views is not None and views > 1:
            problems.append(
                "feature_views is for features that are kept: the backbone must not train, and "
                "--feature_cache must be auto."
            )
        return problems

    @property
    def views(self) -> int:
        """How many views of each training image are kept."""
        if self.feature_views is not None:
            return self.feature_views
        return 1 if augmentation_of(vars(self)).is_off else 8


def augmentation_of(values: Mapping[str, Any]) -> Augmentation:
    """Returns how training images change at random.

    Args:
        values (mapping): Settings of :class:`RankingDataArguments` by name.

    Raises:
        ConfigurationError: With all that is wrong.
    """
    return Augmentation(
        flip=values["horizontal_flip"],
        rotation=values["rotation"],
        brightness=values["brightness"],
        contrast=values["contrast"],
        crop=values["random_crop"],
    )


NEW_BACKBONE = "new"
"""Name of a backbone that is made from sizes, with new weights."""

_SIZES = {
    "backbone_type": "resnet",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "patch_size": 14,
}


@dataclasses.dataclass
class RankingModelArguments:
    """Which model ranks them: a pretrained backbone or a new one of the sizes below, and a head.

    Args:
        backbone (str): Name on the Hub, folder of a saved model, ``timm:NAME``, or ``new``.
            Defaults to ``facebook/dinov2-large``.
        backbone_type (str, *optional*): New backbones: ``resnet`` or ``dinov2``. Defaults to
            ``resnet``: with random weights its features say more.
        hidden_size (int, *optional*): New backbones: width at the end. Defaults to 128.
        num_hidden_layers (int, *optional*): New backbones: blocks. Defaults to 4.
        num_attention_heads (int, *optional*): New ``dinov2``: they divide the width. Defaults to 4.
        patch_size (int, *optional*): New ``dinov2``: pixels. Defaults to 14.
        image_size (int): Side of the images in pixels. Defaults to 518.
        resize_mode (str): ``letterbox`` keeps the whole image and its shape, ``squash`` stretches
            it to a square, ``crop`` takes the middle, ``native`` keeps size and shape. Defaults to
            ``letterbox``.
        pooling (str, *optional*): ``cls``, ``mean`` or ``cls_mean``. Defaults to the last, where
            the backbone has a class token.
        projector_output_dim (int): Defaults to 256.
        projector_dropout (float): Defaults to 0.1.
        freeze_backbone (bool): Defaults to True.
        unfreeze_last_blocks (int): Blocks of a frozen backbone that train all the same. Defaults
            to 0.
        lora_rank (int): Rank of adapters in a frozen backbone; 0 for none. Defaults to 0.
        lora_alpha (float): Defaults to 16.
        lora_dropout (float): Defaults to 0.
        lora_target_modules (list of str): Ends of names of linear layers. Defaults to all.
        loss_function (str): ``bradley_terry``, ``margin`` or ``tier_margin``. Defaults to the
            first.
        margin (float): Of the margin losses. Defaults to 1.
    """

    _section: ClassVar[str] = "model"

    backbone: str = field(
        default="facebook/dinov2-large",
        metadata={
            "help": "Name on the Hub, folder of a saved model, timm:NAME, or new.",
            "aliases": ["backbone_name"],
        },
    )
    backbone_type: Literal["resnet", "dinov2"] | None = field(
        default=None, metadata={"help": "--backbone new: architecture. Default: resnet."}
    )
    hidden_size: int | None = field(
        default=None, metadata={"help": "--backbone new: width. Default: 128."}
    )
    num_hidden_layers: int | None = field(
        default=None, metadata={"help": "--backbone new: blocks. Default: 4."}
    )
    num_attention_heads: int | None = field(
        default=None, metadata={"help": "--backbone new, dinov2: heads. Default: 4."}
    )
    patch_size: int | None = field(
        default=None, metadata={"help": "--backbone new, dinov2: pixels. Default: 14."}
    )
    image_size: int = field(default=518, metadata={"help": "Side of the images in pixels."})
    resize_mode: Literal["letterbox", "squash", "crop", "native"] = field(
        default="letterbox", metadata={"help": "How images get that size."}
    )
    pooling: Literal[POOLINGS] | None = field(
        default=None, metadata={"help": "What is taken of the backbone. Default: cls_mean."}
    )
    projector_output_dim: int = field(default=256, metadata={"help": "Width of the projector."})
    projector_dropout: float = field(default=0.1, metadata={"help": "Dropout rate of the head."})
    freeze_backbone: bool = field(
        default=True, metadata={"help": "Leave the backbone as it is (its features are kept)."}
    )
    unfreeze_last_blocks: int = field(
        default=0, metadata={"help": "Blocks of a frozen backbone that train all the same."}
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Rank of LoRA adapters in a frozen backbone; 0: none."}
    )
    lora_alpha: float = field(default=16.0, metadata={"help": "Scale of the adapters."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout rate of the adapters."})
    lora_target_modules: list[str] = field(
        default_factory=list,
        metadata={"help": "Ends of names of the layers that get adapters. Default: all linear."},
    )
    loss_function: Literal[LOSS_FUNCTIONS] = field(
        default="bradley_terry", metadata={"help": "The loss of a pair."}
    )
    margin: float = field(default=1.0, metadata={"help": "Of the margin losses, in scores."})

    @classmethod
    def check(cls, values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        problems = []
        given = [name for name in _SIZES if values[name] is not None]
        if values["backbone"] != NEW_BACKBONE and given:
            problems.append(
                f"{', '.join('--' + n for n in given)} are sizes of a new backbone, and --backbone "
                f"is {values['backbone']}: add --backbone new, or leave them out."
            )
        sizes = _with_defaults(values)
        for name in list(_SIZES)[1:]:
            if sizes[name] < 1:
                problems.append(f"{name} is {sizes[name]}; it must be 1 or more.")
        if not problems and sizes["backbone_type"] == "dinov2":
            if sizes["hidden_size"] % sizes["num_attention_heads"]:
                problems.append(
                    f"hidden_size {sizes['hidden_size']} must be a multiple of num_attention_heads,"
                    f" {sizes['num_attention_heads']}."
                )
        if values["image_size"] < 14:
            problems.append(f"image_size is {values['image_size']}; it must be 14 or more.")
        if not values["margin"] > 0:
            problems.append(f"margin is {values['margin']}; it must be above 0.")
        for name in ("projector_dropout", "lora_dropout"):
            if not 0 <= values[name] < 1:
                problems.append(f"{name} is {values[name]}; it must lie in [0, 1).")
        for name in ("lora_rank", "unfreeze_last_blocks"):
            if values[name] < 0:
                problems.append(f"{name} is {values[name]}; it must be 0 or more.")
            elif values[name] and not values["freeze_backbone"]:
                problems.append(f"{name} is for a frozen backbone: leave freeze_backbone true.")
        if values["lora_rank"] and values["unfreeze_last_blocks"]:
            problems.append("lora_rank and unfreeze_last_blocks exclude each other.")
        if values["projector_output_dim"] < 1:
            problems.append(
                f"projector_output_dim is {values['projector_output_dim']}; it must be 1 or more."
            )
        return problems

    @property
    def sizes(self) -> dict[str, Any]:
        """The sizes of a new backbone, with defaults in place of None."""
        return _with_defaults(vars(self))


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: default if values[name] is None else values[name] for name, default in _SIZES.items()
    }


PRESETS = {
    "small": {
        "per_device_train_batch_size": 16, "learning_rate": 5e-5, "num_train_epochs": 200.0
    },
    "medium": {
        "per_device_train_batch_size": 32, "learning_rate": 1e-4, "num_train_epochs": 100.0
    },
    "large": {
        "per_device_train_batch_size": 64, "learning_rate": 2e-4, "num_train_epochs": 50.0
    },
    "huge": {
        "per_device_train_batch_size": 128, "learning_rate": 3e-4, "num_train_epochs": 30.0
    },
}  # fmt: skip
"""Settings by the size of the training set, as the guide has them."""

_PRESET_SIZES = {"small": 1_000, "medium": 10_000, "large": 100_000}


def preset_for(images: int) -> str:
    """Returns the name of the preset for a number of training images.

    Args:
        images (int): Training images: below 1,000 ``small``, 10,000 ``medium``, 100,000 ``large``,
            else ``huge``.
    """
    return next((name for name, most in _PRESET_SIZES.items() if images < most), "huge")


@dataclasses.dataclass
class RankingTrainingArguments(HFTuneArguments):
    """Training settings of a ranking, with the guide's names beside the Trainer's.

    Everything that :class:`~hftune.configuration.arguments.HFTuneArguments` has, with the guide's
    defaults (100 epochs, batches of 32, a learning rate of 1e-4 that falls along a cosine to 1e-6,
    seed 42), an evaluation and a checkpoint each epoch and the best model kept, and:

    Args:
        preset (str, *optional*): Batch size, learning rate and epochs by the number of training
            images, where they are not given otherwise: ``"auto"``, ``"small"``, ``"medium"``,
            ``"large"`` or ``"huge"``. Defaults to none.
        min_learning_rate (float): Where the cosine ends. Defaults to 1e-6.
        early_stopping_patience (int): Evaluations without a better model after which training
            ends; 0 for never. Defaults to 10.
        early_stopping_threshold (float): How much better counts. Defaults to 0.
    """

    num_train_epochs: float = redeclare(
        "num_train_epochs", 100.0, env=["NUM_EPOCHS"], aliases=["epochs"]
    )
    per_device_train_batch_size: int = redeclare(
        "per_device_train_batch_size", 32, env=["BATCH_SIZE"], aliases=["batch_size"]
    )
    per_device_eval_batch_size: int = redeclare("per_device_eval_batch_size", 32)
    learning_rate: float = redeclare("learning_rate", 1e-4, env=["LEARNING_RATE"])
    weight_decay: float = redeclare("weight_decay", 0.01)
    max_grad_norm: float = redeclare("max_grad_norm", 1.0, aliases=["gradient_clip_norm"])
    lr_scheduler_type: SchedulerType | str = redeclare("lr_scheduler_type", "cosine")
    eval_strategy: IntervalStrategy | str = redeclare("eval_strategy", "epoch")
    save_strategy: SaveStrategy | str = redeclare("save_strategy", "epoch")
    load_best_model_at_end: bool = redeclare("load_best_model_at_end", True)

    preset: Literal["auto", "small", "medium", "large", "huge"] | None = field(
        default=None,
        metadata={
            "help": "Batch size, learning rate and epochs by the number of training images. auto: "
            "by counting them."
        },
    )
    min_learning_rate: float = field(
        default=1e-6, metadata={"help": "Where the cosine of the learning rate ends."}
    )
    early_stopping_patience: int = field(
        default=10, metadata={"help": "Evaluations without a better model that end it; 0: never."}
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "How much better a model must be to count."}
    )

    @staticmethod
    def check(values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with settings, before anything is constructed."""
        problems = HFTuneArguments.check(values)
        for name in ("min_learning_rate", "early_stopping_patience", "early_stopping_threshold"):
            if values[name] < 0:
                problems.append(f"{name}: found {values[name]}, expected 0 or more")
        lowest, first = values["min_learning_rate"], values["learning_rate"]
        if values["lr_scheduler_type"] == "cosine" and lowest > first:
            problems.append(
                f"min_learning_rate: found {lowest:g}, which is above the learning_rate, {first:g}"
            )
        return problems

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_scheduler_type == "cosine":
            self.lr_scheduler_type = SchedulerType("cosine_with_min_lr")
            given = self.lr_scheduler_kwargs or {}
            self.lr_scheduler_kwargs = {"min_lr": self.min_learning_rate, **given}
