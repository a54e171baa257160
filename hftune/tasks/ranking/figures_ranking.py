"""Figures of rankings: scores by tier, scores beside people's, how sure against how often right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...tracking.report import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["histogram_figure", "reliability_figure", "scatter_figure", "tiers_figure"]

_BLUE, _ORANGE = "#4a8de0", "#e08a3c"  # seen on white and on black
_DRAWN = 1500  # points from which on they are drawn as pixels


def tiers_figure(scores: np.ndarray, tiers: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Draws the scores of each tier: every image a dot, a box around the middle half.

    Args:
        scores (float array ``[N]``): The model's.
        tiers (sequence of str and int array): Names, best first, and rows of their images.
    """
    figure, axes = _figure(4.9, 0.62 * len(tiers) + 0.9)
    draw = np.random.default_rng(0)
    axes.axvline(float(np.median(scores)), color=INK, linewidth=0.7, alpha=0.35, dashes=(4, 3))
    for place, (_, rows) in enumerate(tiers):
        values = scores[rows]
        heights = place + draw.uniform(-0.27, 0.27, len(values))
        axes.scatter(values, heights, color=_BLUE, linewidths=0, **_dots(len(scores)))
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        axes.add_patch(_box(low, place - 0.36, high - low, 0.72))
        axes.plot([middle, middle], [place - 0.36, place + 0.36], color=_ORANGE, linewidth=2.2)
    axes.set_yticks(range(len(tiers)), [name for name, _ in tiers], parse_math=False)
    axes.set_ylim(len(tiers) - 0.45, -0.55)
    axes.set_xlabel("score of the model")
    return figure


def reliability_figure(reliability: Mapping[str, Any]) -> Figure:
    """Draws how often the model is right against how sure it is.

    Args:
        reliability (mapping): ``mean_probability``, ``observed`` (None where there are no pairs)
            and ``weight`` of each part.
    """
    figure, axes = _figure(4.9, 3.6)
    weight = np.array(reliability["weight"])
    kept = weight > 0
    sure, right = (
        np.array(reliability[name], np.float64)[kept] for name in ("mean_probability", "observed")
    )
    weight = weight[kept]
    axes.plot([0.5, 1], [0.5, 1], color=INK, linewidth=0.9, alpha=0.5, dashes=(4, 3))
    axes.plot(sure, right, color=_BLUE, linewidth=1.1, alpha=0.6)
    axes.scatter(
        sure, right, s=18 + 330 * weight / weight.max(), color=_BLUE, alpha=0.75, linewidths=0
    )
    axes.set_xlim(0.485, 1.015)
    axes.set_ylim(min(0.45, float(right.min()) - 0.05), 1.05)
    axes.set_xlabel("how sure the model is of the better image")
    axes.set_ylabel("how often it is right")
    return figure


def scatter_figure(scores: np.ndarray, people: np.ndarray, label: str) -> Figure:
    """Draws the model's score of each image against people's.

    Args:
        scores (float array ``[N]``): The model's.
        people (float array ``[N]``): People's.
        label (str): What the latter are.
    """
    figure, axes = _figure(4.9, 3.6)
    axes.scatter(people, scores, color=_BLUE, linewidths=0, **_dots(len(scores)))
    axes.set_xlabel(label)
    axes.set_ylabel("score of the model")
    return figure


def histogram_figure(scores: np.ndarray) -> Figure:
    """Draws how many images have which score.

    Args:
        scores (float array ``[N]``): The model's.
    """
    figure, axes = _figure(9.6, 2.5)
    bins = int(np.clip(2 * np.sqrt(len(scores)), 5, 60))
    axes.hist(scores, bins=bins, color=_BLUE, alpha=0.8, rwidth=0.92)
    axes.axvline(float(np.median(scores)), color=_ORANGE, linewidth=2)
    axes.set_xlabel("score of the model")
    axes.set_ylabel("images")
    axes.yaxis.get_major_locator().set_params(integer=True)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(length=3, width=0.5, colors=INK, labelcolor=INK, labelsize=9)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(INK)
        part.set_fontsize(9.5)
    for name, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_linewidth(0.5)
        spine.set_visible(name in ("left", "bottom"))
    return figure, axes


def _dots(count: int) -> dict[str, Any]:
    """How dots are drawn: many of them small, and as pixels, for a page of a sane size."""
    many = count > _DRAWN
    return {"s": 5 if many else 15, "alpha": 0.35 if many else 0.65, "rasterized": many}


def _box(left: float, bottom: float, width: float, height: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((left, bottom), width, height, fill=False, color=INK, linewidth=0.9, alpha=0.6)
