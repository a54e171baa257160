"""Scores are those of plain loops over the examples, on one process and on two."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import run_together
from small_texts import SMALL, TABLE, prepare

from hftune.tasks.classification.evaluation_classification import ClassificationEvaluator
from hftune.tasks.classification.modeling_classification import build_model
from hftune.tasks.classification.scores_classification import calibration_error
from hftune.utils.errors import ConfigurationError


@pytest.fixture
def data(table):
    rows = "".join(f"unsure {i} {'so ' * (i % 7)},maybe\n" for i in range(31))
    return prepare(table("a.csv", TABLE + rows))


@pytest.fixture
def model(data):
    model = build_model(
        SMALL,
        label_names=data.label_names,
        tokenizer=data.tokenizer,
        max_length=data.max_length,
        seed=0,
    )
    with torch.no_grad():
        # An untrained model is sure of nothing and says the same of all texts.
        model.bert.embeddings.word_embeddings.weight *= 50
        model.classifier.weight *= 50
    return model


def evaluator(data, split="train", size=8, **settings):
    return ClassificationEvaluator(
        getattr(data, split), data.label_names, data.collator, size, **settings
    )


def by_hand(data, model):
    """Metrics, sample by sample."""
    model.eval()
    pairs, losses, sure = [], [], []
    for sample in data.train:
        with torch.no_grad():
            logits = model(**data.collator([sample])).logits[0].double()
        chances = (logits - logits.logsumexp(0)).exp()
        pairs.append((sample["labels"], int(chances.argmax())))
        losses.append(-math.log(chances[sample["labels"]]))
        sure.append(float(chances.max()))
    scores = []
    for label in {one for pair in pairs for one in pair}:
        hits = sum(pair == (label, label) for pair in pairs)
        true, predicted = (sum(pair[i] == label for pair in pairs) for i in (0, 1))
        scores.append((2 * hits / (true + predicted), true))
    error = 0.0
    for part in range(15):
        inside = [i for i, chance in enumerate(sure) if part / 15 <= chance < (part + 1) / 15]
        right = sum(pairs[i][0] == pairs[i][1] for i in inside)
        error += abs(right - sum(sure[i] for i in inside)) / len(pairs)
    return {
        "accuracy": sum(a == b for a, b in pairs) / len(pairs),
        "macro_f1": sum(f1 for f1, _ in scores) / len(scores),
        "weighted_f1": sum(f1 * count for f1, count in scores) / len(pairs),
        "loss": sum(losses) / len(losses),
        "calibration_error": error,
    }, [predicted for _, predicted in pairs]


def test_metrics_are_those_of_a_plain_loop(data, model):
    one = evaluator(data)
    found = one(SimpleNamespace(model=model))
    expected, predictions = by_hand(data, model)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name
    assert 0 < found["macro_f1"] != found["weighted_f1"] < 1
    assert one.predictions.tolist() == predictions
    assert one.predictions.dtype == np.int64 and one.confidence.dtype == np.float32
    assert one.labels.tolist() == data.labels("train").tolist()
    assert one.counts.sum() == len(data.train)
    assert one.primary_metric == "accuracy" and one.greater_is_better


def test_classes_that_nobody_has_or_predicts_do_not_count():
    from hftune.tasks.classification.scores_classification import (
        class_scores,
        confusion_counts,
        macro_f1,
    )

    counts = confusion_counts(np.array([0, 0, 1]), np.array([0, 2, 1]), 4)
    assert class_scores(counts)["f1"].tolist() == [pytest.approx(2 / 3), 1.0, 0.0, 0.0]
    assert class_scores(counts)["recall"].tolist() == [0.5, 1.0, 0.0, 0.0]
    assert class_scores(counts)["precision"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert macro_f1(counts) == pytest.approx((2 / 3 + 1 + 0) / 3)  # class 2 is predicted, 3 not


def test_a_sure_and_right_model_is_calibrated():
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert calibration_error(np.array([1.0, 0.6]), np.array([False, True])) == pytest.approx(0.7)


@pytest.mark.parametrize("training", [True, False])
def test_an_evaluation_leaves_no_trace(data, model, training):
    model.train(training)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    state = np.random.get_state()[1].copy()
    evaluator(data)(SimpleNamespace(model=model))
    assert torch.equal(torch.rand(4), expected)
    assert (np.random.get_state()[1] == state).all()
    assert model.training == training
    assert all(p.grad is None for p in model.parameters())


def test_two_processes_have_the_results_of_one(data, model):
    one = evaluator(data, size=16)
    alone = one.evaluate(model)
    few = evaluator(data, "test", size=16)  # fewer batches than processes
    alone_few = few.evaluate(model)

    def work(rank):
        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
        mine, small = evaluator(data, size=16), evaluator(data, "test", size=16)
        found = [mine.evaluate(model), small.evaluate(model)]
        results = [found, mine.predictions.tolist(), mine.losses.tolist()]
        Path(f"rank{rank}.json").write_text(json.dumps(results))
        torch.distributed.destroy_process_group()

    assert run_together(work) == [0, 0]
    expected = [[alone, alone_few], one.predictions.tolist(), one.losses.tolist()]
    for rank in range(2):
        assert json.loads(Path(f"rank{rank}.json").read_text()) == expected


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "weighted_f1", "loss"])
def test_bootstrap_is_the_metric_of_resampled_examples(data, model, metric):
    one = evaluator(data, primary_metric=metric)
    value = one.evaluate(model)[metric]
    found = one.bootstrap(200)
    assert found.shape == (200,) and found.dtype == np.float64
    assert (found == one.bootstrap(200)).all()
    assert not (found == one.bootstrap(200, seed=1)).all()
    drawn = np.random.default_rng(0).integers(0, len(one.labels), (200, len(one.labels)))
    for replicate in range(0, 200, 40):
        rows = drawn[replicate]
        labels, predictions = one.labels[rows].tolist(), one.predictions[rows].tolist()
        pairs = list(zip(labels, predictions, strict=True))
        f1 = {}
        for label in {*labels, *predictions}:
            hits = sum(pair == (label, label) for pair in pairs)
            f1[label] = 2 * hits / (labels.count(label) + predictions.count(label))
        expected = {
            "accuracy": sum(a == b for a, b in pairs) / len(pairs),
            "macro_f1": sum(f1.values()) / len(f1),
            "weighted_f1": sum(f1[label] for label in labels) / len(pairs),
            "loss": one.losses[rows].mean(),
        }[metric]
        assert found[replicate] == pytest.approx(expected)
    assert found.mean() == pytest.approx(value, abs=4 * found.std() / math.sqrt(200) + 0.02)
    assert one.greater_is_better == (metric != "loss")


def test_replicates_of_two_models_are_of_the_same_examples(data, model):
    one, other = evaluator(data), evaluator(data)
    one.evaluate(model)
    with torch.no_grad():
        model.classifier.bias += 0.01
    other.evaluate(model)
    other.predictions[0] = (other.predictions[0] + 1) % 3
    changed = one.predictions != other.predictions
    assert changed.sum() <= 5
    # Paired, they differ where the changed examples were drawn, and by no more than those.
    assert np.abs(one.bootstrap() - other.bootstrap()).max() < 12 * changed.sum() / len(changed)


def test_a_metric_that_does_not_exist(data):
    with pytest.raises(ConfigurationError) as caught:
        evaluator(data, primary_metric="macro-f1")
    assert str(caught.value) == (
        "no metric 'macro-f1' of a classifier; there are accuracy, macro_f1, weighted_f1, loss. "
        "Did you mean 'macro_f1'?"
    )
