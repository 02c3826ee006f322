"""How far a policy has moved: the KL to a reference, over the policy's own answers, in nats."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.chat import MAX_NEW_TOKENS, respond
from picollm_lite.evaluation.metrics import Interval, interval_of_sums
from picollm_lite.evaluation.tables import prompt_interval
from picollm_lite.kernels.logprobs import kl_exact, kl_k1, kl_k3, token_logprobs
from picollm_lite.scoring import Sequences, left_align, logits_limit, on_grid, wanted_logits


class Drift(NamedTuple):
    """Three estimates of KL(policy || reference), each a mean with its 95 % bootstrap interval over prompts.

    k1, k3, exact: per answer, the sum over its tokens of `kl_k1`, `kl_k3`, and the KL over the full vocabulary.
    exact_per_token: the same sum of the latter over all answers, divided by the number of their tokens.
    """

    k1: Interval
    k3: Interval
    exact: Interval
    exact_per_token: Interval


@torch.no_grad()
def drift(
    policy: nn.Module,
    ref: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    ref_tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Drift:
    """KL to `ref` on one answer a prompt, sampled at temperature 1; a prompt given k times gets k answers.

    All three are unbiased; k1 has the widest interval, since it takes one token's word for the whole vocabulary. An
    answer cut off at `max_new_tokens` counts as far as it goes. Pass `ref_tokenizer` where the reference brings its
    own. Raises ValueError for fewer than 2 different prompts and for another tokenizer or vocabulary.
    """
    require_same_tokens(policy, ref, tokenizer, ref_tokenizer or tokenizer)
    _require_prompts(prompts)
    sample = respond(policy, tokenizer, prompts, seed=seed, max_new_tokens=max_new_tokens).rollout
    return drift_of(policy, ref, prompts, left_align(sample), seed=seed)


@torch.no_grad()
def drift_of(
    policy: nn.Module, ref: nn.Module, prompts: Sequence[str], sequences: Sequences, *, seed: int = 0
) -> Drift:
    """As `drift`, on answers that `policy` has given already, at temperature 1, one a prompt in this order."""
    _require_prompts(prompts)
    ref_logp, exact = _ref_logp_and_exact(policy, ref, sequences)  # (B, L-1) each
    grids = (kl_k1(sequences.logp, ref_logp), kl_k3(sequences.logp, ref_logp), exact)
    k1, k3, exact = (grid.double().sum(1).cpu().numpy() for grid in grids)  # (B,) each
    lengths = sequences.mask.sum(1).cpu().numpy()
    per_answer = (prompt_interval(prompts, values, seed=seed) for values in (k1, k3, exact))
    return Drift(*per_answer, _ratio(prompts, exact, lengths, seed))


def require_same_tokens(
    policy: nn.Module, ref: nn.Module, tokenizer: PreTrainedTokenizerBase, ref_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises ValueError unless token ids mean the same to both models: a KL compares probabilities of one token."""
    what_to_do = "take a reference that descends from the same checkpoint"
    if tokenizer.get_vocab() != ref_tokenizer.get_vocab():
        shared = len(tokenizer.get_vocab().items() & ref_tokenizer.get_vocab().items())
        raise ValueError(
            f"expected one tokenizer for policy and reference, got vocabularies of {len(tokenizer)} and "
            f"{len(ref_tokenizer)} tokens that share {shared}: {what_to_do}"
        )
    sizes = [model.get_output_embeddings().weight.shape[0] for model in (policy, ref)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"expected logits over one vocabulary, got {sizes[0]} and {sizes[1]} tokens: {what_to_do}")


def _require_prompts(prompts: Sequence[str]) -> None:
    if len(set(prompts)) < 2:
        raise ValueError(f"expected at least 2 different prompts, got {len(set(prompts))}: no interval without them")


def _ref_logp_and_exact(policy: nn.Module, ref: nn.Module, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """log p of each response token under `ref`, and the KL over the full vocabulary there, 0 elsewhere: (B, L-1) each.

    Together, since a pass of a model is what costs time.
    """

    def compute(rows: Tensor, length: int) -> Tensor:
        tokens, wanted = sequences.tokens[rows, :length], sequences.mask[rows, : length - 1]  # (b, l), (b, l-1)
        inputs = tokens[:, :-1], sequences.lengths[rows] - 1, wanted
        logits, ref_logits = (wanted_logits(model, *inputs)[None] for model in (policy, ref))  # (1, n, V) each
        ref_logp = token_logprobs(ref_logits, tokens[:, 1:][wanted][None])  # (1, n)
        return torch.cat([ref_logp, kl_exact(logits, ref_logits)]).T  # (n, 2)

    return on_grid(sequences.mask, sequences.lengths, compute, limit=logits_limit(policy)).unbind(-1)


def _ratio(prompts: Sequence[str], totals: np.ndarray, counts: np.ndarray, seed: int) -> Interval:
    """sum(totals) / sum(counts), a prompt's answers drawn together."""
    place = np.unique(np.array(prompts, dtype=object), return_inverse=True)[1]
    rows = np.stack([np.bincount(place, weights=column) for column in (totals, counts)], axis=1)  # (prompts, 2)
    return interval_of_sums(rows, lambda sums: sums[..., 0] / sums[..., 1], seed=seed)
