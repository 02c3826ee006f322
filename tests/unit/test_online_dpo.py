"""Online DPO: whom it pairs, ties, what the loss is given, and a reference that is kept or moved."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from picollm_lite.kernels.losses import dpo_loss, ipo_loss, simpo_loss
from picollm_lite.stages import online_dpo
from picollm_lite.stages.online import turns
from picollm_lite.stages.online_dpo import OnlineDPOConfig, best_and_worst, train

from .loops import length

LN2 = math.log(2)
PROMPTS = ["What is a token?", "Why?", "Be brief. What is a token?", "Thanks."]
SMALL = {"steps": 1, "batch_size": 16, "group_size": 4, "max_new_tokens": 7, "unfinished_score": None, "seed": 0}
SMALL |= {"learning_rate": 0.01, "warmup": 0.0, "beta": 0.1}


@pytest.fixture
def start(taught, tokenizer):
    def make(reward_fn=length, policy=None, **options):
        policy = taught() if policy is None else policy
        return train(policy, reward_fn, PROMPTS, tokenizer=tokenizer, **{**SMALL, **options})

    return make


def test_best_against_worst_by_hand():
    """Rows 1 and 2 of the first group, 6 and 4 of the third; the second group ties. Of equals the first is taken."""
    best, worst = best_and_worst(torch.tensor([1.0, 5.0, 0.0, 2.0, 2.0, 2.0, 7.0, 4.0, 7.0]), 3)
    assert (best.tolist(), worst.tolist()) == ([1, 6], [2, 7])


def test_the_first_step_by_a_slow_loop(start, taught, tiny_model, tokenizer):
    """h = log-ratio of the best less that of the worst, summed over tokens: -log sigmoid(.3 h)."""
    policy, ref = taught(), tiny_model(seed=5)
    config = OnlineDPOConfig(**SMALL)
    answers = next(turns("x", policy, ref, length, PROMPTS, tokenizer, None, config)).answers
    margins = []
    for i in range(0, 16, 4):
        scores = [len(text) for text in answers.texts[i : i + 4]]
        ratios = (answers.sequences.logp - answers.ref_logp).sum(1)[i : i + 4].tolist()
        if max(scores) > min(scores):
            margins.append(0.3 * (ratios[scores.index(max(scores))] - ratios[scores.index(min(scores))]))
    record = next(start(policy=policy, ref=ref, beta=0.3))
    assert record.tied == 4 - len(margins)
    assert record.loss == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / len(margins), rel=1e-4)
    assert record.margin == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    assert record.accuracy == pytest.approx(sum(m > 0 for m in margins) / len(margins))


def test_the_first_loss_is_log_2_and_the_update_opens_the_margin_of_its_own_pairs(
    start, taught, tokenizer, monkeypatch
):
    policy, seen, real = taught(), [], online_dpo.sides
    monkeypatch.setattr(online_dpo, "sides", lambda *args: seen.append(args) or real(*args))
    record = next(start(policy=policy))
    assert record.loss == pytest.approx(LN2, abs=1e-5) and record.margin == pytest.approx(0.0, abs=1e-5)
    after = real(*seen[0])
    h = (after.policy_chosen - after.ref_chosen) - (after.policy_rejected - after.ref_rejected)
    assert h.mean() > 0.1
    assert after.chosen_lengths.sum() + after.rejected_lengths.sum() == seen[0][1].mask.sum()


def test_pairs_that_tie_are_left_out_and_counted(start):
    def picky(prompts, responses):
        return [len(r) if p in PROMPTS[:2] else 0.5 for p, r in zip(prompts, responses, strict=True)]

    record = next(start(picky))
    assert record.tied == 2 and record.loss == pytest.approx(LN2, abs=1e-5) and record.grad_norm > 0


def test_a_batch_of_ties_teaches_nothing_and_says_so(start, taught):
    policy, fresh = taught(), taught()
    with pytest.warns(UserWarning, match="^online dpo, step 1: .* nothing to learn"):
        record = next(start(lambda p, r: [1.0] * len(r), policy=policy))
    assert record.tied == 4 and record.grad_norm == 0.0
    assert all(math.isnan(x) for x in (record.loss, record.margin, record.accuracy))
    assert_close(list(policy.parameters()), list(fresh.parameters()), rtol=0, atol=0)


def test_an_unfinished_answer_loses_against_every_finished_one(start, monkeypatch):
    """With its own score it would be the best, as the longest."""
    seen, real = [], online_dpo.sides
    monkeypatch.setattr(online_dpo, "sides", lambda *args: seen.append(args[1]) or real(*args))
    next(start(unfinished_score=-3.0))
    n = len(seen[0].tokens) // 2
    ends = [seen[0].tokens[row, seen[0].lengths[row] - 1].item() for row in range(2 * n)]
    assert len(set(ends[:n])) == 1 and len(set(ends[n:])) > 1  # the end token, and others


def test_a_reference_that_moves_is_the_policy_of_that_step(start):
    """Moved after steps 2 and 4, the loss of steps 3 and 5 starts at log 2 again; the record's KL goes on."""
    kept, moved = (
        list(start(steps=5, batch_size=32, move_ref_every=every, learning_rate=0.005)) for every in (None, 2)
    )
    assert [record.loss == pytest.approx(LN2, abs=1e-5) for record in moved] == [True, False, True, False, True]
    assert [record.loss == pytest.approx(LN2, abs=1e-5) for record in kept] == [True, False, False, False, False]
    assert kept[1].loss == moved[1].loss and kept[2].kl == moved[2].kl  # the policy of step 3 has not felt it yet
    assert moved[4].kl > 0.01


def test_a_reference_that_is_given_stays_as_it_is(start, tiny_model):
    ref = tiny_model(seed=5)
    before = [parameter.detach().clone() for parameter in ref.parameters()]
    records = list(start(steps=3, ref=ref, move_ref_every=1))
    assert all(record.kl > 1 for record in records) and records[1].loss == pytest.approx(LN2, abs=1e-5)
    assert_close(list(ref.parameters()), before, rtol=0, atol=0)


def test_other_losses_of_the_family(start):
    """IPO starts at (1 / (2 beta))^2; SimPO is given the lengths."""
    assert next(start(loss=ipo_loss, beta=0.5)).loss == pytest.approx(1.0, abs=1e-3)
    assert next(start(loss=partial(simpo_loss, gamma=0.0), beta=2.0)).loss != pytest.approx(LN2, abs=1e-3)
    assert next(start(loss=dpo_loss)).loss == next(start()).loss


def test_errors(start, monkeypatch):
    with pytest.raises(ValueError, match="expected move_ref_every >= 1 step, or None, got 0"):
        next(start(move_ref_every=0))
    with pytest.raises(ValueError, match="expected beta > 0, got 0"):
        next(start(beta=0.0))

    def broken(*args, beta):
        return dpo_loss(*args)._replace(losses=args[0] * math.nan)

    with pytest.raises(FloatingPointError, match=r"^online dpo, step 1: the loss is nan"):
        next(start(loss=broken))
