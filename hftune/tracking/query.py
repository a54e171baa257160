"""Finding runs in the store, and what is said of them: in Python, as JSON, side by side."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ..utils.errors import ConfigurationError, did_you_mean
from ..utils.files import read_json
from .filters import where_condition
from .index import flat, plain
from .json_lines import from_number
from .run_values import clean_text
from .run_view import RunView
from .tables import models, params, runs, summaries
from .terms import FIELDS, Term, resolve

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row, Select

    from .store import Store

__all__ = [
    "compare_runs",
    "experiment_json",
    "find_run",
    "load_experiment",
    "registered_models",
    "relatives",
    "search_runs",
    "summary_json",
]

# All but what the index keeps for itself.
_COLUMNS = [runs.c[name] for name in ("uid", *FIELDS, "heartbeat", "heartbeat_gap")]
_LARGEST = sys.float_info.max
_SOME = 500  # runs that one question about their metrics names


def find_run(store: Store, experiment_id: str) -> Row:
    """Finds one run.

    Args:
        store (Store): Where.
        experiment_id (str): An id, or what says as clearly which run is meant: the end of an id
            (``1121_003``) or a name that no other run has, a run's folder, or ``latest`` for the
            newest run.

    Returns:
        What the table of runs has of it, but the record: ``.id``, ``.name``, ``.folder``, ...

    Raises:
        ConfigurationError: If there is none, or several; names those that may have been meant.
    """
    text = clean_text(experiment_id)
    newest = sa.select(*_COLUMNS).order_by(runs.c.created.desc(), runs.c.id.desc()).limit(6)
    with store.read() as connection:
        found = connection.execute(newest.where(runs.c.id == text)).all()
        if not found and text == "latest":
            found = connection.execute(newest.limit(1)).all()
        if not found and (uid := _uid_of_folder(text)) is not None:
            found = connection.execute(newest.where(runs.c.uid == uid)).all()
            if not found:
                raise ConfigurationError(
                    f"the run in {text} is not in the store {store.url}; make it known with: "
                    f"hftune runs reindex {text}"
                )
        if not found:
            found = connection.execute(newest.where(runs.c.name == text)).all()
        if not found and re.fullmatch(r"\w+", text):
            found = connection.execute(
                newest.where(runs.c.id.endswith(text, autoescape=True))
            ).all()
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(run.id for run in found[:5]) + (", ..." if len(found) > 5 else "")
            raise ConfigurationError(
                f"several runs are called '{_shown(text)}': {ids} (the newest first). Give an id."
            )
        recent = connection.execute(newest.with_only_columns(runs.c.id, runs.c.name).limit(1000))
        known = {_shown(name) for run in recent for name in run}
    if not known:
        raise ConfigurationError(f"no run '{_shown(text)}': the store {store.url} has no runs yet")
    raise ConfigurationError(
        f"no run '{_shown(text)}' in the store {store.url}.{did_you_mean(text, known)} "
        "'hftune runs list' shows the runs."
    )


def _uid_of_folder(text: str) -> str | None:
    path = os.path.join(text, "run.json")
    try:
        return read_json(path).get("uid", "") if os.path.isfile(path) else None
    except (OSError, ValueError, AttributeError):
        return None


def _shown(text: str) -> str:
    """What a user wrote, in one short line."""
    text = "".join(character if character.isprintable() else "�" for character in text)
    return text if len(text) <= 60 else text[:59] + "…"


# Lists


def search_runs(
    store: Store,
    where: str | None = None,
    sort: str | None = None,
    limit: int | None = 50,
    columns: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Finds runs.

    Args:
        store (Store): Where.
        where (str, *optional*): A filter such as ``"status=completed and metrics.eval_loss<0.5"``,
            see :mod:`~hftune.tracking.filters`. Defaults to all runs.
        sort (str, *optional*): A word of the filters; the largest first with ``-`` before it.
            Metrics that are infinite or NaN come last both ways, then runs without it. Defaults to
            ``"-created"``.
        limit (int, *optional*): How many at the most; None for all. Defaults to 50.
        columns (sequence of str): Words of the filters whose values are wanted as well.

    Returns:
        One dict a run: what the table of runs has but the record, and ``"metrics"`` (the last
        value of each), ``"values"`` (of ``columns``).

    Raises:
        ConfigurationError: If a filter cannot be read, or names a metric that no run has logged.
    """
    with store.read() as connection:
        condition = where_condition(connection, where) if where else None
        terms = [resolve(connection, clean_text(column)) for column in columns]
        ids: list[str] = []
        for statement in _in_order(connection, sort or "-created"):
            if condition is not None:
                statement = statement.where(condition)
            if limit is not None:
                statement = statement.limit(limit - len(ids))
            ids += connection.execute(statement).scalars()
            if limit is not None and len(ids) >= limit:
                break
        # Ids first: they are in the indexes, a sort of whole rows takes long.
        found: list[dict[str, Any]] = []
        for start in range(0, len(ids), _SOME):
            some = ids[start : start + _SOME]
            rows = connection.execute(sa.select(*_COLUMNS).where(runs.c.id.in_(some))).mappings()
            by_id = {row["id"]: dict(row) for row in rows}
            part = [by_id[run_id] for run_id in some if run_id in by_id]
            _add_values(connection, part, terms)
            found += part
    return found


def _in_order(connection: Connection, sort: str) -> Iterator[Select]:
    """Selects runs, one statement after the other: what has a value, what has not."""
    falling = sort.startswith("-")
    term = resolve(connection, clean_text(sort).removeprefix("-"))
    newest = (runs.c.created.desc(), runs.c.id.desc())
    every = sa.select(runs.c.id)

    def ordered(column: sa.ColumnElement) -> sa.ColumnElement:
        return column.desc() if falling else column.asc()

    if term.kind not in ("metric", "setting"):
        if term.text == "created":
            yield every.order_by(ordered(runs.c.created), ordered(runs.c.id))
        elif runs.c[term.text].nullable:
            yield every.order_by(term.column.is_(None), ordered(term.column), *newest)
        else:
            yield every.order_by(ordered(term.column), *newest)
        return
    table = term.column.table
    having = every.join(table, table.c.run_id == runs.c.id).where(table.c.key == term.key)
    finite = term.column.between(-_LARGEST, _LARGEST)
    yield having.where(finite).order_by(ordered(term.column), *newest)
    if term.kind == "metric":
        infinite = sa.or_(term.column > _LARGEST, term.column < -_LARGEST)
        yield having.where(infinite).order_by(ordered(term.column), *newest)
        yield having.where(term.column.is_(None)).order_by(*newest)
    else:
        yield having.where(term.column.is_(None)).order_by(ordered(params.c.value), *newest)
    known = sa.select(table.c.run_id).where(table.c.key == term.key)
    yield every.where(runs.c.id.not_in(known)).order_by(*newest)


def _add_values(connection: Connection, found: list[dict[str, Any]], terms: Sequence[Term]) -> None:
    by_id = {run["id"]: run for run in found}
    for run in found:
        run["metrics"] = {}
        run["values"] = {t.text: run[t.text] for t in terms if t.text in FIELDS}
    s = summaries.c
    for row in connection.execute(
        sa.select(s.run_id, s.key, s.last, s.low, s.high).where(s.run_id.in_(by_id))
    ):
        run = by_id[row.run_id]
        run["metrics"][row.key] = math.nan if row.last is None else row.last
        for term in terms:
            if term.kind == "metric" and term.key == row.key:
                value = getattr(row, term.column.name)
                run["values"][term.text] = math.nan if value is None else value
    for run in found:
        run["metrics"] = dict(sorted(run["metrics"].items()))
    settings = {term.key: term.text for term in terms if term.kind == "setting"}
    for row in connection.execute(
        sa.select(params.c.run_id, params.c.key, params.c.value).where(
            params.c.run_id.in_(by_id), params.c.key.in_(settings)
        )
    ):
        by_id[row.run_id]["values"][settings[row.key]] = json.loads(row.value)


# JSON


def summary_json(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what :func:`search_runs` says of a run as JSON can hold it, in the manual's names."""
    values = {name: run[name] for name in FIELDS if name not in ("id", "created", "ended")}
    return {
        "experiment_id": run["id"],
        "name": run["name"],
        "start_time": _utc(run["created"]),
        "end_time": _utc(run["ended"]),
        **values,
        "metrics": {name: from_number(value) for name, value in run["metrics"].items()},
        **({"values": _finite(run["values"])} if run["values"] else {}),
    }


def experiment_json(
    view: RunView,
    *,
    children: Sequence[str] = (),
    models: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Returns everything of a run but its curves, as JSON can hold it.

    Args:
        view (RunView): The run.
        children (sequence of str): Ids of the runs that name it as their parent.
        models (sequence of mappings): Its registered models.

    Returns:
        The manual's keys ``experiment_id``, ``name``, ``start_time``, ``end_time``, ``status``,
        ``config``, ``metrics`` (the last value of each; NaN and infinities as text),
        ``model_info``, ``wandb_run_id``, ``notes``, then what hftune knows beside them.
    """
    record = view.record
    attempts = record["attempts"]
    metrics: dict[str, Any] = {}
    for point in view.points:
        if not point.superseded:
            metrics.update(point.metrics)
    happened: dict[str, list[dict[str, Any]]] = {"checkpoint": [], "warning": []}
    for event in view.events:
        if event["kind"] in happened:
            known = {key: value for key, value in event.items() if key != "kind"}
            happened[event["kind"]].append({"step": None, **known})
    return {
        "experiment_id": record["experiment_id"],
        "name": record["name"],
        "start_time": _utc(record["started"]),
        "end_time": _utc(_end(view)),
        "status": view.status,
        "config": plain(record["configuration"]),
        "metrics": {name: from_number(value) for name, value in metrics.items()},
        "model_info": record.get("model_info", {}),
        "wandb_run_id": record.get("wandb_run_id"),
        "notes": record.get("notes", ""),
        "description": record.get("description", ""),
        "tags": record.get("tags", []),
        "task": record["task"],
        "model_type": record.get("model_type", ""),
        "error": attempts[-1]["error"],
        "seconds": sum(attempt["seconds"] for attempt in attempts),
        "final_metrics": record.get("final_metrics", {}),
        "best_metrics": record.get("best_metrics", {}),
        "metric_directions": record.get("metric_directions", {}),
        "stages": record.get("stages", []),
        "step": next((p.step for p in reversed(view.points) if p.step is not None), None),
        "max_steps": record.get("max_steps"),
        "attempts": attempts,
        "checkpoints": happened["checkpoint"],
        "warnings": happened["warning"],
        "models": [dict(model) for model in models],
        "parent_run": record.get("parent_run"),
        "children": list(children),
        "config_sources": dict(_sources(record["configuration"])),
        "data": record.get("data", {}),
        "results": record.get("results", {}),
        "seeds": record["seeds"],
        "git": record["git"],
        "versions": record["versions"],
        "hardware": record["hardware"],
        "command": record["command"],
        "working_folder": record["folder"],
        "folder": str(view.folder),
    }


def load_experiment(store: Store, experiment_id: str) -> dict[str, Any]:
    """Returns :func:`experiment_json` of a run in the store.

    Args:
        store (Store): Where.
        experiment_id (str): As for :func:`find_run`.

    Raises:
        ConfigurationError: If there is no such run.
    """
    run = find_run(store, experiment_id)
    return experiment_json(RunView.from_store(store, run.id), **relatives(store, run.id))


def relatives(store: Store, experiment_id: str) -> dict[str, list[Any]]:
    """Returns ``children`` (ids) and ``models`` of a run, as :func:`experiment_json` takes them."""
    with store.read() as connection:
        children = connection.execute(
            sa.select(runs.c.id).where(runs.c.parent_run == experiment_id).order_by(runs.c.created)
        ).scalars()
        return {
            "children": list(children),
            "models": registered_models(connection, experiment_id),
        }


def registered_models(connection: Connection, experiment_id: str) -> list[dict[str, Any]]:
    """Returns ``model_id``, ``name`` and ``version`` of the models that a run registered."""
    found = connection.execute(
        sa.select(models.c.id.label("model_id"), models.c.name, models.c.version)
        .where(models.c.experiment_id == experiment_id)
        .order_by(models.c.created, models.c.id)
    )
    return [dict(model) for model in found.mappings()]


def _end(view: RunView) -> str | float | None:
    """When a run ended; of one that crashed, when it was last heard of."""
    record = view.record
    if record["finished"] is not None or view.status in ("created", "running"):
        return record["finished"]
    updated = datetime.datetime.fromisoformat(record["updated"]).timestamp()
    return max(
        [updated, *(p.time for p in view.points[-1:]), *(e["time"] for e in view.events[-1:])]
    )


def _sources(configuration: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if not isinstance(configuration, Mapping):
        return
    if configuration.keys() == {"value", "source"}:
        yield prefix, configuration["source"]
        return
    for key, value in configuration.items():
        yield from _sources(value, f"{prefix}.{key}" if prefix else str(key))


def _utc(moment: str | float | None) -> str | None:
    """A time as the manual writes it: ``2025-01-28T10:30:00Z``."""
    if moment is None:
        return None
    utc = datetime.timezone.utc
    if isinstance(moment, str):
        when = datetime.datetime.fromisoformat(moment).astimezone(utc)
    else:
        when = datetime.datetime.fromtimestamp(moment, utc)
    return f"{when:%Y-%m-%dT%H:%M:%SZ}"


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: from_number(value) if isinstance(value, float) else value
        for name, value in values.items()
    }


# Comparing


def compare_runs(
    views: Sequence[RunView], *, everything: bool = False
) -> dict[str, dict[str, list[Any]]]:
    """Puts runs side by side.

    Args:
        views (sequence of RunView): The runs.
        everything (bool): Whether what is the same in all runs is there too. Defaults to False.

    Returns:
        ``config``, ``metrics`` (the last values), ``data``, ``git``, ``seeds``, ``versions`` and
        ``hardware``: for each name a list with one value a run, None where a run has none.
    """
    columns = [_facts(view) for view in views]
    compared: dict[str, dict[str, list[Any]]] = {}
    for part in columns[0] if columns else ():
        names = dict.fromkeys(name for column in columns for name in column[part])
        rows = {name: [column[part].get(name) for column in columns] for name in names}
        compared[part] = {
            name: values for name, values in rows.items() if everything or _differ(values)
        }
    return compared


def _facts(view: RunView) -> dict[str, dict[str, Any]]:
    known = experiment_json(view)
    parts = {name: dict(flat(known[name] or {})) for name in ("config", "data", "git", "seeds")}
    return {
        "config": parts.pop("config"),
        "metrics": known["metrics"],
        **parts,
        "versions": known["versions"],
        "hardware": known["hardware"],
    }


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)
