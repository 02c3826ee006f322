"""Length control by hand and against scikit-learn; where it changes nothing; and answers that game it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from picollm_lite.evaluation import length_control, metrics
from picollm_lite.evaluation.constant_answer import annotator_judge, constant_answer_table
from picollm_lite.evaluation.judges import gold_judge
from picollm_lite.evaluation.length_control import RIDGE, length_controlled_win_rate
from picollm_lite.evaluation.metrics import mean_interval
from picollm_lite.world.annotators import PANEL
from picollm_lite.world.concepts import by_id

FEW = 100  # resamples, where the interval is not what is tested


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", FEW)


def words(counts):
    return ["w " * count for count in counts]


def control(a_words, b_words, points, prompts=None, **options):
    prompts = [f"p{n}" for n in range(len(points))] if prompts is None else prompts
    return length_controlled_win_rate(prompts, words(a_words), words(b_words), points, **options)


def test_two_lengths_by_hand(few):
    """A is 2 words longer and wins 9 of 10, or 2 shorter and wins 6 of 10.

    Two groups, two coefficients: the fit goes through both shares. d = +-2 with standard deviation 2, so tanh(+-1);
    at 0 stands the middle of the log-odds, (log 9 + log 1.5) / 2, and the effect is their half distance / tanh(1).
    """
    got = control([5] * 10 + [3] * 10, [3] * 10 + [5] * 10, [1] * 9 + [0] + [1] * 6 + [0] * 4)
    assert got.raw.estimate == 0.75
    assert got.controlled.estimate == pytest.approx(expit((np.log(9) + np.log(1.5)) / 2), abs=1e-4)  # 0.786
    assert got.length_effect == pytest.approx((np.log(9) - np.log(1.5)) / 2 / np.tanh(1), abs=1e-3)  # 1.176
    assert got.controlled.low < got.controlled.estimate < got.controlled.high


def test_a_tie_is_half_a_win_and_half_a_loss(few):
    a, b = [5] * 4 + [3] * 4, [3] * 4 + [5] * 4
    ties, split = control(a, b, [1, 1, 0.5, 0.5, 1, 0, 0, 0]), control(a, b, [1, 1, 1, 0, 1, 0, 0, 0])
    assert ties.controlled.estimate == pytest.approx(split.controlled.estimate)
    assert control(a, b, [0.5] * 8).controlled == (0.5, 0.5, 0.5)


def test_a_prompt_that_was_answered_three_times_weighs_as_much_as_any(few):
    """Two prompts, one of each sign so that the spread of lengths stays, are given three times: nothing may change."""
    a, b, points = [2, 1] * 10, [1, 2] * 10, [1, 0, 1, 1, 0] * 4
    once = control(a, b, points)
    rows = [0, 0, 0, 1, 1, 1, *range(2, 20)]
    a, b, points = ([column[row] for row in rows] for column in (a, b, points))
    thrice = control(a, b, points, [f"p{row}" for row in rows])
    assert thrice.controlled == pytest.approx(once.controlled, abs=1e-5)
    assert thrice.raw == pytest.approx(once.raw)


def test_it_is_what_scikit_learn_fits(few):
    rng = np.random.default_rng(0)
    a, b, y = rng.integers(1, 30, 80), rng.integers(1, 30, 80), rng.choice([0.0, 0.5, 1.0], 80)
    d = np.tanh((a - b) / (a - b).std())
    model = LogisticRegression(C=1e6, tol=1e-10, max_iter=1000)
    model.fit(np.concatenate([d, d])[:, None], np.repeat([1, 0], 80), np.concatenate([y, 1 - y]))
    got = control(a, b, y)
    assert logit(got.controlled.estimate) == pytest.approx(model.intercept_[0], abs=1e-4)
    assert got.length_effect == pytest.approx(model.coef_[0, 0], abs=1e-4)


@given(st.lists(st.tuples(st.floats(-1, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=12))
@settings(max_examples=40)
def test_the_fit_ends_at_the_minimum_wherever_it_lies(rows):
    """Also where every pair is won, or length alone tells who wins: there the slope of loss + ridge is 0."""
    d, y = (np.array(column) for column in zip(*rows, strict=True))
    weights = np.vstack([np.ones(len(d)), np.arange(len(d))])
    for fit, w in zip(length_control._fit(d, y, weights, start=np.array([1.0, -9.0])), weights, strict=True):
        left = w * (y - expit(fit[0] + fit[1] * d))
        assert [left.sum(), left @ d] == pytest.approx(RIDGE * fit, abs=1e-5)


def test_each_prompt_has_the_same_weight(few):
    """p, answered 3 times, was won 3 times at each length; q was won once in 1: half and half, not 3 to 1."""
    prompts = ["p"] * 6 + ["q"] * 2
    got = control([5] * 3 + [3] * 3 + [5, 3], [3] * 3 + [5] * 3 + [3, 5], [1] * 6 + [0] * 2, prompts)
    assert got.raw.estimate == got.controlled.estimate == pytest.approx(0.5)


def test_a_prompt_keeps_its_answers_together(few):
    """Two prompts, one all won, one all lost: resamples are 0, 1/2 and 1, however many answers there are."""
    got = control([5, 3] * 8, [4] * 16, [1] * 8 + [0] * 8, ["p"] * 8 + ["q"] * 8)
    assert (got.controlled.low, got.controlled.high) == pytest.approx((0, 1), abs=1e-3)


def test_without_a_difference_in_length_it_is_the_raw_win_rate():
    y = [1.0] * 60 + [0.5] * 10 + [0.0] * 30
    same, shifted = control([7] * 100, [7] * 100, y), control([11] * 100, [7] * 100, y)
    assert same.controlled == pytest.approx(mean_interval(y), abs=0.015) and same.length_effect == 0
    assert same.controlled.estimate == pytest.approx(0.65, abs=1e-4)
    assert shifted == same  # one difference throughout tells nothing about its effect


def test_swapping_the_sides_mirrors_it(few):
    rng = np.random.default_rng(1)
    a, b, y = rng.integers(1, 30, 40), rng.integers(1, 30, 40), rng.choice([0.0, 0.5, 1.0], 40)
    there, back = control(a, b, y), control(b, a, 1 - y)
    assert there.controlled == pytest.approx((1 - back.controlled[0], 1 - back.controlled[2], 1 - back.controlled[1]))
    assert there.length_effect == pytest.approx(back.length_effect)


def test_intervals_cover_and_a_null_difference_is_rarely_significant(monkeypatch):
    """Equal models, a judge that loves length, answers of A longer: the raw rate says that A is better.

    The true rate at equal length is 1/2. Over thousands of data sets 94 intervals in 100 hold it, so 188 +- 3 of 200;
    92 to 98 in 100 are 184 to 196.
    """
    monkeypatch.setattr(metrics, "RESAMPLES", 250)
    rng, covered, fooled = np.random.default_rng(0), 0, 0
    for seed in range(200):
        gap = rng.normal(3, 6, 96).round().astype(int)
        y = rng.random(96) < expit(1.5 * np.tanh(gap / 6))
        got = control(30 + gap, [30] * 96, y, seed=seed)
        covered += got.controlled.low <= 0.5 <= got.controlled.high
        fooled += got.raw.low > 0.5
    assert 186 <= covered <= 196, covered  # so at most 7 in 100 null differences are called significant
    assert fooled > 60, fooled


def test_what_cannot_be_controlled_is_refused():
    with pytest.raises(ValueError, match=r"not empty, got \{'prompts': 0, 'a': 0, 'b': 0, 'points': 0\}"):
        control([], [], [])
    with pytest.raises(ValueError, match="at least 2 different prompts, got 1"):
        control([1], [2], [1])
    for wrong in (1.5, -1, np.nan):
        with pytest.raises(ValueError, match=r"expected points in \[0, 1\], got values from"):
            control([1, 2], [2, 1], [wrong, 1])


PRAISE = "Well asked! What a great question! I love how you think. I admire your curiosity."
JUDGES = {"gold": gold_judge} | {annotator.name: annotator_judge(annotator) for annotator in PANEL}


def test_one_answer_to_every_question_games_judges_but_not_the_rubric(few):
    """Four flattering sentences are worth 20 to `flattered`, a perfect answer 2.5 x 5 more gold than an empty one."""
    facts = [by_id()[name].facts["definition"] for name in ("token", "kv_cache", "sft", "reward_model")]
    prompts = ["What is a token?", "What is a KV cache?", "What is SFT?", "What is a reward model?"]
    table = constant_answer_table(JUDGES, prompts, facts, PRAISE)
    rates = {"gold": 0, "careful": 0, "hurried": 1, "length_lover": 0, "flattered": 1, "contrarian": 1}
    assert table["win rate"].to_dict() == rates
    assert table.columns.tolist() == ["win rate", "low", "high", "controlled", "controlled low", "controlled high"]
    assert table.index.name == "judge"
    # Length control takes nothing from praise.
    assert table.controlled["flattered"] > 0.999 and table.controlled["gold"] < 0.001
