"""The report of a chain of lead times: skill by lead time, drift, one forecast on maps."""

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
from ...utils.files import read_json
from ...utils.terminal import duration
from .chain_results import lead_label, lead_labels
from .evaluation_weather import ForecastExample
from .fields import WeatherFields
from .maps import channel_label, forecast_figure
from .report_weather import (
    audit_section,
    first_channels,
    format_clock,
    known_number,
    land_mask,
    name_cell,
    ratio_cell,
    table_units,
)

__all__ = [
    "chain_maps_section",
    "chain_skill_section",
    "chain_stages_section",
    "chain_variables_section",
    "drift_section",
    "write_chain_report",
]

_PANELS = 9
_MAPS = 5
_LEVEL = 0.01  # less than this is no difference: a few hundred forecasts in a row are alike
_DRIFTED = 0.1  # a drift that is worth doing something about
_VERDICTS = ("better", f"level (within {100 * _LEVEL:g} %)", "worse")
_TRAINING = TrainingHints("eval_loss", "validation loss")
# Name, what it is called, colour and whether it is dashed.
_CURVES = (
    ("model", "chain", 0, False),
    ("untuned", "untuned, rolled out", 4, True),
    ("persistence", "persistence", 1, True),
    ("climatology", "climatology", 2, True),
)
_SPLITS = (
    ("train", "training states", 0),
    ("val", "validation states", 1),
    ("test", "test states", 2),
)
_RIVALS = {
    "climatology": "climatology",
    "persistence": "persistence",
    "untuned": "the untuned model",
}


def write_chain_report(
    output_dir: str | os.PathLike[str],
    *,
    fields: WeatherFields,
    results: Mapping[str, Any],
    example: ForecastExample | None = None,
    stages: Sequence[Mapping[str, Any]] = (),
    title: str = "Lead-time chain",
) -> Path:
    """Writes a run's own sections, ``report_sections.json``, and with them ``report.html``.

    Any later report of the run has the sections too.

    Args:
        output_dir (path): Folder of the run with ``run.json``, and ``audit.json`` where there is
            one.
        fields (WeatherFields): The truth, for its land-sea mask.
        results (mapping): Of :func:`~hftune.tasks.weather.chain_results.chain_scores`.
        example (ForecastExample, *optional*): The forecast to draw.
        stages (sequence of mappings): Results of the stages (``trainer.results``), for a table of
            them. Defaults to none.
        title (str): Heading of the page.

    Returns:
        Where the report is.
    """
    folder = Path(output_dir)
    report = Report(title, _subtitle(results, fields))
    chain_skill_section(report, results)
    chain_variables_section(report, results)
    drift_section(report, results)
    audit_file = folder / "audit.json"
    audit = read_json(audit_file) if audit_file.exists() else None
    if example is not None:
        chain_maps_section(report, example, land_mask(fields), audit)
    if stages:
        chain_stages_section(report, stages)
    if audit is not None:
        audit_section(report, audit)
    save_task_report(folder, report, training=_TRAINING)
    return write_runs_report([RunView.from_folder(folder)], folder / "report.html")


def _subtitle(results: Mapping[str, Any], fields: WeatherFields) -> str:
    rows, columns = fields.layout.grid
    return (
        f"{_range(results['lead_hours'])} ahead, {len(results['variables'])} channels on "
        f"{rows} x {columns} points, scored on {results['samples']:,} forecasts valid from "
        f"{results['valid_from'][:10]} to {results['valid_to'][:10]}"
    )


# Skill


def chain_skill_section(report: Report, results: Mapping[str, Any]) -> Section:
    """Adds how good the forecasts are by lead time: tiles, what they say, curves.

    Args:
        report (Report): Where it is added.
        results (mapping): Of :func:`~hftune.tasks.weather.chain_results.chain_scores`.
    """
    section = report.section("Skill over lead time")
    hours, means = results["lead_hours"], results["summary"]["rmse_normalised"]
    section.tiles(_tiles(results))
    sentences, tone = _verdict(results)
    section.text(*sentences, tone=tone)
    x, x_label = _axis(hours)
    section.curves(
        [
            Series(
                label, x, [known_number(v) for v in means[name]], color, dashed=dashed, dots=True
            )
            for name, label, color, dashed in _CURVES
            if name in means
        ],
        title="All channels",
        x_label=x_label,
        y_label="RMSE / std",
        caption="Mean over the channels of the area-weighted RMSE in units of the channel's "
        "standard deviation over the training times; all on the same forecasts. Less is better.",
    )
    chosen = first_channels(list(results["variables"]))[:_PANELS]
    for panel, channel in zip(section.panels(chosen), chosen, strict=True):
        entry = results["variables"][channel]
        factor, units = table_units(entry["units"])
        curves = []
        for name, label, color, dashed in _CURVES:
            key = "rmse" if name == "model" else f"{name}_rmse"
            if key in entry:
                values = [known_number(value) * factor for value in entry[key]]
                curves.append(Series(label, x, values, color, dashed=dashed, dots=True))
        panel.curves(
            curves, title=channel_label(channel), x_label=x_label, y_label=f"RMSE, {units}"
        )
    return section


def _tiles(results: Mapping[str, Any]) -> list[Tile]:
    hours, summary = results["lead_hours"], results["summary"]
    means = summary["rmse_normalised"]
    first, last = lead_label(hours[0]), lead_label(hours[-1])
    tiles = []
    if "climatology" in means:
        better, level, _ = _compared(results, "climatology")
        note = f"level with it (within {100 * _LEVEL:g} %): {lead_labels(level)}" if level else ""
        tiles.append(
            Tile(
                "Lead times better than climatology",
                f"{len(better)} of {len(hours)}",
                note or (lead_labels(better) if better else ""),
                "good" if len(better) + len(level) == len(hours) else "warning",
            )
        )
    if "untuned" in means:
        gain = 1 - _ratio(results, "untuned")[-1]
        tiles.append(
            Tile(
                f"Gain over the untuned model, {last}",
                _percent(gain),
                f"RMSE / std {_fixed(means['model'][-1])}, untuned {_fixed(means['untuned'][-1])}",
                "good" if gain > _LEVEL else "warning",
            )
        )
    others = [
        f"{label} {_fixed(means[name][0])}"
        for name, label, *_ in _CURVES
        if name in means and name not in ("model", "untuned")
    ]
    tiles.append(
        Tile(
            f"RMSE / std, {first}",
            _fixed(means["model"][0]),
            ", ".join(others),
            "good" if _ratio(results, "persistence")[0] < 1 - _LEVEL else "warning",
        )
    )
    return tiles


def _ratio(results: Mapping[str, Any], rival: str) -> list[float]:
    """RMSE of the chain as a fraction of another's, by lead time."""
    means = results["summary"]["rmse_normalised"]
    pairs = zip(means["model"], means[rival], strict=True)
    return [
        known_number(ours) / known_number(theirs) if known_number(theirs) else math.nan
        for ours, theirs in pairs
    ]


def _compared(results: Mapping[str, Any], rival: str) -> tuple[list[int], list[int], list[int]]:
    """Lead times, hours, at which the chain is better than another, level with it, worse."""
    found: tuple[list[int], list[int], list[int]] = ([], [], [])
    for hour, ratio in zip(results["lead_hours"], _ratio(results, rival), strict=True):
        # What is NaN is worse.
        found[0 if ratio < 1 - _LEVEL else 1 if ratio <= 1 + _LEVEL else 2].append(hour)
    return found


def _verdict(results: Mapping[str, Any]) -> tuple[list[str], str]:
    """Says where the chain wins and loses, with the numbers, and how that is to be taken."""
    hours, sentences, lost = results["lead_hours"], [], False
    for rival, name in _RIVALS.items():
        if rival not in results["summary"]["rmse_normalised"]:
            continue
        ratio = dict(zip(hours, _ratio(results, rival), strict=True))
        compared = _compared(results, rival)
        parts = []
        for verdict, found in zip(_VERDICTS, compared, strict=True):
            if found:
                ends = list(dict.fromkeys([found[0], found[-1]]))
                numbers = " to ".join(
                    f"×\N{NO-BREAK SPACE}{_fixed(ratio[hour], 2)}" for hour in ends
                )
                parts.append(f"{verdict} at {lead_labels(found)} (RMSE {numbers})")
        sentences.append(f"Against {name}: {', '.join(parts)}.")
        lost = lost or bool(compared[2])
    return sentences, "warning" if lost else "good"


# Variables


def chain_variables_section(report: Report, results: Mapping[str, Any]) -> Section:
    """Adds tables of the RMSE by channel and lead time as a fraction of the baselines'.

    Args:
        report (Report): Where it is added.
        results (mapping): Of :func:`~hftune.tasks.weather.chain_results.chain_scores`.
    """
    section = report.section("By variable")
    hours, variables = results["lead_hours"], results["variables"]
    first = next(iter(variables.values()))
    rivals = [name for name in _RIVALS if f"{name}_rmse" in first]
    panels = section.panels([f"against {rival}" for rival in rivals])
    for panel, rival in zip(panels, rivals, strict=True):
        rows = []
        for channel, entry in variables.items():
            pairs = zip(entry["rmse"], entry[f"{rival}_rmse"], strict=True)
            ratios = [
                known_number(ours) / known_number(theirs) if known_number(theirs) else math.nan
                for ours, theirs in pairs
            ]
            rows.append([name_cell(channel), *map(ratio_cell, ratios)])
        panel.table(
            ["", *map(lead_label, hours)],
            rows,
            f"RMSE of the chain as a fraction of that of {_RIVALS[rival]}, on the same forecasts. "
            "Blue is better, red is worse.",
        )
    return section


# Drift


def drift_section(report: Report, results: Mapping[str, Any]) -> Section:
    """Adds how much better the states are that a lead time is trained on than those it is used on.

    Args:
        report (Report): Where it is added.
        results (mapping): Of :func:`~hftune.tasks.weather.chain_results.chain_scores`.
    """
    section = report.section("Drift of the states")
    entries = results["drift"]
    section.text(_drift_sentence(results))
    x, x_label = _axis([entry["lead_hours"] for entry in entries])
    curves = []
    for key, label, color in _SPLITS:
        values = [known_number(entry[key]) for entry in entries]
        curves.append(Series(label, x, values, color, dashed=key == "test", dots=True))
    step = results["step_hours"]
    change = "a day's change" if step == 24 else f"the change over {step:g} h"
    section.curves(
        curves,
        title="Error of the states by their lead time",
        x_label=x_label,
        y_label="RMSE / std of the change",
        caption="Mean over the channels of the RMSE in units of the standard deviation of "
        f"{change}, on up to 1,000 states of each split; 0 are the initial states.",
    )
    section.fold("Numbers").table(
        ["states of", "training", "validation", "test", "drift"],
        [
            [
                Cell(_state_label(entry["lead_hours"]), strong=True),
                *(Cell(known_number(entry[key])) for key in ("train", "val", "test")),
                _percent(known_number(entry["drift"])),
            ]
            for entry in entries
        ],
        "Drift: by how much the error of the validation states is larger than that of the training "
        "states.",
    )
    return section


def _drift_sentence(results: Mapping[str, Any]) -> str:
    # Each lead time learns from the states of the one before; those of the last train no other.
    hours = results["lead_hours"]
    pairs = zip(hours, results["drift"][: len(hours)], strict=True)
    gaps = {hour: known_number(entry["drift"]) for hour, entry in pairs}
    gaps = {hour: gap for hour, gap in gaps.items() if math.isfinite(gap)}
    if not gaps:
        return f"{_capital(lead_labels(hours))} learned from what happened: there is no drift yet."
    last, most = max(gaps), max(gaps, key=gaps.__getitem__)
    gap = gaps[last]
    quality = "better than" if gap > _LEVEL else "worse than" if gap < -_LEVEL else "as good as"
    text = (
        f"The states that {lead_label(last)} was trained on are {quality} those it is used on: on "
        f"the validation days, which no model was trained on, their error is {_larger(gap)}"
    )
    if most != last and gaps[most] > _LEVEL:
        text += f"; for {lead_label(most)} it is most, {_larger(gaps[most])}"
    text += "."
    if results["folds"]:
        text += (
            f" The training states are cross-fitted: each of {results['folds']} parts of the "
            "training days was predicted by models trained on the other parts alone, so none was "
            "learned by heart."
        )
    elif gaps[most] > _DRIFTED:
        text += (
            " Where this is large, a lead time learns to mend smaller errors than it will meet: "
            "fewer epochs, more weight decay or cross-fitted training states (--cross_fit 2) make "
            "it smaller."
        )
    return text + " Part of it can be the years: not all are equally hard to forecast."


# Maps


def chain_maps_section(
    report: Report,
    example: ForecastExample,
    land: np.ndarray | None = None,
    audit: Mapping[str, Any] | None = None,
) -> Section:
    """Adds maps of one forecast at the first, the middle and the last lead time.

    Args:
        report (Report): Where they are added.
        example (ForecastExample): The forecast.
        land (array ``[H, W]``, *optional*): Land-sea mask.
        audit (mapping, *optional*): What ``audit.json`` holds; said where it explains the maps.
    """
    section = report.section("One forecast")
    leads, layout = example.lead_hours, example.layout
    shown = sorted({0, (len(leads) - 1) // 2, len(leads) - 1})
    section.text(
        f"From {format_clock(example.time)}, the forecast in the middle of the test period, not a "
        "chosen one. Truth and forecast share their colours; the scales differ from one lead time "
        "to the next."
    )
    if audit is not None and any(finding["check"] == "order" for finding in audit["findings"]):
        section.text(
            "The audit found that the values of these data probably lie at the wrong points (see "
            "Data): no wonder if the maps look like noise.",
            tone="warning",
        )
    channels = first_channels(layout.channels)[:_MAPS]
    for panel, channel in zip(section.panels(channels), channels, strict=True):
        index = layout.channels.index(channel)
        for lead in shown:
            name = lead_label(leads[lead])
            figure = forecast_figure(
                layout,
                channel,
                example.truth[lead, index],
                example.forecast[lead, index],
                titles=(
                    f"Truth, {format_clock(example.time + leads[lead] * 3600)}",
                    f"Forecast, {name}",
                    "Forecast − truth",
                ),
                land=land,
            )
            panel.figure(figure, f"{_capital(channel_label(channel))}, {name}")
    return section


# Stages


def chain_stages_section(report: Report, stages: Sequence[Mapping[str, Any]]) -> Section:
    """Adds a table of the stages: how long each was trained, on how much, from what.

    Args:
        report (Report): Where it is added.
        stages (sequence of mappings): Results of the stages, as a trainer of stages has them.
    """
    section = report.section("Stages")
    section.table(
        ["", "samples", "epochs", "steps", "best step", "validation loss", "time", "started from"],
        [
            [
                Cell(stage["title"], strong=True),
                stage["samples"],
                f"{stage['epochs']:g}",
                stage["steps"],
                stage["best_step"],
                stage["best_metric"],
                duration(stage["seconds"]),
                # forecast_1/checkpoints/best_model
                stage["start_weights"].partition("/")[0],
            ]
            for stage in stages
        ],
    )
    return section


# Texts


def _axis(hours: Sequence[int]) -> tuple[list[float], str]:
    if any(hour % 24 for hour in hours):
        return list(hours), "lead time, hours"
    return [hour / 24 for hour in hours], "lead time, days"


def _state_label(hours: int) -> str:
    return lead_label(hours) if hours else "the start"


def _range(hours: Sequence[int]) -> str:
    days = [hour // 24 for hour in (hours[0], hours[-1])]
    if any(hour % 24 for hour in hours):
        return f"{hours[0]} to {hours[-1]} h"
    return f"{days[0]} day" if days == [1, 1] else f"{days[0]} to {days[1]} days"


def _fixed(value: float | None, places: int = 3) -> str:
    return f"{known_number(value):.{places}f}".replace("nan", "–")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _larger(fraction: float) -> str:
    return f"{_percent(abs(fraction))} {'larger' if fraction >= 0 else 'smaller'}"


def _percent(fraction: float) -> str:
    return "–" if not math.isfinite(fraction) else f"{100 * fraction:.1f} %".replace("-", "−")
