"""Reading runs at one KL by hand: between points, outside, for runs that turn back, with intervals over prompts."""

import math

import numpy as np
import pytest

from picollm_lite.evaluation.frontier import Point, at_kl, frontier_table

RUN = [Point(0, -1, 0), Point(2, 1, 1), Point(4, 0, 5)]
PROMPTS = [Point(0.0, [0, 0, 0], [1, 1, 1]), Point(4.0, [0, 4, 8], [1, 3, 5])]


@pytest.mark.parametrize(
    ("kl", "gold", "proxy"),
    [(0, -1, 0), (0.5, -0.5, 0.25), (2, 1, 1), (3, 0.5, 3), (4, 0, 5), (3.5, 0.25, 4)],
)
def test_between_two_points_by_hand(kl, gold, proxy):
    assert np.concatenate(at_kl(RUN, kl)).tolist() == [gold, proxy]


@pytest.mark.parametrize("kl", [-0.001, 4.001, math.nan])
def test_nothing_is_extrapolated(kl):
    assert np.isnan(np.concatenate(at_kl(RUN, kl))).all()


def test_the_first_time_counts_where_a_run_turns_back():
    """KL 0, 4, 2, 6: 3 is first reached on the way up, 5 only on the last stretch."""
    run = [Point(0, 0, 0), Point(4, 4, 4), Point(2, 0, 0), Point(6, 8, 8)]
    assert at_kl(run, 3)[0] == 3 and at_kl(run, 5)[0] == 6
    assert at_kl(run[::-1], 3)[0] == 2  # turned round it comes from 6 down to 2, and passes 3 at a quarter


def test_points_at_one_kl_and_lone_points():
    assert at_kl([Point(1, 5, 6)], 1)[0] == 5 and at_kl([Point(1, 5, 6), Point(1, 7, 8)], 1)[1] == 6
    assert np.isnan(at_kl([Point(1, 5, 6)], 2)[0])


def test_each_prompt_has_its_own_line():
    gold, proxy = at_kl(PROMPTS, 1)
    assert gold.tolist() == [0, 1, 2] and proxy.tolist() == [1, 1.5, 2]


def test_a_table_by_hand():
    table = frontier_table({"ppo": PROMPTS, "dpo": [Point(0, 0, 0), Point(2, 2, 4)]}, [1, 3])
    assert table.index.tolist() == [(1, "ppo"), (1, "dpo"), (3, "ppo"), (3, "dpo")]
    assert table.index.names == ["kl", "run"]
    ppo = table.loc[3, "ppo"]
    assert (ppo["gold"], ppo["proxy"]) == (3, 2.5) and 0 <= ppo["gold low"] < 3 < ppo["gold high"] <= 6
    dpo = table.loc[1, "dpo"]
    assert (dpo["gold"], dpo["proxy"]) == (1, 2) and np.isnan(dpo["gold low"])  # one number has no interval
    assert table.loc[3, "dpo"].isna().all()
    assert frontier_table({"ppo": PROMPTS}, [5]).isna().all(axis=None)  # nor has a run that was never there


def test_matched_runs_can_be_paired_prompt_by_prompt():
    other = [Point(point.kl, np.add(point.gold, 1), point.proxy) for point in PROMPTS]
    assert (at_kl(other, 2)[0] - at_kl(PROMPTS, 2)[0]).tolist() == [1, 1, 1]


def test_runs_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="at least one point, got none"):
        at_kl([], 1)
    with pytest.raises(ValueError, match=r"finite KL at every point, got \[0.0, nan\]"):
        at_kl([Point(0, 1, 1), Point(math.nan, 1, 1)], 0)
    for wrong in (Point(1, [1, 2], [1, 2, 3]), Point(1, [1, 2], [1, 2]), Point(1, [[1, 2, 3]], [[1, 2, 3]])):
        with pytest.raises(ValueError, match="as many numbers of gold and proxy at every point, got shapes"):
            at_kl([PROMPTS[0], wrong], 1)
