"""How long the optimizer steps of all processes take, without making one wait for another."""

from __future__ import annotations

import time
from typing import Any

import torch.distributed

__all__ = ["StepTimes"]


class StepTimes:
    """Times optimizer steps between two logs; what lies between steps (evaluation, saving) is out.

    In a group of processes the others leave their numbers in the group's key-value store, where
    the first one reads them: a process that fails, or has no callback, holds nobody up. (A
    collective operation that one of them does not take part in would hang, or be mistaken for the
    next one of the trainer.)
    """

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, step: int) -> None:
        """Training begins, or goes on, after ``step`` optimizer steps."""
        self._mark = self._logged = time.monotonic()
        self._logged_step = step
        self._empty()

    def _empty(self) -> None:
        self._steps, self._seconds, self._slowest = 0, 0.0, 0.0

    def mark(self) -> None:
        """What took time until now was no part of a step."""
        self._mark = time.monotonic()

    def step(self) -> None:
        """A step ends; it began with the one before, or with the last mark."""
        now = time.monotonic()
        self._steps += 1
        self._seconds += now - self._mark
        self._slowest = max(self._slowest, now - self._mark)
        self._mark = now

    def leave(self, args: Any, step: int) -> None:
        """Of every process but the first: leaves the numbers for it and begins anew."""
        key = _key(args.process_index)
        store = _group_store()
        store.set(key, f"{step} {self._steps} {self._seconds} {self._slowest}")
        store.check([key])  # an answer to this says that the store has the line above
        self._empty()

    def collect(self, args: Any, step: int) -> dict[str, float]:
        """Of the first process, after the others have left theirs: the numbers for a log.

        Returns:
            ``step_seconds_mean``, of all steps of all processes; ``step_seconds_slowest``, of one
            step of one process; and the rate since the last log, evaluation and saving included.
            Empty where no step was done.
        """
        now = time.monotonic()
        done = step - self._logged_step
        if not self._steps or done <= 0:
            return {}
        steps, seconds, slowest = self._steps, self._seconds, self._slowest
        for line in _left_by_others(args.world_size):
            of_step, *numbers = map(float, line.split())
            if of_step == step:
                steps += numbers[0]
                seconds += numbers[1]
                slowest = max(slowest, numbers[2])
        rate = done / (now - self._logged)
        samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._empty()
        self._logged, self._logged_step = now, step
        return {
            "step_seconds_mean": seconds / steps,
            "step_seconds_slowest": slowest,
            "steps_per_second": rate,
            "samples_per_second": rate * samples,
        }


def _key(rank: int) -> str:
    return f"hftune/step_times/{rank}"


def _group_store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()


def _left_by_others(world_size: int) -> list[bytes]:
    if world_size == 1 or not torch.distributed.is_initialized():
        return []
    keys = [_key(rank) for rank in range(1, world_size)]
    store = _group_store()
    # Reading a key that nobody has set would wait for it.
    return store.multi_get(keys) if store.check(keys) else []
