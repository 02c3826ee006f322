"""A Llama-shaped trunk over several texts at once, with gradients, that computes no padding.

What transformers computes, in fewer steps: all but attention sees one row of real tokens, (m, d), instead of a padded
grid; q, k and v are one product, and RoPE is one complex product; the last layer goes on at the wanted positions alone.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from picollm_lite.kernels.fused_llama import head_sizes, interleaved, is_plain


def can_pack(trunk: nn.Module) -> bool:
    """Whether `packed_states` gives this trunk's hidden states: a plain one, with no dropout."""
    return is_plain(trunk) and not (trunk.training and trunk.config.attention_dropout)


def packed_states(
    trunk: nn.Module, tokens: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], wanted: Bool[Tensor, "B L"]
) -> Float[Tensor, "n d"]:
    """Last hidden states at the n wanted positions, row by row. Row b is real up to lengths[b], padding after it.

    Wanted positions must be real ones: a mask that reaches into the padding raises ValueError.
    """
    B, L = tokens.shape
    place = torch.arange(L, device=tokens.device)
    is_real = place < lengths[:, None]  # (B, L)
    if (wanted & ~is_real).any():
        raise ValueError("wanted positions must lie within the lengths: the padding has no hidden states")
    real = is_real.flatten().nonzero().squeeze(1)  # (m,): where in the grid the real tokens stand
    turns = _turns(trunk, place)[real % L]  # (m, heads, D / 2)
    x = trunk.embed_tokens(tokens.flatten()[real])  # (m, d)
    for layer in trunk.layers:
        out = _attend(layer, x, turns, real, B, L)  # (B L, H D)
        if layer is trunk.layers[-1]:  # nothing reads the other positions any more
            x, real = x[wanted.flatten()[real]], wanted.flatten().nonzero().squeeze(1)  # (n, d), (n,)
        x = _add_linear(x, out[real], layer.self_attn.o_proj.weight)
        x = _mlp(layer, x)
    return _norm(x, trunk.norm)


def _turns(trunk: nn.Module, place: Tensor) -> Tensor:
    """RoPE's rotation at each position as complex numbers, 1 for the values: (L, H + 2 K, D / 2)."""
    H, K, D = head_sizes(trunk.config)
    cos, sin = (part[0, :, : D // 2] for part in trunk.rotary_emb(trunk.embed_tokens.weight, place[None]))
    turns = torch.ones(len(place), H + 2 * K, D // 2, dtype=torch.complex64, device=place.device)
    turns[:, : H + K] = torch.complex(cos, sin)[:, None]
    return turns


def _attend(layer: nn.Module, x: Tensor, turns: Tensor, real: Tensor, B: int, L: int) -> Tensor:
    """Causal attention: the one step that needs the grid. What stands in its padding is 0, and no token sees it."""
    attention = layer.self_attn
    H, K, D = head_sizes(attention.config)
    weight, bias = _qkv(attention, D)
    qkv = F.linear(_norm(x, layer.input_layernorm), weight, bias).float()  # (m, (H + 2 K) D)
    qkv = torch.view_as_real(torch.view_as_complex(qkv.unflatten(1, (-1, D // 2, 2))) * turns).flatten(1)
    grid = qkv.new_zeros(B * L, qkv.shape[1]).index_copy(0, real, qkv).view(B, L, H + 2 * K, D)
    q, k, v = grid.transpose(1, 2).split([H, K, K], dim=1)  # (B, heads, L, D) each
    if grid.is_cuda and K < H:  # where fp32 has a fused kernel for as many key heads as query heads only
        k, v = (part.repeat_interleave(H // K, dim=1) for part in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] < H)
    return out.transpose(1, 2).reshape(B * L, H * D)


def _qkv(attention: nn.Module, D: int) -> tuple[Tensor, Tensor | None]:
    """One matrix, and one bias where there is one, for q, k and v."""
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    weight = torch.cat([interleaved(q.weight, D), interleaved(k.weight, D), v.weight])
    if q.bias is None:
        return weight, None
    return weight, torch.cat([interleaved(q.bias, D), interleaved(k.bias, D), v.bias])


def _mlp(layer: nn.Module, x: Tensor) -> Tensor:
    h, mlp = _norm(x, layer.post_attention_layernorm), layer.mlp
    h = F.silu(F.linear(h, mlp.gate_proj.weight)) * F.linear(h, mlp.up_proj.weight)
    return _add_linear(x, h, mlp.down_proj.weight)


def _add_linear(x: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    """x + h W^T; under autocast the product alone is rounded, where addmm would round x too."""
    if torch.is_autocast_enabled(x.device.type):
        return x + F.linear(h, weight)
    return torch.addmm(x, h, weight.t())


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
