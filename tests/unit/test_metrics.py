"""Win rates and intervals by hand, their symmetries, and whether a 95 % interval covers 95 times in a hundred."""

import math

import numpy as np
import pytest

from picollm_lite.evaluation.metrics import (
    Interval,
    WinRate,
    gold_scores,
    interval_of_sums,
    mean_interval,
    overoptimization_fit,
    paired_win_rate,
)
from picollm_lite.world.concepts import by_id

FACT = by_id()["token"].facts["definition"]
A = [2.0, 1.0, 0.0, -1.0, 0.5]
B = [1.0, 1.0, 1.0, -2.0, 0.5]


def test_gold_scores_keep_order_and_pairing():
    got = gold_scores(["What is a token?", "What is a KV cache?", "What is a token?"], [FACT, FACT, ""])
    assert got.tolist() == [2.0, -1.0, -3.0]
    assert gold_scores([], []).shape == (0,)


def test_gold_scores_refuse_what_does_not_pair_up():
    with pytest.raises(ValueError, match="expected one answer a prompt, got 2 prompts and 1 answers"):
        gold_scores(["What is a token?"] * 2, [FACT])
    with pytest.raises(ValueError, match="names no concept of the bank: 'What is love"):
        gold_scores(["What is love?"], [FACT])


def test_win_rate_by_hand():
    """Two wins, two ties, one loss: (2 + 2 / 2) / 5."""
    got = paired_win_rate(A, B)
    assert (got.rate, got.wins, got.ties, got.losses) == (0.6, 2, 2, 1)
    assert got.low < 0.6 < got.high
    assert all(type(x) is float for x in got[:3]) and all(type(x) is int for x in got[3:])


def test_win_rate_counts_near_scores_as_ties():
    assert paired_win_rate([1.0, 1.0], [1.0 + 1e-10, 1.0 - 1e-10])[3:] == (0, 2, 0)
    assert paired_win_rate([1.0, 1.0], [1.0 + 1e-8, 1.0 - 1e-8])[3:] == (1, 0, 1)
    assert paired_win_rate([1.0, 1.0, 1.0, 1.0], [1.5, 0.6, 0.5, 0.4], tie=0.5)[3:] == (1, 3, 0)


def test_identical_scores_give_one_half():
    assert paired_win_rate(A, A) == WinRate(0.5, 0.5, 0.5, 0, 5, 0)
    assert paired_win_rate([1.0, 2.0], [0.0, 0.0]) == WinRate(1.0, 1.0, 1.0, 2, 0, 0)


def test_swapping_the_models_mirrors_the_win_rate():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (2, 60)).astype(float)
    there, back = paired_win_rate(a, b), paired_win_rate(b, a)
    assert (there.wins, there.ties, there.losses) == (back.losses, back.ties, back.wins)
    assert there[:3] == pytest.approx((1 - back.rate, 1 - back.high, 1 - back.low))


def test_only_the_order_within_a_prompt_counts():
    """Pairs stay together: the same pairs in another order, or on another scale, give the same rate."""
    shifted = [x + 100 * i for i, x in enumerate(A)], [x + 100 * i for i, x in enumerate(B)]
    assert paired_win_rate(*shifted) == paired_win_rate(A, B)
    assert paired_win_rate(A[::-1], B[::-1])[3:] == paired_win_rate(A, B)[3:]
    assert paired_win_rate(A, B[::-1])[3:] != paired_win_rate(A, B)[3:]


def test_interval_of_constant_values_is_a_point():
    assert mean_interval([1.5] * 4) == Interval(1.5, 1.5, 1.5)


def test_interval_by_hand():
    """50 zeros and 50 ones: mean .5, standard error .05, so .5 +- 1.96 x .05."""
    got = mean_interval([0.0, 1.0] * 50)
    assert got.estimate == 0.5
    assert (got.low, got.high) == pytest.approx((0.402, 0.598), abs=0.012)
    assert all(type(x) is float for x in got)


def test_interval_of_two_values():
    """A resample of 0 and 4 has mean 0 or 4 with probability 1/4 each, so both lie in the interval's ends."""
    assert mean_interval([0.0, 4.0]) == Interval(2.0, 0.0, 4.0)


def ratio(sums):
    return sums[..., 0] / sums[..., 1]


def test_interval_of_a_ratio_of_sums_by_hand():
    """50 zeros and 50 ones as above; then a resample of two is 8 / 2, 4 / 4 or 0 / 6."""
    got = interval_of_sums(np.array([[0, 1], [1, 1]] * 50), ratio)
    assert got.estimate == 0.5 and (got.low, got.high) == pytest.approx((0.402, 0.598), abs=0.012)
    assert interval_of_sums(np.array([[4, 1], [0, 3]]), ratio) == Interval(1.0, 0.0, 4.0)
    assert all(type(x) is float for x in got)


def test_interval_of_sums_without_a_value():
    """No row, one row, a statistic without a value; and resamples without one, which are left out."""
    assert np.isnan(interval_of_sums(np.empty((0, 2)), ratio)).all()
    one = interval_of_sums(np.array([[1, 2]]), ratio)
    assert one.estimate == 0.5 and np.isnan(one[1:]).all()
    assert np.isnan(interval_of_sums(np.ones((5, 2)), lambda sums: np.full(sums.shape[:-1], np.nan))).all()
    got = interval_of_sums(np.array([[0, 1], [1, 1]]), lambda sums: np.where(sums[..., 0] == 1, 7.0, np.nan))
    assert got == Interval(7.0, 7.0, 7.0)


def test_intervals_repeat_for_a_seed():
    values = np.random.default_rng(1).normal(size=30)
    assert mean_interval(values, seed=3) == mean_interval(list(values), seed=3) != mean_interval(values, seed=4)
    assert paired_win_rate(values, values[::-1], seed=3) != paired_win_rate(values, values[::-1], seed=4)
    assert mean_interval(values) == mean_interval(values, seed=0)


def test_an_interval_covers_the_truth_95_times_in_100():
    """Normal data with mean 3. Of 300 intervals 285 +- 3.8 should cover; 4 standard deviations are allowed.

    A 90 % interval would cover 270 times, a 99 % one 297 times.
    """
    rng = np.random.default_rng(0)
    intervals = [mean_interval(sample, seed=i) for i, sample in enumerate(rng.normal(3.0, 2.0, (300, 80)))]
    covered = sum(low <= 3.0 <= high for _, low, high in intervals)
    assert 274 <= covered <= 295, covered
    widths = [high - low for _, low, high in intervals]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 2.0 / math.sqrt(80), rel=0.03)


@pytest.mark.parametrize(
    ("values", "shape"),
    [([1.0], r"\(1,\)"), ([], r"\(0,\)"), ([[1.0, 2.0]], r"\(1, 2\)"), ([[1.0], [2.0]], r"\(2, 1\)")],
)
def test_too_few_values_are_refused(values, shape):
    with pytest.raises(ValueError, match=f"expected at least 2 values in one dimension, got shape {shape}"):
        mean_interval(values)
    with pytest.raises(ValueError, match=f"expected at least 2 values in one dimension, got shape {shape}"):
        paired_win_rate(values, values)


def test_scores_that_would_broadcast_are_refused():
    for b, shape in ([1.0], r"\(1,\)"), ([[1.0]] * 5, r"\(5, 1\)"), (A[:4], r"\(4,\)"):
        with pytest.raises(ValueError, match=rf"expected two scores a prompt, got shapes \(5,\) and {shape}"):
            paired_win_rate(A, b)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_no_tie(bad):
    values = [1.0, bad, 2.0]
    message = "expected finite numbers, got 1 of 3 that are not"
    for refused in (
        lambda: mean_interval(values),
        lambda: paired_win_rate(values, [0.0] * 3),
        lambda: paired_win_rate([0.0] * 3, values),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_the_overoptimization_fit_finds_the_curve_that_made_the_points():
    """R(d) = d (2 - 0.5 log d): at d = 1 it is 2, at d = e it is 1.5 e; d = 0 says nothing."""
    d = [0.0, 1.0, math.e, math.e**2]
    gained = [7.0, 2.0, 1.5 * math.e, math.e**2]
    assert overoptimization_fit(d, gained) == pytest.approx((2.0, 0.5))


def test_the_overoptimization_fit_refuses_what_it_cannot_fit():
    with pytest.raises(ValueError, match=r"one gain a distance, got shapes \(3,\) and \(2,\)"):
        overoptimization_fit([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="at least 3 points with a distance above 0, got 2"):
        overoptimization_fit([0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="got 1 of 3 that are not"):
        overoptimization_fit([1, 2, math.nan], [0, 1, 2])
