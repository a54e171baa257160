"""The errors that hftune raises, and the suggestions that go into their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "RESUMABLE_EXIT_CODE",
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "HftuneError",
    "NextStageProcess",
    "TrainingInterrupted",
    "SHOWN",
    "did_you_mean",
    "listed",
]

SHOWN = 20
"""Problems that a message lists."""

RESUMABLE_EXIT_CODE = 75
"""Exit status of a run that a signal stopped after a checkpoint (``EX_TEMPFAIL``: try again)."""


class HftuneError(Exception):
    """Base of every error that a user can act on; command lines print it without a traceback."""


class ConfigurationError(HftuneError, ValueError):
    """One or more wrong settings, reported together before anything starts.

    Args:
        problems (str or sequence of str): What was found, what was expected and what to do, one
            text a problem.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        if len(self.problems) == 1:
            message = self.problems[0]
        else:
            listed = "\n".join(f"  {i}. {text}" for i, text in enumerate(self.problems, 1))
            message = f"{len(self.problems)} problems in the configuration:\n{listed}"
        super().__init__(message)


class DataError(HftuneError, ValueError):
    """Data that cannot be used as they are."""


class CheckpointError(HftuneError, ValueError):
    """A checkpoint or saved model that is incomplete, damaged or of another architecture."""


class TrainingInterrupted(SystemExit):
    """A run that a signal stopped at the end of a step, after its checkpoint was saved.

    Left alone it ends the process with status 75, which says "start me again".

    Attributes:
        signal_name (str): ``"SIGTERM"`` or ``"SIGINT"``.
        step (int): Optimizer steps that are done.
        checkpoint (str or None): Where it goes on from.
    """

    def __init__(self, signal_name: str, step: int, checkpoint: str | None) -> None:
        super().__init__(RESUMABLE_EXIT_CODE)
        self.signal_name, self.step, self.checkpoint = signal_name, step, checkpoint

    def __str__(self) -> str:
        start = "the start" if self.checkpoint is None else self.checkpoint
        return (
            f"stopped by {self.signal_name} after step {self.step}; "
            f"the same command goes on from {start}"
        )


class NextStageProcess(SystemExit):
    """A stage is done, and the next one is to have a process of its own.

    :func:`hftune.utils.recipes.run_recipe` puts that process in the place of this one; without it
    the process ends with status 75, which says "start me again".

    Attributes:
        port (int or None): Where the processes of a distributed run are to meet again.
    """

    def __init__(self, port: int | None) -> None:
        super().__init__(RESUMABLE_EXIT_CODE)
        self.port = port

    def __str__(self) -> str:
        return "the stage is done; the same command goes on with the next one"


def did_you_mean(name: str, known: Iterable[str], *, most: int = 3, prefix: str = "") -> str:
    """Returns ``" Did you mean 'x'?"`` for names near ``name``, or an empty string.

    Args:
        name (str): What the user wrote.
        known (iterable of str): What would have been right.
        most (int): How many suggestions at the most. Defaults to 3.
        prefix (str): What to write before each suggestion, such as ``"--"``. Defaults to nothing.
    """
    near = difflib.get_close_matches(name, sorted(known), n=most, cutoff=0.5)
    if not near:
        return ""
    likeness = {n: difflib.SequenceMatcher(None, n, name).ratio() for n in near}
    # Beside a clear typing error the far ones only distract.
    near = [n for n in near if likeness[n] > likeness[near[0]] - 0.15]
    return " Did you mean " + " or ".join(f"'{prefix}{n}'" for n in near) + "?"


def listed(lines: Sequence[str]) -> str:
    """Returns lines to follow a colon: the first :data:`SHOWN` indented, and how many more there
    are.

    Args:
        lines (sequence of str): All of them.
    """
    more = [f"and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*lines[:SHOWN], *more])
