"""Scores of images: each passes the model once, shared by the processes of a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from ...training.conductor import shield_workers
from ...training.first_process import process_group
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
        float64 ``[N]``, in the order of the data set.
    """
    rank, world = process_group()
    rows = list(range(len(dataset)))
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    mine = batches[rank::world]
    # A sharded model hangs unless all processes call it equally often: some go on with a repeat.
    turns = -(-len(batches) // world)
    repeated = mine + batches[:1] * (turns - len(mine))
    loader = DataLoader(
        dataset,
        batch_sampler=repeated,
        num_workers=num_workers,
        collate_fn=ImageCollator(),
        generator=torch.Generator().manual_seed(0),  # else one global random number is drawn
    )
    shield_workers(loader)  # a signal is for the run, which ends its evaluation first
    device = next(model.parameters()).device
    parts = []
    with evaluating(model), torch.no_grad():
        for turn, batch in enumerate(loader):
            batch.pop("targets", None)  # no loss is computed
            scores = model(**send_to_device(batch, device, non_blocking=True)).scores
            if turn < len(mine):
                parts.append(scores.double().cpu().numpy())
                if progress is not None:
                    progress(len(scores))
    gathered: list[Any] = [parts]
    if world > 1:
        gathered = [None] * world
        torch.distributed.all_gather_object(gathered, parts)
    result = np.empty(len(dataset))
    for number, done in enumerate(gathered):
        for batch, scores in zip(batches[number::world], done, strict=True):
            result[batch] = scores
    return result
