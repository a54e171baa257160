"""What ``hftune models`` shows of one model: its origin, its files, what happened to it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import hftune

from ..utils.errors import CheckpointError, ConfigurationError
from ..utils.files import human_bytes, read_json
from .models_views import Model, as_json, settings, title
from .tables import Column, age, clock, console, fitted, number, one_line, print_json

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from ..tracking.registry import ModelRegistry

__all__ = ["history", "show"]


def show(registry: ModelRegistry, arguments: argparse.Namespace) -> int:
    """Shows all that is known of a model."""
    model = registry.get_model_info(arguments.model)
    trouble = ""
    try:
        files = registry.contents.manifest(model["digest"])
    except CheckpointError as error:
        files, trouble = {}, str(error)
    happened = [e for e in registry.history(model["name"]) if e["model_id"] == model["model_id"]]
    children = registry.search_models(parent_model=model["model_id"])
    if arguments.json:
        below = [child["model_id"] for child in children]
        print_json({**as_json(model), "files": files, "history": happened, "children": below})
        return 0
    _print_head(model)
    _print_pairs(
        "Performance", {key: number(value, 6) for key, value in model["performance"].items()}
    )
    _print_pairs("Training", settings(model["training_info"]))
    _print_pairs("Settings", settings(model["config"]))
    _heading("Lineage")
    console().print(_lineage(registry, model, children))
    _print_files(model, files, trouble)
    _heading("History")
    _print_history(happened, versions=False)
    _heading("To load it")
    for line in _loading(model, files):
        console().print(line, soft_wrap=True)
    return 0


def _heading(text: str) -> None:
    console().print(f"\n{text}", style="bold")


def _print_head(model: Model) -> None:
    from rich.text import Text

    head = Text.assemble((title(model), "bold"), "  ", model["model_id"])
    if model["aliases"]:
        head.append(f"  @{', @'.join(model['aliases'])}", "green")
    console().print(head)
    facts = {
        "architecture": one_line(model["architecture"]),
        "registered": f"{clock(model['created'])} ({age(model['created'])} ago)",
        "size": human_bytes(model["bytes"]),
        "digest": model["digest"],
    }
    _print_pairs("", facts)


def _print_pairs(heading: str, pairs: Mapping[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    if not pairs:
        return
    if heading:
        _heading(heading)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold", max_width=34)
    grid.add_column(overflow="fold")
    for name, value in pairs.items():
        grid.add_row(Text(one_line(name), "dim"), value)
    console().print(grid)


def _lineage(registry: ModelRegistry, model: Model, children: Sequence[Model]) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    def named(one: Model) -> Text:
        text = Text.assemble((title(one), "bold"), "  ", one["model_id"])
        if one["aliases"]:
            text.append(f"  @{', @'.join(one['aliases'])}", "green")
        return text

    def add_origins(branch: Tree, one: Model) -> None:
        origin = one["lineage"]
        begun = origin["checkpoint"]
        if origin["experiment_id"] is not None:
            run = branch.add(f"trained by the run {_run_text(registry, origin['experiment_id'])}")
        else:
            run = branch
        if origin["data_fingerprint"] is not None:
            run.add(f"on the data {one_line(origin['data_fingerprint'])}")
        if origin["stage"] is not None:
            run.add(f"stage {one_line(origin['stage'])}")
        if origin["step"] is not None:
            run.add(f"checkpoint at step {origin['step']:,}")
        if begun is not None:
            run.add(f"began with {one_line(begun)}")

    tree = branch = Tree(named(model))
    add_origins(branch, model)
    for parent_id in model["lineage"]["ancestors"]:
        try:
            parent = registry.get_model_info(parent_id)
        except ConfigurationError:
            branch.add(f"from the model {parent_id}, which is not registered here")
            break
        branch = branch.add(Text("from the model ").append_text(named(parent)))
        add_origins(branch, parent)
    for child in children:
        tree.add(Text("led to the model ").append_text(named(child)))
    return tree


def _run_text(registry: ModelRegistry, experiment_id: str) -> str:
    from ..tracking.query import find_run

    try:
        run = find_run(registry.store, experiment_id)
    except ConfigurationError:  # it is in another store
        return one_line(experiment_id)
    return one_line(f"{experiment_id} '{run.name}' ({run.status})")


def _print_files(model: Model, files: Mapping[str, Mapping[str, Any]], trouble: str) -> None:
    from rich.text import Text

    out = console()
    _heading("Files")
    if trouble:
        out.print(f"✗ {trouble}", style="red")
        return
    columns = [
        Column("file", [one_line(name) for name in files]),
        Column("size", [human_bytes(entry["bytes"]) for entry in files.values()], True, 1),
        Column("sha256", [Text(e["sha256"][:12], "dim") for e in files.values()], rank=2),
    ]
    out.print(fitted(columns, out.width)[0])
    out.print(f"in {model['file_path']}", style="dim", soft_wrap=True)
    if model["left_out"]:
        left = ", ".join(map(one_line, model["left_out"]))
        out.print(f"Not kept, as the state of a training run: {left}", style="dim")


def _loading(model: Model, files: Mapping[str, Any]) -> list[str]:
    """The Python that loads a model, by what is in its folder."""
    lines = [
        "from hftune.tracking.registry import ModelRegistry",
        f'folder = ModelRegistry().folder("{title(model)}")  # every byte is verified',
    ]
    if "modules.json" in files:
        library = "from sentence_transformers import SentenceTransformer"
        return [library, *lines, "model = SentenceTransformer(str(folder))"]
    if "adapter_config.json" in files:
        library = "from peft import AutoPeftModel"
        return [library, *lines, "model = AutoPeftModel.from_pretrained(folder)"]
    if "config.json" in files:
        try:
            config = read_json(f"{model['file_path']}/config.json")
            name = one_line(config["architectures"][0])
        except (OSError, ValueError, LookupError, TypeError):
            name = "AutoModel"
        library = "hftune" if name in hftune.__all__ else "transformers"
        lines.insert(0, f"from {library} import {name}")
        lines.append(f"model = {name}.from_pretrained(folder)")
    elif "model.safetensors" in files:
        lines.insert(0, "import safetensors.torch")
        lines.append('weights = safetensors.torch.load_file(folder / "model.safetensors")')
    return lines


# What happened


def history(registry: ModelRegistry, arguments: argparse.Namespace) -> int:
    """Shows what happened to a name, or to one version."""
    ref = arguments.model
    try:
        events = registry.history(ref)
    except ConfigurationError:
        model = registry.get_model_info(ref)
        events = [e for e in registry.history(model["name"]) if e["model_id"] == model["model_id"]]
    if arguments.json:
        print_json(events)
    else:
        _print_history(events)
    return 0


def _print_history(events: Sequence[Mapping[str, Any]], *, versions: bool = True) -> None:
    out = console()
    numbers = [str(event["version"]) if versions else "" for event in events]
    columns = [
        Column("when", [clock(event["time"]) for event in events], rank=1),
        Column("v", numbers, right=True, rank=1),
        Column("what", [_event_text(event) for event in events]),
        Column("who", [one_line(event["who"]) for event in events], rank=2),
    ]
    out.print(fitted(columns, out.width)[0])


def _event_text(event: Mapping[str, Any]) -> str:
    kind = event["kind"]
    if kind == "promoted":
        text = f"became {event['alias']}"
        text += f", in place of version {event['from']}" if event["from"] is not None else ""
        if "must_beat" in event:
            text += f"; beat {event['must_beat']} in {event['metric']}"
        for metric, bound in event.get("min_metric", {}).items():
            text += f"; {metric} is as good as {number(bound)}"
        return one_line(text)
    if kind == "alias removed":
        return one_line(f"is not {event['alias']} any more")
    return one_line(kind)
