"""Small pictures of images with words below them, for a report.

They are drawn as SVG, which a report checks when it reads its sections again. Words are set by the
browser, which has the letters of Korean names; matplotlib has not.
"""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...tracking.report import Section
from .image_files import ImageProblem, load_image

__all__ = ["Picture", "contact_sheet", "shown_name", "thumbnail_svg"]

_COLUMNS = 3  # of a strip; two strips stand side by side where the page is wide
_WIDTH, _GAP = 152, 12
_LEAST_HEIGHT = 76
_LINE = 16
_LETTERS = 22  # Latin ones that fit below a picture
_DENSITY = 2  # pixels of a thumbnail in each of the page's, as screens have


@dataclass(frozen=True)
class Picture:
    """An image of a contact sheet.

    Attributes:
        path (Path): Its file.
        caption (tuple of str): Lines below it, the first in bold; what is too long is cut.
        name (str): What the pointer shows, and others read out.
    """

    path: Path
    caption: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class _Thumbnail:
    """The bytes of a JPEG, and its size in pixels of the page."""

    data: bytes
    width: float
    height: float


def contact_sheet(section: Section, pictures: Sequence[Picture]) -> None:
    """Adds small pictures of images to a section, six in a row where the page is wide.

    An image that cannot be read becomes an empty frame that says so.

    Args:
        section (Section): Where they are added.
        pictures (sequence of Picture): In the order of reading.

    Example:
        >>> contact_sheet(
        ...     section, [Picture(Path("a.jpg"), ("1  a.jpg", "tier S, score 2.31"), "a.jpg")]
        ... )
    """
    with ThreadPoolExecutor(4) as threads:
        thumbnails = list(threads.map(lambda one: _thumbnail(one.path, _WIDTH, _WIDTH), pictures))
    height = max([_LEAST_HEIGHT, *(found.height for found in thumbnails if found)])
    lines = max((len(one.caption) for one in pictures), default=0)
    cells = list(zip(pictures, thumbnails, strict=True))
    strips = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    for start in range(0, len(strips), 2):
        pair = strips[start : start + 2]
        for place, strip in zip(section.columns(), pair, strict=False):
            said = [", ".join([one.name, *one.caption[1:]]) for one, _ in strip]
            place.figure(_strip(strip, height, lines), alt="; ".join(said))


def thumbnail_svg(path: Path, name: str, width: int = 144, height: int = 80) -> str:
    """Returns a small picture of an image for the cell of a table.

    Args:
        path (Path): Its file.
        name (str): What the pointer shows.
        width, height (int): What it is fitted into, in pixels of the page. Defaults to 144 and 80.
    """
    found = _thumbnail(path, width, height)
    inside = f"<title>{_escaped(name)}</title>" + _picture(found, 0, width, height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="spark" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{inside}</svg>'
    )


def shown_name(path: str | Path) -> str:
    """Returns the name of a file as it can stand on a page.

    Hangul is composed, and characters that cannot be printed, line breaks and halves among them,
    are replaced.

    Args:
        path (str or path): The file, of which all is shown.
    """
    name = unicodedata.normalize("NFC", str(path))
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in name)


def _thumbnail(path: Path, width: int, height: int) -> _Thumbnail | None:
    """A JPEG of an image that fits, None of one that cannot be read."""
    try:
        image = load_image(path)
    except ImageProblem:
        return None
    factor = min(width / image.width, height / image.height)
    size = image.width * factor, image.height * factor
    pixels = tuple(max(1, round(side * min(_DENSITY, 1 / factor))) for side in size)
    stream = io.BytesIO()
    small = image.resize(pixels, Image.Resampling.LANCZOS, reducing_gap=2.0)
    small.save(stream, "JPEG", quality=80)
    return _Thumbnail(stream.getvalue(), *size)


def _strip(strip: Sequence[tuple[Picture, _Thumbnail | None]], height: float, lines: int) -> str:
    """Some pictures side by side, each above its caption."""
    width = _COLUMNS * _WIDTH + (_COLUMNS - 1) * _GAP
    whole = height + 4 + _LINE * lines + 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{whole:.0f}" '
        f'viewBox="0 0 {width} {whole:.0f}" fill="currentColor">'
    ]
    for place, (picture, found) in enumerate(strip):
        left = place * (_WIDTH + _GAP)
        parts.append(f"<g><title>{_escaped(picture.name)}</title>")
        parts.append(_picture(found, left, _WIDTH, height))
        for number, line in enumerate(picture.caption):
            style = 'font-size="12.5" font-weight="600"'
            if number:
                style = 'font-size="12" fill-opacity="0.7"'
            base = height + 2 + _LINE * (number + 1)
            text = _escaped(_cut(line))
            parts.append(f'<text x="{left}" y="{base:.0f}" {style}>{text}</text>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def _picture(found: _Thumbnail | None, left: float, width: float, height: float) -> str:
    """A thumbnail in the middle of a frame."""
    frame = f'<rect x="{left + 0.5}" y="0.5" width="{width - 1}" height="{height - 1:.1f}" rx="5" '
    if found is None:
        middle = f'x="{left + width / 2:.1f}" y="{height / 2 + 4:.1f}" text-anchor="middle"'
        return (
            f'{frame}fill="none" stroke="currentColor" stroke-opacity="0.4" '
            f'stroke-dasharray="4 3"/><text {middle} font-size="11" fill="currentColor" '
            'fill-opacity="0.7">cannot be read</text>'
        )
    data = base64.b64encode(found.data).decode("ascii")
    x, y = left + (width - found.width) / 2, (height - found.height) / 2
    return (
        f'{frame}fill="currentColor" fill-opacity="0.05"/><image x="{x:.1f}" y="{y:.1f}" '
        f'width="{found.width:.1f}" height="{found.height:.1f}" preserveAspectRatio="none" '
        f'href="data:image/jpeg;base64,{data}"/>'
    )


def _cut(line: str) -> str:
    """As much of a line as fits below a picture; Korean letters are wide."""
    room = _LETTERS
    for place, letter in enumerate(line):
        room -= 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if room < 0:
            return f"{line[: place - 1].rstrip()}…"
    return line


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES)


# A report shortens numbers and changes a colour in the markup of pictures: not so in a name.
_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", ".": "&#46;", "#": "&#35;"}
)
