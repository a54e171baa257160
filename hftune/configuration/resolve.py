"""One typed table of settings for a recipe, each value with the source it came from.

A recipe states its settings as dataclasses. A field's help text is ``metadata={"help": ...}``; it
may also have ``"aliases"`` (more option names) and ``"env"`` (plain environment names, beside
``HFTUNE_<FIELD>``). A dataclass may have

- ``_section`` (``ClassVar[str]``): its section in files, tables and help; defaults to ``"run"``;
- ``check(values) -> list[str]`` (static or class method): what is wrong with the combination. It is
  called before anything is constructed, with the values of *every* dataclass by name, so that all
  problems are reported at once and before any device or process group is touched.

Sources, later ones win: default < ``--config`` files < environment < sweep < command line.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import ConfigurationError
from ..utils.secrets import is_secret_name
from ..utils.terminal import is_main_process
from .convert import convert, readable, to_json
from .help import help_text
from .sources import Field, Given, read_command_line, read_config, read_environment, read_sweep

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Resolved", "Setting", "parse"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of the resolved table.

    Attributes:
        section (str): Section of the dataclass that has the field.
        name (str): Name of the field.
        value (Any): Its value, converted.
        source (str): ``"default"``, ``"FILE:LINE"``, ``"environment NAME"``, ``"sweep"`` or
            ``"command line"``.
    """

    section: str
    name: str
    value: Any
    source: str

    @property
    def secret(self) -> bool:
        """Whether the value must never be printed or saved."""
        return is_secret_name(self.name)

    @property
    def text(self) -> str:
        """The value, for people."""
        if self.secret and self.value is not None:
            return "(set, not shown)"
        return readable(self.value)


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What :func:`parse` found.

    Attributes:
        values (tuple): One instance a dataclass type, in the order they were given.
        table (list of Setting): Every setting, in the order of the fields.
    """

    values: tuple[Any, ...]
    table: list[Setting]

    def as_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns ``{section: {name: {"value": ..., "source": ...}}}``, as ``run.json`` has it.

        Tokens and passwords are left out.
        """
        sections: dict[str, dict[str, dict[str, Any]]] = {}
        for row in self.table:
            if not row.secret:
                entry = {"value": to_json(row.value), "source": row.source}
                sections.setdefault(row.section, {})[row.name] = entry
        return sections

    def changed(self, source: str, **values: Any) -> Resolved:
        """Returns the settings with other values, which the instances have from then on as well.

        Args:
            source (str): Where they come from, such as ``"preset small"``.
            **values: By name of the setting.
        """
        for name, value in values.items():
            for instance in self.values:
                if name in {field.name for field in dataclasses.fields(instance)}:
                    setattr(instance, name, value)
        table = [
            dataclasses.replace(row, value=values[row.name], source=source)
            if row.name in values
            else row
            for row in self.table
        ]
        return dataclasses.replace(self, table=table)

    def is_given(self, name: str) -> bool:
        """Whether a setting has another source than its default."""
        return any(row.name == name and row.source != "default" for row in self.table)

    def show(self, *, changed_only: bool = False) -> Table:
        """Returns the table for ``rich`` to print; of files it has the name only.

        Args:
            changed_only (bool): Whether to leave out what has its default value. Defaults to False.
        """
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in ("setting", "value", "source"):
            table.add_column(title, overflow="fold")
        section = None
        for row in self.table:
            if changed_only and row.source == "default":
                continue
            if row.section != section:
                section = row.section
                table.add_row(Text(section, style="bold"), "", "")
            style = "dim" if row.source == "default" else ""
            cells = (f"  {row.name}", row.text, Path(row.source).name)
            table.add_row(*(Text(cell, style=style) for cell in cells))
        return table


def parse(
    *dataclass_types: type,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    description: str = "",
    sweep: Mapping[str, Any] | None = None,
) -> Resolved:
    """Resolves the settings of a recipe from all sources.

    Adds ``--config FILE`` (repeatable), ``--show_config`` and ``--help`` by itself; the last two
    print on the first process and exit.

    Args:
        *dataclass_types (type): The settings. They are constructed in this order, once everything
            has been checked: a ``TrainingArguments``, which opens devices, comes last.
        argv (sequence of str, *optional*): Arguments, defaults to ``sys.argv[1:]``.
        environ (mapping, *optional*): Environment, defaults to ``os.environ``.
        description (str): First lines of the help text. Defaults to none.
        sweep (mapping, *optional*): Values that a sweep has chosen, by name.

    Returns:
        The instances and the table.

    Raises:
        ConfigurationError: With every unknown name, value that cannot be converted, missing value
            and wrong combination of all sources.
    """
    environ = os.environ if environ is None else environ
    fields = _fields(dataclass_types)
    problems: list[str] = []
    command_line = read_command_line(sys.argv[1:] if argv is None else argv, fields, problems)
    if command_line.help:
        if is_main_process():
            print(help_text(Path(sys.argv[0]).name, description, fields.values()))
        raise SystemExit(0)

    given: list[Given] = []
    for path in command_line.configs:
        given += read_config(path, fields, problems)
    given += read_environment(environ, fields, problems)
    given += read_sweep(sweep or {}, fields, problems)
    given += command_line.given
    table = _convert(fields, given, problems)
    _check(dataclass_types, table, problems)
    if problems:
        raise ConfigurationError(problems)

    if command_line.show_config:
        if is_main_process():
            from rich.console import Console

            # Into a pipe or a file nothing is folded.
            Console(width=None if sys.stdout.isatty() else 400).print(Resolved((), table).show())
        raise SystemExit(0)
    return Resolved(tuple(_construct(kind, table, fields) for kind in dataclass_types), table)


def _section(kind: type) -> str:
    return getattr(kind, "_section", "run")


def _fields(dataclass_types: Sequence[type]) -> dict[str, Field]:
    """Every field that can be set, by name."""
    found: dict[str, Field] = {}
    for kind in dataclass_types:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if not field.init:
                continue
            if field.name in found:
                raise TypeError(
                    f"{kind.__name__}.{field.name} is also a field of section "
                    f"'{found[field.name].section}': names are unique within a recipe"
                )
            found[field.name] = _field(field, hints[field.name], _section(kind))
    return found


def _field(field: dataclasses.Field, hint: Any, section: str) -> Field:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if field.metadata.get("const") is True:  # transformers' way to say "--fsdp, or --fsdp VALUE"
        hint = bool | hint
    variables = field.metadata.get("env", ())
    return Field(
        name=field.name,
        section=section,
        hint=hint,
        default=default,
        help=" ".join(field.metadata.get("help", "").replace("%%", "%").split()),
        aliases=tuple(a.lstrip("-").replace("-", "_") for a in field.metadata.get("aliases", ())),
        variables=(variables,) if isinstance(variables, str) else tuple(variables),
    )


def _convert(
    fields: Mapping[str, Field], given: Sequence[Given], problems: list[str]
) -> list[Setting]:
    rows = {
        name: Setting(field.section, name, field.default, "default")
        for name, field in fields.items()
    }
    for one in given:
        name = one.field.name
        value = one.field.default
        try:
            value = convert(one.value, one.field.hint)
        except ValueError as error:
            secret = rows[name].secret
            problems.append(f"{name} ({one.source}): {'wrong value' if secret else error}")
        rows[name] = Setting(one.field.section, name, value, one.source)
    for name, row in rows.items():
        if row.value is dataclasses.MISSING:
            rows[name] = dataclasses.replace(row, value=None)
            if row.source == "default":
                problems.append(
                    f"{name} is required: give --{name}, or '{name}:' in section '{row.section}' "
                    "of a --config file"
                )
    return list(rows.values())


def _check(dataclass_types: Sequence[type], table: list[Setting], problems: list[str]) -> None:
    values = {row.name: row.value for row in table}
    converted = not problems
    for kind in dataclass_types:
        if not hasattr(kind, "check"):
            continue
        try:
            problems += kind.check(values)
        except Exception:
            # A value that could not be converted stands as its default, or None: what a check makes
            # of that is no news.
            if converted:
                raise


def _construct(kind: type, table: list[Setting], fields: Mapping[str, Field]) -> Any:
    own = {field.name for field in dataclasses.fields(kind) if field.init}
    try:
        return kind(**{row.name: row.value for row in table if row.name in own})
    except ConfigurationError:
        raise
    except ValueError as error:
        raise ConfigurationError(f"section '{_section(kind)}': {error}") from error
