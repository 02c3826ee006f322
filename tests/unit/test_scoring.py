"""Response log-probs against one row and one token at a time; rollouts moved to the left edge by hand."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from picollm_lite import scoring
from picollm_lite.chat import Encoded, encode_prompt, user
from picollm_lite.kernels import logprobs
from picollm_lite.kernels.rollout import Rollout, rollout
from picollm_lite.scoring import (
    group_limit,
    left_align,
    length_groups,
    recomputes,
    response_logprobs,
    sequence_logprobs,
)

GROUPS = pytest.mark.parametrize("group_tokens", [1, 40, 10**6])  # every row alone, a few together, all together
PROMPTS = ["What is a token?", "Why?", "Be brief. What is a token?", "Why?", "Thanks."]


@pytest.fixture
def examples(pairs):
    """Ten conversations of 8 to 34 tokens, the short ones not first."""
    return [side for pair in pairs for side in pair]


@pytest.fixture
def pad(tokenizer):
    return tokenizer.pad_token_id


def slow_logps(model, tokens, mask, temperature=1.0):
    """log p of each counted token, from a pass over exactly the tokens before it."""
    found = []
    for t, counts in enumerate(mask):
        if counts and t > 0:
            logits = model(input_ids=torch.tensor([tokens[:t]])).logits[0, -1]
            found.append((logits / temperature).log_softmax(-1)[tokens[t]])
    return torch.stack(found)


@GROUPS
def test_response_logprobs_equal_a_slow_loop_in_order(tiny_model, examples, pad, monkeypatch, group_tokens):
    monkeypatch.setattr(scoring, "GROUP_TOKENS", group_tokens)
    model = tiny_model()
    each = [slow_logps(model, *example) for example in examples]
    got = response_logprobs(model, examples, pad)
    assert_close(got.total, torch.stack([logps.sum() for logps in each]), rtol=1e-6, atol=1e-5)
    assert got.lengths.tolist() == [len(logps) for logps in each]


@GROUPS
def test_their_gradient_is_that_of_one_row_at_a_time(tiny_model, examples, pad, monkeypatch, group_tokens):
    monkeypatch.setattr(scoring, "GROUP_TOKENS", group_tokens)
    weight = torch.linspace(0.1, 1.0, len(examples))  # so that the gradient knows which row is which
    model, slow = tiny_model(), tiny_model()
    (response_logprobs(model, examples, pad).total * weight).sum().backward()
    for w, example in zip(weight, examples, strict=True):
        logits = slow(input_ids=torch.tensor([example.tokens[:-1]])).logits[0]  # (T-1, V)
        logp = logits.log_softmax(-1)[torch.arange(len(logits)), torch.tensor(example.tokens[1:])]
        (w * logp[torch.tensor(example.response_mask[1:])].sum()).backward()
    for (name, got), wanted in zip(model.named_parameters(), slow.parameters(), strict=True):
        assert_close(got.grad, wanted.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_without_gradient_there_is_none(tiny_model, examples, pad):
    with torch.no_grad():
        assert not response_logprobs(tiny_model(), examples, pad).total.requires_grad


def test_nothing_before_or_after_the_mask_counts(tiny_model, encode, pad):
    """The mask alone decides: what follows is never seen, and a first token has nothing to be predicted from."""
    model = tiny_model()
    tokens, mask = encode("Why?", "It splits words.")
    later = Encoded([*tokens, 77, 78, 79], [*mask, False, False, False])
    first = Encoded(tokens, [True, *mask[1:]])
    hole = Encoded(tokens, [*mask[:-3], False, True, True])
    total, lengths = response_logprobs(model, [Encoded(tokens, mask), later, first, hole], pad)
    logps = slow_logps(model, tokens, mask)
    assert_close(total, torch.stack([logps.sum()] * 3 + [logps.sum() - logps[-3]]), rtol=0, atol=1e-5)
    assert lengths.tolist() == [5, 5, 5, 4]  # It, splits, words, the period and the end token


def test_the_end_token_counts_even_if_it_is_the_padding_too(tiny_model, tokenizer, encode):
    model, (tokens, mask) = tiny_model(), encode("Why?", "It splits words.")
    longer = encode("Why?", "It splits words. Thanks. Be brief.")  # so that the first row is padded
    assert tokens[-1] == tokenizer.eos_token_id and mask[-1]
    endless = Encoded(tokens, [*mask[:-1], False])
    total, lengths = response_logprobs(model, [Encoded(tokens, mask), endless, longer], tokenizer.eos_token_id)
    end = slow_logps(model, tokens, mask)[-1]
    assert end < -1
    assert_close(total[0] - total[1], end, rtol=0, atol=1e-5)
    assert lengths[0] - lengths[1] == 1


def test_groups_by_hand():
    """Sorted: rows 1, 3, 2, 0, 4 of 3, 3, 4, 5, 9. Three rows of 4 fill 12; 2 of 9 do not fit, and neither does 1."""
    groups = [(rows.tolist(), length) for rows, length in length_groups(torch.tensor([5, 3, 4, 3, 9]), 12)]
    assert groups == [([1, 3, 2], 4), ([0], 5), ([4], 9)]
    groups = [(rows.tolist(), length) for rows, length in length_groups(torch.tensor([20, 13]), 12)]
    assert groups == [([1], 13), ([0], 20)]  # too long for any group: alone


@pytest.mark.parametrize(
    ("device", "checkpointing", "tokens"), [("cpu", False, 2048), ("cuda", False, 16384), ("cuda", True, 2048)]
)
def test_groups_are_larger_on_a_gpu_unless_they_bound_the_memory(device, checkpointing, tokens):
    weight = SimpleNamespace(device=torch.device(device))
    model = SimpleNamespace(parameters=lambda: iter([weight]), modules=lambda: [model])
    model.gradient_checkpointing = checkpointing
    assert group_limit(model) == tokens


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
@settings(max_examples=40)
def test_groups_hold_every_row_once_and_keep_the_limit(lengths):
    groups = list(length_groups(torch.tensor(lengths), 2048))
    assert sorted(row for rows, _ in groups for row in rows.tolist()) == list(range(len(lengths)))
    for rows, length in groups:
        assert length == max(lengths[row] for row in rows.tolist())
        assert len(rows) == 1 or len(rows) * length <= 2048
    longest = [length for _, length in groups]
    assert longest == sorted(longest)


def by_hand():
    """Prompts of 1, 3 and 2 tokens; answers of 2 (ended), 3 (cut off) and 3 tokens (ended). 0 is padding, 1 the end."""
    tokens = torch.tensor([[0, 0, 7, 9, 1, 0], [5, 6, 8, 3, 4, 2], [0, 6, 5, 2, 3, 1]])
    response = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1]]).bool()
    logp = torch.tensor([[-0.1, -0.2, 0.0], [-0.3, -0.4, -0.5], [-0.6, -0.7, -0.8]])
    attention = torch.cat([torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]]).bool(), response], 1)
    return Rollout(tokens, attention, response, logp, torch.tensor([True, False, True]))


def test_left_align_by_hand():
    sequences = left_align(by_hand())
    assert sequences.lengths.tolist() == [3, 6, 5]
    rows = [row[:length].tolist() for row, length in zip(sequences.tokens, sequences.lengths, strict=True)]
    assert rows == [[7, 9, 1], [5, 6, 8, 3, 4, 2], [6, 5, 2, 3, 1]]
    assert sequences.mask.int().tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 1, 0]]
    wanted = [[-0.1, -0.2, 0.0, 0.0, 0.0], [0.0, 0.0, -0.3, -0.4, -0.5], [0.0, -0.6, -0.7, -0.8, 0.0]]
    assert_close(sequences.logp, torch.tensor(wanted), rtol=0, atol=0)


def test_left_align_is_no_wider_than_the_longest_row():
    """No row has both the longest prompt and the longest answer here: 5 columns hold what took 6."""
    sample = by_hand()
    sequences = left_align(Rollout(*(part[[0, 2]] for part in sample)))
    assert sequences.tokens.shape == (2, 5) and sequences.mask.shape == sequences.logp.shape == (2, 4)
    assert sequences.mask.int().tolist() == [[1, 1, 0, 0], [0, 1, 1, 1]]


def test_left_align_goes_by_the_mask_not_by_the_pad_token():
    """A prompt may begin with the pad token, and an answer may hold it."""
    tokens, attention = torch.tensor([[9, 0, 5, 0, 1]]), torch.tensor([[0, 1, 1, 1, 1]]).bool()
    response = torch.tensor([[1, 1]]).bool()
    sequences = left_align(Rollout(tokens, attention, response, torch.tensor([[-1.0, -2.0]]), torch.tensor([True])))
    assert sequences.tokens.tolist() == [[0, 5, 0, 1]] and sequences.lengths.tolist() == [4]
    assert sequences.mask.tolist() == [[False, True, True]]


@pytest.fixture
def sampled(taught, tokenizer):
    """A policy and 30 answers of it to ragged prompts, at a temperature; some ended, some of full length."""

    def make(temperature):
        policy, prompts = taught(), [encode_prompt(tokenizer, user(prompt)) for prompt in PROMPTS * 6]
        sizes = {"max_new_tokens": 7, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        sample = rollout(policy, prompts, temperature=temperature, seed=0, **sizes)
        assert sample.finished.any() and not sample.finished.all()
        return policy, sample

    return make


@GROUPS
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_captured_logprobs_equal_a_scoring_pass(sampled, monkeypatch, group_tokens, temperature):
    monkeypatch.setattr(scoring, "GROUP_TOKENS", group_tokens)
    policy, sample = sampled(temperature)
    sequences = left_align(sample)
    scored = sequence_logprobs(policy, sequences, temperature=temperature)
    assert_close(scored, sequences.logp, rtol=0, atol=1e-5)
    assert sequences.mask.sum() == sample.response_mask.sum() and (scored[~sequences.mask] == 0).all()


def test_a_scoring_pass_equals_a_slow_loop(sampled):
    policy, sample = sampled(1.0)
    sequences = left_align(sample)
    scored = sequence_logprobs(policy, sequences, temperature=0.6)
    for row, length in enumerate(sequences.lengths.tolist()):
        mask = sequences.mask[row]
        tokens = sequences.tokens[row, :length].tolist()
        slow = slow_logps(policy, tokens, [False, *mask[: length - 1].tolist()], temperature=0.6)
        assert_close(scored[row][mask], slow, rtol=0, atol=1e-5)


def test_a_scoring_pass_has_a_gradient_where_it_is_wanted(sampled):
    policy, sample = sampled(1.0)
    assert sequence_logprobs(policy, left_align(sample)).requires_grad
    with torch.no_grad():
        assert not sequence_logprobs(policy, left_align(sample)).requires_grad


def test_the_kl_of_a_rollout_to_a_copy_is_zero_and_to_another_model_is_not(sampled, tiny_model, taught):
    _, sample = sampled(1.0)
    sequences = left_align(sample)
    kl = (sequences.logp - sequence_logprobs(taught(), sequences)).sum(1)
    assert_close(kl, torch.zeros(30), rtol=0, atol=1e-4)
    other = (sequences.logp - sequence_logprobs(tiny_model(), sequences)).sum(1)
    assert other.mean() > 1


BIG = 5000  # tokens in the vocabulary: with the limits below, many chunks and small groups


def plain_total(model, examples):
    """Log-probs of the answers from the logits of all rows at once."""
    L = max(len(tokens) for tokens, _ in examples)
    tokens, mask = ([list(row) + [0] * (L - len(row)) for row in part] for part in zip(*examples, strict=True))
    tokens, mask = torch.tensor(tokens), torch.tensor(mask).bool()
    logp = model(input_ids=tokens[:, :-1]).logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    return (logp * mask[:, 1:]).sum(1)


def gradients(model, total):
    model.zero_grad()
    (total * torch.linspace(0.1, 1.0, len(total))).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture(params=["chunks", "other head"])
def big(request, tiny_model, monkeypatch):
    """A model of many words, at limits that cut every batch; of another class, its logits are taken as they come."""
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 7 * BIG)  # 7 positions
    monkeypatch.setattr(scoring, "MOST_LOGITS", 40 * BIG)
    model = tiny_model(vocab_size=BIG, tie_word_embeddings=False)
    if request.param == "other head":
        model.__class__ = type("OtherForCausalLM", (type(model),), {})
    assert scoring.has_plain_head(model) == (request.param == "chunks")
    return model


def test_big_vocabularies_give_the_same_values_and_gradients(big, examples, pad):
    got = response_logprobs(big, examples, pad).total
    wanted = plain_total(big, examples)
    assert_close(got, wanted, rtol=1e-6, atol=1e-5)
    for (name, ours), theirs in zip(gradients(big, got).items(), gradients(big, wanted).values(), strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


def test_big_vocabularies_never_have_many_logits(big, examples, pad, monkeypatch):
    """Forward and backward: no call of the head gives more than its limit allows, and chunks are counted by hand."""
    sizes = []
    big.lm_head.register_forward_hook(lambda head, inputs, logits: sizes.append(logits.shape[:-1].numel()))
    total = response_logprobs(big, examples, pad).total
    forward = list(sizes)
    total.sum().backward()
    if scoring.has_plain_head(big):
        n = sum(sum(mask) for _, mask in examples)
        assert sorted(forward) == sorted([7] * (n // 7) + [n % 7] * (n % 7 > 0)) and n > 40
    else:
        assert max(forward) <= 40 and len(forward) > 3
    assert sorted(sizes) == sorted(forward * 2)  # once more in backward, not kept


@pytest.mark.parametrize("train", [False, True])
def test_with_checkpointing_activations_are_computed_again_and_the_gradient_stays(
    tiny_model, examples, pad, monkeypatch, train
):
    monkeypatch.setattr(scoring, "GROUP_TOKENS", 40)
    plain, saving, calls = tiny_model(attention_dropout=0.1), tiny_model(attention_dropout=0.1), []
    saving.gradient_checkpointing = True
    assert recomputes(saving) and not recomputes(plain)
    results = []
    for model in (plain, saving):
        model.train(train)
        model.model.norm.register_forward_hook(lambda *args, model=model: calls.append(model is saving))
        monkeypatch.setattr(scoring, "can_pack", lambda trunk: False)
        torch.manual_seed(0)  # dropout draws the same numbers, again in backward
        total = response_logprobs(model, examples, pad).total
        results.append((total.detach(), gradients(model, total)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(results[0][1][name], gradient) for name, gradient in results[1][1].items())
    assert calls.count(True) == 2 * calls.count(False) > 2


def test_the_switch_of_transformers_is_the_one(tiny_model):
    model = tiny_model()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # the newer name first
    assert recomputes(model)


HEADS = {
    "LlamaForCausalLM": {},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {},
    "SmolLM3ForCausalLM": {"pad_token_id": 0},
    "MistralForCausalLM": {},
    "Olmo2ForCausalLM": {},
    "Phi3ForCausalLM": {"pad_token_id": 0},
    "GemmaForCausalLM": {"head_dim": 8},
    "GPT2LMHeadModel": {},
}


@pytest.mark.parametrize("name", scoring.PLAIN_HEADS)
def test_in_these_models_logits_are_the_head_of_the_trunk(name):
    """Not so in Gemma 2, which caps them, nor in Cohere and Granite, which scale them."""
    kind = getattr(transformers, name)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "vocab_size": 50, "initializer_range": 0.5, **HEADS[name]}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id"), 1)
    torch.manual_seed(0)
    model, tokens = kind(kind.config_class(**sizes, **ids)).eval(), torch.tensor([[3, 5, 7]])
    wanted = model.lm_head(model.base_model(input_ids=tokens).last_hidden_state)
    assert_close(model(input_ids=tokens).logits, wanted, rtol=0, atol=0)


def test_what_is_computed_again_is_told_its_device(tiny_model, examples, pad, monkeypatch):
    """torch keeps a GPU's random state, from which dropout draws again, only where an argument lies on that GPU."""
    first = []
    monkeypatch.setattr(scoring, "checkpoint", lambda fn, *args, **_: first.append(args[0]) or fn(*args))
    model = tiny_model()
    model.gradient_checkpointing = True
    response_logprobs(model, examples, pad)
    assert [tensor.dtype for tensor in first] == [torch.bool]  # the mask, not the row numbers, which are on the CPU
