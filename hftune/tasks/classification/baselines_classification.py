"""What is reached without a neural network: the most frequent class, and naive Bayes on n-grams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .scores_classification import accuracy, confusion_counts, macro_f1, weighted_f1

__all__ = ["NaiveBayes", "baseline_scores", "majority_baseline"]

_GRAMS = (2, 3, 4)
_MOST_WEIGHTS = 1 << 24
_MOST_FEATURES = 1 << 18
_CHUNK = 1 << 22  # numbers that are held at a time
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def baseline_scores(
    train_texts: Sequence[str],
    train_labels: np.ndarray,
    texts: Sequence[str],
    labels: np.ndarray,
    classes: int,
) -> dict[str, dict[str, float]]:
    """Scores the baselines on the examples that a model is scored on.

    Args:
        train_texts, train_labels: What they learn from.
        texts, labels: What they are scored on.
        classes (int): Number of classes.

    Returns:
        ``accuracy``, ``macro_f1`` and ``weighted_f1`` of ``majority`` and of ``naive_bayes``. Some
        seconds for ten thousand training texts.
    """
    predictions = {
        "majority": majority_baseline(train_labels, len(texts)),
        "naive_bayes": NaiveBayes(train_texts, train_labels, classes).predict(texts),
    }
    metrics = {"accuracy": accuracy, "macro_f1": macro_f1, "weighted_f1": weighted_f1}
    scores = {}
    for name, predicted in predictions.items():
        counts = confusion_counts(labels, predicted, classes)
        scores[name] = {metric: float(score(counts)) for metric, score in metrics.items()}
    return scores


def majority_baseline(train_labels: np.ndarray, count: int) -> np.ndarray:
    """Predicts the most frequent class for everything; int64 ``[count]``.

    Args:
        train_labels (integer array): Classes of the training samples.
        count (int): Number of examples to predict.
    """
    return np.full(count, np.bincount(train_labels).argmax(), np.int64)


class NaiveBayes:
    """Multinomial naive Bayes on n-grams of 2 to 4 characters, the same for all languages.

    The n-grams of a text, with a space before and behind it and in lower case, fall into a fixed
    number of features by a hash; a feature counts once a text. Classes have their share of the
    training samples as a prior, features that occur there a smoothing of 0.1.

    Args:
        texts (sequence of str): Training texts.
        labels (integer array ``[texts]``): Their classes.
        classes (int): Number of classes.

    Example:
        >>> NaiveBayes(["good film", "bad film"], np.array([1, 0]), 2).predict(["so good"])
        array([1])
    """

    def __init__(self, texts: Sequence[str], labels: np.ndarray, classes: int) -> None:
        # As many features as keep the table of weights small.
        self.features = _MOST_FEATURES
        while self.features * classes > _MOST_WEIGHTS:
            self.features //= 2
        counts = np.zeros(classes * self.features, np.float32)
        for start, rows, features in self._chunks(texts):
            pairs = labels[start + rows].astype(np.int64) * self.features + features
            counts += np.bincount(pairs, minlength=len(counts)).astype(np.float32)
        counts = counts.reshape(classes, self.features).T
        seen = counts.any(1)
        # What no training text has says nothing.
        self._weights = np.zeros(counts.shape, np.float32)
        self._weights[seen] = np.log((counts[seen] + 0.1) / (counts.sum(0) + 0.1 * seen.sum()))
        self._prior = np.log((np.bincount(labels, minlength=classes) + 0.1) / len(labels))

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the most probable class of each text, int64 ``[texts]``.

        Args:
            texts (sequence of str): To be classified.
        """
        scores = np.tile(self._prior, (len(texts), 1))
        for start, rows, features in self._chunks(texts):
            step = max(1, _CHUNK // self._weights.shape[1])
            for place in range(0, len(rows), step):
                part = slice(place, place + step)
                found, first = np.unique(rows[part], return_index=True)
                summed = np.add.reduceat(self._weights[features[part]], first, axis=0)
                scores[start + found] += summed
        return scores.argmax(1)

    def _chunks(self, texts: Sequence[str]):
        """First text of a chunk, and each n-gram's text, counted from there, and feature."""
        start = 0
        while start < len(texts):
            stop, size = start, 0
            while stop < len(texts) and size < _CHUNK // 8:
                size += len(texts[stop]) + 2
                stop += 1
            yield start, *self._grams(texts[start:stop])
            start = stop

    def _grams(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        framed = [f" {' '.join(text.lower().split())} " for text in texts]
        letters = np.frombuffer("".join(framed).encode("utf-32-le"), "<u4").astype(np.uint64)
        text_of = np.repeat(np.arange(len(framed)), [len(text) for text in framed])
        found = []
        hashes = np.zeros(len(letters), np.uint64)
        for length in range(1, max(_GRAMS) + 1):
            size = len(letters) - length + 1
            if size < 1:
                break
            hashes = (hashes[:size] ^ letters[length - 1 :]) * _MULTIPLIER
            hashes ^= hashes >> np.uint64(29)
            inside = text_of[:size] == text_of[length - 1 :]
            if length in _GRAMS:
                feature = hashes[inside] % np.uint64(self.features)
                found.append(text_of[:size][inside] * self.features + feature.astype(np.int64))
        pairs = np.unique(np.concatenate(found))
        return pairs // self.features, pairs % self.features
