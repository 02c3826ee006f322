"""What the loops that sample share: prompts without end, checked scores, and what a record says of answers."""

import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from accelerate.utils import gather_object
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from picollm_lite.chat import respond
from picollm_lite.processes import launched, own_rows, spread
from picollm_lite.scoring import Sequences, left_align, sequence_logprobs

RewardFn = Callable[[Sequence[str], Sequence[str]], Float[Tensor, " B"]]  # (prompts, responses) -> one score each


class Sample(NamedTuple):
    """One answer of a training batch; a score that is not known is NaN."""

    prompt: str
    response: str
    proxy: float
    gold: float


class SamplingSettings(Protocol):
    """What `sample_answers` reads of a loop's settings."""

    unfinished_score: float | None
    temperature: float
    max_new_tokens: int
    seed: int


class Answers(NamedTuple):
    """A batch of sampled answers; (B, L-1) grids as in `Sequences`, 0 outside the mask."""

    prompts: Sequence[str]
    texts: list[str]
    sequences: Sequences
    scores: Float[Tensor, " B"]  # as the reward function gave them
    final: Float[Tensor, " B"]  # the same, but `unfinished_score` for an answer that never ended
    ref_logp: Float[Tensor, "B L-1"]
    kl: Float[Tensor, " B"]  # to the reference, k1 summed over the tokens
    finished: Bool[Tensor, " B"]


@torch.no_grad()
def sample_answers(
    policy: nn.Module,
    ref: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    reward_fn: RewardFn,
    prompts: Sequence[str],
    config: SamplingSettings,
    *,
    stage: str,
    step: int,
) -> Answers:
    """Sample one answer a prompt and score it. Raises ValueError naming stage and step."""
    settings = {"temperature": config.temperature, "max_new_tokens": config.max_new_tokens}
    try:
        seed = config.seed * 1_000_003 + step
        sequences, texts, finished = sampled(policy, tokenizer, prompts, seed=seed, **settings)
    except ValueError as error:  # weights that the last update broke, or a prompt that is too long
        raise ValueError(f"{stage}, step {step}: {error}") from None
    scores = checked_scores(reward_fn, prompts, texts, f"{stage}, step {step}").to(sequences.tokens.device)  # (B,)
    final = scores
    if config.unfinished_score is not None:
        final = scores.where(finished, torch.full_like(scores, config.unfinished_score))
    ref_logp = spread_logprobs(ref, sequences, temperature=config.temperature)  # (B, L-1)
    kl = (sequences.logp - ref_logp).sum(1)  # (B,)
    return Answers(prompts, texts, sequences, scores, final, ref_logp, kl, finished)


def sampled(
    policy: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], **settings
) -> tuple[Sequences, list[str], Bool[Tensor, " B"]]:
    """An answer to each prompt, its text, and whether it ended; of several processes each samples its own rows."""
    own, count = own_rows(len(prompts))
    sample, texts = respond(policy, tokenizer, prompts[own], first_row=own.start, **settings)
    sequences, finished = left_align(sample), sample.finished
    if launched() is None:
        return sequences, texts, finished
    rows = list(zip(*(column.tolist() for column in sequences), texts, finished.tolist(), strict=True))[:count]
    *columns, lengths, texts, ended = zip(*gather_object(rows), strict=True)
    grids = [pad_sequence([torch.tensor(row) for row in column], batch_first=True) for column in columns]  # (B, L)
    device = finished.device
    sequences = Sequences(*(column.to(device) for column in (*grids, torch.tensor(lengths))))
    return sequences, list(texts), torch.tensor(ended, device=device)


def spread_logprobs(policy: nn.Module, sequences: Sequences, *, temperature: float = 1.0) -> Float[Tensor, "B L-1"]:
    """`sequence_logprobs`, of which every process computes its own rows."""
    return spread(lambda *rows: sequence_logprobs(policy, Sequences(*rows), temperature=temperature), *sequences)


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
    """The reward of each answer, fp32 on the CPU; of several processes each scores its own rows.

    Raises ValueError naming `where` unless there is one finite number an answer; warns when all are the same.
    """

    def score(prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        scores = torch.as_tensor(reward_fn(prompts, responses)).detach().float().cpu()
        if scores.shape != (len(responses),):
            raise ValueError(
                f"{where}: the reward function must return one score an answer, shape ({len(responses)},), "
                f"got shape {tuple(scores.shape)}"
            )
        return scores

    scores = spread(score, prompts, responses)
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


def batch_facts(
    prompts: Sequence[str],
    texts: Sequence[str],
    sequences: Sequences,
    scores: Float[Tensor, " B"],
    kl: Float[Tensor, " B"],
    finished: Tensor,
    gold: Tensor | None,
) -> dict[str, float | tuple[Sample, ...]]:
    """What every record says of a batch of answers, by the names of the records' fields."""
    return {
        "proxy": scores.mean().item(),
        "gold": math.nan if gold is None else gold.mean().item(),
        "kl": kl.mean().item(),
        "length": sequences.mask.sum(1).float().mean().item(),
        "entropy": -(sequences.logp.sum() / sequences.mask.sum()).item(),
        "finished": finished.float().mean().item(),
        "samples": samples(prompts, texts, scores, gold),
    }
