"""Direct preference optimization, and its family: a policy from pairs, with no reward model and no sampling.

The reference is asked once, before training, for the log-prob of every answer; it is not in the loop.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.adapters import shared_copy
from picollm_lite.chat import MAX_NEW_TOKENS, padding_id
from picollm_lite.data import Pair, epoch_batches, pair_lengths
from picollm_lite.kernels.losses import PreferenceLoss, dpo_loss, kto_loss, orpo_loss, simpo_loss
from picollm_lite.processes import spread
from picollm_lite.scoring import response_logprobs
from picollm_lite.stages.optimization import adamw, check_loss, cosine_schedule, descend, set_rate
from picollm_lite.stages.resume import Resume, Run
from picollm_lite.stages.sampling import RewardFn, Sample, checked_scores, sampled, samples, spread_logprobs

REFERENCE_BATCH = 128  # pairs


class DPOStep(NamedTuple):
    """One optimizer step. KL, gold and samples come with an evaluation; on other steps they are NaN and empty."""

    step: int  # from 1
    steps: int  # in the whole run
    loss: float
    chosen_reward: float  # implicit rewards, means over the batch
    rejected_reward: float
    margin: float  # chosen - rejected
    accuracy: float  # share of pairs with a margin above 0
    chosen_logp: float  # nats a response, means over the batch
    rejected_logp: float
    kl: float  # to the reference on sampled answers, nats a response
    gold: float
    learning_rate: float
    grad_norm: float  # before clipping
    samples: tuple[Sample, ...]


class PairLogprobs(NamedTuple):
    """Summed log-probs of both sides under policy and reference in nats, and the lengths in tokens."""

    policy_chosen: Float[Tensor, " B"]
    policy_rejected: Float[Tensor, " B"]
    ref_chosen: Float[Tensor, " B"]
    ref_rejected: Float[Tensor, " B"]
    chosen_lengths: Int[Tensor, " B"]
    rejected_lengths: Int[Tensor, " B"]


def train(
    policy: nn.Module,
    pairs: Sequence[Pair],
    *,
    tokenizer: PreTrainedTokenizerBase,
    ref: nn.Module | None = None,
    loss: Callable[..., PreferenceLoss] = dpo_loss,
    sft_weight: float = 0.0,
    epochs: int = 1,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    warmup: float = 0.1,
    max_grad_norm: float = 1.0,
    prompts: Sequence[str] = (),
    gold_fn: RewardFn | None = None,
    eval_every: int = 20,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    resume: Resume | None = None,
    **loss_options: float,
) -> Iterator[DPOStep]:
    """Train `policy` in place; yields a record a step. Dropout stays off. The default `ref` is the policy as it comes.

    `loss` is any function with the signature of `dpo_loss`, or `simpo_loss`, `orpo_loss` or `kto_loss`, which are given
    what they take; `loss_options` such as `beta` go to it. `sft_weight` adds that much of the chosen answers' SFT loss
    (Pang et al. 2024). On `prompts`, if given, answers of up to `max_new_tokens` are sampled every `eval_every` steps
    for KL and gold.
    With `resume` a run that was cut off goes on.
    Raises ValueError for no pairs, FloatingPointError naming the step when loss or gradient is not finite.
    """
    given = dict(locals())
    if not pairs:
        raise ValueError("dpo: no pairs to train on")
    pad, optimizer = padding_id(tokenizer), adamw(policy, learning_rate)
    policy.eval()
    ref = shared_copy(policy) if ref is None else ref.eval()
    ref_logp = spread(lambda rows: reference_logprobs(ref, rows, pad), pairs)  # (N, 2)
    batches = epoch_batches(pair_lengths(pairs), batch_size, epochs=epochs, seed=seed)
    run = Run(resume, DPOStep, given, policy=policy, optimizer=optimizer)
    yield from run.records
    for step, rows in run.rest(enumerate(batches, start=1)):
        where = f"dpo, step {step}"
        logp = pair_logprobs(policy, [pairs[row] for row in rows], ref_logp[rows], pad)
        result = pair_loss(partial(loss, **loss_options), logp)
        total = result.losses.mean() - sft_weight * logp.policy_chosen.sum() / logp.chosen_lengths.sum()
        check_loss(total, where)
        optimizer.zero_grad()
        total.backward()
        rate = learning_rate * cosine_schedule(step, len(batches), warmup)
        set_rate(optimizer, rate)
        norm = descend(optimizer, policy.parameters(), where, max_grad_norm=max_grad_norm)
        margins = result.chosen_rewards - result.rejected_rewards  # (B,)
        due = prompts and (step % eval_every == 0 or step in (1, len(batches)))
        kl, gold, shown = math.nan, math.nan, ()
        if due:
            sampling = {"seed": seed, "max_new_tokens": max_new_tokens}
            kl, gold, shown = evaluate(policy, ref, tokenizer, prompts, gold_fn, **sampling)
        record = DPOStep(
            step,
            len(batches),
            total.item(),
            result.chosen_rewards.mean().item(),
            result.rejected_rewards.mean().item(),
            margins.mean().item(),
            (margins > 0).float().mean().item(),
            logp.policy_chosen.mean().item(),
            logp.policy_rejected.mean().item(),
            kl,
            gold,
            rate,
            norm,
            shown,
        )
        yield run.keep(record)


@torch.no_grad()
def reference_logprobs(ref: nn.Module, pairs: Sequence[Pair], pad_token_id: int) -> Float[Tensor, "N 2"]:
    """Summed log-probs of every pair's chosen and rejected answer under the reference."""
    parts = []
    for start in range(0, len(pairs), REFERENCE_BATCH):
        part = pairs[start : start + REFERENCE_BATCH]
        total, _ = response_logprobs(ref, [side for pair in part for side in pair], pad_token_id)
        parts.append(total.view(-1, 2))
    return torch.cat(parts)


def pair_logprobs(
    policy: nn.Module, pairs: Sequence[Pair], ref_logp: Float[Tensor, "B 2"], pad_token_id: int
) -> PairLogprobs:
    """Both sides through the policy together."""
    B, sides = len(pairs), [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    total = spread(lambda rows: response_logprobs(policy, rows, pad_token_id).total, sides)  # (2 B,)
    lengths = torch.tensor([sum(side.response_mask[1:]) for side in sides], device=total.device)
    return PairLogprobs(total[:B], total[B:], ref_logp[:, 0], ref_logp[:, 1], lengths[:B], lengths[B:])


def pair_loss(loss: Callable[..., PreferenceLoss], logp: PairLogprobs) -> PreferenceLoss:
    """Call a loss of the family with the inputs that its paper defines.

    KTO sees every pair as one desirable and one undesirable answer, and its z0 is the mean log-ratio of the batch.
    """
    pc, pr, rc, rr, nc, nr = logp
    kind = getattr(loss, "func", loss)
    if kind is simpo_loss:
        return loss(pc, pr, nc, nr)
    if kind is orpo_loss:
        return loss(pc / nc, pr / nr)
    if kind is kto_loss:
        B = len(pc)
        policy, ref = torch.cat([pc, pr]), torch.cat([rc, rr])  # (2B,)
        desirable = torch.arange(2 * B, device=pc.device) < B
        losses, rewards = loss(policy, ref, desirable, z0=(policy - ref).mean().detach())
        return PreferenceLoss(losses.view(2, B).mean(0), rewards[:B], rewards[B:])
    return loss(pc, pr, rc, rr)


@torch.no_grad()
def evaluate(
    policy: nn.Module,
    ref: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    gold_fn: RewardFn | None = None,
    *,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> tuple[float, float, tuple[Sample, ...]]:
    """KL(policy || ref) in nats a response (k1 on one sample a prompt), mean gold, and three of the samples."""
    sequences, texts, _ = sampled(policy, tokenizer, prompts, seed=seed, max_new_tokens=max_new_tokens)
    kl = (sequences.logp - spread_logprobs(ref, sequences)).sum(1).mean().item()
    gold = checked_scores(gold_fn, prompts, texts, "dpo, gold") if gold_fn else None
    return kl, math.nan if gold is None else gold.mean().item(), samples(prompts, texts, None, gold)
