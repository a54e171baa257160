"""Keeps the store what it is: an index of the runs' files.

There is one way into the index, :func:`catch_up`: it reads what was appended since the last time
and writes it together with how far it read, in one transaction. Whoever calls it, how often, and
whatever was killed in between, every line is there once.

``HFTUNE_HOME/runs`` holds one entry for each run: its folder, or a link to it. A link in
``runs/.pending`` stands for a run that has not ended or is not yet in the index as a whole; the
next command that looks at runs catches up with those.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import read_json
from ..utils.home import hftune_home
from .json_lines import read_lines, to_number
from .liveness import is_alive
from .run_values import last_sign, seconds_since_1970
from .store import Store, StoreError, insert
from .tables import directions, events, metrics, params, records, runs, summaries

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = [
    "catch_up",
    "flat",
    "forget",
    "given",
    "is_superseded",
    "link",
    "pending",
    "plain",
    "refresh",
    "run_links",
]

_ROWS = 20_000  # of one transaction
_LONGEST = 500  # characters of a name that are indexed: PostgreSQL's indexes have a limit


# Folders


def run_links() -> Path:
    """The folder with one entry for each run."""
    return hftune_home() / "runs"


def pending() -> Path:
    """The folder with a link to each run that the index may not know as a whole."""
    return run_links() / ".pending"


def link(folder: Path, experiment_id: str) -> None:
    """Makes a run's folder known, and due to be indexed.

    Raises:
        OSError: If ``HFTUNE_HOME`` cannot be written.
    """
    for place in (run_links(), pending()):
        place.mkdir(parents=True, exist_ok=True)
        entry = place / experiment_id
        if folder.resolve() == entry.absolute():
            continue
        temporary = place / f".{experiment_id}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.resolve(), target_is_directory=True)
        os.replace(temporary, entry)


# Reading


def plain(configuration: Any) -> Any:
    """Returns a configuration without the sources of its values."""
    if isinstance(configuration, Mapping):
        if configuration.keys() == {"value", "source"}:
            return configuration["value"]
        return {key: plain(value) for key, value in configuration.items()}
    return configuration


def given(configuration: Any) -> Any:
    """Returns a configuration without its sources and without what was left at its default."""
    if not isinstance(configuration, Mapping) or configuration.keys() == {"value", "source"}:
        return plain(configuration)
    kept = {
        key: given(value)
        for key, value in configuration.items()
        if not (isinstance(value, Mapping) and value.get("source") == "default")
    }
    return {key: value for key, value in kept.items() if value != {} or configuration[key] == {}}


def flat(configuration: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Goes through a plain configuration as ``("section.name", value)``."""
    if isinstance(configuration, Mapping) and configuration:
        for key, value in configuration.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, configuration


def _row(record: Mapping[str, Any], folder: Path, alive: bool) -> dict[str, Any]:
    """What the table of runs has from ``run.json``."""
    attempt = record["attempts"][-1]
    status, finished = record["status"], record["finished"]
    ended = None if finished is None else seconds_since_1970(finished)
    if status in ("created", "running") and not alive:
        status, ended = "crashed", last_sign(folder, record)
    seconds = attempt["seconds"]
    if attempt["finished"] is None:  # nothing has counted to the end of it
        seconds = max(seconds, (ended or time.time()) - seconds_since_1970(attempt["started"]))
    git = record.get("git") or {}
    return {
        "uid": record["uid"],
        "name": record["name"][:_LONGEST],
        "description": record.get("description", ""),
        "task": record["task"],
        "model_type": record.get("model_type", ""),
        "status": status,
        "notes": record.get("notes", ""),
        "tags": record.get("tags", []),
        "parent_run": record.get("parent_run"),
        "wandb_run_id": record.get("wandb_run_id"),
        "folder": str(folder),
        "host": attempt["process"]["host"],
        "created": seconds_since_1970(record["started"]),
        "ended": ended,
        "seconds": sum(one["seconds"] for one in record["attempts"][:-1]) + seconds,
        "data_fingerprint": record.get("data", {}).get("fingerprint"),
        "git_commit": git.get("commit"),
        "attempts": len(record["attempts"]),
        "stage": record["stages"][-1] if record.get("stages") else None,
        "max_steps": record.get("max_steps"),
    }


# Writing


def catch_up(
    store: Store,
    folder: str | os.PathLike[str],
    *,
    heartbeat: tuple[float, float] | None = None,
    again: bool = False,
) -> str:
    """Brings the index up to the files of one run.

    Args:
        store (Store): Where.
        folder (path): The run's folder.
        heartbeat (two floats, *optional*): Time of the last beat and longest silence, from the
            run's own process.
        again (bool): Whether what the index has of the run is thrown away first. Defaults to
            False.

    Returns:
        The run's state, ``crashed`` where its process is gone.

    Raises:
        OSError: If there is no record.
        ValueError: If the record cannot be read.
        StoreError: If the store cannot be written.
    """
    folder = Path(folder).resolve()
    record = read_json(folder / "run.json")
    with store.read() as connection:
        run_id, *known = _known(connection, record)
    beat = heartbeat or tuple(known)
    alive = is_alive(folder, record["attempts"][-1]["process"], *beat)
    row = _row(record, folder, alive)
    if heartbeat is not None or again:
        row["heartbeat"], row["heartbeat_gap"] = beat
    more = True
    while more:
        with store.write() as connection:
            if again:
                forget(connection, run_id)
                again = False
            offsets = _write_run(connection, run_id, row, record)
            _supersede(connection, run_id, record)
            more = _write_metrics(connection, run_id, folder, record, offsets[0])
            more |= _write_events(connection, run_id, folder, offsets[1])
    return row["status"]


def _known(
    connection: Connection, record: Mapping[str, Any]
) -> tuple[str, float | None, float | None]:
    """A run's id in the index, with its last beat and longest silence as far as they are known.

    The id is the run's own, unless another run was given it too, by a store that is no more.
    """
    import sqlalchemy as sa

    run_id, uid = record["experiment_id"], record["uid"]
    found = connection.execute(
        sa.select(runs.c.id, runs.c.uid, runs.c.heartbeat, runs.c.heartbeat_gap).where(
            (runs.c.id == run_id) | (runs.c.uid == uid)
        )
    ).all()
    for row in found:
        if row.uid == uid:
            return row.id, row.heartbeat, row.heartbeat_gap
    if found:
        run_id = f"{run_id.rpartition('_')[0]}_x{uid[:8]}"
    return run_id, None, None


def _write_run(
    connection: Connection, run_id: str, row: Mapping[str, Any], record: Mapping[str, Any]
) -> tuple[int, int]:
    """Writes the run's row and settings; returns how far its files are indexed."""
    import sqlalchemy as sa

    place = runs.c.id == run_id
    empty = {"metrics_offset": 0, "events_offset": 0, "resumes": 0}
    new = connection.execute(
        insert(connection, runs)
        .values(id=run_id, **row, **empty)
        .on_conflict_do_nothing()
        .returning(runs.c.id)
    ).first()
    if new:
        connection.execute(records.insert().values(run_id=run_id, content=record))
        _write_settings(connection, run_id, record)
        return 0, 0
    known = connection.execute(
        sa.select(runs.c.metrics_offset, runs.c.events_offset).where(place).with_for_update()
    ).one()
    its = records.c.run_id == run_id
    before = connection.execute(sa.select(records.c.content).where(its)).scalar_one()
    # Somebody who read the record later may have been faster.
    if before.get("revision", 0) <= record.get("revision", 0):
        connection.execute(runs.update().where(place).values(**row))
        connection.execute(records.update().where(its).values(content=record))
    if _settings(before) != _settings(record):
        connection.execute(params.delete().where(params.c.run_id == run_id))
        _write_settings(connection, run_id, record)
    offsets = []
    for name, offset, table in (
        ("metrics.jsonl", known.metrics_offset, metrics),
        ("events.jsonl", known.events_offset, events),
    ):
        path = Path(row["folder"], name)
        if offset and (not path.exists() or path.stat().st_size < offset):
            # The end of the file was lost with its machine: begin again with what there is.
            connection.execute(table.delete().where(table.c.run_id == run_id))
            if table is metrics:
                connection.execute(summaries.delete().where(summaries.c.run_id == run_id))
            offset = 0
        offsets.append(offset)
    return offsets[0], offsets[1]


def _settings(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record["configuration"], record.get("metric_directions")


def _write_settings(connection: Connection, run_id: str, record: Mapping[str, Any]) -> None:
    rows = {}
    for key, value in flat(plain(record["configuration"])):
        key = key[:_LONGEST]
        rows[key] = {
            "run_id": run_id, "key": key, "value": json.dumps(value), "number": _number(value)
        }  # fmt: skip
    if rows:
        connection.execute(params.insert(), list(rows.values()))
    for metric, greater in record.get("metric_directions", {}).items():
        direction = {"greater_is_better": greater}
        connection.execute(
            insert(connection, directions)
            .values(metric=metric, **direction)
            .on_conflict_do_update(index_elements=["metric"], set_=direction)
        )


def _number(setting: Any) -> float | None:
    if isinstance(setting, bool) or not isinstance(setting, (int, float)):
        return None  # PostgreSQL takes no boolean for a number
    try:
        return float(setting) if math.isfinite(setting) else None
    except OverflowError:  # an integer that no float can hold
        return None


def _write_metrics(
    connection: Connection, run_id: str, folder: Path, record: Mapping[str, Any], offset: int
) -> bool:
    """Writes new lines and what they change in the summaries; returns whether there are more."""
    rows, more = [], False
    for position, following, line in read_lines(folder / "metrics.jsonl", offset):
        offset = following
        values = line.get("metrics")
        if not isinstance(values, dict):
            continue
        rows.append(
            {
                "run_id": run_id,
                "position": position,
                "attempt": line["attempt"],
                "stage": line["stage"],
                "step": line.get("step"),
                "time": line["time"],
                "superseded": is_superseded(record["attempts"], line),
                "content": json.dumps(values, ensure_ascii=True, separators=(",", ":")),
            }
        )
        if len(rows) >= _ROWS:
            more = True
            break
    if not rows:
        return False
    connection.execute(metrics.insert(), rows)
    current = [row for row in rows if not row["superseded"]]
    _write_summaries(connection, run_id, current)
    steps = [row["step"] for row in current if row["step"] is not None]
    values = {"metrics_offset": offset} | ({"step": steps[-1]} if steps else {})
    connection.execute(runs.update().where(runs.c.id == run_id).values(**values))
    return more


def is_superseded(attempts: Iterable[Mapping[str, Any]], line: Mapping[str, Any]) -> bool:
    """Whether a later attempt went back behind a line of ``metrics.jsonl``.

    Args:
        attempts (iterable of mappings): Of ``run.json``.
        line (mapping): With ``attempt``, ``stage`` and ``step``.
    """
    step = line.get("step")
    return step is not None and any(
        attempt["number"] > line["attempt"]
        and attempt.get("from_step") is not None
        and (line["stage"], step) > (attempt["from_stage"], attempt["from_step"])
        for attempt in attempts
    )


def _supersede(connection: Connection, run_id: str, record: Mapping[str, Any]) -> None:
    """Takes what an attempt went back behind out of the current curves."""
    import sqlalchemy as sa

    attempts = [a for a in record["attempts"] if a.get("from_step") is not None]
    place = runs.c.id == run_id
    known = connection.execute(sa.select(runs.c.resumes).where(place)).scalar_one()
    if len(attempts) == known:
        return
    for attempt in attempts:
        behind = (metrics.c.stage > attempt["from_stage"]) | (
            (metrics.c.stage == attempt["from_stage"]) & (metrics.c.step > attempt["from_step"])
        )
        earlier = (metrics.c.run_id == run_id) & (metrics.c.attempt < attempt["number"])
        connection.execute(
            metrics.update()
            .where(earlier & behind & metrics.c.step.is_not(None))
            .values(superseded=True)
        )
    connection.execute(runs.update().where(place).values(resumes=len(attempts)))
    connection.execute(summaries.delete().where(summaries.c.run_id == run_id))
    current = connection.execute(
        sa.select(metrics.c.step, metrics.c.content)
        .where(metrics.c.run_id == run_id, ~metrics.c.superseded)
        .order_by(metrics.c.position)
    )
    _write_summaries(connection, run_id, [row._asdict() for row in current])


def _write_summaries(
    connection: Connection, run_id: str, rows: Iterable[Mapping[str, Any]]
) -> None:
    """Adds rows, in their order, to what is known of each metric."""
    import sqlalchemy as sa

    fresh: dict[str, dict[str, Any]] = {}
    for row in rows:
        step = row["step"]
        for key, value in json.loads(row["content"]).items():
            key, number = key[:_LONGEST], to_number(value)
            entry = fresh.setdefault(key, {"key": key, "count": 0, "low": None, "high": None})
            entry["count"] += 1
            entry["last"] = None if math.isnan(number) else number
            entry["last_step"] = step
            if math.isfinite(number):
                if entry["low"] is None or number < entry["low"]:
                    entry["low"], entry["low_step"] = number, step
                if entry["high"] is None or number > entry["high"]:
                    entry["high"], entry["high_step"] = number, step
    if not fresh:
        return
    of_run = summaries.c.run_id == run_id
    for old in connection.execute(sa.select(summaries).where(of_run)).mappings():
        entry = fresh.get(old["key"])
        if entry is None:
            continue
        entry["count"] += old["count"]
        for bound, sign in (("low", 1), ("high", -1)):
            before, now = old[bound], entry[bound]
            if before is not None and (now is None or sign * before <= sign * now):
                entry[bound], entry[f"{bound}_step"] = before, old[f"{bound}_step"]
    connection.execute(summaries.delete().where(of_run, summaries.c.key.in_(fresh)))
    template = dict.fromkeys((column.name for column in summaries.columns), None)
    connection.execute(
        summaries.insert(), [{**template, "run_id": run_id, **entry} for entry in fresh.values()]
    )


def _write_events(connection: Connection, run_id: str, folder: Path, offset: int) -> bool:
    """Writes new lines of ``events.jsonl``; returns whether there are more."""
    rows, values = [], {}
    for position, following, line in read_lines(folder / "events.jsonl", offset):
        offset = following
        known = ("time", "attempt", "stage", "step", "kind")
        row = {key: line.pop(key, None) for key in known}
        if row["kind"] is None:
            continue
        rows.append({"run_id": run_id, "position": position, **row, "content": line})
        if row["kind"] == "checkpoint":
            values["last_checkpoint"] = line.get("path")
        if len(rows) >= _ROWS:
            break
    if not rows:
        return False
    connection.execute(events.insert(), rows)
    connection.execute(
        runs.update().where(runs.c.id == run_id).values(events_offset=offset, **values)
    )
    return len(rows) >= _ROWS


def forget(connection: Connection, run_id: str) -> None:
    """Takes a run out of the index; its files stay as they are."""
    connection.execute(runs.delete().where(runs.c.id == run_id))


def refresh(store: Store) -> list[str]:
    """Makes the index say what is true now; called before runs are looked at.

    Catches up with the runs that are pending on this machine, and judges those elsewhere that are
    said to be running.

    Returns:
        What could not be done, for people.
    """
    import sqlalchemy as sa

    problems, seen = [], set()
    entries = sorted(pending().iterdir()) if pending().is_dir() else []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            status = catch_up(store, entry)
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                entry.unlink(missing_ok=True)  # its folder is gone: the index has what there was
            continue
        except (OSError, ValueError, KeyError, StoreError) as error:
            problems.append(f"{entry.name}: {error}")
            continue
        seen.add(entry.name)
        if status not in ("created", "running"):
            with contextlib.suppress(OSError):
                entry.unlink(missing_ok=True)
    alive = runs.c.status.in_(("created", "running"))
    with store.read() as connection:
        open_runs = connection.execute(
            sa.select(runs, records.c.content).join(records).where(alive)
        ).all()
    for run in open_runs:
        if run.id in seen:
            continue
        process = run.content["attempts"][-1]["process"]
        if not is_alive(run.folder, process, run.heartbeat, run.heartbeat_gap):
            last = run.heartbeat or seconds_since_1970(run.content["updated"])
            with store.write() as connection:
                still = runs.c.heartbeat.is_not_distinct_from(run.heartbeat)
                connection.execute(
                    runs.update()
                    .where(runs.c.id == run.id, alive, still)
                    .values(status="crashed", ended=last)
                )
    return problems
