"""A decoder for Llama-shaped models that computes what transformers computes in about a third of the operations.

What is fused: the q, k and v projections, with their rotated copies for RoPE, into one matrix; gate and up into one;
each RMSNorm weight into the matrix behind it; 1/sqrt(head size) into q. The cache of a layer is written in place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUSABLE = ("LlamaForCausalLM", "Qwen2ForCausalLM")


def can_fuse(model: nn.Module) -> bool:
    """Whether `FusedLlama` gives this model's logits: plain fp32 linear layers, SiLU, full attention, static RoPE."""
    config = model.config
    if type(model).__name__ not in FUSABLE or config.hidden_act != "silu":
        return False
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return False
    if "dynamic" in model.model.rotary_emb.rope_type or model.model.rotary_emb.rope_type == "longrope":
        return False  # these change their frequencies with the length of the text
    # Read by name, so that a wrapped projection (an adapter, a quantized layer) is seen and not fused away.
    linears = [getattr(part, name) for layer in model.model.layers for part, name in _projections(layer)]
    plain = all(type(linear) is nn.Linear and linear.weight.dtype == torch.float32 for linear in linears)
    return (
        plain and type(model.lm_head) is nn.Linear and not any(_has_other_bias(layer) for layer in model.model.layers)
    )


def _projections(layer: nn.Module) -> list[tuple[nn.Module, str]]:
    attention = [(layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    return attention + [(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj")]


def _has_other_bias(layer: nn.Module) -> bool:
    """Whether a projection other than q, k and v has a bias, which `FusedLlama` does not add."""
    return any(getattr(part, name).bias is not None for part, name in _projections(layer)[3:])


class FusedLlama:
    """Prefill and single-token steps over a left-padded batch of prompts. Call under `torch.no_grad()`."""

    def __init__(self, model: nn.Module, prompt: Tensor, prompt_mask: Tensor, max_new_tokens: int):
        config = model.config
        self.eps = config.rms_norm_eps
        self.n_kv = config.num_key_value_heads
        self.n_group = config.num_attention_heads // self.n_kv  # query heads that share one key head
        self.d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.embedding = model.model.embed_tokens.weight
        self.layers = [_Layer(layer, self.d_head) for layer in model.model.layers]
        self.head = (model.lm_head.weight * model.model.norm.weight).t().contiguous()  # (d, V)
        self.head_bias = model.lm_head.bias
        self.prompt, self.prompt_mask = prompt, prompt_mask
        self.room = prompt.shape[1] + max_new_tokens
        positions = torch.arange(self.room, device=prompt.device)[None]
        cos, sin = model.model.rotary_emb(self.embedding, positions)
        self.cos, self.sin = cos[0], sin[0]  # (room, d_head)
        self.position = (prompt_mask.cumsum(-1) - 1).clamp_min(0)  # (B, P)
        # What hides the left padding; None when there is none.
        self.bias = None if prompt_mask.all() else self._padding_bias(prompt_mask)

    def prefill(self) -> Tensor:
        """Logits after the last token of each prompt: (B, V)."""
        B, P = self.prompt.shape
        self.used = P
        x = self.embedding[self.prompt].view(B * P, -1)  # (B P, d)
        cos, sin = self._rope(self.position)
        causal = torch.ones(P, P, dtype=torch.bool, device=x.device).tril()
        visible = causal & self.prompt_mask[:, None, :]  # (B, P, P)
        # A padded position sees itself, or its softmax would be 0/0 and spread NaN through the cache.
        visible = (visible | torch.eye(P, dtype=torch.bool, device=x.device))[:, None]  # (B, 1, P, P)
        for layer in self.layers:
            q, k, v = self._qkv(layer, x, cos, sin)
            q, k, v = (t.view(B, P, -1, self.d_head).transpose(1, 2) for t in (q, k, v))  # (B, heads, P, d_head)
            layer.key, layer.value = self._new_cache(B, x)
            layer.key[..., :P] = k.transpose(2, 3)
            layer.value[:, :, :P] = v
            if layer is self.layers[-1]:  # nothing reads the other positions any more
                q, visible, x = q[:, :, -1:], visible[:, :, -1:], x.view(B, P, -1)[:, -1]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=1.0, enable_gqa=self.n_group > 1)
            x = self._mlp(layer, torch.addmm(x, out.transpose(1, 2).reshape(len(x), -1), layer.out))
        self.position = self.position[:, -1]  # (B,)
        return self._logits(x)

    def step(self, token: Tensor) -> Tensor:
        """Logits after one more token in each row: (b, V)."""
        b, t = len(token), self.used
        self.used += 1
        self.position = self.position + 1  # (b,)
        x = self.embedding[token]  # (b, d)
        cos, sin = self._rope(self.position)
        for layer in self.layers:
            q, k, v = self._qkv(layer, x, cos, sin)
            layer.key[..., t] = k.view(b, self.n_kv, self.d_head)
            layer.value[:, :, t] = v.view(b, self.n_kv, self.d_head)
            # The queries that share a key head are the rows of one small matrix product.
            query = q.reshape(b * self.n_kv, self.n_group, self.d_head)
            weight = torch.bmm(query, layer.key.flatten(0, 1)[..., : self.used])  # (b n_kv, n_group, used)
            if self.bias is not None:
                weight.view(b, -1, self.used).add_(self.bias[..., : self.used])
            out = torch.bmm(weight.softmax(-1), layer.value.flatten(0, 1)[:, : self.used])
            x = self._mlp(layer, torch.addmm(x, out.view(b, -1), layer.out))
        return self._logits(x)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only; a row may be named more than once."""
        for layer in self.layers:
            key, value = layer.key[..., : self.used], layer.value[:, :, : self.used]
            layer.key, layer.value = self._new_cache(len(rows), key)
            layer.key[..., : self.used] = key[rows]
            layer.value[:, :, : self.used] = value[rows]
        self.position = self.position[rows]
        self.bias = None if self.bias is None else self.bias[rows]

    def _padding_bias(self, prompt_mask: Tensor) -> Tensor:
        bias = torch.zeros(len(prompt_mask), 1, self.room, device=prompt_mask.device)
        bias[:, 0, : prompt_mask.shape[1]].masked_fill_(~prompt_mask, float("-inf"))
        return bias  # (B, 1, room)

    def _new_cache(self, b: int, like: Tensor) -> tuple[Tensor, Tensor]:
        # Keys lie with time last, the order in which the product with one query reads them.
        key = like.new_empty(b, self.n_kv, self.d_head, self.room)
        return key, like.new_empty(b, self.n_kv, self.room, self.d_head)

    def _rope(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for every q and k head side by side: (rows, (n_q + n_kv) d_head)."""
        heads = self.n_kv * self.n_group + self.n_kv
        return self.cos[position.flatten()].repeat(1, heads), self.sin[position.flatten()].repeat(1, heads)

    def _qkv(self, layer: "_Layer", x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused = _affine(F.rms_norm(x, x.shape[-1:], eps=self.eps), layer.qkv, layer.qkv_bias)
        width = cos.shape[-1]
        qk = torch.addcmul(fused[:, :width] * cos, fused[:, width : 2 * width], sin)
        n_q = self.n_kv * self.n_group * self.d_head
        return qk[:, :n_q], qk[:, n_q:], fused[:, 2 * width :]

    def _mlp(self, layer: "_Layer", x: Tensor) -> Tensor:
        gate, up = (F.rms_norm(x, x.shape[-1:], eps=self.eps) @ layer.gate_up).chunk(2, dim=-1)
        return torch.addmm(x, F.silu(gate).mul_(up), layer.down)

    def _logits(self, x: Tensor) -> Tensor:
        return _affine(F.rms_norm(x, x.shape[-1:], eps=self.eps), self.head, self.head_bias)


class _Layer:
    """One layer's fused matrices, each (in, out), and its cache."""

    def __init__(self, layer: nn.Module, d_head: int):
        attention, mlp = layer.self_attn, layer.mlp
        scale = d_head**-0.5
        norm = layer.input_layernorm.weight
        q, k, v = (p.weight * norm for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        self.qkv = torch.cat([q * scale, k, _rotated(q * scale, d_head), _rotated(k, d_head), v]).t().contiguous()
        self.qkv_bias = None
        if attention.q_proj.bias is not None:
            q, k, v = (p.bias[:, None] for p in (attention.q_proj, attention.k_proj, attention.v_proj))
            rotated = [_rotated(q * scale, d_head), _rotated(k, d_head)]
            self.qkv_bias = torch.cat([q * scale, k, *rotated, v]).squeeze(1)
        self.out = attention.o_proj.weight.t()
        norm = layer.post_attention_layernorm.weight
        self.gate_up = torch.cat([mlp.gate_proj.weight * norm, mlp.up_proj.weight * norm]).t().contiguous()
        self.down = mlp.down_proj.weight.t()
        self.key = self.value = None


def _rotated(weight: Tensor, d_head: int) -> Tensor:
    """Rows reordered so that the projection gives RoPE's (-second half, first half) of each head at once."""
    first, second = weight.view(-1, 2, d_head // 2, weight.shape[-1]).unbind(1)
    return torch.stack([-second, first], dim=1).view_as(weight)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else torch.addmm(bias, x, weight)
