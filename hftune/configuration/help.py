"""The ``--help`` text of a recipe."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Iterable

from .convert import describe, is_switch, readable
from .sources import Field

__all__ = ["help_text"]

_OPTIONS = """\
options:
  --config FILE ...
      YAML files, or the run.json of an earlier run; later ones win. 'base: FILE' in one includes
      another.
  --show_config
      Print every setting with the source of its value, and exit.
  -h, --help
      Print this text, and exit."""


def help_text(program: str, description: str, fields: Iterable[Field]) -> str:
    """Writes the help of a recipe, its settings grouped by section.

    Args:
        program (str): Name of the script.
        description (str): What it does.
        fields (iterable of Field): Its settings, section after section.
    """
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    parts = [f"usage: {program} [--config FILE ...] [--show_config] [--SETTING VALUE ...]"]
    parts += [description.strip()] if description else []
    parts += [
        "Values are taken from, later ones win: defaults, --config files, the environment "
        "(HFTUNE_<SETTING>), a sweep, the command line.",
        _OPTIONS,
    ]
    sections: dict[str, list[str]] = {}
    for field in fields:
        sections.setdefault(field.section, []).append(_entry(field, width))
    parts += [f"{name}:\n" + "\n".join(entries) for name, entries in sections.items()]
    return "\n\n".join(parts)


def _entry(field: Field, width: int) -> str:
    names = ", ".join(f"--{name}" for name in (field.name, *field.aliases))
    notes = [
        "required"
        if field.default is dataclasses.MISSING
        else f"default: {readable(field.default)}"
    ]
    if field.variables:
        notes.append(f"environment: {', '.join(field.variables)}")
    kind = "[true|false]" if is_switch(field.hint) else f"<{describe(field.hint)}>"
    choices = ""
    if len(kind) > 60:
        choices, kind = f" One of {kind[1:-1].replace(' | ', ', ')}.", "<name>"
    text = f"{field.help}{choices} ({'; '.join(notes)})".strip()
    indent = " " * 6
    return f"  {names} {kind}\n" + textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False
    )
