"""Scores and one forecast of a chain against numbers read from its files by hand."""

from __future__ import annotations

import copy
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1] / "aardvark"))
import chain_run

from hftune.tasks.weather.chain_results import chain_example, chain_scores, render_chain_scores
from hftune.tasks.weather.climatology import compute_climatology
from hftune.tasks.weather.scores import ForecastScores
from hftune.utils.errors import DataError
from hftune.utils.files import read_json, write_json

DAY = 86400
STD = np.array([8.0, 700.0, 900.0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A chain of three lead times that has run, and the results of its stages."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("chain")
    trainer = chain_run.make_trainer(folder)
    trainer.train()
    trainer.end()
    return trainer.chain, trainer.results


def raw(path, channels=3):
    """Rows of a file of states, north first."""
    values = np.fromfile(path, "<f4").reshape(-1, 4, 6, channels)
    return values[:, ::-1].transpose(0, 3, 1, 2).astype(np.float64)


def rmse(forecast, truth):
    """By channel; a region's cells reach half a step of 2.5 degrees up and down."""
    edges = np.sin(np.deg2rad([51.25, 48.75, 46.25, 43.75, 41.25]))
    area = -np.diff(edges) / -np.diff(edges).mean()
    return np.sqrt((((forecast - truth) ** 2).mean(axis=(0, 3)) * area).mean(axis=-1))


def untuned_scores(samples=17):
    """Forecasts that add a tenth of the standard deviation to the truth with each lead time."""
    fields = chain_run.make_fields()
    rows = 80 + np.arange(samples)[:, None] + np.arange(1, 4)
    truth = fields.read(rows.reshape(-1)).reshape(samples, 3, 3, 4, 6)
    error = 0.1 * np.arange(1, 4)[:, None, None, None] * STD[:, None, None]
    scores = ForecastScores(fields.layout, [24, 48, 72])
    scores.update({"model": truth + error}, truth, fields.times[rows])
    return scores


def results_of(finished, untuned=None, std=STD):
    chain, stages = finished
    return chain_scores(
        chain,
        [chain.folder / stage["name"] for stage in stages],
        untuned,
        std=std,
        drift=[chain.drift(0), *(stage["predictions"] for stage in stages)],
    )


def test_the_scores_are_those_of_the_files(finished, tmp_path):
    chain, stages = finished
    results = results_of(finished, untuned_scores())
    fields = chain_run.make_fields()
    climatology = compute_climatology(fields, np.arange(60))
    known = fields.read(np.arange(100)).astype(np.float64)
    expected = {"model": [], "untuned": [0.1, 0.2, 0.3], "persistence": [], "climatology": []}
    for lead in (1, 2, 3):
        truth = known[80 + lead : 97 + lead]
        ours = rmse(raw(chain.folder / f"ic_test_{lead}.mmap")[:17], truth)
        expected["model"].append((ours / STD).mean())
        expected["persistence"].append((rmse(known[80:97], truth) / STD).mean())
        usual = climatology.at(fields.times[80 + lead : 97 + lead])
        expected["climatology"].append((rmse(usual, truth) / STD).mean())
        entry = results["variables"]["msl"]
        assert entry["rmse"][lead - 1] == pytest.approx(ours[1], rel=1e-6)
    summary = results["summary"]
    assert list(summary["rmse_normalised"]) == list(expected)
    for name, values in expected.items():
        assert summary["rmse_normalised"][name] == pytest.approx(values, rel=1e-4), name
    for rival in ("climatology", "untuned"):
        ratio = np.divide(expected["model"], expected[rival])
        assert summary[f"rmse_to_{rival}"] == pytest.approx(list(ratio), rel=1e-4)
        worse = [24 * (i + 1) for i in range(3) if ratio[i] > 1]
        assert summary[f"worse_than_{rival}_at_hours"] == worse
    assert summary["worse_than_untuned_at_hours"] == [24, 48, 72]  # it is far off the truth
    assert (results["step_hours"], results["folds"], results["samples"]) == (24, 0, 17)
    assert results["lead_hours"] == [24, 48, 72]
    write_json(tmp_path / "scores.json", results)  # plain values only
    assert read_json(tmp_path / "scores.json")["summary"]["rmse_to_untuned"] == pytest.approx(
        summary["rmse_to_untuned"]
    )


def test_the_drift_is_told_from_the_initial_states_on(finished):
    chain, stages = finished
    drift = results_of(finished)["drift"]
    assert [entry["lead_hours"] for entry in drift] == [0, 24, 48, 72]
    assert drift[0]["train"] == drift[0]["val"] == 0.0  # they are what happened
    assert np.isnan(drift[0]["drift"])
    known = chain_run.make_fields().read(np.arange(100)).astype(np.float64)
    unit = chain.difference_std
    for lead, rows in ((2, 18), (3, 17)):
        found = raw(chain.folder / f"ic_val_{lead}.mmap")
        assert len(found) == rows
        truth = known[60 + lead : 80]
        assert drift[lead]["val"] == pytest.approx((rmse(found, truth) / unit).mean(), rel=1e-5)
    kept = raw(chain.folder / "ic_train_3.mmap")
    train = (rmse(kept, known[3:60]) / unit).mean()
    assert drift[3]["train"] == pytest.approx(train, rel=1e-5)
    assert drift[3]["drift"] == pytest.approx(drift[3]["val"] / train - 1, rel=1e-5)


def test_without_an_untuned_model_it_is_left_out(finished):
    summary = results_of(finished)["summary"]
    assert list(summary["rmse_normalised"]) == ["model", "persistence", "climatology"]
    assert not [name for name in summary if "untuned" in name]


def test_an_untuned_model_scored_on_other_samples_is_refused(finished):
    with pytest.raises(DataError, match="The scores of 'untuned' were made on other samples: 16"):
        results_of(finished, untuned_scores(samples=16))


def test_a_channel_without_spread_does_not_count_in_the_means(finished):
    whole = results_of(finished)
    means = results_of(finished, std=[8.0, 0.0, 900.0])["summary"]["rmse_normalised"]
    entries = [whole["variables"][name] for name in ("2t", "z_500")]
    two = [
        entry["persistence_rmse"][1] / unit for entry, unit in zip(entries, (8, 900), strict=True)
    ]
    assert means["persistence"][1] == pytest.approx(sum(two) / 2, rel=1e-9)


def test_the_example_is_a_row_of_the_files_and_of_the_truth(finished):
    chain, _ = finished
    example = chain_example(chain)
    times = chain_run.make_fields().times
    assert example.time == times[80 + 8]  # in the middle of 17
    assert example.lead_hours == (24, 48, 72) and example.forecast.shape == (3, 3, 4, 6)
    known = chain_run.make_fields().read(np.arange(100))
    for lead in (1, 2, 3):
        states = raw(chain.folder / f"ic_test_{lead}.mmap")
        np.testing.assert_array_equal(example.forecast[lead - 1], states[8])
        np.testing.assert_array_equal(example.truth[lead - 1], known[88 + lead])
    assert chain_example(chain, index=0).time == times[80]


def test_the_example_does_without_states_that_are_gone(finished, tmp_path):
    chain = copy.copy(finished[0])
    for path in chain.folder.glob("ic_test_3.*"):
        shutil.copy(path, tmp_path)
    chain.folder = tmp_path
    example = chain_example(chain)
    assert example.lead_hours == (72,)
    np.testing.assert_array_equal(example.forecast, chain_example(finished[0]).forecast[2:])
    np.testing.assert_array_equal(example.truth, chain_example(finished[0]).truth[2:])


def shown(results) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"), color_system="standard")
    console.print(render_chain_scores(results))
    return console.export_text(styles=True)


def test_the_table_has_a_row_a_lead_time_and_marks_what_wins_and_loses():
    text = shown(
        {
            "lead_hours": [24, 48],
            "samples": 7,
            "valid_from": "1997-01-03T00:00:00Z",
            "valid_to": "1999-12-31T00:00:00Z",
            "variables": {"2t": {}, "msl": {}},
            "drift": [
                {"lead_hours": 0, "drift": None},
                {"lead_hours": 24, "drift": 0.0432},
                {"lead_hours": 48, "drift": -0.01},
            ],
            "summary": {
                "rmse_normalised": {
                    "model": [0.5, 1.1],
                    "untuned": [0.5, 1.25],
                    "persistence": [0.75, 1.5],
                    "climatology": [1.0, 1.0],
                },
                "rmse_to_climatology": [0.5, 1.1],
                "worse_than_climatology_at_hours": [48],
                "worse_than_untuned_at_hours": [],
            },
        }
    )
    styled = re.findall(r"\x1b\[([\d;]+)m *([\d.]+)\x1b", text)
    green, yellow, red = "1;32", "33", "31"
    assert styled == [
        (green, "0.5000"), (green, "0.5000"), (yellow, "1.100"), (green, "1.000"), (red, "1.100")
    ]  # fmt: skip
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    lines = [line.split() for line in plain.splitlines() if line.strip()]
    assert lines[0] == (
        "RMSE / std, mean of 2 channels; 7 forecasts, 1997-01-03 to 1999-12-31".split()
    )
    assert lines[1] == "lead time chain untuned persistence climatology to clim. drift".split()
    assert lines[3] == "day 1 0.5000 0.5000 0.7500 1.000 0.500 +4.3 %".split()
    assert lines[4] == "day 2 1.100 1.250 1.500 1.000 1.100 -1.0 %".split()
    assert lines[-1] == "Worse than climatology: day 2".split()
