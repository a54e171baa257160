"""The lead-time chain: its states, its weights and its scores."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_harness import Target, attempt
from processes import run_alone

sys.path.insert(0, str(Path(__file__).parent))
import chain_run

from hftune.cli.main import main as hftune
from hftune.configuration.arguments import HFTuneArguments
from hftune.tasks.aardvark.modeling_aardvark import AardvarkProcessor
from hftune.tasks.weather.chain import WeatherChain
from hftune.tasks.weather.initial_conditions import open_initial_conditions
from hftune.tasks.weather.initial_conditions_write import copy_initial_conditions
from hftune.tasks.weather.samples import collate
from hftune.tasks.weather.statistics import compute_statistics
from hftune.training.plan import best_model
from hftune.training.trainer import HFTuneTrainer
from hftune.utils.errors import CheckpointError, ConfigurationError, DataError
from hftune.utils.seeds import derive_seed

torch.set_num_threads(1)
DAY = 86400
STATISTICS = compute_statistics(chain_run.make_fields(), slice(0, 60))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A chain of three lead times that keeps all states."""
    folder = tmp_path_factory.mktemp("chain") / "run"
    chain_run.run(folder, {"chain_options": {"keep_train_ics": -1}})
    return folder


def reference_states(folder: Path, split: str, lead_time: int) -> np.ndarray:
    """The reference's way: its own memory map, cut by its own row count."""
    rows = len(chain_run.make_fields().times[slice(*chain_run.DAYS[split])]) - lead_time
    path = folder / (f"ic_{split}_{lead_time}.mmap" if lead_time else f"initial/ic_{split}.mmap")
    return np.memmap(path, dtype="<f4", mode="r", shape=(rows, 4, 6, 3))


def test_states_are_those_that_the_models_predict_one_after_the_other(finished):
    for lead_time in (1, 2, 3):
        model = AardvarkProcessor.from_pretrained(
            best_model(finished, f"forecast_{lead_time}")
        ).eval()
        for split, (first, last) in chain_run.DAYS.items():
            before = reference_states(finished, split, lead_time - 1)
            times = chain_run.make_fields().times[first : last - lead_time]
            # north first, channels before the grid
            fields = torch.from_numpy(before[: len(times), ::-1].transpose(0, 3, 1, 2).copy())
            with torch.no_grad():
                predicted = model(fields[:, None], torch.from_numpy(times)).prediction[:, 0]
            stored = reference_states(finished, split, lead_time)[:, ::-1].transpose(0, 3, 1, 2)
            np.testing.assert_allclose(stored, predicted, rtol=2e-6)


def test_a_day_is_a_plain_training_on_the_day_before(finished, tmp_path):
    chain = chain_run.make_chain(finished, keep_train_ics=-1)
    model = AardvarkProcessor.from_pretrained(best_model(finished, "forecast_1"))
    args = HFTuneArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        disable_tqdm=True,
        use_cpu=True,
        seed=derive_seed(42, "stage", 2) % 2**31,
        data_seed=derive_seed(42, "stage", 2) % 2**31,
    )
    trainer = HFTuneTrainer(
        model,
        args,
        train_dataset=chain.samples("train", 2),
        data_collator=collate,
        evaluator=chain.evaluator(2),
    )
    trainer.train()
    staged = AardvarkProcessor.from_pretrained(best_model(finished, "forecast_2")).state_dict()
    for name, weights in trainer.model.state_dict().items():
        assert torch.equal(weights, staged[name]), name


def test_validation_loss_is_the_mean_over_samples(finished):
    chain = chain_run.make_chain(finished)
    model = AardvarkProcessor.from_pretrained(best_model(finished, "forecast_2")).eval()
    losses = []
    for sample in chain.samples("val", 2):
        with torch.no_grad():
            losses.append(float(model(**collate([sample])).loss))
    measured = chain.evaluator(2)(model)
    assert measured["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    result = json.loads((finished / "stages.json").read_text())["stages"]["forecast_2"]["result"]
    assert result["metrics"]["loss"] == pytest.approx(measured["loss"], rel=1e-6)


def test_scores_of_a_lead_time(finished):
    chain = chain_run.make_chain(finished)
    fields = chain_run.make_fields()
    scores = chain.scores([finished / f"forecast_{k}" for k in (1, 2, 3)])
    assert scores.lead_hours == (24, 48, 72)
    first, last = chain_run.DAYS["test"]
    # All lead times are scored on the same initial times.
    assert scores.samples == last - first - 3
    stored = reference_states(finished, "test", 2)[: scores.samples, ::-1].transpose(0, 3, 1, 2)
    truth = fields.values[first + 2 : first + 2 + scores.samples]
    begun = fields.values[first : first + scores.samples]
    from hftune.tasks.weather.scores import cell_area_weights

    weights = cell_area_weights(fields.layout.latitude)[:, None]
    for name, values in {"model": stored, "persistence": begun}.items():
        expected = np.sqrt((weights * (values - truth) ** 2.0).mean(axis=(0, 2, 3)))
        np.testing.assert_allclose(scores.measure(name, "rmse")[1], expected, rtol=1e-5)
    assert np.isfinite(scores.measure("climatology", "rmse")).all()


def test_drift_is_what_training_states_are_better_than_those_of_validation(finished):
    predictions = chain_run.make_chain(finished).drift(2)
    stored = json.loads((finished / "stages.json").read_text())["stages"]["forecast_2"]["result"]
    assert stored["predictions"] == predictions
    assert predictions["drift"] == pytest.approx(predictions["val"] / predictions["train"] - 1)


def test_six_hourly_states_have_the_row_counts_of_the_reference(tmp_path):
    fields = chain_run.make_fields(hours=6)
    chain = chain_run.make_chain(tmp_path, fields=fields)
    for split, (first, last) in chain_run.DAYS.items():
        count = 4 * (last - first)
        assert [len(chain.times(split, k)) for k in range(4)] == [count - 4 * k for k in range(4)]
    assert chain.count(3, None) == 4 * 60 - 12
    sample = chain.samples("val", 1)[5]
    begin = 4 * chain_run.DAYS["val"][0] + 5
    np.testing.assert_array_equal(sample["fields"][0], fields.values[begin])
    np.testing.assert_array_equal(sample["target_fields"][0], fields.values[begin + 4])
    assert sample["times"] == fields.times[begin]


def test_the_time_that_the_model_is_told(finished):
    initial = chain_run.make_chain(finished, keep_train_ics=-1).samples("test", 3)[0]["times"]
    valid = chain_run.make_chain(finished, clock="valid").samples("test", 3)[0]["times"]
    assert initial == chain_run.make_fields().times[chain_run.DAYS["test"][0]]
    assert valid - initial == 2 * DAY


def test_only_what_is_asked_for_stays(tmp_path):
    names = {}
    for keep, options in {
        "newest": {},
        "two": {"keep_train_ics": 2},
        "least": {"keep_train_ics": 0, "keep_predictions": False},
        "targets": {"write_targets": True},
    }.items():
        chain_run.run(tmp_path / keep, {"chain_options": options, "num_train_epochs": 1})
        names[keep] = sorted(p.name for p in (tmp_path / keep).glob("ic_*.mmap"))
    kept = [f"ic_{split}_{k}.mmap" for split in ("test", "val") for k in (1, 2, 3)]
    assert names["newest"] == sorted([*kept, "ic_train_3.mmap"])
    assert names["two"] == sorted([*kept, "ic_train_2.mmap", "ic_train_3.mmap"])
    assert names["least"] == ["ic_test_3.mmap", "ic_val_3.mmap"]
    targets = [f"ic_test_target_{k}.mmap" for k in (1, 2, 3)]
    assert names["targets"] == sorted([*kept, "ic_train_3.mmap", *targets])
    target = open_initial_conditions(tmp_path / "targets" / "ic_test_target_2.mmap")
    first = chain_run.DAYS["test"][0]
    np.testing.assert_array_equal(target.read(3)[0], chain_run.make_fields().values[first + 3 + 2])


def test_a_finished_chain_trains_nothing_and_a_longer_one_goes_on(finished, tmp_path):
    folder = tmp_path / "run"
    chain_run.run(folder, {"chain_options": {"lead_times": 2}})
    weights = (best_model(folder, "forecast_2") / "model.safetensors").read_bytes()
    chain_run.run(folder, {"chain_options": {"lead_times": 2}})
    chain_run.run(folder, {})
    assert (best_model(folder, "forecast_2") / "model.safetensors").read_bytes() == weights
    for name in ("ic_train_3.mmap", "ic_val_3.mmap", "ic_test_3.mmap"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    # The first days were scored on one more initial time, which the third does not have.
    chain, stages = chain_run.make_chain(folder), [folder / f"forecast_{k}" for k in (1, 2, 3)]
    with pytest.raises(DataError, match=r"made on \[17, 18\] samples"):
        chain.scores(stages)
    chain.complete_scores(stages)
    whole = chain_run.make_chain(finished).scores([finished / f"forecast_{k}" for k in (1, 2, 3)])
    for name in ("model", "persistence", "climatology"):
        measured = chain.scores(stages).measure(name, "rmse")
        np.testing.assert_array_equal(measured, whole.measure(name, "rmse"))


PARTS = ["lead time 1 of 2, without part 1 of 2", "lead time 1 of 2, without part 2 of 2"]
PARTS += ["lead time 1 of 2", "lead time 2 of 2, without part 1 of 2"]
LAST_PART = "lead time 2 of 2, without part 2 of 2"


@pytest.mark.parametrize(
    ("options", "restarts"),
    [
        ({}, {3: ["lead time 1 of 3", "lead time 2 of 3"], 2: ["lead time 1 of 3"]}),
        (
            {"folds": 2, "keep_predictions": False, "lead_times": 2},
            {6: [*PARTS, LAST_PART], 5: PARTS},
        ),
    ],
    ids=["whole", "in parts"],
)
def test_stages_that_are_trained_again(tmp_path, capsys, options, restarts):
    """Their models make the states again that were tidied away, also after a kill."""
    settings = {"chain_options": options, "num_train_epochs": 1}
    chain_run.run(tmp_path, settings)
    before = chain_run.outcome(tmp_path)
    for number, predict_again in restarts.items():
        assert hftune(["stages", str(tmp_path), "--restart", str(number)]) == 0
        if number == 2:
            killed = {**settings, "kill": "block:1"}
            assert run_alone(lambda k=killed: chain_run.run(tmp_path, k)) == -signal.SIGKILL
        capsys.readouterr()
        chain_run.run(tmp_path, settings)
        assert chain_run.outcome(tmp_path) == before
        said = " ".join(capsys.readouterr().err.split())
        assert re.findall(r"(lead time [^:]*): its states are not there", said) == predict_again


def test_states_in_half_the_space(finished, tmp_path):
    chain = chain_run.make_chain(tmp_path)
    for split, states in chain.initial.items():
        statistics = {"mean": [285.0, 101300.0, 54000.0], "std": [8.0, 700.0, 900.0]}
        chain.initial[split] = copy_initial_conditions(
            tmp_path / "half" / f"ic_{split}.mmap",
            chain_run.make_fields(),
            states.times,
            dtype="float16",
            statistics=statistics,
        )
    model = chain_run.make_model()
    trainer = chain_run.make_trainer(tmp_path, model=model)
    trainer.chain.initial, trainer.chain.dtype = chain.initial, "float16"
    trainer.train()
    size = (tmp_path / "ic_val_2.mmap").stat().st_size
    assert 2 * size == (finished / "ic_val_2.mmap").stat().st_size
    half = open_initial_conditions(tmp_path / "ic_val_2.mmap").read(slice(None))
    whole = open_initial_conditions(finished / "ic_val_2.mmap").read(slice(None))
    spread = np.array([8.0, 700.0, 900.0])[:, None, None]
    assert np.abs((half - whole) / spread).max() < 0.02


# Parts


def test_training_states_come_from_models_that_have_not_seen_them(tmp_path):
    chain_run.run(tmp_path, {"chain_options": {"folds": 2, "keep_train_ics": -1, "lead_times": 2}})
    assert sorted(p.name for p in tmp_path.glob("forecast_*")) == [
        "forecast_1", "forecast_1_fold_1", "forecast_1_fold_2",
        "forecast_2", "forecast_2_fold_1", "forecast_2_fold_2",
    ]  # fmt: skip
    fields = chain_run.make_fields()
    chain = chain_run.make_chain(tmp_path, folds=2, keep_train_ics=-1)
    train = chain.times("train", 2)
    for fold in (1, 2):
        seen = set(np.array(chain.train_samples(2, fold).with_format("numpy")["time"]))
        unseen = [i for i, t in enumerate(train) if t not in seen]
        assert len(seen) + len(unseen) == len(train)
        model = AardvarkProcessor.from_pretrained(
            best_model(tmp_path, f"forecast_2_fold_{fold}")
        ).eval()
        before = open_initial_conditions(tmp_path / "ic_train_1.mmap")
        rows = np.searchsorted(before.times, train[unseen])
        with torch.no_grad():
            told = torch.from_numpy(fields.times[rows])
            predicted = model(torch.from_numpy(before.read(rows)), told).prediction[:, -1]
        stored = open_initial_conditions(tmp_path / "ic_train_2.mmap").read(unseen)[:, -1]
        np.testing.assert_allclose(stored, predicted, rtol=2e-6)
    journal = json.loads((tmp_path / "stages.json").read_text())["stages"]
    starts = {name: entry["result"]["start_weights"] for name, entry in journal.items()}
    assert starts["forecast_1_fold_2"] == starts["forecast_1"] == "initial_model"
    assert starts["forecast_2_fold_1"] == "forecast_1_fold_1/checkpoints/best_model"
    assert starts["forecast_2"] == "forecast_1/checkpoints/best_model"
    assert not list(tmp_path.glob("ic_*_fold_*"))


# What does not fit


def parts(tmp_path, fields=None):
    chain = chain_run.make_chain(tmp_path, fields=fields)
    model = chain_run.make_model(fields)
    return chain.initial, chain.truth, model.config


def build(initial, truth, config, **options):
    return WeatherChain("chain", initial, truth, config, statistics=STATISTICS, **options)


def test_truth_that_ends_before_the_last_lead_time(tmp_path):
    initial, truth, config = parts(tmp_path)
    short = truth.__class__(truth.layout, truth.times[:98], truth.values[:98], truth.static_fields)
    with pytest.raises(DataError) as error:
        build(initial, short, config)
    assert str(error.value) == (
        f"{initial['test'].path}: lead time 1 of the split test needs the truth at 2001-12-16 and "
        "1 times more; the truth has 98 times from 2001-09-09 to 2001-12-15, every 24 h."
    )


def test_a_split_that_is_too_short(tmp_path):
    initial, truth, config = parts(tmp_path)
    with pytest.raises(DataError, match=r"Give val more dates, or fewer lead times \(--lead_time"):
        build(initial, truth, config, lead_times=30)


def test_truth_with_more_channels_in_another_order(finished, tmp_path):
    initial, truth, config = parts(tmp_path)
    layout = dataclasses.replace(
        truth.layout,
        channels=("q_500", "z_500", "2t", "msl"),
        units=("kg kg-1", "m2 s-2", "K", "Pa"),
    )
    values = np.stack([0 * truth.values[:, 0], *truth.values[:, [2, 0, 1]].swapaxes(0, 1)], axis=1)
    other = dataclasses.replace(truth, layout=layout, values=values)
    chain = build(initial, other, config, lead_times=2)
    sample, expected = (
        chain.samples("val", 1)[3],
        build(initial, truth, config).samples("val", 1)[3],
    )
    for name in ("fields", "target_fields"):
        assert torch.equal(sample[name], expected[name])
    with pytest.raises(DataError, match="the model knows 2t, which the data do not have"):
        build(initial, other.select(["q_500", "z_500", "msl"]), config)


def test_statistics_that_lack_a_channel(tmp_path):
    initial, truth, config = parts(tmp_path)
    other = compute_statistics(truth.select(["2t", "msl"]), slice(0, 60))
    with pytest.raises(DataError) as error:
        WeatherChain("chain", initial, truth, config, statistics=other)
    assert str(error.value) == (
        "the statistics lack z_500: compute them from fields with all channels of the states."
    )


def test_steps_that_do_not_fit(tmp_path):
    initial, truth, config = parts(tmp_path)
    with pytest.raises(ConfigurationError) as error:
        build(initial, truth, config, step_hours=36)
    assert str(error.value) == (
        "the model has time steps of 24 h: a step of the chain, 36 h, has to be a multiple of it."
    )


def test_a_model_of_another_grid_or_of_other_channels(tmp_path):
    initial, truth, config = parts(tmp_path)
    config.latitude = [60.0, 57.5, 55.0, 52.5]
    with pytest.raises(DataError) as error:
        build(initial, truth, config)
    assert str(error.value).splitlines()[0] == (
        f"{initial['train'].path} has 4 values of latitude from 50 to 42.5, the model has 4 from "
        "60 to 52.5."
    )
    config.channels = ["2t", "msl", "q_700"]
    with pytest.raises(DataError, match="it lacks q_700 and it has z_500 besides"):
        build(initial, truth, config)


def test_a_damaged_model_does_not_predict_again(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert hftune(["stages", str(folder), "--restart", "3"]) == 0
    for lead_time in (1, 2):
        (folder / f"ic_val_{lead_time}.mmap").unlink()
    weights = best_model(folder, "forecast_1") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not what stage 'lead time 1 of 3' left"):
        chain_run.run(folder, {"chain_options": {"keep_train_ics": -1}})


def test_a_disk_that_is_too_small_is_told_before(tmp_path, monkeypatch):
    trainer = chain_run.make_trainer(tmp_path)
    monkeypatch.setattr("hftune.training.plan_checks.free_bytes", lambda path: 20_000)
    with pytest.raises(ConfigurationError, match="the 3 stages need about .* on the disk of"):
        trainer.train()
    assert not (tmp_path / "plan.json").exists()


def test_two_chains_do_not_share_states(finished, tmp_path):
    """Other weights make the states anew, the same ones leave them as they are."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = (folder / "ic_val_1.mmap").read_bytes()
    chain_run.run(folder, {"resume": "never", "num_train_epochs": 1})
    assert (folder / "ic_val_1.mmap").read_bytes() != before


# The models of all days together


def test_forecasts_of_a_chain_are_its_states(finished, tmp_path):
    import xarray

    from hftune.cli.main import main

    states = finished / "initial" / "ic_test.mmap"
    made = ["forecast", str(finished), str(states), "-o", str(tmp_path / "f.nc"),
            "--lead_hours", "24,72", "--dates", "2001-11", "--batch_size", "8"]  # fmt: skip
    assert main(made) == 0
    with xarray.open_dataset(tmp_path / "f.nc") as file:
        times = file.time.values.astype("datetime64[s]").astype(np.int64)
        for lead, lead_time in enumerate((1, 3)):
            stored = open_initial_conditions(finished / f"ic_test_{lead_time}.mmap")
            known = np.isin(times, stored.times)
            assert known.sum() == 3
            expected = stored.read(np.searchsorted(stored.times, times[known]))[:, 0]
            found = file["msl"].values[known, lead]
            np.testing.assert_allclose(found, expected[:, 1], rtol=1e-6)


def test_a_chain_that_has_not_finished_does_not_forecast(tmp_path):
    from hftune.tasks.weather.chain_forecast import ChainForecaster

    folder = tmp_path / "run"
    chain_run.run(folder, {"chain_options": {"lead_times": 1}, "num_train_epochs": 1})
    forecaster = ChainForecaster.from_run(folder)
    fields = torch.from_numpy(chain_run.make_fields().values[None, :1])
    with pytest.raises(CheckpointError) as error:
        forecaster(fields, torch.tensor([0]), steps=2)
    assert str(error.value) == ("the chain has 1 lead times, up to 24 h; 48 h were asked for.")
    shutil.rmtree(best_model(folder, "forecast_1"))
    with pytest.raises(CheckpointError, match="forecast_1 of 1 lead times are not trained yet"):
        ChainForecaster.from_run(folder)


# Several processes


def test_sharded_weights_reach_the_same_states(tmp_path):
    """FSDP with a process group for each lead time against DDP, two processes each."""
    settings = {
        "chain_options": {"lead_times": 2},
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
    }
    for folder in ("whole", "sharded"):
        chain_run.make_chain(tmp_path / folder)
    target = Target("ddp", lambda folder, _: chain_run.run(folder, settings), str, [], processes=2)
    assert attempt(target, tmp_path / "whole").statuses == [0, 0]
    done = subprocess.run(
        [Path(sys.executable).parent / "torchrun", "--nproc_per_node", "2",
         Path(__file__).parent / "fsdp_chain.py", tmp_path / "sharded"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("ic_train_2.mmap", "ic_val_1.mmap", "ic_test_2.mmap"):
        states = open_initial_conditions(tmp_path / "sharded" / name).read(slice(None))
        whole = open_initial_conditions(tmp_path / "whole" / name).read(slice(None))
        np.testing.assert_allclose(states, whole, rtol=1e-5)
