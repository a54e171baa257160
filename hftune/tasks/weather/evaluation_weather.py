"""Runs a forecast model over samples and scores it beside persistence and climatology."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...utils.errors import ConfigurationError
from ...utils.modules import evaluating, module_of
from .climatology import Climatology
from .fields import FieldLayout
from .scores import ForecastScores

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

__all__ = [
    "ForecastEvaluator",
    "ForecastExample",
    "evaluate_forecaster",
    "gathered",
    "gathered_scores",
    "model_predictor",
    "process_group",
    "shared_batches",
]


@dataclasses.dataclass(frozen=True, eq=False)
class ForecastExample:
    """One forecast and what happened, for maps.

    Attributes:
        layout (FieldLayout): Channels and grid.
        lead_hours (tuple of int): ``L`` lead times.
        time (int): When it was made, seconds since 1970-01-01 UTC.
        forecast, truth (float32 arrays ``[L, C, H, W]``): In physical units.
    """

    layout: FieldLayout
    lead_hours: tuple[int, ...]
    time: int
    forecast: np.ndarray
    truth: np.ndarray


def model_predictor(
    model: torch.nn.Module, lead_hours: Sequence[int]
) -> Callable[[Mapping[str, torch.Tensor]], np.ndarray]:
    """Makes the function that rolls a model out to the lead times.

    Args:
        model (torch.nn.Module): Its ``forward(fields, times, steps=...)`` gives a
            ``prediction [B, steps, C, H, W]``, and its config has ``timestep_hours``.
        lead_hours (sequence of int): ``L`` lead times, multiples of the model's time step.

    Returns:
        A function from a batch with ``fields`` and ``times`` to float32 ``[B, L, C, H, W]``.

    Raises:
        ConfigurationError: If a lead time is not a positive multiple of the time step.
    """
    import torch

    # A wrapper (DDP, FSDP, torch.compile) keeps the module that has the config inside.
    inner = model
    while not hasattr(inner, "config"):
        inner = inner.module
    hours = inner.config.timestep_hours
    wrong = [lead for lead in lead_hours if lead <= 0 or lead % hours]
    if wrong:
        raise ConfigurationError(
            f"Lead times {wrong} h cannot be reached in steps of {hours:g} h, the model's: "
            f"give --lead_hours as multiples of {hours:g}."
        )
    wanted = [round(lead / hours) - 1 for lead in lead_hours]
    device = next(model.parameters()).device

    def predict(batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        with torch.no_grad():
            output = model(
                fields=batch["fields"].to(device, non_blocking=True),
                times=batch["times"].to(device, non_blocking=True),
                steps=max(wanted) + 1,
            )
        return output.prediction[:, wanted].float().cpu().numpy()

    return predict


def evaluate_forecaster(
    predict: Callable[[Mapping[str, torch.Tensor]], np.ndarray],
    samples: Dataset,
    scores: ForecastScores,
    *,
    batch_size: int = 8,
    name: str = "model",
    progress: Callable[[int], Any] | None = None,
) -> ForecastScores:
    """Scores forecasts and persistence on samples, in every process of a group together.

    Each process takes its share of the samples, all call ``predict`` equally often (a sharded
    model would hang otherwise) and all return the scores of the whole.

    Args:
        predict (callable): From a batch to ``[B, L, C, H, W]``, see :func:`model_predictor`.
        samples (Dataset): What :func:`~hftune.tasks.weather.samples.make_samples` gives with the
            lead times of ``scores``. Latitudes that the model does not forecast are cut off at
            the south.
        scores (ForecastScores): Where the samples are added, on the model's grid.
        batch_size (int): Samples at a time and process. Defaults to 8.
        name (str): Name of the forecast in ``scores``. Defaults to ``"model"``.
        progress (callable, *optional*): Called with the number of samples done by this process.

    Returns:
        ``scores``.
    """
    part = ForecastScores(scores.layout, scores.lead_hours, scores.climatology)
    rows, columns = scores.layout.grid
    leads = np.asarray(scores.lead_hours, dtype=np.int64) * 3600
    done = 0
    for batch, kept in shared_batches(samples, batch_size):
        forecast = predict(batch)
        if kept > 0:
            last = batch["fields"][:kept, -1:, :, :rows].numpy()
            truth = batch["target_fields"][:kept, :, :, :rows].numpy()
            part.update(
                {name: forecast[:kept], "persistence": np.broadcast_to(last, truth.shape)},
                truth,
                batch["times"][:kept].numpy()[:, None] + leads,
            )
            done += kept
        if progress is not None:
            progress(done)
    return gathered_scores(part, scores)


def gathered_scores(part: ForecastScores, whole: ForecastScores | None = None) -> ForecastScores:
    """Returns the scores of all processes, given those of each.

    Args:
        part (ForecastScores): Of this process's samples.
        whole (ForecastScores, *optional*): Where they are added. Defaults to new ones.
    """
    if whole is None:
        whole = ForecastScores(part.layout, part.lead_hours, part.climatology)
    for state in gathered(part.state_dict()):
        whole.merge(state)
    return whole


def process_group() -> tuple[int, int]:
    """Returns this process's rank and the number of processes."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def gathered(value: Any) -> list[Any]:
    """Returns the values of all processes of the group, in the order of their ranks."""
    import torch

    world = process_group()[1]
    values = [value] * world
    if world > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def shared_batches(
    samples: Dataset, batch_size: int, collate_fn: Callable[[list], Any] | None = None
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields this process's share of samples in batches, equally many in all processes.

    Args:
        samples (Dataset): The samples, the same in all processes.
        batch_size (int): Samples at a time.
        collate_fn (callable, *optional*): Joins them. Defaults to
            :func:`~hftune.tasks.weather.samples.collate`.

    Yields:
        A batch, and how many of its samples count: a last process that runs short repeats the last
        sample.
    """
    from torch.utils.data import DataLoader

    from .samples import collate

    rank, world = process_group()
    share = -(-len(samples) // world)
    mine = np.arange(rank * share, (rank + 1) * share)
    left = int((mine < len(samples)).sum())
    loader = DataLoader(
        samples,
        batch_size=batch_size,
        sampler=np.minimum(mine, len(samples) - 1).tolist(),
        collate_fn=collate_fn or collate,
    )
    for batch in loader:
        count = len(batch["times"])
        yield batch, min(left, count)
        left = max(left - count, 0)


class ForecastEvaluator:
    """Scores a model on a fixed set of samples, as a trainer's evaluator and at the end of a run.

    The metric that selects the best model is ``rmse_to_persistence``: the mean over channels and
    lead times of the RMSE as a fraction of persistence's, which is without units and less than 1
    where the model knows something.

    Args:
        samples (Dataset): Samples with ``target_fields`` at ``lead_hours``.
        layout (FieldLayout): Channels of the samples and the grid of the model's forecasts.
        lead_hours (sequence of int): ``L`` lead times, hours.
        climatology (Climatology, *optional*): From the training years.
        batch_size (int): Samples at a time and process. Defaults to 8.

    Attributes:
        scores (ForecastScores or None): Those of the last evaluation.

    Example:
        >>> evaluator = ForecastEvaluator(test, layout, [24], climatology)
        >>> untuned = evaluator.evaluate(model)
        >>> trainer.train()
        >>> scores = evaluator.evaluate(model)
        >>> scores.adopt("untuned", untuned)
        >>> write_json("scores.json", scores.result())
    """

    primary_metric = "rmse_to_persistence"
    greater_is_better = False

    def __init__(
        self,
        samples: Dataset,
        layout: FieldLayout,
        lead_hours: Sequence[int],
        climatology: Climatology | None = None,
        *,
        batch_size: int = 8,
    ) -> None:
        self.samples = samples
        self.layout = layout
        self.lead_hours = tuple(lead_hours)
        self.climatology = climatology
        self.batch_size = batch_size
        self.scores: ForecastScores | None = None

    def evaluate(
        self, model: torch.nn.Module, progress: Callable[[int], Any] | None = None
    ) -> ForecastScores:
        """Scores a model in evaluation mode; its mode is restored afterwards."""
        predict = model_predictor(model, self.lead_hours)
        scores = ForecastScores(self.layout, self.lead_hours, self.climatology)
        with evaluating(model):
            evaluate_forecaster(
                predict, self.samples, scores, batch_size=self.batch_size, progress=progress
            )
        self.scores = scores
        return scores

    def example(self, model: torch.nn.Module, index: int | None = None) -> ForecastExample:
        """Forecasts one sample; in a group of processes all call it.

        Args:
            model (torch.nn.Module): The model.
            index (int, *optional*): Which sample; defaults to the one in the middle, so that
                nobody picked it.
        """
        from .samples import collate

        sample = self.samples[len(self.samples) // 2 if index is None else index]
        batch = collate([sample])
        with evaluating(model):
            forecast = model_predictor(model, self.lead_hours)(batch)[0]
        return ForecastExample(
            self.layout,
            self.lead_hours,
            int(batch["times"][0]),
            forecast,
            batch["target_fields"][0, :, :, : self.layout.grid[0]].numpy(),
        )

    def __call__(self, trainer_or_model: Any) -> dict[str, float]:
        """Returns the metrics: ``rmse_to_persistence``, and the same by lead time.

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
        metrics = {self.primary_metric: scores.mean_rmse_to_persistence()}
        if len(self.lead_hours) > 1:
            for index, hours in enumerate(self.lead_hours):
                value = scores.mean_rmse_to_persistence(lead=index)
                metrics[f"{self.primary_metric}_{hours}h"] = value
        return metrics
