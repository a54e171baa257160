"""Where settings come from: YAML and JSON files, the environment, a sweep, the command line.

Each reader gives what was said and where; what it should be is decided by
:mod:`~hftune.configuration.convert`. Readers add to a list of problems and go on, so that all of
them are reported together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..utils.errors import did_you_mean
from .convert import Plain, is_list, is_switch

__all__ = [
    "CommandLine",
    "Field",
    "Given",
    "read_command_line",
    "read_config",
    "read_environment",
    "read_sweep",
]

_PREFIX = "HFTUNE_"
RESERVED_VARIABLES = frozenset(
    {
        "HFTUNE_HOME",
        "HFTUNE_MODELS_DIR",
        "HFTUNE_NEXT_STAGE",
        "HFTUNE_REQUIRE_DATA",
        "HFTUNE_REQUIRE_POSTGRES",
        "HFTUNE_TEST_DATA",
        "HFTUNE_TRACKING_URL",
    }
)
"""``HFTUNE_*`` variables that are no settings of a run."""

_SWITCHES = ("help", "show_config")


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting that a recipe has."""

    name: str
    section: str
    hint: Any
    default: Any  # dataclasses.MISSING where a value is required
    help: str
    aliases: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()  # plain environment names, beside HFTUNE_<NAME>


@dataclasses.dataclass(frozen=True)
class Given:
    """One value, as a source gave it."""

    field: Field
    value: Any
    source: str


@dataclasses.dataclass
class CommandLine:
    """What a command line said."""

    given: list[Given] = dataclasses.field(default_factory=list)
    configs: list[str] = dataclasses.field(default_factory=list)
    help: bool = False
    show_config: bool = False


def _names(fields: Mapping[str, Field]) -> dict[str, Field]:
    """Fields by every name they go by."""
    return {alias: field for field in fields.values() for alias in (field.name, *field.aliases)}


def read_config(path: str, fields: Mapping[str, Field], problems: list[str]) -> list[Given]:
    """Reads a YAML file, or the ``run.json`` of an earlier run, with the files it includes.

    Args:
        path (str): The file. ``base:`` in it names a file, or several, relative to it, whose values
            come first.
        fields (mapping): Fields by name.
        problems (list of str): Gets what is wrong.

    Returns:
        Values in rising precedence.
    """
    return list(_read_config(Path(path), _names(fields), problems, ()))


def _read_config(
    path: Path, names: Mapping[str, Field], problems: list[str], parents: tuple[Path, ...]
) -> Iterator[Given]:
    path = path.expanduser()
    if path.resolve() in parents:
        problems.append(f"{parents[-1]}: 'base: {path}' includes itself")
        return
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problems.append(f"{path}{line}: not valid YAML: {error.problem}")
        return
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(_unreadable(path, error))
        return
    if tree is None:  # an empty file
        return
    if not isinstance(tree, yaml.MappingNode):
        problems.append(f"{path}: expected 'name: value' lines, found a {tree.id}")
        return
    own = _Document(path, names, problems)
    top = own.items(tree)
    if "configuration" in top:  # a run.json
        yield from own.saved_run(top["configuration"])
        return
    if "base" in top:
        bases = own.value(top.pop("base"))
        for base in bases if isinstance(bases, list) else [bases]:
            nested = (*parents, path.resolve())
            yield from _read_config(path.parent / str(base), names, problems, nested)
    yield from own.settings(top)


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        try:
            near = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
        except OSError:
            return f"--config {path}: the folder {path.parent} does not exist"
        return f"--config {path}: no such file.{did_you_mean(path.name, near)}"
    return f"--config {path}: {getattr(error, 'strerror', None) or error}"


class _Document:
    """One YAML file on its way to settings."""

    def __init__(self, path: Path, names: Mapping[str, Field], problems: list[str]) -> None:
        self.path, self.names, self.problems = path, names, problems
        self.sections = {field.section for field in names.values()}

    def at(self, node: Any) -> str:
        return f"{self.path}:{node.start_mark.line + 1}"

    def items(self, node: Any) -> dict[str, Any]:
        """Value nodes by key; a key that stands twice is a problem."""
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value).replace("-", "_") if key.id == "scalar" else ""
            if name in found:
                self.problems.append(f"{self.at(key)}: '{key.value}' stands twice in this file")
            found[name] = value
        return found

    def value(self, node: Any) -> Any:
        """Python value of a node; unquoted text stays text, marked as such."""
        if node.id == "mapping":
            return {str(key.value): self.value(item) for key, item in node.value}
        if node.id == "sequence":
            return [self.value(item) for item in node.value]
        return Plain(node.value) if node.style is None else node.value

    def settings(self, top: dict[str, Any]) -> Iterator[Given]:
        seen: dict[str, str] = {}
        for name, node in top.items():
            if name in self.sections and not node.value:
                rows = []  # "data:" with nothing below it
            elif name in self.sections and node.id == "mapping":
                rows = [(key, value, name) for key, value in self.items(node).items()]
            else:
                rows = [(name, node, None)]
            for key, value, section in rows:
                field = self.field(key, section, value)
                if field is None:
                    continue
                if field.name in seen:
                    self.problems.append(
                        f"{self.at(value)}: '{field.name}' was set before, at {seen[field.name]}"
                    )
                seen[field.name] = self.at(value)
                yield Given(field, self.value(value), self.at(value))

    def field(self, key: str, section: str | None, node: Any) -> Field | None:
        field = self.names.get(key)
        if field is None:
            known = {*self.names, *self.sections, "base"} if section is None else self.names
            self.problems.append(f"{self.at(node)}: no setting '{key}'.{did_you_mean(key, known)}")
        elif section is not None and field.section != section:
            self.problems.append(
                f"{self.at(node)}: '{key}' belongs in section '{field.section}', not '{section}'"
            )
            return None
        return field

    def saved_run(self, node: Any) -> Iterator[Given]:
        """Values of a ``run.json``'s ``configuration``: ``{section: {name: {"value": ...}}}``."""
        table = self.value(node)
        for rows in table.values() if isinstance(table, dict) else ():
            for name, row in rows.items() if isinstance(rows, dict) else ():
                field = self.names.get(name)
                if field is None or not isinstance(row, dict) or "value" not in row:
                    self.problems.append(
                        f"{self.path}: '{name}' is no setting of this recipe in this version"
                    )
                    continue
                yield Given(field, row["value"], str(self.path))


def read_environment(
    environ: Mapping[str, str], fields: Mapping[str, Field], problems: list[str]
) -> list[Given]:
    """Reads ``HFTUNE_<FIELD>`` of every field, and the plain names that some fields have.

    An empty variable counts as unset. ``HFTUNE_<FIELD>`` wins over a plain name. What is in
    :data:`RESERVED_VARIABLES` is never a setting.

    Args:
        environ (mapping): The environment.
        fields (mapping): Fields by name.
        problems (list of str): Gets unknown ``HFTUNE_*`` variables.
    """
    plain = {name: field for field in fields.values() for name in field.variables}
    prefixed = {f"{_PREFIX}{name.upper()}": field for name, field in _names(fields).items()}
    for name in RESERVED_VARIABLES & prefixed.keys():  # HFTUNE_TEST_DATA is no --test_data
        del prefixed[name]
    known = {name.removeprefix(_PREFIX) for name in (*prefixed, *RESERVED_VARIABLES)}
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in known:
            hint = did_you_mean(name.removeprefix(_PREFIX), known, prefix=_PREFIX)
            problems.append(f"environment variable {name} is no setting.{hint}")
    return [
        Given(field, _from_environment(environ[name], field), f"environment {name}")
        for name, field in [*plain.items(), *prefixed.items()]
        if environ.get(name)
    ]


def _from_environment(text: str, field: Field) -> Any:
    # NAME:KEY=VALUE,KEY=VALUE is one value; several of those are a JSON list.
    has_arguments = field.hint == list[Any] and ":" in text
    if is_list(field.hint) and "," in text and not text.startswith("[") and not has_arguments:
        return [Plain(part.strip()) for part in text.split(",") if part.strip()]
    return Plain(text)


def read_sweep(
    sweep: Mapping[str, Any], fields: Mapping[str, Field], problems: list[str]
) -> list[Given]:
    """Takes the values that a sweep has chosen.

    Args:
        sweep (mapping): Values by name.
        fields (mapping): Fields by name.
        problems (list of str): Gets unknown names.
    """
    names = _names(fields)
    for name in sweep:
        if name not in names:
            problems.append(f"sweep: no setting '{name}'.{did_you_mean(name, names)}")
    return [Given(names[name], value, "sweep") for name, value in sweep.items() if name in names]


def read_command_line(
    argv: Sequence[str], fields: Mapping[str, Field], problems: list[str]
) -> CommandLine:
    """Reads ``--name value``, ``--name=value``, ``--switch``, ``--no_switch`` and ``--list a b c``.

    Args:
        argv (sequence of str): Arguments after the program's name. Dashes inside names may stand
            for underscores.
        fields (mapping): Fields by name.
        problems (list of str): Gets what is wrong.
    """
    names = _names(fields)
    found = CommandLine()
    position = 0
    while position < len(argv):
        token = argv[position]
        position += 1
        if token == "-h":
            token = "--help"
        if not token.startswith("--"):
            problems.append(f"unexpected argument '{token}': settings are given as --name value")
            continue
        name, equals, text = token[2:].partition("=")
        name = name.replace("-", "_")
        values = [text] if equals else []
        while not equals and position < len(argv) and not argv[position].startswith("--"):
            if argv[position] == "-h":
                break
            values.append(argv[position])
            position += 1
        if name in _SWITCHES:
            setattr(found, name, True)
        elif name == "config":
            found.configs += values
            if not values:
                problems.append("--config needs a file")
        else:
            given = _option(name, values, names, problems)
            found.given += [given] if given else []
    found.given = _joined(found.given)
    return found


def _joined(given: list[Given]) -> list[Given]:
    """Makes one list of an option that stands several times: ``--callbacks a --callbacks b``."""
    found: list[Given] = []
    lists: dict[str, int] = {}
    for one in given:
        name = one.field.name
        if not is_list(one.field.hint):
            found.append(one)
        elif name not in lists:
            lists[name] = len(found)
            found.append(one)
        else:
            parts = [
                value
                for part in (found[lists[name]].value, one.value)
                for value in (part if isinstance(part, list) else [part])
            ]
            found[lists[name]] = Given(one.field, parts, one.source)
    return found


def _option(
    name: str, values: list[str], names: Mapping[str, Field], problems: list[str]
) -> Given | None:
    positive = name.removeprefix("no_")
    if name not in names and positive in names and is_switch(names[positive].hint):
        if values:
            problems.append(f"--{name} takes no value, found '{values[0]}'")
        return Given(names[positive], False, "command line")
    if name not in names:
        hint = did_you_mean(name, (*names, *_SWITCHES, "config"), prefix="--")
        problems.append(f"no setting --{name}.{hint} --help lists all of them.")
        return None
    field = names[name]
    if len(values) > 1 and not is_list(field.hint):
        problems.append(
            f"--{name} takes one value, found {len(values)}: {' '.join(values)}. "
            "Quote a value that holds spaces."
        )
        return None
    if is_list(field.hint) and len(values) != 1:
        return Given(field, [Plain(value) for value in values], "command line")
    if not values:
        if is_switch(field.hint):
            return Given(field, True, "command line")
        problems.append(f"--{name} needs a value")
        return None
    return Given(field, Plain(values[0]), "command line")
