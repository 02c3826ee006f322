"""Rejection-sampling fine-tuning: SFT on the best of several own answers, in rounds. No reference, no KL penalty.

RAFT, Dong et al. 2023; STaR, Zelikman et al. 2022, keeps all that are right instead of one. What SFT on own answers
does by itself is seen from the control `keep_random`: the same rollouts, the same number of updates, no selection.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.adapters import shared_copy
from picollm_lite.kernels.losses import sft_loss
from picollm_lite.stages.online import OnlineConfig, turns
from picollm_lite.stages.optimization import adam, averaged, minibatches, minimize, set_rate
from picollm_lite.stages.resume import Resume, Run
from picollm_lite.stages.sampling import RewardFn, Sample, spread_logprobs

Keep = Callable[[Float[Tensor, "P G"], random.Random], Int[Tensor, " P"]]  # scores of each group -> whom to keep


@dataclass(frozen=True)
class RejectionConfig(OnlineConfig):
    """The settings of a run. A step is a round: ten of 512 answers are the rollouts of PPO's defaults."""

    steps: int = 10
    batch_size: int = 512
    minibatch_size: int = 32  # kept answers
    epochs: int = 2  # over the kept answers of a round
    learning_rate: float = 3e-4


class RejectionStep(NamedTuple):
    """One round. Scores, KL, length and entropy are those of all its answers, sampled before its updates."""

    step: int  # from 1
    steps: int  # in the whole run
    rollouts: int  # answers sampled so far
    proxy: float  # mean score
    gold: float  # mean gold score; NaN when there is no gold_fn
    kl: float  # to the reference, which is only measured: k1 summed over an answer's tokens, nats an answer
    length: float  # tokens
    entropy: float  # nats a token, estimated by the mean of -log p
    kept_score: float  # mean score of the answers that were kept, an unfinished one's as `unfinished_score` has it
    loss: float  # nats a token
    finished: float  # share of answers that ended
    learning_rate: float
    grad_norm: float  # before clipping
    samples: tuple[Sample, ...]


def keep_best(scores: Float[Tensor, "P G"], rng: random.Random) -> Int[Tensor, " P"]:
    """The highest score of each group; of several the first, which is as random as any, as answers are independent."""
    return scores.argmax(1)


def keep_random(scores: Float[Tensor, "P G"], rng: random.Random) -> Int[Tensor, " P"]:
    """Any answer of each group: the control."""
    return torch.tensor([rng.randrange(scores.shape[1]) for _ in scores], device=scores.device)


def train(
    policy: nn.Module,
    reward_fn: RewardFn,
    prompts: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    ref: nn.Module | None = None,
    gold_fn: RewardFn | None = None,
    keep: Keep = keep_best,
    resume: Resume | None = None,
    **settings,
) -> Iterator[RejectionStep]:
    """SFT on one answer of each group, the one that `keep` picks; yields a record a round. Trains `policy` in place.

    Arguments, records and errors are those of `ppo.train`; `settings` those of RejectionConfig.
    """
    given = dict(locals())
    config = RejectionConfig(**settings)
    policy.eval()
    ref = shared_copy(policy) if ref is None else ref.eval()
    optimizer = adam(policy, config.learning_rate)
    # Two sources: the control and what it is compared with take their minibatches in the same order.
    order, choice = random.Random(config.seed), random.Random(config.seed)
    parts = {"policy": policy, "optimizer": optimizer, "order": order, "choice": choice}
    run = Run(resume, RejectionStep, given | vars(config), **parts)
    yield from run.records
    for turn in turns("rejection", policy, ref, reward_fn, prompts, tokenizer, gold_fn, config, done=run.done):
        set_rate(optimizer, turn.facts["learning_rate"])
        groups = turn.answers.final.view(-1, config.group_size)  # (P, G)
        picked = keep(groups, choice)  # (P,)
        kept = turn.answers.sequences.rows(torch.arange(len(groups), device=picked.device) * config.group_size + picked)
        updates = []
        for rows in minibatches(len(groups), config.minibatch_size, config.epochs, order):
            part = kept.rows(rows)
            loss = sft_loss(spread_logprobs(policy, part, temperature=config.temperature), part.mask)
            norm = minimize(loss, optimizer, policy, turn.where, limit=config.max_grad_norm)
            updates.append({"loss": loss.item(), "grad_norm": norm})
        score = groups.gather(1, picked[:, None]).mean().item()
        yield run.keep(RejectionStep(**turn.facts, **averaged(updates), kept_score=score))
