"""Numbers and texts to inline SVG: pure functions, fast enough to redraw while a training step runs.

Whatever text comes in is escaped here. Text is drawn in `currentColor`, so that dark themes stay readable.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from picollm_lite.ui.plots import BLUE, ORANGE, styled
from picollm_lite.ui.scales import Plot, between, number, round_numbers, span, spread, thinned

DASHES = {"-": "", "--": "6 3", "-.": "6 2 1.5 2", ":": "1.5 2.5"}  # matplotlib's names, in pixels
FONT, SMALL, CHARACTER = 11, 10, 6.2  # pixels: labels, axis numbers, the width of a character
LINE = 13  # pixels from label to label
TOP, BOTTOM, LEADER = 24, 20, 14  # pixels: the title above the plot, the x axis below it, from a line to its label
FEW = 24  # a line through so few points shows each of them
LARGEST = 1e300  # beyond it, differences overflow


def escaped(text: object) -> str:
    """Safe as text and as an attribute's value."""
    return escape(str(text), quote=True)


def shorten(text: str, length: int) -> str:
    """On one line, of at most `length` characters: where something is cut, the last is an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: max(0, length - 1)].rstrip() + "…"


def shade(value: float, low: float, high: float, middle: float = 0.0) -> str:
    """A background from orange (`low`) through nothing (`middle`, NaN) to blue (`high`), readable in every theme."""
    if math.isnan(value):
        return "transparent"
    strength = (value - middle) / (high - middle) if value > middle else (middle - value) / (middle - low)
    red, green, blue = bytes.fromhex((BLUE if value > middle else ORANGE)[1:])
    return f"rgba({red},{green},{blue},{0.45 * min(1.0, strength):.2f})"


def line_of_text(
    x: float, y: float, content: str, *, anchor: str = "start", size: int = FONT, bold: bool = False
) -> str:
    """An SVG text; y is its baseline, `anchor` one of start, middle, end."""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{weight} fill="currentColor">'
        f"{escaped(content)}</text>"
    )


def drawing(content: str, *, width: int, height: int, label: str) -> str:
    """The `<svg>` around markup that is safe already; `label` is what a screen reader says."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escaped(label)}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}" style="max-width:100%;font-family:sans-serif">'
        f"{content}</svg>"
    )


class Line(NamedTuple):
    """A series without the points that are not finite, and how it is drawn."""

    x: list[float]
    y: list[float]
    color: str
    dash: str
    value: float | None  # the newest, or that at the marker


def line_chart(
    series: Mapping[str, Sequence[float]],
    x: Sequence[float],
    *,
    title: str,
    xlabel: str = "",
    width: int = 300,
    height: int = 170,
    marker: float | None = None,
    ticks: Sequence[float] = (),
    digits: int = 2,
    limits: tuple[float, float] | None = None,
    xlimits: tuple[float, float] | None = None,
) -> str:
    """Up to four lines, at their right ends their newest values, or those at `marker`, a place on the x axis.

    Points that are not finite are left out; `x` rises. `ticks` are marks on the x axis, at its ends if beyond them.
    Raises ValueError for a fifth series, one whose length is not that of `x`, a marker that is not finite, limits that
    do not rise.
    """
    _check(marker, limits, xlimits)
    lines = {n: _line(n, x, series[n], color, DASHES[dash], marker) for n, color, dash in styled(series)}
    shown = {name: line for name, line in lines.items() if line.x}
    labels = [_label(name, line.value, digits, 0.45 * width) for name, line in shown.items()]
    yrange = limits or span([y for line in shown.values() for y in line.y], 0.06)
    marks = round_numbers(*yrange)
    left = 7 + CHARACTER * SMALL / FONT * max((len(mark) for _, mark in marks), default=0)
    right = width - LEADER - 4 - CHARACTER * max(map(len, labels), default=0)
    xrange = xlimits or span([x for line in shown.values() for x in line.x])
    plot = Plot(left, TOP, right - left, height - TOP - BOTTOM, xrange, yrange)
    parts = [line_of_text(2, 13, shorten(title, int(width / 7)), size=12, bold=True)]
    parts += [axes(plot, marks, xlabel, digits), _inside(plot, list(shown.values()), ticks, marker)]
    parts.append(_ends(plot, list(shown.values()), labels))
    if not shown:
        parts.append(line_of_text(left + plot.width / 2, TOP + plot.height / 2, "no values yet", anchor="middle"))
    said = [f"{n} {'no value' if line.value is None else number(line.value, digits)}" for n, line in lines.items()]
    at = "" if marker is None else f", at {xlabel or 'x'} {_place(marker, digits)}"
    return drawing("".join(parts), width=width, height=height, label=f"{title}: {', '.join(said)}{at}")


def _check(marker: float | None, *limits: tuple[float, float] | None) -> None:
    if marker is not None and not math.isfinite(marker):
        raise ValueError(f"line_chart: the marker must be a finite number, got {marker}")
    for pair in limits:
        if pair and not -LARGEST < pair[0] < pair[1] < LARGEST:
            raise ValueError(f"line_chart: limits must rise from a finite number to another, got {pair}")


def _line(name: str, x: Sequence[float], y: Sequence[float], color: str, dash: str, marker: float | None) -> Line:
    if len(x) != len(y):
        raise ValueError(f"line_chart: {name!r} has {len(y)} values for {len(x)} places on the x axis")
    there = [(float(a), float(b)) for a, b in zip(x, y, strict=True) if abs(a) < LARGEST and abs(b) < LARGEST]
    xs, ys = [a for a, _ in there], [b for _, b in there]
    value = between(xs, ys, marker) if marker is not None else ys[-1] if ys else None
    return Line(xs, ys, color, dash, value)


def _label(name: str, value: float | None, digits: int, width: float) -> str:
    """Name and value in about `width` pixels: the name is cut, never the value."""
    said = "" if value is None else f" {number(value, digits)}"
    return shorten(name, max(2, int(width / CHARACTER) - len(said))) + said


def _place(value: float, digits: int) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e5 else number(value, digits)


def axes(plot: Plot, marks: list[tuple[float, str]], xlabel: str, digits: int) -> str:
    """Grid lines with their numbers at `marks`, and the x axis with its ends and its name."""
    bottom, right = TOP + plot.height, plot.left + plot.width
    first, last = (_place(value, digits) for value in plot.xrange)
    room = int(plot.width / CHARACTER) - len(first) - len(last) - 2
    heights = plot.ys([mark for mark, _ in marks])
    grid = "".join(f"M{plot.left:.1f} {y:.1f}H{right:.1f}" for y in heights)
    parts = [
        f'<path d="{grid}" stroke="currentColor" stroke-opacity="0.15"/>',
        f'<path d="M{plot.left:.1f} {bottom:.1f}H{right:.1f}" stroke="currentColor" stroke-opacity="0.5"/>',
        line_of_text(plot.left, bottom + 14, first, size=SMALL),
        line_of_text((plot.left + right) / 2, bottom + 14, shorten(xlabel, room), anchor="middle", size=SMALL),
        line_of_text(right, bottom + 14, last, anchor="end", size=SMALL),
    ]
    for y, (_, said) in zip(heights, marks, strict=True):
        parts.append(line_of_text(plot.left - 4, y + 3.5, said, anchor="end", size=SMALL))
    return "".join(parts)


def _inside(plot: Plot, lines: list[Line], ticks: Sequence[float], marker: float | None) -> str:
    """Lines, points, ticks and marker, cut off at the edges of the plot."""
    low, high = plot.xrange
    bottom = TOP + plot.height
    parts = []
    if ticks:
        places = plot.xs([min(high, max(low, tick)) for tick in ticks])
        marks = "".join(f"M{place:.1f} {bottom:.1f}v-7" for place in places)
        parts.append(f'<path d="{marks}" stroke="currentColor" stroke-opacity="0.6"/>')
    if marker is not None:
        (at,) = plot.xs([marker])
        parts.append(f'<path d="M{at:.1f} {TOP}V{bottom:.1f}" stroke="currentColor" stroke-opacity="0.7"/>')
    for line in lines:
        keep = thinned(line.y, int(plot.width))
        xs, ys = plot.xs([line.x[i] for i in keep]), plot.ys([line.y[i] for i in keep])
        points = [f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True)]
        style = f'fill="none" stroke="{line.color}" stroke-linecap="round" stroke-linejoin="round"'
        parts.append(f'<path d="M{"L".join(points)}" {style} stroke-width="1.8" stroke-dasharray="{line.dash}"/>')
        if len(points) <= FEW:
            parts.append(f'<path d="{"".join(f"M{point}h0" for point in points)}" {style} stroke-width="5"/>')
        if marker is not None and line.value is not None:
            (height,) = plot.ys([line.value])
            parts.append(f'<circle cx="{at:.1f}" cy="{height:.1f}" r="4" fill="{line.color}" stroke="currentColor"/>')
    box = f"{plot.left - 4:.1f} {TOP - 4} {plot.width + 8:.1f} {plot.height + 8}"
    x, y, width, height = box.split()
    return f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{box}">{"".join(parts)}</svg>'


def _ends(plot: Plot, lines: list[Line], labels: list[str]) -> str:
    """The labels right of the plot, each with a leader in its line's color from where the line ends."""
    right, bottom = plot.left + plot.width, TOP + plot.height
    ends = [min(bottom, max(TOP, end)) for end in plot.ys([line.y[-1] for line in lines])]
    tips = [min(right, max(plot.left, tip)) for tip in plot.xs([line.x[-1] for line in lines])]
    parts = []
    places = spread(ends, LINE, TOP, bottom)
    for line, label, tip, end, place in zip(lines, labels, tips, ends, places, strict=True):
        style = f'stroke="{line.color}" fill="none"'
        if tip < right - 1:
            parts.append(f'<path d="M{tip:.1f} {end:.1f}H{right:.1f}" {style} stroke-opacity="0.4"/>')
        parts.append(f'<path d="M{right:.1f} {end:.1f}L{right + LEADER - 2:.1f} {place:.1f}" {style}/>')
        parts.append(line_of_text(right + LEADER, place + 4, label))
    return "".join(parts)
