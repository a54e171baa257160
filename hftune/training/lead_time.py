"""Lead-time chaining: day k is trained on the predictions of day k - 1, from its best weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import Trainer

from ..utils.errors import TrainingInterrupted
from ..utils.modules import evaluating
from .checkpoints import weights_hash
from .plan import JOURNAL, PlannedStage, Stage
from .plan_checks import check_models
from .stage_spec import StageSpec
from .stages import StagedMixin
from .trainer import Evaluator

__all__ = ["Advance", "LeadTimeChain", "LeadTimeMixin", "LeadTimeTrainer"]


class LeadTimeChain(Protocol):
    """States that a model carries on, step by step, and the truth that they are compared with.

    Attributes:
        lead_times (int): Number of steps: the chain has the lead times 1 ... ``lead_times``.
        folds (int): 0, or into how many parts the training states are cut: then the states that
            later steps train on are predicted by models that were not trained on them.
        settings (dict): How it steps on, as JSON has it; part of the plan.
    """

    lead_times: int
    folds: int
    settings: dict[str, Any]

    def count(self, lead_time: int, fold: int | None) -> int:
        """Returns the number of training samples of a lead time."""

    def train_samples(self, lead_time: int, fold: int | None) -> Any:
        """Returns the training samples of a lead time: states of the lead time before it, and the
        truth. With a fold, those outside of it.
        """

    def evaluator(self, lead_time: int) -> Evaluator:
        """Returns what scores a model on the validation samples of a lead time; it reads them when
        it is first called.
        """

    def has_states(self, lead_time: int, fold: int | None) -> bool:
        """Returns whether all files are there that :meth:`advance` wrote for them."""

    def advance(self, lead_time: int, fold: int | None, by: Advance) -> dict[str, Any]:
        """Writes the states of a lead time with a trained model, all or not at all, in all
        processes together. States that the same weights have made before are left as they are.

        Returns:
            What the stage leaves in its result.
        """

    def room_needed(self, done: int) -> int:
        """Returns the bytes that the lead times after the first ``done`` take at most."""

    def tidy(self, done: int) -> None:
        """Removes states that no lead time after the first ``done`` needs or has to keep."""


class LeadTimeMixin(StagedMixin):
    """Stages of a :class:`LeadTimeChain`: one a lead time, ``forecast_1``, ``forecast_2``, ...

    Args:
        model (torch.nn.Module): As for the Trainer.
        args (HFTuneArguments): As for the Trainer; its epochs are those of each lead time.
        chain (LeadTimeChain): What is carried on.
        **kwargs: As for :class:`~hftune.training.stages.StagedMixin`.
    """

    plan_kind = "lead_time"

    def __init__(
        self, model: torch.nn.Module | None = None, args: Any = None, *, chain: Any, **kwargs: Any
    ) -> None:
        self.chain: LeadTimeChain = chain
        plan_settings = {"chain": chain.settings, **(kwargs.pop("plan_settings", None) or {})}
        super().__init__(
            model,
            args,
            stages=lead_time_stages(chain),
            plan_settings=plan_settings,
            evaluator=chain.evaluator(1),
            **kwargs,
        )

    def stage_result(self, stage: Stage, result: dict[str, Any]) -> dict[str, Any]:
        model = self.accelerator.unwrap_model(self.model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            # The processes do not predict equally often, which sharded weights would ask of them.
            model = type(model).from_pretrained(stage.best_model).to(self.args.device)
        return self._advance(stage, model)

    def _advance(self, stage: Stage, model: torch.nn.Module) -> dict[str, Any]:
        with evaluating(model):
            return self.chain.advance(*_place(stage.planned), Advance(self, stage, model))

    def make_missing_states(self) -> None:
        """Has the models of the lead times before predict again what the stage that begins reads
        and is not there any more: what a chain has no use for is tidied away, until a lead time is
        trained again.
        """
        current = self._stage
        missing = self._in_first(lambda: self._missing_before(current))
        if not missing:
            return
        planned = [self.plan.stages[number - 1] for number in missing]
        self._in_first(lambda: check_models(planned, current.root, hashes=planned))
        for number in missing:
            stage = self._stage_at(number, current.root)
            self._say(f"{stage.title}: its states are not there any more, its model predicts again")
            self._load_weights(stage.best_model)
            self._advance(stage, self.model.to(self.args.device))
            lead_time, fold = _place(stage.planned)
            if fold is None:
                self._in_first(lambda done=lead_time: self.chain.tidy(done))
        self._load_weights(self._start_weights(current))

    def _missing_before(self, current: Stage) -> list[int]:
        """The numbers of the stages that have to predict again."""
        lead_time, _ = _place(current.planned)
        missing = []
        for number in range(current.number - 1, 0, -1):
            before, fold = _place(self.plan.stages[number - 1])
            there = self.chain.has_states(before, fold)
            if there and fold is None:
                break  # what came before was for these
            if not there or before < lead_time:
                missing.append(number)
        return missing[::-1]

    def room_needed(self, done: int) -> int:
        return self.chain.room_needed(done // (self.chain.folds + 1))

    def tidy(self, done: int) -> None:
        self.chain.tidy(done // (self.chain.folds + 1))


class LeadTimeTrainer(LeadTimeMixin, Trainer):
    """A `transformers.Trainer` for a chain of lead times; see :class:`LeadTimeMixin`.

    Example:
        >>> trainer = LeadTimeTrainer(model, args, chain=chain)
        >>> trainer.train()
        >>> trainer.results[-1]["metrics"]["eval_loss"]
    """


def lead_time_stages(chain: LeadTimeChain) -> list[StageSpec]:
    """Returns the stages of a chain.

    Args:
        chain (LeadTimeChain): The chain.
    """
    stages = []
    for lead_time in range(1, chain.lead_times + 1):
        for fold in [*range(1, chain.folds + 1), None]:
            name, title = f"forecast_{lead_time}", f"lead time {lead_time} of {chain.lead_times}"
            before = f"forecast_{lead_time - 1}"
            settings: dict[str, Any] = {"lead_time": lead_time}
            if fold is not None:
                name, before = f"{name}_fold_{fold}", f"{before}_fold_{fold}"
                title += f", without part {fold} of {chain.folds}"
                settings["fold"] = fold
            start: Mapping[str, Any] = {}
            if chain.folds:  # each chain of weights by itself
                start = {"starts_from": "initial" if lead_time == 1 else before}
            stages.append(
                StageSpec(
                    name=name,
                    train_dataset=_Samples(chain, lead_time, fold),
                    title=title,
                    settings=settings,
                    evaluator=chain.evaluator(lead_time),
                    samples=chain.count(lead_time, fold),
                    **start,
                )
            )
    return stages


class Advance:
    """What a chain is given to make the next states with: a trained model, and the processes.

    Attributes:
        model (torch.nn.Module): Whole, on its device, in evaluation mode; the same weights in all
            processes.
        weights (str): Hash of its weights.
        folder (Path): Of the stage, for files of its own.
        rank, world (int): This process, and how many there are.
    """

    def __init__(self, trainer: LeadTimeMixin, stage: Stage, model: torch.nn.Module) -> None:
        self._trainer, self._root = trainer, stage.root
        self.model = model
        self.weights = weights_hash(stage.best_model)
        self.folder: Path = stage.folder
        self.rank, self.world = trainer.args.process_index, trainer.args.world_size

    def wait(self) -> None:
        """Waits for all processes."""
        self._trainer.accelerator.wait_for_everyone()

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes."""
        return self._trainer._gathered(value)

    def stop_if_asked(self) -> None:
        """Ends the run after a signal; alone, since several processes could not agree here."""
        request = self._trainer._stop_request
        if self.world == 1 and request.requested():
            raise TrainingInterrupted(str(request.signal_name), 0, str(self._root / JOURNAL))


def _place(stage: PlannedStage) -> tuple[int, int | None]:
    """Lead time and fold of a stage."""
    return stage.settings["lead_time"], stage.settings.get("fold")


class _Samples:
    """The samples of a stage, which are there once the stage before it is done."""

    def __init__(self, chain: LeadTimeChain, lead_time: int, fold: int | None) -> None:
        self.chain, self.lead_time, self.fold = chain, lead_time, fold

    def __call__(self, trainer: LeadTimeMixin) -> Any:
        trainer.make_missing_states()
        return self.chain.train_samples(self.lead_time, self.fold)
