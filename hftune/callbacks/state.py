"""Callbacks whose state is part of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from transformers import TrainerCallback

from ..utils.files import read_json, write_json

__all__ = ["StatefulCallback"]


class StatefulCallback(TrainerCallback):
    """A callback that continues where it was after a resume, in any Trainer.

    Its state is the file ``callbacks/<state_name>.json`` in each checkpoint. An hftune trainer
    writes it before the checkpoint is sealed; with another trainer the callback does that itself
    when it hears of the save. (`ExportableState` of transformers is off by default, and fails where
    a callback is new on resume.)

    Attributes:
        state_name (str): Name of its file, one for each class.
    """

    state_name: ClassVar[str]
    saved_by_trainer = False

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint must hold, as JSON has it."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what :meth:`state_dict` returned."""
        raise NotImplementedError

    def save_state(self, checkpoint: Path) -> None:
        """Writes the state into a checkpoint's folder."""
        write_json(checkpoint / "callbacks" / f"{self.state_name}.json", self.state_dict())

    def load_state(self, checkpoint: Path) -> None:
        """Reads the state from a checkpoint's folder, if it is there."""
        path = checkpoint / "callbacks" / f"{self.state_name}.json"
        if path.is_file():
            self.load_state_dict(read_json(path))

    def on_train_begin(self, args, state, control, **kwargs):
        if not self.saved_by_trainer and state.global_step > 0:
            self.load_state(Path(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_save(self, args, state, control, **kwargs):
        if not self.saved_by_trainer and state.is_world_process_zero:
            self.save_state(Path(args.output_dir, f"checkpoint-{state.global_step}"))
