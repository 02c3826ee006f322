"""Arrays to pictures. Figures are made without pyplot, so that no global state is touched."""

import io
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from textwrap import wrap

import numpy as np
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from PIL import Image as Pixels

from picollm_lite.evaluation.metrics import Interval
from picollm_lite.ui.scales import number, spread

# Okabe and Ito's colors, told apart by the color-blind too; each also has its own line style.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":"))
MARKERS = ("o", "s", "^", "D")


def show(figure: Figure, alt: str) -> Image:
    """The figure as a PNG with alternative text: the last expression of a cell."""
    return Image(png(figure), metadata={"alt": alt})  # the keyword alt came after the IPython that Colab has


def png(figure: Figure) -> bytes:
    """The figure as a PNG of 64 colors: enough for lines and text, and a third of the size in the notebook."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    pixels = Pixels.open(full).convert("RGB").quantize(64, Pixels.Quantize.FASTOCTREE)  # also keeps rare colors
    pixels.save(small, format="png", optimize=True)
    return small.getvalue()


def curves(series: Mapping[str, Sequence[float]], *, x: Sequence[float], xlabel: str, ylabel: str) -> Figure:
    """One line a series, labeled at its right end; NaN points are left out. Raises ValueError beyond four series."""
    figure, ax = _axes(xlabel, ylabel, width=6.5)
    x = np.asarray(x, dtype=float)
    ends = []
    for name, color, dash in styled(series):
        y = np.asarray(series[name], dtype=float)
        there = np.isfinite(y)
        ax.plot(x[there], y[there], color=color, linestyle=dash, marker="o" if there.sum() < 30 else "", markersize=4)
        if there.any():
            ends.append((y[there][-1], name, color))
    _label_ends(ax, x.max(), ends)
    return figure


def scatter_with_curve(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    curve: tuple[Sequence[float], Sequence[float]],
    xlabel: str,
    ylabel: str,
    label: str = "fit",
) -> Figure:
    """One cloud of points a name, and a curve among them, such as a fit."""
    figure, ax = _axes(xlabel, ylabel, width=6.5)
    for (name, color, _), marker in zip(styled(points), MARKERS, strict=False):
        ax.plot(*points[name], color=color, marker=marker, markersize=4, linestyle="", label=name)
    ax.plot(*curve, color="0.2", label=label)
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def intervals(
    groups: Mapping[str, Mapping[str, Interval]], *, ylabel: str, xlabel: str = "", number: str = "+.2f"
) -> Figure:
    """A cluster a group: one point with its 95 % interval a name, labeled by its value in the format `number`."""
    names = list(next(iter(groups.values())))
    figure, ax = _axes(xlabel, ylabel, width=1.8 + max(1.5, 0.6 * len(names)) * len(groups))
    for i, ((name, color, _), marker) in enumerate(zip(styled(names), MARKERS, strict=False)):
        at = np.arange(len(groups)) + (i - (len(names) - 1) / 2) * 0.8 / len(names)
        rows = [group[name] for group in groups.values()]
        middle = np.array([row.estimate for row in rows])
        spread = [[row.estimate - row.low for row in rows], [row.high - row.estimate for row in rows]]
        ax.errorbar(at, middle, yerr=spread, color=color, fmt=marker, capsize=3, label=name)
        for place, row in zip(at, rows, strict=True):
            ax.annotate(
                f"{row.estimate:{number}}",
                (place, row.high),
                (0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    ax.set_xticks(range(len(groups)), groups)
    ax.margins(x=0.12, y=0.15)
    ax.legend(frameon=False, fontsize=9, ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def histogram(series: Mapping[str, Sequence[float]], *, xlabel: str, bins: int = 24) -> Figure:
    """Outlined histograms over shared bins, each as shares of its own series."""
    figure, ax = _axes(xlabel, "share", width=6.5)
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(values) for values in series.values()]), bins=bins)
    for name, color, dash in styled(series):
        ax.hist(
            series[name],
            bins=edges,
            weights=np.full(len(series[name]), 1 / len(series[name])),
            histtype="stepfilled",
            facecolor=color + "33",
            edgecolor=color,
            linestyle=dash,
            label=name,
        )
    ax.legend(frameon=False, fontsize=9)
    return figure


def small_multiples(
    charts: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    x: Sequence[float],
    xlabel: str,
    xlimits: tuple[float, float],
    notes: Sequence[str] = (),
) -> Figure:
    """A small chart of named lines for each title, over one x axis, with the newest values; below them texts, wrapped.

    Raises ValueError beyond four series in a chart.
    """
    columns = 2 if len(charts) in (0, 2, 4) else min(3, len(charts))
    rows = -(-len(charts) // columns)
    width = 3.6 * columns
    lines = [line for note in notes for line in wrap(drawable(note), int(15 * width), subsequent_indent="    ")]
    below = 0.16 * len(lines)  # inches
    height = 2.0 * rows + below
    figure = Figure(figsize=(width, height))
    for i, (title, series) in enumerate(charts.items()):
        row, column = divmod(i, columns)
        corner = ((3.6 * column + 0.5) / width, 1 - (2.0 * row + 1.6) / height)
        ax = figure.add_axes((*corner, 1.85 / width, 1.35 / height))
        _small_chart(ax, title, series, x, xlimits)
        ax.set_xlabel(xlabel if row == rows - 1 else "", fontsize=8)
    if lines:
        figure.text(0.1 / width, below / height, "\n".join(lines), fontsize=8, va="top", parse_math=False)
    return figure


def drawable(text: str) -> str:
    """What the figures' font lacks becomes a question mark in a diamond, so that drawing it raises no warning."""
    known = characters_of("DejaVu Sans")
    return "".join(" " if c.isspace() else c if ord(c) in known else "\ufffd" for c in text)


@cache
def characters_of(font: str) -> frozenset[int]:
    """Code points that a font can draw."""
    return frozenset(get_font(findfont(font)).get_charmap())


def styled(names: Collection[str]) -> list[tuple[str, str, str]]:
    if len(names) > len(STYLES):
        raise ValueError(f"{len(names)} series in one picture: only {len(STYLES)} can be told apart, draw two pictures")
    return [(name, *style) for name, style in zip(names, STYLES, strict=False)]


def _axes(xlabel: str, ylabel: str, *, width: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 3.2))
    ax = figure.add_subplot()
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    return figure, ax


def _small_chart(
    ax: Axes, title: str, series: Mapping[str, Sequence[float]], x: Sequence[float], xlimits: tuple[float, float]
) -> None:
    x, ends = np.asarray(x, dtype=float), []
    for name, color, dash in styled(series):
        y = np.asarray(series[name], dtype=float)
        there = np.abs(y) < 1e300
        ax.plot(x[there], y[there], color=color, linestyle=dash, marker="o" if there.sum() < 30 else "", markersize=3)
        if there.any():
            ax.plot([x[there][-1], xlimits[1]], [y[there][-1]] * 2, color=color, alpha=0.4, linewidth=0.8)
            ends.append((y[there][-1], drawable(f"{name} {number(y[there][-1])}"), color))
    ax.set_title(drawable(title), fontsize=9, loc="left", parse_math=False)
    ax.set_xlim(*xlimits)
    ax.xaxis.get_major_locator().set_params(integer=True)  # steps
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.9")
    _label_ends(ax, xlimits[1], ends, gap=0.11, size=8)


def _label_ends(
    ax: Axes, right: float, ends: list[tuple[float, str, str]], *, gap: float = 0.07, size: int = 9
) -> None:
    """Names at the right ends of the lines, pushed a share `gap` of the axis apart where lines end close together."""
    low, high = ax.get_ylim()
    places = spread([y for y, _, _ in ends], gap * (high - low), low, high)
    for (_, name, color), place in zip(ends, places, strict=True):
        text = ax.annotate(
            name, (right, place), (6, 0), textcoords="offset points", color=color, va="center", fontsize=size
        )
        text.set_annotation_clip(False)  # a name pushed above the axes is shown all the same
