"""Scores in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["render_scores"]


def render_scores(scores: Mapping[str, Any]) -> RenderableType:
    """Lays out what ``scores.json`` holds, a row a channel.

    Args:
        scores (mapping): What :meth:`~hftune.tasks.weather.scores.ForecastScores.result` gives.

    Returns:
        A table of the RMSE at the first lead time beside its baselines, and of the RMSE as a
        fraction of persistence's at every lead time; below it the channels that got worse.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    leads, summary = scores["lead_hours"], scores["summary"]
    entries = scores["variables"]
    rivals = [
        name
        for name in ("persistence", "climatology", "untuned")
        if all(f"{name}_rmse" in entry for entry in entries.values())
    ]
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"RMSE of {scores['samples']} forecasts, {scores['valid_from'][:10]} to "
        f"{scores['valid_to'][:10]}; ratio: to persistence's",
    )
    table.add_column("channel")
    short = {"persistence": "persist.", "climatology": "climat."}
    for title in (f"{leads[0]} h", *(short.get(name, name) for name in rivals)):
        table.add_column(title, justify="right")
    for lead in leads:
        table.add_column(f"ratio {lead} h", justify="right", no_wrap=True)
    for channel, entry in entries.items():
        values = [entry["rmse"], *(entry[f"{name}_rmse"] for name in rivals)]
        ratios = [
            Text("-") if ratio is None else Text(f"{ratio:.3f}", style="" if ratio < 1 else "red")
            for ratio in entry["rmse_to_persistence"]
        ]
        table.add_row(channel, *(f"{v[0]:.3g}" for v in values), *ratios)
    table.add_section()
    means = [f"{ratio:.4f}" for ratio in summary["rmse_to_persistence"]]
    table.add_row("mean", "", *("" for _ in rivals), *means, style="bold")
    parts: list[RenderableType] = [table]
    for key, name in (("persistence", "persistence"), ("untuned", "the untuned model")):
        if worse := summary.get(f"worse_than_{key}"):
            parts.append(Text(f"Worse than {name}: {', '.join(worse)}", style="yellow"))
    return Group(*parts)
