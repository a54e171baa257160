"""What is looked at in a run's folder before its plan is followed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..utils.errors import CheckpointError, ConfigurationError
from ..utils.files import free_bytes, human_bytes
from .checkpoints import find_checkpoints, verify_checkpoint
from .plan import Journal, Plan, PlannedStage, best_model

__all__ = ["check_models", "check_past", "check_room", "leftovers"]


def check_past(plan: Plan, journal: Journal, root: Path) -> None:
    """Looks whether what is done is still there; the newest stage with the hashes of its files.

    Raises:
        CheckpointError: If something is missing or has changed.
    """
    done = [stage for stage in plan.stages if journal.is_done(stage.name)]
    check_models(done, root, hashes=done[-1:])


def check_models(
    stages: Sequence[PlannedStage], root: Path, hashes: Sequence[PlannedStage]
) -> None:
    """Looks whether the best models of stages are what the stages left.

    Args:
        stages (sequence of PlannedStage): Stages that are done.
        root (Path): The run's folder.
        hashes (sequence of PlannedStage): Those whose files are read, not only looked at.

    Raises:
        CheckpointError: If something is missing or has changed.
    """
    problems = []
    for stage in stages:
        best = best_model(root, stage.name)
        found = verify_checkpoint(best, hashes=stage in hashes)
        problems += [f"{best} is not what stage '{stage.title}' left: {p}" for p in found]
    if problems:
        raise CheckpointError(
            "; ".join(problems) + ". Put it back, or train that stage and those after it again: "
            f"hftune stages {root} --restart NUMBER"
        )


def check_room(
    plan: Plan,
    journal: Journal,
    root: Path,
    *,
    model_bytes: int,
    checkpoints: int,
    keep_epoch_weights: bool,
    more_bytes: int = 0,
) -> None:
    """Looks whether the disk has room for the stages that are not done.

    Args:
        plan (Plan): The stages.
        journal (Journal): Which of them are done.
        root (Path): The run's folder.
        model_bytes (int): Of the weights.
        checkpoints (int): With weights and two moments, that are there at a time.
        keep_epoch_weights (bool): Whether each epoch leaves its weights.
        more_bytes (int): What the stages write beside weights. Defaults to 0.

    Raises:
        ConfigurationError: If it has not.
    """
    missing = [stage for stage in plan.stages if not journal.is_done(stage.name)]
    kept = sum(1 + (math.ceil(s.epochs) if keep_epoch_weights else 0) for s in missing)
    need, free = model_bytes * (kept + 3 * checkpoints) + more_bytes, free_bytes(root)
    if free < need:
        advice = (
            "--keep_epoch_weights false keeps only the best model of each stage."
            if keep_epoch_weights
            else "Make room first."
        )
        raise ConfigurationError(
            f"the {len(missing)} stages need about {human_bytes(need)} on the disk of {root}, "
            f"{human_bytes(free)} are free. {advice}"
        )


def leftovers(plan: Plan, journal: Journal, root: Path) -> list[Path]:
    """Returns what a stop at the end of a stage left: its checkpoints, and half-written folders."""
    found: list[Path] = []
    for stage in plan.stages:
        folder = root / stage.name / "checkpoints"
        found += folder.glob(".*.partial")
        if journal.is_done(stage.name):
            carried = journal.entry(stage.name)["result"].get("optimizer")
            found += [c for c in find_checkpoints(folder) if c.name != carried]
    return found
