"""What a stage is, as a trainer is told, and what the plan makes of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ..configuration.arguments import HFTuneArguments
from .plan import PlannedStage
from .trainer import Evaluator

__all__ = ["STAGE_ARGUMENTS", "StageSpec"]

STAGE_ARGUMENTS = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
)
"""Training settings that a stage may have for itself."""


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """What a stage is, said to a :class:`StagedMixin`.

    Attributes:
        name (str): Of its folder; ``{number}`` stands for its number: ``"day_{number}"``.
        train_dataset: Its data, or a function of the trainer that returns them when the stage
            begins (data that come from the model of the stage before).
        title (str): For people. Defaults to the name.
        arguments (mapping): Training settings for this stage alone: ``learning_rate``,
            ``num_train_epochs``, ``max_steps``, ``per_device_train_batch_size``,
            ``gradient_accumulation_steps``, ``warmup_steps``, ``weight_decay``, ``max_grad_norm``.
        settings (mapping): What makes it this stage, as JSON has it; part of ``plan.json``. A run
            whose stages have other settings is another plan.
        key (str): What tells it from the others, whatever its number. Defaults to the name.
        evaluator (Evaluator, *optional*): Scores it. Defaults to the trainer's.
        samples (int, *optional*): Number of its samples, where ``train_dataset`` is a function.
        starts_from (str, *optional*): Key of the earlier stage from whose best model it starts, or
            ``"initial"`` for the weights that the run starts with. Defaults to the stage before it.
    """

    name: str
    train_dataset: Any
    title: str = ""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    key: str = ""
    evaluator: Evaluator | None = None
    samples: int | None = None
    starts_from: str | None = None

    @property
    def count(self) -> int | None:
        """Number of its samples; None where that is not known before it begins."""
        return self.samples if callable(self.train_dataset) else len(self.train_dataset)

    def batch(self, args: HFTuneArguments) -> tuple[int, int]:
        """Returns micro batch and accumulation: never more than the data.

        Args:
            args (HFTuneArguments): Of the run.
        """
        micro = self._argument("per_device_train_batch_size", args)
        accumulation = self._argument("gradient_accumulation_steps", args)
        if self.count is not None:
            share = max(math.ceil(self.count / args.world_size), 1)
            micro = min(micro, share)
            accumulation = min(accumulation, math.ceil(share / micro))
        return micro, accumulation

    def planned(self, args: HFTuneArguments) -> PlannedStage:
        """Returns what the plan says of it; its name still has its ``{number}``.

        Args:
            args (HFTuneArguments): Of the run.
        """
        epochs = self._argument("num_train_epochs", args)
        steps = max(self._argument("max_steps", args), 0)
        settings = dict(self.settings)
        if self.count is not None:
            settings.setdefault("samples", self.count)
            micro, accumulation = self.batch(args)
            batches = math.ceil(self.count / (micro * args.world_size))
            steps = steps or math.ceil(math.ceil(batches / accumulation) * epochs)
        settings |= {name: self.arguments[name] for name in sorted(self.arguments)}
        if self.starts_from is not None:
            settings["starts_from"] = self.starts_from
        return PlannedStage(
            key=self.key or self.name,
            name=self.name,
            title=self.title or self.name,
            settings=settings,
            steps=steps,
            epochs=float(epochs),
        )

    def _argument(self, name: str, args: HFTuneArguments) -> Any:
        return self.arguments.get(name, getattr(args, name))
