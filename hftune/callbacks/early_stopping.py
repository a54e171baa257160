"""Early stopping that goes on counting where an interrupted run had stopped counting."""

from __future__ import annotations

from transformers import TrainerCallback

from ..tracking.metric_directions import known_direction
from ..utils.errors import ConfigurationError, did_you_mean
from ..utils.terminal import say

__all__ = ["EarlyStopping"]


class EarlyStopping(TrainerCallback):
    """Ends a training once its metric has not got better for some evaluations.

    It counts in the Trainer's own log, which is part of every checkpoint: a resumed run ends where
    an uninterrupted one does, and a run that was ended early is a finished one. (The callback of
    transformers counts from 0 after a resume.)

    Args:
        patience (int): Evaluations in a row without a better value.
        threshold (float): How much better a value must be to count. Defaults to 0.
        metric (str, *optional*): Defaults to ``args.metric_for_best_model``.

    Example:
        >>> trainer = HFTuneTrainer(model, args, callbacks=[EarlyStopping(patience=10)], ...)
    """

    def __init__(self, patience: int, threshold: float = 0.0, metric: str | None = None) -> None:
        if patience < 1 or threshold < 0:
            raise ConfigurationError(
                f"EarlyStopping: found a patience of {patience} and a threshold of {threshold}, "
                "expected 1 or more and 0 or more"
            )
        self.patience, self.threshold, self.metric = patience, threshold, metric

    def on_evaluate(self, args, state, control, **kwargs):
        name = (self.metric or args.metric_for_best_model or "loss").removeprefix("eval_")
        key = f"eval_{name}"
        values = [entry[key] for entry in state.log_history if key in entry]
        if not values:
            known = [n.removeprefix("eval_") for n in state.log_history[-1]]
            near = did_you_mean(name, known)
            raise ConfigurationError(f"early stopping: no evaluation has a metric {name!r}.{near}")
        greater = args.greater_is_better
        if self.metric is not None or greater is None:
            greater = known_direction(name) or False
        waiting = self._waiting(values if greater else [-value for value in values])
        if waiting < self.patience:
            return
        best = max(values) if greater else min(values)
        say(
            f"Ended early: {name} has not been better than {best:.4f} for {waiting} evaluations "
            f"(--early_stopping_patience {self.patience})."
        )
        control.should_training_stop = True
        # The checkpoint of this moment is that of a run that is done.
        state.max_steps = state.global_step

    def _waiting(self, values: list[float]) -> int:
        """Evaluations since the last one that was better than all before it."""
        best, waiting = float("-inf"), 0
        for value in values:
            if value > best + self.threshold or best == float("-inf"):
                best, waiting = max(best, value), 0
            else:
                waiting += 1
        return waiting
