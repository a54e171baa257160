"""Initial conditions: the states that forecasts start from, in one raw file.

The file is what the reference implementation of Aardvark reads: rows of float32 in physical units,
``(time, latitude, longitude, channel)`` with latitude from south to north; with a history of ``T``
states ``(time, T, latitude, longitude, channel)``. It has no header. The manifest beside it
(``ic_train.mmap.json``) says what it holds; it is written last, so that a file with one is whole.

Float16 halves the file. Pressure in Pa and geopotential go beyond its range, so it stores
``(value - mean) / std`` by channel, with the statistics in the manifest.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import ConfigurationError, DataError
from ...utils.files import read_json
from .dates import describe_times, interval_seconds
from .fields import FieldLayout, WeatherFields
from .grid import Grid, describe_grid, same_grid
from .raw_values import RawValues
from .sources import Source, digest_sources

__all__ = [
    "FORMAT",
    "InitialConditions",
    "build_manifest",
    "manifest_path",
    "open_initial_conditions",
]

FORMAT = "hftune initial conditions 1"
DTYPES = ("float32", "float16")
# The reference writes two rows less than it has dates.
_REFERENCE_TAIL = 2


def manifest_path(path: str | os.PathLike[str]) -> Path:
    """Where the manifest of a file of initial conditions is: ``ic_train.mmap.json``."""
    return Path(path).with_name(Path(path).name + ".json")


@dataclasses.dataclass(frozen=True, eq=False)
class InitialConditions:
    """States that forecasts start from, read by row; made by :func:`open_initial_conditions`.

    Row ``i`` belongs to the initial time ``times[i]``. It is the state ``lead_hours`` after it: 0
    for an analysis, ``24 k`` for what a forecast of ``k`` days has arrived at.

    Attributes:
        path (Path): The raw file.
        manifest (dict): What it holds, as in the file beside it: ``format``, ``shape``, ``order``,
            ``dtype``, ``scaled``, ``channels``, ``units``, ``latitude`` (as stored, from south to
            north), ``longitude``, ``times``, ``lead_hours``, ``history``, ``timestep_hours``,
            ``statistics`` (``{"mean", "std"}`` or None), ``source``, ``rows`` (how many are
            filled), ``block_rows``, ``digest`` and ``created``.
    """

    path: Path
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return self.manifest["shape"][0]

    @functools.cached_property
    def layout(self) -> FieldLayout:
        """Channels, units and grid, north first."""
        return FieldLayout(
            channels=tuple(self.manifest["channels"]),
            units=tuple(self.manifest["units"]),
            static_channels=(),
            latitude=np.array(self.manifest["latitude"], dtype=np.float64)[::-1],
            longitude=np.array(self.manifest["longitude"], dtype=np.float64),
        )

    @functools.cached_property
    def times(self) -> np.ndarray:
        """int64 ``[N]``: initial times, seconds since 1970-01-01 UTC."""
        return times_of(self.manifest["times"])

    @property
    def valid_times(self) -> np.ndarray:
        """int64 ``[N]``: the time of the (last) state of each row."""
        return self.times + round(3600 * self.lead_hours)

    @property
    def lead_hours(self) -> float:
        """Hours from the initial time to the state."""
        return self.manifest["lead_hours"]

    @property
    def history(self) -> int:
        """``T``, states in a row."""
        return self.manifest["history"]

    @property
    def timestep_hours(self) -> float:
        """Hours between two states of a row."""
        return self.manifest["timestep_hours"]

    @property
    def rows(self) -> int:
        """How many rows are filled, from the first on; the reference leaves its last two zero."""
        return self.manifest["rows"]

    @functools.cached_property
    def values(self) -> RawValues:
        """The rows, ``[N, C, H, W]``, with a history ``[N, T, C, H, W]``."""
        return self._first_rows(None)

    def _first_rows(self, count: int | None) -> RawValues:
        statistics = self.manifest["statistics"] if self.manifest["scaled"] else {}
        parts, shape = [(self.path, len(self))], row_shape(self.layout, self.history)
        dtype = self.manifest["dtype"]
        return RawValues(parts, shape, "hwc", dtype=dtype, count=count, **statistics)

    def read(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Reads rows, in any order: float32 ``[n, T, C, H, W]``, for one row ``[T, C, H, W]``."""
        values = self.values[rows]
        return values if self.history > 1 else np.expand_dims(values, -4)

    def as_fields(self) -> WeatherFields:
        """Shows the filled rows as fields at their valid times.

        Raises:
            DataError: If rows have a history.
        """
        if self.history > 1:
            raise DataError(
                f"each row of {self.path.name} has {self.history} states: it cannot be read as "
                "fields, which have one a time."
            )
        return WeatherFields(
            layout=self.layout,
            times=self.valid_times[: self.rows],
            values=self._first_rows(self.rows),
            static_fields=np.empty((0, *self.layout.grid), np.float32),
            fingerprint=self.fingerprint,
            sources=(self.path.name,),
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the content: same data, same text."""
        import xxhash

        told = {k: v for k, v in self.manifest.items() if k not in ("created", "source")}
        if not self.manifest["digest"]:
            told["digest"] = digest_sources([Source(str(self.path), "raw")])
        return xxhash.xxh3_128(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def check_channels(self, expected: Sequence[str]) -> None:
        """Makes sure that the channels are those that a model reads, in its order.

        Args:
            expected (sequence of str): The model's channels.

        Raises:
            DataError: If they are not; it says which are missing and which are too many.
        """
        found = self.layout.channels
        if found == tuple(expected):
            return
        missing = [channel for channel in expected if channel not in found]
        extra = [channel for channel in found if channel not in expected]
        told = [f"it lacks {', '.join(missing)}"] if missing else []
        told += [f"it has {', '.join(extra)} besides"] if extra else []
        told = told or [f"they are the same in another order ({', '.join(found)})"]
        raise DataError(
            f"{self.path.name} holds {len(found)} channels, the model reads {len(expected)}: "
            f"{' and '.join(told)}. Write the initial conditions again, with an encoder of the "
            "model's channels."
        )


def open_initial_conditions(
    path: str | os.PathLike[str],
    *,
    layout: FieldLayout | None = None,
    times: np.ndarray | None = None,
    dtype: str | None = None,
    history: int | None = None,
    lead_hours: float | None = None,
) -> InitialConditions:
    """Opens a file of initial conditions.

    With a manifest everything comes from there, and what is stated has to agree. Without one, as
    the reference writes them, the shape follows from what is stated.

    Args:
        path (path): The raw file.
        layout (FieldLayout, *optional*): Channels, units and grid. Needed without a manifest.
        times (int64 array ``[N]``, *optional*): Initial times, seconds since 1970-01-01 UTC. Needed
            without a manifest.
        dtype (str, *optional*): ``"float32"`` or ``"float16"``. Defaults to the manifest's, without
            one to ``"float32"``.
        history (int, *optional*): States in a row. Defaults to the manifest's, without one to 1.
        lead_hours (float, *optional*): Hours from the initial times to the states. Defaults to the
            manifest's, without one to 0.

    Raises:
        ConfigurationError: If there is no manifest and the shape is not stated.
        DataError: If the file is missing, of another size than its manifest or what is stated says,
            or only partly written.

    Example:
        >>> conditions = open_initial_conditions("ic_train.mmap")
        >>> conditions.read([0, 1]).shape
        (2, 1, 24, 121, 240)
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist: write the initial conditions first.")
    if manifest_path(path).exists():
        conditions = InitialConditions(path, _read_manifest(path))
        _compare(conditions, layout, times, dtype, history, lead_hours)
        conditions.values  # noqa: B018  (opens the file, which checks its size)
        return conditions
    if layout is None or times is None:
        raise ConfigurationError(
            f"{path.name} has no manifest ({manifest_path(path).name}): state its layout (channels "
            "and grid) and its times."
        )
    manifest = build_manifest(
        layout=layout,
        times=times,
        lead_hours=lead_hours or 0,
        history=history or 1,
        dtype=dtype or "float32",
        source={"kind": "plain"},
    )
    conditions = InitialConditions(path, manifest | {"rows": len(times), "digest": ""})
    filled = _filled_rows(conditions.values)
    if len(times) - filled > _REFERENCE_TAIL:
        raise DataError(
            f"{path.name} has {len(times):,} rows, but all after the first {filled:,} are zeros: "
            "its writing was interrupted. Write it again."
        )
    conditions.manifest["rows"] = filled
    return conditions


def build_manifest(
    *,
    layout: FieldLayout,
    times: np.ndarray,
    source: dict[str, Any],
    dtype: str = "float32",
    lead_hours: float = 0,
    history: int = 1,
    timestep_hours: float = 24,
    statistics: dict[str, Any] | None = None,
    scaled: bool = False,
) -> dict[str, Any]:
    """The part of a manifest that is known before anything is written, as plain JSON values."""
    times = np.asarray(times, dtype=np.int64)
    interval = interval_seconds(times)
    texts = [str(time) for time in times.astype("datetime64[s]")]
    regular = len(times) > 1 and bool((np.diff(times) == interval).all())
    if statistics is not None:
        statistics = {
            name: np.asarray(statistics[name], float).tolist() for name in ("mean", "std")
        }
    extra = ("history",) if history > 1 else ()
    return {
        "format": FORMAT,
        "shape": [len(times), *stored_shape(layout, history)],
        "order": ["time", *extra, "latitude", "longitude", "channel"],
        "dtype": dtype,
        "scaled": scaled,
        "channels": list(layout.channels),
        "units": list(layout.units),
        "latitude": np.asarray(layout.latitude, float)[::-1].tolist(),
        "longitude": np.asarray(layout.longitude, float).tolist(),
        "times": {"start": texts[0], "interval_hours": interval / 3600, "count": len(times)}
        if regular
        else texts,
        "lead_hours": _number(lead_hours),
        "history": history,
        "timestep_hours": _number(timestep_hours),
        "statistics": statistics,
        "source": source,
    }


def _number(hours: float) -> float:
    # 24 and 24.0 are one text.
    return int(hours) if hours == int(hours) else float(hours)


def times_of(told: dict[str, Any] | list[str]) -> np.ndarray:
    """Undoes what :func:`build_manifest` makes of times: int64 ``[N]``."""
    if isinstance(told, dict):
        start = np.datetime64(told["start"], "s").astype(np.int64)
        return start + round(3600 * told["interval_hours"]) * np.arange(told["count"])
    return np.array(told, dtype="datetime64[s]").astype(np.int64)


def row_shape(layout: FieldLayout, history: int) -> tuple[int, ...]:
    """Shape of a row inside hftune: ``(C, H, W)`` or ``(T, C, H, W)``."""
    states = (history,) if history > 1 else ()
    return (*states, len(layout.channels), *layout.grid)


def stored_shape(layout: FieldLayout, history: int) -> tuple[int, ...]:
    """Shape of a row in the file: ``(H, W, C)`` or ``(T, H, W, C)``."""
    states = (history,) if history > 1 else ()
    return (*states, *layout.grid, len(layout.channels))


def _read_manifest(path: Path) -> dict[str, Any]:
    place = manifest_path(path)
    try:
        manifest = read_json(place)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {place}: {error}.") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise DataError(
            f"{place} is no manifest of initial conditions: its format is {found!r}, expected "
            f"{FORMAT!r}. Write {path.name} again, or remove the manifest and state the shape."
        )
    return manifest


def _compare(
    conditions: InitialConditions,
    layout: FieldLayout | None,
    times: np.ndarray | None,
    dtype: str | None,
    history: int | None,
    lead_hours: float | None,
) -> None:
    if layout is not None:
        conditions.check_channels(layout.channels)
        found, stated = (
            Grid(grid.latitude, grid.longitude, np.arange(0), np.arange(0))
            for grid in (conditions.layout, layout)
        )
        if not same_grid(found, stated):
            raise DataError(
                f"{conditions.path.name} is on a grid of {describe_grid(found)}; expected "
                f"{describe_grid(stated)}."
            )
    if times is not None and not np.array_equal(conditions.times, times):
        raise DataError(
            f"{conditions.path.name} has {_rows_told(conditions.times)}; expected "
            f"{_rows_told(times)}."
        )
    for name, stated in (("dtype", dtype), ("history", history), ("lead_hours", lead_hours)):
        found = conditions.manifest[name]
        if stated is not None and found != stated:
            raise DataError(f"{conditions.path.name} has {name} {found}; expected {stated}.")


def _rows_told(times: np.ndarray) -> str:
    steps = np.unique(np.diff(times))
    return describe_times(times) + (" with gaps" if len(steps) > 1 else "")


def _filled_rows(values: RawValues) -> int:
    """How many rows come before the tail of zeros, by bisection."""
    low, high = 0, len(values)  # all rows from high on are zero
    while low < high:
        middle = (low + high) // 2
        if values[middle].any():
            low = middle + 1
        else:
            high = middle
    return low
