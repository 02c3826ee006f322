"""One function per loss. Log-probs are in nats; a mask is True where a token counts; less is better.

No gradient flows into old log-probs, advantages, old values, returns and z0. ValueError on unequal shapes, a mask that
is not bool or has no True, beta, clip or a weight <= 0, gamma or lam < 0, label_smoothing outside [0, 0.5).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from picollm_lite.kernels import checks
from picollm_lite.kernels.advantages import masked_mean
from picollm_lite.kernels.logprobs import cap_log_ratio, log_odds

B = Float[Tensor, " B"]  # one number a pair or an answer
BT = Float[Tensor, "B T"]  # one number a token
Mask = Bool[Tensor, "B T"]
Scalar = Float[Tensor, ""]


class PreferenceLoss(NamedTuple):
    """One loss a pair, and each side's implicit reward without gradient (chosen - rejected is the margin)."""

    losses: B
    chosen_rewards: B
    rejected_rewards: B


class UnpairedLoss(NamedTuple):
    """One loss an answer, and its implicit reward without gradient."""

    losses: B
    rewards: B


def sft_loss(logp: BT, mask: Mask) -> Scalar:
    """-mean of log p over True tokens: next-token cross-entropy."""
    return -masked_mean(logp, mask)


def bradley_terry_loss(chosen_scores: B, rejected_scores: B, *, margin: B | None = None) -> B:
    """-log sigmoid(r_c - r_r): Ouyang et al. 2022, eq. 1; minus a margin inside: Touvron et al. 2023, eq. 2."""
    margin = torch.zeros_like(chosen_scores) if margin is None else margin
    checks.require_same_shape(chosen_scores, rejected_scores, margin)
    return -F.logsigmoid(chosen_scores - rejected_scores - margin)  # (B,)


def ppo_policy_loss(logp: BT, old_logp: BT, advantages: BT, mask: Mask, *, clip: float = 0.2) -> Scalar:
    """-mean over True of min(rho A, clamp(rho, 1 - clip, 1 + clip) A), rho = pi / pi_old: Schulman et al. 2017, eq. 7.

    log rho is capped at 20 with its gradient kept: see cap_log_ratio.
    """
    return -masked_mean(clipped_surrogate(logp, old_logp, advantages, mask, clip=clip), mask)


def clipped_surrogate(logp: BT, old_logp: BT, advantages: BT, mask: Mask, *, clip: float) -> BT:
    """min(rho A, clamp(rho, 1 - clip, 1 + clip) A), the part of PPO's and GRPO's objective that a token adds."""
    checks.require_positive(clip=clip)
    checks.require_nonempty_mask(mask, logp, old_logp, advantages)
    rho = cap_log_ratio((logp - old_logp.detach()).masked_fill(~mask, 0.0)).exp()  # (B, T)
    return torch.minimum(rho * advantages.detach(), rho.clamp(1 - clip, 1 + clip) * advantages.detach())  # (B, T)


def ppo_value_loss(values: BT, old_values: BT, returns: BT, mask: Mask, *, clip: float = 0.2) -> Scalar:
    """0.5 mean over True of max((V - R)^2, (V_clip - R)^2), V_clip = V_old + clamp(V - V_old, -clip, clip).

    Not in the PPO paper but in its authors' code: Engstrom et al. 2020.
    """
    checks.require_positive(clip=clip)
    checks.require_nonempty_mask(mask, values, old_values, returns)
    old_values, returns = old_values.detach(), returns.detach()
    error = (values - returns).masked_fill(~mask, 0.0)  # (B, T)
    clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).masked_fill(~mask, 0.0)  # (B, T)
    return 0.5 * masked_mean(torch.maximum(error.square(), clipped.square()), mask)


def dpo_loss(
    policy_chosen_logp: B, policy_rejected_logp: B, ref_chosen_logp: B, ref_rejected_logp: B, *, beta: float = 0.1
) -> PreferenceLoss:
    """-log sigmoid(m), m = r_c - r_r, r = beta (log pi - log pi_ref), summed log-probs: Rafailov et al. 2023, eq. 7."""
    m, rewards = _implicit_rewards(policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp, beta)
    return PreferenceLoss(-F.logsigmoid(m), *rewards)


def cdpo_loss(
    policy_chosen_logp: B,
    policy_rejected_logp: B,
    ref_chosen_logp: B,
    ref_rejected_logp: B,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> PreferenceLoss:
    """-(1 - eps) log sigmoid(m) - eps log sigmoid(-m), m of dpo_loss, eps = label_smoothing: Mitchell 2023 (note)."""
    checks.require_flip_rate(label_smoothing=label_smoothing)
    m, rewards = _implicit_rewards(policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp, beta)
    return PreferenceLoss(-(1 - label_smoothing) * F.logsigmoid(m) - label_smoothing * F.logsigmoid(-m), *rewards)


def robust_dpo_loss(
    policy_chosen_logp: B,
    policy_rejected_logp: B,
    ref_chosen_logp: B,
    ref_rejected_logp: B,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> PreferenceLoss:
    """(-(1 - eps) log sigmoid(m) + eps log sigmoid(-m)) / (1 - 2 eps), m of dpo_loss: Chowdhury et al. 2024.

    Equals dpo_loss in expectation when labels flip with probability eps = label_smoothing; may be negative.
    """
    checks.require_flip_rate(label_smoothing=label_smoothing)
    m, rewards = _implicit_rewards(policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp, beta)
    losses = -(1 - label_smoothing) * F.logsigmoid(m) + label_smoothing * F.logsigmoid(-m)  # (B,)
    return PreferenceLoss(losses / (1 - 2 * label_smoothing), *rewards)


def hinge_loss(
    policy_chosen_logp: B, policy_rejected_logp: B, ref_chosen_logp: B, ref_rejected_logp: B, *, beta: float = 0.1
) -> PreferenceLoss:
    """max(0, 1 - m), m of dpo_loss: SLiC's hinge (Zhao et al. 2023) on log-ratios, as in RSO (Liu et al. 2024)."""
    m, rewards = _implicit_rewards(policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp, beta)
    return PreferenceLoss(F.relu(1 - m), *rewards)


def ipo_loss(
    policy_chosen_logp: B, policy_rejected_logp: B, ref_chosen_logp: B, ref_rejected_logp: B, *, beta: float = 0.1
) -> PreferenceLoss:
    """(h - 1 / (2 beta))^2, h = m / beta of dpo_loss, summed log-probs: Azar et al. 2024, eq. 17 (beta is its tau)."""
    m, rewards = _implicit_rewards(policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp, beta)
    return PreferenceLoss((m / beta - 1 / (2 * beta)).square(), *rewards)


def simpo_loss(
    policy_chosen_logp: B,
    policy_rejected_logp: B,
    chosen_lengths: Int[Tensor, " B"],
    rejected_lengths: Int[Tensor, " B"],
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> PreferenceLoss:
    """-log sigmoid(r_c - r_r - gamma), r = beta log pi / length: Meng et al. 2024, eq. 6.

    Inputs are summed log-probs and lengths in tokens (>= 1); gamma is the whole margin, not multiplied by beta.
    """
    checks.require_positive(beta=beta)
    checks.require_in(0.0, float("inf"), gamma=gamma)
    checks.require_same_shape(policy_chosen_logp, policy_rejected_logp, chosen_lengths, rejected_lengths)
    checks.require_positive(shortest_length=int(torch.minimum(chosen_lengths, rejected_lengths).min()))
    chosen = beta * policy_chosen_logp / chosen_lengths  # (B,)
    rejected = beta * policy_rejected_logp / rejected_lengths  # (B,)
    return PreferenceLoss(-F.logsigmoid(chosen - rejected - gamma), chosen.detach(), rejected.detach())


def orpo_loss(chosen_mean_logp: B, rejected_mean_logp: B, *, lam: float = 0.1) -> PreferenceLoss:
    """-log p_c - lam log sigmoid(log odds_c - log odds_r), odds = p / (1 - p): Hong et al. 2024, eqs. 6-7.

    Inputs are log p = the mean log-prob over an answer's tokens. The rewards returned are the log odds.
    """
    checks.require_in(0.0, float("inf"), lam=lam)
    checks.require_same_shape(chosen_mean_logp, rejected_mean_logp)
    chosen, rejected = log_odds(chosen_mean_logp), log_odds(rejected_mean_logp)  # (B,)
    losses = -chosen_mean_logp - lam * F.logsigmoid(chosen - rejected)  # (B,)
    return PreferenceLoss(losses, chosen.detach(), rejected.detach())


def kto_loss(
    policy_logp: B,
    ref_logp: B,
    desirable: Bool[Tensor, " B"],
    *,
    z0: Scalar | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> UnpairedLoss:
    """w (1 - sigmoid(+-beta (log pi / pi_ref - z0))), + and - by `desirable`: Ethayarajh et al. 2024, eq. 8.

    Inputs are summed log-probs. z0 is the batch's KL estimate in nats, floored at 0 as in the paper's section 4.
    """
    checks.require_positive(beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    checks.require_same_shape(policy_logp, ref_logp, desirable)
    checks.require_bool(desirable)
    z0 = torch.as_tensor(z0, dtype=policy_logp.dtype, device=policy_logp.device).detach()
    if z0.ndim:
        raise ValueError(f"expected one z0 for the batch, got shape {tuple(z0.shape)}")
    rewards = beta * (policy_logp - ref_logp)  # (B,)
    gain = rewards - beta * z0.clamp(min=0.0)  # (B,)
    good, bad = desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)  # (B,)
    return UnpairedLoss(torch.where(desirable, good, bad), rewards.detach())


def _implicit_rewards(chosen: B, rejected: B, ref_chosen: B, ref_rejected: B, beta: float) -> tuple[B, tuple[B, B]]:
    """The margin m = r_c - r_r, which carries the gradient, and (r_c, r_r), which do not."""
    checks.require_positive(beta=beta)
    checks.require_same_shape(chosen, rejected, ref_chosen, ref_rejected)
    r_chosen, r_rejected = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)  # (B,)
    return r_chosen - r_rejected, (r_chosen.detach(), r_rejected.detach())
