"""Builds the index again from the runs' own files."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import checked_name, read_json, write_json
from ..utils.terminal import progress
from . import index
from .store import Store, StoreError, insert, next_id
from .tables import counters, runs

if TYPE_CHECKING:
    from sqlalchemy import Row

__all__ = ["Reindexed", "reindex"]


@dataclasses.dataclass
class Reindexed:
    """What :func:`reindex` did.

    Attributes:
        runs (list of str): Ids of the runs that are in the index now.
        problems (list of str): What was left out and why, for people.
    """

    runs: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def reindex(store: Store, folders: Iterable[str | os.PathLike[str]] = ()) -> Reindexed:
    """Indexes runs from their files, as if for the first time.

    Without folders these are all runs of ``HFTUNE_HOME/runs``. With folders they are the runs in
    those, which become known, and those of ``HFTUNE_HOME/runs`` that the store does not know.
    What the store has of runs whose files are elsewhere stays.

    Args:
        store (Store): Where; may be empty.
        folders (iterable of paths): A run's folder, or one that is searched for runs. A run that
            nothing tracked gets an id here.

    Raises:
        StoreError: If the store cannot be read.
    """
    done = Reindexed()
    given = list(folders)
    known = _known_ids(store)
    places = [entry for entry in _entries() if not given or entry.name not in known]
    for folder in given:
        found = list(_search(Path(folder)))
        if not found:
            done.problems.append(f"{folder}: no run.json there or below it")
        places += found
    seen: dict[str, Path] = {}
    left_out: dict[Path, str] = {}
    try:
        for place in progress(places, "Indexing runs", "runs"):
            try:
                done.runs.append(_index(store, place, seen))
            except _Skipped as skipped:
                left_out[place] = str(skipped)
    finally:
        _count_on(store, done.runs)
    # A link to a folder that was moved leads to where it was found.
    found = {index.run_links() / run_id for run_id in done.runs}
    done.problems += [f"{place}: {why}" for place, why in left_out.items() if place not in found]
    return done


class _Skipped(Exception):
    """Why a folder is left out."""


def _entries() -> list[Path]:
    folder = index.run_links()
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _known_ids(store: Store) -> set[str]:
    import sqlalchemy as sa

    with store.read() as connection:
        return set(connection.execute(sa.select(runs.c.id)).scalars())


def _search(folder: Path) -> Iterator[Path]:
    """The folders with a ``run.json``, from the top down."""
    for name, below, files in os.walk(folder):
        below[:] = sorted(one for one in below if not one.startswith("."))
        if "run.json" in files:
            yield Path(name)


def _index(store: Store, place: Path, seen: dict[str, Path]) -> str:
    """Indexes one folder; returns the run's id in the index."""
    import sqlalchemy as sa

    folder = place.resolve()
    record = _read(folder)
    try:
        if not record.get("experiment_id"):
            record = _identify(store, folder)
        uid = record["uid"]
        if seen.setdefault(uid, folder) != folder:
            raise _Skipped(f"is a copy of the run in {seen[uid]}, which is indexed")
        with store.read() as connection:
            row = connection.execute(
                sa.select(runs.c.id, runs.c.folder).where(runs.c.uid == uid)
            ).one_or_none()
        if row is not None and _is_elsewhere(row, folder, uid):
            raise _Skipped(f"is a copy of the run {row.id} in {row.folder}, which is indexed")
        checked_name(record["experiment_id"], "experiment id")
        status = index.catch_up(store, folder, again=True)
        with store.read() as connection:
            run_id = connection.execute(sa.select(runs.c.id).where(runs.c.uid == uid)).scalar_one()
        if place != index.run_links() / run_id:
            index.link(folder, run_id)
        if status not in ("created", "running"):
            (index.pending() / run_id).unlink(missing_ok=True)
    except KeyError as error:
        raise _Skipped(f"its files are not those of a whole run ({error} is missing)") from None
    except (OSError, ValueError, TypeError, AttributeError, StoreError) as error:
        raise _Skipped(str(error)) from None
    return run_id


def _read(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / "run.json")
    except FileNotFoundError:
        gone = f"its folder {folder} is gone" if not folder.is_dir() else "it has no run.json"
        raise _Skipped(f"{gone}; what the index has of it stays") from None
    except (OSError, ValueError) as error:
        raise _Skipped(f"run.json cannot be read ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("attempts"), list):
        raise _Skipped("run.json is not the record of a run")
    return record


def _identify(store: Store, folder: Path) -> dict[str, Any]:
    """Gives an id to a run that was recorded with the tracking off."""
    import filelock

    with filelock.FileLock(folder / ".run.json.lock", timeout=10):
        record = read_json(folder / "run.json")
        with store.write() as connection:
            started = datetime.datetime.fromisoformat(record["started"])
            run_id = next_id(connection, "exp", started.astimezone(datetime.timezone.utc))
        names = {"experiment_id": run_id, "uid": uuid.uuid4().hex}
        record = names | {"name": folder.name} | record | names
        write_json(folder / "run.json", record)
    return record


def _is_elsewhere(row: Row, folder: Path, uid: str) -> bool:
    """Whether the index has the run from another folder that is still there."""
    if Path(row.folder) == folder:
        return False
    try:
        return read_json(Path(row.folder, "run.json")).get("uid") == uid
    except (OSError, ValueError, AttributeError):
        return False


def _count_on(store: Store, ids: Iterable[str]) -> None:
    """Has ids that are given out later follow those that are taken."""
    import sqlalchemy as sa

    highest: dict[str, int] = {}
    for run_id in ids:
        if match := re.fullmatch(r"(exp_\d{8})_(\d{3,9})", run_id):
            highest[match[1]] = max(highest.get(match[1], 0), int(match[2]))
    if not highest:
        return
    with store.write() as connection:
        for name, number in highest.items():
            statement = insert(connection, counters).values(name=name, value=number)
            larger = sa.case((counters.c.value < number, number), else_=counters.c.value)
            connection.execute(
                statement.on_conflict_do_update(index_elements=["name"], set_={"value": larger})
            )
