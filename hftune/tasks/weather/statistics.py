"""Mean, spread and range of every channel, and of its changes, in one pass over the fields."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hftune.utils.files import read_json, write_json

from .cache import cache_root
from .dates import select_rows
from .fields import WeatherFields
from .values import StoredValues

__all__ = ["FieldStatistics", "RunningMoments", "compute_statistics"]

_BLOCK_BYTES = 16 << 20
_ARRAYS = (
    "mean", "std", "difference_mean", "difference_std", "minimum", "maximum", "static_mean",
    "static_std",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class FieldStatistics:
    """Statistics of fields over times and grid points, in physical units; NaN are left out.

    Attributes:
        channels (tuple of str): ``C`` channel names.
        mean, std (float64 array ``[C]``): Of the values.
        difference_mean, difference_std (float64 array ``[C]``): Of the change over
            ``difference_hours``; NaN where no two times lie that far apart.
        minimum, maximum (float64 array ``[C]``): Of the values.
        static_channels (tuple of str): ``S`` names of time-invariant fields.
        static_mean, static_std (float64 array ``[S]``): Over the grid.
        difference_hours (float): Lag of the differences.
        count (int): Number of times.
    """

    channels: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    difference_mean: np.ndarray
    difference_std: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    static_channels: tuple[str, ...]
    static_mean: np.ndarray
    static_std: np.ndarray
    difference_hours: float
    count: int

    def as_dict(self) -> dict[str, Any]:
        """Returns plain lists and numbers, exact in JSON; undo with :meth:`from_dict`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: value.tolist() if isinstance(value, np.ndarray)
            else list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FieldStatistics:
        """Makes statistics from :meth:`as_dict`, before or after JSON (``null`` is NaN)."""
        arrays = {
            name: np.array([np.nan if v is None else v for v in values[name]], dtype=np.float64)
            for name in _ARRAYS
        }
        return cls(
            channels=tuple(values["channels"]),
            static_channels=tuple(values["static_channels"]),
            difference_hours=float(values["difference_hours"]),
            count=int(values["count"]),
            **arrays,
        )


class RunningMoments:
    """Mean and variance by channel of blocks that come one after the other (Chan et al.).

    Args:
        channels (int): Number of channels ``C``.
    """

    def __init__(self, channels: int) -> None:
        self.count = np.zeros(channels)
        self._mean = np.zeros(channels)
        self._squares = np.zeros(channels)
        self.minimum = np.full(channels, np.nan)
        self.maximum = np.full(channels, np.nan)

    def update(self, values: np.ndarray) -> None:
        """Adds a block ``[n, C, H, W]``; NaN are left out."""
        for channel in range(values.shape[1]):
            block = values[:, channel]
            block = block[~np.isnan(block)].astype(np.float64)
            if not block.size:
                continue
            mean = block.mean()
            delta = mean - self._mean[channel]
            total = self.count[channel] + block.size
            self._squares[channel] += ((block - mean) ** 2).sum()
            self._squares[channel] += delta**2 * self.count[channel] * block.size / total
            self._mean[channel] += delta * block.size / total
            self.count[channel] = total
            self.minimum[channel] = np.fmin(self.minimum[channel], block.min())
            self.maximum[channel] = np.fmax(self.maximum[channel], block.max())

    @property
    def mean(self) -> np.ndarray:
        """float64 ``[C]``; NaN where nothing was counted."""
        return np.where(self.count > 0, self._mean, np.nan)

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation, float64 ``[C]``; NaN where nothing was counted."""
        return np.sqrt(np.where(self.count > 0, self._squares / np.maximum(self.count, 1), np.nan))


def _folder(fields: WeatherFields) -> Path:
    """Where statistics are kept: with the cache of the fields if it is ours to write."""
    if isinstance(fields.values, StoredValues):
        folder = Path(fields.values.path).parent
        if os.access(folder, os.W_OK):
            return folder / "statistics"
    return cache_root() / "statistics"


def compute_statistics(
    fields: WeatherFields,
    rows: str | Sequence[int] | slice | None = None,
    difference_hours: float = 24,
) -> FieldStatistics:
    """Computes statistics in one streaming pass, in float64, or finds those of an earlier call.

    They are kept with the cache, by the fields' fingerprint, the rows and the lag.

    Args:
        fields (WeatherFields): The fields.
        rows (str, sequence of int, slice, *optional*): Dates, a fraction or row numbers (see
            :func:`~.dates.select_rows`). Use the training times. Defaults to all.
        difference_hours (float): Lag of the differences. Defaults to 24.

    Raises:
        DataError: If no row is selected.
    """
    import xxhash

    chosen = np.unique(select_rows(fields.times, rows))
    stored = None
    if fields.fingerprint:
        digest = xxhash.xxh3_128(fields.fingerprint.encode())
        digest.update(chosen.tobytes() + f"{float(difference_hours)}".encode())
        stored = _folder(fields) / f"{digest.hexdigest()}.json"
        if stored.exists():
            return FieldStatistics.from_dict(read_json(stored))

    times = fields.times[chosen]
    later = np.searchsorted(times, times + round(difference_hours * 3600))
    paired = later < len(times)
    paired[paired] = times[later[paired]] == times[paired] + round(difference_hours * 3600)
    count = len(fields.layout.channels)
    values, differences = RunningMoments(count), RunningMoments(count)
    height, width = fields.layout.grid
    block = max(1, _BLOCK_BYTES // (4 * count * height * width))
    for start in range(0, len(chosen), block):
        stop = min(start + block, len(chosen))
        # The pairs of this block reach a little beyond its end: read both at once.
        pairs = np.flatnonzero(paired[start:stop]) + start
        end = int(max(stop, later[pairs].max() + 1 if len(pairs) else 0))
        if end - start > 2 * block:  # a lag longer than a block
            read = fields.read(chosen[start:stop])
            then = fields.read(chosen[later[pairs]])
        else:
            both = fields.read(chosen[start:end])
            read, then = both[: stop - start], both[later[pairs] - start]
        values.update(read)
        differences.update(then.astype(np.float64) - read[pairs - start])
    static = fields.static_fields.astype(np.float64).reshape(
        len(fields.static_fields), height * width
    )
    statistics = FieldStatistics(
        channels=fields.layout.channels,
        mean=values.mean,
        std=values.std,
        difference_mean=differences.mean,
        difference_std=differences.std,
        minimum=values.minimum,
        maximum=values.maximum,
        static_channels=fields.layout.static_channels,
        static_mean=np.nanmean(static, axis=1),
        static_std=np.nanstd(static, axis=1),
        difference_hours=float(difference_hours),
        count=len(chosen),
    )
    if stored is not None:
        write_json(stored, statistics.as_dict())
    return statistics
