"""Pictures that come from a file: an SVG in a page can run code and load what it likes.

What is read is taken apart and written anew from a list of what a picture needs; markup with
anything else in it is refused as a whole.
"""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ElementTree

__all__ = ["checked_svg"]

_ELEMENTS = frozenset(
    "svg g defs path rect circle ellipse line polyline polygon text tspan title desc use image "
    "clipPath mask pattern marker symbol linearGradient radialGradient stop".split()
)
_STYLES = frozenset(
    "clip-path clip-rule color display dominant-baseline fill fill-opacity fill-rule font "
    "font-family font-size font-style font-variant font-weight image-rendering letter-spacing mask "
    "mix-blend-mode opacity paint-order shape-rendering stop-color stop-opacity stroke "
    "stroke-dasharray stroke-dashoffset stroke-linecap stroke-linejoin stroke-miterlimit "
    "stroke-opacity stroke-width text-anchor text-rendering vector-effect visibility "
    "writing-mode".split()
)
_ATTRIBUTES = _STYLES | frozenset(
    "id class role style aria-hidden aria-label version viewBox width height x y x1 x2 y1 y2 cx cy "
    "r rx ry dx dy fx fy d points transform preserveAspectRatio clipPathUnits maskUnits "
    "patternUnits patternContentUnits patternTransform gradientUnits gradientTransform "
    "spreadMethod offset markerWidth markerHeight markerUnits refX refY orient textLength "
    "lengthAdjust rotate".split()
)
_FUNCTIONS = frozenset(
    "rgb rgba hsl hsla color-mix var calc translate scale rotate matrix skewX skewY".split()
)
_XLINK = "{http://www.w3.org/1999/xlink}href"
_SVG = "{http://www.w3.org/2000/svg}"
_DEPTH = 100


def checked_svg(markup: str) -> str:
    """Returns an SVG that can do nothing but be looked at.

    Args:
        markup (str): One ``<svg>``, as matplotlib and :mod:`~hftune.tracking.sparklines` make them.

    Returns:
        The same picture, written anew.

    Raises:
        ValueError: If there is anything in it that pictures do not need: scripts, event handlers,
            foreign elements, references to elsewhere.
    """
    if re.search(r"<!(?!--)", markup):
        raise ValueError("a document type or an entity")
    try:
        root = ElementTree.fromstring(markup)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"no well-formed markup: {error}") from None
    if root.tag.removeprefix(_SVG) != "svg":
        raise ValueError(f"<{root.tag}> where an <svg> was expected")
    parts: list[str] = []
    _write(root, parts, 0)
    return "".join(parts)


def _write(element: ElementTree.Element, parts: list[str], depth: int) -> None:
    name = element.tag.removeprefix(_SVG)
    if name not in _ELEMENTS:
        raise ValueError(f"the element <{name}>")
    if depth > _DEPTH:
        raise ValueError(f"more than {_DEPTH} elements inside each other")
    if len(element) and name in ("title", "desc"):  # HTML again, for a browser
        raise ValueError(f"elements inside <{name}>")
    parts.append(f"<{name}")
    for key, value in element.attrib.items():
        key = "href" if key == _XLINK else key
        _check(name, key, value)
        parts.append(f' {key}="{html.escape(value)}"')
    parts.append(">" + html.escape(element.text or ""))
    for child in element:
        _write(child, parts, depth + 1)
        parts.append(html.escape(child.tail or ""))
    parts.append(f"</{name}>")


def _check(element: str, key: str, value: str) -> None:
    if key == "href":
        picture = r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=\s]*"
        if not re.fullmatch(r"#[\w.-]+" + (f"|{picture}" if element == "image" else ""), value):
            raise ValueError(f"the reference {value[:60]!r}")
    elif key not in _ATTRIBUTES:
        raise ValueError(f"the attribute {key}")
    elif key == "style":
        for declaration in filter(str.strip, value.split(";")):
            name, _, text = declaration.partition(":")
            if name.strip() not in _STYLES:
                raise ValueError(f"the style {name.strip()[:60]!r}")
            _check_value(text)
    elif key not in ("aria-label", "id", "class"):
        _check_value(value)


def _check_value(value: str) -> None:
    if re.search(r"[\\<>@]|/\*|\w\s*:", value):  # escapes, comments, rules, schemes
        raise ValueError(f"the value {value[:60]!r}")
    for name, inside in re.findall(r"([\w-]+)\s*\(\s*(.{0,2})", value, re.DOTALL):
        if name not in _FUNCTIONS and not (name == "url" and inside.lstrip("\"'")[:1] == "#"):
            raise ValueError(f"the value {value[:60]!r}")
