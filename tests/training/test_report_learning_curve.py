"""The learning curve in a report: its numbers are the predictions, its text says enough."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hftune.tracking.report import Report
from hftune.tracking.report_sections import section_as_dict, section_from_dict
from hftune.training.learning_curve import CurvePoint, expected_gain, fit_learning_curve
from hftune.training.report_learning_curve import learning_curve_section

ALL = 10_003
PLANNED = [1000, 2001, 3001, 4001, 5002, 6002, 7002, 8002, 9003, ALL]
SCORES = [0.312, 0.573, 0.759, 0.836, 0.871, 0.882, 0.894, 0.895, 0.899, 0.892]


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    return [
        CurvePoint(size, score, rng.normal(score, 0.0065, 300))
        for size, score in zip(PLANNED, SCORES, strict=True)
    ]


def section_of(points, curve, **changes):
    settings = {"metric": "accuracy", "all_samples": ALL, "planned": PLANNED, "carried": True}
    return learning_curve_section(points, curve, **settings | changes)


def blocks(section, kind):
    return [block for block in section.blocks if block["kind"] == kind]


def texts(section):
    return [text for block in blocks(section, "text") for text in block["paragraphs"]]


def signed(value):
    return f"{value:+.3f}".replace("-", "−")


def test_after_four_stages(points):
    curve = fit_learning_curve(points[:4], greater_is_better=True)
    section = section_of(points[:4], curve)
    (tiles,) = blocks(section, "tiles")
    now, coming, everything = tiles["tiles"]
    assert (now.label, now.value) == ("accuracy now", "0.836")
    assert now.note.startswith("4,001 samples, 0.82")
    for tile, name, size in (
        (coming, "Next stage", 5002),
        (everything, "All data", ALL),
    ):
        gain, then = expected_gain(curve, points[3], size), curve.predict(size)
        assert (tile.label, tile.value) == (f"{name}: expected gain", signed(gain.value))
        assert tile.note == f"{size:,} samples: accuracy {then.low:.3f} to {then.high:.3f}"
        said = f"with 95 % probability one of {signed(gain.low)} to {signed(gain.high)}."
        (text,) = [text for text in texts(section) if text.startswith(f"{name}, {size:,} samples")]
        assert said in text
        assert ("It is not certain that there is any." in text) == (gain.low <= 0)


def test_a_row_says_what_the_stages_before_it_had_predicted(points):
    section = section_of(points, fit_learning_curve(points, greater_is_better=True))
    (table,) = blocks(section, "table")
    assert table["columns"] == [
        "data",
        "samples",
        "accuracy",
        "95 % interval",
        "gain",
        "predicted by the stages before",
    ]
    rows = [[cell.value for cell in row] for row in table["rows"]]
    assert [row[0] for row in rows[:2]] == ["10 %", "20 %"]
    assert [row[1] for row in rows] == PLANNED
    assert [row[5] for row in rows[:3]] == ["–"] * 3
    before = fit_learning_curve(points[:4], greater_is_better=True).predict(5002)
    assert rows[4][5] == f"{before.value:.3f} ({before.low:.3f} to {before.high:.3f})"
    assert [row[4] for row in rows[:2]] == ["–", "+0.261"]
    assert rows[9][4] == "−0.007"
    assert table["rows"][9][4].shade > 0 and table["rows"][8][4].shade is None
    assert table["caption"].endswith(
        "7 of 7 scores lie in the interval that was predicted for them."
    )


def test_a_score_beside_its_prediction_is_marked(points):
    odd = CurvePoint(5002, 0.4, np.full(300, 0.4))
    section = section_of([*points[:4], odd], fit_learning_curve(points[:4], greater_is_better=True))
    (table,) = blocks(section, "table")
    cell = table["rows"][4][5]
    assert cell.shade > 0 and cell.note == "the measured score lies outside"
    assert "1 of 2 scores lie in the interval" in table["caption"]
    told = blocks(section, "tiles")[0]["tiles"][-1]
    assert (told.label, told.tone) == ("Predicted from 4 points", "warning")


def test_all_data_beside_what_the_first_stages_had_predicted(points):
    curve = fit_learning_curve(points[:4], greater_is_better=True)
    section = section_of(points, curve)
    then = curve.predict(ALL)
    told = blocks(section, "tiles")[0]["tiles"][-1]
    assert (told.label, told.value) == ("Predicted from 4 points", f"{then.value:.3f}")
    assert told.tone == "good"
    assert (
        texts(section)[0] == "All 10,003 samples were trained on; there is nothing more to expect."
    )
    assert "measured after the fit" in blocks(section, "svg")[0]["markup"]


def test_it_says_whether_weights_were_carried(points):
    curve = fit_learning_curve(points[:4], greater_is_better=True)
    carried, fresh = (section_of(points[:4], curve, carried=value) for value in (True, False))
    assert "this is not the curve of independent trainings" in texts(carried)[-1]
    assert texts(fresh)[-1].startswith("Each stage was trained anew")


def test_two_stages_have_no_curve(points):
    section = section_of(points[:2], None)
    assert texts(section)[0] == "What more data will bring can be said from three stages on."
    assert len(blocks(section, "tiles")[0]["tiles"]) == 1
    assert "interval" not in blocks(section, "svg")[0]["markup"]


def test_points_without_replicates(points):
    bare = [CurvePoint(point.samples, point.score) for point in points[:2]]
    (table,) = blocks(section_of(bare, None), "table")
    assert [cell.value for cell in table["rows"][0]] == ["10 %", 1000, "0.312", "–"]


def test_of_a_loss_less_is_a_gain():
    rng = np.random.default_rng(0)
    losses = [4.12, 3.42, 2.42, 1.78]
    points = [
        CurvePoint(size, loss, rng.normal(loss, 0.02, 300))
        for size, loss in zip(PLANNED, losses, strict=False)
    ]
    curve = fit_learning_curve(points, greater_is_better=False, bounds=(0, math.inf))
    section = section_of(points, curve, metric="loss")
    (table,) = blocks(section, "table")
    assert [row[4].value for row in table["rows"]] == ["–", "+0.70", "+1.00", "+0.64"]
    assert blocks(section, "tiles")[0]["tiles"][-1].value.startswith("+")


def test_a_saved_section_is_the_same(points):
    """Nothing in it is refused when a report reads it from the run's folder."""
    curve = fit_learning_curve(points[:4], greater_is_better=True)
    section = section_of(points, curve, metric="정확도 <b>")
    again = section_from_dict(section_as_dict(section))
    assert [block["kind"] for block in again.blocks] == [block["kind"] for block in section.blocks]
    report = Report("Stages")
    report.add(again)
    page = report.render()
    assert "정확도 &lt;b&gt; now" in page and "<b> now" not in page
