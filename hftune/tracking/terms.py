"""What a search of runs can name: fields of a run, metrics that it logged, settings of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from ..utils.errors import ConfigurationError, did_you_mean
from .metric_directions import greater_is_better
from .tables import directions, params, runs, summaries

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

__all__ = ["FIELDS", "Term", "declared_directions", "logged_metrics", "resolve"]

Kind = Literal["text", "status", "tags", "time", "seconds", "number", "metric", "setting"]

FIELDS: dict[str, Kind] = {
    "id": "text",
    "name": "text",
    "status": "status",
    "task": "text",
    "model_type": "text",
    "tags": "tags",
    "description": "text",
    "notes": "text",
    "created": "time",
    "ended": "time",
    "seconds": "seconds",
    "stage": "text",
    "step": "number",
    "max_steps": "number",
    "attempts": "number",
    "host": "text",
    "folder": "text",
    "parent_run": "text",
    "git_commit": "text",
    "data_fingerprint": "text",
    "wandb_run_id": "text",
    "last_checkpoint": "text",
}
"""Fields of a run by name, each a column of the table of runs."""

_METRICS = {"metrics": summaries.c.last, "min": summaries.c.low, "max": summaries.c.high}
_HELP = (
    f"Known are {', '.join(FIELDS)}; metrics.NAME (the last value), min.NAME, max.NAME, best.NAME; "
    "config.NAME"
)


@dataclasses.dataclass(frozen=True)
class Term:
    """One thing that runs are compared by.

    Attributes:
        text (str): As it was written.
        kind (str): What its values are.
        column (sqlalchemy column): Of the runs; of the summaries for a metric; the number of the
            settings for a setting.
        key (str): The metric's or setting's full name; empty for a field.
    """

    text: str
    kind: Kind
    column: ColumnElement[Any]
    key: str = ""


def resolve(connection: Connection, text: str) -> Term:
    """Finds out what a word stands for.

    Args:
        connection (sqlalchemy.Connection): To the store.
        text (str): A name of :data:`FIELDS`; ``metrics.NAME`` for a metric's last value,
            ``min.NAME``, ``max.NAME`` or ``best.NAME`` for an extreme; ``config.SECTION.NAME``, or
            ``config.NAME`` where one section alone has it.

    Raises:
        ConfigurationError: If there is no such field, no run logged the metric or has the setting.
    """
    if text in FIELDS:
        return Term(text, FIELDS[text], runs.c[text])
    word, _, name = text.partition(".")
    if name and (word in _METRICS or word == "best"):
        _check_metric(connection, name)
        if word == "best":
            higher = greater_is_better(name, declared_directions(connection))
            word = "max" if higher else "min"
        return Term(text, "metric", _METRICS[word], name)
    if name and word == "config":
        return Term(text, "setting", params.c.number, _setting_key(connection, name))
    metrics = [f"metrics.{metric}" for metric in logged_metrics(connection)]
    settings = [f"config.{key}" for key in _distinct(connection, params.c.key)]
    meant = [known for known in metrics + settings if known.endswith(f".{text}")]
    if meant:
        near = f" Did you mean '{meant[0]}'?"
    else:
        near = did_you_mean(text, [*FIELDS, *metrics, *settings]) or f" {_HELP}"
    raise ConfigurationError(f"'{_short(text)}' is nothing that runs are searched by.{near}")


def logged_metrics(connection: Connection) -> list[str]:
    """Returns the names of all metrics that any run logged."""
    return _distinct(connection, summaries.c.key)


def declared_directions(connection: Connection) -> dict[str, bool]:
    """Returns which metrics a run declared to be better when higher (True) or lower (False)."""
    rows = connection.execute(sa.select(directions.c.metric, directions.c.greater_is_better))
    return {row.metric: row.greater_is_better for row in rows}


def _check_metric(connection: Connection, name: str) -> None:
    if not _exists(connection, summaries.c.key == name):
        near = did_you_mean(name, logged_metrics(connection))
        raise ConfigurationError(f"no run has logged a metric '{_short(name)}'.{near}")


def _setting_key(connection: Connection, name: str) -> str:
    if _exists(connection, params.c.key == name):
        return name
    known = _distinct(connection, params.c.key)
    full = [key for key in known if key.endswith(f".{name}")]
    if len(full) > 1:
        ways = " or ".join(f"config.{key}" for key in full[:5])
        raise ConfigurationError(f"several settings are called '{name}': write {ways}")
    if not full:
        near = did_you_mean(name, {*known, *(key.rpartition(".")[2] for key in known)})
        raise ConfigurationError(f"no run has a setting '{_short(name)}'.{near}")
    return full[0]


def _exists(connection: Connection, condition: ColumnElement[bool]) -> bool:
    return (
        connection.execute(sa.select(sa.literal(1)).where(condition).limit(1)).first() is not None
    )


def _distinct(connection: Connection, column: ColumnElement[str]) -> list[str]:
    """The values of an indexed column, by one look at the index for each instead of each row."""
    names = sa.select(sa.func.min(column).label("value")).cte("names", recursive=True)
    following = sa.select(sa.func.min(column)).where(column > names.c.value).scalar_subquery()
    names = names.union_all(sa.select(following).where(names.c.value.is_not(None)))
    found = sa.select(names.c.value).where(names.c.value.is_not(None))
    return list(connection.execute(found).scalars())


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
