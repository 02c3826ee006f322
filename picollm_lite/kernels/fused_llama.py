"""A decoder for Llama-shaped models that computes what transformers computes in about a third of the operations.

What is fused: the q, k and v projections into one matrix, gate and up into another, each RMSNorm weight into the matrix
behind it, 1/sqrt(head size) into q, and RoPE into one complex product. The cache of a layer is written in place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUSABLE = ("LlamaForCausalLM", "Qwen2ForCausalLM")
PLAIN_TRUNKS = ("LlamaModel", "Qwen2Model")


def can_fuse(model: nn.Module) -> bool:
    """Whether `FusedLlama` gives this model's logits: a plain trunk and a linear head on it."""
    return type(model).__name__ in FUSABLE and is_plain(model.model) and type(model.lm_head) is nn.Linear


def is_plain(trunk: nn.Module) -> bool:
    """Whether a trunk is what our own forward passes compute: fp32 linear layers, SiLU, full attention, static RoPE."""
    if type(trunk).__name__ not in PLAIN_TRUNKS or trunk.config.hidden_act != "silu":
        return False
    if type(trunk.embed_tokens) is not nn.Embedding:
        return False  # wrapped, as by an adapter
    if set(getattr(trunk.config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return False
    if "dynamic" in trunk.rotary_emb.rope_type or trunk.rotary_emb.rope_type == "longrope":
        return False  # these change their frequencies with the length of the text
    # Read by name, so that a wrapped projection (an adapter, a quantized layer) is seen and not fused away.
    linears = [getattr(part, name) for layer in trunk.layers for part, name in _projections(layer)]
    plain = all(type(linear) is nn.Linear and linear.weight.dtype == torch.float32 for linear in linears)
    return plain and not any(_has_other_bias(layer) for layer in trunk.layers)


def head_sizes(config) -> tuple[int, int, int]:
    """Query heads, key heads, and numbers a head."""
    H = config.num_attention_heads
    return H, config.num_key_value_heads, getattr(config, "head_dim", None) or config.hidden_size // H


def _projections(layer: nn.Module) -> list[tuple[nn.Module, str]]:
    attention = [(layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    return attention + [(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj")]


def _has_other_bias(layer: nn.Module) -> bool:
    """Whether a projection other than q, k and v has a bias, which our own forward passes do not add."""
    return any(getattr(part, name).bias is not None for part, name in _projections(layer)[3:])


class FusedLlama:
    """Prefill and single-token steps over a left-padded batch of prompts. Call under `torch.no_grad()`.

    A key head, the G query heads that share it and its value head lie side by side: K key heads of G + 2 slots each, D
    numbers a slot. Within q and k, RoPE's two halves are interleaved, so that one complex product turns every pair; the
    scores do not change, since q and k are reordered alike.
    """

    def __init__(self, model: nn.Module, prompt: Tensor, prompt_mask: Tensor, max_new_tokens: int):
        self.eps = model.config.rms_norm_eps
        H, self.K, self.D = head_sizes(model.config)
        self.G = H // self.K
        self.embedding = model.model.embed_tokens.weight  # (V, d)
        self.layers = [_Layer(layer, self.K, self.D) for layer in model.model.layers]
        self.head = (model.lm_head.weight * model.model.norm.weight).t().contiguous()  # (d, V)
        self.head_bias = model.lm_head.bias
        self.prompt, self.prompt_mask = prompt, prompt_mask
        self.room = prompt.shape[1] + max_new_tokens
        self.turns = self._turns(model.model.rotary_emb)  # (room, 1, G + 2, D / 2)
        # What hides the left padding; None when there is none.
        self.bias = None if prompt_mask.all() else self._padding_bias()  # (B, 1, room)

    def prefill(self) -> Tensor:
        """Logits after the last token of each prompt: (B, V). All but attention runs on the n real tokens alone."""
        B, P = self.prompt.shape
        mask, self.used = self.prompt_mask, P
        length = mask.sum(-1)  # (B,)
        turns = self.turns[(mask.cumsum(-1) - 1)[mask]]  # (n, 1, G + 2, D / 2)
        causal = torch.ones(P, P, dtype=torch.bool, device=mask.device).tril()
        visible = (causal & mask[:, None, :])[:, None]  # (B, 1, P, P)
        x = self.embedding[self.prompt[mask]]  # (n, d)
        for layer in self.layers:
            padded = x.new_zeros(B, P, self.K, self.G + 2, self.D)
            padded[mask] = self._qkv(layer, x, turns)
            layer.cache = self._new_cache(B, x)
            layer.cache[:, :, :, :P] = padded[:, :, :, self.G :].permute(0, 2, 3, 1, 4)
            key, value = layer.cache[:, :, :, :P].unbind(2)  # (B, K, P, D) each
            query = padded[:, :, :, : self.G].flatten(2, 3).transpose(1, 2)  # (B, K G, P, D)
            if layer is self.layers[-1]:  # nothing reads the other positions any more
                query, visible, mask = query[:, :, -1:], visible[:, :, -1:], mask[:, -1:]
                x = x[length.cumsum(0) - 1]  # (B, d)
            out = F.scaled_dot_product_attention(query, key, value, visible, scale=1.0, enable_gqa=self.G > 1)
            x = self._mlp(layer, torch.addmm(x, out.transpose(1, 2)[mask].flatten(1), layer.out))
        self.position = length - 1  # (B,)
        return self._logits(x)

    def step(self, token: Tensor) -> Tensor:
        """Logits after one more token in each row: (b, V)."""
        b = len(token)
        self._advance()
        turns = self.turns[self.position]  # (b, 1, G + 2, D / 2)
        x = self.embedding[token]  # (b, d)
        for layer in self.layers:
            heads = self._qkv(layer, x, turns)  # (b, K, G + 2, D)
            self._append(layer.cache, heads[:, :, self.G :])
            cache = layer.cache.view(b * self.K, 2, self.room, self.D)[:, :, : self.used]
            # The queries that share a key head are the rows of one small matrix product.
            query = heads.view(b * self.K, self.G + 2, self.D)[:, : self.G]
            weight = torch.bmm(query, cache[:, 0].transpose(1, 2))  # (b K, G, used)
            if self.bias is not None:
                weight.view(b, -1, self.used).add_(self.bias[..., : self.used])
            out = torch.bmm(weight.softmax(-1), cache[:, 1])  # (b K, G, D)
            x = self._mlp(layer, torch.addmm(x, out.view(b, -1), layer.out))
        return self._logits(x)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only; a row may be named more than once."""
        for layer in self.layers:
            old = layer.cache[:, :, :, : self.used]
            layer.cache = self._new_cache(len(rows), old)
            layer.cache[:, :, :, : self.used] = old[rows]
        self.position = self.position[rows]
        self.bias = None if self.bias is None else self.bias[rows]

    def _advance(self) -> None:
        self.used += 1
        self.position = self.position + 1  # (b,)

    def _append(self, cache: Tensor, pair: Tensor) -> None:
        """Write the newest token's key and value, (b, K, 2, D)."""
        cache[:, :, :, self.used - 1] = pair

    def _turns(self, rotary: nn.Module) -> Tensor:
        """RoPE's rotation at each position as complex numbers, 1 for the values, which are not turned."""
        positions = torch.arange(self.room, device=self.prompt.device)[None]
        cos, sin = (part[0, :, : self.D // 2] for part in rotary(self.embedding, positions))
        turns = torch.ones(self.room, 1, self.G + 2, self.D // 2, dtype=torch.complex64, device=cos.device)
        turns[:, :, : self.G + 1] = torch.complex(cos, sin)[:, None, None]
        return turns

    def _padding_bias(self) -> Tensor:
        B, P = self.prompt.shape
        bias = torch.zeros(B, 1, self.room, device=self.prompt.device)
        bias[:, 0, :P].masked_fill_(~self.prompt_mask, float("-inf"))
        return bias

    def _new_cache(self, b: int, like: Tensor) -> Tensor:
        return like.new_empty(b, self.K, 2, self.room, self.D)  # keys and values

    def _qkv(self, layer: "_Layer", x: Tensor, turns: Tensor) -> Tensor:
        fused = _affine(self._norm(x), layer.qkv, layer.qkv_bias)  # (n, K (G + 2) D)
        pairs = torch.view_as_complex(fused.view(len(x), self.K, self.G + 2, self.D // 2, 2))
        return torch.view_as_real(pairs * turns).flatten(-2)  # (n, K, G + 2, D)

    def _mlp(self, layer: "_Layer", x: Tensor) -> Tensor:
        gate, up = (self._norm(x) @ layer.gate_up).chunk(2, dim=-1)
        return torch.addmm(x, F.silu(gate).mul_(up), layer.down)

    def _logits(self, x: Tensor) -> Tensor:
        return _affine(self._norm(x), self.head, self.head_bias)

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)  # its weight is in the matrix that comes next


class _Layer:
    """One layer's fused matrices, each (in, out), and its cache (b, K, 2, room, D)."""

    def __init__(self, layer: nn.Module, K: int, D: int):
        attention, mlp = layer.self_attn, layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        norm = layer.input_layernorm.weight
        self.qkv = _side_by_side([p.weight * norm for p in projections], K, D).t().contiguous()
        self.qkv_bias = None
        if attention.q_proj.bias is not None:
            self.qkv_bias = _side_by_side([p.bias[:, None] for p in projections], K, D).squeeze(1)
        self.out = attention.o_proj.weight.t()
        norm = layer.post_attention_layernorm.weight
        self.gate_up = torch.cat([mlp.gate_proj.weight * norm, mlp.up_proj.weight * norm]).t().contiguous()
        self.down = mlp.down_proj.weight.t()
        self.cache: Tensor


def _side_by_side(qkv: list[Tensor], K: int, D: int) -> Tensor:
    """Rows of q, k and v as K groups of (G queries, key, value), RoPE's halves interleaved, 1/sqrt(D) in q."""
    q, k, v = qkv
    parts = (interleaved(q * D**-0.5, D), interleaved(k, D), v)
    return torch.cat([part.view(K, -1, D, part.shape[-1]) for part in parts], dim=1).flatten(0, 2)


def interleaved(weight: Tensor, D: int) -> Tensor:
    """Rows of q or k, heads of D, with RoPE's two halves interleaved: the pair that is turned becomes neighbors."""
    return weight.unflatten(0, (-1, 2, D // 2)).transpose(1, 2).flatten(0, 2)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else torch.addmm(bias, x, weight)
