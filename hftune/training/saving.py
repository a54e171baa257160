"""Checkpoints of a trainer that are whole or not there, and a run that outlives a full disk."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.trainer_utils import TrainOutput

from ..callbacks.state import StatefulCallback
from ..utils.errors import CheckpointError
from ..utils.files import free_bytes, human_bytes, write_json
from ..utils.modules import without_bars
from ..utils.terminal import console
from .checkpoints import (
    find_checkpoints,
    rotate_checkpoints,
    seal_checkpoint,
    unseal_checkpoint,
    verify_checkpoint,
)
from .conductor import AVERAGE_FILE
from .first_process import in_first_process

__all__ = ["WholeSaves", "is_disk_error"]

_DISK_ERRORS = (
    "i/o error",  # safetensors
    "inline_container",  # torch.save, as are the others
    "pytorchstreamwriter",
    "iostream error",
    "cannot be opened",
)


class WholeSaves:
    """Part of :class:`~hftune.training.durable.DurableRuns`: how it writes checkpoints.

    One that cannot be written, on a full disk or one that turned read-only, is removed; the run
    says so, goes on and tries again at the next save. With several processes all of them agree on
    what became of a save. FSDP and DeepSpeed write together: there a process that fails leaves the
    others waiting within the save, and the run ends. Its last whole checkpoint is unharmed.
    """

    _in_checkpoint = False
    _unwritten_model: Exception | None = None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if trial is not None:
            super()._save_checkpoint(model, trial)
            return
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        failure = self._in_first(lambda: self._make_ready(folder))
        if failure is None:
            failure = self._together(lambda: self._write_files(model, folder), folder)
            # The manifest comes last, once the files of all processes are there.
            failure = failure or self._together(lambda: self._seal(folder), folder)
            if failure is not None:
                if self.args.should_save:
                    shutil.rmtree(folder, ignore_errors=True)
                failure = f"{folder.name} could not be written ({failure})"
        if failure is not None:
            self._save_failed(failure)
            return
        self._last_saved = folder
        if self.args.should_save and self.args.save_total_limit is not None:
            best = self.state.best_model_checkpoint
            try:
                rotate_checkpoints(
                    self.args.output_dir,
                    self.args.save_total_limit,
                    [folder, best] if best else [folder],
                )
            except OSError as error:
                self._say(f"old checkpoints could not be deleted: {error}")

    def _make_ready(self, folder: Path) -> str | None:
        """What speaks against writing a checkpoint; if nothing does, an old one is unsealed."""
        try:
            before = [f for f in find_checkpoints(folder.parent) if f != folder]
            if before:
                need = sum(p.stat().st_size for p in before[-1].rglob("*") if p.is_file())
            else:  # weights, two moments, and the average
                sizes = sum(p.numel() * p.element_size() for p in self.model.parameters())
                need = sizes * (4 if self.args.ema_decay else 3)
            free = free_bytes(folder.parent)
            if free < 1.05 * need:
                return (
                    f"{folder.name} needs about {human_bytes(need)}, {human_bytes(free)} are free"
                )
            unseal_checkpoint(folder)
        except OSError as error:
            return f"{folder.name} could not be written ({error})"
        return None

    def _together(self, write: Callable[[], None], folder: Path) -> str | None:
        """Has each process write its part.

        Returns:
            Why the disk did not take it, the same in all processes; None if it did.

        Raises:
            CheckpointError: In the other processes, if one failed for another reason than the disk.
        """
        error: Exception | None = None
        self._unwritten_model = None
        try:
            write()
        except Exception as caught:
            # Collective saves: the others may wait within them, and nothing can be agreed upon.
            sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            if sharded and self.args.world_size > 1:
                raise
            error = caught
        error = self._unwritten_model or error
        mine = None if error is None else (is_disk_error(error), str(error))
        failures = {rank: f for rank, f in enumerate(self._gathered(mine)) if f is not None}
        for rank, (of_disk, text) in failures.items():
            if not of_disk:
                if rank == self.args.process_index:
                    raise error
                raise CheckpointError(f"{folder}: process {rank} could not write it: {text}")
        return next((text for _, text in failures.values()), None)

    def _write_files(self, model: Any, folder: Path) -> None:
        self._in_checkpoint = True
        try:
            with self._nothing_deleted():
                super()._save_checkpoint(model, None)
        finally:
            self._in_checkpoint = False
        write_json(folder / self._window_file(), self.loss_window.state_dict())
        if self.args.should_save:
            if self.average is not None:
                self.average.save(folder / AVERAGE_FILE)
            for callback in self._stateful_callbacks():
                callback.save_state(folder)

    @contextlib.contextmanager
    def _nothing_deleted(self) -> Iterator[None]:
        """The Trainer deletes by its limit: before the new checkpoint is whole, and, with a limit
        of 1, at the end all but the best, which leaves nothing that a stopped run can go on from.
        """
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        with self._nothing_deleted():
            return super()._finalize_training(*args, **kwargs)

    def _seal(self, folder: Path) -> None:
        if not self.args.should_save:
            return
        seal_checkpoint(
            folder,
            step=self.state.global_step,
            run=self._run_description(),
            environment=self._environment(),
        )
        if problems := verify_checkpoint(folder, hashes=False):
            raise OSError(f"{folder}: {'; '.join(problems)}")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        try:
            self._save_model_files(output_dir, state_dict)
        except Exception as error:
            if not self._in_checkpoint or self.args.world_size == 1:
                raise
            # The Trainer has a barrier behind this, in which the other processes wait.
            self._unwritten_model = error

    def _save_model_files(self, output_dir: str | None, state_dict: dict | None) -> None:
        with without_bars(), self._own_names():
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            # A pickle of the settings, tokens included; the same as JSON, without them.
            folder = Path(output_dir or self.args.output_dir)
            (folder / "training_args.bin").unlink(missing_ok=True)
            write_json(folder / "training_args.json", self.args.to_dict())

    @contextlib.contextmanager
    def _own_names(self) -> Iterator[None]:
        """Has a checkpoint's weights under the names that the model has in memory.

        transformers writes those of the published files (of DINOv2, ViT and others they are not the
        same), and its Trainer reads no such file back: it leaves out what has another name, with a
        warning.
        """
        model = self.accelerator.unwrap_model(self.model)
        if not self._in_checkpoint or not isinstance(model, transformers.PreTrainedModel):
            yield
            return
        model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)
        try:
            yield
        finally:
            del model.save_pretrained

    def _save_failed(self, reason: str) -> None:
        self.failed_saves += 1
        state, saved, last = self.state, transformers.TrainerState(), "none yet"
        if self._last_saved is not None:
            last = self._last_saved.name
            saved = saved.load_from_json(str(self._last_saved / "trainer_state.json"))
        if state.best_global_step == state.global_step:
            # A best model that was not saved cannot be loaded: the best is the one that was.
            state.best_metric, state.best_global_step = saved.best_metric, saved.best_global_step
            self._relocate_best()
        self._say(
            f"NOT SAVED: {reason}. Training goes on; the last whole checkpoint is {last}. "
            "Make room before the next save."
        )

    # Several processes

    def _in_first(self, work: Callable[[], Any]) -> Any:
        """Does ``work`` in the first process; all of them have its result, or raise its error."""
        return in_first_process(work)

    def _gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        values = [value] * self.args.world_size
        if self.args.world_size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def _stateful_callbacks(self) -> list[StatefulCallback]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, StatefulCallback)]

    def _say(self, text: str) -> None:
        if self.is_world_process_zero():
            console().print(text, markup=False, soft_wrap=True)

    def _window_file(self) -> str:
        return f"loss_window_{self.args.process_index}.json"


def is_disk_error(error: Exception) -> bool:
    """Whether a save failed for the disk: torch and safetensors say so only in their texts."""
    if isinstance(error, OSError):
        return True
    text = str(error).lower()
    return any(part in text for part in _DISK_ERRORS)
