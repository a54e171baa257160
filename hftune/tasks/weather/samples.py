"""Training samples as rows of a :class:`datasets.Dataset` of times.

A row holds no fields: its transform reads them when it is asked for, all rows of a batch at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hftune.utils.errors import DataError

from .dates import describe_times, interval_seconds, select_rows
from .fields import WeatherFields

if TYPE_CHECKING:
    import datasets
    import torch

__all__ = ["SampleReader", "collate", "make_samples"]


@dataclasses.dataclass(frozen=True, eq=False)
class SampleReader:
    """Reads the fields of samples; the transform of :func:`make_samples`.

    Attributes:
        fields (WeatherFields): Where they are read.
        offsets (int64 array ``[T + L]``): Seconds from a sample's time to its inputs and targets.
        history (int): ``T``, the number of inputs.
    """

    fields: WeatherFields
    offsets: np.ndarray
    history: int

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Reads a batch of rows.

        Args:
            batch (dict): Column ``time``: seconds since 1970 of ``n`` samples.

        Returns:
            dict: Tensors ``fields [n, T, C, H, W]``, ``times [n]`` and ``target_fields
            [n, L, C, H, W]``.
        """
        import torch

        times = np.asarray(batch["time"], dtype=np.int64)
        rows = np.searchsorted(self.fields.times, times[:, None] + self.offsets)

        def read(rows: np.ndarray) -> torch.Tensor:
            values = self.fields.read(rows.reshape(-1))
            return torch.from_numpy(values.reshape(*rows.shape, *values.shape[1:]))

        return {
            "fields": read(rows[:, : self.history]),
            "times": torch.from_numpy(times),
            "target_fields": read(rows[:, self.history :]),
        }


def make_samples(
    fields: WeatherFields,
    *,
    history: int = 2,
    step_hours: float | None = None,
    lead_hours: Sequence[float] = (24,),
    rows: str | Sequence[int] | slice | None = None,
    stride: int = 1,
) -> datasets.Dataset:
    """Makes the samples of fields: inputs at a time and before it, targets after it.

    Every time that a sample needs must be there, exactly: no sample spans a gap. Keep
    ``remove_unused_columns=False`` in the training arguments; the columns are not the model's.

    Args:
        fields (WeatherFields): The fields.
        history (int): Number ``T`` of inputs, the last at the sample's time. Defaults to 2.
        step_hours (float, *optional*): Hours between inputs. Defaults to the data's own interval.
        lead_hours (sequence of float): ``L`` hours from the sample's time to its targets. Defaults
            to 24.
        rows (str, slice, sequence of int, *optional*): Dates, a fraction or a slice of times, which
            then hold all of a sample, inputs and targets, so that splits share no time; or the row
            numbers of the samples' times. Defaults to all.
        stride (int): Takes every ``stride``-th sample. Defaults to 1.

    Returns:
        datasets.Dataset: Columns ``row`` and ``time`` under a transform: a sample is a dict of
        ``fields`` float32 ``[T, C, H, W]``, ``times`` int64 and ``target_fields`` ``[L, C, H, W]``,
        torch tensors.

    Raises:
        DataError: If there is no such sample.
    """
    import datasets

    if history < 1 or stride < 1 or not len(lead_hours) or min(lead_hours) <= 0:
        raise DataError(
            f"samples need history, stride and lead hours of 1 or more; found history={history}, "
            f"stride={stride}, lead_hours={list(lead_hours)}."
        )
    times = fields.times
    step = interval_seconds(times) if step_hours is None else round(step_hours * 3600)
    offsets = np.concatenate(
        [np.arange(1 - history, 1) * step, np.round(np.asarray(lead_hours) * 3600).astype(np.int64)]
    )
    chosen = select_rows(times, rows)
    listed = not (rows is None or isinstance(rows, (str, slice)))
    available = times if listed else times[chosen]
    whole = np.ones(len(chosen), dtype=bool)
    for offset in offsets:
        needed = times[chosen] + offset
        place = np.minimum(np.searchsorted(available, needed), len(available) - 1)
        whole &= available[place] == needed
    chosen = chosen[whole][::stride]
    if not len(chosen):
        leads = ", ".join(f"{lead:g}" for lead in lead_hours)
        where = "" if rows is None else f" within {rows!r}" if not listed else " at the rows given"
        raise DataError(
            f"no sample of {history} input(s) {step / 3600:g} h apart and lead times of {leads} h"
            f"{where}: there are {describe_times(available)}. Change the dates, "
            "step_hours or lead_hours."
        )
    dataset = datasets.Dataset.from_dict({"row": chosen, "time": times[chosen]})
    dataset.set_transform(SampleReader(fields, offsets, history))
    return dataset


def collate(samples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Joins samples of :func:`make_samples` to a batch; the ``collate_fn`` of a loader.

    Samples that were read together are not copied: the batch is what they were cut from.
    """
    return {name: _joined([sample[name] for sample in samples]) for name in samples[0]}


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    import torch

    whole = tensors[0]._base
    if whole is not None and whole.shape == (len(tensors), *tensors[0].shape):
        step = whole.stride(0)
        if all(t._base is whole and t.storage_offset() == i * step for i, t in enumerate(tensors)):
            return whole
    return torch.stack(tensors)
