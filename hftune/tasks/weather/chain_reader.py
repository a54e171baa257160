"""Samples of a chain of lead times: states of the lead time before, and what happened."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .fields import WeatherFields
from .initial_conditions import InitialConditions

__all__ = ["ChainReader"]


@dataclasses.dataclass(frozen=True, eq=False)
class ChainReader:
    """Reads samples of a lead time; the transform of a :class:`datasets.Dataset` of initial times.

    Attributes:
        states (InitialConditions): Of the lead time before it.
        truth (WeatherFields): What happened, with the channels of the states.
        offsets (int64 array ``[L]``): Seconds from the initial time to the targets.
        clock (int): Seconds from the initial time to what the model is told as the time.
    """

    states: InitialConditions
    truth: WeatherFields
    offsets: np.ndarray
    clock: int

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Reads a batch of initial times: ``fields``, ``times`` and ``target_fields``."""
        import torch

        initial = np.asarray(batch["time"], dtype=np.int64)
        rows = np.searchsorted(self.truth.times, initial[:, None] + self.offsets)
        targets = self.read_truth(rows.reshape(-1))
        return {
            "fields": torch.from_numpy(self.read_states(initial)),
            "times": torch.from_numpy(initial + self.clock),
            "target_fields": torch.from_numpy(targets.reshape(*rows.shape, *targets.shape[1:])),
        }

    def read_states(self, initial: np.ndarray) -> np.ndarray:
        """Returns states by their initial times, float32 ``[n, T, C, H, W]``."""
        return self.states.read(np.searchsorted(self.states.times, initial))

    def read_truth(self, rows: np.ndarray) -> np.ndarray:
        """Returns what happened, by row, float32 ``[n, C, H, W]``."""
        return self.truth.read(rows)
