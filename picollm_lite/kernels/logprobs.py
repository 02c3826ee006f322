"""Logits to token log-probs, entropies and KL estimates. Everything is in nats."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from picollm_lite.kernels.checks import require_positive, require_same_shape

CHUNK_LOGITS = 2**23  # logits held at once where there are more: 32 MiB in fp32, and on a GPU
GPU_CHUNK = 4  # times as many, as smaller products leave it idle
LOG_RATIO_LIMIT = 20.0  # exp(20) = 5e8: far outside any trust region, far inside fp32


def token_logprobs(
    logits: Float[Tensor, "B T V"], tokens: Int[Tensor, "B T"], *, temperature: float = 1.0
) -> Float[Tensor, "B T"]:
    """log p(y_t) = z[y_t] / temperature - logsumexp(z / temperature), z = logits[:, t], y_t = tokens[:, t].

    The caller aligns the two: logits[:, t] must come from the tokens before y_t. Ids must lie in [0, V) at padding
    too. Half precision is scored in fp32. Works block by block, so forward holds no second (B, T, V) tensor and
    backward only the gradient. Raises ValueError on shapes that do not match and on temperature <= 0.
    """
    require_positive(temperature=temperature)
    if logits.ndim != 3 or logits.shape[:-1] != tokens.shape:
        raise ValueError(
            f"expected logits (B, T, V) and tokens (B, T), got {tuple(logits.shape)} and {tuple(tokens.shape)}"
        )
    return _TokenLogprobs.apply(logits, tokens, temperature)


def projected_logprobs(
    states: Float[Tensor, "n d"], head: nn.Linear, tokens: Int[Tensor, " n"], *, temperature: float = 1.0
) -> Float[Tensor, " n"]:
    """log p(tokens[i]) under the logits head(states[i]), as `token_logprobs` gives it.

    More than CHUNK_LOGITS logits, on a GPU GPU_CHUNK times as many, are never held: they are computed chunk by chunk,
    and once more in backward.
    """

    def project(states: Tensor, tokens: Tensor) -> Tensor:
        return token_logprobs(head(states)[None], tokens[None], temperature=temperature)[0]

    limit = CHUNK_LOGITS if states.device.type == "cpu" else GPU_CHUNK * CHUNK_LOGITS
    size = max(1, limit // head.out_features)
    if len(states) <= size:
        return project(states, tokens)
    chunks = zip(states.split(size), tokens.split(size), strict=True)
    options = {"use_reentrant": False, "preserve_rng_state": False}  # a linear map draws no numbers
    return torch.cat([checkpoint(project, *chunk, **options) for chunk in chunks])


def entropy(logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """H = -sum_v p_v log p_v over the full vocabulary; a logit of -inf adds 0. In [0, log V]."""
    return _blockwise(_entropy, logits)


def kl_exact(logits: Float[Tensor, "B T V"], ref_logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """KL(policy || ref) = sum_v p_v (log p_v - log q_v) over the full vocabulary, p policy, q ref.

    A token with p_v = 0 adds 0; one with q_v = 0 < p_v makes it inf. Raises ValueError on unequal shapes.
    """
    require_same_shape(logits, ref_logits)
    return _blockwise(_kl, logits, ref_logits)


def kl_k1(logp: Float[Tensor, "B T"], ref_logp: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """k1 = d with d = log p - log q on tokens sampled from p: unbiased for KL(p || q), often negative.

    Schulman 2020, http://joschu.net/blog/kl-approx.html. Raises ValueError on unequal shapes.
    """
    require_same_shape(logp, ref_logp)
    return logp - ref_logp  # (B, T)


def kl_k2(logp: Float[Tensor, "B T"], ref_logp: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """k2 = d^2 / 2 with d = log p - log q on tokens sampled from p: biased, low variance, never negative.

    Schulman 2020 (see kl_k1). Raises ValueError on unequal shapes.
    """
    return 0.5 * kl_k1(logp, ref_logp).square()  # (B, T)


def kl_k3(logp: Float[Tensor, "B T"], ref_logp: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """k3 = (r - 1) - log r with r = q / p on tokens sampled from p: unbiased and never negative.

    Schulman 2020 (see kl_k1). log r is capped at 20, where exp would overflow; there the gradient is the one at 20,
    so that a far token is still pulled back. Raises ValueError on unequal shapes.
    """
    log_r = cap_log_ratio(-kl_k1(logp, ref_logp))  # (B, T)
    return torch.expm1(log_r) - log_r  # (B, T); expm1 keeps the digits that exp(log_r) - 1 loses near 0


def cap_log_ratio(log_ratio: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """min(log_ratio, 20) whose gradient passes as if uncapped: clamp alone would stop learning where it matters."""
    return log_ratio - F.relu(log_ratio - LOG_RATIO_LIMIT).detach()


def log_odds(logp: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """log p - log(1 - p), with p kept one rounding step below 1: a certain answer gives neither inf nor nan."""
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)  # (B,)
    return logp - torch.log(-torch.expm1(logp))  # (B,); -expm1 is 1 - p without cancellation


class _TokenLogprobs(torch.autograd.Function):
    """Log-softmax and gather, block by block, with the gradient written in place into its one (B, T, V) tensor."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits, tokens)
        ctx.temperature = temperature
        logp = torch.empty(tokens.shape, dtype=_at_least_fp32(logits), device=logits.device)  # (B, T)
        for z, ids, out in _blocks(logits, tokens[..., None], logp[..., None]):
            out.copy_(F.log_softmax(_scaled(z, temperature), -1).gather(-1, ids))
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_logp: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens = ctx.saved_tensors
        grad = torch.empty_like(logits)  # (B, T, V)
        scale = _scaled(grad_logp, ctx.temperature)[..., None]  # (B, T, 1)
        # d log p(y) / d z_v = (1[v = y] - p_v) / temperature: -p_v here, the 1 by scatter_add_
        for out, z, minus_scale in _blocks(grad, logits, -scale):
            work = out.to(scale.dtype)  # `out` itself, unless the logits are in half precision
            torch.softmax(_scaled(z, ctx.temperature), -1, out=work).mul_(minus_scale)
            out.copy_(work)
        return grad.scatter_add_(-1, tokens[..., None], scale.to(grad.dtype)), None, None


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.to(_at_least_fp32(logits))
    return logits if temperature == 1 else logits / temperature


def _at_least_fp32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _entropy(logits: Tensor) -> Tensor:
    logp = F.log_softmax(logits, -1, dtype=_at_least_fp32(logits))
    return -torch.linalg.vecdot(logp.exp(), logp.clamp(min=torch.finfo(logp.dtype).min))  # 0 * -inf is nan, so clamp


def _kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    dtype = _at_least_fp32(logits)
    logp, ref_logp = F.log_softmax(logits, -1, dtype=dtype), F.log_softmax(ref_logits, -1, dtype=dtype)
    p = logp.exp()
    return (p * (logp - ref_logp).masked_fill(p == 0, 0.0)).sum(-1)  # -inf - -inf = nan is masked as well


def _blockwise(fn: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """fn, (b, t, V) -> (b, t), over blocks; a block is whole rows or part of one row, so flat order is kept."""
    with torch.autocast(tensors[0].device.type, enabled=False):  # which would round vecdot to 8 bits
        return torch.cat([fn(*block).flatten() for block in _blocks(*tensors)]).view(tensors[0].shape[:-1])  # (B, T)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching views over rows and positions, each about 2^18 logits on a CPU (fits its cache), 2^24 on a GPU."""
    _, length, vocab = tensors[0].shape
    positions = max(1, (2**18 if tensors[0].device.type == "cpu" else 2**24) // vocab)
    rows, columns = max(1, positions // max(1, length)), max(1, min(length, positions))
    for row_block in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
        yield from zip(*(tensor.split(columns, dim=1) for tensor in row_block), strict=True)
