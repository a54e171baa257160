import re

import numpy as np
import pytest

from hftune.tasks.weather.evaluation_weather import ForecastExample
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.tasks.weather.report_weather import scores_section, write_weather_report
from hftune.tasks.weather.scores import ForecastScores
from hftune.tracking.report import Report
from hftune.tracking.report_runs import write_runs_report
from hftune.tracking.run_record import RunRecord
from hftune.tracking.run_view import RunView
from hftune.utils.files import write_json

LAYOUT = FieldLayout(
    ("2t", "msl", "q_850"),
    ("K", "Pa", "kg kg-1"),
    ("lsm",),
    np.array([45.0, 42.5, 40.0]),
    np.array([355.0, 357.5, 360.0, 362.5]),
)
LEADS = (24, 48)


def make_scores(leads=LEADS, bad=False):
    random = np.random.default_rng(0)
    shape = (20, len(leads), 3, 3, 4)
    truth = random.normal(0, 1, shape) * np.array([3, 500, 1e-3])[:, None, None]
    noise = random.normal(0, 1, shape) * np.array([1, 100, 2e-4])[:, None, None]
    valid = np.arange(20)[:, None] * 86400 + np.array(leads) * 3600
    scores, before = ForecastScores(LAYOUT, leads), ForecastScores(LAYOUT, leads)
    forecasts = {"model": truth + noise, "persistence": truth + 2 * noise}
    before.update({**forecasts, "model": truth + 1.5 * noise}, truth, valid)
    if bad:
        forecasts["model"][:, :, 1] += 1000
    scores.update(forecasts, truth, valid)
    scores.adopt("untuned", before)
    return scores.result()


def tables(section):
    found = [b for b in section.blocks if b["kind"] == "table"]
    for block in section.blocks:
        for inner in block.get("sections", []):
            found += tables(inner)
    return found


def test_the_scorecard_shows_ratios_and_errors_in_units_people_read():
    section = scores_section(Report("a"), make_scores())
    ratios, first, second = tables(section)
    assert [cell.value for cell in ratios["rows"][0][1:]] == [pytest.approx(0.5)] * 2
    assert all(cell.shade < 0 for cell in ratios["rows"][0][1:])
    row = dict(zip(first["columns"], first["rows"][1], strict=True))
    assert row["units"].value == "hPa" and row["RMSE"].value == pytest.approx(1.0, rel=0.2)
    assert row["persistence"].value == pytest.approx(2 * row["RMSE"].value)
    assert row["untuned"].value == pytest.approx(1.5 * row["RMSE"].value)
    assert row["untuned"].shade is None
    q = dict(zip(second["columns"], second["rows"][2], strict=True))
    assert q["units"].value == "g kg⁻¹" and q["RMSE"].value == pytest.approx(0.2, rel=0.2)
    [tiles] = [b["tiles"] for b in section.blocks if b["kind"] == "tiles"]
    assert [tile.value for tile in tiles] == [pytest.approx(0.5), "6 of 6", "6 of 6"]


def test_what_got_worse_stands_out():
    section = scores_section(Report("a"), make_scores([24], bad=True))
    [box] = [b for b in section.blocks if b["kind"] == "text"]
    assert box["tone"] == "warning"
    assert box["paragraphs"] == ("Worse than the model was before training: msl.",)
    [table] = tables(section)
    row = dict(zip(table["columns"], table["rows"][1], strict=True))
    assert row["persistence"].shade > 0 and row["RMSE / persistence"].shade == 0.75


@pytest.mark.parametrize("whole", [False, True])
def test_a_report_is_written_from_the_files_of_a_run(tmp_path, whole):
    land = np.array([[[0, 0, 1, 1]] * 4], np.float32)
    layout = FieldLayout(*[getattr(LAYOUT, n) for n in ("channels", "units", "static_channels")],
                         np.array([45.0, 42.5, 40.0, 37.5]), LAYOUT.longitude)  # fmt: skip
    fields = WeatherFields(layout, np.arange(3) * 86400, np.zeros((3, 3, 4, 4), np.float32), land)
    example = None
    with RunRecord.start(tmp_path, task="aurora", configuration={}):
        write_json(tmp_path / "scores.json", make_scores([24, 48] if whole else [24]))
        if whole:
            values = np.random.default_rng(0).normal(280, 1, (2, 3, 3, 4)).astype(np.float32)
            example = ForecastExample(LAYOUT, LEADS, 86400, values, values + 1)
            for step in (4, 12):
                history = [{"step": step, "loss": float(step)}]
                path = tmp_path / f"checkpoint-{step}" / "trainer_state.json"
                write_json(path, {"log_history": history})
            entry = {
                "units": "K", "minimum": 1.0, "mean": 2.0, "maximum": 3.0, "std": 1.0, "missing": 0,
                "reference_z": -0.5, "histogram": {"counts": [1, 2]}, "years": {},
                "series": {"mean": [1, None]},
            }  # fmt: skip
            finding = {
                "severity": "warning", "channel": None, "message": "<i>odd</i>", "place": "45 N"
            }  # fmt: skip
            audit = {
                "errors": 0, "warnings": 1, "findings": [finding], "channels": {"2t": entry},
                "times": {"count": 3, "first": "a", "last": "b", "step_hours": 24.0},
                "grid": {"latitudes": 3, "longitudes": 4, "north": 45.0, "south": 40.0,
                         "west": 355.0, "east": 362.5},
                "sources": ["x.nc"], "fingerprint": "abc",
            }  # fmt: skip
            write_json(tmp_path / "audit.json", audit)
        path = write_weather_report(tmp_path, fields=fields, example=example, title="A <b>")
    text = path.read_text()
    assert path == tmp_path / "report.html" and "A &lt;b&gt;" in text
    assert "3 channels on 4 x 4 points" in text
    for heading in ("One forecast", "Training", "Data"):
        assert (f"<h2>{heading}</h2>" in text) == whole
    if whole:
        assert "1970-01-04 00:00 UTC" in text  # valid 48 hours after 2 January
        assert '"y":[12.0]' in text and '"y":[4.0]' not in text  # of the newest checkpoint
        assert "&lt;i&gt;odd" in text and "5°W to 2.5°E" in text and "1 warning" in text


def test_the_same_report_can_be_written_later(tmp_path):
    fields = WeatherFields(
        LAYOUT,
        np.arange(2) * 86400,
        np.zeros((2, 3, 3, 4), np.float32),
        np.zeros((1, 3, 4), np.float32),
    )
    values = np.random.default_rng(0).normal(280, 1, (2, 3, 3, 4)).astype(np.float32)
    example = ForecastExample(LAYOUT, LEADS, 86400, values, values + 1)
    with RunRecord.start(tmp_path, task="aurora", configuration={}) as record:
        for step in (10, 20):
            record.log_metrics({"loss": 1 / step}, step)
            record.log_metrics({"eval_rmse_to_persistence": 8 / step}, step)
        write_json(tmp_path / "scores.json", make_scores())
    ignored = [{"step": 1, "loss": 77.0}]  # metrics.jsonl has it all
    path = write_weather_report(
        tmp_path, fields=fields, example=example, log_history=ignored, title="Aurora"
    )
    first = path.read_text(encoding="utf-8")
    assert "77" not in first[first.index("<h2>Training") : first.index("<h2>Run")]
    assert "persistence" in first and '"y":[0.8,0.4]' in first and "1970-01-04 00:00 UTC" in first
    (tmp_path / "scores.json").unlink()
    write_runs_report([RunView.from_folder(tmp_path)], path)
    again = path.read_text(encoding="utf-8")
    assert re.sub(r"f\d+-", "", again) == re.sub(r"f\d+-", "", first)


def test_without_metrics_the_given_history_is_drawn(tmp_path):
    fields = WeatherFields(
        LAYOUT,
        np.arange(2) * 86400,
        np.zeros((2, 3, 3, 4), np.float32),
        np.zeros((1, 3, 4), np.float32),
    )
    with RunRecord.start(tmp_path, task="aurora", configuration={}):
        write_json(tmp_path / "scores.json", make_scores())
    path = write_weather_report(
        tmp_path, fields=fields, log_history=[{"step": 1, "loss": 77.0}], title="Aurora"
    )
    assert '"y":[77.0]' in path.read_text(encoding="utf-8")
