"""What a run came from, what came out of it, and what it did and said on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .index import is_superseded
from .report import Cell, Report, Section, Tile
from .report_run import clock, file_name, setting_text
from .report_training import stage_name

if TYPE_CHECKING:
    from .run_view import RunView

__all__ = ["events_section", "lineage_section", "samples_by_step", "samples_section"]

_CHECKPOINTS, _CHILDREN, _SAMPLES, _EVENTS = 4, 6, 50, 500
_PLACE = ("time", "attempt", "stage", "step", "kind")
_SAMPLE_ORDER = ("input", "reference", "prediction")


def lineage_section(
    report: Report,
    view: RunView,
    models: Iterable[Mapping[str, Any]] = (),
    relatives: Iterable[Mapping[str, Any]] = (),
) -> Section | None:
    """Adds data, parents, stages, checkpoints, registered models and children, left to right.

    Args:
        report (Report): Where it is added.
        view (RunView): The run.
        models (iterable of mappings): Registered models, of this run and others.
        relatives (iterable of mappings): Other runs, as ``run.json`` has them.

    Returns:
        The section, None where nothing but the run is known.
    """
    run, runs = view.record, {other.get("experiment_id"): other for other in relatives}
    run_id = run.get("experiment_id")
    own = [model for model in models if run_id and model.get("experiment_id") == run_id]
    if not own and "model_id" in (run.get("model_info") or {}):
        own = [run["model_info"]]
    inputs = []
    fingerprint = (run.get("data") or {}).get("fingerprint")
    if fingerprint:
        inputs.append(Tile("data", str(fingerprint)[:12], "fingerprint"))
    if run.get("parent_run"):
        inputs.append(_run_tile("parent run", run["parent_run"], runs.get(run["parent_run"], {})))
    for parent in dict.fromkeys(model.get("parent_model") for model in own):
        if parent:
            inputs.append(Tile("parent model", parent))
    stages = [Tile(f"stage {n}", name) for n, name in enumerate(run.get("stages") or [], 1)]
    children = [
        _run_tile("child run", other["experiment_id"], other)
        for other in runs.values()
        if run_id and other.get("parent_run") == run_id
    ]
    columns = [
        inputs,
        [Tile("this run", run.get("name") or file_name(view.folder), run_id or "", "here")],
        stages,
        _checkpoints(view),
        [_model_tile(model) for model in own],
        _some(children, _CHILDREN),
    ]
    if sum(map(bool, columns)) == 1:
        return None
    return report.section("Lineage").flow(columns)


def _run_tile(label: str, run_id: str, run: Mapping[str, Any]) -> Tile:
    status = run.get("status", "")
    note = ", ".join(filter(None, [run_id if run.get("name") else "", status]))
    return Tile(label, run.get("name") or run_id, note)


def _model_tile(model: Mapping[str, Any]) -> Tile:
    aliases = ", ".join(model.get("aliases") or [])
    note = model["model_id"] + (f", {aliases}" if aliases else "")
    return Tile("registered model", f"{model['name']} v{model['version']}", note, "good")


def _checkpoints(view: RunView) -> list[Tile]:
    """The newest ones, of those that no later attempt went back behind."""
    attempts, stages = view.record["attempts"], view.record.get("stages") or []
    saved: dict[Any, Mapping[str, Any]] = {}
    for event in view.events:
        if event["kind"] == "checkpoint" and not is_superseded(attempts, event):
            saved[event.get("path")] = event
    tiles = []
    for path, event in reversed(saved.items()):
        step = event.get("step")
        note = [] if step is None else [f"step {step:,}"]
        note += [stage_name(stages, event["stage"])] if len(stages) > 1 else []
        note += [f"attempt {event['attempt']}"] if len(attempts) > 1 else []
        tiles.append(Tile("checkpoint", file_name(path), ", ".join(note)))
    return _some(tiles, _CHECKPOINTS)


def _some(tiles: list[Tile], most: int) -> list[Tile]:
    if len(tiles) <= most + 1:
        return tiles
    return [*tiles[:most], Tile("and", f"{len(tiles) - most} more")]


# Samples


def samples_by_step(view: RunView) -> list[list[Mapping[str, Any]]]:
    """Returns the samples that count, one list a step, the newest first."""
    steps: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for event in view.events:
        if event["kind"] == "sample" and not is_superseded(view.record["attempts"], event):
            steps.setdefault((event["stage"], event.get("step")), []).append(event)
    return list(reversed(steps.values()))


def samples_section(report: Report, view: RunView) -> Section | None:
    """Adds the sample predictions: the newest, and those of earlier steps folded."""
    steps = samples_by_step(view)
    if not steps:
        return None
    section, shown = report.section("Sample predictions"), 0
    for samples in steps:
        step = samples[0].get("step")
        title = "Without a step" if step is None else f"Step {step:,}"
        part = section if not shown else section.fold(f"{title}: {len(samples)} samples")
        _samples_table(part, samples[:_SAMPLES], f"{title}." if not shown else "")
        if len(samples) > _SAMPLES:
            part.text(f"{len(samples) - _SAMPLES} more are in events.jsonl.")
        shown += min(len(samples), _SAMPLES)
        if shown >= 4 * _SAMPLES:
            break
    if samples is not steps[-1]:
        section.text("Samples of earlier steps are in events.jsonl.")
    return section


def _samples_table(section: Section, samples: Sequence[Mapping[str, Any]], caption: str) -> None:
    names = dict.fromkeys(name for sample in samples for name in sample if name not in _PLACE)
    columns = [name for name in _SAMPLE_ORDER if name in names]
    columns += [name for name in names if name not in _SAMPLE_ORDER]
    rows = [[_sample_value(sample.get(name, "")) for name in columns] for sample in samples]
    section.table(columns, rows, caption)


def _sample_value(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else setting_text(value)


# Events


def events_section(report: Report, view: RunView) -> Section | None:
    """Adds the warnings, each once, and everything that happened, folded."""
    events = [event for event in view.events if event["kind"] != "sample"]
    if not events:
        return None
    section = report.section("Events")
    warnings: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event["kind"] == "warning":
            warnings.setdefault(setting_text(event.get("message")), []).append(event)
    if warnings:
        section.table(
            ["warning", "times", "first", "step"],
            [
                [Cell(message), len(found), clock(found[0]["time"]), found[0].get("step")]
                for message, found in warnings.items()
            ],
        )
    else:
        section.text("No warnings.")
    happened = [event for event in events if event["kind"] != "warning"]
    if happened:
        kinds: dict[str, int] = {}
        for event in happened:
            kinds[event["kind"]] = kinds.get(event["kind"], 0) + 1
        listed = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
        fold = section.fold(f"What happened: {listed}")
        rows = [
            [
                clock(event["time"]),
                event["attempt"],
                event.get("step"),
                event["kind"],
                ", ".join(
                    f"{name}: {setting_text(value)}"
                    for name, value in event.items()
                    if name not in _PLACE
                ),
            ]
            for event in happened[-_EVENTS:]
        ]
        fold.table(["time", "attempt", "step", "what", "more"], rows)
    return section
