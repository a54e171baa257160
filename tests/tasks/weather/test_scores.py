import json
import math

import numpy as np
import pytest

from hftune.tasks.weather.climatology import Climatology
from hftune.tasks.weather.fields import FieldLayout
from hftune.tasks.weather.scores import ForecastScores, cell_area_weights
from hftune.utils.errors import DataError
from hftune.utils.files import read_json, write_json

LATITUDE = np.array([60.0, 55.0, 50.0, 45.0])
LONGITUDE = np.array([350.0, 355.0, 360.0])
LEADS = (24, 72)
CHANNELS = ("2t", "z_500")
SHAPE = (10, 2, 2, 4, 3)


class TableClimatology(Climatology):
    """Different at every time, so that a mixed-up time or lead is noticed."""

    def __init__(self, layout):
        self.layout = layout

    def at(self, times):
        times = np.asarray(times)
        size = (len(self.layout.channels), *self.layout.grid)
        pattern = np.arange(np.prod(size)).reshape(size)
        return (np.sin(pattern + (times // 86400)[:, None, None, None])).astype(np.float32)


def make_layout(rows=4):
    return FieldLayout(CHANNELS, ("K", "m2/s2"), (), LATITUDE[:rows], LONGITUDE)


def make_case(seed=0):
    random = np.random.default_rng(seed)
    truth = random.normal(0, 2, SHAPE).astype(np.float32)
    model = (truth + random.normal(0.3, 1, SHAPE)).astype(np.float32)
    persistence = (truth + random.normal(0, 3, SHAPE)).astype(np.float32)
    starts = np.arange(SHAPE[0]) * 86400
    valid = starts[:, None] + np.array(LEADS) * 3600
    return model, persistence, truth, valid


def slow_scores(forecast, truth, climate, latitude, known):
    """The definitions, one number at a time: {measure: [L][C]}."""
    half = (latitude[0] - latitude[1]) / 2
    edges = [latitude[0] + half]
    edges += [(a + b) / 2 for a, b in zip(latitude[:-1], latitude[1:], strict=True)]
    edges += [latitude[-1] - half]
    edges = [max(-90.0, min(90.0, edge)) for edge in edges]
    areas = [
        math.sin(math.radians(edges[i])) - math.sin(math.radians(edges[i + 1]))
        for i in range(len(latitude))
    ]
    result = {"rmse": [], "mae": [], "bias": [], "acc": []}
    samples, leads, channels, rows, columns = truth.shape
    for lead in range(leads):
        line = {key: [] for key in result}
        for channel in range(channels):
            series = {"mse": [], "mae": [], "bias": [], "acc": []}
            for sample in range(samples):
                area = square = absolute = error = product = ours = theirs = 0.0
                for row in range(rows):
                    for column in range(columns):
                        place = (sample, lead, channel, row, column)
                        if not known[place]:
                            continue
                        f, o, c = float(forecast[place]), float(truth[place]), float(climate[place])
                        w = areas[row]
                        area += w
                        square += w * (f - o) ** 2
                        absolute += w * abs(f - o)
                        error += w * (f - o)
                        product += w * (f - c) * (o - c)
                        ours += w * (f - c) ** 2
                        theirs += w * (o - c) ** 2
                if area == 0:
                    continue
                series["mse"].append(square / area)
                series["mae"].append(absolute / area)
                series["bias"].append(error / area)
                if ours > 0 and theirs > 0:
                    series["acc"].append(product / math.sqrt(ours * theirs))
            mean = {k: sum(v) / len(v) if v else math.nan for k, v in series.items()}
            line["rmse"].append(math.sqrt(mean["mse"]))
            for key in ("mae", "bias", "acc"):
                line[key].append(mean[key])
        for key in result:
            result[key].append(line[key])
    return result


@pytest.mark.parametrize("with_gaps", [False, True])
@pytest.mark.parametrize("block", [5, 60, 1 << 16])  # bands of a field, some fields, everything
def test_scores_equal_the_definitions_computed_one_number_at_a_time(with_gaps, block, monkeypatch):
    model, persistence, truth, valid = make_case()
    if with_gaps:
        truth[np.random.default_rng(9).random(SHAPE) < 0.2] = np.nan
        truth[3, 1, 0] = np.nan  # a whole field
        persistence[2, 0, 1, 0] = np.nan
    layout = make_layout()
    table = TableClimatology(layout)
    climate = table.at(valid.reshape(-1)).reshape(SHAPE)
    known = np.isfinite(truth) & np.isfinite(persistence)

    monkeypatch.setattr("hftune.tasks.weather.scores._BLOCK", block)
    scores = ForecastScores(layout, LEADS, table)
    for part in (slice(0, 3), slice(3, 4), slice(4, 10)):
        forecasts = {"model": model[part], "persistence": persistence[part]}
        scores.update(forecasts, truth[part], valid[part])
    result = scores.result()
    forecasts = {"": model, "persistence_": persistence, "climatology_": climate}
    for prefix, forecast in forecasts.items():
        expected = slow_scores(forecast, truth, climate, LATITUDE, known)
        for measure, table_ in expected.items():
            if (prefix, measure) == ("climatology_", "acc"):
                continue
            for lead in range(2):
                for index, channel in enumerate(CHANNELS):
                    got = result["variables"][channel][prefix + measure][lead]
                    assert got == pytest.approx(table_[lead][index], rel=1e-9), (prefix, measure)
    assert "climatology_acc" not in result["variables"]["2t"]

    ratio = [
        result["variables"][c]["rmse"][i] / result["variables"][c]["persistence_rmse"][i]
        for i in range(2)
        for c in CHANNELS
    ]
    assert result["variables"]["2t"]["rmse_to_persistence"] == pytest.approx(ratio[::2])
    assert result["summary"]["mean_rmse_to_persistence"] == pytest.approx(sum(ratio) / 4)
    assert result["summary"]["rmse_to_persistence"][1] == pytest.approx(sum(ratio[2:]) / 2)
    assert result["lead_hours"] == [24, 72] and result["samples"] == 10
    assert result["valid_from"] == "1970-01-02T00:00:00Z"
    assert result["valid_to"] == "1970-01-13T00:00:00Z"
    assert result["variables"]["z_500"]["units"] == "m2/s2"


def test_large_numbers_lose_nothing():
    """Geopotential is 5e4 with errors of 1: float32 sums would be worth nothing here."""
    layout = FieldLayout(("z_500",), ("m2/s2",), (), LATITUDE, LONGITUDE)
    scores = ForecastScores(layout, [24])
    truth = np.full((100, 1, 1, 4, 3), 55555.0, np.float32)
    for _ in range(50):
        scores.update({"model": truth + np.float32(0.125)}, truth, np.zeros((100, 1)))
    assert scores.measure("model", "rmse")[0, 0] == pytest.approx(0.125, rel=1e-12)
    assert scores.measure("model", "bias")[0, 0] == pytest.approx(0.125, rel=1e-12)


def test_processes_merge_to_the_same_scores_and_a_process_may_have_had_nothing():
    model, persistence, truth, valid = make_case()
    layout = make_layout()
    table = TableClimatology(layout)
    parts = [ForecastScores(layout, LEADS, table) for _ in range(3)]
    whole = ForecastScores(layout, LEADS, table)
    whole.update({"model": model, "persistence": persistence}, truth, valid)
    for scores, part in zip(parts, (slice(0, 4), slice(4, 10), slice(10, 10)), strict=True):
        forecasts = {"model": model[part], "persistence": persistence[part]}
        scores.update(forecasts, truth[part], valid[part])
    merged = ForecastScores(layout, LEADS, table)
    for part in parts:
        merged.merge(part.state_dict())
    a, b = merged.result(), whole.result()
    assert a["samples"] == 10 and a["valid_to"] == b["valid_to"]
    for channel in CHANNELS:
        for key, values in b["variables"][channel].items():
            assert a["variables"][channel][key] == pytest.approx(values), key


def test_the_untuned_model_is_set_beside_and_what_got_worse_is_named():
    model, persistence, truth, valid = make_case()
    worse_in_z = model.copy()
    worse_in_z[:, 1, 1] += 5
    before, after = (ForecastScores(make_layout(), LEADS) for _ in range(2))
    before.update({"model": model, "persistence": persistence}, truth, valid)
    after.update({"model": worse_in_z, "persistence": persistence}, truth, valid)
    after.adopt("untuned", before)
    result = after.result()
    assert result["summary"]["worse_than_untuned"] == ["z_500"]
    assert result["variables"]["z_500"]["worse_than_untuned"] == [False, True]
    assert result["variables"]["2t"]["worse_than_untuned"] == [False, False]
    assert result["variables"]["2t"]["untuned_rmse"] == result["variables"]["2t"]["rmse"]
    assert result["summary"]["worse_than_persistence"] == ["z_500"]
    assert result["summary"]["untuned_mean_rmse_to_persistence"] < 1
    assert "acc" not in result["variables"]["2t"]  # there was no climatology

    other = ForecastScores(make_layout(), LEADS)
    other.update({"model": model[:9], "persistence": persistence[:9]}, truth[:9], valid[:9])
    with pytest.raises(DataError, match="made on other samples: 9 samples"):
        after.adopt("untuned", other)


def test_a_model_that_is_nan_scores_nan_and_never_wins(tmp_path):
    model, persistence, truth, valid = make_case()
    model[4, 0, 1, 2, 2] = np.nan
    scores = ForecastScores(make_layout(), LEADS, TableClimatology(make_layout()))
    scores.update({"model": model, "persistence": persistence}, truth, valid)
    result = scores.result()
    z = result["variables"]["z_500"]
    assert math.isnan(z["rmse"][0]) and math.isnan(z["acc"][0])
    assert not math.isnan(z["rmse"][1]) and not math.isnan(z["persistence_rmse"][0])
    assert math.isnan(result["summary"]["mean_rmse_to_persistence"])
    assert result["summary"]["worse_than_persistence"] == ["z_500"]
    write_json(tmp_path / "scores.json", result)
    assert read_json(tmp_path / "scores.json")["variables"]["z_500"]["rmse"][0] is None
    json.dumps(result)  # nothing in it but what JSON knows


def test_a_channel_that_never_changes_does_not_count_in_the_mean():
    model, persistence, truth, valid = make_case()
    truth[:, :, 0] = persistence[:, :, 0] = 1
    scores = ForecastScores(make_layout(), LEADS)
    scores.update({"model": model, "persistence": persistence}, truth, valid)
    summary = scores.result()["summary"]
    ratio = scores.rmse_to_persistence()
    assert np.isnan(ratio[:, 0]).all()
    assert summary["mean_rmse_to_persistence"] == pytest.approx(ratio[:, 1].mean())
    assert summary["worse_than_persistence"] == []


def test_the_climatology_may_have_rows_that_the_model_crops():
    model, persistence, truth, valid = make_case()
    full = TableClimatology(make_layout())
    scores = ForecastScores(make_layout(3), LEADS, full)
    cut = [values[:, :, :, :3] for values in (model, persistence, truth)]
    scores.update({"model": cut[0], "persistence": cut[1]}, cut[2], valid)
    climate = full.at(valid.reshape(-1)).reshape(SHAPE)[:, :, :, :3]
    expected = slow_scores(cut[0], cut[2], climate, LATITUDE[:3], np.ones(cut[0].shape, bool))
    assert scores.measure("model", "acc").tolist() == [pytest.approx(x) for x in expected["acc"]]


def test_wrong_shapes_and_other_grids_are_refused():
    model, persistence, truth, valid = make_case()
    scores = ForecastScores(make_layout(), LEADS)
    with pytest.raises(DataError, match=r"model has the shape \(10, 1, 2, 4, 3\), expected \(10,"):
        scores.update({"model": model[:, :1]}, truth, valid)
    with pytest.raises(DataError, match="nothing to score"):
        scores.result()
    scores.update({"model": model}, truth, valid)
    with pytest.raises(DataError, match="'persistence' was not in the first"):
        scores.update({"model": model, "persistence": persistence}, truth, valid)
    with pytest.raises(DataError, match="different channels or grids"):
        shifted = FieldLayout(CHANNELS, ("K", "m2/s2"), (), LATITUDE, LONGITUDE + 5)
        ForecastScores(make_layout(), LEADS, TableClimatology(shifted))


def test_area_weights():
    # The global grid with poles, as WeatherBench 2 has it: cells of the poles end at them.
    latitude = np.linspace(90, -90, 73)
    weights = cell_area_weights(latitude)
    bounds = np.concatenate([[-90], (latitude[::-1][1:] + latitude[::-1][:-1]) / 2, [90]])
    areas = np.diff(np.sin(np.deg2rad(bounds)))
    np.testing.assert_allclose(weights, areas / areas.mean(), rtol=1e-12)
    assert 0 < weights[0] < weights[1] / 3
    # The same without the southern pole keeps the area of each row.
    cropped = cell_area_weights(latitude[:-1])
    np.testing.assert_allclose(cropped / cropped[36], weights[:-1] / weights[36], rtol=1e-12)
    np.testing.assert_array_equal(cell_area_weights(np.array([47.5])), [1.0])
    np.testing.assert_allclose(weights[::-1], cell_area_weights(latitude[::-1]))
