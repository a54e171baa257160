"""The weather variables that hftune knows: names, aliases, units, plausible ranges.

Names are those of ECMWF's parameter table, as Aurora uses them (``2t``, ``msl``, ``z``, ...).
Variables that are not listed work as well: they keep their own name and their own units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hftune.utils.errors import DataError

from .fields import split_channel

__all__ = [
    "STATIC_NAMES",
    "VARIABLES",
    "VariableInfo",
    "canonical_name",
    "canonical_order",
    "unit_conversion",
]


@dataclasses.dataclass(frozen=True)
class VariableInfo:
    """What is known of a variable.

    Attributes:
        name (str): ECMWF short name.
        long_name (str): Name for people.
        units (str): Units inside hftune.
        kind (str): ``"surface"``, ``"atmospheric"`` (on pressure levels) or ``"static"``. ``z`` is
            listed as atmospheric; a single-level ``z`` that never varies is the orography, static.
        standard_name (str): CF standard name, or an empty string where CF has none.
        aliases (tuple of str): Other names under which data sets hold it.
        minimum, maximum (float): What no reanalysis goes beyond on Earth, in ``units``. For
            accumulations: of one day.
    """

    name: str
    long_name: str
    units: str
    kind: str
    standard_name: str
    aliases: tuple[str, ...]
    minimum: float
    maximum: float


def _table(*rows: tuple[str, str, str, str, str, str, float, float]) -> dict[str, VariableInfo]:
    return {
        name: VariableInfo(
            name, long_name, units, kind, standard, tuple(aliases.split()), low, high
        )
        for name, long_name, units, kind, standard, aliases, low, high in rows
    }


# fmt: off
#: Known variables by name; their order is the order of channels.
VARIABLES: dict[str, VariableInfo] = _table(
    # name, long name, units, kind, CF standard name,
    #     aliases, minimum, maximum
    ("2t", "2 m temperature", "K", "surface", "", "t2m 2m_temperature t_2m tas", 170, 335),
    ("10u", "10 m eastward wind", "m s-1", "surface", "",
     "u10 10m_u_component_of_wind u_10m uas", -75, 75),
    ("10v", "10 m northward wind", "m s-1", "surface", "",
     "v10 10m_v_component_of_wind v_10m vas", -75, 75),
    ("msl", "mean sea level pressure", "Pa", "surface", "air_pressure_at_mean_sea_level",
     "mean_sea_level_pressure prmsl mslp slp psl pmsl", 86000, 110000),
    ("sp", "surface pressure", "Pa", "surface", "surface_air_pressure",
     "surface_pressure ps", 45000, 112000),
    ("2d", "2 m dew point temperature", "K", "surface", "",
     "d2m 2m_dewpoint_temperature d_2m", 160, 315),
    ("100u", "100 m eastward wind", "m s-1", "surface", "",
     "u100 100m_u_component_of_wind", -90, 90),
    ("100v", "100 m northward wind", "m s-1", "surface", "",
     "v100 100m_v_component_of_wind", -90, 90),
    ("skt", "skin temperature", "K", "surface", "", "skin_temperature", 160, 360),
    ("sst", "sea surface temperature", "K", "surface", "sea_surface_temperature",
     "sea_surface_temperature", 265, 315),
    ("ci", "sea ice cover", "1", "surface", "sea_ice_area_fraction", "siconc sea_ice_cover", 0, 1),
    ("tcc", "total cloud cover", "1", "surface", "cloud_area_fraction",
     "total_cloud_cover clt", 0, 1),
    ("tcwv", "total column water vapour", "kg m-2", "surface", "",
     "total_column_water_vapour total_column_water_vapor", 0, 110),
    ("tp", "total precipitation", "m", "surface", "", "total_precipitation", 0, 2),
    ("ssrd", "surface solar radiation downwards", "J m-2", "surface", "",
     "surface_solar_radiation_downwards", 0, 4.5e7),
    ("strd", "surface thermal radiation downwards", "J m-2", "surface", "",
     "surface_thermal_radiation_downwards", 0, 5e7),
    ("z", "geopotential", "m2 s-2", "atmospheric", "geopotential",
     "geopotential geopotential_height zg gh hgt phi", -10000, 500000),
    ("u", "eastward wind", "m s-1", "atmospheric", "eastward_wind",
     "u_component_of_wind ua uwnd", -160, 160),
    ("v", "northward wind", "m s-1", "atmospheric", "northward_wind",
     "v_component_of_wind va vwnd", -160, 160),
    ("t", "temperature", "K", "atmospheric", "air_temperature", "temperature ta air", 150, 340),
    ("q", "specific humidity", "kg kg-1", "atmospheric", "specific_humidity",
     "specific_humidity hus shum", -0.001, 0.04),
    ("w", "vertical velocity", "Pa s-1", "atmospheric", "lagrangian_tendency_of_air_pressure",
     "vertical_velocity omega wap", -60, 60),
    ("r", "relative humidity", "%", "atmospheric", "relative_humidity",
     "relative_humidity hur rhum rh", -20, 200),
    ("lsm", "land-sea mask", "1", "static", "land_binary_mask",
     "land_sea_mask land mask_land", 0, 1),
    ("slt", "soil type", "1", "static", "soil_type", "soil_type", 0, 8),
)
# fmt: on

# Single-level fields that some stores repeat at every time although they never change.
_OROGRAPHY = ("z", "geopotential", "geopotential_at_surface", "surface_geopotential", "orog",
              "orography", "z_sfc", "hgtsfc")  # fmt: skip

#: Names, inside hftune, of fields that are static where they do not vary.
STATIC_NAMES = frozenset(
    ["z", "lsm", "slt", "anor", "isor", "slor", "sdor", "sdfor", "cl", "dl", "cvl", "cvh", "tvl"]
    + ["tvh"]
)


def _alias_table(kinds: tuple[str, ...]) -> dict[str, str]:
    return {
        alias.lower(): info.name
        for info in VARIABLES.values()
        if info.kind in kinds
        for alias in (info.name, *info.aliases)
    }


_ON_LEVELS = _alias_table(("atmospheric",))
_SINGLE = _alias_table(("surface", "static")) | dict.fromkeys(_OROGRAPHY, "z")
_STANDARD_NAMES = {info.standard_name: info for info in VARIABLES.values() if info.standard_name}


def canonical_name(name: str, attributes: Mapping[str, Any], has_level: bool) -> str:
    """Returns hftune's name of a variable, or its own if hftune does not know it.

    Args:
        name (str): Name in the data set.
        attributes (mapping): Attributes of the variable (``standard_name``, ``GRIB_shortName``).
        has_level (bool): Whether it lies on pressure levels: ``t`` on levels is temperature.
    """
    known = _ON_LEVELS if has_level else _SINGLE
    for candidate in (name, attributes.get("GRIB_shortName"), attributes.get("GRIB_cfVarName")):
        if candidate and str(candidate).lower() in known:
            return known[str(candidate).lower()]
    # A standard name is as good where it cannot mean another height (air_temperature at 2 m).
    info = _STANDARD_NAMES.get(str(attributes.get("standard_name", "")))
    if info and (info.kind == "atmospheric") == has_level:
        return info.name
    # "foo_2" would read as variable "foo" on level 2.
    return name if split_channel(name)[1] is None else "-".join(name.rsplit("_", 1))


def canonical_order(variable: str) -> tuple[int, str]:
    """Sort key for variables: those of :data:`VARIABLES` in its order, then others by name."""
    names = list(VARIABLES)
    return (names.index(variable), "") if variable in VARIABLES else (len(names), variable)


_SPELLINGS = {
    "K": "k kelvin degk degreekelvin degreeskelvin",
    "degC": "degc c celsius degreecelsius degreescelsius degreec degreesc °c",
    "degF": "degf f fahrenheit degreefahrenheit degreesfahrenheit °f",
    "Pa": "pa pascal pascals",
    "hPa": "hpa mb mbar mbars millibar millibars hectopascal hectopascals",
    "kPa": "kpa",
    "m2 s-2": "m2s-2 m2/s2 j/kg jkg-1",
    "m": "m metre metres meter meters mofwaterequivalent mofwater gpm geopotentialmetre "
    "geopotentialmetres geopotentialmeter geopotentialmeters",
    "dam": "dam gpdm dagpm",
    "mm": "mm millimetre millimetres millimeter millimeters",
    "m s-1": "ms-1 m/s metres/second meters/second",
    "knot": "knot knots kt kts",
    "kg kg-1": "kgkg-1 kg/kg",
    "g kg-1": "gkg-1 g/kg",
    "Pa s-1": "pas-1 pa/s pascal/s pascals/s",
    "%": "% percent",
    "1": "1 (0-1) 0-1 fraction dimensionless - ~ proportion numeric code index",
    "kg m-2": "kgm-2 kg/m2",
    "J m-2": "jm-2 j/m2",
}
_UNITS = {text: units for units, spellings in _SPELLINGS.items() for text in spellings.split()}
# (found, wanted): multiply by, then add.
_CONVERSIONS = {
    ("degC", "K"): (1.0, 273.15),
    ("degF", "K"): (5 / 9, 459.67 * 5 / 9),
    ("hPa", "Pa"): (100.0, 0.0),
    ("kPa", "Pa"): (1000.0, 0.0),
    ("m", "m2 s-2"): (9.80665, 0.0),
    ("dam", "m2 s-2"): (98.0665, 0.0),
    ("mm", "m"): (0.001, 0.0),
    ("kg m-2", "m"): (0.001, 0.0),  # of water
    ("mm", "kg m-2"): (1.0, 0.0),
    ("m", "kg m-2"): (1000.0, 0.0),
    ("g kg-1", "kg kg-1"): (0.001, 0.0),
    ("knot", "m s-1"): (1852 / 3600, 0.0),
    ("%", "1"): (0.01, 0.0),
    ("1", "%"): (100.0, 0.0),
    ("1", "kg kg-1"): (1.0, 0.0),
}


def _spelled(units: str) -> str:
    """Brings ``m**2 s**-2``, ``m^2 s^-2`` and ``m2/s2`` to one spelling."""
    text = units.lower().replace("_water", "")
    for sign in ("**", "^", " ", "_", ".", "·"):
        text = text.replace(sign, "")
    return _UNITS.get(text, units.strip())


def unit_conversion(variable: str, units: str, source: str) -> tuple[float, float]:
    """Returns ``(scale, offset)`` that bring values in ``units`` to hftune's units.

    Args:
        variable (str): hftune's name; unknown variables are not converted.
        units (str): The units attribute found.
        source (str): Where it was found, for the message.

    Raises:
        DataError: If the units are not known to be safely convertible.
    """
    if variable not in VARIABLES:
        return 1.0, 0.0
    expected = VARIABLES[variable].units
    found = _spelled(units)
    if found == _spelled(expected):
        return 1.0, 0.0
    if (found, expected) in _CONVERSIONS:
        return _CONVERSIONS[found, expected]
    hint = ""
    if variable == "tp":
        hint = " A rate has to be multiplied by the length of its accumulation period first."
    raise DataError(
        f"{variable} in {source} has units {units!r}; expected {expected!r}, or units that convert "
        f"to them: {', '.join(repr(a) for a, b in _CONVERSIONS if b == expected) or 'none'}.{hint} "
        "Convert the data, or correct the attribute 'units'."
    )
