"""Where things stand on a chart, and how numbers are written. Plain floats, no markup."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

TINY = 1e-290  # below it, a range cannot be divided
FAR = 20.0  # plots; points further out are drawn there, where nobody sees them


class Plot(NamedTuple):
    """Where a plot stands in its picture, in pixels, and what it shows."""

    left: float
    top: float
    width: float
    height: float
    xrange: tuple[float, float]
    yrange: tuple[float, float]

    def xs(self, values: Sequence[float]) -> list[float]:
        return [self.left + share for share in _scaled(values, *self.xrange, self.width)]

    def ys(self, values: Sequence[float]) -> list[float]:
        return [self.top + self.height - share for share in _scaled(values, *self.yrange, self.height)]


def _scaled(values: Sequence[float], low: float, high: float, size: float) -> list[float]:
    """Pixels from where `low` stands."""
    if values and (min(values) < low or max(values) > high):
        values = [min(high + FAR * (high - low), max(low - FAR * (high - low), value)) for value in values]
    scale = size / (high - low)
    return [(value - low) * scale for value in values]


def number(value: float, digits: int = 2) -> str:
    """`1.23`; very large numbers as `1.23e+06`, those too small for the digits as `1e-04`, NaN as `n/a`."""
    if math.isnan(value):
        return "n/a"
    if 0 < abs(value) < 0.5 * 10**-digits:
        return f"{value:.0e}"
    if abs(value) >= 1e5:
        return f"{value:.{digits}e}"
    return f"{value:.{digits}f}"


def span(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    """From the smallest to the largest, with a share `margin` of that at both ends. Never empty.

    A constant stands in the middle of its range, at the left end where there is no margin.
    """
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, TINY):
        half = 0.1 * size if size > TINY else 0.5
        return (low - half, high + half) if margin else (low, high + max(1.0, 2 * half))
    return low - margin * (high - low), high + margin * (high - low)


def round_numbers(low: float, high: float) -> list[tuple[float, str]]:
    """Two to six round numbers from `low` to `high`, and how to write them."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= 0.999 * raw)
    marks = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    largest, power = max(abs(low), abs(high)), math.floor(math.log10(step) + 1e-9)
    if largest < 1e6 and step >= 1e-4:
        return [(mark, f"{mark:.{max(0, -power)}f}") for mark in marks]
    return [(mark, f"{mark:.{max(0, math.floor(math.log10(largest)) - power)}e}") for mark in marks]


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places moved until they are at least `gap` apart, inside [low, high] if they all fit there."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved, last = list(places), low - gap
    for i in order:
        moved[i] = last = max(places[i], last + gap)
    last = high + gap
    for i in reversed(order):
        moved[i] = last = min(moved[i], last - gap)
    return moved


def thinned(y: Sequence[float], count: int) -> Sequence[int]:
    """The places of about `count` values: the first, the last, and both extremes of every stretch between."""
    if len(y) <= count:
        return range(len(y))
    size, keep = math.ceil(2 * len(y) / count), {0, len(y) - 1}
    for start in range(0, len(y), size):
        stretch = range(start, min(start + size, len(y)))
        keep |= {min(stretch, key=y.__getitem__), max(stretch, key=y.__getitem__)}
    return sorted(keep)


def between(x: Sequence[float], y: Sequence[float], at: float) -> float | None:
    """y at a place between the points, on straight lines; None beyond their ends. `x` rises."""
    if not x:
        return None
    slack = 1e-9 * max(abs(x[0]), abs(x[-1]))  # a slider's 0.3 may be 0.30000000000000004
    if not x[0] - slack <= at <= x[-1] + slack:
        return None
    after = min(bisect_left(x, at), len(x) - 1)
    before = max(0, after - 1)
    share = min(1.0, max(0.0, (at - x[before]) / (x[after] - x[before]))) if x[after] > x[before] else 1.0
    return y[before] * (1 - share) + y[after] * share
