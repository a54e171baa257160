"""Scores of forecasts beside baselines, by the conventions of WeatherBench 2.

Cells count by their area; RMSE is the root of the mean over time of the spatial mean squared error;
the anomaly correlation (ACC) is taken at each time against the climatology of the valid time, with
no removal of the spatial mean, and then averaged over time. Everything is summed in float64 as the
forecasts come: memory does not grow with their number.

Notation: ``B`` samples, ``L`` lead times, ``C`` channels, ``H`` latitudes, ``W`` longitudes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...utils.errors import DataError
from .climatology import Climatology
from .fields import FieldLayout

__all__ = ["ForecastScores", "cell_area_weights"]

_BASELINES = ("persistence", "climatology")
_MEASURES = ("rmse", "mae", "bias", "acc")
_BLOCK = 1 << 16  # values scored at once: half a MiB of float64, which stays in the cache


def cell_area_weights(latitude: np.ndarray) -> np.ndarray:
    """Returns the areas of grid cells by latitude, divided by their mean.

    A cell reaches half-way to its neighbours and no further than the pole, so a row at the pole
    has a small weight and not none. A region's outermost cells are as high as those beside them.

    Args:
        latitude (array ``[H]``): Degrees north, strictly monotonic.

    Returns:
        float64 array ``[H]`` with mean 1.
    """
    latitude = np.asarray(latitude, dtype=np.float64)
    if len(latitude) == 1:
        return np.ones(1)
    between = (latitude[1:] + latitude[:-1]) / 2
    first, last = 2 * latitude[0] - between[0], 2 * latitude[-1] - between[-1]
    bounds = np.clip(np.concatenate([[first], between, [last]]), -90, 90)
    area = np.abs(np.diff(np.sin(np.deg2rad(bounds))))
    return area / area.mean()


class ForecastScores:
    """Sums the scores of any number of forecasts over samples.

    A cell where the truth or a baseline has no value is left out for every forecast, so all are
    measured on the same cells. A forecast that is NaN elsewhere scores NaN.

    Args:
        layout (FieldLayout): Channels and grid of the forecasts.
        lead_hours (sequence of int): ``L`` lead times, hours.
        climatology (Climatology, *optional*): Scored as the forecast ``"climatology"`` and needed
            for ACC. Its grid may have more latitudes in the south (a model that crops to its
            patch size has fewer).

    Example:
        >>> scores = ForecastScores(layout, [24, 48], climatology)
        >>> scores.update({"model": a, "persistence": b}, truth, valid_times)
        >>> scores.result()["variables"]["z_500"]["rmse"]
    """

    def __init__(
        self,
        layout: FieldLayout,
        lead_hours: Sequence[int],
        climatology: Climatology | None = None,
    ) -> None:
        self.layout = layout
        self.lead_hours = tuple(int(hours) for hours in lead_hours)
        self.climatology = climatology
        self.samples = 0
        self._period: tuple[int, int] | None = None
        self._sums: dict[str, np.ndarray] = {}  # name -> [4 measures, L, C]
        self._counts: dict[str, np.ndarray] = {}  # name -> [4 measures, L, C], times summed
        rows, columns = layout.grid
        self._weights = np.repeat(cell_area_weights(layout.latitude), columns)
        if climatology is not None:
            ours, theirs = layout, climatology.layout
            same = (
                ours.channels == theirs.channels
                and np.allclose(ours.latitude, theirs.latitude[:rows])
                and np.allclose(ours.longitude, theirs.longitude)
            )
            if not same:
                raise DataError(
                    "The climatology and the forecasts have different channels or grids: "
                    f"{len(theirs.channels)} channels on {theirs.grid[0]} x {theirs.grid[1]} "
                    f"and {len(ours.channels)} channels on {rows} x {columns}. Compute the "
                    "climatology from the fields that the model was trained on."
                )

    def update(
        self, forecasts: Mapping[str, Any], truth: Any, valid_times: Sequence | np.ndarray
    ) -> None:
        """Adds samples.

        Args:
            forecasts (mapping): Name to array ``[B, L, C, H, W]`` in physical units. ``"model"``,
                ``"persistence"`` and ``"untuned"`` have a meaning in :meth:`result`; every call
                gives the same names.
            truth (array ``[B, L, C, H, W]``): What happened; NaN where that is not known.
            valid_times (int array ``[B, L]``): Seconds since 1970-01-01 UTC of ``truth``.
        """
        shape = (
            len(valid_times), len(self.lead_hours), len(self.layout.channels), *self.layout.grid
        )  # fmt: skip
        arrays = {name: np.asarray(values) for name, values in forecasts.items()}
        truth = np.asarray(truth)
        valid_times = np.asarray(valid_times, dtype=np.int64)
        for name, values in {"truth": truth, **arrays}.items():
            if values.shape != shape:
                raise DataError(
                    f"{name} has the shape {values.shape}, expected {shape}: samples, lead times, "
                    "channels, latitudes, longitudes."
                )
        if not len(truth):
            return

        rows = self.layout.grid[0]
        climatology = None
        if self.climatology is not None:
            climatology = np.ascontiguousarray(
                self.climatology.at(valid_times.reshape(-1))[:, :, :rows]
            ).reshape(shape)
            arrays["climatology"] = climatology
        for name in arrays:
            if name not in self._sums:
                if self.samples:
                    raise DataError(
                        f"The forecast '{name}' was not in the first samples: each update gives "
                        "the same forecasts."
                    )
                self._sums[name] = np.zeros((len(_MEASURES), *shape[1:3]))
                self._counts[name] = np.zeros((len(_MEASURES), *shape[1:3]))

        # One line a field: how many samples, lead times and channels there are matters no more.
        def lines(values: np.ndarray) -> np.ndarray:
            return values.reshape(-1, len(self._weights))

        total, cells = len(lines(truth)), len(self._weights)
        where = np.arange(total) % (shape[1] * shape[2])  # which lead time and channel
        step = max(1, _BLOCK // cells)
        for start in range(0, total, step):
            part = slice(start, start + step)
            sums = _WeightedSums(list(arrays), len(where[part]))
            for west in range(0, cells, _BLOCK):
                band = slice(west, west + _BLOCK)
                sums.add(
                    {name: lines(values)[part, band] for name, values in arrays.items()},
                    lines(truth)[part, band],
                    None if climatology is None else lines(climatology)[part, band],
                    self._weights[band],
                )
            self._add(sums, where[part])
        self.samples += len(truth)
        first, last = int(valid_times.min()), int(valid_times.max())
        if self._period is not None:
            first, last = min(first, self._period[0]), max(last, self._period[1])
        self._period = (first, last)

    def _add(self, sums: _WeightedSums, where: np.ndarray) -> None:
        """Adds the spatial means of some fields to their lead times and channels."""
        known = sums.area > 0
        for name, values in sums.values.items():
            with np.errstate(invalid="ignore", divide="ignore"):  # where nothing is known
                means = values[:3] / sums.area
                acc = values[3] / np.sqrt(values[4] * sums.truth_spread)
            # A forecast that equals the climatology has no correlation: not counted. One that is
            # NaN stays NaN.
            correlated = known & (~np.isnan(acc) | np.isnan(values[0]))
            if self.climatology is None or name == "climatology":
                correlated = np.zeros_like(known)
            table = self._sums[name].reshape(len(_MEASURES), -1)
            counts = self._counts[name].reshape(len(_MEASURES), -1)
            for measure, numbers in enumerate((*means, acc)):
                usable = known if measure < 3 else correlated
                places = where[usable]
                table[measure] += np.bincount(places, numbers[usable], table.shape[1])
                counts[measure] += np.bincount(places, minlength=table.shape[1])

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums, for :meth:`merge` in another process."""
        return {
            "samples": self.samples,
            "period": self._period,
            "sums": {name: values.copy() for name, values in self._sums.items()},
            "counts": {name: values.copy() for name, values in self._counts.items()},
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds the sums of other samples, as another's :meth:`state_dict` gives them."""
        if not state["samples"]:
            return
        if self.samples and set(state["sums"]) != set(self._sums):
            raise DataError(
                f"Scores of {sorted(state['sums'])} cannot be added to scores of "
                f"{sorted(self._sums)}: each process scores the same forecasts."
            )
        for name, values in state["sums"].items():
            self._sums[name] = self._sums.get(name, 0.0) + values
            self._counts[name] = self._counts.get(name, 0.0) + state["counts"][name]
        self.samples += state["samples"]
        periods = [period for period in (self._period, state["period"]) if period is not None]
        self._period = (min(p[0] for p in periods), max(p[1] for p in periods))

    @classmethod
    def joined(cls, parts: Sequence[ForecastScores]) -> ForecastScores:
        """Puts scores of different lead times, made on the same samples, beside each other.

        Args:
            parts (sequence of ForecastScores): In the order of their lead times, with the same
                forecasts.

        Raises:
            DataError: If they were made on different numbers of samples.
        """
        first = parts[0]
        counts = sorted({part.samples for part in parts})
        if len(counts) > 1:
            raise DataError(
                f"The scores of different lead times were made on {counts} samples: score the same "
                "ones at each."
            )
        leads = [hours for part in parts for hours in part.lead_hours]
        whole = cls(first.layout, leads, first.climatology)
        whole.samples = first.samples
        periods = [part._period for part in parts if part._period is not None]
        if periods:
            whole._period = (min(p[0] for p in periods), max(p[1] for p in periods))
        for name in first._sums:
            whole._sums[name] = np.concatenate([part._sums[name] for part in parts], axis=1)
            whole._counts[name] = np.concatenate([part._counts[name] for part in parts], axis=1)
        return whole

    def adopt(self, name: str, other: ForecastScores, source: str = "model") -> None:
        """Takes over one forecast of other scores that were made on the same samples.

        Used to put the untuned model, scored before training, beside the tuned one.

        Args:
            name (str): Its name here, for example ``"untuned"``.
            other (ForecastScores): Where it was scored.
            source (str): Its name there. Defaults to ``"model"``.

        Raises:
            DataError: If the two were not made on the same samples.
        """
        mine = (self.lead_hours, self.layout.channels, self.samples, self._period)
        theirs = (other.lead_hours, other.layout.channels, other.samples, other._period)
        if mine != theirs:
            raise DataError(
                f"The scores of '{name}' were made on other samples: {theirs[2]} samples of the "
                f"period {theirs[3]} and lead times {theirs[0]}, here {mine[2]} of {mine[3]} and "
                f"{mine[0]}."
            )
        self._sums[name] = other._sums[source].copy()
        self._counts[name] = other._counts[source].copy()

    def measure(self, name: str, measure: str) -> np.ndarray:
        """Returns float64 ``[L, C]``: the measure (``rmse``, ``mae``, ``bias``, ``acc``) so far."""
        index = _MEASURES.index(measure)
        counts = self._counts[name][index]
        with np.errstate(invalid="ignore"):
            mean = np.where(counts > 0, self._sums[name][index] / np.maximum(counts, 1), np.nan)
            return np.sqrt(mean) if measure == "rmse" else mean

    def rmse_to_persistence(self, name: str = "model") -> np.ndarray:
        """Returns float64 ``[L, C]``: RMSE as a fraction of persistence's, NaN where that is 0."""
        reference = self.measure("persistence", "rmse")
        return self.measure(name, "rmse") / np.where(reference > 0, reference, np.nan)

    def mean_rmse_to_persistence(self, name: str = "model", *, lead: int | None = None) -> float:
        """Returns the mean of :meth:`rmse_to_persistence` over channels, and lead times.

        Channels that never change (persistence is perfect) do not count; one in which the
        forecast is NaN makes the mean NaN.

        Args:
            name (str): The forecast. Defaults to ``"model"``.
            lead (int, *optional*): Index of one lead time; defaults to the mean over all.
        """
        usable, ratio = self._varies(), self.rmse_to_persistence(name)
        if lead is not None:
            usable, ratio = usable[lead], ratio[lead]
        return float(ratio[usable].mean()) if usable.any() else float("nan")

    def _varies(self) -> np.ndarray:
        """bool ``[L, C]``: where there is a persistence error to compare with."""
        return self.measure("persistence", "rmse") > 0

    def result(self) -> dict[str, Any]:
        """Returns what ``scores.json`` holds.

        Returns:
            ``{"lead_hours": [...], "samples", "valid_from", "valid_to", "weights",
            "variables": {channel: {"units", "rmse": [L], "mae", "bias", "acc",
            "persistence_rmse", ..., "climatology_rmse", ..., "untuned_rmse", ...,
            "rmse_to_persistence", "worse_than_untuned"}}, "summary": {...}}``. In ``"summary"``:
            ``mean_rmse_to_persistence`` is the mean over channels and lead times,
            ``rmse_to_persistence`` the same by lead time, ``worse_than_persistence`` and
            ``worse_than_untuned`` name the channels that are worse at any lead time.
        """
        if not self.samples:
            raise DataError("There is nothing to score: no sample was given.")
        variables: dict[str, dict[str, Any]] = {}
        tables = {  # key in scores.json -> [L, C]
            f"{'' if name == 'model' else name + '_'}{measure}": self.measure(name, measure)
            for name in sorted(self._sums, key=lambda name: (name != "model", name))
            for measure in _MEASURES
            if self._counts[name][_MEASURES.index(measure)].any()
        }
        summary: dict[str, Any] = {}
        model, persistence = "model" in self._sums, "persistence" in self._sums
        if model and persistence:
            ratio = tables["rmse_to_persistence"] = self.rmse_to_persistence()
            summary["mean_rmse_to_persistence"] = self.mean_rmse_to_persistence()
            summary["rmse_to_persistence"] = [
                self.mean_rmse_to_persistence(lead=lead) for lead in range(len(self.lead_hours))
            ]
            summary["worse_than_persistence"] = self._names(self._varies() & ~(ratio <= 1))
        if model and "untuned" in self._sums:
            worse = ~(self.measure("model", "rmse") <= self.measure("untuned", "rmse"))
            tables["worse_than_untuned"] = worse
            summary["worse_than_untuned"] = self._names(worse)
            if persistence:
                untuned = self.mean_rmse_to_persistence("untuned")
                summary["untuned_mean_rmse_to_persistence"] = untuned
        for index, channel in enumerate(self.layout.channels):
            entry: dict[str, Any] = {"units": self.layout.units[index]}
            entry.update({key: table[:, index].tolist() for key, table in tables.items()})
            variables[channel] = entry
        first, last = self._period
        return {
            "lead_hours": list(self.lead_hours),
            "samples": self.samples,
            "valid_from": f"{np.datetime64(first, 's')}Z",
            "valid_to": f"{np.datetime64(last, 's')}Z",
            "weights": "cell area",
            "variables": variables,
            "summary": summary,
        }

    def _names(self, flags: np.ndarray) -> list[str]:
        pairs = zip(self.layout.channels, flags.any(axis=0), strict=True)
        return [channel for channel, flag in pairs if flag]


class _WeightedSums:
    """Sums over the cells of some fields, band by band, in float64.

    Attributes:
        area (float64 array ``[n]``): Weight of the cells that count.
        truth_spread (float64 array ``[n]``): Squares of the anomaly of the truth.
        values (dict): By forecast float64 ``[5, n]``: squared error, absolute error, error, product
            of the anomalies, square of its anomaly.
    """

    def __init__(self, names: Sequence[str], count: int) -> None:
        self.area = np.zeros(count)
        self.truth_spread = np.zeros(count)
        self.values = {name: np.zeros((5, count)) for name in names}

    def add(
        self,
        forecasts: Mapping[str, np.ndarray],
        truth: np.ndarray,
        climatology: np.ndarray | None,
        weights: np.ndarray,
    ) -> None:
        """Adds a band of cells; arrays are ``[n, m]`` and the weights ``[m]``."""
        truth = truth.astype(np.float64)
        known = np.isfinite(truth)
        for name in _BASELINES:
            if name in forecasts:
                known &= np.isfinite(forecasts[name])
        whole = bool(known.all())
        self.area += weights.sum() if whole else known @ weights

        def difference(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
            result = np.subtract(values, reference, dtype=np.float64)
            return result if whole else np.where(known, result, 0.0)

        if climatology is not None:
            anomaly = difference(truth, climatology)
            weighted = anomaly * weights
            self.truth_spread += _dot(weighted, anomaly)
        for name, forecast in forecasts.items():
            sums = self.values[name]
            error = difference(forecast, truth)
            sums[0] += _dot(error * weights, error)
            sums[1] += np.abs(error) @ weights
            sums[2] += error @ weights
            if climatology is not None and name != "climatology":
                other = difference(forecast, climatology)
                sums[3] += _dot(weighted, other)
                other *= other
                sums[4] += other @ weights


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Sums products along each line."""
    return np.einsum("nm,nm->n", first, second)
