"""A trainer of ranking models: samplers of images and pairs, small checkpoints, calibration."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset, Sampler

from ...callbacks.early_stopping import EarlyStopping
from ...training.trainer import HFTuneTrainer
from ...utils.modules import evaluating
from ...utils.seeds import derive_seed
from ...utils.terminal import progress
from .arguments_ranking import RankingTrainingArguments
from .calibration_ranking import fit_temperature, fit_temperature_votes
from .data_ranking import FeatureImages, ImageCollator, PairCollator, PixelImages, TrainingPairs
from .evaluation_ranking import RankingEvaluator
from .feature_cache import weights_digest
from .pairs_ranking import ImageSampler, PairIndex, PairSampler

__all__ = ["LAST_MODEL", "WANDB_NAMES", "RankingTrainer"]

LAST_MODEL = "last_model"
"""Folder, in a run's, of the model as it was after the last step."""

WANDB_NAMES = {
    "eval/loss": "val/loss",
    "eval/accuracy": "val/accuracy",
    "train/learning_rate": "learning_rate",
}
"""The guide's names of what Weights & Biases shows, by those of transformers."""

_MODEL_SETTINGS = (
    "loss_function",
    "margin",
    "pooling",
    "projector_dropout",
    "freeze_backbone",
    "unfreeze_last_blocks",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
)
"""Settings of the model that decide the weights, and that their shapes do not show."""


class RankingTrainer(HFTuneTrainer):
    """An :class:`~hftune.training.trainer.HFTuneTrainer` for ranking models.

    - Batches are of images, of which all pairs are compared, or of pairs (``pairs``).
    - Checkpoints have what trains and not the frozen weights of the backbone: megabytes where the
      model has gigabytes. :meth:`save_model` always writes the whole model.
    - Before the first step the head learns the mean and deviation of the training images' features.
    - It ends early after ``args.early_stopping_patience`` evaluations without a better model.
    - The model of the last step is kept as ``last_model/`` where the best one is loaded at the end.

    Args:
        model (PairwiseRankingModel): The model.
        args (RankingTrainingArguments): Settings.
        images (torch.utils.data.Dataset): :class:`~.data_ranking.PixelImages` or
            :class:`~.data_ranking.FeatureImages` with targets: the training images.
        pairs (TrainingPairs, *optional*): Pairs of these images to train on, one by one. Defaults
            to none: all pairs of a batch of images.
        pairs_per_epoch (int, *optional*): Of ``pairs``. Defaults to all.
        pair_weights (float array ``[K, K]``, *optional*): Of
            :func:`~.pairs_ranking.tier_pair_matrix`.
        min_gap (float): Least difference of the targets of a pair of a batch, where they are
            scores. Defaults to 0.
        **kwargs: As for :class:`~hftune.training.trainer.HFTuneTrainer`.

    Example:
        >>> trainer = RankingTrainer(
        ...     model, args, images=images, evaluator=RankingEvaluator(val_images, val.targets)
        ... )
        >>> trainer.train()
        >>> trainer.calibrate()
        >>> trainer.save_model("runs/art/model")
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args: RankingTrainingArguments,
        *,
        images: PixelImages | FeatureImages,
        pairs: TrainingPairs | None = None,
        pairs_per_epoch: int | None = None,
        pair_weights: np.ndarray | None = None,
        min_gap: float = 0.0,
        evaluator: RankingEvaluator | None = None,
        **kwargs: Any,
    ) -> None:
        self.images = images
        self._backbone: str | None = None
        self._learnt_from = {
            "pairing": "batch" if pairs is None else type(pairs.source).__name__,
            "pairs_per_epoch": pairs_per_epoch,
            "pair_weights": None if pair_weights is None else np.asarray(pair_weights).tolist(),
            "min_gap": min_gap,
            "changes": images.augmentation.settings()
            if isinstance(images, PixelImages)
            else {"views": images.features.views},
        }
        seed = derive_seed(args.data_seed, "order")
        if pairs is None:
            train_dataset: Dataset = images
            kwargs["data_collator"] = ImageCollator(pair_weights, min_gap)
            self._sampler: Sampler | None = ImageSampler(images.targets, seed)
        else:
            train_dataset = _PairsOf(pairs, images)
            kwargs["data_collator"] = PairCollator(images)
            self._sampler = None  # comparisons are shuffled as any table
            if isinstance(pairs.source, PairIndex):
                self._sampler = PairSampler(
                    pairs.source, seed, pairs_per_epoch, images.targets, pair_weights
                )
        callbacks = list(kwargs.pop("callbacks", None) or [])
        if args.early_stopping_patience:
            callbacks.append(
                EarlyStopping(args.early_stopping_patience, args.early_stopping_threshold)
            )
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            evaluator=evaluator,
            callbacks=callbacks,
            **kwargs,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self._sampler is None:
            return super()._get_train_sampler(train_dataset)
        return self._sampler

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # images of several sizes, or none at all where features are read

    # Checkpoints

    def _frozen(self) -> dict[str, torch.Tensor]:
        """The weights of a frozen backbone that do not train: no checkpoint needs them."""
        model = self.accelerator.unwrap_model(self.model)
        if not model.config.freeze_backbone:
            return {}
        return {
            f"backbone.{name}": parameter
            for name, parameter in model.backbone.named_parameters()
            if not parameter.requires_grad
        }

    def _run_description(self) -> dict[str, Any]:
        run = super()._run_description()
        if self._backbone is None:
            self._backbone = weights_digest(self._frozen())
        run["backbone"] = self._backbone  # a resume must have the same one, which it does not load
        config = self.accelerator.unwrap_model(self.model).config
        run |= {name: getattr(config, name) for name in _MODEL_SETTINGS}
        return run | self._learnt_from

    @contextlib.contextmanager
    def _without_backbone(self) -> Iterator[None]:
        model = self.accelerator.unwrap_model(self.model)
        before = model._keys_to_ignore_on_save
        model._keys_to_ignore_on_save = set(self._frozen())
        try:
            yield
        finally:
            model._keys_to_ignore_on_save = before

    def _save_model_files(self, output_dir: str | None, state_dict: dict | None) -> None:
        small = self._without_backbone() if self._in_checkpoint else contextlib.nullcontext()
        with small:
            super()._save_model_files(output_dir, state_dict)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._without_backbone():
            super()._load_from_checkpoint(*args, **kwargs)

    def _load_best_model(self) -> None:
        self.save_model(str(Path(self.args.output_dir, LAST_MODEL)))
        with self._without_backbone():
            super()._load_best_model()

    # Statistics and calibration

    def _resolve_resume(self, asked: Any) -> Path | None:
        checkpoint = super()._resolve_resume(asked)
        if checkpoint is None:
            self._learn_statistics()
        return checkpoint

    @torch.no_grad()
    def _learn_statistics(self) -> None:
        """Has the head know the mean and deviation of the training images' features."""
        model = self.accelerator.unwrap_model(self.model)
        loader = DataLoader(
            self.images,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            collate_fn=ImageCollator(),
            generator=torch.Generator().manual_seed(0),
        )
        device = self.args.device
        model.to(device)
        sums = torch.zeros(2, model.config.feature_size, dtype=torch.float64)
        with (
            evaluating(model),
            progress(len(self.images), "Measuring features", "images") as bar,
        ):
            shift = None
            for batch in loader:
                features = batch.get("features")
                if features is None:
                    features = model.encode(send_to_device(batch["pixel_values"], device))
                values = features.double().cpu()
                # Sums of differences from an image lose no digits where the mean is far from 0.
                shift = values[0].clone() if shift is None else shift
                values = values - shift
                sums += torch.stack([values.sum(0), values.square().sum(0)])
                bar.update(len(values))
        mean, square = sums / len(self.images)
        model.head.set_statistics(mean + shift, (square - mean.square()).clamp(min=0).sqrt())

    def calibrate(self) -> float | None:
        """Finds the temperature of the model's probabilities on the evaluator's images.

        Every process calls this. The model's configuration keeps it.

        Returns:
            The temperature; None without an evaluator.
        """
        if self.evaluator is None:
            return None
        model = self.accelerator.unwrap_model(self.model)
        evaluator = self.evaluator
        evaluator.evaluate(model)
        if evaluator.targets is not None:
            temperature = fit_temperature(evaluator.scores, evaluator.targets)
        else:
            first, second = evaluator.comparisons.images.T
            differences = evaluator.scores[first] - evaluator.scores[second]
            temperature = fit_temperature_votes(differences, evaluator.comparisons.votes)
        model.config.score_temperature = temperature
        return temperature


class _PairsOf(Dataset):
    """Pairs, whose epoch is that of their images too."""

    def __init__(self, pairs: TrainingPairs, images: Any) -> None:
        self.pairs, self.images = pairs, images

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of random changes."""
        self.images.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Any:
        return self.pairs[number]

    def __getitems__(self, numbers: list[int]) -> list[Any]:
        return self.pairs.__getitems__(numbers)
