"""Exercises of notebook 07."""

import torch

from picollm_lite.ui.grading import Exercise


def bootstrap_interval(a: torch.Tensor, b: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """95 % percentile interval of mean(a - b), (2,): a and b (P,), a number a prompt; draws (R, P), prompt numbers."""
    means = (a - b)[draws].mean(1)  # (R,): of each resample, every prompt with both its numbers
    return torch.quantile(means, means.new_tensor([0.025, 0.975]))


def swapped_points(given: list[str], swapped: list[str]) -> list[float]:
    """1 where answer a wins in both orders, 0 where answer b does, else a half.

    given: verdicts on (a, b), swapped: on (b, a). In either "a" is whichever answer stood first.
    """
    mirrored = {"a": "b", "b": "a", "tie": "tie"}
    points = {"a": 1.0, "b": 0.0, "tie": 0.5}
    return [points[one] if one == mirrored[two] else 0.5 for one, two in zip(given, swapped, strict=True)]


def constant_win_rates(scores: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """How often each constant answer wins, (K,): scores (K, P) of K constants, baseline (P,); ties half."""
    wins, ties = scores > baseline, scores == baseline  # (K, P) each
    return (wins.float() + 0.5 * ties.float()).mean(1)


def _means(differences: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    return differences[draws].mean(1)


def _ends(means: torch.Tensor, low: float = 0.025, high: float = 0.975) -> torch.Tensor:
    return torch.quantile(means, means.new_tensor([low, high]))


def _unpaired(a: torch.Tensor, b: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    return _ends(_means(a, draws)) - _ends(_means(b, draws)).flip(0)


def _around(a: torch.Tensor, b: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    return (a - b).mean() + torch.stack([-width, width])


def _halves(given: list[str], swapped: list[str]) -> list[float]:
    """Each order counts for itself."""
    worth = {"a": 1.0, "b": 0.0, "tie": 0.5}
    return [(worth[one] + 1 - worth[two]) / 2 for one, two in zip(given, swapped, strict=True)]


def _draws(rows: int, prompts: int) -> torch.Tensor:
    return torch.randint(prompts, (rows, prompts), generator=torch.Generator().manual_seed(rows))


_A = torch.tensor([1.0, -0.5, 2.0, 0.25, -2.5, 1.5])
_B = torch.tensor([0.5, -1.0, 2.25, -1.0, -3.0, 1.5])

EXERCISES = (
    Exercise(
        "bootstrap_interval",
        bootstrap_interval,
        [(_A, _B, _draws(40, 6)), (_B[:5], _A[1:], _draws(60, 5))],
        {
            "each model was resampled for itself: take the difference on each prompt first": _unpaired,
            "these cut off 5 % at either end: a 95 % interval leaves out 2.5 %": lambda a, b, d: _ends(
                _means(a - b, d), 0.05, 0.95
            ),
            "these are percentiles of the differences: take them of the resampled means": lambda a, b, d: _ends(a - b),
            "the mean runs over the resamples: each resample has a mean of its own": lambda a, b, d: _ends(
                (a - b)[d].mean(0)
            ),
            "b - a: the interval is of how much better a is": lambda a, b, d: _ends(_means(b - a, d)),
            "the lower end comes first": lambda a, b, d: _ends(_means(a - b, d)).flip(0),
            "smallest and largest resample: 2.5 % lie beyond either end": lambda a, b, d: _ends(
                _means(a - b, d), 0.0, 1.0
            ),
            "the spread of prompts, not of their mean: a standard error divides by sqrt(P)": lambda a, b, d: _around(
                a, b, 1.96 * (a - b).std()
            ),
            "median instead of mean": lambda a, b, d: _ends((a - b)[d].median(1).values),
            "only one end: return low and high, (2,)": lambda a, b, d: _ends(_means(a - b, d))[0],
        },
        difficulty=2,
        minutes=8,
    ),
    Exercise(
        "swapped_points",
        swapped_points,
        [
            (["a", "b", "a", "b", "tie", "a", "tie"], ["b", "a", "a", "b", "tie", "tie", "a"]),
            (["a", "tie", "b", "b", "a"], ["a", "b", "a", "tie", "b"]),
        ],
        {
            "the second verdict was not turned round: there a names answer b": lambda g, s: [
                {"a": 1.0, "b": 0.0}.get(one, 0.5) if one == two else 0.5 for one, two in zip(g, s, strict=True)
            ],
            "only the first order counts: a judge that favors a position gets its way": lambda g, s: [
                {"a": 1.0, "b": 0.0, "tie": 0.5}[one] for one in g
            ],
            "only the second order counts": lambda g, s: [{"a": 0.0, "b": 1.0, "tie": 0.5}[two] for two in s],
            "the mean of both orders: a win and a tie is no verdict that stands, so it counts half": _halves,
            "contradictions were left out: every pair keeps its place, as a half": lambda g, s: [
                p for p, one, two in zip(swapped_points(g, s), g, s, strict=True) if p != 0.5 or one == two == "tie"
            ],
            "a contradiction is no loss of a: it counts half": lambda g, s: [
                0.0 if p == 0.5 and not one == two == "tie" else p
                for p, one, two in zip(swapped_points(g, s), g, s, strict=True)
            ],
            "a tie counts half, not nothing": lambda g, s: [
                0.0 if one == two == "tie" else p for p, one, two in zip(swapped_points(g, s), g, s, strict=True)
            ],
            "these are the points of b": lambda g, s: [1 - p for p in swapped_points(g, s)],
        },
        difficulty=1,
        minutes=6,
    ),
    Exercise(
        "constant_win_rates",
        constant_win_rates,
        [
            (
                torch.tensor([[1.0, 1.0, 1.0, 1.0], [-2.0, 0.5, 2.0, 9.0], [0.0, 0.25, -1.0, -3.0]]),
                torch.tensor([0.0, 0.5, 1.0, 2.0]),
            ),
            (torch.tensor([[3.0, -1.0, 0.5], [0.0, 0.0, 0.5]]), torch.tensor([1.0, -1.0, 0.75])),
        ],
        {
            "a tie counts half: here it counts as a loss": lambda s, b: (s > b).float().mean(1),
            "a tie counts half: here it counts as a win": lambda s, b: (s >= b).float().mean(1),
            "this is the mean lead: a win rate counts wins, however large": lambda s, b: (s - b).mean(1),
            "each prompt took its best constant: then the answer depends on the prompt": lambda s, b: (
                constant_win_rates(s.max(0).values[None], b)[0]
            ),
            "the mean runs over the constants: it is one rate a constant, (K,)": lambda s, b: (
                (s > b).float() + 0.5 * (s == b).float()
            ).mean(0),
            "compared with the mean of the baseline: compare on each prompt": lambda s, b: constant_win_rates(
                s, b.mean().expand_as(b)
            ),
            "how often the baseline wins: turn it round": lambda s, b: 1 - constant_win_rates(s, b),
            "a count: divide by the number of prompts": lambda s, b: constant_win_rates(s, b) * len(b),
        },
        difficulty=1,
        minutes=6,
    ),
)
