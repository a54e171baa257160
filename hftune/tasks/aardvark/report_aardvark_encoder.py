"""The report of an encoder's run: scores beside baselines, one analysis on maps, the data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...tracking.report import Cell, Report, Section, Tile
from ...tracking.report_runs import write_runs_report
from ...tracking.report_sections import TrainingHints, save_task_report
from ...tracking.run_view import RunView
from ...utils.files import read_json
from ..weather.dates import format_time
from ..weather.evaluation_weather import ForecastExample
from ..weather.maps import channel_label, display_of, forecast_figure
from ..weather.report_weather import audit_section
from ..weather.stations import Stations

__all__ = ["write_encoder_report"]

_BASELINES = {
    "climatology": "the training years by day of the year",
    "background": "the earlier fields, unchanged",
    "ridge": "ridge regression on the same observations",
}
_MAPS = 8


def write_encoder_report(
    output_dir: str | os.PathLike[str], *, example: ForecastExample, stations: Stations
) -> Path:
    """Writes a run's own sections, ``report_sections.json``, and with them ``report.html``.

    Args:
        output_dir (path): Folder of the run with ``run.json`` and ``scores.json``, and
            ``audit.json`` where there is one.
        example (ForecastExample): The analysis to draw.
        stations (Stations): Drawn as dots.

    Returns:
        Where the report is.
    """
    folder = Path(output_dir)
    scores = read_json(folder / "scores.json")
    rows, columns = example.layout.grid
    report = Report(
        "Aardvark encoder",
        f"{len(scores['variables'])} channels on {rows} x {columns} points from "
        f"{len(stations.names)} stations, scored on {scores['samples']:,} analyses from "
        f"{scores['valid_from'][:10]} to {scores['valid_to'][:10]}",
    )
    _scores_section(report, scores)
    _maps_section(report, example, stations)
    if (folder / "audit.json").exists():
        audit_section(report, read_json(folder / "audit.json"))
    reference = ("climatology", scores["summary"]["climatology_rmse_normalised"])
    save_task_report(
        folder,
        report,
        training=TrainingHints("eval_rmse_normalised", "validation RMSE / std", reference),
    )
    return write_runs_report([RunView.from_folder(folder)], folder / "report.html")


def _scores_section(report: Report, scores: Mapping[str, Any]) -> Section:
    section = report.section("Scores")
    variables, summary = scores["variables"], scores["summary"]
    ours = summary["rmse_normalised"]
    baselines = [name for name in _BASELINES if f"{name}_rmse_normalised" in summary]
    tiles = [Tile("RMSE / std", ours, "mean of all channels")]
    for name in baselines:
        theirs, lost = summary[f"{name}_rmse_normalised"], summary[f"worse_than_{name}"]
        tiles.append(
            Tile(
                name.capitalize(),
                theirs,
                f"beaten in {len(variables) - len(lost)} of {len(variables)} channels",
                "good" if ours < theirs else "bad",
            )
        )
    section.tiles(tiles)
    rows = []
    for channel, entry in variables.items():
        row: list[Any] = [
            Cell(channel, note=channel_label(channel), strong=True),
            Cell(entry["rmse_normalised"], digits=3, strong=True),
        ]
        for name in baselines:
            theirs = entry[f"{name}_rmse_normalised"]
            beaten = channel not in summary[f"worse_than_{name}"]
            row.append(
                Cell(
                    theirs,
                    digits=3,
                    shade=None if beaten else 0.45,
                    note="" if beaten else f"the encoder is worse than {name}",
                )
            )
        display = display_of(channel, entry["units"])
        row += [Cell(entry[key] * display.scale, digits=3) for key in ("rmse", "bias")]
        rows.append([*row, display.error_units])
    known = "; ".join(f"{name}: {_BASELINES[name]}" for name in baselines)
    section.table(
        ["", "RMSE / std", *baselines, "RMSE", "bias", "units"],
        rows,
        "Area-weighted RMSE in units of the channel's standard deviation over the training times, "
        f"all on the same samples. {known[:1].upper()}{known[1:]}. A red cell is a baseline that "
        "was not beaten.",
    )
    return section


def _maps_section(report: Report, example: ForecastExample, stations: Stations) -> Section:
    section = report.section("One analysis")
    layout, valid = example.layout, format_time(example.time)
    section.text(
        f"Of {valid} UTC, the analysis in the middle of the test period, not a chosen one. Truth "
        "and analysis share their colours; dots are stations."
    )
    channels = layout.channels[:_MAPS]
    for panel, channel in zip(section.panels(channels), channels, strict=True):
        index = layout.channels.index(channel)
        figure = forecast_figure(
            layout,
            channel,
            example.truth[0, index],
            example.forecast[0, index],
            titles=(f"Truth, {valid}", "Analysis", "Analysis − truth"),
        )
        for ax in figure.axes[:3]:
            west, east = ax.get_xlim()
            ax.plot(
                (stations.longitude - west) % 360 + west, stations.latitude, ".",
                color="#222222", markersize=4, scalex=False, scaley=False,
            )  # fmt: skip
        label = channel_label(channel)
        panel.figure(figure, label[:1].upper() + label[1:])
    return section
