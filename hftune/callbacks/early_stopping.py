"""Early stopping that goes on counting where an interrupted run had stopped counting."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from transformers import TrainerCallback

from ..tracking.metric_directions import known_direction
from ..utils.errors import ConfigurationError, did_you_mean
from ..utils.terminal import say

__all__ = ["EarlyStopping"]


class EarlyStopping(TrainerCallback):
    """Ends a training once its metric has not got better for some evaluations.

    It counts in the Trainer's own log, which is part of every checkpoint: a resumed run ends where
    an uninterrupted one does, and a run that was ended early is a finished one, which the same
    command does not train further. (The callback of transformers counts from 0 after a resume.)
    Evaluations outside ``train()`` do not count. A metric that is NaN is not better.

    Args:
        patience (int): Evaluations in a row without a better value.
        threshold (float): By more than how much a value must be better to count. Defaults to 0.
        metric (str, *optional*): With or without ``eval_``. Defaults to
            ``args.metric_for_best_model``, else to ``"loss"``.
        greater_is_better (bool, *optional*): Its direction. Defaults to ``args.greater_is_better``
            where the metric comes from there too, else to what is known of it.

    Raises:
        ConfigurationError: If a number makes no sense or the direction is neither given nor known;
            after the first evaluation, if it does not have the metric.

    Example:
        >>> trainer = HFTuneTrainer(model, args, callbacks=[EarlyStopping(patience=10)], ...)
    """

    def __init__(
        self,
        patience: int,
        threshold: float = 0.0,
        metric: str | None = None,
        greater_is_better: bool | None = None,
    ) -> None:
        if patience < 1 or not threshold >= 0:
            raise ConfigurationError(
                f"EarlyStopping: found a patience of {patience} and a threshold of {threshold}, "
                "expected 1 or more and 0 or more"
            )
        self.patience, self.threshold = patience, threshold
        self.metric = None if metric is None else metric.removeprefix("eval_")
        if self.metric is not None and greater_is_better is None:
            greater_is_better = known_direction(self.metric)
            if greater_is_better is None:
                raise ConfigurationError(
                    f"EarlyStopping: it is not known of '{metric}' whether a higher or a lower "
                    "value is better; say so: greater_is_better=True or False"
                )
        self.greater_is_better = greater_is_better
        self._training = False
        self._seen: set[str] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        self._training, self._seen = True, set()

    def on_train_end(self, args, state, control, **kwargs):
        self._training = False

    def on_step_begin(self, args, state, control, **kwargs):
        # Not in on_evaluate: of several data sets it may be the next one that has the metric.
        name = self._name(args)
        if self._seen and name not in self._seen:
            found = ", ".join(sorted(self._seen))
            raise ConfigurationError(
                f"early stopping: no evaluation has a metric '{name}', found {found}."
                f"{did_you_mean(name, self._seen)}"
            )

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not self._training:
            return
        self._seen |= {
            key.removeprefix("eval_")
            for key in metrics
            if key.startswith("eval_") and not key.endswith(("_runtime", "_per_second"))
        }
        name = self._name(args)
        key = f"eval_{name}"
        # By step: an evaluation at the start of a resumed run is not another one.
        values = {entry["step"]: entry[key] for entry in state.log_history if key in entry}
        greater = self.greater_is_better
        if greater is None:
            greater = bool(args.greater_is_better)
        sign = 1 if greater else -1
        best, waiting = self._best(sign * value for value in values.values())
        if key not in metrics or waiting < self.patience or state.global_step >= state.max_steps:
            return
        known = f"has not been better than {sign * best:.4g}"
        say(
            f"Ended early: {name} {known if math.isfinite(best) else 'has been no finite number'} "
            f"for {waiting} evaluations (--early_stopping_patience {self.patience})."
        )
        control.should_training_stop = True
        # The checkpoint of this moment is that of a run that is done.
        state.max_steps = state.global_step
        control.should_save = control.should_save or args.save_strategy == "steps"

    def _name(self, args: Any) -> str:
        return self.metric or (args.metric_for_best_model or "loss").removeprefix("eval_")

    def _best(self, values: Iterable[float]) -> tuple[float, int]:
        """The best value, and evaluations since; larger is better."""
        best, waiting = -math.inf, 0
        for value in values:
            waiting += 1
            if value > best + self.threshold:
                best, waiting = value, 0
        return best, waiting
