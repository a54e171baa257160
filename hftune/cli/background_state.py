"""What a start in the background left: its record, and the processes that are its own.

OUTPUT_DIR/logs/background.json is the record, written by the supervisor. A process belongs to the
start if it has the start's mark in its environment, which children inherit, or if it descends from
a process of the record. Numbers of processes are used again, so a number alone says nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..utils.errors import RESUMABLE_EXIT_CODE, ConfigurationError
from ..utils.files import read_json, write_json

if TYPE_CHECKING:
    import psutil

__all__ = ["MARK", "Launch", "Recipe", "find_recipe", "identity_of", "runs_recipe"]

MARK = "_HFTUNE_BACKGROUND"
"""Environment variable with the id of the start; no ``HFTUNE_*``, which are settings of a run."""

_STATE = Path("logs", "background.json")


class Recipe(NamedTuple):
    """The Python script that a command runs.

    Attributes:
        name (str): As the command has it: ``"recipes/aurora.py"``, or a module after ``-m``.
        is_module (bool): Whether it is a module.
        position (int): Of the word in the command.
    """

    name: str
    is_module: bool
    position: int

    @property
    def stem(self) -> str:
        """``"aurora"`` of ``recipes/aurora.py`` and of ``hftune.recipes.aurora``."""
        return self.name.rpartition(".")[2] if self.is_module else Path(self.name).stem


def find_recipe(command: Sequence[str]) -> Recipe | None:
    """Finds the first word that is a Python script, or a module that is no launcher.

    Args:
        command (sequence of str): Such as ``accelerate launch recipes/aurora.py --data x.nc``.
    """
    for position, word in enumerate(command):
        if word.endswith(".py"):
            return Recipe(word, False, position)
        after = command[position - 1] if position else ""
        # "python -m accelerate.commands.launch" and "-m torch.distributed.run" start a recipe.
        launchers = ("accelerate", "torch", "deepspeed")
        if after in ("-m", "--module") and word.partition(".")[0] not in launchers:
            return Recipe(word, True, position)
    return None


def runs_recipe(words: Sequence[str], name: str) -> bool:
    """Whether a command line is that of a Python which runs the recipe itself.

    A launcher has the recipe in its command line too, but as an argument of its own script.

    Args:
        words (sequence of str): The command line of a process.
        name (str): Of the recipe.
    """
    if not words or not Path(words[0]).name.lower().startswith(("python", "pypy")):
        return False
    rest = iter(words[1:])
    for word in rest:
        if word in ("-X", "-W", "--check-hash-based-pycs"):
            next(rest, None)
        elif word == "-m":
            return next(rest, None) == name
        elif word == "-c":
            return False
        elif not word.startswith("-"):
            return Path(word).name == Path(name).name
    return False


@dataclasses.dataclass
class Launch:
    """One start in the background.

    Attributes:
        folder (Path): The run's folder, OUTPUT_DIR.
        values (dict): Its record: ``id``, ``recipe``, ``command``, ``cwd``, ``log`` and
            ``pid_file`` (below the folder), ``started``; ``supervisor`` and ``process`` (of the
            command), each with ``host``, ``boot_id``, ``pid`` and ``started``; ``stopping`` (since
            when it is asked to stop), ``status``, ``returncode`` and ``ended``.
    """

    folder: Path
    values: dict[str, Any]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Launch:
        """Reads the newest start in a folder.

        Raises:
            ConfigurationError: If there is none, or its record cannot be read.
        """
        path = Path(folder) / _STATE
        try:
            return cls(Path(folder), read_json(path))
        except FileNotFoundError:
            raise ConfigurationError(
                f"{folder}: nothing was started there with hftune background start ({path} is not "
                "there)"
            ) from None
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} cannot be read: {error}") from None

    def save(self, **changes: Any) -> None:
        """Changes the record and writes it."""
        self.values.update(changes)
        write_json(self.folder / _STATE, self.values)

    @property
    def log(self) -> Path:
        """What the command printed."""
        return self.folder / self.values["log"]

    @property
    def pid_file(self) -> Path:
        """Has the supervisor's number while there is one."""
        return self.folder / self.values["pid_file"]

    # Processes

    def supervisor(self) -> psutil.Process | None:
        """The process that watches the command, if it is alive."""
        return self._process("supervisor")

    def _process(self, role: str) -> psutil.Process | None:
        """A process of the record, if it is alive and no other that got its number."""
        import psutil

        from ..tracking.environment import boot_id

        identity = self.values[role]
        if identity is None or identity["boot_id"] != boot_id():
            return None
        try:
            process = psutil.Process(identity["pid"])
            # The time of a start moves when the clock is set; the mark does not.
            same = abs(process.create_time() - identity["started"]) < 1 or (
                _mark(process) == self.values["id"]
            )
            return process if same and _is_alive(process) else None
        except psutil.Error:
            return None

    def processes(self) -> list[psutil.Process]:
        """All processes of the start that are alive, the supervisor among them."""
        import psutil

        own = self.values["id"]
        found = {process for process in psutil.process_iter() if _mark(process) == own}
        # Where environments are not to be read, as of some Pythons on macOS.
        for process in (self.supervisor(), self._process("process")):
            if process is not None:
                with contextlib.suppress(psutil.Error):
                    children = process.children(recursive=True)
                    # A training may start another one in the background.
                    found |= {p for p in [process, *children] if _mark(p) in (None, own)}
        return sorted(filter(_is_alive, found), key=lambda process: process.pid)

    def training(self) -> list[psutil.Process]:
        """The processes that train: those that run the recipe and have no parent that does.

        Not the launcher, whose own script is another, and not data workers, which are children of
        a process that runs the recipe, and may outlive it for a moment.
        """
        processes = self.processes()
        recipe = self.values["recipe"]
        training = {p for p in processes if runs_recipe(_words(p), recipe) and not _is_fork(p)}
        return [p for p in processes if p in training and not _ancestors(p, processes) & training]

    @property
    def is_elsewhere(self) -> bool:
        """Whether it was started on another machine, whose processes are not to be seen here."""
        from ..tracking.environment import process_identity

        here, there = process_identity(), self.values["supervisor"]
        # The same machine may have been started again, or have another name now.
        return there["host"] != here["host"] and there["boot_id"] != here["boot_id"]

    def is_going_on(self) -> bool:
        """Whether the training goes on, with or without its supervisor."""
        from ..tracking.liveness import is_alive

        if self.values["ended"] is not None:
            return False
        if not self.is_elsewhere:
            return (
                self.supervisor() is not None
                or self._process("process") is not None
                or bool(self.training())
            )
        attempt = self.attempt()
        return (
            attempt is not None
            and attempt["finished"] is None
            and is_alive(self.folder, attempt["process"])
        )

    @property
    def number(self) -> str:
        """That of the process to signal: the supervisor, or without one what trains."""
        if self.supervisor() is not None or self.is_elsewhere:
            return str(self.values["supervisor"]["pid"])
        return ", ".join(str(process.pid) for process in self.training())

    def ask_to_stop(self, asked: set[psutil.Process]) -> list[psutil.Process]:
        """Sends SIGTERM to the training processes, once to each.

        Launchers are left alone: some die of it and leave the training behind, some pass it on,
        and a second SIGTERM ends a training process before it has saved. While nothing trains yet,
        the command itself gets the signal.

        Args:
            asked (set of Process): Those that have got it; the new ones are added.

        Returns:
            Those that got it now.
        """
        import psutil

        targets = self.training()
        if not targets and not asked:
            command = self._process("process")
            targets = [] if command is None else [command]
        new = [process for process in targets if process not in asked]
        for process in new:
            asked.add(process)
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGTERM)
        return new

    def kill(self) -> None:
        """Kills every process of the start but the supervisor, which writes down the end."""
        import psutil

        supervisor = self.supervisor()
        for process in self.processes():
            if process != supervisor:
                with contextlib.suppress(psutil.Error):
                    process.kill()

    # The run in the same folder

    def attempt(self) -> dict[str, Any] | None:
        """The attempt in ``run.json`` that this start began, if it has come so far."""
        try:
            attempt = read_json(self.folder / "run.json")["attempts"][-1]
            return attempt if attempt["started"] >= self.values["started"] else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def ending(self, returncode: int | None) -> str:
        """How it ended.

        ``completed``; ``preempted``: a checkpoint was saved for it to go on; ``stopped``: it was
        asked to, and says no more; ``failed``; ``gone``: nobody saw how.

        Args:
            returncode (int, *optional*): Exit status, negative for a signal; None if nobody saw it.
        """
        attempt = self.attempt()
        said = attempt and attempt["status"]
        if returncode == 0 or (returncode is None and said == "completed"):
            return "completed"
        # A launcher has a status of its own: 1, whatever the training said.
        if returncode == RESUMABLE_EXIT_CODE or said == "preempted":
            return "preempted"
        if self.values["stopping"] is not None:
            return "stopped"
        return "failed" if returncode is not None or said == "failed" else "gone"


def identity_of(pid: int) -> dict[str, Any]:
    """Returns host, boot, number and start of a process, as of this one ``process_identity``."""
    import psutil

    from ..tracking.environment import process_identity

    return {**process_identity(), "pid": pid, "started": psutil.Process(pid).create_time()}


def _mark(process: psutil.Process) -> str | None:
    """Id of the start that a process belongs to, where its environment can be read."""
    import psutil

    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None


def _is_alive(process: psutil.Process) -> bool:
    """Whether it still runs: one that has ended and that nobody waited for does not."""
    import psutil

    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def _is_fork(process: psutil.Process) -> bool:
    """Whether it is a copy of its parent, command line and all, that started no program."""
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # macOS, where data workers are not copies
        return False
    return bool(int(stat.rpartition(")")[2].split()[6]) & 0x40)  # PF_FORKNOEXEC


def _words(process: psutil.Process) -> list[str]:
    import psutil

    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _ancestors(process: psutil.Process, processes: Sequence[psutil.Process]) -> set[psutil.Process]:
    """Its parents among the processes."""
    import psutil

    by_number = {other.pid: other for other in processes}
    found: set[psutil.Process] = set()
    while True:
        try:
            parent = by_number.get(process.ppid())
        except psutil.Error:
            return found
        if parent is None or parent in found:
            return found
        found.add(parent)
        process = parent
