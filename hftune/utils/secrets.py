"""Which settings must never be printed or saved."""

from __future__ import annotations

import re

__all__ = ["is_secret_name"]

_SECRET = re.compile(r"(?:^|_)(?:token|password|passwd|secret|api_?key)$", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Whether a setting or key holds a token or password, going by its name (``hub_token``)."""
    return _SECRET.search(name) is not None
