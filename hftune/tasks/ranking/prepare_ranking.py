"""The images and the model of a run: read, checked, split; features that are kept, or pixels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from transformers import Dinov2Config, PreTrainedConfig, ResNetConfig, TrainingArguments

from ...configuration.resolve import Resolved
from ...training.first_process import in_first_process
from ...utils.errors import ConfigurationError, DataError
from ...utils.home import hftune_home
from ...utils.seeds import derive_seed
from ...utils.terminal import say
from .arguments_ranking import (
    NEW_BACKBONE,
    PRESETS,
    RankingDataArguments,
    RankingModelArguments,
    augmentation_of,
    preset_for,
)
from .backbones_ranking import backbone_config, load_backbone, new_backbone
from .data_ranking import FeatureImages, PixelImages, TrainingPairs
from .example_ranking import write_example
from .feature_cache import FeatureCache, compute_features, features_space
from .image_files import inspect_images
from .modeling_ranking import PairwiseRankingModel, make_processor, ranking_config
from .pairs_ranking import PairIndex, tier_pair_matrix
from .splitter_ranking import split_rows
from .tables_ranking import (
    Comparisons,
    ImageTable,
    check_duplicates,
    images_of_comparisons,
    read_comparisons,
    read_images,
    require_pairs,
)
from .votes_ranking import fit_bradley_terry

__all__ = [
    "RankingData",
    "RankingSplit",
    "apply_preset",
    "build_model",
    "make_images",
    "pair_settings",
    "prepare_ranking",
]

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class RankingSplit:
    """The images of one split.

    Attributes:
        name (str): ``train``, ``validation`` or ``test``.
        table (ImageTable): Its images.
        hashes (tuple of str): SHA-256 of their bytes.
        comparisons (Comparisons, *optional*): People's votes on pairs of them.
    """

    name: str
    table: ImageTable
    hashes: tuple[str, ...]
    comparisons: Comparisons | None = None

    def known_targets(self) -> np.ndarray:
        """Returns the images' targets; where there are comparisons alone, what these say of each:
        float64 ``[N]``.
        """
        if self.table.targets is not None:
            return self.table.targets
        return fit_bradley_terry(self.comparisons.images, self.comparisons.votes, len(self.table))


@dataclasses.dataclass(frozen=True)
class RankingData:
    """The images of a run.

    Attributes:
        train, validation (RankingSplit): What is learnt from, and what chooses the best model.
        test (RankingSplit, *optional*): What scores it. None where two tables were given.
        train_on (str): ``"tiers"`` or ``"comparisons"``.
        all_comparisons (Comparisons, *optional*): All votes that were given, also those between
            splits, for the ceiling that their noise sets; of ``all_images`` images.
        all_images (int): Images that they are of.
        fingerprint (str): Says which data these are.
        source (str): Where they came from, for people.
    """

    train: RankingSplit
    validation: RankingSplit
    test: RankingSplit | None
    train_on: str
    all_comparisons: Comparisons | None
    all_images: int
    fingerprint: str
    source: str

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers, best first; empty where images have scores or comparisons alone."""
        return self.train.table.tiers

    def describe(self) -> dict[str, Any]:
        """Returns what ``run.json`` says of the data."""
        splits = [split for split in (self.train, self.validation, self.test) if split is not None]
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "train_on": self.train_on,
            "tiers": list(self.tiers),
            "images": {split.name: len(split.table) for split in splits},
            "comparisons": {
                split.name: len(split.comparisons)
                for split in splits
                if split.comparisons is not None
            },
        }


def prepare_ranking(arguments: RankingDataArguments) -> RankingData:
    """Reads, checks and splits the images of a run; every process of it calls this.

    The first process reads, the others have what it found.

    Args:
        arguments (RankingDataArguments): The ``data:`` section.

    Raises:
        ConfigurationError: If settings and data do not fit together.
        DataError: With all problems of the tables, or of the images.
    """
    data = in_first_process(lambda: _prepare(arguments))
    splits = [split for split in (data.train, data.validation, data.test) if split is not None]
    for split in splits:
        counts = ", ".join(f"{tier} {n:,}" for tier, n in split.table.counts().items())
        votes = "" if split.comparisons is None else f", {len(split.comparisons):,} comparisons"
        tiers = f" ({counts})" if counts else ""
        say(f"{split.name}: {len(split.table):,} images{tiers}{votes}", highlight=False)
    return data


def _prepare(arguments: RankingDataArguments) -> RankingData:
    tables, comparisons, source = _read(arguments)
    hashes = {name: _hashes(table) for name, table in tables.items()}
    if len(tables) == 1:  # a split that keeps the same picture, under any name, together
        rows = _split(tables["train"], hashes["train"], arguments)
        whole, whole_hashes = tables["train"], hashes["train"]
    else:
        order = [name for name in SPLITS if name in tables]
        keep = check_duplicates(
            {name: tables[name] for name in order}, hashes, arguments.on_duplicates
        )
        tables = {name: tables[name].select(keep[name]) for name in order}
        hashes = {name: [hashes[name][row] for row in keep[name]] for name in order}
        if "validation" not in tables:
            share = arguments.val_ratio / (arguments.train_ratio + arguments.val_ratio)
            parts = split_rows(
                tables["train"], (1 - share, share, 0.0), arguments.split_seed, hashes["train"]
            )
            whole_train, train_hashes = tables["train"], hashes["train"]
            for name, part in zip(("train", "validation"), parts, strict=False):
                tables[name] = whole_train.select(part)
                hashes[name] = [train_hashes[row] for row in part]
        whole = _joined([tables[name] for name in SPLITS if name in tables])
        whole_hashes = [h for name in SPLITS if name in tables for h in hashes[name]]
        ends = np.cumsum([len(tables[name]) for name in SPLITS if name in tables])
        bounds = zip([0, *ends], ends, strict=False)
        present = (name for name in SPLITS if name in tables)
        rows = {
            name: np.arange(start, end) for name, (start, end) in zip(present, bounds, strict=False)
        }
    votes = None if comparisons is None else read_comparisons(comparisons, whole)
    splits = {
        name: RankingSplit(
            name,
            whole.select(part),
            tuple(whole_hashes[row] for row in part),
            None if votes is None else votes.within(part),
        )
        for name, part in rows.items()
    }
    train_on = arguments.train_on or ("comparisons" if whole.targets is None else "tiers")
    _check(splits, train_on, comparisons)
    content = {
        name: [split.hashes, None if split.table.targets is None else split.table.targets.tolist()]
        for name, split in splits.items()
    }
    content["votes"] = [] if votes is None else [votes.images.tolist(), votes.votes.tolist()]
    return RankingData(
        splits["train"],
        splits["validation"],
        splits.get("test"),
        train_on,
        votes,
        len(whole),
        xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode()),
        source,
    )


def _read(
    arguments: RankingDataArguments,
) -> tuple[dict[str, ImageTable], Path | None, str]:
    """The tables by split, the file of comparisons, and where it all came from."""
    options: dict[str, Any] = {
        "tiers": arguments.tiers or None,
        "rank_by": arguments.rank_by,
        "group_column": arguments.group_column,
    }
    if arguments.data_dir is None:
        metadata = write_example(hftune_home() / "cache" / "ranking_example")
        say("No --data_dir: a small set of pictures that were degraded in steps.")
        return {"train": read_images(metadata, metadata.parent / "images")}, None, "example"
    folder = Path(arguments.data_dir)
    images = folder / "images" if (folder / "images").is_dir() else folder
    comparisons = None if arguments.comparisons is None else Path(arguments.comparisons)
    metadata = arguments.metadata or _beside(folder)
    if metadata is None:
        if comparisons is None:
            raise ConfigurationError(
                f"--data_dir {folder}: no metadata.csv in it or beside it. Give --metadata "
                "(image_id, filename, tier) or --comparisons (image_1, image_2, votes_1, votes_2)."
            )
        return {"train": images_of_comparisons(comparisons, images)}, comparisons, str(folder)
    tables = {"train": read_images(metadata, images, **options)}
    # The order of tiers that the training table has, also where others lack some of them.
    options["tiers"] = tables["train"].tiers or None
    for name, path in (("validation", arguments.val_metadata), ("test", arguments.test_metadata)):
        if path is not None:
            tables[name] = read_images(path, images, **options)
    return tables, comparisons, str(folder)


def _beside(folder: Path) -> Path | None:
    places = (folder / "metadata.csv", folder.parent / "metadata.csv")
    return next((path for path in places if path.is_file()), None)


def _hashes(table: ImageTable) -> list[str]:
    return [facts.sha256 for facts in inspect_images(table.paths)]


def _split(
    table: ImageTable, hashes: list[str], arguments: RankingDataArguments
) -> dict[str, np.ndarray]:
    ratios = (arguments.train_ratio, arguments.val_ratio, arguments.test_ratio)
    parts = split_rows(table, ratios, arguments.split_seed, hashes)
    return {
        name: part
        for name, part, ratio in zip(SPLITS, parts, ratios, strict=True)
        if ratio or name != "test"
    }


def _joined(tables: list[ImageTable]) -> ImageTable:
    """One table of several that have the same tiers; ids that two of them use become paths."""
    ids = [name for table in tables for name in table.ids]
    if len(set(ids)) < len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1})
        raise DataError(
            f"{len(twice)} image_ids are in more than one table: {', '.join(twice[:5])}"
            f"{', ...' if len(twice) > 5 else ''}. An image belongs to one split."
        )

    def together(name: str) -> Any:
        parts = [getattr(table, name) for table in tables]
        if any(part is None for part in parts):
            return None
        if isinstance(parts[0], np.ndarray):
            return np.concatenate(parts)
        return tuple(value for part in parts for value in part)

    return dataclasses.replace(
        tables[0],
        **{name: together(name) for name in ("ids", "paths", "targets", "scores", "groups")},
    )


def _check(splits: dict[str, RankingSplit], train_on: str, comparisons: Path | None) -> None:
    if train_on == "comparisons" and comparisons is None:
        raise ConfigurationError("--train_on comparisons needs --comparisons FILE.")
    for name, split in splits.items():
        what = f"the {name} split"
        needs_tiers = train_on == "tiers" if name == "train" else split.table.targets is not None
        if needs_tiers:
            require_pairs(split.table, what)
        elif not split.comparisons:
            raise DataError(
                f"{what} has no comparison between two of its {len(split.table)} images: "
                "comparisons between splits cannot be used. Give more, or larger splits."
            )


# Settings that depend on the data


def apply_preset(settings: Resolved, args: Any, images: int) -> Resolved:
    """Sets what a preset says, where the settings are not given otherwise, and says so.

    Args:
        settings (Resolved): Of the recipe.
        args (RankingTrainingArguments): Among them; changed in place.
        images (int): Training images.

    Returns:
        The settings with their new values and sources.
    """
    if args.preset is None:
        return settings
    name = preset_for(images) if args.preset == "auto" else args.preset
    values = {key: v for key, v in PRESETS[name].items() if not settings.is_given(key)}
    told = ", ".join(f"--{key} {value:g}" for key, value in values.items())
    say(f"Preset {name} for {images:,} training images: {told or 'nothing that is not given'}")
    return settings.changed(f"preset {name}", **values)


def pair_settings(arguments: RankingDataArguments, data: RankingData) -> dict[str, Any]:
    """Returns which pairs a :class:`~.trainer_ranking.RankingTrainer` trains on.

    Args:
        arguments (RankingDataArguments): The ``data:`` section.
        data (RankingData): The images.

    Raises:
        ConfigurationError: If weights name unknown tiers, or no pair is left.
    """
    table, gap = data.train.table, arguments.min_tier_gap
    if data.train_on == "comparisons":
        return {"pairs": TrainingPairs(data.train.comparisons)}
    weights = None
    if data.tiers and (arguments.tier_pair_weights or gap > 1):
        weights = tier_pair_matrix(arguments.tier_pair_weights, data.tiers, gap)
    elif arguments.tier_pair_weights or gap > 1:
        raise ConfigurationError(
            "min_tier_gap and tier_pair_weights are for tiers, and these images have scores"
        )
    if arguments.pairing == "batch":
        return {"pair_weights": weights}
    return {
        "pairs": TrainingPairs(PairIndex(table.targets, gap if data.tiers else 0)),
        "pairs_per_epoch": arguments.pairs_per_epoch,
        "pair_weights": weights if arguments.tier_pair_weights else None,
    }


# Model


def build_model(
    arguments: RankingModelArguments, *, tiers: tuple[str, ...], seed: int
) -> PairwiseRankingModel:
    """Makes the model of a run, in float32; the same seed gives the same weights.

    Args:
        arguments (RankingModelArguments): The ``model:`` section.
        tiers (tuple of str): Names of the tiers, best first; the model remembers them.
        seed (int): Of the run; new weights come from it. The global random numbers are left as
            they are.

    Raises:
        CheckpointError: If a pretrained backbone cannot be loaded.
        ConfigurationError: If the settings do not fit the backbone.
    """
    name = arguments.backbone
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "model"))
        if name == NEW_BACKBONE:
            vision = _new_config(arguments)
            backbone = new_backbone(vision)
        else:
            vision = backbone_config(name, arguments.image_size)
            backbone = load_backbone(name, vision)
        config = ranking_config(
            backbone,
            backbone_name=name,
            pooling=arguments.pooling,
            projector_output_dim=arguments.projector_output_dim,
            projector_dropout=arguments.projector_dropout,
            freeze_backbone=arguments.freeze_backbone,
            unfreeze_last_blocks=arguments.unfreeze_last_blocks,
            lora_rank=arguments.lora_rank,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.lora_dropout,
            lora_target_modules=arguments.lora_target_modules or "all-linear",
            loss_function=arguments.loss_function,
            margin=arguments.margin,
            tiers=tiers,
        )
        model = PairwiseRankingModel(config, backbone=backbone)
    model.image_processor = make_processor(
        vision,
        arguments.image_size,
        arguments.resize_mode,
        "" if name == NEW_BACKBONE else name,
    )
    return model


def _new_config(arguments: RankingModelArguments) -> PreTrainedConfig:
    sizes = arguments.sizes
    width = sizes["hidden_size"]
    if sizes["backbone_type"] == "dinov2":
        return Dinov2Config(
            hidden_size=width,
            num_hidden_layers=sizes["num_hidden_layers"],
            num_attention_heads=sizes["num_attention_heads"],
            patch_size=sizes["patch_size"],
            image_size=arguments.image_size,
        )
    stages = min(sizes["num_hidden_layers"], 4)
    layers = np.full(stages, sizes["num_hidden_layers"] // stages)
    layers[: sizes["num_hidden_layers"] % stages] += 1
    widths = [max(1, width * (i + 1) // stages) for i in range(stages)]
    return ResNetConfig(
        embedding_size=widths[0],
        hidden_sizes=widths,
        depths=layers.tolist(),
        layer_type="basic",
    )


def make_images(
    split: RankingSplit,
    model: PairwiseRankingModel,
    arguments: RankingDataArguments,
    args: TrainingArguments,
    *,
    training: bool = False,
) -> PixelImages | FeatureImages:
    """Makes a split's images for a trainer or an evaluator.

    Where the backbone does not train, this computes their features, or finds them in the cache.
    Every process of a run calls this.

    Args:
        split (RankingSplit): The images.
        model (PairwiseRankingModel): Moved to the device of the run.
        arguments (RankingDataArguments): The ``data:`` section.
        args (TrainingArguments): Device, seed, precision and workers.
        training (bool): Whether images change at random. Defaults to False.
    """
    table = split.table
    augmentation = augmentation_of(vars(arguments)) if training else None
    seed = derive_seed(args.seed, "augmentation")
    if arguments.feature_cache == "off" or model.config.trains_backbone:
        process = model.image_processor.process
        return PixelImages(table.paths, process, table.targets, augmentation, seed)
    space = features_space(
        model.to(args.device),
        model.image_processor,
        stored_dtype=arguments.feature_dtype,
        compute_dtype="bfloat16" if args.bf16 else "float32",
    )
    features = compute_features(
        model,
        FeatureCache.open(None, space),
        table.paths,
        split.hashes,
        model.image_processor,
        views=arguments.feature_views if training else 1,
        augmentation=augmentation,
        seed=seed,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
    )
    return FeatureImages(features, table.targets, draw_views=training, seed=seed)
