"""Scores the analyses of an encoder on held-out times, beside what is simpler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...utils.modules import evaluating, module_of
from ..weather.climatology import Climatology
from ..weather.evaluation_weather import ForecastExample, gathered_scores, shared_batches
from ..weather.fields import FieldLayout
from ..weather.scores import ForecastScores
from .observations import BACKGROUND, collate_observations

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

__all__ = ["EncoderEvaluator"]


class EncoderEvaluator:
    """Scores an encoder on a fixed set of samples, as a trainer's evaluator and at a run's end.

    The metric that selects the best model is ``rmse_normalised``: the mean over channels of the
    RMSE in units of the channel's standard deviation, cells weighted by their area.

    Args:
        samples (Dataset): Of :func:`~.observations.observation_samples`, with targets.
        layout (FieldLayout): Channels and grid of the targets.
        std (array ``[C]``): Standard deviation of each channel over the training times.
        climatology (Climatology, *optional*): From the training years, scored too.
        baselines (mapping, *optional*): Name to a function from a batch to an array
            ``[B, 1, C, H, W]``, scored too.
        batch_size (int): Samples at a time and process. Defaults to 8.

    Example:
        >>> evaluator = EncoderEvaluator(test, fields.layout, statistics.std, climatology)
        >>> evaluator(encoder)["rmse_normalised"]
    """

    primary_metric = "rmse_normalised"
    greater_is_better = False

    def __init__(
        self,
        samples: Dataset,
        layout: FieldLayout,
        std: Sequence[float] | np.ndarray,
        climatology: Climatology | None = None,
        *,
        baselines: Mapping[str, Callable[[Mapping[str, Any]], np.ndarray]] | None = None,
        batch_size: int = 8,
    ) -> None:
        self.samples = samples
        self.layout = layout
        self.std = np.asarray(std, dtype=np.float64)
        self.climatology = climatology
        self.baselines = dict(baselines or {})
        self.batch_size = batch_size

    def evaluate(
        self, model: torch.nn.Module, progress: Callable[[int], Any] | None = None
    ) -> ForecastScores:
        """Scores a model in evaluation mode, in every process of a group together.

        Each process takes its share of the samples, all call the model equally often (a sharded
        model would hang otherwise) and all return the scores of the whole.

        Args:
            model (torch.nn.Module): The encoder, as it is wrapped for training or not.
            progress (callable, *optional*): Called with the number of samples done by this process.

        Returns:
            ForecastScores: With one lead time, 0 hours, and the forecasts ``model``,
            ``climatology``, ``background`` where the samples have one, and the baselines.
        """
        part = ForecastScores(self.layout, [0], self.climatology)
        done = 0
        with evaluating(model):
            batches = shared_batches(self.samples, self.batch_size, collate_observations)
            for batch, kept in batches:
                analyses = {"model": _analyse(model, batch)}
                if BACKGROUND in batch["observations"]:
                    fields = batch["observations"][BACKGROUND].transpose(2, 3)
                    analyses[BACKGROUND] = fields[:, None].numpy()
                analyses |= {name: baseline(batch) for name, baseline in self.baselines.items()}
                part.update(
                    {name: values[:kept] for name, values in analyses.items()},
                    batch["target_fields"][:kept].numpy(),
                    batch["times"][:kept, None].numpy(),
                )
                done += kept
                if progress is not None:
                    progress(done)
        return gathered_scores(part)

    def example(self, model: torch.nn.Module, index: int | None = None) -> ForecastExample:
        """Analyses one sample; in a group of processes all call it.

        Args:
            model (torch.nn.Module): The encoder.
            index (int, *optional*): Which sample; defaults to the one in the middle, so that
                nobody picked it.
        """
        sample = self.samples[len(self.samples) // 2 if index is None else index]
        batch = collate_observations([sample])
        with evaluating(model):
            analysis = _analyse(model, batch)[0]
        truth = batch["target_fields"][0].numpy()
        return ForecastExample(self.layout, (0,), int(batch["times"][0]), analysis, truth)

    def __call__(self, trainer_or_model: Any) -> dict[str, float]:
        """Returns the metrics: ``rmse_normalised``, and the same by channel.

        Args:
            trainer_or_model (Trainer or torch.nn.Module): A trainer's model is used as it is
                wrapped for training.
        """
        return self.metrics(self.evaluate(module_of(trainer_or_model)))

    def metrics(self, scores: ForecastScores) -> dict[str, float]:
        """Returns what the evaluator calls metrics, of scores that are there.

        Args:
            scores (ForecastScores): Of :meth:`evaluate`.
        """
        ours = self._normalised(scores, "model")
        by_channel = zip(self.layout.channels, ours, strict=True)
        return {
            self.primary_metric: float(ours.mean()),
            **{f"{self.primary_metric}_{channel}": float(value) for channel, value in by_channel},
        }

    def result(self, scores: ForecastScores) -> dict[str, Any]:
        """Returns what ``scores.json`` holds.

        Args:
            scores (ForecastScores): Of :meth:`evaluate`.

        Returns:
            dict: As :meth:`~hftune.tasks.weather.scores.ForecastScores.result` with numbers in
            place of lists by lead time, and ``rmse_normalised``, ``climatology_rmse_normalised``,
            ``background_...``, ``ridge_...`` of each channel. In ``"summary"`` their means over
            channels, and ``worse_than_climatology``, ... with the channels that are.
        """
        result = scores.result()
        del result["lead_hours"]
        variables = {
            channel: {k: v[0] if isinstance(v, list) else v for k, v in entry.items()}
            for channel, entry in result["variables"].items()
        }
        summary: dict[str, Any] = {}
        ours = self._normalised(scores, "model")
        for name in ("model", "climatology", BACKGROUND, *self.baselines):
            if f"{name}_rmse" not in next(iter(variables.values())) and name != "model":
                continue
            key = "rmse_normalised" if name == "model" else f"{name}_rmse_normalised"
            values = self._normalised(scores, name)
            summary[key] = float(values.mean())
            for entry, value in zip(variables.values(), values, strict=True):
                entry[key] = float(value)
            if name != "model":
                pairs = zip(self.layout.channels, ours, values, strict=True)
                summary[f"worse_than_{name}"] = [c for c, a, b in pairs if not a <= b]
        return {**result, "variables": variables, "summary": summary}

    def _normalised(self, scores: ForecastScores, name: str) -> np.ndarray:
        """float64 ``[C]``: RMSE in units of the channel's standard deviation."""
        return scores.measure(name, "rmse")[0] / self.std


def _analyse(model: torch.nn.Module, batch: Mapping[str, Any]) -> np.ndarray:
    import torch

    device = next(model.parameters()).device
    with torch.no_grad():
        output = model(
            observations={
                name: values.to(device, non_blocking=True)
                for name, values in batch["observations"].items()
            },
            times=batch["times"].to(device, non_blocking=True),
        )
    return output.prediction.float().cpu().numpy()
