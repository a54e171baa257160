"""Log files of a run in stages: one of the whole run, one of each stage."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from transformers import TrainerCallback

from ..utils.terminal import console, copy_messages, duration

__all__ = ["LogFiles"]


class LogFiles(TrainerCallback):
    """Writes what is said and logged to ``ROOT/logs/KIND_training_TIME.log`` and, during a stage,
    to ``STAGE/logs/STAGE_TIME.log``; in the first process.

    Args:
        kind (str): What kind of run it is: ``"progressive"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._run: _LogFile | None = None
        self._stage: _LogFile | None = None

    def open(self, root: str | os.PathLike[str]) -> None:
        """Begins the log of the run; it goes on until the process ends, or another one begins."""
        if self._run is not None:
            self._run.close()
        self._run = _LogFile(Path(root, "logs"), f"{self.kind}_training")

    def on_stage_begin(self, args, state, control, stage, **kwargs):
        if state.is_world_process_zero:
            self._stage = _LogFile(stage.folder / "logs", stage.name)
            self._stage.write(
                f"stage {stage.number} of {stage.count}: {stage.title}, {stage.planned.settings}"
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        line = f"step {state.global_step} of {state.max_steps}  {_readable(logs or {})}"
        for file in (self._run, self._stage):
            if file is not None:
                file.write(line)

    def on_save(self, args, state, control, **kwargs):
        if self._stage is not None:
            self._stage.write(f"step {state.global_step}: checkpoint-{state.global_step} saved")

    def on_stage_end(self, args, state, control, stage, result, **kwargs):
        line = f"stage {stage.number} of {stage.count} done in {duration(result['seconds'])}"
        for file in (self._run, self._stage):
            if file is not None:
                file.write(f"{line}: {_readable(result['metrics'])}")
        if self._stage is not None:
            self._stage.close()
            self._stage = None


class _LogFile:
    def __init__(self, folder: Path, name: str) -> None:
        self._stream: IO[str] | None = None
        self._end: Callable[[], None] = lambda: None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}_{time.strftime('%Y%m%d_%H%M%S')}.log"
            # Several starts within a second share a file.
            self._stream = open(path, "a", encoding="utf-8", errors="replace")
            self._end = copy_messages(self._stream)
        except OSError as error:
            console().print(f"no log file: {error}", style="yellow", markup=False, soft_wrap=True)

    def write(self, text: str) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):  # a full disk costs lines, not the run
                self._stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
                self._stream.flush()

    def close(self) -> None:
        self._end()
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None


def _readable(logs: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in logs.items()
    )
