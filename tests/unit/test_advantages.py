"""Rewards, GAE, whitening and group baselines on numbers worked out by hand, a slow loop and garbage outside masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.testing import assert_close

from picollm_lite.kernels.advantages import gae, group_normalise, leave_one_out, masked_mean, shape_rewards, whiten

NAN = float("nan")
numbers = st.floats(-5, 5, allow_nan=False, width=32)
fractions = st.floats(0, 1, allow_nan=False)
# Ragged rows of six positions: each True span starts and ends anywhere.
spans = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)).filter(lambda s: s[0] < s[1]), min_size=1, max_size=3)


def bools(*rows):
    return torch.tensor([[digit == "1" for digit in row] for row in rows])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def span_mask(spans_):
    return torch.tensor([[start <= t < stop for t in range(6)] for start, stop in spans_])


def spoil(x, mask):
    """x with nan wherever the mask is False."""
    return torch.where(mask, x, torch.full_like(x, NAN))


def gae_loop(rewards, values, mask, gamma, lam):
    """The backward recursion on Python floats, one response at a time."""
    advantages = torch.zeros_like(rewards)
    for row in range(len(mask)):
        advantage, next_value = 0.0, 0.0
        for t in reversed([t for t in range(mask.shape[1]) if mask[row, t]]):
            delta = float(rewards[row, t]) + gamma * next_value - float(values[row, t])
            advantage = delta + gamma * lam * advantage
            next_value = float(values[row, t])
            advantages[row, t] = advantage
    return advantages


def test_masked_mean_counts_tokens_not_rows():
    assert masked_mean(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), bools("0110")).item() == 2.5
    assert masked_mean(torch.tensor([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]]), bools("111", "100")).item() == 2.0


def test_masked_mean_gradient_and_garbage():
    mask = bools("0110", "1000")
    assert gradcheck(lambda x: masked_mean(x, mask), (normal(2, 4).requires_grad_(),))
    x = spoil(torch.ones(2, 4), mask).requires_grad_()
    masked_mean(x, mask).backward()
    assert_close(x.grad, mask / 3)


def test_whiten_fixture():
    x, mask = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), bools("0110")
    assert_close(whiten(x, mask), torch.tensor([[0.0, -1.0, 1.0, 0.0]]))
    assert_close(whiten(x, mask, shift_mean=False), torch.tensor([[0.0, 1.5, 3.5, 0.0]]))


def test_whiten_uses_the_biased_variance():
    got = whiten(torch.tensor([[1.0, 2.0, 3.0]]), bools("111"))  # var 2/3; the unbiased one would give -1, 0, 1
    assert_close(got, torch.tensor([[-math.sqrt(1.5), 0.0, math.sqrt(1.5)]]))


def test_whiten_equal_values_gives_0_and_one_token_too():
    x = torch.full((2, 3), 7.0)
    assert_close(whiten(x, bools("111", "110")), torch.zeros(2, 3))
    assert_close(whiten(x, bools("000", "010"), shift_mean=False), torch.tensor([[0.0] * 3, [0.0, 7.0, 0.0]]))


@given(spans, st.lists(numbers, min_size=18, max_size=18))
@settings(max_examples=60, deadline=None)
def test_whiten_has_mean_0_and_variance_1_under_the_mask(spans_, xs):
    mask = span_mask(spans_)
    x = torch.tensor(xs, dtype=torch.float64).view(3, 6)[: len(mask)]
    got = whiten(spoil(x, mask), mask)
    assert (got[~mask] == 0).all()
    assert abs(got[mask].mean()) < 1e-9
    if x[mask].std(correction=0) > 1e-2:
        assert abs(got[mask].square().mean() - 1) < 1e-3
    kept = whiten(spoil(x, mask), mask, shift_mean=False)
    assert_close(kept[mask], got[mask] + x[mask].mean())


def test_whiten_gradient_and_garbage():
    mask = bools("0110", "1111")
    assert gradcheck(lambda x: whiten(x, mask), (normal(2, 4).requires_grad_(),))
    assert gradcheck(lambda x: whiten(x, mask, shift_mean=False), (normal(2, 4).requires_grad_(),))
    x = spoil(normal(2, 4), mask).requires_grad_()
    whiten(x, mask)[0, 1].backward()
    assert x.grad.isfinite().all()


def test_shape_rewards_by_hand():
    logp = torch.tensor([[9.0, -1.0, -2.0, 9.0], [-1.0, -1.0, -1.0, -1.0], [9.0, 9.0, 9.0, -3.0]])
    ref_logp = torch.tensor([[0.0, -1.5, -1.0, 0.0], [-1.0, -2.0, -1.0, -4.0], [0.0, 0.0, 0.0, -2.0]])
    scores, mask = torch.tensor([2.0, -1.0, 0.5]), bools("0110", "1111", "0001")
    expected = [[0.0, -0.05, 0.1 + 2.0, 0.0], [0.0, -0.1, 0.0, -0.3 - 1.0], [0.0, 0.0, 0.0, 0.1 + 0.5]]
    assert_close(shape_rewards(scores, logp, ref_logp, mask, kl_coef=0.1), torch.tensor(expected))
    bare = torch.tensor([[0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.5]])
    assert_close(shape_rewards(scores, logp, ref_logp, mask, kl_coef=0.0), bare)


@given(spans, st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_shape_rewards_sum_to_the_penalized_score(spans_, kl_coef):
    mask = span_mask(spans_)
    logp, ref_logp, scores = normal(len(mask), 6), normal(len(mask), 6, seed=1), normal(len(mask), seed=2)
    got = shape_rewards(scores, spoil(logp, mask), spoil(ref_logp, mask), mask, kl_coef=kl_coef)
    drift = torch.stack([(p - q)[m].sum() for p, q, m in zip(logp, ref_logp, mask, strict=True)])
    assert_close(got.sum(1), scores - kl_coef * drift)
    assert (got[~mask] == 0).all()


def test_shape_rewards_gradient():
    mask = bools("0110", "1111")
    inputs = (normal(2).requires_grad_(), normal(2, 4, seed=1).requires_grad_(), normal(2, 4, seed=2).requires_grad_())
    assert gradcheck(lambda s, p, q: shape_rewards(s, p, q, mask, kl_coef=0.3), inputs)


def test_shape_rewards_errors():
    x, mask = torch.zeros(3, 4), bools("0110", "0000", "0000")
    with pytest.raises(ValueError, match=r"expected a True in every mask row, got none in rows \[1, 2\]"):
        shape_rewards(torch.zeros(3), x, x, mask, kl_coef=0.1)
    with pytest.raises(ValueError, match=r"expected kl_coef in \[0.0, inf\], got -0.1"):
        shape_rewards(torch.zeros(3), x, x, torch.ones(3, 4).bool(), kl_coef=-0.1)
    for scores in (torch.zeros(1), torch.zeros(3, 1), torch.tensor(0.0)):
        with pytest.raises(ValueError, match="expected tensors of one shape"):
            shape_rewards(scores, x, x, torch.ones(3, 4).bool(), kl_coef=0.1)


def test_gae_with_the_score_on_the_last_token():
    """delta = (.1, .1, 1 - .3); A_2 = .7, A_1 = .1 + .95 * .7 = .765, A_0 = .1 + .95 * .765 = .82675."""
    values, rewards = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    advantages, returns = gae(rewards, values, bools("1110"), gamma=1.0, lam=0.95)
    assert_close(advantages, torch.tensor([[0.82675, 0.765, 0.7, 0.0]]))
    assert_close(returns, torch.tensor([[0.92675, 0.965, 1.0, 0.0]]))
    assert_close(gae(rewards, values, bools("1110")), (advantages, returns))  # these are the defaults


def test_gae_fixture_with_discount():
    """delta = (0, 0, .9, 0), so A and, V being 0 there, the returns are .9 (.855)^k; the last return is r = 1."""
    values = rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    advantages, returns = gae(rewards, values, bools("1111"), gamma=0.9, lam=0.95)
    assert_close(returns, torch.tensor([[0.6579225, 0.7695, 0.9, 1.0]]))
    assert_close(advantages, torch.tensor([[0.6579225, 0.7695, 0.9, 0.0]]))


@given(spans, fractions, fractions, st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_gae_equals_a_slow_loop_whatever_lies_outside_the_mask(spans_, gamma, lam, seed):
    mask = span_mask(spans_)
    rewards, values = normal(len(mask), 6, seed=seed), normal(len(mask), 6, seed=seed + 1000)
    expected = gae_loop(rewards, values, mask, gamma, lam)
    advantages, returns = gae(spoil(rewards, mask), spoil(values, mask), mask, gamma=gamma, lam=lam)
    assert_close(advantages, expected)
    assert_close(returns[mask], (expected + values)[mask])
    assert (returns[~mask] == 0).all()
    assert_close(gae(rewards, values, mask, gamma=gamma, lam=lam), (advantages, returns))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae_lam_1_is_the_return_to_go_less_the_value(gamma):
    rewards, values = normal(2, 5), normal(2, 5, seed=1)
    advantages, returns = gae(rewards, values, torch.ones(2, 5).bool(), gamma=gamma, lam=1.0)
    to_go = torch.stack([sum(gamma**k * rewards[:, t + k] for k in range(5 - t)) for t in range(5)], dim=1)
    assert_close(returns, to_go)
    assert_close(advantages, to_go - values)


def test_gae_lam_0_is_the_td_residual():
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[10.0, 20.0, 40.0]])
    advantages, _ = gae(rewards, values, bools("111"), gamma=0.5, lam=0.0)
    assert_close(advantages, torch.tensor([[1.0 + 10 - 10, 2.0 + 20 - 20, 4.0 - 40]]))


def test_gae_of_a_long_row_and_a_row_without_tokens():
    rewards, values = normal(2, 300), normal(2, 300, seed=1)
    mask = torch.stack([torch.ones(300).bool(), torch.zeros(300).bool()])
    assert_close(gae(rewards, values, mask, gamma=0.99)[0], gae_loop(rewards, values, mask, 0.99, 0.95))


def test_gae_gradient():
    mask = bools("0110", "1111")
    inputs = (normal(2, 4).requires_grad_(), normal(2, 4, seed=1).requires_grad_())
    assert gradcheck(lambda r, v: gae(r, v, mask, gamma=0.9), inputs)


def test_gae_errors():
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"expected one span of True in a mask row, got gaps in rows \[1\]"):
        gae(x, x, bools("0110", "1011", "0001"))
    for setting in ({"gamma": 1.1}, {"lam": -0.1}):
        ((name, value),) = setting.items()
        with pytest.raises(ValueError, match=rf"expected {name} in \[0.0, 1.0\], got {value}"):
            gae(x, x, torch.ones(3, 4).bool(), **setting)


MASKED = {
    "masked_mean": lambda x, mask: masked_mean(x, mask),
    "whiten": lambda x, mask: whiten(x, mask),
    "shape_rewards": lambda x, mask: shape_rewards(torch.zeros(2), x, x, mask, kl_coef=0.1),
    "gae rewards": lambda x, mask: gae(x, torch.zeros(mask.shape), mask),
    "gae values": lambda x, mask: gae(torch.zeros(mask.shape), x, mask),
}


@pytest.mark.parametrize("function", MASKED.values(), ids=MASKED.keys())
def test_masks_are_bool_not_empty_and_of_the_same_shape(function):
    x = torch.zeros(2, 3)
    for mask in (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match=f"expected a bool tensor, got {mask.dtype}"):
            function(x, mask)
    with pytest.raises(ValueError, match=r"expected a mask with at least one True, got none in shape \(2, 3\)"):
        function(x, torch.zeros(2, 3).bool())
    for shape in ((1, 3), (2, 1), (3,)):
        with pytest.raises(ValueError, match=r"expected tensors of one shape, got \(2, 3\), "):
            function(torch.zeros(shape), torch.ones(2, 3).bool())


def test_leave_one_out_by_hand():
    got = leave_one_out(torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0]), 3)  # less (2+6)/2, (1+6)/2, (1+2)/2; ...
    assert_close(got, torch.tensor([-3.0, -1.5, 4.5, -1.5, -1.5, 3.0]))


def test_group_normalise_by_hand():
    scores = torch.tensor([1.0, 3.0, 0.0, 4.0])
    assert_close(group_normalise(scores, 2), torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    assert_close(group_normalise(scores, 2, scale=False), torch.tensor([-1.0, 1.0, -2.0, 2.0]))
    three = group_normalise(torch.tensor([1.0, 2.0, 3.0]), 3)  # biased variance 2/3
    assert_close(three, torch.tensor([-math.sqrt(1.5), 0.0, math.sqrt(1.5)]))
    assert_close(group_normalise(torch.full((3,), 0.1), 3), torch.zeros(3), rtol=0, atol=1e-3)


@given(st.lists(numbers, min_size=4, max_size=4), st.lists(numbers, min_size=4, max_size=4))
def test_groups_sum_to_0_and_do_not_see_each_other(one, other):
    scores = torch.tensor(one + other, dtype=torch.float64)
    for baseline in (leave_one_out, group_normalise):
        got = baseline(scores, 4)
        assert_close(got.view(2, 4).sum(1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-6)
        assert_close(got[:4], baseline(scores[:4], 4))


@pytest.mark.parametrize("baseline", [leave_one_out, group_normalise])
def test_group_baselines_gradients_and_errors(baseline):
    assert gradcheck(lambda s: baseline(s, 3), (normal(6).requires_grad_(),))
    for scores, size in ((torch.zeros(6), 4), (torch.zeros(6), 1), (torch.zeros(6), 0), (torch.zeros(2, 3), 3)):
        with pytest.raises(ValueError, match=rf"expected scores \(B,\) and group_size >= 2 .* and {size}"):
            baseline(scores, size)


def test_gae_is_not_rounded_under_autocast():
    rewards, values, mask = torch.randn(3, 8), torch.randn(3, 8), torch.ones(3, 8, dtype=torch.bool)
    exact = gae(rewards, values, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(gae(rewards, values, mask), exact, rtol=0, atol=0)
