"""Losses of the methods that compare answers of one prompt and need no critic. As in `losses.py`: nats, masks, checks.

Advantages are one number an answer, without gradient. A row of the mask without a True raises ValueError too.
"""

from picollm_lite.kernels import checks
from picollm_lite.kernels.logprobs import kl_k3
from picollm_lite.kernels.losses import BT, B, Mask, Scalar, clipped_surrogate


def reinforce_loss(logp: BT, advantages: B, mask: Mask) -> Scalar:
    """-mean over answers of A sum_t log p_t: Williams 1992; RLOO's with leave-one-out A, Ahmadian et al. 2024.

    The whole answer is one action. Right for answers of the policy itself only: one update a batch.
    """
    _check(mask, advantages, logp)
    return -(advantages.detach() * logp.masked_fill(~mask, 0.0).sum(1)).mean()


def grpo_loss(
    logp: BT, old_logp: BT, ref_logp: BT, advantages: B, mask: Mask, *, clip: float = 0.2, kl_coef: float = 0.04
) -> Scalar:
    """-mean over answers of the mean over their tokens of the clipped surrogate - kl_coef k3: Shao et al. 2024, eq. 3.

    k3 (eq. 4) is in the loss, not in the reward: its gradient is, in expectation, that of KL(ref || policy).
    """
    objective = _objective(logp, old_logp, ref_logp, advantages, mask, clip, kl_coef)
    return -(objective.sum(1) / mask.sum(1)).mean()


def dr_grpo_loss(
    logp: BT,
    old_logp: BT,
    ref_logp: BT,
    advantages: B,
    mask: Mask,
    *,
    max_length: int,
    clip: float = 0.2,
    kl_coef: float = 0.04,
) -> Scalar:
    """grpo_loss with every answer's sum divided by max_length, the same for all: Liu et al. 2025.

    Divided by its own length a long wrong answer costs less a token than a short one, and wrong answers grow.
    """
    checks.require_positive(max_length=max_length)
    return -(_objective(logp, old_logp, ref_logp, advantages, mask, clip, kl_coef).sum(1) / max_length).mean()


def _objective(logp: BT, old_logp: BT, ref_logp: BT, advantages: B, mask: Mask, clip: float, kl_coef: float) -> BT:
    """What each token adds, 0 outside the mask."""
    checks.require_in(0.0, float("inf"), kl_coef=kl_coef)
    _check(mask, advantages, logp, old_logp, ref_logp)
    surrogate = clipped_surrogate(logp, old_logp, advantages[:, None].expand_as(logp), mask, clip=clip)  # (B, T)
    k3 = kl_k3(logp.masked_fill(~mask, 0.0), ref_logp.masked_fill(~mask, 0.0).detach())  # (B, T)
    return (surrogate - kl_coef * k3).masked_fill(~mask, 0.0)


def _check(mask: Mask, advantages: B, *grids: BT) -> None:
    checks.require_nonempty_mask(mask, *grids)
    checks.require_nonempty_rows(mask)
    checks.require_same_shape(advantages, mask[:, 0])
