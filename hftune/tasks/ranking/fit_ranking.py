"""Training from two DataLoaders: a configuration and ``Trainer.fit``, on the same trainer as the
recipe.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ...training.checkpoints import resolve_resume
from ...utils.errors import CheckpointError, ConfigurationError
from ...utils.seeds import seed_everything
from ...utils.terminal import say
from .arguments_ranking import RankingTrainingArguments
from .backbones_ranking import patch_size_of
from .data_ranking import FeatureImages, PairwiseDataset, PixelImages
from .evaluation_ranking import RankingEvaluator
from .feature_cache import kept_features
from .image_files import inspect_images
from .image_processing_ranking import RankingImageProcessor
from .inference_ranking import model_folder
from .modeling_ranking import PairwiseRankingModel
from .pairs_ranking import tier_pair_matrix
from .trainer_ranking import LAST_MODEL, WANDB_NAMES, RankingTrainer

__all__ = ["BEST_MODEL", "Trainer", "TrainingConfig"]

BEST_MODEL = "best_model"
"""Folder, in ``checkpoint_dir``, of the model with the best validation accuracy."""

_EPOCH = "checkpoint_epoch_"
# Transforms that make the same of an image each time: features of what they make can be kept.
_FIXED_TRANSFORMS = {
    "CenterCrop", "Compose", "ConvertImageDtype", "Grayscale", "Normalize", "PILToTensor", "Pad",
    "Resize", "RGB", "ToDtype", "ToImage", "ToTensor",
}  # fmt: skip


@dataclasses.dataclass
class TrainingConfig:
    """Settings of :class:`Trainer`.

    Args:
        learning_rate (float): Defaults to 1e-4.
        weight_decay (float): Defaults to 0.01.
        batch_size (int): Images a step, all of whose pairs are compared. Defaults to 32.
        max_epochs (int): Times that each image is seen. Defaults to 100.
        gradient_clip_norm (float): Defaults to 1.
        early_stopping_patience (int): Epochs without a better validation accuracy after which
            training ends; 0 for never. Defaults to 10.
        scheduler_t_max (int, *optional*): Epochs until the cosine of the learning rate is at its
            lowest. Defaults to ``max_epochs``.
        scheduler_eta_min (float): The lowest learning rate. Defaults to 1e-6.
        warmup_steps (int): Steps in which the learning rate rises from 0. Defaults to 0.
        gradient_accumulation_steps (int): Batches a step of the optimizer. Defaults to 1.
        checkpoint_dir (str): Where checkpoints and models go. Defaults to ``"./checkpoints"``.
        save_every_n_epochs (int): Checkpoints of how many epochs stay, beside the newest two and
            the best; 0 for none. Defaults to 5.
        wandb_enabled (bool): Mirror the run in Weights & Biases. Defaults to False.
        wandb_project (str): Defaults to ``"mirip-ranking"``.
        wandb_run_name (str, *optional*): Defaults to one that W&B makes up.
        device (str, *optional*): ``"cuda"``, ``"cpu"`` or ``"mps"``. Defaults to what there is.
        seed (int): Defaults to 42.
        num_workers (int): Processes that decode images. Defaults to 0.
        bf16 (bool): Compute in bfloat16 where that is exact enough. Defaults to False.
        resume (str): ``"auto"`` goes on from the newest checkpoint in ``checkpoint_dir``, if there
            is one; ``"never"`` starts anew. Defaults to ``"auto"``.

    Raises:
        ConfigurationError: With all that is wrong.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    batch_size: int = 32
    max_epochs: int = 100
    gradient_clip_norm: float = 1.0
    early_stopping_patience: int = 10
    scheduler_t_max: int | None = None
    scheduler_eta_min: float = 1e-6
    warmup_steps: int = 0
    gradient_accumulation_steps: int = 1
    checkpoint_dir: str = "./checkpoints"
    save_every_n_epochs: int = 5
    wandb_enabled: bool = False
    wandb_project: str = "mirip-ranking"
    wandb_run_name: str | None = None
    device: str | None = None
    seed: int = 42
    num_workers: int = 0
    bf16: bool = False
    resume: str = "auto"

    def __post_init__(self) -> None:
        problems = [
            f"{name}: found {getattr(self, name)}, expected {least} or more"
            for name, least in (
                ("batch_size", 1), ("max_epochs", 1), ("warmup_steps", 0), ("num_workers", 0),
                ("gradient_accumulation_steps", 1), ("save_every_n_epochs", 0),
                ("early_stopping_patience", 0),
            )
            if getattr(self, name) < least
        ]  # fmt: skip
        if self.scheduler_t_max is not None and self.scheduler_t_max < 1:
            problems.append(f"scheduler_t_max: found {self.scheduler_t_max}, expected 1 or more")
        if not 0 <= self.scheduler_eta_min <= self.learning_rate:
            problems.append(
                f"scheduler_eta_min: found {self.scheduler_eta_min:g}, expected 0 to the "
                f"learning_rate, {self.learning_rate:g}"
            )
        if self.device is not None:
            kind = torch.device(self.device).type
            there = torch.accelerator.current_accelerator(check_available=True)
            known = {"cpu"} if there is None else {"cpu", there.type}
            if kind not in known:
                problems.append(
                    f"device: found {self.device!r}, but this machine has "
                    f"{' and '.join(sorted(known))}; leave it out to take what there is"
                )
        if problems:
            raise ConfigurationError(problems)

    def arguments(self) -> RankingTrainingArguments:
        """Returns the same settings as the recipe has them."""
        t_max = self.scheduler_t_max or self.max_epochs
        return RankingTrainingArguments(
            output_dir=self.checkpoint_dir,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            per_device_train_batch_size=self.batch_size,
            num_train_epochs=float(self.max_epochs),
            max_grad_norm=self.gradient_clip_norm,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            early_stopping_patience=self.early_stopping_patience,
            min_learning_rate=self.scheduler_eta_min,
            # As many half waves as CosineAnnealingLR makes in so many epochs.
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={
                "min_lr": self.scheduler_eta_min,
                "num_cycles": 0.5 * self.max_epochs / t_max,
            },
            warmup_steps=self.warmup_steps,
            use_cpu=self.device is not None and torch.device(self.device).type == "cpu",
            seed=self.seed,
            bf16=self.bf16,
            dataloader_num_workers=self.num_workers,
            resume=self.resume,
        )


class Trainer:
    """Trains a ranking model on the pairs of a loader's data set.

    The loaders say what the data are; batches are made by the trainer: of ``batch_size`` images,
    each read once, with all pairs among them. Where the backbone does not train and the transform
    makes the same of an image each time, each image passes the backbone once in all.

    ``checkpoint_dir`` then holds ``best_model/`` and ``last_model/`` (for ``from_pretrained``),
    ``checkpoint_epoch_5/``, ... and the newest checkpoints; ``fit`` again goes on from there.

    Args:
        model (PairwiseRankingModel): The model.
        config (TrainingConfig): Settings.

    Attributes:
        best_accuracy (float, *optional*): Of the validation, once it is known.
        history (list of dict): What was logged.

    Example:
        >>> trainer = Trainer(model=model, config=TrainingConfig(max_epochs=20))
        >>> trainer.fit(train_loader, val_loader)
        >>> trainer.best_accuracy
        0.82
    """

    def __init__(self, model: PairwiseRankingModel, config: TrainingConfig) -> None:
        self.model, self.config = model, config
        self.best_accuracy: float | None = None
        self.history: list[dict[str, float]] = []
        self._resume: str | None = None

    def load_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Says where :meth:`fit` goes on, or takes a model's weights.

        Args:
            path (path): ``last_model``: the newest checkpoint beside it, with the optimizer's
                state; ``checkpoint_epoch_5`` or ``checkpoint-120``: that one; ``best_model`` or
                the folder of another saved model: its weights alone, for a new training. An ending
                ``.pt`` is left out where there is no such file.

        Raises:
            CheckpointError: If there is none, or it is a pickle.
        """
        folder = model_folder(path)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: there is no such folder of a model or checkpoint")
        if folder.name == LAST_MODEL:
            found = resolve_resume(folder.parent, "auto")
            if found is None:
                raise CheckpointError(f"{folder.parent} holds no checkpoint to go on from")
            self._resume = str(found)
        elif (folder / "trainer_state.json").is_file():
            self._resume = str(folder)
        else:
            loaded = PairwiseRankingModel.from_pretrained(folder)
            self.model.load_state_dict(loaded.state_dict())
            self.model.config.score_temperature = loaded.config.score_temperature

    def fit(
        self, train_loader: DataLoader, val_loader: DataLoader | None = None
    ) -> dict[str, float]:
        """Trains the model; afterwards it is the best one by the validation accuracy.

        Args:
            train_loader (DataLoader): Over a :class:`~.data_ranking.PairwiseDataset`.
            val_loader (DataLoader, *optional*): The same, of other images. Without it the model of
                the last epoch is the result.

        Returns:
            Metrics of the training, and ``best_accuracy``.
        """
        config, args = self.config, self.config.arguments()
        seed_everything(config.seed)
        if self._resume is not None:
            args.resume = self._resume
        evaluator = None
        if val_loader is None:
            args.eval_strategy, args.load_best_model_at_end = "no", False
            args.early_stopping_patience = 0
        else:
            dataset = _pairwise(val_loader, "val_loader")
            evaluator = RankingEvaluator(
                self._images(dataset, args),
                dataset.table.targets,
                dataset.table.scores,
                tiers=dataset.table.tiers,
                batch_size=args.per_device_eval_batch_size,
                num_workers=args.dataloader_num_workers,
            )
        callbacks: list[TrainerCallback] = []
        if config.save_every_n_epochs:
            callbacks.append(_KeepEpochs(config.save_every_n_epochs))
        if config.wandb_enabled:
            callbacks.append(self._wandb())
        dataset = _pairwise(train_loader, "train_loader")
        weights = None
        if dataset.table.tiers and dataset.min_tier_gap > 1:
            weights = tier_pair_matrix(None, dataset.table.tiers, dataset.min_tier_gap)
        trainer = RankingTrainer(
            self.model,
            args,
            images=self._images(dataset, args),
            pair_weights=weights,
            evaluator=evaluator,
            callbacks=callbacks,
        )
        metrics = dict(trainer.train().metrics)
        if evaluator is not None:
            trainer.calibrate()
            self.best_accuracy = trainer.state.best_metric
            metrics["best_accuracy"] = self.best_accuracy
            trainer.save_model(str(Path(config.checkpoint_dir, BEST_MODEL)))
        else:
            trainer.save_model(str(Path(config.checkpoint_dir, LAST_MODEL)))
        self.history = trainer.state.log_history
        return metrics

    def _images(
        self, dataset: PairwiseDataset, args: RankingTrainingArguments
    ) -> PixelImages | FeatureImages:
        table, transform = dataset.table, dataset.transform
        if transform is None:
            if self.model.image_processor is None:
                raise ConfigurationError("the data set has no transform, and the model none either")
            transform = self.model.image_processor.process
        elif getattr(transform, "__self__", None) is not self.model.image_processor:
            self._remember(transform)
        facts = inspect_images(table.paths)
        settings = _settings_of(transform)
        if self.model.config.trains_backbone or settings is None:
            if settings is None and not self.model.config.trains_backbone:
                say(
                    "The transform may change images at random: each passes the backbone anew in "
                    "each epoch.",
                    style="yellow",
                )
            return PixelImages(table.paths, transform, table.targets, load=dataset._load_image)
        features = kept_features(
            self.model.to(args.device),
            _Fixed(transform, settings),
            table.paths,
            [fact.sha256 for fact in facts],
            compute_dtype="bfloat16" if args.bf16 else "float32",
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
        )
        return FeatureImages(features, table.targets)

    def _remember(self, transform: Any) -> None:
        """Has the model make of files what it is trained on, as far as it can."""
        owner = getattr(transform, "__self__", None)
        if isinstance(owner, RankingImageProcessor):
            self.model.image_processor = owner
            return
        found = _squashed(transform)
        if found is not None:
            patch_size = patch_size_of(self.model.config.backbone_config)
            self.model.image_processor = RankingImageProcessor(**found, patch_size=patch_size)
        elif self.model.image_processor is not None:
            self.model.image_processor = None
            say(
                "The model cannot make such pixels of files itself: score files with this "
                "transform (batch_compare has an argument for it), or train with the process of a "
                "RankingImageProcessor.",
                style="yellow",
            )

    def _wandb(self) -> TrainerCallback:
        from ...callbacks.wandb_mirror import WandbCallback

        return WandbCallback(
            self.config.wandb_project, self.config.wandb_run_name, also_as=WANDB_NAMES
        )


def _pairwise(loader: DataLoader, name: str) -> PairwiseDataset:
    if not isinstance(loader.dataset, PairwiseDataset):
        raise ConfigurationError(
            f"{name}: found a loader of {type(loader.dataset).__name__}, expected one of a "
            "PairwiseDataset; for batches of your own, call model(...) and model.compute_loss"
        )
    return loader.dataset


def _settings_of(transform: Any) -> dict[str, Any] | None:
    """Everything that decides what a transform makes; None if that may be different each time."""
    owner = getattr(transform, "__self__", None)
    if owner is not None and hasattr(owner, "settings"):  # an image processor's process
        return owner.settings()
    parts = [transform]
    while parts:
        part = parts.pop()
        module = type(part).__module__
        if not module.startswith("torchvision.") or type(part).__name__ not in _FIXED_TRANSFORMS:
            return None
        parts += getattr(part, "transforms", [])
    import torchvision

    return {"torchvision": torchvision.__version__, "transform": repr(transform)}


def _squashed(transform: Any) -> dict[str, Any] | None:
    """Settings of the image processor that does what ``Resize((s, s))``, ``ToTensor`` and
    ``Normalize`` of torchvision do; None for other transforms.
    """
    parts = getattr(transform, "transforms", [])
    if [type(part).__name__ for part in parts] != ["Resize", "ToTensor", "Normalize"]:
        return None
    resize, _, normalize = parts
    size = resize.size
    square = isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]
    if not square or resize.interpolation.value not in ("bilinear", "bicubic"):
        return None
    return {
        "size": size[0],
        "resize_mode": "squash",
        "resample": resize.interpolation.value,
        "image_mean": [float(value) for value in normalize.mean],
        "image_std": [float(value) for value in normalize.std],
    }


class _Fixed:
    """A transform with what decides it, as the feature cache wants an image processor."""

    def __init__(self, transform: Any, settings: dict[str, Any]) -> None:
        self._transform, self._settings = transform, settings

    def settings(self) -> dict[str, Any]:
        return self._settings

    def process(self, image: Image.Image) -> torch.Tensor:
        return self._transform(image)


class _KeepEpochs(TrainerCallback):
    """Keeps the checkpoint of every n-th epoch under its name, as links that need no room."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_save(self, args, state, control, **kwargs):
        epoch = round(state.epoch or 0)
        if not state.is_world_process_zero or epoch % self.every or epoch != state.epoch:
            return
        kept = Path(args.output_dir, f"{_EPOCH}{epoch}")
        source = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if source.is_dir():
            partial = kept.with_name(kept.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial, copy_function=_link)
            shutil.rmtree(kept, ignore_errors=True)  # of an earlier run in this folder
            partial.rename(kept)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
