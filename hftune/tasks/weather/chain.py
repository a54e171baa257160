"""Weather states carried on day by day: the chain of a lead-time fine-tuning.

``ic_{split}.mmap`` holds the initial states of a split (lead time 0), ``ic_{split}_{k}.mmap`` the
states that the models of the first ``k`` lead times have made of them; a row is named by its
initial time everywhere. A state is whatever the model needs to go on: its last ``history`` fields.

Notation used for shapes: ``B`` samples, ``T`` fields of a state, ``L`` time steps of the model in
one step of the chain, ``C`` channels, ``H`` latitudes, ``W`` longitudes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...training.lead_time import Advance
from ...utils.errors import ConfigurationError, DataError
from ...utils.files import read_json, write_json
from ...utils.terminal import is_main_process, progress
from .chain_reader import ChainReader
from .climatology import Climatology
from .config_checks import grid_differences
from .dates import describe_times, format_time
from .evaluation_chain import ChainEvaluator
from .evaluation_weather import (
    ForecastEvaluator,
    gathered,
    gathered_scores,
    process_group,
    shared_batches,
)
from .fields import WeatherFields
from .initial_conditions import InitialConditions, manifest_path, open_initial_conditions
from .initial_conditions_write import initial_condition_bytes, write_initial_conditions
from .scores import ForecastScores
from .statistics import FieldStatistics

if TYPE_CHECKING:
    import datasets
    import torch

__all__ = ["SPLITS", "WeatherChain"]

SPLITS = ("train", "val", "test")
"""The splits of a chain, by the names in its files."""

_DRIFT_ROWS = 1000
_TEST_SCORES = "test_scores.json"
_UNTUNED_SCORES = "untuned_scores.json"


class WeatherChain:
    """A :class:`~hftune.training.lead_time.LeadTimeChain` of weather fields.

    The model is any :class:`~hftune.tasks.weather.weather_model.WeatherModel`: its ``forward`` is
    the step from states to the next ones.

    Args:
        folder (path): Where the states are written.
        initial (mapping of str to InitialConditions): The initial states of the splits ``train``,
            ``val`` and ``test``.
        truth (WeatherFields): What happened, at all times of the splits.
        model_config: Configuration of the model: ``timestep_hours``, ``history``, ``channels``.
        lead_times (int): Number of steps of the chain. Defaults to 10.
        step_hours (float): Length of one, a multiple of the model's. Defaults to 24.
        statistics (FieldStatistics): Of the training times, with the channels of the states and
            differences over one step, whose spread is the unit of ``rmse_normalised``.
        climatology (Climatology, *optional*): Scored beside the chain.
        clock (str): What time the model is told: ``"initial"``, that of the initial state at each
            lead time (as Aardvark was trained), or ``"valid"``, that of the state it is given.
        batch_size (int): Rows that are predicted at a time. Defaults to 64.
        dtype (str): Of the states on the disk, ``"float32"`` or ``"float16"``.
        keep_train_ics (int): How many lead times' training states stay; the newest is needed by the
            next one. Defaults to 1; -1 keeps all.
        keep_predictions (bool): Whether the states of ``val`` and ``test`` stay. Defaults to True.
        write_targets (bool): Whether the truth of each lead time is written beside the test states,
            ``ic_test_target_{k}.mmap``, as the reference has it. Defaults to False.
        folds (int): 0, or into how many parts the training times are cut (see
            :class:`~hftune.training.lead_time.LeadTimeChain`).

    Raises:
        DataError: If the states, the truth and the model do not fit together.
        ConfigurationError: If the model's steps do not fit into those of the chain.
    """

    def __init__(
        self,
        folder: str | Path,
        initial: Mapping[str, InitialConditions],
        truth: WeatherFields,
        model_config: Any,
        *,
        statistics: FieldStatistics,
        lead_times: int = 10,
        step_hours: float = 24,
        climatology: Climatology | None = None,
        clock: Literal["initial", "valid"] = "initial",
        batch_size: int = 64,
        dtype: str = "float32",
        keep_train_ics: int = 1,
        keep_predictions: bool = True,
        write_targets: bool = False,
        folds: int = 0,
    ) -> None:
        self.folder = Path(folder)
        self.initial = dict(initial)
        self.truth = truth
        self.lead_times, self.folds = lead_times, folds
        self.step_hours, self.clock = step_hours, clock
        self.settings = {"step_hours": step_hours, "clock": clock}
        self.timestep_hours, self.history = model_config.timestep_hours, model_config.history
        self.climatology = climatology
        self.batch_size, self.dtype = batch_size, dtype
        self.keep_train_ics, self.keep_predictions = keep_train_ics, keep_predictions
        self.write_targets = write_targets
        self.layout = self.initial["train"].layout
        self._check_model(model_config)
        self.truth = truth.select(self.layout.channels)
        missing = [name for name in self.layout.channels if name not in statistics.channels]
        if missing:
            raise DataError(
                f"the statistics lack {', '.join(missing)}: compute them from fields with all "
                "channels of the states."
            )
        places = [statistics.channels.index(name) for name in self.layout.channels]
        self.difference_std = statistics.difference_std[places]
        self._statistics = {
            name: getattr(statistics, name)[places].tolist() for name in ("mean", "std")
        }
        self._times = {split: self._times_of(split) for split in SPLITS}

    def _check_model(self, config: Any) -> None:
        if self.step_hours % self.timestep_hours:
            raise ConfigurationError(
                f"the model has time steps of {self.timestep_hours:g} h: a step of the chain, "
                f"{self.step_hours:g} h, has to be a multiple of it."
            )
        problems = []
        for split in SPLITS:
            states = self.initial[split]
            states.check_channels(config.channels)
            for other, whose in ((config, "the model"), (self.truth.layout, "the truth")):
                found = grid_differences(states.layout, other, f"{states.path} has", f"{whose} has")
                problems += [f"{text}." for text in found]
            if states.history != self.history:
                problems.append(
                    f"{states.path} has states of {states.history} times, the model needs "
                    f"{self.history}, {self.timestep_hours:g} h apart: write them for this model."
                )
        if problems:
            raise DataError("\n".join(problems))

    def _times_of(self, split: str) -> list[np.ndarray]:
        """Initial times by lead time: those whose truth lies within the split."""
        initial = self.initial[split].times
        step = round(self.step_hours * 3600)
        between = step // self.steps
        found = [initial]
        for lead_time in range(1, self.lead_times + 1):
            valid = initial + lead_time * step
            found.append(found[-1][np.isin(found[-1], initial[np.isin(valid, initial)])])
            needed = found[-1][:, None] + (lead_time - 1) * step + self._steps_after(between)
            lacking = np.setdiff1d(needed, self.truth.times)
            if len(lacking):
                raise DataError(
                    f"{self.initial[split].path}: lead time {lead_time} of the split {split} needs "
                    f"the truth at {format_time(lacking[0])} and {len(lacking) - 1} times more; "
                    f"the truth has {describe_times(self.truth.times)}."
                )
            if not len(found[-1]):
                raise DataError(
                    f"{self.initial[split].path} has {describe_times(initial)}: none of them lies "
                    f"{lead_time * self.step_hours:g} h before another. Give {split} more dates, "
                    f"or fewer lead times (--lead_time {lead_time - 1})."
                )
        return found

    @property
    def steps(self) -> int:
        """Time steps of the model in one step of the chain, ``L``."""
        return round(self.step_hours / self.timestep_hours)

    def _steps_after(self, between: int) -> np.ndarray:
        return np.arange(1, self.steps + 1) * between

    # Files

    def path(self, split: str, lead_time: int) -> Path:
        """Where the states of a lead time are; those of 0 are where they came from."""
        if lead_time == 0:
            return Path(self.initial[split].path)
        return self.folder / f"ic_{split}_{lead_time}.mmap"

    def states(self, split: str, lead_time: int) -> InitialConditions:
        """Opens the states of a lead time.

        Raises:
            DataError: If they are not there any more.
        """
        if lead_time == 0:
            return self.initial[split]
        path = self.path(split, lead_time)
        if not path.is_file():
            raise DataError(
                f"{path} is not there: only the newest states stay (--keep_train_ics, "
                "--keep_predictions). Put it back, or train its lead time again: "
                f"hftune stages {self.folder} --restart NUMBER"
            )
        return open_initial_conditions(path)

    def times(self, split: str, lead_time: int) -> np.ndarray:
        """Returns the initial times of a lead time, int64 ``[N]``."""
        return self._times[split][lead_time]

    # Samples

    def samples(
        self, split: str, lead_time: int, times: np.ndarray | None = None
    ) -> datasets.Dataset:
        """Returns samples: states of the lead time before, and the truth.

        Args:
            split (str): ``"train"``, ``"val"`` or ``"test"``.
            lead_time (int): 1, 2, ...
            times (int64 array, *optional*): Initial times; defaults to all of the lead time.
        """
        import datasets

        times = self.times(split, lead_time) if times is None else times
        dataset = datasets.Dataset.from_dict({"time": times})
        dataset.set_transform(self.reader(split, lead_time))
        return dataset

    def reader(self, split: str, lead_time: int) -> ChainReader:
        """Returns what reads the samples of a lead time."""
        step = round(self.step_hours * 3600)
        before = (lead_time - 1) * step
        return ChainReader(
            self.states(split, lead_time - 1),
            self.truth,
            before + self._steps_after(step // self.steps),
            0 if self.clock == "initial" else before,
        )

    def rollout_samples(self) -> datasets.Dataset:
        """Returns the initial states of the test split and the truth at all lead times, for scoring
        a model that is rolled out by itself (see
        :class:`~hftune.tasks.weather.evaluation_weather.ForecastEvaluator`).
        """
        import datasets

        step = round(self.step_hours * 3600)
        reader = ChainReader(
            self.initial["test"],
            self.truth,
            np.arange(1, self.lead_times + 1) * step,
            0,
        )
        dataset = datasets.Dataset.from_dict({"time": self.common_times("test")})
        dataset.set_transform(reader)
        return dataset

    def untuned_scores(self, model: torch.nn.Module, weights: str) -> ForecastScores:
        """Scores a model that is rolled out by itself, or finds what an earlier call has found.

        Args:
            model (WeatherModel): The model before the chain.
            weights (str): Identifies its weights.
        """
        evaluator = ForecastEvaluator(
            self.rollout_samples(),
            self.layout,
            self.lead_hours,
            self.climatology,
            batch_size=self.batch_size,
        )
        path, identity = self.folder / _UNTUNED_SCORES, [weights, self.fingerprint, self.lead_hours]
        found = read_json(path) if path.is_file() else {}
        if all(gathered(found.get("identity") == identity)):
            scores = ForecastScores(self.layout, self.lead_hours, self.climatology)
            scores.merge(_arrays(found["scores"]))
            return scores
        with contextlib.ExitStack() as stack:
            bar = None
            if is_main_process():
                count = len(evaluator.samples)
                bar = stack.enter_context(progress(count, "Scoring the untuned model", "forecasts"))
            scores = evaluator.evaluate(model, bar and (lambda done: bar.update(done - bar.done)))
        if process_group()[0] == 0:
            write_json(path, {"identity": identity, "scores": scores.state_dict()})
        return scores

    @property
    def fingerprint(self) -> str:
        """Identifies the initial states, the truth and how they are put together."""
        import xxhash

        told = [self.truth.fingerprint, self.clock, self.step_hours, self.history, self.dtype]
        told += [self.initial[split].fingerprint for split in SPLITS]
        return xxhash.xxh3_128(repr(told).encode()).hexdigest()

    @property
    def lead_hours(self) -> list[int]:
        """The lead times in hours."""
        return [round(k * self.step_hours) for k in range(1, self.lead_times + 1)]

    def count(self, lead_time: int, fold: int | None) -> int:
        return len(self._train_times(lead_time, fold))

    def train_samples(self, lead_time: int, fold: int | None) -> datasets.Dataset:
        return self.samples("train", lead_time, self._train_times(lead_time, fold))

    def _train_times(self, lead_time: int, fold: int | None) -> np.ndarray:
        """Times to train on: with a fold, those outside of it."""
        times = self.times("train", lead_time)
        return times if fold is None else times[self._folds_of(times) != fold]

    def _folds_of(self, times: np.ndarray) -> np.ndarray:
        """The part, 1 ... ``folds``, of training times: neighbours are alike and stay together."""
        initial = self.times("train", 0)
        return np.searchsorted(initial, times) * self.folds // len(initial) + 1

    def evaluator(self, lead_time: int) -> ChainEvaluator:
        return ChainEvaluator(self, lead_time)

    # The next states

    def has_states(self, lead_time: int, fold: int | None) -> bool:
        if fold is not None:
            return self._fold_path(lead_time, fold).is_file()
        return all(self.path(split, lead_time).is_file() for split in ("train", "val", "test"))

    def advance(self, lead_time: int, fold: int | None, by: Advance) -> dict[str, Any]:
        if fold is not None:
            self._predict("train", lead_time, fold, by)
            return {}
        for split in ("val", "test", "train"):
            if split == "train" and self.folds:
                self._collect(lead_time, by)
            else:
                self._predict(split, lead_time, None, by)
        if self.write_targets:
            self._write_truth(lead_time, by)
        return self._scored(lead_time, by)

    def _predict(self, split: str, lead_time: int, fold: int | None, by: Advance) -> None:
        import torch

        times = self.times(split, lead_time)
        path = self.path(split, lead_time)
        if fold is not None:
            times, path = times[self._folds_of(times) == fold], self._fold_path(lead_time, fold)
        reader = self.reader(split, lead_time)
        device = next(by.model.parameters()).device

        def compute(rows: np.ndarray) -> np.ndarray:
            by.stop_if_asked()
            fields = torch.from_numpy(reader.read_states(times[rows])).to(device)
            told = torch.from_numpy(times[rows] + reader.clock).to(device)
            with torch.no_grad():
                output = by.model(fields=fields, times=told, steps=self.steps)
            states = torch.cat([fields, output.prediction.float()], dim=1)
            return states[:, -self.history :].cpu().numpy()

        source = {
            "kind": "forecast",
            "weights": by.weights,
            "states": reader.states.fingerprint,
            "lead_time": lead_time,
        }
        self._write(path, times, lead_time, compute, source, by)

    def _write(
        self,
        path: Path,
        times: np.ndarray,
        lead_time: int,
        compute: Any,
        source: Mapping[str, Any],
        by: Advance,
        history: int | None = None,
    ) -> None:
        shown = progress(len(times), f"Writing {path.name}", "states")
        with shown if by.rank == 0 else contextlib.nullcontext() as bar:
            write_initial_conditions(
                path,
                layout=self.layout,
                times=times,
                compute=compute,
                lead_hours=lead_time * self.step_hours,
                history=self.history if history is None else history,
                timestep_hours=self.timestep_hours,
                source=source,
                statistics=self._statistics,
                dtype=self.dtype,
                block_rows=self.batch_size,
                rank=by.rank,
                world=by.world,
                wait=by.wait,
                progress=bar and (lambda rows: bar.update(rows - bar.done)),
            )

    def _fold_path(self, lead_time: int, fold: int) -> Path:
        return self.folder / f"ic_train_{lead_time}_fold_{fold}.mmap"

    def _collect(self, lead_time: int, by: Advance) -> None:
        """Puts together what the models of the parts have predicted for the times that they have
        not seen.
        """
        path, times = self.path("train", lead_time), self.times("train", lead_time)
        parts = [
            open_initial_conditions(self._fold_path(lead_time, fold))
            for fold in range(1, self.folds + 1)
        ]
        owner = self._folds_of(times)

        def compute(rows: np.ndarray) -> np.ndarray:
            found = np.empty((len(rows), self.history, *self._shape), np.float32)
            for fold in np.unique(owner[rows]):
                mine = owner[rows] == fold
                part = parts[fold - 1]
                found[mine] = part.read(np.searchsorted(part.times, times[rows[mine]]))
            return found

        digests = [part.fingerprint for part in parts]
        source = {"kind": "parts", "states": digests, "lead_time": lead_time}
        self._write(path, times, lead_time, compute, source, by)

    def _write_truth(self, lead_time: int, by: Advance) -> None:
        times = self.times("test", lead_time)
        reader = self.reader("test", lead_time)
        path = self.folder / f"ic_test_target_{lead_time}.mmap"

        def compute(rows: np.ndarray) -> np.ndarray:
            valid = np.searchsorted(self.truth.times, times[rows] + reader.offsets[-1])
            return reader.read_truth(valid)[:, None]

        source = {"kind": "fields", "fingerprint": self.truth.fingerprint, "lead_time": lead_time}
        self._write(path, times, lead_time, compute, source, by, history=1)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (len(self.layout.channels), *self.layout.grid)

    # Scores

    def _scored(self, lead_time: int, by: Advance) -> dict[str, Any]:
        scores = self.score("test", lead_time, self.common_times("test"), baselines=True)
        if by.rank == 0:
            write_json(by.folder / _TEST_SCORES, scores.state_dict())
        return {"predictions": self.drift(lead_time)}

    def common_times(self, split: str) -> np.ndarray:
        """The initial times that all lead times have."""
        return self.times(split, self.lead_times)

    def score(
        self, split: str, lead_time: int, times: np.ndarray, *, baselines: bool = False
    ) -> ForecastScores:
        """Scores the states of a lead time, all processes their share.

        Args:
            split (str): The split.
            lead_time (int): 0, 1, ...
            times (int64 array): Initial times to score.
            baselines (bool): Whether persistence of the initial states and the climatology are
                scored beside them. Defaults to False.
        """
        import datasets

        hours = round(lead_time * self.step_hours)
        climatology = self.climatology if baselines else None
        part = ForecastScores(self.layout, [hours], climatology)
        reader = self.reader(split, lead_time + 1)
        initial = self.initial[split]
        samples = datasets.Dataset.from_dict({"times": times}).with_format("torch")
        for batch, kept in shared_batches(samples, self.batch_size):
            if not kept:
                continue
            begin = batch["times"][:kept].numpy()
            valid = begin + hours * 3600
            truth = reader.read_truth(np.searchsorted(self.truth.times, valid))[:, None]
            forecasts = {"model": reader.read_states(begin)[:, -1:]}
            if baselines:
                forecasts["persistence"] = initial.read(np.searchsorted(initial.times, begin))[
                    :, -1:
                ]
            part.update(forecasts, truth, valid[:, None])
        return gathered_scores(part)

    def drift(self, lead_time: int) -> dict[str, float]:
        """Returns how good the states of a lead time are: what the next one is trained on, beside
        what it will be used on.

        Args:
            lead_time (int): 0, 1, ...

        Returns:
            ``train``, ``val``, ``test``: mean over channels of the RMSE in units of
            ``difference_std``, on up to 1,000 times; ``drift``: by how much that of ``val`` is
            larger than that of ``train``, as a fraction.
        """
        found, known = {}, self.truth.times
        for split in SPLITS:
            times = self.times(split, lead_time)
            times = times[np.isin(times + round(lead_time * self.step_hours * 3600), known)]
            chosen = np.unique(np.linspace(0, len(times) - 1, _DRIFT_ROWS).round().astype(int))
            rmse = self.score(split, lead_time, times[chosen]).measure("model", "rmse")[0]
            found[split] = float(np.nanmean(rmse / self.difference_std))
        found["drift"] = found["val"] / found["train"] - 1 if found["train"] else float("nan")
        return found

    def complete_scores(self, stage_folders: Sequence[str | Path]) -> None:
        """Scores lead times again that were scored on other initial times, when the chain was
        shorter; all processes together.

        Args:
            stage_folders (sequence of path): Folders of the stages, in the order of lead times.

        Raises:
            DataError: If their states are not there any more.
        """
        times = self.common_times("test")
        for lead_time, folder in enumerate(stage_folders, 1):
            path = Path(folder) / _TEST_SCORES
            if not all(gathered(read_json(path)["samples"] == len(times))):
                scores = self.score("test", lead_time, times, baselines=True)
                if process_group()[0] == 0:
                    write_json(path, scores.state_dict())

    def scores(self, stage_folders: Sequence[str | Path]) -> ForecastScores:
        """Returns the scores of the test states of all lead times, which the stages have left.

        Args:
            stage_folders (sequence of path): Folders of the stages, in the order of lead times.
        """
        parts = []
        for lead_time, folder in enumerate(stage_folders, 1):
            hours = round(lead_time * self.step_hours)
            part = ForecastScores(self.layout, [hours], self.climatology)
            part.merge(_arrays(read_json(Path(folder) / _TEST_SCORES)))
            parts.append(part)
        return ForecastScores.joined(parts)

    # The disk

    def room_needed(self, done: int) -> int:
        def size(split: str, lead_time: int) -> int:
            rows = len(self.times(split, lead_time))
            return initial_condition_bytes(rows, self.layout, self.dtype, self.history)

        left = range(done + 1, self.lead_times + 1)
        kept = 1 + (len(left) if self.keep_train_ics < 0 else self.keep_train_ics)
        # Beside the training states that stay, those that are read and those that are written.
        need = sum(size("train", k) for k in list(left)[: max(kept, 2)])
        need *= 1 + (self.folds > 0)
        small = ["val", "test", *(["test"] if self.write_targets else [])]
        leads = left if self.keep_predictions else list(left)[:2]
        return need + sum(size(split, k) for split in small for k in leads)

    def tidy(self, done: int) -> None:
        for lead_time in range(1, done + 1):
            for fold in range(1, self.folds + 1):
                _remove(self._fold_path(lead_time, fold))
            # The newest are what the next lead time is trained on.
            spare = lead_time < done or done == self.lead_times
            if 0 <= self.keep_train_ics <= done - lead_time and spare:
                _remove(self.path("train", lead_time))
            if not self.keep_predictions and lead_time < done:
                for split in ("val", "test"):
                    _remove(self.path(split, lead_time))


def _remove(path: Path) -> None:
    """Deletes a file of states and its manifest; the manifest first, which makes it count."""
    manifest_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _arrays(state: dict[str, Any]) -> dict[str, Any]:
    tables = {
        key: {name: np.array(values, dtype=np.float64) for name, values in state[key].items()}
        for key in ("sums", "counts")
    }
    return {**state, **tables}
