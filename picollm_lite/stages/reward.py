"""Reward modeling: scores such that the preferred answer of a pair gets the higher one (Bradley-Terry)."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from picollm_lite.chat import Encoded
from picollm_lite.data import Pair, epoch_batches, pair_lengths
from picollm_lite.kernels.losses import bradley_terry_loss
from picollm_lite.models import RewardModel
from picollm_lite.processes import spread
from picollm_lite.stages.optimization import adamw, check_loss, cosine_schedule, descend, set_rate
from picollm_lite.stages.resume import Resume, Run


class RewardStep(NamedTuple):
    """One optimizer step. `val_loss` and `val_accuracy` are NaN on steps without an evaluation."""

    step: int  # from 1
    steps: int  # in the whole run
    loss: float  # nats a pair; ln 2 = 0.693 is a coin toss
    accuracy: float  # share of the batch's pairs whose chosen answer scores higher
    margin: float  # mean of chosen score - rejected score
    val_loss: float
    val_accuracy: float
    learning_rate: float
    grad_norm: float  # before clipping


def train(
    reward_model: RewardModel,
    pairs: Sequence[Pair],
    *,
    val: Sequence[Pair] = (),
    off_prompt_weight: float = 1.0,
    epochs: int = 1,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    eval_every: int = 20,
    seed: int = 0,
    resume: Resume | None = None,
) -> Iterator[RewardStep]:
    """Train in place; yields a record a step. Dropout stays off. After the last step the scores are centered.

    Both answers of a pair fit its prompt about equally well, so that pairs alone hardly teach a model to look at the
    prompt. `off_prompt_weight` weighs a second Bradley-Terry loss: each chosen answer against another pair's chosen
    answer put under the same prompt (Liu et al. 2025, RRM). 0 leaves it out.
    With `resume` a run that was cut off goes on. Raises ValueError for no pairs, FloatingPointError naming the
    step when loss or gradient is not finite.
    """
    given = dict(locals())
    if not pairs:
        raise ValueError("reward: no pairs to train on")
    batches = epoch_batches(pair_lengths(pairs), batch_size, epochs=epochs, seed=seed)
    optimizer = adamw(reward_model, learning_rate, weight_decay)
    reward_model.eval()
    run = Run(resume, RewardStep, given, reward_model=reward_model, optimizer=optimizer)
    yield from run.records
    for step, rows in run.rest(enumerate(batches, start=1)):
        where = f"reward, step {step}"
        batch = [pairs[row] for row in rows]
        chosen, rejected = score_pairs(reward_model, batch)  # (B,) each
        loss = bradley_terry_loss(chosen, rejected).mean()
        total = loss
        if off_prompt_weight and len(batch) > 1:
            off_prompt = spread(reward_model, off_prompt_answers(batch))  # (B,)
            total = loss + off_prompt_weight * bradley_terry_loss(chosen, off_prompt).mean()
        check_loss(total, where)
        optimizer.zero_grad()
        total.backward()
        rate = learning_rate * cosine_schedule(step, len(batches), warmup)
        set_rate(optimizer, rate)
        norm = descend(optimizer, reward_model.parameters(), where, max_grad_norm=max_grad_norm)
        if step == len(batches):
            center(reward_model, pairs)
        due = val and (step % eval_every == 0 or step == len(batches))
        val_loss, val_accuracy = evaluate(reward_model, val) if due else (math.nan, math.nan)
        margin = (chosen - rejected).detach()
        accuracy = (margin > 0).float().mean().item()
        facts = (loss.item(), accuracy, margin.mean().item(), val_loss, val_accuracy, rate, norm)
        yield run.keep(RewardStep(step, len(batches), *facts))


def score_pairs(reward_model: RewardModel, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the chosen and of the rejected answers, (B,) each; both sides go through the model together."""
    scores = spread(reward_model, [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])  # (2 B,)
    return scores[: len(pairs)], scores[len(pairs) :]


def off_prompt_answers(pairs: Sequence[Pair]) -> list[Encoded]:
    """Each pair's prompt with the chosen response of the pair before it in the batch; the first takes the last's."""
    answers = []
    for pair, other in zip(pairs, [pairs[-1], *pairs[:-1]], strict=True):
        prompt = pair.chosen.response_mask.index(True)
        start = other.chosen.response_mask.index(True)
        answers.append(
            Encoded(
                pair.chosen.tokens[:prompt] + other.chosen.tokens[start:],
                pair.chosen.response_mask[:prompt] + other.chosen.response_mask[start:],
            )
        )
    return answers


@torch.no_grad()
def evaluate(reward_model: RewardModel, pairs: Sequence[Pair]) -> tuple[float, float]:
    """Bradley-Terry loss in nats a pair, and accuracy."""
    chosen, rejected = score_pairs(reward_model, pairs)
    return bradley_terry_loss(chosen, rejected).mean().item(), (chosen > rejected).float().mean().item()


@torch.no_grad()
def center(reward_model: RewardModel, pairs: Sequence[Pair], *, sample: int = 512) -> None:
    """Shift the scores so that their mean over the answers of (at most `sample`) pairs is 0; differences stay."""
    scores = torch.cat(score_pairs(reward_model, pairs[:sample]))  # (2 B,)
    reward_model.score_mean += scores.mean().item()
