"""DPO and its family: every loss is given what it takes, the reference is asked once, and what the loop promises."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from picollm_lite.chat import answer, respond
from picollm_lite.kernels.losses import (
    PreferenceLoss,
    cdpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
)
from picollm_lite.stages import dpo
from picollm_lite.stages.dpo import PairLogprobs, evaluate, pair_logprobs, pair_loss, reference_logprobs, train

from .loops import weights

LN2, LN3 = math.log(2), math.log(3)
PROMPTS = ["What is a token?", "Why?", "Be brief. What is a token?", "Thanks."]
# At step 1, where the policy is the reference and every log-ratio is 0; None where log-probs themselves count.
FIRST_LOSS = {
    dpo_loss: LN2,
    cdpo_loss: LN2,
    robust_dpo_loss: LN2,
    hinge_loss: 1.0,
    ipo_loss: 25.0,  # (1 / (2 beta))^2 at beta .1
    kto_loss: 0.5,
    simpo_loss: None,
    orpo_loss: None,
}
EVERY_LOSS = pytest.mark.parametrize("loss", FIRST_LOSS, ids=lambda loss: loss.__name__)


@pytest.fixture
def start(taught, tokenizer, pairs):
    """A run over the five pairs, all of them in one batch, of a policy that was taught a little, or the one given."""

    def make(policy=None, **options):
        policy = taught() if policy is None else policy
        return train(policy, options.pop("on", pairs), tokenizer=tokenizer, **options)

    return make


@pytest.fixture
def pad(tokenizer):
    return tokenizer.pad_token_id


@torch.no_grad()
def slow_logps(model, example):
    """log p of each response token, from a pass over exactly the tokens before it."""
    return [
        model(input_ids=torch.tensor([example.tokens[:t]])).logits[0, -1].log_softmax(-1)[example.tokens[t]].item()
        for t, counts in enumerate(example.response_mask)
        if counts
    ]


def slow_sums(model, pairs):
    """Summed log-probs of every pair's chosen answer, and of its rejected one."""
    return [[sum(slow_logps(model, side)) for side in sides] for sides in zip(*pairs, strict=True)]


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


# Inputs


@pytest.mark.parametrize("size", [1, 2, 128])
def test_the_reference_is_asked_for_both_sides_of_every_pair_in_order(tiny_model, pairs, pad, monkeypatch, size):
    monkeypatch.setattr(dpo, "REFERENCE_BATCH", size)
    ref = tiny_model()
    got = reference_logprobs(ref, pairs, pad)
    assert got.shape == (5, 2) and not got.requires_grad
    assert_close(got.T, torch.tensor(slow_sums(ref, pairs)), rtol=1e-6, atol=1e-5)


def test_the_log_probs_of_a_batch_by_a_slow_loop(tiny_model, pairs, pad):
    policy = tiny_model()
    ref_logp = torch.arange(10.0).view(5, 2)
    got = pair_logprobs(policy, pairs, ref_logp, pad)
    chosen, rejected = slow_sums(policy, pairs)
    assert_close(got.policy_chosen, torch.tensor(chosen), rtol=1e-6, atol=1e-5)
    assert_close(got.policy_rejected, torch.tensor(rejected), rtol=1e-6, atol=1e-5)
    assert got.policy_chosen.requires_grad and got.policy_rejected.requires_grad
    assert got.ref_chosen.tolist() == [0, 2, 4, 6, 8] and got.ref_rejected.tolist() == [1, 3, 5, 7, 9]
    assert got.chosen_lengths.tolist() == [sum(pair.chosen.response_mask) for pair in pairs]
    assert got.rejected_lengths.tolist() == [sum(pair.rejected.response_mask) for pair in pairs]


def logprobs(chosen, rejected, ref_chosen=(0.0,), ref_rejected=(0.0,), chosen_lengths=(1,), rejected_lengths=(1,)):
    sums = [torch.tensor(column) for column in (chosen, rejected, ref_chosen, ref_rejected)]
    return PairLogprobs(*sums, torch.tensor(chosen_lengths), torch.tensor(rejected_lengths))


def test_the_dpo_family_is_given_sums_by_hand():
    """h = (-4 + 10) - (-9 + 5) = 10 nats: at beta .1 the margin is 1, and -log sigmoid(1) = .313262."""
    logp = logprobs((-4.0,), (-9.0,), (-10.0,), (-5.0,), (2,), (3,))
    result = pair_loss(dpo_loss, logp)
    assert result.losses.item() == pytest.approx(0.313262, abs=1e-6)
    assert (result.chosen_rewards.item(), result.rejected_rewards.item()) == pytest.approx((0.6, -0.4))
    assert pair_loss(hinge_loss, logp).losses.item() == pytest.approx(0.0)
    assert pair_loss(ipo_loss, logp).losses.item() == pytest.approx(25.0)  # (10 - 5)^2


def test_simpo_is_given_the_lengths_by_hand():
    """-4 over 2 tokens and -9 over 3, times beta 2: -4 and -6, a margin of 2, less gamma 1: -log sigmoid(1)."""
    result = pair_loss(simpo_loss, logprobs((-4.0,), (-9.0,), (99.0,), (77.0,), (2,), (3,)))
    assert result.losses.item() == pytest.approx(0.313262, abs=1e-6)
    assert (result.chosen_rewards.item(), result.rejected_rewards.item()) == (-4.0, -6.0)


def test_orpo_is_given_means_by_hand():
    """Mean probabilities of 1/2 and 1/4 are odds of 1 and 1/3: log 2 - .1 log sigmoid(log 3) = log 2 + .1 log(4/3)."""
    logp = logprobs((-2 * LN2,), (-3 * math.log(4),), (99.0,), (77.0,), (2,), (3,))
    result = pair_loss(orpo_loss, logp)
    assert result.losses.item() == pytest.approx(LN2 + 0.1 * math.log(4 / 3), abs=1e-6)
    assert (result.chosen_rewards.item(), result.rejected_rewards.item()) == pytest.approx((0.0, -LN3), abs=1e-6)


def test_kto_is_given_the_mean_log_ratio_of_the_batch_by_hand():
    """Log-ratios 2, 4 and 0, -2 have the mean z0 = 1. At beta = log 3 the chosen lose sigmoid(-log 3) = 1/4 and
    sigmoid(-3 log 3) = 1/28, the rejected sigmoid(log 3 (0 - 1)) = 1/4 and sigmoid(log 3 (-2 - 1)) = 1/28."""
    logp = logprobs((-8.0, -6.0), (-5.0, -7.0), (-10.0, -10.0), (-5.0, -5.0))
    result = pair_loss(partial(kto_loss, beta=LN3), logp)
    assert result.losses.tolist() == pytest.approx([1 / 4, 1 / 28])
    assert result.chosen_rewards.tolist() == pytest.approx([2 * LN3, 4 * LN3])
    assert result.rejected_rewards.tolist() == pytest.approx([0.0, -2 * LN3])


def test_kto_takes_no_gradient_through_its_baseline():
    """One pair at log-ratios 1 and 1: z0 = 1, so both gains are 0, and the slopes are -1/4 and +1/4 times beta / 2."""
    chosen = torch.tensor([1.0], requires_grad=True)
    rejected = torch.tensor([1.0], requires_grad=True)
    zero, one = torch.zeros(1), torch.ones(1, dtype=torch.long)
    pair_loss(partial(kto_loss, beta=0.8), PairLogprobs(chosen, rejected, zero, zero, one, one)).losses.sum().backward()
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((-0.1, 0.1))


@pytest.mark.parametrize("wrap", [lambda loss: loss, partial, lambda loss: partial(partial(loss, beta=1.0), gamma=0.0)])
def test_a_loss_is_known_through_partial(wrap):
    logp = logprobs((-4.0,), (-9.0,), chosen_lengths=(2,), rejected_lengths=(3,))
    wanted = wrap(simpo_loss)(logp.policy_chosen, logp.policy_rejected, logp.chosen_lengths, logp.rejected_lengths)
    assert pair_loss(wrap(simpo_loss), logp) == wanted


# The loop


@EVERY_LOSS
def test_every_loss_of_the_family_trains(start, loss):
    """Far enough that each tells the answers apart; the first record is of the policy as it came."""
    records = list(start(loss=loss, epochs=12, learning_rate=0.01))
    if FIRST_LOSS[loss] is not None:
        assert records[0].loss == pytest.approx(FIRST_LOSS[loss], abs=1e-3)
        assert records[0].margin == pytest.approx(0.0, abs=1e-5)
    assert records[-1].loss < records[0].loss - 0.02
    assert records[-1].margin > records[0].margin + 0.02
    assert records[-1].chosen_logp - records[-1].rejected_logp > records[0].chosen_logp - records[0].rejected_logp + 1
    assert records[-1].accuracy >= 0.8


def test_the_first_loss_is_log_2_and_the_margin_0(start):
    record = next(start())
    assert record.loss == pytest.approx(LN2, abs=1e-6)
    assert (record.margin, record.chosen_reward, record.rejected_reward) == pytest.approx((0, 0, 0), abs=1e-5)


def test_the_chosen_reward_rises_over_the_rejected_one(start):
    records = list(start(epochs=10, learning_rate=0.01))
    margins = [record.margin for record in records]
    assert margins[-1] > 1 and margins[-1] > margins[5] > margins[1] > 0
    assert records[-1].accuracy == 1.0 and records[-1].loss < 0.35
    assert all(record.margin == pytest.approx(record.chosen_reward - record.rejected_reward) for record in records)


def test_the_record_of_a_given_reference_by_a_slow_loop(start, taught, tiny_model, pairs):
    policy, ref = taught(), tiny_model(seed=5)
    (pc, pr), (rc, rr) = slow_sums(policy, pairs), slow_sums(ref, pairs)
    chosen, rejected = ([0.3 * (p - r) for p, r in zip(*side, strict=True)] for side in ((pc, rc), (pr, rr)))
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    record = next(start(policy, ref=ref, beta=0.3))
    assert record.loss == pytest.approx(mean(math.log1p(math.exp(-margin)) for margin in margins), abs=1e-4)
    assert (record.chosen_reward, record.rejected_reward) == pytest.approx((mean(chosen), mean(rejected)), abs=1e-4)
    assert record.margin == pytest.approx(mean(margins), abs=1e-4)
    assert record.accuracy == pytest.approx(mean(margin > 0 for margin in margins))
    assert (record.chosen_logp, record.rejected_logp) == pytest.approx((mean(pc), mean(pr)), abs=1e-4)


def test_each_pair_meets_its_own_reference_whatever_the_batches(start):
    """Over a whole epoch at a rate of 0 every log-ratio is 0; a mix-up of rows would show as a loss."""
    for record in start(batch_size=2, epochs=2, learning_rate=0.0):
        assert record.loss == pytest.approx(LN2, abs=1e-5) and record.margin == pytest.approx(0.0, abs=1e-4)


class Counted(nn.Module):
    """A model that counts how often it is asked."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.calls = model, model.config, 0

    def forward(self, **inputs):
        self.calls += 1
        return self.model(**inputs)


def test_the_reference_is_asked_before_training_and_never_again(start, taught):
    ref = Counted(taught())
    before = weights(ref)
    run = start(ref=ref, epochs=4, batch_size=2)
    first = next(run)
    asked = ref.calls
    assert asked == 1 and first.loss == pytest.approx(LN2, abs=1e-5)  # ten short rows are one group
    list(run)
    assert ref.calls == asked
    assert_close(weights(ref), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in ref.parameters())


def test_the_reference_is_the_policy_as_it_comes(start, taught):
    options = {"epochs": 3, "learning_rate": 0.01}
    own, given = ([record.loss for record in start(**options, **ref)] for ref in ({}, {"ref": taught()}))
    assert own == given and own[-1] < own[0]


def test_options_reach_the_loss(start):
    """(1 / (2 beta))^2 at beta .5; at SimPO's gamma 0 instead of 1 the loss is lower."""
    assert next(start(loss=ipo_loss, beta=0.5)).loss == pytest.approx(1.0, abs=1e-4)
    assert next(start(loss=partial(ipo_loss, beta=0.5))).loss == pytest.approx(1.0, abs=1e-4)
    assert next(start(loss=simpo_loss, gamma=0.0)).loss < next(start(loss=simpo_loss)).loss - 0.1
    with pytest.raises(TypeError, match="unexpected keyword argument 'gamma'"):
        next(start(gamma=1.0))


def test_a_learners_own_loss_trains(start, taught, pairs):
    """It is called with the four sums of `dpo_loss`, and with the options."""
    called = []

    def mine(policy_chosen, policy_rejected, ref_chosen, ref_rejected, *, scale):
        called.append((policy_chosen, policy_rejected, ref_chosen, ref_rejected))
        h = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
        return PreferenceLoss((1 - scale * h).square(), (policy_chosen - ref_chosen).detach(), torch.zeros(5))

    records = list(start(loss=mine, scale=0.5, epochs=10, learning_rate=0.01))
    assert records[0].loss == pytest.approx(1.0, abs=1e-4) and records[-1].loss < 0.9
    assert records[-1].rejected_reward == 0.0
    sums = slow_sums(taught(), pairs) * 2
    assert [sorted(part.tolist()) for part in called[0]] == [pytest.approx(sorted(part), abs=1e-4) for part in sums]


def test_the_sft_term_is_the_mean_over_all_chosen_tokens(start, taught, pairs):
    """Long answers count for more than short ones; the record holds the whole loss."""
    logps = [slow_logps(taught(), pair.chosen) for pair in pairs]
    per_token = -sum(map(sum, logps)) / sum(map(len, logps))
    assert abs(per_token + mean(map(mean, logps))) > 0.01  # the mean of the answers' means is another number
    record = next(start(sft_weight=0.5))
    assert record.loss == pytest.approx(LN2 + 0.5 * per_token, abs=1e-5)


def test_the_sft_term_keeps_the_chosen_answers_likely(start):
    plain, held = (list(start(sft_weight=w, epochs=15, learning_rate=0.01))[-1] for w in (0.0, 1.0))
    assert held.chosen_logp > plain.chosen_logp + 1
    assert held.margin > 0.5


def test_evaluation_samples_the_policy_and_asks_the_reference(taught, tiny_model, tokenizer):
    """KL: log pi - log pi_ref summed over each sampled answer, from one pass over exactly the tokens before each."""
    policy, ref = taught(), tiny_model(seed=5)

    def gold(prompts, responses):
        return [float(len(response)) for response in responses]

    kl, mean_gold, shown = evaluate(policy, ref, tokenizer, PROMPTS, gold, seed=3)
    sample, texts = respond(policy, tokenizer, PROMPTS, seed=3)
    P, total = sample.tokens.shape[1] - sample.response_mask.shape[1], 0.0
    for row in range(len(PROMPTS)):
        tokens = sample.tokens[row][sample.attention_mask[row]][None]
        start = int(sample.attention_mask[row, :P].sum())
        p, q = (model(input_ids=tokens).logits[0].log_softmax(-1) for model in (policy, ref))
        total += sum((p - q)[t - 1, tokens[0, t]].item() for t in range(start, tokens.shape[1]))
    assert kl == pytest.approx(total / len(PROMPTS), rel=1e-4)
    assert mean_gold == pytest.approx(mean(map(len, texts)))
    assert [s.prompt for s in shown] == PROMPTS[:3] and [s.response for s in shown] == texts[:3]
    assert [s.gold for s in shown] == gold(None, texts)[:3]
    assert all(math.isnan(s.proxy) for s in shown)
    kl, mean_gold, shown = evaluate(policy, taught(), tokenizer, PROMPTS)
    assert kl == pytest.approx(0.0, abs=1e-4) and math.isnan(mean_gold) and math.isnan(shown[0].gold)


def test_evaluation_comes_at_the_first_step_on_schedule_and_at_the_end(start, taught, tokenizer):
    """Five pairs one at a time are five steps. The record of a step shows the policy after it."""
    policy, ref = taught(), taught()
    for record in start(policy, batch_size=1, prompts=PROMPTS, eval_every=3, seed=7, learning_rate=0.01):
        if record.step in (1, 3, 5):
            kl, _, shown = evaluate(policy, ref, tokenizer, PROMPTS, seed=7)
            assert record.kl == pytest.approx(kl, abs=1e-5) and len(record.samples) == 3
            assert [s.response for s in record.samples] == [s.response for s in shown]
        else:
            assert math.isnan(record.kl) and record.samples == ()
        assert math.isnan(record.gold)
    assert record.step == record.steps == 5
    assert all(math.isnan(record.kl) for record in start(batch_size=1, eval_every=1))  # there is nothing to sample on


def test_gold_comes_with_an_evaluation(start):
    def gold(prompts, responses):
        return [float(len(response)) for response in responses]

    first, second, third, last = start(epochs=4, prompts=PROMPTS, gold_fn=gold, eval_every=3)
    assert math.isnan(second.gold)
    for record in (first, third, last):
        assert record.gold > 0 and len(record.samples) == 3
        assert all(sample.gold == len(sample.response) for sample in record.samples)
    numbers = [value for record in (first, second) for value in record[:-1]]
    assert all(type(value) in (int, float) for value in numbers)


def test_evaluating_does_not_change_the_training(start):
    """It samples with a generator of its own, and it takes no step."""
    quiet, watched = (start(epochs=4, batch_size=2, prompts=prompts, eval_every=1) for prompts in ((), PROMPTS))
    assert [record.loss for record in quiet] == [record.loss for record in watched]


def test_every_epoch_reads_every_pair_once_in_an_order_of_its_own(start, pairs, monkeypatch):
    read, real = [], dpo.pair_logprobs
    monkeypatch.setattr(dpo, "pair_logprobs", lambda *args: read.extend(args[1]) or real(*args))
    list(start(epochs=3, batch_size=2))
    epochs = [[pairs.index(pair) for pair in read[start : start + 5]] for start in (0, 5, 10)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_the_same_seed_gives_the_same_run(start):
    def run(seed):
        return [record.loss for record in start(epochs=2, batch_size=2, learning_rate=0.01, seed=seed)]

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_dropout_is_off(start, tiny_model):
    policy = tiny_model(attention_dropout=0.5).train()
    record = next(start(policy, prompts=PROMPTS))
    assert record.loss == pytest.approx(LN2, abs=1e-5) and not policy.training


def test_dropout_is_off_in_a_reference_that_is_given(start, tiny_model):
    ref = tiny_model(attention_dropout=0.5).train()
    assert next(start(tiny_model(), ref=ref)).loss == pytest.approx(LN2, abs=1e-5)


def test_frozen_weights_stay(start, taught):
    policy = taught()
    policy.get_input_embeddings().weight.requires_grad_(False)
    before = weights(policy)
    assert [record.step for record in start(policy, epochs=3)] == [1, 2, 3]
    changed = {name for name, weight in weights(policy).items() if (weight != before[name]).any()}
    assert changed == set(before) - {"model.embed_tokens.weight"}


def test_a_weight_without_a_gradient_does_not_decay(start, tiny_model, pairs):
    """A byte that is in no pair, in a model whose input embeddings are not its outputs."""
    policy, unread = tiny_model(tie_word_embeddings=False), 200
    assert all(unread not in side.tokens for pair in pairs for side in pair)
    before = weights(policy)["model.embed_tokens.weight"]
    next(start(policy, learning_rate=0.01))
    after = weights(policy)["model.embed_tokens.weight"]
    assert torch.equal(after[unread], before[unread]) and not torch.equal(after, before)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"tie_word_embeddings": False}])
def test_other_models_train_alike(start, tiny_model, options):
    records = list(start(tiny_model(**options), epochs=3, learning_rate=0.01, prompts=PROMPTS))
    assert records[0].loss == pytest.approx(LN2, abs=1e-5) and records[-1].loss < LN2


def test_a_tokenizer_without_a_pad_token_will_do(taught, tokenizer, pairs):
    padless = deepcopy(tokenizer)
    padless.pad_token = None
    with_pad, without = (list(train(taught(), pairs, tokenizer=t, prompts=PROMPTS))[-1] for t in (tokenizer, padless))
    assert without[:9] == with_pad[:9] and without.kl == with_pad.kl


def test_no_pairs_are_refused(start):
    with pytest.raises(ValueError, match=r"^dpo: no pairs to train on$"):
        next(start(on=[]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_does_harm(start, taught, value):
    policy, calls = taught(), []

    def breaks(*args, **options):
        result = dpo_loss(*args, **options)
        calls.append(1)
        return result if len(calls) < 3 else result._replace(losses=result.losses * value)

    run = start(policy, loss=breaks, epochs=5)
    next(run), next(run)
    before = weights(policy)
    with pytest.raises(FloatingPointError, match=f"^dpo, step 3: the loss is {value}: lower the learning rate"):
        next(run)
    assert_close(weights(policy), before, rtol=0, atol=0)


def test_a_gold_score_that_is_none_is_refused(start):
    with pytest.raises(ValueError, match=r"^dpo.* gold: the reward function gave nan"):
        next(start(prompts=PROMPTS, gold_fn=lambda prompts, responses: [math.nan] * len(responses)))


def test_stopping_half_way_leaves_a_usable_policy(start, taught, tokenizer):
    policy = taught().train()
    run = start(policy, epochs=5)
    next(run), next(run)
    run.close()
    assert not policy.training and all(torch.isfinite(parameter).all() for parameter in policy.parameters())
    assert len(answer(policy, tokenizer, ["Why?"], max_new_tokens=3)) == 1
