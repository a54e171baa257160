"""How a training in the background is started: where it writes, and what runs it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ..utils.errors import ConfigurationError, did_you_mean
from ..utils.secrets import without_secrets
from .background_log import last_lines
from .background_state import MARK, Launch, Recipe
from .tables import clock

__all__ = ["DEFAULT_FOLDERS", "check_command", "output_dir", "spawn"]

DEFAULT_FOLDERS = {"progressive": "checkpoints_transfer"}
"""Where recipes write that are not told to, by their names."""


def output_dir(option: str | None, command: Sequence[str], recipe: Recipe) -> Path:
    """Finds the run's folder, as the recipe itself will.

    Args:
        option (str, *optional*): Given beside the command.
        command (sequence of str): What is to be started.
        recipe (Recipe): Of the command.

    Raises:
        ConfigurationError: If there is none, or if there are two.
    """
    from ..configuration.sources import Field, read_command_line, read_config, read_environment

    field = Field("output_dir", "training", str | None, None, "")
    fields, ignored = {field.name: field}, []  # the recipe itself says what is wrong
    said = read_command_line(command[recipe.position + 1 :], fields, ignored)
    given = [one for path in said.configs for one in read_config(path, fields, ignored)]
    given += [*read_environment(os.environ, fields, ignored), *said.given]
    own = str(given[-1].value) if given else None
    if own is None:
        own = DEFAULT_FOLDERS.get(recipe.stem)
    if own is None and option is None:
        raise ConfigurationError(
            f"where does {recipe.name} write? Give it --output_dir DIR, or give DIR for the log "
            "alone before the --: hftune background start --output_dir DIR -- ..."
        )
    if given and option is not None and Path(option).resolve() != Path(own).resolve():
        raise ConfigurationError(
            f"two folders: --output_dir {option} before the --, and {own} ({given[-1].source} of "
            f"{recipe.name}); give one"
        )
    return Path(option or own)


def check_command(command: Sequence[str], recipe: Recipe) -> None:
    """Checks what would fail at once.

    Args:
        command (sequence of str): What is to be started.
        recipe (Recipe): Of the command.

    Raises:
        ConfigurationError: If the program or the script is not there.
    """
    problems = []
    if shutil.which(command[0]) is None:
        problems.append(f"no program '{command[0]}' on the PATH: is its environment activated?")
    path = Path(recipe.name)
    if not recipe.is_module and not path.is_file():
        near = [other.name for other in path.parent.glob("*.py")]
        problems.append(f"no file {path} in {Path.cwd()}.{did_you_mean(path.name, near)}")
    if problems:
        raise ConfigurationError(problems)


def spawn(
    folder: Path, command: list[str], recipe: Recipe
) -> tuple[Launch, subprocess.Popen[bytes]]:
    """Starts a command below a supervisor that is no part of this terminal.

    Args:
        folder (Path): OUTPUT_DIR; made if it is missing.
        command (list of str): What to start.
        recipe (Recipe): Of the command.

    Returns:
        The start, and its supervisor.

    Raises:
        ConfigurationError: If one that has not ended has the folder.
    """
    import filelock

    from ..tracking.run_values import utc_now

    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(logs / ".background.lock"):
        _check_free(folder)
        name, stream = _new_log(logs)
        values: dict[str, Any] = {
            "format": 1,
            "id": uuid.uuid4().hex,
            "recipe": recipe.name,
            "command": without_secrets(command),
            "cwd": os.getcwd(),
            "log": f"logs/{name}",
            "pid_file": f"{recipe.stem}_training.pid",
            "started": utc_now(),
            "supervisor": None,
            "process": None,
            "stopping": None,
            "status": None,
            "returncode": None,
            "ended": None,
        }
        with stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "hftune.cli.background_supervisor"],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, MARK: values["id"]},
                start_new_session=True,
            )
        # Not in its command line: "pkill -f recipes/..." is to reach the training alone.
        order = {"folder": os.fspath(folder), "command": command, "values": values}
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps(order).encode())
        while process.poll() is None:
            if (found := _load_if_there(folder)) and found.values["id"] == values["id"]:
                return found, process
            time.sleep(0.02)
        found = _load_if_there(folder)
        if found and found.values["id"] == values["id"]:  # it has ended already
            return found, process
        said = "\n".join(last_lines(logs / name, 20))
        raise ConfigurationError(f"the supervisor could not begin:\n{said}")


def _check_free(folder: Path) -> None:
    launch = _load_if_there(folder)
    if launch is not None and launch.is_going_on():
        raise ConfigurationError(
            f"{folder}: {launch.values['recipe']} runs there, as process {launch.number} on "
            f"{launch.values['supervisor']['host']} since {clock(launch.values['started'])}; stop "
            f"it (hftune background stop {shlex.quote(os.fspath(folder))}), or take another "
            "--output_dir"
        )


def _load_if_there(folder: Path) -> Launch | None:
    try:
        return Launch.load(folder)
    except ConfigurationError:
        return None


def _new_log(logs: Path) -> tuple[str, IO[bytes]]:
    while True:
        name = time.strftime("background_%Y%m%d_%H%M%S.log")
        try:
            return name, open(logs / name, "xb")
        except FileExistsError:  # another start in this second
            time.sleep(0.1)
