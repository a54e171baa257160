"""The log of a training in the background: its last lines, and those that follow."""

from __future__ import annotations

import codecs
import shutil
import sys
import time
from pathlib import Path

from .background_state import Launch
from .tables import one_line

__all__ = ["Lines", "follow", "last_lines"]

_PACE = 0.3  # seconds between two looks
_TAIL_BYTES, _LINE_BYTES = 1 << 20, 400  # that are read for the last lines: at least, and of each


class Lines:
    """Cuts what a program printed into lines as a terminal shows them.

    A progress bar draws itself anew after each carriage return: the last drawing stays.

    Attributes:
        rest (str): What stands after the last line's end.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""

    def feed(self, data: bytes) -> list[str]:
        """Takes more bytes; returns the lines that are whole now."""
        *whole, rest = (self._pending + self._decoder.decode(data)).split("\n")
        # Of a bar that is drawn for hours only the newest drawing is of use.
        self._pending = rest[rest.rstrip("\r").rfind("\r") + 1 :]
        return [_shown(line) for line in whole]

    @property
    def rest(self) -> str:
        """The line that is not whole yet."""
        return _shown(self._pending)


def _shown(line: str) -> str:
    return one_line(line.rstrip("\r").rpartition("\r")[2].expandtabs().rstrip())


def last_lines(path: Path, count: int) -> list[str]:
    """Returns the last lines of a file, as a terminal shows them.

    Args:
        path (Path): Which may be missing.
        count (int): How many at the most.
    """
    found, lines, _ = _tail(path, count)
    found += [lines.rest] if lines.rest else []
    return found[max(0, len(found) - count) :]


def _tail(path: Path, count: int) -> tuple[list[str], Lines, int]:
    """The last whole lines, what reads on from there, and where."""
    lines = Lines()
    if not path.is_file():
        return [], lines, 0
    with open(path, "rb") as stream:
        begin = max(0, path.stat().st_size - max(_TAIL_BYTES, _LINE_BYTES * count))
        stream.seek(begin)
        found = lines.feed(stream.read())
        if begin:
            del found[:1]  # cut somewhere in its middle
        return found[max(0, len(found) - count) :], lines, stream.tell()


def follow(launch: Launch, count: int) -> Launch:
    """Prints the last lines of a log and those that follow, until the training ends.

    Args:
        launch (Launch): Whose log; should another start follow in its folder, also that one's.
        count (int): How many of the last lines.

    Returns:
        The start that ended.
    """
    found, lines, place = _tail(launch.log, count)
    _print(found, lines)
    while True:
        newest = Launch.load(launch.folder)
        is_new = newest.values["id"] != launch.values["id"]
        going = is_new or newest.is_going_on()  # before reading: nothing comes after the end
        data = _read(launch.log, place)
        place += len(data)
        if data:
            _print(lines.feed(data), lines)
        elif is_new or not going:
            _print([lines.rest] if lines.rest else [], Lines())
            if not is_new:
                return newest
            print(f"\n{newest.log}:", flush=True)
            lines, place = Lines(), 0
        else:
            time.sleep(_PACE)
        if is_new and not data:
            launch = newest


def _read(path: Path, place: int) -> bytes:
    if not path.is_file():
        return b""
    with open(path, "rb") as stream:
        stream.seek(place)
        return stream.read()


def _print(whole: list[str], lines: Lines) -> None:
    """Prints whole lines; below them, on a terminal, the bar that is being drawn."""
    is_terminal = sys.stdout.isatty()
    for line in whole:
        print(f"\r\x1b[K{line}" if is_terminal else line)
    if is_terminal:
        from rich.cells import set_cell_size

        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{set_cell_size(lines.rest, width).rstrip()}", end="")
    sys.stdout.flush()
