import pytest

from hftune.tasks.weather.variables import VARIABLES, canonical_name, unit_conversion
from hftune.utils.errors import DataError


@pytest.mark.parametrize(
    ("name", "attributes", "has_level", "expected"),
    [
        ("t2m", {}, False, "2t"),
        ("2m_temperature", {}, False, "2t"),
        ("mean_sea_level_pressure", {}, False, "msl"),
        ("geopotential", {}, True, "z"),
        ("Z", {}, True, "z"),
        ("hgt", {}, True, "z"),
        ("uwnd", {}, True, "u"),
        ("specific_humidity", {}, True, "q"),
        ("var129", {"GRIB_shortName": "z"}, True, "z"),
        ("temp", {"standard_name": "air_temperature"}, True, "t"),
        # At 2 m or at the surface, that standard name says too little.
        ("temp", {"standard_name": "air_temperature"}, False, "temp"),
        ("geopotential_at_surface", {}, False, "z"),
        ("land_sea_mask", {}, False, "lsm"),
        ("zust", {}, False, "zust"),
        ("band_7", {}, False, "band-7"),  # "band_7" would be the variable "band" on level 7
    ],
)
def test_names(name, attributes, has_level, expected):
    assert canonical_name(name, attributes, has_level) == expected


@pytest.mark.parametrize(
    ("variable", "units", "expected"),
    [
        ("2t", "K", (1.0, 0.0)),
        ("2t", "degC", (1.0, 273.15)),
        ("2t", "degrees Celsius", (1.0, 273.15)),
        ("msl", "hPa", (100.0, 0.0)),
        ("msl", "millibars", (100.0, 0.0)),
        ("z", "m**2 s**-2", (1.0, 0.0)),
        ("z", "m2/s2", (1.0, 0.0)),
        ("z", "m^2 s^-2", (1.0, 0.0)),
        ("z", "gpm", (9.80665, 0.0)),
        ("z", "m", (9.80665, 0.0)),
        ("tp", "mm", (0.001, 0.0)),
        ("tp", "kg m**-2", (0.001, 0.0)),
        ("10u", "m s**-1", (1.0, 0.0)),
        ("10u", "m/s", (1.0, 0.0)),
        ("q", "g/kg", (0.001, 0.0)),
        ("w", "Pa/s", (1.0, 0.0)),
        ("lsm", "(0 - 1)", (1.0, 0.0)),
        ("tcc", "%", (0.01, 0.0)),
        ("ssrd", "J m**-2", (1.0, 0.0)),
        ("of_ones_own", "furlongs", (1.0, 0.0)),
    ],
)
def test_units(variable, units, expected):
    assert unit_conversion(variable, units, "x.nc") == expected


def test_fahrenheit():
    scale, offset = unit_conversion("2t", "degF", "x.nc")
    assert 32 * scale + offset == pytest.approx(273.15, abs=1e-9)


def test_unsafe_units_are_named():
    with pytest.raises(DataError) as error:
        unit_conversion("tp", "mm/day", "rain.nc")
    assert str(error.value) == (
        "tp in rain.nc has units 'mm/day'; expected 'm', or units that convert to them: 'mm', "
        "'kg m-2'. A rate has to be multiplied by the length of its accumulation period first. "
        "Convert the data, or correct the attribute 'units'."
    )


def test_table_is_consistent():
    for name, info in VARIABLES.items():
        assert info.name == name and info.minimum < info.maximum
        assert unit_conversion(name, info.units, "") == (1.0, 0.0)
        assert canonical_name(name, {}, info.kind == "atmospheric") == name
