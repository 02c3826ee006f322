"""Sampling: captured log-probs, the cache, masks, and every kind of model."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from picollm_lite.kernels import engines
from picollm_lite.kernels import rollout as module
from picollm_lite.kernels.engines import Cached, Recompute
from picollm_lite.kernels.fused_llama import FusedLlama, can_fuse
from picollm_lite.kernels.rollout import _draw, greedy_rollout, rollout
from picollm_lite.kernels.static_llama import StaticLlama

PAD, EOS, V = 0, 1, 50
PROMPTS = [[5, 9, 12, 3], [7], [8, 8, 21, 30, 31, 4, 2], [11, 40], [7], [33, 6, 5]]  # ragged, one of them twice
SHAPE = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
OPTIONS = {"eos_token_id": EOS, "pad_token_id": PAD, "max_new_tokens": 12}


def sharpened(model):
    """Random weights three times as large: peaked distributions, so that mistakes show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))  # norms and biases that do something
    return model.eval()


def llama(**changes):
    torch.manual_seed(0)
    return sharpened(LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_key_value_heads": 2, **changes})))


def llama_without_cache():
    return llama(use_cache=False)


def qwen2():
    torch.manual_seed(1)
    return sharpened(Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_key_value_heads=2)))


def gpt2():
    torch.manual_seed(2)
    return sharpened(GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=64, n_embd=32, n_layer=2, n_head=4)))


class TokensOnly(torch.nn.Module):
    """A custom model as picoLLM exports it: no cache, and a forward that takes token ids and nothing else."""

    def __init__(self):
        super().__init__()
        self.inner = gpt2()
        self.config = GPT2Config(vocab_size=V, n_positions=64, use_cache=False)
        self.eval()

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids):
        return self.inner(input_ids=input_ids)


def test_without_a_cache_few_logits_are_held_at_once(monkeypatch):
    """The longest text has 7 + 11 tokens: room for 2 rows of it, where the batch has 24."""
    model, sizes = llama_without_cache(), []
    whole = rollout(model, PROMPTS * 4, seed=0, **OPTIONS)
    monkeypatch.setattr(engines, "MOST_LOGITS", 40 * V)
    model.lm_head.register_forward_hook(lambda head, inputs, logits: sizes.append(logits.shape[:-1].numel()))
    limited = rollout(model, PROMPTS * 4, seed=0, **OPTIONS)
    assert torch.equal(limited.tokens, whole.tokens)
    torch.testing.assert_close(limited.logp, whole.logp, rtol=0, atol=1e-5)
    assert max(sizes) <= 40 and len(sizes) > 12


MODELS = [llama, llama_without_cache, qwen2, gpt2, TokensOnly]
anything = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


@torch.no_grad()
def scored(model, prompt, response, temperature=1.0):
    """Log-probs of a response, token by token from the definition: each from its own forward pass, no padding."""
    logp = []
    for t in range(len(response)):
        logits = model(input_ids=torch.tensor([prompt + response[:t]])).logits[0, -1]
        logp.append((logits / temperature).log_softmax(-1)[response[t]])
    return torch.stack(logp)


def responses(out):
    T = out.response_mask.shape[1]
    return [row[mask].tolist() for row, mask in zip(out.tokens[:, -T:], out.response_mask, strict=True)]


@anything
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_captured_logp_is_the_scored_one(make, temperature):
    model = make()
    out = rollout(model, PROMPTS, seed=3, temperature=temperature, **OPTIONS)
    for prompt, response, logp in zip(PROMPTS, responses(out), out.logp, strict=True):
        torch.testing.assert_close(
            logp[: len(response)], scored(model, prompt, response, temperature), atol=1e-5, rtol=0
        )
        assert (logp[len(response) :] == 0).all()


@anything
def test_greedy_is_the_argmax_of_a_full_forward_pass(make):
    model = make()
    for prompt, response in zip(PROMPTS, responses(greedy_rollout(model, PROMPTS, **OPTIONS)), strict=True):
        text = list(prompt)
        for token in response:
            with torch.no_grad():
                assert model(input_ids=torch.tensor([text])).logits[0, -1].argmax() == token
            text.append(token)


@anything
def test_a_batch_of_one_equals_a_batch_of_many(make):
    model = make()
    together = responses(greedy_rollout(model, PROMPTS, **OPTIONS))
    alone = [responses(greedy_rollout(model, [prompt], **OPTIONS))[0] for prompt in PROMPTS]
    assert together == alone


def test_the_engine_fits_the_model():
    prompt, mask = torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.bool)
    kinds = [type(module._engine(make(), prompt, mask, 4)) for make in MODELS]
    assert kinds == [FusedLlama, Recompute, FusedLlama, Cached, Recompute]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        {"head_dim": 16},
        {"hidden_act": "gelu"},
        {"mlp_bias": True},
    ],
    ids=str,
)
def test_variants_of_llama_agree_with_transformers(changes):
    model = llama(**changes)
    out = rollout(model, PROMPTS, seed=0, **OPTIONS)
    for prompt, response, logp in zip(PROMPTS, responses(out), out.logp, strict=True):
        torch.testing.assert_close(logp[: len(response)], scored(model, prompt, response), atol=1e-5, rtol=0)


def test_a_wrapped_projection_is_not_fused_away():
    model = llama()
    assert can_fuse(model)
    model.model.layers[1].self_attn.q_proj = torch.nn.Sequential(model.model.layers[1].self_attn.q_proj)
    assert not can_fuse(model)  # an adapter round the projection would be lost


def test_fused_and_cached_engines_sample_the_same(monkeypatch):
    model = llama()
    fused = rollout(model, PROMPTS, seed=5, **OPTIONS)
    monkeypatch.setattr(module, "can_fuse", lambda model: False)
    cached = rollout(model, PROMPTS, seed=5, **OPTIONS)
    assert torch.equal(fused.tokens, cached.tokens)
    torch.testing.assert_close(fused.logp, cached.logp, atol=1e-5, rtol=0)


ENDS = list(range(1, V, 3))  # so many that rows end at every step
ROOM = [
    pytest.param(PROMPTS * 8, {"eos_token_id": ENDS}, id="rows end early"),
    pytest.param(PROMPTS, {"max_new_tokens": 30}, id="some end late"),
    pytest.param([[5, 9], [3, 8]], {}, id="no padding"),
    pytest.param([[5, 9]] * 5, {}, id="one prompt"),
    pytest.param(PROMPTS, {"max_new_tokens": 1}, id="one token"),
    pytest.param(PROMPTS, {"eos_token_id": list(range(V))}, id="all end at once"),
]


@pytest.mark.parametrize(("prompts", "changes"), ROOM)
@pytest.mark.parametrize("make", [llama, qwen2])
def test_static_steps_sample_the_same(monkeypatch, make, prompts, changes):
    """What a GPU replays, run without one; and neither kind reads what it has not written."""
    model, steps, empty = make(), [], FusedLlama._new_cache
    monkeypatch.setattr(FusedLlama, "_new_cache", lambda *sizes: empty(*sizes).fill_(torch.nan))
    grown = rollout(model, prompts, seed=5, **OPTIONS | changes)
    monkeypatch.setattr(module, "FusedLlama", StaticLlama)
    step = StaticLlama.step
    monkeypatch.setattr(StaticLlama, "step", lambda engine, token: steps.append(len(token)) or step(engine, token))
    static = rollout(model, prompts, seed=5, **OPTIONS | changes)
    for name in ("tokens", "attention_mask", "response_mask", "finished"):
        assert torch.equal(getattr(static, name), getattr(grown, name)), name
    torch.testing.assert_close(static.logp, grown.logp, atol=1e-5, rtol=0)
    longest = grown.response_mask.shape[1]
    assert set(steps) <= {len(prompts)}  # every row, at every step
    assert longest - 1 <= len(steps) < longest + module.CHECK_EVERY


@pytest.mark.parametrize("make", [llama, gpt2])
def test_only_other_models_are_rounded_under_autocast(make):
    exact = rollout(make(), PROMPTS, seed=5, **OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        inside = rollout(make(), PROMPTS, seed=5, **OPTIONS)
        assert torch.is_autocast_enabled("cpu")
    same = inside.logp.shape == exact.logp.shape and torch.equal(inside.logp, exact.logp)
    assert same == (make is llama)


def test_layout_of_the_masks():
    out = rollout(llama(), PROMPTS, seed=3, **OPTIONS)
    P = max(map(len, PROMPTS))
    B, T = out.response_mask.shape
    assert out.tokens.shape == out.attention_mask.shape == (B, P + T)
    for row, prompt in enumerate(PROMPTS):
        assert out.tokens[row, P - len(prompt) : P].tolist() == prompt
        assert out.attention_mask[row, :P].tolist() == [False] * (P - len(prompt)) + [True] * len(prompt)
    assert torch.equal(out.attention_mask[:, P:], out.response_mask)
    assert (out.tokens[~out.attention_mask] == PAD).all()
    assert out.response_mask[:, 0].all()  # every response has a token
    assert int(out.response_mask.sum(1).max()) == T  # no column that nobody needs


def test_eos_is_part_of_the_response_and_nothing_comes_after():
    many_ends = list(range(1, V, 3))
    out = rollout(llama(), PROMPTS * 8, seed=0, **{**OPTIONS, "eos_token_id": many_ends})
    lengths = []
    for response, finished, logp in zip(responses(out), out.finished.tolist(), out.logp, strict=True):
        assert not set(response[:-1]) & set(many_ends)
        assert finished == (response[-1] in many_ends)
        assert finished or len(response) == OPTIONS["max_new_tokens"]
        assert (logp[len(response) :] == 0).all()
        lengths.append(len(response))
    assert out.finished.any()
    assert len(set(lengths)) > 2  # rows left the batch at different steps


def test_pad_may_equal_eos():
    """GPT-2 has no pad of its own; with EOS as pad, EOS is still sampled, counted and given a log-prob."""
    ends = rollout(llama(), PROMPTS * 8, seed=0, max_new_tokens=40, eos_token_id=EOS, pad_token_id=EOS)
    other = rollout(llama(), PROMPTS * 8, seed=0, max_new_tokens=40, eos_token_id=EOS, pad_token_id=PAD)
    assert ends.finished.any()
    assert torch.equal(ends.response_mask, other.response_mask)
    assert torch.equal(ends.logp, other.logp)
    row = int(ends.finished.nonzero()[0])
    assert responses(ends)[row][-1] == EOS


def test_a_prompt_with_the_pad_token_in_it_is_not_mistaken_for_a_shorter_one():
    model = llama()
    both = greedy_rollout(model, [[PAD, 5], [5]], **OPTIONS)
    alone = [greedy_rollout(model, [prompt], **OPTIONS) for prompt in ([PAD, 5], [5])]
    assert responses(both) == [responses(one)[0] for one in alone]


def test_samples_follow_the_distribution():
    """4,000 first tokens of one prompt against the exact probabilities: no token further off than 5 standard errors."""
    model, n = llama(), 4000
    out = rollout(model, [[5, 9]] * n, seed=0, max_new_tokens=1, eos_token_id=EOS, pad_token_id=PAD)
    with torch.no_grad():
        p = model(input_ids=torch.tensor([[5, 9]])).logits[0, -1].softmax(-1)
    share = torch.bincount(out.tokens[:, -1], minlength=V) / n
    assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-4).all()


def test_draw_by_hand():
    """p = [.1, .2, .3, .4], so the cumulative sums are .1, .3, .6, 1: a uniform number falls into one of four parts."""
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(6, 4)
    token, logp = _draw(logits, torch.tensor([0.0, 0.05, 0.15, 0.55, 0.65, 0.9999999]))
    assert token.tolist() == [0, 0, 1, 2, 3, 3]
    torch.testing.assert_close(logp.exp(), torch.tensor([0.1, 0.1, 0.2, 0.3, 0.4, 0.4]))


def test_draw_across_blocks_never_takes_an_impossible_token():
    logits = torch.full((3, 150), float("-inf"))
    logits[:, [70, 140]] = 0.0  # half each; blocks of 64, the last one padded
    token, logp = _draw(logits, torch.tensor([0.0, 0.6, 1.0 - 2**-24]))
    assert token.tolist() == [70, 140, 140]
    torch.testing.assert_close(logp.exp(), torch.full((3,), 0.5))


def test_a_seed_gives_the_same_and_no_seed_another_sample():
    model = llama()
    a, b, c = (rollout(model, PROMPTS, seed=seed, **OPTIONS) for seed in (1, 1, 2))
    assert torch.equal(a.tokens, b.tokens)
    assert not torch.equal(a.tokens, c.tokens)
    free = [rollout(model, PROMPTS, **OPTIONS).tokens for _ in range(2)]
    assert free[0].shape != free[1].shape or not torch.equal(*free)


def test_the_global_random_state_is_left_alone():
    model = llama()
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    rollout(model, PROMPTS, seed=7, **OPTIONS)
    torch.manual_seed(0)
    rollout(model, PROMPTS, **OPTIONS)
    assert torch.equal(torch.rand(3), wanted)


def test_dropout_is_off_while_sampling_and_training_mode_comes_back():
    torch.manual_seed(2)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.5))
    model.train()
    out = rollout(model, PROMPTS, seed=0, **OPTIONS)
    assert model.training
    model.eval()
    for prompt, response, logp in zip(PROMPTS, responses(out), out.logp, strict=True):
        torch.testing.assert_close(logp[: len(response)], scored(model, prompt, response), atol=1e-5, rtol=0)


def test_no_gradient_and_usable_in_training_afterwards():
    out = rollout(llama(), PROMPTS, seed=0, **OPTIONS)
    weight = torch.ones((), requires_grad=True)
    (weight * out.logp).sum().backward()  # fails on tensors from inference mode
    assert not out.logp.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": [[5], []]}, "prompt 1 is empty"),
        ({"prompts": [[5, V]]}, f"token ids must lie in 0..{V - 1}, got {V}"),
        ({"prompts": [[-1, 5]]}, "got -1"),
        ({"prompts": [[5] * 60]}, r"longest prompt \(60 tokens\) plus max_new_tokens \(12\) exceeds .* 64 tokens"),
    ],
)
def test_bad_input_is_one_clear_error(changes, message):
    arguments = {"prompts": PROMPTS, **OPTIONS, **changes}
    with pytest.raises(ValueError, match=message):
        rollout(gpt2(), arguments.pop("prompts"), **arguments)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_broken_weights_are_an_error_not_a_sample(make):
    model = make()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="non-finite logits"):
        rollout(model, PROMPTS, seed=0, **OPTIONS)


def test_a_model_that_promises_a_cache_and_brings_none_is_refused():
    """Going on without the cache would answer the last token alone."""
    model = gpt2()
    forward = model.forward
    model.forward = lambda **inputs: forward(**{**inputs, "use_cache": False})
    with pytest.raises(ValueError, match=r"returned no KV cache: set model\.config\.use_cache = False"):
        rollout(model, PROMPTS, seed=0, **OPTIONS)
