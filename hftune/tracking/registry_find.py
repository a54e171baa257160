"""Finding registered models: by reference, by what they were trained as, by how good they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..utils.errors import ConfigurationError, did_you_mean
from .contents import ContentStore
from .json_lines import to_number
from .metric_directions import greater_is_better, known_direction
from .registry_files import MODEL_ID
from .run_record import clean_text
from .tables import aliases, directions, models, performance

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Select

__all__ = [
    "LARGEST",
    "best_records",
    "direction_of",
    "find_record",
    "infos",
    "lineage",
    "metrics_of",
    "search_records",
]

LARGEST = 1.7976931348623157e308
"""The largest number: what is beyond is infinite."""


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


def _near(connection: Connection, ref: str, name: str) -> str:
    import sqlalchemy as sa

    if MODEL_ID.fullmatch(ref):
        return did_you_mean(ref, connection.execute(sa.select(models.c.id)).scalars())
    versions = sa.select(models.c.version).where(models.c.name == name)
    newest = connection.execute(versions.order_by(models.c.version.desc()).limit(10)).scalars()
    if known := ", ".join(map(str, newest)):
        pointing = sa.select(aliases.c.alias).where(aliases.c.name == name)
        named = ", ".join(sorted(connection.execute(pointing).scalars())) or "none"
        return f" '{name}' has the versions {known} and the aliases: {named}."
    names = connection.execute(sa.select(models.c.name).distinct()).scalars().all()
    return did_you_mean(name, names) if names else " No model is registered."


def best_records(
    connection: Connection, metric: str, limit: int, greater: bool
) -> list[dict[str, Any]]:
    """Returns the records of the models that are best in a metric; not finite ones come last."""
    import sqlalchemy as sa

    value = performance.c.value
    of_metric = sa.select(performance.c.model_id, value).where(performance.c.metric == metric)

    def read(statement: Select[Any], most: int) -> list[dict[str, Any]]:
        def order(rows: Any) -> list[ColumnElement[Any]]:
            up = rows.value.desc() if greater else rows.value
            return [up.nulls_last(), rows.model_id]

        # Records are long: only those of the result are read and sorted.
        chosen = statement.order_by(*order(performance.c)).limit(most).subquery()
        records = sa.select(models.c.record).join(chosen, chosen.c.model_id == models.c.id)
        return list(connection.execute(records.order_by(*order(chosen.c))).scalars())

    best = read(of_metric.where(_is_finite(value)), limit)
    if len(best) < limit:
        others = sa.or_(value.is_(None), sa.not_(_is_finite(value)))
        best += read(of_metric.where(others), limit - len(best))
    return best


def search_records(
    connection: Connection,
    equal: Mapping[str, str | None],
    alias: str | None,
    bounds: Mapping[str, tuple[float, bool]],
    limit: int | None,
) -> list[dict[str, Any]]:
    """Returns the records that fulfil all conditions, the newest first.

    Args:
        connection (sqlalchemy.Connection): To the store.
        equal (mapping): Columns of models to what is in them; None for anything.
        alias (str, *optional*): That points to the model.
        bounds (mapping): Metric to how good it is at least, and whether higher is better.
        limit (int, *optional*): How many at the most.
    """
    import sqlalchemy as sa

    statement = sa.select(models.c.id)
    for column, wanted in equal.items():
        if wanted is not None:
            statement = statement.where(models.c[column] == clean_text(wanted))
    if alias is not None:
        pointed = sa.select(aliases.c.model_id).where(aliases.c.alias == clean_text(alias))
        statement = statement.where(models.c.id.in_(pointed))
    value = performance.c.value
    for metric, (bound, greater) in bounds.items():
        good = sa.select(performance.c.model_id).where(
            performance.c.metric == metric,
            _is_finite(value),
            value >= bound if greater else value <= bound,
        )
        statement = statement.where(models.c.id.in_(good))
    newest_first = (models.c.created.desc(), models.c.id.desc())
    chosen = statement.order_by(*newest_first).limit(limit)
    records = sa.select(models.c.record).where(models.c.id.in_(chosen)).order_by(*newest_first)
    return list(connection.execute(records).scalars())


def _is_finite(value: ColumnElement[Any]) -> ColumnElement[bool]:
    return value.between(-LARGEST, LARGEST)


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

    has = sa.select(performance.c.metric).where(performance.c.metric == metric).limit(1)
    if connection.execute(has).scalar() is None:
        known = connection.execute(sa.select(performance.c.metric).distinct()).scalars()
        raise ConfigurationError(
            f"no registered model has the metric '{metric}'.{did_you_mean(metric, known)}"
        )
    if explicit is not None:
        return explicit
    declared = connection.execute(sa.select(directions)).all()
    # What one run declared does not turn a metric around that the field agrees on.
    return greater_is_better(metric, {k: up for k, up in declared if known_direction(k) is None})


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
    for record in records:
        hidden = ("format", "stage", "step", "data_fingerprint", "metric_directions")
        info = {key: value for key, value in record.items() if key not in hidden}
        info["performance"] = metrics_of(record)
        info["file_path"] = str(contents.folder(record["digest"]))
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
