"""The report of runs: one page from what is in their folders, for one run or several.

Every recipe writes one at its end, and ``hftune runs report`` the same one at any later time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import ConfigurationError
from ..utils.files import read_json
from .report import Report, Section
from .report_compare import (
    compare_curves,
    compare_numbers,
    compare_samples,
    compare_settings,
    compare_status,
    run_labels,
    short_name,
)
from .report_history import Entries, History, direction
from .report_lineage import events_section, lineage_section, samples_section
from .report_run import (
    attempts_section,
    file_name,
    flat_settings,
    run_facts,
    run_section,
    status_section,
)
from .report_sections import TaskReport, TrainingHints, load_task_report
from .report_training import add_training, metrics_section, stage_name, training_names

if TYPE_CHECKING:
    from .run_view import RunView

__all__ = ["runs_report", "write_runs_report"]

_OPENED = 6  # charts that are not folded where there is no training section


def write_runs_report(
    views: Sequence[RunView],
    path: str | os.PathLike[str],
    *,
    models: Iterable[Mapping[str, Any]] = (),
    relatives: Iterable[Mapping[str, Any]] = (),
    log_history: Entries | None = None,
) -> Path:
    """Writes the page of one run or of several side by side, atomically.

    Args:
        views (sequence of RunView): The runs.
        path (path): The page.
        models (iterable of mappings): Registered models, for the lineage: each with ``model_id``,
            ``name``, ``version``, ``experiment_id``, and ``aliases`` and ``parent_model`` where
            there are any.
        relatives (iterable of mappings): Records of the runs' parents and children, for the
            lineage: each with ``experiment_id``, ``name``, ``status``, ``parent_run``.
        log_history (sequence of mappings, *optional*): Of the trainer's state, for runs that
            logged nothing; defaults to that of the newest checkpoint.

    Returns:
        Where the page is.

    Raises:
        ConfigurationError: If there is no run.

    Example:
        >>> write_runs_report([RunView.from_folder("runs/aurora")], "runs/aurora/report.html")
    """
    report = runs_report(views, models=models, relatives=relatives, log_history=log_history)
    report.write(path)
    return Path(path)


def runs_report(
    views: Sequence[RunView],
    *,
    models: Iterable[Mapping[str, Any]] = (),
    relatives: Iterable[Mapping[str, Any]] = (),
    log_history: Entries | None = None,
) -> Report:
    """Returns what :func:`write_runs_report` writes."""
    if not views:
        raise ConfigurationError("found no run for the report, expected one id or more")
    histories = [History.of(view, log_history) for view in views]
    tasks = [load_task_report(view.folder) for view in views]
    if len(views) == 1:
        return _one(views[0], histories[0], tasks[0], list(models), list(relatives))
    return _several(views, histories, tasks)


def _one(
    view: RunView,
    history: History,
    task: TaskReport,
    models: Sequence[Mapping[str, Any]],
    relatives: Sequence[Mapping[str, Any]],
) -> Report:
    run = view.record
    report = Report(_title(view, task), task.subtitle, run_facts(run, view.status))
    status_section(report, view)
    _task_sections(report, view, task)
    if not task.sections:
        _results(report, run)
    shown = _training(report, view, history, task.training)
    metrics_section(
        report,
        history,
        [name for name in history.names() if name not in shown],
        title="Other metrics" if shown else "Metrics",
        stage_names=run.get("stages") or [],
        directions=run.get("metric_directions"),
        opened=0 if shown else _OPENED,
    )
    samples_section(report, view)
    attempts_section(report, view)
    lineage_section(report, view, models, relatives)
    events_section(report, view)
    run_section(report, run)
    return report


def _several(
    views: Sequence[RunView], histories: Sequence[History], tasks: Sequence[TaskReport]
) -> Report:
    report = Report(f"{len(views)} runs", ", ".join(map(short_name, views)))
    compare_status(report, views)
    compare_numbers(report, views, histories)
    compare_curves(report, views, histories)
    compare_settings(report, views)
    compare_samples(report, views)
    if any(task.sections for task in tasks):
        section = report.section("Of the task")
        for label, view, task in zip(run_labels(views), views, tasks, strict=True):
            if task.sections:
                inner = Report("")
                _task_sections(inner, view, task)
                fold = section.fold(label)
                for one in inner.sections:
                    fold.fold(one.title, opened=True).blocks.extend(one.blocks)
    return report


def _title(view: RunView, task: TaskReport) -> str:
    name = view.record.get("name") or ""
    if task.title and name and name.casefold() not in task.title.casefold():
        return f"{task.title}: {name}"
    return task.title or name or view.record.get("task") or file_name(view.folder)


def _task_sections(report: Report, view: RunView, task: TaskReport) -> None:
    for section in task.sections:
        report.add(section)
    newest = len(view.record["attempts"])
    if task.sections and 0 < task.attempt < newest:
        note = Section("")
        note.text(
            f"Of attempt {task.attempt}; attempt {newest} has not come this far.", tone="warning"
        )
        task.sections[0].blocks[:0] = note.blocks


def _results(report: Report, run: Mapping[str, Any]) -> None:
    """The numbers that were given at the end, where no task shows them."""
    found: dict[str, dict[str, Any]] = {}
    parts = {"result": "results", "final": "final_metrics", "best": "best_metrics"}
    for column, key in parts.items():
        for name, value, _ in flat_settings(run.get(key)):
            found.setdefault(name, {})[column] = value
    if not found:
        return
    columns = [column for column in parts if any(column in row for row in found.values())]
    report.section("Results").table(
        ["", *columns], [[name, *map(row.get, columns)] for name, row in found.items()]
    )


def _training(
    report: Report, view: RunView, history: History, hints: TrainingHints | None
) -> set[str]:
    """Adds the training's curves where there are any; returns which metrics it shows."""
    run, names = view.record, history.names()
    behind = {n for old in history.earlier.values() for a in old.values() for e in a for n in e}
    if "loss" not in {*names, *behind}:
        return set()
    directions = run.get("metric_directions") or {}
    metric = _main_metric(run, names) if hints is None else hints.metric
    label = metric.removeprefix("eval_").replace("_", " ") if hints is None else hints.label
    if hints is None and metric == "eval_loss":
        label = "validation loss"
    section = report.section("Training")
    gradients = view.folder / "gradient_health.json"
    stages = list(history.stages)
    parts = [section]
    if len(stages) > 1:
        parts = section.panels([stage_name(run.get("stages") or [], stage) for stage in stages])
    for part, stage in zip(parts, stages, strict=True):
        add_training(
            part,
            history.stages[stage],
            # Of the trainer's last stage, which wrote over those before.
            read_json(gradients) if gradients.exists() and stage == stages[-1] else None,
            metric=metric,
            metric_label=label,
            reference=None if hints is None else hints.reference,
            greater_is_better=direction(metric, directions),
            earlier=history.earlier.get(stage),
        )
    return training_names(names, metric)


def _main_metric(run: Mapping[str, Any], names: Sequence[str]) -> str:
    """What chose the best model: as set, else the one with a declared direction, else the loss."""
    settings = {path.rsplit(".", 1)[-1]: v for path, v, _ in flat_settings(run["configuration"])}
    wanted = settings.get("metric_for_best_model")
    declared = list(run.get("metric_directions") or {})
    for name in [wanted, f"eval_{wanted}", *declared]:
        if name in names:
            return name
    return "eval_loss"
