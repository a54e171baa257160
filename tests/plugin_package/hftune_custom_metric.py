"""Callbacks for hftune: a score of our own, and one that fails."""

from __future__ import annotations

from transformers import TrainerCallback


class CustomMetricCallback(TrainerCallback):
    """Logs eval_custom_score, a mean of ROUGE-1 and ROUGE-2.

    Args:
        rouge2_weight (float): How much ROUGE-2 counts beside ROUGE-1. Defaults to 2.
    """

    def __init__(self, rouge2_weight: float = 2.0) -> None:
        self.rouge2_weight = rouge2_weight

    def on_log(self, args, state, control, logs, **kwargs):
        if "eval_rouge1" in logs:
            score = self.calculate_custom_metric(logs)
            logs["eval_custom_score"] = score
            state.log_history[-1]["eval_custom_score"] = score

    def calculate_custom_metric(self, metrics):
        return (
            metrics.get("eval_rouge1", 0) + metrics.get("eval_rouge2", 0) * self.rouge2_weight
        ) / (1 + self.rouge2_weight)


class FailingCallback(TrainerCallback):
    """Raises at a step, to see what a run does then."""

    def __init__(self, step: int = 3) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("on purpose")
