"""From what a source says (text, YAML, JSON) to the type that a dataclass field asks for."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

from ..utils.errors import did_you_mean

__all__ = ["Plain", "convert", "describe", "is_list", "is_switch", "readable", "to_json"]

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_NULL = {"null", "~"}


class Plain(str):
    """Text that stood unquoted in a YAML file, on a command line or in the environment.

    It becomes a number, a boolean or null only where the field asks for one: ``save_strategy: no``
    stays ``"no"``, and ``1e-6`` is a number for a float field. Where the type is open (``Any``, an
    untyped dict) it is read as YAML 1.2 does.
    """


def _split_union(hint: Any) -> tuple[list[Any], bool]:
    """The members of a union but None, and whether None was one."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        members = typing.get_args(hint)
        return [m for m in members if m is not type(None)], type(None) in members
    return [hint], hint is type(None)


def is_switch(hint: Any) -> bool:
    """Whether ``--name`` alone means true: ``bool``, also within a union."""
    return bool in _split_union(hint)[0]


def is_list(hint: Any) -> bool:
    """Whether a field takes several values: a list, tuple or set, also within a union."""
    return any(_origin(member) in (list, tuple, set) for member in _split_union(hint)[0])


def _origin(hint: Any) -> Any:
    return typing.get_origin(hint) or hint


def describe(hint: Any) -> str:
    """Says in a few words what a field takes: ``"number"``, ``"no | epoch"``, ``"text"``."""
    members, optional = _split_union(hint)
    if any(_is_enum(m) for m in members):
        members = [m for m in members if m is not str]
    words = list(dict.fromkeys(_word(member) for member in members))
    return " or ".join(words + ["null"] if optional else words)


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _word(hint: Any) -> str:
    origin, arguments = _origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if _is_enum(hint):
        return " | ".join(str(member.value) for member in hint)
    if origin in (list, tuple, set):
        word = _word(arguments[0]) if arguments else "text"
        return (
            f"list of {word}s" if word in ("number", "path", "whole number") else f"list of {word}"
        )
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    names |= {dict: "JSON object", Path: "path", Any: "anything"}
    return names.get(origin, getattr(origin, "__name__", str(origin)))


def convert(value: Any, hint: Any) -> Any:
    """Converts ``value`` to ``hint``.

    Args:
        value (Any): Text, or what JSON and YAML can hold.
        hint (Any): A resolved type hint: ``bool``, ``int``, ``float``, ``str``, ``Path``, ``Any``,
            an enum, a ``Literal``, lists, tuples, sets, dicts and unions of these.

    Returns:
        The value in the type of the hint.

    Raises:
        ValueError: With what was found and what is expected.
    """
    members, optional = _split_union(hint)
    if optional and _is_null(value, members):
        return None
    # A union of an enum and text means the enum, by its value: typing errors are then found.
    if any(_is_enum(member) for member in members):
        members = [member for member in members if member is not str]
    # Text is one text where the field takes that, not a list of one.
    if isinstance(value, str) and str in members and not value.startswith("["):
        members = [member for member in members if not is_list(member)]
    if len(members) == 1:
        return _convert_one(value, members[0])
    for member in sorted(members, key=_eagerness):
        try:
            return _convert_one(value, member)
        except ValueError:
            continue
    raise ValueError(_expected(value, hint))


def _is_null(value: Any, members: list[Any]) -> bool:
    if value is None:
        return True
    if not isinstance(value, Plain):
        return False
    # "none" is a word that text fields use (report_to: none); for all others it means null.
    return value in _NULL or value == "" or (value.lower() == "none" and str not in members)


def _eagerness(hint: Any) -> int:
    """Members of a union are tried from the narrow to the wide; text takes what is left."""
    order = [bool, int, float, Literal, dict, list, tuple, set, str, Path]
    origin = _origin(hint)
    return order.index(origin) if origin in order else 3


def _expected(value: Any, hint: Any) -> str:
    return f"found {_shown(value)}, expected {describe(hint)}"


def _shown(value: Any) -> str:
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _convert_one(value: Any, hint: Any) -> Any:
    origin = _origin(hint)
    if origin is Any:
        return _guess(value)
    if origin is Literal:
        return _choice(value, {str(choice): choice for choice in typing.get_args(hint)})
    if _is_enum(hint):
        if isinstance(value, hint):
            return value
        return _choice(value, {str(member.value): member for member in hint})
    if origin is bool:
        return _boolean(value)
    if origin in (int, float):
        return _number(value, origin)
    if origin is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
    elif origin is Path:
        if isinstance(value, (str, Path)):
            return Path(value)
    elif origin in (list, tuple, set):
        return _sequence(value, hint)
    elif origin is dict:
        return _mapping(value, hint)
    elif isinstance(value, origin):
        return value
    raise ValueError(_expected(value, hint))


def _choice(value: Any, choices: dict[str, Any]) -> Any:
    for choice in choices.values():
        if type(choice) is type(value) and choice == value:
            return choice
    text = str(value)
    if text in choices:
        return choices[text]
    listed = ", ".join(choices)
    raise ValueError(
        f"found {_shown(value)}, expected one of {listed}.{did_you_mean(text, choices)}"
    )


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise ValueError(_expected(value, bool))


def _number(value: Any, kind: type) -> int | float:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            if kind is float:
                return float(value)
            # 1e4 and 10_000 are whole numbers too.
            number = float(value) if not isinstance(value, int) else value
            if number == int(number):
                return int(value) if _is_integer(value) else int(number)
        except (ValueError, OverflowError):
            pass
    raise ValueError(_expected(value, kind))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) or re.fullmatch(r"\s*[-+]?[\d_]+\s*", str(value)) is not None


def _sequence(value: Any, hint: Any) -> Any:
    origin, arguments = _origin(hint), typing.get_args(hint)
    if isinstance(value, str) and value:
        if value.startswith("["):
            value = _json(value, hint)
        elif arguments and arguments[0] not in (str, Path, Any):
            value = [Plain(part.strip()) for part in value.split(",") if part.strip()]
        else:  # a path or a URL may hold commas
            value = [value]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, (list, tuple, set)):
        raise ValueError(_expected(value, hint))
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise ValueError(f"found {len(value)} values, expected {len(arguments)}")
        return tuple(convert(item, kind) for item, kind in zip(value, arguments, strict=True))
    kind = arguments[0] if arguments else Any
    return origin(convert(item, kind) for item in value)


def _mapping(value: Any, hint: Any) -> dict[Any, Any]:
    if isinstance(value, str) and value.startswith("{"):
        value = _json(value, hint)
    if not isinstance(value, dict):
        raise ValueError(_expected(value, hint))
    key, item = typing.get_args(hint) or (str, Any)
    return {convert(k, key): convert(v, item) for k, v in value.items()}


def _json(text: str, hint: Any) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"found {_shown(text)}, which is not JSON ({error})") from None


def _guess(value: Any) -> Any:
    """Reads plain text as YAML 1.2 does, where no type says what it should be."""
    if isinstance(value, dict):
        return {str(key): _guess(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_guess(item) for item in value]
    if not isinstance(value, Plain):
        return value
    if value in _NULL or value == "":
        return None
    if value in ("true", "True", "false", "False"):
        return value in ("true", "True")
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return str(value)


def to_json(value: Any) -> Any:
    """Turns a resolved value into what JSON can hold and :func:`convert` reads back."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return to_json(value.tolist())
    return str(value)


def readable(value: Any) -> str:
    """Writes a resolved value for people, as it could be given on a command line."""
    value = to_json(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(readable, value)) or "[]"
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):  # 50 rather than 50.0: many fields are floats only to allow shares
        return repr(value).removesuffix(".0")
    return str(value) or "''"
