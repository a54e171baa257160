"""Training settings of a run in stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .arguments import HFTuneArguments, redeclare

__all__ = ["StagedTrainingArguments"]


@dataclass
class StagedTrainingArguments(HFTuneArguments):
    """The settings of :class:`~hftune.configuration.arguments.HFTuneArguments` for stages: each
    epoch is evaluated and saved, and a stage leaves its best model.

    Args:
        output_dir (str): Folder of the run. Defaults to ``"checkpoints_transfer"``.
        eval_strategy (str): Defaults to ``"epoch"``.
        save_strategy (str): Defaults to ``"epoch"``.
        load_best_model_at_end (bool): Defaults to True.
    """

    output_dir: str | None = redeclare("output_dir", "checkpoints_transfer")
    eval_strategy: IntervalStrategy | str = redeclare("eval_strategy", "epoch")
    save_strategy: SaveStrategy | str = redeclare("save_strategy", "epoch")
    load_best_model_at_end: bool = redeclare("load_best_model_at_end", True)

    @staticmethod
    def check(values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with settings, before anything is constructed.

        Args:
            values (dict): Settings by name.
        """
        problems = HFTuneArguments.check(values)
        default = HFTuneArguments.__dataclass_fields__["num_train_epochs"].default
        if "epochs_per_stage" in values and values["num_train_epochs"] != default:
            problems.append(
                "num_train_epochs: stages have epochs of their own; set epochs_per_stage"
            )
        return problems
