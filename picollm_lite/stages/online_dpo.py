"""Online DPO: every step samples new answers, and the best and the worst of each group make a pair.

Where `dpo.py` learns from pairs that another policy wrote long ago, here the pairs are the policy's own, as it is now.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.adapters import shared_copy
from picollm_lite.kernels.losses import PreferenceLoss, dpo_loss
from picollm_lite.scoring import Sequences
from picollm_lite.stages.dpo import PairLogprobs, pair_loss
from picollm_lite.stages.online import OnlineConfig, turns
from picollm_lite.stages.optimization import adam, minimize, set_rate
from picollm_lite.stages.resume import Resume, Run
from picollm_lite.stages.sampling import RewardFn, Sample, spread_logprobs


@dataclass(frozen=True)
class OnlineDPOConfig(OnlineConfig):
    """The settings of a run. One update a batch, where PPO's defaults make four: so a higher rate."""

    learning_rate: float = 3e-4
    beta: float = 0.1
    move_ref_every: int | None = None  # steps after which the loss's reference becomes the policy; None keeps it

    def __post_init__(self):
        super().__post_init__()
        if self.move_ref_every is not None and self.move_ref_every < 1:
            raise ValueError(f"expected move_ref_every >= 1 step, or None, got {self.move_ref_every}")


class OnlineDPOStep(NamedTuple):
    """One batch of answers and the update on its pairs; loss, margin and accuracy are NaN when every pair tied."""

    step: int  # from 1
    steps: int  # in the whole run
    rollouts: int  # answers sampled so far
    proxy: float  # mean score
    gold: float  # mean gold score; NaN when there is no gold_fn
    kl: float  # to the reference as it was given, moved or not; k1 summed over an answer's tokens: nats an answer
    length: float  # tokens
    entropy: float  # nats a token, estimated by the mean of -log p
    loss: float
    margin: float  # implicit reward of the best less that of the worst, mean over the pairs
    accuracy: float  # share of pairs with a margin above 0
    tied: int  # groups left out, as their best score is their worst
    finished: float  # share of answers that ended
    learning_rate: float
    grad_norm: float  # before clipping; 0 when every pair tied
    samples: tuple[Sample, ...]


def train(
    policy: nn.Module,
    reward_fn: RewardFn,
    prompts: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    ref: nn.Module | None = None,
    gold_fn: RewardFn | None = None,
    loss: Callable[..., PreferenceLoss] = dpo_loss,
    resume: Resume | None = None,
    **settings,
) -> Iterator[OnlineDPOStep]:
    """DPO on the policy's own pairs: Guo et al. 2024; best against worst: Xiong et al. 2023. Trains `policy` in place.

    `loss` is any of the DPO family that takes `beta`, as in `dpo.train`. Other arguments, records and errors are those
    of `ppo.train`; `settings` those of OnlineDPOConfig.
    """
    given = dict(locals())
    config = OnlineDPOConfig(**settings)
    policy.eval()
    ref = shared_copy(policy) if ref is None else ref.eval()
    optimizer, move_every = adam(policy, config.learning_rate), config.move_ref_every
    moving = {} if move_every is None else {"moving_ref": shared_copy(policy)}  # the loss's, once it has moved
    run = Run(resume, OnlineDPOStep, given | vars(config), policy=policy, optimizer=optimizer, **moving)
    yield from run.records
    for turn in turns("online dpo", policy, ref, reward_fn, prompts, tokenizer, gold_fn, config, done=run.done):
        set_rate(optimizer, turn.facts["learning_rate"])
        best, worst = best_and_worst(turn.answers.final, config.group_size)  # (pairs,) each
        facts = {"loss": math.nan, "margin": math.nan, "accuracy": math.nan, "grad_norm": 0.0}
        if len(best):
            rows = torch.cat([best, worst])  # (2 pairs,)
            pairs = turn.answers.sequences.rows(rows)
            ref_logp = turn.answers.ref_logp[rows]
            if moving and turn.step > move_every:
                ref_logp = _frozen(moving["moving_ref"], pairs, config.temperature)
            logp = sides(policy, pairs, ref_logp, config.temperature)
            result = pair_loss(partial(loss, beta=config.beta), logp)
            total = result.losses.mean()
            norm = minimize(total, optimizer, policy, turn.where, limit=config.max_grad_norm)
            margins = result.chosen_rewards - result.rejected_rewards
            accuracy = (margins > 0).float().mean().item()
            facts = {"loss": total.item(), "margin": margins.mean().item(), "accuracy": accuracy, "grad_norm": norm}
        if moving and turn.step % move_every == 0:
            moving["moving_ref"].load_state_dict(policy.state_dict())
        tied = config.batch_size // config.group_size - len(best)
        yield run.keep(OnlineDPOStep(**turn.facts, **facts, tied=tied))


def best_and_worst(scores: Float[Tensor, " B"], group_size: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Rows of the best and of the worst answer of each group, where the two differ in score. Groups are neighbors."""
    groups = scores.view(-1, group_size)  # (B / G, G)
    first = torch.arange(0, len(scores), group_size, device=scores.device)  # (B / G,)
    differ = groups.amax(1) > groups.amin(1)
    return (first + groups.argmax(1))[differ], (first + groups.argmin(1))[differ]


def sides(policy: nn.Module, pairs: Sequences, ref_logp: Float[Tensor, "2n L-1"], temperature: float) -> PairLogprobs:
    """Log-probs of n best answers and then of their n worst, the policy's with gradient."""
    logp = spread_logprobs(policy, pairs, temperature=temperature).sum(1)  # (2n,)
    columns = (logp, ref_logp.sum(1), pairs.mask.sum(1))
    return PairLogprobs(*(half for column in columns for half in column.chunk(2)))


@torch.no_grad()
def _frozen(ref: nn.Module, pairs: Sequences, temperature: float) -> Float[Tensor, "2n L-1"]:
    return spread_logprobs(ref, pairs, temperature=temperature)
