"""Scores a ranking model on a fixed set of images, exactly and without a list of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ...utils.errors import ConfigurationError, DataError
from ...utils.modules import evaluating
from .data_ranking import PairwiseDataset, PixelImages
from .scores_ranking import (
    PairCounts,
    bootstrap_accuracy,
    correlations,
    interval,
    pair_counts,
    pair_loss,
)
from .scoring_ranking import score_images
from .tables_ranking import Comparisons
from .votes_ranking import bootstrap_votes, votes_accuracy

__all__ = ["Evaluator", "RankingEvaluator", "tier_pairs"]

_CHUNK = 1 << 17  # pairs at a time


class RankingEvaluator:
    """Scores the images of a split, as a trainer's evaluator and at a run's end.

    Each image passes the model once; all pairs of images of different tiers are then counted
    exactly. In a group of processes each scores its share and all have the results of the whole.

    Args:
        images (torch.utils.data.Dataset): :class:`~.data_ranking.PixelImages` or
            :class:`~.data_ranking.FeatureImages`, ``N`` of them.
        targets (float64 array ``[N]``, *optional*): Tiers counted from the worst, or people's
            scores. Not needed where there are comparisons.
        references (float64 array ``[N]``, *optional*): People's scores, for correlations. Defaults
            to the targets.
        tiers (sequence of str): Names of the tiers, best first, where the targets are tiers.
            Defaults to none.
        groups (sequence of str, *optional*): What images are alike (an artist): intervals resample
            groups instead of images.
        comparisons (Comparisons, *optional*): People's votes on pairs of these images.
        batch_size (int): Images at a time. Defaults to 32.
        num_workers (int): Processes that decode. Defaults to 0.

    Attributes:
        primary_metric (str): ``accuracy``; ``votes_accuracy`` where there are comparisons alone.
        scores (float64 array ``[N]``, *optional*): Those of the last evaluation.

    Example:
        >>> evaluator = RankingEvaluator(images, table.targets)
        >>> evaluator.evaluate(model)["accuracy"]
        0.813
        >>> np.quantile(evaluator.bootstrap(), [0.025, 0.975])
        array([0.742, 0.871])
    """

    greater_is_better = True

    def __init__(
        self,
        images: Dataset,
        targets: np.ndarray | None,
        references: np.ndarray | None = None,
        comparisons: Comparisons | None = None,
        *,
        tiers: Sequence[str] = (),
        groups: Sequence[str] | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        if targets is None and not comparisons:
            raise ConfigurationError("an evaluation needs targets of the images, or comparisons")
        self.images, self.targets, self.comparisons = images, targets, comparisons or None
        self.references = targets if references is None else references
        self.tiers, self.groups = tuple(tiers), _groups(groups)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.primary_metric = "votes_accuracy" if targets is None else "accuracy"
        self.scores: np.ndarray | None = None

    def __call__(self, trainer: Any) -> dict[str, float]:
        """Scores a trainer's model; every process calls this.

        Args:
            trainer (Trainer): With the model.

        Returns:
            What :meth:`metrics` returns.
        """
        return self.evaluate(trainer.model)

    def evaluate(
        self, model: torch.nn.Module, progress: Callable[[int], Any] | None = None
    ) -> dict[str, float]:
        """Scores a model; its mode is restored afterwards.

        Args:
            model (torch.nn.Module): A ranking model.
            progress (callable, *optional*): Called with the number of images of each batch that
                this process has done.

        Returns:
            What :meth:`metrics` returns.
        """
        scores = score_images(model, self.images, self.batch_size, self.num_workers, progress)
        self.scores = _finite(scores, "images")
        return self.metrics()

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the last evaluation.

        Returns:
            ``accuracy`` of all pairs (equal scores count one half), with tiers
            ``adjacent_accuracy`` of pairs of neighbouring ones, ``loss`` (Bradley-Terry, in nats,
            of all pairs), ``srcc``, ``krcc`` and ``plcc``; with comparisons ``votes_accuracy``, the
            share of votes that the model agrees with, and without targets the ``loss`` of the
            votes. What cannot be said (the correlations of equal scores) is left out.
        """
        found: dict[str, float | None] = {}
        if self.targets is not None:
            counts = pair_counts(self.scores, self.targets)
            found = {
                "accuracy": counts.accuracy,
                "adjacent_accuracy": counts.adjacent_accuracy if self.tiers else None,
                "loss": pair_loss(self.scores, self.targets),
            }
        if self.references is not None:
            found |= correlations(self.scores, self.references)
        if self.comparisons is not None:
            images, votes = self.comparisons.images, self.comparisons.votes
            found["votes_accuracy"] = votes_accuracy(self.scores, images, votes)
            found.setdefault("loss", _votes_loss(self.scores, images, votes))
        return {name: value for name, value in found.items() if value is not None}

    def bootstrap(self, replicates: int = 1000, seed: int = 0) -> np.ndarray:
        """Returns the primary metric with resampled images, of the last evaluation.

        The images that a replicate draws depend on the seed alone: replicates of two models on the
        same images are paired, and their differences are those of the models.

        Args:
            replicates (int): How many. Defaults to 1000.
            seed (int): Of the draws. Defaults to 0.

        Returns:
            float64 ``[replicates]``.
        """
        if self.targets is not None:
            return bootstrap_accuracy(self.scores, self.targets, replicates, seed, self.groups)
        images, votes = self.comparisons.images, self.comparisons.votes
        return bootstrap_votes(self.scores, images, votes, replicates, seed, self.groups)


class Evaluator:
    """Scores a model on the pairs of a loader.

    Of a loader over a :class:`~.data_ranking.PairwiseDataset` each image passes the model once, and
    all pairs are counted, whatever the loader's sampler; any other loader is gone through.

    Args:
        model (PairwiseRankingModel): The model.
        device (str, *optional*): Where it computes. Defaults to where it is.

    Example:
        >>> evaluator = Evaluator(model=model, device="cuda")
        >>> accuracy = evaluator.evaluate(test_loader)
        >>> evaluator.evaluate_detailed(test_loader)["total_pairs"]
        3711
    """

    def __init__(self, model: torch.nn.Module, device: str | torch.device | None = None) -> None:
        self.model = model if device is None else model.to(device)

    def evaluate(self, test_loader: DataLoader) -> float:
        """Returns the share of pairs whose better image has the larger score.

        Args:
            test_loader (DataLoader): Of a `PairwiseDataset`, or of batches ``image_1, image_2,
                label``.
        """
        return self.evaluate_detailed(test_loader)["accuracy"]

    def evaluate_detailed(self, test_loader: DataLoader) -> dict[str, Any]:
        """Scores the model and says how sure the result is.

        Args:
            test_loader (DataLoader): As for :meth:`evaluate`.

        Returns:
            Of the loader's pairs ``accuracy``, ``total_pairs``, ``correct_predictions`` (equal
            scores count one half) and ``loss`` (Bradley-Terry, in nats). Of a `PairwiseDataset`
            with a transform these are all its pairs, and of its images there are ``srcc``,
            ``krcc``, ``plcc``, and of tiers ``adjacent_accuracy`` and ``tier_pairs``, by name such
            as ``"S>A"`` the ``accuracy``, ``total_pairs`` and ``correct_predictions``; and where
            no ``min_tier_gap`` leaves pairs out the ``interval`` of the accuracy (95 %, over
            images).

        Raises:
            DataError: If there is no pair, or a score is NaN or infinite.
        """
        dataset = test_loader.dataset
        if not isinstance(dataset, PairwiseDataset) or dataset.transform is None:
            return _counted(self._differences(test_loader))
        table = dataset.table
        evaluator = RankingEvaluator(
            PixelImages(table.paths, dataset.transform, load=dataset._load_image),
            table.targets,
            table.scores,
            tiers=table.tiers,
            groups=table.groups,
            batch_size=2 * (test_loader.batch_size or 16),
            num_workers=test_loader.num_workers,
        )
        metrics: dict[str, Any] = evaluator.evaluate(self.model)
        scores, index = evaluator.scores, dataset.index
        counts = pair_counts(scores, table.targets)
        metrics["tier_pairs"] = tier_pairs(counts, table.tiers)
        if dataset.min_tier_gap > 1:
            starts = range(0, len(index), _CHUNK)
            chunks = (np.arange(start, min(start + _CHUNK, len(index))) for start in starts)
            return metrics | _counted(-np.diff(scores[index.pairs(part)])[:, 0] for part in chunks)
        return metrics | {
            "total_pairs": counts.total_pairs,
            "correct_predictions": counts.correct_predictions,
            "interval": interval(evaluator.bootstrap()),
        }

    @torch.no_grad()
    def _differences(self, loader: DataLoader) -> Iterator[np.ndarray]:
        """The score of the better image less that of the worse, batch by batch."""
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            for first, second, labels in loader:
                score1, score2 = self.model(first.to(device), second.to(device))
                differences = (score1 - score2).reshape(-1).double().cpu()
                yield _finite((differences * labels.reshape(-1).cpu()).numpy(), "pairs of a batch")


def _counted(pieces: Iterable[np.ndarray]) -> dict[str, Any]:
    """Counts pairs by the score of the better image less that of the worse."""
    pairs, correct, loss = 0, 0.0, 0.0
    for differences in pieces:
        pairs += len(differences)
        correct += float((differences > 0).sum() + (differences == 0).sum() / 2)
        loss += float(np.logaddexp(0, -differences).sum())
    if not pairs:
        raise DataError("the loader has no pair")
    return {
        "accuracy": correct / pairs,
        "total_pairs": pairs,
        "correct_predictions": correct,
        "loss": loss / pairs,
    }


def _finite(scores: np.ndarray, what: str) -> np.ndarray:
    if bad := int((~np.isfinite(scores)).sum()):
        raise DataError(
            f"the model's score of {bad} of {len(scores)} {what} is NaN or infinite: the training "
            "has diverged"
        )
    return scores


def _groups(names: Sequence[str] | None) -> list[str] | None:
    """Groups to resample; an image without a name is a group of its own. A single group of all is
    none: nothing could vary.
    """
    if names is None:
        return None
    groups = [name or f"\0{row}" for row, name in enumerate(names)]
    return groups if len(set(groups)) > 1 else None


def tier_pairs(counts: PairCounts, tiers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns the counts of each two tiers by their names.

    Args:
        counts (PairCounts): Of images with tiers.
        tiers (sequence of str): Names, best first.

    Returns:
        By name, such as ``"S>A"``, ``accuracy``, ``total_pairs`` and ``correct_predictions``;
        nothing where images have scores instead of tiers.
    """
    if counts.tiers is None or not tiers:
        return {}
    names = [tiers[len(tiers) - 1 - int(tier)] for tier in counts.tiers]
    return {
        f"{names[a]}>{names[b]}": {
            "accuracy": float(counts.correct[a, b] / counts.pairs[a, b]),
            "total_pairs": int(counts.pairs[a, b]),
            "correct_predictions": float(counts.correct[a, b]),
        }
        for a in range(len(names))
        for b in range(a + 1, len(names))
    }


def _votes_loss(scores: np.ndarray, images: np.ndarray, votes: np.ndarray) -> float:
    """Cross-entropy of the votes, in nats a vote."""
    differences = scores[images[:, 0]] - scores[images[:, 1]]
    first, second = votes.T
    losses = first * np.logaddexp(0, -differences) + second * np.logaddexp(0, differences)
    return float(losses.sum() / votes.sum())
