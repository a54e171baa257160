import sys

import numpy as np
import pytest

from hftune.tasks.weather import maps
from hftune.tasks.weather.fields import FieldLayout
from hftune.tasks.weather.maps import (
    channel_label,
    coastlines,
    display_of,
    forecast_figure,
    pretty_units,
)
from hftune.tracking.report import Report


def make_layout(latitude, longitude, channel="z_500", units="m2 s-2"):
    return FieldLayout((channel,), (units,), (), np.asarray(latitude), np.asarray(longitude))


GLOBAL = make_layout(np.linspace(90, -90, 19), np.arange(36) * 10.0)
IBERIA = make_layout(np.arange(47.5, 34, -2.5), np.arange(345.0, 366, 2.5))
PACIFIC = make_layout([10.0, 0.0, -10.0], np.arange(150.0, 211, 10))


def meshes(figure):
    return [ax.collections[0] for ax in figure.axes[:3]]


def corner_values(figure, panel=0):
    """Values by (longitude, latitude) of the cells' centres, as the map shows them."""
    mesh = meshes(figure)[panel]
    corners = mesh.get_coordinates()
    centres = (corners[:-1, :-1] + corners[1:, 1:]) / 2
    values = np.ma.filled(mesh.get_array(), np.nan).reshape(centres.shape[:2])
    return {
        (round(float(x), 3), round(float(y), 3)): float(v)
        for (x, y), v in zip(centres.reshape(-1, 2), values.reshape(-1), strict=True)
    }


def test_values_stand_where_they_belong_on_a_region_across_greenwich():
    field = np.arange(54, dtype=np.float32).reshape(6, 9) * 98.0665
    cells = corner_values(forecast_figure(IBERIA, "z_500", field, field))
    for row, latitude in enumerate(IBERIA.latitude):
        for column, longitude in enumerate(IBERIA.longitude):
            assert cells[longitude - 360, latitude] == pytest.approx(row * 9 + column)
    ax = forecast_figure(IBERIA, "z_500", field, field).axes[0]
    assert ax.get_xlim() == (-16.25, 6.25) and ax.get_ylim() == (33.75, 48.75)


def test_the_globe_is_cut_at_the_date_line_and_a_pacific_region_is_not():
    field = np.arange(19 * 36, dtype=np.float32).reshape(19, 36)
    figure = forecast_figure(GLOBAL, "z_500", field, field)
    cells = corner_values(figure)
    assert cells[-180, 80] * 98.0665 == pytest.approx(field[1, 18])
    assert cells[-10, 0] * 98.0665 == pytest.approx(field[9, 35])
    assert cells[0, 0] * 98.0665 == pytest.approx(field[9, 0])
    assert figure.axes[0].get_ylim() == (-90, 90)
    field = np.ones((3, 7), np.float32)
    assert forecast_figure(PACIFIC, "z_500", field, field).axes[0].get_xlim() == (145, 215)


def test_maps_of_a_belt_stand_above_each_other():
    belt = make_layout(np.linspace(70, 20, 11), np.arange(36) * 10.0)
    field = np.ones((11, 36), np.float32)
    boxes = [ax.get_position() for ax in forecast_figure(belt, "z_500", field, field).axes[:3]]
    assert boxes[0].y0 > boxes[1].y1 > boxes[1].y0 > boxes[2].y1 > 0
    assert all(box.width > 0.85 for box in boxes)
    field = np.ones((19, 36), np.float32)
    boxes = [ax.get_position() for ax in forecast_figure(GLOBAL, "z_500", field, field).axes[:3]]
    assert boxes[0].x1 < boxes[1].x0 < boxes[1].x1 < boxes[2].x0 < boxes[2].x1 < 1


def test_truth_and_forecast_share_a_scale_and_the_error_is_symmetric():
    truth = np.random.default_rng(0).normal(55000, 900, (6, 9)).astype(np.float32)
    forecast = truth + np.float32(300)
    forecast[2, 3] -= 1000
    figure = forecast_figure(IBERIA, "z_500", truth, forecast, titles=("A", "B", "C"))
    first, second, third = meshes(figure)
    assert first.get_clim() == second.get_clim()
    low, high = first.get_clim()
    assert low == pytest.approx(min(truth.min(), forecast.min()) / 98.0665)
    assert high == pytest.approx(max(truth.max(), forecast.max()) / 98.0665)
    assert third.get_clim() == pytest.approx((-700 / 98.0665, 700 / 98.0665), rel=1e-4)
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == ["A", "B", "C"]
    assert [ax.get_xlabel() for ax in figure.axes[3:]] == ["dam", "dam"]


def test_units_people_use():
    assert display_of("2t", "K").units == "°C" and display_of("2t", "K").error_units == "K"
    assert display_of("msl", "Pa").scale == 0.01
    assert display_of("q_850", "kg kg-1").units == "g kg⁻¹"
    assert display_of("10u", "m s-1").centred
    other = display_of("pm10", "ug m-3")
    assert (other.scale, other.offset, other.units) == (1.0, 0.0, "ug m⁻³")
    assert pretty_units("m2 s-2") == "m² s⁻²" and pretty_units("1") == "1"
    assert channel_label("z_500") == "geopotential, 500 hPa"
    assert channel_label("foo") == "foo"


@pytest.mark.parametrize("channel,units", [("2t", "K"), ("10u", "m s-1")])
def test_missing_and_constant_values_can_be_drawn(channel, units):
    layout = make_layout(IBERIA.latitude, IBERIA.longitude, channel, units)
    nothing = np.full((6, 9), np.nan, np.float32)
    same = np.full((6, 9), 280, np.float32)
    holes = same.copy()
    holes[0, 0] = np.nan
    for truth, forecast in ((nothing, same), (same, same), (holes, same)):
        report = Report("maps")
        report.section("a").figure(forecast_figure(layout, channel, truth, forecast))
        assert "<svg" in report.render()


def test_coasts_are_drawn_from_what_is_there(monkeypatch):
    field = np.random.default_rng(0).normal(0, 1, (6, 9)).astype(np.float32)
    land = (np.arange(54).reshape(6, 9) % 9 > 4).astype(np.float32)
    monkeypatch.setattr(maps, "coastlines", lambda resolution: [])
    bare = forecast_figure(IBERIA, "z_500", field, field)
    with_land = forecast_figure(IBERIA, "z_500", field, field, land=land)
    assert len(bare.axes[0].collections) == 1 and len(with_land.axes[0].collections) == 2

    # A line at 4 W, which the grid has at 356 E, and one on the other side of the Earth.
    lines = [np.array([[-4.0, 36.0], [-4.0, 44.0]]), np.array([[170.0, 36.0], [175.0, 44.0]])]
    monkeypatch.setattr(maps, "coastlines", lambda resolution: lines)
    drawn = forecast_figure(IBERIA, "z_500", field, field, land=land).axes[0].collections[1]
    assert [path.vertices.tolist() for path in drawn.get_paths()] == [lines[0].tolist()]
    # The Pacific beyond 180 degrees.
    lines = [np.array([[-170.0, -5.0], [-160.0, 5.0]])]
    field = np.ones((3, 7), np.float32)
    drawn = forecast_figure(PACIFIC, "z_500", field, field).axes[0].collections[1]
    assert drawn.get_paths()[0].vertices[:, 0].tolist() == [190, 200]


def test_without_cartopy_there_are_no_coastlines(monkeypatch):
    monkeypatch.setitem(sys.modules, "cartopy", None)
    assert coastlines() == []


def test_natural_earth_of_cartopy_is_read_and_never_downloaded(monkeypatch, tmp_path):
    cartopy = pytest.importorskip("cartopy")
    import shapefile

    for name in ("pre_existing_data_dir", "data_dir", "repo_data_dir"):
        monkeypatch.setitem(cartopy.config, name, tmp_path)
    assert coastlines() == []
    folder = tmp_path / "shapefiles" / "natural_earth" / "physical"
    folder.mkdir(parents=True)
    with shapefile.Writer(str(folder / "ne_50m_coastline.shp"), shapeType=3) as writer:
        writer.field("n", "N")
        writer.line([[[-9.0, 37.0], [-9.5, 43.0]], [[0.0, 39.0], [3.0, 42.0], [5.0, 43.0]]])
        writer.record(1)
    first, second = coastlines("110m")
    assert first.tolist() == [[-9.0, 37.0], [-9.5, 43.0]] and second.shape == (3, 2)
