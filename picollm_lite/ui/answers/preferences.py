"""Exercises of notebook 02."""

import torch

from picollm_lite.ui.grading import Exercise


def cohen_kappa(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Agreement beyond chance; first and second (B,), 1 where that annotator prefers answer a, else 0. A scalar."""
    observed = (first == second).float().mean()
    q1, q2 = first.mean(), second.mean()
    expected = q1 * q2 + (1 - q1) * (1 - q2)
    return (observed - expected) / (1 - expected)


def longer_preferred(words_a: torch.Tensor, words_b: torch.Tensor, prefers_a: torch.Tensor) -> torch.Tensor:
    """Share of labels that went to the longer answer, pairs of equal length left out; all (B,). A scalar."""
    unequal = words_a != words_b  # (B,)
    return ((words_a > words_b) == (prefers_a == 1))[unequal].float().mean()


def _agreement(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first == second).float().mean()


_UNEVEN = (torch.tensor([1.0, 1, 1, 1, 0, 1, 1, 0]), torch.tensor([1.0, 1, 0, 1, 0, 1, 1, 1]))
_AGAINST = (torch.tensor([1.0, 0, 1, 0, 1, 1]), torch.tensor([0.0, 1, 0, 1, 1, 0]))
_WORDS = (torch.tensor([12, 20, 9, 15, 15, 30]), torch.tensor([10, 25, 9, 14, 15, 12]))

EXERCISES = (
    Exercise(
        "cohen_kappa",
        cohen_kappa,
        [_UNEVEN, _AGAINST],
        {
            "this is the plain agreement: take off what chance alone would give": _agreement,
            "not divided by 1 - p_e: full agreement would not be 1": lambda a, b: (
                _agreement(a, b) - (a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
            ),
            "chance is more than both saying a: they can also agree on b": lambda a, b: (
                (_agreement(a, b) - a.mean() * b.mean()) / (1 - a.mean() * b.mean())
            ),
            "chance was taken for one half: it depends on how often each says a": lambda a, b: 2 * _agreement(a, b) - 1,
            "a correlation is not kappa: it does not mind that one says a more often": lambda a, b: torch.corrcoef(
                torch.stack([a, b])
            )[0, 1],
        },
        difficulty=1,
        minutes=8,
    ),
    Exercise(
        "longer_preferred",
        longer_preferred,
        [
            (*_WORDS, torch.tensor([1.0, 0, 1, 0, 0, 1])),
            (_WORDS[1], _WORDS[0], torch.tensor([1.0, 1, 0, 1, 1, 0])),
        ],
        {
            "pairs of equal length are still in: they say nothing about length": lambda a, b, p: (
                ((a > b) == (p == 1)).float().mean()
            ),
            "divided by all pairs: divide by those whose lengths differ": lambda a, b, p: (
                (((a > b) == (p == 1)) & (a != b)).float().mean()
            ),
            "this is how often the shorter one was preferred": lambda a, b, p: (
                1 - ((a > b) == (p == 1))[a != b].float().mean()
            ),
            "only pairs where a is the longer one: b may be longer and preferred too": lambda a, b, p: p[a > b].mean(),
            "the labels are not used: this is how often a is longer": lambda a, b, p: (a > b)[a != b].float().mean(),
        },
        difficulty=1,
        minutes=6,
    ),
)
