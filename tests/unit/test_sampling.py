"""Prompts without end, rewards that are checked before they are used, and the samples that a record shows."""

import math
import warnings
from itertools import islice

import numpy as np
import pytest
import torch

from picollm_lite.stages.sampling import Sample, checked_scores, prompt_batches, samples

PROMPTS = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("size", [1, 2, 5, 7, 12])
def test_every_prompt_comes_once_before_any_comes_again(size):
    batches = list(islice(prompt_batches(PROMPTS, size, seed=0), 10))
    assert all(len(batch) == size for batch in batches)
    drawn = [prompt for batch in batches for prompt in batch]
    passes = [drawn[start : start + 5] for start in range(0, len(drawn) - 4, 5)]
    assert len(passes) >= 2 and all(sorted(each) == PROMPTS for each in passes)
    assert len({tuple(each) for each in passes}) > 1  # in a new order


def test_prompts_repeat_with_their_seed_and_stay_as_they_were():
    prompts = tuple(PROMPTS)

    def first(seed):
        return list(islice(prompt_batches(prompts, 3, seed), 6))

    assert first(0) == first(0) != first(1)
    assert prompts == tuple(PROMPTS)
    given = list(PROMPTS)
    next(prompt_batches(given, 12, seed=0))
    assert given == PROMPTS


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match=r"^no prompts to sample answers to$"):
        next(prompt_batches([], 2, seed=0))


def checked(scores, responses=("x", "y", "z")):
    return checked_scores(lambda prompts, answers: scores, ["p"] * len(responses), responses, "ppo, step 7")


@pytest.mark.parametrize(
    "scores",
    [
        [1, 2, 3],
        [1.0, 2.0, 3.0],
        np.array([1.0, 2.0, 3.0]),
        torch.tensor([1, 2, 3]),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16),
    ],
    ids=["ints", "floats", "numpy", "integer tensor", "with gradient", "half"],
)
def test_rewards_of_any_kind_become_plain_fp32(scores):
    got = checked(scores)
    assert got.tolist() == [1.0, 2.0, 3.0]
    assert got.dtype == torch.float32 and got.device.type == "cpu" and not got.requires_grad


def test_the_reward_function_is_given_the_prompts_and_the_answers_in_this_order():
    called = []

    def reward(prompts, responses):
        called.append((list(prompts), list(responses)))
        return [0.0, 1.0]

    checked_scores(reward, ["p", "q"], ["x", "y"], "here")
    assert called == [(["p", "q"], ["x", "y"])]


@pytest.mark.parametrize(
    ("scores", "shape"),
    [
        ([1.0, 2.0], r"\(2,\)"),
        ([1.0, 2.0, 3.0, 4.0], r"\(4,\)"),
        ([[1.0], [2.0], [3.0]], r"\(3, 1\)"),
        ([[1.0, 2.0, 3.0]], r"\(1, 3\)"),
        (2.0, r"\(\)"),
    ],
)
def test_rewards_of_another_shape_are_refused(scores, shape):
    message = rf"^ppo, step 7: the reward function must return one score an answer, shape \(3,\), got shape {shape}$"
    with pytest.raises(ValueError, match=message):
        checked(scores)


def test_a_reward_that_is_not_finite_is_named_with_its_answer():
    message = r"^ppo, step 7: the reward function gave nan for the answer 'y' \(1 of 3 scores are not finite\)$"
    with pytest.raises(ValueError, match=message):
        checked([0.0, math.nan, 1.0])
    with pytest.raises(ValueError, match=r"gave -inf for the answer 'x' \(2 of 3 scores"):
        checked([-math.inf, 0.0, math.inf])


def test_one_reward_for_all_is_a_warning_and_not_an_error():
    with pytest.warns(UserWarning, match=r"^ppo, step 7: the reward function gave 2\.5 to all 3 answers") as told:
        scores = checked([2.5, 2.5, 2.5])
    assert len(told) == 1 and scores.tolist() == [2.5, 2.5, 2.5]


def test_rewards_that_differ_and_a_single_one_are_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked([2.5, 2.5, 2.4])
        checked([2.5], responses=["x"])


def test_a_record_shows_the_first_answers_with_their_scores():
    prompts, responses = ["p", "q", "r", "s"], ["w", "x", "y", "z"]
    proxy, gold = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([-1.0, -2.0, -3.0, -4.0])
    assert samples(prompts, responses, proxy, gold) == (
        Sample("p", "w", 1.0, -1.0),
        Sample("q", "x", 2.0, -2.0),
        Sample("r", "y", 3.0, -3.0),
    )
    assert len(samples(prompts, responses, proxy, gold, count=4)) == 4
    (only,) = samples(prompts[:1], responses[:1], None, gold[:1])
    assert only[:2] == ("p", "w") and math.isnan(only.proxy) and only.gold == -1.0
    (only,) = samples(prompts[:1], responses[:1], proxy[:1], None)
    assert only.proxy == 1.0 and math.isnan(only.gold)
    assert all(type(score) is float for sample in samples(prompts, responses, proxy, gold) for score in sample[2:])
