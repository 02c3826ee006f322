"""Three sliders over stored numbers: the KL budget of PPO, DPO's beta, the n of best-of-n."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
from scipy.special import expit

from picollm_lite.stages.best_of_n import expected_best, kl_bound
from picollm_lite.stages.ppo import PPOStep
from picollm_lite.stages.sampling import Sample
from picollm_lite.ui.explorers.charts import Chart, chart_view
from picollm_lite.ui.live import Live, View, explore
from picollm_lite.ui.scales import span
from picollm_lite.ui.svg import number, shorten


class Checkpointed(NamedTuple):
    """Where a PPO run stood after a step."""

    run: str  # its name
    step: int
    kl: float  # nats an answer, to the reference
    proxy: float  # mean score
    gold: float  # NaN where it was not recorded
    sample: Sample  # an answer of that step


class Drawn(NamedTuple):
    """Best-of-n over stored samples, N for each of P prompts."""

    prompts: Sequence[str]
    texts: Sequence[Sequence[str]]  # (P, N)
    proxy: np.ndarray  # (P, N)
    gold: np.ndarray  # (P, N)
    expected_proxy: np.ndarray  # (N,) of the sample that best-of-n picks, n = 1 to N, mean over prompts
    expected_gold: np.ndarray  # (N,)


def sweep_rows(records: Sequence[PPOStep], run: str = "ppo", *, window: int = 5) -> list[Checkpointed]:
    """The records of `ppo.train` as rows for `kl_budget`: means of the last `window` steps, each with one answer.

    Raises ValueError for a window below 1.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 step, got {window}")
    rows = []
    for i, record in enumerate(records):
        recent = records[max(0, i + 1 - window) : i + 1]
        kl, proxy, gold = (math.fsum(getattr(r, key) for r in recent) / len(recent) for key in ("kl", "proxy", "gold"))
        rows.append(Checkpointed(run, record.step, kl, proxy, gold, record.samples[0]))
    return rows


def kl_budget(rows: Sequence[Checkpointed]) -> Live:
    """A slider for how far from the reference a policy may be; rows of one run or several, as `sweep_rows` gives them.

    Raises ValueError without rows, and for a KL that is not finite.
    """
    if not rows or not all(math.isfinite(row.kl) for row in rows):
        raise ValueError(f"expected rows with a finite KL each, got {[row.kl for row in rows][:5]}")
    largest = max(max(row.kl for row in rows), 1e-3)
    step = 10.0 ** math.floor(math.log10(largest / 40))
    top = step * math.ceil(largest / step)
    digits = max(0, -round(math.log10(step)))
    slider = widgets.FloatSlider(
        value=top, min=0.0, max=top, step=step, readout_format=f".{digits}f", **_labeled("KL budget, nats an answer")
    )
    return explore(partial(kl_budget_view, rows), budget=slider)


def kl_budget_view(rows: Sequence[Checkpointed], budget: float) -> View:
    """For each run the row with the largest KL within the budget: its place on the curves, numbers and answer."""
    runs = {row.run: sorted((r for r in rows if r.run == row.run), key=lambda r: r.kl) for row in rows}
    values = [value for row in rows for value in (row.proxy, row.gold) if math.isfinite(value)]
    shared = {"limits": span(values, 0.06), "xlimits": (0.0, max(_root(row.kl) for row in rows) or 1.0)}
    charts, lines = [], [f"KL budget {number(budget)} nats an answer"]
    for run, kept in runs.items():
        within = [row for row in kept if row.kl <= budget * (1 + 1e-9)]
        x = [_root(row.kl) for row in kept]
        series = {"proxy": [row.proxy for row in kept], "gold": [row.gold for row in kept]}
        marker = _root(within[-1].kl) if within else 0.0
        charts.append(Chart(run, series, x, "sqrt(KL)", marker, (_root(budget),), **shared))
        lines.append(_said(within[-1]) if within else f"{run}: no step is so close to the reference")
    return chart_view(charts, "\n".join(lines))


def beta_slider(margins: Sequence[float]) -> Live:
    """A slider for DPO's beta over a batch of margins h, log-ratio of chosen less that of rejected (nats, no beta).

    Raises ValueError unless there is at least one, all finite.
    """
    h = [float(margin) for margin in margins]
    if not h or not all(map(math.isfinite, h)):
        raise ValueError(f"expected at least one margin, all finite, got {h[:5]}")
    slider = widgets.FloatLogSlider(value=0.1, base=10, min=-2, max=0, step=0.05, **_labeled("beta"))
    return explore(partial(beta_view, h), beta=slider)


def beta_view(margins: Sequence[float], beta: float) -> View:
    """DPO's loss -log sigmoid(beta h) and weight beta sigmoid(-beta h) in its gradient: Rafailov et al. 2023, eq. 7."""
    h, reach = np.array(margins), max(5.0, math.ceil(np.abs(margins).max()))
    x = np.linspace(-reach, reach, 81)
    curves = {"loss, nats": partial(np.logaddexp, 0.0), "gradient weight": lambda z: beta * expit(z)}
    at = Chart("", {}, x, "h, nats", h.mean(), ticks=h)
    charts = [
        at._replace(title=name, series={"at mean h": f(-beta * x)}, limits=(0.0, 1.05 * f(-beta * x).max()))
        for name, f in curves.items()
    ]
    loss, weight = (f(-beta * h).mean() for f in curves.values())
    return chart_view(
        charts,
        f"beta {number(beta, 3)}: over the batch, mean loss {loss:.3f} nats, mean weight {number(weight, 4)}\n"
        f"h > 0 in {(h > 0).mean():.0%} of {len(h)} pairs, mean h {h.mean():+.2f} nats",
    )


def best_of_n(
    prompts: Sequence[str], texts: Sequence[Sequence[str]], proxy: Sequence[Sequence[float]], gold: Sequence[Sequence]
) -> Live:
    """A slider for n over stored samples: for each of P prompts N texts with their proxy and gold, all (P, N).

    Raises ValueError on other shapes and on a score that is not finite.
    """
    proxy, gold = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    P, N = shape = (len(prompts), len(texts[0]) if len(texts) else 0)
    if 0 in shape or [len(row) for row in texts] != [N] * P or not proxy.shape == gold.shape == shape:
        raise ValueError(
            f"expected N texts, proxy and gold scores for each of {P} prompts, got "
            f"{len(texts)} rows of texts, proxy {proxy.shape}, gold {gold.shape}"
        )
    if not np.isfinite(proxy).all() or not np.isfinite(gold).all():
        raise ValueError("expected finite scores, got some that are not")
    drawn = Drawn(prompts, texts, proxy, gold, expected_best(proxy, proxy), expected_best(proxy, gold))
    options = [(f"{i}. {shorten(prompt, 70)}", i - 1) for i, prompt in enumerate(prompts, start=1)]
    slider = widgets.IntSlider(value=min(4, N), min=1, max=N, **_labeled("n, answers to pick from"))
    picker = widgets.Dropdown(options=options, **_labeled("example"))
    return explore(partial(best_of_n_view, drawn), n=slider, example=picker)


def best_of_n_view(drawn: Drawn, n: int, example: int = 0) -> View:
    """Expected proxy and gold of the best of n by proxy, how far that moves the policy, and one prompt's winner."""
    N = drawn.proxy.shape[1]
    x = np.arange(1, N + 1)
    bound = kl_bound(x)
    rewards = {"proxy": drawn.expected_proxy, "gold": drawn.expected_gold}
    charts = [
        Chart("expected reward", rewards, x, "n", n),
        Chart("KL to the sampling policy, at most (nats)", {"at most": bound}, x, "n", n),
    ]
    winner = int(drawn.proxy[example, :n].argmax())
    scores = f"proxy {drawn.proxy[example, winner]:+.2f}, gold {drawn.gold[example, winner]:+.2f}"
    return chart_view(
        charts,
        f"best of {n}: expected proxy {drawn.expected_proxy[n - 1]:+.2f}, gold {drawn.expected_gold[n - 1]:+.2f}, "
        f"KL at most log n - (n-1)/n = {bound[n - 1]:.2f} nats\n"
        f"Question: {drawn.prompts[example]}\n"
        f"Of the first {n} stored answers, number {winner + 1} wins ({scores}): {drawn.texts[example][winner]}",
    )


def _said(row: Checkpointed) -> str:
    prompt, response, proxy, gold = row.sample
    return (
        f"{row.run}: step {row.step}, KL {row.kl:.2f}, proxy {number(row.proxy)}, gold {number(row.gold)}\n"
        f"    Question: {prompt}\n    Answer (proxy {number(proxy)}, gold {number(gold)}): {response}"
    )


def _root(kl: float) -> float:
    """The estimate of a small KL may lie below 0."""
    return math.sqrt(max(0.0, kl))


def _labeled(description: str) -> dict:
    return {
        "description": description,
        "style": {"description_width": "initial"},
        "layout": widgets.Layout(width="440px"),
    }
