"""The files of a run: what was run, with what, on what, what it measured and how it ended.

They are the truth of a run; the experiment store is an index of them.

- ``run.json``: the record, replaced as a whole at each change;
- ``metrics.jsonl``: one line a call of :meth:`RunRecord.log_metrics`, only ever appended to;
- ``events.jsonl``: checkpoints, stages, warnings, the same way;
- ``run.lock`` and ``heartbeat``: whether its process is alive.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..utils.errors import RESUMABLE_EXIT_CODE, TrainingInterrupted
from ..utils.files import read_json, write_json
from ..utils.terminal import console
from . import exits
from .json_lines import JsonLines, from_number
from .liveness import Heartbeat
from .run_values import clean_text, first_values, plain_json, utc_now

if TYPE_CHECKING:
    from .background import Background
    from .warning_events import WarningEvents

__all__ = ["STATES", "RunRecord"]

STATES = ("created", "running", "completed", "failed", "killed", "preempted", "crashed")
"""``created``: nothing was logged yet. ``killed``: by SIGINT, or SIGTERM before a checkpoint.
``preempted``: stopped by SIGTERM after its checkpoint was saved. ``crashed``: its process is gone
and never said how it ended."""

_ALIVE = ("created", "running")


class RunRecord:
    """The record of a run; see the module and :meth:`start`.

    In a group of processes every one makes a record and the first writes it. Once a run has begun
    no fault of its files ends it: the fault is reported once and what could not be written is
    written with the next change.

    Attributes:
        path (Path): ``run.json``.
        folder (Path): The run's folder.
        values (dict): What it holds: the state of the newest attempt, and in ``"attempts"`` every
            attempt (a run that is resumed, or started again in the same folder, has several).

    Example:
        >>> with RunRecord.start("out", task="aurora", configuration=table) as record:
        ...     with record.timed("audit"):
        ...         audit()
        ...     record.update(data={"fingerprint": fields.fingerprint})
        ...     record.log_metrics({"loss": 0.7}, step=10)
    """

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.folder = path.parent
        self.values = values
        self.background: Background | None = None
        self.warning_events: WarningEvents | None = None
        self.heartbeat: Heartbeat | None = None
        self._clock = time.monotonic()
        self._writes = int(os.environ.get("RANK", "0")) == 0  # set by torchrun and accelerate
        self._metrics = JsonLines(self.folder / "metrics.jsonl")
        self._events = JsonLines(self.folder / "events.jsonl")
        self._stage = len(values.get("stages", ())) - 1 if values.get("stages") else 0
        self._reported: set[str] = set()
        self._unwritten = False

    @classmethod
    def start(
        cls,
        output_dir: str | os.PathLike[str],
        *,
        task: str,
        configuration: Mapping[str, Any],
        seeds: Mapping[str, int] | None = None,
        resumed_from: str | os.PathLike[str] | None = None,
        command: Sequence[str] | None = None,
        **more: Any,
    ) -> RunRecord:
        """Begins an attempt and writes the record with the status ``created``.

        An earlier attempt in the same folder is kept. If it had not ended, it has ``crashed``.

        Args:
            output_dir (path): Folder of the run.
            task (str): For example ``"aurora"``.
            configuration (mapping): The settings; those of a recipe are ``{"section": {"name":
                {"value": ..., "source": ...}}}``, which passed back as ``--config run.json``
                repeat the run.
            seeds (mapping, *optional*): Name to seed.
            resumed_from (path, *optional*): The checkpoint that this attempt continues.
            command (sequence of str, *optional*): Defaults to this process's command line.
            **more: Further entries, for example ``data={"fingerprint": ...}``.

        Raises:
            ConfigurationError: If a run that is alive has the folder.
        """
        folder = Path(output_dir)
        path = folder / "run.json"
        writes = int(os.environ.get("RANK", "0")) == 0
        heartbeat = None
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            for other in exits.open_records():  # of this process, which begins anew
                if other.folder.resolve() == folder.resolve():
                    other.finish("crashed", "another attempt began in the same process")
            heartbeat = Heartbeat(folder)
        try:
            values = first_values(path, task, configuration, seeds, resumed_from, command)
            values.update(plain_json(more))
            values["attempts"] = values.pop("attempts")  # the long part last
            record = cls(path, values)
            record.heartbeat = heartbeat
            if writes:
                write_json(path, values)
        except BaseException:
            if heartbeat is not None:
                heartbeat.release()
            raise
        if writes:
            exits.watch(record)
        return record

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> RunRecord:
        """Opens the record of a run, of another process too, to read it or to add a note.

        Raises:
            OSError: If there is none.
        """
        path = Path(folder) / "run.json"
        return cls(path, read_json(path))

    @property
    def attempt(self) -> dict[str, Any]:
        """The newest attempt."""
        return self.values["attempts"][-1]

    @property
    def experiment_id(self) -> str | None:
        """The run's id in the store; None where nothing tracks it."""
        return self.values.get("experiment_id")

    # Changes of run.json

    def update(self, **entries: Any) -> None:
        """Sets entries of the record (``data={...}``, ``results={...}``) and writes it.

        A mapping is merged into one that is there.
        """
        entries = plain_json(entries)

        def change(values: dict[str, Any]) -> None:
            for key, value in entries.items():
                old = values.get(key)
                if isinstance(old, dict) and isinstance(value, dict):
                    values[key] = {**old, **value}
                else:
                    values[key] = value

        self._change(change)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds that the block takes to the attempt's timings, also if it raises."""
        begin = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - begin

            def change(values: dict[str, Any]) -> None:
                timings = values["attempts"][-1]["timings"]
                timings[name] = round(timings.get(name, 0.0) + seconds, 3)

            self._change(change)

    def running(self) -> None:
        """The work itself begins: ``created`` becomes ``running``."""
        if self.values["status"] == "created":
            self._change(lambda values: _set_status(values, "running"))

    def set_status(self, status: str, notes: str | None = None) -> None:
        """Sets the state by hand; a final one ends the attempt.

        Args:
            status (str): One of :data:`STATES`.
            notes (str, *optional*): Replace the notes.
        """
        if notes is not None:
            self.update(notes=notes)
        if status in _ALIVE:
            self._change(lambda values: _set_status(values, status))
        else:
            self.finish(status)

    def resumed(self, step: int, checkpoint: str | os.PathLike[str] | None = None) -> None:
        """This attempt goes on from a step (0: from the start) of the stage it is in.

        What earlier attempts logged past that step is kept as theirs, and counts no more.

        Args:
            step (int): Optimizer steps that are done.
            checkpoint (path, *optional*): What holds them.
        """

        def change(values: dict[str, Any]) -> None:
            attempt = values["attempts"][-1]
            attempt.update(from_stage=self._stage, from_step=step)
            if checkpoint is not None:
                attempt["resumed_from"] = os.fspath(checkpoint)

        self._change(change)
        self.log_event("resumed", step=step, checkpoint=checkpoint and os.fspath(checkpoint))

    def begin_stage(self, name: str) -> None:
        """What is logged from here on belongs to a stage, which has its own count of steps.

        Args:
            name (str): Of a new stage, or of one that an attempt goes on with.
        """
        name = clean_text(name)

        def change(values: dict[str, Any]) -> None:
            stages = values.setdefault("stages", [])
            if name not in stages:
                stages.append(name)

        self._change(change)
        self._stage = self.values["stages"].index(name) if self._writes else 0
        self.log_event("stage", name=name)

    def finish(self, status: str = "completed", error: str | None = None) -> None:
        """Ends the attempt, once; a second call changes nothing.

        Args:
            status (str): ``completed``, ``failed``, ``killed``, ``preempted`` or ``crashed``.
            error (str, *optional*): What went wrong.
        """
        if self.attempt["finished"] is not None:
            return

        def change(values: dict[str, Any]) -> None:
            _set_status(values, status)
            now = utc_now()
            values["finished"] = now
            values["attempts"][-1].update(finished=now, error=error and clean_text(error))

        self._change(change)
        exits.unwatch(self)
        if self.warning_events is not None:
            self.warning_events.close()
        if self._writes:
            with contextlib.suppress(OSError):
                self.sync()
        if self.background is not None:
            self.background.stop()
        if self.heartbeat is not None:
            self.heartbeat.release()

    def finish_with(self, error: BaseException) -> None:
        """Ends the attempt as an exception says: failed, killed or preempted."""
        signal_name = exits.received_signal()
        if signal_name is not None:
            self.finish("killed", f"ended by {signal_name}")
        elif isinstance(error, TrainingInterrupted):
            stopped = error.signal_name == "SIGINT" or error.checkpoint is None
            self.finish("killed" if stopped else "preempted", str(error))
        elif isinstance(error, SystemExit) and error.code in (None, 0):
            self.finish()
        elif isinstance(error, SystemExit) and error.code == RESUMABLE_EXIT_CODE:
            self.finish("preempted")
        elif isinstance(error, KeyboardInterrupt):
            self.finish("killed", "ended by SIGINT")
        else:
            lines = "".join(traceback.format_exception(error)).splitlines()
            self.finish("failed", "\n".join(lines[-25:]))

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.finish_with(error)

    # What happens in the run

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Appends numbers to ``metrics.jsonl``.

        Args:
            metrics (mapping): Numbers by name; NaN and infinities are kept as such. What is no
                number is left out and reported once.
            step (int, *optional*): Optimizer steps that are done.
        """
        if not self._writes:
            return
        numbers: dict[str, Any] = {}
        for name, value in metrics.items():
            try:
                numbers[name] = from_number(
                    value if type(value) is float or type(value) is int else float(value)
                )
            except (TypeError, ValueError, RuntimeError):
                self.trouble(
                    f"metric '{name}' is no number",
                    f"metric '{name}': found {type(value).__name__}, expected a number; left out",
                )
        self.running()
        line = {"time": time.time(), "attempt": self.attempt["number"], "stage": self._stage}
        if step is not None:
            line["step"] = int(step)
        self._append(self._metrics, {**line, "metrics": numbers})

    def log_event(self, kind: str, step: int | None = None, **content: Any) -> None:
        """Appends what happened to ``events.jsonl``.

        Args:
            kind (str): ``checkpoint``, ``stage``, ``resumed``, ``warning``, ``sample``, ...
            step (int, *optional*): Optimizer steps that are done.
            **content: More about it.
        """
        line = {"time": time.time(), "attempt": self.attempt["number"], "stage": self._stage}
        if step is not None:
            line["step"] = int(step)
        if self._writes:
            self._append(self._events, {**line, "kind": kind, **plain_json(content)})

    def sync(self) -> None:
        """Puts what was logged onto the disk itself."""
        self._metrics.sync()
        self._events.sync()

    def trouble(self, what: str, message: str) -> None:
        """Reports a fault of the record once; it never ends a run.

        Args:
            what (str): Which fault, the same text each time.
            message (str): For people.
        """
        if what in self._reported or not self._writes:
            return
        self._reported.add(what)
        self.say(message)
        if not what.startswith("files"):
            self.log_event("warning", message=message)

    def say(self, message: str) -> None:
        """Tells people something about the record."""
        console().print(f"tracking: {message}", style="yellow", markup=False, soft_wrap=True)

    # Writing

    def _append(self, lines: JsonLines, line: dict[str, Any]) -> None:
        try:
            lines.append(line)
        except OSError as error:
            self.trouble(
                "files: append",
                f"{lines.path.name} could not be written ({error}); training goes on, what is "
                "logged waits in memory and is written as soon as that works",
            )
        if self.background is not None:
            self.background.wake()

    def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Changes the record and writes it, together with what other processes put there."""
        if not self._writes:
            change(self.values)
            return
        import filelock

        seconds = round(time.monotonic() - self._clock, 3)
        try:
            # 10 seconds: another process writes one small file.
            with filelock.FileLock(self.folder / ".run.json.lock", timeout=10):
                if not self._unwritten:
                    self.values = read_json(self.path)
                # Of an attempt that goes on, and is not another process's.
                is_open = self.heartbeat is not None and self.attempt["finished"] is None
                change(self.values)
                self.values["updated"] = utc_now()
                self.values["revision"] = self.values.get("revision", 0) + 1
                if is_open:
                    self.attempt["seconds"] = seconds
                self._unwritten = True
                write_json(self.path, self.values)
                self._unwritten = False
        except (OSError, ValueError) as error:
            if not self._unwritten:
                change(self.values)
                self._unwritten = True
            self.trouble(
                "files: run.json",
                f"run.json could not be written ({error}); training goes on, the next change "
                "tries again",
            )
        if self.background is not None:
            self.background.wake()


def _set_status(values: dict[str, Any], status: str) -> None:
    values["status"] = status
    values["attempts"][-1]["status"] = status
