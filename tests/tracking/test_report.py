import html.parser
import json
import math
import re
import subprocess
import sys

import pytest

from hftune.tracking.report import (
    INK,
    Cell,
    Report,
    Series,
    Tile,
    _thin,
    format_number,
)

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"


class Page(html.parser.HTMLParser):
    """Collects elements and what is in scripts, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self._script = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        if self._script:
            self.scripts[-1] += data
        else:
            self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def everything():
    from matplotlib.figure import Figure

    report = Report(EVIL, EVIL, {EVIL: EVIL})
    section = report.section(EVIL)
    section.text(EVIL, tone="warning").tiles([Tile(EVIL, EVIL, EVIL), Tile("b", 3)])
    section.table([EVIL, "n"], [[EVIL, 1.5], [Cell(EVIL, note=EVIL, shade=-0.5), 2]], EVIL)
    section.key_values({EVIL: EVIL}).code(EVIL).flow([[Tile(EVIL, EVIL, EVIL)], [], [Tile("b", 1)]])
    section.curves([Series(EVIL, [0, 1], [1, 2])], title=EVIL, x_label=EVIL, caption=EVIL)
    figure = Figure()
    figure.subplots().set_title(EVIL, color=INK)
    section.figure(figure, EVIL)
    section.figure(b"\x89PNG", EVIL)
    section.fold(EVIL).text("folded")
    first, second = section.panels([EVIL, "two"])
    first.text("one of two")
    second.fold("deep").text("deeper")
    return report


def test_texts_are_escaped_everywhere_and_nothing_is_loaded(tmp_path):
    everything().write(tmp_path / "deep" / "report.html")
    text = (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.scripts) == 2  # the chart's numbers and the page's own code
    assert "alert(" not in page.scripts[1] and "alert" in page.scripts[0]
    assert json.loads(page.scripts[0])["title"] == EVIL
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert [a["src"][:15] for a in page.named("img")] == ["data:image/png;"]
    assert not page.named("link") and not page.named("iframe")
    assert not [a for a in page.named("script") if "src" in a]
    outside = re.findall(r"https?://[^\s\"'<]+", text)
    assert {url.split("/")[2] for url in outside} <= {"www.w3.org"}  # names, not addresses
    assert text.count(html.escape(EVIL, quote=False)) + text.count("&#39;x&#39;") > 10


def test_blocks_come_in_the_order_of_the_calls():
    text = everything().render()
    order = ['class="tiles"', 'class="table"', "<dl>", 'class="chart"', 'class="picture"']
    places = [text.index(mark) for mark in [*order, "image/png", "<details", 'class="panels"']]
    assert places == sorted(places)
    assert "deeper" in text and "one of two" in text


def test_a_figure_takes_the_colour_of_the_page():
    text = everything().render()
    assert INK not in text and "currentColor" in text
    assert "<?xml" not in text and "<!DOCTYPE svg" not in text
    picture = text[text.index('class="picture"') :]
    assert "var(--font)" in picture and "<style" not in picture and "DejaVu" not in picture


def test_the_menu_is_there_when_there_is_a_choice():
    report = Report("a")
    report.section("One").text("1")
    assert "<nav>" not in report.render()
    report.section("Two").text("2")
    assert "<nav>" in report.render()


def test_columns_of_numbers_are_flush_right_and_shades_are_bounded():
    report = Report("a")
    report.section("s").table(
        ["name", "value"], [["x", 1.0], ["y", None], ["z", Cell(2.0, shade=7.0)]]
    )
    text = report.render()
    assert re.findall(r'<td class="n?[^>]*>', text)[1] == '<td class="n tight">'
    assert 'class="n tight worse" style="--shade:1.00"' in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.731234, "0.7312"), (231.4333, "231.4"), (54321.98, "54,322"), (12345678.9, "1.235e+07"),
        (0.00001234, "0.00001234"), (1.5e-7, "1.500e−07"), (-2.5, "−2.500"), (0.0, "0"),
        (1534222, "1,534,222"), (math.nan, "–"), (None, "–"), (-math.inf, "−∞"), (True, "True"),
        ("text", "text"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert format_number(value) == text


def test_long_curves_keep_their_extremes_and_what_is_not_finite():
    y = [math.sin(i / 50) for i in range(100_000)]
    y[54_321] = 99.0
    y[60_000] = float("nan")
    y[70_001] = float("inf")
    x, thin = _thin(range(100_000), y)
    assert len(x) < 2500 and x == sorted(x) and x[0] == 0 and x[-1] == 99_999
    assert max(v for v in thin if v is not None) == 99.0 and thin[x.index(54_321)] == 99.0
    assert thin[x.index(60_000)] is None and thin[x.index(70_001)] is None
    with pytest.raises(ValueError, match="2 x and 1 y"):
        _thin([1, 2], [1])


def test_long_texts_are_cut_and_can_be_opened():
    report = Report("a")
    report.section("s").table(["x"], [["short"], ["<b>" + "y" * 400]]).key_values({"k": "z" * 301})
    text = report.render()
    assert text.count('<details class="long">') == 2
    assert f"&lt;b&gt;{'y' * 257}…</summary>&lt;b&gt;{'y' * 400}</details>" in text


def test_a_table_has_as_many_cells_as_headings():
    with pytest.raises(ValueError, match="a table of 2 columns has a row of 1 cells"):
        Report("a").section("s").table(["x", "y"], [[1, 2], [1]])


def test_boxes_stand_in_columns():
    section = Report("a").section("s").flow([[], [Tile("run", "x")], []])
    assert section.blocks[0]["columns"] == [[Tile("run", "x")]]


def test_colours_are_not_given_twice():
    report = Report("a")
    section = report.section("s")
    section.curves([Series("a", [0], [1], color=0), Series("b", [0], [1]), Series("c", [0], [1])])
    colors = [line["color"] for line in section.blocks[0]["spec"]["series"]]
    assert colors == [0, 1, 2]


def test_no_torch_is_imported():
    code = (
        "import sys, hftune.tracking.run_record, hftune.tracking.report;"
        "sys.exit(bool({'torch', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
