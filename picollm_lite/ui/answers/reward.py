"""Exercises of notebook 03."""

import torch
from torch.nn.functional import logsigmoid

from picollm_lite.ui.grading import Exercise


def bradley_terry_loss(chosen_scores: torch.Tensor, rejected_scores: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(chosen - rejected), one loss a pair; all (B,)."""
    return -torch.nn.functional.logsigmoid(chosen_scores - rejected_scores)  # (B,)


def last_token_scores(scores: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The score at each row's last real token; scores (B, L) at every position, lengths (B,), padding on the right."""
    return scores.gather(1, lengths[:, None] - 1).squeeze(1)  # (B,)


# Rows are padded beyond the longest one and have two tokens or more, so that an index off by one stays inside.
_PADDED = (
    torch.tensor([[0.5, -1.0, 2.0, 0.25, -0.75], [1.5, 3.0, -0.5, 1.0, 0.75], [-2.0, 0.0, 1.25, -1.5, 0.5]]),
    torch.tensor([3, 4, 2]),
)
_PADDED_MORE = (
    torch.tensor([[1.0, -0.25, 0.5, 2.5, -1.25, 0.75], [-0.5, -1.75, 2.25, 3.0, 0.25, -1.0]]),
    torch.tensor([5, 2]),
)

EXERCISES = (
    Exercise(
        "bradley_terry_loss",
        bradley_terry_loss,
        [
            (torch.tensor([2.0, 0.5, -1.0]), torch.tensor([0.0, 1.5, -1.25])),
            (torch.tensor([-0.75, 3.0, 1.25, 0.5]), torch.tensor([-2.5, 0.5, 4.0, 0.75])),
            (torch.tensor([0.0, 150.0, 1.0]), torch.tensor([200.0, -50.0, 2.0])),
        ],
        {
            "the sides are swapped: the loss must be small when the chosen score is the higher one": lambda c, r: (
                -logsigmoid(r - c)
            ),
            "the sign: a loss falls when the chosen score rises": lambda c, r: logsigmoid(c - r),
            "1 - sigmoid is the chance that the rejected answer wins: take log sigmoid itself": lambda c, r: (
                -torch.log(1 - torch.sigmoid(c - r))
            ),
            "sigmoid far below 0 rounds to 0, and its log is -inf: use logsigmoid": lambda c, r: (
                -torch.log(torch.sigmoid(c - r))
            ),
            "no log: 1 - p costs at most 1, however sure the model is of the wrong side": lambda c, r: (
                1 - torch.sigmoid(c - r)
            ),
            "no log-sigmoid: the plain difference can fall without end": lambda c, r: r - c,
            "the rejected scores are not used: only the difference of two scores means anything": lambda c, r: (
                -logsigmoid(c)
            ),
            "each score went through log-sigmoid on its own: subtract first": lambda c, r: (
                logsigmoid(r) - logsigmoid(c)
            ),
            "the difference is squared: the wrong order would cost as little as the right one": lambda c, r: (
                -logsigmoid((c - r).square())
            ),
            "a mean: return one loss a pair": lambda c, r: -logsigmoid(c - r).mean(),
        },
        difficulty=1,
        minutes=6,
    ),
    Exercise(
        "last_token_scores",
        last_token_scores,
        [_PADDED, _PADDED_MORE],
        {
            "the last column is padding in a short row: use its length": lambda s, n: s[:, -1],
            "off by one: a row of n tokens ends at index n - 1, this is the padding after it": lambda s, n: s.gather(
                1, n[:, None]
            ).squeeze(1),
            "off by one: this is the token before the last": lambda s, n: s.gather(1, n[:, None] - 2).squeeze(1),
            "a mean over the row, padding included: only the last real token counts": lambda s, n: s.mean(1),
            "a mean over the real tokens: only the last one has seen the whole answer": lambda s, n: torch.stack(
                [row[:length].mean() for row, length in zip(s, n.tolist(), strict=True)]
            ),
            "the highest score of the row: it may stand anywhere, in the padding too": lambda s, n: s.amax(1),
            "the first column: there the model has seen one token and no answer": lambda s, n: s[:, 0],
            "this takes every length from every row: the rows need an index too, or use gather": lambda s, n: s[
                :, n - 1
            ],
            "the shape: one score a row is (B,), so squeeze what gather gives": lambda s, n: s.gather(
                1, n[:, None] - 1
            ),
        },
        difficulty=1,
        minutes=5,
    ),
)
