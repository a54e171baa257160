"""Baselines: naive Bayes is that of a plain loop, and what it reaches on real data."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from small_texts import prepare

from hftune.tasks.classification import baselines_classification
from hftune.tasks.classification.baselines_classification import NaiveBayes, majority_baseline
from hftune.tasks.classification.example_classification import example_rows


def grams(text: str) -> set[str]:
    text = f" {' '.join(text.lower().split())} "
    return {text[i : i + n] for n in (2, 3, 4) for i in range(len(text) - n + 1)}


def test_naive_bayes_is_that_of_a_plain_loop(monkeypatch):
    rows = example_rows(300)
    names = sorted({label for _, label in rows})
    texts, labels = [text for text, _ in rows], np.array([names.index(name) for _, name in rows])
    train, test = texts[:200], texts[200:]
    counts = [Counter() for _ in names]
    for text, label in zip(train, labels, strict=False):
        counts[label].update(grams(text))
    seen = set().union(*counts)
    expected = []
    for text in test:
        scores = [
            math.log((int((labels[:200] == label).sum()) + 0.1) / 200)
            + sum(
                math.log((found[gram] + 0.1) / (found.total() + 0.1 * len(seen)))
                for gram in grams(text) & seen
            )
            for label, found in enumerate(counts)
        ]
        expected.append(int(np.argmax(scores)))
    monkeypatch.setattr(baselines_classification, "_MOST_FEATURES", 2**22)  # few n-grams share one
    monkeypatch.setattr(baselines_classification, "_MOST_WEIGHTS", 2**25)
    found = NaiveBayes(train, labels[:200], len(names)).predict(test)
    assert (found == expected).mean() >= 0.98
    assert (found == labels[200:]).mean() > 0.4  # of eight classes
    # In small pieces the result is the same.
    monkeypatch.setattr(baselines_classification, "_CHUNK", 4000)
    assert (NaiveBayes(train, labels[:200], len(names)).predict(test) == found).all()


def test_texts_without_letters():
    model = NaiveBayes(["a", "bb", "", "a"], np.array([0, 1, 0, 0]), 2)
    assert model.predict(["a", "bb", "🙂", ""]).tolist() == [0, 1, 0, 0]
    assert model.predict([]).tolist() == []


def test_majority():
    assert majority_baseline(np.array([2, 0, 2, 1]), 3).tolist() == [2, 2, 2]


def test_naive_bayes_on_korean_reviews(test_data):
    folder = test_data / "classification" / "nsmc"
    data = prepare(str(folder / "train.tsv"), test_data=[str(folder / "test.tsv")])
    model = NaiveBayes(list(data.texts("train")), data.labels("train"), 2)
    right = model.predict(list(data.texts("test"))) == data.labels("test")
    assert 0.80 < right.mean() < 0.84
