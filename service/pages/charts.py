"""Charts as SVG: figures in, markup out. Every text that they bear is escaped by the writer of XML.

Colours are `currentColor` or classes of the style sheet, so that a chart is dark where its page is; a value is told by
its place or its length, in writing, and where a pointer rests on it.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from service.pages.words import share

WIDTH = 320
"""Of a chart that grows with its page: a phone's."""

ROW, BAR = 38, 14
"""Of a chart of bars: what each takes, its words included, and how thick it is."""

CELL_WIDTH, CELL_HEIGHT, LETTER = 22, 14, 7
"""Of a heat map: a cell, and about what a letter takes."""

HEIGHT = 96
"""Of a histogram's highest bar."""


@dataclass(frozen=True)
class Bar:
    """A value with its interval, if it has one; `told` is how it is written."""

    label: str
    value: float
    told: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Cell:
    """A share of so many."""

    share: float
    of: int


@dataclass(frozen=True)
class Grid:
    """Cells by row and column, None where there is none."""

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[Cell | None]]

    @property
    def most(self) -> float:
        """The largest share."""
        return max((cell.share for row in self.cells for cell in row if cell), default=0.0)


def bars(title: str, found: Sequence[Bar], most: float) -> Markup:
    """A bar a value, of which `most` would take all of the width; a whisker is its interval."""
    chart = _chart(title, WIDTH, ROW * len(found), "bars")
    for place, bar in enumerate(found):
        top = place * ROW + 17
        _add(chart, "text", bar.label, x=0, y=top - 5)
        _add(chart, "text", bar.told, x=WIDTH, y=top - 5, text_anchor="end", class_="figure")
        _add(chart, "rect", x=0, y=top, width=WIDTH, height=BAR, class_="track")
        _add(chart, "rect", x=0, y=top, width=_scaled(bar.value, most), height=BAR, class_="bar")
        if bar.low is not None and bar.high is not None:
            low, high, middle = _scaled(bar.low, most), _scaled(bar.high, most), top + BAR / 2
            path = f"M{_n(low)} {_n(middle - 4)}v8M{_n(low)} {_n(middle)}H{_n(high)}M{_n(high)} {_n(middle - 4)}v8"
            _add(chart, "path", d=path, class_="whisker")
    return _written(chart)


def heat_map(title: str, grid: Grid) -> Markup:
    """A cell is as dark as its share, the largest wholly so; nothing stands where there is no cell."""
    left = 8 + LETTER * max(map(len, grid.rows), default=0)
    top = 8 + LETTER * max(map(len, grid.columns), default=0)
    width, height = CELL_WIDTH * len(grid.columns), CELL_HEIGHT * len(grid.rows)
    chart = _chart(title, left + width, top + height, "heat", fixed=True)
    for place, name in enumerate(grid.columns):
        x, y = left + place * CELL_WIDTH + 15, top - 6
        _add(chart, "text", name, x=x, y=y, transform=f"rotate(-90 {_n(x)} {_n(y)})")
    for number, (name, cells) in enumerate(zip(grid.rows, grid.cells, strict=True)):
        y = top + number * CELL_HEIGHT
        _add(chart, "text", name, x=left - 6, y=y + 11, text_anchor="end")
        for place, cell in enumerate(cells):
            if cell is not None:
                shade = f"{cell.share / (grid.most or 1):.2f}"
                box = {"x": left + place * CELL_WIDTH, "y": y, "width": CELL_WIDTH - 1, "height": CELL_HEIGHT - 1}
                drawn = _add(chart, "rect", None, fill_opacity=shade, **box)
                _add(drawn, "title", f"{name} {grid.columns[place]}: {share(cell.share)} of {cell.of:,}")
    return _written(chart)


def histogram(title: str, counts: Sequence[int], width: int, unit: str) -> Markup:
    """A bar of `width` units for each count, as high as its count; the ends of the axis are written below it."""
    chart = _chart(title, WIDTH, HEIGHT + 18, "histogram")
    wide = WIDTH / max(len(counts), 1)
    for place, count in enumerate(counts):
        high = HEIGHT * count / max(counts) if count else 0
        told = f"{place * width} to {(place + 1) * width - 1} {unit}: {count:,}"
        bar = _add(chart, "rect", x=place * wide, y=HEIGHT - high, width=max(wide - 1, 0.5), height=high, class_="bar")
        _add(bar, "title", told)
    _add(chart, "path", d=f"M0 {HEIGHT}H{WIDTH}", class_="whisker")
    _add(chart, "text", "0", x=0, y=HEIGHT + 14)
    _add(chart, "text", f"{len(counts) * width - 1} {unit}", x=WIDTH, y=HEIGHT + 14, text_anchor="end")
    return _written(chart)


# --- writing


def _chart(title: str, width: float, height: float, kind: str, fixed: bool = False) -> ET.Element:
    """An image with a name; `fixed` is as large as it is drawn, else it takes the width that it is given."""
    view = f"0 0 {_n(width)} {_n(height)}"
    size = {"width": _n(width), "height": _n(height)} if fixed else {}
    return ET.Element("svg", {"viewBox": view, **size, "class": f"chart {kind}", "role": "img", "aria-label": title})


def _add(parent: ET.Element, name: str, text: str | None = None, /, **attributes: str | float) -> ET.Element:
    """Attributes are named as Python lets them: text_anchor is text-anchor, class_ is class."""
    given = {key.rstrip("_").replace("_", "-"): _n(value) for key, value in attributes.items()}
    element = ET.SubElement(parent, name, given)
    element.text = text
    return element


def _scaled(value: float, most: float) -> float:
    return WIDTH * min(max(value / most, 0.0), 1.0) if most > 0 else 0.0


def _n(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def _written(chart: ET.Element) -> Markup:
    return Markup(ET.tostring(chart, encoding="unicode"))  # noqa: S704 - every text in it was escaped just now
