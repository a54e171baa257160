"""Scores as the terminal shows them."""

from __future__ import annotations

from rich.console import Console

from hftune.tasks.weather.scores_render import render_scores


def entry(rmse: list, ratio: list) -> dict:
    rivals = {f"{name}_rmse": [2.0, 3.0] for name in ("persistence", "climatology", "untuned")}
    return {"units": "K", "rmse": rmse, "rmse_to_persistence": ratio, **rivals}


def test_a_row_a_channel_and_what_got_worse():
    scores = {
        "lead_hours": [24, 48],
        "samples": 7,
        "valid_from": "1997-01-03T00:00:00Z",
        "valid_to": "1999-12-31T00:00:00Z",
        "variables": {"2t": entry([1.5, 2.7], [0.75, 0.9]), "lsm": entry([2.5, 0.0], [1.25, None])},
        "summary": {
            "rmse_to_persistence": [1.0, 0.9],
            "worse_than_persistence": ["lsm"],
            "worse_than_untuned": [],
        },
    }
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    console.print(render_scores(scores))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert (
        lines[0] == "RMSE of 7 forecasts, 1997-01-03 to 1999-12-31; ratio: to persistence's".split()
    )
    assert lines[1] == "channel 24 h persist. climat. untuned ratio 24 h ratio 48 h".split()
    assert lines[3:5] == [
        ["2t", "1.5", "2", "2", "2", "0.750", "0.900"],
        ["lsm", "2.5", "2", "2", "2", "1.250", "-"],
    ]
    assert lines[-1] == ["Worse", "than", "persistence:", "lsm"]
