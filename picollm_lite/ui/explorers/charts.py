"""A row of small line charts over a text, as a `View`: SVG while a kernel runs, a matplotlib picture else."""

from collections.abc import Mapping, Sequence
from functools import partial
from textwrap import wrap
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from picollm_lite.ui.live import View
from picollm_lite.ui.plots import styled
from picollm_lite.ui.svg import line_chart

SIZE = {"width": 310, "height": 180}  # pixels: two charts fit beside each other in a notebook


class Chart(NamedTuple):
    """What `svg.line_chart` needs; points that are not finite are left out."""

    title: str
    series: Mapping[str, Sequence[float]]
    x: Sequence[float]  # rising
    xlabel: str
    marker: float | None = None
    ticks: Sequence[float] = ()
    limits: tuple[float, float] | None = None
    xlimits: tuple[float, float] | None = None


def chart_view(charts: Sequence[Chart], text: str) -> View:
    """The charts in a row, wrapped where there is no room; `text` is the readout."""
    drawn = "".join(
        line_chart(
            chart.series,
            chart.x,
            title=chart.title,
            xlabel=chart.xlabel,
            marker=chart.marker,
            ticks=list(chart.ticks),
            limits=chart.limits,
            xlimits=chart.xlimits,
            **SIZE,
        )
        for chart in charts
    )
    markup = f"<div style='display:flex;flex-wrap:wrap;gap:8px 14px'>{drawn}</div>"
    return View(markup, text, partial(_figure, charts, text))


def _figure(charts: Sequence[Chart], text: str) -> Figure:
    """The readout stands below the axes: who saves the figure with a tight box has it all."""
    figure = Figure(figsize=(4.2 * len(charts), 2.9), layout="constrained")
    for ax, chart in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        _draw(ax, chart)
    lines = [line for paragraph in text.splitlines() for line in wrap(paragraph, 58 * len(charts)) or [""]]
    figure.text(0.01, -0.03, "\n".join(lines), va="top", fontsize=9, linespacing=1.3, parse_math=False)
    return figure


def _draw(ax: Axes, chart: Chart) -> None:
    for name, color, dash in styled(chart.series):
        ax.plot(chart.x, chart.series[name], color=color, linestyle=dash, label=name)
        if chart.marker is not None:
            ax.plot(chart.marker, np.interp(chart.marker, chart.x, chart.series[name]), "o", color=color)
    if chart.marker is not None:
        ax.axvline(chart.marker, color="0.4", linewidth=0.8)
    ax.plot(chart.ticks, np.zeros(len(chart.ticks)), "|", color="0.3", transform=ax.get_xaxis_transform(), markersize=9)
    ax.set(xlabel=chart.xlabel, xlim=chart.xlimits, ylim=chart.limits)
    ax.set_title(chart.title, fontsize=10, parse_math=False)
    ax.spines[["top", "right"]].set_visible(False)
    if len(chart.series) > 1:
        ax.legend(frameon=False, fontsize=9)
