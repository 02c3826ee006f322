"""Rejection-sampling fine-tuning: whom it keeps, what it learns from them, and its control."""

import math
import random

import pytest
import torch

from picollm_lite.stages import rejection
from picollm_lite.stages.rejection import keep_best, keep_random, train

from .loops import brevity, length

PROMPTS = ["What is a token?", "Why?", "Be brief. What is a token?", "Thanks."]
SMALL = {"steps": 1, "batch_size": 16, "group_size": 4, "max_new_tokens": 7, "unfinished_score": None, "seed": 0}
SMALL |= {"learning_rate": 0.01, "warmup": 0.0, "minibatch_size": 4, "epochs": 1}
SCORES = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, 0.0]])


@pytest.fixture
def start(taught, tokenizer):
    def make(reward_fn=length, policy=None, **options):
        policy = taught() if policy is None else policy
        return train(policy, reward_fn, PROMPTS, tokenizer=tokenizer, **{**SMALL, **options})

    return make


def test_the_best_of_each_group_is_kept_by_hand():
    assert keep_best(SCORES, random.Random(0)).tolist() == [1, 0]


def test_the_control_keeps_any():
    rng = random.Random(0)
    picks = torch.stack([keep_random(SCORES, rng) for _ in range(300)])
    for column in picks.T:
        assert [(column == i).float().mean().item() for i in range(3)] == pytest.approx([1 / 3] * 3, abs=0.1)
    assert (picks[:, 0] != picks[:, 1]).any()


def test_one_round_is_sft_on_the_best_answers_by_a_slow_loop(start, taught):
    """The loss is the mean over the kept answers' tokens, their end tokens included."""
    texts, seen, real = [], [], rejection.spread_logprobs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rejection, "spread_logprobs", lambda *args, **kw: seen.append(args[1]) or real(*args, **kw))
        record = next(start(lambda p, r: texts.extend(r) or length(p, r)))
    best = [max(len(text) for text in texts[i : i + 4]) for i in range(0, 16, 4)]
    assert record.kept_score == pytest.approx(sum(best) / 4) and record.kept_score > record.proxy
    (kept,) = seen
    policy, total = taught(), 0.0
    for row in range(4):
        tokens = kept.tokens[row, : kept.lengths[row]]
        logp = policy(input_ids=tokens[None]).logits[0].log_softmax(-1)
        total -= sum(logp[t, tokens[t + 1]].item() for t in kept.mask[row].nonzero().flatten().tolist())
    assert record.loss == pytest.approx(total / kept.mask.sum().item(), abs=1e-4)


def test_selection_raises_the_reward_and_its_control_does_not(start):
    """The same rollouts, the same updates; only who is kept differs, so the first round samples the same answers."""
    rounds = {"steps": 6, "batch_size": 32, "epochs": 2}
    best, control = (list(start(brevity, keep=keep, **rounds)) for keep in (keep_best, keep_random))
    assert best[0].proxy == control[0].proxy and best[0].kept_score > control[0].kept_score
    assert [record.rollouts for record in best] == [record.rollouts for record in control]
    assert best[-1].proxy > best[0].proxy + 0.3
    assert abs(control[-1].proxy - control[0].proxy) < 0.5 * (best[-1].proxy - best[0].proxy)


def test_both_take_as_many_minibatches_of_the_same_rows(start, monkeypatch):
    def rows(keep):
        found, real = [], rejection.minibatches

        def note(*args):
            for part in real(*args):
                found.append(part.tolist())
                yield part

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rejection, "minibatches", note)
            list(start(keep=keep, steps=2, epochs=2, minibatch_size=3))
        return found

    assert rows(keep_best) == rows(keep_random)
    assert [len(part) for part in rows(keep_best)] == [3, 1, 3, 1] * 2


def test_a_learners_own_selection(start):
    """The worst is kept: the reward falls."""
    records = list(start(brevity, keep=lambda scores, rng: scores.argmin(1), steps=5, batch_size=32))
    assert records[0].kept_score < records[0].proxy and records[-1].proxy < records[0].proxy


def test_an_unfinished_answer_is_kept_only_where_none_has_ended(start):
    """Its own score, the length, would make it the best."""
    own, replaced = (next(start(unfinished_score=score)).kept_score for score in (None, -3.0))
    assert replaced < own


def test_a_loss_that_is_not_finite_is_named(start, monkeypatch):
    monkeypatch.setattr(rejection, "sft_loss", lambda logp, mask: logp.sum() * math.nan)
    with pytest.raises(FloatingPointError, match=r"^rejection, step 1: the loss is nan"):
        next(start())
