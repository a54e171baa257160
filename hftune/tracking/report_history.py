"""What a run logged, as reports need it: by stage, with what no longer counts set apart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import ConfigurationError
from ..utils.files import read_json
from .metric_directions import greater_is_better
from .report import Cell

if TYPE_CHECKING:
    from .run_view import RunView

__all__ = ["Entries", "History", "best_of", "direction", "metric_cell", "number_cell", "series_of"]

Entries = Sequence[Mapping[str, Any]]
"""A trainer's log history: one mapping a log call, with its ``step``."""


@dataclasses.dataclass(frozen=True)
class History:
    """What a run logged, by the stage it was in, in the shape of a trainer's log history.

    Attributes:
        stages (dict of int to list): What counts.
        earlier (dict of int to dict): The same, by attempt, of what a later attempt went back
            behind.
        loose (list of mappings): What was logged without a step.
    """

    stages: dict[int, list[Mapping[str, Any]]]
    earlier: dict[int, dict[int, list[Mapping[str, Any]]]]
    loose: list[Mapping[str, float]]

    @classmethod
    def of(cls, view: RunView, log_history: Entries | None = None) -> History:
        """Collects what a run logged.

        Args:
            view (RunView): The run.
            log_history (sequence of mappings, *optional*): Of the trainer's state, for a run that
                logged nothing; defaults to that of the newest checkpoint in its folder.
        """
        history = cls({}, {}, [])
        if not view.points:
            entries = _trainer_history(view.folder) if log_history is None else log_history
            if entries:
                history.stages[0] = list(map(_numbers, entries))
        for point in view.points:
            if point.step is None:
                history.loose.append(point.metrics)
                continue
            stage = history.stages.setdefault(point.stage, [])
            if point.superseded:
                attempts = history.earlier.setdefault(point.stage, {})
                stage = attempts.setdefault(point.attempt, [])
            stage.append({**point.metrics, "step": point.step})
        return history

    def names(self) -> list[str]:
        """Returns the metrics that count, in the order of the first values."""
        entries = [entry for stage in [*self.stages.values(), self.loose] for entry in stage]
        return [n for n in dict.fromkeys(n for entry in entries for n in entry) if n != "step"]

    def series(self, name: str) -> dict[int, tuple[list[int], list[float]]]:
        """Returns steps and values of a metric by stage; values without a step are counted."""
        found = {stage: series_of(entries, name) for stage, entries in self.stages.items()}
        found = {stage: series for stage, series in found.items() if series[0]}
        loose = [values[name] for values in self.loose if name in values]
        if loose and not found:
            found = {0: (list(range(1, len(loose) + 1)), loose)}
        return found

    def last(self, name: str) -> float | None:
        """Returns the last value of a metric, None where it was never logged."""
        for values in reversed(self.loose):
            if name in values:
                return values[name]
        for stage in reversed(self.stages.values()):
            for entry in reversed(stage):
                if name in entry:
                    return entry[name]
        return None


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """An entry of a trainer's history, where null stands for what is not finite."""
    return {
        name: math.nan if value is None else value
        for name, value in entry.items()
        if value is None or isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _trainer_history(folder: Path) -> Entries:
    numbered = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    newest = sorted(numbered, key=lambda path: int(path.name[11:]), reverse=True)
    for place in [folder, *newest]:
        if (place / "trainer_state.json").exists():
            return read_json(place / "trainer_state.json")["log_history"]
    return []


def direction(metric: str, declared: Mapping[str, bool] | None = None) -> bool | None:
    """Returns whether higher is better, None where nobody knows.

    Args:
        metric (str): Its name.
        declared (mapping, *optional*): A run's ``metric_directions``.
    """
    try:
        return greater_is_better(metric, declared)
    except ConfigurationError:
        return None


def series_of(log_history: Entries, key: str) -> tuple[list[int], list[float]]:
    """Returns steps and values of a key; of a step that was logged twice the last value."""
    values = {
        entry["step"]: math.nan if entry[key] is None else float(entry[key])
        for entry in log_history
        if key in entry and "step" in entry
    }
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def best_of(
    steps: Sequence[int], values: Sequence[float], better: bool | None
) -> tuple[float, int] | None:
    """Returns the best finite value and its first step; None without one or a direction."""
    if better is None:
        return None
    finite = [(v, s) for v, s in zip(values, steps, strict=True) if math.isfinite(v)]
    if not finite:
        return None
    return min(finite, key=lambda pair: (-pair[0] if better else pair[0], pair[1]))


def number_cell(value: float | None, **more: Any) -> Cell:
    """Returns the cell of a metric's value, which tells NaN from a value that is not there."""
    return Cell("NaN" if value is not None and math.isnan(value) else value, **more)


def metric_cell(name: str, better: bool | None) -> Cell:
    """Returns a metric's name with an arrow into its better direction, where one is known."""
    if better is None:
        return Cell(name, note="it is not known which direction is better", strong=True)
    note = "higher is better" if better else "lower is better"
    return Cell(f"{name} {'↑' if better else '↓'}", note=note, strong=True)
