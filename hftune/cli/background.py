"""``hftune background``: a training that goes on when its terminal is closed."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..utils.errors import ConfigurationError
from ..utils.secrets import without_secrets
from ..utils.terminal import LOG_SECONDS, duration
from .background_log import follow, last_lines
from .background_start import DEFAULT_FOLDERS, check_command, output_dir, spawn
from .background_state import Launch, find_recipe
from .tables import age, clock, one_line

__all__ = ["main"]

_PACE = 0.1  # seconds between two looks
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
    elif words[:1] == ["start"] and not {"-h", "--help"} & set(words):
        words = ["start"]  # which says how to give the command
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
    default = DEFAULT_FOLDERS["progressive"]
    parser.add_argument(
        "folder", nargs="?", metavar="DIR", help=f"the run's folder (default {default})"
    )
    parser.add_argument(
        "--output_dir", "--output-dir", dest="option", metavar="DIR", help="the same"
    )


def _launch(arguments: argparse.Namespace) -> Launch:
    folder = arguments.option or arguments.folder
    if folder is None:
        folder = DEFAULT_FOLDERS["progressive"]
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
    folder = output_dir(arguments.output_dir, command, recipe)
    check_command(command, recipe)
    launch, process = spawn(folder, command, recipe)
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
    begin_size = launch.log.stat().st_size
    silent_size: int | None = None  # of the log, when the recipe had not spoken
    spoke: float | None = None
    while process.poll() is None and time.monotonic() < end and launch.attempt() is None:
        current = Launch.load(launch.folder)
        command = current.values["process"]
        training = current.training() if command is not None else []
        size = launch.log.stat().st_size
        if training and silent_size is None:
            # Launchers speak before they start it.
            silent_size = begin_size if training[0].pid == command["pid"] else size
        if silent_size is not None and size > silent_size:
            spoke = spoke or time.monotonic()
            if time.monotonic() - spoke > _AFTER_WORDS:
                return
        time.sleep(_PACE)


# Status


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
    elif status == "stopped" and attempt is None:
        words += " before the run had begun"
    return words


def _status(arguments: argparse.Namespace) -> int:
    launch = _launch(arguments)
    values = launch.values
    going = launch.is_going_on()
    if going:
        since = f"{clock(values['started'])} ({age(values['started'])})"
        doing = "running" if values["stopping"] is None else "stopping"
        print(f"{launch.folder}: {doing}, process {launch.number}, since {since}")
        if launch.is_elsewhere:
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
        launch = follow(launch, arguments.lines)
    except KeyboardInterrupt:
        print()
        return 0
    print(f"\n{_ending(launch)}")
    return 0


# Stop


def _stop(arguments: argparse.Namespace) -> int:
    launch = _launch(arguments)
    if not launch.is_going_on():
        print(f"not running. {_ending(launch)}", file=sys.stderr)
        return _NOT_RUNNING
    if launch.is_elsewhere:
        raise ConfigurationError(
            f"{launch.folder}: it runs on {launch.values['supervisor']['host']}: stop it there"
        )
    if arguments.force:
        _kill(launch)
    else:
        what = f"process {launch.number} finishes its step and saves"
        print(f"{launch.folder}: {what}; waiting up to {arguments.timeout:g} s", flush=True)
        _ask(launch)
    begin = said = time.monotonic()
    while (launch := Launch.load(launch.folder)).is_going_on():
        now = time.monotonic()
        if now - said > LOG_SECONDS:
            said = now
            print(f"still waiting, {duration(now - begin)}", flush=True)
        if now - begin > arguments.timeout:
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
    from ..tracking.run_values import utc_now

    if launch.values["stopping"] is None and not _signal_supervisor(launch, signal.SIGTERM):
        launch.ask_to_stop(set())
        launch.save(stopping=utc_now())


def _kill(launch: Launch) -> None:
    if not _signal_supervisor(launch, signal.SIGQUIT):
        launch.kill()


def _signal_supervisor(launch: Launch, number: signal.Signals) -> bool:
    """Whether there is one, which does the rest and writes down the end."""
    import psutil

    supervisor = launch.supervisor()
    if supervisor is None:
        return False
    with contextlib.suppress(psutil.Error):  # it has ended this moment
        supervisor.send_signal(number)
    return True


def _write_end(launch: Launch, *, killed: bool) -> None:
    """In the place of a supervisor that was killed."""
    from ..tracking.run_values import utc_now

    launch.save(status="killed" if killed else launch.ending(None), ended=utc_now())
    launch.pid_file.unlink(missing_ok=True)
