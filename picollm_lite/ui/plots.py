"""Arrays to pictures. Figures are made without pyplot, so that no global state is touched."""

import io
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from picollm_lite.evaluation.metrics import Interval

# Okabe and Ito's colors, told apart by the color-blind too; each also has its own line style.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":"))
MARKERS = ("o", "s", "^", "D")


def show(figure: Figure, alt: str) -> Image:
    """The figure as a PNG with alternative text: the last expression of a cell."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return Image(buffer.getvalue(), alt=alt)


def curves(series: Mapping[str, Sequence[float]], *, x: Sequence[float], xlabel: str, ylabel: str) -> Figure:
    """One line a series, labelled at its right end; NaN points are left out. Raises ValueError beyond four series."""
    figure, ax = _axes(xlabel, ylabel, width=6.5)
    x = np.asarray(x, dtype=float)
    ends = []
    for name, color, dash in _styled(series):
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
) -> Figure:
    """One cloud of points a name, and a fitted curve through all of them."""
    figure, ax = _axes(xlabel, ylabel, width=6.5)
    for (name, color, _), marker in zip(_styled(points), MARKERS, strict=False):
        ax.plot(*points[name], color=color, marker=marker, markersize=4, linestyle="", label=name)
    ax.plot(*curve, color="0.2", label="fit")
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def intervals(groups: Mapping[str, Mapping[str, Interval]], *, ylabel: str) -> Figure:
    """One cluster a group, in it one point with its 95 % interval a name, labelled by its value."""
    names = list(next(iter(groups.values())))
    figure, ax = _axes("", ylabel, width=1.8 + max(1.5, 0.6 * len(names)) * len(groups))
    for i, ((name, color, _), marker) in enumerate(zip(_styled(names), MARKERS, strict=False)):
        at = np.arange(len(groups)) + (i - (len(names) - 1) / 2) * 0.8 / len(names)
        rows = [group[name] for group in groups.values()]
        middle = np.array([row.estimate for row in rows])
        spread = [[row.estimate - row.low for row in rows], [row.high - row.estimate for row in rows]]
        ax.errorbar(at, middle, yerr=spread, color=color, fmt=marker, capsize=3, label=name)
        for place, row in zip(at, rows, strict=True):
            text = f"{row.estimate:+.2f}"
            ax.annotate(text, (place, row.high), (0, 4), textcoords="offset points", ha="center", fontsize=8)
    ax.set_xticks(range(len(groups)), groups)
    ax.margins(x=0.12, y=0.15)
    ax.legend(frameon=False, fontsize=9, ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def histogram(series: Mapping[str, Sequence[float]], *, xlabel: str, bins: int = 24) -> Figure:
    """Outlined histograms over shared bins, each as shares of its own series."""
    figure, ax = _axes(xlabel, "share", width=6.5)
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(values) for values in series.values()]), bins=bins)
    for name, color, dash in _styled(series):
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


def _styled(names: Collection[str]) -> list[tuple[str, str, str]]:
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


def _label_ends(ax: Axes, right: float, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right ends of the lines, pushed apart where two lines end close together."""
    low, high = ax.get_ylim()
    gap, last = 0.07 * (high - low), -np.inf
    for y, name, color in sorted(ends):
        last = max(y, last + gap)
        text = ax.annotate(
            name, (right, last), (6, 0), textcoords="offset points", color=color, va="center", fontsize=9
        )
        text.set_annotation_clip(False)  # a name pushed above the axes is shown all the same
