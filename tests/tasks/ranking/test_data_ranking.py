"""Images and pairs as data sets: the same in any worker and order, read as often as said."""

from __future__ import annotations

import itertools
import pickle
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_ranking import SIZE, small_model
from torch.utils.data import DataLoader
from torchvision import transforms

from hftune.tasks.ranking.augmentation_ranking import Augmentation
from hftune.tasks.ranking.data_ranking import (
    FeatureImages,
    ImageCollator,
    PairCollator,
    PairwiseDataset,
    PixelImages,
    TrainingPairs,
)
from hftune.tasks.ranking.image_files import load_image
from hftune.tasks.ranking.image_processing_ranking import RankingImageProcessor
from hftune.tasks.ranking.pairs_ranking import PairIndex, PairSampler, tier_pair_matrix
from hftune.tasks.ranking.tables_ranking import Comparisons, ImageTable, read_images
from hftune.utils.errors import ConfigurationError, DataError

torch.set_num_threads(1)

AUGMENTATION = Augmentation(flip=0.5, rotation=10, brightness=0.2, contrast=0.2, crop=0.2)
TRANSFORM = transforms.Compose(
    [
        transforms.Resize((SIZE, SIZE)),
        transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
)
"""The guide's, but for the size."""


@pytest.fixture(scope="module")
def table(tiered_images):
    return read_images(tiered_images, tiered_images.parent / "images")


def process(image):
    return RankingImageProcessor(size=SIZE, patch_size=8).process(image)


class Loads:
    """Reads images and counts how often each."""

    def __init__(self):
        self.counts = Counter()

    def __call__(self, path):
        self.counts[path] += 1
        return load_image(path)


class Features:
    """In place of a cache's: numbers that say which image and which view they are of."""

    def __init__(self, count, views):
        self.views = views
        self.numbers = np.stack(np.meshgrid(range(count), range(views), indexing="ij"), -1)

    def __len__(self):
        return len(self.numbers)

    def read(self, rows, views=0):
        return self.numbers[rows, views].astype(np.float32)


def through(dataset, workers, epoch=0, order=None):
    """All samples by row, through a loader."""
    dataset.set_epoch(epoch)
    order = list(range(len(dataset))) if order is None else order
    loader = DataLoader(dataset, batch_size=3, sampler=order, num_workers=workers, collate_fn=list)
    samples = dict(zip(order, itertools.chain.from_iterable(loader), strict=True))
    return [samples[row] for row in range(len(dataset))]


def equal(some, others):
    return all(
        torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(some, others, strict=True)
    )


# Images as pixels


def test_images_as_they_are(table):
    images = PixelImages(table.paths, process, table.targets)
    assert len(images) == 20
    for row in (0, 7, 19):
        sample = images[row]
        assert set(sample) == {"pixel_values", "target"}
        assert sample["target"] == table.targets[row]
        assert torch.equal(sample["pixel_values"], process(load_image(table.paths[row])))
    images.set_epoch(3)
    assert equal([images[7]], [PixelImages(table.paths, process, seed=9)[7]])
    assert set(PixelImages(table.paths, process)[0]) == {"pixel_values"}
    assert equal(list(images), [images[row] for row in range(20)])


def test_random_changes_are_of_the_seed_the_epoch_and_the_image_alone(table):
    images = PixelImages(table.paths, process, table.targets, AUGMENTATION, seed=5)
    alone = through(images, 0)
    shuffled = np.random.default_rng(0).permutation(20).tolist()
    for workers, order in ((0, shuffled), (2, None), (2, shuffled)):
        assert equal(through(images, workers, order=order), alone)
    again = PixelImages(table.paths, process, table.targets, AUGMENTATION, seed=5)
    assert equal([again[row] for row in range(20)], alone)
    plain = PixelImages(table.paths, process)
    other_epoch = through(images, 0, epoch=1)
    other_seed = PixelImages(table.paths, process, None, AUGMENTATION, seed=6)
    for others in (plain, other_epoch, other_seed):
        changed = [not equal([alone[row]], [others[row]]) for row in range(20)]
        assert all(changed)


def test_workers_that_stay_see_the_epoch(table):
    images = PixelImages(table.paths, process, None, AUGMENTATION)
    loader = DataLoader(
        images, batch_size=5, num_workers=2, persistent_workers=True, collate_fn=list
    )
    for epoch in (0, 1, 4):
        images.set_epoch(epoch)
        samples = list(itertools.chain.from_iterable(loader))
        assert equal(
            samples, through(PixelImages(table.paths, process, None, AUGMENTATION), 0, epoch)
        )


def test_no_global_random_number_is_drawn(table):
    images = PixelImages(table.paths, process, None, AUGMENTATION)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    images[0], images[1]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_images_pickle_to_workers(table):
    processor = RankingImageProcessor(size=SIZE, patch_size=8)
    images = PixelImages(table.paths, processor.process, table.targets, AUGMENTATION, seed=1)
    images.set_epoch(2)
    copy = pickle.loads(pickle.dumps(images))
    assert equal([copy[3]], [images[3]])
    assert copy[3]["target"] == table.targets[3]


# Images as features


def test_features_without_draws_are_of_the_images_as_they_are():
    images = FeatureImages(Features(10, 4), np.arange(10.0))
    images.set_epoch(1)
    assert [sample["features"].tolist() for sample in images] == [[row, 0] for row in range(10)]
    assert images[3]["target"] == 3.0
    assert set(FeatureImages(Features(10, 4))[0]) == {"features"}


def test_features_draw_a_view_of_each_image_anew_in_each_epoch():
    images = FeatureImages(Features(900, 4), draw_views=True, seed=3)

    def views(workers, epoch, order=None):
        samples = through(images, workers, epoch, order)
        assert [int(s["features"][0]) for s in samples] == list(range(900))
        return np.array([int(s["features"][1]) for s in samples])

    first, second = views(0, 0), views(0, 1)
    for drawn in (first, second):
        assert abs(np.bincount(drawn, minlength=4) - 225).max() < 60
    assert abs((first == second).mean() - 0.25) < 0.06
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.15
    backwards = list(range(900))[::-1]
    assert (views(2, 0, backwards) == first).all()
    assert int(images[-1]["features"][1]) == first[-1]
    other = FeatureImages(Features(900, 4), draw_views=True, seed=4)
    assert abs(np.mean([int(s["features"][1]) for s in other] == first) - 0.25) < 0.06


def test_workers_that_stay_draw_other_views_in_another_epoch():
    images = FeatureImages(Features(40, 8), draw_views=True)
    loader = DataLoader(
        images, batch_size=8, num_workers=1, persistent_workers=True, collate_fn=ImageCollator()
    )
    epochs = []
    for epoch in (0, 1):
        images.set_epoch(epoch)
        epochs.append(torch.cat([batch["features"] for batch in loader])[:, 1].tolist())
        assert epochs[-1] == [sample["features"][1].item() for sample in images]
    assert epochs[0] != epochs[1]


# Batches of images


def test_a_batch_of_images():
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(4, 3, 8, 8, generator=draw)
    samples = [{"pixel_values": p, "target": t} for p, t in zip(pixels, (3, 0, 1, 1), strict=True)]
    batch = ImageCollator()(samples)
    assert set(batch) == {"pixel_values", "targets"}
    assert torch.equal(batch["pixel_values"], pixels)
    assert batch["targets"].tolist() == [3, 0, 1, 1]
    assert batch["targets"].dtype == torch.float32
    features = ImageCollator()([{"features": torch.tensor([1.0, 2.0])}] * 3)
    assert features["features"].shape == (3, 2)
    assert set(features) == {"features"}


def test_images_of_several_sizes_are_a_list():
    pixels = [torch.zeros(3, 8, 16), torch.zeros(3, 16, 8), torch.zeros(3, 8, 16)]
    batch = ImageCollator()([{"pixel_values": p, "target": 0.0} for p in pixels])
    assert [tuple(image.shape) for image in batch["pixel_values"]] == [
        (3, 8, 16),
        (3, 16, 8),
        (3, 8, 16),
    ]
    output = small_model()(**batch)
    assert output.scores.shape == (3,)


def test_weights_of_the_pairs_of_a_batch():
    weights = tier_pair_matrix({"S>A": 2, "S>C": 0.5}, ("S", "A", "B", "C"))
    samples = [{"features": torch.zeros(1), "target": t} for t in (3.0, 0.0, 2.0, 3.0)]
    batch = ImageCollator(weights)(samples)
    assert batch["pair_weights"].tolist() == [
        [0, 0.5, 2, 0],
        [0, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0.5, 2, 0],
    ]


def test_a_gap_of_scores_in_a_batch():
    samples = [{"features": torch.zeros(1), "target": t} for t in (0.3, 0.2, 0.15)]
    batch = ImageCollator(min_gap=0.1)(samples)
    assert batch["pair_weights"].tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert "pair_weights" not in ImageCollator()(samples)


def test_the_loss_of_a_batch_is_that_of_its_pairs_one_by_one(table):
    model = small_model()
    images = PixelImages(table.paths, process, table.targets)
    rows = [0, 3, 6, 11, 12, 19]
    with torch.no_grad():
        together = model(**ImageCollator()([images[row] for row in rows]))
        index = PairIndex(table.targets[rows])
        pairs = index.pairs(np.arange(len(index)))
        votes = np.tile([1.0, 0.0], (len(pairs), 1))
        listed = TrainingPairs(Comparisons(np.array(rows)[pairs], votes))
        batch = PairCollator(images)([listed[n] for n in range(len(listed))])
        one_by_one = model(**batch)
    torch.testing.assert_close(together.loss, one_by_one.loss)
    torch.testing.assert_close(together.measures["accuracy"], one_by_one.measures["accuracy"])


# Pairs for training


def test_pairs_for_training(table):
    index = PairIndex(table.targets)
    pairs = TrainingPairs(index)
    assert len(pairs) == len(index) == 150
    rows, votes = pairs[17]
    assert rows.tolist() == index.pairs(np.array([17]))[0].tolist()
    assert votes.tolist() == [1, 0]
    assert pairs[-1][0].tolist() == index.pairs(np.array([149]))[0].tolist()
    assert sum(1 for _ in pairs) == 150


def test_comparisons_for_training():
    comparisons = Comparisons(
        np.array([[0, 2], [2, 1], [0, 2]]), np.array([[3.0, 1], [0.5, 0.5], [0, 1]])
    )
    pairs = TrainingPairs(comparisons)
    assert len(pairs) == 3
    found = pairs.__getitems__([2, 0, 1])
    assert [rows.tolist() for rows, _ in found] == [[0, 2], [0, 2], [2, 1]]
    assert [votes.tolist() for _, votes in found] == [[0, 1], [3, 1], [0.5, 0.5]]
    batch = PairCollator(FeatureImages(Features(5, 1)))(found)
    assert batch["features"][:, 0].tolist() == [0, 1, 2]
    assert batch["pairs"].tolist() == [[0, 2], [0, 2], [2, 1]]
    assert batch["votes"].tolist() == [[0, 1], [3, 1], [0.5, 0.5]]
    assert batch["votes"].dtype == torch.float32


def test_a_batch_of_pairs_holds_each_image_once(table):
    loads = Loads()
    images = PixelImages(table.paths, process, table.targets, load=loads)
    pairs = TrainingPairs(PairIndex(table.targets))
    sampler = PairSampler(pairs.source, seed=0)

    def batches(workers):
        return DataLoader(
            pairs,
            batch_size=30,
            sampler=sampler,
            collate_fn=PairCollator(images),
            num_workers=workers,
        )

    numbers = np.split(np.array(list(sampler)), 5)
    for chosen, batch, same in zip(numbers, batches(0), batches(2), strict=True):
        rows = pairs.source.pairs(chosen)
        assert loads.counts == {table.paths[row]: 1 for row in set(rows.ravel().tolist())}
        assert batch["pixel_values"].shape == (len(loads.counts), 3, SIZE, SIZE)
        found = batch["pixel_values"][batch["pairs"]]
        expected = torch.stack([images[row]["pixel_values"] for row in rows.ravel().tolist()])
        assert torch.equal(found.flatten(0, 1), expected)
        assert (batch["targets"][batch["pairs"]].numpy() == table.targets[rows]).all()
        assert batch["votes"].tolist() == [[1, 0]] * 30
        assert set(batch) == {"pixel_values", "targets", "pairs", "votes"}
        assert all(torch.equal(batch[name], same[name]) for name in batch)
        loads.counts.clear()


# The guide's data set


def test_the_guides_pairs(tiered_images):
    train_df = pd.read_csv(tiered_images)
    dataset = PairwiseDataset(
        metadata=train_df, image_dir=tiered_images.parent / "images", transform=TRANSFORM
    )
    assert len(dataset) == 6 * 5 * 5
    batches = list(DataLoader(dataset, batch_size=32, shuffle=True))
    assert len(batches) == 5
    first, second, labels = batches[0]
    assert first.shape == second.shape == (32, 3, SIZE, SIZE)
    assert labels.shape == (32,)
    assert labels.dtype == torch.float32
    # The better images are the brighter ones.
    for first, second, labels in batches:
        brighter = (first.mean((1, 2, 3)) - second.mean((1, 2, 3))).sign()
        assert torch.equal(brighter, labels)
    model = small_model()
    assert torch.isfinite(model.compute_loss(*model(first, second), labels))


def test_every_pair_is_there_once_in_one_of_its_two_orders(tiered_images, table):
    dataset = PairwiseDataset(table)
    pairs, labels = dataset.pairs(np.arange(len(dataset)))
    assert set(labels.tolist()) == {1.0, -1.0}
    better = table.targets[pairs[:, 0]] > table.targets[pairs[:, 1]]
    assert (better == (labels == 1)).all()
    expected = {
        frozenset((i, j))
        for i in range(20)
        for j in range(i)
        if table.targets[i] != table.targets[j]
    }
    assert len(pairs) == len(expected)
    assert {frozenset(pair) for pair in pairs.tolist()} == expected
    again = PairwiseDataset(tiered_images, tiered_images.parent)
    assert (again.pairs(np.arange(150))[0] == pairs).all()
    other = PairwiseDataset(table, seed=1).pairs(np.arange(150))[1]
    assert 0.3 < (other == labels).mean() < 0.7


def test_labels_are_balanced():
    targets = np.repeat([0.0, 1.0, 2.0, 3.0], 100)
    table = ImageTable(tuple(map(str, range(400))), ("",) * 400, targets, ("S", "A", "B", "C"))
    labels = PairwiseDataset(table).pairs(np.arange(60_000))[1]
    assert abs(labels.mean()) < 4 / np.sqrt(60_000)
    assert abs(np.corrcoef(labels[1:], labels[:-1])[0, 1]) < 0.02
    assert abs(labels.reshape(-1, 100).mean(0)).max() < 0.2


def test_items_from_the_end_and_beyond_it(table):
    dataset = PairwiseDataset(table, transform=TRANSFORM)
    last, also_last = dataset[149], dataset[np.int64(-1)]
    assert all(torch.equal(a, b) for a, b in zip(last, also_last, strict=True))
    for number in (150, -151):
        with pytest.raises(IndexError):
            dataset[number]
    assert sum(1 for _ in dataset) == 150


def test_without_a_transform_pairs_are_pictures(table):
    first, second, label = PairwiseDataset(table)[0]
    assert isinstance(first, Image.Image)
    assert first.mode == second.mode == "RGB"
    assert label in (-1, 1)


def test_the_guides_way_to_keep_images(table):
    class CachedPairwiseDataset(PairwiseDataset):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.cache = {}

        def _load_image(self, path):
            if path not in self.cache:
                self.cache[path] = super()._load_image(path)
            return self.cache[path]

    dataset = CachedPairwiseDataset(table, transform=TRANSFORM)
    plain = PairwiseDataset(table, transform=TRANSFORM)
    for number in range(150):
        assert all(torch.equal(a, b) for a, b in zip(dataset[number], plain[number], strict=True))
    assert set(dataset.cache) == set(table.paths)


def test_workers_give_the_same_pairs(table):
    dataset = PairwiseDataset(table, transform=TRANSFORM)
    sampler = PairSampler(dataset.index, seed=3, pairs_per_epoch=64)

    def batches(workers):
        return list(DataLoader(dataset, batch_size=16, sampler=sampler, num_workers=workers))

    for some, others in zip(batches(0), batches(2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_pairs_of_many_images_pickle_small():
    count = 10_000
    table = ImageTable(
        tuple(f"image_{i}" for i in range(count)),
        tuple(f"images/image_{i}.jpg" for i in range(count)),
        np.arange(count) % 4.0,
        ("S", "A", "B", "C"),
    )
    dataset = PairwiseDataset(table, transform=TRANSFORM)
    assert len(dataset) == 37_500_000
    assert len(pickle.dumps(dataset)) < 1e6


def test_tiers_that_lie_apart(table):
    dataset = PairwiseDataset(table, min_tier_gap=2)
    pairs, _ = dataset.pairs(np.arange(len(dataset)))
    assert len(dataset) == 3 * 25
    assert set(abs(np.diff(table.targets[pairs])).ravel()) == {2.0, 3.0}


def test_tiers_of_ones_own(tiered_images, tmp_path):
    shutil.copytree(tiered_images.parent / "images", tmp_path / "images")
    frame = pd.read_csv(tiered_images)
    frame["tier"] = frame["tier"].map({"S": "good", "A": "good", "B": "bad", "C": "bad"})
    dataset = PairwiseDataset(frame, tmp_path, tiers=["good", "bad"])
    assert len(dataset) == 100
    assert dataset.table.tier_of(0) == "good"
    assert dataset.table.targets[0] == 1


def test_pairs_of_scores(table):
    scored = ImageTable(table.ids[:4], table.paths[:4], np.array([0.1, 0.3, 0.3, -2.0]))
    dataset = PairwiseDataset(scored)
    assert len(dataset) == 5
    with pytest.raises(
        ConfigurationError, match="^min_tier_gap 2 is for tiers, and these images have scores$"
    ):
        PairwiseDataset(scored, min_tier_gap=2)


def test_images_without_pairs(table):
    cases = [
        (table.select(range(5)), "all 5 images are of tier 'S'"),
        (table.select([3]), "it has 1 image"),
        (
            ImageTable(("a", "b"), ("a", "b"), np.array([0.5, 0.5])),
            "all 2 images have the score 0.5",
        ),
    ]
    for images, found in cases:
        with pytest.raises(DataError) as error:
            PairwiseDataset(images)
        assert str(error.value) == (
            f"the table has no pairs: {found}. Expected images of at least two tiers or scores."
        )
    with pytest.raises(DataError, match="^the table has neither tiers nor scores"):
        PairwiseDataset(ImageTable(("a", "b"), ("a", "b")))
    with pytest.raises(DataError) as error:
        PairwiseDataset(table.select(range(10)), min_tier_gap=2)
    assert str(error.value) == (
        "the table has no pairs: no two images are min_tier_gap 2 tiers apart; there are S 5, A 5 "
        "of S > A > B > C."
    )
