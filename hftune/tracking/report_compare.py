"""Several runs in one report: their curves over each other, their numbers and what differs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..utils.terminal import duration
from .report import Cell, Report, Section, Series
from .report_history import History, best_of, direction, metric_cell, number_cell
from .report_lineage import samples_by_step
from .report_run import STATUS_TONES, clock, file_name, flat_settings, setting_text
from .report_training import grouped, lay_out, page_points, smoothed, spans, stage_name

if TYPE_CHECKING:
    from .run_view import RunView

__all__ = [
    "compare_curves",
    "compare_numbers",
    "compare_samples",
    "compare_settings",
    "compare_status",
    "run_labels",
    "short_name",
]

_OPENED = 6  # charts that are not folded
_SHADES = {"bad": 0.55, "warning": 0.3}
_NOISY = ("loss", "grad_norm")


def run_labels(views: Sequence[RunView]) -> list[str]:
    """Returns what to call each run: name and id, short enough for a legend."""
    labels = []
    for view in views:
        run_id = view.record.get("experiment_id")
        labels.append(f"{short_name(view)} · {run_id}" if run_id else short_name(view))
    return labels


def short_name(view: RunView) -> str:
    """Returns a run's name on one line, at most 40 characters of it."""
    name = " ".join(str(view.record.get("name") or file_name(view.folder)).split())
    return name if len(name) <= 40 else f"{name[:38]}…"


def _headings(labels: Sequence[str]) -> list[str]:
    return [label.replace(" · ", "\n") for label in labels]


def _style(number: int) -> tuple[int, bool]:
    """Colour of a run and whether it is dashed, so that 16 can be told apart."""
    return number % 8, number // 8 % 2 == 1


def compare_status(report: Report, views: Sequence[RunView]) -> Section:
    """Adds the runs, each with its colour and its state."""
    section = report.section("Runs")
    columns = ["", "name", "id", "status", "started (UTC)", "took", "last step", "attempts"]
    more: dict[str, list[str]] = {"task": [], "on": [], "parent run": []}
    for view in views:
        run, hardware = view.record, view.record.get("hardware") or {}
        more["task"].append(run.get("task") or run.get("model_type") or "–")
        more["on"].append(hardware.get("accelerator") or hardware.get("host") or "–")
        more["parent run"].append(run.get("parent_run") or "–")
    more = {column: values for column, values in more.items() if len(set(values)) > 1}
    rows = []
    for number, view in enumerate(views):
        run, (color, dashed) = view.record, _style(number)
        steps = [point.step for point in view.points if point.step is not None]
        rows.append(
            [
                Cell(markup=_swatch(color, dashed)),
                Cell(run.get("name") or file_name(view.folder), strong=True),
                run.get("experiment_id") or "–",
                Cell(view.status, shade=_SHADES.get(STATUS_TONES[view.status])),
                clock(run["started"]).removesuffix(" UTC"),
                duration(sum(attempt["seconds"] for attempt in run["attempts"])),
                steps[-1] if steps else None,
                len(run["attempts"]),
                *(values[number] for values in more.values()),
            ]
        )
    section.table([*columns, *more], rows)
    for view, label in zip(views, run_labels(views), strict=True):
        error = view.record["attempts"][-1].get("error")
        if view.status != "completed":
            fold = section.fold(f"{label}: {view.status}")
            fold.text(f"Last written: {clock(view.record['updated'])}.")
            if error:
                fold.code(error)
    return section


def _swatch(color: int, dashed: bool) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        '<svg class="spark" width="26" height="12" viewBox="0 0 26 12" aria-hidden="true">'
        f'<path d="M1 6H25" stroke="var(--c{color})" stroke-width="3"{dashes}/></svg>'
    )


# Numbers


def compare_numbers(
    report: Report, views: Sequence[RunView], histories: Sequence[History]
) -> Section | None:
    """Adds the last and the best value of every metric, run beside run."""
    directions = _declared(views)
    last: dict[str, list[float | None]] = {}
    best: dict[str, list[float | None]] = {}
    for number, (view, history) in enumerate(zip(views, histories, strict=True)):
        run = view.record
        final, top = (run.get(f"{which}_metrics") or {} for which in ("final", "best"))
        logged = [n for n in history.names() if n not in _spelled(final, "final")]
        logged = [n for n in logged if n not in _spelled(top, "best")]
        values = {name: history.last(name) for name in logged}
        values |= {n: v for n, v, _ in flat_settings(run.get("results")) if _is_number(v)}
        values |= {name: value for name, value in final.items() if _is_number(value)}
        for name, value in values.items():
            last.setdefault(name, [None] * len(views))[number] = value
        for name in logged:
            better = direction(name, directions)
            series = history.series(name)
            steps = [step for one, _ in series.values() for step in one]
            found = best_of(steps, [v for _, one in series.values() for v in one], better)
            if found is not None:
                best.setdefault(name, [None] * len(views))[number] = found[0]
        for name, value in top.items():
            if _is_number(value):
                best.setdefault(name, [None] * len(views))[number] = value
    last = {name: values for name, values in last.items() if name not in ("epoch", "step")}
    if not last and not best:
        return None
    section = report.section("Numbers")
    headings = ["metric", *_headings(run_labels(views))]
    parts = zip(section.panels(["Last values", "Best values"]), (last, best), strict=True)
    for part, found in parts:
        known = {name: direction(name, directions) for name in found}
        first = [name for name in found if known[name] is not None]
        rest = [name for name in found if known[name] is None]
        if first:
            part.table(
                headings,
                [_numbers_row(name, found[name], known[name]) for name in first],
                "Blue: the best of these runs. ↑: higher is better, ↓: lower is better.",
            )
        if rest:
            fold = part.fold(
                f"Metrics whose better direction is not known ({len(rest)})", opened=not first
            )
            fold.table(headings, [_numbers_row(name, found[name], None) for name in rest])
        if not found:
            part.text("No metric was logged whose better direction is known.")
    return section


def _spelled(metrics: Mapping[str, Any], which: str) -> set[str]:
    """The names under which ``end_experiment`` logs its final and best metrics."""
    return {f"{which}_{name}" for name in metrics}


def _numbers_row(name: str, values: Sequence[float | None], better: bool | None) -> list[Any]:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    best = None
    if better is not None and len(set(finite)) > 1:
        best = max(finite) if better else min(finite)
    return [
        metric_cell(name, better),
        *(
            Cell(value, shade=-0.4, note="best of these runs", strong=True)
            if value is not None and value == best
            else number_cell(value)
            for value in values
        ),
    ]


def _declared(views: Sequence[RunView]) -> dict[str, bool]:
    """The runs' own directions; what they do not agree on is not known."""
    declared: dict[str, bool] = {}
    for view in views:
        declared |= view.record.get("metric_directions") or {}
    return declared


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# Curves


def compare_curves(
    report: Report, views: Sequence[RunView], histories: Sequence[History]
) -> Section | None:
    """Adds the metrics that two runs or more have logged, one colour a run."""
    series = [
        {name: history.series(name) for name in history.names() if name != "epoch"}
        for history in histories
    ]
    names = list(dict.fromkeys(name for logged in series for name in logged))
    several = {
        name: sum(any(len(s) > 1 for s, _ in logged.get(name, {}).values()) for logged in series)
        for name in names
    }
    common = [name for name in names if several[name] > 1]
    single = [name for name in names if several[name] == 1]
    if not common and not single:
        return None
    section = report.section("Curves")
    labels, directions = run_labels(views), _declared(views)
    points = page_points(sum(several.values()))

    def draw(place: Section, name: str) -> None:
        lines: list[Series] = []
        for number, logged in enumerate(series):
            color, dashed = _style(number)
            for stage, (steps, values) in logged.get(name, {}).items():
                label = labels[number]
                if len(logged[name]) > 1:
                    label += f", {stage_name(views[number].record.get('stages') or [], stage)}"
                if name in _NOISY or name.startswith("loss_"):
                    lines += smoothed(label, steps, values, color, dashed)
                else:
                    dots = len(steps) < 40
                    lines.append(Series(label, steps, values, color, dashed=dashed, dots=dots))
        every = [value for line in lines for value in line.y]
        place.curves(lines, title=name, x_label="step", log=spans(every, 20), points=points)

    common.sort(key=lambda name: direction(name, directions) is None)
    lay_out(section, common[:_OPENED], draw)
    for group, members in grouped(common[_OPENED:]).items():
        lay_out(section.fold(group), members, draw)
    if single:
        lay_out(section.fold(f"Logged by one run alone ({len(single)})"), single, draw)
    return section


# What differs


def compare_settings(report: Report, views: Sequence[RunView]) -> Section:
    """Adds the settings that differ, all of them folded, and the same for data and code."""
    section = report.section("What differs")
    settings, surroundings = [], []
    for view in views:
        run = view.record
        settings.append(_texts(run["configuration"]))
        parts = {
            "data": run.get("data"),
            "model": run.get("model_info"),
            "commit": run.get("git"),
            "version": run.get("versions"),
            "machine": run.get("hardware"),
            "seeds": run.get("seeds"),
        }
        surroundings.append(_texts({name: part for name, part in parts.items() if part}))
    headings = _headings(run_labels(views))
    _differences(section, "settings", settings, headings)
    _differences(section, "data, code, versions and machine", surroundings, headings)
    return section


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    return {path: setting_text(value) for path, value, _ in flat_settings(settings)}


def _differences(
    section: Section, what: str, runs: Sequence[Mapping[str, str]], headings: Sequence[str]
) -> None:
    paths = list(dict.fromkeys(path for run in runs for path in run))
    rows = {path: [run.get(path, "(not there)") for run in runs] for path in paths}
    differing = [path for path in paths if len(set(rows[path])) > 1]
    if differing:
        table = [[Cell(path, strong=True), *rows[path]] for path in differing]
        section.table(["", *headings], table, f"{what[:1].upper() + what[1:]} that differ.")
    elif paths:
        section.text(f"No difference in {what}.")
    if paths:
        everything = section.fold(f"All {len(paths)}: {what}")
        everything.table(["", *headings], [[path, *rows[path]] for path in paths])


# Samples


def compare_samples(report: Report, views: Sequence[RunView]) -> Section | None:
    """Adds the newest predictions for the inputs that two runs or more have."""
    inputs: dict[str, dict[int, Mapping[str, Any]]] = {}
    for number, view in enumerate(views):
        for sample in next(iter(samples_by_step(view)), []):
            key = json.dumps(sample.get("input"), sort_keys=True)
            inputs.setdefault(key, {})[number] = sample
    shared = [found for found in inputs.values() if len(found) > 1][:50]
    if not shared:
        return None
    rows = []
    for found in shared:
        one = next(iter(found.values()))
        row = [setting_text(one.get("input")), setting_text(one.get("reference"))]
        for number in range(len(views)):
            row.append(setting_text(found.get(number, {}).get("prediction")))
        rows.append(row)
    section = report.section("Sample predictions")
    return section.table(["input", "reference", *_headings(run_labels(views))], rows)
