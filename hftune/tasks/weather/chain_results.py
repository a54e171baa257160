"""What a chain of lead times has reached: its scores, one forecast, a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...tracking.report import format_number
from .chain import WeatherChain
from .evaluation_weather import ForecastExample
from .scores import ForecastScores

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["chain_example", "chain_scores", "lead_label", "lead_labels", "render_chain_scores"]

_FORECASTS = {
    "model": "rmse",
    "untuned": "untuned_rmse",
    "persistence": "persistence_rmse",
    "climatology": "climatology_rmse",
}


def chain_scores(
    chain: WeatherChain,
    stage_folders: Sequence[str | Path],
    untuned: ForecastScores | None = None,
    *,
    std: Sequence[float] | np.ndarray,
    drift: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """Returns what ``scores.json`` of a chain's run holds. One process alone may call it.

    Args:
        chain (WeatherChain): With all lead times done.
        stage_folders (sequence of path): Folders of the stages ``forecast_1``, ``forecast_2``, ...
        untuned (ForecastScores, *optional*): Of the model before the chain, rolled out from the
            initial states of ``chain.common_times("test")`` to all lead times.
        std (array ``[C]``): Standard deviations of the channels over the training times, the unit
            of ``rmse_normalised``. A channel with 0 does not count in means.
        drift (sequence of mappings): Of :meth:`~hftune.tasks.weather.chain.WeatherChain.drift` at
            the lead times 0, 1, ...: that of 0 from the chain itself, the others from
            ``trainer.results[...]["predictions"]``.

    Returns:
        What :meth:`~hftune.tasks.weather.scores.ForecastScores.result` gives, ``"drift"`` with
        the ``lead_hours`` of each, ``"step_hours"``, ``"folds"``, and in ``"summary"`` by lead
        time: ``rmse_normalised``, for each of ``model``, ``untuned``, ``persistence`` and
        ``climatology`` the mean over channels of RMSE / ``std``; ``rmse_to_climatology`` and
        ``rmse_to_untuned``, that of the model as a fraction of that of the other;
        ``worse_than_climatology_at_hours`` and ``worse_than_untuned_at_hours``, the lead times at
        which this is more than 1 (empty: at none).

    Raises:
        DataError: If the untuned model was scored on other samples.

    Example:
        >>> stages = [result for result in trainer.results if "fold" not in result]
        >>> results = chain_scores(
        ...     chain,
        ...     [output_dir / stage["name"] for stage in stages],
        ...     untuned,
        ...     std=statistics.std,
        ...     drift=[chain.drift(0), *(stage["predictions"] for stage in stages)],
        ... )
    """
    scores = chain.scores(stage_folders)
    if untuned is not None:
        scores.adopt("untuned", untuned)
    results = scores.result()
    hours, summary = results["lead_hours"], results["summary"]
    entries = list(results["variables"].values())
    std = np.asarray(std, dtype=np.float64)
    rmse = {
        name: np.array([entry[key] for entry in entries]).T
        for name, key in _FORECASTS.items()
        if key in entries[0]
    }
    # A channel that never varies has no unit, one without a truth no error: for any forecast.
    counted = (std > 0) & np.isfinite(rmse["persistence"]).all(axis=0)
    means = {name: (table[:, counted] / std[counted]).mean(axis=1) for name, table in rmse.items()}
    summary["rmse_normalised"] = {name: values.tolist() for name, values in means.items()}
    for name in ("climatology", "untuned"):
        if name in means:
            ratio = means["model"] / means[name]
            summary[f"rmse_to_{name}"] = ratio.tolist()
            worse = [hour for hour, value in zip(hours, ratio, strict=True) if not value <= 1]
            summary[f"worse_than_{name}_at_hours"] = worse
    results["step_hours"], results["folds"] = chain.step_hours, chain.folds
    results["drift"] = [
        {"lead_hours": round(lead_time * chain.step_hours), **values}
        for lead_time, values in enumerate(drift)
    ]
    return results


def chain_example(chain: WeatherChain, index: int | None = None) -> ForecastExample:
    """Reads one forecast of the test split at all lead times whose states are still there.

    Args:
        chain (WeatherChain): With all lead times done.
        index (int, *optional*): Which of ``chain.common_times("test")``; defaults to the one in the
            middle, so that nobody picked it.

    Returns:
        The forecast, the last field of each state, and what happened.
    """
    times = chain.common_times("test")
    initial = times[len(times) // 2 if index is None else index]
    leads = [k for k in range(1, chain.lead_times + 1) if chain.path("test", k).is_file()]
    hours = tuple(round(lead_time * chain.step_hours) for lead_time in leads)
    states = [
        chain.reader("test", lead_time + 1).read_states(initial[None])[0, -1] for lead_time in leads
    ]
    rows = np.searchsorted(chain.truth.times, initial + np.array(hours) * 3600)
    truth = chain.reader("test", 1).read_truth(rows)
    return ForecastExample(chain.layout, hours, int(initial), np.stack(states), truth)


def lead_label(hours: int) -> str:
    """Names a lead time: ``lead_label(72) == "day 3"``, ``lead_label(6) == "6 h"``."""
    return f"{hours} h" if hours % 24 else f"day {hours // 24}"


def lead_labels(hours: Sequence[int]) -> str:
    """Names lead times: ``lead_labels([24, 72, 96, 120]) == "days 1, 3 to 5"``."""
    if len(hours) < 2 or any(hour % 24 for hour in hours):
        return ", ".join(map(lead_label, hours))
    runs: list[list[int]] = []
    for day in (hour // 24 for hour in hours):
        if runs and day == runs[-1][-1] + 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    names = [f"{r[0]} to {r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs]
    return f"days {', '.join(names)}"


def render_chain_scores(results: Mapping[str, Any]) -> RenderableType:
    """Lays out what ``scores.json`` of a chain's run holds, a row a lead time.

    Args:
        results (mapping): What :func:`chain_scores` gives.

    Returns:
        A table of the mean over channels of the normalised RMSE, the best of each row in bold,
        lost comparisons in red; below it where the chain loses.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    summary, hours = results["summary"], results["lead_hours"]
    means = summary["rmse_normalised"]
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"RMSE / std, mean of {len(results['variables'])} channels; {results['samples']} "
        f"forecasts, {results['valid_from'][:10]} to {results['valid_to'][:10]}",
        caption="drift: how much larger the error of the validation states is than that of the "
        "training states",
    )
    table.add_column("lead time", no_wrap=True)
    for name in means:
        table.add_column("chain" if name == "model" else name, justify="right", no_wrap=True)
    ratio = summary.get("rmse_to_climatology")
    if ratio is not None:
        table.add_column("to clim.", justify="right", no_wrap=True)
    table.add_column("drift", justify="right", no_wrap=True)
    drift = {entry["lead_hours"]: entry["drift"] for entry in results["drift"]}
    for lead, hour in enumerate(hours):
        values = {name: column[lead] for name, column in means.items()}
        known = [value for value in values.values() if _known(value)]
        cells = []
        for name, value in values.items():
            best = _known(value) and value == min(known)
            lost = name == "model" and not best
            style = "bold green" if best else "yellow" if lost else ""
            cells.append(Text(format_number(value, 4), style=style))
        if ratio is not None:
            text = "–" if not _known(ratio[lead]) else f"{ratio[lead]:.3f}"
            worse = hour in summary["worse_than_climatology_at_hours"]
            cells.append(Text(text, style="red" if worse else ""))
        gap = drift.get(hour)
        cells.append(Text(f"{100 * gap:+.1f} %" if _known(gap) else "–"))
        table.add_row(lead_label(hour), *cells)
    parts: list[RenderableType] = [table]
    for key, name in (("climatology", "climatology"), ("untuned", "the untuned model rolled out")):
        if worse := summary.get(f"worse_than_{key}_at_hours"):
            parts.append(Text(f"Worse than {name}: {lead_labels(worse)}", style="yellow"))
    return Group(*parts)


def _known(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))
