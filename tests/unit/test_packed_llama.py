"""The padding-free forward pass: states and gradients as transformers has them, or a refusal."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from picollm_lite.kernels.packed_llama import can_pack, packed_states

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0}
LLAMA3 |= {"original_max_position_embeddings": 16}


def llama(**config):
    return LlamaModel(LlamaConfig(**{**SIZES, "num_key_value_heads": 2, "initializer_range": 0.2, **config}))


TRUNKS = {
    "grouped heads": llama,
    "as many key heads": lambda: llama(num_key_value_heads=4),
    "one key head": lambda: llama(num_key_value_heads=1),
    "wide heads": lambda: llama(head_dim=16),
    "scaled positions": lambda: llama(rope_parameters=LLAMA3),
    "biases": lambda: Qwen2Model(Qwen2Config(**SIZES, num_key_value_heads=2, initializer_range=0.2)),
}


@pytest.fixture(params=TRUNKS, ids=str)
def trunk(request):
    torch.manual_seed(0)
    model = TRUNKS[request.param]().eval()
    for name, parameter in model.named_parameters():  # norms of 1 and biases of 0 would hide that they are left out
        if "norm" in name or "bias" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@pytest.fixture
def grid():
    """Four rows of 9, 3, 6 and 1 tokens, and the positions whose states are wanted: none of the last row's."""
    tokens = torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(1))
    wanted = torch.zeros(4, 9, dtype=torch.bool)
    wanted[0, 4:9] = wanted[1, 2] = wanted[2, [0, 3, 5]] = True
    return tokens, torch.tensor([9, 3, 6, 1]), wanted


def test_states_and_gradients_are_those_of_transformers(trunk, grid):
    tokens, _, wanted = grid
    assert can_pack(trunk)
    weight = torch.randn(int(wanted.sum()), 32, generator=torch.Generator().manual_seed(2))
    states, gradients = [], []
    for forward in (lambda: packed_states(trunk, *grid), lambda: trunk(input_ids=tokens).last_hidden_state[wanted]):
        trunk.zero_grad()
        out = forward()
        (out * weight).sum().backward()
        states.append(out.detach())
        gradients.append({name: parameter.grad.clone() for name, parameter in trunk.named_parameters()})
    assert_close(states[0], states[1], rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_under_autocast_no_more_is_rounded_than_by_transformers(trunk, grid):
    """bf16 products in both: each is as far from fp32 as the other, and no residual is rounded on the way."""
    tokens, _, wanted = grid
    exact = packed_states(trunk, *grid)
    with torch.autocast("cpu", torch.bfloat16):
        assert can_pack(trunk)
        ours, theirs = packed_states(trunk, *grid), trunk(input_ids=tokens).last_hidden_state[wanted]
    errors = [(states - exact).norm() / exact.norm() for states in (ours, theirs)]
    assert ours.dtype == torch.float32
    assert 1e-4 < errors[0] < 1.3 * errors[1]
    ours.sum().backward()
    assert {parameter.grad.dtype for parameter in trunk.parameters()} == {torch.float32}


def test_what_stands_in_the_padding_does_not_matter(trunk, grid):
    tokens, lengths, wanted = grid
    other = tokens.where(torch.arange(9) < lengths[:, None], (tokens + 7) % 50)
    assert_close(packed_states(trunk, other, lengths, wanted), packed_states(trunk, *grid), rtol=0, atol=0)


def test_a_wanted_position_in_the_padding_is_refused(grid):
    tokens, lengths, wanted = grid
    wanted[1, 3] = True  # the second row has tokens 0 to 2
    with pytest.raises(ValueError, match="wanted positions must lie within the lengths"):
        packed_states(llama(), tokens, lengths, wanted)


def wrapped():
    model = llama()
    model.layers[0].mlp.up_proj = nn.Sequential(model.layers[0].mlp.up_proj)  # as an adapter would
    return model


OTHERS = {
    "another architecture": lambda: GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)),
    "another activation": lambda: llama(hidden_act="gelu"),
    "a wrapped projection": wrapped,
    "half precision": lambda: llama().to(torch.bfloat16),
    "biases elsewhere": lambda: llama(mlp_bias=True),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_models_are_left_to_transformers(make):
    assert can_pack(llama().eval())
    assert not can_pack(make().eval())


def test_dropout_is_left_to_transformers():
    model = llama(attention_dropout=0.1)
    assert can_pack(model.eval())
    assert not can_pack(model.train())
