"""The one layout that weather fields have inside hftune.

Notation used for shapes: ``N`` times, ``C`` channels, ``S`` static channels, ``H`` latitudes, ``W``
longitudes. A channel is a surface variable (``2t``) or a variable on one pressure level in hPa
(``z_500``). Values are float32 in the physical units of
:mod:`~hftune.tasks.weather.variables`; times are int64 seconds since 1970-01-01 UTC.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from hftune.utils.errors import DataError

__all__ = ["FieldLayout", "WeatherFields", "channel_name", "split_channel"]


def channel_name(variable: str, level: float | None = None) -> str:
    """Names a channel: ``channel_name("z", 500.0) == "z_500"``, ``channel_name("2t") == "2t"``.

    Args:
        variable (str): Variable name.
        level (float, *optional*): Pressure level in hPa; None for a surface or static variable.
    """
    if level is None:
        return variable
    return f"{variable}_{level:g}"


def split_channel(channel: str) -> tuple[str, float | None]:
    """Undoes :func:`channel_name`: ``split_channel("z_500") == ("z", 500.0)``.

    A channel is on a level if what follows its last underscore is a number.
    """
    variable, _, level = channel.rpartition("_")
    try:
        return (variable, float(level)) if variable else (channel, None)
    except ValueError:
        return channel, None


@dataclasses.dataclass(frozen=True, eq=False)
class FieldLayout:
    """Names, units and grid of a set of fields.

    Attributes:
        channels (tuple of str): ``C`` channel names, in the order of the channel axis.
        units (tuple of str): ``C`` units, as in :mod:`~hftune.tasks.weather.variables`.
        static_channels (tuple of str): ``S`` names of time-invariant fields (``lsm``, ``z``,
            ``slt``).
        latitude (float64 array ``[H]``): Degrees north, strictly decreasing.
        longitude (float64 array ``[W]``): Degrees east, strictly increasing, the first in
            [0, 360). A region that crosses Greenwich goes on past 360 (345 ... 360, 362.5).
    """

    channels: tuple[str, ...]
    units: tuple[str, ...]
    static_channels: tuple[str, ...]
    latitude: np.ndarray
    longitude: np.ndarray

    @property
    def grid(self) -> tuple[int, int]:
        """``(H, W)``."""
        return len(self.latitude), len(self.longitude)


@dataclasses.dataclass(frozen=True, eq=False)
class WeatherFields:
    """Fields over time, read lazily from a memory map or any array-like.

    Attributes:
        layout (FieldLayout): Names, units and grid.
        times (int64 array ``[N]``): Seconds since 1970-01-01 UTC, strictly increasing.
        values (array-like ``[N, C, H, W]``): Indexable by integer, slice or integer array on its
            first axis, giving float32 numpy arrays.
        static_fields (float32 array ``[S, H, W]``): Time-invariant fields.
        fingerprint (str): Identifies the content: same data, same text.
        sources (tuple of str): What was read, for reports.
        audit_notes (tuple of str): What the reader noticed and mended (conversions, dropped
            duplicates, gaps).
    """

    layout: FieldLayout
    times: np.ndarray
    values: Any
    static_fields: np.ndarray
    fingerprint: str = ""
    sources: tuple[str, ...] = ()
    audit_notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.times)

    def read(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Reads times by row number.

        Args:
            rows (int, slice or integer array): Rows of the first axis, in any order.

        Returns:
            float32 array ``[C, H, W]`` for one row, else ``[n, C, H, W]``.
        """
        return np.asarray(self.values[rows], dtype=np.float32)

    def select(self, channels: Sequence[str]) -> WeatherFields:
        """Returns the fields with some of their channels, in the order given.

        Args:
            channels (sequence of str): Their names.

        Raises:
            DataError: If one is not there.
        """
        ours = self.layout.channels
        if tuple(channels) == ours:
            return self
        missing = [name for name in channels if name not in ours]
        if missing:
            raise DataError(
                f"the model knows {', '.join(missing)}, which the data do not have; they have "
                f"{', '.join(ours)}: choose them with --variables and --levels."
            )
        chosen = [ours.index(name) for name in channels]
        units = tuple(self.layout.units[i] for i in chosen)
        layout = dataclasses.replace(self.layout, channels=tuple(channels), units=units)
        fingerprint = self.fingerprint and f"{self.fingerprint}[{','.join(map(str, chosen))}]"
        return dataclasses.replace(
            self,
            layout=layout,
            values=_SelectedValues(self.values, chosen),
            fingerprint=fingerprint,
        )


class _SelectedValues:
    """Some channels of stored fields."""

    def __init__(self, values: Any, channels: list[int]) -> None:
        self._values, self._channels = values, channels

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._values[rows][..., self._channels, :, :]
