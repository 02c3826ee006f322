"""The engines of `rollout` that run any model through its own forward: with its KV cache, or without one.

An engine reads the prompts with `prefill`, takes one token a row with `step`, both giving next-token logits (b, V), and
drops or repeats rows with `keep`. `fused_llama.py` holds the fast one.
"""

import torch
from torch import Tensor, nn

MOST_LOGITS = 2**26  # that `Recompute` holds: 256 MiB in fp32


class Cached:
    """Any causal transformers model, with the KV cache it brings. Raises ValueError when it brings none."""

    def __init__(self, model: nn.Module, prompt: Tensor, prompt_mask: Tensor):
        self.model, self.prompt, self.mask = model, prompt, prompt_mask
        self.position = prompt_mask.cumsum(-1) - 1  # (B, P), -1 on padding

    def prefill(self) -> Tensor:
        return self._forward(self.prompt, self.position.clamp_min(0), cache=None)

    def step(self, token: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], dim=1)
        self.position = self.position[:, -1:] + 1  # (b, 1)
        return self._forward(token[:, None], self.position, cache=self.cache)

    def keep(self, rows: Tensor) -> None:
        self.mask, self.position = self.mask[rows], self.position[rows]
        self.cache.batch_select_indices(rows)

    def _forward(self, tokens: Tensor, position: Tensor, cache) -> Tensor:
        out = self.model(
            input_ids=tokens,
            attention_mask=self.mask.long(),
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values
        if self.cache is None:
            raise ValueError("the model returned no KV cache: set model.config.use_cache = False to sample without one")
        return out.logits[:, -1]  # (b, V)


class Recompute:
    """A model without a KV cache: the whole text anew at every step.

    Rows are padded on the right, where a causal model cannot see the padding, so that no mask and no positions are
    needed: a custom model often takes neither.
    """

    def __init__(self, model: nn.Module, prompt: Tensor, prompt_mask: Tensor):
        self.model = model
        self.length = prompt_mask.sum(-1)  # (B,)
        index = torch.arange(prompt.shape[1], device=prompt.device)
        shift = prompt.shape[1] - self.length[:, None]
        self.tokens = prompt.gather(1, (index + shift).clamp_max(prompt.shape[1] - 1))  # (B, P), right-padded

    def prefill(self) -> Tensor:
        """A few rows at a time where the logits of all positions, of which one is used, would be too many."""
        size = max(1, MOST_LOGITS // (self.tokens.shape[1] * len(self.model.get_input_embeddings().weight)))
        parts = zip(self.tokens.split(size), self.length.split(size), strict=True)
        return torch.cat([self._last(*part) for part in parts])  # (b, V)

    def _last(self, tokens: Tensor, length: Tensor) -> Tensor:
        logits = self.model(input_ids=tokens).logits  # (b, L, V)
        return logits[torch.arange(len(logits), device=logits.device), length - 1]  # (b, V)

    def step(self, token: Tensor) -> Tensor:
        self.tokens = torch.cat([self.tokens, self.tokens[:, -1:]], dim=1)
        self.tokens.scatter_(1, self.length[:, None], token[:, None])
        self.length = self.length + 1
        return self.prefill()

    def keep(self, rows: Tensor) -> None:
        self.tokens, self.length = self.tokens[rows], self.length[rows]
