"""``hftune runs watch`` and ``tail``: a run while it goes on."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..utils.errors import ConfigurationError
from ..utils.terminal import LOG_SECONDS, duration, spark
from .runs_list import shortened, status_text, value_text
from .tables import age, console, number, one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..tracking.follow import Follower
    from ..tracking.run_view import Point
    from ..tracking.store import Store

__all__ = ["tail", "watch"]

_PACE = 1.0  # seconds between two looks
_METRICS = 10  # rows
_EVENTS = 4
_SPARK = 32  # cells
# Of these a curve says little; what is shown of them is the last value.
_PLAIN = ("learning_rate", "epoch")


def _follower(store: Store, text: str | None) -> Follower:
    from ..tracking.follow import Follower
    from ..tracking.query import find_run, search_runs

    if text is None:
        alive = search_runs(store, "status in (running, created)", limit=1)
        if not alive:
            newest = search_runs(store, limit=1)
            hint = f"; the newest is {newest[0]['id']} ({newest[0]['status']})" if newest else ""
            raise ConfigurationError(f"no run is going on{hint}")
        text = alive[0]["id"]
    return Follower(store, find_run(store, text))


# Watch


def watch(store: Store, arguments: argparse.Namespace) -> int:
    """Shows a run until it ends."""
    follower = _follower(store, arguments.id)
    out = console()
    if arguments.json:
        _print_line(_state(follower))
        while follower.is_alive and not arguments.once:
            time.sleep(_PACE)
            follower.poll()
            _print_line(_state(follower))
    elif arguments.once or not follower.is_alive:
        out.print(_frame(follower, out.width))
    elif out.is_terminal:
        from rich.live import Live

        with Live(_frame(follower, out.width), console=out, auto_refresh=False) as live:
            while follower.is_alive:
                time.sleep(_PACE)
                follower.poll()
                live.update(_frame(follower, out.width), refresh=True)
    else:
        said = -LOG_SECONDS
        while follower.is_alive:
            if time.monotonic() - said >= LOG_SECONDS:
                said = time.monotonic()
                out.print(_line(follower), soft_wrap=True)
            time.sleep(_PACE)
            follower.poll()
        out.print(_frame(follower, out.width))
    return 0 if follower.view.status == "completed" or (arguments.once and follower.is_alive) else 1


def _print_line(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def _last(follower: Follower) -> dict[str, float]:
    values: dict[str, float] = {}
    for point in follower.view.points:
        if not point.superseded:
            values.update(point.metrics)
    return values


def _seconds_left(follower: Follower) -> float | None:
    rate, step = follower.rate(), follower.step
    most = follower.view.record.get("max_steps")
    if rate is None or step is None or not most or not follower.is_alive:
        return None
    return max(0, most - step) / rate


def _state(follower: Follower) -> dict[str, Any]:
    from ..tracking.json_lines import from_number

    view = follower.view
    return {
        "experiment_id": view.record["experiment_id"],
        "status": view.status,
        "attempt": len(view.record["attempts"]),
        "stage": (view.record.get("stages") or [None])[-1],
        "step": follower.step,
        "max_steps": view.record.get("max_steps"),
        "steps_per_second": follower.rate(),
        "seconds_left": _seconds_left(follower),
        "heard": follower.heard,
        "metrics": {name: from_number(value) for name, value in _last(follower).items()},
    }


def _line(follower: Follower) -> str:
    """One line, for a file."""
    view, last = follower.view, _last(follower)
    parts = [view.record["experiment_id"], view.status]
    if follower.step is not None:
        most = view.record.get("max_steps")
        parts.append(f"step {follower.step:,}" + (f" of {most:,}" if most else ""))
    parts += [f"{name} {number(last[name])}" for name in ("loss", "eval_loss") if name in last]
    left = _seconds_left(follower)
    return "  ".join(parts + ([f"{duration(left)} left"] if left is not None else []))


def _frame(follower: Follower, width: int) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    view, record = follower.view, follower.view.record
    title = Text(str(record["experiment_id"]), style="bold")
    title.append(f"  {shortened(record['name'], max(20, width - 45))}  ", style="not bold")
    title.append_text(status_text(view.status))
    if len(record["attempts"]) > 1:
        title.append(f"  attempt {len(record['attempts'])}", style="dim")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(no_wrap=True, overflow="ellipsis")
    stages = record.get("stages") or []
    if stages:
        place = f" (stage {len(stages)})" if len(stages) > 1 else ""
        facts.add_row("stage", one_line(stages[-1]) + place)
    if follower.step is not None:
        facts.add_row("step", _progress(follower, width))
    speed = _speed(follower)
    if speed:
        facts.add_row("speed", speed)
    host = one_line(record["attempts"][-1]["process"]["host"])
    if follower.is_alive and follower.heard:
        facts.add_row("last sign", f"{age(follower.heard)} ago, on {host}")
    elif record["attempts"][-1]["finished"]:
        facts.add_row("ended", f"{age(record['attempts'][-1]['finished'])} ago, on {host}")
    elif follower.heard:
        facts.add_row("last sign", f"{age(follower.heard)} ago, on {host}; its process is gone")
    parts: list[RenderableType] = [title, facts]
    if view.points:
        parts += ["", _curves(follower, width)]
    events = [event for event in view.events if event["kind"] != "stage"][-_EVENTS:]
    if events:
        parts += ["", _events(events)]
    error = record["attempts"][-1]["error"]
    if error and view.status in ("failed", "crashed"):
        parts += ["", Text(one_line(error.splitlines()[-1]), style="red")]
    return Group(*parts)


def _progress(follower: Follower, width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    step, most = follower.step, follower.view.record.get("max_steps")
    if not most:
        return f"{step:,}"
    line = Table.grid(padding=(0, 1))
    text = f"{step:,} of {most:,}, {100 * step / most:.0f} %"
    line.add_row(text, ProgressBar(most, min(step, most), width=max(10, min(40, width - 50))))
    return line


def _speed(follower: Follower) -> str:
    parts = []
    rate, left = follower.rate(), _seconds_left(follower)
    if rate is not None:
        parts.append(f"{rate:.3g} steps/s" if rate >= 0.1 else f"{1 / rate:.3g} s a step")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return ", ".join(parts)


def _curves(follower: Follower, width: int) -> RenderableType:
    """The metrics that say most, in this stage: last value, curve, extremes."""
    from rich.table import Table

    curves: dict[str, list[float]] = {}
    points = follower.view.points
    for point in points:  # each stage begins at new losses
        if not point.superseded and point.stage == points[-1].stage:
            for name, value in point.metrics.items():
                curves.setdefault(name, []).append(value)
    declared = follower.view.record.get("metric_directions") or {}

    def importance(name: str) -> tuple[int, str]:
        order = [
            name == "loss",
            name in declared,
            name == "eval_loss",
            name.startswith("eval") and not name.endswith(("_runtime", "_per_second")),
            name in ("learning_rate", "grad_norm"),
            "memory" in name,
        ]
        return (order.index(True) if True in order else len(order), name)

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, overflow="ellipsis", max_width=max(16, width // 3))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True, style="cyan")
    grid.add_column(no_wrap=True, style="dim", overflow="ellipsis")
    for name in sorted(curves, key=importance)[:_METRICS]:
        values = curves[name]
        finite = [value for value in values if math.isfinite(value)]
        if name in _PLAIN or name.endswith("_bytes") or len(finite) < 2:
            grid.add_row(one_line(name), value_text(values[-1], name), "", "")
        else:
            ends = f"{number(min(finite))} to {number(max(finite))}"
            bars = spark(finite, min(_SPARK, max(8, width - 60)))
            grid.add_row(one_line(name), number(values[-1]), bars, ends)
    return grid


def _events(events: Sequence[dict[str, Any]]) -> RenderableType:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    for event in events:
        known = ("time", "attempt", "stage", "step", "kind")
        content = ", ".join(
            str(value) for key, value in event.items() if key not in known and value
        )
        step = "" if event.get("step") is None else f"step {event['step']:,}: "
        grid.add_row(f"{age(event['time'])} ago", one_line(event["kind"]), one_line(step + content))
    return grid


# Tail


def tail(store: Store, arguments: argparse.Namespace) -> int:
    """Prints the last lines, and on request those that follow."""
    follower = _follower(store, arguments.id)
    points = follower.view.points
    _print_points(points[max(0, len(points) - arguments.n) :], arguments.json)
    while arguments.follow and follower.is_alive:
        time.sleep(_PACE)
        _print_points(follower.poll(), arguments.json)
    return 0


def _print_points(points: Sequence[Point], as_json: bool) -> None:
    from ..tracking.json_lines import from_number

    for point in points:
        if as_json:
            _print_line(
                {
                    "time": point.time,
                    "attempt": point.attempt,
                    "stage": point.stage,
                    "step": point.step,
                    "superseded": point.superseded,
                    "metrics": {name: from_number(v) for name, v in point.metrics.items()},
                }
            )
            continue
        step = "" if point.step is None else f"{point.step:,}"
        when = time.strftime("%m-%d %H:%M:%S", time.gmtime(point.time))
        values = "  ".join(
            f"{one_line(name)} {value_text(v, name)}" for name, v in point.metrics.items()
        )
        print(f"{when} {step:>9}  {values}{'  (superseded)' * point.superseded}", flush=True)
