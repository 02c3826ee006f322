"""RLOO and GRPO: policy gradients whose baseline is the other answers to the same prompt, in place of a critic.

Where the KL penalty stands differs: RLOO takes it off an answer's reward, as PPO does, before the baseline; GRPO adds
k3 of every token to the loss. Left out: GRPO's reference that moves, and reward models that score steps of an answer.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.adapters import shared_copy
from picollm_lite.kernels.advantages import group_normalise, leave_one_out
from picollm_lite.kernels.group_losses import dr_grpo_loss, grpo_loss, reinforce_loss
from picollm_lite.scoring import Sequences
from picollm_lite.stages.online import OnlineConfig, turns
from picollm_lite.stages.optimization import adam, averaged, minibatches, minimize, moved, set_rate
from picollm_lite.stages.resume import Resume, Run
from picollm_lite.stages.sampling import Answers, RewardFn, Sample, spread_logprobs


@dataclass(frozen=True)
class RLOOConfig(OnlineConfig):
    """The settings of `rloo`. One update a batch, where PPO's defaults make four: so a higher rate."""

    learning_rate: float = 3e-4
    kl_coef: float = 0.3  # in the reward


@dataclass(frozen=True)
class GRPOConfig(OnlineConfig):
    """The settings of `grpo`. One epoch and a minibatch of the whole batch make every ratio 1: plain REINFORCE."""

    minibatch_size: int = 64
    epochs: int = 2  # over each batch
    kl_coef: float = 0.3  # of k3, in the loss
    clip: float = 0.2
    std_term: bool = True  # divide advantages by the group's standard deviation
    length_term: bool = True  # divide each answer's loss by its length, not by max_new_tokens


class GroupStep(NamedTuple):
    """One batch of answers and the updates on it. Scores, KL, length and entropy are those of the answers."""

    step: int  # from 1
    steps: int  # in the whole run
    rollouts: int  # answers sampled so far
    proxy: float  # mean score
    gold: float  # mean gold score; NaN when there is no gold_fn
    kl: float  # to the reference, k1 summed over an answer's tokens: nats an answer
    length: float  # tokens
    entropy: float  # nats a token, estimated by the mean of -log p
    flat_groups: float  # share of groups whose answers all have one score: it teaches nothing
    clip_fraction: float  # share of tokens whose ratio left [1 - clip, 1 + clip]; 0 for RLOO, which has no clip
    approx_kl: float  # k3 between the policy that sampled and the one being trained: nats a token
    loss: float
    finished: float  # share of answers that ended
    learning_rate: float
    grad_norm: float  # before clipping
    samples: tuple[Sample, ...]


class Method(NamedTuple):
    """What makes one method of another: loss(logp, sequences, ref_logp, advantages)."""

    stage: str
    advantages: Callable[[Answers], Float[Tensor, " B"]]
    loss: Callable[[Tensor, Sequences, Tensor, Tensor], Float[Tensor, ""]]
    minibatch_size: int
    epochs: int = 1
    clip: float = math.inf


def rloo(
    policy: nn.Module,
    reward_fn: RewardFn,
    prompts: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    ref: nn.Module | None = None,
    gold_fn: RewardFn | None = None,
    resume: Resume | None = None,
    **settings,
) -> Iterator[GroupStep]:
    """REINFORCE, leave-one-out baseline, KL in the reward: Ahmadian et al. 2024. Trains `policy` in place.

    Arguments, records and errors are those of `ppo.train`; `settings` those of RLOOConfig.
    """
    config = RLOOConfig(**settings)

    def advantages(answers: Answers) -> Tensor:
        return leave_one_out(answers.final - config.kl_coef * answers.kl, config.group_size)

    def loss(logp: Tensor, sequences: Sequences, ref_logp: Tensor, advantages: Tensor) -> Tensor:
        return reinforce_loss(logp, advantages, sequences.mask)

    method = Method("rloo", advantages, loss, minibatch_size=config.batch_size)
    yield from _train(policy, reward_fn, prompts, tokenizer, ref, gold_fn, resume, config, method)


def grpo(
    policy: nn.Module,
    reward_fn: RewardFn,
    prompts: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    ref: nn.Module | None = None,
    gold_fn: RewardFn | None = None,
    resume: Resume | None = None,
    **settings,
) -> Iterator[GroupStep]:
    """Clipped ratios, scores normalized in their group, k3 in the loss: Shao et al. 2024. Trains `policy` in place.

    Without `std_term` and `length_term` it is Dr. GRPO, Liu et al. 2025. Arguments, records and errors are those of
    `ppo.train`; `settings` those of GRPOConfig.
    """
    config = GRPOConfig(**settings)
    kernel = grpo_loss if config.length_term else partial(dr_grpo_loss, max_length=config.max_new_tokens)

    def advantages(answers: Answers) -> Tensor:
        return group_normalise(answers.final, config.group_size, scale=config.std_term)

    def loss(logp: Tensor, sequences: Sequences, ref_logp: Tensor, advantages: Tensor) -> Tensor:
        options = {"clip": config.clip, "kl_coef": config.kl_coef}
        return kernel(logp, sequences.logp, ref_logp, advantages, sequences.mask, **options)

    method = Method("grpo", advantages, loss, config.minibatch_size, config.epochs, config.clip)
    yield from _train(policy, reward_fn, prompts, tokenizer, ref, gold_fn, resume, config, method)


def _train(
    policy: nn.Module,
    reward_fn: RewardFn,
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    ref: nn.Module | None,
    gold_fn: RewardFn | None,
    resume: Resume | None,
    config: RLOOConfig | GRPOConfig,
    method: Method,
) -> Iterator[GroupStep]:
    given = locals() | vars(config)
    policy.eval()
    ref = shared_copy(policy) if ref is None else ref.eval()
    optimizer, rng = adam(policy, config.learning_rate), random.Random(config.seed)
    run = Run(resume, GroupStep, given, policy=policy, optimizer=optimizer, rng=rng)
    yield from run.records
    for turn in turns(method.stage, policy, ref, reward_fn, prompts, tokenizer, gold_fn, config, done=run.done):
        set_rate(optimizer, turn.facts["learning_rate"])
        answers = turn.answers
        advantages = method.advantages(answers)  # (B,)
        updates = []
        for rows in minibatches(config.batch_size, method.minibatch_size, method.epochs, rng):
            part = answers.sequences.rows(rows)
            logp = spread_logprobs(policy, part, temperature=config.temperature)  # (b, L-1)
            loss = method.loss(logp, part, answers.ref_logp[rows], advantages[rows])
            norm = minimize(loss, optimizer, policy, turn.where, limit=config.max_grad_norm)
            updates.append({"loss": loss.item(), "grad_norm": norm, **moved(logp, part.logp, part.mask, method.clip)})
        groups = answers.final.view(-1, config.group_size)
        flat = (groups == groups[:, :1]).all(1).float().mean().item()
        yield run.keep(GroupStep(**turn.facts, **averaged(updates), flat_groups=flat))
