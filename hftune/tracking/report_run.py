"""The sections that the report of every run has: how it learned, and what exactly was run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..utils.files import human_bytes
from ..utils.terminal import duration
from .report import Cell, Report, Section, Series, Tile

__all__ = ["run_facts", "run_section", "training_section"]

_MODULES = 8  # curves that a chart can tell apart


def training_section(
    report: Report,
    log_history: Sequence[Mapping[str, Any]],
    gradients: Mapping[str, Any] | None = None,
    *,
    metric: str = "eval_loss",
    metric_label: str = "validation loss",
    reference: tuple[str, float] | None = None,
    greater_is_better: bool = False,
) -> Section:
    """Adds the curves of a training: loss, validation, gradients, learning rate.

    Args:
        report (Report): Where it is added.
        log_history (sequence of mappings): Of the trainer's state.
        gradients (mapping, *optional*): Content of ``gradient_health.json``.
        metric (str): The metric in ``log_history`` that chose the best model.
        metric_label (str): What it is called.
        reference (str and float, *optional*): A baseline's name and its value of the metric.
        greater_is_better (bool): Direction of the metric. Defaults to False.
    """
    section = report.section("Training")
    _training_tiles(section, log_history, gradients, metric, metric_label, greater_is_better)

    left, right = section.columns()
    steps, losses = _series(log_history, "loss")
    curves = _smoothed("training", steps, losses)
    if metric != "eval_loss":
        validation = _series(log_history, "eval_loss")
        if validation[0]:
            curves.append(Series("validation", *validation, color=1, dots=True))
    left.curves(curves, title="Loss", x_label="step", log=_spans(losses, 3))

    steps, values = _series(log_history, metric)
    curves = [Series(metric_label, steps, values, color=1, dots=True)] if steps else []
    if steps and reference is not None:
        curves.append(
            Series(reference[0], [steps[0], steps[-1]], [reference[1]] * 2, 7, False, True)
        )
    if curves:
        right.curves(curves, title=metric_label[:1].upper() + metric_label[1:], x_label="step")

    left, right = section.columns()
    steps, norms = _series(log_history, "grad_norm")
    curves = [Series("mean", steps, norms, color=0)]
    if gradients and gradients["steps"]:
        curves = [
            Series("mean", gradients["steps"], gradients["norm"], color=0),
            Series("largest", gradients["steps"], gradients["norm_max"], color=3),
        ]
    if curves[0].x:
        left.curves(
            curves,
            title="Gradient norm between two log lines",
            x_label="step",
            log=_spans(curves[-1].y, 5),
        )
    steps, rates = _series(log_history, "learning_rate")
    if steps:
        right.curves([Series("learning rate", steps, rates)], title="Learning rate", x_label="step")

    _part_curves(section, log_history)
    if gradients:
        _gradient_parts(section, gradients)
    return section


def _training_tiles(
    section: Section,
    log_history: Sequence[Mapping[str, Any]],
    gradients: Mapping[str, Any] | None,
    metric: str,
    metric_label: str,
    greater_is_better: bool,
) -> None:
    steps, values = _series(log_history, metric)
    tiles = []
    last = max((entry.get("step", 0) for entry in log_history), default=0)
    tiles.append(Tile("Steps", last))
    finite = [(v, s) for v, s in zip(values, steps, strict=True) if math.isfinite(v)]
    if finite:
        best, step = max(finite) if greater_is_better else min(finite)
        tiles.append(Tile(f"Best {metric_label}", best, f"at step {step:,}"))
    for entry in log_history:
        if "train_runtime" in entry:
            rate = entry.get("train_steps_per_second")
            note = f"{rate:.3g} steps a second" if rate else ""
            tiles.append(Tile("Time", duration(entry["train_runtime"]), note))
            break
    if gradients:
        counts = gradients["counts"]
        found = {name: count for name, count in counts.items() if count}
        bad = found.get("non_finite", 0) or found.get("skipped", 0)
        tiles.append(
            Tile(
                "Unhealthy gradients",
                sum(count for name, count in found.items() if name != "skipped"),
                ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in found.items()),
                "bad" if bad else "warning" if found else "good",
            )
        )
    section.tiles(tiles)


def _part_curves(section: Section, log_history: Sequence[Mapping[str, Any]]) -> None:
    names = {key for entry in log_history if "loss" in entry for key in entry}
    parts = sorted(name for name in names if name.startswith("loss_"))
    if len(parts) < 2:
        return
    curves = [Series(name[len("loss_") :], *_series(log_history, name)) for name in parts]
    fold = section.fold("Loss by part")
    for start in range(0, len(curves), _MODULES):
        chosen = curves[start : start + _MODULES]
        every = [value for curve in chosen for value in curve.y]
        fold.curves(chosen, x_label="step", log=_spans(every, 3))


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
        section.fold(title).curves(curves, x_label="step", log=_spans(every, 3))
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


def run_facts(run: Mapping[str, Any]) -> dict[str, str]:
    """Returns the short facts for the head of a report: date, machine, commit, attempts."""
    hardware, git = run["hardware"], run["git"]
    facts = {"started": run["started"].replace("T", " ").replace("+00:00", " UTC")}
    seconds = sum(attempt["seconds"] for attempt in run["attempts"])
    facts["took"] = duration(seconds)
    facts["on"] = hardware.get("accelerator") or f"{hardware['cores']} cores"
    if git:
        facts["commit"] = git["commit"][:10] + (" (changed)" if git["dirty"] else "")
    if len(run["attempts"]) > 1:
        facts["attempts"] = str(len(run["attempts"]))
    return facts


def run_section(report: Report, run: Mapping[str, Any]) -> Section:
    """Adds the settings with their sources, the machine and the attempts, from ``run.json``."""
    section = report.section("Run")
    rows, changed = [], []
    for part, settings in run["configuration"].items():
        for name, entry in settings.items():
            value = _setting_text(entry["value"])
            default = entry["source"] == "default"
            rows.append([part, Cell(name, strong=not default), value, entry["source"]])
            if not default:
                changed.append([part, name, value, entry["source"]])
    columns = ["section", "setting", "value", "source"]
    if changed:
        section.table(columns, changed, "Settings that differ from their defaults.")
    section.fold(f"All {len(rows)} settings").table(columns, rows)

    hardware, git = run["hardware"], run["git"]
    machine = section.fold("Command, machine and versions")
    machine.key_values(
        {
            "command": " ".join(run["command"]),
            "folder": run["folder"],
            "host": hardware["host"],
            "system": hardware["system"],
            "processor": f"{hardware['processor']}, {hardware['cores']} cores",
            "memory": human_bytes(hardware["memory_bytes"]),
            "commit": "none" if git is None else git["commit"] + (" + changes" * git["dirty"]),
            **{f"{name}": value for name, value in run["seeds"].items() if value is not None},
        }
    )
    machine.key_values(run["versions"])

    stages = list(dict.fromkeys(name for a in run["attempts"] for name in a["timings"]))
    attempts = [
        [
            attempt["number"],
            attempt["status"],
            attempt["started"].replace("T", " ").replace("+00:00", ""),
            *(
                duration(attempt["timings"][name]) if name in attempt["timings"] else "–"
                for name in stages
            ),
            "; ".join(
                f"{name}: {_setting_text(old)} → {_setting_text(new)}"
                for name, (old, new) in attempt["changed"].items()
            ),
        ]
        for attempt in run["attempts"]
    ]
    section.fold("Attempts and timings").table(
        ["attempt", "status", "started (UTC)", *stages, "changed settings"], attempts
    )
    return section


def _setting_text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "–"
    return str(value)


def _series(log_history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a key; of a step that was logged twice (after a resume) the last."""
    values = {
        entry["step"]: math.nan if entry[key] is None else float(entry[key])
        for entry in log_history
        if key in entry and "step" in entry
    }
    return list(values), list(values.values())


def _smoothed(name: str, steps: list[int], values: list[float]) -> list[Series]:
    """The values, and a running mean in front of them where there are enough for one."""
    if len(values) < 40:
        return [Series(name, steps, values, color=0)]
    reach, smooth = max(1, len(values) // 40), []
    for place in range(len(values)):
        near = values[max(0, place - reach) : place + reach + 1]
        known = [value for value in near if math.isfinite(value)]
        smooth.append(sum(known) / len(known) if known else math.nan)
    return [
        Series(f"{name} (each)", steps, values, color=0, faint=True),
        Series(name, steps, smooth, color=0),
    ]


def _spans(values: Sequence[float | None], factor: float) -> bool:
    """Whether positive values differ by more than a factor: then a log axis shows them."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return bool(known) and min(known) > 0 and max(known) > factor * min(known)
