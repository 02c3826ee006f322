"""Sampling on a GPU: a step that is recorded once as a CUDA graph, then replayed.

A step of a small model is some hundred kernels that each run for a few microseconds: launching them one by one from
Python takes longer than running them. A graph launches all of them at once. It repeats the same shapes at the same
addresses, so that here a step always attends to the whole cache, with what is not yet written hidden by a bias, and
rows that have finished stay in the batch.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from picollm_lite.kernels.fused_llama import FusedLlama


class StaticLlama(FusedLlama):
    """`FusedLlama` whose steps have one shape and wait for nothing that the GPU has computed."""

    def prefill(self) -> Tensor:
        logits = super().prefill()
        P = self.prompt.shape[1]
        self.bias = self._padding_bias()  # (B, 1, room)
        self.bias[..., P:] = float("-inf")
        self.slot = torch.tensor([P - 1], device=logits.device)  # where the newest token stands
        self.used = self.room
        return logits

    def _advance(self) -> None:
        self.slot.add_(1)
        self.position.add_(1)
        self.bias.index_fill_(2, self.slot, 0.0)

    def _append(self, cache: Tensor, pair: Tensor) -> None:
        cache.index_copy_(3, self.slot, pair[:, :, :, None])

    def _new_cache(self, b: int, like: Tensor) -> Tensor:
        return super()._new_cache(b, like).zero_()  # a weight of 0 hides no NaN


def repeatable(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Run a function that changes tensors in place, and return what runs it again: on a GPU, a recording's replay.

    The first run loads what cannot be loaded while a graph is recorded.
    """
    function()
    if device.type != "cuda":
        return function
    graph, stream = torch.cuda.CUDAGraph(), _recording_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            function()  # nothing runs yet
        finally:
            graph.capture_end()  # else no call to the GPU would work any more
    return graph.replay


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: cuBLAS keeps a workspace of some MiB for each stream that it has seen."""
    return torch.cuda.Stream(device)
