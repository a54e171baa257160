"""A progress bar that is right after a resume, and lines of text where there is no terminal."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from ..utils.terminal import LOG_SECONDS, console, duration

__all__ = ["HftuneProgressCallback"]


class HftuneProgressCallback(TrainerCallback):
    """Shows steps, loss, learning rate and the time left.

    The time left comes from this session's own rate, evaluation and saving included: a resumed run
    does not count the steps of the one before. In a terminal it is a bar; elsewhere a line every
    half minute and at each evaluation. In a run in stages it names the stage, and says the time
    left of the whole run too: its steps and evaluations at this session's seconds for each.

    Args:
        stage (str): What is running, shown before the bar. Defaults to ``"training"``.
        bar (bool, *optional*): Whether to draw a bar; by default where standard error is a
            terminal.
    """

    def __init__(self, stage: str = "training", bar: bool | None = None) -> None:
        self.stage = stage
        self.bar = bar
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        self._latest: dict[str, str] = {}
        self._start = self._last_line = self._mark = 0.0
        self._line = ""
        self._first_step = 0
        self._stage: Any = None
        # Of this session, over all its stages.
        self._stage_steps = self._evaluations = 0
        self._step_seconds = self._evaluation_seconds = 0.0

    def on_stage_begin(self, args, state, control, stage=None, **kwargs):
        self._stage = stage
        self.stage = f"stage {stage.number}/{stage.count}, {stage.title}"

    def on_stage_end(self, args, state, control, stage=None, **kwargs):
        self._stage = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = self._last_line = self._mark = time.monotonic()
        self._first_step = state.global_step
        self._latest = {}
        if not state.is_world_process_zero:
            return
        bar = console().is_terminal if self.bar is None else self.bar
        if bar and not args.disable_tqdm:
            self._progress = _make_progress()
            self._progress.start()
            self._tasks["train"] = self._progress.add_task(
                self.stage, total=state.max_steps, completed=state.global_step, note=""
            )
        elif state.global_step:
            self._say(state)

    def on_step_end(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        now = time.monotonic()
        self._step_seconds += now - self._mark
        self._stage_steps += 1
        self._mark = now
        if self._progress is not None:
            self._progress.update(
                self._tasks["train"],
                completed=state.global_step,
                description=self.stage,
                note=self._note(state),
            )
        elif time.monotonic() - self._last_line >= LOG_SECONDS:
            self._say(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name in ("loss", "learning_rate", args.metric_for_best_model):
            value = (logs or {}).get(name)
            if isinstance(value, (int, float)):
                short = "lr" if name == "learning_rate" else name
                self._latest[short] = f"{value:.4g}"

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self._progress is None or not hasattr(eval_dataloader, "__len__"):
            return
        if "evaluation" not in self._tasks:
            self._tasks["evaluation"] = self._progress.add_task(
                "evaluation", total=len(eval_dataloader), note=""
            )
        self._progress.advance(self._tasks["evaluation"])

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self._progress is not None and "evaluation" in self._tasks:
            self._progress.remove_task(self._tasks.pop("evaluation"))
        if self._start:  # else there was no training before it
            now = time.monotonic()
            self._evaluation_seconds += now - self._mark
            self._evaluations += 1
            self._mark = now
        name = args.metric_for_best_model or "loss"
        name = name if name.startswith("eval_") else f"eval_{name}"
        value = (metrics or {}).get(name)
        if isinstance(value, (int, float)):
            self._latest[name] = f"{value:.4g}"
        if self._progress is None and state.is_world_process_zero and self._start:
            self._say(state)

    def on_train_end(self, args, state, control, **kwargs):
        if self._progress is not None:
            self._progress.update(self._tasks["train"], completed=state.global_step, note="")
            self.close()
        elif state.is_world_process_zero:
            self._say(state)

    def close(self) -> None:
        """Takes the bar away; also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks = {}

    def seconds_left(self, state: Any) -> float | None:
        """Returns the seconds to the last step at this session's rate, or None before a step."""
        done = state.global_step - self._first_step
        if done <= 0:
            return None
        return (time.monotonic() - self._start) / done * (state.max_steps - state.global_step)

    def run_seconds_left(self, state: Any) -> float | None:
        """Returns the seconds to the end of the last stage; None before a step, or without stages.

        An evaluation is one for each epoch of the later stages.
        """
        left = self.seconds_left(state)
        if self._stage is None or left is None:
            return None
        step = self._step_seconds / self._stage_steps
        evaluation = self._evaluation_seconds / max(self._evaluations, 1)
        return left + sum(s.steps * step + s.epochs * evaluation for s in self._stage.later)

    def _note(self, state: Any) -> str:
        parts = [f"{name} {value}" for name, value in self._latest.items()]
        left = self.seconds_left(state)
        if left is not None:
            parts.append(f"{duration(left)} left")
        if (whole := self.run_seconds_left(state)) is not None and not self._stage.is_last:
            parts.append(f"{duration(whole)} for all stages")
        return "  ".join(parts)

    def _say(self, state: Any) -> None:
        self._last_line = time.monotonic()
        line = f"{self.stage}: step {state.global_step} of {state.max_steps}  {self._note(state)}"
        if line != self._line:
            console().print(line.rstrip(), markup=False, soft_wrap=True)
        self._line = line


def _make_progress() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        console=console(),
        refresh_per_second=2,
    )
