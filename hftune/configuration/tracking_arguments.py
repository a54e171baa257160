"""Settings of how a run is recorded, the same for every recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..utils.errors import ConfigurationError
from ..utils.files import checked_name

__all__ = ["TrackingArguments"]


@dataclass
class TrackingArguments:
    """Settings of the experiment tracker, the model registry and their mirrors.

    Args:
        tracking (str): ``"on"`` records the run in the experiment store and its best model in the
            registry; ``"off"`` leaves both alone, and only the run's own folder has its record.
            Defaults to ``"on"``.
        experiment_name (str, *optional*): Defaults to the name of ``output_dir``.
        experiment_description (str): Any text. Defaults to nothing.
        tags (list of str): Words to find the run by. Defaults to none.
        parent_run (str, *optional*): Id of the run that this one came from.
        register_model (bool): Whether the best model of a run that ends well is registered.
            Defaults to True.
        registered_name (str, *optional*): Its name in the registry; runs that share a name make
            versions of one model. Defaults to the experiment's name.
        wandb (str): Mirror the run in Weights & Biases: ``"off"``, ``"auto"`` (online where a login
            is found, else offline), ``"online"`` or ``"offline"``. Defaults to ``"off"``.
        wandb_project (str): Naming one turns the mirror on (``"auto"``) where ``wandb`` is not
            given. Defaults to ``"hftune"``.
    """

    _section: ClassVar[str] = "tracking"

    tracking: Literal["on", "off"] = field(
        default="on",
        metadata={
            "help": "on: record the run in the experiment store and its best model in the "
            "registry; off: only in the run's own folder."
        },
    )
    experiment_name: str | None = field(
        default=None,
        metadata={
            "help": "Name of the run; by default that of output_dir. Names may repeat.",
            "aliases": ["wandb_run_name"],
        },
    )
    experiment_description: str = field(
        default="", metadata={"help": "What the run is for, in any words."}
    )
    tags: list[str] = field(
        default_factory=list, metadata={"help": "Words to find the run by: --tags baseline v2."}
    )
    parent_run: str | None = field(
        default=None, metadata={"help": "Id of the run that this one came from."}
    )
    register_model: bool = field(
        default=True,
        metadata={"help": "Register the best model of a run that ends well."},
    )
    registered_name: str | None = field(
        default=None,
        metadata={
            "help": "Name in the model registry; runs that share it make versions of one model. By "
            "default the name of the run."
        },
    )
    wandb: Literal["off", "auto", "online", "offline"] = field(
        default="off",
        metadata={
            "help": "Mirror the run in Weights & Biases. auto: online where a login is found, else "
            "offline."
        },
    )
    wandb_project: str = field(
        default="hftune",
        metadata={"help": "Project in Weights & Biases; naming it turns the mirror on."},
    )

    @staticmethod
    def check(values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with settings, before anything is constructed.

        Args:
            values (dict): Settings by name; those that are missing are not looked at.
        """
        if values.get("registered_name") is None:
            return []
        try:
            checked_name(values["registered_name"], "registered_name")
        except ConfigurationError as error:
            return list(error.problems)
        return []
