"""Scores a classifier on a fixed set of samples, in every process of a group together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...utils.errors import ConfigurationError, did_you_mean
from ...utils.modules import evaluating
from .scores_classification import (
    accuracy,
    calibration_error,
    confusion_counts,
    macro_f1,
    weighted_f1,
)

if TYPE_CHECKING:
    import datasets
    import torch

__all__ = ["ClassificationEvaluator"]

_GREATER_IS_BETTER = {"accuracy": True, "macro_f1": True, "weighted_f1": True, "loss": False}
_CHUNK = 1 << 22  # numbers that a bootstrap holds at a time


class ClassificationEvaluator:
    """Scores a classifier on a fixed set of samples, as a trainer's evaluator and at a run's end.

    Batches are made of texts of about the same length. In a group of processes each takes its share
    of them and all have the results of the whole, the same to the bit for any number of processes.
    No random number is drawn.

    Args:
        dataset (datasets.Dataset): Samples with ``input_ids``, ``attention_mask`` and ``labels``.
        label_names (sequence of str): Labels by number.
        collator (callable): Makes a batch of samples.
        batch_size (int): Samples at a time and process. Defaults to 32.
        primary_metric (str): Which chooses the best model: ``accuracy``, ``macro_f1``,
            ``weighted_f1`` or ``loss``. Defaults to ``accuracy``.

    Attributes:
        labels (int64 array ``[examples]``): True classes.
        predictions (int64 array ``[examples]``, *optional*): Those of the last evaluation.
        confidence (float32 array ``[examples]``, *optional*): Probability of the predicted class.
        losses (float64 array ``[examples]``, *optional*): Cross-entropy, in nats.
        counts (int64 array ``[classes, classes]``, *optional*): True (rows) and predicted classes.

    Raises:
        ConfigurationError: If there is no such metric.

    Example:
        >>> evaluator = ClassificationEvaluator(data.test, data.label_names, data.collator)
        >>> evaluator.evaluate(model)["accuracy"]
        0.913
        >>> np.quantile(evaluator.bootstrap(), [0.025, 0.975])
        array([0.903, 0.922])
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        label_names: Sequence[str],
        collator: Callable[[list[dict[str, Any]]], Any],
        batch_size: int = 32,
        primary_metric: str = "accuracy",
    ) -> None:
        if primary_metric not in _GREATER_IS_BETTER:
            near = did_you_mean(primary_metric, _GREATER_IS_BETTER)
            raise ConfigurationError(
                f"no metric {primary_metric!r} of a classifier; there are "
                f"{', '.join(_GREATER_IS_BETTER)}.{near}"
            )
        self.dataset = dataset
        self.label_names = tuple(label_names)
        self.collator = collator
        self.batch_size = batch_size
        self.primary_metric = primary_metric
        self.greater_is_better = _GREATER_IS_BETTER[primary_metric]
        self.labels = np.array(dataset["labels"], np.int64)
        lengths = np.array([len(ids) for ids in dataset["input_ids"]])
        order = np.argsort(-lengths, kind="stable")
        self._batches = [
            order[start : start + batch_size] for start in range(0, len(order), batch_size)
        ]
        self.predictions: np.ndarray | None = None
        self.confidence: np.ndarray | None = None
        self.losses: np.ndarray | None = None
        self.counts: np.ndarray | None = None

    def __call__(self, trainer: Any) -> dict[str, float]:
        """Scores a trainer's model; every process calls this.

        Args:
            trainer (Trainer): With the model.

        Returns:
            ``accuracy``, ``macro_f1``, ``weighted_f1``, ``loss`` (cross-entropy, in nats) and
            ``calibration_error``.
        """
        return self.evaluate(trainer.model)

    def evaluate(
        self, model: torch.nn.Module, progress: Callable[[int], Any] | None = None
    ) -> dict[str, float]:
        """Scores a model; its mode is restored afterwards.

        Args:
            model (torch.nn.Module): Its ``forward`` returns ``logits [batch, classes]``.
            progress (callable, *optional*): Called with the number of samples of each batch that
                this process has done.

        Returns:
            What :meth:`__call__` returns.
        """
        import torch

        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world = (
            (torch.distributed.get_rank(), torch.distributed.get_world_size())
            if grouped
            else (0, 1)
        )
        mine = self._batches[rank::world]
        parts = []
        with evaluating(model), torch.no_grad():
            # A sharded model hangs unless all processes call it equally often.
            for turn in range(-(-len(self._batches) // world)):
                rows = mine[turn] if turn < len(mine) else self._batches[0]
                logits = self._logits(model, rows)
                if turn < len(mine):
                    parts.append(logits)
                    if progress is not None:
                        progress(len(rows))
        logits = np.concatenate(parts) if parts else np.zeros((0, len(self.label_names)))
        gathered = [logits]
        if grouped:
            gathered = [None] * world
            torch.distributed.all_gather_object(gathered, logits)
        self._keep(gathered)
        return self.metrics()

    def _logits(self, model: torch.nn.Module, rows: np.ndarray) -> np.ndarray:
        import torch

        columns = self.dataset[rows.tolist()]
        samples = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        device = next(model.parameters()).device
        batch = {
            name: value.to(device)
            for name, value in self.collator(samples).items()
            if isinstance(value, torch.Tensor) and name != "labels"
        }
        return model(**batch).logits.double().cpu().numpy()

    def _keep(self, gathered: Sequence[np.ndarray]) -> None:
        world = len(gathered)
        logits = np.empty((len(self.labels), len(self.label_names)))
        for rank, part in enumerate(gathered):
            rows = self._batches[rank::world]
            if rows:
                logits[np.concatenate(rows)] = part
        logits -= logits.max(1, keepdims=True)
        normaliser = np.log(np.exp(logits).sum(1))
        everyone = np.arange(len(logits))
        self.predictions = logits.argmax(1)
        self.confidence = np.exp(logits[everyone, self.predictions] - normaliser).astype(np.float32)
        self.losses = normaliser - logits[everyone, self.labels]
        self.counts = confusion_counts(self.labels, self.predictions, len(self.label_names))

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the last evaluation."""
        return {
            "accuracy": float(accuracy(self.counts)),
            "macro_f1": float(macro_f1(self.counts)),
            "weighted_f1": float(weighted_f1(self.counts)),
            "loss": float(self.losses.mean()),
            "calibration_error": calibration_error(
                self.confidence, self.predictions == self.labels
            ),
        }

    def bootstrap(self, replicates: int = 1000, seed: int = 0) -> np.ndarray:
        """Returns the primary metric of resampled examples of the last evaluation.

        The examples that a replicate draws depend on the seed alone: replicates of two models on
        the same samples are paired, and their differences are those of the models.

        Args:
            replicates (int): How many. Defaults to 1000.
            seed (int): Of the draws. Defaults to 0.

        Returns:
            float64 ``[replicates]``.
        """
        draw = np.random.default_rng(seed)
        examples = len(self.labels)
        classes = len(self.label_names)
        # Only pairs of classes that occur are counted; the rest of the matrix stays empty.
        pairs, cell = np.unique(self.labels * classes + self.predictions, return_inverse=True)
        size = max(1, _CHUNK // max(examples, classes * classes))
        values = []
        for start in range(0, replicates, size):
            count = min(size, replicates - start)
            drawn = draw.integers(0, examples, (count, examples))
            if self.primary_metric == "loss":
                values.append(self.losses[drawn].mean(1))
                continue
            shifted = cell[drawn] + len(pairs) * np.arange(count)[:, None]
            found = np.bincount(shifted.ravel(), minlength=count * len(pairs))
            counts = np.zeros((count, classes * classes), np.int64)
            counts[:, pairs] = found.reshape(count, len(pairs))
            metric = {"accuracy": accuracy, "macro_f1": macro_f1, "weighted_f1": weighted_f1}
            values.append(metric[self.primary_metric](counts.reshape(count, classes, classes)))
        return np.concatenate(values)
