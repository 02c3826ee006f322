"""The losses of methods without a critic, on batches worked out by hand."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from picollm_lite.kernels.group_losses import dr_grpo_loss, grpo_loss, reinforce_loss

LN2 = math.log(2)
NAN = math.nan
MASK = torch.tensor([[True, True, False], [True, False, False]])  # answers of two tokens and of one
A = torch.tensor([1.0, -1.0])
OLD = torch.tensor([[-1.0, -2.0, NAN], [-3.0, NAN, NAN]])
# Ratios 3/2 and 1, and 1/2. The reference finds the first token twice as likely: k3 = 1 - ln 2; elsewhere 0.
LOGP = OLD + torch.tensor([[math.log(1.5), 0.0, 0.0], [-LN2, 0.0, 0.0]])
REF = LOGP + torch.tensor([[LN2, 0.0, 0.0], [0.0, 0.0, 0.0]])


def test_reinforce_by_hand():
    """Sums of -3 and -3 nats, advantages 2 and -1: -(2 (-3) - 1 (-3)) / 2 = 1.5, and -A / 2 is a token's slope."""
    logp = torch.tensor([[-1.0, -2.0, NAN], [-3.0, NAN, NAN]], requires_grad=True)
    loss = reinforce_loss(logp, torch.tensor([2.0, -1.0]), MASK)
    assert loss.item() == pytest.approx(1.5)
    loss.backward()
    assert_close(logp.grad, torch.tensor([[-1.0, -1.0, 0.0], [0.5, 0.0, 0.0]]))


def test_grpo_by_hand():
    """Tokens add min(1.5, 1.2) - (1 - ln 2) and 1; and min(-.5, -.8). Means .946574 and -.8, of both .0732868."""
    got = grpo_loss(LOGP, OLD, REF, A, MASK, clip=0.2, kl_coef=1.0)
    assert got.item() == pytest.approx(-((1.2 - (1 - LN2) + 1) / 2 - 0.8) / 2) == pytest.approx(-0.0732868)
    assert grpo_loss(LOGP, OLD, REF, A, MASK, clip=0.2, kl_coef=0.0).item() == pytest.approx(-(1.1 - 0.8) / 2)
    assert grpo_loss(LOGP, OLD, REF, A, MASK, clip=0.9, kl_coef=0.0).item() == pytest.approx(-(1.25 - 0.5) / 2)


def test_dr_grpo_divides_by_one_length_by_hand():
    """The same sums, 1.893147 and -.8, over 4 each."""
    got = dr_grpo_loss(LOGP, OLD, REF, A, MASK, max_length=4, clip=0.2, kl_coef=1.0)
    assert got.item() == pytest.approx(-((1.2 - (1 - LN2) + 1) - 0.8) / 4 / 2)


def test_at_a_ratio_of_1_the_slope_is_that_of_reinforce():
    """-A / (answers x length) for GRPO, with the length of the answer; -A / (answers x 4) for Dr. GRPO."""
    for loss, options, wanted in (
        (grpo_loss, {}, [[-0.25, -0.25, 0.0], [0.5, 0.0, 0.0]]),
        (dr_grpo_loss, {"max_length": 4}, [[-0.125, -0.125, 0.0], [0.125, 0.0, 0.0]]),
    ):
        logp = OLD.clone().requires_grad_()
        loss(logp, OLD, REF, A, MASK, kl_coef=0.0, **options).backward()
        assert_close(logp.grad, torch.tensor(wanted))


def test_beyond_the_clip_only_the_kl_term_pulls():
    """A = 1 at ratio 3/2, A = -1 at 1/2: both are past the clip. d k3 / d log p = 1 - r: at r = 2 a slope of -1."""
    logp = LOGP.clone().requires_grad_()
    grpo_loss(logp, OLD, REF, A, MASK, clip=0.2, kl_coef=1.0).backward()
    assert_close(logp.grad, torch.tensor([[-0.25, -0.25, 0.0], [0.0, 0.0, 0.0]]))  # the second token is not past it


def test_in_expectation_the_slope_of_k3_is_that_of_the_kl_from_the_reference():
    """Every token of a vocabulary once, weighted with its probability under the policy: the gradient of KL(q || p)."""
    z = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    logp = z.log_softmax(0)
    mask, p = torch.ones(4, 1, dtype=torch.bool), logp.detach().exp()
    old = logp.detach()[:, None]
    one = [
        grpo_loss(logp[[v], None], old[[v]], q.log()[[v], None], torch.zeros(1), mask[[v]], kl_coef=1.0)
        for v in range(4)
    ]
    (got,) = torch.autograd.grad(sum(weight * loss for weight, loss in zip(p, one, strict=True)), z)
    assert_close(got, p - q)  # of sum q (log q - log p)


def test_gradients():
    logp, old, ref = (x.double().masked_fill(~MASK, 0.0) for x in (LOGP - 0.3 * torch.arange(3.0), OLD, REF))
    logp.requires_grad_()
    assert gradcheck(lambda x: reinforce_loss(x, A.double(), MASK), (logp,))
    assert gradcheck(lambda x: grpo_loss(x, old, ref, A.double(), MASK, kl_coef=0.3), (logp,))
    assert gradcheck(lambda x: dr_grpo_loss(x, old, ref, A.double(), MASK, max_length=5), (logp,))


LOSSES = {
    "reinforce": lambda a, mask: reinforce_loss(LOGP, a, mask),
    "grpo": lambda a, mask: grpo_loss(LOGP, OLD, REF, a, mask),
    "dr_grpo": lambda a, mask: dr_grpo_loss(LOGP, OLD, REF, a, mask, max_length=3),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_errors(loss):
    with pytest.raises(ValueError, match=r"expected a True in every mask row, got none in rows \[1\]"):
        loss(A, torch.tensor([[True, True, False], [False, False, False]]))
    with pytest.raises(ValueError, match=r"expected tensors of one shape, got \(1,\), \(2,\)"):
        loss(A[:1], MASK)
    with pytest.raises(ValueError, match=r"expected tensors of one shape, got \(2, 3\), \(2,\)"):
        loss(A[:, None].expand(2, 3), MASK)
    with pytest.raises(ValueError, match="expected a bool tensor"):
        loss(A, MASK.long())


@pytest.mark.parametrize("setting", [{"clip": 0.0}, {"kl_coef": -0.1}, {"max_length": 0}])
def test_settings_out_of_range(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=rf"expected {name} .*, got {value}"):
        dr_grpo_loss(LOGP, OLD, REF, A, MASK, **{"max_length": 3, **setting})
