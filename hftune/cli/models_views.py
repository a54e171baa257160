"""What ``hftune models`` shows: lists, and models side by side."""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..utils.errors import ConfigurationError, did_you_mean
from ..utils.files import human_bytes
from .tables import Column, age, console, fitted, number, one_line, print_json, table

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ..tracking.registry import ModelRegistry

__all__ = [
    "as_json",
    "best",
    "bounds",
    "compare",
    "directions",
    "list_models",
    "settings",
    "title",
]

Model = Mapping[str, Any]

_MOST_METRICS = 3  # columns of a list
_MOST_TEXT = 100  # letters of one setting


def title(model: Model) -> str:
    """A model as users refer to it."""
    return f"{model['name']}:{model['version']}"


def as_json(model: Model) -> dict[str, Any]:
    """What the registry says of a model as JSON can hold it."""
    from ..tracking.json_lines import from_number

    numbers = {metric: from_number(value) for metric, value in model["performance"].items()}
    return {**model, "performance": numbers}


def bounds(texts: Sequence[str], option: str) -> dict[str, float]:
    """Reads ``METRIC=VALUE`` of an option.

    Raises:
        ConfigurationError: With all that cannot be read.
    """
    read, problems = {}, []
    for text in texts:
        metric, equals, value = text.rpartition("=")
        try:
            read[metric.strip()] = float(value)
            right = bool(equals and metric.strip()) and math.isfinite(read[metric.strip()])
        except ValueError:
            right = False
        if not right:
            problems.append(
                f"{option}: found '{text}', expected METRIC=NUMBER such as rouge1_f1=0.4"
            )
    if problems:
        raise ConfigurationError(problems)
    return read


def _is_better_higher(registry: ModelRegistry, metric: str, explicit: bool | None) -> bool:
    from ..tracking.registry_find import direction_of

    with registry.store.read() as connection:
        return direction_of(connection, metric, explicit)


# Lists


def list_models(registry: ModelRegistry, arguments: argparse.Namespace) -> int:
    """Shows the models that fulfil all conditions."""
    from ..tracking.registry_find import SORTS

    minimum = bounds(getattr(arguments, "min", ()), "--min")
    by, limit = arguments.sort.removeprefix("-"), arguments.limit
    metric = None if by in SORTS else by
    models = registry.search_models(
        arguments.architecture,
        minimum,
        name=arguments.name,
        alias=arguments.alias,
        experiment_id=arguments.run,
        sort=arguments.sort,
        latest=arguments.latest,
        limit=limit and limit + 1,
        metric_directions=directions(arguments.greater, metric, minimum),
    )
    more = limit is not None and len(models) > limit
    models = models[:limit]
    if arguments.json:
        print_json([as_json(model) for model in models])
    elif models:
        _print_list(models, list(dict.fromkeys([*([metric] if metric else []), *minimum])))
        if more:
            console().print(f"There are more than {limit}: --limit N.", style="dim")
    else:
        console().print(_nothing_found(registry, arguments))
    return 0


def directions(greater: bool | None, metric: str | None, others: Iterable[str]) -> dict[str, bool]:
    """What ``--greater_is_better`` or ``--smaller_is_better`` says.

    Args:
        greater (bool, *optional*): Which of the two was given.
        metric (str, *optional*): What it is said of.
        others (iterable of str): Metrics of which it is said too where their direction is not
            known.
    """
    from ..tracking.metric_directions import known_direction

    if greater is None:
        return {}
    metrics = [other for other in others if known_direction(other) is None]
    return dict.fromkeys([*metrics, metric] if metric else metrics, greater)


def _nothing_found(registry: ModelRegistry, arguments: argparse.Namespace) -> str:
    from ..tracking.registry_find import names_of

    with registry.store.read() as connection:
        count, names, architectures = names_of(connection)
    if not count:
        return "No model is registered yet. ModelRegistry().register_model(...) registers one."
    near = ""
    for wanted, known in ((arguments.name, names), (arguments.architecture, architectures)):
        if wanted is not None and wanted not in known:
            near += did_you_mean(wanted, known)
    return f"None of the {count} registered models fulfils this.{near}"


def best(registry: ModelRegistry, arguments: argparse.Namespace) -> int:
    """Shows the best models."""
    metric = arguments.metric
    models = registry.get_best_models(metric, arguments.limit, greater_is_better=arguments.greater)
    if arguments.json:
        print_json([as_json(model) for model in models])
        return 0
    higher = _is_better_higher(registry, metric, arguments.greater)
    console().print(f"{metric}: {'higher' if higher else 'lower'} is better\n")
    _print_list(models, [metric])
    return 0


def _print_list(models: Sequence[Model], wanted: Sequence[str]) -> None:
    from rich.text import Text

    def texts(key: str, style: str = "") -> list[Text]:
        return [Text(one_line(model[key] or ""), style) for model in models]

    columns = [
        Column("name", texts("name", "bold")),
        Column("v", [str(model["version"]) for model in models], right=True),
        Column("id", texts("model_id")),
        Column("aliases", [Text(", ".join(m["aliases"]), "green") for m in models], rank=2),
    ]
    ranks = [1] * len(wanted) + [3, 6, 8][len(wanted) :]
    for rank, metric in zip(ranks, _main_metrics(models, wanted), strict=False):
        values = [number(model["performance"].get(metric)) for model in models]
        columns.append(Column(one_line(metric), values, right=True, rank=rank))
    columns += [
        Column("size", [human_bytes(model["bytes"]) for model in models], right=True, rank=5),
        Column("age", [age(model["created"]) for model in models], right=True, rank=4),
        Column("architecture", texts("architecture"), rank=7),
        Column("run", texts("experiment_id", "dim"), rank=9),
    ]
    out = console()
    made, left_out = fitted(columns, out.width)
    out.print(made)
    if left_out:
        out.print(f"\nNo room for {', '.join(left_out)}.", style="dim")


def _main_metrics(models: Sequence[Model], wanted: Sequence[str]) -> list[str]:
    """Those that were asked for, then those with a direction that most of the models have."""
    from ..tracking.metric_directions import known_direction

    counts = Counter(metric for model in models for metric in model["performance"])
    others = [metric for metric, _ in counts.most_common() if metric not in wanted]
    others.sort(key=lambda metric: known_direction(metric) is None)
    return [*wanted, *others][: max(_MOST_METRICS, len(wanted))]


# Side by side


def settings(values: Mapping[str, Any], most: int | None = _MOST_TEXT) -> dict[str, str]:
    """Settings as texts of one line each by ``section.name``.

    Args:
        values (mapping): Nested.
        most (int, *optional*): Letters of a text; None for all. Defaults to 100.
    """
    from ..tracking.index import flat, plain

    return {name: _cut(one_line(value), most) for name, value in flat(plain(values))}


def _cut(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


def compare(registry: ModelRegistry, arguments: argparse.Namespace) -> int:
    """Puts models side by side."""
    from ..tracking.json_lines import from_number

    if len(arguments.models) < 2:
        raise ConfigurationError("compare: found one model, expected two or more")
    metrics = registry.compare_models(arguments.models)
    if arguments.json:
        print_json(
            {
                metric: [None if value is None else from_number(value) for value in values]
                for metric, values in metrics.items()
            }
        )
        return 0
    models = [registry.get_model_info(ref) for ref in arguments.models]
    out = console()
    rows = [_metric_row(registry, metric, values) for metric, values in metrics.items()]
    if rows:
        out.print(_side_by_side("metric", models, rows, right=True))
        out.print("* the best\n", style="dim")
    most = max(24, 2 * out.width // (1 + len(models)))
    rows = _setting_rows(models, most, everything=arguments.all)
    if rows:
        out.print(_side_by_side("setting", models, rows))
    else:
        out.print("All settings are the same (--all shows them).")
    return 0


def _side_by_side(
    heading: str,
    models: Sequence[Model],
    rows: Sequence[Sequence[str | Text]],
    *,
    right: bool = False,
) -> Table:
    names, *columns = zip(*rows, strict=True)
    of_models = zip(models, columns, strict=True)
    return table(
        [
            Column(heading, names, rank=1),
            *(Column(title(m), cells, right) for m, cells in of_models),
        ]
    )


def _metric_row(
    registry: ModelRegistry, metric: str, values: Sequence[float | None]
) -> list[str | Text]:
    from rich.text import Text

    finite = {value for value in values if value is not None and math.isfinite(value)}
    top = None
    if len(finite) > 1:
        try:
            top = (max if _is_better_higher(registry, metric, None) else min)(finite)
        except ConfigurationError:  # nobody knows which is better: none is marked
            pass
    cells: list[str | Text] = [one_line(metric)]
    for value in values:
        is_best = value is not None and value == top
        text = f"{number(value, 6) or '–'} {'*' if is_best else ' '}"
        cells.append(Text(text, "bold green" if is_best else ""))
    return cells


def _setting_rows(models: Sequence[Model], most: int, *, everything: bool) -> list[list[str]]:
    facts = []
    for model in models:
        origin = model["lineage"]
        facts.append(
            {
                "architecture": model["architecture"],
                "checkpoint": origin["checkpoint"],
                "data": origin["data_fingerprint"],
                "run": origin["experiment_id"],
                "parent model": model["parent_model"],
                "stage": origin["stage"],
                "step": origin["step"],
                "size": human_bytes(model["bytes"]),
                **_named("training_info.", model["training_info"]),
                **_named("", model["config"]),
            }
        )
    rows = []
    for name in dict.fromkeys(name for one in facts for name in one):
        values = [one.get(name) for one in facts]
        if everything or any(value != values[0] for value in values):
            texts = ["–" if value is None else one_line(value) for value in values]
            rows.append([one_line(name), *_shortened(texts, most)])
    return rows


def _shortened(texts: Sequence[str], most: int) -> list[str]:
    """Texts that still differ where they do."""
    same = len(os.path.commonprefix(texts))
    if same > most // 2 and max(map(len, texts)) > most and len(set(texts)) > 1:
        texts = [f"…{text[same - most // 4 :]}" for text in texts]
    return [_cut(text, most) for text in texts]


def _named(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    return {prefix + name: text for name, text in settings(values, None).items()}
