"""Charts worked by hand: where a bar ends, how dark a cell is; and that no text is more than text."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from service.pages.charts import Bar, Cell, Grid, bars, heat_map, histogram


def drawn(chart: Markup, name: str) -> list[ET.Element]:
    return ET.fromstring(chart).findall(f".//{name}")  # noqa: S314 - it is ours


def boxes(chart: Markup, kind: str | None = None) -> list[tuple[float, ...]]:
    """(x, y, width, height) of rectangles."""
    found = [rect for rect in drawn(chart, "rect") if rect.get("class") == kind]
    return [tuple(float(rect.attrib[side]) for side in ("x", "y", "width", "height")) for rect in found]


def test_a_bar_is_as_long_as_its_value_and_its_whisker_spans_the_interval() -> None:
    chart = bars("Accuracy", [Bar("Base", 0.25, "25 %"), Bar("Aligned", 0.5, "50 %", 0.4, 0.625)], 1.0)
    # of 320: a quarter is 80, a half 160; the interval 0.4 … 0.625 is 128 … 200; rows are 38 high, a bar begins 17 down
    assert boxes(chart, "bar") == [(0, 17, 80, 14), (0, 55, 160, 14)]
    (whisker,) = drawn(chart, "path")
    assert whisker.get("d") == "M128 58v8M128 62H200M200 58v8"
    assert [text.text for text in drawn(chart, "text")] == ["Base", "25 %", "Aligned", "50 %"]


def test_a_bar_ends_where_the_chart_does() -> None:
    assert boxes(bars("", [Bar("", 3.0, ""), Bar("", -1.0, "")], 2.0), "bar") == [(0, 17, 320, 14), (0, 55, 0, 14)]
    assert boxes(bars("", [Bar("", 0.0, "")], 0.0), "bar") == [(0, 17, 0, 14)]


def test_a_cell_is_as_dark_as_its_share_of_the_largest_and_an_absent_one_is_not_drawn() -> None:
    cells = [[Cell(0.02, 1000), None], [Cell(0.01, 50), Cell(0.0, 7)]]
    chart = heat_map("Mask", Grid(["0", "1"], ["up", "q"], cells))
    # labels: 8 + 7·1 to the left, 8 + 7·2 above
    assert boxes(chart) == [(15, 22, 21, 13), (15, 36, 21, 13), (37, 36, 21, 13)]
    assert [rect.get("fill-opacity") for rect in drawn(chart, "rect")] == ["1.00", "0.50", "0.00"]
    assert [title.text for title in drawn(chart, "title")] == [
        "0 up: 2.0\u202f% of 1,000",
        "1 up: 1.0\u202f% of 50",
        "1 q: 0.0\u202f% of 7",
    ]


def test_a_mask_of_nothing_is_drawn_too() -> None:
    chart = heat_map("Mask", Grid(["0"], ["up"], [[Cell(0.0, 7)]]))
    assert [rect.get("fill-opacity") for rect in drawn(chart, "rect")] == ["0.00"]
    assert heat_map("Mask", Grid([], [], []))


def test_the_highest_bar_of_a_histogram_is_as_high_as_it() -> None:
    chart = histogram("Lengths", [1, 4, 0, 2], 8, "tokens")
    # four bars of 80, the last pixel of each left free; 96 high
    assert boxes(chart, "bar") == [(0, 72, 79, 24), (80, 0, 79, 96), (160, 96, 79, 0), (240, 48, 79, 48)]
    titles = [title.text for title in drawn(chart, "title")]
    assert titles[:2] == ["0 to 7 tokens: 1", "8 to 15 tokens: 4"]
    assert [text.text for text in drawn(chart, "text")] == ["0", "31 tokens"]


class _Reader(HTMLParser):
    """What a browser makes of it: elements, the texts between them, and their labels."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.texts = set[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.texts += [value or "" for name, value in attrs if name == "aria-label"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@given(st.text(min_size=1) | st.sampled_from(["</svg><script>x</script>", "\"' onload=x", "<![CDATA[x]]>", "&lt;b>"]))
def test_whatever_a_text_holds_it_stays_a_text(text: str) -> None:
    grid = Grid([text], [text], [[Cell(0.5, 2)]])
    for chart in (bars(text, [Bar(text, 1.0, text)], 1.0), heat_map(text, grid), histogram(text, [1], 1, text)):
        read = _Reader()
        read.feed(chart)
        read.close()
        assert read.names <= {"svg", "text", "rect", "path", "title"}
        shown = "".join(read.texts).replace("\r", "")
        assert text.replace("\r", "") in shown
