"""The metrics of the best evaluation, in any Trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from ..tracking.json_lines import from_number, to_number
from ..tracking.metric_directions import known_direction
from ..utils.errors import ConfigurationError, did_you_mean
from ..utils.terminal import console
from .state import StatefulCallback

__all__ = ["BestMetricsCallback", "add_rouge_combined"]

_ROUGE_WEIGHTS = {"rouge1": 0.33, "rouge2": 0.33, "rougeL": 0.34}
_SPEED = ("runtime", "per_second", "preparation_time", "compilation_time")


def add_rouge_combined(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics with ``rouge_combined_f1`` where ROUGE-1, ROUGE-2 and ROUGE-L are there.

    ``0.33 * rouge1 + 0.33 * rouge2 + 0.34 * rougeL``, under any prefix, each of the three named
    ``eval_rouge1`` or ``eval_rouge1_f1``. The names with ``_f1`` are there afterwards as well;
    what is there already stays as it is.

    Args:
        metrics (mapping): Values by name.

    Example:
        >>> add_rouge_combined({"rouge1": 0.5, "rouge2": 0.3, "rougeL": 0.4})["rouge_combined_f1"]
        0.4
    """
    found = dict(metrics)
    for key in metrics:
        prefix, rouge1, suffix = key.rpartition("rouge1")
        if not rouge1 or suffix not in ("", "_f1"):
            continue
        values = {}
        for name in _ROUGE_WEIGHTS:
            plain = f"{prefix}{name}"
            if f"{plain}_f1" in metrics or plain in metrics:
                values[name] = metrics.get(f"{plain}_f1", metrics.get(plain))
        if len(values) < len(_ROUGE_WEIGHTS):
            continue
        for name, value in values.items():
            found.setdefault(f"{prefix}{name}_f1", value)
        combined = sum(_ROUGE_WEIGHTS[name] * value for name, value in values.items())
        found.setdefault(f"{prefix}rouge_combined_f1", combined)
    return found


class BestMetricsCallback(StatefulCallback):
    """Keeps all metrics of the evaluation that was the best one, by one metric.

    Only evaluations inside ``train()`` count, as for the Trainer's own best model; of two equal
    ones the earlier is the better. A metric that is NaN never wins. The state is part of the
    checkpoints: a resumed run goes on with it.

    Args:
        metric (str, *optional*): What decides, with or without ``eval_``. Defaults to
            ``args.metric_for_best_model``, else to ``"loss"``.
        greater_is_better (bool, *optional*): Its direction. Defaults to ``args.greater_is_better``
            where the metric comes from there too, else to what is known of it.

    Attributes:
        best_metrics (dict): All metrics of the best evaluation by name, without ``eval_`` and
            without times and rates; empty before the first. ROUGE has the names ``rouge1_f1``,
            ``rouge2_f1``, ``rougeL_f1`` and ``rouge_combined_f1`` too.
        best_step (int or None): Its step.

    Raises:
        ConfigurationError: If the direction is neither given nor known.

    Example:
        >>> best = BestMetricsCallback("rouge_combined_f1")
        >>> trainer = Trainer(model, args, callbacks=[best], ...)
        >>> trainer.train()
        >>> best.best_metrics["rouge_combined_f1"], best.best_step
    """

    state_name = "best_metrics"

    def __init__(self, metric: str | None = None, greater_is_better: bool | None = None) -> None:
        self.metric = None if metric is None else metric.removeprefix("eval_")
        if greater_is_better is None and self.metric is not None:
            greater_is_better = known_direction(self.metric)
            if greater_is_better is None:
                raise ConfigurationError(
                    f"BestMetricsCallback: it is not known of '{metric}' whether a higher or a "
                    "lower value is better; say so: greater_is_better=True or False"
                )
        self.greater_is_better = greater_is_better
        self.best_metrics: dict[str, float] = {}
        self.best_step: int | None = None
        self._training = False
        self._step: int | None = None
        self._seen: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        metrics = {name: from_number(value) for name, value in self.best_metrics.items()}
        return {"best_metrics": metrics, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_metrics = {n: to_number(value) for n, value in state["best_metrics"].items()}
        self.best_step = state["best_step"]

    def on_train_begin(self, args, state, control, **kwargs):
        self._training = True
        self._step, self._seen = None, {}
        if state.global_step == 0:
            self.best_metrics, self.best_step = {}, None
        super().on_train_begin(args, state, control, **kwargs)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not self._training or state.global_step == 0:
            return
        if self._step != state.global_step:
            self._step, self._seen = state.global_step, {}
        # Several data sets are evaluated one after the other, at the same step.
        self._seen |= _eval_metrics(metrics or {})
        name, greater = self._primary(args)
        value = self._seen.get(name, math.nan)
        best = self.best_metrics.get(name, -math.inf if greater else math.inf)
        if (value > best if greater else value < best) or self.best_step == self._step:
            self.best_metrics, self.best_step = dict(self._seen), self._step

    def on_train_end(self, args, state, control, **kwargs):
        self._training = False
        if self._seen and not self.best_metrics and state.is_world_process_zero:
            name, _ = self._primary(args)
            if name in self._seen:
                reason = f"'{name}' was never a finite number"
            else:
                hint = did_you_mean(name, self._seen)
                reason = f"no evaluation had '{name}', found {', '.join(sorted(self._seen))}.{hint}"
            console().print(f"best metrics: none: {reason}", markup=False, soft_wrap=True)

    def _primary(self, args: Any) -> tuple[str, bool]:
        """The metric that decides and whether more of it is better."""
        if self.metric is not None:
            return self.metric, bool(self.greater_is_better)
        greater = self.greater_is_better
        if greater is None:
            greater = args.greater_is_better
        return (args.metric_for_best_model or "loss").removeprefix("eval_"), bool(greater)


def _eval_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among an evaluation's metrics, without prefix, times and rates."""
    numbers = {
        name.removeprefix("eval_"): float(value)
        for name, value in metrics.items()
        if name.startswith("eval_") and not name.endswith(_SPEED) and isinstance(value, Real)
    }
    return add_rouge_combined(numbers)
