"""The images and the model of a run: read, checked, split; features that are kept, or pixels."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from transformers import Dinov2Config, PreTrainedConfig, ResNetConfig, TrainingArguments

from ...configuration.resolve import Resolved
from ...training.first_process import in_first_process
from ...utils.errors import ConfigurationError, DataError, listed
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
from .feature_cache import kept_features
from .image_files import inspect_images
from .modeling_ranking import PairwiseRankingModel, make_processor, ranking_config
from .pairs_ranking import PairIndex, tier_pair_matrix
from .splitter_ranking import SPLITS, split_rows
from .tables_ranking import (
    Comparisons,
    ImageTable,
    TableError,
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
    tables, source = _read_tables(arguments)
    table = _joined(list(tables.values()))
    hashes = np.array([facts.sha256 for facts in inspect_images(table.paths)])
    parts = _split(table, hashes, _rows_of(tables), arguments)
    keep = check_duplicates(
        {name: table.select(rows) for name, rows in parts.items()},
        {name: hashes[rows] for name, rows in parts.items()},
        arguments.on_duplicates,
    )
    parts = {name: rows[keep[name]] for name, rows in parts.items()}
    _check_ids(table, parts)

    kept = np.sort(np.concatenate(list(parts.values())))
    table, hashes = table.select(kept), hashes[kept]
    votes = None
    if arguments.comparisons is not None:
        votes = read_comparisons(arguments.comparisons, table)
    splits = {}
    for name, rows in parts.items():
        rows = np.searchsorted(kept, rows)
        comparisons = None if votes is None else votes.within(rows)
        splits[name] = RankingSplit(
            name, table.select(rows), tuple(hashes[rows].tolist()), comparisons
        )
    train_on = arguments.train_on or ("comparisons" if table.targets is None else "tiers")
    _check_pairs(splits, train_on)
    return RankingData(
        splits["train"],
        splits["validation"],
        splits.get("test"),
        train_on,
        votes,
        len(table),
        _fingerprint(splits, votes),
        source,
    )


def _read_tables(arguments: RankingDataArguments) -> tuple[dict[str, ImageTable], str]:
    """The tables that were given, by split in the order of :data:`SPLITS`, and their source."""
    if arguments.data_dir is None:
        say("No --data_dir: a small set of pictures that were degraded in steps.")
        folder, source = (
            write_example(hftune_home() / "cache" / "ranking_example").parent,
            "example",
        )
    else:
        folder, source = Path(arguments.data_dir), arguments.data_dir
    if not folder.is_dir():
        raise DataError(f"--data_dir {folder} is no folder; expected the one with the images.")
    images = folder / "images" if (folder / "images").is_dir() else folder
    metadata = arguments.metadata or _metadata_of(folder)
    given = {
        "train": metadata,
        "validation": arguments.val_metadata,
        "test": arguments.test_metadata,
    }
    if metadata is None:
        if arguments.comparisons is None or any(given.values()):
            raise ConfigurationError(
                f"--data_dir {folder}: no metadata.csv in it or beside it. Give --metadata "
                "(image_id, filename, tier), or --comparisons (image_1, image_2, votes_1, votes_2) "
                "and no other table."
            )
        return {"train": images_of_comparisons(arguments.comparisons, images)}, source

    tables, problems = {}, []
    there: list[Path] = []
    tiers, rank_by = arguments.tiers or None, arguments.rank_by
    for split, path in given.items():
        if path is None:
            continue
        try:
            table = read_images(
                path, images, tiers=tiers, rank_by=rank_by, group_column=arguments.group_column
            )
        except DataError as error:
            problems.append(str(error))
            there += error.paths if isinstance(error, TableError) else ()
            continue
        there += table.paths
        if not tables:  # the others are ranked as the first one, also where they lack a tier
            tiers, rank_by = table.tiers or None, "tier" if table.tiers else "score"
        tables[split] = table
    if problems:
        try:
            inspect_images(there)  # what is wrong with files is told with what is wrong with tables
        except DataError as error:
            problems.append(str(error))
        raise DataError("\n".join(problems))
    return tables, source


def _metadata_of(folder: Path) -> Path | None:
    places = (folder / "metadata.csv", folder.parent / "metadata.csv")
    return next((path for path in places if path.is_file()), None)


def _joined(tables: Sequence[ImageTable]) -> ImageTable:
    """One table of several that are ranked alike."""
    columns: dict[str, Any] = {}
    for name in ("ids", "paths", "targets", "scores", "groups"):
        parts = [getattr(table, name) for table in tables]
        if any(part is None for part in parts):
            columns[name] = None
        elif isinstance(parts[0], np.ndarray):
            columns[name] = np.concatenate(parts)
        else:
            columns[name] = tuple(itertools.chain(*parts))
    return dataclasses.replace(tables[0], **columns)


def _rows_of(tables: Mapping[str, ImageTable]) -> dict[str, np.ndarray]:
    """Rows of each table in the one that is joined of them."""
    ends = np.cumsum([len(table) for table in tables.values()])
    return dict(zip(tables, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))


def _split(
    table: ImageTable,
    hashes: np.ndarray,
    parts: dict[str, np.ndarray],
    arguments: RankingDataArguments,
) -> dict[str, np.ndarray]:
    """Rows of each split: those of the given tables, or shares of the first one.

    The same picture, under whatever name, and a group stay together.
    """
    if "validation" in parts:
        return parts
    test_ratio = 0.0 if "test" in parts else arguments.test_ratio
    ratios = np.array([arguments.train_ratio, arguments.val_ratio, test_ratio])
    rows = parts["train"]
    found = split_rows(
        table.select(rows), ratios / ratios.sum(), arguments.split_seed, hashes[rows]
    )
    shares = {name: rows[part] for name, part in zip(SPLITS, found, strict=True) if len(part)}
    return {**parts, **shares}


def _check_ids(table: ImageTable, parts: Mapping[str, np.ndarray]) -> None:
    """An id stands for one image, also across tables."""
    owner: dict[str, str] = {}
    twice = [
        f"{table.ids[row]!r} is in {owner[table.ids[row]]} and {name}"
        for name, rows in parts.items()
        for row in rows
        if owner.setdefault(table.ids[row], name) != name
    ]
    if twice:
        raise DataError(
            f"{len(twice):,} image_ids stand for different images:{listed(twice)}\nAn image_id "
            "belongs to one image."
        )


def _check_pairs(splits: Mapping[str, RankingSplit], train_on: str) -> None:
    for name, split in splits.items():
        by_targets = train_on == "tiers" if name == "train" else split.table.targets is not None
        if by_targets:
            require_pairs(split.table, f"the {name} split")
        elif not split.comparisons:
            raise DataError(
                f"the {name} split has no comparison between two of its {len(split.table):,} "
                "images: comparisons between splits cannot be used. Give more of them, or larger "
                "splits."
            )


def _fingerprint(splits: Mapping[str, RankingSplit], votes: Comparisons | None) -> str:
    content: dict[str, Any] = {
        name: [split.hashes, None if split.table.targets is None else split.table.targets.tolist()]
        for name, split in splits.items()
    }
    content["votes"] = [] if votes is None else [votes.images.tolist(), votes.votes.tolist()]
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


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
        ConfigurationError: If settings are not for such data, weights name unknown tiers, or no
            pair is left.
    """
    gap, given = arguments.min_tier_gap, arguments.tier_pair_weights
    if not data.tiers or data.train_on == "comparisons":
        if given or gap > 1:
            what = "scores" if data.train_on == "tiers" else "comparisons"
            raise ConfigurationError(
                f"min_tier_gap and tier_pair_weights are for tiers, and training follows {what}"
            )
        gap = 0
    if data.train_on == "comparisons":
        if arguments.pairs_per_epoch is not None:
            raise ConfigurationError("pairs_per_epoch: an epoch has all comparisons, each once")
        return {"pairs": TrainingPairs(data.train.comparisons)}
    index = PairIndex(data.train.table.targets, gap)
    if not len(index):
        raise ConfigurationError(
            f"min_tier_gap: found {gap}, and no two training images are as many tiers apart"
        )
    weights = tier_pair_matrix(given, data.tiers, gap) if given or gap > 1 else None
    if arguments.pairing == "batch":
        return {"pair_weights": weights}
    return {
        "pairs": TrainingPairs(index),
        "pairs_per_epoch": arguments.pairs_per_epoch,
        "pair_weights": weights if given else None,
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
    features = kept_features(
        model.to(args.device),
        model.image_processor,
        table.paths,
        split.hashes,
        stored_dtype=arguments.feature_dtype,
        compute_dtype="bfloat16" if args.bf16 else "float32",
        views=arguments.views if training else 1,
        augmentation=augmentation,
        seed=seed,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
    )
    return FeatureImages(features, table.targets, draw_views=training, seed=seed)
