"""Any `transformers.Trainer` as a tracked run."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import TrainerCallback

from ..tracking import exits
from ..tracking.metric_directions import known_direction
from ..tracking.run_record import RunRecord
from ..tracking.tracker import ExperimentTracker
from ..utils.errors import TrainingInterrupted
from ..utils.terminal import console, is_main_process
from .model_info import describe_model, model_settings, model_type
from .step_times import StepTimes

__all__ = ["ExperimentTrackingCallback", "evaluation_metrics", "record_of"]

_TIMES = ("_runtime", "_per_second", "_preparation_time", "_compilation_time")

# By output folder: what other callbacks of the same run find theirs in.
_records: weakref.WeakValueDictionary[Path, RunRecord] = weakref.WeakValueDictionary()


class ExperimentTrackingCallback(TrainerCallback):
    """Makes any `transformers.Trainer`, those of TRL and sentence-transformers too, a tracked run.

    The run begins with ``train()`` and ends with it: ``completed``; ``failed``, ``killed`` or
    ``crashed`` where that never came to its end; ``preempted`` where a signal stopped it after its
    checkpoint was saved. A further ``train()`` in the same ``output_dir`` is a further attempt of
    the same run. What is logged after training (``evaluate()``, ``predict()``) belongs to it too.

    Recorded are the trainer's arguments, the model's configuration and size, the data's, every log
    and checkpoint, and with each log of the loss:

    - ``step_seconds_mean`` and ``step_seconds_slowest``, over the steps of all processes;
    - ``steps_per_second`` and ``samples_per_second`` since the last log;
    - ``process_memory_bytes`` of the first process, and ``gpu_memory_bytes``, the most that
      PyTorch had allocated on its GPU so far (beside a
      :class:`~hftune.callbacks.resources.ResourceMonitor`: in this stage or training).

    A run in stages is one run: what is logged belongs to the stage it was logged in.

    No fault of the record ends training: it is reported once, and training goes on.

    NOTE: A Trainer logs a loss that is NaN as 0 unless it is given
    ``logging_nan_inf_filter=False``; the record says so where a gradient gives it away.

    Args:
        record_or_tracker (RunRecord or ExperimentTracker, *optional*): A run to log into, which
            whoever started it ends; or what to start the run with. Defaults to an
            ``ExperimentTracker()``.
        name (str, *optional*): Of the run. Defaults to ``args.run_name``, else to the name of the
            folder.
        description (str): What the run is for. Defaults to nothing.
        tags (sequence of str): Words to find it by. Defaults to none.
        config (mapping, *optional*): Settings beside the trainer's and the model's.
        output_dir (path, *optional*): The run's folder. Defaults to ``args.output_dir``; the trials
            of a hyperparameter search are runs of their own, in ``HFTUNE_HOME``.

    Attributes:
        record (RunRecord or None): The run, once it has begun; in the first process alone where the
            callback starts it.

    Raises:
        ConfigurationError: If ``HFTUNE_TRACKING_URL`` is not the address of a database.

    Example:
        >>> trainer = transformers.Trainer(
        ...     model, args, train_dataset=data, callbacks=[ExperimentTrackingCallback()]
        ... )
        >>> trainer.train()
    """

    def __init__(
        self,
        record_or_tracker: RunRecord | ExperimentTracker | None = None,
        *,
        name: str | None = None,
        description: str = "",
        tags: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        given = isinstance(record_or_tracker, RunRecord)
        self.record: RunRecord | None = record_or_tracker if given else None
        self._tracker = None if given else record_or_tracker
        if record_or_tracker is None and is_main_process():
            self._tracker = ExperimentTracker()
        self._owns = not given
        self.name, self.description, self.tags = name, description, tuple(tags)
        self.config, self.output_dir = dict(config or {}), output_dir
        self._times = StepTimes()
        self._before: list[tuple[dict[str, Any], int]] = []  # logged before the run began
        self._checkpoint: Path | None = None  # the newest
        self._signal: str | None = None
        self._stage: Any = None  # of a run in stages, which may go on after it
        self._trained = self._knows_evaluation = self._complained = False

    # Events of the trainer

    def on_stage_begin(self, args, state, control, stage=None, model=None, **kwargs):
        first, self._stage = self._stage is None, stage
        if not state.is_world_process_zero:
            return
        with self._harmless():
            if self._owns and first:
                self._end_unfinished()
                self.record = None
                self.record = self._start(args, state, model, None, folder=stage.root)
            self.record.begin_stage(stage.name)

    def on_stage_end(self, args, state, control, stage=None, **kwargs):
        if not stage.is_last:
            return
        self._stage = None
        if self._owns and self._is_recorded(state):
            with self._harmless():
                self.record.finish()

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        self._times.begin(state.global_step)
        self._trained = self._knows_evaluation = False
        self._signal = None
        if not state.is_world_process_zero:
            return
        with self._harmless():
            self._process = psutil.Process()
            if args.enable_jit_checkpoint:
                self._listen_to_jit_checkpoint()
            folder = Path(args.output_dir).resolve()
            _records.pop(folder, None)
            if self._owns and self._stage is None:
                self._end_unfinished()
                self.record = None
                self.record = self._start(args, state, model, train_dataloader)
            _records[folder] = self.record
            self._describe(args, state, model)
            for logs, step in self._before:
                self.record.log_metrics(logs, step)
            self._before.clear()
            self._times.begin(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self._times.step()
        self._leave_times(args, state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._leave_times(args, state, control)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with self._harmless():
                self._log(args, state, dict(logs or {}))
        self._times.mark()

    def on_evaluate(self, args, state, control, eval_dataloader=None, **kwargs):
        if self._is_recorded(state):
            with self._harmless():
                if self._owns and not self._knows_evaluation:
                    self._knows_evaluation = True
                    self.record.update(data=_describe_data("eval", eval_dataloader))
                self.record.sync()
        self._times.mark()

    def on_predict(self, args, state, control, metrics=None, **kwargs):
        if state.is_world_process_zero:
            with self._harmless():
                self._log(args, state, dict(metrics or {}))

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        # A save that failed on a full disk leaves nothing.
        if self._is_recorded(state) and folder.is_dir():
            with self._harmless():
                self._checkpoint = folder
                best = {}
                if state.best_global_step == state.global_step:
                    best = {"best": True, "metric": state.best_metric}
                self.record.log_event("checkpoint", state.global_step, path=str(folder), **best)
                self.record.sync()
        self._times.mark()

    def on_train_end(self, args, state, control, **kwargs):
        self._trained = True
        if not self._is_recorded(state):
            return
        with self._harmless():
            stopped_by = self._signal or exits.stopping_signal()
            goes_on = self._stage is not None and not self._stage.is_last
            if stopped_by is not None and (goes_on or state.global_step < state.max_steps):
                if self._owns:
                    self.record.finish_with(self._interruption(args, state, stopped_by))
                return
            self._sum_up(state)
            if self._owns and self._stage is None:
                self.record.finish()

    # The run

    def _start(
        self, args: Any, state: Any, model: nn.Module, loader: Any, folder: Path | None = None
    ) -> RunRecord:
        configuration = {"training": args.to_dict(), **model_settings(model), **self.config}
        settings: dict[str, Any] = {
            "name": self.name or args.run_name or (folder and folder.name),
            "configuration": configuration,
            "description": self.description or None,
            "tags": list(self.tags) or None,
            "model_type": model_type(model),
            "data": _describe_data("train", loader),
            "seeds": {"seed": args.seed, "data_seed": args.data_seed or args.seed},
        }
        folder = self.output_dir or folder
        if folder is None and not state.is_hyper_param_search:
            folder = args.output_dir
        try:
            return self._tracker.start(folder, **settings)
        except (OSError, ValueError, KeyError) as error:
            if folder is None:
                raise
            record = self._tracker.start(None, **settings)
            record.trouble(
                "folder", f"{type(error).__name__}: {error}. The run is recorded in {record.folder}"
            )
            return record

    def _end_unfinished(self) -> None:
        """A ``train()`` of this callback that came to no end has raised."""
        if self.record is None or self.record.attempt["finished"] is not None:
            return
        # In a handler of it, or in a session that has shown it.
        error = sys.exc_info()[1] or getattr(sys, "last_value", None)
        frames = traceback.extract_tb(error.__traceback__) if error is not None else []
        if any(frame.name == "train" for frame in frames):
            self.record.finish_with(error)
        else:
            self.record.finish("failed", "train() ended with an error that was caught")

    def _describe(self, args: Any, state: Any, model: nn.Module) -> None:
        entries = {"max_steps": state.max_steps, "model_info": describe_model(model)}
        if args.metric_for_best_model is not None:
            entries["metric_directions"] = self._direction(args)
        self.record.running()
        self.record.update(**entries)
        attempt, step = self.record.attempt, state.global_step
        folder = Path(args.output_dir, f"checkpoint-{step}")
        self._checkpoint = folder if step and folder.is_dir() else None
        # Once an attempt: the stages after the first begin at step 0 and go back behind nothing.
        if attempt["from_step"] is None and (step or attempt["number"] > 1):
            self.record.resumed(step, self._checkpoint)

    def _direction(self, args: Any) -> dict[str, bool]:
        """Of the metric that chooses the best model."""
        name = args.metric_for_best_model.removeprefix("eval_")
        chosen, known = bool(args.greater_is_better), known_direction(name)
        if known is not None and known != chosen:
            self.record.trouble(
                "direction",
                f"metric_for_best_model='{args.metric_for_best_model}': a "
                f"{'higher' if known else 'lower'} value is better, and the trainer takes the "
                f"{'highest' if chosen else 'lowest'} for the best. Say greater_is_better={known} "
                "(left out, it is True for every metric whose name does not end in 'loss')",
            )
        greater = chosen if known is None else known
        return {f"eval_{name}": greater, name: greater}

    def _log(self, args: Any, state: Any, logs: dict[str, Any]) -> None:
        step: int | None = state.global_step
        if not self._is_recorded(state):
            if not self._complained:
                self._before.append((logs, step))
            return
        if "loss" in logs:
            logs |= self._times.collect(args, step)
            logs |= _memory(self._process, args)
            self._look_for_hidden_nan(args, state, logs)
        if self._trained and state.best_global_step not in (None, step):
            # The weights may be those of the best step: not a point of the curves.
            step = None if args.load_best_model_at_end else step
        self.record.log_metrics(logs, step)

    def _look_for_hidden_nan(self, args: Any, state: Any, logs: Mapping[str, Any]) -> None:
        hidden = args.logging_nan_inf_filter and not math.isfinite(logs.get("grad_norm") or 0)
        if hidden and math.isfinite(logs["loss"]):
            self.record.trouble(
                "hidden NaN",
                f"step {state.global_step}: the gradient norm is {logs['grad_norm']}, and the loss "
                f"{logs['loss']:.4g} may leave out values that are not finite: Trainers hide them "
                "unless TrainingArguments have logging_nan_inf_filter=False",
            )

    def _sum_up(self, state: Any) -> None:
        """What was reached, into the record."""
        final: dict[str, float] = {}
        for logs in state.log_history:
            final |= {name: logs[name] for name in ("loss", "train_loss") if name in logs}
        last = max((e["step"] for e in state.log_history if _is_evaluation(e)), default=None)
        final |= evaluation_metrics(state.log_history, last)
        best = evaluation_metrics(state.log_history, state.best_global_step)
        self.record.log_metrics(
            {f"final_{name}": value for name, value in final.items()}
            | {f"best_{name}": value for name, value in best.items()}
        )
        self.record.update(final_metrics=final, **({"best_metrics": best} if best else {}))

    def _interruption(self, args: Any, state: Any, signal_name: str) -> TrainingInterrupted:
        step = state.global_step
        if self._signal is not None:  # that checkpoint may be of before the last step
            folders = [Path(args.output_dir, f"checkpoint-{n}") for n in (step, step - 1)]
            self._checkpoint = next((f for f in folders if f.is_dir()), self._checkpoint)
        checkpoint = self._checkpoint
        return TrainingInterrupted(
            signal_name, state.global_step, checkpoint and os.fspath(checkpoint)
        )

    def _listen_to_jit_checkpoint(self) -> None:
        """The Trainer's own answer to SIGTERM: it saves and ends, and tells nobody why."""
        answer = signal.getsignal(signal.SIGTERM)
        if not callable(answer):  # of a second train(), which has no answer
            return

        def on_signal(number: int, frame: Any) -> None:
            self._signal = signal.Signals(number).name
            answer(number, frame)

        signal.signal(signal.SIGTERM, on_signal)

    def _leave_times(self, args: Any, state: Any, control: Any) -> None:
        # A log follows. Its first act is a gathering of all processes: what they leave before that
        # the first process has afterwards.
        if control.should_log and not state.is_world_process_zero:
            with self._harmless():
                self._times.leave(args, state.global_step)

    def _is_recorded(self, state: Any) -> bool:
        return state.is_world_process_zero and self.record is not None

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Training goes on whatever happens in the block."""
        try:
            yield
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            message = (
                f"{type(error).__name__}: {error} ({Path(place.filename).name}, line "
                f"{place.lineno}). Training goes on, what was to be recorded here is missing"
            )
            if self.record is not None:
                self.record.trouble("callback", message)
            elif not self._complained:
                console().print(f"tracking: {message}", style="yellow", markup=False)
            self._complained = True


def record_of(output_dir: str | os.PathLike[str]) -> RunRecord | None:
    """Returns the run of this process in an output folder, also after its end; None if it has none.

    Args:
        output_dir (path): A trainer's ``args.output_dir``.
    """
    folder = Path(output_dir).resolve()
    if folder in _records:
        return _records[folder]
    return next((r for r in exits.open_records() if r.folder.resolve() == folder), None)


def evaluation_metrics(
    log_history: Sequence[Mapping[str, Any]], step: int | None
) -> dict[str, float]:
    """Returns the metrics of the evaluation at a step, without ``eval_``, times and rates.

    Args:
        log_history (sequence of mappings): Of a trainer's state.
        step (int, *optional*): Optimizer steps; None finds nothing.
    """
    found: dict[str, float] = {}
    for logs in log_history:
        if step is not None and logs.get("step") == step:
            found |= {
                name.removeprefix("eval_"): value
                for name, value in logs.items()
                if name.startswith("eval_") and not name.endswith(_TIMES)
            }
    return found


def _is_evaluation(logs: Mapping[str, Any]) -> bool:
    return any(name.startswith("eval_") for name in logs)


# Data and memory


def _describe_data(split: str, loader: Any) -> dict[str, Any]:
    dataset = getattr(loader, "dataset", None)
    found: dict[str, Any] = {}
    if hasattr(dataset, "__len__") and len(dataset):
        found[f"{split}_samples"] = len(dataset)
    fingerprint = getattr(dataset, "_fingerprint", None)  # of `datasets`
    if fingerprint is not None:
        found["fingerprint" if split == "train" else f"{split}_fingerprint"] = fingerprint
    return found


def _memory(process: psutil.Process, args: Any) -> dict[str, int]:
    found = {"process_memory_bytes": process.memory_info().rss}
    if args.device.type == "cuda":
        found["gpu_memory_bytes"] = torch.cuda.max_memory_allocated(args.device)
    return found
