"""The plan that a run in stages follows, and how far it is."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_utils import TrainOutput

from ..utils.errors import CheckpointError
from ..utils.recipes import NEXT_STAGE
from .plan import (
    JOURNAL,
    PLAN,
    Journal,
    Plan,
    PlannedStage,
    Stage,
    best_model,
    numbered,
    set_aside,
)
from .plan_checks import check_past, check_room, leftovers
from .stage_spec import StageSpec
from .stage_weights import INITIAL_MODEL, StageWeights

__all__ = ["STAGE_STATE", "StagePlan"]

STAGE_STATE = "trainer_state.json"
"""The trainer's state at a stage's end, in the stage's folder."""


class StagePlan(StageWeights):
    """Mixin of :class:`~hftune.training.stages.StagedMixin`: which stages there are to do.

    Attributes:
        plan (Plan): What the run goes through, once ``train()`` has begun.
        journal (Journal): What has become of its stages.
    """

    plan_kind: str
    plan_settings: dict[str, Any]
    stages: Sequence[StageSpec]
    plan: Plan
    journal: Journal

    @property
    def results(self) -> list[dict[str, Any]]:
        """The results of the stages that are done, in the first process and the others alike."""
        return self.journal.results(self.plan)

    def end_reason(
        self, results: list[dict[str, Any]], following: PlannedStage, root: Path
    ) -> str | None:
        """Returns why the run ends before its next stage; None to go on. In the first process. For
        subclasses.

        Args:
            results (list of dict): Of the stages that are done.
            following (PlannedStage): The next one.
            root (Path): The run's folder.
        """
        return None

    def _open_plan(self, root: Path, asked: str | bool | None) -> str | None:
        """Finds the plan to follow; returns the checkpoint that was asked for by its path."""
        resume = self._asked_to_resume(asked)
        if NEXT_STAGE in os.environ:  # what was asked for, the first process of the run has done
            resume = "auto"
        new = Plan(
            self.plan_kind,
            self._settings_of_all_stages(),
            numbered([stage.planned(self.args) for stage in self.stages]),
        )

        def open_plan() -> tuple[Plan, dict[str, Any], int]:
            if resume == "never":
                self._set_aside(root)
            old, journal = Plan.read(root), Journal(root)
            if old is None:
                plan, changes = new, []
            else:
                unnumbered = dataclasses.replace(
                    new, stages=tuple(s.planned(self.args) for s in self.stages)
                )
                plan, changes = old.continued(
                    unnumbered, journal, allow_changes=self.args.allow_resume_changes
                )
            for change in changes:
                self._say(f"resume: changed: {change}")
            last = 1 + max(i for i, s in enumerate(plan.stages) if s.key == new.stages[-1].key)
            check_past(plan, journal, root)
            if plan != old:
                check_room(
                    plan,
                    journal,
                    root,
                    model_bytes=sum(p.numel() * p.element_size() for p in self.model.parameters()),
                    # The newest, the best, and the one that is being written.
                    checkpoints=(self.args.save_total_limit or 2) + 2,
                    keep_epoch_weights=self.staging.keep_epoch_weights,
                    more_bytes=self.room_needed(len(journal.results(plan))),
                )
                plan.write(root)
            for folder in leftovers(plan, journal, root):
                shutil.rmtree(folder, ignore_errors=True)
            self.tidy(len(journal.results(plan)))
            if journal.values["ended"]:
                done = [
                    journal.entry(s.name)["result"] for s in plan.stages if journal.is_done(s.name)
                ]
                following = plan.stages[len(done) : last]
                journal.end(self.end_reason(done, following[0], root) if following else None)
            return plan, journal.values, last

        self.plan, values, self._last_number = self._in_first(open_plan)
        self.journal = Journal(root, values, writes=self.is_world_process_zero())
        if resume in ("auto", "never") or Path(resume).resolve() == root.resolve():
            return None
        current = next((s for s in self.plan.stages if not self.journal.is_done(s.name)), None)
        folder = None if current is None else root / current.name / "checkpoints"
        if folder is None or Path(resume).resolve().parent != folder.resolve():
            where = "all stages are done" if folder is None else f"this run is in {folder}"
            raise CheckpointError(
                f"--resume {resume}: {where}; a stage that is done does not change. Give a "
                "checkpoint of the stage that the run is in, or --resume auto."
            )
        return resume

    def _settings_of_all_stages(self) -> dict[str, Any]:
        run = self._run_description()
        # Of a stage, not of the run.
        for name in ("num_train_epochs", "max_steps", "training_samples"):
            run.pop(name, None)
        identity = {n: run.pop(n) for n in ("seed", "data_seed", "data", "model", "parameters")}
        return {**identity, **self.plan_settings, "training": run}

    def _set_aside(self, root: Path) -> None:
        old = Plan.read(root)
        stages = [] if old is None else [stage.name for stage in old.stages]
        _, target = set_aside(root, [*stages, INITIAL_MODEL, JOURNAL, PLAN])
        if target is not None:
            self._say(f"--resume never: the stages that were here are in {target}")

    def _stage_at(self, number: int, root: Path) -> Stage:
        stages = self.plan.stages[: self._last_number]
        return Stage(
            number=number,
            count=len(stages),
            planned=stages[number - 1],
            root=root,
            later=stages[number:],
            is_last=number == len(stages),
        )

    def _restore_plan(self, root: Path) -> TrainOutput:
        """The plan is finished: what is left is to have its model and its state again."""
        last = self.results[-1]
        if self.journal.values["ended"]:
            self._say(
                f"resume: the run has ended, nothing to train: {self.journal.values['ended']}"
            )
        else:
            self._say(f"resume: all {len(self.results)} stages are done, nothing to train")
        self._load_weights(best_model(root, last["name"]))
        self._load_state(root / last["name"] / STAGE_STATE)
        loss = last["train_loss"]
        return TrainOutput(self.state.global_step, loss, {"train_loss": loss})
