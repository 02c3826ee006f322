"""What the training panel shows of a run, drawn from plain data: charts, newest answers, one line of text."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from picollm_lite.stages.sampling import Sample
from picollm_lite.ui.live import View
from picollm_lite.ui.plots import small_multiples
from picollm_lite.ui.scales import number
from picollm_lite.ui.svg import escaped, line_chart, shade, shorten

WIDTH = 300  # pixels of a chart
PROMPT, ANSWER = 90, 240  # characters shown of each; the rest is a hover or a Tab away
COLUMNS = 100  # characters of the text copy's lines


class Run(NamedTuple):
    """A run so far. `numbers` has one value a step for each field; NaN where there was none."""

    title: str
    charts: Mapping[str, Sequence[str]]  # title -> fields
    step: int  # 0 before the first one
    steps: int
    numbers: Mapping[str, Sequence[float]]
    at: Sequence[int]  # the steps that the numbers belong to
    samples: Sequence[Sample]  # the newest there were
    samples_step: int
    seconds: float
    ended: bool
    gold_range: tuple[float, float]


def panel_view(run: Run) -> View:
    """The run for a live page; `View.text` is the readout alone, `text_copy` has the answers too."""
    return View(_markup(run), readout(run), lambda: _figure(run))


def readout(run: Run) -> str:
    """One line: where the run is, the newest numbers, the time."""
    if run.step == 0:
        return f"{run.title}: stopped before the first step" if run.ended else f"{run.title}: starting"
    fields = dict.fromkeys(field for names in run.charts.values() for field in names)
    newest = "".join(f", {_name(field)} {number(_newest(run.numbers[field]))}" for field in fields)
    if run.ended:
        where = (
            f"step {run.step}/{run.steps}" if run.step == run.steps else f"stopped after step {run.step} of {run.steps}"
        )
        return f"{run.title}: {where}{newest}; took {_duration(run.seconds)}"
    left = run.seconds / run.step * (run.steps - run.step)
    time = f"{_duration(run.seconds)}, about {_duration(left)} left"
    return f"{run.title}: step {run.step}/{run.steps}{newest}; {time}"


def text_copy(run: Run) -> str:
    """The readout and the newest answers in full, for a page without a kernel."""
    first, *notes = _notes(run)
    return "\n".join([first, *(textwrap.fill(note, COLUMNS, subsequent_indent="    ") for note in notes)])


def _markup(run: Run) -> str:
    charts = "".join(
        line_chart(
            {_name(field): run.numbers[field] for field in fields},
            run.at,
            title=title,
            xlabel="step",
            width=WIDTH,
            xlimits=(1, max(2, run.steps)),
        )
        for title, fields in run.charts.items()
    )
    width = (WIDTH + 8) * (2 if len(run.charts) in (2, 4) else 3)
    strip = f'<div style="flex:1 1 {WIDTH}px;max-width:{width}px">{_strip(run)}</div>' if run.samples else ""
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:4px 16px;line-height:1.35">'
        f'<div style="display:flex;flex-wrap:wrap;gap:8px;max-width:{width}px">{charts}</div>{strip}</div>'
    )


def _strip(run: Run) -> str:
    heading = f"newest answers, step {run.samples_step} (gold: orange is low, blue is high)"
    parts = [f'<div style="font:bold 12px sans-serif">{heading}</div>']
    for sample in run.samples:
        prompt, answer = shorten(sample.prompt, PROMPT), shorten(sample.response, ANSWER) or "(nothing)"
        more = ""
        if prompt.endswith("…") or answer.endswith("…"):
            full = escaped(f"{sample.prompt}\n{sample.response}")
            more = f' tabindex="0" role="group" title="{full}" aria-label="{full}"'
        color = shade(sample.gold, *run.gold_range)
        parts.append(
            f'<div{more} style="margin:4px 0;padding:3px 8px;border-left:3px solid gray;background:{color};'
            f'overflow-wrap:anywhere"><div style="font-size:11px;opacity:0.8">{escaped(prompt)}</div>'
            f'<div style="font-size:13px">{escaped(answer)}</div>'
            f'<div style="font-size:11px">{_scores(sample)}</div></div>'
        )
    return "".join(parts)


def _figure(run: Run) -> Figure:
    charts = {title: {_name(field): run.numbers[field] for field in fields} for title, fields in run.charts.items()}
    xlimits = (1, max(2, run.steps))
    return small_multiples(charts if run.step else {}, x=run.at, xlabel="step", xlimits=xlimits, notes=_notes(run))


def _notes(run: Run) -> list[str]:
    notes = [readout(run)]
    if run.samples:
        notes.append(f"newest answers, step {run.samples_step}:")
    for sample in run.samples:
        notes += [f"Q  {sample.prompt}", f"A  {sample.response or '(nothing)'}  [{_scores(sample)}]"]
    return notes


def _scores(sample: Sample) -> str:
    known = {name: value for name, value in (("proxy", sample.proxy), ("gold", sample.gold)) if not math.isnan(value)}
    return ", ".join(f"{name} {value:+.2f}" for name, value in known.items()) or "not scored"


def _name(field: str) -> str:
    return field.replace("_", " ")


def _newest(values: Sequence[float]) -> float:
    return next((value for value in reversed(values) if math.isfinite(value)), math.nan)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
