"""Baselines: statistics of images with known ones, and the best of training images."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hftune.tasks.ranking.baselines_ranking import (
    baseline_scores,
    best_statistic,
    image_statistics,
    statistics_table,
)
from hftune.tasks.ranking.scores_ranking import pair_counts

NAMES = (
    "brightness contrast saturation colourfulness sharpness edge_density entropy aspect_ratio "
    "pixels file_bytes bytes_per_pixel"
).split()


def noise(height=200, width=256, seed=0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_plain_images():
    red = image_statistics(Image.new("RGB", (64, 32), (255, 0, 0)))
    assert red == pytest.approx(
        {
            "brightness": 0.299,
            "contrast": 0,
            "saturation": 1,
            "colourfulness": 0.3 * np.hypot(255, 127.5),
            "sharpness": 0,
            "edge_density": 0,
            "entropy": 0,
            "aspect_ratio": 2,
            "pixels": 2048,
        },
        abs=1e-6,
    )
    black = image_statistics(Image.new("RGB", (1, 700)))
    assert black["brightness"] == black["saturation"] == black["colourfulness"] == 0


def test_half_black_and_half_white():
    values = np.zeros((256, 256, 3), np.uint8)
    values[:, 128:] = 255
    found = image_statistics(Image.fromarray(values))
    assert found["brightness"] == pytest.approx(0.5)
    assert found["contrast"] == pytest.approx(0.5)
    assert found["entropy"] == pytest.approx(1)
    assert found["edge_density"] == 2 / 256  # the two columns beside the edge
    assert found["sharpness"] == pytest.approx(2 / 256)  # 1 and -1 there
    assert found["saturation"] == found["colourfulness"] == 0


def test_colourfulness_is_that_of_the_paper():
    image = noise()
    rgb = np.asarray(image).astype(np.float64)
    rg, yb = rgb[..., 0] - rgb[..., 1], (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    assert image_statistics(image)["colourfulness"] == pytest.approx(expected, rel=1e-5)


def test_statistics_do_not_depend_on_the_resolution():
    image = noise(100, 128).filter(ImageFilter.GaussianBlur(4))
    small = image_statistics(image.resize((512, 400), Image.Resampling.BICUBIC))
    large = image_statistics(image.resize((2048, 1600), Image.Resampling.BICUBIC))
    assert large.pop("pixels") == 16 * small.pop("pixels")
    for name, value in small.items():
        assert large[name] == pytest.approx(value, rel=0.05), name


def test_blur_takes_sharpness_edges_and_contrast():
    sharp = image_statistics(noise())
    blurred = image_statistics(noise().filter(ImageFilter.GaussianBlur(2)))
    for name in ("sharpness", "edge_density", "contrast", "entropy", "colourfulness"):
        assert blurred[name] < sharp[name], name


def test_table_of_files(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        noise(20 + i, 30, i).save(path)
    names, values = statistics_table(paths, Image.open)
    assert list(names) == NAMES
    for path, row in zip(paths, values, strict=True):
        expected = list(image_statistics(Image.open(path)).values())
        size = path.stat().st_size
        assert row.tolist() == [*expected, size, size / expected[-1]]


def test_the_best_statistic_of_training_images():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 200).astype(np.float64)
    values = rng.standard_normal((200, 3))
    values[:, 1] += targets / 2
    values[:, 2] -= targets
    names = ("nothing", "some", "most")
    assert best_statistic(values[:100], targets[:100], names) == ("most", -1)
    assert best_statistic(values[:100, :2], targets[:100], names) == ("some", 1)
    scores = baseline_scores(values[100:], names, "most", -1)
    assert scores.tolist() == (-values[100:, 2]).tolist()
    assert pair_counts(scores, targets[100:]).accuracy > 0.75


def test_real_images(test_data):
    folder = test_data / "ranking" / "websites"
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    paths = [folder / "images" / row["filename"] for row in rows]
    targets = np.array([float(row["score"]) for row in rows])
    names, values = statistics_table(paths, lambda path: Image.open(path).convert("RGB"))
    assert values.shape == (100, 11) and np.isfinite(values).all()
    name, sign = best_statistic(values, targets, names)
    chosen = pair_counts(baseline_scores(values, names, name, sign), targets).accuracy
    assert 0.5 < chosen < 0.75
    others = [pair_counts(column, targets).accuracy for column in values.T]
    assert chosen == pytest.approx(max(max(others), 1 - min(others)))
