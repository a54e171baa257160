"""Scores a model on the validation samples of one lead time of a chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...utils.modules import evaluating, module_of
from .evaluation_weather import gathered, gathered_scores, shared_batches
from .scores import ForecastScores

if TYPE_CHECKING:
    from .chain import WeatherChain

__all__ = ["ChainEvaluator"]


class ChainEvaluator:
    """Scores a model on the validation samples of a lead time; see
    :class:`~hftune.training.trainer.Evaluator`.

    ``loss`` is the mean of the model's own loss over all samples of all processes, each counted
    once; ``rmse_normalised`` the mean over channels of the RMSE of the last step in units of the
    standard deviation of a day's change.
    """

    primary_metric = "loss"
    greater_is_better = False

    def __init__(self, chain: WeatherChain, lead_time: int) -> None:
        self.chain, self.lead_time = chain, lead_time
        self._samples: Any = None

    def __call__(self, trainer_or_model: Any) -> dict[str, float]:
        """Returns ``loss`` and ``rmse_normalised``.

        Args:
            trainer_or_model (Trainer or torch.nn.Module): A trainer's model is used as it is
                wrapped for training.
        """
        import torch

        model = module_of(trainer_or_model)
        chain = self.chain
        if self._samples is None:
            self._samples = chain.samples("val", self.lead_time)
        device = next(model.parameters()).device
        hours = round(self.lead_time * chain.step_hours)
        scores = ForecastScores(chain.layout, [hours])
        total, count = 0.0, 0
        with evaluating(model), torch.no_grad():
            for batch, kept in shared_batches(self._samples, chain.batch_size):
                batch = {name: values[: max(kept, 1)] for name, values in batch.items()}
                output = model(**{name: values.to(device) for name, values in batch.items()})
                if not kept:
                    continue
                total += float(output.loss) * kept
                count += kept
                scores.update(
                    {"model": output.prediction[:, -1:].float().cpu().numpy()},
                    batch["target_fields"][:, -1:].numpy(),
                    batch["times"].numpy()[:, None],
                )
        totals, counts = zip(*gathered((total, count)), strict=True)
        rmse = gathered_scores(scores).measure("model", "rmse")[0] / chain.difference_std
        return {"loss": sum(totals) / sum(counts), "rmse_normalised": float(np.nanmean(rmse))}
