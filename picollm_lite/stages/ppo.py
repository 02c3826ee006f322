"""PPO on language models: sample answers, score them, make the better ones likelier, and stay near the reference.

A state is the text so far, an action the next token; rewards are a KL penalty at every token and the score at the last.
Left out of game-playing PPO: several environments, observation scaling, and the entropy bonus (the KL penalty does its
work). The critic has a trunk of its own. Sharing the policy's saves a third of the time, but in as many steps it
explained a few percent of the returns' variance, this one most of it. It starts as a copy of the policy with a head of
zeros: begun as the reward model, which was never asked about half an answer, it misled the first ten steps.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.adapters import shared_copy
from picollm_lite.chat import MAX_NEW_TOKENS
from picollm_lite.kernels.advantages import gae, shape_rewards, whiten
from picollm_lite.kernels.losses import ppo_policy_loss, ppo_value_loss
from picollm_lite.models import ValueModel
from picollm_lite.processes import spread
from picollm_lite.scoring import Sequences
from picollm_lite.stages.optimization import (
    adam,
    averaged,
    check_loss,
    descend,
    linear_schedule,
    minibatches,
    moved,
    set_rate,
)
from picollm_lite.stages.resume import Resume, Run
from picollm_lite.stages.sampling import (
    RewardFn,
    Sample,
    batch_facts,
    checked_scores,
    prompt_batches,
    sample_answers,
    spread_logprobs,
)


@dataclass(frozen=True)
class PPOConfig:
    """The settings of a run, with the values that work for the course's model."""

    steps: int = 40
    batch_size: int = 128  # answers a step
    minibatch_size: int = 64
    epochs: int = 2  # over each batch
    learning_rate: float = 1e-4  # warmup, then linear decay to zero
    critic_learning_rate: float = 1e-3
    warmup: float = 0.1  # share of the steps
    kl_coef: float = 0.3
    kl_target: float | None = None  # nats an answer: adapts kl_coef (Ziegler et al. 2019, section 2.2)
    kl_horizon: int = 10_000  # answers
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    unfinished_score: float | None = -3.0  # the score of an answer that never ended; None scores it like any other
    target_kl: float | None = None  # nats a token: leaves a batch once the policy has moved this far from its samples
    temperature: float = 1.0
    max_new_tokens: int = MAX_NEW_TOKENS
    max_grad_norm: float = 1.0
    seed: int = 0


class PPOStep(NamedTuple):
    """One batch of answers and the updates on it. Scores, KL, length and entropy are those of the answers."""

    step: int  # from 1
    steps: int  # in the whole run
    proxy: float  # mean score
    gold: float  # mean gold score; NaN when there is no gold_fn
    kl: float  # to the reference, k1 summed over an answer's tokens: nats an answer
    length: float  # tokens
    entropy: float  # nats a token, estimated by the mean of -log p
    clip_fraction: float  # share of tokens whose ratio left [1 - clip, 1 + clip]
    approx_kl: float  # k3 between the policy that sampled and the one being trained: nats a token
    policy_loss: float
    value_loss: float
    explained_variance: float  # of the returns, by the values before the update
    finished: float  # share of answers that ended
    kl_coef: float
    learning_rate: float
    grad_norm: float  # of the policy, before clipping
    samples: tuple[Sample, ...]


class Experience(NamedTuple):
    """A batch of answers with all that the updates need; (B, L-1) grids as in `Sequences`, 0 outside the mask."""

    sequences: Sequences
    scores: Float[Tensor, " B"]  # as the reward function gave them
    kl: Float[Tensor, " B"]
    values: Float[Tensor, "B L-1"]
    advantages: Float[Tensor, "B L-1"]  # whitened
    returns: Float[Tensor, "B L-1"]
    finished: Float[Tensor, " B"]


def train(
    policy: nn.Module,
    reward_fn: RewardFn,
    prompts: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    ref: nn.Module | None = None,
    critic: ValueModel | None = None,
    gold_fn: RewardFn | None = None,
    resume: Resume | None = None,
    **settings,
) -> Iterator[PPOStep]:
    """Train `policy` in place; yields a record a step. Stop whenever you like: the policy stays usable.

    `reward_fn` is any callable (prompts, responses) -> one score an answer; `gold_fn` is only recorded. `ref` is the
    policy as it comes, the critic a copy of its trunk with a head of zeros, unless given. `settings` are those of
    PPOConfig. With `resume` a run that was cut off goes on. Dropout stays off. Raises ValueError naming the step for
    rewards that are not one finite number each, FloatingPointError naming it when a loss or gradient is not finite.
    """
    given = dict(locals())
    config = PPOConfig(**settings)
    policy.eval()
    ref = shared_copy(policy) if ref is None else ref.eval()
    critic = ValueModel.from_policy(policy) if critic is None else critic
    critic.eval()
    optimizer = adam(policy, config.learning_rate)
    critic_optimizer = adam(critic, config.critic_learning_rate)
    rng, kl_coef = random.Random(config.seed), config.kl_coef
    parts = {"policy": policy, "critic": critic, "optimizer": optimizer, "critic_optimizer": critic_optimizer}
    run = Run(resume, PPOStep, given | vars(config), rng=rng, **parts)
    for record in run.records:
        yield record
        kl_coef = adapted_kl_coef(kl_coef, record.kl, config)
    batches = prompt_batches(prompts, config.batch_size, config.seed)
    for step, batch in run.rest(zip(range(1, config.steps + 1), batches, strict=False)):
        where = f"ppo, step {step}"
        rate = linear_schedule(step, config.steps, config.warmup)
        set_rate(optimizer, config.learning_rate * rate)
        set_rate(critic_optimizer, config.critic_learning_rate * rate)
        experience, texts = collect(
            policy, ref, critic, tokenizer, reward_fn, batch, config, kl_coef=kl_coef, step=step
        )
        updates = []
        for rows in minibatches(len(batch), config.minibatch_size, config.epochs, rng):
            optimizer.zero_grad()
            critic_optimizer.zero_grad()
            update = accumulate(policy, critic, experience, rows, config, where)
            grad_norm = descend(optimizer, policy.parameters(), where, max_grad_norm=config.max_grad_norm)
            descend(critic_optimizer, critic.parameters(), where, max_grad_norm=config.max_grad_norm)
            updates.append({**update, "grad_norm": grad_norm})
            if config.target_kl is not None and update["approx_kl"] > config.target_kl:
                break
        gold = None if gold_fn is None else checked_scores(gold_fn, batch, texts, f"{where}, gold")
        record = _record(step, config, experience, updates, kl_coef, batch, texts, gold, config.learning_rate * rate)
        yield run.keep(record)
        kl_coef = adapted_kl_coef(kl_coef, record.kl, config)


@torch.no_grad()
def collect(
    policy: nn.Module,
    ref: nn.Module,
    critic: ValueModel,
    tokenizer: PreTrainedTokenizerBase,
    reward_fn: RewardFn,
    prompts: Sequence[str],
    config: PPOConfig,
    *,
    kl_coef: float,
    step: int,
) -> tuple[Experience, list[str]]:
    """Sample one answer a prompt, score it, and work out advantages and returns."""
    answers = sample_answers(policy, ref, tokenizer, reward_fn, prompts, config, stage="ppo", step=step)
    sequences, mask = answers.sequences, answers.sequences.mask
    values = _values(critic, sequences)  # (B, L-1)
    rewards = shape_rewards(answers.final, sequences.logp, answers.ref_logp, mask, kl_coef=kl_coef)  # (B, L-1)
    advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
    whitened, finished = whiten(advantages, mask), answers.finished.float()
    return Experience(sequences, answers.scores, answers.kl, values, whitened, returns, finished), answers.texts


def accumulate(
    policy: nn.Module, critic: ValueModel, experience: Experience, rows: Tensor, config: PPOConfig, where: str
) -> dict[str, float]:
    """Gradients of both losses over the minibatch `rows`; returns means over its response tokens."""
    sequences = experience.sequences.rows(rows)
    mask, old_logp, advantages = sequences.mask, sequences.logp, experience.advantages[rows]  # (b, L-1) each
    logp = spread_logprobs(policy, sequences, temperature=config.temperature)
    policy_loss = ppo_policy_loss(logp, old_logp, advantages, mask, clip=config.clip)
    values, old_values, returns = _values(critic, sequences), experience.values[rows], experience.returns[rows]
    value_loss = ppo_value_loss(values, old_values, returns, mask, clip=config.value_clip)
    loss = policy_loss + value_loss  # no weight on the value loss: it has parameters of its own
    check_loss(loss, where)
    loss.backward()
    distance = moved(logp, old_logp, mask, config.clip)
    return {"policy_loss": policy_loss.item(), "value_loss": value_loss.item(), **distance}


def _values(critic: ValueModel, sequences: Sequences) -> Float[Tensor, "B L-1"]:
    return spread(lambda *rows: critic.at(Sequences(*rows)), *sequences)


def adapted_kl_coef(kl_coef: float, kl: float, config: PPOConfig) -> float:
    """K_(n+1) = K_n (1 + clip(KL / target - 1, +-0.2) batch / horizon): Ziegler et al. 2019, section 2.2."""
    if config.kl_target is None:
        return kl_coef
    error = max(-0.2, min(0.2, kl / config.kl_target - 1))
    return kl_coef * (1 + error * config.batch_size / config.kl_horizon)


def _record(
    step: int,
    config: PPOConfig,
    experience: Experience,
    updates: list[dict[str, float]],
    kl_coef: float,
    prompts: Sequence[str],
    texts: Sequence[str],
    gold: Tensor | None,
    rate: float,
) -> PPOStep:
    sequences, scores, kl, finished = experience.sequences, experience.scores, experience.kl, experience.finished
    mask = sequences.mask
    error = (experience.returns - experience.values)[mask]
    variance = experience.returns[mask].var()
    return PPOStep(
        step=step,
        steps=config.steps,
        **batch_facts(prompts, texts, sequences, scores, kl, finished, gold),
        **averaged(updates),
        explained_variance=(1 - error.var() / variance).item() if variance > 0 else math.nan,
        kl_coef=kl_coef,
        learning_rate=rate,
    )
