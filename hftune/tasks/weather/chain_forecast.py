"""Forecasts with the models of a chain: that of the first day, then that of the second, ..."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModel

from ...training.plan import Plan, best_model
from ...utils.errors import CheckpointError
from .weather_model import ForecastOutput, WeatherModel

__all__ = ["ChainForecaster"]


class ChainForecaster(torch.nn.Module):
    """The models of a lead-time chain as one model, whose time step is that of the chain.

    Args:
        models (sequence of WeatherModel): Of the lead times 1, 2, ...
        step_hours (float): Hours between two of them.
        clock (str): What time the models are told: ``"initial"`` or ``"valid"``.

    Example:
        >>> forecaster = ChainForecaster.from_run("runs/aardvark").eval()
        >>> forecaster(fields, times, steps=10).prediction.shape
        torch.Size([1, 10, 11, 6, 9])
    """

    def __init__(self, models: Sequence[WeatherModel], step_hours: float, clock: str) -> None:
        super().__init__()
        self.models = torch.nn.ModuleList(models)
        self.clock = clock
        self.config = copy.deepcopy(models[0].config)
        self.config.timestep_hours = step_hours
        self._steps = round(step_hours / models[0].config.timestep_hours)

    @classmethod
    def from_run(cls, folder: str | os.PathLike[str]) -> ChainForecaster:
        """Loads the best model of each lead time of a run.

        Args:
            folder (path): Its output folder.

        Raises:
            CheckpointError: If it is no chain, or not finished.
        """
        plan = Plan.read(folder)
        if plan is None or plan.kind != "lead_time":
            raise CheckpointError(f"{folder} is not the folder of a lead-time chain.")
        names = [stage.name for stage in plan.stages if "fold" not in stage.settings]
        missing = [name for name in names if not best_model(folder, name).is_dir()]
        if missing:
            raise CheckpointError(
                f"{folder}: {', '.join(missing)} of {len(names)} lead times are not trained yet; "
                "the command that started the chain goes on with it."
            )
        models = [AutoModel.from_pretrained(best_model(folder, name)) for name in names]
        chain = plan.settings["chain"]
        return cls(models, chain["step_hours"], chain["clock"])

    @staticmethod
    def is_run(folder: str | os.PathLike[str]) -> bool:
        """Whether a folder is that of a run in stages."""
        return Path(folder, "plan.json").is_file()

    def forward(
        self, fields: torch.Tensor, times: torch.Tensor, steps: int | None = None
    ) -> ForecastOutput:
        """Forecasts day by day.

        Args:
            fields (float32 tensor ``[B, T, C, H, W]``): Initial states, in physical units.
            times (int64 tensor ``[B]``): Seconds since 1970-01-01 UTC.
            steps (int, *optional*): Number ``L`` of lead times. Defaults to all there are.

        Returns:
            ForecastOutput: With the prediction ``[B, L, C, H, W]``.

        Raises:
            CheckpointError: If the chain has fewer lead times.
        """
        steps = len(self.models) if steps is None else steps
        hours = self.config.timestep_hours
        if steps > len(self.models):
            raise CheckpointError(
                f"the chain has {len(self.models)} lead times, up to "
                f"{len(self.models) * hours:g} h; {steps * hours:g} h were asked for."
            )
        predictions, states = [], fields
        for number, model in enumerate(list(self.models)[:steps]):
            later = round(number * hours * 3600) if self.clock == "valid" else 0
            output = model(fields=states, times=times + later, steps=self._steps).prediction
            predictions.append(output[:, -1])
            states = torch.cat([states, output], dim=1)[:, -fields.shape[1] :]
        return ForecastOutput(prediction=torch.stack(predictions, dim=1))
