"""Callbacks of other packages: made by name, and watched while they run."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from transformers import TrainerCallback

from ..configuration.plugins import Plugin, resolve_callbacks
from ..tracking.exits import open_records
from ..utils.errors import ConfigurationError, HftuneError
from .state import StatefulCallback

__all__ = ["CallbackError", "Guard", "GuardedCallback", "load_callbacks"]

logger = logging.getLogger(__name__)

_EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]
_STATE_EVENTS = ["load_state", "save_state"]
_STAGE_EVENTS = ["on_stage_begin", "on_stage_end"]  # of callbacks that know stages
_TRACEBACK_LINES = 12


class CallbackError(HftuneError):
    """A run that was stopped because a callback of a plugin raised."""


class Guard:
    """Calls a plugin's methods, and says whose error it is when one of them raises.

    An :class:`~hftune.utils.errors.HftuneError` is a callback's own decision to stop the run, with
    a message that is meant for people: it passes.

    Args:
        plugin (Plugin): Whose methods they are.
        on_error (str): ``"stop"`` raises :class:`CallbackError`; ``"disable"`` warns once and calls
            nothing any more.

    Attributes:
        disabled (bool): Whether the plugin is turned off in this process.
    """

    def __init__(self, plugin: Plugin, on_error: Literal["stop", "disable"]) -> None:
        self.plugin = plugin
        self.on_error = on_error
        self.disabled = False

    def call(self, event: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a method for an event; returns None where the plugin is disabled or raised."""
        if self.disabled:
            return None
        try:
            return method(*args, **kwargs)
        except HftuneError:
            raise
        except Exception as error:
            if event == "save_state" and isinstance(error, OSError):
                raise  # the trainer knows what to do about a full disk
            step = args[1].global_step if event.startswith("on_") else None
            message = f"callback {self.plugin} failed in {event}"
            message += "" if step is None else f" at step {step}"
            message += f":\n{_traceback(error)}"
            if self.on_error == "stop":
                raise CallbackError(
                    f"{message}\nThe error is the callback's. Mend it, leave it out of callbacks, "
                    "or go on without it when it fails: --callback_errors disable."
                ) from error
            self._disable(message, event, step)
            return None

    def _disable(self, message: str, event: str, step: int | None) -> None:
        self.disabled = True
        rank = os.environ.get("RANK")
        where = "" if rank is None else f" in process {rank}"
        message += f"\nIt is disabled{where} for the rest of this run; training goes on."
        logger.warning("%s", message)
        for record in open_records():
            record.log_event(
                "warning", step=step, message=message, callback=self.plugin.name, event=event
            )


def _traceback(error: Exception) -> str:
    """The last lines of a traceback, from the plugin's own code on."""
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    lines = "".join(traceback.format_exception(type(error), error, trace)).splitlines()
    return "\n".join(lines[-_TRACEBACK_LINES:])


class GuardedCallback(TrainerCallback):
    """What the class of a plugin's callback is derived from once the callback is guarded.

    The callback remains the object that the plugin made, and an instance of its class: whatever
    looks for it finds it (``trainer.pop_callback(Class)``, the state of a
    :class:`~hftune.callbacks.state.StatefulCallback` in checkpoints, `ExportableState`).

    Attributes:
        guard (Guard): What stands between the trainer and its methods.
    """

    guard: ClassVar[Guard]


def _guarded(event: str) -> Callable[..., Any]:
    def call(self: GuardedCallback, *args: Any, **kwargs: Any) -> Any:
        method = getattr(super(GuardedCallback, self), event)
        return self.guard.call(event, method, *args, **kwargs)

    return call


def _guard(callback: TrainerCallback, guard: Guard) -> TrainerCallback:
    kind = type(callback)
    if isinstance(callback, GuardedCallback):  # a function that returns the same one each time
        kind = kind.__bases__[1]
    events = _EVENTS + (_STATE_EVENTS if issubclass(kind, StatefulCallback) else [])
    events += [event for event in _STAGE_EVENTS if hasattr(kind, event)]
    content = {
        **{event: _guarded(event) for event in events},
        "guard": guard,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    callback.__class__ = type(kind.__name__, (GuardedCallback, kind), content)
    return callback


def load_callbacks(
    specs: Sequence[str | Mapping[str, Any]], on_error: Literal["stop", "disable"] = "stop"
) -> list[TrainerCallback]:
    """Makes callbacks that are named, for any `transformers.Trainer`.

    Args:
        specs (sequence of str or mapping): ``"name"``, ``"name:key=value,key=value"``,
            ``'name:{"key": value}'``, ``{"name": {"key": value}}``, ``{"name": "name", "key":
            value}``; the name is one that an installed package declares under the entry point group
            ``hftune.callbacks``, or the path of a class, ``"package.module:Class"``.
        on_error (str): When one of them raises in training: ``"stop"`` with a
            :class:`CallbackError` that says which one, in which event; or ``"disable"`` it, with a
            warning in the log and the run's record. Defaults to ``"stop"``.

    Returns:
        The callbacks, in the order of ``specs``.

    Raises:
        ConfigurationError: With everything that is wrong: names that nobody declares or several
            packages do, imports that fail, arguments, what is no `TrainerCallback`.

    Example:
        >>> trainer = Trainer(model, args, callbacks=load_callbacks(["gradient_health:window=50"]))
    """
    found, problems = resolve_callbacks(specs)
    if problems:
        raise ConfigurationError(problems)
    callbacks = []
    for named in found:
        try:
            callback = named.factory(**named.arguments)
        except Exception as error:
            reason = error if isinstance(error, HftuneError) else f"{type(error).__name__}: {error}"
            problems.append(f"callbacks: {named.plugin} could not be made: {reason}")
            continue
        if isinstance(callback, TrainerCallback):
            callbacks.append(_guard(callback, Guard(named.plugin, on_error)))
        else:
            problems.append(
                f"callbacks: {named.plugin} ({named.plugin.target}) returned a "
                f"{type(callback).__name__}, expected a transformers.TrainerCallback"
            )
    if problems:
        raise ConfigurationError(problems)
    return callbacks
