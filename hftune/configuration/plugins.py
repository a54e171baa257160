"""Callbacks by name: which ones are installed, and what a setting says about them.

A package declares callbacks under the entry point group ``hftune.callbacks``: a name, and a
`TrainerCallback` class or a function that makes one. Nothing is imported unless it is named.

What stands in the setting ``callbacks`` is one of

- ``NAME``, or the path of a class that no package declares: ``package.module.Class``,
  ``package.module:Class``;
- ``NAME:KEY=VALUE,KEY=VALUE``, values as in YAML (``1e-4`` is a number too);
- ``NAME:{"KEY": VALUE}``, which is JSON;
- in YAML also ``{name: NAME, KEY: VALUE}`` or ``NAME: {KEY: VALUE}``.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib.metadata
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from ..utils.errors import did_you_mean
from ..utils.secrets import is_secret_name
from .convert import Plain, convert, is_list

__all__ = [
    "GROUP",
    "NamedCallback",
    "Parameter",
    "Plugin",
    "PluginError",
    "installed_plugins",
    "parameters",
    "resolve_callbacks",
]

GROUP = "hftune.callbacks"
"""The entry point group."""

_SPEC = re.compile(r"(?P<name>[^\s:=,{]+(?::[A-Za-z_][\w.]*(?=:|$))?)(:(?P<arguments>.*))?", re.S)
_PATH = re.compile(r"[\w.]+[.:][\w.]+")
_NEXT_KEY = re.compile(r",\s*(?=[A-Za-z_]\w*=)")


class PluginError(Exception):
    """What is wrong with one plugin; :func:`resolve_callbacks` collects them."""


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A callback that a package declares, or that is named by its path.

    Attributes:
        name (str): How it is named.
        target (str): What it is, ``"package.module:Class"``.
        package (str): The package that declares it, ``""`` for a path.
        version (str): Of the package.
    """

    name: str
    target: str
    package: str = ""
    version: str = ""

    def __str__(self) -> str:
        if not self.package:
            return f"'{self.name}'"
        return f"'{self.name}' of {self.package} {self.version}"

    def load(self) -> Callable[..., TrainerCallback]:
        """Imports it.

        Raises:
            PluginError: If it cannot be imported, or is neither a callback class nor a function.
        """
        entry_point = importlib.metadata.EntryPoint(self.name, self.target, GROUP)
        where = f" ({self.target})" if self.package else ""
        try:
            found = entry_point.load()
        except Exception as error:  # whatever a foreign module does when it is imported
            hint = ""
            if isinstance(error, AttributeError) and inspect.ismodule(error.obj):
                hint = f".{did_you_mean(str(error.name), dir(error.obj))}".removesuffix(".")
            elif isinstance(error, ModuleNotFoundError):
                hint = "; is it installed here, or its folder on PYTHONPATH?"
            raise PluginError(
                f"{self}{where} cannot be imported: {type(error).__name__}: {error}{hint}"
            ) from error
        good = issubclass(found, TrainerCallback) if isinstance(found, type) else callable(found)
        if not good:
            kind = "class" if isinstance(found, type) else type(found).__name__
            raise PluginError(
                f"{self}{where} is a {kind}, expected a class derived from "
                "transformers.TrainerCallback or a function that returns such a callback"
            )
        return found


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An argument of a callback.

    Attributes:
        name (str): Its name.
        hint (Any): Its type, ``Any`` where the author does not say.
        default (Any): Its default, ``inspect.Parameter.empty`` where a value is required.
    """

    name: str
    hint: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty

    def __str__(self) -> str:
        return f"{self.name} (required)" if self.required else f"{self.name}={self.default!r}"


@dataclasses.dataclass(frozen=True)
class NamedCallback:
    """A callback that a setting names, with the arguments that it gets.

    Attributes:
        plugin (Plugin): Where it comes from.
        factory (callable): Its class, or the function that makes it.
        arguments (dict): Converted to the types that the factory asks for.
    """

    plugin: Plugin
    factory: Callable[..., TrainerCallback]
    arguments: dict[str, Any]


def installed_plugins() -> list[Plugin]:
    """Returns what all installed packages declare, by name; imports none of it."""
    return sorted(
        (
            Plugin(entry.name, entry.value, entry.dist.name, entry.dist.version)
            for entry in importlib.metadata.entry_points(group=GROUP)
        ),
        key=lambda plugin: (plugin.name, plugin.package),
    )


def resolve_callbacks(specs: Sequence[Any]) -> tuple[list[NamedCallback], list[str]]:
    """Finds and imports the callbacks of a setting, and converts their arguments.

    Args:
        specs (sequence): Texts and mappings as the module describes.

    Returns:
        The callbacks, and what is wrong. They are of use where nothing is.
    """
    if not specs:
        return [], []
    if isinstance(specs, str) or not isinstance(specs, Sequence):
        return [], [f"callbacks: found {specs!r}, expected a list of names"]
    installed = installed_plugins()
    found: list[NamedCallback] = []
    problems: list[str] = []
    for spec in specs:
        try:
            name, given = _read(spec)
            plugin = _find(name, installed)
            factory = plugin.load()
            if any(factory is other.factory for other in found):
                raise PluginError(f"{plugin} stands twice; a callback is named once")
        except PluginError as error:
            problems.append(f"callbacks: {error}")
            continue
        arguments, wrong = _arguments(factory, given)
        problems += [f"callbacks: {plugin}: {text}" for text in wrong]
        found.append(NamedCallback(plugin, factory, arguments))
    return found, problems


# What is said


def _read(spec: Any) -> tuple[str, dict[str, Any]]:
    """The name and the arguments as they were written."""
    if isinstance(spec, str):
        return _read_text(spec)
    if isinstance(spec, Mapping):
        if isinstance(spec.get("name"), str):
            return spec["name"], {key: value for key, value in spec.items() if key != "name"}
        if len(spec) == 1:
            ((name, arguments),) = spec.items()
            if arguments is None or isinstance(arguments, Mapping):
                return str(name), dict(arguments or {})
    raise PluginError(
        f"found a {type(spec).__name__}, expected NAME, {{name: NAME, KEY: VALUE}} or "
        "NAME: {KEY: VALUE}"
    )


def _read_text(text: str) -> tuple[str, dict[str, Any]]:
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        # Without what may be a password.
        begin = re.split("[=:]", text.strip())[0]
        raise PluginError(
            f"found '{begin}', expected NAME, NAME:KEY=VALUE,... or NAME:JSON. "
            "Several are given as separate values (--callbacks a b), in the environment as a JSON "
            'list (["a:KEY=VALUE", "b"])'
        )
    name, rest = match["name"], (match["arguments"] or "").strip()
    if rest.startswith("{"):
        try:
            return name, json.loads(rest)
        except json.JSONDecodeError as error:
            raise PluginError(f"'{name}': its arguments are not JSON: {error}") from None
    arguments: dict[str, Any] = {}
    for part in _NEXT_KEY.split(rest) if rest else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise PluginError(f"'{name}': found '{part}', expected KEY=VALUE,... or JSON")
        if key in arguments:
            raise PluginError(f"'{name}': the argument '{key}' stands twice")
        arguments[key.strip()] = Plain(value.strip())
    return name, arguments


def _find(name: str, installed: Sequence[Plugin]) -> Plugin:
    found = [plugin for plugin in installed if plugin.name == name]
    if len(found) > 1:
        several = " and ".join(f"{p.package} {p.version} ({p.target})" for p in found)
        paths = " or ".join(plugin.target for plugin in found)
        raise PluginError(
            f"'{name}' is declared by {several}: uninstall one of them, or name the one you mean "
            f"by its path, {paths}"
        )
    if found:
        return found[0]
    names = sorted({plugin.name for plugin in installed})
    head, colon, rest = name.partition(":")
    if colon and head in names:
        raise PluginError(f"'{head}': found '{rest}', expected KEY=VALUE,... or JSON")
    if _PATH.fullmatch(name):
        return Plugin(name, name if colon else ":".join(name.rsplit(".", 1)))
    raise PluginError(
        f"no installed package declares '{name}'.{did_you_mean(name, names)} Installed: "
        f"{', '.join(names) or 'none'} ('hftune callbacks' says more). A class of your own is "
        "named by its path, package.module:Class"
    )


# What the callback takes


def parameters(factory: Callable[..., Any]) -> tuple[list[Parameter], bool]:
    """Returns the arguments of a callback's class or function.

    Args:
        factory (callable): The class or function.

    Returns:
        The arguments that can be given by name, and whether it takes any others too.
    """
    try:
        signature = inspect.signature(factory, eval_str=True)
    except Exception:  # annotations that only a type checker can resolve
        signature = inspect.signature(factory)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = signature.parameters.values()
    takes = [Parameter(p.name, _hint(p.annotation), p.default) for p in found if p.kind in named]
    return takes, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found)


_CONTAINERS = {
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    collections.abc.Mapping: dict,
}


def _hint(hint: Any) -> Any:
    """An author's annotation as :func:`~hftune.configuration.convert.convert` knows it."""
    if hint is inspect.Parameter.empty or isinstance(hint, str):
        return Any
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_hint, inner))]  # noqa: UP007
    if origin is typing.Annotated:
        return _hint(inner[0])
    container = _CONTAINERS.get(origin)
    if container is None:
        return hint
    return container[inner] if inner else container


def _arguments(
    factory: Callable[..., Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Converts arguments; returns them, and what is wrong."""
    takes, takes_more = parameters(factory)
    hints = {parameter.name: parameter.hint for parameter in takes}
    listed = f" It takes {', '.join(map(str, takes)) or 'no arguments'}."
    arguments: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in given.items():
        if is_secret_name(key):
            problems.append(
                f"'{key}' would be saved with the settings of the run; have the callback read it "
                "from an environment variable"
            )
        elif key not in hints and not takes_more:
            problems.append(f"no argument '{key}'.{did_you_mean(key, hints)}{listed}")
        else:
            try:
                arguments[key] = _convert(value, hints.get(key, Any))
            except ValueError as error:
                problems.append(f"{key}: {error}")
    missing = [p.name for p in takes if p.required and p.name not in given]
    if missing:
        problems.append(f"needs {', '.join(missing)}.{listed}")
    return arguments, problems


def _convert(value: Any, hint: Any) -> Any:
    if is_list(hint) and isinstance(value, Plain) and "," in value and not value.startswith("["):
        value = [Plain(part.strip()) for part in value.split(",") if part.strip()]
    try:
        return convert(value, hint)
    except TypeError:  # an annotation that is no class, such as a NewType
        return convert(value, Any)
