"""Sampling answers with their log-probs: the hot loop of PPO, of best-of-n and of every online method.

`FusedLlama` is our own decoder for Llama-shaped models, `Cached` runs any causal transformers model with its KV cache,
`Recompute` runs a model without one; they share one loop. Against `generate`: weights are fused once a call, the cache
is allocated once and written in place, rows that have finished are taken out of the batch, and one uniform number a row
and step picks the token (inverse CDF), so that a row's sample depends on the seed alone. On a GPU `StaticLlama` keeps
all rows instead, and a step, the draw included, is one CUDA graph.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from picollm_lite.kernels.engines import Cached, Recompute
from picollm_lite.kernels.fused_llama import FusedLlama, can_fuse
from picollm_lite.kernels.static_llama import StaticLlama, repeatable

COMPACT_BELOW = 0.85  # gather the cache anew once this share of its rows, or fewer, are still running
CHECK_EVERY = 8  # steps between two looks at a GPU for rows still running: each look waits for it
BLOCK = 64  # vocabulary entries summed at once when a token is drawn

# (logits (b, V), the rows they belong to (b,), the step) -> one token a row and its log-prob.
Choice = Callable[[Tensor, Tensor, int | Tensor], tuple[Tensor, Tensor]]


class Rollout(NamedTuple):
    """Prompts and sampled responses; masks are True where they count.

    tokens (B, P+T): prompt left-padded to P, response right-padded to T. attention_mask (B, P+T): True on real tokens.
    response_mask (B, T): True up to and including EOS. logp (B, T): log-prob in nats of each response token under the
    sampling distribution, 0 outside the mask. finished (B,): whether the response ended with an EOS.
    """

    tokens: Int[Tensor, "B P+T"]
    attention_mask: Bool[Tensor, "B P+T"]
    response_mask: Bool[Tensor, "B T"]
    logp: Float[Tensor, "B T"]
    finished: Bool[Tensor, " B"]


def rollout(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    temperature: float = 1.0,
    seed: int | None = None,
    first_row: int = 0,
) -> Rollout:
    """Sample one response a prompt from softmax(logits / temperature), with no top-k or top-p.

    `logp` equals a scoring pass at the same temperature. The same seed gives the same responses; None draws a new one.
    The prompts may be part of a batch: from its row `first_row` on, they are answered as they are in the whole.
    Raises ValueError for an empty prompt, a non-positive temperature, a token outside the vocabulary, a prompt that
    leaves no room for `max_new_tokens` in the model's context, or non-finite logits.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; use greedy_rollout for the likeliest token")
    generator = torch.Generator()  # on the CPU, so that a seed means the same on any device
    generator.manual_seed(seed) if seed is not None else generator.seed()
    size = (first_row + len(prompts), max_new_tokens)
    uniforms = torch.rand(size, generator=generator, dtype=torch.float32)[first_row:]  # (B, T)
    uniforms = uniforms.to(next(model.parameters()).device)

    def choose(logits: Tensor, rows: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        return _draw(logits if temperature == 1.0 else logits / temperature, uniforms[rows, t])

    return _decode(model, prompts, max_new_tokens, eos_token_id, pad_token_id, choose)


def greedy_rollout(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
) -> Rollout:
    """The likeliest token at every step; `logp` is its log-prob at temperature 1. Raises as `rollout` does."""

    def choose(logits: Tensor, rows: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        top, token = logits.max(-1)  # (b,)
        return token, top - logits.logsumexp(-1)

    return _decode(model, prompts, max_new_tokens, eos_token_id, pad_token_id, choose)


@torch.no_grad()
def _decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    choose: Choice,
) -> Rollout:
    _check_prompts(model, prompts, max_new_tokens)
    device = next(model.parameters()).device
    prompt, prompt_mask = _left_pad(prompts, pad_token_id, device)  # (B, P) each
    eos = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id), device=device)
    response = prompt.new_full((len(prompts), max_new_tokens), pad_token_id)  # (B, T)
    logp = torch.zeros(len(prompts), max_new_tokens, device=device)  # (B, T)
    was_training = model.training
    model.eval()  # dropout would make the sampled log-probs differ from the scored ones
    # Our own decoder stays in fp32 under autocast: exact, and no slower, as a step waits for memory and launches.
    half = torch.is_autocast_enabled(device.type) and not can_fuse(model)
    try:
        with torch.autocast(device.type, enabled=half), torch.cuda.device_of(prompt):
            # A prompt that comes several times, as in best-of-n, is read once.
            first, rows = _distinct(prompts, device)
            engine = _engine(model, prompt[first], prompt_mask[first], max_new_tokens)
            logits = engine.prefill()  # (b, V)
            if len(first) < len(rows):
                engine.keep(rows)
                logits = logits[rows]  # (B, V)
            answer = _answer_static if isinstance(engine, StaticLlama) else _answer
            answer(engine, logits, choose, eos, response, logp)
    finally:
        model.train(was_training)
    return _collect(prompt, prompt_mask, response, logp, eos, pad_token_id)


def _answer(engine, logits: Tensor, choose: Choice, eos: Tensor, response: Tensor, logp: Tensor) -> None:
    """Fill response and logp, (B, T) each, until every row has ended; what comes after an end is noise."""
    rows = torch.arange(len(response), device=eos.device)  # the rows that the engine holds
    running = torch.ones_like(rows, dtype=torch.bool)  # (b,)
    for t in range(response.shape[1]):
        token, token_logp = choose(logits.float(), rows, t)  # (b,) each
        response[rows, t], logp[rows, t] = token, token_logp
        running &= ~_is_in(token, eos)
        n_running = int(running.sum())
        if n_running == 0 or t == response.shape[1] - 1:
            break
        if n_running <= COMPACT_BELOW * len(rows):
            left = running.nonzero().squeeze(1)
            engine.keep(left)
            rows, token, running = rows[left], token[left], running[left]
        logits = engine.step(token)  # (b, V)


def _answer_static(engine, logits: Tensor, choose: Choice, eos: Tensor, response: Tensor, logp: Tensor) -> None:
    """The same for a `StaticLlama`: a step changes the same tensors as the one before, so that it can be replayed."""
    rows, t = torch.arange(len(response), device=eos.device), eos.new_zeros(1)
    token, running = torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool)  # (B,) each

    def take(logits: Tensor) -> None:
        chosen, chosen_logp = choose(logits.float(), rows, t)  # (B,) each
        response[rows, t], logp[rows, t] = chosen, chosen_logp
        token.copy_(chosen)
        running.logical_and_(~_is_in(chosen, eos))
        t.add_(1)

    take(logits)
    if response.shape[1] == 1:
        return
    again = repeatable(lambda: take(engine.step(token)), eos.device)
    for taken in range(2, response.shape[1]):
        if taken % CHECK_EVERY == 0 and not running.any():
            return
        again()


def _is_in(token: Tensor, few: Tensor) -> Tensor:
    """torch.isin, which sorts when there is more than a handful, and then cannot be recorded."""
    return (token[..., None] == few).any(-1)


def _collect(
    prompt: Tensor, prompt_mask: Tensor, response: Tensor, logp: Tensor, eos: Tensor, pad_token_id: int
) -> Rollout:
    """Cut each response after its first EOS, and all of them after the longest."""
    ends = _is_in(response, eos).int()  # (B, T)
    response_mask = ends.cumsum(1) - ends == 0  # (B, T): no EOS before this token
    longest = int(response_mask.any(0).sum())
    response, logp, ends, response_mask = (part[:, :longest] for part in (response, logp, ends, response_mask))
    if not torch.isfinite(logp).all():
        raise ValueError("the model gave non-finite logits while sampling: its weights hold NaN or infinity")
    return Rollout(
        tokens=torch.cat([prompt, response.masked_fill(~response_mask, pad_token_id)], dim=1),
        attention_mask=torch.cat([prompt_mask, response_mask], dim=1),
        response_mask=response_mask,
        logp=logp.masked_fill(~response_mask, 0.0),
        finished=(ends.bool() & response_mask).any(1),
    )


def _draw(logits: Float[Tensor, "b V"], uniform: Float[Tensor, " b"]) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling in two steps, first the block, then the token in it; returns tokens and their log-probs.

    A running sum over the whole vocabulary is the slow part of this method; block sums leave two short ones.
    """
    b, V = logits.shape
    top = logits.amax(-1, keepdim=True)  # (b, 1)
    weight = (logits - top).exp_()  # (b, V)
    if V % BLOCK:
        weight = torch.nn.functional.pad(weight, (0, BLOCK - V % BLOCK))
    blocks = weight.view(b, -1, BLOCK)  # (b, V / BLOCK, BLOCK)
    cumulative = blocks.sum(-1).cumsum(-1)  # (b, V / BLOCK)
    total = cumulative[:, -1:]  # (b, 1)
    block, left = _first_above(cumulative, uniform[:, None] * total)  # (b, 1) each
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1).cumsum(-1)  # (b, BLOCK)
    offset, _ = _first_above(inside, left)
    token = (block * BLOCK + offset).clamp_max(V - 1)  # (b, 1)
    logp = logits.gather(1, token) - top - total.log()  # (b, 1)
    return token.squeeze(1), logp.squeeze(1)


def _first_above(cumulative: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first entry above `target` in each row, and how far `target` lies past the entry before it."""
    # Rounding may lift the target to the sum itself, beyond the last entry of any weight.
    below_sum = torch.nextafter(cumulative[:, -1:], torch.zeros_like(target))
    target = torch.minimum(target, below_sum)
    # Only NaN is out of bounds; it must get as far as the check for finite log-probs.
    index = torch.searchsorted(cumulative, target, right=True).clamp_max(cumulative.shape[1] - 1)  # (b, 1)
    before = cumulative.gather(1, (index - 1).clamp_min(0)) * (index > 0)  # (b, 1)
    return index, target - before


def context_length(model: nn.Module) -> int | None:
    """How many tokens the model can read, or None where its config does not say; picoLLM's says `sequence_len`."""
    lengths = (getattr(model.config, name, None) for name in ("max_position_embeddings", "sequence_len"))
    return next((length for length in lengths if length is not None), None)  # GPT-2 maps n_positions to the first


def _check_prompts(model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not prompts:
        raise ValueError("prompts is empty: give at least one list of token ids")
    empty = [i for i, prompt in enumerate(prompts) if len(prompt) == 0]
    if empty:
        raise ValueError(f"prompt {empty[0]} is empty: a prompt needs at least one token, e.g. the BOS token")
    vocabulary = len(model.get_input_embeddings().weight)
    low, high = min(map(min, prompts)), max(map(max, prompts))
    if low < 0 or high >= vocabulary:
        raise ValueError(f"token ids must lie in 0..{vocabulary - 1}, got {low if low < 0 else high}")
    context = context_length(model)
    longest = max(map(len, prompts))
    if context is not None and longest + max_new_tokens > context:
        raise ValueError(
            f"longest prompt ({longest} tokens) plus max_new_tokens ({max_new_tokens}) exceeds the model's context of "
            f"{context} tokens: shorten the prompt or lower max_new_tokens"
        )


def _left_pad(prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    tokens = torch.tensor([[pad_token_id] * (longest - len(p)) + list(p) for p in prompts], device=device)  # (B, P)
    length = torch.tensor([len(p) for p in prompts], device=device)
    return tokens, torch.arange(longest, device=device) >= longest - length[:, None]


def _distinct(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Index of the first copy of each distinct prompt, and for every prompt the number of its distinct one."""
    number: dict[tuple[int, ...], int] = {}
    copy_of = [number.setdefault(tuple(prompt), len(number)) for prompt in prompts]
    first = [copy_of.index(i) for i in range(len(number))]
    return torch.tensor(first, device=device), torch.tensor(copy_of, device=device)


def _engine(model: nn.Module, prompt: Tensor, prompt_mask: Tensor, max_new_tokens: int):
    if not getattr(model.config, "use_cache", False):
        return Recompute(model, prompt, prompt_mask)
    if can_fuse(model):
        engine = StaticLlama if prompt.is_cuda else FusedLlama
        return engine(model, prompt, prompt_mask, max_new_tokens)
    return Cached(model, prompt, prompt_mask)
