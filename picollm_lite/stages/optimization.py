"""What the stages' loops share: optimizer, learning-rate schedules, minibatches, and the one step that may fail."""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from picollm_lite.kernels.logprobs import kl_k3
from picollm_lite.processes import sum_gradients

BETAS = (0.9, 0.95)  # a run has a few hundred steps: at 0.999 the second moment would still lag behind at its end


def cosine_schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at `step` (from 1): linear warmup, then cosine decay, to 0 after the last step."""
    start = max(1, round(warmup * steps))
    if step <= start:
        return step / start
    return 0.5 * (1 + math.cos(math.pi * (step - 1 - start) / max(1, steps - start)))


def linear_schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at `step` (from 1): linear warmup, under a linear decay to 1 / steps."""
    return min(step / max(1.0, warmup * steps), 1.0, (steps - step + 1) / steps)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate from now on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def adamw(model: nn.Module, rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """The optimizer of the loops over given answers. Raises ValueError as `adam` does."""
    _refuse_half(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(trained, lr=rate, betas=BETAS, weight_decay=weight_decay, fused=True)


def adam(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """The optimizer of the loops that sample. Raises ValueError for a model whose weights train in half precision."""
    _refuse_half(model)
    return torch.optim.Adam(model.parameters(), lr=rate, eps=1e-5, fused=True)


def _refuse_half(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"the weights that train are in {str(weight.dtype).removeprefix('torch.')} ({name}), which rounds most "
                "of a small step away: load the model with dtype='float32'; to compute in bf16 all the same, put the "
                "loop inside models.mixed_precision"
            )


def minibatches(size: int, minibatch_size: int, epochs: int, rng: random.Random) -> Iterator[Int[Tensor, " b"]]:
    """Row numbers: every row once an epoch, in a new order each."""
    for _ in range(epochs):
        yield from torch.tensor(rng.sample(range(size), size)).split(minibatch_size)


def check_loss(loss: Tensor, where: str) -> None:
    """Raises FloatingPointError naming `where` (stage and step) unless the loss is finite."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"{where}: the loss is {loss.item()}: lower the learning rate, or check the inputs")


def descend(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], where: str, *, max_grad_norm: float
) -> float:
    """Sum the gradients over the processes, clip them and step; returns the norm before clipping.

    Raises FloatingPointError naming `where` before anything is changed, unless the norm is finite.
    """
    parameters = list(parameters)
    sum_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"{where}: the gradient norm is {norm.item()}: lower the learning rate")
    optimizer.step()
    torch.clear_autocast_cache()  # where a loop runs within one autocast, the next step must see the new weights
    return norm.item()


def minimize(loss: Tensor, optimizer: torch.optim.Optimizer, model: nn.Module, where: str, *, limit: float) -> float:
    """One step down the gradient of `loss`, its norm cut at `limit`; returns the norm before that.

    Raises FloatingPointError naming `where` before anything is changed, unless loss and norm are finite.
    """
    check_loss(loss, where)
    optimizer.zero_grad()
    loss.backward()
    return descend(optimizer, model.parameters(), where, max_grad_norm=limit)


def moved(
    logp: Float[Tensor, "B T"], old_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], clip: float
) -> dict[str, float]:
    """How far a policy is from the one that sampled: share of tokens whose ratio left 1 +- clip, and k3 a token."""
    logp = logp.detach()
    outside = ((logp - old_logp).exp() - 1).abs() > clip
    return {
        "clip_fraction": outside[mask].float().mean().item(),
        "approx_kl": kl_k3(old_logp, logp)[mask].mean().item(),
    }


def averaged(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over the updates of a step."""
    return {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
