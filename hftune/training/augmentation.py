"""Random changes of training samples that are the same after a resume, in any worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..utils.seeds import derive_seed

__all__ = ["AugmentedDataset"]


class AugmentedDataset(Dataset):
    """A data set whose samples are changed at random, anew in each epoch.

    What is drawn for a sample depends on the seed, the epoch and the sample's index, and on nothing
    else: not on the order of samples, the number of workers or processes, or where a run was
    interrupted. An hftune trainer calls :meth:`set_epoch` at the start of each epoch; the epoch
    lies in shared memory, where workers that outlive an epoch see it.

    NOTE: Stages and runs that are to differ need seeds that differ, such as
    ``derive_seed(seed, stage)``.

    Args:
        dataset (torch.utils.data.Dataset): With ``__len__`` and ``__getitem__``; one that has a
            ``set_epoch`` is told the epoch too.
        augment (callable): ``augment(sample, rng)`` returns the changed sample and draws from
            ``rng``, a `numpy.random.Generator` of this sample alone, never from global random
            numbers. It must not change ``sample`` itself where the data set keeps it.
        seed (int): Any integer.

    Example:
        >>> def jitter(sample, rng):
        ...     return sample | {"x": sample["x"] + rng.normal(scale=0.1, size=6)}
        >>> trainer = HFTuneTrainer(model, args, train_dataset=AugmentedDataset(data, jitter, 42))
    """

    def __init__(
        self,
        dataset: Dataset,
        augment: Callable[[Any, np.random.Generator], Any],
        seed: int,
    ) -> None:
        self.dataset = dataset
        self.augment = augment
        self._seed = derive_seed(seed, "augmentation")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that samples are drawn for, counted from 0."""
        return self._epoch.item()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, for all workers too.

        Args:
            epoch (int): Counted from 0.
        """
        self._epoch.fill_(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.augment(self.dataset[index], self._generator(index))

    def __getitems__(self, indices: list[int]) -> list[Any]:
        if callable(getattr(self.dataset, "__getitems__", None)):
            samples = self.dataset.__getitems__(indices)
        else:
            samples = [self.dataset[index] for index in indices]
        return [
            self.augment(sample, self._generator(index))
            for sample, index in zip(samples, indices, strict=True)
        ]

    def _generator(self, index: int) -> np.random.Generator:
        # About 10 microseconds; a Philox generator with this as its key costs 9, and draws slower.
        return np.random.default_rng((self._seed, self.epoch, int(index) % len(self)))
