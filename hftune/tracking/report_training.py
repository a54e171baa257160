"""The curves of a run: how it learned, and everything else that it logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..utils.terminal import duration
from .report import Cell, Report, Section, Series, Tile
from .report_history import (
    Entries,
    History,
    best_of,
    direction,
    metric_cell,
    number_cell,
    series_of,
)
from .sparklines import spark_line

__all__ = [
    "add_training",
    "grouped",
    "lay_out",
    "metrics_section",
    "page_points",
    "smoothed",
    "spans",
    "stage_name",
    "training_names",
    "training_section",
]

_MODULES = 8  # curves that a chart can tell apart
_PAGE_POINTS = 150_000  # of all curves of a page: some megabytes
_SMOOTH = 1500  # points of a running mean
_CLOCKS = ("epoch", "step", "total_flos")  # they follow the steps and say nothing more


def page_points(curves: int) -> int:
    """Returns how many points each curve can have on a page with so many."""
    return max(150, min(1500, _PAGE_POINTS // max(curves, 1)))


# Training


def training_names(names: Iterable[str], metric: str) -> set[str]:
    """Returns what of a run's metrics :func:`training_section` shows."""
    shown = {"loss", "eval_loss", metric, "grad_norm", "learning_rate"}
    parts = {name for name in names if name.startswith("loss_")}
    return (
        shown | {"train_runtime", "train_steps_per_second"} | (parts if len(parts) > 1 else set())
    )


def training_section(
    report: Report,
    log_history: Entries,
    gradients: Mapping[str, Any] | None = None,
    **more: Any,
) -> Section:
    """Adds the curves of a training: loss, validation, gradients, learning rate.

    Args:
        report (Report): Where it is added.
        log_history (sequence of mappings): Of the trainer's state.
        gradients (mapping, *optional*): Content of ``gradient_health.json``.
        **more: As for :func:`add_training`.
    """
    section = report.section("Training")
    add_training(section, log_history, gradients, **more)
    return section


def add_training(
    section: Section,
    log_history: Entries,
    gradients: Mapping[str, Any] | None = None,
    *,
    metric: str = "eval_loss",
    metric_label: str = "validation loss",
    reference: tuple[str, float] | None = None,
    greater_is_better: bool | None = False,
    earlier: Mapping[int, Entries] | None = None,
) -> None:
    """Adds the curves of one stage of a training to a section.

    Args:
        section (Section): Where they are added.
        log_history (sequence of mappings): Of the trainer's state.
        gradients (mapping, *optional*): Content of ``gradient_health.json``.
        metric (str): The metric in ``log_history`` that chose the best model.
        metric_label (str): What it is called.
        reference (str and float, *optional*): A baseline's name and its value of the metric.
        greater_is_better (bool or None): Direction of the metric; None where nobody knows.
            Defaults to False.
        earlier (mapping, *optional*): Attempt to its log history, of what no longer counts; drawn
            behind.
    """
    _training_tiles(section, log_history, gradients, metric, metric_label, greater_is_better)
    earlier = earlier or {}

    left, right = section.columns()
    steps, losses = series_of(log_history, "loss")
    curves = _superseded(earlier, "loss", 0) + smoothed("training", steps, losses)
    if metric != "eval_loss":
        validation = series_of(log_history, "eval_loss")
        if validation[0]:
            curves.append(Series("validation", *validation, color=1, dots=True))
    if any(curve.x for curve in curves):
        left.curves(curves, title="Loss", x_label="step", log=spans(losses, 3))

    steps, values = series_of(log_history, metric)
    curves = [Series(metric_label, steps, values, color=1, dots=True)] if steps else []
    if steps and reference is not None:
        curves.append(
            Series(reference[0], [steps[0], steps[-1]], [reference[1]] * 2, 7, False, True)
        )
    curves = _superseded(earlier, metric, 1) + curves
    if curves:
        right.curves(curves, title=metric_label[:1].upper() + metric_label[1:], x_label="step")

    left, right = section.columns()
    steps, norms = series_of(log_history, "grad_norm")
    curves = [Series("mean", steps, norms, color=0)]
    if gradients and gradients["steps"]:
        curves = [
            Series("mean", gradients["steps"], gradients["norm"], color=0),
            Series("largest", gradients["steps"], gradients["norm_max"], color=3),
        ]
    if curves[0].x:
        left.curves(
            _superseded(earlier, "grad_norm", 0) + curves,
            title="Gradient norm between two log lines",
            x_label="step",
            log=spans(curves[-1].y, 5),
        )
    steps, rates = series_of(log_history, "learning_rate")
    if steps:
        right.curves(
            [*_superseded(earlier, "learning_rate", 0), Series("learning rate", steps, rates, 0)],
            title="Learning rate",
            x_label="step",
        )

    _part_curves(section, log_history)
    if gradients:
        _gradient_parts(section, gradients)


def _superseded(earlier: Mapping[int, Entries], name: str, color: int) -> list[Series]:
    found = []
    for attempt, entries in earlier.items():
        steps, values = series_of(entries, name)
        if steps:
            steps, values = _running_mean(steps, values)
            label = f"attempt {attempt}, superseded"
            found.append(Series(label, steps, values, color, faint=True, dashed=True))
    return found


def _training_tiles(
    section: Section,
    log_history: Entries,
    gradients: Mapping[str, Any] | None,
    metric: str,
    metric_label: str,
    greater_is_better: bool | None,
) -> None:
    steps, values = series_of(log_history, metric)
    tiles = []
    last = max((entry.get("step", 0) for entry in log_history), default=0)
    tiles.append(Tile("Steps", last))
    found = best_of(steps, values, greater_is_better)
    if found is not None:
        tiles.append(Tile(f"Best {metric_label}", found[0], f"at step {found[1]:,}"))
    for entry in reversed(log_history):
        if math.isfinite(entry.get("train_runtime", math.nan)):
            rate = entry.get("train_steps_per_second")
            note = f"{rate:.3g} steps a second" if rate else ""
            tiles.append(Tile("Time", duration(entry["train_runtime"]), note))
            break
    if gradients:
        counts = gradients["counts"]
        odd = {name: count for name, count in counts.items() if count}
        bad = odd.get("non_finite", 0) or odd.get("skipped", 0)
        tiles.append(
            Tile(
                "Unhealthy gradients",
                sum(count for name, count in odd.items() if name != "skipped"),
                ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in odd.items()),
                "bad" if bad else "warning" if odd else "good",
            )
        )
    section.tiles(tiles)


def _part_curves(section: Section, log_history: Entries) -> None:
    names = {key for entry in log_history if "loss" in entry for key in entry}
    parts = sorted(name for name in names if name.startswith("loss_"))
    if len(parts) < 2:
        return
    curves = [Series(name[len("loss_") :], *series_of(log_history, name)) for name in parts]
    fold = section.fold("Loss by part")
    for start in range(0, len(curves), _MODULES):
        chosen = curves[start : start + _MODULES]
        every = [value for curve in chosen for value in curve.y]
        fold.curves(chosen, x_label="step", log=spans(every, 3))


def _gradient_parts(section: Section, gradients: Mapping[str, Any]) -> None:
    modules = gradients["modules"]
    if modules and gradients["steps"]:

        def size(name: str) -> float:
            return max((v for v in modules[name] if v is not None and v == v), default=0.0)

        largest = sorted(modules, key=size, reverse=True)[:_MODULES]
        # A module that came later (unfrozen) has fewer values than there are steps.
        curves = [
            Series(name, gradients["steps"][-len(modules[name]) :], modules[name])
            for name in largest
        ]
        title = "Gradient norm by module"
        if len(modules) > len(largest):
            title += f" (the {len(largest)} largest of {len(modules)})"
        every = [value for curve in curves for value in curve.y]
        section.fold(title).curves(curves, x_label="step", log=spans(every, 3))
    if gradients["events"]:
        rows = [
            [
                event["step"],
                event["kind"].replace("_", " "),
                event["action"],
                event["norm"],
                event["median"],
                ", ".join(worst["module"] for worst in event["worst"]),
            ]
            for event in gradients["events"][-100:]
        ]
        section.fold(f"Unhealthy gradients: {len(gradients['events'])} events").table(
            ["step", "what", "action", "norm", "running median", "largest in"], rows
        )


# Everything else


def metrics_section(
    report: Report,
    history: History,
    names: Sequence[str],
    *,
    title: str,
    stage_names: Sequence[str] = (),
    directions: Mapping[str, bool] | None = None,
    opened: int = 0,
) -> Section | None:
    """Adds the curves of metrics, grouped by the first word of their names and folded.

    Args:
        report (Report): Where it is added.
        history (History): Of the run.
        names (sequence of str): Metrics that are not shown elsewhere.
        title (str): Heading.
        stage_names (sequence of str): Of the run's stages.
        directions (mapping, *optional*): The run's ``metric_directions``.
        opened (int): How many charts are not folded. Defaults to 0.

    Returns:
        The section, None where there is nothing to show.
    """
    found = {name: history.series(name) for name in names if name not in _CLOCKS}
    found = {name: series for name, series in found.items() if series}
    if not found:
        return None
    section = report.section(title)
    curves = {n: s for n, s in found.items() if sum(len(steps) for steps, _ in s.values()) > 1}
    points = page_points(sum(map(len, curves.values())))

    def draw(place: Section, name: str) -> None:
        lines = []
        for stage, (steps, values) in curves[name].items():
            old = _superseded(history.earlier.get(stage, {}), name, stage % 8)
            label = name if old else ""  # the title says it where there is one curve
            if len(curves[name]) > 1:
                label = stage_name(stage_names, stage)
            dots = len(steps) < 40
            lines += [*old, Series(label, steps, values, stage % 8, dots=dots)]
        every = [value for line in lines for value in line.y]
        label = "step" if history.stages else "log call"
        place.curves(lines, title=name, x_label=label, log=spans(every, 20), points=points)

    ordered = sorted(curves, key=lambda name: direction(name, directions) is None)
    lay_out(section, ordered[:opened], draw)
    for group, members in grouped(ordered[opened:]).items():
        lay_out(section.fold(group), members, draw)
    rows = [_metric_row(name, found[name], directions) for name in found]
    section.fold(f"Last and best values ({len(rows)})", opened=not curves).table(
        ["metric", "values", "last", "best", "at step", "course"],
        rows,
        "↑: higher is better, ↓: lower is better; a metric without an arrow has no known direction "
        "and so no best value.",
    )
    return section


def _metric_row(
    name: str,
    series: Mapping[int, tuple[list[int], list[float]]],
    directions: Mapping[str, bool] | None,
) -> list[Any]:
    steps = [step for one, _ in series.values() for step in one]
    values = [value for _, one in series.values() for value in one]
    better = direction(name, directions)
    best, step = best_of(steps, values, better) or (None, None)
    few = values[:: -(-len(values) // 150)]
    course = Cell(markup=spark_line(few)) if len(values) > 1 else ""
    last = number_cell(values[-1])
    return [metric_cell(name, better), len(values), last, best, step, course]


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Sorts names by their first word; what to call each group, those that stand alone last."""
    groups: dict[str, list[str]] = {}
    for name in names:
        for mark in "/_.":
            head, found, _ = name.partition(mark)
            if found and head:
                break
        groups.setdefault(head, []).append(name)
    alone = [name for members in groups.values() if len(members) == 1 for name in members]
    groups = {head: members for head, members in groups.items() if len(members) > 1}
    return {_listed(members): members for members in [*groups.values(), alone] if members}


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name if len(name) <= 40 else f"{name[:38]}…" for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def lay_out(section: Section, names: Sequence[str], draw: Callable[[Section, str], None]) -> None:
    """Draws charts two in a row."""
    for start in range(0, len(names), 2):
        pair = names[start : start + 2]
        for place, name in zip(section.columns(), pair, strict=False):
            draw(place, name)


def stage_name(names: Sequence[str], stage: int) -> str:
    """Returns what to call a stage."""
    return names[stage] if stage < len(names) else f"stage {stage + 1}"


# Numbers


def smoothed(
    name: str, steps: list[int], values: list[float], color: int = 0, dashed: bool = False
) -> list[Series]:
    """Returns the values, and a running mean in front of them where there are enough for one."""
    if len(values) < 40:
        return [Series(name, steps, values, color, dashed=dashed)]
    return [
        Series(f"{name} (each)", steps, values, color, faint=True),
        Series(name, *_running_mean(steps, values), color, dashed=dashed),
    ]


def _running_mean(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """Means over a fortieth to each side; of very many values at fewer places."""
    if len(values) < 40:
        return steps, values
    length = -(-len(values) // _SMOOTH)
    if length > 1:
        runs = range(0, len(values), length)
        steps = [steps[min(start + length // 2, len(steps) - 1)] for start in runs]
        values = [_mean(values[start : start + length]) for start in runs]
    reach = max(1, len(values) // 40)
    return steps, [
        _mean(values[max(0, place - reach) : place + reach + 1]) for place in range(len(values))
    ]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def spans(values: Sequence[float | None], factor: float) -> bool:
    """Returns whether positive values differ by more than a factor: then a log axis shows them."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return bool(known) and min(known) > 0 and max(known) > factor * min(known)
