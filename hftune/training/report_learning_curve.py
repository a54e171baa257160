"""The report's section on score against data size: what was measured and what to expect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..tracking.report import INK, Cell, Section, Tile
from .learning_curve import (
    CurvePoint,
    LearningCurve,
    Prediction,
    expected_gain,
    fit_learning_curve,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["learning_curve_section"]

_CURVE, _AFTER, _PLACES = "#2a6fc9", "#d9772b", 80


def learning_curve_section(
    points: Sequence[CurvePoint],
    curve: LearningCurve | None,
    *,
    metric: str,
    all_samples: int,
    planned: Sequence[int],
    carried: bool,
) -> Section:
    """Makes the section.

    Args:
        points (sequence of CurvePoint): What was measured, by increasing size; at least one.
        curve (LearningCurve, *optional*): Fitted to the first of them, or to all; None where they
            are too few.
        metric (str): Name of the score.
        all_samples (int): Training samples that there are in all.
        planned (sequence of int): Training samples of each stage of the plan, the finished ones
            too.
        carried (bool): Whether a stage begins with the weights of the one before.
    """
    section = Section("Learning curve")
    decimals = _decimals(points)
    now = points[-1]
    coming = min((size for size in planned if size > now.samples), default=all_samples)
    targets = {"Next stage": coming} if coming < all_samples else {}
    if now.samples < all_samples:
        targets["All data"] = all_samples
    tiles = [Tile(f"{metric} now", _number(now.score, decimals), _measured_note(now, decimals))]
    if curve is not None:
        tiles += [
            Tile(
                f"{name}: expected gain",
                _signed(expected_gain(curve, now, size).value, decimals),
                f"{size:,} samples: {metric} {_interval(curve.predict(size), decimals)}",
            )
            for name, size in targets.items()
        ]
        if now.samples > curve.points[-1].samples:
            told = curve.predict(now.samples)
            tiles.append(
                Tile(
                    f"Predicted from {len(curve.points)} points",
                    _number(told.value, decimals),
                    f"{now.samples:,} samples: {metric} {_interval(told, decimals)}",
                    "good" if told.low <= now.score <= told.high else "warning",
                )
            )
    section.tiles(tiles)
    section.text(*_expectation(curve, now, targets, metric, decimals))
    section.figure(
        _figure(points, curve, metric, max(all_samples, now.samples)),
        _caption(curve),
        f"{metric} against the number of training samples",
    )
    section.text(_carried_text(carried), tone="note")
    _stage_table(section, points, curve, metric, all_samples, decimals)
    return section


def _expectation(
    curve: LearningCurve | None,
    now: CurvePoint,
    targets: dict[str, int],
    metric: str,
    decimals: int,
) -> list[str]:
    if not targets:
        return [f"All {now.samples:,} samples were trained on; there is nothing more to expect."]
    if curve is None:
        return ["What more data will bring can be said from three stages on."]
    texts = []
    for name, size in targets.items():
        gain = expected_gain(curve, now, size)
        text = (
            f"{name}, {size:,} samples: a gain of {_signed(gain.value, decimals)} in {metric} is "
            f"expected, and with {100 * gain.level:g} % probability one of "
            f"{_signed(gain.low, decimals)} to {_signed(gain.high, decimals)}."
        )
        if gain.low <= 0:
            text += " It is not certain that there is any."
        texts.append(text)
    return texts


def _carried_text(carried: bool) -> str:
    if carried:
        return (
            "Each stage began with the weights of the one before. A later stage has therefore had "
            "more updates as well as more data: this is not the curve of independent trainings, "
            "and what it says of more data is true of going on in this way."
        )
    return "Each stage was trained anew: the points differ by their data, and by chance."


def _caption(curve: LearningCurve | None) -> str:
    bars = "Bars: 95 % intervals over the evaluation examples."
    if curve is None:
        return bars
    return (
        f"{bars} Line: median of the curves that agree with {len(curve.points)} points; band: "
        f"where a measurement will lie with {100 * curve.level:g} % probability, the chance of its "
        "training and the curve's own error included."
    )


def _stage_table(
    section: Section,
    points: Sequence[CurvePoint],
    curve: LearningCurve | None,
    metric: str,
    all_samples: int,
    decimals: int,
) -> None:
    rows, known, held = [], 0, 0
    for index, point in enumerate(points):
        low, high = _bar(point)
        row = [
            f"{100 * point.samples / all_samples:.3g} %",
            point.samples,
            Cell(_number(point.score, decimals), strong=True),
            f"{_number(low, decimals)} to {_number(high, decimals)}" if low < high else "–",
        ]
        if curve is None:
            rows.append(row)
            continue
        sign = 1 if curve.greater_is_better else -1
        gain = sign * (point.score - points[index - 1].score) if index else None
        row.append(
            "–" if gain is None else Cell(_signed(gain, decimals), shade=0.35 if gain < 0 else None)
        )
        before = fit_learning_curve(
            points[:index],
            greater_is_better=curve.greater_is_better,
            bounds=curve.bounds,
            level=curve.level,
        )
        if before is None:
            row.append("–")
        else:
            told = before.predict(point.samples)
            inside = told.low <= point.score <= told.high
            known, held = known + 1, held + inside
            row.append(
                Cell(
                    f"{_number(told.value, decimals)} ({_interval(told, decimals)})",
                    shade=None if inside else 0.5,
                    note="" if inside else "the measured score lies outside",
                )
            )
        rows.append(row)
    columns = ["data", "samples", metric, "95 % interval"]
    caption = ""
    if curve is not None:
        columns += ["gain", "predicted by the stages before"]
        caption = "A positive gain is for the better."
        if known:
            caption += f" {held} of {known} scores lie in the interval that was predicted for them."
    section.table(columns, rows, caption)


def _figure(
    points: Sequence[CurvePoint], curve: LearningCurve | None, metric: str, last: int
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(10.4, 4.3), layout="constrained")
    ax = figure.add_subplot()
    fitted = set() if curve is None else {point.samples for point in curve.points}
    if curve is not None:
        end = curve.points[-1].samples
        places = np.unique(np.linspace(curve.points[0].samples, last, _PLACES).astype(int))
        told = [curve.predict(int(place)) for place in places]
        ax.fill_between(
            places,
            [one.low for one in told],
            [one.high for one in told],
            color=_CURVE,
            alpha=0.13,
            linewidth=0,
            label=f"{100 * curve.level:g} % prediction interval",
        )
        values = np.array([one.value for one in told])
        ax.plot(places[places <= end], values[places <= end], color=_CURVE, linewidth=1.8)
        # One line, solid where there are points and dashed beyond.
        ax.plot(
            places[places >= end], values[places >= end], color=_CURVE, linewidth=1.8,
            linestyle=(0, (4, 2.5)),
        )  # fmt: skip
    groups = [
        ("measured", _CURVE, [p for p in points if not fitted or p.samples in fitted]),
        (
            "measured after the fit",
            _AFTER,
            [p for p in points if fitted and p.samples not in fitted],
        ),
    ]
    for name, color, group in groups:
        if not group:
            continue
        scores = np.array([point.score for point in group])
        ends = np.array([_bar(point) for point in group]).T
        ax.errorbar(
            [point.samples for point in group],
            scores,
            np.abs(ends - scores),
            fmt="o",
            color=color,
            markersize=5.5,
            elinewidth=1.3,
            capsize=2.5,
            label=name,
        )
    ax.set_xlim(0, 1.03 * last)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_xlabel("training samples", color=INK, fontsize=10)
    ax.set_ylabel(metric, color=INK, fontsize=10)
    ax.grid(color=INK, alpha=0.1, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, labelsize=9, length=3, width=0.6)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor(INK)
        spine.set_linewidth(0.6)
    rising = points[-1].score >= points[0].score
    ax.legend(
        loc="lower right" if rising else "upper right",
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    return figure


def _bar(point: CurvePoint) -> tuple[float, float]:
    """95 % of the replicates; the score itself where there are none."""
    if point.replicates is None:
        return point.score, point.score
    low, high = np.nanquantile(point.replicates, [0.025, 0.975])
    return min(float(low), point.score), max(float(high), point.score)


def _measured_note(point: CurvePoint, decimals: int) -> str:
    low, high = _bar(point)
    bar = f", {_number(low, decimals)} to {_number(high, decimals)}" if low < high else ""
    return f"{point.samples:,} samples{bar}"


def _decimals(points: Sequence[CurvePoint]) -> int:
    """Of all scores: three digits of the largest."""
    largest = max((abs(p.score) for p in points if math.isfinite(p.score)), default=0)
    return 3 if largest == 0 else min(max(2 - math.floor(math.log10(largest)), 0), 8)


def _number(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", "−") if math.isfinite(value) else "–"


def _signed(value: float, decimals: int) -> str:
    return f"{value:+,.{decimals}f}".replace("-", "−") if math.isfinite(value) else "–"


def _interval(prediction: Prediction, decimals: int) -> str:
    return f"{_number(prediction.low, decimals)} to {_number(prediction.high, decimals)}"
