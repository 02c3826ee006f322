"""The SFT loss against a slow loop, and the training loop: schedule, records, seeds, interruption, divergence."""

import math

import pytest
import torch
from torch.testing import assert_close

from picollm_lite.chat import Encoded, answer, encode_conversation
from picollm_lite.data import Batch, collate
from picollm_lite.stages import sft
from picollm_lite.stages.sft import batch_loss, evaluate, train

from .loops import weights

PAIRS = [
    ("What is a token?", "A token is a unit of text."),
    ("Why?", "It splits words."),
    ("Be brief. What is a token?", "A unit."),
    ("What is a unit of text?", "A token."),
    ("Why is it a token? Be brief.", "Thanks. It is a token. A token is a unit."),
]


@pytest.fixture(scope="session")
def demos(tokenizer):
    return [
        encode_conversation(tokenizer, [{"role": "user", "content": q}, {"role": "assistant", "content": a}])
        for q, a in PAIRS
    ]


@pytest.fixture
def pad(tokenizer):
    return tokenizer.pad_token_id


def losses(records):
    return [record.loss for record in records]


def nats(model, example):
    """-log p of each response token, from a pass over exactly the tokens before it and a softmax written out."""
    found = []
    for t, counts in enumerate(example.response_mask):
        if counts and t > 0:
            logits = model(input_ids=torch.tensor([example.tokens[:t]])).logits[0, -1].tolist()
            found.append(math.log(sum(math.exp(z) for z in logits)) - logits[example.tokens[t]])
    return found


@pytest.mark.parametrize("rows", [[0], [0, 1, 4], [3, 2]])
def test_the_loss_equals_a_slow_loop_over_response_tokens(tiny_model, demos, pad, rows):
    model = tiny_model()
    each = [loss for row in rows for loss in nats(model, demos[row])]
    got = batch_loss(model, collate([demos[row] for row in rows], pad))
    assert got.shape == () and got.item() == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_a_first_token_in_the_mask_is_not_scored(tiny_model, demos, pad):
    """Nothing comes before it; the base model trains on masks like this one."""
    model, example = tiny_model(), demos[0]
    whole = example._replace(response_mask=[True] * len(example.tokens))
    each = nats(model, whole)
    assert len(each) == len(example.tokens) - 1
    assert batch_loss(model, collate([whole], pad)).item() == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_padding_on_the_right_changes_neither_loss_nor_gradient(tiny_model, demos, pad):
    batch = collate(demos[:2], pad)
    more = torch.full((2, 7), 77)
    wide = Batch(torch.cat([batch.tokens, more], 1), torch.cat([batch.response_mask, more < 0], 1))
    found = []
    for each in (batch, wide):
        model = tiny_model()
        loss = batch_loss(model, each)
        loss.backward()
        found.append((loss.detach(), [parameter.grad for parameter in model.parameters()]))
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_validation_loss_weighs_tokens_whatever_the_batch_size(tiny_model, demos, pad):
    model = tiny_model()
    each = [loss for example in demos for loss in nats(model, example)]
    of_rows = [sum(nats(model, example)) / len(nats(model, example)) for example in demos]
    wanted = sum(each) / len(each)
    assert abs(sum(of_rows) / len(of_rows) - wanted) > 0.01  # the mean over rows is another number
    for batch_size in (1, 2, 3, 128):
        assert evaluate(model, demos, pad_token_id=pad, batch_size=batch_size) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_is_without_dropout_and_leaves_the_mode(tiny_model, demos, pad, training):
    model = tiny_model(attention_dropout=0.5)
    quiet = evaluate(model, demos, pad_token_id=pad)
    model.train(training)
    assert evaluate(model, demos, pad_token_id=pad) == quiet
    assert model.training is training


def test_training_lowers_the_loss_to_what_can_be_recited(tiny_model, tokenizer, demos, pad):
    model = tiny_model()
    before = evaluate(model, demos, pad_token_id=pad)
    records = list(train(model, demos, pad_token_id=pad, epochs=40, batch_size=8, learning_rate=0.05))
    after = evaluate(model, demos, pad_token_id=pad)
    assert before > 4 and after < 0.2
    assert records[-1].loss < 0.2 < records[0].loss
    asked, written = zip(*PAIRS, strict=True)
    assert answer(model, tokenizer, asked, temperature=0, max_new_tokens=20) == list(written)


def test_training_uses_dropout(tiny_model, demos, pad):
    model = tiny_model(attention_dropout=0.5)
    quiet = batch_loss(model, collate(demos, pad)).item()
    torch.manual_seed(0)
    record = next(train(model, demos, pad_token_id=pad, batch_size=8))
    assert abs(record.loss - quiet) > 1e-3


def test_the_same_seed_gives_the_same_losses(tiny_model, demos, pad):
    def run(seed):
        return losses(train(tiny_model(), demos, pad_token_id=pad, epochs=2, batch_size=2, seed=seed))

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_every_epoch_reads_every_demonstration_once_in_an_order_of_its_own(tiny_model, demos, pad, monkeypatch):
    read = []
    monkeypatch.setattr(sft, "collate", lambda examples, pad_id: read.extend(examples) or collate(examples, pad_id))
    for _ in train(tiny_model(), demos, pad_token_id=pad, epochs=3, batch_size=2):
        pass
    epochs = [[demos.index(example) for example in read[start : start + 5]] for start in (0, 5, 10)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def ten_steps(tiny_model, demos, pad, **options):
    model = tiny_model()
    settings = {"epochs": 2, "batch_size": 1, "learning_rate": 0.01, "warmup": 0.2}
    return model, train(model, demos, pad_token_id=pad, **{**settings, **options})


def test_the_learning_rate_warms_up_then_follows_a_cosine_to_zero(tiny_model, demos, pad):
    """Of 10 steps, 2 warm up: 1/2, 2/2. Then (1 + cos(pi k / 8)) / 2 for k = 0 to 7."""
    _, run = ten_steps(tiny_model, demos, pad)
    shares = [0.5, 1, 1, 0.9619398, 0.8535534, 0.6913417, 0.5, 0.3086583, 0.1464466, 0.0380602]
    assert [record.learning_rate for record in run] == pytest.approx([0.01 * share for share in shares], abs=1e-9)


def test_without_warmup_the_first_step_has_the_full_rate(tiny_model, demos, pad):
    _, run = ten_steps(tiny_model, demos, pad, warmup=0.0)
    rates = [record.learning_rate for record in run]
    assert rates[:2] == pytest.approx([0.01, 0.01]) and rates[2] < 0.01
    assert rates == sorted(rates, reverse=True) and 0 < rates[-1] < 5e-4


def test_the_rate_in_the_record_is_the_one_that_was_applied(tiny_model, demos, pad):
    """Adam's first step moves every weight that has a gradient by the learning rate."""
    model, run = ten_steps(tiny_model, demos, pad)
    before = weights(model)
    record = next(run)
    moved = max(float((after - before[name]).abs().max()) for name, after in weights(model).items())
    assert moved == pytest.approx(record.learning_rate, rel=1e-3) == pytest.approx(0.005, rel=1e-3)


def test_weight_decay_shrinks_a_weight_that_has_no_gradient(tiny_model, demos, pad):
    unread = 200  # a byte that is in no demonstration, in a model whose input embeddings are not its outputs
    assert all(unread not in example.tokens for example in demos)
    for decay, share in ((0.0, 1.0), (0.5, 1 - 0.01 * 0.5)):
        model = tiny_model(tie_word_embeddings=False)
        before = weights(model)["model.embed_tokens.weight"][unread]
        next(train(model, demos, pad_token_id=pad, learning_rate=0.01, weight_decay=decay, warmup=0.0))
        assert_close(weights(model)["model.embed_tokens.weight"][unread], before * share, rtol=1e-5, atol=0)


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_the_gradient_is_clipped_after_it_was_measured(tiny_model, demos, pad, applied_norms, limit):
    model = tiny_model()
    batch_loss(model, collate(demos, pad)).backward()
    norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.parameters()))
    model.zero_grad()
    record = next(train(model, demos, pad_token_id=pad, max_grad_norm=limit))
    assert norm > 0.2
    assert record.grad_norm == pytest.approx(norm, rel=1e-4)
    assert applied_norms == [pytest.approx(min(norm, limit), rel=1e-4)]


def test_gradients_do_not_add_up_over_steps(tiny_model, demos, pad):
    """At a rate of zero every step starts from the same weights, so the same batch has the same gradient."""
    run = train(tiny_model(), demos[:1], pad_token_id=pad, epochs=3, learning_rate=0.0)
    norms = [record.grad_norm for record in run]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)


def test_records_count_steps_and_epochs(tiny_model, demos, pad):
    _, run = ten_steps(tiny_model, demos, pad)
    records = list(run)
    assert [record.step for record in records] == list(range(1, 11))
    assert {record.steps for record in records} == {10}
    assert [record.epoch for record in records] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert all(type(value) in (int, float) for record in records for value in record)
    assert all(math.isnan(record.val_loss) for record in records)  # there is nothing to validate on


def test_validation_comes_on_schedule_and_at_the_end(tiny_model, demos, pad):
    model, run = ten_steps(tiny_model, demos[:4], pad, epochs=2, val=demos[4:], eval_every=3)
    for record in run:
        if record.step in (3, 6, 8):
            assert record.val_loss == evaluate(model, demos[4:], pad_token_id=pad)
        else:
            assert math.isnan(record.val_loss)
    assert record.step == 8


def test_the_loss_of_a_record_is_that_before_its_step(tiny_model, demos, pad):
    model = tiny_model()
    first = batch_loss(model, collate(demos, pad)).item()
    run = train(model, demos, pad_token_id=pad, batch_size=8, epochs=2, warmup=0.0)
    assert next(run).loss == pytest.approx(first, abs=1e-6)
    assert next(run).loss < first - 0.01


def test_the_callers_cell_finds_the_policy_in_eval_mode(tiny_model, demos, pad):
    """It samples and saves between steps, and may break while it still holds the generator."""
    model, run = ten_steps(tiny_model, demos, pad)
    for record in run:
        assert not model.training
        if record.step == 3:
            break
    assert not model.training
    assert next(run).step == 4  # going on after a break is possible too


def usable(model, tokenizer, demos, pad):
    assert not model.training
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert math.isfinite(evaluate(model, demos, pad_token_id=pad))
    assert len(answer(model, tokenizer, ["Why?"], max_new_tokens=3)) == 1


def test_stopping_keeps_what_was_learned(tiny_model, tokenizer, demos, pad):
    model, run = ten_steps(tiny_model, demos, pad)
    before = evaluate(model, demos, pad_token_id=pad)
    for _ in range(6):
        next(run)
    with pytest.raises(KeyboardInterrupt):
        run.throw(KeyboardInterrupt())
    usable(model, tokenizer, demos, pad)
    assert evaluate(model, demos, pad_token_id=pad) < before
    assert list(run) == []


def test_an_interrupt_inside_a_step_leaves_a_usable_policy(tiny_model, tokenizer, demos, pad, monkeypatch):
    model, run = ten_steps(tiny_model, demos, pad)
    next(run)

    def stop_button(policy, batch):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sft, "batch_loss", stop_button)
        with pytest.raises(KeyboardInterrupt):
            next(run)
    usable(model, tokenizer, demos, pad)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_does_harm(tiny_model, demos, pad, monkeypatch, value):
    model, run = ten_steps(tiny_model, demos, pad)
    next(run), next(run)
    before = weights(model)
    monkeypatch.setattr(sft, "batch_loss", lambda policy, batch: torch.tensor(value, requires_grad=True))
    with pytest.raises(FloatingPointError, match=rf"^sft, step 3: the loss is {value}: lower the learning rate, or "):
        next(run)
    assert_close(weights(model), before, rtol=0, atol=0)
    assert not model.training


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(tiny_model, demos, pad, monkeypatch):
    """The square root of 0 is 0, and its slope infinite: a loss that looks well and a gradient that is not."""
    model, run = ten_steps(tiny_model, demos, pad)
    next(run), next(run)
    before = weights(model)

    def steep(policy, batch):
        loss = batch_loss(policy, batch)
        return loss + (loss - loss.detach()).sqrt()

    monkeypatch.setattr(sft, "batch_loss", steep)
    with pytest.raises(FloatingPointError, match=r"^sft, step 3: the gradient norm is (nan|inf): lower the learning"):
        next(run)
    assert_close(weights(model), before, rtol=0, atol=0)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert not model.training


def test_a_rate_that_is_far_too_high_is_named(tiny_model, demos, pad):
    with pytest.raises(FloatingPointError, match=r"^sft, step \d+: the (loss|gradient norm) is (nan|inf): lower the"):
        for _ in train(tiny_model(), demos, pad_token_id=pad, learning_rate=1e30, epochs=5):
            pass


def test_no_demonstrations_are_refused(tiny_model, pad):
    with pytest.raises(ValueError, match=r"^sft: no demonstrations to train on$"):
        next(train(tiny_model(), [], pad_token_id=pad))


def test_settings_reach_the_batches(tiny_model, pad):
    """70 rows in batches of 64 are 2 a pass, and 2 passes are the default."""
    rows = [Encoded([0, 40 + row, 41], [False, True, True]) for row in range(70)]
    assert next(train(tiny_model(), rows, pad_token_id=pad)).steps == 4
    assert next(train(tiny_model(), rows, pad_token_id=pad, batch_size=10, epochs=3)).steps == 21
