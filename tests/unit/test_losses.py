"""Every loss on numbers worked out by hand, its gradient, what must not matter to it, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.testing import assert_close

from picollm_lite.kernels.losses import (
    bradley_terry_loss,
    cdpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    ppo_policy_loss,
    ppo_value_loss,
    robust_dpo_loss,
    sft_loss,
    simpo_loss,
)

LN2, LN3 = math.log(2), math.log(3)
NAN = float("nan")
PAIRED = [dpo_loss, cdpo_loss, robust_dpo_loss, hinge_loss, ipo_loss]
SMOOTHED = [cdpo_loss, robust_dpo_loss]
numbers = st.floats(-2, 2, allow_nan=False, width=32)
# h = 0, 10 and 20 nats
PAIRS = {
    "policy_chosen_logp": torch.tensor([-0.5, -10.0, -1.0]),
    "policy_rejected_logp": torch.tensor([-0.1, -30.0, -21.0]),
    "ref_chosen_logp": torch.tensor([-0.5, -10.1, -0.1]),
    "ref_rejected_logp": torch.tensor([-0.1, -20.1, -0.1]),
}


def bools(*rows):
    return torch.tensor([[digit == "1" for digit in row] for row in rows])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs_with_margin(h):
    """A batch of one pair whose policy log-ratio exceeds the reference's by h, with a gradient on the policy."""
    chosen = torch.tensor([-3.0 + h], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-5.0], dtype=torch.float64, requires_grad=True)
    return chosen, rejected, torch.tensor([-3.0], dtype=torch.float64), torch.tensor([-5.0], dtype=torch.float64)


def test_sft_loss_is_the_mean_over_counted_tokens():
    logp = torch.tensor([[-1.0, -2.0, NAN], [-6.0, NAN, NAN]], requires_grad=True)
    loss = sft_loss(logp, bools("110", "100"))
    assert loss.item() == 3.0
    loss.backward()
    assert_close(logp.grad, torch.tensor([[-1 / 3, -1 / 3, 0.0], [-1 / 3, 0.0, 0.0]]))


def test_bradley_terry_by_hand():
    chosen, rejected = torch.tensor([1.0, 3.0, 1.0]), torch.tensor([1.0, 1.0, 3.0])
    assert_close(bradley_terry_loss(chosen, rejected), torch.tensor([LN2, 0.126928, 2.126928]), rtol=0, atol=1e-6)
    with_margin = bradley_terry_loss(chosen, rejected, margin=torch.tensor([0.0, 1.0, -2.0]))
    assert_close(with_margin, torch.tensor([LN2, 0.313262, LN2]), rtol=0, atol=1e-6)  # log(1 + e^-1)
    assert_close(bradley_terry_loss(torch.tensor([-1e4]), torch.tensor([0.0])), torch.tensor([1e4]))


def test_bradley_terry_gradient_and_errors():
    assert gradcheck(lambda c, r, m: bradley_terry_loss(c, r, margin=m), tuple(normal(3, 4).requires_grad_()))
    three = torch.zeros(3)
    for scores, margin in ((torch.zeros(1), None), (torch.zeros(3, 1), None), (three, torch.zeros(1))):
        with pytest.raises(ValueError, match=r"expected tensors of one shape, got \(3,\), "):
            bradley_terry_loss(three, scores, margin=margin)


def ppo_inputs():
    """Ratios 1.5, .5, 1.5, .5, 1.1 with advantages 1, 1, -1, -1, 2 and garbage where the mask is False."""
    rho = torch.tensor([[1.5, 0.5, 1.5, 1.0], [0.5, 1.1, 1.0, 1.0]])
    old_logp = torch.tensor([[-1.0, -2.0, -3.0, NAN], [-4.0, -5.0, 90.0, NAN]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, 50.0], [-1.0, 2.0, NAN, 50.0]])
    return (old_logp + rho.log()).requires_grad_(), old_logp, advantages, bools("1110", "1100")


def test_ppo_policy_loss_by_hand():
    """min(1.5, 1.2), min(.5, .8), min(-1.5, -1.2), min(-.5, -.8), 2.2 = 1.2, .5, -1.5, -.8, 2.2: their mean is .32."""
    logp, old_logp, advantages, mask = ppo_inputs()
    loss = ppo_policy_loss(logp, old_logp, advantages, mask, clip=0.2)
    assert_close(loss, torch.tensor(-0.32))
    assert_close(ppo_policy_loss(logp, old_logp, advantages, mask), loss)  # .2 is the default
    loss.backward()  # -rho A / 5, and 0 where the clipped branch won
    assert_close(logp.grad, torch.tensor([[0.0, -0.1, 0.3, 0.0], [0.0, -0.44, 0.0, 0.0]]))


def test_ppo_policy_loss_wider_clip():
    """With clip .6 no ratio is clipped: surrogates 1.5, .5, -1.5, -.5, 2.2, mean .44."""
    assert_close(ppo_policy_loss(*ppo_inputs(), clip=0.6), torch.tensor(-0.44))


def test_ppo_on_its_own_samples_is_the_policy_gradient():
    """At rho = 1 the loss is -mean(A) and its gradient -A / n, even when live log-probs are passed as the old ones."""
    logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantages = torch.tensor([[3.0, -1.0]], requires_grad=True)
    loss = ppo_policy_loss(logp, logp, advantages, bools("11"))
    assert loss.item() == -1.0
    loss.backward()
    assert_close(logp.grad, torch.tensor([[-1.5, 0.5]]))
    assert advantages.grad is None


def test_ppo_caps_a_ratio_that_would_overflow_and_still_pulls_it_back():
    logp = torch.tensor([[0.0, 0.0]], requires_grad=True)
    loss = ppo_policy_loss(logp, torch.tensor([[-200.0, -200.0]]), torch.tensor([[-1.0, 1.0]]), bools("11"))
    assert_close(loss, torch.tensor((math.exp(20) - 1.2) / 2))
    loss.backward()
    assert_close(logp.grad, torch.tensor([[math.exp(20) / 2, 0.0]]))


@given(st.lists(st.tuples(numbers, numbers, numbers, st.booleans()), min_size=2, max_size=6), st.floats(0.05, 0.9))
@settings(max_examples=60, deadline=None)
def test_ppo_policy_loss_equals_a_slow_loop(tokens, clip):
    logp, old_logp, advantages, keep = zip(*tokens, strict=True)
    keep = (True, *keep[1:])
    surrogates = []
    for new, old, advantage, kept in zip(logp, old_logp, advantages, keep, strict=True):
        ratio = math.exp(new - old)
        limit = 1 + clip if advantage > 0 else 1 - clip
        beyond = ratio > limit if advantage > 0 else ratio < limit
        surrogates += [(limit if beyond else ratio) * advantage] if kept else []
    rows = [torch.tensor([x], dtype=torch.float64) for x in (logp, old_logp, advantages)]
    got = ppo_policy_loss(*rows, torch.tensor([keep]), clip=clip)
    assert got.item() == pytest.approx(-sum(surrogates) / len(surrogates), abs=1e-9)


def value_inputs():
    """V = 1, -1, .1, .5 after V_old = 0, towards R = 1, 1, 0, .2."""
    values = torch.tensor([[1.0, -1.0, NAN, 5.0], [7.0, 0.1, 0.5, 0.1]], requires_grad=True)
    old_values = torch.tensor([[0.0, 0.0, 0.0, NAN], [NAN, 0.0, 0.0, 0.0]])
    returns = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.2, NAN]])
    return values, old_values, returns, bools("1100", "0110")


def test_ppo_value_loss_by_hand():
    """max(0, .8^2), max(4, 1.2^2), .01, max(.3^2, 0) = .64, 4, .01, .09: half their mean is .5925."""
    inputs = value_inputs()
    loss = ppo_value_loss(*inputs, clip=0.2)
    assert_close(loss, torch.tensor(0.5925))
    assert_close(ppo_value_loss(*inputs), loss)
    loss.backward()  # (V - R) / 4, and 0 where the clipped branch won
    assert_close(inputs[0].grad, torch.tensor([[0.0, -0.5, 0.0, 0.0], [0.0, 0.025, 0.075, 0.0]]))


def test_ppo_value_loss_wider_clip_and_constants():
    """With clip .9 the squared errors are .1^2 for the first, 4, .01 and .09 for the others."""
    assert_close(ppo_value_loss(*value_inputs(), clip=0.9), torch.tensor(0.5 * (0.01 + 4 + 0.01 + 0.09) / 4))
    values, old_values, returns = (torch.tensor([[x]], requires_grad=True) for x in (2.0, 1.9, 1.0))
    ppo_value_loss(values, old_values, returns, bools("1")).backward()
    assert values.grad.item() == 1.0 and old_values.grad is None and returns.grad is None


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6), st.floats(0.05, 0.9))
@settings(max_examples=60, deadline=None)
def test_ppo_value_loss_equals_a_slow_loop(tokens, clip):
    total = 0.0
    for value, old, target in tokens:
        near = old + math.copysign(min(abs(value - old), clip), value - old)
        total += max((value - target) ** 2, (near - target) ** 2) / 2
    rows = [torch.tensor([x], dtype=torch.float64) for x in zip(*tokens, strict=True)]
    got = ppo_value_loss(*rows, torch.ones(1, len(tokens)).bool(), clip=clip)
    assert got.item() == pytest.approx(total / len(tokens), abs=1e-9)


@pytest.mark.parametrize("loss", [ppo_policy_loss, ppo_value_loss])
def test_ppo_gradients(loss):
    x, y, z = normal(3, 2, 4)
    assert gradcheck(lambda x: loss(x, y, z, bools("0111", "1100")), (x.clone().requires_grad_(),))


MASKED = {
    "sft": (1, lambda *x, mask: sft_loss(*x, mask)),
    "policy": (3, lambda *x, mask, **setting: ppo_policy_loss(*x, mask, **setting)),
    "value": (3, lambda *x, mask, **setting: ppo_value_loss(*x, mask, **setting)),
}


@pytest.mark.parametrize(("count", "loss"), MASKED.values(), ids=MASKED.keys())
def test_masked_losses_refuse_wrong_masks_and_shapes(count, loss):
    x, mask = [torch.zeros(2, 3)] * count, torch.ones(2, 3).bool()
    with pytest.raises(ValueError, match=r"expected a bool tensor, got torch\.float32"):
        loss(*x, mask=mask.float())
    with pytest.raises(ValueError, match=r"expected a mask with at least one True, got none in shape \(2, 3\)"):
        loss(*x, mask=~mask)
    for wrong in range(count):
        shapes = [torch.zeros(1, 3) if i == wrong else torch.zeros(2, 3) for i in range(count)]
        with pytest.raises(ValueError, match=r"expected tensors of one shape, got \(2, 3\), .*\(1, 3\)"):
            loss(*shapes, mask=mask)


@pytest.mark.parametrize("loss", [ppo_policy_loss, ppo_value_loss])
@pytest.mark.parametrize("clip", [0.0, -0.2])
def test_ppo_refuses_a_clip_that_is_not_positive(loss, clip):
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=f"expected clip > 0, got {clip}"):
        loss(x, x, x, bools("11"), clip=clip)


FIXTURE = [
    (dpo_loss, {}, [0.693147, 0.313262, 0.126928]),
    (cdpo_loss, {"label_smoothing": 0.1}, [0.693147, 0.413262, 0.326928]),
    (robust_dpo_loss, {"label_smoothing": 0.1}, [0.693147, 0.188262, -0.123072]),
    (ipo_loss, {}, [25.0, 25.0, 225.0]),
    (hinge_loss, {}, [1.0, 0.0, 0.0]),
]


@pytest.mark.parametrize(("loss", "settings_", "expected"), FIXTURE)
def test_preference_loss_fixture(loss, settings_, expected):
    got = loss(**PAIRS, beta=0.1, **settings_)
    assert_close(got.losses, torch.tensor(expected), rtol=1e-5, atol=2e-6)
    assert_close(got.chosen_rewards, torch.tensor([0.0, 0.01, -0.09]))
    assert_close(got.rejected_rewards, torch.tensor([0.0, -0.99, -2.09]))
    assert_close(loss(**PAIRS, beta=0.1), got)  # label smoothing of .1 is the default
    assert_close(loss(**PAIRS), got)


@pytest.mark.parametrize("loss", PAIRED)
def test_beta_scales_rewards_and_only_the_pair_difference_counts(loss):
    got = loss(**PAIRS, beta=0.3)
    assert_close(got.chosen_rewards, torch.tensor([0.0, 0.03, -0.27]))
    shifted = {name: x + (4.0 if "chosen" in name else -7.0) for name, x in PAIRS.items()}
    assert_close(loss(**shifted, beta=0.3).losses, got.losses, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", PAIRED)
def test_rewards_carry_no_gradient_and_losses_pass_gradcheck(loss):
    inputs = tuple(normal(4, 3).requires_grad_())
    got = loss(*inputs)
    assert got.losses.requires_grad and not got.chosen_rewards.requires_grad and not got.rejected_rewards.requires_grad
    assert gradcheck(lambda *x: loss(*x).losses, inputs)


@pytest.mark.parametrize("loss", [dpo_loss, cdpo_loss, robust_dpo_loss])
def test_dpo_starts_at_ln_2_and_raises_chosen(loss):
    chosen, rejected, ref_chosen, ref_rejected = pairs_with_margin(0.0)
    got = loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.2)
    assert got.losses.item() == pytest.approx(LN2)
    got.losses.sum().backward()
    slope = {dpo_loss: 0.1, cdpo_loss: 0.1 * 0.8, robust_dpo_loss: 0.1 / 0.8}[
        loss
    ]  # beta / 2 times 1 - 2 eps or its inverse
    assert chosen.grad.item() == pytest.approx(-slope)
    assert rejected.grad.item() == pytest.approx(slope)


def test_dpo_stays_finite_at_extreme_margins():
    chosen, rejected, *ref = pairs_with_margin(-1e6)
    got = dpo_loss(chosen, rejected, *ref, beta=1.0)
    assert got.losses.item() == pytest.approx(1e6)
    got.losses.sum().backward()
    assert chosen.grad.item() == -1.0


def test_cdpo_is_least_where_the_reward_says_one_label_in_ten_is_wrong():
    chosen, rejected, *ref = pairs_with_margin(10 * math.log(9))  # sigmoid(log 9) = .9
    cdpo_loss(chosen, rejected, *ref, beta=0.1, label_smoothing=0.1).losses.sum().backward()
    assert chosen.grad.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.3])
def test_robust_dpo_averages_to_dpo_over_flipped_labels(eps):
    chosen, rejected, ref_chosen, ref_rejected = PAIRS.values()
    as_labeled = robust_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, label_smoothing=eps).losses
    flipped = robust_dpo_loss(rejected, chosen, ref_rejected, ref_chosen, label_smoothing=eps).losses
    assert_close((1 - eps) * as_labeled + eps * flipped, dpo_loss(**PAIRS).losses)


def test_hinge_is_linear_below_the_margin_and_flat_above():
    for h, loss, slope in ((-10.0, 2.0, -0.1), (4.0, 0.6, -0.1), (11.0, 0.0, 0.0)):
        chosen, rejected, *ref = pairs_with_margin(h)
        got = hinge_loss(chosen, rejected, *ref, beta=0.1).losses
        got.sum().backward()
        assert got.item() == pytest.approx(loss) and chosen.grad.item() == pytest.approx(slope)


def test_ipo_is_0_at_its_target_margin():
    for beta, h, expected in ((0.5, 1.0, 0.0), (0.5, 4.0, 9.0), (0.05, 10.0, 0.0), (0.05, 7.0, 9.0)):
        chosen, rejected, *ref = pairs_with_margin(h)
        assert ipo_loss(chosen, rejected, *ref, beta=beta).losses.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("loss", PAIRED)
def test_preference_losses_refuse_wrong_shapes_and_beta(loss):
    for name in PAIRS:
        for shape in ((1,), (3, 1)):
            with pytest.raises(ValueError, match=r"expected tensors of one shape, got .*\(3,\)"):
                loss(**{**PAIRS, name: torch.zeros(shape)})
    for beta in (0.0, -0.1, NAN):
        with pytest.raises(ValueError, match=f"expected beta > 0, got {beta}"):
            loss(**PAIRS, beta=beta)


@pytest.mark.parametrize("loss", SMOOTHED)
@pytest.mark.parametrize("eps", [-0.1, 0.5, 0.9])
def test_label_smoothing_is_at_least_0_and_below_one_half(loss, eps):
    with pytest.raises(ValueError, match=rf"expected label_smoothing in \[0, 0.5\), got {eps}"):
        loss(**PAIRS, label_smoothing=eps)


def test_simpo_by_hand():
    """Averages -1 and -3 give rewards -2 and -6: m - gamma = 3. Equal averages give m - gamma = -1."""
    chosen, rejected = torch.tensor([-4.0, -4.0]), torch.tensor([-6.0, -8.0])
    got = simpo_loss(chosen, rejected, torch.tensor([4, 2]), torch.tensor([2, 4]), beta=2.0, gamma=1.0)
    assert_close(got.chosen_rewards, torch.tensor([-2.0, -4.0]))
    assert_close(got.rejected_rewards, torch.tensor([-6.0, -4.0]))
    assert_close(got.losses, torch.tensor([0.048587, 1.313262]), rtol=0, atol=1e-6)  # log(1 + e^-3), log(1 + e)
    assert_close(simpo_loss(chosen, rejected, torch.tensor([4, 2]), torch.tensor([2, 4])), got)
    narrow = simpo_loss(chosen, rejected, torch.tensor([4, 2]), torch.tensor([2, 4]), beta=0.5, gamma=0.0)
    assert_close(narrow.losses, torch.tensor([0.313262, LN2]), rtol=0, atol=1e-6)  # m = 1, 0


def test_simpo_gradient_and_errors():
    lengths = torch.tensor([3, 1, 5])
    inputs = tuple(normal(2, 3).requires_grad_())
    assert gradcheck(lambda c, r: simpo_loss(c, r, lengths, lengths.flip(0)).losses, inputs)
    assert not simpo_loss(*inputs, lengths, lengths).chosen_rewards.requires_grad
    for wrong in ((lengths, torch.tensor([1, 0, 2])), (torch.tensor([1, 0, 2]), lengths)):
        with pytest.raises(ValueError, match="expected shortest_length > 0, got 0"):
            simpo_loss(*inputs, *wrong)
    with pytest.raises(ValueError, match=r"expected tensors of one shape, got \(3,\), \(3,\), \(3,\), \(1,\)"):
        simpo_loss(*inputs, lengths, torch.tensor([2]))
    with pytest.raises(ValueError, match="expected beta > 0, got 0"):
        simpo_loss(*inputs, lengths, lengths, beta=0)
    with pytest.raises(ValueError, match=r"expected gamma in \[0.0, inf\], got -1"):
        simpo_loss(*inputs, lengths, lengths, gamma=-1)


def test_orpo_by_hand():
    """p = .8 against .5: odds ratio 4, -log sigmoid(log 4) = log 1.25. p = .2 against .8: odds ratio 1/16, log 17."""
    chosen, rejected = torch.tensor([0.8, 0.2]).log(), torch.tensor([0.5, 0.8]).log()
    got = orpo_loss(chosen, rejected, lam=0.5)
    assert_close(got.losses, torch.tensor([1.5 * math.log(1.25), math.log(5) + 0.5 * math.log(17)]))
    assert_close(got.chosen_rewards, torch.tensor([2 * LN2, -2 * LN2]))
    assert_close(got.rejected_rewards, torch.tensor([0.0, 2 * LN2]), rtol=0, atol=1e-6)
    assert_close(orpo_loss(chosen, rejected, lam=0.0).losses, -chosen)
    assert_close(orpo_loss(chosen, rejected).losses[0], torch.tensor(1.1 * math.log(1.25)))


def test_orpo_gradient_is_finite_at_certainty():
    inputs = tuple((-normal(2, 3).abs() - 0.1).requires_grad_())
    assert gradcheck(lambda c, r: orpo_loss(c, r).losses, inputs)
    assert not orpo_loss(*inputs).chosen_rewards.requires_grad
    chosen, rejected = torch.tensor([0.0, -200.0], requires_grad=True), torch.tensor([-200.0, 0.0], requires_grad=True)
    got = orpo_loss(chosen, rejected)
    got.losses.sum().backward()
    assert all(x.isfinite().all() for x in (*got, chosen.grad, rejected.grad))


def test_orpo_errors():
    with pytest.raises(ValueError, match=r"expected tensors of one shape, got \(3,\), \(1,\)"):
        orpo_loss(torch.zeros(3), torch.zeros(1))
    with pytest.raises(ValueError, match=r"expected lam in \[0.0, inf\], got -0.5"):
        orpo_loss(torch.zeros(3), torch.zeros(3), lam=-0.5)


def kto_inputs():
    """Two answers, one good and one bad, whose beta log-ratio is log 3 at beta = .1."""
    ref_logp = torch.tensor([-40.0, -50.0])
    return ref_logp + 10 * LN3, ref_logp, torch.tensor([True, False])


def test_kto_by_hand():
    got = kto_loss(*kto_inputs(), z0=0.0)
    assert_close(got.losses, torch.tensor([0.25, 0.75]))  # 1 - sigmoid(log 3), 1 - sigmoid(-log 3)
    assert_close(got.rewards, torch.tensor([LN3, LN3]))
    at_reference = kto_loss(*kto_inputs(), z0=torch.tensor(10 * LN3), desirable_weight=2.0, undesirable_weight=3.0)
    assert_close(at_reference.losses, torch.tensor([1.0, 1.5]))
    above = kto_loss(*kto_inputs(), z0=20 * LN3)
    assert_close(above.losses, torch.tensor([0.75, 0.25]))
    steep = kto_loss(*kto_inputs(), z0=5 * LN3, beta=0.2)
    assert_close(steep.losses, torch.tensor([0.25, 0.75]))  # .2 (10 - 5) log 3


def test_kto_floors_the_reference_point_and_gives_it_no_gradient():
    z0 = torch.tensor(-3.0, requires_grad=True)
    assert_close(kto_loss(*kto_inputs(), z0=z0).losses, kto_loss(*kto_inputs(), z0=0.0).losses)
    assert not kto_loss(*kto_inputs(), z0=z0).losses.requires_grad


def test_kto_gradient():
    policy, ref = (x.clone().requires_grad_() for x in normal(2, 4))
    desirable = torch.tensor([True, False, True, False])

    def loss(policy_logp, ref_logp):
        return kto_loss(policy_logp, ref_logp, desirable, z0=0.5, beta=0.7, undesirable_weight=1.3).losses

    assert gradcheck(loss, (policy, ref))
    assert not kto_loss(policy, ref, desirable, z0=0.5).rewards.requires_grad
    loss(policy, ref).sum().backward()
    assert (policy.grad[desirable] < 0).all() and (policy.grad[~desirable] > 0).all()


def test_kto_errors():
    policy, ref, desirable = kto_inputs()
    with pytest.raises(ValueError, match=r"expected a bool tensor, got torch\.int64"):
        kto_loss(policy, ref, desirable.long(), z0=0.0)
    with pytest.raises(ValueError, match=r"expected tensors of one shape, got \(2,\), \(1,\), \(2,\)"):
        kto_loss(policy, ref[:1], desirable, z0=0.0)
    with pytest.raises(ValueError, match=r"expected tensors of one shape, got \(2,\), \(2,\), \(1,\)"):
        kto_loss(policy, ref, desirable[:1], z0=0.0)
    with pytest.raises(ValueError, match=r"expected one z0 for the batch, got shape \(2,\)"):
        kto_loss(policy, ref, desirable, z0=torch.zeros(2))
    for name in ("beta", "desirable_weight", "undesirable_weight"):
        with pytest.raises(ValueError, match=f"expected {name} > 0, got 0"):
            kto_loss(policy, ref, desirable, z0=0.0, **{name: 0})
