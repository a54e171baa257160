"""The registry's own files beside the models: what it can be built from again.

``records/<model_id>.json`` holds the facts of a version, ``events.jsonl`` what happened to all of
them. Both are written inside the transaction of the database, last before its commit.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import json
import math
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import CheckpointError
from ..utils.files import atomic_write
from .contents import ContentStore
from .json_lines import JsonLines, read_lines, to_number
from .store import Store, insert
from .tables import aliases, counters, directions, model_events, models, performance

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = [
    "MODEL_ID",
    "Change",
    "changing",
    "next_version",
    "read_records",
    "record_path",
    "reindex",
]

_ADVISORY_LOCK = 7_270_414_906  # beside the one of the migrations
MODEL_ID = re.compile(r"model_\d{8}_\d{3,}")

_ALIAS_EVENTS = ("promoted", "alias removed")


class Change:
    """A change under way, begun by :func:`changing`.

    Attributes:
        connection (sqlalchemy.Connection): Its transaction.
        contents (ContentStore): Whose folder the files are in.
    """

    def __init__(self, connection: Connection, contents: ContentStore) -> None:
        self.connection = connection
        self.contents = contents
        self._added: list[dict[str, Any]] = []
        self._dropped: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []
        self._log = JsonLines(contents.root / "events.jsonl")

    def add(self, record: dict[str, Any]) -> None:
        """Adds a version: its rows and its record."""
        _insert_rows(self.connection, record)
        self._added.append(record)

    def drop(self, record: dict[str, Any]) -> None:
        """Removes a version."""
        self.connection.execute(models.delete().where(models.c.id == record["model_id"]))
        self._dropped.append(record)

    def happened(self, kind: str, record: Mapping[str, Any], **content: Any) -> None:
        """Adds to the log what happened to a version."""
        event = {
            "time": time.time(),
            "who": _who(),
            "kind": kind,
            "name": record["name"],
            "model_id": record["model_id"],
            "content": {"version": record["version"], **content},
        }
        self.connection.execute(model_events.insert().values(event))
        self._events.append({"uid": uuid.uuid4().hex, **event})

    def write_files(self) -> None:
        """Writes the files of the change, when nothing but the commit is left to do."""
        root = self.contents.root
        for record in self._added:
            _write_record(root, record)
        for record in self._dropped:
            record_path(root, record["model_id"]).unlink(missing_ok=True)
        for event in self._events:
            self._log.append(event)
        self._log.sync()
        self._log.close()

    def undo_files(self) -> None:
        """Takes them back: the commit failed."""
        for record in self._added:
            record_path(self.contents.root, record["model_id"]).unlink(missing_ok=True)
        for record in self._dropped:
            _write_record(self.contents.root, record)
        for event in self._events:
            self._log.append({"undone": event["uid"]})
        self._log.close()


@contextlib.contextmanager
def changing(store: Store, contents: ContentStore) -> Iterator[Change]:
    """A transaction of the registry: changes come one after the other, whole or not at all.

    Raises:
        StoreError: If the store or the models' folder cannot be written.
    """
    writing = None
    try:
        with store.write() as connection:
            if not store.is_sqlite:  # where writers come one after the other by themselves
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
            change = Change(connection, contents)
            yield change
            writing = change
            with contents.explained():
                change.write_files()
    except BaseException:
        if writing is not None:
            with contextlib.suppress(OSError):
                writing.undo_files()
        raise


def _insert_rows(connection: Connection, record: Mapping[str, Any]) -> None:
    connection.execute(models.insert().values(_model_row(record)))
    if record["performance"]:
        connection.execute(performance.insert(), _performance_rows(record))
    for metric, greater in record["metric_directions"].items():
        direction = {"greater_is_better": greater}
        connection.execute(
            insert(connection, directions)
            .values(metric=metric, **direction)
            .on_conflict_do_update(index_elements=["metric"], set_=direction)
        )


def _model_row(record: Mapping[str, Any]) -> dict[str, Any]:
    columns = ("name", "version", "architecture", "digest", "bytes")
    return {
        "id": record["model_id"],
        **{name: record[name] for name in columns},
        "created": datetime.datetime.fromisoformat(record["created"]).timestamp(),
        "experiment_id": record["experiment_id"],
        "parent_model": record["parent_model"],
        "record": record,
    }


def _performance_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for metric, value in record["performance"].items():
        number = to_number(value)
        rows.append(
            {
                "model_id": record["model_id"],
                "metric": metric,
                "value": None if math.isnan(number) else number,
            }
        )
    return rows


def record_path(root: Path, model_id: str) -> Path:
    """Where the record of a version is."""
    return root / "records" / f"{model_id}.json"


def _write_record(root: Path, record: Mapping[str, Any]) -> None:
    with atomic_write(record_path(root, record["model_id"])) as stream:
        json.dump(record, stream, indent=2, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


def read_records(root: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Returns the records in a folder by model id, and what is wrong with the others."""
    records, problems = {}, []
    for path in sorted((root / "records").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            _model_row(record), _performance_rows(record), record["metric_directions"].items()
            if record["model_id"] != path.stem or not MODEL_ID.fullmatch(path.stem):
                raise ValueError(f"it is of {record['model_id']}")
            records[path.stem] = record
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{path} cannot be used: {type(error).__name__}: {error}")
    return records, problems


def _read_events(root: Path) -> list[dict[str, Any]]:
    lines = [line for _, _, line in read_lines(root / "events.jsonl")]
    undone = {line["undone"] for line in lines if "undone" in line}
    return [line for line in lines if "uid" in line and line["uid"] not in undone]


def next_version(connection: Connection, name: str) -> int:
    """The number of a name's next version; the numbers of deleted ones are not used again."""
    import sqlalchemy as sa

    newest = connection.execute(
        sa.select(sa.func.max(models.c.version)).where(models.c.name == name)
    ).scalar()
    deleted = connection.execute(
        sa.select(model_events.c.content).where(
            model_events.c.name == name, model_events.c.kind == "deleted"
        )
    ).scalars()
    return 1 + max([newest or 0, *(content["version"] for content in deleted)])


def reindex(store: Store, contents: ContentStore) -> dict[str, Any]:
    """Adds to the database what the files know and it does not; see ``ModelRegistry.reindex``."""
    import sqlalchemy as sa

    root = contents.root
    with contents.holding(), changing(store, contents) as change, contents.explained():
        connection = change.connection
        records, problems = read_records(root)
        known = dict(connection.execute(sa.select(models.c.id, models.c.record)).all())
        new_events, decided = _restore_events(connection, _read_events(root))
        added = []
        for key, record in sorted(records.items(), key=lambda item: item[1]["created"]):
            if key not in known and _restore(connection, contents, record, problems):
                added.append(key)
        _restore_aliases(connection, new_events, decided)
        given_out = [*records, *(event["model_id"] for event in new_events)]
        _restore_counters(connection, given_out)
        for key in known.keys() - records.keys():
            _write_record(root, known[key])
    return {"models": added, "events": len(new_events), "problems": problems}


def _restore(
    connection: Connection, contents: ContentStore, record: dict[str, Any], problems: list[str]
) -> bool:
    """Adds a version from its record; returns whether it did."""
    import sqlalchemy as sa

    model_id, name, version = record["model_id"], record["name"], record["version"]
    versions = dict(
        connection.execute(
            sa.select(models.c.version, models.c.digest).where(models.c.name == name)
        ).all()
    )
    if record["digest"] in versions.values():
        problems.append(f"{model_id} is left out: its content is registered as {name} already")
        return False
    if version in versions:  # two stores had the same folder
        record["version"] = next_version(connection, name)
        problems.append(
            f"{model_id} is version {record['version']} of {name} now: {version} is another model"
        )
        _write_record(contents.root, record)
    try:
        contents.manifest(record["digest"])
    except CheckpointError as error:
        problems.append(f"{model_id} has lost its files: {error}")
    _insert_rows(connection, record)
    return True


def _restore_events(
    connection: Connection, events: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], set[tuple[str, str]]]:
    """Adds the events that are new; returns them, and the aliases of which the old ones speak."""
    import sqlalchemy as sa

    columns = [model_events.c[name] for name in ("time", "who", "kind", "name", "model_id")]
    columns.append(model_events.c.content)
    known = list(connection.execute(sa.select(*columns)))
    seen = {(row.time, row.kind, row.name, row.model_id) for row in known}
    new = [e for e in events if (e["time"], e["kind"], e["name"], e["model_id"]) not in seen]
    for event in new:
        row = {column.name: event[column.name] for column in columns}
        connection.execute(model_events.insert().values(row))
    return new, {(row.name, row.content["alias"]) for row in known if row.kind in _ALIAS_EVENTS}


def _restore_aliases(
    connection: Connection, events: list[dict[str, Any]], decided: set[tuple[str, str]]
) -> None:
    """Has aliases point where the events left them; what the database knows of one is right."""
    import sqlalchemy as sa

    pointing: dict[tuple[str, str], str | None] = {}
    for event in events:
        if event["kind"] in _ALIAS_EVENTS:
            place = event["name"], event["content"]["alias"]
            pointing[place] = event["model_id"] if event["kind"] == "promoted" else None
    present = set(connection.execute(sa.select(models.c.id)).scalars())
    for (name, alias), model_id in pointing.items():
        if (name, alias) not in decided and model_id in present:
            row = {"name": name, "alias": alias, "model_id": model_id}
            connection.execute(aliases.insert().values(row))


def _restore_counters(connection: Connection, model_ids: list[str]) -> None:
    """Keeps ids that were given out from being given out again."""
    highest: dict[str, int] = {}
    for model_id in model_ids:
        day, _, number = model_id.rpartition("_")
        highest[day] = max(highest.get(day, 0), int(number))
    for day, number in highest.items():
        statement = insert(connection, counters).values(name=day, value=number)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["name"],
                set_={"value": number},
                where=counters.c.value < number,
            )
        )


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = str(os.getuid())
    return f"{user}@{platform.node()}"
