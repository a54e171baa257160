"""The report of a chain says what its numbers say, and no more."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest

from hftune.tasks.weather.chain_results import lead_labels
from hftune.tasks.weather.evaluation_weather import ForecastExample
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.tasks.weather.report_chain import (
    chain_skill_section,
    chain_variables_section,
    drift_section,
    write_chain_report,
)
from hftune.tracking.report import Report
from hftune.tracking.report_runs import write_runs_report
from hftune.tracking.run_record import RunRecord
from hftune.tracking.run_view import RunView
from hftune.utils.files import read_json, write_json

HOURS = [24, 48, 72]
LAYOUT = FieldLayout(
    ("2t", "msl"),
    ("K", "Pa"),
    ("lsm",),
    np.array([45.0, 42.5, 40.0]),
    np.array([355.0, 357.5, 360.0, 362.5]),
)
FIELDS = WeatherFields(
    LAYOUT,
    np.arange(3) * 86400,
    np.zeros((3, 2, 3, 4), np.float32),
    np.array([[[0, 0, 1, 1]] * 3], np.float32),
)


def results(model=(0.5, 0.8, 0.9), untuned=(0.502, 1.0, 1.8), drift=(0.02, 0.04, 0.15, 0.2)):
    """Two channels: one with the mean errors in K, one with a hundred times them in Pa."""
    means = {
        "model": list(model),
        "untuned": list(untuned),
        "persistence": [1.0, 1.25, 1.5],
        "climatology": [1.0, 1.0, 1.0],
    }
    if not untuned:
        del means["untuned"]
    variables = {
        channel: {
            "units": units,
            **{
                "rmse" if name == "model" else f"{name}_rmse": [factor * v for v in values]
                for name, values in means.items()
            },
        }
        for channel, units, factor in (("2t", "K", 1), ("msl", "Pa", 100))
    }
    return {
        "lead_hours": HOURS,
        "samples": 1234,
        "valid_from": "1997-01-03T00:00:00Z",
        "valid_to": "1999-12-31T00:00:00Z",
        "variables": variables,
        "step_hours": 24,
        "folds": 0,
        "drift": [
            {"lead_hours": 24 * k, "train": 1.0, "val": 1 + gap, "test": 1.5, "drift": gap}
            for k, gap in enumerate(drift)
        ],
        "summary": {"rmse_normalised": means},
    }


def blocks(section, kind):
    return [block for block in section.blocks if block["kind"] == kind]


def test_tiles_and_sentences_where_the_chain_wins():
    section = chain_skill_section(Report("a"), results())
    [tiles] = [block["tiles"] for block in blocks(section, "tiles")]
    assert [(tile.value, tile.note, tile.tone) for tile in tiles] == [
        ("3 of 3", "days 1 to 3", "good"),
        ("50.0 %", "RMSE / std 0.900, untuned 1.800", "good"),
        ("0.500", "persistence 1.000, climatology 1.000", "good"),
    ]
    [text] = blocks(section, "text")
    plain = [one.replace("\N{NO-BREAK SPACE}", " ") for one in text["paragraphs"]]
    assert plain == [
        "Against climatology: better at days 1 to 3 (RMSE × 0.50 to × 0.90).",
        "Against persistence: better at days 1 to 3 (RMSE × 0.50 to × 0.60).",
        "Against the untuned model: better at days 2, 3 (RMSE × 0.80 to × 0.50), "
        "level (within 1 %) at day 1 (RMSE × 1.00).",
    ]
    assert text["tone"] == "good"


def test_nothing_is_claimed_that_the_numbers_do_not_carry():
    lost = results(model=(1.005, 1.2, math.nan), untuned=(1.0, 1.0, 1.0))
    section = chain_skill_section(Report("a"), lost)
    [tiles] = [block["tiles"] for block in blocks(section, "tiles")]
    assert [(tile.value, tile.tone) for tile in tiles] == [
        ("0 of 3", "warning"),
        ("–", "warning"),
        ("1.005", "warning"),
    ]
    assert tiles[0].note == "level with it (within 1 %): day 1"
    [text] = blocks(section, "text")
    assert text["tone"] == "warning"
    assert text["paragraphs"][0].replace("\N{NO-BREAK SPACE}", " ") == (
        "Against climatology: level (within 1 %) at day 1 (RMSE × 1.00), "
        "worse at days 2, 3 (RMSE × 1.20 to × –)."
    )


def test_the_curves_are_the_means_and_each_channel_in_units_people_read():
    section = chain_skill_section(Report("a"), results())
    [chart] = [block["spec"] for block in blocks(section, "curves")]
    assert [(line["name"], line["y"]) for line in chart["series"]] == [
        ("chain", [0.5, 0.8, 0.9]),
        ("untuned, rolled out", [0.502, 1.0, 1.8]),
        ("persistence", [1.0, 1.25, 1.5]),
        ("climatology", [1.0, 1.0, 1.0]),
    ]
    assert chart["x"] == "lead time, days" and chart["series"][0]["x"] == [1, 2, 3]
    [panels] = [block["sections"] for block in blocks(section, "panels")]
    assert [panel.title for panel in panels] == ["2t", "msl"]
    pressure = panels[1].blocks[0]["spec"]
    assert pressure["y"] == "RMSE, hPa"
    assert pressure["series"][0]["y"] == pytest.approx([0.5, 0.8, 0.9])


def test_lead_times_that_are_no_days_are_hours():
    short = {**results(), "lead_hours": [6, 12, 18]}
    section = chain_skill_section(Report("a"), short)
    [chart] = [block["spec"] for block in blocks(section, "curves")]
    assert chart["x"] == "lead time, hours" and chart["series"][0]["x"] == [6, 12, 18]
    assert "better at 6 h, 12 h, 18 h" in blocks(section, "text")[0]["paragraphs"][0]
    assert lead_labels([24, 72, 96, 120, 168]) == "days 1, 3 to 5, 7"


def test_without_untuned_and_climatology_there_is_persistence_left():
    bare = results(untuned=())
    del bare["summary"]["rmse_normalised"]["climatology"]
    for entry in bare["variables"].values():
        del entry["climatology_rmse"]
    section = chain_skill_section(Report("a"), bare)
    [tiles] = [block["tiles"] for block in blocks(section, "tiles")]
    assert [tile.label for tile in tiles] == ["RMSE / std, day 1"]
    assert len(blocks(section, "text")[0]["paragraphs"]) == 1
    [panels] = [b["sections"] for b in blocks(chain_variables_section(Report("a"), bare), "panels")]
    assert [panel.title for panel in panels] == ["against persistence"]


def test_every_variable_is_told_as_a_fraction_of_each_baseline():
    section = chain_variables_section(Report("a"), results())
    [panels] = [block["sections"] for block in blocks(section, "panels")]
    assert [p.title for p in panels] == [
        "against climatology",
        "against persistence",
        "against untuned",
    ]
    table = panels[1].blocks[0]
    assert table["columns"] == ["", "day 1", "day 2", "day 3"]
    for row in table["rows"]:
        assert [cell.value for cell in row[1:]] == pytest.approx([0.5, 0.64, 0.6])
        assert all(cell.shade < 0 for cell in row[1:])


@pytest.mark.parametrize(
    ("drift", "folds", "said"),
    [
        (
            (0.02, 0.04, 0.15, 0.9),  # the last states train nobody
            0,
            "The states that day 3 was trained on are better than those it is used on: on the "
            "validation days, which no model was trained on, their error is 15.0 % larger. Where "
            "this is large, a lead time learns to mend smaller errors than it will meet: fewer "
            "epochs, more weight decay or cross-fitted training states (--cross_fit 2) make it "
            "smaller.",
        ),
        (
            (math.nan, 0.05, 0.004, 0.9),
            0,
            "The states that day 3 was trained on are as good as those it is used on: on the "
            "validation days, which no model was trained on, their error is 0.4 % larger; for day "
            "2 it is most, 5.0 % larger.",
        ),
        (
            (-0.2, -0.02, -0.03, 0.0),
            4,
            "The states that day 3 was trained on are worse than those it is used on: on the "
            "validation days, which no model was trained on, their error is 3.0 % smaller. The "
            "training states are cross-fitted: each of 4 parts of the training days was predicted "
            "by models trained on the other parts alone, so none was learned by heart.",
        ),
    ],
)
def test_the_drift_is_put_into_a_sentence(drift, folds, said):
    section = drift_section(Report("a"), {**results(drift=drift), "folds": folds})
    [text] = blocks(section, "text")
    years = " Part of it can be the years: not all are equally hard to forecast."
    assert text["paragraphs"] == (said + years,)
    [chart] = [block["spec"] for block in blocks(section, "curves")]
    lines = {line["name"]: line["y"] for line in chart["series"]}
    expected = [None if math.isnan(gap) else 1 + gap for gap in drift]
    assert lines["validation states"] == pytest.approx(expected)
    assert chart["series"][0]["x"] == [0, 1, 2, 3]
    [fold] = [block["section"] for block in blocks(section, "fold")]
    assert [row[0].value for row in fold.blocks[0]["rows"]] == [
        "the start", "day 1", "day 2", "day 3"
    ]  # fmt: skip


def test_one_lead_time_from_reanalysis_has_no_drift():
    one = results(drift=(math.nan, 0.1))
    one["lead_hours"] = [24]
    section = drift_section(Report("a"), one)
    [text] = blocks(section, "text")
    assert text["paragraphs"] == ("Day 1 learned from what happened: there is no drift yet.",)


def make_example():
    values = np.random.default_rng(0).normal(280, 1, (10, 2, 3, 4)).astype(np.float32)
    hours = tuple(24 * day for day in range(1, 11))
    return ForecastExample(LAYOUT, hours, 86400, values, values + 1)


def test_the_report_of_a_run_has_its_sections_and_can_be_written_later(tmp_path):
    stage = {
        "title": "lead time 1 of 3", "samples": 59, "epochs": 2.0, "steps": 8, "best_step": 4,
        "best_metric": 0.75, "seconds": 61.0, "start_weights": "initial_model",
    }  # fmt: skip
    with RunRecord.start(tmp_path, task="aardvark", configuration={}) as record:
        for step in (4, 8):
            record.log_metrics({"loss": 1 / step, "eval_loss": 2 / step}, step)
        write_json(tmp_path / "scores.json", results())
    scores = read_json(tmp_path / "scores.json")
    path = write_chain_report(
        tmp_path,
        fields=FIELDS,
        results=scores,
        example=make_example(),
        stages=[stage],
        title="A <b>",
    )
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html" and "A &lt;b&gt;" in text
    assert (
        "1 to 3 days ahead, 2 channels on 3 x 4 points, scored on 1,234 forecasts valid from "
        "1997-01-03 to 1999-12-31" in text
    )
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    expected = ["Skill over lead time", "By variable", "Drift of the states", "One forecast"]
    assert headings[:6] == [*expected, "Stages", "Training"]
    # Made on 2 January: the first, the fifth and the last day.
    valid = re.findall(r"Truth, (1970-\S+)", text)
    assert sorted(set(valid)) == ["1970-01-03", "1970-01-07", "1970-01-12"]
    assert "validation loss" in text and "1:01" in text and "initial_model" in text
    (tmp_path / "scores.json").unlink()
    write_runs_report([RunView.from_folder(tmp_path)], path)
    again = path.read_text(encoding="utf-8")
    assert re.sub(r"f\d+-", "", again) == re.sub(r"f\d+-", "", text)


def test_values_at_the_wrong_points_are_said_before_the_maps(tmp_path):
    finding = {
        "check": "order", "severity": "warning", "channel": None, "message": "odd", "place": ""
    }  # fmt: skip
    audit = {
        "errors": 0, "warnings": 1, "findings": [finding], "channels": {},
        "times": {"count": 3, "first": "a", "last": "b", "step_hours": 24.0},
        "grid": {"latitudes": 3, "longitudes": 4, "north": 45.0, "south": 40.0, "west": 355.0,
                 "east": 362.5},
        "sources": ["x.nc"], "fingerprint": "abc",
    }  # fmt: skip
    with RunRecord.start(tmp_path, task="aardvark", configuration={}):
        pass
    for check, warned in (("order", True), ("units", False)):
        audit["findings"][0]["check"] = check
        write_json(tmp_path / "audit.json", audit)
        values = copy.deepcopy(results())
        path = write_chain_report(tmp_path, fields=FIELDS, results=values, example=make_example())
        text = path.read_text(encoding="utf-8")
        assert ("probably lie at the wrong points" in text) == warned
        assert "<h2>Data</h2>" in text
