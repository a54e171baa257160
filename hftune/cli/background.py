"""``hftune background``: a training that goes on when its terminal is closed."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from ..utils.errors import ConfigurationError, did_you_mean
from ..utils.secrets import without_secrets
from .background_log import follow, last_lines
from .background_state import MARK, Launch, Recipe, find_recipe
from .tables import age, clock, one_line

__all__ = ["main"]

_PACE = 0.2  # seconds between two looks
_DEFAULT_FOLDERS = {"progressive": "checkpoints_transfer"}  # by recipe
_NOT_RUNNING = 3  # exit status, as of systemctl
_AFTER_WORDS = 2.0  # seconds that a recipe with something wrong goes on after it spoke, at most
_TAIL = 20  # lines of the log that are shown of a failure

_EXAMPLES = """\
examples:
  hftune background start -- accelerate launch recipes/progressive.py --output_dir runs/x
  hftune background logs -f runs/x
  hftune background status runs/x
  hftune background stop runs/x"""


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv (sequence of str): Arguments after ``hftune background``.

    Returns:
        The exit code: 1 if the command failed at once, or has not ended in the time that ``stop``
        was given; 3 from ``status`` and ``stop`` if nothing runs.
    """
    words = list(argv)
    command: list[str] = []
    if words[:1] == ["start"] and "--" in words:
        place = words.index("--")
        words, command = words[:place], words[place + 1 :]
    arguments = _parser().parse_args(words)
    arguments.command = command
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="hftune background",
        description="Run a training in the background: it goes on when the terminal is closed.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, more: str
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}"
        )
        made.set_defaults(run=run)
        return made

    one = command(
        "start", _start, "start a command",
        "What it prints goes to OUTPUT_DIR/logs/background_YYYYmmdd_HHMMSS.log.",
    )  # fmt: skip
    one.usage = "hftune background start [-h] [--output_dir DIR] [--wait S] -- COMMAND ..."
    one.add_argument(
        "--output_dir", "--output-dir", metavar="DIR",
        help="the run's folder; by default that of the command's own --output_dir",
    )  # fmt: skip
    one.add_argument(
        "--wait", type=float, default=30.0, metavar="S",
        help="how long to look whether it fails at once, in seconds; shorter where the run begins "
        "earlier (default 30)",
    )  # fmt: skip

    one = command(
        "status", _status, "what it is doing", "Exit code 0 while it runs, 3 if it does not."
    )
    _add_folder(one)

    one = command("logs", _logs, "what it printed", "")
    _add_folder(one)
    one.add_argument(
        "-f", "--follow", action="store_true", help="go on until it ends; Ctrl-C leaves it running"
    )
    one.add_argument(
        "-n", "--lines", type=int, default=_TAIL, metavar="N",
        help=f"how many of the last lines (default {_TAIL})",
    )  # fmt: skip

    one = command(
        "stop", _stop, "stop it in order",
        "The step is finished and a checkpoint saved; the same command goes on from there.",
    )  # fmt: skip
    _add_folder(one)
    one.add_argument(
        "--timeout", type=float, default=600.0, metavar="S",
        help="how long to wait for it, in seconds; it is not killed then (default 600)",
    )  # fmt: skip
    one.add_argument("--force", action="store_true", help="kill it: what was not saved yet is lost")
    return parser


def _add_folder(parser: argparse.ArgumentParser) -> None:
    default = _DEFAULT_FOLDERS["progressive"]
    parser.add_argument(
        "folder", nargs="?", metavar="DIR", help=f"the run's folder (default {default})"
    )
    parser.add_argument(
        "--output_dir", "--output-dir", dest="option", metavar="DIR", help="the same"
    )


def _launch(arguments: argparse.Namespace) -> Launch:
    folder = arguments.option or arguments.folder
    if folder is None:
        folder = _DEFAULT_FOLDERS["progressive"]
        if not Path(folder).is_dir():
            raise ConfigurationError(f"which run? There is no {folder} here: give the run's folder")
    return Launch.load(folder)


# Start


def _start(arguments: argparse.Namespace) -> int:
    command = arguments.command
    example = "hftune background start -- accelerate launch recipes/aurora.py --output_dir runs/x"
    if not command:
        raise ConfigurationError(f"no command: give it after --, as in\n  {example}")
    recipe = find_recipe(command)
    if recipe is None:
        raise ConfigurationError(
            f"no Python script in '{shlex.join(without_secrets(command))}': what is started is a "
            f"recipe, by itself or through a launcher, as in\n  {example}"
        )
    folder = _output_dir(arguments.output_dir, command, recipe)
    _check_command(command, recipe)
    launch, process = _spawn(folder, command, recipe)
    shown = shlex.quote(os.fspath(folder))
    print(
        f"{recipe.name} is process {process.pid}; what it prints goes to {launch.log}\n\n"
        f"  hftune background logs -f {shown}\n"
        f"  hftune background status {shown}\n"
        f"  hftune background stop {shown}\n\n"
        "waiting for it to begin (Ctrl-C leaves it running)",
        flush=True,
    )
    return _watch_beginning(launch, process, arguments.wait)


def _output_dir(option: str | None, command: Sequence[str], recipe: Recipe) -> Path:
    """The run's folder, as the recipe itself will find it."""
    from ..configuration.sources import Field, read_command_line, read_config, read_environment

    field = Field("output_dir", "training", str | None, None, "")
    fields, ignored = {field.name: field}, []  # the recipe itself says what is wrong
    said = read_command_line(command[recipe.position + 1 :], fields, ignored)
    given = [one for path in said.configs for one in read_config(path, fields, ignored)]
    given += [*read_environment(os.environ, fields, ignored), *said.given]
    own = str(given[-1].value) if given else None
    if own is None:
        own = _DEFAULT_FOLDERS.get(recipe.stem)
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


def _check_command(command: Sequence[str], recipe: Recipe) -> None:
    """What would fail at once."""
    problems = []
    if shutil.which(command[0]) is None:
        problems.append(f"no program '{command[0]}' on the PATH: is its environment activated?")
    path = Path(recipe.name)
    if not recipe.is_module and not path.is_file():
        near = [other.name for other in path.parent.glob("*.py")]
        problems.append(f"no file {path} in {Path.cwd()}.{did_you_mean(path.name, near)}")
    if problems:
        raise ConfigurationError(problems)


def _spawn(
    folder: Path, command: list[str], recipe: Recipe
) -> tuple[Launch, subprocess.Popen[bytes]]:
    """Starts the supervisor, one at a time in a folder."""
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
        with process.stdin:
            process.stdin.write(json.dumps(order).encode())
        while process.poll() is None:
            if (found := _load_if_there(folder)) and found.values["id"] == values["id"]:
                return found, process
            time.sleep(0.02)
        found = _load_if_there(folder)
        if found and found.values["id"] == values["id"]:  # it has ended already
            return found, process
        said = "\n".join(last_lines(logs / name, _TAIL))
        raise ConfigurationError(f"the supervisor could not begin:\n{said}")


def _check_free(folder: Path) -> None:
    launch = _load_if_there(folder)
    if launch is not None and _is_going_on(launch):
        raise ConfigurationError(
            f"{folder}: {launch.values['recipe']} runs there, as process {_numbers(launch)} on "
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


def _watch_beginning(launch: Launch, process: subprocess.Popen[bytes], seconds: float) -> int:
    """Waits until the run has begun, so that what fails at once is seen where it was started."""
    try:
        _wait_for_beginning(launch, process, seconds)
    except KeyboardInterrupt:
        print("\nit goes on in the background")
        return 0
    if process.poll() is None:
        process.returncode = 0  # not a child to wait for
        return 0
    launch = Launch.load(launch.folder)
    if launch.values["status"] == "completed":
        print(f"{launch.values['recipe']} has ended: completed")
        return 0
    print(f"{_ending(launch)}. The last lines of {launch.log}:\n", file=sys.stderr)
    print("\n".join(last_lines(launch.log, _TAIL)), file=sys.stderr)
    return 1


def _wait_for_beginning(launch: Launch, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Until it has ended, has a record of its run, or has gone on for a while after it spoke."""
    end = time.monotonic() + seconds
    silent_size = launch.log.stat().st_size
    spoke: float | None = None
    while process.poll() is None and time.monotonic() < end and launch.attempt() is None:
        size = launch.log.stat().st_size
        if not Launch.load(launch.folder).training():
            silent_size = size  # the launcher's words
        elif size > silent_size:
            spoke = spoke or time.monotonic()
            if time.monotonic() - spoke > _AFTER_WORDS:
                return
        time.sleep(_PACE)


# Status


def _is_elsewhere(launch: Launch) -> bool:
    """Whether it was started on another machine, whose processes are not to be seen here."""
    from ..tracking.environment import process_identity

    return launch.values["supervisor"]["host"] != process_identity()["host"]


def _is_going_on(launch: Launch) -> bool:
    from ..tracking.liveness import is_alive

    if launch.values["ended"] is not None:
        return False
    if not _is_elsewhere(launch):
        return launch.is_alive()
    attempt = launch.attempt()
    return (
        attempt is not None
        and attempt["finished"] is None
        and is_alive(launch.folder, attempt["process"])
    )


def _numbers(launch: Launch) -> str:
    """The number to signal: of the supervisor, or without one of what trains."""
    if launch.supervisor() is not None or _is_elsewhere(launch):
        return str(launch.values["supervisor"]["pid"])
    return ", ".join(str(process.pid) for process in launch.training())


def _ending(launch: Launch) -> str:
    """One line: how it ended."""
    values = launch.values
    # Without an end record the run's own record may know.
    status = values["status"] or launch.ending(None)
    attempt = launch.attempt()
    code = values["returncode"]
    words = f"{launch.folder}: {status}"
    if status == "gone":
        words += ": its processes have ended, and nobody saw how (killed, or the machine stopped)"
    elif status == "failed" and code is not None:
        words += f" with exit code {code}" if code >= 0 else f" by signal {-code}"
    if status in ("preempted", "stopped") and attempt and attempt["error"]:
        words += f": {one_line(attempt['error'])}"
    elif status == "preempted":
        words += ": the same command goes on"
    return words


def _status(arguments: argparse.Namespace) -> int:
    launch = _launch(arguments)
    values = launch.values
    going = _is_going_on(launch)
    if going:
        since = f"{clock(values['started'])} ({age(values['started'])})"
        doing = "running" if values["stopping"] is None else "stopping"
        print(f"{launch.folder}: {doing}, process {_numbers(launch)}, since {since}")
        if _is_elsewhere(launch):
            print(f"on        {values['supervisor']['host']}")
        elif launch.supervisor() is None:
            print("          its supervisor was killed; hftune background stop still stops it")
    else:
        print(_ending(launch))
        if values["ended"]:
            print(f"ended     {clock(values['ended'])} ({age(values['ended'])} ago)")
    print(f"command   {one_line(shlex.join(values['command']))}")
    print(f"log       {launch.log}")
    if launch.attempt() is not None:
        print(f"run       {_run_line(launch.folder)}")
    if going or values["status"] == "completed":
        lines = last_lines(launch.log, 1)
        print(f"last line {lines[0] if lines else ''}".rstrip())
    else:
        print("\n" + "\n".join(last_lines(launch.log, _TAIL)))
    return 0 if going else _NOT_RUNNING


def _run_line(folder: Path) -> str:
    """What ``run.json`` says."""
    from ..tracking.run_view import RunView

    try:
        view = RunView.from_folder(folder)
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"run.json cannot be read: {error}"
    words = [view.status]
    stages = view.record.get("stages") or []
    if stages:
        words.append(f"stage {one_line(stages[-1])}")
    step = next((point.step for point in reversed(view.points) if point.step is not None), None)
    if step is not None:
        words.append(f"step {step:,}")
    return ", ".join(words)


# Logs


def _logs(arguments: argparse.Namespace) -> int:
    launch = _launch(arguments)
    if not arguments.follow:
        print("\n".join(last_lines(launch.log, arguments.lines)))
        return 0
    try:
        launch = follow(launch, arguments.lines, _is_going_on)
    except KeyboardInterrupt:
        print()
        return 0
    print(f"\n{_ending(launch)}")
    return 0


# Stop


def _stop(arguments: argparse.Namespace) -> int:
    launch = _launch(arguments)
    if not _is_going_on(launch):
        print(f"not running. {_ending(launch)}", file=sys.stderr)
        return _NOT_RUNNING
    if _is_elsewhere(launch):
        raise ConfigurationError(
            f"{launch.folder}: it runs on {launch.values['supervisor']['host']}: stop it there"
        )
    if arguments.force:
        _kill(launch)
    else:
        _ask(launch)
        what = f"process {_numbers(launch)} finishes its step and saves"
        print(f"{launch.folder}: {what}; waiting up to {arguments.timeout:g} s", flush=True)
    end = time.monotonic() + arguments.timeout
    while _is_going_on(launch := Launch.load(launch.folder)):
        if time.monotonic() > end:
            print(
                f"{launch.folder}: not ended after {arguments.timeout:g} s. It is still asked to "
                "stop, and goes on saving; --force kills it and loses what is not saved",
                file=sys.stderr,
            )
            return 1
        time.sleep(_PACE)
    launch = Launch.load(launch.folder)  # the end is written just before the supervisor's
    if launch.values["ended"] is None:
        _write_end(launch, killed=arguments.force)
    print(_ending(launch))
    return 1 if launch.values["status"] == "failed" else 0


def _ask(launch: Launch) -> None:
    """Asks once: a second signal would kill."""
    import signal

    from ..tracking.run_values import utc_now

    if launch.values["stopping"] is not None:
        return
    supervisor = launch.supervisor()
    if supervisor is not None:
        supervisor.send_signal(signal.SIGTERM)
    else:
        launch.save(stopping=utc_now())
        launch.ask_to_stop(set())


def _kill(launch: Launch) -> None:
    import signal

    supervisor = launch.supervisor()
    if supervisor is not None:
        supervisor.send_signal(signal.SIGQUIT)  # it writes down the end
    else:
        launch.kill()


def _write_end(launch: Launch, *, killed: bool) -> None:
    """In the place of a supervisor that was killed."""
    from ..tracking.run_values import utc_now

    launch.save(status="killed" if killed else launch.ending(None), ended=utc_now())
    launch.pid_file.unlink(missing_ok=True)
