"""Forward passes over answers that are given: response log-probs under a policy, and the KL to a reference.

Rows are sorted by length and run in groups, each padded on the right to its own longest row: a causal model cannot see
padding there, so that no attention mask is needed. Of a Llama-shaped model not even that padding is computed
(`kernels/packed_llama.py`), and where the head is a linear map logits are computed for answers only, a chunk at a time.

A batch of any size fits if one group does, once the model's activation checkpointing is on: a group is then computed
again in backward, and its activations are not kept. The gradient is the same to the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from picollm_lite.chat import Encoded
from picollm_lite.data import collate
from picollm_lite.kernels.logprobs import projected_logprobs, token_logprobs
from picollm_lite.kernels.packed_llama import can_pack, packed_states
from picollm_lite.kernels.rollout import Rollout

GROUP_TOKENS = 2048  # tokens in a group: enough to fill the matrix products, few enough that rows are alike
ON_GPU = 8  # times as many there: a step of a small model waits for kernels to be launched, not for sums
MOST_LOGITS = 2**25  # held at once where a group's logits are held: 128 MiB in fp32
# Here logits are lm_head(last hidden state) and nothing else, where others scale or cap them.
PLAIN_HEADS = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM", "MistralForCausalLM")
PLAIN_HEADS += ("Olmo2ForCausalLM", "Phi3ForCausalLM", "GemmaForCausalLM", "GPT2LMHeadModel")


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

    def rows(self, rows: Int[Tensor, " b"]) -> "Sequences":
        """These rows alone, in this order."""
        return Sequences(*(part[rows] for part in self))


def response_logprobs(policy: nn.Module, examples: Sequence[Encoded], pad_token_id: int) -> ResponseLogprobs:
    """log pi(y | x) of each conversation's masked tokens, in order; with gradient unless under `torch.no_grad()`."""
    batch = collate(examples, pad_token_id)
    logp, mask = masked_logprobs(policy, batch.tokens, batch.response_mask)  # (B, L-1) each
    return ResponseLogprobs(logp.sum(1), mask.sum(1))


def masked_logprobs(
    policy: nn.Module, tokens: Int[Tensor, "B L"], response_mask: Bool[Tensor, "B L"]
) -> tuple[Float[Tensor, "B L-1"], Bool[Tensor, "B L-1"]]:
    """log p of every token that the mask marks, 0 at the others, and the mask without its first column.

    Rows are padded on the right; what stands behind a row's last marked token is not computed. With gradient unless
    under `torch.no_grad()`.
    """
    device = next(policy.parameters()).device
    place = torch.arange(1, tokens.shape[1] + 1, device=response_mask.device)
    lengths = (place * response_mask).amax(1)  # (B,): up to the last marked token
    tokens, mask = tokens.to(device), response_mask[:, 1:].to(device)
    return _logprobs(policy, tokens, mask, lengths.to(device)), mask


def in_order(parts: Sequence[Float[Tensor, " b"]], rows: Sequence[Int[Tensor, " b"]]) -> Float[Tensor, " B"]:
    """One number a row, computed group by group, put back in the order of the rows."""
    joined = torch.cat(list(parts))
    return joined[torch.cat(list(rows)).argsort().to(joined.device)]


def length_groups(lengths: Int[Tensor, " B"], limit: int) -> Iterator[tuple[Tensor, int]]:
    """Rows from short to long in groups of at most `limit` padded tokens, each with its longest length."""
    lengths = lengths.cpu()
    order = lengths.argsort(stable=True)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * int(lengths[order[stop]]) <= limit:
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


def sequence_logprobs(policy: nn.Module, sequences: Sequences, *, temperature: float = 1.0) -> Float[Tensor, "B L-1"]:
    """log p of each response token, 0 outside the mask; with gradient unless under `torch.no_grad()`."""
    return _logprobs(policy, sequences.tokens, sequences.mask, sequences.lengths, temperature)


def _logprobs(policy: nn.Module, tokens: Tensor, mask: Tensor, lengths: Tensor, temperature: float = 1.0) -> Tensor:
    def score(rows: Tensor, length: int) -> Tensor:
        part, wanted = tokens[rows, :length], mask[rows, : length - 1]  # (b, l), (b, l-1)
        inputs, targets = (part[:, :-1], lengths[rows] - 1, wanted), part[:, 1:][wanted]  # (n,)
        if has_plain_head(policy):
            states = trunk_states(policy.base_model, *inputs)  # (n, d)
            return projected_logprobs(states, policy.lm_head, targets, temperature=temperature)
        return token_logprobs(wanted_logits(policy, *inputs)[None], targets[None], temperature=temperature)[0]

    limit = group_limit(policy) if has_plain_head(policy) else logits_limit(policy)
    # Logits of one small group at a time, where those of all groups would be kept for backward.
    return on_grid(mask, lengths, score, limit=limit, recompute=recomputes(policy) or limit < GROUP_TOKENS)


def group_limit(model: nn.Module) -> int:
    """Tokens in a group. With activation checkpointing a group bounds the memory, so that it stays small on a GPU."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    return GROUP_TOKENS * (ON_GPU if on_gpu and not recomputes(model) else 1)


def logits_limit(policy: nn.Module) -> int:
    """Tokens in a group whose logits are all held: GROUP_TOKENS, or fewer with more than 16,384 words."""
    if not hasattr(policy, "get_input_embeddings"):  # something around a model, which does not say
        return GROUP_TOKENS
    return max(1, min(GROUP_TOKENS, MOST_LOGITS // len(policy.get_input_embeddings().weight)))


def has_plain_head(policy: nn.Module) -> bool:
    """Whether `lm_head` after the trunk gives the model's logits."""
    return type(policy).__name__ in PLAIN_HEADS and type(policy.lm_head) is nn.Linear


def recomputes(model: nn.Module) -> bool:
    """Whether `activation_checkpointing_enable` (before transformers 5.20 `gradient_checkpointing_enable`) was called.

    A model that does not support it can be told by an attribute: model.gradient_checkpointing = True.
    """
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def run_group(compute: Callable[..., Tensor], *inputs, like: Tensor, recompute: bool) -> Tensor:
    """compute(*inputs), whose activations are not kept but computed again in backward if `recompute` says so.

    `like` is a tensor on the model's device: dropout draws the same numbers again where `checkpoint` sees one.
    """
    if not recompute:
        return compute(*inputs)
    return checkpoint(lambda _, *inputs: compute(*inputs), like, *inputs, use_reentrant=False)


def wanted_logits(
    policy: nn.Module, tokens: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], wanted: Bool[Tensor, "B L"]
) -> Float[Tensor, "n V"]:
    """Logits at the wanted positions, row by row; rows are padded on the right."""
    if has_plain_head(policy):
        return policy.lm_head(trunk_states(policy.base_model, tokens, lengths, wanted))
    return policy(input_ids=tokens).logits[wanted]


def on_grid(
    mask: Bool[Tensor, "B L-1"],
    lengths: Int[Tensor, " B"],
    compute: Callable[[Tensor, int], Float[Tensor, "n ..."]],
    *,
    limit: int,
    recompute: bool = False,
) -> Float[Tensor, "B L-1 ..."]:
    """What `compute(rows, length)` gives for the n masked tokens of each group, put in their places; 0 elsewhere."""
    B, T = mask.shape
    numbers, places = [], []
    for rows, length in length_groups(lengths, limit):
        at = rows.to(mask.device)[:, None] * T + torch.arange(T, device=mask.device)  # (b, T)
        numbers.append(run_group(compute, rows, length, like=mask, recompute=recompute).float())
        places.append(at[mask[rows]])
    joined = torch.cat(numbers)  # (n, ...)
    grid = joined.new_zeros(B * T, *joined.shape[1:])
    return grid.index_put((torch.cat(places),), joined).unflatten(0, (B, T))


def trunk_states(
    trunk: nn.Module, tokens: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], wanted: Bool[Tensor, "B L"]
) -> Float[Tensor, "n d"]:
    """Last hidden states at the wanted positions, row by row; rows are padded on the right."""
    if can_pack(trunk):
        return packed_states(trunk, tokens, lengths, wanted)
    return trunk(input_ids=tokens).last_hidden_state[wanted]
