"""Runs that survive: whole checkpoints, exact resume, signals, for any Trainer class."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from transformers.trainer_utils import TrainOutput

from ..callbacks.progress import HftuneProgressCallback
from ..callbacks.state import StatefulCallback
from ..utils.errors import CheckpointError, ConfigurationError, HftuneError
from ..utils.files import file_hash, free_bytes, human_bytes, read_json, write_json
from ..utils.terminal import console
from .averaging import WeightAverage
from .checkpoints import (
    MANIFEST,
    find_checkpoints,
    resolve_resume,
    rotate_checkpoints,
    run_changes,
    seal_checkpoint,
    unseal_checkpoint,
    verify_checkpoint,
)
from .conductor import AVERAGE_FILE, Conductor, shield_workers
from .folder_lock import locked_folder
from .interrupt import StopRequest, TrainingInterrupted
from .loss_window import LossWindow

__all__ = ["DurableRuns"]

_RUN_SETTINGS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "learning_rate_patterns",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "ema_decay",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
    "train_sampling_strategy",
    "dataloader_drop_last",
)
"""Settings that decide the weights: a resume with another value is not the same run."""

_PLAN = {
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "dataloader_drop_last",
    "processes",
    "training_samples",
}
"""Of these, what decides the number of steps."""


class DurableRuns:
    """Mixin of :class:`~hftune.training.trainer.HFTuneMixin`: what makes a run durable.

    - ``train()`` goes on from the newest checkpoint that verifies, as ``args.resume`` says, and
      reaches the weights and logs of an uninterrupted run bit for bit. A finished run is not
      trained further.
    - Changed settings, data or number of processes are an error that names them, unless
      ``args.allow_resume_changes``.
    - Old checkpoints are deleted once the new one is whole: the best and the newest
      ``args.save_total_limit`` stay. A save that fails on a full disk leaves the run alive and the
      last good checkpoint in place.
    - SIGTERM and SIGINT: the step is finished, a checkpoint saved, and
      :class:`~hftune.training.interrupt.TrainingInterrupted` raised, which exits with status 75.
    """

    def _start_durable(self, data_fingerprint: str | None) -> None:
        self.data_fingerprint = data_fingerprint
        self.failed_saves = 0
        self.loss_window = LossWindow()
        self._stop_request = StopRequest()
        self._resumed_from: Path | None = None
        self._last_saved: Path | None = None
        self.add_callback(Conductor(self))
        if self.args.ema_decay and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ConfigurationError(
                "ema_decay: the moving average needs whole weights in each process, which FSDP and "
                "DeepSpeed do not keep; set it to 0 or train with DDP"
            )

    # Training

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains, or goes on training.

        Args:
            resume_from_checkpoint (str or bool, *optional*): A checkpoint; True for the newest
                whole one; False for none. Defaults to what ``args.resume`` says.
            trial: Of a hyperparameter search, which does not resume.
            ignore_keys_for_eval (list of str, *optional*): As for the Trainer.

        Returns:
            Steps, loss and metrics of the whole run.

        Raises:
            CheckpointError: If the checkpoint that was asked for is not whole.
            ConfigurationError: If the run is not the one that wrote the checkpoint.
            TrainingInterrupted: After SIGTERM or SIGINT, once the checkpoint is saved.
        """
        with self._locked():
            return self._train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _train(
        self, resume_from_checkpoint: str | bool | None, trial: Any, ignore_keys_for_eval: Any
    ) -> TrainOutput:
        checkpoint = None if trial is not None else self._resolve_resume(resume_from_checkpoint)
        self._resumed_from = checkpoint
        self._last_saved = checkpoint
        if checkpoint is not None and self._is_finished(checkpoint):
            return self._restore_finished(checkpoint)
        try:
            with self._stop_request.listening():
                output = super().train(
                    resume_from_checkpoint=None if checkpoint is None else str(checkpoint),
                    trial=trial,
                    ignore_keys_for_eval=ignore_keys_for_eval,
                )
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, HftuneProgressCallback):
                    callback.close()
        # A signal after the last step has reached one process: all of them end for it.
        if self._stop_request.requested():
            saved = None if self._last_saved is None else str(self._last_saved)
            stopped = TrainingInterrupted(
                self._stop_request.signal_name, self.state.global_step, saved
            )
            self._say(str(stopped))
            raise stopped
        self._adopt_average()
        # The Trainer's own is the mean of this session.
        return output._replace(training_loss=self.loss_window.mean(output.global_step))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other runs out of the output folder; the lock ends with the process."""
        with contextlib.ExitStack() as stack:
            self._in_first(lambda: stack.enter_context(locked_folder(self.args.output_dir)))
            yield

    def _in_first(self, work: Callable[[], Any]) -> Any:
        """Does ``work`` in the first process; all of them have its result, or raise its error."""
        outcome: list[Any] = [None, None]
        if self.is_world_process_zero():
            # An error of one process must end all of them, not leave the others waiting.
            try:
                outcome[0] = work()
            except (HftuneError, OSError) as error:
                outcome[1] = error
        if self.args.world_size > 1:
            torch.distributed.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        values = [value] * self.args.world_size
        if self.args.world_size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def _resolve_resume(self, asked: str | bool | None) -> Path | None:
        resume = self.args.resume
        if asked is not None:
            resume = {True: "auto", False: "never"}.get(asked, asked)
        checkpoint = self._in_first(lambda: resolve_resume(self.args.output_dir, resume))
        if checkpoint is None:
            return None
        self._check_everywhere(checkpoint)
        changes = run_changes(checkpoint, self._run_description())
        if changes and not self.args.allow_resume_changes:
            raise ConfigurationError(
                [
                    f"{change}. Go back to the old value, start anew with --resume never or in "
                    "another output_dir, or accept it with --allow_resume_changes."
                    for change in changes
                ]
            )
        for change in changes:
            self._say(f"resume: changed: {change}")
        for change in run_changes(checkpoint, self._environment(), "environment"):
            self._say(f"resume: the last bits may differ: {change}")
        return checkpoint

    def _check_everywhere(self, checkpoint: Path) -> None:
        """Each process must see the very checkpoint that the first one verified."""
        manifest, count = checkpoint / MANIFEST, self.args.world_size
        seen = "here" if manifest.is_file() else "missing"
        if seen == "here" and not self.args.save_on_each_node:
            seen = file_hash(manifest)
        everywhere = self._gathered(seen)
        if wrong := [rank for rank, found in enumerate(everywhere) if found != everywhere[0]]:
            raise CheckpointError(
                f"{checkpoint} is missing or another one for the processes "
                f"{', '.join(map(str, wrong))} of {count}: output_dir must be on storage that all "
                "machines of the run share"
            )
        if count > 1:
            console().print(
                f"rank {self.args.process_index} of {count}: going on from {checkpoint}",
                markup=False,
                soft_wrap=True,
            )

    def _environment(self) -> dict[str, Any]:
        """What the result depends on in its last bits."""
        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
            "threads": torch.get_num_threads(),
            "device": self.args.device.type,
        }

    def _run_description(self) -> dict[str, Any]:
        """What a resume must have in common with the run that wrote the checkpoint."""
        settings = self.args.to_dict()
        run = {name: settings[name] for name in _RUN_SETTINGS if name in settings}
        run["processes"] = self.args.world_size
        run["distributed_type"] = str(self.accelerator.distributed_type.value)
        if hasattr(self.train_dataset, "__len__"):
            run["training_samples"] = len(self.train_dataset)
        run["data"] = self.data_fingerprint
        model = self.accelerator.unwrap_model(self.model)
        run["model"] = type(model).__name__
        run["parameters"] = sum(p.numel() for p in model.parameters())
        return run

    def _is_finished(self, checkpoint: Path) -> bool:
        state = read_json(checkpoint / "trainer_state.json")
        changed = {c.partition(":")[0] for c in run_changes(checkpoint, self._run_description())}
        return state["global_step"] >= state["max_steps"] and not changed & _PLAN

    def _restore_finished(self, checkpoint: Path) -> TrainOutput:
        """The run is done: what is left is to have its model and its state again."""
        self._say(f"resume: {checkpoint.name} is the last step of this run, nothing to train")
        self._load_from_checkpoint(str(checkpoint))
        self.state = transformers.TrainerState.load_from_json(
            str(checkpoint / "trainer_state.json")
        )
        self.state.is_world_process_zero = self.is_world_process_zero()
        self.state.is_local_process_zero = self.is_local_process_zero()
        self._relocate_best()
        if self.args.ema_decay:
            self.average = WeightAverage(self.model, self.args.ema_decay)
            self.average.load(checkpoint / AVERAGE_FILE)
        for callback in self._stateful_callbacks():
            callback.load_state(checkpoint)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        self._adopt_average()
        self._load_window(checkpoint)
        loss = self.loss_window.mean(self.state.global_step)
        return TrainOutput(self.state.global_step, loss, {"train_loss": loss})

    def end(self) -> None:
        """Closes trackers and leaves the process group; the last call of a run.

        A process that ends without it may be aborted after its work is done.
        """
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    # Weights that are averaged

    def _adopt_average(self) -> None:
        """Training is over: the average takes the weights' place for good."""
        if self.average is not None:
            self.average.swap()
            self.average = None

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        if problems := verify_checkpoint(best):
            self._say(
                f"the best model, {best}, is damaged ({'; '.join(problems)}): the last weights stay"
            )
            # Nobody may take what the model holds now for the best.
            self.state.best_model_checkpoint = self.state.best_global_step = None
            return
        super()._load_best_model()
        if (best / AVERAGE_FILE).is_file():
            average = self.average or WeightAverage(self.model, self.args.ema_decay)
            average.load(best / AVERAGE_FILE)
            average.swap()
        self.average = None

    def _relocate_best(self) -> None:
        """Finds the best checkpoint again where the output folder was moved."""
        step = self.state.best_global_step
        if step:
            here = Path(self.args.output_dir, f"checkpoint-{step}")
            self.state.best_model_checkpoint = str(here) if here.is_dir() else None

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if trial is not None:
            super()._save_checkpoint(model, trial)
            return
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        if not self._has_room(folder):
            return
        if self.args.should_save:
            unseal_checkpoint(folder)
        try:
            self._write_checkpoint(model, folder)
        except (OSError, RuntimeError) as error:
            # Where several processes write, one cannot go on without the others.
            if self.args.world_size > 1 or not _is_disk_error(error, folder):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            self._save_failed(f"{folder.name} could not be written ({error})")
            return
        self._last_saved = folder
        if self.args.should_save and self.args.save_total_limit is not None:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(
                self.args.output_dir, self.args.save_total_limit, [best] if best else []
            )

    def _write_checkpoint(self, model: Any, folder: Path) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            # Without a limit the Trainer deletes nothing: here that waits for the manifest.
            super()._save_checkpoint(model, None)
        finally:
            self.args.save_total_limit = limit
        write_json(folder / self._window_file(), self.loss_window.state_dict())
        if self.args.should_save:
            if self.average is not None:
                self.average.save(folder / AVERAGE_FILE)
            for callback in self._stateful_callbacks():
                callback.save_state(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal_checkpoint(
                folder,
                step=self.state.global_step,
                run=self._run_description(),
                environment=self._environment(),
            )
            if problems := verify_checkpoint(folder, hashes=False):
                raise OSError(f"{folder}: {'; '.join(problems)}")
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        bars = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()  # one of its own for each save
        try:
            super()._save(output_dir, state_dict)
        finally:
            if bars:
                transformers.utils.logging.enable_progress_bar()
        if self.args.should_save:
            # A pickle of the settings, tokens included; the same as JSON, without them.
            folder = Path(output_dir or self.args.output_dir)
            (folder / "training_args.bin").unlink(missing_ok=True)
            write_json(folder / "training_args.json", self.args.to_dict())

    def _has_room(self, folder: Path) -> bool:
        room = [True]
        if self.is_world_process_zero():
            before = [f for f in find_checkpoints(folder.parent) if f != folder]
            if before:
                need = sum(p.stat().st_size for p in before[-1].rglob("*") if p.is_file())
            else:  # weights, two moments, and the average
                sizes = sum(p.numel() * p.element_size() for p in self.model.parameters())
                need = sizes * (4 if self.args.ema_decay else 3)
            free = free_bytes(folder.parent)
            if free < 1.05 * need:
                room = [False]
                self._save_failed(
                    f"{folder.name} needs about {human_bytes(need)}, {human_bytes(free)} are free"
                )
        if self.args.world_size > 1:
            torch.distributed.broadcast_object_list(room)
        return room[0]

    def _save_failed(self, reason: str) -> None:
        self.failed_saves += 1
        last = "none yet" if self._last_saved is None else self._last_saved.name
        self._say(
            f"NOT SAVED: {reason}. Training goes on; the last whole checkpoint is {last}. "
            "Make room before the next save."
        )

    def _stateful_callbacks(self) -> list[StatefulCallback]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, StatefulCallback)]

    def _say(self, text: str) -> None:
        if self.is_world_process_zero():
            console().print(text, markup=False, soft_wrap=True)

    def _window_file(self) -> str:
        return f"loss_window_{self.args.process_index}.json"

    def _load_window(self, checkpoint: Path) -> None:
        path = checkpoint / self._window_file()
        if path.is_file():  # else another number of processes wrote it, which was allowed
            self.loss_window.load_state_dict(read_json(path), self.args.device)

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        if self.args.dataloader_num_workers > 0:
            shield_workers(loader)
        return loader


def _is_disk_error(error: Exception, folder: Path) -> bool:
    """Whether a save failed for the disk: torch says so only in the text of a RuntimeError."""
    if isinstance(error, OSError):
        return True
    text = str(error).lower()
    return "pytorchstreamwriter" in text or "no space left" in text or "i/o error" in text
