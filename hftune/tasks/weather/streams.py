"""One variable of one data set, whatever its dimensions are called, in hftune's order and units."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hftune.utils.errors import DataError

from .grid import Grid, normalise_grid
from .sources import Source
from .variables import STATIC_NAMES, VARIABLES, canonical_name, unit_conversion

if TYPE_CHECKING:
    import xarray

__all__ = ["Notes", "Part", "listed", "read_parts"]

_NAMES = {
    "time": ("time", "valid_time", "t", "date", "datetime"),
    "level": (
        "level", "pressure_level", "isobaricinhpa", "plev", "lev", "pressure", "isobaric",
        "isobaricinpa", "pfull", "air_pressure", "p",
    ),
    "latitude": ("latitude", "lat", "nav_lat", "rlat", "y"),
    "longitude": ("longitude", "lon", "long", "nav_lon", "rlon", "x"),
}  # fmt: skip
_STANDARD = {
    "time": "time",
    "air_pressure": "level",
    "latitude": "latitude",
    "longitude": "longitude",
}
_HPA = {"hpa", "millibar", "millibars", "mb", "mbar", "hectopascal", "hectopascals"}


class Notes:
    """What was noticed and mended, each said once with the files it holds for."""

    def __init__(self) -> None:
        self._sources: dict[str, list[str]] = {}

    def add(self, text: str, source: Source | None = None) -> None:
        """Adds a note, about one store or about all."""
        names = self._sources.setdefault(text, [])
        if source is not None and source.name not in names:
            names.append(source.name)

    def lines(self) -> tuple[str, ...]:
        """The notes in the order in which they came: ``a.nc, b.nc and 38 more: ...``."""
        return tuple(
            f"{listed(names)}: {text}" if names else text for text, names in self._sources.items()
        )


def listed(names: Sequence[str]) -> str:
    """Names up to four things and counts the others."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A variable of one data set.

    Attributes:
        name (str): hftune's name.
        units (str): Units after conversion.
        source (Source): The store.
        array (xarray.Variable): Lazy values; dimensions (time), (level), latitude, longitude.
        grid (Grid): Its points.
        times (int64 array, *optional*): Seconds since 1970 of its time axis, in its order; None
            if it has no time.
        levels (tuple of float, *optional*): Its levels in hPa, in its order; None for one level.
        scale, offset (float): Conversion of units.
        stored_name (str): Name in the data set.
    """

    name: str
    units: str
    source: Source
    array: xarray.Variable
    grid: Grid
    times: np.ndarray | None
    levels: tuple[float, ...] | None
    scale: float
    offset: float
    stored_name: str

    @property
    def time_chunk(self) -> int:
        """How many times the store keeps together."""
        chunks = self.array.encoding.get("preferred_chunks") or {}
        return int(chunks.get(self.array.dims[0], 1)) if self.times is not None else 1

    def read(
        self, rows: np.ndarray | None = None, levels: Sequence[int] | None = None
    ) -> np.ndarray:
        """Reads and converts.

        Args:
            rows (int array, *optional*): Rows of its time axis; None where it has none.
            levels (sequence of int, *optional*): Indices of its levels; None where it has none.

        Returns:
            float32 array ``[H, W]``, with the axes of ``rows`` and ``levels`` before.
        """
        picked: dict[Any, Any] = {}
        within = None
        if self.times is not None and rows is not None:
            low, high = int(rows.min()), int(rows.max())
            # Stores read runs much faster than lists; a few rows too many do not matter.
            if high - low < 2 * len(rows):
                picked[self.array.dims[0]] = slice(low, high + 1)
                if not np.array_equal(rows, np.arange(low, high + 1)):
                    within = rows - low
            else:
                order = np.unique(rows)
                picked[self.array.dims[0]] = order
                within = np.searchsorted(order, rows)
        if levels is not None and list(levels) != list(range(len(self.levels or ()))):
            picked[self.array.dims[-3]] = list(levels)
        try:
            values = self.array.isel(picked).values
        except Exception as error:  # each library and each remote protocol has its own
            raise DataError(
                f"cannot read {self.stored_name} from {self.source.path}: {type(error).__name__}: "
                f"{error}. The store may be damaged, incomplete or out of reach."
            ) from error
        if within is not None:
            values = values[within]
        height, width = values.shape[-2:]
        if not np.array_equal(self.grid.rows, np.arange(height)):
            values = values[..., self.grid.rows, :]
        if not np.array_equal(self.grid.columns, np.arange(width)):
            values = values[..., self.grid.columns]
        if (self.scale, self.offset) != (1.0, 0.0):
            values = values.astype(np.float64) * self.scale + self.offset
        return values.astype(np.float32, copy=False)


def _role(name: str, variable: Any) -> str | None:
    """What a coordinate is: time, level, latitude, longitude or None."""
    attributes = variable.attrs if variable is not None else {}
    standard = _STANDARD.get(str(attributes.get("standard_name", "")))
    if standard:
        return standard
    if variable is not None and variable.dtype.kind == "M":
        return "time" if name.lower() in _NAMES["time"] else None
    units = str(attributes.get("units", "")).lower()
    if units in ("degrees_north", "degree_north"):
        return "latitude"
    if units in ("degrees_east", "degree_east"):
        return "longitude"
    for role, names in _NAMES.items():
        if name.lower() in names:
            return role
    return None


def _level_values(variable: Any, source: Source, notes: Notes) -> tuple[float, ...] | None:
    """Levels in hPa, or None if the coordinate is no pressure."""
    values = np.atleast_1d(np.asarray(variable.values, dtype=np.float64))
    units = str(variable.attrs.get("units", "")).strip()
    described = " ".join(str(value) for value in variable.attrs.values()).lower()
    if "hybrid" in described or "model level" in described or "model_level" in described:
        return None
    if units.lower() in ("pa", "pascal", "pascals"):
        values = values / 100
    elif units.lower() not in _HPA:
        if units not in ("", "1", "level", "~"):
            return None
        if values.max() > 2000:
            values = values / 100
            notes.add("levels have no units; Pa assumed from their size", source)
        else:
            notes.add("levels have no units; hPa assumed", source)
    return tuple(float(f"{value:.6g}") for value in values)


def _time_values(variable: Any, source: Source) -> np.ndarray:
    """Seconds since 1970 UTC."""
    values = np.atleast_1d(variable.values)
    if values.dtype.kind != "M":
        calendar = variable.encoding.get("calendar") or variable.attrs.get("calendar")
        found = f"the calendar {calendar!r}" if calendar else f"no dates ({values.dtype} values)"
        raise DataError(
            f"the time axis of {source.path} has {found}; expected dates of the standard calendar. "
            "Set its attribute 'units' (such as 'hours since 1900-01-01'), or convert the calendar."
        )
    if np.isnat(values).any():
        raise DataError(
            f"{int(np.isnat(values).sum())} of {len(values)} times in {source.path} are missing "
            "(NaT)."
        )
    # Times kept as fractions of a day decode to 05:59:59.999...
    return (values.astype("datetime64[ms]").astype(np.int64) + 500) // 1000


def read_parts(dataset: xarray.Dataset, source: Source, notes: Notes) -> list[Part]:
    """Describes every usable variable of a data set, reading only its coordinates.

    Args:
        dataset (xarray.Dataset): Opened lazily.
        source (Source): Where it comes from.
        notes (Notes): Gains what was assumed, mended or left out.

    Raises:
        DataError: If it has no latitude and longitude axes, or times or units that cannot be used.
    """
    roles: dict[str, str] = {}
    for dimension in map(str, dataset.dims):
        role = _role(dimension, dataset.variables.get(dimension))
        if role and role not in roles.values():
            roles[dimension] = role
    by_role = {role: dimension for dimension, role in roles.items()}
    for role in ("latitude", "longitude"):
        if role not in by_role or by_role[role] not in dataset.variables:
            curved = [
                n for n, v in dataset.variables.items() if _role(str(n), v) == role and v.ndim == 2
            ]
            reason = (
                f"its {role} {curved[0]!r} has two dimensions (a curvilinear or projected grid)"
                if curved
                else f"no {role} axis among its dimensions {', '.join(map(str, dataset.dims))}"
            )
            raise DataError(
                f"{source.path}: {reason}. Expected a regular grid with one axis of latitudes "
                "and one of longitudes; regrid it first (for example with CDO remapbil)."
            )
    grid = normalise_grid(
        dataset[by_role["latitude"]].values, dataset[by_role["longitude"]].values, source.path
    )
    for note in grid.notes:
        notes.add(note, source)

    times = _find_times(dataset, by_role.get("time"), source)
    levels = None
    level = by_role.get("level")
    if level:
        if level not in dataset.variables:
            raise DataError(
                f"{source.path}: the dimension {level!r} has no values: which pressures?"
            )
        levels = _level_values(dataset.variables[level], source, notes)
    else:
        for name, variable in dataset.variables.items():
            if variable.ndim == 0 and _role(str(name), variable) == "level":
                levels = _level_values(variable, source, notes)

    parts: list[Part] = []
    for stored_name, variable in dataset.data_vars.items():
        part = _part(str(stored_name), variable.variable, roles, grid, times, levels, source, notes)
        if part is not None:
            parts.append(part)
    return parts


def _find_times(
    dataset: xarray.Dataset, dimension: str | None, source: Source
) -> np.ndarray | None:
    valid = dataset.variables.get("valid_time")
    if dimension:
        # GRIB: the time axis is that of the forecast's start, valid_time what the fields are of.
        if valid is not None and valid.dims == (dimension,):
            return _time_values(valid, source)
        if dimension not in dataset.variables:
            raise DataError(
                f"{source.path}: the dimension {dimension!r} has no values: which dates?"
            )
        return _time_values(dataset.variables[dimension], source)
    for variable in (valid, dataset.variables.get("time")):
        if variable is not None and variable.ndim == 0 and variable.dtype.kind in "MO":
            return _time_values(variable, source)
    return None


def _part(
    stored_name: str,
    array: xarray.Variable,
    roles: dict[str, str],
    grid: Grid,
    times: np.ndarray | None,
    levels: tuple[float, ...] | None,
    source: Source,
    notes: Notes,
) -> Part | None:
    if array.dtype.kind not in "fiub":
        return None
    array = array.squeeze([d for d in array.dims if d not in roles and array.sizes[d] == 1])
    found = {roles.get(str(d)): d for d in array.dims}
    if "latitude" not in found or "longitude" not in found:
        if array.ndim > 1:
            notes.add(f"{stored_name} left out, it has no latitude and longitude", source)
        return None
    others = [str(d) for d in array.dims if str(d) not in roles]
    if others:
        hint = {
            "expver": "; merge ERA5 and ERA5T: ds.sel(expver=1).combine_first(ds.sel(expver=5))",
            "step": "; select one forecast step",
            "prediction_timedelta": "; select one forecast step",
            "number": "; select one ensemble member",
        }.get(others[0], "")
        notes.add(f"{stored_name} left out, it also varies along {others[0]}{hint}", source)
        return None
    if "level" in found and levels is None:
        notes.add(f"{stored_name} left out, its levels are no pressures", source)
        return None
    single = VARIABLES.get(canonical_name(stored_name, array.attrs, False))
    on_levels = "level" in found or (
        # One level as a scalar coordinate; it does not say that 2 m temperature lies on it.
        "level" not in roles.values()
        and levels is not None
        and not (single is not None and single.kind == "surface")
    )
    name = canonical_name(stored_name, array.attrs, on_levels)
    order = [found[role] for role in ("time", "level", "latitude", "longitude") if role in found]
    array = array.transpose(*order)
    static = "time" not in found
    if (
        static
        and times is not None
        and len(times) == 1
        and not (name in STATIC_NAMES and not on_levels)
    ):
        # A single time was squeezed into a scalar coordinate.
        array, static = array.expand_dims("time"), False
    if on_levels and "level" not in found:
        array = array.expand_dims("level").transpose(..., "level", *array.dims[-2:])

    units = str(array.attrs.get("units", "")).strip()
    if name in VARIABLES and not units:
        notes.add(f"{stored_name} has no units; {VARIABLES[name].units} assumed", source)
        scale, offset = 1.0, 0.0
    else:
        scale, offset = unit_conversion(name, units, source.path)
        if (scale, offset) != (1.0, 0.0):
            notes.add(f"{stored_name} converted from {units} to {VARIABLES[name].units}", source)
    if name not in VARIABLES:
        notes.add(f"{stored_name} is unknown to hftune; kept as {name} in {units or '1'}", source)
    return Part(
        name=name,
        units=VARIABLES[name].units if name in VARIABLES else units or "1",
        source=source,
        array=array,
        grid=grid,
        times=None if static else times,
        levels=levels if on_levels else None,
        scale=scale,
        offset=offset,
        stored_name=stored_name,
    )
