"""Kill -9 at random moments: what was logged is there, whole and once, and nobody runs for ever."""

import json
import mmap
import os
import random
import signal
import struct
import time

import pytest
import sqlalchemy as sa
from processes import finish, start

from hftune.tracking import index
from hftune.tracking.store import Store
from hftune.tracking.tables import metrics, runs
from hftune.tracking.tracker import ExperimentTracker

KILLS = 50


@pytest.fixture
def acknowledged():
    """How many calls have returned, in memory that outlives the process."""
    with mmap.mmap(-1, 8) as shared:
        yield shared


def test_random_kills_under_writing(store_url, acknowledged):
    store = Store(store_url)
    with store.read():
        pass

    def write():
        tracker = ExperimentTracker(Store(store_url))
        tracker.start_experiment("to be killed", config={"seed": 1})
        for step in range(10**9):
            tracker.log_metrics({f"metric_{i}": step + i for i in range(10)}, step=step)
            acknowledged[:] = struct.pack("q", step + 1)
            if step % 50 == 0:
                time.sleep(0.001)  # so that the other threads and processes have their turn

    def read():  # a command that looks on, and is killed as well
        while True:
            index.refresh(Store(store_url))

    chance = random.Random(20261121)
    counts = []
    for number in range(KILLS):
        acknowledged[:] = struct.pack("q", 0)
        writer = start(write)
        reader = start(read) if number % 5 == 0 else None
        deadline = time.monotonic() + 60
        while struct.unpack("q", acknowledged[:])[0] == 0:
            assert time.monotonic() < deadline, "the writer never began"
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.25))
        for child in filter(None, (writer, reader)):
            os.kill(child, signal.SIGKILL)
            assert finish(child) == -signal.SIGKILL
        counts.append(struct.unpack("q", acknowledged[:])[0])

    assert index.refresh(store) == []
    with store.read() as connection:
        found = connection.execute(sa.select(runs).order_by(runs.c.id)).all()
        assert [run.status for run in found] == ["crashed"] * KILLS
        for run, least in zip(found, counts, strict=True):
            rows = connection.execute(
                sa.select(metrics.c.step, metrics.c.content)
                .where(metrics.c.run_id == run.id)
                .order_by(metrics.c.position)
            ).all()
            assert len(rows) in (least, least + 1)  # the last call may not have returned
            assert [row.step for row in rows] == list(range(len(rows)))
            assert all(
                json.loads(row.content) == {f"metric_{i}": row.step + i for i in range(10)}
                for row in rows[:: max(1, len(rows) // 50)]
            )
            assert run.step == len(rows) - 1
    assert sum(counts) > 50 * KILLS  # the kills came in the middle of work
    assert not any(index.pending().iterdir())


def test_kills_of_a_resumed_run_leave_one_curve(store_url, acknowledged, tmp_path):
    """The same folder, killed and started again from its last multiple of 100, ten times."""
    store = Store(store_url)
    folder = tmp_path / "out"

    def write():
        tracker = ExperimentTracker(Store(store_url))
        record = tracker.start(folder, task="t", configuration={})
        begin = struct.unpack("q", acknowledged[:])[0] // 100 * 100
        record.resumed(begin)
        for step in range(begin + 1, 10**9):
            record.log_metrics({"loss": float(step)}, step=step)
            acknowledged[:] = struct.pack("q", step)
            if step % 20 == 0:
                time.sleep(0.001)

    acknowledged[:] = struct.pack("q", 0)
    chance = random.Random(7)
    for _ in range(10):
        before = acknowledged[:]
        child = start(write)
        while acknowledged[:] == before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        assert finish(child) == -signal.SIGKILL
    last = struct.unpack("q", acknowledged[:])[0]
    assert index.refresh(store) == []
    with store.read() as connection:
        [run] = connection.execute(sa.select(runs)).all()
        current = connection.execute(
            sa.select(metrics.c.step).where(~metrics.c.superseded).order_by(metrics.c.position)
        ).scalars()
        steps = list(current)
    assert run.status == "crashed" and run.attempts == 10
    assert steps == list(range(1, len(steps) + 1)) and len(steps) in (last, last + 1)
