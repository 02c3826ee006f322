"""Exercises of notebook 06."""

import math

import torch

from picollm_lite.ui.grading import Exercise


def best_of_n_distance(p: torch.Tensor, n: int) -> torch.Tensor:
    """KL of best-of-n to the policy it draws from, in nats; p (A,): probability of each answer, lowest score first."""
    below = torch.cat([p.new_zeros(1), p.cumsum(0)])  # (A + 1,): the mass under each answer, and all of it
    q = (below**n).diff()  # (A,): the best of n draws is this one
    return torch.special.xlogy(q, q / p).sum()  # ()


def leave_one_out_advantages(scores: torch.Tensor, group_size: int) -> torch.Tensor:
    """Each score less the mean of the others in its group; scores (B,), groups are runs of group_size neighbors."""
    groups = scores.view(-1, group_size)  # (B / G, G)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)  # (B / G, G)
    return (groups - others).flatten()  # (B,)


def _kl(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return torch.special.xlogy(q, q / p).sum()


def _best(p: torch.Tensor, n: int) -> torch.Tensor:
    return (torch.cat([p.new_zeros(1), p.cumsum(0)]) ** n).diff()


def _less(scores: torch.Tensor, baseline: torch.Tensor, group_size: int) -> torch.Tensor:
    return (scores.view(-1, group_size) - baseline).flatten()


EXERCISES = (
    Exercise(
        "best_of_n_distance",
        best_of_n_distance,
        [
            (torch.tensor([0.5, 0.25, 0.25]), 2),
            (torch.tensor([0.125, 0.5, 0.125, 0.25]), 4),
            (torch.tensor([0.0625, 0.6875, 0.25]), 3),
        ],
        {
            "this is the bound log n - (n-1)/n: answers that have mass of their own stay below it": lambda p, n: (
                torch.tensor(math.log(n) - (n - 1) / n)
            ),
            "the KL is turned round: the expectation runs over best-of-n's answers": lambda p, n: _kl(p, _best(p, n)),
            "the order is turned round: the last answer has the highest score": lambda p, n: _kl(
                _best(p.flip(0), n).flip(0), p
            ),
            "F^n is the probability that all n are at or below: subtract that all are below": lambda p, n: _kl(
                p.cumsum(0) ** n, p
            ),
            "p^n is the probability that all n draws are this answer: the best of n needs only one": lambda p, n: _kl(
                p**n / (p**n).sum(), p
            ),
            "1 - (1 - p)^n is the probability of drawing it at all: something better may be drawn, too": lambda p, n: (
                _kl(1 - (1 - p) ** n, p)
            ),
            "bits: use the natural logarithm": lambda p, n: best_of_n_distance(p, n) / math.log(2),
            "log(q / p) alone: each answer counts q times": lambda p, n: (_best(p, n) / p).log().sum(),
            "a mean over answers: a KL is a sum": lambda p, n: best_of_n_distance(p, n) / len(p),
        },
        difficulty=2,
        minutes=10,
    ),
    Exercise(
        "leave_one_out_advantages",
        leave_one_out_advantages,
        [
            (torch.tensor([1.0, 0.0, 2.0, -1.0]), 2),
            (torch.tensor([0.5, 2.0, -1.0, 1.5, 1.0, 3.0]), 3),
            (torch.tensor([1.0, -2.0, 0.5, 4.0, 0.0, 0.25, -1.0, 2.0]), 4),
        ],
        {
            "the answer's own score is in its baseline: that shrinks every advantage by (G-1)/G": lambda s, g: _less(
                s, s.view(-1, g).mean(1, keepdim=True), g
            ),
            "the baseline is the whole batch's mean: compare with the answers to the same prompt": lambda s, g: (
                s - s.mean()
            ),
            "the sum of the others is divided by G: there are G - 1 others": lambda s, g: _less(
                s, (s.view(-1, g).sum(1, keepdim=True) - s.view(-1, g)) / g, g
            ),
            "the groups are wrong: neighbors answer the same prompt": lambda s, g: (
                leave_one_out_advantages(s.view(g, -1).T.flatten(), g).view(-1, g).T.flatten()
            ),
            "this is the baseline: subtract it from the score": lambda s, g: s - leave_one_out_advantages(s, g),
            "the sign is turned round: better than the others is positive": lambda s, g: (
                -leave_one_out_advantages(s, g)
            ),
            "divided by the group's standard deviation: that is GRPO": lambda s, g: (
                leave_one_out_advantages(s, g).view(-1, g) / s.view(-1, g).std(1, unbiased=False, keepdim=True)
            ).flatten(),
            "one row a group: return one advantage an answer, (B,)": lambda s, g: leave_one_out_advantages(s, g).view(
                -1, g
            ),
        },
        difficulty=1,
        minutes=6,
    ),
)
