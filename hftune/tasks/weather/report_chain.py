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
from .chain_results import lead_label
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
    if example is not None:
        chain_maps_section(report, example, land_mask(fields))
    if stages:
        chain_stages_section(report, stages)
    if (folder / "audit.json").exists():
        audit_section(report, read_json(folder / "audit.json"))
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
    section.text(" ".join(sentences), tone=tone)
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
        note = f"level with it (within {100 * _LEVEL:g} %): {_listed(level)}" if level else ""
        tiles.append(
            Tile(
                "Lead times better than climatology",
                f"{len(better)} of {len(hours)}",
                note or (_listed(better) if better else ""),
                "good" if len(better) + len(level) == len(hours) else "warning",
            )
        )
    if "untuned" in means:
        gain = 1 - _ratio(results, "untuned")[-1]
        tiles.append(
            Tile(
                f"Gain over the untuned model, {last}",
                f"{100 * gain:.1f} %".replace("-", "−"),
                f"RMSE / std {known_number(means['model'][-1]):.3f}, untuned "
                f"{known_number(means['untuned'][-1]):.3f}",
                "good" if gain > _LEVEL else "warning",
            )
        )
    others = [
        f"{label} {known_number(means[name][0]):.3f}"
        for name, label, *_ in _CURVES
        if name in means and name not in ("model", "untuned")
    ]
    tiles.append(
        Tile(
            f"RMSE / std, {first}",
            round(known_number(means["model"][0]), 3),
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
        better, level, worse = _compared(results, rival)
        parts = []
        for verdict, found in (
            ("better than", better),
            ("level with", level),
            ("worse than", worse),
        ):
            if found:
                ends = list(dict.fromkeys([found[0], found[-1]]))
                numbers = " and ".join(
                    f"× {ratio[hour]:.2f} at {lead_label(hour)}" for hour in ends
                )
                who = name if not parts else "it"
                parts.append(f"{verdict} {who} at {_listed(found)} (RMSE {numbers})")
        sentences.append(f"The chain is {', '.join(parts)}.")
        lost = lost or bool(worse)
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
    for panel, rival in zip(section.panels(rivals), rivals, strict=True):
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
    # The states of the last lead time train no other one.
    used = results["drift"][: len(results["lead_hours"])]
    last = used[-1]
    learner = lead_label(results["lead_hours"][-1])
    gap = known_number(last["drift"])
    if not math.isfinite(gap):
        return (
            f"There is no error of the states that {learner} was trained on to compare with: they "
            "are what happened."
        )
    text = (
        f"Each lead time is trained on states that the one before has made of the training days, "
        f"and used on states made of days that no model has seen. For {learner} the "
        f"error of the latter (validation) is "
    )
    if gap > 0:
        text += f"{_percent(gap)} larger than that of the former."
    else:
        text += f"not larger than that of the former ({_percent(gap)})."
    if len(used) > 1 and math.isfinite(start := known_number(used[0]["drift"])):
        text += f" At the initial states the difference is {_percent(start)}."
    if results["folds"]:
        text += (
            f" The training states are cross-fitted: each of {results['folds']} parts of the "
            "training days was predicted by models that were trained on the others, so what is "
            "left is not learned by heart."
        )
    elif gap > 0.1:
        text += (
            " The later lead times learn to mend smaller errors than they will meet: fewer epochs, "
            "more weight decay or cross-fitted training states make the difference smaller."
        )
    return (
        text + " Some per cent can also come from the years: not all are equally hard to forecast."
    )


# Maps


def chain_maps_section(
    report: Report, example: ForecastExample, land: np.ndarray | None = None
) -> Section:
    """Adds maps of one forecast at the first, the middle and the last lead time.

    Args:
        report (Report): Where they are added.
        example (ForecastExample): The forecast.
        land (array ``[H, W]``, *optional*): Land-sea mask.
    """
    section = report.section("One forecast")
    leads, layout = example.lead_hours, example.layout
    shown = sorted({0, (len(leads) - 1) // 2, len(leads) - 1})
    section.text(
        f"From {format_clock(example.time)}, the forecast in the middle of the test period, not a "
        "chosen one. Truth and forecast share their colours; the scales differ from one lead time "
        "to the next."
    )
    channels = first_channels(layout.channels)[:_MAPS]
    for panel, channel in zip(section.panels(channels), channels, strict=True):
        index = layout.channels.index(channel)
        label = channel_label(channel)
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
            panel.figure(figure, f"{label[:1].upper()}{label[1:]}, {name}")
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


def _listed(hours: Sequence[int]) -> str:
    """``[24, 48, 72]`` is "day 1 to 3", ``[24, 72]`` is "day 1, 3"."""
    if any(hour % 24 for hour in hours):
        return ", ".join(map(lead_label, hours))
    days = [hour // 24 for hour in hours]
    runs: list[list[int]] = []
    for day in days:
        if runs and day == runs[-1][-1] + 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    return "day " + ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)


def _percent(fraction: float) -> str:
    return "–" if not math.isfinite(fraction) else f"{100 * fraction:.1f} %".replace("-", "−")
