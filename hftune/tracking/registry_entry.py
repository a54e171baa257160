"""A registration: its facts checked, and made a version."""

from __future__ import annotations

import datetime
import unicodedata
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..utils.errors import ConfigurationError
from ..utils.files import checked_name
from .contents import Content, ContentStore
from .json_lines import from_number
from .metric_directions import known_direction
from .registry_files import MODEL_ID, Change, next_version, record_path
from .run_values import clean_text, plain_json
from .store import next_id
from .tables import models, runs

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["add_version", "checked_facts", "find_parent"]


def checked_facts(
    *,
    name: str,
    architecture: str,
    checkpoint: str | None,
    config: Mapping[str, Any],
    performance: Mapping[str, float],
    training_info: Mapping[str, Any],
    stage: str | None,
    step: int | None,
    metric_directions: Mapping[str, bool],
    **more: Any,
) -> dict[str, Any]:
    """Returns what a user says of a model, as a record holds it.

    Raises:
        ConfigurationError: With everything that is wrong.
    """
    problems: list[str] = []
    try:
        name = checked_name(unicodedata.normalize("NFC", name), "model name")
        if MODEL_ID.fullmatch(name):
            problems.append(f"model name '{name}' is how ids look: take another one")
    except ConfigurationError as error:
        problems += error.problems
    if not isinstance(architecture, str) or not architecture:
        problems.append(f"architecture: found {architecture!r}, expected text such as 'kobart'")
    facts = {
        "name": name,
        "architecture": clean_text(architecture),
        "checkpoint": None if checkpoint is None else clean_text(checkpoint),
        "config": plain_json(config),
        "performance": _checked_performance(performance, problems),
        "training_info": plain_json(training_info),
        "stage": None if stage is None else clean_text(stage),
        "step": None if step is None else int(step),
        "metric_directions": _checked_directions(metric_directions, problems),
        **more,
    }
    if problems:
        raise ConfigurationError(problems)
    return facts


def _checked_performance(
    performance: Mapping[str, Any], problems: list[str]
) -> dict[str, float | str]:
    numbers: dict[str, float | str] = {}
    for metric, value in performance.items():
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            numbers[clean_text(metric)] = from_number(float(value))
        except (TypeError, ValueError, OverflowError):
            problems.append(f"performance: found {value!r} for '{metric}', expected a number")
    return numbers


def _checked_directions(declared: Mapping[str, bool], problems: list[str]) -> dict[str, bool]:
    """Returns the directions of metrics that are not generally known."""
    kept = {}
    for metric, greater in declared.items():
        known = known_direction(metric)
        if known is None:
            kept[clean_text(metric)] = bool(greater)
        elif known != greater:
            words = ("higher", "lower") if greater else ("lower", "higher")
            problems.append(
                f"metric_directions: '{metric}' is declared as better when {words[0]}, and known "
                f"to be better when {words[1]}: correct it, or give the metric another name"
            )
    return kept


def find_parent(
    connection: Connection, contents: ContentStore, facts: Mapping[str, Any]
) -> str | None:
    """Returns the newest model whose registered folder the checkpoint or a setting names."""
    import sqlalchemy as sa

    for text in _texts([facts["checkpoint"], facts["config"]]):
        if (digest := contents.digest_at(text)) is not None:
            of_content = sa.select(models.c.id).where(models.c.digest == digest)
            newest = of_content.order_by(models.c.created.desc(), models.c.id.desc()).limit(1)
            if (found := connection.execute(newest).scalar()) is not None:
                return found
    return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def add_version(change: Change, facts: Mapping[str, Any], content: Content) -> str:
    """Makes a stored content the next version of a name, unless it is a version already.

    Args:
        change (Change): Under way.
        facts (mapping): Of :func:`checked_facts`, with ``experiment_id``, ``parent_model`` and
            ``data_fingerprint``.
        content (Content): Its files.

    Returns:
        The version's id.
    """
    import sqlalchemy as sa

    connection, name = change.connection, facts["name"]
    facts = dict(facts)
    if facts["data_fingerprint"] is None:
        of_run = sa.select(runs.c.data_fingerprint).where(runs.c.id == facts["experiment_id"])
        facts["data_fingerprint"] = connection.execute(of_run).scalar()
    of_name = sa.select(models.c.record).where(models.c.name == name)
    before = connection.execute(of_name.where(models.c.digest == content.digest)).scalar()
    if before is not None:
        differs = {key: value for key, value in facts.items() if before[key] != value}
        if differs:
            change.happened("registered again", before, **differs)
        return before["model_id"]
    now = datetime.datetime.now(datetime.timezone.utc)
    model_id = next_id(connection, "model", now)
    # A record without a version: of a registration that was killed, or of another store.
    while record_path(change.contents.root, model_id).exists():
        model_id = next_id(connection, "model", now)
    record = {
        "format": 1,
        "model_id": model_id,
        "name": name,
        "version": next_version(connection, name),
        "created": now.isoformat(),
        **facts,
        "digest": content.digest,
        "bytes": content.bytes,
        "left_out": list(content.left_out),
    }
    change.add(record)
    change.happened("registered", record, digest=content.digest)
    return model_id
