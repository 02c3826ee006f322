"""Forward passes over answers that are given: response log-probs under a policy, and the KL to a reference.

Rows are sorted by length and run in groups, each padded on the right to its own longest row: a causal model cannot see
padding there, so that no attention mask is needed, and little is computed that nobody reads.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from picollm_lite.chat import Encoded
from picollm_lite.data import collate
from picollm_lite.kernels.logprobs import token_logprobs
from picollm_lite.kernels.rollout import Rollout

GROUP_TOKENS = 2048  # tokens in a group: enough to fill the matrix products, few enough that rows are alike


class ResponseLogprobs(NamedTuple):
    """Summed log-prob of each response in nats, and its length in tokens."""

    total: Float[Tensor, " B"]
    lengths: Int[Tensor, " B"]


class Sequences(NamedTuple):
    """Rollouts moved to the left edge, so that rows are padded on the right only. L is the longest row.

    tokens (B, L). For position t < L-1, which predicts tokens[:, t+1]: mask (B, L-1) True where that is a response
    token, logp (B, L-1) its log-prob when it was sampled, 0 elsewhere. lengths (B,): prompt and response.
    """

    tokens: Int[Tensor, "B L"]
    mask: Bool[Tensor, "B L-1"]
    logp: Float[Tensor, "B L-1"]
    lengths: Int[Tensor, " B"]


def response_logprobs(policy: nn.Module, examples: Sequence[Encoded], pad_token_id: int) -> ResponseLogprobs:
    """log pi(y | x) of each conversation's masked tokens, in order; with gradient unless under `torch.no_grad()`."""
    device = next(policy.parameters()).device
    lengths = torch.tensor([len(example.tokens) for example in examples])
    batch = collate(examples, pad_token_id)
    tokens, mask = batch.tokens.to(device), batch.response_mask[:, 1:].to(device)  # (B, L), (B, L-1)
    sums, order = [], []
    for rows, length in length_groups(lengths):
        part, counts = tokens[rows, :length], mask[rows, : length - 1]  # (b, l), (b, l-1)
        logits = policy(input_ids=part[:, :-1]).logits  # (b, l-1, V)
        sums.append(token_logprobs(logits, part[:, 1:]).masked_fill(~counts, 0.0).sum(1))
        order.append(rows)
    return ResponseLogprobs(in_order(sums, order), mask.sum(1))


def in_order(parts: Sequence[Float[Tensor, " b"]], rows: Sequence[Int[Tensor, " b"]]) -> Float[Tensor, " B"]:
    """One number a row, computed group by group, put back in the order of the rows."""
    joined = torch.cat(list(parts))
    return joined[torch.cat(list(rows)).argsort().to(joined.device)]


def length_groups(lengths: Int[Tensor, " B"]) -> Iterator[tuple[Tensor, int]]:
    """Rows from short to long in groups of at most GROUP_TOKENS padded tokens, each with its longest length."""
    order = lengths.cpu().argsort(stable=True)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * int(lengths[order[stop]]) <= GROUP_TOKENS:
            stop += 1
        yield order[start:stop], int(lengths[order[stop - 1]])
        start = stop


def left_align(sample: Rollout) -> Sequences:
    """A rollout's rows moved to the left edge: no padding before the prompt, and none between prompt and response."""
    P = sample.tokens.shape[1] - sample.response_mask.shape[1]
    first = sample.attention_mask.int().argmax(1)  # (B,): where each prompt begins
    lengths = sample.attention_mask.sum(1)  # (B,)
    place = torch.arange(int(lengths.max()), device=first.device) + first[:, None]  # (B, L)
    inside = place < (first + lengths)[:, None]
    place = place.clamp_max(sample.tokens.shape[1] - 1)
    tokens = sample.tokens.gather(1, place)  # (B, L); beyond a row's end stands what stood there: padding
    mask = nn.functional.pad(sample.response_mask, (P, 0)).gather(1, place) & inside  # (B, L)
    logp = nn.functional.pad(sample.logp, (P, 0)).gather(1, place).masked_fill(~mask, 0.0)  # (B, L)
    return Sequences(tokens, mask[:, 1:], logp[:, 1:], lengths)


@torch.no_grad()
def sequence_logprobs(policy: nn.Module, sequences: Sequences, *, temperature: float = 1.0) -> Float[Tensor, "B L-1"]:
    """log p of each response token, 0 outside the mask."""
    logp = torch.zeros_like(sequences.logp)
    for rows, length in length_groups(sequences.lengths):
        tokens = sequences.tokens[rows, :length]  # (b, l)
        logits = policy(input_ids=tokens[:, :-1]).logits  # (b, l-1, V)
        logp[rows, : length - 1] = token_logprobs(logits, tokens[:, 1:], temperature=temperature).to(logp.dtype)
    return logp.masked_fill(~sequences.mask, 0.0)
