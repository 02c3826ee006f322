"""LoRA: a policy that trains small matrices beside its frozen weights, and so has its reference inside.

The matrices are peft's and are put into the model in place: it stays the transformers model that it was, and the loops
sample from it, score it and train it like any other, by transformers' own forward pass.
"""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def add_lora(
    policy: PreTrainedModel,
    *,
    rank: int = 8,
    alpha: float = 16,
    seed: int = 0,
    targets: str | Sequence[str] = "all-linear",
) -> PreTrainedModel:
    """Wx becomes Wx + (alpha / rank) BAx, with W frozen: Hu et al. 2021, eq. 3. In place; returns the policy.

    A (rank, in) is random and B (out, rank) zero, so that nothing changes before the first step: the first KL is 0.
    Both are fp32, whatever W is.
    `targets` are how the names of the layers end, or "all-linear": all but the head. For a reward model give its
    `model`; its `score` trains as it is. Raises ImportError without peft, ValueError for adapters that are there
    already, targets that no layer has or that are tied to another, and rank < 1.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError(f"LoRA needs peft ({error}): pip install peft") from None
    if targets != "all-linear":
        targets = [targets] if isinstance(targets, str) else list(targets)
        _refuse_tied(policy, targets)
    head = getattr(policy, "score", None)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        exclude_modules=None if head is None else ["score"],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in policy.modules()),  # GPT-2 stores W transposed
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy.add_adapter(config)
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # in half precision small steps would be lost
    if head is not None:
        head.requires_grad_(True)
    return policy


def reference(policy: PreTrainedModel) -> PreTrainedModel:
    """The policy with its adapters taken off, as the `ref` of a loop: a plain model that shares every weight.

    Raises ValueError for a policy without adapters, which is no reference once it trains.
    """
    if not _adapted(policy):
        raise ValueError(
            "expected a policy with adapters, got one without: its reference is a copy made before training"
        )
    return _without_adapters(deepcopy(policy, {id(weight): weight for weight in policy.parameters()}))


@torch.no_grad()
def merged(policy: PreTrainedModel) -> PreTrainedModel:
    """A plain model of its own that computes what the policy does: W + (alpha / rank) BA in the place of W.

    A policy without adapters comes back as it is.
    """
    if not _adapted(policy):
        return policy
    model = deepcopy(policy)
    for layer in _adapted(model).values():
        layer.merge()
    return _without_adapters(model).requires_grad_(True)


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy with adapters of its own on the same frozen weights; of a model where all is trained, a plain copy."""
    return deepcopy(model, {id(weight): weight for weight in model.parameters() if not weight.requires_grad})


def _refuse_tied(policy: PreTrainedModel, targets: Sequence[str]) -> None:
    """Merging would change both ends of a tied weight, of which only one has the adapter."""
    count = Counter(id(weight) for _, weight in policy.named_parameters(remove_duplicate=False))
    for name, weight in policy.named_parameters(remove_duplicate=False):
        layer = name.rpartition(".")[0]
        if count[id(weight)] > 1 and any(f".{layer}".endswith(f".{target}") for target in targets):
            raise ValueError(f"expected targets that are tied to no other layer, got {layer}: name other layers")


def _adapted(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with adapters by name. Raises ValueError for peft's own wrapper around a model."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    if layers and hasattr(model, "get_base_model"):
        raise ValueError(
            f"expected a transformers model with adapters, got {type(model).__name__}: use its .get_base_model()"
        )
    return layers


def _without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    for name, layer in _adapted(model).items():
        model.set_submodule(name, layer.base_layer)
    del model.peft_config
    model._hf_peft_config_loaded = False  # else transformers saves adapters in place of the model
    return model
