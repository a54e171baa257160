"""A run as it can be read: its record, what it measured and what happened in it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import read_json
from .index import is_superseded
from .json_lines import read_lines, to_number
from .liveness import is_alive
from .tables import events, metrics, records, runs

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Point", "RunView"]


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """One call of ``log_metrics``.

    Attributes:
        time (float): Seconds since 1970-01-01 UTC.
        attempt (int): Of the run, from 1.
        stage (int): Of the run, from 0.
        step (int or None): Optimizer steps that were done.
        metrics (dict of str to float): What was logged.
        superseded (bool): Whether a later attempt went back behind it.
    """

    time: float
    attempt: int
    stage: int
    step: int | None
    metrics: dict[str, float]
    superseded: bool


@dataclasses.dataclass
class RunView:
    """Everything of a run, read once.

    Attributes:
        record (dict): ``run.json``.
        points (list of Point): In the order in which they were logged.
        events (list of dict): The same, each with ``time``, ``attempt``, ``stage``, ``step``,
            ``kind`` and more.
        folder (Path): The run's folder, which may be gone.
        status (str): Its state; ``crashed`` where its process is gone.
    """

    record: dict[str, Any]
    points: list[Point]
    events: list[dict[str, Any]]
    folder: Path
    status: str

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> RunView:
        """Reads a run's own files.

        Raises:
            OSError: If there is no ``run.json``.
        """
        folder = Path(folder)
        record = read_json(folder / "run.json")
        points = [
            Point(
                line["time"],
                line["attempt"],
                line["stage"],
                line.get("step"),
                _numbers(line["metrics"]),
                is_superseded(record["attempts"], line),
            )
            for _, _, line in read_lines(folder / "metrics.jsonl")
        ]
        happened = [line for _, _, line in read_lines(folder / "events.jsonl")]
        status = record["status"]
        if status in ("created", "running"):
            process = record["attempts"][-1]["process"]
            status = status if is_alive(folder, process) else "crashed"
        return cls(record, points, happened, folder, status)

    @classmethod
    def from_store(cls, store: Store, experiment_id: str) -> RunView:
        """Reads a run from the store, wherever its folder is.

        Raises:
            KeyError: If the store does not know it.
        """
        import sqlalchemy as sa

        with store.read() as connection:
            run = connection.execute(
                sa.select(records.c.content, runs.c.folder, runs.c.status)
                .join(runs)
                .where(runs.c.id == experiment_id)
            ).one_or_none()
            if run is None:
                raise KeyError(experiment_id)
            points = [
                Point(
                    row.time,
                    row.attempt,
                    row.stage,
                    row.step,
                    _numbers(json.loads(row.content)),
                    row.superseded,
                )
                for row in connection.execute(
                    sa.select(metrics)
                    .where(metrics.c.run_id == experiment_id)
                    .order_by(metrics.c.position)
                )
            ]
            happened = [
                {
                    **{key: row[key] for key in ("time", "attempt", "stage", "step", "kind")},
                    **row["content"],
                }
                for row in connection.execute(
                    sa.select(events)
                    .where(events.c.run_id == experiment_id)
                    .order_by(events.c.position)
                ).mappings()
            ]
        return cls(run.content, points, happened, Path(run.folder), run.status)

    def metric_names(self) -> list[str]:
        """Returns the metrics that were logged, in the order of their first value."""
        return list(dict.fromkeys(name for point in self.points for name in point.metrics))

    def curve(
        self, name: str, *, attempt: int | None = None, stage: int | None = None
    ) -> tuple[list[int], list[float]]:
        """Returns steps and values of a metric.

        Args:
            name (str): As it was logged.
            attempt (int, *optional*): Everything that this attempt logged; by default what counts:
                without what a later attempt went back behind.
            stage (int, *optional*): Of one stage alone.
        """
        values: dict[tuple[int, int], float] = {}
        for point in self.points:
            if name not in point.metrics or point.step is None:
                continue
            if stage is not None and point.stage != stage:
                continue
            if point.superseded if attempt is None else point.attempt != attempt:
                continue
            values[point.stage, point.step] = point.metrics[name]
        ordered = sorted(values)
        return [step for _, step in ordered], [values[place] for place in ordered]

    def log_history(self) -> list[dict[str, Any]]:
        """Returns what counts as a trainer's own history would have it, a dict a log call."""
        return [
            {**point.metrics, "step": point.step}
            for point in self.points
            if not point.superseded and point.step is not None
        ]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: to_number(value) for name, value in values.items()}
