"""Runs that survive: whole checkpoints, exact resume, signals, for any Trainer class."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from transformers.trainer_utils import TrainOutput

from ..callbacks.progress import HftuneProgressCallback
from ..utils.errors import CheckpointError, ConfigurationError
from ..utils.files import file_hash, read_json
from ..utils.terminal import console
from .averaging import WeightAverage
from .checkpoints import (
    MANIFEST,
    quarantine,
    resolve_resume,
    run_changes,
    verify_checkpoint,
)
from .conductor import AVERAGE_FILE, Conductor, separate_seeds, shield_workers
from .folder_lock import locked_folder, make_folder
from .interrupt import StopRequest, TrainingInterrupted
from .loss_window import LossWindow
from .optimizers import go_to_step
from .saving import WholeSaves

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
    "early_stopping_patience",
    "early_stopping_threshold",
)
"""Settings that decide the weights: a resume with another value is not the same run."""

_PLAN = {
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "dataloader_drop_last",
    "early_stopping_patience",
    "early_stopping_threshold",
    "processes",
    "training_samples",
    "global_batch_size",  # of a stage
}
"""Of these, what decides the number of steps."""

_FINAL = {"learning_rate_patterns", "optim", "model", "parameters"}
"""What nothing can be done about: the checkpoint's state belongs to other parameters."""


class DurableRuns(WholeSaves):
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

    def __init__(self, *, args: Any, **kwargs: Any) -> None:
        if args.should_save:
            make_folder(args.output_dir)  # the Trainer does, without saying what to do if it cannot
        super().__init__(args=args, **kwargs)

    def _start_durable(self, data_fingerprint: str | None) -> None:
        self.data_fingerprint = data_fingerprint
        self.failed_saves = 0
        self.loss_window = LossWindow()
        self._stop_request = StopRequest()
        self._resumed_from: Path | None = None
        self._last_saved: Path | None = None
        self._changed: list[str] = []  # against the checkpoint, and accepted
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
                # A signal after the last step has reached one process: all of them end for it.
                stopping = self._stop_request.requested()
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, HftuneProgressCallback):
                    callback.close()
        if stopping:
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

    def _asked_to_resume(self, asked: str | bool | None) -> str:
        """What ``train(resume_from_checkpoint=...)`` or else the settings say."""
        if asked is None:
            return self.args.resume
        return {True: "auto", False: "never"}.get(asked, asked)

    def _resolve_resume(self, asked: str | bool | None) -> Path | None:
        resume = self._asked_to_resume(asked)
        checkpoint = self._in_first(lambda: resolve_resume(self.args.output_dir, resume))
        if checkpoint is None:
            return None
        self._check_everywhere(checkpoint)
        changes = run_changes(checkpoint, self._run_description())
        final = {c for c in changes if c.partition(":")[0] in _FINAL}
        if final or (changes and not self.args.allow_resume_changes):
            raise ConfigurationError(
                [
                    f"{change}. Go back to the old value, or start anew with --resume never or in "
                    "another output_dir: the optimizer's state does not fit the new one."
                    if change in final
                    else f"{change}. Go back to the old value, start anew with --resume never or "
                    "in another output_dir, or accept it with --allow_resume_changes."
                    for change in changes
                ]
            )
        self._changed = changes
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
        self._load_state(checkpoint / "trainer_state.json")
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

    def _load_state(self, path: Path) -> None:
        self.state = transformers.TrainerState.load_from_json(str(path))
        self.state.is_world_process_zero = self.is_world_process_zero()
        self.state.is_local_process_zero = self.is_local_process_zero()

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
        step, found = self.state.best_global_step, None
        if step:
            folders = [Path(self.args.output_dir)]
            if self._resumed_from is not None:  # perhaps from another run's folder
                folders.append(self._resumed_from.parent)
            places = [folder / f"checkpoint-{step}" for folder in folders]
            found = next((str(place) for place in places if place.is_dir()), None)
        self.state.best_model_checkpoint = found

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        position = super()._init_training_state(*args, **kwargs)
        if self._resumed_from is not None:
            self._relocate_best()
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                self._check_best(Path(self.state.best_model_checkpoint))
        return position

    def _check_best(self, best: Path) -> None:
        """Forgets a best model that is damaged: another one is chosen while there is time."""

        def judge() -> str | None:
            # The one that the run goes on from was verified a moment ago.
            problems = "; ".join(verify_checkpoint(best) if best != self._resumed_from else [])
            if problems and best.parent == Path(self.args.output_dir):
                return f"{problems}; moved to {quarantine(best, problems)}"
            return problems

        if problems := self._in_first(judge):
            self._say(
                f"resume: the best model so far, {best.name}, is damaged: {problems}. The best is "
                "chosen from the evaluations to come."
            )
            self.state.best_metric = self.state.best_global_step = None
            self.state.best_model_checkpoint = None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        new = [dict(group) for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self._changed or self.is_deepspeed_enabled:
            return
        # What was changed counts, not what the checkpoint remembers of it.
        scheduler = self.lr_scheduler
        planned = isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        for group, settings in zip(self.optimizer.param_groups, new, strict=True):
            kept = {"params"} if planned else {"params", "lr", "initial_lr"}
            group.update({k: v for k, v in settings.items() if k not in kept})
        if planned:
            scheduler.base_lrs = [group["initial_lr"] for group in new]
            go_to_step(self.optimizer, scheduler, scheduler.last_epoch)

    def _load_window(self, checkpoint: Path) -> None:
        path = checkpoint / self._window_file()
        if path.is_file():  # else another number of processes wrote it, which was allowed
            self.loss_window.load_state_dict(read_json(path), self.args.device)

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        if self.args.dataloader_num_workers > 0:
            shield_workers(loader)
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        loader = super().get_eval_dataloader(eval_dataset)
        if self.args.dataloader_num_workers > 0:
            shield_workers(loader)
            separate_seeds(loader, self.args.seed)
        return loader
