"""What is reached without a network: the one number of an image that ranks training images best."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from .image_files import load_image
from .scores_ranking import pair_counts

__all__ = [
    "baseline_scores",
    "best_statistic",
    "image_statistics",
    "simple_baseline",
    "statistics_table",
]

_SIDE = 256  # pixels of the longer side that statistics are taken at
_EDGE = 0.1  # change of brightness from pixel to pixel that makes an edge


def image_statistics(image: Image.Image) -> dict[str, float]:
    """Takes single numbers of an image, which may well go with how people like it.

    All but the last two are of the image with its longer side at 256 pixels, so that they do not
    depend on its resolution. Brightness is luma (ITU-R BT.601) in [0, 1].

    Args:
        image (PIL image): RGB.

    Returns:
        - ``brightness`` and ``contrast``: mean and standard deviation of the brightness.
        - ``saturation``: mean of that of HSV, in [0, 1].
        - ``colourfulness``: of Hasler and Süsstrunk (2003), 0 to some 110.
        - ``sharpness``: variance of the Laplacian of the brightness.
        - ``edge_density``: share of the pixels with a gradient above 0.1 a pixel (Sobel).
        - ``entropy``: of the brightness in 256 steps, in bits, 0 to 8.
        - ``aspect_ratio``: width by height.
        - ``pixels``: width times height.
    """
    width, height = image.size
    factor = _SIDE / max(width, height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    rgb = np.asarray(small, np.float32) / 255
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    largest = rgb.max(2)
    saturation = (largest - rgb.min(2)) / np.maximum(largest, 1 / 255)
    opponents = red - green, (red + green) / 2 - blue
    spread, middle = (
        np.hypot(*(255 * float(of(opponent)) for opponent in opponents)) for of in (np.std, np.mean)
    )
    gradient = np.hypot(ndimage.sobel(luma, 0), ndimage.sobel(luma, 1)) / 8
    shares = np.bincount((luma * 255).round().astype(np.int64).ravel(), minlength=256) / luma.size
    shares = shares[shares > 0]
    return {
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "saturation": float(saturation.mean()),
        "colourfulness": float(spread + 0.3 * middle),
        "sharpness": float(ndimage.laplace(luma).var()),
        "edge_density": float((gradient > _EDGE).mean()),
        "entropy": float(-(shares * np.log2(shares)).sum()),
        "aspect_ratio": width / height,
        "pixels": float(width * height),
    }


def statistics_table(
    paths: Sequence[Path], load_image: Callable[[Path], Image.Image] = load_image
) -> tuple[tuple[str, ...], np.ndarray]:
    """Takes the statistics of image files, in threads.

    Args:
        paths (sequence of path): The images' files.
        load_image (callable): Reads an RGB image from a path. Defaults to
            :func:`~.image_files.load_image`.

    Returns:
        Names of the statistics, those of :func:`image_statistics` and ``file_bytes`` and
        ``bytes_per_pixel`` of the file, and their values, float64 ``[images, statistics]``.
    """

    def statistics(path: Path) -> dict[str, float]:
        found = image_statistics(load_image(path))
        size = float(Path(path).stat().st_size)
        return {**found, "file_bytes": size, "bytes_per_pixel": size / found["pixels"]}

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        rows = list(threads.map(statistics, paths))
    return tuple(rows[0]), np.array([list(row.values()) for row in rows])


def best_statistic(
    train_values: np.ndarray, train_targets: np.ndarray, names: Sequence[str]
) -> tuple[str, int]:
    """Finds the statistic that ranks the training images best.

    One of many fits some images by chance: what it is worth, test images tell.

    Args:
        train_values (float64 ``[N, M]``): Statistics of the training images.
        train_targets (array ``[N]``): Their tiers, counted from the worst, or people's scores; for
            comparisons those of :func:`~.votes_ranking.fit_bradley_terry`.
        names (sequence of str): Of the ``M`` statistics.

    Returns:
        Its name, and 1 if larger is better or -1 if smaller is.

    Raises:
        DataError: If a number is NaN, or if all targets are the same.
    """
    gains = [pair_counts(values, train_targets).accuracy - 0.5 for values in train_values.T]
    best = int(np.argmax(np.abs(gains)))
    return names[best], 1 if gains[best] >= 0 else -1


def baseline_scores(values: np.ndarray, names: Sequence[str], name: str, sign: int) -> np.ndarray:
    """Returns the scores that a statistic gives images, float64 ``[N]``, larger is better.

    Args:
        values (float64 ``[N, M]``): Statistics of the images.
        names (sequence of str): Of the ``M`` statistics.
        name, sign: Of :func:`best_statistic`.

    Example:
        >>> names, train = statistics_table(train_paths, load_image)
        >>> best = best_statistic(train, train_targets, names)
        >>> scores = baseline_scores(statistics_table(test_paths, load_image)[1], names, *best)
        >>> pair_counts(scores, test_targets).accuracy
    """
    return sign * values[:, list(names).index(name)]


def simple_baseline(
    train_paths: Sequence[Path], train_targets: np.ndarray, paths: Sequence[Path], most: int = 2000
) -> dict[str, np.ndarray]:
    """Ranks images by the one number that ranks the training images best.

    Args:
        train_paths (sequence of path): Training images.
        train_targets (array ``[train images]``): As for :func:`best_statistic`.
        paths (sequence of path): The ``N`` images to rank.
        most (int): Training images that are looked at, at the most, evenly taken. Defaults to 2000.

    Returns:
        Its name and its scores of the images, float64 ``[N]``.
    """
    chosen = np.unique(np.linspace(0, len(train_paths) - 1, most).astype(np.int64))
    names, values = statistics_table([train_paths[row] for row in chosen], load_image)
    name, sign = best_statistic(values, np.asarray(train_targets)[chosen], names)
    return {name: baseline_scores(statistics_table(paths, load_image)[1], names, name, sign)}
