"""What a promotion asks of a model, and moving an alias when it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..utils.errors import HftuneError
from .registry_files import Change
from .registry_find import direction_of, find_record, metrics_of
from .tables import aliases, models

__all__ = ["UNSET", "RegistryError", "check_expected", "move_alias"]

UNSET: Any = object()
"""No expectation, where None says that an alias is free."""


class RegistryError(HftuneError):
    """A change that the registry refuses, and what stands against it."""


def move_alias(
    change: Change,
    ref: str,
    alias: str,
    *,
    expect: int | None,
    must_beat: str | None,
    metric: str | None,
    min_metric: Mapping[str, float],
    declared: Mapping[str, bool],
) -> None:
    """Has an alias point to a model; see ``ModelRegistry.promote``."""
    import sqlalchemy as sa

    connection = change.connection
    model = find_record(connection, ref)
    here = sa.and_(aliases.c.name == model["name"], aliases.c.alias == alias)
    pointed = sa.select(models.c.record).join(aliases, aliases.c.model_id == models.c.id)
    now = connection.execute(pointed.where(here)).scalar()
    check_expected(f"{model['name']}@{alias}", now, expect)
    if now is not None and now["model_id"] == model["model_id"]:
        return
    refused = []
    if must_beat is not None:
        rival = now
        if must_beat != alias:
            rival = find_record(connection, f"{model['name']}@{must_beat}")
        up = direction_of(connection, metric, declared.get(metric))
        if rival is not None:
            refused += _not_better(model, rival, metric, up)
    for key, bound in min_metric.items():
        up = direction_of(connection, key, declared.get(key))
        refused += _not_good(model, key, float(bound), up)
    if refused:
        raise RegistryError(f"{ref} does not become '{alias}': {'; '.join(refused)}")
    connection.execute(aliases.delete().where(here))
    row = {"name": model["name"], "alias": alias, "model_id": model["model_id"]}
    connection.execute(aliases.insert().values(row))
    content: dict[str, Any] = {"alias": alias, "from": now and now["version"]}
    if must_beat is not None:
        content |= {"must_beat": must_beat, "metric": metric}
    if min_metric:
        content["min_metric"] = dict(min_metric)
    change.happened("promoted", model, **content)


def check_expected(place: str, now: Mapping[str, Any] | None, expect: int | None) -> None:
    """Refuses a change of an alias that somebody else has moved.

    Args:
        place (str): ``name@alias``.
        now (mapping, *optional*): Record of the model that it points to.
        expect (int, *optional*): Its expected version, None for none, or :data:`UNSET`.

    Raises:
        RegistryError: If it points elsewhere.
    """
    found = None if now is None else now["version"]
    if expect is UNSET or expect == found:
        return
    texts = ["not set" if version is None else f"version {version}" for version in (found, expect)]
    raise RegistryError(
        f"{place} is {texts[0]}, expected {texts[1]}: somebody moved it; look at the model's "
        "history, then decide again"
    )


def _not_better(
    model: Mapping[str, Any], rival: Mapping[str, Any], metric: str, greater: bool
) -> list[str]:
    """Says why a model does not beat another; what is not finite beats nothing."""
    mine, other = metrics_of(model).get(metric), metrics_of(rival).get(metric)
    name = f"{rival['name']}:{rival['version']}"
    if other is None:
        return [f"{name} has no {metric} to compare with"]
    if mine is None:
        return [f"it has no {metric}"]
    expected = "a finite number"
    if math.isfinite(other):
        expected = f"{'higher' if greater else 'lower'} than {other:.6g} of {name}"
    if math.isfinite(mine):
        if not math.isfinite(other) or (mine > other if greater else mine < other):
            return []
    return [f"its {metric} is {_said(mine)}, expected {expected}"]


def _not_good(model: Mapping[str, Any], metric: str, bound: float, greater: bool) -> list[str]:
    mine = metrics_of(model).get(metric)
    if mine is None:
        return [f"it has no {metric}"]
    if math.isfinite(mine) and (mine >= bound if greater else mine <= bound):
        return []
    more = "more" if greater else "less"
    return [f"its {metric} is {_said(mine)}, expected {bound:.6g} or {more}"]


def _said(value: float) -> str:
    return "not a number (NaN)" if math.isnan(value) else f"{value:.6g}"
