"""What the loops that sample share: prompts without end, scores that were checked, and the samples of a record."""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RewardFn = Callable[[Sequence[str], Sequence[str]], Float[Tensor, " B"]]  # (prompts, responses) -> one score each


class Sample(NamedTuple):
    """One answer of a training batch; a score that is not known is NaN."""

    prompt: str
    response: str
    proxy: float
    gold: float


def prompt_batches(prompts: Sequence[str], batch_size: int, seed: int) -> Iterator[list[str]]:
    """Batches without end: the prompts in random order, and again in a new one when they run out.

    Raises ValueError when there are no prompts.
    """
    if not prompts:
        raise ValueError("no prompts to sample answers to")
    rng, waiting = random.Random(seed), []
    while True:
        while len(waiting) < batch_size:
            waiting += rng.sample(list(prompts), len(prompts))
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def checked_scores(reward_fn: RewardFn, prompts: Sequence[str], responses: Sequence[str], where: str) -> Tensor:
    """The reward of each answer, fp32 on the CPU.

    Raises ValueError naming `where` unless there is one finite number an answer; warns when all are the same.
    """
    scores = torch.as_tensor(reward_fn(prompts, responses)).detach().float().cpu()
    if scores.shape != (len(responses),):
        raise ValueError(
            f"{where}: the reward function must return one score an answer, shape ({len(responses)},), "
            f"got shape {tuple(scores.shape)}"
        )
    wrong = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{where}: the reward function gave {scores[wrong[0]].item()} for the answer {responses[wrong[0]]!r} "
            f"({len(wrong)} of {len(scores)} scores are not finite)"
        )
    if len(scores) > 1 and (scores == scores[0]).all():
        warnings.warn(
            f"{where}: the reward function gave {scores[0]:g} to all {len(scores)} answers: there is nothing to learn",
            stacklevel=3,
        )
    return scores


def samples(
    prompts: Sequence[str], responses: Sequence[str], proxy: Tensor | None, gold: Tensor | None, count: int = 3
) -> tuple[Sample, ...]:
    """The first few answers with their scores."""
    unknown = torch.full((len(responses),), float("nan"))
    columns = (proxy if proxy is not None else unknown, gold if gold is not None else unknown)
    rows = zip(prompts, responses, *(column.tolist() for column in columns), strict=True)
    return tuple(Sample(*row) for _, row in zip(range(count), rows, strict=False))
