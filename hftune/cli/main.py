"""The ``hftune`` command: a table of subcommands, each imported only when it runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..utils.errors import HftuneError, did_you_mean

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "aardvark": "Aardvark's published files: networks and ERA5, in and out",
    "audit": "check weather data: gaps, NaN, units, ranges, drift",
    "background": "run a training in the background: start, status, logs, stop",
    "callbacks": "list the callbacks that installed packages declare",
    "doctor": "check this machine: versions, devices, disk, tokens",
    "forecast": "roll a saved weather model out and write NetCDF",
    "models": "registered models: find, compare, promote, verify, export",
    "rank": "rank images: compare, score a folder, evaluate and measure a model",
    "runs": "recorded runs: list, show, compare, watch, report, export",
    "simulate": "write a simulated atmosphere to train on",
    "stages": "runs in stages: how far they are, training some of them again",
}
"""Help line by command; ``hftune x`` runs ``hftune.cli.x.main(arguments)``."""


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in sorted(COMMANDS.items()))
    return (
        "usage: hftune COMMAND ...\n\n"
        f"commands:\n{rows}\n\n"
        "options:\n  -h, --help  show this text\n  --version   show the version\n\n"
        "hftune COMMAND --help says more. Training is started by a recipe:\n"
        "  accelerate launch recipes/aurora.py --help"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv (sequence of str, *optional*): Arguments after the program's name, defaults to
            ``sys.argv[1:]``.

    Returns:
        The exit code: 2 after wrong usage or an :class:`~hftune.utils.errors.HftuneError`, 130
        after Ctrl-C, else the subcommand's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"hftune {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f" Commands: {', '.join(sorted(COMMANDS))}."
        print(f"hftune: '{name}' is not a command.{hint}", file=sys.stderr)
        return 2
    try:
        code = importlib.import_module(f"hftune.cli.{name}").main(rest)
        sys.stdout.flush()  # here a reader that is gone can still be noticed
        return code
    except HftuneError as error:
        print(f"hftune {name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # "| head" has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"\nhftune {name}: interrupted", file=sys.stderr)
        return 130
