"""Pictures as SVG that takes its colours from the page around it, so that they fit light and dark.

Each bar has a title that a pointer brings up. Nothing here is hostile text but labels, which are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lmcore.data.splits import SPLITS

# Wide ones fit a page inside another one, such as MLflow's, and stay readable.
_WIDTH, _HEIGHT, _WIDE = 340, 190, 700
_LEFT, _TOP, _BOTTOM = 34, 30, 32
_TICKS = 5
_ROW = 26
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float) -> str:
    """``value`` in few characters: 0.25, 1,234, 12k, 3.4M."""
    if abs(value) < 10_000:
        return f"{value:,.0f}" if value == int(value) or abs(value) >= 1_000 else f"{value:.2g}"
    size, unit = next((size, unit) for size, unit in _UNITS if abs(value) >= size)
    return f"{value / size:,.0f}{unit}" if abs(value) >= 100 * size else f"{value / size:.3g}{unit}"


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    limits: Sequence[tuple[float, bool]] = (),
    label: str = "",
    unit: str = "",
) -> str:
    """Bars of documents on a scale of powers of ten; those that a limit drops are another colour.

    Args:
        edges: Of the bars; bars are equally wide whatever lies between them.
        counts: Documents in each.
        limits: Thresholds, and whether what is below them is dropped, or what is above.
        label: Said to those who cannot see it.
        unit: Of the edges; stands below them.
    """
    plot = _Plot(edges, max(counts, default=0), unit=unit)
    bars = []
    for place, many in enumerate(counts):
        if many:
            low, high = edges[place], edges[place + 1]
            dropped = any(high <= limit if below else low > limit for limit, below in limits)
            title = f"{number(low)} to {number(high)}: {many:,}"
            bars.append(plot.bar(place, many, "dropped" if dropped else "kept", title))
    lines = []
    for limit, below in limits:
        place = next((i for i, edge in enumerate(edges) if (edge >= limit if below else edge > limit)), 0)
        lines.append(plot.limit(place, number(limit)))
    return plot.svg([*bars, *lines], label)


def outlines(
    edges: Sequence[float], counts: Mapping[str, Sequence[int]], label: str = "", unit: str = ""
) -> str:
    """One outline for each kind of documents, on one scale; the kinds are classes of the page's style."""
    most = max((max(many, default=0) for many in counts.values()), default=0)
    plot = _Plot(edges, most, width=_WIDE, height=_HEIGHT + 60, unit=unit)
    shapes = []
    for kind, heights in counts.items():
        if any(heights):
            path = f"M{plot.x(0):.1f} {plot.y(0):.1f}"
            for place, many in enumerate(heights):
                path += f"V{plot.y(many):.1f}H{plot.x(place + 1):.1f}"
            title = f"<title>{escape(kind)}: {sum(heights):,}</title>"
            shapes.append(f'<path class="outline {escape(kind)}" d="{path}V{plot.y(0):.1f}">{title}</path>')
    return plot.svg(shapes, label)


def losses(steps: Sequence[Sequence[Any]]) -> list[tuple[str, int, int]]:
    """Of the steps of a funnel (label, documents left) those that lost some, with how many, and the ends."""
    told = []
    before = 0
    for place, (name, left) in enumerate(steps):
        lost = 0 if name in SPLITS else before - left
        if place == 0:
            told.append((name, left, 0))
        elif lost or name in SPLITS:
            told.append((name, left, lost))
        before = left
    return told


def funnel(steps: Sequence[tuple[str, int, int]], label: str = "") -> str:
    """A row for each step: its name, a bar of what is left and of what it lost, and both numbers."""
    width, left, right = _WIDE, 250, 130
    most = max((remaining + lost for _, remaining, lost in steps), default=0) or 1
    rows = []
    for place, (name, remaining, lost) in enumerate(steps):
        y = place * _ROW
        room = width - left - right
        kept, gone = room * remaining / most, room * lost / most
        told = f"{remaining:,}" + (f'<tspan class="lost" dx="6">&minus;{lost:,}</tspan>' if lost else "")
        rows.append(
            f'<text class="name" x="{left - 10}" y="{y + 17}">{escape(name)}</text>'
            f'<rect class="kept" x="{left}" y="{y + 4}" width="{kept:.1f}" height="{_ROW - 8}"/>'
            f'<rect class="dropped" x="{left + kept:.1f}" y="{y + 4}" width="{gone:.1f}" '
            f'height="{_ROW - 8}"/>'
            f'<text x="{left + kept + gone + 8:.1f}" y="{y + 17}">{told}</text>'
        )
    return _svg(width, _ROW * len(steps), rows, label, "funnel")


class _Plot:
    """Axes: bars of equal width, heights by powers of ten."""

    def __init__(
        self,
        edges: Sequence[float],
        most: int,
        width: float = _WIDTH,
        height: float = _HEIGHT,
        unit: str = "",
    ) -> None:
        self._edges, self._unit = edges, unit
        self._width, self._height = width, height
        self._top = max(math.log10(1 + most), 1.0)

    def x(self, place: int) -> float:
        return _LEFT + (self._width - _LEFT - 8) * place / (len(self._edges) - 1)

    def y(self, many: float) -> float:
        room = self._height - _TOP - _BOTTOM
        return self._height - _BOTTOM - room * math.log10(1 + many) / self._top

    def bar(self, place: int, many: int, kind: str, title: str) -> str:
        x, y = self.x(place), self.y(many)
        return (
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{self.x(place + 1) - x - 0.6:.1f}" '
            f'height="{self.y(0) - y:.1f}"><title>{escape(title)}</title></rect>'
        )

    def limit(self, place: int, text: str) -> str:
        x = self.x(place)
        side = "end" if x > self._width * 0.8 else "start"
        return (
            f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 10}" y2="{self.y(0):.1f}"/>'
            f'<text class="limit {side}" x="{x + (-4 if side == "end" else 4):.1f}" y="{_TOP - 4}">'
            f"{escape(text)}</text>"
        )

    def svg(self, shapes: list[str], label: str) -> str:
        lines = []
        for power in range(int(self._top) + 1):
            y = self.y(10**power)
            lines.append(self._line("grid", y))
            lines.append(f'<text class="end" x="{_LEFT - 4}" y="{y + 3:.1f}">{number(10**power)}</text>')
        base = self.y(0)
        last = len(self._edges) - 1
        places = sorted({round(last * i / (_TICKS - 1)) for i in range(_TICKS)})
        ticks = [
            f'<text class="{"end" if place == last else "middle" if place else ""}" '
            f'x="{self.x(place):.1f}" y="{base + 14:.1f}">{number(self._edges[place])}</text>'
            for place in places
        ]
        titles = [
            '<text class="axis-title" x="0" y="10">documents (log scale)</text>',
            (
                f'<text class="axis-title end" x="{self._width - 8:.0f}" y="{base + 27:.1f}">'
                f"{escape(self._unit)}</text>"
            ),
        ]
        kind = "plot wide" if self._width > _WIDTH else "plot"
        return _svg(
            self._width,
            self._height,
            [*lines, *shapes, self._line("axis", base), *ticks, *titles],
            label,
            kind,
        )

    def _line(self, kind: str, y: float) -> str:
        return f'<line class="{kind}" x1="{_LEFT}" x2="{self._width - 8}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _svg(width: float, height: float, parts: Sequence[str], label: str, kind: str) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )
