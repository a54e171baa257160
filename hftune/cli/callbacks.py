"""``hftune callbacks``: the callbacks of installed packages that a run can name."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from ..configuration.plugins import Plugin

__all__ = ["main"]


def _describe(plugin: Plugin, name_is_unique: bool) -> dict[str, Any]:
    from ..configuration.convert import describe, to_json
    from ..configuration.plugins import PluginError, parameters

    row: dict[str, Any] = {
        "name": plugin.name,
        "package": plugin.package,
        "version": plugin.version,
        "target": plugin.target,
        "summary": "",
        "arguments": [],
        "error": None,
    }
    if not name_is_unique:
        row["error"] = f"another package declares this name too: give its path, {plugin.target}"
    try:
        factory = plugin.load()
    except PluginError as error:
        return {**row, "error": str(error)}
    row["summary"] = (factory.__doc__ or "").strip().partition("\n")[0]
    for parameter in parameters(factory)[0]:
        argument = {
            "name": parameter.name,
            "type": describe(parameter.hint),
            "required": parameter.required,
        }
        if not parameter.required:
            argument["default"] = to_json(parameter.default)
        row["arguments"].append(argument)
    return row


def _argument(argument: dict[str, Any]) -> str:
    if argument["required"]:
        return f"{argument['name']} (required)"
    return f"{argument['name']}={json.dumps(argument['default'], ensure_ascii=False)}"


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for title in ("package", "what it does", "arguments"):
        table.add_column(title, overflow="fold")
    for row in rows:
        said = Text(row["summary"])
        if row["error"]:
            said = Text("\n").join(filter(None, (said, Text(row["error"], style="red"))))
        arguments = "\n".join(map(_argument, row["arguments"]))
        table.add_row(
            Text(row["name"], style="bold"),
            Text(f"{row['package']} {row['version']}"),
            said,
            Text(arguments, style="dim"),
        )
    return table


def main(argv: Sequence[str]) -> int:
    """Lists what is installed, with what is wrong with it; returns 0."""
    parser = argparse.ArgumentParser(
        prog="hftune callbacks",
        description="List the callbacks that installed packages declare: what they do, and which "
        "arguments they take. A run uses those that it names: --callbacks NAME, "
        "--callbacks NAME:KEY=VALUE,KEY=VALUE or --callbacks 'NAME:{\"KEY\": VALUE}'.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)

    from ..configuration.plugins import installed_plugins

    plugins = installed_plugins()
    names = [plugin.name for plugin in plugins]
    with contextlib.redirect_stdout(sys.stderr):  # what modules print when they are imported
        rows = [_describe(plugin, names.count(plugin.name) == 1) for plugin in plugins]
    if arguments.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        Console(highlight=False).print(_table(rows))
    return 0
