"""Aurora's one-day forecasts beside ridge regression and persistence, on the same samples.

    accelerate launch recipes/aurora.py --config recipes/configs/aurora_regional_daily.yaml \\
        --data FIELDS.nc --train_dates ... --validation_dates ... --test_dates ... --output_dir RUN
    python benchmarks/aurora_against_ridge.py RUN

The regression maps the whole state of one day (or of two) to the change to the next, with the day
of the year; its strength is chosen on the validation dates. RUN's own settings say which data and
dates.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hftune.tasks.weather.dates import select_rows
from hftune.tasks.weather.scores import cell_area_weights
from hftune.tasks.weather.store import open_fields
from hftune.utils.files import read_json

STRENGTHS = (3, 10, 30, 100, 300, 1000)


def features(states: np.ndarray, times: np.ndarray, rows: np.ndarray, days: int) -> np.ndarray:
    """Returns float64 ``[n, features]``: the normalised states of some days, and the season."""
    parts = [states[rows]] + [states[rows - k] - states[rows - k + 1] for k in range(1, days)]
    phase = 2 * np.pi * times[rows] / (365.2425 * 86400)
    season = [f(k * phase) for k in (1, 2) for f in (np.sin, np.cos)] + [np.ones(len(rows))]
    flat = [part.reshape(len(rows), -1) for part in parts]
    return np.concatenate([*flat, np.stack(season, axis=1)], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="output folder of recipes/aurora.py")
    run = parser.parse_args().run
    settings = read_json(run / "run.json")["configuration"]["data"]
    scores = read_json(run / "scores.json")
    lead = settings["lead_hours"]["value"][0]
    fields = open_fields(settings["data"]["value"], variables=settings["variables"]["value"])
    values, times = fields.read(slice(None)).astype(np.float64), fields.times
    rows = {s: select_rows(times, settings[f"{s}_dates"]["value"]) for s in ("train", "test")}
    rows["validation"] = select_rows(times, settings["validation_dates"]["value"])
    inside = {
        name: np.array([r for r in some if {r - 1, r + 1} <= set(some.tolist())])
        for name, some in rows.items()
    }
    mean = values[rows["train"]].mean(axis=(0, 2, 3))[:, None, None]
    std = values[rows["train"]].std(axis=(0, 2, 3))[:, None, None]
    states = (values - mean) / std
    weight = cell_area_weights(fields.layout.latitude)[:, None]

    def rmse(forecast: np.ndarray, name: str) -> np.ndarray:
        error = (forecast - states[inside[name] + 1]) * std
        return np.sqrt((error**2 * weight).mean(axis=(2, 3)).mean(axis=0))

    persistence = {name: rmse(states[inside[name]], name) for name in ("validation", "test")}
    ridge = {}
    for days in (1, 2):
        train = inside["train"]
        x = features(states, times, train, days)
        y = (states[train + 1] - states[train]).reshape(len(train), -1)
        gram, moments = x.T @ x, x.T @ y
        best = (np.inf, None)
        for strength in STRENGTHS:
            w = np.linalg.solve(gram + strength * np.eye(len(gram)), moments)
            forecast = {
                name: states[inside[name]]
                + (features(states, times, inside[name], days) @ w).reshape(-1, *states.shape[1:])
                for name in ("validation", "test")
            }
            score = (rmse(forecast["validation"], "validation") / persistence["validation"]).mean()
            if score < best[0]:
                best = (score, rmse(forecast["test"], "test") / persistence["test"])
        ridge[days] = best[1]

    table = Table(title=f"RMSE / persistence, {lead} h, {scores['samples']} forecasts")
    for column in ("channel", "ridge, 1 day", "ridge, 2 days", "Aurora", "below 1 day", "below 2"):
        table.add_column(column, justify="left" if column == "channel" else "right")
    ours = {c: v["rmse_to_persistence"][0] for c, v in scores["variables"].items()}
    for i, channel in enumerate(fields.layout.channels):
        one, two, aurora = ridge[1][i], ridge[2][i], ours[channel]
        marks = ["yes" if aurora < other else "NO" for other in (one, two)]
        table.add_row(channel, f"{one:.3f}", f"{two:.3f}", f"{aurora:.3f}", *marks)
    state = [i for i, c in enumerate(fields.layout.channels) if c != "tp"]
    means = [ridge[1][state].mean(), ridge[2][state].mean()]
    means.append(np.mean([ours[fields.layout.channels[i]] for i in state]))
    table.add_section()
    table.add_row("mean without tp", *(f"{value:.4f}" for value in means), "", "")
    Console().print(table)


if __name__ == "__main__":
    main()
