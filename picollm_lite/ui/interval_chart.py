"""Points with their intervals in both directions, as inline SVG: the reward-KL frontier of a report."""

from collections.abc import Mapping

from picollm_lite.evaluation.metrics import Interval
from picollm_lite.ui.plots import BLUE
from picollm_lite.ui.scales import Plot, number, round_numbers, span, spread
from picollm_lite.ui.svg import (
    BOTTOM,
    CHARACTER,
    FONT,
    LEADER,
    LINE,
    SMALL,
    TOP,
    axes,
    drawing,
    line_of_text,
    shorten,
)

LONGEST = 20  # characters of a name


def interval_chart(
    points: Mapping[str, tuple[Interval, Interval]], *, title: str, xlabel: str, width: int = 440, height: int = 240
) -> str:
    """A point a name, (x, y) each with its interval, and the name at the right, led to by a thin line.

    One color serves all, since names tell them apart. Raises ValueError without a point.
    """
    if not points:
        raise ValueError(f"interval_chart: {title!r} has no point to draw")
    names = [shorten(name, LONGEST) for name in points]
    xrange, yrange = (span([value for point in points.values() for value in point[axis]], 0.06) for axis in (0, 1))
    marks = round_numbers(*yrange)
    left = 7 + CHARACTER * SMALL / FONT * max(len(mark) for _, mark in marks)
    right = width - LEADER - 4 - CHARACTER * max(map(len, names))
    plot = Plot(left, TOP, right - left, height - TOP - BOTTOM, xrange, yrange)
    xs = [plot.xs(list(x)) for x, _ in points.values()]  # estimate, low, high
    ys = [plot.ys(list(y)) for _, y in points.values()]
    places = spread([y[0] for y in ys], LINE, TOP, TOP + plot.height)
    parts = [line_of_text(2, 13, title, size=12, bold=True), axes(plot, marks, xlabel, 2)]
    for name, x, y, place in zip(names, xs, ys, places, strict=True):
        leader = f"M{x[0]:.1f} {y[0]:.1f}L{right:.1f} {place:.1f}h{LEADER - 2}"
        bars = f"M{x[1]:.1f} {y[0]:.1f}H{x[2]:.1f}M{x[0]:.1f} {y[1]:.1f}V{y[2]:.1f}"
        parts += [
            f'<path d="{leader}" fill="none" stroke="currentColor" stroke-opacity="0.3"/>',
            f'<path d="{bars}" fill="none" stroke="{BLUE}" stroke-width="1.8"/>',
            f'<circle cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="4" fill="{BLUE}" stroke="currentColor"/>',
            line_of_text(right + LEADER, place + 4, name),
        ]
    said = [f"{name} {number(y.estimate)} at {number(x.estimate)}" for name, (x, y) in points.items()]
    return drawing("".join(parts), width=width, height=height, label=f"{title}, by {xlabel}: {'; '.join(said)}")
