"""The thread beside a run that beats and keeps the index up to date: the run never waits."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from . import index
from .liveness import BEAT_SECONDS
from .store import Store, StoreError

if TYPE_CHECKING:
    from .run_record import RunRecord

__all__ = ["Background"]

_PACE = 1.0  # seconds between two looks at what is new
_PATIENCE = 2.0  # seconds that one try waits for a lock: it comes again, and a fork waits for it
_LAST_PATIENCE = 15.0  # seconds that the end of a run waits for the index


class Background:
    """Indexes a run's files while it goes on.

    A store that is locked, full or out of reach is reported once; the thread tries again, ever more
    rarely, and says when it has caught up.

    Args:
        record (RunRecord): The run, whose heartbeat it beats.
        store (Store): Where to index.
    """

    def __init__(self, record: RunRecord, store: Store) -> None:
        self._record, self._store = record, store.with_patience(_PATIENCE)
        self._news, self._end = threading.Event(), threading.Event()
        self._failures = 0
        self._process = os.getpid()
        self._news.set()
        self._thread = threading.Thread(target=self._run, name="hftune tracking", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new in the files."""
        self._news.set()
        if self._end.is_set() and self._process == os.getpid():
            self._catch_up()  # a word after the end of the run

    def stop(self) -> None:
        """Indexes the rest and ends the thread."""
        if self._process != os.getpid() or self._end.is_set():
            return
        self._end.set()
        self._thread.join(_LAST_PATIENCE)
        if not self._thread.is_alive():
            self._catch_up()
        if self._failures or self._thread.is_alive():
            self._record.trouble(
                "files: store at the end",
                "the experiment store is not up to date yet; the run's own files are, and the next "
                "'hftune runs' command catches up with them",
            )

    def _run(self) -> None:
        indexed = next_try = 0.0
        while not self._end.wait(_PACE if indexed else 0):
            now = time.monotonic()
            beat = time.time() - self._record.heartbeat.last >= BEAT_SECONDS
            if beat:
                self._record.heartbeat.beat()
            if (beat or self._news.is_set()) and now >= next_try:
                self._catch_up()
                indexed = time.monotonic()
                next_try = indexed + (min(2.0**self._failures, 60.0) if self._failures else 0)

    def _catch_up(self) -> None:
        self._news.clear()
        beat = self._record.heartbeat
        try:
            status = index.catch_up(
                self._store, self._record.folder, heartbeat=(beat.last, beat.longest)
            )
        except (StoreError, OSError, ValueError, KeyError) as error:
            self._failures += 1
            self._news.set()
            self._record.trouble(
                "files: store",
                f"{error}. Training goes on; the run's own files in {self._record.folder} have "
                "everything, and the store catches up once it can be reached",
            )
            return
        if self._failures:
            self._failures = 0
            self._record.say("the experiment store has caught up")
        if status not in ("created", "running"):
            try:
                (index.pending() / str(self._record.experiment_id)).unlink(missing_ok=True)
            except OSError:
                pass
