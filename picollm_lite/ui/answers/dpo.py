"""Exercises of notebook 05. Inputs are summed response log-probs in nats, one a pair."""

import torch
from torch.nn.functional import logsigmoid

from picollm_lite.ui.grading import Exercise


def dpo_loss(
    policy_chosen_logp: torch.Tensor,
    policy_rejected_logp: torch.Tensor,
    ref_chosen_logp: torch.Tensor,
    ref_rejected_logp: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """-log sigmoid(r_chosen - r_rejected), r = beta (log pi - log pi_ref), one loss a pair; all (B,)."""
    chosen_rewards = beta * (policy_chosen_logp - ref_chosen_logp)  # (B,)
    rejected_rewards = beta * (policy_rejected_logp - ref_rejected_logp)  # (B,)
    return -torch.nn.functional.logsigmoid(chosen_rewards - rejected_rewards)  # (B,)


def ipo_loss(
    policy_chosen_logp: torch.Tensor,
    policy_rejected_logp: torch.Tensor,
    ref_chosen_logp: torch.Tensor,
    ref_rejected_logp: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """(h - 1 / (2 beta))^2, h the chosen log(pi / pi_ref) minus the rejected one, one loss a pair; all (B,)."""
    h = (policy_chosen_logp - ref_chosen_logp) - (policy_rejected_logp - ref_rejected_logp)  # (B,)
    return (h - 1 / (2 * beta)).square()  # (B,)


_CASES = [
    (
        torch.tensor([-12.0, -20.5, -8.0]),
        torch.tensor([-15.0, -18.0, -30.25]),
        torch.tensor([-14.0, -20.0, -7.25]),
        torch.tensor([-13.0, -19.5, -24.0]),
        0.1,
    ),
    (
        torch.tensor([-6.5, -11.0, -9.25, -3.0]),
        torch.tensor([-7.0, -10.25, -12.0, -5.5]),
        torch.tensor([-8.0, -9.5, -10.0, -3.5]),
        torch.tensor([-6.0, -11.5, -12.5, -4.25]),
        0.25,
    ),
    (  # far from the reference, as a run with a high learning rate may get
        torch.tensor([-450.0, -25.0, -6.0]),
        torch.tensor([-20.0, -380.0, -7.5]),
        torch.tensor([-40.0, -30.0, -6.5]),
        torch.tensor([-30.0, -35.0, -7.0]),
        0.5,
    ),
]


def _h(pc: torch.Tensor, pr: torch.Tensor, rc: torch.Tensor, rr: torch.Tensor) -> torch.Tensor:
    return (pc - rc) - (pr - rr)


EXERCISES = (
    Exercise(
        "dpo_loss",
        dpo_loss,
        _CASES,
        {
            "the reference is left out: what counts is how far the policy moved from it": lambda pc, pr, rc, rr, b: (
                -logsigmoid(b * (pc - pr))
            ),
            "the reference is added, or its sides swapped: subtract each answer's own": lambda pc, pr, rc, rr, b: (
                dpo_loss(pc, pr, -rc, -rr, b)
            ),
            "beta is outside: it multiplies the log-ratios, within the sigmoid": lambda pc, pr, rc, rr, b: (
                -b * logsigmoid(_h(pc, pr, rc, rr))
            ),
            "beta is not used": lambda pc, pr, rc, rr, b: -logsigmoid(_h(pc, pr, rc, rr)),
            "the sign: a loss falls when the margin rises": lambda pc, pr, rc, rr, b: -dpo_loss(pc, pr, rc, rr, b),
            "the margin is turned round: chosen minus rejected, and policy minus reference": lambda pc, pr, rc, rr, b: (
                dpo_loss(pr, pc, rr, rc, b)
            ),
            "no log: 1 - p costs at most 1, however wrong the margin is": lambda pc, pr, rc, rr, b: torch.sigmoid(
                -b * _h(pc, pr, rc, rr)
            ),
            "a mean: return one loss a pair": lambda pc, pr, rc, rr, b: dpo_loss(pc, pr, rc, rr, b).mean(),
            "sigmoid far below 0 rounds to 0, and its log is -inf: use logsigmoid": lambda pc, pr, rc, rr, b: (
                -torch.log(torch.sigmoid(b * _h(pc, pr, rc, rr)))
            ),
        },
        difficulty=2,
        minutes=10,
    ),
    Exercise(
        "ipo_loss",
        ipo_loss,
        _CASES,
        {
            "the target is 1 / (2 beta), not 1 / beta": lambda pc, pr, rc, rr, b: (_h(pc, pr, rc, rr) - 1 / b).square(),
            "1 / 2 * beta is beta / 2: the target is 1 / (2 * beta)": lambda pc, pr, rc, rr, b: (
                _h(pc, pr, rc, rr) - b / 2
            ).square(),
            "beta times h, as in DPO: in IPO beta is in the target alone": lambda pc, pr, rc, rr, b: (
                b * _h(pc, pr, rc, rr) - 1 / (2 * b)
            ).square(),
            "h and the target differ in sign: h is chosen minus rejected, and the target is subtracted": (
                lambda pc, pr, rc, rr, b: ipo_loss(pr, pc, rr, rc, b)
            ),
            "the square is missing: the loss would fall without end": lambda pc, pr, rc, rr, b: (
                _h(pc, pr, rc, rr) - 1 / (2 * b)
            ),
            "the absolute value: IPO takes the square": lambda pc, pr, rc, rr, b: (
                _h(pc, pr, rc, rr) - 1 / (2 * b)
            ).abs(),
            "the reference is left out: what counts is how far the policy moved from it": lambda pc, pr, rc, rr, b: (
                pc - pr - 1 / (2 * b)
            ).square(),
            "a mean: return one loss a pair": lambda pc, pr, rc, rr, b: ipo_loss(pc, pr, rc, rr, b).mean(),
        },
        difficulty=2,
        minutes=6,
    ),
)
