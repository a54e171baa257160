"""``hftune models``: the registered models, found, compared, promoted, verified, handed out."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..utils.errors import CheckpointError, ConfigurationError
from ..utils.files import human_bytes
from ..utils.terminal import progress
from . import models_show
from . import models_views as views
from .arguments import joined, limit
from .tables import Column, confirmed, console, print_json, table

if TYPE_CHECKING:
    from ..tracking.registry import ModelRegistry

__all__ = ["main"]

_MOST_LEFT = 10  # lines of what 'gc' leaves
_PATIENCE = 2.0  # seconds without a sign of life

_DESCRIPTION = """\
Registered models: numbered versions of a name, with their files as they were.

A model is referred to by its id (model_20250128_001), or as NAME (its newest
version), NAME:3 (version 3) or NAME@production (what the alias points to).

Exits with 1 if the registry says no (a gate that does not hold, a model in use,
damaged files), with 2 after wrong usage or where a model is not found."""

_EXAMPLES = """\
examples:
  hftune models list --latest
  hftune models best --metric rouge_combined_f1
  hftune models compare kobart@production kobart
  hftune models promote kobart 3 --alias production \\
      --must_beat production --metric rouge_combined_f1
  hftune models verify --all

Models are in the store that HFTUNE_TRACKING_URL names and the folder that
HFTUNE_MODELS_DIR names, by default both in HFTUNE_HOME."""


def _option(parser: argparse._ActionsContainer, name: str, **settings: Any) -> None:
    """Adds ``--snake_case``, which may be written ``--kebab-case`` as well."""
    parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), **settings)


def _version(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found '{text}', expected a version such as 2, or none")
    return int(text)


def _directions(parser: argparse.ArgumentParser, of: str) -> None:
    group = parser.add_mutually_exclusive_group()
    for name, greater in (("greater_is_better", True), ("smaller_is_better", False)):
        word = "higher" if greater else "lower"
        _option(
            group, name, dest="greater", action="store_const", const=greater,
            help=f"a {word} value of {of} is better, where that is not known",
        )  # fmt: skip


def _filters(parser: argparse.ArgumentParser) -> None:
    _option(parser, "name", help="versions of this name")
    _option(parser, "architecture", help="models of this architecture")
    _option(parser, "alias", help="models that an alias of this name points to")
    _option(parser, "run", metavar="ID", help="models that this run trained")
    _option(
        parser,
        "latest",
        action="store_true",
        help="of each name only the newest version that fulfils the rest",
    )
    _option(
        parser, "sort", default="created", metavar="BY",
        help="created (the newest first, the default), name, size (the largest first), or a "
        "metric (the best first; not finite values and models without it come last); a '-' before "
        "it: the largest first, whatever is better",
    )  # fmt: skip
    _option(
        parser, "limit", type=limit, default=50, metavar="N",
        help="how many at the most, or all (default 50)",
    )  # fmt: skip


def _min(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    _option(
        parser, name, action="append", default=[], metavar="METRIC=VALUE",
        help="at least this good in the metric's own direction: accuracy=0.9 is 0.9 or more, "
        "loss=1.5 is 1.5 or less; may be given several times",
        **settings,
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="hftune models", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=raw
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")

    def command(
        name: str, run: Callable[..., int], text: str, more: str = "", example: str = ""
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, formatter_class=raw,
            description=textwrap.fill(f"{text[0].upper()}{text[1:]}. {more}", 79),
            epilog=f"example:\n  hftune models {name} {example}".rstrip(),
        )  # fmt: skip
        made.set_defaults(function=run)
        _option(made, "json", action="store_true", help="print JSON")
        return made

    one = command("list", views.list_models, "list models", "One row a version.",
                  "--architecture kobart --sort rouge_combined_f1")  # fmt: skip
    _filters(one)
    _directions(one, "the metric in --sort")

    one = command(
        "show", models_show.show, "show all that is known of a model",
        "Where it comes from, how good it is, its settings, files and history, and how to load it.",
        "kobart@production",
    )  # fmt: skip
    one.add_argument("model", metavar="MODEL")

    one = command("best", views.best, "show the models that are best in a metric", "",
                  "--metric rouge_combined_f1 --limit 3")  # fmt: skip
    _option(one, "metric", required=True, help="as it was registered")
    _option(one, "limit", type=limit, default=5, metavar="N",
            help="how many at the most, or all (default 5)")  # fmt: skip
    _directions(one, "the metric")

    one = command("search", views.list_models, "find models that are good enough", "",
                  '--architecture kobart --min "rouge_combined_f1=0.35"')  # fmt: skip
    _min(one, "min", required=True)
    _filters(one)
    _directions(one, "the metrics")

    one = command(
        "compare", views.compare, "put models side by side",
        "The best value of each metric is marked; of the settings those that differ are shown. "
        "--json prints the metrics: {metric: [of the first, of the second, ...]}.",
        "kobart:1 kobart:2 kobart@production",
    )  # fmt: skip
    one.add_argument("models", metavar="MODEL", nargs="+")
    _option(one, "all", action="store_true", help="the settings that are the same, too")

    one = command(
        "promote", _promote, "have an alias point to a version",
        "Its files are verified first. Where a gate does not hold, the alias stays as it is and "
        "the exit code is 1.",
        "kobart 3 --alias production \\\n      --must_beat production --metric rouge_combined_f1",
    )  # fmt: skip
    one.add_argument("model", metavar="MODEL", help="a name with a version, or any reference")
    one.add_argument("version", metavar="VERSION", nargs="?", help="of a name")
    _option(one, "alias", required=True, help="such as production")
    _option(
        one, "expect", type=_version, metavar="VERSION", default=argparse.SUPPRESS,
        help="only if the alias points to this version now (none: is not set), so that two people "
        "do not overwrite each other's decision",
    )  # fmt: skip
    _option(one, "must_beat", metavar="ALIAS", help="only if it is better than what ALIAS has; "
            "holds while the alias to be set is free")  # fmt: skip
    _option(one, "metric", help="in which --must_beat compares")
    _min(one, "min_metric")
    _directions(one, "--metric and --min_metric")

    one = command("demote", _demote, "remove an alias", "The version it points to stays.",
                  "kobart --alias staging")  # fmt: skip
    one.add_argument("name", metavar="NAME")
    _option(one, "alias", required=True, help="to remove")
    _option(one, "expect", type=_version, metavar="VERSION", default=argparse.SUPPRESS,
            help="only if it points to this version now")  # fmt: skip

    one = command(
        "verify", _verify, "read and hash the files of models",
        "Exits with 1 if any byte is not what was registered.", "kobart@production",
    )  # fmt: skip
    one.add_argument("models", metavar="MODEL", nargs="*", help="(default: all)")
    _option(one, "all", action="store_true", help="all models")

    one = command("gc", _gc, "remove files that no model needs",
                  "Those of deleted models, and of registrations that did not end.",
                  "--dry_run")  # fmt: skip
    _option(one, "dry_run", action="store_true", help="only say what would be removed")
    _option(one, "yes", action="store_true", help="do not ask")

    one = command(
        "export", _export, "copy a model's files to a folder of their own",
        "Every byte is verified on the way.", "kobart@production -o kobart_production",
    )  # fmt: skip
    one.add_argument("model", metavar="MODEL")
    one.add_argument("-o", "--output", required=True, metavar="FOLDER", help="new, or empty")

    one = command(
        "delete", _delete, "delete a version that nothing needs",
        "Refuses what an alias points to or another model was trained from. Its number is not "
        "used again; 'hftune models gc' then frees its files.", "kobart:1",
    )  # fmt: skip
    one.add_argument("model", metavar="MODEL")
    _option(one, "yes", action="store_true", help="do not ask")

    one = command("history", models_show.history, "show what happened to a model",
                  "Of a name all versions, the deleted ones too.", "kobart")  # fmt: skip
    one.add_argument("model", metavar="MODEL")

    command(
        "reindex", _reindex, "add to the database what the models' folder knows and it does not",
        "After the database was lost, or the folder was brought from elsewhere.",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv (sequence of str): Arguments after ``hftune models``.

    Returns:
        The exit code: 1 if the registry refuses, or files are damaged.
    """
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    arguments = parser.parse_args(joined(argv, "--sort"))

    from ..tracking.registry import ModelRegistry, RegistryError

    try:
        return arguments.function(ModelRegistry(), arguments)
    except (RegistryError, CheckpointError) as error:
        print(f"hftune models: {error}", file=sys.stderr)
        return 1


def _expected(arguments: argparse.Namespace) -> dict[str, int | None]:
    """``--expect`` where it was given; None is an expectation of its own."""
    return {"expect": arguments.expect} if "expect" in arguments else {}


def _promote(registry: ModelRegistry, arguments: argparse.Namespace) -> int:
    parts = (arguments.model, arguments.version)
    model = registry.get_model_info(":".join(part for part in parts if part is not None))
    name, alias = model["name"], arguments.alias
    minimum = views.bounds(arguments.min_metric, "--min_metric")
    before = registry.search_models(name=name, alias=alias)
    model = registry.promote(
        name,
        model["version"],
        alias,
        must_beat=arguments.must_beat,
        metric=arguments.metric,
        min_metric=minimum,
        metric_directions=views.directions(arguments.greater, arguments.metric, minimum),
        **_expected(arguments),
    )
    if arguments.json:
        print_json(views.as_json(model))
        return 0
    [was] = [f"was version {old['version']}" for old in before] or ["was not set"]
    console().print(f"{name}@{alias} is version {model['version']} now ({was}).")
    return 0


def _demote(registry: ModelRegistry, arguments: argparse.Namespace) -> int:
    name, alias = arguments.name, arguments.alias
    model = registry.get_model_info(f"{name}@{alias}")
    registry.remove_alias(name, alias, **_expected(arguments))
    if arguments.json:
        print_json(views.as_json(registry.get_model_info(model["model_id"])))
    else:
        console().print(f"{name}@{alias} is removed; it was version {model['version']}.")
    return 0


def _verify(registry: ModelRegistry, arguments: argparse.Namespace) -> int:
    if arguments.models and arguments.all:
        raise ConfigurationError("verify: found models and --all, expected one of the two")
    result = _read_all(registry, arguments.models or None)
    if arguments.models:
        models = [registry.get_model_info(model_id) for model_id in result]
    else:
        models = registry.search_models()
    damaged = {model_id: problems for model_id, problems in result.items() if problems}
    if arguments.json:
        print_json(result)
        return 1 if damaged else 0
    out = console()
    if damaged:
        names = {model["model_id"]: views.title(model) for model in models}
        rows = [(key, problem) for key, problems in damaged.items() for problem in problems]
        columns = [
            Column("model", [names.get(key, "") for key, _ in rows]),
            Column("id", [key for key, _ in rows], rank=1),
            Column("problem", [problem for _, problem in rows]),
        ]
        out.print(table(columns))
        out.print()
    sizes = {model["digest"]: model["bytes"] for model in models}
    number = f"{len(result)} model{'s' if len(result) != 1 else ''}"
    number += f" ({human_bytes(sum(sizes.values()))})"
    if damaged:
        out.print(f"✗ {len(damaged)} of {number}: something is wrong", style="red")
        return 1
    out.print(f"✓ {number}: every byte is as it was registered", style="green")
    return 0


def _read_all(registry: ModelRegistry, refs: Sequence[str] | None) -> dict[str, list[str]]:
    """Verifies models, with a bar where it takes long."""
    bar, started = None, time.monotonic()
    with contextlib.ExitStack() as stack:

        def show(done: int, total: int) -> None:
            nonlocal bar
            if bar is not None:
                bar.update((done >> 20) - bar.done)
            elif time.monotonic() - started > _PATIENCE:
                made = progress(total >> 20, "Verifying", "MiB", initial=done >> 20)
                bar = stack.enter_context(made)

        return registry.verify(refs, on_bytes=show)


def _gc(registry: ModelRegistry, arguments: argparse.Namespace) -> int:
    garbage = registry.gc(dry_run=True)
    out = console()
    rows = [
        ("folders of deleted models", garbage.contents),
        ("files that nothing else uses", garbage.objects),
        ("leftovers of registrations that did not end", garbage.partials),
    ]
    size = human_bytes(garbage.bytes)
    if not arguments.json and any(found for _, found in rows):
        columns = [
            Column("what", [text for text, _ in rows]),
            Column("found", [str(found) for _, found in rows], right=True),
        ]
        out.print(table(columns))
        out.print()
    elif not arguments.json:
        out.print("Nothing to remove.")
    removed = False
    if not arguments.dry_run and any(found for _, found in rows):
        if not confirmed(f"Remove them and free {size}?", yes=arguments.yes):
            return 1
        garbage, removed = registry.gc(), True
    if arguments.json:
        print_json({**dataclasses.asdict(garbage), "removed": removed})
    elif removed:
        out.print(f"Removed; {human_bytes(garbage.bytes)} are free.")
    elif any(found for _, found in rows):
        out.print(f"{size} would be free.")
    if not arguments.json:
        for text in garbage.left[:_MOST_LEFT]:
            out.print(text, soft_wrap=True)
        if len(garbage.left) > _MOST_LEFT:
            out.print(f"... and {len(garbage.left) - _MOST_LEFT} more (--json)")
    return 0


def _export(registry: ModelRegistry, arguments: argparse.Namespace) -> int:
    model = registry.get_model_info(arguments.model)
    folder = registry.export(model["model_id"], arguments.output)
    if arguments.json:
        print_json({"model_id": model["model_id"], "folder": str(folder), "bytes": model["bytes"]})
    else:
        console().print(
            f"{views.title(model)} ({model['model_id']}, "
            f"{human_bytes(model['bytes'])}, verified) is in {folder}",
            soft_wrap=True,
        )
    return 0


def _delete(registry: ModelRegistry, arguments: argparse.Namespace) -> int:
    model = registry.get_model_info(arguments.model)
    what = f"{views.title(model)} ({model['model_id']})"
    if not confirmed(f"Delete {what}, {human_bytes(model['bytes'])}?", yes=arguments.yes):
        return 1
    registry.delete_model(model["model_id"])
    if arguments.json:
        print_json({"model_id": model["model_id"]})
    else:
        console().print(f"{what} is deleted. 'hftune models gc' frees its files.")
    return 0


def _reindex(registry: ModelRegistry, arguments: argparse.Namespace) -> int:
    result = registry.reindex()
    if arguments.json:
        print_json(result)
    else:
        out = console()
        added = f"Added {len(result['models'])} models and {result['events']} of their events."
        out.print(added if result["models"] or result["events"] else "Nothing to add.")
        for problem in result["problems"]:
            out.print(f"✗ {problem}", style="red")
    return 1 if result["problems"] else 0
