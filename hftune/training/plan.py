"""The plan and the journal of a run in stages.

``plan.json`` says which stages there are; it is written once, before anything is trained, and again
only where stages are added. ``stages.json`` is the journal: what has become of each stage. Both are
replaced atomically; a stage is done once the journal says so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.errors import ConfigurationError
from ..utils.files import checked_name, read_json, sync_folder, write_json

__all__ = [
    "JOURNAL",
    "PLAN",
    "Journal",
    "Plan",
    "PlannedStage",
    "Stage",
    "best_model",
    "numbered",
    "set_aside",
]

PLAN = "plan.json"
JOURNAL = "stages.json"

_FORMAT = 1


def best_model(root: str | os.PathLike[str], name: str) -> Path:
    """Where a stage leaves its best weights.

    Args:
        root (path): The run's folder.
        name (str): The stage's.
    """
    return Path(root, name, "checkpoints", "best_model")


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """A stage as the plan has it.

    Attributes:
        key (str): What tells it from the others, whatever its number: ``"0.1"``.
        name (str): Its folder, such as ``"stage_1_10pct"``.
        title (str): For people: ``"10 % of the data"``.
        settings (dict): What makes it this stage and no other, as JSON has it.
        steps (int): Optimizer steps that it is expected to take, for the time that is left.
        epochs (float): Passes over its data.
    """

    key: str
    name: str
    title: str
    settings: dict[str, Any]
    steps: int = 0
    epochs: float = 1.0


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage that is running: what callbacks get as ``stage=``.

    Attributes:
        number (int): 1, 2, ...
        count (int): Stages of the plan.
        planned (PlannedStage): What the plan says of it.
        root (Path): The run's folder.
        later (tuple of PlannedStage): The stages after it.
        is_last (bool): Whether the run ends with it.
    """

    number: int
    count: int
    planned: PlannedStage
    root: Path
    later: tuple[PlannedStage, ...]
    is_last: bool

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.planned.name

    @property
    def title(self) -> str:
        """For people."""
        return self.planned.title

    @property
    def folder(self) -> Path:
        """Its folder, ``ROOT/NAME``."""
        return self.root / self.name

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints and weights lie: the trainer's ``output_dir`` for as long."""
        return self.folder / "checkpoints"

    @property
    def best_model(self) -> Path:
        """The weights that it leaves to the next stage, loadable with ``from_pretrained``."""
        return best_model(self.root, self.name)


@dataclasses.dataclass(frozen=True)
class Plan:
    """An ordered list of stages.

    Attributes:
        kind (str): ``"progressive"``, ``"lead_time"``, ...
        settings (dict): What all stages have in common: a run with other ones is another plan. What
            is in its ``"training"`` may change where a run explicitly begins with a later stage.
        stages (tuple of PlannedStage): In their order.
    """

    kind: str
    settings: dict[str, Any]
    stages: tuple[PlannedStage, ...]

    @classmethod
    def read(cls, root: str | os.PathLike[str]) -> Plan | None:
        """Reads the plan of a run's folder; None where there is none.

        Raises:
            ConfigurationError: If the file is no plan.
        """
        path = Path(root) / PLAN
        try:
            values = read_json(path)
            if values["format"] != _FORMAT:
                raise ConfigurationError(
                    f"{path} has format {values['format']}, this hftune reads {_FORMAT}"
                )
            stages = tuple(PlannedStage(**stage) for stage in values["stages"])
            for stage in stages:
                checked_name(stage.name, f"{path}: stage")
            return cls(values["kind"], values["settings"], stages)
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{path} is no plan of stages ({type(error).__name__}: {error}); take another "
                "output_dir, or begin anew here with --resume never"
            ) from None

    def write(self, root: str | os.PathLike[str]) -> None:
        """Writes the plan into a run's folder, atomically."""
        content = {
            "format": _FORMAT,
            "kind": self.kind,
            "settings": self.settings,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
        }
        write_json(Path(root) / PLAN, content)

    def continued(
        self, new: Plan, journal: Journal, *, allow_changes: bool = False
    ) -> tuple[Plan, list[str]]:
        """Returns the plan that goes on from this one as a new one asks.

        What is there of this plan up to the stage with which the new one begins stays; the rest is
        the new plan's. Stages that are done or begun are never changed; stages after the new plan's
        last one stay where they are done.

        Args:
            new (Plan): What the run is asked for now.
            journal (Journal): What has become of this plan's stages.
            allow_changes (bool): Whether other settings are accepted. Defaults to False.

        Returns:
            The plan, and the changes that were accepted, one text each.

        Raises:
            ConfigurationError: If the new plan is another one; every difference is named.
        """
        problems: list[str] = []
        if self.kind != new.kind:
            problems.append(f"the plan in this folder is of kind '{self.kind}', not '{new.kind}'")
        changes = _differences(self.settings, new.settings)
        training = _differences(*(p.settings.get("training", {}) for p in (self, new)))
        old = {stage.key: position for position, stage in enumerate(self.stages)}
        begun = [position for position, s in enumerate(self.stages) if journal.status(s.name)]
        first = new.stages[0]
        if first.key not in old and begun:
            there = ", ".join(stage.title for stage in self.stages)
            problems.append(
                f"the plan in this folder has no stage '{first.title}' to go on from (it has "
                f"{there})"
            )
        if problems:
            raise ConfigurationError([f"{text}. {_WAY_OUT}" for text in problems])
        if not begun:
            return dataclasses.replace(new, stages=numbered(new.stages)), []

        start = old[first.key]
        if start == 0:
            changes, training = changes + training, []
        kept = self.stages[:start]
        if not all(journal.is_done(stage.name) for stage in kept) and begun:
            unfinished = next(stage for stage in kept if not journal.is_done(stage.name))
            raise ConfigurationError(
                f"'{unfinished.title}' of the plan in this folder is not done, and the run is "
                f"asked to begin with '{first.title}'. Begin with the unfinished one: the stage "
                f"goes on where it was stopped. {_WAY_OUT}"
            )
        stages = list(kept)
        for stage in new.stages:
            number = len(stages) + 1
            stage = _numbered(stage, number)
            before = self.stages[number - 1] if number <= len(self.stages) else None
            status = None if before is None else journal.status(before.name)
            if status is None:
                stages.append(stage)
                continue
            # Where the run is asked to go on from what is done, it is taken as it is.
            taken_over = number - 1 == start and status == "done"
            if not taken_over:
                what = {"done": "is done", "running": "has begun"}[status]
                changes += [
                    f"stage {number} ('{before.title}', which {what}): {change}"
                    for change in _differences(
                        {"stage": before.key, **before.settings},
                        {"stage": stage.key, **stage.settings},
                    )
                ]
            stages.append(before)
        stages += [
            stage for stage in self.stages[len(stages) :] if journal.status(stage.name) is not None
        ]
        if changes and not allow_changes:
            raise ConfigurationError(
                [
                    f"{change}. Go back to the old value, begin with a later stage, or accept it "
                    f"with --allow_resume_changes; {_WAY_OUT[0].lower()}{_WAY_OUT[1:]}"
                    for change in changes
                ]
            )
        return Plan(new.kind, new.settings, tuple(stages)), changes + training


_WAY_OUT = "Another plan needs another output_dir (or --resume never, which sets this one aside)."


def _numbered(stage: PlannedStage, number: int) -> PlannedStage:
    """The stage with its number in its name: ``stage_{number}_10pct``."""
    return dataclasses.replace(stage, name=stage.name.replace("{number}", str(number)))


def numbered(stages: Sequence[PlannedStage]) -> tuple[PlannedStage, ...]:
    """Puts the numbers into the names of stages: ``stage_{number}_10pct``."""
    return tuple(_numbered(stage, number) for number, stage in enumerate(stages, 1))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    now = json.loads(json.dumps(now))
    return [
        f"{name}: the plan in this folder has {before.get(name)!r}, this run {now.get(name)!r}"
        for name in sorted((before.keys() | now.keys()) - {"training"})
        if before.get(name) != now.get(name)
    ]


class Journal:
    """What has become of the stages of a run: ``stages.json``.

    Args:
        root (path): The run's folder.
        values (dict, *optional*): What the journal holds. Defaults to what the file says.
        writes (bool): Whether changes go to the file: in one process of a run. Defaults to True.

    Attributes:
        values (dict): ``"stages"``: by name ``"status"`` (``running`` or ``done``), ``"started"``
            and ``"finished"`` (seconds since 1970), ``"seconds"`` (of its attempts that came to an
            end), and what the trainer notes; ``"ended"``: why the run ended before its plan.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        values: dict[str, Any] | None = None,
        *,
        writes: bool = True,
    ) -> None:
        self.path = Path(root) / JOURNAL
        self.writes = writes
        self.values: dict[str, Any] = values or {"format": _FORMAT, "stages": {}, "ended": None}
        if values is None and self.path.is_file():
            try:
                values = read_json(self.path)
                if values["format"] != _FORMAT or not isinstance(values["stages"], dict):
                    raise KeyError("format")
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"{self.path} is no journal of stages ({type(error).__name__}: {error}); take "
                    "another output_dir, or begin anew here with --resume never"
                ) from None
            self.values = values

    def status(self, name: str) -> str | None:
        """``"running"`` (begun), ``"done"``, or None for a stage that has not begun."""
        entry = self.values["stages"].get(name)
        return None if entry is None else entry["status"]

    def is_done(self, name: str) -> bool:
        """Whether a stage is over."""
        return self.status(name) == "done"

    def entry(self, name: str) -> dict[str, Any]:
        """What is noted of a stage that has begun."""
        return self.values["stages"][name]

    def results(self, plan: Plan) -> list[dict[str, Any]]:
        """What the stages of a plan that are done leave behind, in their order."""
        return [self.entry(s.name)["result"] for s in plan.stages if self.is_done(s.name)]

    def note(self, name: str, **entries: Any) -> None:
        """Notes something of a stage, which has begun from then on.

        Raises:
            RuntimeError: If the stage is done: what is past does not change.
        """
        if self.is_done(name):
            raise RuntimeError(f"stage {name} is done, its entry does not change any more")
        new = {"status": "running", "started": time.time(), "finished": None, "seconds": 0.0}
        entry = self.values["stages"].setdefault(name, new)
        entry.update(entries)
        self._write()

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Notes that a stage is done, with what it leaves behind."""
        self.note(name, status="done", finished=time.time(), result=dict(result))

    def end(self, reason: str | None) -> None:
        """Notes that the run ends here, before its plan; None: it goes on."""
        if self.values["ended"] != reason:
            self.values["ended"] = reason
            self._write()

    def _write(self) -> None:
        if self.writes:
            write_json(self.path, self.values)


def set_aside(
    root: str | os.PathLike[str], names: Sequence[str], copies: Sequence[str] = ()
) -> tuple[list[Path], Path | None]:
    """Moves files and folders of a run's folder into ``quarantine/run_N/``, in their order.

    Args:
        root (path): The run's folder.
        names (sequence of str): What to move, where it is there.
        copies (sequence of str): Files to copy there first, where they are there.

    Returns:
        What was moved, and where to; None where there was nothing.
    """
    root = Path(root)
    copied = [root / name for name in copies if (root / name).exists()]
    moved = [root / name for name in names if (root / name).exists()]
    if not copied and not moved:
        return [], None
    number = 1
    while (target := root / "quarantine" / f"run_{number}").exists():
        number += 1
    target.mkdir(parents=True)
    for path in copied:
        shutil.copy2(path, target / path.name)
    for path in moved:
        os.replace(path, target / path.name)
    sync_folder(target)
    sync_folder(root)
    return moved, target
