"""Folders that Aardvark's training scripts leave: ``config.pkl``, ``losses_0.npy``, ``epoch_N``."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hftune.utils.errors import CheckpointError
from hftune.utils.files import atomic_write

from .config_pickle import read_config_pickle

__all__ = ["OfficialCheckpoint", "is_official_folder", "read_official", "write_official"]

# The loss in the files is a numpy scalar: these three make one, and can do nothing else. Its
# function has an old and a new name.
_SCALAR = np.float64(0).__reduce__()[0]
_SAFE_GLOBALS = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]

_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")
_EPOCH = re.compile(r"epoch_(\d{1,9})")


@dataclasses.dataclass(frozen=True)
class OfficialCheckpoint:
    """What a folder of Aardvark's scripts holds.

    Attributes:
        path (Path): The file that the weights are from.
        weights (dict): Tensors by name, without the prefixes of distributed training.
        settings (dict): ``config.pkl``; empty without one.
        epoch (int, *optional*): Epoch that the file says it is of.
        loss (float, *optional*): Validation loss that the file says it had.
    """

    path: Path
    weights: dict[str, torch.Tensor]
    settings: dict[str, Any]
    epoch: int | None
    loss: float | None

    def part(
        self, kind: Literal["processor", "encoder"], forecast_model: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Weights of one network.

        Args:
            kind (str): ``"processor"`` or ``"encoder"``.
            forecast_model (int, *optional*): Which processor of an end-to-end checkpoint; needed
                only where it holds several.

        Returns:
            dict: Its tensors by name: all of them, unless the checkpoint is end-to-end.

        Raises:
            CheckpointError: If that network is not in it.
        """
        processors = sorted(
            {int(n.split(".")[1]) for n in self.weights if re.match(r"forecast_model\.\d+\.", n)}
        )
        whole = bool(processors) or any(name.startswith("se_model.") for name in self.weights)
        if not whole and forecast_model is not None:
            raise CheckpointError(
                f"{self.path} is no end-to-end checkpoint: forecast_model {forecast_model} is "
                "not in it. Leave forecast_model out."
            )
        if not whole:
            return dict(self.weights)
        if kind == "encoder":
            prefix = "se_model."
        else:
            chosen = processors[0] if forecast_model is None and len(processors) == 1 else None
            chosen = forecast_model if chosen is None else chosen
            if chosen not in processors:
                listed = ", ".join(map(str, processors)) or "none"
                raise CheckpointError(
                    f"{self.path} is an end-to-end checkpoint with the processors {listed}: "
                    "say which one with forecast_model."
                )
            prefix = f"forecast_model.{chosen}."
        found = {n.removeprefix(prefix): w for n, w in self.weights.items() if n.startswith(prefix)}
        if not found:
            raise CheckpointError(f"{self.path} is an end-to-end checkpoint without an encoder.")
        return found


def is_official_folder(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is an ``epoch_N`` file of Aardvark's scripts, or a folder with one."""
    path = Path(path)
    if path.is_dir():
        return not (path / "config.json").exists() and bool(_epochs(path))
    return path.is_file() and _EPOCH.fullmatch(path.name) is not None


def read_official(
    source: str | os.PathLike[str], *, epoch: int | None = None
) -> OfficialCheckpoint:
    """Reads a folder that Aardvark's scripts left, or one ``epoch_N`` file of it.

    Nothing that a pickle may hold is run. The best epoch is the one with the lowest loss in
    ``losses_0.npy``; other than in the reference, an epoch whose loss is NaN never is.
    ``config.pkl`` is looked for in the folder and in the one above it.

    Args:
        source (path): The folder, or the file.
        epoch (int, *optional*): Epoch to read. Defaults to the best one.

    Returns:
        OfficialCheckpoint: Its tensors are mapped from the file, not yet read.

    Raises:
        CheckpointError: If files are missing, damaged, or hold anything else than tensors and
            plain values. What is refused is named.
    """
    source = Path(source)
    path = _choose_epoch(source, epoch) if source.is_dir() else source
    configs = [folder / "config.pkl" for folder in (path.parent, path.parent.parent)]
    settings = next((read_config_pickle(config) for config in configs if config.is_file()), {})
    content = _read_tensors(path)
    weights = content.get("model_state_dict", content)
    if not isinstance(weights, Mapping) or not weights:
        raise CheckpointError(f"{path}: expected weights by name in model_state_dict, found none.")
    strange = [name for name, weight in weights.items() if not isinstance(weight, torch.Tensor)]
    if strange:
        raise CheckpointError(
            f"{path} holds {', '.join(map(str, strange[:5]))}; expected weights by name, such as "
            "module.decoder_lr.pos_embed, below model_state_dict."
        )
    said = {key: content.get(key) for key in ("epoch", "loss")}
    return OfficialCheckpoint(
        path=path,
        weights={_PREFIXES.sub("", name): weight for name, weight in weights.items()},
        settings=settings,
        epoch=said["epoch"] if isinstance(said["epoch"], int) else None,
        loss=float(said["loss"]) if isinstance(said["loss"], (int, float)) else None,
    )


def _epochs(folder: Path) -> dict[int, Path]:
    found = {}
    for path in folder.iterdir():
        match = _EPOCH.fullmatch(path.name)
        if match and path.is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _choose_epoch(folder: Path, epoch: int | None) -> Path:
    epochs = _epochs(folder)
    if not epochs:
        below = sorted(p.name for p in folder.iterdir() if p.is_dir() and _epochs(p))
        advice = f" Did you mean {folder / below[0]}?" if below else ""
        raise CheckpointError(
            f"{folder} is no folder of Aardvark's: expected files such as epoch_0.{advice}"
        )
    names = ", ".join(path.name for path in epochs.values())
    if epoch is not None:
        if epoch not in epochs:
            raise CheckpointError(f"{folder} has no epoch_{epoch}; there is {names}.")
        return epochs[epoch]
    if not (folder / "losses_0.npy").is_file():
        if len(epochs) == 1:
            return next(iter(epochs.values()))
        raise CheckpointError(
            f"{folder} has no losses_0.npy that says which epoch is the best: name one of the "
            f"files, {names}."
        )
    try:
        losses = np.load(folder / "losses_0.npy", allow_pickle=False).astype(np.float64).ravel()
    except (ValueError, OSError, EOFError) as error:
        raise CheckpointError(
            f"{folder / 'losses_0.npy'} is damaged or no plain array of numbers ({error}): name "
            f"one of the files, {names}."
        ) from error
    if np.isnan(losses).all():
        raise CheckpointError(
            f"{folder / 'losses_0.npy'} holds no number that is not NaN, so no epoch is the best: "
            f"name one of the files, {names}."
        )
    best = int(np.nanargmin(losses))
    if best not in epochs:
        raise CheckpointError(
            f"losses_0.npy says that epoch {best} is the best ({losses[best]:.4g}), but {folder} "
            f"has no epoch_{best}: get it, or name one of the files that are there, {names}."
        )
    return epochs[best]


def _read_tensors(path: Path) -> Mapping[str, Any]:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    zipped = zipfile.is_zipfile(path)  # as torch has written its files since 2020
    try:
        # torch itself does not look at the check sums.
        damaged = zipfile.ZipFile(path).testzip() if zipped else None
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: {damaged} in it has another check sum.")
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files raise nearly anything
        found = re.search(r"(?:GLOBAL |<class ')([\w.]+)", str(error))
        if found:
            raise CheckpointError(
                f"{path} holds {found[1]}: it could run code when it is loaded. Nothing of it was "
                "run. Expected tensors and plain numbers only: get the file from where the model "
                "was published."
            ) from error
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint of tensors: it is damaged or of another kind "
            f"({first})."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}; expected a dict with model_state_dict."
        )
    return content


def write_official(
    folder: str | os.PathLike[str],
    weights: Mapping[str, torch.Tensor],
    *,
    settings: Mapping[str, Any],
    epoch: int = 0,
    loss: float = 0.0,
) -> Path:
    """Writes a folder as Aardvark's scripts leave one; each file is whole or absent.

    Args:
        folder (path): Made if missing.
        weights (dict): Tensors by name, without prefix; written with ``module.``.
        settings (dict): Plain values for ``config.pkl``.
        epoch (int): ``N`` of the file ``epoch_N``. Defaults to 0.
        loss (float): Validation loss. Defaults to 0.

    Returns:
        Path: The file ``epoch_N``.
    """
    folder = Path(folder)
    path = folder / f"epoch_{epoch}"
    content = {
        "epoch": epoch,
        "model_state_dict": {
            f"module.{name}": weight.detach().cpu().contiguous().clone()
            for name, weight in weights.items()
        },
        "loss": float(loss),
    }
    with atomic_write(path, "wb") as stream:
        torch.save(content, stream)
    losses = np.full(epoch + 1, np.inf)
    losses[epoch] = loss
    with atomic_write(folder / "losses_0.npy", "wb") as stream:
        np.save(stream, losses, allow_pickle=False)
    # The reference's scripts read nothing else. Plain values only, as the reader here demands.
    with atomic_write(folder / "config.pkl", "wb") as stream:
        stream.write(pickle.dumps(dict(settings), protocol=4))
    return path
