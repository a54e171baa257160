"""The report of a classifier: what stands in it, for few and for many classes."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from hftune.tasks.classification.evaluation_classification import ClassificationEvaluator
from hftune.tasks.classification.report_classification import (
    classification_scores,
    classification_sections,
    confused_pairs,
    render_scores,
)
from hftune.tracking.report import Report
from hftune.tracking.report_sections import section_as_dict, section_from_dict

BASELINES = {
    "majority": {"accuracy": 0.25, "macro_f1": 0.1, "weighted_f1": 0.1},
    "naive_bayes": {"accuracy": 0.95, "macro_f1": 0.9, "weighted_f1": 0.9},
}


def evaluated(labels, predictions, names, confidence=None):
    """An evaluator after an evaluation with these predictions."""
    dataset = {"labels": list(labels), "input_ids": [[1]] * len(labels)}
    evaluator = ClassificationEvaluator(dataset, names, collator=None)
    chance = np.full(len(labels), 0.8) if confidence is None else np.asarray(confidence)
    logits = np.log(np.repeat(((1 - chance) / (len(names) - 1))[:, None], len(names), 1))
    logits[np.arange(len(labels)), predictions] = np.log(chance)
    evaluator._keep([logits[np.concatenate(evaluator._batches)]])
    return evaluator


@pytest.fixture
def small():
    #        right: 0, 1, 4, 5, 7                   most often taken for another: c for a
    return evaluated(
        [0, 0, 2, 2, 2, 1, 2, 1],
        [0, 0, 0, 0, 2, 1, 1, 1],
        ["가", "<b>", "c"],
        [0.9, 0.5, 0.7, 0.95, 0.6, 0.6, 0.97, 0.8],
    )


TEXTS = [f"text {i}" for i in range(8)]


def blocks(section, kind):
    found = [block for block in section.blocks if block["kind"] == kind]
    for block in section.blocks:
        if block["kind"] == "fold":
            found += blocks(block["section"], kind)
    return found


def cells(block):
    return [[cell.value for cell in row] for row in block["rows"]]


def test_scores_as_json(small):
    scores = json.loads(json.dumps(classification_scores(small, BASELINES), allow_nan=False))
    assert scores["samples"] == 8 and scores["summary"]["accuracy"] == 5 / 8
    assert scores["primary_metric"] == "accuracy"
    low, high = scores["interval"]
    assert 0 < low < 5 / 8 < high <= 1
    assert scores["classes"]["c"] == {
        "precision": 1.0, "recall": 0.25, "f1": pytest.approx(0.4), "support": 4
    }  # fmt: skip
    assert scores["confused"] == [
        {"true": "c", "predicted": "가", "samples": 2, "share": 0.5},
        {"true": "c", "predicted": "<b>", "samples": 1, "share": 0.25},
    ]
    assert scores["baselines"] == BASELINES


def test_sections(small):
    texts = [*TEXTS[:3], "<script>정말 좋아요</script>", *TEXTS[4:]]
    scores, confusions, mistakes = classification_sections(small, texts, BASELINES)
    tiles = {tile.label: tile for block in blocks(scores, "tiles") for tile in block["tiles"]}
    assert tiles["accuracy"].value == 5 / 8
    assert tiles["Accuracy over majority class"].value == "+37.5 points"
    assert tiles["Accuracy over majority class"].tone == "good"
    assert tiles["Accuracy over naive Bayes"].value == "−32.5 points"
    assert tiles["Accuracy over naive Bayes"].tone == "bad"
    (warning,) = [block for block in blocks(scores, "text") if block["tone"] == "warning"]
    assert warning["paragraphs"] == ("No better than a baseline that needs seconds: naive Bayes.",)
    compared, classes = blocks(scores, "table")
    assert [row[0] for row in cells(compared)] == ["model", "majority class", "naive Bayes"]
    assert [row[0] for row in cells(classes)] == ["c", "가", "<b>"]  # the worst first
    assert [row[-1] for row in cells(classes)] == ["가 (2)", "", ""]
    assert cells(blocks(confusions, "table")[0])[0] == ["c", "가", 2, "50.0 %"]
    surest = cells(blocks(mistakes, "table")[0])
    assert [(row[0], row[1], row[2]) for row in surest] == [
        ("text 6", "c", "<b>"),
        ("<script>정말 좋아요</script>", "c", "가"),
        ("text 2", "c", "가"),
    ]
    assert [row[3] for row in surest] == pytest.approx([0.97, 0.95, 0.7])

    report = Report("Classifier")
    for section in (scores, confusions, mistakes):
        saved = json.loads(json.dumps(section_as_dict(section), allow_nan=False))
        report.add(section_from_dict(saved))
    page = report.render()
    assert "was left out" not in page  # every picture passes when it is read again
    assert "&lt;script&gt;정말 좋아요&lt;/script&gt;" in page
    assert "<script>정말" not in page


def test_without_mistakes_and_without_baselines():
    perfect = evaluated([0, 1, 1], [0, 1, 1], ["a", "b"], [0.99, 0.99, 0.999])
    scores, confusions, mistakes = classification_sections(perfect, TEXTS[:3])
    assert not blocks(confusions, "table")
    assert mistakes.blocks[0]["paragraphs"] == ("There is no mistake among the test texts.",)
    assert not [block for block in blocks(scores, "text") if block["tone"] == "warning"]


@pytest.mark.parametrize(("classes", "numbers", "named"), [(3, 1, 1), (77, 0, 1), (200, 0, 0)])
def test_the_matrix_is_readable_for_any_number_of_classes(classes, numbers, named):
    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, 2000)
    predictions = np.where(draw.random(2000) < 0.7, labels, draw.integers(0, classes, 2000))
    names = [f"클래스{i}" for i in range(classes)]
    evaluator = evaluated(labels, predictions, names)
    sections = classification_sections(evaluator, [str(i) for i in range(2000)])
    (picture,) = blocks(sections[1], "svg")
    assert picture["markup"].count("<image") == 1
    assert ("클래스1<" in picture["markup"]) == bool(named)
    assert (f">{evaluator.counts[0, 0]}<" in picture["markup"]) == bool(numbers)
    assert len(picture["markup"]) < 200_000
    pairs = confused_pairs(evaluator)
    assert len(pairs) == min(20, classes * (classes - 1))
    assert [count for _, _, count, _ in pairs] == sorted((p[2] for p in pairs), reverse=True)


def test_terminal(small):
    stream = io.StringIO()
    scores = classification_scores(small, BASELINES)
    Console(file=stream, width=100).print(render_scores(scores))
    said = stream.getvalue()
    assert "Scores on 8 test texts" in said
    assert said.count("0.6250") == 1 and said.count("0.9500") == 1
    assert "lowest F1: c 0.40, 가 0.67, <b> 0.80" in said
