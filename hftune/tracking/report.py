"""A report: one self-contained HTML page, readable anywhere, with no network and no server.

A report is a list of sections, and a section a list of blocks in the order of the calls that made
them. Every text is escaped; only :meth:`Section.figure` and :attr:`Cell.markup` take
markup as it is. The page's policy lets its own script run and no other.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["INK", "Cell", "Report", "Section", "Series", "Tile", "format_number", "unique_ids"]

INK = "#102030"
"""A matplotlib colour that becomes the page's own text colour, light or dark, in a figure."""

_picture_numbers = itertools.count(1)
_POINTS = 1500  # that a curve keeps: more than a screen shows
_LONG, _LONGEST = 300, 20_000  # characters of a text in a table: shown at once, and at all


def format_number(value: Any, digits: int = 4) -> str:
    """Formats a number for people: at most ``digits`` significant ones; None and NaN as ``–``."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if -5 <= size < 7:
        text = f"{value:,.{max(0, digits - 1 - size)}f}"
    else:
        text = f"{value:.{digits - 1}e}"
    return text.replace("-", "−")


@dataclasses.dataclass
class Series:
    """One curve of :meth:`Section.curves`.

    Attributes:
        name (str): In the legend.
        x (sequence of float): Increasing.
        y (sequence of float): Same length; what is not finite is marked at the foot of the chart.
        color (int, *optional*): Number of a colour, 0 to 7; defaults to the next. Series of one
            colour belong together.
        faint (bool): Drawn lightly, as the raw values behind a smooth curve.
        dashed (bool): Drawn dashed, as a baseline.
        dots (bool): Drawn with a dot at each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int | None = None
    faint: bool = False
    dashed: bool = False
    dots: bool = False


@dataclasses.dataclass
class Cell:
    """A cell of a table with more than a value.

    Attributes:
        value: Text or number.
        shade (float, *optional*): From -1 (good, blue) over 0 to 1 (bad, red): its background.
        note (str): Shown when the pointer rests on it.
        strong (bool): In bold.
        markup (str): A small SVG (trusted) instead of the value.
        digits (int): Significant digits of a number.
    """

    value: Any = ""
    shade: float | None = None
    note: str = ""
    strong: bool = False
    markup: str = ""
    digits: int = 4


@dataclasses.dataclass
class Tile:
    """A headline number.

    Attributes:
        label (str): What it is.
        value: Text or number.
        note (str): A few words below it.
        tone (str): ``""``, ``"good"``, ``"warning"`` or ``"bad"``.
    """

    label: str
    value: Any
    note: str = ""
    tone: str = ""


class Section:
    """A part of a report; its methods add blocks in their order.

    They return the section, those that make parts of it (:meth:`fold`, :meth:`columns`,
    :meth:`panels`) return the parts.

    Attributes:
        title (str): Its heading.
        blocks (list of dict): What was added.
    """

    def __init__(self, title: str, anchor: str = "") -> None:
        self.title = title
        self.anchor = anchor
        self.blocks: list[dict[str, Any]] = []

    def _add(self, kind: str, **content: Any) -> Section:
        self.blocks.append({"kind": kind, **content})
        return self

    def text(self, *paragraphs: str, tone: str = "") -> Section:
        """Adds paragraphs; a ``tone`` (``note``, ``good``, ``warning``, ``bad``) boxes them."""
        return self._add("text", paragraphs=paragraphs, tone=tone)

    def tiles(self, tiles: Iterable[Tile]) -> Section:
        """Adds headline numbers side by side."""
        return self._add("tiles", tiles=list(tiles))

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = ""
    ) -> Section:
        """Adds a table.

        Args:
            columns (sequence of str): Headings.
            rows (iterable of sequences): Text, numbers or :class:`Cell`; a column of numbers is
                set flush right.
            caption (str): Below it.
        """
        cells = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows]
        odd = next((row for row in cells if len(row) != len(columns)), None)
        if odd is not None:
            raise ValueError(f"a table of {len(columns)} columns has a row of {len(odd)} cells")
        numeric = [
            all(_is_numeric(row[i].value) and not row[i].markup for row in cells)
            for i in range(len(columns))
        ]
        return self._add("table", columns=columns, rows=cells, caption=caption, numeric=numeric)

    def key_values(self, pairs: Mapping[str, Any]) -> Section:
        """Adds names with their values."""
        return self._add("pairs", pairs=list(pairs.items()))

    def code(self, text: str) -> Section:
        """Adds lines as they are, in a font of one width."""
        return self._add("code", text=text)

    def flow(self, columns: Iterable[Sequence[Tile]]) -> Section:
        """Adds boxes from left to right: what came out of what.

        Args:
            columns (iterable of sequences of Tile): Boxes above each other; an arrow leads from
                each column to the next. Empty columns are left out.
        """
        return self._add("flow", columns=[list(column) for column in columns if column])

    def figure(self, figure: Figure | str | bytes, caption: str = "", alt: str = "") -> Section:
        """Adds a picture.

        Args:
            figure (matplotlib Figure, str or bytes): A figure, the markup of an SVG (trusted), or
                the bytes of a PNG. What a figure draws in the colour :data:`INK` takes the
                colour of the page's text.
            caption (str): Below it.
            alt (str): What is to be seen, for those who cannot; defaults to ``caption``.
        """
        if isinstance(figure, bytes):
            data = base64.b64encode(figure).decode("ascii")
            return self._add("png", data=data, caption=caption, alt=alt or caption)
        if not isinstance(figure, str):
            figure = _figure_svg(figure)
        return self._add("svg", markup=_inline_svg(figure), caption=caption, alt=alt or caption)

    def curves(
        self,
        series: Iterable[Series],
        *,
        title: str = "",
        x_label: str = "",
        y_label: str = "",
        log: bool = False,
        caption: str = "",
        points: int = _POINTS,
    ) -> Section:
        """Adds a chart of curves that can be zoomed, read under the pointer and switched off.

        Args:
            series (iterable of Series): The curves.
            title (str): Above the chart.
            x_label (str): With its unit.
            y_label (str): With its unit.
            log (bool): Begin with a logarithmic y axis, where all values are positive.
            caption (str): Below it.
            points (int): That a curve keeps about, its extremes among them. Defaults to 1500.
        """
        series = list(series)
        taken = {one.color for one in series}
        free = [color for color in range(8) if color not in taken] or list(range(8))
        lines: list[dict[str, Any]] = []
        unnamed = 0
        for one in series:
            x, y = _thin(one.x, one.y, points)
            lines.append(
                {
                    "name": one.name,
                    "color": free[unnamed % len(free)] if one.color is None else one.color,
                    "faint": one.faint,
                    "dashed": one.dashed,
                    "dots": one.dots,
                    "x": x,
                    "y": y,
                }
            )
            unnamed += one.color is None
        spec = {"title": title, "x": x_label, "y": y_label, "log": log, "series": lines}
        return self._add("curves", spec=spec, caption=caption)

    def fold(self, title: str, *, opened: bool = False) -> Section:
        """Adds a part that is folded away under its title, and returns that part."""
        inner = Section(title)
        self._add("fold", section=inner, opened=opened)
        return inner

    def columns(self, count: int = 2) -> list[Section]:
        """Adds parts that stand side by side where the page is wide, and returns them."""
        inner = [Section("") for _ in range(count)]
        self._add("columns", sections=inner)
        return inner

    def panels(self, titles: Sequence[str]) -> list[Section]:
        """Adds parts of which the reader sees the one she picks, and returns them."""
        inner = [Section(title) for title in titles]
        self._add("panels", sections=inner)
        return inner


class Report:
    """One page; see the module.

    Args:
        title (str): Heading of the page.
        subtitle (str): A line below it.
        facts (mapping, *optional*): Short facts shown in one line at the top (status, date, ...).

    Example:
        >>> report = Report("Aurora, Iberia", "One day ahead")
        >>> report.section("Scores").table(["variable", "RMSE"], [["z_500", 231.4]])
        >>> report.write("out/report.html")
    """

    def __init__(
        self, title: str, subtitle: str = "", facts: Mapping[str, Any] | None = None
    ) -> None:
        self.title = title
        self.subtitle = subtitle
        self.facts = dict(facts or {})
        self.sections: list[Section] = []

    def section(self, title: str) -> Section:
        """Adds a section and returns it; the page's menu leads to it."""
        return self.add(Section(title))

    def add(self, section: Section) -> Section:
        """Adds a section that was made elsewhere, and returns it."""
        section.anchor = f"s{len(self.sections) + 1}"
        self.sections.append(section)
        return section

    def render(self) -> str:
        """Returns the page."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("hftune.tracking"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters["number"] = format_number
        environment.filters["script_json"] = _script_json
        environment.filters["cut"] = _cut
        source = Path(__file__).with_name("templates") / "report.js"
        script = "\n" + source.read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
        page = environment.get_template("report.html")
        return page.render(report=self, script=script, script_hash=f"sha256-{digest}")

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the page, atomically."""
        text = self.render().encode("utf-8", "replace")  # a file's name can hold half a character
        with atomic_write(path, "wb") as stream:
            stream.write(text)


def _is_numeric(value: Any) -> bool:
    return value in (None, "NaN") or (
        isinstance(value, (int, float)) and not isinstance(value, bool)
    )


def _cut(value: Any) -> tuple[str, str]:
    """What a table shows of a text, and the whole of it where that is more."""
    text = value if isinstance(value, str) else ""
    if len(text) <= _LONG:
        return text, ""
    whole = text
    if len(text) > _LONGEST:
        whole = f"{text[:_LONGEST]}… ({len(text):,} characters, cut here)"
    return f"{text[: _LONG - 40].rstrip()}…", whole


def _script_json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever texts are in it."""
    import markupsafe

    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return markupsafe.Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))


def _thin(
    x: Sequence[float], y: Sequence[float], most: int = _POINTS
) -> tuple[list[float], list[float | None]]:
    """Keeps the extremes and what is not finite of runs of points; None for what is not finite."""
    if len(x) != len(y):
        raise ValueError(f"a curve has {len(x)} x and {len(y)} y values")
    values = [v if v is not None and math.isfinite(v) else None for v in map(_float, y)]
    places = [float(v) for v in x]
    if len(places) > most:
        kept = {0, len(places) - 1}
        length = -(-2 * len(places) // most)
        for start in range(0, len(places), length):
            run = range(start, min(start + length, len(places)))
            finite = [i for i in run if values[i] is not None]
            if finite:
                kept.add(min(finite, key=values.__getitem__))
                kept.add(max(finite, key=values.__getitem__))
            if len(finite) < len(run):
                kept.add(next(i for i in run if values[i] is None))
        order = sorted(kept)
        places, values = [places[i] for i in order], [values[i] for i in order]
    return (
        [int(v) if v.is_integer() else float(f"{v:.9g}") for v in places],
        [None if v is None else float(f"{v:.6g}") for v in values],
    )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _figure_svg(figure: Figure) -> str:
    import matplotlib

    stream = io.StringIO()
    # Text stays text (small, sharp, searchable) in the page's own font, which has its letters.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "hftune"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(
            stream,
            format="svg",
            dpi=110,
            transparent=True,
            metadata={"Date": None, "Creator": None},
        )
    return stream.getvalue()


def _inline_svg(markup: str) -> str:
    """Makes an SVG file a part of the page."""
    markup = markup[markup.index("<svg") :]
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup, flags=re.DOTALL)
    # A style sheet inside would hold for the whole page: matplotlib's says only this.
    markup = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", markup, flags=re.DOTALL)
    markup = markup.replace("<svg", '<svg style="stroke-linejoin:round"', 1)
    # The page's font and colour, not the ones that matplotlib measured with.
    markup = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", markup)
    markup = re.sub(r"font: ([^;\"']*)'[^;\"]*", r"font: \1var(--font)", markup)
    markup = re.sub(INK, "currentColor", markup, flags=re.IGNORECASE)
    # Hundredths of a point are enough, and line breaks in paths are half of the file.
    markup = re.sub(r"(?<=\d\.\d\d)\d+", "", markup)
    return unique_ids(re.sub(r"\s*\n\s*", " ", markup))


def unique_ids(markup: str) -> str:
    """Renames what an SVG refers to: names in one must not mean something in another one."""
    unique = f"f{next(_picture_numbers)}-"
    return re.sub(r'((?<![\w-])id="|url\(#|href="#)', rf"\g<1>{unique}", markup)
