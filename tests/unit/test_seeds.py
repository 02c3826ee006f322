"""Seeds as a random factor: shares and interval by hand, coverage of both, and what an interval over prompts misses."""

import math

import numpy as np
import pytest

from picollm_lite.evaluation.metrics import Interval, mean_interval
from picollm_lite.evaluation.seeds import by_model, seed_study

# Rows are seeds: 2 +- 1 for a seed, -+ 2 for a prompt, and a rest of +-1 in a chessboard.
GRID = np.array([[2, 4], [-2, 4]])


def test_a_study_of_two_by_two_by_hand():
    """Mean 2, seed means 3, 1, prompt means 0, 4: mean squares 4, 16 and 4, all with one degree of freedom.

    Components: seeds (4 - 4) / 2, prompts (16 - 4) / 2 = 6, rest 4. Variance of the mean 6 / 2 + 4 / 4 = 4, degrees of
    freedom 4^2 / (1 + 16 + 1) = 8/9.
    """
    got = seed_study(GRID)
    assert got.mean.estimate == 2.0
    assert (got.seed_share, got.prompt_share, got.rest_share) == pytest.approx((0, 0.6, 0.4))
    # Student's t at .975: 12.706 for one degree of freedom (exactly tan(.475 pi)), more for 8/9.
    reach = got.mean.high - 2
    assert got.mean.low == pytest.approx(2 - reach) and reach > 2 * math.tan(0.475 * math.pi)


def test_a_study_with_one_source_by_hand():
    """Seeds alone differ: 0, 2, 4 on all of 10 prompts. Standard error 2 / sqrt(3), t = 4.303 at two degrees."""
    got = seed_study(np.repeat([[0.0], [2.0], [4.0]], 10, axis=1))
    assert got[1:] == pytest.approx((1, 0, 0))
    assert got.mean == pytest.approx((2, 2 - 4.3027 * 2 / math.sqrt(3), 2 + 4.3027 * 2 / math.sqrt(3)), abs=1e-3)
    turned = seed_study(np.repeat([[0.0], [2.0], [4.0]], 10, axis=1).T)
    assert turned.mean == pytest.approx(got.mean) and turned[1:] == pytest.approx((0, 1, 0))


def test_seeds_and_prompts_change_places():
    y = np.random.default_rng(0).normal(size=(4, 7)) + np.arange(7)
    there, back = seed_study(y), seed_study(y.T)
    assert there.mean == pytest.approx(back.mean)
    assert there[1:] == pytest.approx((back.prompt_share, back.seed_share, back.rest_share))


def test_shares_find_the_sources_that_made_the_numbers():
    """Standard deviations 1, 2 and 1: shares of 1/6, 4/6 and 1/6."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(300, 1)) + 2 * rng.normal(size=300) + rng.normal(size=(300, 300))
    assert seed_study(y)[1:] == pytest.approx((1 / 6, 4 / 6, 1 / 6), abs=0.05)


def test_numbers_that_do_not_vary_have_no_shares():
    got = seed_study(np.full((3, 5), 0.1))
    assert got.mean == pytest.approx((0.1, 0.1, 0.1)) and np.isnan(got[1:]).all()
    assert seed_study(np.zeros((2, 2))).mean == Interval(0, 0, 0)


@pytest.mark.parametrize(
    ("seed_sd", "prompt_sd", "rest_sd"), [(0.0, 1.0, 1.0), (0.2, 0.5, 1.0), (0.5, 0.5, 1.0), (1.0, 0.0, 0.5)]
)
def test_intervals_cover_new_seeds_and_prompts(seed_sd, prompt_sd, rest_sd):
    """5 seeds, 96 prompts, no difference: of 1000 intervals 950 +- 7 should hold 0, between 92 and 98 in 100 must.

    So a null difference is called significant 2 to 8 times in 100, and here at most 7.
    """
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        seeds, prompts, rest = rng.normal(size=(5, 1)), rng.normal(size=96), rng.normal(size=(5, 96))
        _, low, high = seed_study(seed_sd * seeds + prompt_sd * prompts + rest_sd * rest).mean
        covered += low <= 0 <= high
    assert 930 <= covered <= 980, covered


def test_an_interval_over_prompts_alone_is_too_narrow():
    """Seeds with a standard deviation of .5: over 5 of them the mean has one of .22, which prompts cannot show."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        y = 0.5 * rng.normal(size=(5, 1)) + 0.5 * rng.normal(size=96) + rng.normal(size=(5, 96))
        _, low, high = mean_interval(y.mean(axis=0))
        found += not low <= 0 <= high
    assert found > 80, found  # of 200 null differences


@pytest.mark.parametrize("shape", [(5,), (1, 96), (5, 1), (0, 5), (2, 2, 2)])
def test_one_seed_or_one_prompt_is_refused(shape):
    with pytest.raises(ValueError, match=r"an array \(seeds, prompts\) with at least 2 of each, got shape"):
        seed_study(np.zeros(shape))


def test_differences_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="expected finite differences, got 2 that are not"):
        seed_study(np.array([[1.0, math.nan], [math.inf, 0.0]]))


ROWS = [
    {"seed": 3, "model": "PPO", "gold": [1, 2]},
    {"seed": 0, "model": "SFT", "gold": [5.0, 6.0]},
    {"seed": 0, "model": "PPO", "gold": [3.0, 4.0]},
    {"seed": 3, "model": "SFT", "gold": [7.0, 8.0]},
]


def test_rows_become_arrays_with_seeds_in_order():
    gold = by_model(ROWS)
    assert list(gold) == ["PPO", "SFT"]
    assert gold["PPO"].tolist() == [[3, 4], [1, 2]] and gold["SFT"].tolist() == [[5, 6], [7, 8]]
    assert by_model([]) == {}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, ROWS[0]], "got two of PPO with seed 3"),
        (ROWS[:3], "expected SFT with every seed, got none with seed 3"),
        ([*ROWS[:3], {"seed": 3, "model": "SFT", "gold": [1]}], r"got rows of \[1, 2\] numbers"),
    ],
)
def test_rows_that_do_not_pair_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        by_model(rows)
