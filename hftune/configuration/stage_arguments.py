"""Settings of runs in stages, and of progressive training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..utils.errors import ConfigurationError

__all__ = ["ProgressiveArguments", "StageArguments"]

# "Batch size by data fraction" of the guide to progressive training.
_TABLE = {0.1: 2, 0.2: 2, 0.5: 4, 1.0: 4}


@dataclass
class StageArguments:
    """How the stages of a run follow each other.

    Args:
        fresh_each_stage (bool): Whether each stage starts from the weights that the run started
            with, not from the best model of the stage before. Defaults to False.
        stage_optimizer (str): ``"fresh"``: each stage has its own optimizer and schedule;
            ``"carry"``: moments go on from the best checkpoint of the stage before, and one
            schedule goes over all stages. Defaults to ``"fresh"``.
        isolate_stages (bool): Whether each stage has a process of its own, the only way to give
            all memory back. Defaults to False.
        keep_epoch_weights (bool): Whether the weights after each epoch are kept, as ``epoch_1/``,
            ``epoch_2/``, ... beside ``best_model/``. Defaults to True.
    """

    _section: ClassVar[str] = "stages"

    fresh_each_stage: bool = field(
        default=False,
        metadata={
            "help": "Start each stage from the first weights of the run, not from the best model "
            "of the stage before."
        },
    )
    stage_optimizer: Literal["fresh", "carry"] = field(
        default="fresh",
        metadata={
            "help": "fresh: each stage has its own optimizer and schedule; carry: moments go on "
            "from the stage before, and one schedule goes over all stages."
        },
    )
    isolate_stages: bool = field(
        default=False,
        metadata={"help": "A process for each stage: the only way to give all memory back."},
    )
    keep_epoch_weights: bool = field(
        default=True,
        metadata={"help": "Keep the weights after each epoch, beside the best model's."},
    )

    @staticmethod
    def check(values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        if values["fresh_each_stage"] and values["stage_optimizer"] == "carry":
            return [
                "stage_optimizer: 'carry' takes the moments of the stage before, and "
                "fresh_each_stage its weights from elsewhere; give one of them"
            ]
        return []

    def __post_init__(self) -> None:
        if problems := self.check(vars(self)):
            raise ConfigurationError(problems)


@dataclass
class ProgressiveArguments:
    """Which fractions of the data a progressive training goes through.

    Args:
        progressive (bool): False trains one stage, on ``max_ratio`` of the data. Defaults to True.
        start_ratio (float): Fraction of the first stage, in (0, 1]. In the folder of an earlier run
            that has a stage of this fraction, the run goes on from that stage. Defaults to 0.1.
        step_size (float): How much is added from stage to stage. Defaults to 0.1.
        max_ratio (float): Fraction of the last stage, in (0, 1]. Defaults to 1.
        epochs_per_stage (int): Passes over the data of each stage. Defaults to 2.
        max_memory_mb (float, *optional*): Memory of this process and its children, in MiB, past
            which there is a warning, and the next stage has half the micro batch and twice the
            accumulation.
        stage_batch_sizes (str): ``"fixed"``: each stage has ``per_device_train_batch_size``;
            ``"table"``: 2 to 20 % of the data, 4 from 50 % on; ``"0.1:8,0.5:16"``: sizes from a
            fraction on. Defaults to ``"fixed"``.
        stop_when_gain_below (float, *optional*): End the run once the learning curve expects the
            next stage to gain less than this.
    """

    _section: ClassVar[str] = "progressive"

    progressive: bool = field(
        default=True, metadata={"help": "false: one stage, on max_ratio of the data."}
    )
    start_ratio: float = field(
        default=0.1,
        metadata={
            "help": "Fraction of the data in the first stage. Where output_dir has a stage of this "
            "fraction already, the run goes on from it."
        },
    )
    step_size: float = field(
        default=0.1, metadata={"help": "What each stage adds to the fraction."}
    )
    max_ratio: float = field(
        default=1.0, metadata={"help": "Fraction of the data in the last stage."}
    )
    epochs_per_stage: int = field(
        default=2, metadata={"help": "Passes over the data of each stage."}
    )
    max_memory_mb: float | None = field(
        default=None,
        metadata={
            "help": "Memory in MiB past which there is a warning, and smaller batches in the next "
            "stage."
        },
    )
    stage_batch_sizes: str = field(
        default="fixed",
        metadata={
            "help": "fixed: per_device_train_batch_size in all stages; table: 2, from half of the "
            "data on 4; or sizes from fractions on: 0.1:8,0.5:16."
        },
    )
    stop_when_gain_below: float | None = field(
        default=None,
        metadata={
            "help": "End the run once the learning curve expects less than this of the next stage."
        },
    )

    @staticmethod
    def check(values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        problems = []
        for name in ("start_ratio", "step_size", "max_ratio"):
            value = values[name]
            if not 0 < value <= 1:
                problems.append(
                    f"{name}: found {value:g}, expected a fraction of the data above 0 and up to "
                    f"1{' (10 % is 0.1)' if value > 1 else ''}"
                )
        if values["start_ratio"] > values["max_ratio"]:
            problems.append(
                f"start_ratio is {values['start_ratio']:g} and max_ratio {values['max_ratio']:g}: "
                "the first stage cannot have more data than the last"
            )
        for name in ("epochs_per_stage", "max_memory_mb"):
            if values[name] is not None and not values[name] > 0:
                problems.append(f"{name}: found {values[name]}, expected more than 0")
        if isinstance(problem := _batch_sizes(values["stage_batch_sizes"]), str):
            problems.append(problem)
        return problems

    def __post_init__(self) -> None:
        if problems := self.check(vars(self)):
            raise ConfigurationError(problems)

    @property
    def ratios(self) -> list[float]:
        """The fractions of the stages: the last one is ``max_ratio``, whatever the step."""
        if not self.progressive:
            return [self.max_ratio]
        # In whole steps: adding 0.1 ten times does not give 1.
        steps = math.floor((self.max_ratio - self.start_ratio) / self.step_size + 1e-6)
        found = [round(self.start_ratio + i * self.step_size, 6) for i in range(steps + 1)]
        if found[-1] < self.max_ratio - 1e-6:
            found.append(self.max_ratio)
        return found

    def batch_size(self, ratio: float) -> int | None:
        """Returns the micro batch of a stage; None: that of the trainer.

        Args:
            ratio (float): Fraction of the data in the stage.
        """
        sizes = _batch_sizes(self.stage_batch_sizes)
        if sizes is None:
            return None
        smallest = min(sizes)
        return sizes[max((r for r in sizes if r <= ratio + 1e-6), default=smallest)]


def _batch_sizes(text: str) -> dict[float, int] | str | None:
    """The sizes by fraction; None for one size, a text that says what is wrong."""
    if text == "fixed":
        return None
    if text == "table":
        return _TABLE
    try:
        pairs = [part.split(":") for part in text.split(",")]
        sizes = {float(ratio): int(size) for ratio, size in pairs}
    except ValueError:
        sizes = {}
    if not sizes or not all(0 < r <= 1 and size > 0 for r, size in sizes.items()):
        return (
            f"stage_batch_sizes: found '{text}', expected fixed, table, or FRACTION:SIZE pairs "
            "such as 0.1:8,0.5:16"
        )
    return sizes
