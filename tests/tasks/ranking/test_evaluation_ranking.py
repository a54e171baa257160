"""Evaluations equal what looking at each pair gives."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from processes import run_together
from scipy import stats
from small_ranking import SIZE, small_model
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from hftune.tasks.ranking.data_ranking import PairwiseDataset, PixelImages
from hftune.tasks.ranking.evaluation_ranking import Evaluator, RankingEvaluator, tier_pairs
from hftune.tasks.ranking.pairs_ranking import PairSampler
from hftune.tasks.ranking.scores_ranking import bootstrap_accuracy, interval, pair_counts
from hftune.tasks.ranking.tables_ranking import Comparisons, ImageTable, read_images
from hftune.tasks.ranking.votes_ranking import bootstrap_votes
from hftune.utils.errors import ConfigurationError, DataError

torch.set_num_threads(1)

TRANSFORM = transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.ToTensor()])
COMPARISONS = Comparisons(
    np.array([[0, 7], [7, 3], [12, 18], [0, 7]]), np.array([[2.0, 1], [0, 3], [0.5, 0.5], [1, 0]])
)


@pytest.fixture(scope="module")
def table(tiered_images):
    return read_images(tiered_images, tiered_images.parent / "images")


@pytest.fixture
def model():
    return small_model(seed=1)


@pytest.fixture
def images(table, model):
    return PixelImages(table.paths, model.image_processor.process, table.targets)


def brute(scores, targets, min_gap=0):
    """Pairs, those that are right, and the mean loss, by looking at each two images."""
    pairs, right, loss = 0, 0.0, 0.0
    for i in range(len(targets)):
        for j in range(len(targets)):
            if targets[i] > targets[j] and targets[i] - targets[j] >= min_gap:
                pairs += 1
                right += (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
                loss += math.log1p(math.exp(scores[j] - scores[i]))
    return pairs, right, loss / pairs


# The trainer's


def test_metrics_are_those_of_all_pairs(table, model, images):
    evaluator = RankingEvaluator(images, table.targets, tiers=table.tiers, batch_size=6)
    done = []
    metrics = evaluator.evaluate(model, done.append)
    scores = model.score([str(path) for path in table.paths]).double().numpy()
    np.testing.assert_allclose(evaluator.scores, scores, atol=1e-5)
    pairs, right, loss = brute(evaluator.scores, table.targets)
    assert pairs == 150
    adjacent = [
        brute(evaluator.scores[rows], table.targets[rows])
        for tier in range(3)
        for rows in [np.flatnonzero((table.targets == tier) | (table.targets == tier + 1))]
    ]
    assert metrics == {
        "accuracy": pytest.approx(right / pairs),
        "adjacent_accuracy": pytest.approx(sum(r for _, r, _ in adjacent) / 75),
        "loss": pytest.approx(loss),
        "srcc": pytest.approx(stats.spearmanr(scores, table.targets).statistic),
        "krcc": pytest.approx(stats.kendalltau(scores, table.targets).statistic),
        "plcc": pytest.approx(stats.pearsonr(scores, table.targets).statistic),
    }
    assert 0 < metrics["accuracy"] < 1
    assert sum(done) == 20
    assert evaluator.metrics() == metrics
    assert (evaluator.primary_metric, evaluator.greater_is_better) == ("accuracy", True)


def test_it_takes_a_trainers_model(table, model, images):
    class Trainer:
        pass

    trainer = Trainer()
    trainer.model = model.train()
    evaluator = RankingEvaluator(images, table.targets)
    assert evaluator(trainer) == evaluator.evaluate(model)
    assert model.training


def test_the_replicates_are_those_of_the_scores(table, model, images):
    evaluator = RankingEvaluator(images, table.targets)
    evaluator.evaluate(model)
    assert (
        evaluator.bootstrap(50, seed=3)
        == bootstrap_accuracy(evaluator.scores, table.targets, 50, seed=3)
    ).all()
    assert len(evaluator.bootstrap()) == 1000


def test_scores_of_people_are_for_correlations(table, model, images):
    people = np.random.default_rng(0).normal(size=20)
    evaluator = RankingEvaluator(images, table.targets, people)
    metrics = evaluator.evaluate(model)
    assert metrics["plcc"] == pytest.approx(np.corrcoef(evaluator.scores, people)[0, 1])
    assert (
        metrics["accuracy"] == RankingEvaluator(images, table.targets).evaluate(model)["accuracy"]
    )


def test_images_with_scores_have_no_adjacent_tiers(model, images):
    targets = np.random.default_rng(1).normal(size=20).round(1)
    evaluator = RankingEvaluator(images, targets)
    metrics = evaluator.evaluate(model)
    pairs, right, loss = brute(evaluator.scores, targets)
    assert set(metrics) == {"accuracy", "loss", "srcc", "krcc", "plcc"}
    assert metrics["accuracy"] == pytest.approx(right / pairs)
    assert metrics["loss"] == pytest.approx(loss)


def votes_by_hand(scores):
    agreeing = loss = total = 0.0
    for (i, j), votes in zip(COMPARISONS.images, COMPARISONS.votes, strict=True):
        agreeing += votes[0 if scores[i] > scores[j] else 1]
        loss += votes[0] * math.log1p(math.exp(scores[j] - scores[i]))
        loss += votes[1] * math.log1p(math.exp(scores[i] - scores[j]))
        total += votes.sum()
    return agreeing / total, loss / total


def test_comparisons_alone(model, images):
    evaluator = RankingEvaluator(images, None, None, COMPARISONS)
    metrics = evaluator.evaluate(model)
    accuracy, loss = votes_by_hand(evaluator.scores)
    assert metrics == {
        "votes_accuracy": pytest.approx(accuracy),
        "loss": pytest.approx(loss),
    }
    assert evaluator.primary_metric == "votes_accuracy"
    expected = bootstrap_votes(evaluator.scores, COMPARISONS.images, COMPARISONS.votes, 20, seed=1)
    assert (evaluator.bootstrap(20, 1) == expected).all()


def test_comparisons_beside_tiers(table, model, images):
    evaluator = RankingEvaluator(images, table.targets, comparisons=COMPARISONS)
    metrics = evaluator.evaluate(model)
    assert metrics["votes_accuracy"] == pytest.approx(votes_by_hand(evaluator.scores)[0])
    assert metrics["loss"] == pytest.approx(brute(evaluator.scores, table.targets)[2])
    assert evaluator.primary_metric == "accuracy"


def test_groups_are_drawn_with_all_their_images(table, model, images):
    artists = [f"artist {row % 4}" for row in range(20)]
    grouped = RankingEvaluator(images, table.targets, groups=artists)
    grouped.evaluate(model)
    expected = bootstrap_accuracy(grouped.scores, table.targets, 30, 0, artists)
    assert (grouped.bootstrap(30) == expected).all()
    # Without a name an image is on its own, and one group of all is none.
    alone = RankingEvaluator(images, table.targets, groups=[""] * 20)
    one = RankingEvaluator(images, table.targets, groups=["all"] * 20)
    alone.scores = one.scores = grouped.scores
    plain = bootstrap_accuracy(grouped.scores, table.targets, 30)
    assert (one.bootstrap(30) == plain).all()
    assert alone.bootstrap(2000).std() == pytest.approx(plain.std(), rel=0.4)
    assert not (grouped.bootstrap(30) == plain).all()


def test_equal_scores_say_nothing(table, model, images):
    with torch.no_grad():
        model.head.score[-1].weight.zero_()
    metrics = RankingEvaluator(images, table.targets, tiers=table.tiers).evaluate(model)
    assert metrics == {
        "accuracy": 0.5,
        "adjacent_accuracy": 0.5,
        "loss": pytest.approx(math.log(2)),
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_has_diverged(table, model, images, value):
    with torch.no_grad():
        model.head.score[-1].bias.fill_(value)
    expected = (
        "^the model's score of 20 of 20 images is NaN or infinite: the training has diverged$"
    )
    with pytest.raises(DataError, match=expected):
        RankingEvaluator(images, table.targets).evaluate(model)


def test_nothing_to_evaluate(images):
    message = "^an evaluation needs targets of the images, or comparisons$"
    nothing = Comparisons(np.zeros((0, 2), np.int64), np.zeros((0, 2)))
    for comparisons in (None, nothing):
        with pytest.raises(ConfigurationError, match=message):
            RankingEvaluator(images, None, comparisons=comparisons)


def _evaluate_in(folder, images, table, rank):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    evaluator = RankingEvaluator(
        images, table.targets, comparisons=COMPARISONS, tiers=table.tiers, batch_size=3
    )
    metrics = evaluator.evaluate(small_model(seed=1))
    metrics["interval"] = interval(evaluator.bootstrap(100))
    (folder / f"{rank}.json").write_text(json.dumps(metrics))
    torch.distributed.destroy_process_group()


def test_all_processes_have_the_metrics_of_the_whole(tmp_path, table, model, images):
    assert run_together(lambda rank: _evaluate_in(tmp_path, images, table, rank)) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    alone = RankingEvaluator(
        images, table.targets, comparisons=COMPARISONS, tiers=table.tiers, batch_size=3
    )
    assert first == second
    for name, value in alone.evaluate(model).items():
        assert first[name] == pytest.approx(value, abs=1e-6)


def test_counts_by_the_names_of_two_tiers():
    scores, targets = [0.9, 0.5, 0.4, 0.4], [3, 1, 1, 0]
    assert tier_pairs(pair_counts(scores, targets), ("S", "A", "B", "C")) == {
        "S>B": {"accuracy": 1.0, "total_pairs": 2, "correct_predictions": 2.0},
        "S>C": {"accuracy": 1.0, "total_pairs": 1, "correct_predictions": 1.0},
        "B>C": {"accuracy": 0.75, "total_pairs": 2, "correct_predictions": 1.5},
    }
    assert tier_pairs(pair_counts(scores, targets), ()) == {}
    many = np.arange(60.0)
    assert tier_pairs(pair_counts(many, many), ("S", "A")) == {}


# The guide's


def each_pair(model, dataset):
    """Pairs and those that are right, the guide's way: one pair after the other."""
    right = 0.0
    with torch.no_grad():
        for first, second, label in dataset:
            score1, score2 = model(first[None], second[None])
            difference = ((score1 - score2) * label).item()
            right += (difference > 0) + 0.5 * (difference == 0)
    return len(dataset), right


@pytest.mark.parametrize("workers", [0, 2])
def test_the_guides_evaluator(tiered_images, model, workers):
    dataset = PairwiseDataset(
        pd.read_csv(tiered_images), tiered_images.parent / "images", TRANSFORM
    )
    loader = DataLoader(dataset, batch_size=32, shuffle=False, num_workers=workers)
    passed = []
    hook = model.head.register_forward_pre_hook(lambda _, args: passed.append(len(args[0])))
    evaluator = Evaluator(model=model, device="cpu")
    detailed = evaluator.evaluate_detailed(loader)
    assert sum(passed) == 20
    hook.remove()
    pairs, right = each_pair(model, dataset)
    assert set(detailed) == {
        "accuracy",
        "adjacent_accuracy",
        "total_pairs",
        "correct_predictions",
        "loss",
        "srcc",
        "krcc",
        "plcc",
        "interval",
        "tier_pairs",
    }
    assert detailed["total_pairs"] == pairs == len(dataset)
    assert detailed["correct_predictions"] == pytest.approx(right)
    assert evaluator.evaluate(loader) == detailed["accuracy"] == pytest.approx(right / pairs)
    low, high = detailed["interval"]
    assert 0 <= low < detailed["accuracy"] < high <= 1
    assert list(detailed["tier_pairs"]) == ["S>A", "S>B", "S>C", "A>B", "A>C", "B>C"]
    for total in ("total_pairs", "correct_predictions"):
        assert sum(pair[total] for pair in detailed["tier_pairs"].values()) == detailed[total]
    assert f"{detailed['accuracy']:.2%}".endswith("%")
    json.dumps(detailed)


def test_a_loader_of_batches_gives_the_same(table, model):
    dataset = PairwiseDataset(table, transform=TRANSFORM)
    detailed = Evaluator(model).evaluate_detailed(DataLoader(dataset, batch_size=32))
    pairs = [dataset[number] for number in range(150)]
    model.train()
    plain = Evaluator(model).evaluate_detailed(DataLoader(pairs, batch_size=32))
    assert model.training
    assert set(plain) == {"accuracy", "total_pairs", "correct_predictions", "loss"}
    for name, value in plain.items():
        assert detailed[name] == pytest.approx(value, abs=1e-5)
    columns = [(first[None], second[None], label[None, None]) for first, second, label in pairs]
    column = Evaluator(model).evaluate_detailed(DataLoader(columns, batch_size=None))
    assert column == pytest.approx(plain, abs=1e-5)


def test_a_loader_of_some_pairs(table, model):
    dataset = PairwiseDataset(table, transform=TRANSFORM)
    some = Subset(dataset, range(0, 150, 7))
    detailed = Evaluator(model).evaluate_detailed(DataLoader(some, batch_size=5))
    pairs, right = each_pair(model, some)
    assert detailed["total_pairs"] == pairs == 22
    assert detailed["correct_predictions"] == right
    # A sampler of a data set of pairs is for training: all its pairs count.
    sampled = DataLoader(dataset, sampler=PairSampler(dataset.index, 0, 30))
    assert Evaluator(model).evaluate_detailed(sampled)["total_pairs"] == 150


def test_pairs_of_tiers_that_lie_apart(table, model):
    dataset = PairwiseDataset(table, transform=TRANSFORM, min_tier_gap=2)
    detailed = Evaluator(model).evaluate_detailed(DataLoader(dataset, batch_size=32))
    pairs, right = each_pair(model, dataset)
    scores = model.score(torch.stack([TRANSFORM(dataset._load_image(p)) for p in table.paths]))
    assert detailed["total_pairs"] == pairs == 75
    assert detailed["correct_predictions"] == right
    assert detailed["accuracy"] == right / pairs
    assert detailed["loss"] == pytest.approx(brute(scores.tolist(), table.targets, 2)[2], abs=1e-5)
    assert "interval" not in detailed


def test_groups_of_the_images_widen_the_interval(table, model):
    artists = tuple(f"artist {row % 4}" for row in range(20))
    grouped = ImageTable(table.ids, table.paths, table.targets, table.tiers, groups=artists)
    widths = [
        Evaluator(model).evaluate_detailed(
            DataLoader(PairwiseDataset(images, transform=TRANSFORM), batch_size=32)
        )["interval"]
        for images in (table, grouped)
    ]
    assert widths[0] != widths[1]


def test_images_that_are_kept_are_not_read_again(table, model):
    class CachedPairwiseDataset(PairwiseDataset):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.cache, self.reads = {}, 0

        def _load_image(self, path):
            if path not in self.cache:
                self.reads += 1
                self.cache[path] = super()._load_image(path)
            return self.cache[path]

    loader = DataLoader(CachedPairwiseDataset(table, transform=TRANSFORM), batch_size=32)
    accuracies = {Evaluator(model).evaluate(loader) for _ in range(3)}
    assert len(accuracies) == 1
    assert loader.dataset.reads == 20


def test_pictures_that_the_loader_makes_pixels_of(table, model):
    def collate(samples):
        first, second, labels = zip(*samples, strict=True)
        process = model.image_processor.process
        return (
            torch.stack([process(image) for image in first]),
            torch.stack([process(image) for image in second]),
            torch.stack(labels),
        )

    loader = DataLoader(PairwiseDataset(table), batch_size=50, collate_fn=collate)
    ready = PairwiseDataset(table, transform=model.image_processor.process)
    expected = Evaluator(model).evaluate(DataLoader(ready, batch_size=32))
    assert Evaluator(model).evaluate(loader) == pytest.approx(expected)


def test_loaders_that_cannot_be_evaluated(model):
    with pytest.raises(DataError, match="^the loader has no pair$"):
        Evaluator(model).evaluate(DataLoader([], batch_size=2))
    pixels = torch.zeros(3, SIZE, SIZE)
    broken = [(pixels, pixels * float("nan"), 1.0), (pixels, pixels, 1.0)]
    expected = (
        r"^the model's score of 1 of 2 pairs of a batch is NaN or infinite: the training has "
        r"diverged$"
    )
    with pytest.raises(DataError, match=expected):
        Evaluator(model).evaluate(DataLoader(broken, batch_size=2))


def test_the_model_goes_to_the_device(table):
    model = small_model()
    moved = []
    model.to = lambda device: moved.append(device) or model
    assert Evaluator(model).model is Evaluator(model, "cpu").model is model
    assert moved == ["cpu"]
