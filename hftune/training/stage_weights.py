"""Weights and moments that one stage hands to the next."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from ..configuration.stage_arguments import StageArguments
from ..utils.errors import ConfigurationError
from ..utils.files import sync_folder
from .checkpoints import seal_checkpoint, unseal_checkpoint
from .optimizers import go_to_step
from .plan import Stage
from .saving import is_disk_error
from .trainer import HFTuneMixin

__all__ = ["INITIAL_MODEL", "EpochWeights", "StageWeights", "carry_on"]

INITIAL_MODEL = "initial_model"
"""The weights that a run starts with, in its folder."""


class StageWeights(HFTuneMixin):
    """Mixin of :class:`~hftune.training.stages.StagedMixin`: how weights are kept and taken up."""

    staging: StageArguments
    results: list[dict[str, Any]]
    _stage: Stage | None

    def _save_weights(self, folder: Path) -> None:
        """Writes the model as it is now, loadable with ``from_pretrained``: whole or not at all."""
        partial = folder.with_name(f".{folder.name}.partial")
        if self.is_world_process_zero():
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        failure = None
        try:
            self.save_model(str(partial), _internal_call=True)
        except Exception as error:
            if not is_disk_error(error):
                raise
            failure = str(error)
        self.accelerator.wait_for_everyone()

        def finish() -> None:
            if failure is not None:
                shutil.rmtree(partial, ignore_errors=True)
                raise OSError(failure)
            seal_checkpoint(partial, step=self.state.global_step, run={})
            if folder.exists():
                unseal_checkpoint(folder)
                shutil.rmtree(folder)
            os.replace(partial, folder)
            sync_folder(folder.parent)

        self._in_first(finish)

    def _load_weights(self, folder: Path) -> None:
        """Loads weights into the model, which no stage of this process has taken apart yet."""
        level = transformers.utils.logging.get_verbosity()
        transformers.utils.logging.set_verbosity_error()  # tied weights are "missing" there
        try:
            with self._whole_model():
                self._load_from_checkpoint(str(folder))
        finally:
            transformers.utils.logging.set_verbosity(level)

    def _save_first_weights(self, folder: Path) -> None:
        """Saves the weights that the run starts with."""
        with self._whole_model():
            self._save_weights(folder)

    @contextlib.contextmanager
    def _whole_model(self) -> Iterator[None]:
        """Has the Trainer treat the model as what it is before training: whole in each process."""
        modes = self.is_fsdp_enabled, self.is_deepspeed_enabled
        self.is_fsdp_enabled = self.is_deepspeed_enabled = False
        try:
            yield
        finally:
            self.is_fsdp_enabled, self.is_deepspeed_enabled = modes

    def save_epoch(self, epoch: int) -> None:
        """Keeps the weights after an epoch of a stage; a full disk does not end it.

        Args:
            epoch (int): 1, 2, ...
        """
        folder = self._stage.checkpoints / f"epoch_{epoch}"
        try:
            with self.averaged_weights():
                self._save_weights(folder)
        except OSError as error:
            self._say(f"NOT SAVED: the weights after epoch {epoch} could not be written ({error})")

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        if self._stage is None or self.staging.stage_optimizer != "carry":
            return super().create_scheduler(num_training_steps, optimizer)
        done = self.results
        before = sum(result["steps"] for result in done)
        later = sum(stage.steps for stage in self._stage.later)
        scheduler = super().create_scheduler(before + num_training_steps + later, optimizer)
        if done:
            folder = self._stage.root / done[-1]["name"] / "checkpoints" / done[-1]["optimizer"]
            carry_on(optimizer or self.optimizer, scheduler, folder, before)
        return scheduler


class EpochWeights(TrainerCallback):
    """Says when an epoch of a stage is over."""

    def __init__(self, trainer: StageWeights) -> None:
        self.trainer = trainer

    def on_epoch_end(self, args, state, control, **kwargs):
        whole = state.epoch == int(state.epoch)  # else it was broken off
        if whole and self.trainer.staging.keep_epoch_weights:
            self.trainer.save_epoch(int(state.epoch))


def carry_on(optimizer: torch.optim.Optimizer, scheduler: Any, folder: Path, steps: int) -> None:
    """Gives an optimizer the moments of a checkpoint, and its schedule the steps that are done."""
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise ConfigurationError(
            f"stage_optimizer: 'carry' needs a schedule that is a function of the step, found "
            f"{type(scheduler).__name__}; choose another lr_scheduler_type"
        )
    saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved["state"]})
    go_to_step(optimizer, scheduler, steps)
