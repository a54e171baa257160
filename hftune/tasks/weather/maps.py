"""Maps of fields: what happened, what was forecast, and the error between them.

Nothing is downloaded. Coastlines are drawn where cartopy is installed and has Natural Earth's
already, otherwise as the 0.5 contour of the land-sea mask where the data have one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...tracking.report import INK
from .fields import FieldLayout, split_channel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

__all__ = [
    "Display",
    "channel_label",
    "coastlines",
    "degrees",
    "display_of",
    "forecast_figure",
    "pretty_units",
]

_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclasses.dataclass(frozen=True)
class Display:
    """How a channel is shown to people: ``shown = value * scale + offset``.

    Attributes:
        scale, offset (float): From the units inside hftune; errors take the scale alone.
        units (str): Units of what is shown.
        error_units (str): Units of a difference.
        colors (str): Name of a matplotlib colour map.
        centred (bool): Whether the colours are symmetric about zero.
    """

    scale: float
    offset: float
    units: str
    error_units: str
    colors: str
    centred: bool = False


def pretty_units(units: str) -> str:
    """Writes exponents as such: ``pretty_units("m2 s-2") == "m² s⁻²"``."""
    parts = []
    for part in units.split():
        head = part.rstrip("0123456789-")
        parts.append(head + part[len(head) :].translate(_SUPERSCRIPTS) if head else part)
    return " ".join(parts)


def display_of(channel: str, units: str) -> Display:
    """Returns how a channel is shown: temperature in °C, pressure in hPa, geopotential in dam.

    Args:
        channel (str): For example ``"z_500"``.
        units (str): Its units inside hftune; a variable with units of its own keeps them.
    """
    variable, _ = split_channel(channel)
    if units == "K":
        return Display(1.0, -273.15, "°C", "K", "RdYlBu_r")
    if units == "Pa":
        return Display(0.01, 0.0, "hPa", "hPa", "viridis")
    if variable == "z" and units == "m2 s-2":
        return Display(1 / 98.0665, 0.0, "dam", "dam", "viridis")
    if units == "kg kg-1":
        return Display(1000.0, 0.0, "g kg⁻¹", "g kg⁻¹", "YlGnBu")
    if variable == "tp" and units == "m":
        return Display(1000.0, 0.0, "mm", "mm", "YlGnBu")
    pretty = pretty_units(units)
    if units in ("m s-1", "Pa s-1"):
        return Display(1.0, 0.0, pretty, pretty, "PuOr_r", centred=True)
    return Display(1.0, 0.0, pretty, pretty, "viridis")


def channel_label(channel: str) -> str:
    """Names a channel for people: ``"z_500"`` is ``"geopotential, 500 hPa"``."""
    from .variables import VARIABLES

    variable, level = split_channel(channel)
    name = VARIABLES[variable].long_name if variable in VARIABLES else variable
    return name if level is None else f"{name}, {level:g} hPa"


def coastlines(resolution: str = "110m") -> list[np.ndarray]:
    """Returns the coastlines that are on this machine, none where there are not any.

    Args:
        resolution (str): ``"110m"``, ``"50m"`` or ``"10m"``, Natural Earth's. Where it is not at
            hand another one is taken.

    Returns:
        list of float64 arrays ``[n, 2]``: longitude (-180 to 180) and latitude of each line.
    """
    try:
        import cartopy
        from cartopy.io import shapereader
    except ImportError:
        return []
    names = ("pre_existing_data_dir", "data_dir", "repo_data_dir")
    folders = [Path(cartopy.config[name]) for name in names if cartopy.config[name]]
    for wanted in (resolution, "50m", "110m", "10m"):
        for folder in folders:
            physical = folder / "shapefiles" / "natural_earth" / "physical"
            for path in physical.glob(f"ne_{wanted}_coastline.shp"):
                return [
                    np.asarray(line.coords)[:, :2]
                    for shape in shapereader.Reader(path).geometries()
                    for line in getattr(shape, "geoms", [shape])
                ]
    return []


def forecast_figure(
    layout: FieldLayout,
    channel: str,
    truth: np.ndarray,
    forecast: np.ndarray,
    *,
    titles: tuple[str, str, str] = ("Truth", "Forecast", "Error"),
    land: np.ndarray | None = None,
) -> Figure:
    """Draws truth and forecast on one scale of colours, and the error on one about zero.

    Args:
        layout (FieldLayout): The grid; global or regional, also across Greenwich.
        channel (str): Which channel it is.
        truth, forecast (float32 arrays ``[H, W]``): In the units inside hftune.
        titles (three str): Above the maps.
        land (array ``[H, W]``, *optional*): Land-sea mask, for a coast where no coastlines are at
            hand.
    """
    display = display_of(channel, layout.units[layout.channels.index(channel)])
    grid = _MapGrid(layout)
    shown = [grid.order(f) * display.scale + display.offset for f in (truth, forecast)]
    error = (grid.order(forecast).astype(np.float64) - grid.order(truth)) * display.scale
    low, high = _limits(np.stack(shown), display.centred)
    _, bound = _limits(error, centred=True)

    figure, axes, bars = _arrange(grid.aspect)
    coast = coastlines("110m" if grid.spans > 60 else "50m")
    limits = [(low, high), (low, high), (-bound, bound)]
    colors = [display.colors, display.colors, "RdBu_r"]
    meshes = []
    for index, (ax, values) in enumerate(zip(axes, [*shown, error], strict=True)):
        mesh = ax.pcolormesh(
            *grid.edges,
            np.ma.masked_invalid(values),
            cmap=colors[index],
            vmin=limits[index][0],
            vmax=limits[index][1],
        )
        if values.size > 400:  # a picture is smaller than its cells
            mesh.set_rasterized(True)
        else:  # edges in the cell's own colour close the seams between cells
            mesh.set_edgecolor("face")
            mesh.set_linewidth(0.8)
        meshes.append(mesh)
        grid.draw_frame(ax)
        grid.draw_coast(ax, coast, land)
        ax.set_title(titles[index], color=INK, fontsize=10, loc="left", pad=4)
    _color_bar(bars[0], meshes[0], shown, display.units)
    _color_bar(bars[1], meshes[2], [error], display.error_units)
    return figure


def _arrange(aspect: float) -> tuple[Figure, list[Axes], list[Axes]]:
    """Makes three maps with the proportions of the grid, and the places of two colour bars.

    They stand side by side, or one above the other where the grid is a belt round the Earth.
    """
    from matplotlib.figure import Figure

    # Inches: what titles, tick labels and bars need, and the width of the page.
    width, left, between, title, below = 11.0, 0.58, 0.16, 0.3, 0.8
    belt = aspect > 3
    room = width - left - 0.25
    across = room if belt else (room - 2 * between) / 3
    tall = min(across / aspect, 4.4)
    across = tall * aspect
    height = title + tall + below
    if belt:
        height = 3 * (title + tall) + between + 2 * below
    figure = Figure(figsize=(width, height))

    def place(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, y / height, w / width, h / height))

    if belt:
        error, forecast = below, 2 * below + title + tall
        bottoms = [forecast + tall + title + between, forecast, error]
        maps = [place(left, bottom, across, tall) for bottom in bottoms]
        spans = [(left, across, forecast), (left, across, error)]
    else:
        starts = [left + i * (across + between) for i in range(3)]
        maps = [place(start, below, across, tall) for start in starts]
        spans = [(left, 2 * across + between, below), (starts[2], across, below)]
    bars = []
    for start, length, bottom in spans:
        short = min(0.8 * length, 4.5)
        bars.append(place(start + (length - short) / 2, bottom - 0.44, short, 0.11))
    if belt:  # neighbours share the names of longitudes, or of latitudes
        maps[0].tick_params(labelbottom=False)
    else:
        for ax in maps[1:]:
            ax.tick_params(labelleft=False)
    return figure, maps, bars


def _color_bar(ax: Axes, mesh: QuadMesh, drawn: list[np.ndarray], units: str) -> None:
    """A scale below the maps, with arrows where values lie beyond its ends."""
    known = np.concatenate([values[np.isfinite(values)] for values in drawn])
    bottom, top = mesh.get_clim()
    under, over = bool((known < bottom).any()), bool((known > top).any())
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[under, over]
    key = ax.figure.colorbar(mesh, cax=ax, orientation="horizontal", extend=extend)
    key.solids.set_rasterized(True)
    key.solids.set_edgecolor("face")
    key.outline.set_visible(False)
    key.set_label(units, color=INK, fontsize=9, labelpad=2)
    key.ax.tick_params(colors=INK, labelsize=8.5, length=2)
    key.locator = _ticks(6)
    key.update_ticks()


class _MapGrid:
    """Cells of a grid on a map from -180 to 180, or around a region wherever it lies."""

    def __init__(self, layout: FieldLayout) -> None:
        latitude, longitude = layout.latitude, np.asarray(layout.longitude, dtype=np.float64)
        step = float(np.median(np.diff(longitude))) if len(longitude) > 1 else 1.0
        self.round = len(longitude) * step > 359.0
        if self.round:  # a whole circle is cut at the date line
            places = (longitude + 180 + step / 2) % 360 - 180 - step / 2
        else:
            places = longitude - 360 * ((longitude[0] + longitude[-1]) / 2 > 180)
        self._columns = np.argsort(places, kind="stable")
        self.edges = (
            _cell_edges(places[self._columns]), np.clip(_cell_edges(latitude), -90, 90)
        )  # fmt: skip
        east, north = self.edges
        self.spans = float(east[-1] - east[0])
        middle = float(north[0] + north[-1]) / 2
        # A degree of longitude is shorter than one of latitude away from the equator.
        self.stretch = 1 / max(np.cos(np.deg2rad(middle)), 0.2)
        self.aspect = self.spans / (abs(float(north[0] - north[-1])) * self.stretch)

    def order(self, field: np.ndarray) -> np.ndarray:
        return np.asarray(field)[:, self._columns]

    def draw_frame(self, ax: Axes) -> None:
        from matplotlib.ticker import FuncFormatter

        east, north = self.edges
        ax.set_xlim(east[0], east[-1])
        ax.set_ylim(north.min(), north.max())
        ax.set_aspect(self.stretch)
        ax.xaxis.set_major_locator(_ticks(5, self.round))
        ax.yaxis.set_major_locator(_ticks(5 if self.aspect < 3 else 3, self.round))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: degrees(v, "E", "W")))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: degrees(v, "N", "S")))
        ax.tick_params(colors=INK, labelsize=8, length=2, width=0.6)
        for spine in ax.spines.values():
            spine.set_edgecolor(INK)
            spine.set_linewidth(0.6)

    def draw_coast(self, ax: Axes, coast: list[np.ndarray], land: np.ndarray | None) -> None:
        from matplotlib.collections import LineCollection

        east, north = self.edges
        if coast:
            inside = []
            for line in coast:
                for turn in (-360, 0, 360):
                    x, y = line[:, 0] + turn, line[:, 1]
                    if x.max() > east[0] and x.min() < east[-1] and y.max() > north.min():
                        if y.min() < north.max():
                            inside.append(np.stack([x, y], axis=1))
            lines = LineCollection(inside, colors="#222222", linewidths=0.7)
            lines.set_rasterized(self.round)
            ax.add_collection(lines, autolim=False)
        elif land is not None:
            mask = self.order(land)
            if mask.min() < 0.5 <= mask.max() and min(mask.shape) > 1:
                x, y = (edges[:-1] + np.diff(edges) / 2 for edges in self.edges)
                ax.contour(x, y, mask, levels=[0.5], colors="#222222", linewidths=0.8)


def _cell_edges(centres: np.ndarray) -> np.ndarray:
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    between = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])


def _limits(values: np.ndarray, centred: bool) -> tuple[float, float]:
    """Where the colours end: beyond all values, or nearly all of very many."""
    known = values[np.isfinite(values)]
    if not len(known):
        return (-1.0, 1.0) if centred else (0.0, 1.0)
    cut = 0.2 if known.size > 2000 else 0.0
    low, high = np.percentile(known, [cut, 100 - cut])
    if centred:
        bound = max(abs(low), abs(high)) or 1.0
        return -bound, bound
    if low == high:
        return low - 0.5, high + 0.5
    return float(low), float(high)


def _ticks(count: int, whole_circle: bool = False) -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, steps=[1, 3, 6, 9, 10] if whole_circle else [1, 2, 2.5, 5, 10])


def degrees(value: float, positive: str, negative: str) -> str:
    """Formats a coordinate: ``degrees(345, "E", "W") == "15°W"``."""
    value = (value + 180) % 360 - 180 if positive == "E" and value != 180 else value
    if value == 0 or abs(value) == 180:
        return f"{abs(value):g}°"
    return f"{abs(value):g}°{positive if value > 0 else negative}"
