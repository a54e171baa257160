"""Which settings must never be printed or saved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["is_secret_name", "without_secrets"]

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s:]+:[^/@\s]+(?=@)")
_SECRET = re.compile(r"(?:^|_)(?:token|password|passwd|secret|api_?key)$", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Whether a setting or key holds a token or password, going by its name (``hub_token``)."""
    return _SECRET.search(name) is not None


def without_secrets(value: Any) -> Any:
    """Returns a copy in which tokens, passwords and credentials in addresses are left out.

    Values whose key ends in ``token``, ``password``, ``secret`` or ``api_key`` become None, in a
    ``{"value": ..., "source": ...}`` as well; in a list the text after such an option becomes
    ``***``.
    """
    if isinstance(value, Mapping):
        return {key: _without_secret(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items, hide = [], False
        for item in value:
            if hide:
                items.append("***")
                hide = False
                continue
            if isinstance(item, str) and item.startswith("-"):
                option, equals, _ = item.partition("=")
                if is_secret_name(option.lstrip("-").replace("-", "_")):
                    items.append(f"{option}=***" if equals else option)
                    hide = not equals
                    continue
            items.append(without_secrets(item))
        return items
    if isinstance(value, str):
        return _CREDENTIALS.sub("***", value)
    return value


def _without_secret(key: str, value: Any) -> Any:
    if not is_secret_name(key):
        return without_secrets(value)
    if isinstance(value, Mapping) and "value" in value:
        return {**value, "value": None}
    return None
