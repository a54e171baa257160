"""Exponential moving average of a model's trainable weights."""

from __future__ import annotations

import os

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..utils.errors import CheckpointError, ConfigurationError

__all__ = ["WeightAverage"]


class WeightAverage:
    """A moving average of weights that can change places with them.

    Args:
        model (torch.nn.Module): Its trainable parameters are averaged, in float32.
        decay (float): Weight of the old average in each update.

    Raises:
        ConfigurationError: If a trainable parameter is not float32 or is sharded: updates of
            1 - decay would be lost in lower precision.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        from torch.distributed.tensor import DTensor

        self.decay = decay
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for name, parameter in named.items():
            if parameter.dtype != torch.float32 or isinstance(parameter, DTensor):
                found = "sharded" if isinstance(parameter, DTensor) else parameter.dtype
                raise ConfigurationError(
                    f"ema_decay: parameter '{name}' is {found}, expected whole float32 weights; "
                    "load the model with dtype=torch.float32 or set ema_decay to 0"
                )
        self.parameters = list(named.values())
        self.averages = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after optimizer step ``step`` (1, 2, ...) into the average.

        The decay in effect is at most ``(1 + step) / (10 + step)``, so that the weights of the
        start are soon forgotten. It depends on nothing but the step: resume is exact.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.averages.values()), [p.data for p in self.parameters], 1 - decay
        )

    def swap(self) -> None:
        """Exchanges weights and averages, without copying; a second call undoes the first."""
        for parameter, average in zip(self.parameters, self.averages.values(), strict=True):
            parameter.data, average.data = average.data, parameter.data

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the averages as safetensors."""
        save_file(self.averages, path, metadata={"format": "pt"})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Reads the averages of a checkpoint.

        Raises:
            CheckpointError: If the file is not there or its names or shapes are not the model's.
        """
        if not os.path.isfile(path):
            raise CheckpointError(
                f"{path}: no moving average here: the checkpoint was written with ema_decay 0; "
                "set ema_decay to 0 or start anew with --resume never"
            )
        saved = load_file(path)
        wrong = sorted(
            name
            for name in saved.keys() | self.averages.keys()
            if name not in saved
            or name not in self.averages
            or saved[name].shape != self.averages[name].shape
        )
        if wrong:
            raise CheckpointError(
                f"{path}: {len(wrong)} tensors are not the model's: {', '.join(wrong[:5])}"
            )
        for name, average in self.averages.items():
            average.copy_(saved[name])
