"""``hftune runs show`` and ``compare``: what is known of runs."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..utils.errors import ConfigurationError
from ..utils.files import human_bytes
from ..utils.terminal import duration
from .runs_list import shortened, status_text, value_text
from .tables import Column, age, clock, console, one_line, print_json, table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from ..tracking.run_view import RunView
    from ..tracking.store import Store

__all__ = ["compare", "show"]

_ROWS = 25  # of a table, without --all
_EVENTS = 5  # checkpoints and warnings, without --all
_CRASHED = "Its process is gone and never said how it ended: killed, or its machine went down."


def show(store: Store, arguments: argparse.Namespace) -> int:
    """Prints everything of a run but its curves."""
    from ..tracking.query import experiment_json, find_run, relatives
    from ..tracking.run_view import RunView

    run = find_run(store, arguments.id)
    view = RunView.from_store(store, run.id)
    known = experiment_json(view, **relatives(store, run.id))
    if arguments.json:
        print_json(known)
        return 0
    out = console()
    _head(out, known, run.heartbeat)
    most = None if arguments.all else _ROWS
    events = None if arguments.all else _EVENTS
    _section(out, "Metrics", _metrics(view), most)
    _settings(out, known, arguments.all)
    if len(known["attempts"]) > 1 or known["attempts"][0]["timings"]:
        _section(out, "Attempts", _attempts(known["attempts"]))
    _section(
        out, "Checkpoints", _marks(known["checkpoints"], "checkpoint", "path"), events, last=True
    )
    _section(out, "Warnings", _marks(known["warnings"], "warning", "message"), events, last=True)
    if known["error"] or known["status"] == "crashed":
        out.print("\nHow it ended", style="bold")
        for line in (known["error"] or _CRASHED).splitlines():
            out.print(f"  {one_line(line)}", style="red", soft_wrap=True)
    return 0


def _section(
    out: Console,
    title: str,
    columns: Sequence[Column],
    most: int | None = None,
    *,
    last: bool = False,
) -> None:
    """A table under its title; of a long one the first rows, or the last."""
    from rich.text import Text

    rows = len(columns[0].cells)
    if not rows:
        return
    hidden = 0 if most is None else max(0, rows - most)
    chosen = slice(hidden, None) if last else slice(0, rows - hidden)
    heading = Text(title, style="bold")
    if hidden:
        heading.append(
            f"  ({'last' if last else 'first'} {most} of {rows}, --all)", style="not bold dim"
        )
    out.print()
    out.print(heading)
    shown = [c._replace(cells=c.cells[chosen]) for c in columns if any(map(str, c.cells))]
    out.print(table(shown))


def _facts(out: Console, facts: Sequence[tuple[str, str | Text]]) -> None:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        if str(value):
            grid.add_row(name, value)
    out.print(grid)


def _head(out: Console, known: Mapping[str, Any], heartbeat: float | None) -> None:
    from rich.text import Text

    title = Text(known["experiment_id"], style="bold")
    title.append(f"  {shortened(known['name'], max(20, out.width - 30))}  ", style="not bold")
    title.append_text(status_text(known["status"]))
    out.print(title)
    if known["description"]:
        out.print(Text(one_line(known["description"]), style="italic"))
    attempts, git, machine = known["attempts"], known["git"], known["hardware"]
    took = duration(known["seconds"])
    if len(attempts) > 1:
        took += f" in {len(attempts)} attempts"
    ended = known["end_time"]
    alive = known["status"] in ("created", "running")
    step = "" if known["step"] is None else f"{known['step']:,}"
    if step and known["max_steps"]:
        step += f" of {known['max_steps']:,}"
    stages = [one_line(stage) for stage in known["stages"]]
    commit = git and f"{git['commit'][:10]} on {git['branch']}{', with changes' * git['dirty']}"
    data = {key: value for key, value in known["data"].items() if key != "fingerprint"}
    models = [f"{m['model_id']} ({m['name']} version {m['version']})" for m in known["models"]]
    out.print()
    _facts(
        out,
        [
            ("task", one_line(f"{known['task']} {known['model_type']}".strip())),
            ("tags", ", ".join(map(one_line, known["tags"]))),
            ("notes", one_line(known["notes"])),
            ("begun", f"{clock(known['start_time'])}, {age(known['start_time'])} ago"),
            ("ended", f"{clock(ended)}, {age(ended)} ago" if ended else ""),
            ("last sign", f"{age(heartbeat)} ago" if alive and heartbeat else ""),
            ("took", took),
            ("stages", " → ".join(stages) if len(stages) > 1 else "".join(stages)),
            ("step", step),
            ("data", _inline({"fingerprint": known["data"].get("fingerprint"), **data})),
            ("model", _inline(known["model_info"])),
            ("seeds", _inline(known["seeds"])),
            ("git", commit or ""),
            ("machine", f"{machine['host']}: {machine['cores']} cores, "
             f"{human_bytes(machine['memory_bytes'])}"
             + (f", {machine['accelerator']}" if machine.get("accelerator") else "")),
            ("versions", _versions(known["versions"])),
            ("command", one_line(shlex.join(known["command"]))),
            ("folder", known["folder"]),
            ("wandb run", one_line(known["wandb_run_id"] or "")),
            ("parent run", one_line(known["parent_run"] or "")),
            ("child runs", _list(known["children"])),
            ("models", _list(models)),
        ],
    )  # fmt: skip


def _versions(versions: Mapping[str, str]) -> str:
    shown = ("hftune", "python", "torch", "transformers", "accelerate")
    return ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)


def _inline(values: Mapping[str, Any]) -> str:
    known = {name: value for name, value in values.items() if value is not None}
    return one_line(", ".join(f"{name} {value_text(value)}" for name, value in known.items()))


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return one_line(", ".join(names[:10]) + more)


def _metrics(view: RunView) -> list[Column]:
    """Last, lowest and highest value of each metric."""
    seen: dict[str, list[tuple[float, int | None]]] = {}
    for point in view.points:
        if not point.superseded:
            for name, value in point.metrics.items():
                seen.setdefault(name, []).append((value, point.step))
    finite = {
        name: [pair for pair in pairs if math.isfinite(pair[0])] for name, pairs in seen.items()
    }
    lows = [min(pairs, key=lambda p: p[0], default=None) for pairs in finite.values()]
    highs = [max(pairs, key=lambda p: p[0], default=None) for pairs in finite.values()]

    def at(name: str, pair: tuple[float, int | None] | None, several: bool) -> str:
        if pair is None or not several:
            return ""
        return value_text(pair[0], name) + (f" at {pair[1]:,}" if pair[1] is not None else "")

    several = [len(pairs) > 1 for pairs in seen.values()]
    last = [pairs[-1] for pairs in seen.values()]
    return [
        Column("metric", [one_line(name) for name in seen]),
        Column(
            "last", [value_text(v, n) for n, (v, _) in zip(seen, last, strict=True)], right=True
        ),
        Column("at step", ["" if s is None else f"{s:,}" for _, s in last], right=True, rank=1),
        Column("lowest", list(map(at, seen, lows, several)), right=True, rank=2),
        Column("highest", list(map(at, seen, highs, several)), right=True, rank=2),
    ]


def _settings(out: Console, known: Mapping[str, Any], everything: bool) -> None:
    from ..tracking.index import flat

    settings, sources = dict(flat(known["config"])), known["config_sources"]
    shown = {
        name: value
        for name, value in settings.items()
        if everything or sources.get(name) != "default"
    }
    title = "Settings"
    if len(shown) < len(settings):
        title += f" that are not the default ({len(shown)} of {len(settings)}, --all)"
    _section(
        out,
        title,
        [
            Column("setting", [one_line(name) for name in shown]),
            Column("value", [_setting(value) for value in shown.values()]),
            Column("from", [one_line(sources.get(name, "")) for name in shown], rank=1),
        ],
        None if everything else _ROWS,
    )


def _setting(value: Any) -> str:
    return one_line(value) if not isinstance(value, float) else repr(value)


def _attempts(attempts: Sequence[Mapping[str, Any]]) -> list[Column]:
    def origin(attempt: Mapping[str, Any]) -> str:
        return "" if attempt["from_step"] is None else f"step {attempt['from_step']:,}"

    def more(attempt: Mapping[str, Any]) -> str:
        """What it changed, how its time was spent, why it ended."""
        changed = attempt["changed"].items()
        lines = [f"{name}: {_setting(old)} → {_setting(new)}" for name, (old, new) in changed]
        lines.append(", ".join(f"{name} {duration(s)}" for name, s in attempt["timings"].items()))
        lines.append(one_line((attempt["error"] or "").strip().rpartition("\n")[2]))
        return "\n".join(filter(None, lines))

    return [
        Column("#", [str(attempt["number"]) for attempt in attempts], right=True, rank=1),
        Column("status", [status_text(attempt["status"]) for attempt in attempts], rank=1),
        Column("begun (UTC)", [clock(attempt["started"])[:16] for attempt in attempts], rank=1),
        Column("took", [duration(attempt["seconds"]) for attempt in attempts], right=True, rank=1),
        Column("from", [origin(attempt) for attempt in attempts], right=True, rank=1),
        Column("more", list(map(more, attempts))),
    ]


def _step(event: Mapping[str, Any]) -> str:
    return "" if event["step"] is None else f"{event['step']:,}"


def _marks(events: Sequence[Mapping[str, Any]], title: str, key: str) -> list[Column]:
    """Checkpoints or warnings: where, when and what."""
    return [
        Column("step", [_step(event) for event in events], right=True, rank=1),
        Column("at (UTC)", [clock(event["time"])[:16] for event in events], rank=1),
        Column(title, [one_line(event.get(key)) for event in events]),
    ]


# Compare

_PARTS = {
    "config": "Settings",
    "metrics": "Metrics",
    "data": "Data",
    "git": "Code",
    "seeds": "Seeds",
    "versions": "Versions",
    "hardware": "Machine",
}


def compare(store: Store, arguments: argparse.Namespace) -> int:
    """Prints runs side by side."""
    from ..tracking.query import compare_runs, find_run
    from ..tracking.run_view import RunView

    found = [find_run(store, text) for text in arguments.ids]
    found = list({run.id: run for run in found}.values())
    if len(found) < 2 and not arguments.all:
        raise ConfigurationError(f"compare: found one run, {found[0].id}; expected at least two")
    views = [RunView.from_store(store, run.id) for run in found]
    compared = compare_runs(views, everything=arguments.all)
    if arguments.json:
        print_json({"runs": [run.id for run in found], **compared})
        return 0
    out = console()
    with store.read() as connection:
        from ..tracking.terms import declared_directions

        declared = declared_directions(connection)
    out.print(_side_by_side(found, compared, declared, out.width))
    if not any(compared.values()):
        out.print("\nNothing differs. --all shows what is the same.", style="dim")
    return 0


def _side_by_side(
    found: Sequence[Any],
    compared: Mapping[str, Mapping[str, Sequence[Any]]],
    declared: Mapping[str, bool],
    width: int,
) -> RenderableType:
    from rich.text import Text

    names: list[str | Text] = ["name", "status"]
    room = max(16, (width - 24) // len(found) - 2)
    rows: list[Sequence[str | Text]] = [
        [shortened(run.name, room) for run in found],
        [status_text(run.status) for run in found],
    ]
    for part, title in _PARTS.items():
        if not compared[part]:
            continue
        names += ["", Text(title, style="bold")]
        rows += [[""] * len(found)] * 2
        for name, values in compared[part].items():
            names.append(f"  {shortened(name, max(20, width // 2 - 2))}")
            rows.append(list(_cells(name, values, part == "metrics", declared)))
    cells = list(zip(*rows, strict=True))
    columns = [Column(run.id, column) for run, column in zip(found, cells, strict=True)]
    return table([Column("run", names, rank=1), *columns])


def _cells(
    name: str, values: Sequence[Any], metric: bool, declared: Mapping[str, bool]
) -> Iterator[str | Text]:
    """Values as text, the best of a metric marked."""
    from rich.text import Text

    if not metric:
        yield from ("–" if value is None else _setting(value) for value in values)
        return
    from ..tracking.metric_directions import greater_is_better

    numbers = [None if value is None else float(value) for value in values]
    finite = [value for value in numbers if value is not None and math.isfinite(value)]
    try:
        higher = greater_is_better(name, declared)
        best = (max if higher else min)(finite, default=None)
    except ConfigurationError:
        best = None
    for value in numbers:
        text = "–" if value is None else value_text(value, name)
        yield Text(text, style="bold green" if value == best is not None else "")
