"""KL to a reference against a slow loop over tokens; that estimates agree; and references of another vocabulary."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from picollm_lite import scoring
from picollm_lite.chat import respond
from picollm_lite.evaluation.drift import drift
from picollm_lite.evaluation.metrics import mean_interval
from picollm_lite.scoring import left_align

PROMPTS = ["What is a token?", "Why?", "Be brief. What is a token?", "Why is it a token?"]
ROOM = {"max_new_tokens": 7}


@pytest.fixture(scope="module")
def models(taught, tiny_model):
    """A policy, and a reference that is half of it and half random."""
    policy, ref = taught(), taught()
    with torch.no_grad():
        for mine, other in zip(ref.parameters(), tiny_model().parameters(), strict=True):
            mine.lerp_(other, 0.3)
    return policy, ref


def slow(policy, ref, tokenizer, prompts, seed):
    """Per answer: k1, k3, exact and the number of tokens, from one forward pass a token."""
    sequences, rows = left_align(respond(policy, tokenizer, prompts, seed=seed, **ROOM).rollout), []
    for tokens, mask in zip(sequences.tokens.tolist(), sequences.mask.tolist(), strict=True):
        sums = np.zeros(4)
        for t in np.flatnonzero(mask) + 1:
            with torch.no_grad():
                p, q = (m(input_ids=torch.tensor([tokens[:t]])).logits[0, -1].log_softmax(-1) for m in (policy, ref))
            ratio = float(q[tokens[t]] - p[tokens[t]])
            sums += [-ratio, np.exp(ratio) - 1 - ratio, float((p.exp() * (p - q)).sum()), 1]
        rows.append(sums)
    return np.array(rows)


def test_drift_equals_a_slow_loop(models, tokenizer):
    got, rows = drift(*models, tokenizer, PROMPTS, seed=3, **ROOM), slow(*models, tokenizer, PROMPTS, 3)
    for interval, column in zip(got[:3], rows.T, strict=False):
        assert interval == pytest.approx(mean_interval(column, seed=3), abs=1e-4)
    assert got.exact_per_token.estimate == pytest.approx(rows[:, 2].sum() / rows[:, 3].sum(), abs=1e-5)
    assert got.exact_per_token.low < got.exact_per_token.estimate < got.exact_per_token.high
    assert drift(*models, tokenizer, PROMPTS, seed=3, **ROOM) == got != drift(*models, tokenizer, PROMPTS, **ROOM)


def test_a_big_vocabulary_takes_fewer_tokens_at_a_time(models, tokenizer, monkeypatch):
    whole, sizes = drift(*models, tokenizer, PROMPTS, **ROOM), []
    monkeypatch.setattr(scoring, "MOST_LOGITS", 30 * len(tokenizer))  # one or two answers with their prompts
    ref = deepcopy(models[1])
    ref.lm_head.register_forward_hook(lambda head, inputs, logits: sizes.append(len(logits)))
    limited = drift(models[0], ref, tokenizer, PROMPTS, **ROOM)
    assert limited.exact == pytest.approx(whole.exact, abs=1e-5)
    assert len(sizes) > 1 and max(sizes) <= 30


def test_answers_to_one_prompt_stay_together(models, tokenizer):
    """Three answers to the first prompt and one to the second: two numbers to draw from."""
    prompts = [PROMPTS[0]] * 3 + [PROMPTS[1]]
    got, rows = drift(*models, tokenizer, prompts, **ROOM), slow(*models, tokenizer, prompts, 0)
    first, second = rows[:3].mean(0), rows[3]
    assert got.k3 == pytest.approx(mean_interval([first[1], second[1]]), abs=1e-4)
    ends = sorted([first[2] / first[3], second[2] / second[3]])
    assert (got.exact_per_token.low, got.exact_per_token.high) == pytest.approx(ends, abs=1e-4)
    assert got.exact_per_token.estimate == pytest.approx(rows[:, 2].sum() / rows[:, 3].sum(), abs=1e-5)


def test_three_estimates_of_one_number(models, tokenizer):
    got = drift(*models, tokenizer, PROMPTS * 100, **ROOM)
    assert got.exact.estimate > 0.05
    assert got.k1.estimate == pytest.approx(got.exact.estimate, rel=0.25)
    assert got.k3.estimate == pytest.approx(got.exact.estimate, rel=0.25)


def test_a_copy_has_not_moved(models, tokenizer):
    got = drift(models[0], deepcopy(models[0]), tokenizer, PROMPTS, **ROOM)
    assert got.exact == got.exact_per_token == (0, 0, 0)
    assert got.k1 == pytest.approx((0, 0, 0), abs=1e-4) and got.k3 == pytest.approx((0, 0, 0), abs=1e-6)


def test_other_tokenizers_and_vocabularies_are_refused(models, tokenizer, tiny_model):
    size = len(tokenizer)
    other = deepcopy(tokenizer)
    other.add_tokens(["unheard"])
    with pytest.raises(ValueError, match=f"got vocabularies of {size} and {size + 1} tokens that share {size}: take a"):
        drift(*models, tokenizer, PROMPTS, ref_tokenizer=other, **ROOM)
    with pytest.raises(ValueError, match=f"logits over one vocabulary, got {size} and {size + 8} tokens"):
        drift(models[0], tiny_model(vocab_size=size + 8), tokenizer, PROMPTS, **ROOM)
    assert drift(*models, tokenizer, PROMPTS, ref_tokenizer=deepcopy(tokenizer), **ROOM)


@pytest.mark.parametrize("prompts", [[], ["Why?"], ["Why?"] * 3])
def test_fewer_than_two_prompts_are_refused(models, tokenizer, prompts):
    with pytest.raises(ValueError, match=f"at least 2 different prompts, got {min(len(prompts), 1)}"):
        drift(*models, tokenizer, prompts, **ROOM)
