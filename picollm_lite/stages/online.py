"""Online loops: sample several answers a prompt, score them, learn from how they compare, and sample anew.

Here is what the loops share. What each learns from a batch is its own file:

    `group_policy.py`  RLOO and GRPO: the policy gradient, with the group as the baseline
    `online_dpo.py`    DPO on each group's best and worst answer
    `rejection.py`     SFT on each group's best answer
    `best_of_n.py`     nothing: it picks the best answer and leaves the policy as it is
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.chat import MAX_NEW_TOKENS
from picollm_lite.stages.optimization import linear_schedule
from picollm_lite.stages.sampling import (
    Answers,
    RewardFn,
    Sample,
    batch_facts,
    checked_scores,
    prompt_batches,
    sample_answers,
    samples,
)


@dataclass(frozen=True)
class OnlineConfig:
    """The settings that every online loop has. 40 steps of 128 answers are the rollouts of PPO's defaults."""

    steps: int = 40
    batch_size: int = 128  # answers a step
    group_size: int = 4  # answers a prompt
    learning_rate: float = 1e-4  # warmup, then linear decay to zero
    warmup: float = 0.1  # share of the steps
    unfinished_score: float | None = -3.0  # the score of an answer that never ended; None scores it like any other
    temperature: float = 1.0
    max_new_tokens: int = MAX_NEW_TOKENS
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.group_size < 2 or self.batch_size < 1 or self.batch_size % self.group_size:
            raise ValueError(
                f"expected group_size >= 2 that divides batch_size, got group_size={self.group_size} and "
                f"batch_size={self.batch_size}: a batch is whole groups of answers, each to one prompt"
            )


class Turn(NamedTuple):
    """A batch of answers, and what a record says of it. Neighbors in runs of group_size answer the same prompt."""

    where: str  # stage and step, for messages
    step: int  # from 1
    answers: Answers
    facts: dict[str, int | float | tuple[Sample, ...]]  # by the names of the records' fields


def turns(
    stage: str,
    policy: nn.Module,
    ref: nn.Module,
    reward_fn: RewardFn,
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    gold_fn: RewardFn | None,
    config: OnlineConfig,
    *,
    done: int = 0,
) -> Iterator[Turn]:
    """One batch a step, each from the policy as the step before left it; `done` steps are left out.

    Raises ValueError naming stage and step for scores that are not one finite number each.
    """
    groups = prompt_batches(prompts, config.batch_size // config.group_size, config.seed)
    first = slice(None, None, config.group_size)  # of each group
    for step, group in islice(zip(range(1, config.steps + 1), groups, strict=False), done, None):
        where = f"{stage}, step {step}"
        batch = [prompt for prompt in group for _ in range(config.group_size)]
        answers = sample_answers(policy, ref, tokenizer, reward_fn, batch, config, stage=stage, step=step)
        _, texts, sequences, scores, _, _, kl, finished = answers
        gold = None if gold_fn is None else checked_scores(gold_fn, batch, texts, f"{where}, gold")
        facts = {
            "step": step,
            "steps": config.steps,
            "rollouts": step * config.batch_size,
            "learning_rate": config.learning_rate * linear_schedule(step, config.steps, config.warmup),
            **batch_facts(batch, texts, sequences, scores, kl, finished, gold),
            "samples": samples(batch[first], texts[first], scores[first], None if gold is None else gold[first]),
        }
        yield Turn(where, step, answers, facts)
