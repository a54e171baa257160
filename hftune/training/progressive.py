"""Progressive training: 10 % of the data, 20 %, ... 100 %, each stage from the last one's best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from transformers import Trainer

from ..callbacks.resources import ResourceMonitor
from ..configuration.stage_arguments import ProgressiveArguments
from ..utils.errors import DataError
from ..utils.files import atomic_write
from ..utils.terminal import console
from .learning_curve import CurvePoint, LearningCurve, expected_gain, fit_learning_curve
from .out_of_memory import halve_batch
from .plan import PlannedStage, Stage
from .progressive_results import write_results
from .stages import StagedMixin, StageSpec
from .subsets import nested_subset, sample_keys, subset_digest

__all__ = ["ProgressiveMixin", "ProgressiveTrainer", "ResampledEvaluator"]

_REPLICATES = "score_replicates.npy"


@runtime_checkable
class ResampledEvaluator(Protocol):
    """An :class:`~hftune.training.trainer.Evaluator` that scores single examples."""

    def bootstrap(self) -> np.ndarray:
        """Returns the primary metric on resampled examples of the last call, float64
        ``[replicates]``; the same examples in each call with the same number of examples.
        """
        ...


class ProgressiveMixin(StagedMixin):
    """Stages on growing fractions of the training data.

    A stage's data are a `select` of the training table: the first samples of each class by a keyed
    hash. What is in a small fraction is in every larger one, classes keep their share, and data
    that are added later push out few of them.

    Each stage leaves ``training_metrics.json``; the run ``progressive_training_results.json`` and
    ``progressive_training_summary.txt``, with the score against the size of the data. From the
    third stage on, and where the evaluator has ``bootstrap()``, a curve through the scores says
    what the next stage and all data are expected to gain, with an interval.

    Args:
        model (torch.nn.Module): As for the Trainer.
        args (HFTuneArguments): As for the Trainer.
        train_dataset: All training samples: a `datasets.Dataset`, or any data set with a length.
        progressive (ProgressiveArguments, *optional*): The fractions.
        sample_keys (uint64 array ``[samples]``, *optional*): From
            :func:`~hftune.training.subsets.sample_keys`. Defaults to keys of the row numbers, which
            stay the same only where new data come after the old.
        sample_labels (sequence ``[samples]``, *optional*): Class of each sample, so that each
            stage has the classes in their proportions.
        score_bounds (two float, *optional*): Between which the primary metric can be, ``(0, 1)``
            for accuracy.
        **kwargs: As for :class:`~hftune.training.stages.StagedMixin`.

    Raises:
        ConfigurationError: With everything that is wrong with the stages.
        DataError: If there are no samples.
    """

    plan_kind = "progressive"

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        args: Any = None,
        *,
        train_dataset: Any,
        progressive: ProgressiveArguments | None = None,
        sample_keys: np.ndarray | None = None,
        sample_labels: Sequence[Any] | np.ndarray | None = None,
        score_bounds: tuple[float, float] | None = None,
        plan_settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.progressive = progressive or ProgressiveArguments()
        self.score_bounds = score_bounds
        self.all_samples = len(train_dataset)
        self.curve: LearningCurve | None = None
        stages = progressive_stages(
            self.progressive, train_dataset, sample_keys, sample_labels, args.data_seed
        )
        # Before the others: what it adds to the logs, the tracking callback records.
        own = ResourceMonitor(max_memory_mb=self.progressive.max_memory_mb)
        kwargs["callbacks"] = [own, *(kwargs.get("callbacks") or [])]
        super().__init__(
            model,
            args,
            stages=stages,
            plan_settings={"samples": self.all_samples, **(plan_settings or {})},
            **kwargs,
        )
        monitors = [c for c in self.callback_handler.callbacks if isinstance(c, ResourceMonitor)]
        if len(monitors) > 1:  # the user has brought one
            self.remove_callback(own)
            monitors.remove(own)
        self._monitor = monitors[0]

    # Stages

    def first_batch(self, stage: Stage, micro: int, accumulation: int) -> tuple[int, int]:
        before = self.results[-2:]
        smaller = halve_batch(micro, accumulation)
        if not before or not before[-1]["resources"]["exceeded"] or smaller is None:
            return micro, accumulation
        sizes = [result["batch"]["per_device_train_batch_size"] for result in before]
        peaks = [result["resources"]["memory_bytes"] for result in before]
        if sizes[-1] < sizes[0] and peaks[-1] > 0.95 * peaks[0]:
            return micro, accumulation  # it is not the batch that takes the memory
        self._say(
            f"stage {stage.number}: the stage before took more than --max_memory_mb "
            f"{self.progressive.max_memory_mb:g}; this one has a micro batch of {smaller[0]} "
            f"instead of {micro}, {smaller[1]} accumulated"
        )
        return smaller

    def stage_result(self, stage: Stage, result: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"resources": self._monitor.peak}
        if isinstance(self.evaluator, ResampledEvaluator):
            metrics = result["metrics"]
            if self._evaluated_step != result["best_step"]:
                metrics = self.evaluator(self)  # what it last saw was not the best model
            found["score"] = float(metrics[self.evaluator.primary_metric])
            if self.is_world_process_zero():
                with atomic_write(stage.folder / _REPLICATES, "wb") as stream:
                    np.save(stream, self.evaluator.bootstrap(), allow_pickle=False)
        else:
            found["score"] = result["metrics"].get(self.score_name)
        return found

    def end_reason(
        self, results: list[dict[str, Any]], following: PlannedStage, root: Path
    ) -> str | None:
        least = self.progressive.stop_when_gain_below
        curve = None if least is None else self.fit(results, root)
        if curve is None:
            return None
        gain = expected_gain(curve, curve.points[-1], following.settings["samples"])
        if gain.value >= least:
            return None
        return (
            f"the next stage is expected to gain {_gain(gain)}, less than stop_when_gain_below "
            f"{least:g}"
        )

    def stage_done(self, stage: Stage, results: list[dict[str, Any]], reason: str | None) -> None:
        self.curve = self.fit(results, stage.root)
        if results[-1].get("score") is not None:
            self._say(f"{self.score_name} after {stage.title}: {results[-1]['score']:.4g}")
        if self.curve is not None:
            now = self.curve.points[-1]
            expected = {}
            if stage.later:
                expected["the next stage"] = stage.later[0].settings["samples"]
            if now.samples < self.all_samples:
                expected[f"all {self.all_samples:,} samples"] = self.all_samples
            for what, samples in expected.items():
                gain = expected_gain(self.curve, now, samples)
                self._say(f"  expected gain of {what}: {_gain(gain)}")
        status = "running"
        if stage.is_last:
            status = "completed" if reason is None else "stopped"
        write_results(
            stage.root,
            results,
            status=status,
            reason=reason,
            score_name=self.score_name,
            greater_is_better=bool(self.args.greater_is_better),
            all_samples=self.all_samples,
            carried=not self.staging.fresh_each_stage,
            curve=self.curve,
        )

    # The learning curve

    @property
    def score_name(self) -> str:
        """The metric whose course over the data is followed."""
        return (self.args.metric_for_best_model or "loss").removeprefix("eval_")

    def points(self, results: Sequence[Mapping[str, Any]], root: Path) -> list[CurvePoint]:
        """Returns the scores of stages as points of a learning curve.

        Args:
            results (sequence of mappings): Of the stages.
            root (Path): The run's folder.
        """
        found = []
        for result in results:
            if result.get("score") is None:
                continue
            path = root / result["name"] / _REPLICATES
            replicates = np.load(path, allow_pickle=False) if path.is_file() else None
            found.append(CurvePoint(result["samples"], result["score"], replicates))
        return found

    def fit(self, results: Sequence[Mapping[str, Any]], root: Path) -> LearningCurve | None:
        """Returns the curve through the scores of stages; None where they are too few.

        Args:
            results (sequence of mappings): Of the stages.
            root (Path): The run's folder.
        """
        return fit_learning_curve(
            self.points(results, root),
            greater_is_better=bool(self.args.greater_is_better),
            bounds=self.score_bounds,
        )


class ProgressiveTrainer(ProgressiveMixin, Trainer):
    """A `transformers.Trainer` for progressive training; see :class:`ProgressiveMixin`.

    Example:
        >>> trainer = ProgressiveTrainer(
        ...     model,
        ...     HFTuneArguments("runs/intents", load_best_model_at_end=True, ...),
        ...     progressive=ProgressiveArguments(start_ratio=0.1, epochs_per_stage=2),
        ...     train_dataset=table,
        ...     sample_keys=sample_keys(table["text"], table["label"], seed=42),
        ...     sample_labels=table["label"],
        ...     evaluator=ClassificationEvaluator(validation, label_names, collator),
        ...     score_bounds=(0, 1),
        ... )
        >>> trainer.train()
        >>> trainer.curve.predict(2 * len(table))
    """


def progressive_stages(
    progressive: ProgressiveArguments,
    dataset: Any,
    keys: np.ndarray | None,
    labels: Sequence[Any] | np.ndarray | None,
    seed: int,
) -> list[StageSpec]:
    """Returns the stages of a progressive training.

    Args:
        progressive (ProgressiveArguments): The fractions.
        dataset: All training samples.
        keys (uint64 array ``[samples]``, *optional*): From
            :func:`~hftune.training.subsets.sample_keys`.
        labels (sequence ``[samples]``, *optional*): Classes.
        seed (int): Of the keys, where there are none.

    Raises:
        DataError: If there are no samples.
    """
    count = len(dataset)
    if count == 0:
        raise DataError("the training data have no samples; expected at least one")
    if keys is None:
        keys = sample_keys(range(count), seed=seed)
    stages = []
    for ratio in progressive.ratios:
        chosen = nested_subset(keys, labels, ratio)
        percent = f"{round(100 * ratio, 4):g}"
        arguments: dict[str, Any] = {"num_train_epochs": float(progressive.epochs_per_stage)}
        size = progressive.batch_size(ratio)
        if size is not None:
            arguments["per_device_train_batch_size"] = size
        stages.append(
            StageSpec(
                name=f"stage_{{number}}_{percent}pct",
                train_dataset=_select(dataset, chosen),
                title=f"{percent} % of the data",
                arguments=arguments,
                settings={
                    "ratio": ratio,
                    "samples": len(chosen),
                    "digest": subset_digest(keys, chosen),
                },
                key=f"{ratio:g}",
            )
        )
    if labels is not None:
        _say_small_classes(stages[0], nested_subset(keys, labels, progressive.ratios[0]), labels)
    return stages


def _select(dataset: Any, chosen: np.ndarray) -> Any:
    if len(chosen) == len(dataset):
        return dataset
    if hasattr(dataset, "select"):  # of `datasets`
        return dataset.select(chosen)
    return torch.utils.data.Subset(dataset, chosen.tolist())


def _say_small_classes(
    stage: StageSpec, chosen: np.ndarray, labels: Sequence[Any] | np.ndarray
) -> None:
    counts = np.unique(np.asarray(labels)[chosen], return_counts=True)[1]
    if counts.min() < 2:
        console().print(
            f"{int((counts < 2).sum())} of {len(counts)} classes have a single sample in "
            f"{stage.title}; a larger --start_ratio gives them more",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def _gain(gain: Any) -> str:
    return f"{gain.value:+.2g} ({gain.low:+.2g} to {gain.high:+.2g})"
