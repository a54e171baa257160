import numpy as np
import pytest

from hftune.tasks.weather.grid import describe_grid, match_points, normalise_grid, same_grid
from hftune.utils.errors import DataError


def test_region_across_greenwich_goes_on_past_360():
    grid = normalise_grid(np.array([35, 37.5, 40]), np.arange(-15, 6, 2.5), "x.nc")
    assert grid.latitude.tolist() == [40, 37.5, 35]
    assert grid.rows.tolist() == [2, 1, 0]
    assert grid.longitude.tolist() == [345, 347.5, 350, 352.5, 355, 357.5, 360, 362.5, 365]
    assert grid.columns.tolist() == list(range(9))
    assert describe_grid(grid) == "3 x 9 points, 40 to 35 N, 345 to 365 E"


def test_region_across_greenwich_stored_from_0_to_360():
    grid = normalise_grid(np.array([1, 0]), np.array([0, 2.5, 5, 355, 357.5]), "x.nc")
    assert grid.longitude.tolist() == [355, 357.5, 360, 362.5, 365]
    assert grid.columns.tolist() == [3, 4, 0, 1, 2]


def test_region_across_the_date_line():
    grid = normalise_grid(np.array([1, 0]), np.array([-180, -175, 170, 175]), "x.nc")
    assert grid.longitude.tolist() == [170, 175, 180, 185]
    assert grid.columns.tolist() == [2, 3, 0, 1]


def test_globe_from_minus_180():
    longitude = np.arange(-180, 180, 30)
    grid = normalise_grid(np.array([1, 0]), longitude, "x.nc")
    assert grid.longitude.tolist() == list(range(0, 360, 30))
    assert (longitude[grid.columns] % 360).tolist() == grid.longitude.tolist()


def test_repeated_meridian_is_dropped():
    grid = normalise_grid(np.array([1, 0]), np.arange(0, 361, 90), "x.nc")
    assert grid.longitude.tolist() == [0, 90, 180, 270]
    assert grid.notes == ("dropped 1 longitude(s) that name a meridian twice",)


def test_float32_degrees_are_rounded():
    grid = normalise_grid(np.float32([47.201, 46.951]), np.float32([9.292, 9.54225]), "x.nc")
    assert grid.latitude.tolist() == [47.201, 46.951]
    assert grid.longitude.tolist() == [9.292, 9.54225]


def test_wrong_coordinates():
    with pytest.raises(DataError, match="latitudes repeat in x.nc"):
        normalise_grid(np.array([1, 0, 1]), np.array([0, 1]), "x.nc")
    with pytest.raises(DataError, match="latitude in x.nc goes from 0 to 500000: expected degrees"):
        normalise_grid(np.array([0, 500000]), np.array([0, 1]), "x.nc")


def test_points_of_a_larger_grid():
    region = normalise_grid(np.array([10.0, 0.0]), np.array([-10.0, 0.0, 10.0]), "x.nc")
    globe = normalise_grid(np.arange(-90, 91, 10.0), np.arange(0, 360, 10.0), "y.nc")
    rows, columns = match_points(region, globe)
    assert rows.tolist() == [10, 9]
    assert columns.tolist() == [35, 0, 1]
    assert match_points(normalise_grid(np.array([5.0]), np.array([0.0]), "z.nc"), globe) is None
    assert same_grid(region, region) and not same_grid(region, globe)
