"""The report of a weather run: scores beside baselines, maps, training, audit, configuration."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...tracking.report import Cell, Report, Section, Series, Tile
from ...tracking.report_runs import write_runs_report
from ...tracking.report_sections import TrainingHints, save_task_report
from ...tracking.run_view import RunView
from ...tracking.sparklines import spark_bars, spark_line
from ...utils.files import read_json
from .dates import format_time
from .evaluation_weather import ForecastExample
from .fields import WeatherFields, split_channel
from .maps import channel_label, degrees, forecast_figure, pretty_units

__all__ = [
    "WELL_KNOWN",
    "audit_section",
    "first_channels",
    "format_clock",
    "known_number",
    "land_mask",
    "maps_section",
    "name_cell",
    "ratio_cell",
    "scores_section",
    "table_units",
    "write_weather_report",
]

WELL_KNOWN = ("2t", "z_500", "msl", "t_850", "10u", "q_700", "q_850", "u_850", "v_850")
"""Channels that are shown first."""

_MAPS = 8
_TRAINING = TrainingHints(
    "eval_rmse_to_persistence", "validation RMSE / persistence", ("persistence", 1.0)
)
_BASELINES = ("persistence", "climatology", "untuned")


def write_weather_report(
    output_dir: str | os.PathLike[str],
    *,
    fields: WeatherFields,
    example: ForecastExample | None = None,
    log_history: Sequence[Mapping[str, Any]] | None = None,
    title: str = "Weather forecasts",
) -> Path:
    """Writes a run's own sections, ``report_sections.json``, and with them ``report.html``.

    Any later report of the run has the sections too.

    Args:
        output_dir (path): Folder of the run with ``run.json`` and ``scores.json``, and
            ``audit.json`` and ``gradient_health.json`` where there are any.
        fields (WeatherFields): The data of the run.
        example (ForecastExample, *optional*): The forecast to draw.
        log_history (sequence of mappings, *optional*): Of the trainer's state, for a run without
            ``metrics.jsonl``; defaults to that of the newest checkpoint.
        title (str): Heading of the page.

    Returns:
        Where the report is.
    """
    folder = Path(output_dir)
    scores = read_json(folder / "scores.json")
    report = Report(title, _subtitle(scores, fields))
    scores_section(report, scores)
    if example is not None:
        maps_section(report, example, land_mask(fields))
    if (folder / "audit.json").exists():
        audit_section(report, read_json(folder / "audit.json"))
    save_task_report(folder, report, training=_TRAINING)
    views = [RunView.from_folder(folder)]
    return write_runs_report(views, folder / "report.html", log_history=log_history)


def _subtitle(scores: Mapping[str, Any], fields: WeatherFields) -> str:
    leads = scores["lead_hours"]
    ahead = f"{leads[0]} h" if len(leads) == 1 else f"{leads[0]} to {leads[-1]} h"
    rows, columns = fields.layout.grid
    return (
        f"{ahead} ahead, {len(scores['variables'])} channels on {rows} x {columns} points, "
        f"scored on {scores['samples']:,} forecasts from {scores['valid_from'][:10]} to "
        f"{scores['valid_to'][:10]}"
    )


def scores_section(report: Report, scores: Mapping[str, Any]) -> Section:
    """Adds the scorecard of ``scores.json``.

    Args:
        report (Report): Where it is added.
        scores (mapping): As :meth:`~hftune.tasks.weather.scores.ForecastScores.result` gives it.
    """
    section = report.section("Scores")
    variables, leads, summary = scores["variables"], scores["lead_hours"], scores["summary"]
    section.tiles(_score_tiles(scores))
    worse = summary.get("worse_than_untuned", [])
    if worse:
        section.text(
            f"Worse than the model was before training: {', '.join(worse)}.", tone="warning"
        )
    if len(leads) > 1:
        section.table(
            ["", *(f"{hours} h" for hours in leads)],
            [
                [
                    name_cell(channel),
                    *(ratio_cell(known_number(value)) for value in entry["rmse_to_persistence"]),
                ]
                for channel, entry in variables.items()
            ],
            "RMSE as a fraction of persistence's, by lead time. Blue is better than persistence.",
        )
    parts = [section] if len(leads) == 1 else section.panels([f"{hours} h" for hours in leads])
    for index, part in enumerate(parts):
        _lead_table(part, scores, index)
    if len(leads) > 1:
        _lead_curves(section.fold("RMSE by lead time"), scores)
    return section


def _score_tiles(scores: Mapping[str, Any]) -> list[Tile]:
    variables, summary = scores["variables"], scores["summary"]
    ratio = known_number(summary.get("mean_rmse_to_persistence"))
    tiles = [
        Tile(
            "RMSE / persistence",
            ratio,
            "mean of all channels" + (" and lead times" if len(scores["lead_hours"]) > 1 else ""),
            "good" if ratio < 1 else "bad",
        )
    ]
    names = {"untuned": "the untuned model"}
    for baseline in _BASELINES:
        pairs = [
            (known_number(ours), known_number(theirs))
            for entry in variables.values()
            if f"{baseline}_rmse" in entry
            for ours, theirs in zip(entry["rmse"], entry[f"{baseline}_rmse"], strict=True)
        ]
        pairs = [pair for pair in pairs if pair[1] > 0]
        if not pairs:
            continue
        won = sum(ours < theirs for ours, theirs in pairs)
        less = math.exp(np.mean([math.log(a / b) for a, b in pairs if a > 0])) if won else math.nan
        tiles.append(
            Tile(
                f"Better than {names.get(baseline, baseline)}",
                f"{won} of {len(pairs)}",
                f"RMSE × {less:.2f}, geometric mean" if math.isfinite(less) else "",
                "good" if won == len(pairs) else "warning",
            )
        )
    return tiles


def _lead_table(section: Section, scores: Mapping[str, Any], index: int) -> None:
    variables = scores["variables"]
    one = next(iter(variables.values()))
    baselines = [name for name in _BASELINES if f"{name}_rmse" in one]
    columns = ["", "units", "RMSE", *baselines, "RMSE / persistence", "MAE", "bias"]
    if "acc" in one:
        columns += ["ACC", "ACC of persistence"]
    rows = []
    for channel, entry in variables.items():
        factor, units = table_units(entry["units"])

        def value(key: str, entry: Any = entry, factor: float = factor) -> float:
            return known_number(entry[key][index]) * factor

        row: list[Any] = [name_cell(channel), units, Cell(value("rmse"), strong=True)]
        for name in baselines:
            beaten = value("rmse") <= value(f"{name}_rmse")
            row.append(
                Cell(
                    value(f"{name}_rmse"),
                    shade=None if beaten else 0.45,
                    note="" if beaten else f"the model is worse than {name}",
                )
            )
        ratio = entry.get("rmse_to_persistence")
        row.append(ratio_cell(known_number(ratio[index])) if ratio else Cell(None))
        more = [value("mae"), value("bias")]
        if "acc" in one:
            more += [
                known_number(entry["acc"][index]),
                known_number(entry["persistence_acc"][index]),
            ]
        row += [Cell(number, digits=3) for number in more]
        rows.append(row)
    section.table(
        columns,
        rows,
        f"Area-weighted, {scores['samples']:,} forecasts, all on the same samples. Climatology is "
        "that of the training years by day of the year; ACC is the correlation of anomalies from "
        "it. A red cell is a baseline that was not beaten.",
    )


def _lead_curves(section: Section, scores: Mapping[str, Any]) -> None:
    variables, leads = scores["variables"], scores["lead_hours"]
    chosen = [name for name in variables if name in WELL_KNOWN] or list(variables)[:12]
    for panel, channel in zip(section.panels(chosen), chosen, strict=True):
        entry = variables[channel]
        factor, units = table_units(entry["units"])
        curves = []
        for name, color in (("", 0), ("persistence", 1), ("climatology", 2), ("untuned", 4)):
            key = f"{name}_rmse" if name else "rmse"
            if key in entry:
                values = [known_number(value) * factor for value in entry[key]]
                curves.append(
                    Series(name or "model", leads, values, color, dashed=bool(name), dots=True)
                )
        panel.curves(
            curves, title=channel_label(channel), x_label="lead time, hours", y_label=units
        )


def first_channels(channels: Sequence[str]) -> list[str]:
    """Sorts channels for showing: the well-known ones, then those at the surface, then the rest."""
    surface = [c for c in channels if split_channel(c)[1] is None]
    order = dict.fromkeys([c for c in WELL_KNOWN if c in channels])
    return list(order | dict.fromkeys(surface) | dict.fromkeys(channels))


def land_mask(fields: WeatherFields) -> np.ndarray | None:
    """Returns the land-sea mask ``[H, W]`` of data that have one."""
    names = fields.layout.static_channels
    return fields.static_fields[names.index("lsm")] if "lsm" in names else None


def table_units(units: str) -> tuple[float, str]:
    """Returns a factor and the units in which errors are easy to read.

    Geopotential stays in m² s⁻², as is usual.
    """
    factor, shown = {"Pa": (0.01, "hPa"), "kg kg-1": (1000.0, "g kg-1"), "m": (1000.0, "mm")}.get(
        units, (1.0, units)
    )
    return factor, pretty_units(shown)


def name_cell(channel: str) -> Cell:
    """Returns the name of a channel, with what it means under the pointer."""
    return Cell(channel, note=channel_label(channel), strong=True)


def ratio_cell(ratio: float) -> Cell:
    """Returns a ratio of errors: blue where it is less than 1, red where it is more."""
    if not math.isfinite(ratio) or ratio <= 0:
        return Cell(None)
    shade = max(-0.75, min(0.75, 1.2 * math.log2(ratio)))
    return Cell(ratio, digits=3, shade=shade, note=f"{100 * (ratio - 1):+.1f} %")


def known_number(value: float | None) -> float:
    """Returns a number of ``scores.json``, where ``null`` stands for NaN."""
    return math.nan if value is None else float(value)


def maps_section(
    report: Report, example: ForecastExample, land: np.ndarray | None = None
) -> Section:
    """Adds maps of one forecast, one channel at a time.

    Args:
        report (Report): Where they are added.
        example (ForecastExample): The forecast; its last lead time up to 72 hours is drawn, where
            there is more to see than at the first.
        land (array ``[H, W]``, *optional*): Land-sea mask; may have more rows in the south.
    """
    section = report.section("One forecast")
    leads, layout = example.lead_hours, example.layout
    lead = max((i for i, hours in enumerate(leads) if hours <= 72), default=0)
    valid = example.time + leads[lead] * 3600
    section.text(
        f"Made at {format_clock(example.time)}, {leads[lead]} hours ahead: the forecast in the "
        "middle of the test period, not a chosen one. Truth and forecast share their colours."
    )
    if land is not None:
        land = land[: layout.grid[0]]
    channels = first_channels(layout.channels)[:_MAPS]
    for panel, channel in zip(section.panels(channels), channels, strict=True):
        index = layout.channels.index(channel)
        truth, forecast = example.truth[lead, index], example.forecast[lead, index]
        figure = forecast_figure(
            layout,
            channel,
            truth,
            forecast,
            titles=(f"Truth, {format_clock(valid)}", "Forecast", "Forecast − truth"),
            land=land,
        )
        label = channel_label(channel)
        panel.figure(figure, label[:1].upper() + label[1:])
    return section


def audit_section(report: Report, audit: Mapping[str, Any]) -> Section:
    """Adds what the audit of the data found.

    Args:
        report (Report): Where it is added.
        audit (mapping): As :meth:`~hftune.tasks.weather.audit.Audit.as_dict` gives it.
    """
    section = report.section("Data")
    times, grid = audit["times"], audit["grid"]
    counts = {name: audit[name] for name in ("errors", "warnings")}
    verdict = ", ".join(
        f"{count} {name if count > 1 else name[:-1]}" for name, count in counts.items() if count
    )
    section.tiles(
        [
            Tile(
                "Audit",
                verdict or "nothing wrong",
                tone="bad" if counts["errors"] else "warning" if counts["warnings"] else "good",
            ),
            Tile("Times", times["count"], f"{times['first']} to {times['last']}"),
            Tile("Step", f"{times['step_hours']:g} h"),
            Tile(
                "Grid",
                f"{grid['latitudes']} × {grid['longitudes']}",
                f"{degrees(grid['south'], 'N', 'S')} to {degrees(grid['north'], 'N', 'S')}, "
                f"{degrees(grid['west'], 'E', 'W')} to {degrees(grid['east'], 'E', 'W')}",
            ),
        ]
    )
    tones = {"error": 0.6, "warning": 0.3}
    findings = audit["findings"]
    if findings:
        section.table(
            ["", "channel", "what was found", "where and when"],
            [
                [
                    Cell(finding["severity"], shade=tones.get(finding["severity"])),
                    finding["channel"] or "all",
                    finding["message"],
                    finding["place"],
                ]
                for finding in findings
            ],
        )
    rows = []
    for channel, entry in audit["channels"].items():
        # Whole years show a drift that seasons hide.
        years = list(entry["years"].values())
        series = years if len(years) >= 6 else entry["series"]["mean"]
        numbers = [entry[key] for key in ("minimum", "mean", "maximum", "std")]
        row = [name_cell(channel), pretty_units(entry["units"]), *numbers, entry["missing"]]
        if any(other["reference_z"] is not None for other in audit["channels"].values()):
            row.append(Cell(entry["reference_z"], digits=2))
        row += [
            Cell(markup=spark_bars(entry["histogram"]["counts"])),
            Cell(markup=spark_line(series)),
        ]
        rows.append(row)
    columns = ["", "units", "minimum", "mean", "maximum", "std", "missing"]
    if rows and len(rows[0]) > 9:
        columns.append("z, model")
    section.fold(f"{len(rows)} channels", opened=len(rows) <= 16).table(
        [*columns, "values", "over time"], rows
    )
    section.fold("Sources").key_values(
        {**{f"{i}": name for i, name in enumerate(audit["sources"], 1)},
         "fingerprint": audit["fingerprint"]}
    )  # fmt: skip
    return section


def format_clock(seconds: int) -> str:
    """Formats a time, seconds since 1970, for people: ``2022-01-15 00:00 UTC``."""
    text = format_time(seconds)
    return f"{text.replace('T', ' ')} UTC" if "T" in text else f"{text} 00:00 UTC"
