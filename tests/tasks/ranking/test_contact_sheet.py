"""Contact sheets: what stands below pictures, and what comes of files and names of all kinds."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from hftune.tasks.ranking.contact_sheet import Picture, contact_sheet, shown_name, thumbnail_svg
from hftune.tracking.report import Report, Section
from hftune.tracking.report_sections import section_as_dict, section_from_dict


@pytest.fixture
def saved(tmp_path):
    def save(name, size, color="red"):
        path = tmp_path / name
        Image.new("RGB", size, color).save(path)
        return path

    return save


def strips(section):
    return [
        one for block in section.blocks for part in block["sections"] for one in part.blocks
    ]  # fmt: skip


def thumbnails(markup):
    """The pictures in an SVG, each with its place and size on the page."""
    found = []
    for element in re.findall(r"<image [^>]*>", markup):
        place = dict(re.findall(r'(x|y|width|height)="([^"]*)"', element))
        data = re.search(r"base64,([^\"]*)", element)[1]
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        found.append((image, {name: float(value) for name, value in place.items()}))
    return found


def test_pictures_keep_their_shape_and_stand_in_order(saved):
    sizes = {"wide.png": (800, 200), "tall.png": (300, 900), "tiny.png": (1, 1), "four.png": (9, 9)}
    pictures = [Picture(saved(name, size), (name, "tier S"), name) for name, size in sizes.items()]
    section = Section("")
    contact_sheet(section, pictures)
    first, second = strips(section)
    wide, tall, tiny = thumbnails(first["markup"])
    for (image, place), (width, height) in zip((wide, tall), [(800, 200), (300, 900)], strict=True):
        assert place["width"] / place["height"] == pytest.approx(width / height, rel=0.01)
        assert max(place["width"], place["height"]) == 152
        assert image.width / place["width"] == pytest.approx(2, rel=0.01)  # for sharp screens
    assert tiny[0].size == (1, 1)  # never made larger than it is
    assert wide[1]["x"] == 0 and 164 < tall[1]["x"] < 316 < 328 <= tiny[1]["x"]
    assert np.asarray(wide[0])[0, 0] == pytest.approx([255, 0, 0], abs=3)
    assert first["alt"] == "wide.png, tier S; tall.png, tier S; tiny.png, tier S"
    assert second["alt"] == "four.png, tier S"
    assert "wide&#46;png</text>" in first["markup"] and first["markup"].count("tier S<") == 3


def test_an_image_that_cannot_be_read_is_an_empty_frame(saved, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no more than this")
    section = Section("")
    contact_sheet(
        section,
        [
            Picture(saved("fine.png", (30, 20)), ("fine",), "fine"),
            Picture(broken, ("broken",), "broken"),
            Picture(tmp_path / "missing.jpg", ("missing",), "missing"),
        ],
    )
    (strip,) = strips(section)
    assert strip["markup"].count("<image") == 1
    assert strip["markup"].count("cannot be read") == 2
    assert ">broken</text>" in strip["markup"] and ">missing</text>" in strip["markup"]
    assert "cannot be read" in thumbnail_svg(broken, "broken")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ('<script>alert("1")</script>&.jpg', '<script>alert("1")</script>&.jpg'),
        (unicodedata.normalize("NFD", "봄날의 그림.jpg"), "봄날의 그림.jpg"),
        ("line\nbreak\x01and\udc80half.jpg", "line�break�and�half.jpg"),
        ('v1.23456 #102030 id="y".jpg', 'v1.23456 #102030 id="y".jpg'),
    ],
)  # fmt: skip
def test_names_of_all_kinds_survive_the_page_and_its_saved_sections(saved, name, shown):
    path = saved("a.png", (40, 40))
    said = shown_name(name)
    assert said == shown
    section = Section("Images")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contact_sheet(section, [Picture(path, (said, said), said)])
    again = section_from_dict(json.loads(json.dumps(section_as_dict(section), allow_nan=False)))
    for one in (section, again):
        report = Report("r")
        report.add(one)
        page = report.render()
        assert "was left out" not in page
        assert "<script>alert" not in page
        markup = strips(one)[0]["markup"]
        title = re.search(r"<title>(.*?)</title>", markup)[1]
        assert html.unescape(title) == shown


def test_captions_are_cut_to_the_width_of_their_letters(saved):
    path = saved("a.png", (40, 40))
    section = Section("")
    lines = ("a" * 22, "a" * 23, "가" * 11, "가" * 12)
    contact_sheet(section, [Picture(path, lines, "a")])
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", strips(section)[0]["markup"])
    assert texts == ["a" * 22, "a" * 21 + "…", "가" * 11, "가" * 10 + "…"]


def test_no_picture_adds_nothing():
    section = Section("")
    contact_sheet(section, [])
    assert section.blocks == []
