"""The trainer's own part in the events of a run: averages, epochs of samplers, signals."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..utils.seeds import derive_seed
from .averaging import WeightAverage
from .interrupt import ignore_stop_signals
from .loss_window import LossWindow

__all__ = ["AVERAGE_FILE", "Conductor", "separate_seeds", "shield_workers"]

AVERAGE_FILE = "ema.safetensors"
"""The moving average of the weights, in a checkpoint."""


class Conductor(TrainerCallback):
    """Takes part in the events of a run for a :class:`~hftune.training.durable.DurableRuns`."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        trainer, checkpoint = self.trainer, self.trainer._resumed_from
        trainer.loss_window = LossWindow()
        trainer._named_parameters = None
        trainer.average = None
        for callback in trainer._stateful_callbacks():
            callback.saved_by_trainer = True
        if args.ema_decay:
            trainer.average = WeightAverage(trainer.model, args.ema_decay)
        if checkpoint is None:
            return
        trainer._relocate_best()
        trainer._load_window(checkpoint)
        if trainer.average is not None:
            trainer.average.load(checkpoint / AVERAGE_FILE)
        for callback in trainer._stateful_callbacks():
            callback.load_state(checkpoint)

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        # What the Trainer's own set_epoch misses: samplers and data sets behind the batch samplers
        # that sharding and skipping put around them. And the sampler of group_by_length, which
        # draws from the global random numbers: not the same ones when a run resumes in an epoch.
        epoch = math.floor((state.epoch or 0) + 1e-6)
        for part in _parts(train_dataloader):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
            if isinstance(part, LengthGroupedSampler):
                seed = args.seed if args.data_seed is None else args.data_seed
                part.generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        separate_seeds(train_dataloader, derive_seed(args.seed, "data workers", epoch))

    def on_step_end(self, args, state, control, **kwargs):
        trainer = self.trainer
        if trainer.average is not None:
            trainer.average.update(state.global_step)
        if trainer._stop_request.requested():
            control.should_training_stop = True
            # At the end of an epoch what belongs to that comes first.
            if state.epoch != int(state.epoch):
                control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer._stop_request.signal_name is None:
            return
        if state.epoch == int(state.epoch):
            control.should_save = True
        else:  # the epoch was broken off, it did not end
            control.should_evaluate = control.should_save = control.should_log = False


def _parts(loader: Any) -> list[Any]:
    """A loader's data set and samplers, down to the innermost; not the loader itself."""
    found: list[Any] = [getattr(loader, "dataset", None)]
    for outer in (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)):
        while outer is not None and outer not in found:
            found.append(outer)
            outer = getattr(outer, "batch_sampler", None) or getattr(outer, "sampler", None)
    return [part for part in found if part is not None]


class _ShieldedInit:
    """A worker's own initialisation, then deafness to the signals that are meant for the run."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, worker: int) -> None:
        if self.inner is not None:
            self.inner(worker)
        ignore_stop_signals()


def shield_workers(loader: Any) -> None:
    """Keeps signals to the whole process group from a prepared loader's workers."""
    loader = getattr(loader, "base_dataloader", loader)
    if not isinstance(loader.worker_init_fn, _ShieldedInit):  # one that is kept comes by again
        loader.worker_init_fn = _ShieldedInit(loader.worker_init_fn)


def separate_seeds(loader: Any, seed: int) -> None:
    """Has a loader draw the seed of its workers from a generator of its own.

    A loader draws one each time that it starts workers, and without any at each pass over the data.
    Drawn from the global random numbers, that would shift dropout where workers persist: a resumed
    run starts them once more than one that was not stopped.

    Args:
        loader: A DataLoader, also one that accelerate has prepared.
        seed (int): Of the generator.
    """
    loader = getattr(loader, "base_dataloader", loader)
    loader.generator = torch.Generator().manual_seed(seed)
