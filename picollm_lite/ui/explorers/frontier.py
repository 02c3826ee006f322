"""The reward-KL frontier of several methods: point at a mark to read it, slide the KL to read all of them at one."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from picollm_lite.evaluation.frontier import Point, frontier_table
from picollm_lite.evaluation.metrics import Interval
from picollm_lite.evaluation.tables import interval_columns
from picollm_lite.ui.live import Live, View, explore
from picollm_lite.ui.plots import STYLES
from picollm_lite.ui.report_sections import cell
from picollm_lite.ui.scales import Plot, number, round_numbers, span, spread
from picollm_lite.ui.svg import (
    BOTTOM,
    CHARACTER,
    DASHES,
    LEADER,
    LINE,
    TOP,
    axes,
    drawing,
    escaped,
    line_of_text,
    shorten,
)

PATHS = (*STYLES, ("#7F7F7F", "-"))  # the last in gray, which is readable on light and on dark
WIDTH, HEIGHT, LEFT, LONGEST = 370, 250, 36, 14  # pixels; characters of a name
REWARDS = ("gold", "proxy")


class Path(NamedTuple):
    """One method: at each of its points sqrt(KL), the mean rewards, and what the point says of itself."""

    name: str
    color: str
    dash: str
    x: list[float]
    y: dict[str, list[float]]
    said: list[str]


def frontier(runs: Mapping[str, Sequence[Point]]) -> Live:
    """Up to five methods, each with gold and proxy (prompts,) at every point; `Point.name` is what it is called.

    Raises ValueError without a run, beyond five, and as `frontier_table` does.
    """
    if not 1 <= len(runs) <= len(PATHS):
        raise ValueError(f"expected 1 to {len(PATHS)} runs in one picture, got {len(runs)}")
    paths = [_path(name, run, *style) for (name, run), style in zip(runs.items(), PATHS, strict=False)]
    # All methods can be read up to where the one that moved least has gone.
    top = max(1e-3, min(max(point.kl for point in run) for run in runs.values()))
    slider = widgets.FloatSlider(
        value=top,
        min=0.0,
        max=max(point.kl for run in runs.values() for point in run),
        step=top / 40,
        continuous_update=False,
        description="KL to read at, nats an answer",
        style={"description_width": "initial"},
        layout=widgets.Layout(width="440px"),
    )
    return explore(partial(frontier_view, runs, paths), kl=slider)


def frontier_view(runs: Mapping[str, Sequence[Point]], paths: Sequence[Path], kl: float) -> View:
    """Both pictures with a mark at this KL, and what each method has there, with its interval."""
    table = frontier_table(runs, [kl]).loc[kl]
    lines = [f"At a KL of {number(kl)} nats an answer, with 95 % intervals over prompts:"]
    width = max(map(len, runs))
    for name, row in table.iterrows():
        cells = ", ".join(f"{key} {_interval(row, key)}" for key in REWARDS)
        lines.append(f"{name:<{width}}  {'was not there' if np.isnan(row['gold']) else cells}")
    drawn = "".join(_chart(paths, reward, math.sqrt(kl)) for reward in REWARDS)
    markup = f"<div style='display:flex;flex-wrap:wrap;gap:8px 14px'>{drawn}</div>"
    return View(markup, "\n".join(lines), partial(_figure, paths, math.sqrt(kl), "\n".join(lines)))


def _path(name: str, run: Sequence[Point], color: str, dash: str) -> Path:
    rows = [interval_columns("gold", point.gold) | interval_columns("proxy", point.proxy) for point in run]
    said = [
        f"{name}, {point.name or 'a point'}: KL {number(point.kl)}, "
        + ", ".join(f"{key} {_interval(row, key)}" for key in REWARDS)
        for point, row in zip(run, rows, strict=True)
    ]
    x = [math.sqrt(max(0.0, point.kl)) for point in run]  # the estimate of a small KL may lie below 0
    return Path(name, color, dash, x, {key: [row[key] for row in rows] for key in REWARDS}, said)


def _interval(row: Mapping[str, float], key: str) -> str:
    return cell(Interval(row[key], row[f"{key} low"], row[f"{key} high"]), "+.2f")


def _chart(paths: Sequence[Path], reward: str, at: float) -> str:
    """The paths of one reward as SVG: a title on each point is what a browser shows when the mouse is over it."""
    names = [shorten(path.name, LONGEST) for path in paths]
    yrange = span([y for path in paths for y in path.y[reward]], 0.06)
    right = WIDTH - LEADER - 4 - CHARACTER * max(map(len, names))
    xrange = (0.0, max(x for path in paths for x in path.x) or 1.0)
    plot = Plot(LEFT, TOP, right - LEFT, HEIGHT - TOP - BOTTOM, xrange, yrange)
    (mark,) = plot.xs([at])
    parts = [line_of_text(2, 13, reward, size=12, bold=True)]
    parts.append(axes(plot, round_numbers(*yrange), "sqrt(KL)", 2))
    parts.append(f'<path d="M{mark:.1f} {TOP}V{TOP + plot.height:.1f}" stroke="currentColor" stroke-opacity="0.7"/>')
    ends = []
    for path in paths:
        places = list(zip(plot.xs(path.x), plot.ys(path.y[reward]), strict=True))
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        style = f'fill="none" stroke="{path.color}" stroke-width="1.8" stroke-dasharray="{DASHES[path.dash]}"'
        parts.append(f'<path d="M{line}" {style}/>')
        for (x, y), said in zip(places, path.said, strict=True):
            dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{path.color}">'
            parts.append(f"{dot}<title>{escaped(said)}</title></circle>")
        ends.append(places[-1])
    for path, name, (x, y), place in zip(
        paths, names, ends, spread([y for _, y in ends], LINE, TOP, TOP + plot.height), strict=True
    ):
        leader = f"M{x:.1f} {y:.1f}L{right + LEADER - 2:.1f} {place:.1f}"
        parts.append(f'<path d="{leader}" fill="none" stroke="{path.color}" stroke-opacity="0.5"/>')
        parts.append(line_of_text(right + LEADER, place + 4, name))
    said = ", ".join(f"{path.name} from {number(path.y[reward][0])} to {number(path.y[reward][-1])}" for path in paths)
    return drawing("".join(parts), width=WIDTH, height=HEIGHT, label=f"mean {reward} against sqrt(KL): {said}")


def _figure(paths: Sequence[Path], at: float, text: str) -> Figure:
    """The same two pictures by matplotlib, with the readout below them."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    for ax, reward in zip(figure.subplots(1, 2), REWARDS, strict=True):
        for path in paths:
            ax.plot(
                path.x, path.y[reward], color=path.color, linestyle=path.dash, marker="o", markersize=4, label=path.name
            )
        ax.axvline(at, color="0.4", linewidth=0.8)
        ax.set(xlabel="sqrt(KL)")
        ax.set_title(f"mean {reward}", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    legend = ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    for label in legend.get_texts():
        label.set_parse_math(False)  # a name may hold dollar signs
    figure.text(0.01, -0.03, text, va="top", fontsize=8, family="DejaVu Sans Mono", parse_math=False)
    return figure
