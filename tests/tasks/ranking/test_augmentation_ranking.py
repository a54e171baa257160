"""Random changes of images: of the seed alone, each on its own, without empty corners."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from hftune.tasks.ranking.augmentation_ranking import Augmentation
from hftune.utils.errors import ConfigurationError
from hftune.utils.seeds import derive_seed

ALL = {"flip": 0.5, "rotation": 10, "brightness": 0.1, "contrast": 0.1, "crop": 0.2}
IMAGE = Image.fromarray(
    np.random.default_rng(0).integers(60, 180, (40, 60, 3), dtype=np.uint8)
).resize((90, 60))


def made(seed: int, image: Image.Image = IMAGE, **changes) -> np.ndarray:
    return np.asarray(Augmentation(**changes).augment(image, np.random.default_rng(seed)))


def test_all_is_off_by_default():
    augmentation = Augmentation()
    assert augmentation.is_off
    assert augmentation.augment(IMAGE, np.random.default_rng(0)) is IMAGE
    for name, value in ALL.items():
        assert not Augmentation(**{name: value}).is_off


def test_it_is_a_function_of_the_seed():
    before = np.asarray(IMAGE).copy()
    seeds = [derive_seed(42, "augmentation", epoch, row) for epoch in (0, 1) for row in range(4)]
    first = [made(seed, **ALL) for seed in seeds]
    np.random.seed(3)  # global random numbers have no part in it
    for seed, expected in reversed(list(zip(seeds, first, strict=True))):
        np.testing.assert_array_equal(made(seed, **ALL), expected)
    assert len({image.tobytes() for image in first}) == len(seeds)
    np.testing.assert_array_equal(np.asarray(IMAGE), before)


@pytest.mark.parametrize("changes", [{}, {"flip": 1}, {"rotation": 5}, {"crop": 0.5}, ALL])
def test_seven_numbers_are_drawn_whatever_is_on(changes):
    rng, reference = np.random.default_rng(5), np.random.default_rng(5)
    Augmentation(**changes).augment(IMAGE, rng)
    reference.random(7)
    assert rng.random() == reference.random()


def test_a_change_does_not_alter_another():
    for seed in range(20):
        flipped = made(seed, flip=0.5)
        # Switched on beside it, but too weak to be seen: the same images are flipped.
        np.testing.assert_array_equal(made(seed, flip=0.5, brightness=1e-9), flipped)
        cropped = made(seed, crop=0.3)
        assert made(seed, crop=0.3, rotation=10, contrast=0.2).shape == cropped.shape


def test_flip():
    flipped = [
        np.array_equal(made(seed, flip=0.3), np.asarray(IMAGE)[:, ::-1]) for seed in range(400)
    ]
    kept = [np.array_equal(made(seed, flip=0.3), np.asarray(IMAGE)) for seed in range(400)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 0.22 < np.mean(flipped) < 0.38


def test_brightness_and_contrast():
    grey = Image.fromarray(np.repeat(np.array([[[100]], [[150]]], np.uint8), 3, axis=2))
    bright = np.stack([made(seed, grey, brightness=0.2)[:, 0, 0] for seed in range(200)])
    assert 80 <= bright[:, 0].min() <= 82 and 118 <= bright[:, 0].max() <= 120
    np.testing.assert_allclose(bright[:, 1], bright[:, 0] * 1.5, atol=1.6)
    spread = np.stack([made(seed, grey, contrast=0.2)[:, 0, 0] for seed in range(200)]).astype(int)
    np.testing.assert_allclose(spread.mean(axis=1), 125, atol=1)  # the mean stays
    width = spread[:, 1] - spread[:, 0]
    assert 39 <= width.min() <= 42 and 58 <= width.max() <= 61


def test_rotation_mirrors_the_corners():
    """Against each pixel's place in the source, mirrored at the edges by arithmetic."""
    y, x = np.mgrid[0:50, 0:80]
    smooth = np.stack([60 + x, 60 + 2 * y, 200 - x - y], axis=2)
    image = Image.fromarray(smooth.astype(np.uint8))
    for seed in range(6):
        angle = math.radians(30 * (2 * np.random.default_rng(seed).random(7)[1] - 1))
        dx, dy = x - 39.5, y - 24.5
        source_x = math.cos(angle) * dx - math.sin(angle) * dy + 39.5
        source_y = math.sin(angle) * dx + math.cos(angle) * dy + 24.5
        source_x = 79.5 - np.abs(80 - np.abs(source_x + 0.5))
        source_y = 49.5 - np.abs(50 - np.abs(source_y + 0.5))
        expected = np.stack([60 + source_x, 60 + 2 * source_y, 200 - source_x - source_y], axis=2)
        found = made(seed, image, rotation=30)
        assert np.abs(found - expected).max() < 2.5


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (40, 30)])
@pytest.mark.parametrize("rotation", [10, 180])
def test_rotation_leaves_no_dark_corners(size, rotation):
    image = Image.new("RGB", size, (200, 100, 50))
    for seed in range(8):
        assert (made(seed, image, rotation=rotation) == [200, 100, 50]).all()


def test_crop():
    y, x = np.mgrid[0:100, 0:200]
    image = Image.fromarray(np.stack([x, y, y], axis=2).astype(np.uint8))
    seen = []
    for seed in range(300):
        part = made(seed, image, crop=0.4)
        height, width = part.shape[:2]
        top, left = int(part[0, 0, 1]), int(part[0, 0, 0])
        np.testing.assert_array_equal(
            part, np.asarray(image)[top : top + height, left : left + width]
        )
        assert abs(width - 2 * height) <= 2
        seen.append((width, left / max(200 - width, 1), top / max(100 - height, 1)))
    widths, lefts, tops = np.array(seen).T
    assert 120 <= widths.min() <= 123 and 197 <= widths.max() <= 200
    assert all(places.min() < 0.05 and places.max() > 0.95 for places in (lefts, tops))
    assert made(0, Image.new("RGB", (1, 1)), crop=0.9).shape == (1, 1, 3)


def test_settings():
    settings = Augmentation(**ALL).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings == {"algorithm": 1, **ALL}


def test_wrong_settings_are_reported_together():
    with pytest.raises(ConfigurationError) as error:
        Augmentation(flip=1.5, rotation=-1, brightness=float("nan"), contrast=2, crop=1)
    assert error.value.problems == (
        "flip is 1.5, expected a number from 0 to 1",
        "rotation is -1, expected a number from 0 to 180",
        "brightness is nan, expected a number from 0 to 1",
        "contrast is 2, expected a number from 0 to 1",
        "crop is 1, expected a number from 0 to 0.9",
    )
