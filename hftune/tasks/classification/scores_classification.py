"""Scores of predicted classes, from counts of pairs of a true and a predicted class."""

from __future__ import annotations

import numpy as np

__all__ = [
    "accuracy",
    "calibration_bins",
    "calibration_error",
    "class_scores",
    "confusion_counts",
    "macro_f1",
    "weighted_f1",
]


def confusion_counts(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts the pairs.

    Args:
        labels, predictions (integer arrays ``[examples]``): True and predicted classes.
        classes (int): Number of classes.

    Returns:
        int64 ``[classes, classes]``: rows are true classes, columns predicted ones.
    """
    pairs = labels.astype(np.int64) * classes + predictions
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the scores of each class.

    Args:
        counts (array ``[..., classes, classes]``): Of :func:`confusion_counts`.

    Returns:
        ``precision``, ``recall`` and ``f1`` in [0, 1], 0 where there is nothing to divide by, and
        ``support``, the number of examples; float64 ``[..., classes]``.
    """
    right = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    support, predicted = counts.sum(-1, dtype=np.float64), counts.sum(-2, dtype=np.float64)
    return {
        "precision": right / np.maximum(predicted, 1),
        "recall": right / np.maximum(support, 1),
        "f1": 2 * right / np.maximum(support + predicted, 1),
        "support": support,
    }


def accuracy(counts: np.ndarray) -> np.ndarray:
    """Returns the share of examples that are right; ``[...]`` of counts ``[..., C, C]``."""
    return np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1))


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Returns the mean of the classes' F1; ``[...]`` of counts ``[..., C, C]``.

    Over the classes that occur among the examples or among the predictions.
    """
    occurs = (counts.sum(-1) + counts.sum(-2)) > 0
    return (class_scores(counts)["f1"] * occurs).sum(-1) / occurs.sum(-1)


def weighted_f1(counts: np.ndarray) -> np.ndarray:
    """Returns the classes' F1, weighted by their examples; ``[...]`` of counts ``[..., C, C]``."""
    scores = class_scores(counts)
    return (scores["f1"] * scores["support"]).sum(-1) / scores["support"].sum(-1)


def calibration_bins(
    confidence: np.ndarray, right: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups examples by how sure the model is.

    Args:
        confidence (array ``[examples]``): Probability of the predicted class, in [0, 1].
        right (bool array ``[examples]``): Whether it is the true one.
        bins (int): Number of equal parts of [0, 1]. Defaults to 15.

    Returns:
        Examples, mean confidence and share that is right of each part that has examples.
    """
    part = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(part, minlength=bins)
    kept = count > 0
    count = count[kept]
    mean = np.bincount(part, confidence, bins)[kept] / count
    share = np.bincount(part, right.astype(np.float64), bins)[kept] / count
    return count, mean, share


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Returns the expected calibration error: how far confidence and accuracy are apart, in [0, 1].

    Args:
        confidence, right, bins: As for :func:`calibration_bins`.
    """
    count, mean, share = calibration_bins(confidence, right, bins)
    return float((count * np.abs(mean - share)).sum() / count.sum())
