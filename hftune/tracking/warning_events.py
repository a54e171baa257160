"""Warnings that libraries give while a run goes on, kept as events of the run."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run_record import RunRecord

__all__ = ["WarningEvents"]

# The loggers at the top of libraries that keep their messages from the root.
_LOGGERS = ("", "transformers", "datasets", "accelerate", "diffusers", "trl", "huggingface_hub")
_MOST = 200  # different warnings of a run that are kept


class WarningEvents(logging.Handler):
    """Writes each different warning once into a run; all of them are shown as before.

    Args:
        record (RunRecord): The run.
    """

    def __init__(self, record: RunRecord) -> None:
        super().__init__(logging.WARNING)
        self._record = record
        self._seen: set[str] = set()
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self)
        self._show = warnings.showwarning
        warnings.showwarning = self._on_warning

    def close(self) -> None:
        """Stops listening."""
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)
        if warnings.showwarning == self._on_warning:
            warnings.showwarning = self._show
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a message of a logger."""
        self._keep(record.getMessage(), record.name)

    def _on_warning(
        self, message: Warning | str, category: type[Warning], *place: Any, **more: Any
    ) -> None:
        self._keep(f"{category.__name__}: {message}", str(place[0]) if place else "")
        self._show(message, category, *place, **more)

    def _keep(self, message: str, source: str) -> None:
        if message in self._seen or len(self._seen) >= _MOST:
            return
        self._seen.add(message)
        self._record.log_event("warning", message=message[:2000], source=source)
