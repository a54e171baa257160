"""Kills runs with SIGKILL, starts them again, and compares their ends with one left alone.

A :class:`Target` is a run that can be started again and what it left. A series of kills goes into
one output folder: each attempt is killed at an armed point (the run kills itself there) or at a
random time (from outside), the last one is left to end. A kill counts as landed only with proof:
the process ended by signal 9, it had not finished, and, at an armed point, it wrote so into a pipe
just before.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from processes import start

__all__ = [
    "RANDOM", "Attempt", "Kill", "Reference", "Series", "Target", "attempt", "plan_series",
    "run_series", "targets",
]  # fmt: skip

RANDOM = "random time"
"""In place of a point: killed from outside, whenever."""


@dataclass(frozen=True)
class Target:
    """A run to be killed.

    Attributes:
        name (str): For people.
        run (callable): ``run(output_dir, point)`` in each of its processes: from start to end, or,
            with a point, until it kills itself there by ``os.kill(os.getpid(), SIGKILL)``.
        outcome (callable): ``outcome(output_dir)``: all that must not depend on kills.
        points (sequence of sequence of str): Its points in groups that come one after another: a
            run that was killed in one group still comes through all later ones.
        processes (int): How many it has. Defaults to 1.
    """

    name: str
    run: Callable[[Path, str | None], None]
    outcome: Callable[[Path], Any]
    points: Sequence[Sequence[str]]
    processes: int = 1


@dataclass(frozen=True)
class Attempt:
    """How a run was started once, and how it ended.

    Attributes:
        statuses (list of int): Exit statuses of its processes, negative for a signal.
        said (str): What they wrote into the pipe: ``started``, ``armed``, ``finished``.
        alive (bool): Whether the process to be killed was there when it was.
        seconds (float): From start to end.
        hung (bool): Whether a process had to be ended by force.
    """

    statuses: list[int]
    said: str
    alive: bool
    seconds: float
    hung: bool


@dataclass(eq=False)
class Kill:
    """A kill that was planned, and whether there is proof of it."""

    point: str
    landed: bool = False
    note: str = ""


@dataclass
class Series:
    """Kills of one run, and whether its end was that of a run left alone."""

    target: Target
    kills: list[Kill]
    folder: Path
    equal: bool = False
    note: str = ""

    @property
    def passed(self) -> bool:
        """Equal, and each kill at an armed point has landed."""
        return self.equal and all(kill.landed or kill.point == RANDOM for kill in self.kills)


PATIENCE = 120.0
"""Seconds for a run to end by itself."""
GRACE = 3.0
"""Seconds that a launcher gives the others once one of its processes has died."""


def attempt(
    target: Target,
    folder: Path,
    point: str | None = None,
    delay: float | None = None,
    victim: int = 0,
) -> Attempt:
    """Starts a run once, as a launcher would.

    Args:
        target (Target): The run.
        folder (Path): Its output folder.
        point (str, *optional*): Where it kills itself.
        delay (float, *optional*): Seconds after which ``victim`` is killed from outside.
        victim (int): The rank of the process that is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begun = time.monotonic()
    children = [
        start(lambda r=rank: _work(target, folder, point, r, port, writing))
        for rank in range(target.processes)
    ]
    os.close(writing)
    statuses: dict[int, int] = {}
    alive = hung = False
    ending: float | None = None  # since when the others are told to end
    while len(statuses) < len(children):
        for rank, child in enumerate(children):
            if rank not in statuses:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    statuses[rank] = os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        left = [child for rank, child in enumerate(children) if rank not in statuses]
        if delay is not None and now - begun >= delay:
            delay = None
            if victim not in statuses:  # a child that is not waited for keeps its id
                alive = True
                os.kill(children[victim], signal.SIGKILL)
        if any(statuses.values()) and ending is None:
            ending = now
            for child in left:
                os.kill(child, signal.SIGTERM)
        if (ending is not None and now - ending > GRACE) or now - begun > PATIENCE:
            hung |= ending is None
            for child in left:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    said = b""
    while True:
        try:
            block = os.read(reading, 1 << 16)
        except BlockingIOError:  # a data worker that has not noticed yet
            break
        if not block:
            break
        said += block
    os.close(reading)
    ended = [statuses[rank] for rank in range(len(children))]
    return Attempt(ended, said.decode(), alive, time.monotonic() - begun, hung)


def _work(
    target: Target, folder: Path, point: str | None, rank: int, port: int, writing: int
) -> None:
    """In the child: the run, its messages in a file."""
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    print(f"\n--- rank {rank}, point {point}")
    if target.processes > 1:
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ |= {"WORLD_SIZE": str(target.processes), "RANK": str(rank)}
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"MASTER_PORT": str(port)}
    kill = os.kill

    def told(pid: int, number: int) -> None:
        if pid == os.getpid() and number == signal.SIGKILL:
            os.write(writing, b"armed\n")
        kill(pid, number)

    os.kill = told
    os.write(writing, b"started\n")
    target.run(folder, point)
    os.write(writing, b"finished\n")


def plan_series(
    target: Target, draw: random.Random, *, at_random: bool, most: int = 3
) -> list[str]:
    """Draws the kills of one series: at random times, or at points in the order of a run."""
    if at_random:
        return [RANDOM] * draw.randint(1, most)
    count = draw.randint(1, min(most, len(target.points)))
    groups = sorted(draw.sample(range(len(target.points)), count))
    return [draw.choice(target.points[group]) for group in groups]


class Reference:
    """The run that nothing happens to: its outcome, and how long it takes."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.seconds = PATIENCE
        for place in (folder, Path(f"{folder}_again")):  # the first one also fills caches
            whole = attempt(target, place)
            if any(whole.statuses):
                raise RuntimeError(f"{target.name} ends with {whole.statuses}: see {place}.log")
            self.seconds = min(self.seconds, whole.seconds)
        self.outcome = target.outcome(folder)
        if target.outcome(place) != self.outcome:
            raise RuntimeError(f"{target.name}: two runs in {folder.parent} differ by themselves")


def run_series(
    target: Target, points: Sequence[str], reference: Reference, folder: Path, draw: random.Random
) -> Series:
    """Kills a run several times, lets it end, and compares.

    Args:
        target (Target): The run.
        points (sequence of str): Where it is killed, one attempt each; ``"random time"``: whenever.
        reference (Reference): The run left alone.
        folder (Path): For this series; removed if all is well. Its log is ``FOLDER.log``.
        draw (random.Random): Chooses times and processes.
    """
    series = Series(target, [Kill(point) for point in points], folder)
    for kill in list(series.kills):
        if kill.point == RANDOM:
            tried = attempt(
                target,
                folder,
                delay=draw.uniform(0, 0.8 * reference.seconds),
                victim=draw.randrange(target.processes),
            )
            proof = tried.alive
        else:
            tried = attempt(target, folder, point=kill.point)
            proof = "armed" in tried.said
        finished = tried.said.count("finished") == target.processes
        kill.landed = proof and not finished and -signal.SIGKILL in tried.statuses
        kill.note = f"statuses {tried.statuses}, said {tried.said.split()}"
        if tried.hung:
            series.note = "hung"
            return series
        if finished:  # there is nothing left to kill
            series.kills = series.kills[: series.kills.index(kill) + 1]
            break
    last = attempt(target, folder)
    if any(last.statuses):
        series.note = f"the run did not end: statuses {last.statuses}"
        return series
    series.equal = target.outcome(folder) == reference.outcome
    if not series.equal:
        series.note = "the outcome differs"
    if series.passed:
        shutil.rmtree(folder)
        Path(f"{folder}.log").unlink()
    return series


def targets() -> dict[str, Target]:
    """The runs that are killed: plain, with two processes, progressive, a lead-time chain."""
    tests = Path(__file__).parent
    sys.path[:0] = [str(tests / "training"), str(tests / "tasks" / "aardvark")]
    import chain_run
    import progressive_run
    import small_run

    def outcome(folder: Path) -> Any:
        return json.loads((folder / "results.json").read_text())

    def settings(point: str | None) -> dict[str, Any]:
        return {} if point is None else {"kill": point}

    found = [
        Target(
            "plain",
            lambda folder, point: small_run.run(folder, settings(point)),
            outcome,
            _points_of_plain_run(last=15),
        ),
        Target(
            "two processes",
            lambda folder, point: small_run.run(folder, settings(point)),
            outcome,
            _points_of_plain_run(last=9),
            processes=2,
        ),
        Target(
            "progressive",
            lambda folder, point: progressive_run.run(folder, settings(point)),
            progressive_run.outcome,
            _points_of_stages([(2, 4), (4, 8), (7, 14), (10, 20)]),
        ),
        Target(
            "lead time chain",
            lambda folder, point: chain_run.run(folder, settings(point)),
            chain_run.outcome,
            _points_of_stages([(4, 8)] * 3, "block", "finish", "manifest", "tidy"),
        ),
    ]
    return {target.name: target for target in found}


def _points_of_plain_run(last: int) -> list[list[str]]:
    """Saves are at each third step; from the third one on, a save deletes the oldest."""
    groups = []
    for step in range(3, last + 1, 3):
        kinds = ["evaluation", "model", "optimizer", "manifest", "rotation"]
        kinds += ["deleting"] if step >= 9 else []
        groups.append([f"step:{step - 2}", *(f"{kind}:{step}" for kind in kinds)])
    return [["step:0"], *groups]


def _points_of_stages(epochs: Sequence[Sequence[int]], *more: str) -> list[list[str]]:
    """A group a stage; ``epochs`` are the steps at which each stage's epochs end, ``more`` further
    points of each stage.
    """
    groups = []
    for number, ends in enumerate(epochs, 1):
        points = [f"step:{number}:{ends[0]}", f"sealed:{number}", f"weights:{number}"]
        points += [f"{kind}:{number}:{end}" for kind in ("save", "evaluation") for end in ends]
        points += [f"{kind}:{number}" for kind in ("journal", "rename", *more)]
        if number < len(epochs):
            points += [f"between:{number}", f"prune:{number}"]
        groups.append(points)
    return groups
