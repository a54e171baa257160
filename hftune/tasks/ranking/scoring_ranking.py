"""Scores of images: each passes the model once, shared by the processes of a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from ...utils.modules import evaluating
from .data_ranking import ImageCollator

__all__ = ["score_images"]


def score_images(
    model: torch.nn.Module,
    dataset: Dataset,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> np.ndarray:
    """Scores all images of a data set.

    In a group of processes each scores its share and all have the result; the model's mode is
    restored, and no random number is drawn.

    Args:
        model (torch.nn.Module): A ranking model, also one that is wrapped for training.
        dataset (torch.utils.data.Dataset): :class:`~.data_ranking.PixelImages` or
            :class:`~.data_ranking.FeatureImages`.
        batch_size (int): Images at a time. Defaults to 32.
        num_workers (int): Processes that decode. Defaults to 0: this one.
        progress (callable, *optional*): Called with the number of images of each batch that this
            process has done.

    Returns:
        float64 ``[N]``.
    """
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if grouped else 0
    world = torch.distributed.get_world_size() if grouped else 1
    starts = range(0, len(dataset), batch_size)
    batches = [list(range(s, min(s + batch_size, len(dataset)))) for s in starts]
    mine = batches[rank::world]
    # A sharded model hangs unless all processes call it equally often: some go on with a repeat.
    turns = -(-len(batches) // world)
    repeated = mine + [batches[0]] * (turns - len(mine))
    loader = DataLoader(
        _Unlabelled(dataset),
        batch_sampler=repeated,
        num_workers=num_workers,
        collate_fn=ImageCollator(),
        generator=torch.Generator().manual_seed(0),  # else one global random number is drawn
    )
    device = next(model.parameters()).device
    parts = []
    with evaluating(model), torch.no_grad():
        for turn, batch in enumerate(loader):
            inputs = {name: _to(value, device) for name, value in batch.items()}
            scores = model(**inputs).scores
            if turn < len(mine):
                parts.append(scores.double().cpu().numpy())
                if progress is not None:
                    progress(len(scores))
    scores = np.concatenate(parts) if parts else np.zeros(0)
    gathered = [scores]
    if grouped:
        gathered = [None] * world
        torch.distributed.all_gather_object(gathered, scores)
    result = np.empty(len(dataset))
    for number, part in enumerate(gathered):
        if rows := [row for batch in batches[number::world] for row in batch]:
            result[rows] = part
    return result


class _Unlabelled(Subset):
    """A data set without its targets: no loss is computed."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, range(len(dataset)))

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in sample.items() if name != "target"}
            for sample in super().__getitems__(rows)
        ]


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    return [image.to(device, non_blocking=True) for image in value]
