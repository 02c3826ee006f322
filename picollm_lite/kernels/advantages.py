"""From sequence scores to per-token advantages. A mask is True on response tokens; results are 0 outside it.

Values outside a mask may be anything, nan included: they never reach a result.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from picollm_lite.kernels.checks import (
    require_in,
    require_nonempty_mask,
    require_nonempty_rows,
    require_same_shape,
    rows_of,
)
from picollm_lite.kernels.logprobs import kl_k1

VARIANCE_EPS = 1e-8  # under the square root: equal values give 0 instead of 0 / 0


def masked_mean(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Sum of x over True, divided by the number of True. Raises ValueError on a mask that is empty or not bool."""
    require_nonempty_mask(mask, x)
    return x.masked_fill(~mask, 0.0).sum() / mask.sum()  # ()


def whiten(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, shift_mean: bool = True) -> Float[Tensor, "B T"]:
    """(x - mean) / sqrt(var + 1e-8) under the mask, var the biased (population) variance; 0 outside.

    shift_mean=False keeps the mean: only the deviations from it are scaled. Raises as masked_mean does.
    """
    mean = masked_mean(x, mask)  # ()
    deviation = (x - mean).masked_fill(~mask, 0.0)  # (B, T)
    scaled = deviation * torch.rsqrt(masked_mean(deviation.square(), mask) + VARIANCE_EPS)  # (B, T)
    return (scaled if shift_mean else scaled + mean).masked_fill(~mask, 0.0)


def shape_rewards(
    scores: Float[Tensor, " B"],
    logp: Float[Tensor, "B T"],
    ref_logp: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """r_t = -kl_coef (log pi - log pi_ref)_t, plus the score on the last True position of the row; 0 outside.

    Summed over a row this is Ziegler et al. 2019, eq. 2; the per-token form is Ouyang et al. 2022, section 3.5.
    Raises ValueError on unequal shapes, a mask that is not bool, a row without a True, and kl_coef < 0.
    """
    require_in(0.0, float("inf"), kl_coef=kl_coef)
    require_nonempty_mask(mask, logp, ref_logp)
    require_same_shape(scores, mask[:, 0])
    require_nonempty_rows(mask)
    rewards = (-kl_coef * kl_k1(logp, ref_logp)).masked_fill(~mask, 0.0)  # (B, T)
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)  # (B,)
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t: Schulman et al. 2016, eqs. 11-16.

    Returns (advantages, returns = A + V), raw and 0 outside the mask. A row's True positions are one span, anywhere in
    the row; V after its end is 0 (the response has ended). Raises ValueError on unequal shapes, a mask that is not
    bool, is empty or has a gap, and gamma or lam outside [0, 1].
    """
    require_in(0.0, 1.0, gamma=gamma, lam=lam)
    require_nonempty_mask(mask, rewards, values)
    starts = mask & ~F.pad(mask[:, :-1], (1, 0))  # (B, T)
    if (starts.sum(dim=1) > 1).any():
        raise ValueError(f"expected one span of True in a mask row, got gaps in rows {rows_of(starts.sum(dim=1) > 1)}")
    values = values.masked_fill(~mask, 0.0)  # (B, T)
    next_values = F.pad(values[:, 1:], (0, 1))  # (B, T)
    deltas = (rewards + gamma * next_values - values).masked_fill(~mask, 0.0)  # (B, T)
    with torch.autocast(deltas.device.type, enabled=False):  # which would round the product to 8 bits
        advantages = (deltas @ _discounts(gamma * lam, deltas)).masked_fill(~mask, 0.0)  # (B, T)
    return advantages, advantages + values


def leave_one_out(scores: Float[Tensor, " B"], group_size: int) -> Float[Tensor, " B"]:
    """A_i = r_i - mean of the other scores of its group: Kool et al. 2019; RLOO in Ahmadian et al. 2024.

    Groups are runs of group_size neighbors. Raises ValueError unless group_size >= 2 divides B.
    """
    groups = _groups(scores, group_size)  # (B / G, G)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)  # (B / G, G)
    return (groups - others).flatten()


def group_normalise(scores: Float[Tensor, " B"], group_size: int, *, scale: bool = True) -> Float[Tensor, " B"]:
    """A_i = (r_i - group mean) / sqrt(group variance + 1e-8): GRPO, Shao et al. 2024, section 4.1.

    The variance is the biased one. scale=False only subtracts the mean: Dr. GRPO, Liu et al. 2025.
    Groups are runs of group_size neighbors. Raises ValueError unless group_size >= 2 divides B.
    """
    groups = _groups(scores, group_size)  # (B / G, G)
    deviation = groups - groups.mean(dim=1, keepdim=True)  # (B / G, G)
    if scale:
        deviation = deviation * torch.rsqrt(deviation.square().mean(dim=1, keepdim=True) + VARIANCE_EPS)
    return deviation.flatten()


def _discounts(decay: float, like: Float[Tensor, "B T"]) -> Float[Tensor, "T T"]:
    """Column t holds decay^(s - t) for s >= t, else 0: one matrix product does the backward recursion."""
    steps = torch.arange(like.shape[1], device=like.device)  # (T,)
    powers = decay ** steps.to(like.dtype)  # (T,)
    return powers[(steps[:, None] - steps[None, :]).clamp(min=0)].tril()


def _groups(scores: Float[Tensor, " B"], group_size: int) -> Float[Tensor, "B/G G"]:
    if scores.ndim != 1 or group_size < 2 or scores.numel() % group_size:
        raise ValueError(
            f"expected scores (B,) and group_size >= 2 that divides B, got {tuple(scores.shape)} and {group_size}"
        )
    return scores.view(-1, group_size)
