"""Finding registered models: by reference, by what they were trained as, by how good they are."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..utils.errors import ConfigurationError, did_you_mean
from .contents import ContentStore
from .json_lines import to_number
from .metric_directions import greater_is_better, known_direction
from .registry_files import MODEL_ID
from .run_values import clean_text
from .tables import aliases, directions, model_events, models, performance

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

__all__ = [
    "SORTS",
    "Order",
    "by_clean_name",
    "by_metric",
    "direction_of",
    "events_of",
    "find_record",
    "find_records",
    "infos",
    "lineage",
    "metrics_of",
    "names_of",
    "order_of",
    "search_records",
]

SORTS = ("created", "name", "size")
"""What models can be sorted by beside their metrics."""

_NEWEST_FIRST = ((models.c.created, True), (models.c.id, True))


class Order(NamedTuple):
    """What comes first.

    Attributes:
        keys (tuple): Columns of models, and of performance where there is a metric, each with
            whether the largest comes first.
        metric (str, *optional*): Whose performance that is.
    """

    keys: tuple[tuple[ColumnElement[Any], bool], ...]
    metric: str | None = None


def find_record(connection: Connection, ref: str) -> dict[str, Any]:
    """Returns the record of the model that ``ref`` refers to.

    Args:
        connection (sqlalchemy.Connection): To the store.
        ref (str): An id, ``"name"``, ``"name:3"`` or ``"name@alias"``.

    Raises:
        ConfigurationError: If there is no such model; near ones are named.
    """
    import sqlalchemy as sa

    ref = clean_text(ref)
    name, colon, version = ref.partition(":")
    if not colon:
        name, at, alias = ref.partition("@")
    statement = sa.select(models.c.record)
    if MODEL_ID.fullmatch(ref):
        statement = statement.where(models.c.id == ref)
    elif colon:
        number = int(version) if version.isdecimal() and len(version) < 10 else -1
        statement = statement.where(models.c.name == name, models.c.version == number)
    elif at:
        pointing = sa.and_(aliases.c.name == name, aliases.c.alias == alias)
        statement = statement.join(aliases, aliases.c.model_id == models.c.id).where(pointing)
    else:
        statement = statement.where(models.c.name == name)
    newest = statement.order_by(models.c.version.desc()).limit(1)
    record = connection.execute(newest).scalar()
    if record is None:
        raise ConfigurationError(f"found no model '{ref}'.{_near(connection, ref, name)}")
    return record


def find_records(connection: Connection, refs: Iterable[str]) -> list[dict[str, Any]]:
    """Returns the records of several models.

    Raises:
        ConfigurationError: With all that are not there.
    """
    found, problems = [], []
    for ref in refs:
        try:
            found.append(find_record(connection, ref))
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return found


def _near(connection: Connection, ref: str, name: str) -> str:
    import sqlalchemy as sa

    if MODEL_ID.fullmatch(ref):
        newest = sa.select(models.c.id).order_by(models.c.created.desc()).limit(1000)
        return did_you_mean(ref, connection.execute(newest).scalars())
    versions = sa.select(models.c.version).where(models.c.name == name)
    newest = connection.execute(versions.order_by(models.c.version.desc()).limit(10)).scalars()
    if known := ", ".join(map(str, newest)):
        pointing = sa.select(aliases.c.alias).where(aliases.c.name == name)
        named = ", ".join(sorted(connection.execute(pointing).scalars())) or "none"
        return f" '{name}' has the versions {known} and the aliases: {named}."
    names = connection.execute(sa.select(models.c.name).distinct()).scalars().all()
    return did_you_mean(name, names) if names else " No model is registered."


def order_of(connection: Connection, sort: str, declared: Mapping[str, bool]) -> Order:
    """Returns the order that ``sort`` of ``ModelRegistry.search_models`` says.

    Args:
        connection (sqlalchemy.Connection): To the store.
        sort (str): One of :data:`SORTS` or a metric, with or without a dash.
        declared (mapping): What the caller says of directions of metrics.

    Raises:
        ConfigurationError: If no model has the metric, or its direction is not known.
    """
    sort = clean_text(sort)
    by = sort.removeprefix("-")
    if by == "created":
        return Order(_NEWEST_FIRST)
    if by == "size":
        return Order(((models.c.bytes, True), *_NEWEST_FIRST))
    if by == "name":
        return Order(((models.c.name, sort != by), (models.c.version, True)))
    _check_metric(connection, by, SORTS)
    return by_metric(by, sort != by or direction_of(connection, by, declared.get(by)))


def by_metric(metric: str, greater: bool) -> Order:
    """Returns the order by a metric; infinities, then NaN, then models without it come last."""
    import sqlalchemy as sa

    value = performance.c.value
    rank = sa.case(
        (_is_finite(value), 0),
        (value.is_not(None), 1),
        (performance.c.metric.is_not(None), 2),  # NaN is NULL
        else_=3,
    )
    oldest_first = (models.c.created, False), (models.c.id, False)
    return Order(((rank, False), (value, greater), *oldest_first), metric)


def search_records(
    connection: Connection,
    order: Order,
    *,
    equal: Mapping[str, str | None] | None = None,
    alias: str | None = None,
    bounds: Mapping[str, tuple[float, bool]] | None = None,
    measured: bool = False,
    latest: bool = False,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Returns the records that fulfil all conditions.

    Args:
        connection (sqlalchemy.Connection): To the store.
        order (Order): What comes first.
        equal (mapping, *optional*): Columns of models to what is in them; None for anything.
        alias (str, *optional*): That points to the model.
        bounds (mapping, *optional*): Metric to how good it is at least, and whether higher is
            better.
        measured (bool): Only models that have the metric of the order. Defaults to False.
        latest (bool): Of each name only the newest version that fulfils the rest. Defaults to
            False.
        limit (int, *optional*): How many at the most. Defaults to all.

    Raises:
        ConfigurationError: If the limit is below 1.
    """
    import sqlalchemy as sa

    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit: found {limit}, expected 1 or more")
    statement = sa.select(models.c.id)
    for column, wanted in (equal or {}).items():
        if wanted is not None:
            statement = statement.where(models.c[column] == clean_text(wanted))
    if alias is not None:
        pointed = sa.select(aliases.c.model_id).where(aliases.c.alias == clean_text(alias))
        statement = statement.where(models.c.id.in_(pointed))
    value = performance.c.value
    for metric, (bound, greater) in (bounds or {}).items():
        good = sa.select(performance.c.model_id).where(
            performance.c.metric == metric,
            _is_finite(value),
            value >= bound if greater else value <= bound,
        )
        statement = statement.where(models.c.id.in_(good))
    if latest:
        newest = sa.func.max(models.c.version).over(partition_by=models.c.name)
        found = statement.add_columns(models.c.version, newest.label("newest")).subquery()
        of_name = sa.select(found.c.id).where(found.c.version == found.c.newest)
        statement = sa.select(models.c.id).where(models.c.id.in_(of_name))
    if order.metric is not None:
        of_metric = sa.and_(
            performance.c.model_id == models.c.id, performance.c.metric == order.metric
        )
        statement = statement.join(performance, of_metric, isouter=not measured)
    # Records are long: only those of the result are read and sorted.
    keys = {f"key_{place}": key for place, (key, _) in enumerate(order.keys)}
    statement = statement.add_columns(*(key.label(name) for name, key in keys.items()))
    chosen = statement.order_by(*_ordered(order, keys)).limit(limit).subquery()
    records = sa.select(models.c.record).join(chosen, chosen.c.id == models.c.id)
    return list(connection.execute(records.order_by(*_ordered(order, chosen.c))).scalars())


def _ordered(order: Order, columns: Mapping[str, ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    named = ((columns[f"key_{place}"], falls) for place, (_, falls) in enumerate(order.keys))
    return [column.desc() if falls else column for column, falls in named]


def _is_finite(value: ColumnElement[Any]) -> ColumnElement[bool]:
    return value.between(-sys.float_info.max, sys.float_info.max)


def direction_of(connection: Connection, metric: str, explicit: bool | None) -> bool:
    """Returns whether higher is better in a metric that some model has.

    Args:
        connection (sqlalchemy.Connection): To the store.
        metric (str): As it was registered.
        explicit (bool, *optional*): What the caller says of it.

    Raises:
        ConfigurationError: If no model has it, or nobody says so.
    """
    import sqlalchemy as sa

    _check_metric(connection, metric)
    if explicit is not None:
        return explicit
    declared = connection.execute(sa.select(directions)).all()
    # What one run declared does not turn a metric around that the field agrees on.
    return greater_is_better(metric, {k: up for k, up in declared if known_direction(k) is None})


def _check_metric(connection: Connection, metric: str, others: Sequence[str] = ()) -> None:
    import sqlalchemy as sa

    has = sa.select(performance.c.metric).where(performance.c.metric == metric).limit(1)
    if connection.execute(has).scalar() is None:
        known = connection.execute(sa.select(performance.c.metric).distinct()).scalars()
        near = did_you_mean(metric, [*others, *known])
        raise ConfigurationError(f"no registered model has the metric '{metric}'.{near}")


def names_of(connection: Connection) -> tuple[int, list[str], list[str]]:
    """Returns how many models are registered, their names and their architectures."""
    import sqlalchemy as sa

    count = connection.execute(sa.select(sa.func.count()).select_from(models)).scalar_one()
    names, architectures = (
        list(connection.execute(sa.select(column).distinct()).scalars())
        for column in (models.c.name, models.c.architecture)
    )
    return count, names, architectures


def infos(
    connection: Connection, contents: ContentStore, records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns records as users see them."""
    import sqlalchemy as sa

    statement = sa.select(aliases.c.model_id, aliases.c.alias)
    if len(records) <= 1000:  # a database does not take any number of parameters
        ids = [record["model_id"] for record in records]
        statement = statement.where(aliases.c.model_id.in_(ids))
    pointing: dict[str, list[str]] = {}
    for model_id, alias in connection.execute(statement):
        pointing.setdefault(model_id, []).append(alias)
    result = []
    folders = os.fspath(contents.folder(""))
    for record in records:
        hidden = ("format", "stage", "step", "data_fingerprint", "metric_directions")
        info = {key: value for key, value in record.items() if key not in hidden}
        info["performance"] = metrics_of(record)
        info["file_path"] = os.path.join(folders, record["digest"])
        info["aliases"] = sorted(pointing.get(record["model_id"], []))
        origin = ("data_fingerprint", "experiment_id", "stage", "step", "checkpoint")
        info["lineage"] = {key: record[key] for key in origin}
        result.append(info)
    return result


def lineage(connection: Connection, record: Mapping[str, Any]) -> list[str]:
    """Returns the ids of the models that a model comes from, its parent first."""
    import sqlalchemy as sa

    ancestors: list[str] = []
    parent = record["parent_model"]
    while parent is not None and parent not in ancestors:
        ancestors.append(parent)
        above = sa.select(models.c.parent_model).where(models.c.id == parent)
        parent = connection.execute(above).scalar()
    return ancestors


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics of a record as numbers."""
    return {metric: to_number(value) for metric, value in record["performance"].items()}


def events_of(connection: Connection, name: str) -> list[dict[str, Any]]:
    """Returns what happened to the versions of a name; see ``ModelRegistry.history``."""
    import sqlalchemy as sa

    events = connection.execute(
        sa.select(model_events)
        .where(model_events.c.name == clean_text(name))
        .order_by(model_events.c.time, model_events.c.id)
    ).all()
    if not events:
        names = connection.execute(sa.select(model_events.c.name).distinct()).scalars()
        raise ConfigurationError(f"found no model named '{name}'.{did_you_mean(name, names)}")
    utc = datetime.timezone.utc
    return [
        {
            "time": datetime.datetime.fromtimestamp(event.time, utc).isoformat(),
            "who": event.who,
            "kind": event.kind,
            "model_id": event.model_id,
            **event.content,
        }
        for event in events
    ]


def by_clean_name(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns values by name as the store has names; nothing for None."""
    return {clean_text(name): value for name, value in (values or {}).items()}
