"""What the report of a run says beside its curves: how it ended, its attempts, what was run."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..utils.files import human_bytes
from ..utils.terminal import duration
from .report import Cell, Report, Section, Tile, format_number
from .report_training import stage_name

if TYPE_CHECKING:
    from .run_view import RunView

__all__ = [
    "STATUS_TONES",
    "attempts_section",
    "clock",
    "file_name",
    "flat_settings",
    "run_facts",
    "run_section",
    "setting_text",
    "status_section",
]

STATUS_TONES = {
    "created": "note",
    "running": "note",
    "completed": "good",
    "failed": "bad",
    "killed": "warning",
    "preempted": "warning",
    "crashed": "bad",
}
"""How each state is shown."""

_STATUS = {
    "created": ("Just begun", "Nothing has been logged yet."),
    "running": ("Still running", "This page shows the run as it stood when the page was written."),
    "failed": ("Failed", "An exception ended this run."),
    "killed": ("Stopped", "Somebody or something stopped this run."),
    "preempted": (
        "Interrupted",
        "A signal stopped this run after its checkpoint was saved: the same command goes on from "
        "there.",
    ),
    "crashed": (
        "Crashed",
        "The process of this run is gone and never said how it ended: killed from outside, out of "
        "memory, or its machine went down. What was logged until then is here.",
    ),
}
_FEW = 40  # settings that are shown at once where none is known to be a default


def clock(time: float | str | None) -> str:
    """Formats a time, seconds since 1970 or ISO, as ``2026-11-21 10:00:00 UTC``."""
    if time is None:
        return "–"
    if not isinstance(time, str):
        stamp = datetime.datetime.fromtimestamp(time, datetime.timezone.utc)
        time = stamp.isoformat(timespec="seconds")
    return time.replace("T", " ").replace("+00:00", " UTC")


def run_facts(run: Mapping[str, Any], status: str | None = None) -> dict[str, str]:
    """Returns the short facts for the head of a report.

    Args:
        run (mapping): ``run.json``.
        status (str, *optional*): Defaults to the one in it.
    """
    attempts, hardware, git = run["attempts"], run.get("hardware") or {}, run.get("git")
    facts = {"id": run["experiment_id"]} if run.get("experiment_id") else {}
    facts["status"] = status or run["status"]
    facts["started"] = clock(run["started"])
    facts["took"] = duration(sum(attempt["seconds"] for attempt in attempts))
    if hardware.get("accelerator") or hardware.get("cores"):
        facts["on"] = hardware.get("accelerator") or f"{hardware['cores']} cores"
    if git:
        facts["commit"] = git["commit"][:10] + (" (changed)" if git["dirty"] else "")
    if len(attempts) > 1:
        facts["attempts"] = str(len(attempts))
    if run.get("tags"):
        facts["tags"] = ", ".join(run["tags"])
    return facts


def status_section(report: Report, view: RunView) -> Section | None:
    """Adds, for a run that did not complete, what became of it and how far it came."""
    if view.status not in _STATUS:
        return None
    attempt = view.record["attempts"][-1]
    title, sentence = _STATUS[view.status]
    section = report.section(title)
    error = attempt.get("error") or ""
    section.text(sentence, tone=STATUS_TONES[view.status])
    steps = [point for point in view.points if point.step is not None]
    day, _, time = clock(_last_sign(view)).partition(" ")
    tiles = [Tile("Last sign of life", time, day)]
    if steps:
        most = view.record.get("max_steps")
        tiles.append(Tile("Last step logged", steps[-1].step, f"of {most:,}" if most else ""))
    checkpoint = _last_checkpoint(view)
    where = "" if checkpoint is None else _place(checkpoint)
    tiles.append(
        Tile(
            "Last checkpoint",
            "none" if checkpoint is None else file_name(checkpoint.get("path")),
            where,
            "warning" if checkpoint is None and view.status in ("crashed", "failed") else "",
        )
    )
    section.tiles(tiles)
    if error:
        section.code(error)
    return section


def _last_sign(view: RunView) -> float | str:
    """When the run last wrote something or beat."""
    signs = [datetime.datetime.fromisoformat(view.record["updated"]).timestamp()]
    signs += [point.time for point in view.points[-1:]]
    signs += [event["time"] for event in view.events[-1:]]
    beat = view.folder / "heartbeat"
    if beat.exists():
        signs.append(beat.stat().st_mtime)
    return max(signs)


def _last_checkpoint(view: RunView) -> dict[str, Any] | None:
    """Returns the event of the newest checkpoint, None where none was saved."""
    saved = [event for event in view.events if event["kind"] == "checkpoint"]
    return saved[-1] if saved else None


def _place(event: Mapping[str, Any]) -> str:
    return "" if event.get("step") is None else f"step {event['step']:,}"


def file_name(path: Any) -> str:
    """Returns the last part of a path of any system."""
    return str(path or "").replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or "–"


def attempts_section(report: Report, view: RunView) -> Section | None:
    """Adds the attempts of a run that has several, and what no longer counts."""
    attempts = view.record["attempts"]
    if len(attempts) == 1:
        return None
    section = report.section("Attempts")
    behind: dict[int, int] = {}
    for point in view.points:
        if point.superseded:
            behind[point.attempt] = behind.get(point.attempt, 0) + 1
    _attempts_table(section, attempts, view.status, view.record.get("stages") or [], behind)
    if behind:
        section.text(
            "A later attempt went back to a checkpoint before the end of an earlier one. What was "
            "logged past it is kept, is drawn dashed behind the curves and counts no more."
        )
    for attempt in attempts[:-1]:
        if attempt.get("error"):
            fold = section.fold(f"What ended attempt {attempt['number']}")
            fold.code(attempt["error"])
    return section


def _attempts_table(
    section: Section,
    attempts: Sequence[Mapping[str, Any]],
    status: str,
    stages: Sequence[str],
    behind: Mapping[int, int],
) -> None:
    timings = list(dict.fromkeys(name for a in attempts for name in a["timings"]))
    columns = ["attempt", "status", "started (UTC)", "took"]
    resumed = any(attempt.get("from_step") is not None for attempt in attempts)
    columns += ["went on from"] * resumed + ["superseded log lines"] * bool(behind)
    rows = []
    for attempt in attempts:
        state = status if attempt is attempts[-1] else attempt["status"]
        row: list[Any] = [
            attempt["number"],
            state,
            clock(attempt["started"]).removesuffix(" UTC"),
            duration(attempt["seconds"]),
        ]
        if resumed:
            row.append(_start(attempt, stages))
        if behind:
            row.append(behind.get(attempt["number"], 0))
        for name in timings:
            row.append(duration(attempt["timings"][name]) if name in attempt["timings"] else "–")
        changed = [
            f"{name}: {setting_text(old)} → {setting_text(new)}"
            for name, (old, new) in attempt["changed"].items()
        ]
        rows.append([*row, "\n".join(changed)])
    section.table([*columns, *timings, "changed settings"], rows)


def _start(attempt: Mapping[str, Any], stages: Sequence[str]) -> str:
    if attempt.get("from_step") is None:
        return "–"
    start = f"step {attempt['from_step']:,}" if attempt["from_step"] else "the start"
    if len(stages) > 1 and attempt["from_stage"] is not None:
        start += f" of {stage_name(stages, attempt['from_stage'])}"
    source = attempt.get("resumed_from")
    return f"{start}, {file_name(source)}" if source else start


# What ran


def run_section(report: Report, run: Mapping[str, Any]) -> Section:
    """Adds the settings with their sources, data, machine and versions, from ``run.json``."""
    section = report.section("Run")
    about = {key: run[key] for key in ("description", "notes") if run.get(key)}
    if about:
        section.key_values(about)
    _settings(section, run.get("configuration") or {})
    for name, title in (("data", "Data"), ("model_info", "Model")):
        entries = {key: setting_text(value) for key, value, _ in flat_settings(run.get(name))}
        if entries:
            section.fold(title).key_values(entries)

    hardware, git = run.get("hardware") or {}, run.get("git")
    machine = section.fold("Command, machine and versions")
    facts = {
        "command": " ".join(run.get("command") or []),
        "folder": run.get("folder"),
        "host": hardware.get("host"),
        "system": hardware.get("system"),
        "processor": hardware.get("processor"),
        "cores": hardware.get("cores"),
        "accelerator": hardware.get("accelerator"),
    }
    if hardware.get("memory_bytes"):
        facts["memory"] = human_bytes(hardware["memory_bytes"])
    facts["commit"] = "none" if git is None else git["commit"] + (" + changes" * git["dirty"])
    facts |= {"branch": (git or {}).get("branch"), "wandb run": run.get("wandb_run_id")}
    facts |= run.get("seeds") or {}
    machine.key_values({name: value for name, value in facts.items() if value not in (None, "")})
    if run.get("versions"):
        machine.key_values(run["versions"])
    if len(run["attempts"]) == 1:
        _attempts_table(section.fold("Timings"), run["attempts"], run["status"], [], {})
    return section


def _settings(section: Section, configuration: Mapping[str, Any]) -> None:
    settings = list(flat_settings(configuration))
    if not settings:
        section.text("No settings were recorded.")
        return
    sources = any(source is not None for *_, source in settings)
    parts = any("." in path for path, *_ in settings)
    columns = ["section"] * parts + ["setting", "value"] + ["source"] * sources
    rows, changed = [], []
    for path, value, source in settings:
        default = source == "default"
        part, _, name = path.partition(".") if "." in path else ("", "", path)
        row: list[Any] = [part] * parts
        row += [Cell(name, strong=sources and not default), setting_text(value)]
        rows.append(row + [source or "–"] * sources)
        if not default:
            changed.append(rows[-1])
    if sources and changed and len(changed) < len(rows):
        section.table(columns, changed, "Settings that differ from their defaults.")
    everything = section.fold(f"All {len(rows)} settings", opened=not sources and len(rows) <= _FEW)
    everything.table(columns, rows)


def flat_settings(configuration: Any, path: str = "") -> Iterator[tuple[str, Any, str | None]]:
    """Goes through a configuration of any depth.

    Args:
        configuration (mapping or None): Leaves are values, or ``{"value", "source"}``.
        path (str): Of it in a larger one.

    Yields:
        ``"section.name"``, value and source (None where there is none).
    """
    if isinstance(configuration, Mapping) and configuration.keys() == {"value", "source"}:
        yield path, configuration["value"], configuration["source"]
    elif isinstance(configuration, Mapping) and (configuration or not path):
        for key, value in configuration.items():
            yield from flat_settings(value, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, configuration, None


def setting_text(value: Any) -> str:
    """Formats a setting for people."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else format_number(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting_text, value)) or "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {setting_text(item)}" for key, item in value.items()) or "–"
    return str(value)
