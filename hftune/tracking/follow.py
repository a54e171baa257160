"""A run that is read while it goes on."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ..utils.files import read_json
from . import index
from .json_lines import read_lines, to_number
from .liveness import is_alive
from .run_view import Point, RunView
from .tables import events, metrics, records, runs

if TYPE_CHECKING:
    from sqlalchemy import Row

    from .store import Store

__all__ = ["Follower"]

_JUDGING = 10.0  # seconds between two judgements of a run on another machine
_RECENT = 50  # log calls that the rate is taken from


class Follower:
    """Reads a run, then what is new in it: from its own files where they are here, else the store.

    Args:
        store (Store): Where the run is.
        run (row): Of :func:`~hftune.tracking.query.find_run`.

    Attributes:
        view (RunView): The run as it was at the last :meth:`poll`.
        heard (float or None): When the run was last heard of.
    """

    def __init__(self, store: Store, run: Row) -> None:
        self._store, self._run = store, run
        self._places = {"metrics": 0, "events": 0}  # that the next lines begin at
        self._judged = time.monotonic()
        self.view = RunView({}, [], [], Path(run.folder), run.status)
        self.heard: float | None = None
        self.poll()

    @property
    def is_alive(self) -> bool:
        """Whether the run goes on."""
        return self.view.status in ("created", "running")

    @property
    def step(self) -> int | None:
        """Optimizer steps that are done, of the newest stage."""
        return next((p.step for p in reversed(self.view.points) if p.step is not None), None)

    def rate(self) -> float | None:
        """Returns steps a second in the last log calls of this attempt and stage."""
        timed = [point for point in self.view.points[-_RECENT:] if point.step is not None]
        place = [(point.attempt, point.stage) for point in timed[-1:]]
        timed = [point for point in timed if [(point.attempt, point.stage)] == place]
        if len(timed) < 2 or timed[-1].time <= timed[0].time or timed[-1].step <= timed[0].step:
            return None
        return (timed[-1].step - timed[0].step) / (timed[-1].time - timed[0].time)

    def poll(self) -> list[Point]:
        """Reads what is new; returns the new calls of ``log_metrics``."""
        view, known = self.view, len(self.view.points)
        attempts = view.record.get("attempts")
        try:
            record = read_json(view.folder / "run.json")
            here = record.get("uid") == self._run.uid
        except (OSError, ValueError):
            here = False
        if here:
            self._read_files(record)
        else:
            self._read_store()
        if attempts is not None and len(attempts) != len(view.record["attempts"]):
            view.points[:known] = [
                dataclasses.replace(
                    point,
                    superseded=index.is_superseded(
                        view.record["attempts"], dataclasses.asdict(point)
                    ),
                )
                for point in view.points[:known]
            ]
        times = [self.heard, *(p.time for p in view.points[-1:])]
        times += [event["time"] for event in view.events[-1:]]
        self.heard = max((t for t in times if t is not None), default=None)
        return view.points[known:]

    def _read_files(self, record: dict[str, Any]) -> None:
        view, run = self.view, self._run
        view.record, view.status = record, record["status"]
        if self.is_alive:
            process = record["attempts"][-1]["process"]
            if not is_alive(view.folder, process, run.heartbeat, run.heartbeat_gap):
                view.status = "crashed"
        for name in self._places:
            path = view.folder / f"{name}.jsonl"
            for _, following, line in read_lines(path, self._places[name]):
                self._places[name] = following
                if name == "metrics":
                    superseded = index.is_superseded(record["attempts"], line)
                    view.points.append(_point(line, line["metrics"], superseded))
                else:
                    view.events.append(line)
        try:
            self.heard = (view.folder / "heartbeat").stat().st_mtime
        except OSError:
            pass

    def _read_store(self) -> None:
        view, run_id = self.view, self._run.id
        if time.monotonic() - self._judged > _JUDGING:
            index.refresh(self._store)
            self._judged = time.monotonic()
        with self._store.read() as connection:
            run = connection.execute(
                sa.select(records.c.content, runs.c.status, runs.c.heartbeat)
                .join(runs)
                .where(runs.c.id == run_id)
            ).one()
            for table in (metrics, events):
                place = self._places[table.name.removeprefix("hftune_")]
                new = connection.execute(
                    sa.select(table)
                    .where(table.c.run_id == run_id, table.c.position >= place)
                    .order_by(table.c.position)
                ).mappings()
                for row in new:
                    self._places[table.name.removeprefix("hftune_")] = row["position"] + 1
                    if table is metrics:
                        content = json.loads(row["content"])
                        view.points.append(_point(row, content, row["superseded"]))
                    else:
                        known = ("time", "attempt", "stage", "step", "kind")
                        view.events.append({key: row[key] for key in known} | row["content"])
        view.record, view.status, self.heard = run.content, run.status, run.heartbeat


def _point(line: Any, values: dict[str, Any], superseded: bool) -> Point:
    numbers = {name: to_number(value) for name, value in values.items()}
    return Point(
        line["time"], line["attempt"], line["stage"], line.get("step"), numbers, superseded
    )
