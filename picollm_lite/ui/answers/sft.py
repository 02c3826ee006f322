"""Exercises of notebook 01.

Token ids in the cases: 0 bos, 1 user start, 2 user end, 3 assistant start, 4 assistant end.
"""

import torch

from picollm_lite.ui.grading import Exercise


def response_mask(tokens: list[int], assistant_start: int, assistant_end: int) -> list[bool]:
    """True on every token the assistant wrote, its end token included; its start token is given, not written."""
    mask, inside = [], False
    for token in tokens:
        mask.append(inside)
        if token == assistant_start:
            inside = True
        elif token == assistant_end:
            inside = False
    return mask


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of -log p(token t+1 | tokens up to t) over the masked targets; logits (L, V), tokens and mask (L,)."""
    logp = logits[:-1].log_softmax(-1)  # (L-1, V): position t predicts token t+1
    target_logp = logp.gather(-1, tokens[1:, None]).squeeze(-1)  # (L-1,)
    return -target_logp[mask[1:]].mean()  # ()


def without_end(tokens: list[int], mask: list[bool], assistant_end: int) -> list[bool]:
    """The same mask with every end token taken out of the loss."""
    return [m and token != assistant_end for token, m in zip(tokens, mask, strict=True)]


_ONE_TURN = [0, 1, 21, 22, 2, 3, 31, 32, 33, 4]
_TWO_TURNS = [0, 1, 21, 2, 3, 31, 4, 1, 23, 24, 2, 3, 32, 33, 4]


def _all_after_start(tokens: list[int], start: int, end: int) -> list[bool]:
    first = tokens.index(start)
    return [i > first for i in range(len(tokens))]


def _last_turn_only(tokens: list[int], start: int, end: int) -> list[bool]:
    last = len(tokens) - 1 - tokens[::-1].index(start)
    return [i > last for i in range(len(tokens))]


def _early(tokens: list[int], start: int, end: int) -> list[bool]:
    return [*response_mask(tokens, start, end)[1:], False]


def _case(seed: int, length: int, first: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(length, 6, generator=generator)
    tokens = torch.randint(6, (length,), generator=generator)
    return logits, tokens, torch.arange(length) >= first


def _picked(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)


EXERCISES = (
    Exercise(
        "response_mask",
        response_mask,
        [(_ONE_TURN, 3, 4), (_TWO_TURNS, 3, 4), ([0, 1, 21, 2, 3, 4], 3, 4)],
        {
            "the end token is missing: the model must learn to write it, or it never stops": lambda t, s, e: [
                m and token != e for token, m in zip(t, response_mask(t, s, e), strict=True)
            ],
            "off by one: the start token is part of the prompt, the mask begins after it": _early,
            "the start token is part of the prompt: the mask begins after it": lambda t, s, e: [
                m or token == s for token, m in zip(t, response_mask(t, s, e), strict=True)
            ],
            "the mask does not stop at the end token: the next user turn is in it": _all_after_start,
            "only the last turn counts here, but the assistant wrote the earlier ones too": _last_turn_only,
            "turned round: True is for what counts": lambda t, s, e: [not m for m in response_mask(t, s, e)],
            "everything counts, the user's words too": lambda t, s, e: [True] * len(t),
        },
        difficulty=1,
        minutes=8,
    ),
    Exercise(
        "next_token_loss",
        next_token_loss,
        [_case(0, 8, 3), _case(1, 12, 10), _case(2, 5, 1)],
        {
            "no shift: the logits at t score the token at t+1; the token at t they have seen": lambda z, y, m: (
                -_picked(z, y)[m].mean()
            ),
            "shifted the wrong way: the logits at t score the token before": lambda z, y, m: (
                -_picked(z[1:], y[:-1])[m[:-1]].mean()
            ),
            "the mask was not shifted with the targets: use mask[1:]": lambda z, y, m: (
                -_picked(z[:-1], y[1:])[m[:-1]].mean()
            ),
            "the sign: a loss falls when log p rises": lambda z, y, m: -next_token_loss(z, y, m),
            "the mean runs over every position: divide by the number of masked targets": lambda z, y, m: (
                -(_picked(z[:-1], y[1:]) * m[1:]).mean()
            ),
            "a sum: divide by the number of masked targets": lambda z, y, m: -_picked(z[:-1], y[1:])[m[1:]].sum(),
            "no softmax: logits are not log-probs yet": lambda z, y, m: (
                -z[:-1].gather(-1, y[1:, None]).squeeze(-1)[m[1:]].mean()
            ),
        },
        difficulty=2,
        minutes=10,
    ),
    Exercise(
        "without_end",
        without_end,
        [(_ONE_TURN, response_mask(_ONE_TURN, 3, 4), 4), (_TWO_TURNS, response_mask(_TWO_TURNS, 3, 4), 4)],
        {
            "nothing was taken out": lambda t, m, e: list(m),
            "only the very last token was taken out; every turn has an end token": lambda t, m, e: [*m[:-1], False],
            "the prompt came into the mask: keep it False where it was False": lambda t, m, e: [
                token != e for token in t
            ],
            "the end token was kept and all else taken out": lambda t, m, e: [token == e for token in t],
            "the tokens were removed from the list; the mask must keep its length": lambda t, m, e: [
                x for token, x in zip(t, m, strict=True) if token != e
            ],
        },
        difficulty=1,
        minutes=4,
    ),
)
