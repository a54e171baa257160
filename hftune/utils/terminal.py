"""What people see while a command works: one console and progress bars with an ETA."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Progress",
    "console",
    "copy_messages",
    "duration",
    "is_main_process",
    "progress",
    "say",
    "spark",
]

LOG_SECONDS = 30.0
"""Time between two lines of a progress that is written to a file instead of a terminal."""

_BARS = "▁▂▃▄▅▆▇█"


@functools.cache
def console() -> Console:
    """The console for messages: standard error, so that results on standard output stay clean."""
    from rich.console import Console
    from rich.control import Control

    class CopiedConsole(Console):
        """Says everything to the log files of the run as well."""

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*objects, **options)
            if objects and not any(isinstance(item, Control) for item in objects):
                for stream in _copies:
                    _copy(stream, objects, options)

    return CopiedConsole(stderr=True, highlight=False)


_copies: list[IO[str]] = []


def copy_messages(stream: IO[str]) -> Callable[[], None]:
    """Has everything that the console says written to a file too, each message with its time.

    A fault of the file is no fault of the run: what cannot be written is left out.

    Args:
        stream (file): Open for text.

    Returns:
        A function that ends it.
    """
    _copies.append(stream)
    return lambda: _copies.remove(stream) if stream in _copies else None


def _copy(stream: IO[str], objects: Sequence[Any], options: dict[str, Any]) -> None:
    from rich.console import Console

    with contextlib.suppress(OSError, ValueError):
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        stamp = [when] if isinstance(objects[0], str) else []
        file_console = Console(file=stream, width=160, color_system=None, highlight=False)
        file_console.print(*stamp, *objects, **options)
        stream.flush()


def is_main_process() -> bool:
    """Whether this is the process of a distributed run that talks; says so without torch."""
    return os.environ.get("RANK", "0") == "0"


def say(*objects: Any, **options: Any) -> None:
    """Prints a message in the first process of a distributed run.

    Args:
        *objects: As for ``rich.print``.
        **options: As for ``rich.console.Console.print``.
    """
    if is_main_process():
        console().print(*objects, **options)


def duration(seconds: float) -> str:
    """Formats a time: ``duration(3671) == "1:01:11"``, ``duration(71) == "1:11"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def spark(values: Sequence[float], width: int) -> str:
    """Draws numbers as bars: ``spark([0, 1, 2, 7], 4) == "▁▂▃█"``.

    Args:
        values (sequence of float): Finite numbers; neighbours are averaged to ``width``.
        width (int): Characters at the most.
    """
    import numpy as np

    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return ""
    values = np.array([part.mean() for part in np.array_split(values, min(width, len(values)))])
    span = np.ptp(values)
    if span == 0:
        return _BARS[0] * len(values)
    heights = (values - values.min()) / span * (len(_BARS) - 1)
    return "".join(_BARS[int(round(height))] for height in heights)


class Progress:
    """A progress bar, made by :func:`progress`; a context manager and, over items, an iterable."""

    def __init__(
        self, work: Iterable[Any] | int | None, description: str, unit: str, initial: int
    ) -> None:
        self.items = None if work is None or isinstance(work, int) else work
        self.total = (
            work if isinstance(work, int) else len(work) if isinstance(work, Sized) else None
        )
        self.description, self.unit = description, unit
        self.initial = self.done = initial
        self._started = self._logged = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        self._started = self._logged = time.monotonic()
        self.update(0)
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        if self.items is None:
            raise TypeError("this progress has no items to go through: call update()")
        with self:
            for item in self.items:
                yield item
                self.update()

    def update(self, count: int = 1) -> None:
        """Says that ``count`` more units are done."""
        if not is_main_process():
            return
        if self._bar is None and console().is_terminal:
            self._bar = self._make_bar()
            self._task = self._bar.add_task(
                self.description, total=self.total, completed=self.done, unit=self.unit
            )
            self._bar.start()
        self.done += count
        if self._bar is not None:
            self._bar.advance(self._task, count)
        elif (now := time.monotonic()) - self._logged >= LOG_SECONDS:
            self._logged = now
            console().print(self._line(now - self._started))

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    def _line(self, seconds: float) -> str:
        if self.total is None:
            return f"{self.description}: {self.done} {self.unit} in {duration(seconds)}"
        left = seconds / max(self.done - self.initial, 1) * (self.total - self.done)
        share = 100 * self.done / max(self.total, 1)
        return (
            f"{self.description}: {self.done}/{self.total} {self.unit} ({share:.0f} %), "
            f"{duration(left)} left"
        )

    def _make_bar(self) -> Any:
        from rich import progress as bars

        return bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[unit]}"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("ETA"),
            bars.TimeRemainingColumn(),
            console=console(),
        )


def progress(
    work: Iterable[Any] | int | None, description: str, unit: str = "", *, initial: int = 0
) -> Progress:
    """Shows how far work has come: a bar with an ETA on a terminal, elsewhere a line now and then.

    Args:
        work (iterable, int or None): Items to go through, or how many units there are (None where
            that is not known).
        description (str): What is being done, such as ``"Reading fields"``.
        unit (str): What is counted, such as ``"days"``. Defaults to nothing.
        initial (int): Units that were done before, by an earlier attempt. Defaults to 0.

    Example:
        >>> for block in progress(blocks, "Reading fields", "blocks"):
        ...     read(block)
        >>> with progress(1000, "Writing", "rows") as bar:
        ...     bar.update(100)
    """
    return Progress(work, description, unit, initial)
