"""Log-probs, entropy and KL against probabilities worked out by hand, a slow loop and exact enumeration."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.testing import assert_close

from picollm_lite.kernels.logprobs import entropy, kl_exact, kl_k1, kl_k2, kl_k3, log_odds, token_logprobs

LN2, LN3 = math.log(2), math.log(3)
INF = float("inf")
ESTIMATORS = [kl_k1, kl_k2, kl_k3]
differences = st.floats(-30, 30, allow_nan=False, width=32)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def token_logprobs_loop(logits, tokens, temperature):
    """log of a softmax written out with Python floats."""
    rows = []
    for row, ids in zip(logits.tolist(), tokens.tolist(), strict=True):
        weights = [[math.exp(z / temperature) for z in position] for position in row]
        rows.append([math.log(w[i] / sum(w)) for w, i in zip(weights, ids, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


def test_token_logprobs_of_known_probabilities():
    half_quarter_quarter = torch.tensor([2.0, 1.0, 1.0]).log().expand(1, 3, 3)
    assert_close(
        token_logprobs(half_quarter_quarter, torch.tensor([[0, 1, 2]])), torch.tensor([[-LN2, -2 * LN2, -2 * LN2]])
    )


def test_each_position_reads_its_own_row_of_logits():
    logits = torch.tensor([[[0.0, LN3], [LN3, 0.0]]])  # p = (1/4, 3/4), then (3/4, 1/4)
    assert_close(token_logprobs(logits, torch.tensor([[1, 1]])).exp(), torch.tensor([[0.75, 0.25]]))


@pytest.mark.parametrize(("temperature", "odds"), [(2.0, 3.0), (1.0, 9.0), (0.5, 81.0)])
def test_temperature_divides_the_logits(temperature, odds):
    logits = torch.tensor([[[0.0, 2 * LN3]]])
    got = token_logprobs(logits, torch.tensor([[1]]), temperature=temperature)
    assert_close(got.exp(), torch.tensor([[odds / (1 + odds)]]))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_equals_a_slow_loop(temperature):
    logits, tokens = normal(3, 5, 7), torch.arange(15).view(3, 5) % 7
    expected = token_logprobs_loop(logits, tokens, temperature)
    assert_close(token_logprobs(logits, tokens, temperature=temperature), expected)


# The block edge falls between rows, inside a row, and after every single position.
@pytest.mark.parametrize("shape", [(70, 40, 200), (3, 5, 2**17), (2, 3, 2**18 + 1)])
def test_blocks_change_neither_value_nor_gradient(shape):
    logits = normal(*shape, dtype=torch.float32).requires_grad_()
    whole = logits.detach().clone().requires_grad_()
    tokens = torch.arange(shape[0] * shape[1]).view(shape[:2]) * 31 % shape[2]
    weights = normal(*shape[:2], seed=1, dtype=torch.float32)
    expected = torch.log_softmax(whole, -1).gather(-1, tokens[..., None]).squeeze(-1)
    (expected * weights).sum().backward()
    got = token_logprobs(logits, tokens)
    (got * weights).sum().backward()
    assert_close(got, expected, rtol=1e-6, atol=1e-5)
    assert_close(logits.grad, whole.grad, rtol=1e-5, atol=1e-7)
    p = torch.softmax(whole.detach().double(), -1)
    assert_close(entropy(whole.detach()).double(), -(p * p.log()).sum(-1), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_gradient(temperature):
    tokens = torch.tensor([[0, 3, 3], [1, 2, 4]])
    logits = normal(2, 3, 5).requires_grad_()
    assert gradcheck(lambda z: token_logprobs(z, tokens, temperature=temperature), (logits,))


def test_gradient_reaches_only_the_scored_slice_of_a_longer_row():
    full = normal(2, 6, 5).requires_grad_()
    tokens = torch.tensor([[0, 1, 2], [4, 3, 2]])
    got = token_logprobs(full[:, 2:-1], tokens)  # a strided view
    assert_close(got, token_logprobs_loop(full[:, 2:-1], tokens, 1.0))
    got.sum().backward()
    assert_close(full.grad[:, [0, 1, 5]], torch.zeros(2, 3, 5, dtype=torch.float64))
    assert_close(full.grad.sum(-1), torch.zeros(2, 6, dtype=torch.float64))  # 1 - sum p
    assert (full.grad[:, 2:-1].gather(-1, tokens[..., None]) > 0).all()


@pytest.mark.parametrize("shape", [(16, 64, 1024), (1, 512, 2048)])
def test_scoring_allocates_less_than_a_second_tensor_of_logits(shape):
    logits, tokens = torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.long)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        token_logprobs(logits, tokens)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest <= logits.nbytes / 4 + tokens.nbytes


def test_half_precision_is_scored_in_fp32():
    logits = normal(2, 3, 50).bfloat16().requires_grad_()
    tokens = torch.tensor([[0, 10, 20], [30, 40, 49]])
    got = token_logprobs(logits, tokens)
    assert got.dtype == torch.float32
    assert_close(got.double(), token_logprobs_loop(logits.double(), tokens, 1.0), rtol=1e-6, atol=1e-5)
    got.sum().backward()
    exact = logits.detach().double().requires_grad_()
    token_logprobs(exact, tokens).sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    assert_close(logits.grad.double(), exact.grad, rtol=0.01, atol=1e-4)


def test_forbidden_tokens_and_huge_logits_stay_finite():
    logits = torch.tensor([[[1e4, 1e4, -INF], [0.0, -1e4, -INF]]], requires_grad=True)
    got = token_logprobs(logits, torch.tensor([[0, 1]]))
    assert_close(got, torch.tensor([[-LN2, -1e4]]))
    got.sum().backward()
    assert_close(logits.grad, torch.tensor([[[0.5, -0.5, 0.0], [-1.0, 1.0, 0.0]]]))


@pytest.mark.parametrize(
    ("logits", "tokens"), [((2, 3, 4), (2, 2)), ((2, 3, 4), (1, 3)), ((2, 3, 4), (2, 3, 1)), ((3, 4), (3,))]
)
def test_token_logprobs_refuses_shapes_that_gather_would_accept(logits, tokens):
    with pytest.raises(ValueError, match=r"expected logits \(B, T, V\) and tokens \(B, T\), got \("):
        token_logprobs(torch.zeros(logits), torch.zeros(tokens, dtype=torch.long))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_token_logprobs_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=f"expected temperature > 0, got {temperature}"):
        token_logprobs(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), temperature=temperature)


def test_entropy_of_known_distributions():
    logits = torch.tensor(
        [[[0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 1.0, 0.0], [5.0, -INF, -INF, -INF], [900.0, 0.0, 0.0, 0.0]]]
    )
    logits[0, 1] = logits[0, 1].log()  # p = (1/2, 1/4, 1/4, 0)
    assert_close(entropy(logits), torch.tensor([[2 * LN2, 1.5 * LN2, 0.0, 0.0]]))


def test_entropy_gradient():
    assert gradcheck(entropy, (normal(2, 3, 5).requires_grad_(),))
    logits = torch.tensor([[[1.0, 0.0, -INF]]], requires_grad=True)
    two = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    entropy(logits).sum().backward()
    entropy(two).sum().backward()
    assert_close(logits.grad, torch.nn.functional.pad(two.grad, (0, 1)))


def test_entropy_and_kl_read_half_precision_in_fp32():
    logits = torch.zeros(1, 1, 1000, dtype=torch.bfloat16)
    assert_close(entropy(logits), torch.full((1, 1), math.log(1000)))
    assert kl_exact(logits, logits).dtype == torch.float32


def test_kl_exact_is_policy_to_reference():
    policy, ref = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    assert_close(kl_exact(policy, ref), torch.tensor([[0.5 * math.log(4 / 3)]]))  # .5 log 2 + .5 log(2/3)
    assert_close(kl_exact(ref, policy), torch.tensor([[0.75 * LN3 - LN2]]))  # .25 log(1/2) + .75 log(3/2)


def test_kl_exact_ignores_the_scale_of_the_logits_and_is_0_for_a_copy():
    policy, ref = normal(2, 3, 11), normal(2, 3, 11, seed=1)
    assert_close(kl_exact(policy + 7, ref - 3), kl_exact(policy, ref))
    assert (kl_exact(policy, policy.clone()) == 0).all()


def test_kl_exact_where_a_probability_is_0():
    some, all_ = torch.tensor([[[0.0, 0.0, -INF]]], requires_grad=True), torch.zeros(1, 1, 3, requires_grad=True)
    assert_close(kl_exact(some, all_), torch.tensor([[math.log(3 / 2)]]))
    assert kl_exact(all_, some).item() == INF
    assert kl_exact(some, some.detach()).item() == 0
    kl_exact(some, all_).sum().backward()
    assert_close(some.grad, torch.zeros(1, 1, 3))
    assert_close(all_.grad, torch.tensor([[[-1 / 6, -1 / 6, 1 / 3]]]))  # q - p


@given(st.lists(st.tuples(differences, differences), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_kl_exact_is_never_negative(pairs):
    policy, ref = torch.tensor(pairs).T[:, None, None]
    assert kl_exact(policy, ref).item() >= -1e-5


def test_kl_exact_gradient():
    assert gradcheck(kl_exact, (normal(2, 2, 4).requires_grad_(), normal(2, 2, 4, seed=1).requires_grad_()))


def test_estimators_at_half_a_nat():
    half, zero = torch.tensor([[0.5, 0.0]]), torch.tensor([[0.0, 0.5]])  # log pi / pi_ref is .5, then -.5
    assert_close(kl_k1(half, zero), torch.tensor([[0.5, -0.5]]))
    assert_close(kl_k2(half, zero), torch.tensor([[0.125, 0.125]]))
    assert_close(kl_k3(half, zero), torch.tensor([[0.106531, 0.148721]]), rtol=0, atol=1e-6)  # e^-.5 - .5, e^.5 - 1.5


def test_k1_and_k3_are_unbiased_for_the_exact_kl():
    """The expectation over every token of the vocabulary, each weighted with the policy's probability."""
    policy, ref = normal(1, 1, 6), normal(1, 1, 6, seed=1)
    logp, ref_logp = policy.log_softmax(-1)[0], ref.log_softmax(-1)[0]  # (1, V): the vocabulary as positions
    exact = kl_exact(policy, ref)[0, 0]
    assert_close((logp.exp() * kl_k1(logp, ref_logp)).sum(), exact)
    assert_close((logp.exp() * kl_k3(logp, ref_logp)).sum(), exact)
    assert abs((ref_logp.exp() * kl_k3(logp, ref_logp)).sum() - exact) > 0.1  # not on samples from the reference


@given(differences)
def test_k2_and_k3_are_never_negative(difference):
    logp = torch.tensor([[difference]])
    assert kl_k2(logp, torch.zeros(1, 1)).item() >= 0
    assert kl_k3(logp, torch.zeros(1, 1)).item() >= -1e-6 * abs(difference)


def test_k3_keeps_its_digits_near_0():
    logp = torch.tensor([[1e-3, -1e-3]])
    assert_close(
        kl_k3(logp, torch.zeros(1, 2)), torch.full((1, 2), 5e-7), rtol=1e-3, atol=0
    )  # d^2 / 2; exp - 1: 5 % off


def test_k3_is_capped_far_below_the_reference_and_still_pulls_back():
    logp = torch.tensor([[-21.0, -1000.0, 1000.0]], requires_grad=True)
    got = kl_k3(logp, torch.zeros(1, 3))
    capped = math.exp(20) - 21
    assert_close(got, torch.tensor([[capped, capped, 999.0]]))
    got.sum().backward()
    assert_close(logp.grad, torch.tensor([[1 - math.exp(20), 1 - math.exp(20), 1.0]]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimator_gradients(estimator):
    assert gradcheck(estimator, (normal(2, 3).requires_grad_(), normal(2, 3, seed=1).requires_grad_()))


@pytest.mark.parametrize("estimator", [*ESTIMATORS, kl_exact])
def test_kl_refuses_shapes_that_would_broadcast(estimator):
    policy, ref = torch.zeros(2, 3, 4), torch.zeros(1, 3, 4)
    with pytest.raises(ValueError, match=r"expected tensors of one shape, got \(2, 3, 4\), \(1, 3, 4\)"):
        estimator(policy, ref)


def test_log_odds():
    p = torch.tensor([0.5, 0.8, 0.2], dtype=torch.float64)
    assert_close(log_odds(p.log()), torch.tensor([0.0, 2 * LN2, -2 * LN2], dtype=torch.float64))
    assert_close(log_odds(torch.tensor([-1e-5, -1000.0])), torch.tensor([math.log(1e5), -1000.0]))
    assert gradcheck(log_odds, (torch.tensor([-0.1, -3.0], dtype=torch.float64, requires_grad=True),))
    certain = torch.tensor([0.0], requires_grad=True)
    log_odds(certain).backward()
    assert log_odds(certain).isfinite().all() and certain.grad.isfinite().all()


def test_entropy_and_kl_are_not_rounded_under_autocast():
    logits, ref_logits = torch.randn(2, 3, 50), torch.randn(2, 3, 50)
    exact = entropy(logits), kl_exact(logits, ref_logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close((entropy(logits), kl_exact(logits, ref_logits)), exact, rtol=0, atol=0)
