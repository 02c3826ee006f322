"""What every stage's loop shares: the learning-rate schedule and the one step that may fail."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.95)  # a run has a few hundred steps: at 0.999 the second moment would still lag behind at its end


def cosine_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warmup over the first `warmup` share of the steps, then cosine decay to zero."""
    start = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < start:
            return (step + 1) / start
        return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, steps - start)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def check_loss(loss: Tensor, where: str) -> None:
    """Raises FloatingPointError naming `where` (stage and step) unless the loss is finite."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"{where}: the loss is {loss.item()}: lower the learning rate, or check the inputs")


def descend(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], where: str, *, max_grad_norm: float
) -> float:
    """Clip the gradients and step; returns the norm before clipping.

    Raises FloatingPointError naming `where` before anything is changed, unless the norm is finite.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"{where}: the gradient norm is {norm.item()}: lower the learning rate")
    optimizer.step()
    return norm.item()
