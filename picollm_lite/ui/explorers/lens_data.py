"""What the token lens shows: answers as tokens, with numbers for each that the models give."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.chat import respond
from picollm_lite.models import RewardModel, ValueModel
from picollm_lite.scoring import Sequences, left_align, sequence_logprobs
from picollm_lite.stages import ppo

Lens = tuple[list[str], dict[str, list[float]]]  # tokens, and for each quantity one number a token


@torch.no_grad()
def lens_data(
    questions: Sequence[str],
    policy: nn.Module,
    ref: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    critic: ValueModel | None = None,
    reward_model: RewardModel | None = None,
    seed: int = 0,
    **settings,
) -> dict[str, Lens]:
    """The policy's answer to each question: tokens, and for each the log-ratio log pi - log pi_ref in nats.

    With a critic also the value of the state before the token; with a reward model too the advantage, whitened over
    all the answers together. `settings` are those of PPOConfig. Raises ValueError when a question comes twice, and for
    a reward model without a critic.
    """
    if len(set(questions)) < len(questions):
        raise ValueError("a question comes twice: answers are named after their questions")
    if reward_model is not None and critic is None:
        raise ValueError("advantages need a critic: give critic=, or leave reward_model out")
    config = ppo.PPOConfig(**settings)
    if reward_model is not None:
        # collect() samples with the seed of its step
        models = policy, ref, critic, tokenizer, reward_model.score
        experience, _ = ppo.collect(*models, questions, config, kl_coef=config.kl_coef, step=seed)
        sequences, grids = experience.sequences, {"value": experience.values, "advantage": experience.advantages}
    else:
        sampling = {"temperature": config.temperature, "max_new_tokens": config.max_new_tokens, "seed": seed}
        sequences = left_align(respond(policy, tokenizer, questions, **sampling).rollout)
        grids = {} if critic is None else {"value": critic.at(sequences)}
    ratio = sequences.logp - sequence_logprobs(ref, sequences, temperature=config.temperature)  # (B, L-1)
    return dict(zip(questions, _rows(tokenizer, sequences, {"log-ratio": ratio, **grids}), strict=True))


def _rows(tokenizer: PreTrainedTokenizerBase, sequences: Sequences, grids: dict[str, Tensor]) -> list[Lens]:
    rows = []
    for row, mask in enumerate(sequences.mask):
        ids = sequences.tokens[row, 1:][mask].tolist()  # position t predicts token t + 1
        values = {name: grid[row][mask].tolist() for name, grid in grids.items()}
        rows.append(([tokenizer.decode([token]) for token in ids], values))
    return rows
