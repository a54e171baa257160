"""The loss and what else a model measures, summed between two lines of the log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

__all__ = ["LossWindow"]


class LossWindow:
    """Sums what a model returns over the micro-batches of a logging window.

    The sums stay on the device until the window is closed, and they are part of a checkpoint: the
    first line of a resumed log is that of an uninterrupted run. (The Trainer's own sums are not,
    and it shows the mean of what was left of the window.)
    """

    def __init__(self) -> None:
        self._loss: torch.Tensor | None = None
        self._names: list[str] = []
        self._parts: torch.Tensor | None = None  # sums and counts [2, parts]
        self._closed_at = 0
        self._total = 0.0

    def add_loss(self, loss: torch.Tensor) -> None:
        """Adds a micro-batch's loss, already divided by the accumulation steps."""
        loss = loss.detach().float()
        self._loss = loss.clone() if self._loss is None else self._loss.add_(loss)

    @torch.no_grad()
    def add_parts(self, values_by_name: Mapping[str, torch.Tensor]) -> None:
        """Adds what a micro-batch measured, by the names of the log; NaN (no data) does not count.

        The names are the same in each call.
        """
        values = torch.stack(list(values_by_name.values())).float()
        if self._parts is None:
            self._names = list(values_by_name)
            self._parts = values.new_zeros(2, len(values))
        self._parts += torch.stack([values.nan_to_num(0.0), (values == values).float()])

    def close(self, step: int, accelerator: Accelerator) -> dict[str, float]:
        """Ends the window after optimizer step ``step``.

        Returns:
            ``loss``, the mean over the window's steps and all processes, and the means of the
            parts.
        """
        logs = {}
        if self._loss is not None:
            loss = accelerator.reduce(self._loss, reduction="mean").item()
            logs["loss"] = loss / max(step - self._closed_at, 1)
            self._total += loss
        if self._parts is not None:
            totals, counts = accelerator.reduce(self._parts, reduction="sum").cpu().double()
            for name, total, count in zip(
                self._names, totals.tolist(), counts.tolist(), strict=True
            ):
                logs[name] = total / count if count else math.nan
        self._loss = self._parts = None
        self._closed_at = step
        return logs

    def mean(self, step: int) -> float:
        """The mean loss of all ``step`` steps of the run, the open window included."""
        open_window = 0.0 if self._loss is None else self._loss.item()
        return (self._total + open_window) / max(step, 1)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint must hold, as JSON has it."""
        return {
            "open": self._loss is not None,
            "loss": None if self._loss is None else self._loss.item(),
            "names": self._names,
            "parts": None if self._parts is None else self._parts.tolist(),
            "closed_at": self._closed_at,
            "total": self._total,
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Takes what :meth:`state_dict` returned; null in a sum was NaN."""
        self._names = list(state["names"])
        self._closed_at = state["closed_at"]
        self._total = math.nan if state["total"] is None else state["total"]
        self._loss = self._parts = None
        if state["open"]:
            loss = math.nan if state["loss"] is None else state["loss"]
            self._loss = torch.tensor(loss, device=device)
        if state["parts"] is not None:
            sums = [[math.nan if v is None else v for v in row] for row in state["parts"]]
            self._parts = torch.tensor(sums, device=device)
