import functools
import html
import json
import math
import re

import pytest

from hftune.tracking.report import Cell, Report, Section, Series, Tile
from hftune.tracking.report_markup import checked_svg
from hftune.tracking.report_sections import (
    TaskReport,
    TrainingHints,
    load_task_report,
    save_task_report,
    section_as_dict,
    section_from_dict,
)
from hftune.tracking.sparklines import spark_bars, spark_line
from hftune.utils.files import write_json

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"


def picture():
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure()
    first, second, third = figure.subplots(1, 3)
    first.plot([0, 1], [2, 3], "o--", label="a")
    first.legend()
    first.set_title(f"{EVIL} 서울")
    first.set_xlabel("$x^2$")
    second.imshow(np.arange(6).reshape(2, 3))
    second.text(0, 0, "turned", rotation=30, alpha=0.5)
    third.contourf(np.arange(12).reshape(3, 4), hatches=["//", "x"])
    return figure


@functools.cache
def every_block():
    section = Section(f"점수 {EVIL}")
    section.text("one", EVIL, tone="warning").code("  line\nline")
    section.tiles([Tile("a", math.inf, "note", "bad"), Tile("b", "text"), Tile("c", 3)])
    section.flow([[Tile("run", "x", tone="here")], [Tile("model", "y"), Tile("model", "z")]])
    cells = [Cell(1.5, -0.5, "note", True, "", 2), Cell(markup=spark_line([1, math.nan, 2])), EVIL]
    section.table(["n", "picture", EVIL], [cells, [math.nan, None, True]], "caption")
    section.key_values({"a": -math.inf, EVIL: EVIL, "whole": 7})
    section.curves(
        [Series("a", [0, 1], [1.0, math.nan], faint=True), Series(EVIL, [0, 1], [2, 3], dots=True)],
        title=EVIL,
        log=True,
    )
    section.figure(picture(), "caption", "alt").figure(b"\x89PNG\r\n\x1a\n", "png")
    section.fold("fold", opened=True).text("inside")
    left, right = section.columns()
    left.text("left")
    right.panels(["one", "two"])[1].table(["x"], [[1]])
    return section


def page(section):
    report = Report("page")
    report.add(section)
    return report.render()


def main(section):
    text = page(section)
    return text[text.index("<main>") : text.index("</main>")]


def without_names(text):
    """Two renderings differ in the numbers of their pictures."""
    return re.sub(r"f\d+-(?:f\d+-)?", "", text)


def test_every_block_survives_a_file(tmp_path):
    write_json(tmp_path / "run.json", {"attempts": [{}, {}]})
    section = every_block()
    report = Report("제목", "subtitle")
    report.add(section)
    hints = TrainingHints("eval_x", "x", ("baseline", 1.0))
    save_task_report(tmp_path, report, training=hints)
    json.loads(
        (tmp_path / "report_sections.json").read_text(encoding="utf-8"),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    found = load_task_report(tmp_path)
    assert (found.title, found.subtitle, found.training) == ("제목", "subtitle", hints)
    assert found.attempt == 2
    [back] = found.sections
    assert [block["kind"] for block in back.blocks] == [block["kind"] for block in section.blocks]
    table = next(block for block in back.blocks if block["kind"] == "table")
    assert table["rows"][0][0] == Cell(1.5, -0.5, "note", True, "", 2)
    assert math.isnan(table["rows"][1][0].value)
    assert table["rows"][1][1:] == [Cell(None), Cell(True)]
    tiles = next(block for block in back.blocks if block["kind"] == "tiles")
    assert tiles["tiles"] == [Tile("a", math.inf, "note", "bad"), Tile("b", "text"), Tile("c", 3)]
    pairs = next(block for block in back.blocks if block["kind"] == "pairs")
    assert pairs["pairs"] == [("a", -math.inf), (EVIL, EVIL), ("whole", 7)]
    curves = [[b["spec"] for b in s.blocks if b["kind"] == "curves"] for s in (section, back)]
    assert curves[0] == curves[1]
    assert "left out" not in page(back)
    # What is read and written again is the same: nothing wears off.
    again = section_from_dict(json.loads(json.dumps(section_as_dict(back))))
    assert without_names(page(again)) == without_names(page(back))


def test_pictures_of_two_runs_do_not_share_names():
    kept = json.loads(json.dumps(section_as_dict(every_block())))
    text = main(section_from_dict(kept)) + main(section_from_dict(kept))
    names = re.findall(r'(?<![\w-])id="(f[^"]*)"', text)
    assert len(names) > 10 and len(names) == len(set(names))
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(names)


def test_what_people_see_of_a_picture_stays():
    text = next(b["markup"] for b in every_block().blocks if b["kind"] == "svg")
    checked = checked_svg(text)
    for what in (r'\sd="([^"]*)"', r">(.{1,200}서울)</text", r"fill: ([^;\"]*)"):
        kept, drawn = (re.findall(what, html.unescape(markup)) for markup in (checked, text))
        assert kept == drawn and kept
    assert "서울" in checked and "&lt;script" in checked
    assert "data:image/png;base64," in checked
    assert checked_svg(checked) == checked


def test_spark_lines_pass():
    for markup in (spark_line([1, 2, None, 3]), spark_bars([1, 0, 4])):
        assert checked_svg(markup).replace("></path>", "/>").replace("></rect>", "/>") == markup


HREF = 'xmlns:xlink="http://www.w3.org/1999/xlink"'


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>",
        "<SCRIPT>alert(1)</SCRIPT>",
        '<rect onload="alert(1)"/>',
        '<rect ONCLICK="alert(1)"/>',
        "<foreignObject><p>x</p></foreignObject>",
        '<a href="#x"><text>x</text></a>',
        f'<use {HREF} xlink:href="https://example.org/x.svg#a"/>',
        f'<use {HREF} xlink:href="javascript:alert(1)"/>',
        '<use href="data:image/svg+xml;base64,PHN2Zz4="/>',
        '<image href="https://example.org/x.png"/>',
        '<image href="//example.org/x.png"/>',
        '<image href="data:image/svg+xml;base64,PHN2Zz4="/>',
        '<rect style="fill: url(https://example.org/x)"/>',
        '<rect style="fill: URL(https://example.org/x)"/>',
        '<rect style="fill: u\\72l(https://example.org)"/>',
        '<rect style="fill: red; position: fixed"/>',
        '<rect style="background-image: url(x)"/>',
        '<rect fill="url(https://example.org/x)"/>',
        '<rect fill="url( x )"/>',
        '<rect fill="image-set(x)"/>',
        "<style>* { background: url(https://example.org) }</style>",
        '<animate attributeName="href" values="javascript:alert(1)"/>',
        '<set attributeName="onclick" to="alert(1)"/>',
        "<title><g/></title>",
        "<iframe/>",
        '<img src="x"/>',
        "<text>&amp;</text><!ENTITY x 'y'>",
        '<h:script xmlns:h="http://www.w3.org/1999/xhtml">alert(1)</h:script>',
        "<g>",
        "<g>" * 200 + "</g>" * 200,
    ],
)
def test_markup_that_could_do_something_is_refused(inside):
    markup = f'<svg xmlns="http://www.w3.org/2000/svg">{inside}</svg>'
    with pytest.raises(ValueError):
        checked_svg(markup)
    blocks = [
        {"kind": "svg", "markup": markup, "caption": "c", "alt": "a"},
        {"kind": "table", "columns": ["x"], "rows": [[{"value": "", "markup": markup}]],
         "caption": "", "numeric": [False]},
        {"kind": "text", "paragraphs": ["still here"], "tone": ""},
    ]  # fmt: skip
    text = main(section_from_dict({"title": "t", "blocks": blocks}))
    assert text.count("Something was left out of this report here") == 2
    assert "still here" in text and "<svg" not in text and "<script" not in text


@pytest.mark.parametrize(
    "markup",
    [
        '<!DOCTYPE svg [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>',
        "<div>x</div>",
        "<html><svg></svg></html>",
        "",
        "<svg></svg><script>alert(1)</script>",
    ],
)
def test_only_one_whole_picture_is_a_picture(markup):
    with pytest.raises(ValueError):
        checked_svg(markup)


@pytest.mark.parametrize(
    "block",
    [
        {"kind": "html", "markup": "<b>x</b>"},
        {"kind": "png", "data": 'x" onerror="alert(1)', "caption": "", "alt": ""},
        {"kind": "text", "paragraphs": ["a"], "tone": 'x" onclick="alert(1)'},
        {"kind": "text", "paragraphs": "abc", "tone": ""},
        {"kind": "tiles", "tiles": [{"label": "a"}]},
        {"kind": "table", "columns": ["a"], "rows": [[1, 2]], "caption": "", "numeric": [True]},
        {"kind": "curves", "spec": {"series": [{"color": "0)"}]}, "caption": ""},
        {"kind": "pairs", "pairs": [["a", {"b": 1}]]},
        {"kind": "fold"},
        {"kind": ["text"]},
        "text",
        None,
    ],
)
def test_blocks_that_are_not_as_they_should_be_become_a_note(block):
    section = section_from_dict({"title": "t", "blocks": [block]})
    assert [one["kind"] for one in section.blocks] == ["text"]
    text = main(section)
    assert "left out" in text and 'onerror="' not in text and 'onclick="' not in text


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", '{"title": 1}', "[" * 5000, '{"title": "a", "sections":[']
)
def test_a_damaged_file_is_a_warning_in_the_report(tmp_path, content):
    (tmp_path / "report_sections.json").write_text(content)
    [section] = load_task_report(tmp_path).sections
    assert "report_sections.json could not be read" in page(section)


def test_a_folder_without_the_file_has_no_sections(tmp_path):
    assert load_task_report(tmp_path) == TaskReport()
    assert load_task_report(tmp_path / "gone") == TaskReport()


def test_half_a_character_is_no_obstacle(tmp_path):
    write_json(tmp_path / "run.json", {"attempts": [{}]})
    report = Report("name \udcff of a file")
    report.section("x").text("\udcff")
    save_task_report(tmp_path, report)
    assert load_task_report(tmp_path).title == "name ? of a file"
    report.write(tmp_path / "report.html")
