"""The reward model's loop: both losses against scores worked out one by one, centering, validation, seeds, errors."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaForSequenceClassification

from picollm_lite.chat import Encoded
from picollm_lite.data import Pair
from picollm_lite.models import RewardModel
from picollm_lite.stages import reward
from picollm_lite.stages.reward import center, evaluate, off_prompt_answers, score_pairs, train

from .loops import weights


@pytest.fixture
def new(tiny_model, tokenizer):
    """A new reward model; the same one each time. Options go to the model's config."""
    return lambda **config: RewardModel.from_policy(tiny_model(**config), tokenizer)


def score_of(reward_model, tokens):
    """One conversation alone, with gradient."""
    hidden = reward_model.model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state
    return (hidden[0, -1] * reward_model.model.score.weight[0]).sum() - reward_model.score_mean


def slow_loss(reward_model, winners, losers):
    """The mean of log(1 + exp(loser - winner)) over pairs of token lists."""
    terms = [
        torch.log1p(torch.exp(score_of(reward_model, loser) - score_of(reward_model, winner)))
        for winner, loser in zip(winners, losers, strict=True)
    ]
    return sum(terms) / len(terms)


def gradient_norm(model, loss):
    model.zero_grad()
    loss.backward()
    return math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.parameters()))


def sides(pairs):
    return [pair.chosen.tokens for pair in pairs], [pair.rejected.tokens for pair in pairs]


def test_scores_of_pairs_are_chosen_then_rejected(new, pairs):
    model = new()
    chosen, rejected = score_pairs(model, pairs)
    for got, wanted in zip((chosen, rejected), sides(pairs), strict=True):
        assert got.tolist() == pytest.approx([score_of(model, tokens).item() for tokens in wanted], abs=1e-5)


def test_off_prompt_answers_by_hand():
    """Prompts 10, 20 20 and 30; the answer of the pair before is put under each, the first one gets the last one's."""
    yes, no = True, False
    first = Encoded([10, 1, 2], [no, yes, yes])
    second = Encoded([20, 20, 3, 2], [no, no, yes, yes])
    third = Encoded([30, 4, 5, 6, 2], [no, yes, yes, yes, yes])
    pairs = [Pair(chosen, Encoded([99, 98], [no, yes])) for chosen in (first, second, third)]
    assert off_prompt_answers(pairs) == [
        Encoded([10, 4, 5, 6, 2], [no, yes, yes, yes, yes]),
        Encoded([20, 20, 1, 2], [no, no, yes, yes]),
        Encoded([30, 3, 2], [no, yes, yes]),
    ]
    assert off_prompt_answers(pairs[:2])[0] == Encoded([10, 3, 2], [no, yes, yes])
    assert first == Encoded([10, 1, 2], [no, yes, yes])  # the pairs are not written into


def test_off_prompt_answers_are_conversations_that_could_have_been(pairs, encode):
    wanted = [
        encode("What is a token?", "Thanks. It is a token. A token is a unit."),
        encode("Why?", "A token is a unit of text."),
        encode("Be brief. What is a token?", "It splits words."),
        encode("What is a unit of text?", "A unit."),
        encode("Why is it a token? Be brief.", "A token."),
    ]
    assert off_prompt_answers(pairs) == wanted


def test_without_the_off_prompt_loss_a_step_is_plain_bradley_terry(new, pairs):
    model = new()
    loss = slow_loss(model, *sides(pairs))
    norm = gradient_norm(model, loss)
    record = next(train(new(), pairs, off_prompt_weight=0.0))
    assert record.loss == pytest.approx(loss.item(), abs=1e-5)
    assert record.grad_norm == pytest.approx(norm, rel=1e-4)


def test_the_off_prompt_loss_is_added_with_its_weight(new, pairs, monkeypatch):
    """The record's loss is that of the pairs alone; the gradient is that of both."""
    monkeypatch.setattr(reward, "epoch_batches", lambda lengths, size, epochs, seed: [[0, 1, 2, 3, 4]])
    for weight in (0.5, 1.0):
        model = new()
        chosen, rejected = sides(pairs)
        others = [example.tokens for example in off_prompt_answers(pairs)]
        plain = slow_loss(model, chosen, rejected)
        norm = gradient_norm(model, plain + weight * slow_loss(model, chosen, others))
        record = next(train(new(), pairs, off_prompt_weight=weight))
        assert record.loss == pytest.approx(plain.item(), abs=1e-5)
        assert record.grad_norm == pytest.approx(norm, rel=1e-4)


def test_a_batch_of_one_has_no_other_answer(new, pairs):
    with_weight, without = (list(train(new(), pairs, batch_size=1, off_prompt_weight=w)) for w in (1.0, 0.0))
    assert [record.grad_norm for record in with_weight] == [record.grad_norm for record in without]


def test_the_record_of_the_first_step_by_hand(new, pairs):
    model = new()
    margins = [score_of(model, c).item() - score_of(model, r).item() for c, r in zip(*sides(pairs), strict=True)]
    record = next(train(model, pairs))
    assert 0 < sum(margin > 0 for margin in margins) < 5
    assert record.accuracy == pytest.approx(sum(margin > 0 for margin in margins) / 5)
    assert record.margin == pytest.approx(sum(margins) / 5, abs=1e-5)
    assert record.loss == pytest.approx(sum(math.log1p(math.exp(-margin)) for margin in margins) / 5, abs=1e-5)


def test_training_learns_to_tell_the_answers_apart(new, pairs):
    model = new()
    records = list(train(model, pairs, epochs=15, learning_rate=0.01))
    assert records[0].loss > 0.5 and records[-1].loss < 0.1
    assert records[-1].accuracy == 1.0 and records[-1].margin > 2
    assert evaluate(model, pairs)[1] == 1.0


def test_the_off_prompt_loss_teaches_to_look_at_the_prompt(new, encode):
    """Each answer is right for one question and wrong for the other, and no pair says so."""
    questions, answers = ["Why?", "What is a token?"], ["It splits words.", "A token is a unit of text."]
    pairs = [Pair(encode(q, a), encode(q, "Thanks.")) for q, a in zip(questions, answers, strict=True)]
    swapped = [Pair(pair.chosen, off) for pair, off in zip(pairs, off_prompt_answers(pairs), strict=True)]
    loss = {}
    for weight in (0.0, 1.0):
        model = new()
        for _ in train(model, pairs, epochs=25, learning_rate=0.01, off_prompt_weight=weight):
            pass
        loss[weight], _ = evaluate(model, swapped)
    assert loss[1.0] < 0.1 < 0.5 < loss[0.0]


def test_evaluation_by_hand(new, pairs):
    model = new()
    loss, accuracy = evaluate(model, pairs)
    margins = [score_of(model, c).item() - score_of(model, r).item() for c, r in zip(*sides(pairs), strict=True)]
    assert loss == pytest.approx(slow_loss(model, *sides(pairs)).item(), abs=1e-5)
    assert accuracy == pytest.approx(sum(margin > 0 for margin in margins) / 5)
    torch.nn.init.zeros_(model.model.score.weight)
    assert evaluate(model, pairs) == (pytest.approx(math.log(2)), 0.0)  # a tie is no success


def test_centering_makes_the_mean_zero_and_leaves_differences_alone(new, pairs):
    model = new()
    before = torch.cat(score_pairs(model, pairs))
    for _ in range(2):  # doing it again changes nothing
        center(model, pairs)
        after = torch.cat(score_pairs(model, pairs))
        assert before.mean().abs() > 0.01
        assert model.score_mean == pytest.approx(before.mean().item(), abs=1e-5)
        assert_close(after, before - before.mean(), rtol=0, atol=1e-5)


def test_centering_may_look_at_the_first_pairs_only(new, pairs):
    model = new()
    wanted = torch.cat(score_pairs(model, pairs[:2])).mean().item()
    center(model, pairs, sample=2)
    assert model.score_mean == pytest.approx(wanted, abs=1e-5)


def test_a_whole_run_ends_centered_and_an_early_stop_does_not(new, pairs):
    model = new()
    run = train(model, pairs, epochs=3)
    next(run), next(run)
    assert model.score_mean == 0.0
    next(run)
    assert model.score_mean != 0.0
    assert torch.cat(score_pairs(model, pairs)).mean().item() == pytest.approx(0.0, abs=1e-5)


def test_any_classifier_can_be_trained(tiny_model, tokenizer, pairs):
    """`RewardModel.load` takes any with one label: its config knows of no mean."""
    config = tiny_model().config
    config.num_labels = 1
    torch.manual_seed(0)
    model = RewardModel(LlamaForSequenceClassification(config).eval(), tokenizer)
    list(train(model, pairs))
    assert torch.cat(score_pairs(model, pairs)).mean().item() == pytest.approx(0.0, abs=1e-5)


def test_validation_comes_on_schedule_and_at_the_end_after_centering(new, pairs):
    """Five pairs one at a time are five steps; centering moves both scores alike."""
    model = new()
    for record in train(model, pairs, val=pairs[:2], batch_size=1, eval_every=2):
        if record.step in (2, 4, 5):
            assert (record.val_loss, record.val_accuracy) == pytest.approx(evaluate(model, pairs[:2]), abs=1e-5)
        else:
            assert math.isnan(record.val_loss) and math.isnan(record.val_accuracy)
    assert record.step == record.steps == 5
    assert all(math.isnan(record.val_loss) for record in train(new(), pairs, batch_size=1, eval_every=1))


def test_the_same_seed_gives_the_same_run(new, pairs):
    def run(seed):
        return [record.loss for record in train(new(), pairs, batch_size=2, epochs=2, seed=seed)]

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_every_epoch_reads_every_pair_once_in_an_order_of_its_own(new, pairs, monkeypatch):
    read = []
    monkeypatch.setattr(reward, "score_pairs", lambda model, batch: read.extend(batch) or score_pairs(model, batch))
    list(train(new(), pairs, epochs=3, batch_size=2))
    epochs = [[pairs.index(pair) for pair in read[start : start + 5]] for start in (0, 5, 10)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_dropout_is_off(new, pairs):
    quiet = next(train(new(), pairs)).loss
    model = new(attention_dropout=0.5)
    model.train()
    assert next(train(model, pairs)).loss == quiet
    assert not model.training


def test_weight_decay_shrinks_a_weight_that_has_no_gradient(new, pairs):
    unread = 200
    assert all(unread not in side.tokens for pair in pairs for side in pair)
    for decay, share in ((0.0, 1.0), (0.5, 1 - 0.01 * 0.5)):
        model = new()
        before = weights(model)["model.model.embed_tokens.weight"][unread]
        next(train(model, pairs, learning_rate=0.01, weight_decay=decay, warmup=0.0))
        assert_close(weights(model)["model.model.embed_tokens.weight"][unread], before * share, rtol=1e-5, atol=0)


def test_no_pairs_are_refused(new):
    with pytest.raises(ValueError, match=r"^reward: no pairs to train on$"):
        next(train(new(), []))


@pytest.mark.parametrize("where", ["pairs", "off prompt"])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_does_harm(new, pairs, monkeypatch, where):
    model = new()
    run = train(model, pairs, epochs=3)
    next(run)
    before = weights(model)
    nan = torch.full((5,), math.nan, requires_grad=True)
    if where == "pairs":
        monkeypatch.setattr(reward, "score_pairs", lambda model, batch: (nan, nan))
    else:
        scored = score_pairs(model, pairs)
        monkeypatch.setattr(reward, "score_pairs", lambda model, batch: scored)
        monkeypatch.setattr(RewardModel, "forward", lambda self, examples: nan)
    with pytest.raises(FloatingPointError, match=r"^reward, step 2: the loss is nan: lower the learning rate"):
        next(run)
    assert_close(weights(model), before, rtol=0, atol=0)


def test_an_early_stop_leaves_a_usable_model(new, pairs):
    model = new()
    run = train(model, pairs, epochs=5)
    next(run), next(run)
    run.close()
    assert not model.training and all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert torch.isfinite(model.score(["Why?"], ["It splits words."])).all()
