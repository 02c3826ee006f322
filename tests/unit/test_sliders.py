"""The three sliders: their numbers by hand or brute force, every callback at several settings, hostile texts."""

import itertools
import math
import os
import re
from html import unescape

import matplotlib.pyplot as plt
import numpy as np
import pytest

from picollm_lite.stages.best_of_n import expected_best
from picollm_lite.stages.ppo import PPOStep
from picollm_lite.stages.sampling import Sample
from picollm_lite.ui.explorers.charts import Chart, chart_view
from picollm_lite.ui.explorers.sliders import (
    Checkpointed,
    best_of_n,
    beta_slider,
    beta_view,
    kl_budget,
    kl_budget_view,
    sweep_rows,
)

EVIL = "<img src=x onerror=alert(1)> & \"$x_$\" 'too'"


def checkpoint(step, kl, proxy=0.0, gold=0.0, run="weak", response="An answer."):
    return Checkpointed(run, step, kl, proxy, gold, Sample("Why?", response, proxy + 10, gold + 10))


ROWS = [
    checkpoint(1, 0.0, 0.0, 0.0),
    checkpoint(2, 1.0, 1.0, 0.8),
    checkpoint(3, 9.0, 3.0, -1.0, response="Praise."),
    checkpoint(4, 4.0, 2.0, 0.5, response="Good."),  # the KL fell again
    checkpoint(1, 0.5, 0.2, 0.1, run="strong"),
    checkpoint(2, 2.0, 0.9, 0.7, run="strong", response="Brief."),
]


def labels(view):
    """What a screen reader says of each chart."""
    return [unescape(label) for label in re.findall(r'aria-label="([^"]*)"', view.markup)]


# KL budget


@pytest.mark.parametrize(
    ("budget", "weak", "strong"),
    [
        (0.25, "weak: step 1, KL 0.00, proxy 0.00, gold 0.00", "strong: no step is so close to the reference"),
        (1.0, "weak: step 2, KL 1.00, proxy 1.00, gold 0.80", "strong: step 1, KL 0.50, proxy 0.20, gold 0.10"),
        (3.9, "weak: step 2, KL 1.00", "strong: step 2, KL 2.00, proxy 0.90, gold 0.70"),
        (4.0, "weak: step 4, KL 4.00, proxy 2.00, gold 0.50", "strong: step 2"),
        (8.9, "weak: step 4", "strong: step 2"),
        (9.0, "weak: step 3, KL 9.00, proxy 3.00, gold -1.00", "strong: step 2"),
    ],
)
def test_the_furthest_step_within_the_budget_is_shown(budget, weak, strong):
    live = kl_budget(ROWS)
    live.box.children[0].value = budget
    assert live.picture.value == kl_budget_view(ROWS, budget).markup
    assert f"\n{weak}" in live.view.text
    assert f"\n{strong}" in live.view.text
    assert live.view.text.startswith(f"KL budget {budget:.2f} nats")


def test_the_answer_is_that_steps_answer_with_its_own_scores():
    text = kl_budget_view(ROWS, 4.5).text
    assert "Question: Why?\n    Answer (proxy 12.00, gold 10.50): Good." in text
    assert "Answer (proxy 10.90, gold 10.70): Brief." in text
    assert "Praise." not in text


def test_the_marker_stands_on_the_row_that_is_told_about():
    assert labels(kl_budget_view(ROWS, 4.5)) == [
        "weak: proxy 2.00, gold 0.50, at sqrt(KL) 2",
        "strong: proxy 0.90, gold 0.70, at sqrt(KL) 1.41",
    ]
    assert "strong: proxy no value, gold no value" in labels(kl_budget_view(ROWS, 0.1))[1]


def test_the_budget_is_a_mark_on_the_axis_and_all_runs_share_their_axes():
    axes = kl_budget_view(ROWS, 4.41).figure().axes
    for ax in axes:
        (mark,) = next(line for line in ax.lines if line.get_marker() == "|").get_xdata()
        assert mark == pytest.approx(2.1)
        assert ax.get_xlim() == (0.0, 3.0)
        assert ax.get_ylim() == pytest.approx((-1.24, 3.24))


def test_the_slider_reaches_from_the_reference_to_the_furthest_step():
    slider = kl_budget(ROWS).box.children[0]
    assert (slider.min, slider.max, slider.step) == (0.0, 9.0, 0.1)
    assert slider.description == "KL budget, nats an answer"
    far = kl_budget([checkpoint(1, 123.4)])
    assert far.box.children[0].max >= 123.4
    assert "KL 123.40" in far.view.text
    assert kl_budget([checkpoint(1, 0.0)]).view.text.endswith("An answer.")


def test_a_kl_estimate_below_zero_is_as_near_as_can_be():
    view = kl_budget_view([checkpoint(1, -0.01, 1.5), checkpoint(2, 1.0)], 0.0)
    assert "step 1, KL -0.01, proxy 1.50" in view.text
    assert labels(view) == ["weak: proxy 1.50, gold 0.00, at sqrt(KL) 0"]


def test_a_gold_that_was_not_recorded_is_said_to_be_missing():
    view = kl_budget_view([checkpoint(1, 0.0, gold=math.nan), checkpoint(2, 1.0, 2.0, math.nan)], 1.0)
    assert "proxy 2.00, gold n/a" in view.text
    assert labels(view) == ["weak: proxy 2.00, gold no value, at sqrt(KL) 1"]
    view.figure()


@pytest.mark.parametrize("rows", [[], [checkpoint(1, math.nan)], [checkpoint(1, 1.0), checkpoint(2, math.inf)]])
def test_a_budget_needs_rows_with_a_kl(rows):
    with pytest.raises(ValueError, match="expected rows with a finite KL"):
        kl_budget(rows)


def record(step, kl, proxy, gold):
    numbers = dict.fromkeys(PPOStep._fields, math.nan)
    found = (Sample("Why?", f"Answer {step}.", proxy, gold), Sample("How?", "Another.", 0.0, 0.0))
    return PPOStep(**numbers | {"step": step, "kl": kl, "proxy": proxy, "gold": gold, "samples": found})


def test_records_become_rows_of_means_over_the_last_steps():
    records = [record(1, 0.0, 1.0, 0.5), record(2, 2.0, 3.0, 0.5), record(3, 7.0, 8.0, -1.0)]
    rows = sweep_rows(records, "weak", window=2)
    assert [(r.run, r.step, r.kl, r.proxy, r.gold) for r in rows] == [
        ("weak", 1, 0.0, 1.0, 0.5),
        ("weak", 2, 1.0, 2.0, 0.5),
        ("weak", 3, 4.5, 5.5, -0.25),
    ]
    assert [r.sample for r in rows] == [r.samples[0] for r in records]
    assert [r.kl for r in sweep_rows(records, window=1)] == [0.0, 2.0, 7.0]
    with pytest.raises(ValueError, match="window must be at least 1 step, got 0"):
        sweep_rows(records, window=0)


# Beta


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 1.0])
def test_loss_and_weight_by_their_definition(beta):
    h = [3.0, -1.0, 0.0, 8.0]
    live = beta_slider(h)
    live.box.children[0].value = beta
    sigmoid = [1 / (1 + math.exp(-beta * x)) for x in h]
    loss = sum(-math.log(p) for p in sigmoid) / 4
    weight = sum(beta * (1 - p) for p in sigmoid) / 4  # sigmoid(-x) = 1 - sigmoid(x)
    assert live.view.text == (
        f"beta {beta:.3f}: over the batch, mean loss {loss:.3f} nats, mean weight {weight:.4f}\n"
        "h > 0 in 50% of 4 pairs, mean h +2.50 nats"
    )
    at = 1 / (1 + math.exp(-beta * 2.5))
    loss_label, weight_label = labels(live.view)
    assert float(re.search(r"at mean h ([\d.e-]+),", loss_label)[1]) == pytest.approx(-math.log(at), abs=0.011)
    assert float(re.search(r"at mean h ([\d.e-]+),", weight_label)[1]) == pytest.approx(beta * (1 - at), abs=0.011)


def test_at_the_start_of_training_the_loss_is_ln_2_for_every_beta():
    for beta in (0.02, 0.3):
        assert "mean loss 0.693 nats" in beta_view([0.0, 0.0], beta).text
        assert "h > 0 in 0% of 2 pairs" in beta_view([0.0, 0.0], beta).text


def test_every_margin_is_a_mark_on_the_axis():
    h = [-7.5, 0.0, 2.5, 5.0]
    view = beta_view(h, 0.1)
    for ax in view.figure().axes:
        marks = next(line for line in ax.lines if line.get_marker() == "|")
        assert list(marks.get_xdata()) == h
    assert len(re.findall(r"M[\d.]+ [\d.]+v-7", view.markup)) == 2 * len(h)


def test_the_weight_falls_where_the_pair_is_already_right():
    loss, weight = (ax.lines[0].get_ydata() for ax in beta_view([1.0, -20.0], 0.5).figure().axes)
    assert (np.diff(loss) < 0).all()
    assert (np.diff(weight) < 0).all()
    assert weight[0] == pytest.approx(0.5, abs=1e-3)
    assert weight[-1] == pytest.approx(0.0, abs=1e-3)


def test_margins_of_any_size_overflow_nothing():
    assert "mean loss 5000.000" in beta_view([-10_000.0, 10_000.0], 1.0).text


def test_the_slider_is_logarithmic():
    slider = beta_slider(np.array([1.0])).box.children[0]
    assert (slider.base, slider.min, slider.max, slider.value) == (10, -2, 0, 0.1)
    assert slider.description == "beta"


@pytest.mark.parametrize("h", [[], [math.nan], [1.0, math.inf]])
def test_a_batch_needs_finite_margins(h):
    with pytest.raises(ValueError, match="at least one margin, all finite"):
        beta_slider(h)


# Best of n


def brute_force(proxy, values, n):
    """Mean over prompts and all subsets of n of the value of the best by proxy; among equals, their mean."""
    means = []
    for scores, row in zip(proxy, values, strict=True):
        picks = []
        for subset in itertools.combinations(range(len(scores)), n):
            best = max(scores[i] for i in subset)
            winners = [row[i] for i in subset if scores[i] == best]
            picks.append(sum(winners) / len(winners))
        means.append(sum(picks) / len(picks))
    return sum(means) / len(means)


@pytest.mark.parametrize("tied", [False, True])
def test_the_expectation_is_that_over_all_subsets(tied):
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(3, 7)), rng.normal(size=(3, 7))
    if tied:
        proxy = rng.integers(0, 3, size=(3, 7)).astype(float)
    for values in (proxy, gold):
        expected = [brute_force(proxy.tolist(), values.tolist(), n) for n in range(1, 8)]
        np.testing.assert_allclose(expected_best(proxy, values), expected, atol=1e-12)


def test_the_expectation_by_hand():
    gold = np.array([[10.0, 0.0, 1.0]])
    proxy = np.array([[3.0, 2.0, 1.0]])  # pairs: the first is best in 2 of 3, the second in 1 of 3
    np.testing.assert_allclose(expected_best(proxy, gold), [11 / 3, 20 / 3, 10.0])


PROMPTS = ["Why?", f"How? {EVIL}"]
TEXTS = [["a0", "a1", "a2", "a3"], ["b0", f"b1 {EVIL}", "b2", "b3"]]
PROXY = [[0.0, 2.0, 1.0, 3.0], [1.0, 4.0, 0.0, 2.0]]
GOLD = [[0.5, 0.25, 1.0, -2.0], [0.0, -1.0, 1.5, 0.0]]


@pytest.mark.parametrize(
    ("n", "example", "winner"),
    [
        (1, 0, "number 1 wins (proxy +0.00, gold +0.50): a0"),
        (3, 0, "number 2 wins (proxy +2.00, gold +0.25): a1"),
        (4, 0, "number 4 wins (proxy +3.00, gold -2.00): a3"),
        (2, 1, f"number 2 wins (proxy +4.00, gold -1.00): b1 {EVIL}"),
    ],
)
def test_each_n_and_each_example(n, example, winner):
    live = best_of_n(PROMPTS, TEXTS, PROXY, GOLD)
    slider, picker = live.box.children[:2]
    picker.value, slider.value = example, n
    proxy, gold = (brute_force(PROXY, values, n) for values in (PROXY, GOLD))
    bound = math.log(n) - (n - 1) / n
    assert live.view.text.splitlines() == [
        f"best of {n}: expected proxy {proxy:+.2f}, gold {gold:+.2f}, KL at most log n - (n-1)/n = {bound:.2f} nats",
        f"Question: {PROMPTS[example]}",
        f"Of the first {n} stored answers, {winner}",
    ]
    assert labels(live.view) == [
        f"expected reward: proxy {proxy:.2f}, gold {gold:.2f}, at n {n}",
        f"KL to the sampling policy, at most (nats): at most {bound:.2f}, at n {n}",
    ]


def test_n_goes_as_far_as_there_are_samples():
    slider, picker = best_of_n(PROMPTS, TEXTS, PROXY, GOLD).box.children[:2]
    assert (slider.min, slider.max, slider.value) == (1, 4, 4)
    assert [value for _, value in picker.options] == [0, 1]
    assert slider.description and picker.description
    assert "best of 1" in best_of_n(["Why?"], [["a"]], [[1.0]], [[2.0]]).view.text


@pytest.mark.parametrize(
    ("prompts", "texts", "proxy", "gold", "message"),
    [
        ([], [], [], [], "for each of 0 prompts"),
        (["Why?"], TEXTS, PROXY, GOLD, "for each of 1 prompts, got 2 rows of texts"),
        (PROMPTS, [["a"], ["b", "c"]], [[1.0], [2.0]], [[1.0], [2.0]], "expected N texts"),
        (PROMPTS, TEXTS, PROXY[0], GOLD, r"proxy \(4,\), gold \(2, 4\)"),
        (PROMPTS, TEXTS, PROXY, [row[:3] for row in GOLD], r"gold \(2, 3\)"),
        (PROMPTS, TEXTS, [[math.nan] * 4] * 2, GOLD, "expected finite scores"),
        (PROMPTS, TEXTS, PROXY, [[math.inf] * 4] * 2, "expected finite scores"),
    ],
)
def test_samples_must_fit_together(prompts, texts, proxy, gold, message):
    with pytest.raises(ValueError, match=message):
        best_of_n(prompts, texts, proxy, gold)


# All three


def views():
    yield kl_budget_view([checkpoint(1, 1.0, run=EVIL, response=EVIL)], 2.0)
    yield beta_view([1.0, -2.0], 0.1)
    yield best_of_n([EVIL], [[EVIL]], [[1.0]], [[1.0]]).view


def test_hostile_texts_stay_texts():
    hostile = kl_budget([checkpoint(1, 1.0, run=EVIL, response=EVIL)]), best_of_n([EVIL], [[EVIL]], [[1.0]], [[1.0]])
    for live in hostile:
        shown = live.picture.value + live.readout.value
        assert "<img" not in shown
        assert "&lt;img src=x onerror=alert(1)&gt; &amp; &quot;$x_$&quot;" in shown


def test_the_static_picture_has_the_readout_and_a_chart_for_each_chart():
    for view in views():
        figure = view.figure()
        figure.savefig(os.devnull, format="png")
        (text,) = figure.texts
        assert text.get_text().split() == view.text.split()
        assert len(figure.axes) == view.markup.count("<svg xmlns")


def test_the_marker_and_its_value_are_in_the_static_picture():
    chart = Chart("t", {"y": [0.0, 4.0], "z": [1.0, 1.0]}, [0.0, 2.0], "x", marker=1.0)
    (ax,) = chart_view([chart], "").figure().axes
    dots = [(*line.get_xdata(), *line.get_ydata()) for line in ax.lines if line.get_marker() == "o"]
    assert dots == [(1.0, 2.0), (1.0, 1.0)]


def test_an_error_in_a_redraw_is_shown():
    live = best_of_n(PROMPTS, TEXTS, PROXY, GOLD)
    slider = live.box.children[0]
    slider.max = 9
    with pytest.raises(IndexError):
        slider.value = 9
    assert "IndexError: " in live.readout.value


def test_no_pyplot_figure_is_left():
    for view in views():
        view.figure()
    assert plt.get_fignums() == []
