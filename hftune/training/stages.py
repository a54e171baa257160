"""One engine for runs in stages: an ordered list of trainings, each from the last one's best model.

Lead-time chaining and progressive data are such lists; a trainer only says what its stages are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerState, set_seed
from transformers.trainer_utils import TrainOutput

from ..callbacks.log_files import LogFiles
from ..callbacks.tracking import evaluation_metrics
from ..configuration.stage_arguments import StageArguments
from ..utils.errors import (
    CheckpointError,
    ConfigurationError,
    HftuneError,
    NextStageProcess,
    TrainingInterrupted,
)
from ..utils.files import atomic_path, read_json, write_json
from ..utils.seeds import derive_seed
from .checkpoints import find_checkpoints, unseal_checkpoint, verify_checkpoint
from .out_of_memory import halve_batch, is_out_of_memory, release_memory
from .plan import JOURNAL, Stage, best_model, numbered
from .plan_checks import leftovers
from .stage_plan import STAGE_STATE, StagePlan
from .stage_spec import STAGE_ARGUMENTS, StageSpec
from .stage_weights import INITIAL_MODEL, EpochWeights

__all__ = ["StageSpec", "StagedMixin", "StagedTrainer"]

_METRICS = "training_metrics.json"
_NO_MEMORY = "out_of_memory.json"


class StagedMixin(StagePlan):
    """Stages for a Trainer class: ``class MyTrainer(StagedMixin, Seq2SeqTrainer)``.

    ``train()`` goes through the stages; killed at any moment and started again, it goes on in the
    stage it was in, and ends with the weights and results of a run that was never stopped, bit for
    bit. Each stage has its own folder, optimizer, schedule, seed and checkpoints, and starts from
    the best model of the stage before. A stage that is done is never changed; ``train()`` on a
    finished plan trains nothing; a plan with more stages goes on where the shorter one ended.

    Callbacks may have ``on_stage_begin(args, state, control, stage=..., **kwargs)`` and
    ``on_stage_end(args, state, control, stage=..., result=..., **kwargs)``, with a
    :class:`~hftune.training.plan.Stage`, and among the others ``trainer=``. Between them
    ``args.output_dir`` is the folder of the stage's checkpoints.

    Where a batch is too large for the memory, the stage goes on from its last checkpoint with half
    the micro batch and twice the accumulation: the same samples a step.

    Args:
        model (torch.nn.Module): As for the Trainer.
        args (HFTuneArguments): As for the Trainer; ``output_dir`` is the folder of the whole run.
        stages (sequence of StageSpec): In their order.
        staging (StageArguments, *optional*): How they follow each other.
        plan_settings (mapping): What all stages have in common, as JSON has it; a run with other
            ones is another plan.
        **kwargs: As for :class:`~hftune.training.trainer.HFTuneMixin`.

    Attributes:
        root (Path): Folder of the run, also while ``args.output_dir`` is that of a stage.
        plan (Plan): What the run goes through, once ``train()`` has begun.
        results (list of dict): What the stages that are done have reached.

    Raises:
        ConfigurationError: With everything that is wrong with the stages.
    """

    plan_kind = "stages"

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        args: Any = None,
        *,
        stages: Sequence[StageSpec],
        staging: StageArguments | None = None,
        plan_settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.stages = tuple(stages)
        self.staging = staging or StageArguments()
        self.plan_settings = dict(plan_settings or {})
        self._stage: Stage | None = None
        super().__init__(model=model, args=args, **kwargs)
        self.root = Path(self.args.output_dir)
        problems = self._stage_problems(kwargs)
        if problems:
            raise ConfigurationError(problems)
        self._unstaged_evaluator = self.evaluator
        self._log_files = LogFiles(self.plan_kind)
        self.add_callback(self._log_files)
        self.add_callback(EpochWeights(self))

    def _stage_problems(self, kwargs: Mapping[str, Any]) -> list[str]:
        problems = []
        if not self.stages:
            problems.append("stages: found none, expected one or more")
        for stage in self.stages:
            unknown = sorted(set(stage.arguments) - set(STAGE_ARGUMENTS))
            problems += [
                f"stage '{stage.name}': a stage cannot have its own {name} (it can have "
                f"{', '.join(STAGE_ARGUMENTS)})"
                for name in unknown
            ]
        names = [stage.name for stage in numbered([s.planned(self.args) for s in self.stages])]
        if len(set(names)) < len(names):
            problems.append(f"stages: found names that repeat among {', '.join(names)}")
        if any(kwargs.get("optimizers", (None, None))):
            problems.append("optimizers: each stage makes its own; leave optimizers= out")
        if kwargs.get("model_init") is not None:
            problems.append("model_init: stages go on from each other's weights; give model=")
        if self.args.auto_find_batch_size:
            problems.append(
                "auto_find_batch_size: it changes the batch; stages find a micro batch that fits "
                "by themselves and keep the batch"
            )
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if sharded and len(self.stages) > 1 and not self.staging.isolate_stages:
            problems.append(
                "isolate_stages: weights that FSDP or DeepSpeed have taken apart cannot be given "
                "those of another stage; set it to true"
            )
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is not None and "FULL" not in str(plugin.state_dict_type):
            problems.append(
                f"fsdp: stages hand on whole weights, and state_dict_type is "
                f"{plugin.state_dict_type}; set it to FULL_STATE_DICT"
            )
        if sharded and self.staging.stage_optimizer == "carry":
            problems.append(
                "stage_optimizer: 'carry' is not there for FSDP and DeepSpeed; use 'fresh'"
            )
        if self.staging.stage_optimizer == "carry" and str(self.args.save_strategy) in (
            "no",
            "SaveStrategy.NO",
        ):
            problems.append("stage_optimizer: 'carry' needs checkpoints; set save_strategy")
        return problems

    # What the stages of a kind may do

    def stage_result(self, stage: Stage, result: dict[str, Any]) -> dict[str, Any]:
        """Returns what a stage leaves in the results beside what all stages do, once its best model
        is loaded; in every process. For subclasses.

        Args:
            stage (Stage): The stage.
            result (dict): What all stages leave.
        """
        return {}

    def first_batch(self, stage: Stage, micro: int, accumulation: int) -> tuple[int, int]:
        """Returns micro batch and accumulation that a stage begins with, in the first process. For
        subclasses.

        Args:
            stage (Stage): The stage.
            micro (int): As the settings have it.
            accumulation (int): As the settings have it.
        """
        return micro, accumulation

    def stage_done(self, stage: Stage, results: list[dict[str, Any]], reason: str | None) -> None:
        """Called in the first process when the result of a stage is known. For subclasses.

        Args:
            stage (Stage): The stage; ``is_last`` says whether the run goes on.
            results (list of dict): Of all stages that are done, this one included.
            reason (str, *optional*): Why the run ends here, before its plan.
        """

    def room_needed(self, done: int) -> int:
        """Returns the bytes that the stages to come will take on the run's disk at most, beside
        weights and checkpoints; in the first process. For subclasses.

        Args:
            done (int): Stages that are done.
        """
        return 0

    def tidy(self, done: int) -> None:
        """Removes what no later stage needs; in the first process, when a stage is in the journal
        and when a run begins, where an earlier one may have been stopped before. For subclasses.

        Args:
            done (int): Stages that are done.
        """

    # The run

    def _train(
        self, resume_from_checkpoint: str | bool | None, trial: Any, ignore_keys_for_eval: Any
    ) -> TrainOutput:
        if trial is not None:
            raise ConfigurationError("a hyperparameter search cannot go through stages")
        root = self.root = Path(self.args.output_dir)
        if self.is_world_process_zero():
            self._log_files.open(root)
        with self._stop_request.listening(), _light_collections():
            checkpoint = self._open_plan(root, resume_from_checkpoint)
            output = None
            for number, planned in enumerate(self.plan.stages, 1):
                if self.journal.is_done(planned.name):
                    continue
                if number > self._last_number or self.journal.values["ended"]:
                    break
                if output is not None and self.staging.isolate_stages:
                    raise NextStageProcess(self._leave())
                output = self._run_stage(
                    self._stage_at(number, root), checkpoint, ignore_keys_for_eval
                )
                checkpoint = None
            if output is None:
                output = self._restore_plan(root)
        return output

    # A stage

    def _run_stage(
        self, stage: Stage, checkpoint: str | None, ignore_keys_for_eval: Any
    ) -> TrainOutput:
        spec = self._spec(stage)
        self._stop_if_asked(stage)
        self._note_begin(stage, spec)
        begin = time.monotonic()
        with self._stage_arguments(stage, spec):
            self._stage = stage
            started_from = self._start_weights(stage)
            try:
                announced = False
                while True:
                    self._prepare_stage(spec, started_from)
                    if not announced:
                        self._say_begin(stage, started_from)
                        self._stage_event("on_stage_begin", stage)
                        announced = True
                    output = self._train_once(stage, checkpoint, ignore_keys_for_eval)
                    if output is not None:
                        break
                    checkpoint = None  # the newest
                result = self._close_stage(stage, output, started_from)
            except OSError as error:
                raise HftuneError(
                    f"stage {stage.number}: {error}. What could not be written is needed by the "
                    "next stage; make room, and the same command goes on from the last checkpoint"
                ) from error
            finally:
                self._stage = None
                seconds = self.journal.entry(stage.name)["seconds"] + time.monotonic() - begin
                # Each for itself: after an error nobody can count on the others.
                with contextlib.suppress(OSError):
                    self.journal.note(stage.name, seconds=round(seconds, 1))
            result["seconds"] = round(seconds, 1)
            stage = self._finish_stage(stage, result)
            self._stage_event("on_stage_end", stage, result=result)
        return output

    def _spec(self, stage: Stage) -> StageSpec:
        key = stage.planned.key
        return next(s for s in self.stages if (s.key or s.name) == key)

    def _note_begin(self, stage: Stage, spec: StageSpec) -> None:
        def begin() -> dict[str, Any]:
            if self.journal.status(stage.name) is None:
                wanted = spec.batch(self.args)
                batch = self.first_batch(stage, *self._as_found(*wanted))
                noted = _batch(*batch, reduced=batch != wanted)
                self.journal.note(stage.name, batch=noted, attempts=0)
            entry = self.journal.entry(stage.name)
            marker = stage.folder / _NO_MEMORY
            if marker.is_file():  # a process of an earlier attempt ran out of memory
                batch = entry["batch"]
                micro = batch["per_device_train_batch_size"]
                if read_json(marker)["per_device_train_batch_size"] == micro:
                    smaller = halve_batch(micro, batch["gradient_accumulation_steps"])
                    if smaller is not None:
                        self.journal.note(stage.name, batch=_batch(*smaller, reduced=True))
                marker.unlink()
            self.journal.note(stage.name, attempts=entry["attempts"] + 1)
            return self.journal.values

        self.journal.values = self._in_first(begin)

    def _as_found(self, micro: int, accumulation: int) -> tuple[int, int]:
        """A micro batch no larger than what fitted in the stage before."""
        before = self.results[-1]["batch"] if self.results else {"reduced": False}
        smaller: tuple[int, int] | None = (micro, accumulation)
        while before["reduced"] and smaller and smaller[0] > before["per_device_train_batch_size"]:
            smaller = halve_batch(*smaller)
        return smaller or (micro, accumulation)

    @contextlib.contextmanager
    def _stage_arguments(self, stage: Stage, spec: StageSpec) -> Iterator[None]:
        """Has the stage's settings in ``self.args``."""
        args, number = self.args, stage.number
        seeds = {}
        if number > 1:
            for name in ("seed", "data_seed"):
                seeds[name] = derive_seed(getattr(args, name), "stage", number) % 2**31
        values = {
            **spec.arguments,
            **seeds,
            **self._batch_settings(stage),
            "output_dir": str(stage.checkpoints),
        }
        before = {name: getattr(args, name) for name in values}
        for name, value in values.items():
            setattr(args, name, value)
        self.evaluator = spec.evaluator or self._unstaged_evaluator
        try:
            yield
        finally:
            self.evaluator = self._unstaged_evaluator
            for name, value in before.items():
                setattr(args, name, value)

    def _batch_settings(self, stage: Stage) -> dict[str, int]:
        batch = self.journal.entry(stage.name)["batch"]
        names = ("per_device_train_batch_size", "gradient_accumulation_steps")
        return {name: batch[name] for name in names}

    def _prepare_stage(self, spec: StageSpec, start_weights: Path) -> None:
        """Gives back what the stage before left, and starts as a process of its own would."""
        self._evaluating = False
        self._evaluated_step = None
        self.optimizer = self.lr_scheduler = None
        self.average = None
        self.accelerator.free_memory()
        self.model = self.model_wrapped = self.accelerator.unwrap_model(self.model)
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.callback_handler.train_dataloader = None
        self.__dict__.pop("_eval_dataloaders", None)
        self.train_dataset = None
        release_memory()
        self._train_batch_size = self.args.train_batch_size
        # The Trainer says it once, when it is made.
        self.accelerator.dataloader_config.data_seed = self.args.data_seed
        self.state = TrainerState(
            is_local_process_zero=self.is_local_process_zero(),
            is_world_process_zero=self.is_world_process_zero(),
        )
        self._load_weights(start_weights)
        set_seed(self.args.seed)
        data = spec.train_dataset
        self.train_dataset = data(self) if callable(data) else data
        set_seed(self.args.seed)

    def _start_weights(self, stage: Stage) -> Path:
        """Where the weights lie that a stage starts from."""
        source = self._spec(stage).starts_from
        if source is None and stage.number > 1 and not self.staging.fresh_each_stage:
            source = self.plan.stages[stage.number - 2].key
        if source not in (None, "initial"):
            before = next(s for s in self.plan.stages if s.key == source)
            return best_model(stage.root, before.name)
        initial = stage.root / INITIAL_MODEL
        if not self._in_first(lambda: verify_checkpoint(initial) == []):
            if stage.number > 1:
                raise CheckpointError(
                    f"{initial} is not there or damaged: this stage starts from the weights that "
                    "the run started with. Begin anew with --resume never."
                )
            self._save_first_weights(initial)
        return initial

    def _say_begin(self, stage: Stage, started_from: Path) -> None:
        batch = self.journal.entry(stage.name)["batch"]
        samples = stage.planned.settings.get("samples")
        size = batch["per_device_train_batch_size"] * batch["gradient_accumulation_steps"]
        parts = [
            f"stage {stage.number} of {stage.count}: {stage.title}",
            *([f"{samples:,} samples"] if samples else []),
            f"batch {size * self.args.world_size}",
            f"from {os.path.relpath(started_from, stage.root)}",
        ]
        self._say(", ".join(parts))

    def _train_once(
        self, stage: Stage, checkpoint: str | None, ignore_keys_for_eval: Any
    ) -> TrainOutput | None:
        """Trains the stage; None where the memory was too small and the batch is smaller now."""
        try:
            return super()._train(checkpoint or "auto", None, ignore_keys_for_eval)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            text = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        # Outside of the handler, whose traceback holds what is to be given back.
        self._reduce_batch(stage, text)
        return None

    def _reduce_batch(self, stage: Stage, text: str) -> None:
        batch = self.journal.entry(stage.name)["batch"]
        micro = batch["per_device_train_batch_size"]
        smaller = halve_batch(micro, batch["gradient_accumulation_steps"])
        if self._evaluating or smaller is None:
            advice = (
                "the evaluation ran out of memory; set a smaller per_device_eval_batch_size"
                if self._evaluating
                else "one sample a step is too much for this memory; take a smaller model, shorter "
                "samples, activation_checkpointing or bf16"
            )
            raise HftuneError(f"stage {stage.number}: {advice} ({text})")
        if self.args.world_size > 1:
            # The others wait for this process: only a new start brings all of them together.
            write_json(stage.folder / _NO_MEMORY, {"per_device_train_batch_size": micro})
            raise HftuneError(
                f"stage {stage.number}: process {self.args.process_index} ran out of memory with a "
                f"micro batch of {micro}; the same command goes on with {smaller[0]} ({text})"
            )
        self._note(stage.name, batch=_batch(*smaller, reduced=True))
        for name, value in self._batch_settings(stage).items():
            setattr(self.args, name, value)
        self._say(
            f"stage {stage.number}: out of memory with a micro batch of {micro}; going on with "
            f"{smaller[0]} x {smaller[1]} accumulated, the same samples a step ({text})"
        )

    def _close_stage(self, stage: Stage, output: TrainOutput, started_from: Path) -> dict[str, Any]:
        """The stage is trained: its weights, state and result, but for the journal."""
        state = self.state
        self._save_weights(stage.best_model)
        if self.is_world_process_zero():
            with atomic_path(stage.folder / STAGE_STATE) as path:
                state.save_to_json(str(path))
        is_best = bool(self.args.load_best_model_at_end and state.best_model_checkpoint)
        step = state.best_global_step if is_best else state.global_step
        best = state.best_metric if is_best else None
        result = {
            "number": stage.number,
            "name": stage.name,
            "title": stage.title,
            **stage.planned.settings,
            "epochs": stage.planned.epochs,
            "steps": state.global_step,
            "best_step": step,
            "metric_for_best_model": self.args.metric_for_best_model,
            "best_metric": best,
            "train_loss": output.training_loss,
            "metrics": evaluation_metrics(state.log_history, step),
            "batch": dict(self.journal.entry(stage.name)["batch"]),
            "start_weights": os.path.relpath(started_from, stage.root),
            "best_model": os.path.relpath(stage.best_model, stage.root),
            "seed": self.args.seed,
        }
        if self.staging.stage_optimizer == "carry":
            saved = [c.name for c in find_checkpoints(stage.checkpoints)]
            wanted = f"checkpoint-{step}"
            result["optimizer"] = wanted if wanted in saved else saved[-1]
        return {**result, **self.stage_result(stage, result)}

    def _finish_stage(self, stage: Stage, result: dict[str, Any]) -> Stage:
        """From the journal's entry on the stage is done; returns it, perhaps as the last one."""

        def finish() -> tuple[dict[str, Any], Stage]:
            result["attempts"] = self.journal.entry(stage.name)["attempts"]
            logged = read_json(stage.folder / STAGE_STATE)["log_history"]
            write_json(stage.folder / _METRICS, {**result, "log_history": logged})
            results = [*self.results, result]
            reason = None
            if stage.later:
                reason = self.end_reason(results, stage.later[0], stage.root)
            ended = dataclasses.replace(stage, is_last=reason is not None or stage.is_last)
            self.stage_done(ended, results, reason)
            self.journal.finish(stage.name, result)
            self.journal.end(reason)
            if reason is not None:
                self._say(f"the run ends with stage {stage.number} of {stage.count}: {reason}")
            for folder in leftovers(self.plan, self.journal, stage.root):
                unseal_checkpoint(folder)
                shutil.rmtree(folder, ignore_errors=True)
            needed = self.staging.fresh_each_stage or any(
                spec.starts_from == "initial" for spec in self.stages
            )
            if stage.number == 1 and not needed:
                shutil.rmtree(stage.root / INITIAL_MODEL, ignore_errors=True)
            self.tidy(len(results))
            return self.journal.values, ended

        self.journal.values, stage = self._in_first(finish)
        return stage

    # What the Trainer and the durable runs call

    def _run_description(self) -> dict[str, Any]:
        run = super()._run_description()
        # Of the two only the product decides what is learned; the split follows the memory.
        micro = run.pop("per_device_train_batch_size")
        run["global_batch_size"] = micro * run.pop("gradient_accumulation_steps") * run["processes"]
        if self._stage is not None:
            run["stage"] = {"key": self._stage.planned.key, **self._stage.planned.settings}
        return run

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._evaluating = True
        metrics = super().evaluate(*args, **kwargs)
        self._evaluating = False  # stays true where it raised: that is how one knows
        self._evaluated_step = self.state.global_step
        return metrics

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Uploads the model, the best one of the last stage, and none of the stages' folders.

        Args:
            *args: As for the Trainer.
            **kwargs: As for the Trainer.
        """
        root = self.args.output_dir
        if self.args.hub_model_id is None:
            self.args.hub_model_id = Path(root).resolve().name
        self.args.output_dir = os.path.join(root, "model")
        try:
            return super().push_to_hub(*args, **kwargs)
        finally:
            self.args.output_dir = root

    # Small things

    _evaluating = False
    _evaluated_step: int | None = None  # what the evaluator last saw in this stage

    def _stage_event(self, event: str, stage: Stage, **more: Any) -> None:
        for callback in self.callback_handler.callbacks:
            method = getattr(callback, event, None)  # of those that know stages
            if method is not None:
                method(
                    self.args,
                    self.state,
                    self.control,
                    stage=stage,
                    model=self.model,
                    trainer=self,
                    **more,
                )

    def _note(self, name: str, **entries: Any) -> None:
        def note() -> dict[str, Any]:
            self.journal.note(name, **entries)
            return self.journal.values

        self.journal.values = self._in_first(note)

    def _stop_if_asked(self, stage: Stage) -> None:
        """A signal between two stages."""
        if self._stop_request.requested():
            stopped = TrainingInterrupted(
                str(self._stop_request.signal_name), 0, str(stage.root / JOURNAL)
            )
            self._say(str(stopped))
            raise stopped

    def _leave(self) -> int | None:
        """Ends this process's part in the group; returns where the next ones are to meet."""
        port: list[Any] = [None]
        if self.args.world_size > 1:
            if self.is_world_process_zero():
                with socket.socket() as free:
                    free.bind(("", 0))
                    port[0] = free.getsockname()[1]
            torch.distributed.broadcast_object_list(port)
        self.end()
        return port[0]


class StagedTrainer(StagedMixin, Trainer):
    """A `transformers.Trainer` that trains in stages; see :class:`StagedMixin`.

    Example:
        >>> stages = [
        ...     StageSpec("easy_{number}", short_texts, "short texts"),
        ...     StageSpec("all_{number}", all_texts, "all texts", {"learning_rate": 1e-5}),
        ... ]
        >>> trainer = StagedTrainer(model, args, stages=stages, eval_dataset=validation)
        >>> trainer.train()
        >>> trainer.results[-1]["metrics"]
    """


@contextlib.contextmanager
def _light_collections() -> Iterator[None]:
    """Leaves what is there already, libraries above all, out of the garbage collections between
    stages: a quarter of a second each, three a stage.
    """
    others = gc.get_freeze_count()  # what a program has frozen for its forks stays so
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not others:
            gc.unfreeze()


def _batch(micro: int, accumulation: int, *, reduced: bool = False) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "reduced": reduced,
    }
