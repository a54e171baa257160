"""Names that are imported when they are first used, so that ``import hftune`` costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["lazy_exports"]


def lazy_exports(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Makes the ``__getattr__``, ``__dir__`` and ``__all__`` of a package with lazy exports.

    Args:
        package (str): ``__name__`` of the package.
        modules (mapping): Names to export by the module, relative to the package, that has them.

    Returns:
        The three values to assign in the package.

    Example:
        >>> exports = {"training.trainer": ["HFTuneTrainer"]}
        >>> __getattr__, __dir__, __all__ = lazy_exports(__name__, exports)
    """
    home = {name: module for module, names in modules.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in home:
            from .errors import did_you_mean

            hint = did_you_mean(name, home)
            raise AttributeError(f"module {package!r} has no attribute {name!r}.{hint}")
        value = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)  # found without this function next time
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return __getattr__, __dir__, sorted(home)
