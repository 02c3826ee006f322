"""RLOO and GRPO: the update against one token at a time, where the KL stands, and what each switch changes."""

import math

import pytest
from torch.testing import assert_close

from picollm_lite.stages import group_policy
from picollm_lite.stages.group_policy import GRPOConfig, RLOOConfig, grpo, rloo
from picollm_lite.stages.online import turns

PROMPTS = ["What is a token?", "Why?", "Be brief. What is a token?", "Thanks."]
SMALL = {"steps": 1, "batch_size": 16, "group_size": 4, "max_new_tokens": 7, "unfinished_score": -3.0, "seed": 0}
SMALL |= {"max_grad_norm": 1e9, "learning_rate": 0.0, "warmup": 0.0}
WHOLE = {"minibatch_size": 16, "epochs": 1}  # one update a batch


def length(prompts, responses):
    return [len(response) / 10 for response in responses]


@pytest.fixture
def update(taught, tiny_model, tokenizer):
    """The gradient and the record of a first step, and the batch that it was made from."""

    def make(loop, config, **options):
        policy, ref = taught(), tiny_model(seed=5)
        settings = {**SMALL, **options}
        record = next(loop(policy, length, PROMPTS, tokenizer=tokenizer, ref=ref, **settings))
        gradient = {name: parameter.grad for name, parameter in policy.named_parameters()}
        batch = next(turns("x", policy, ref, length, PROMPTS, tokenizer, None, config(**settings))).answers
        return record, gradient, batch, taught()

    return make


def slow_loss(policy, batch, advantages, weigh, kl_coef=0.0):
    """-A log p + kl_coef k3 of every token, times what `weigh` says of its answer's length, over 16."""
    total = 0.0
    for row, A in enumerate(advantages):
        tokens = batch.sequences.tokens[row, : batch.sequences.lengths[row]]
        logp = policy(input_ids=tokens[None]).logits[0].log_softmax(-1)
        places = batch.sequences.mask[row].nonzero().flatten().tolist()
        for t in places:
            p = logp[t, tokens[t + 1]]
            log_r = batch.ref_logp[row, t] - p
            total = total + (-A * p + kl_coef * (log_r.exp() - 1 - log_r)) * weigh(len(places)) / 16
    return total


def grouped(numbers):
    return [numbers[i : i + 4] for i in range(0, 16, 4)]


def assert_gradient(gradient, policy, loss):
    loss.backward()
    for name, parameter in policy.named_parameters():
        assert_close(gradient[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_rloo_by_a_slow_loop(update):
    """The reward is score - .1 KL of the answer, the baseline the mean of the other three."""
    record, gradient, batch, policy = update(rloo, RLOOConfig, kl_coef=0.1)
    scores = [s if done else -3.0 for s, done in zip(length(None, batch.texts), batch.finished.tolist(), strict=True)]
    rewards = [score - 0.1 * kl for score, kl in zip(scores, batch.kl.tolist(), strict=True)]
    advantages = [r - (sum(group) - r) / 3 for group in grouped(rewards) for r in group]
    loss = slow_loss(policy, batch, advantages, weigh=lambda length: 1.0)
    assert record.loss == pytest.approx(loss.item(), abs=1e-3) and record.kl == pytest.approx(batch.kl.mean().item())
    assert_gradient(gradient, policy, loss)


@pytest.mark.parametrize("std_term", [True, False])
@pytest.mark.parametrize("length_term", [True, False])
def test_grpo_by_a_slow_loop(update, std_term, length_term):
    """In one update every ratio is 1: the slope is that of -A log p + .2 k3, a token over its answer's length, or 7."""
    options = {"kl_coef": 0.2, "std_term": std_term, "length_term": length_term, **WHOLE}
    _, gradient, batch, policy = update(grpo, GRPOConfig, **options)
    scores = [s if done else -3.0 for s, done in zip(length(None, batch.texts), batch.finished.tolist(), strict=True)]
    advantages = []
    for group in grouped(scores):
        mean = sum(group) / 4
        std = math.sqrt(sum((s - mean) ** 2 for s in group) / 4) or 1.0
        advantages += [(s - mean) / (std if std_term else 1.0) for s in group]
    loss = slow_loss(policy, batch, advantages, lambda length: 1 / (length if length_term else 7), kl_coef=0.2)
    assert_gradient(gradient, policy, loss)


def test_one_update_a_batch_leaves_the_ratio_at_1_and_more_do_not(taught, tokenizer):
    def first(loop, **options):
        return next(loop(taught(), length, PROMPTS, tokenizer=tokenizer, **{**SMALL, "learning_rate": 0.03, **options}))

    for record in (first(rloo), first(grpo, **WHOLE)):
        assert record.clip_fraction == 0.0 and record.approx_kl == pytest.approx(0.0, abs=1e-8)
    moved = first(grpo, minibatch_size=4, epochs=3, clip=0.05)
    assert moved.clip_fraction > 0.1 and moved.approx_kl > 1e-3
    assert first(grpo, minibatch_size=4, epochs=3, clip=0.5).clip_fraction < moved.clip_fraction


def test_updates_of_a_batch(taught, tokenizer, monkeypatch):
    """RLOO makes one of all answers; GRPO three epochs of minibatches of 6, 6 and 4."""
    sizes, real = [], group_policy.spread_logprobs
    monkeypatch.setattr(
        group_policy, "spread_logprobs", lambda *args, **kw: sizes.append(len(args[1].tokens)) or real(*args, **kw)
    )
    next(rloo(taught(), length, PROMPTS, tokenizer=tokenizer, **SMALL))
    assert sizes == [16]
    sizes.clear()
    next(grpo(taught(), length, PROMPTS, tokenizer=tokenizer, minibatch_size=6, epochs=3, **SMALL))
    assert sizes == [6, 6, 4] * 3


@pytest.mark.parametrize("loop", [rloo, grpo])
def test_the_kl_penalty_holds_the_policy_near_the_reference(taught, tokenizer, loop):
    options = {**SMALL, "steps": 5, "batch_size": 32, "learning_rate": 0.01, "unfinished_score": None}
    free, held = (
        list(loop(taught(), length, PROMPTS, tokenizer=tokenizer, kl_coef=kl_coef, **options))[-1].kl
        for kl_coef in (0.0, 3.0)
    )
    assert held < 0.7 * free


def test_flat_groups_are_counted_and_teach_grpo_nothing(taught, tokenizer):
    """Only the answers to one of four prompts are told apart."""

    def picky(prompts, responses):
        return [len(r) if p == "Why?" else 0.5 for p, r in zip(prompts, responses, strict=True)]

    options = {**SMALL, "unfinished_score": None}
    record = next(grpo(taught(), picky, PROMPTS, tokenizer=tokenizer, kl_coef=0.0, **options))
    assert record.flat_groups == 0.75 and record.grad_norm > 0
    with pytest.warns(UserWarning, match="nothing to learn"):
        flat = next(grpo(taught(), lambda p, r: [0.0] * len(r), PROMPTS, tokenizer=tokenizer, kl_coef=0.0, **options))
    assert flat.flat_groups == 1.0 and flat.grad_norm == 0.0


def test_a_loss_that_is_not_finite_is_named(taught, tokenizer, monkeypatch):
    for loop, kernel in ((rloo, "reinforce_loss"), (grpo, "grpo_loss")):
        monkeypatch.setattr(group_policy, kernel, lambda logp, *args, **options: logp.sum() * math.nan)
        with pytest.raises(FloatingPointError, match=rf"^{loop.__name__}, step 1: the loss is nan"):
            next(loop(taught(), length, PROMPTS, tokenizer=tokenizer, **SMALL))
