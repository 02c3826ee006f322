"""The schedule and the one step that may fail, by hand; and that every stage uses them in the same way."""

import math
import random
import re
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from picollm_lite.models import RewardModel
from picollm_lite.stages import dpo, group_policy, online_dpo, ppo, rejection, reward, sft
from picollm_lite.stages.optimization import (
    adamw,
    averaged,
    check_loss,
    cosine_schedule,
    descend,
    linear_schedule,
    minibatches,
    minimize,
    moved,
)

from .loops import length, weights


@pytest.mark.parametrize(
    ("steps", "warmup", "shares"),
    [
        (5, 0.2, [1, 1, 0.8535534, 0.5, 0.1464466]),  # (1 + cos(pi k / 4)) / 2 for k = 0 to 3
        (6, 0.5, [1 / 3, 2 / 3, 1, 1, 0.75, 0.25]),
        (4, 0.0, [1, 1, 0.75, 0.25]),  # at least one step warms up: it has the full rate
        (4, 1.0, [0.25, 0.5, 0.75, 1]),
        (1, 0.1, [1]),
    ],
)
def test_the_schedule_by_hand(steps, warmup, shares):
    assert [cosine_schedule(step, steps, warmup) for step in range(1, steps + 1)] == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_the_schedule_ends_at_zero(steps):
    assert cosine_schedule(steps, steps, 0.1) > 0
    assert cosine_schedule(steps + 1, steps, 0.1) == pytest.approx(0.0, abs=1e-12)


def test_the_linear_schedule_by_hand():
    """Ten steps, two of them to warm up; without a warmup the first step has the full rate."""
    shares = [linear_schedule(step, 10, 0.2) for step in range(1, 11)]
    assert shares == pytest.approx([0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert [linear_schedule(step, 2, 0.0) for step in (1, 2)] == [1.0, 0.5]


def test_minibatches_take_every_row_once_an_epoch():
    parts = [part.tolist() for part in minibatches(5, 2, 2, random.Random(0))]
    assert [len(part) for part in parts] == [2, 2, 1] * 2
    first, second = ([row for part in epoch for row in part] for epoch in (parts[:3], parts[3:]))
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4] and first != second


def test_how_far_a_policy_has_moved_by_hand():
    """Ratios 1, 3/2 and 1/2, and a token that does not count: two are outside 1 +- .2; k3 is 0, .5 - log 1.5, ..."""
    logp = torch.log(torch.tensor([[1.0, 1.5, 0.5, 9.0]])).requires_grad_()
    mask = torch.tensor([[True, True, True, False]])
    got = moved(logp, torch.zeros(1, 4), mask, 0.2)
    assert got["clip_fraction"] == pytest.approx(2 / 3)
    assert got["approx_kl"] == pytest.approx((0.5 - math.log(1.5) - 0.5 - math.log(0.5)) / 3)
    assert averaged([{"a": 1.0, "b": 0.0}, {"a": 4.0, "b": 1.0}]) == {"a": 2.5, "b": 0.5}


def test_minimizing_by_hand():
    """The slope of 3 x is 3: cut to 1, or not. A gradient from before does not count; a loss of nan moves nothing."""
    for limit, wanted in ((1.0, -1.0), (9.0, -3.0)):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        model.weight.grad = torch.full((1, 1), 50.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        norm = minimize(3 * model.weight.sum(), optimizer, model, "here", limit=limit)
        assert norm == pytest.approx(3.0) and model.weight.item() == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(FloatingPointError, match=r"^here: the loss is nan"):
        minimize(model.weight.sum() * math.nan, optimizer, model, "here", limit=1.0)
    assert model.weight.item() == pytest.approx(-3.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_place(value):
    with pytest.raises(FloatingPointError, match=rf"^dpo, step 3: the loss is {value}: lower the learning rate, or"):
        check_loss(torch.tensor(value), "dpo, step 3")
    for fine in (0.0, -5.0, 1e38):
        check_loss(torch.tensor(fine), "dpo, step 3")


def with_gradient(*gradient):
    """A weight at 0 with this gradient."""
    weight = nn.Parameter(torch.zeros(len(gradient)))
    weight.grad = torch.tensor(gradient)
    return weight


@pytest.mark.parametrize(("limit", "moved"), [(1.0, [-0.6, -0.8]), (5.5, [-3.0, -4.0])])
def test_a_step_by_hand(limit, moved):
    """(3, 4) has the norm 5: it is cut to (.6, .8), or left alone."""
    weight = with_gradient(3.0, 4.0)
    norm = descend(torch.optim.SGD([weight], lr=1.0), [weight], "here", max_grad_norm=limit)
    assert type(norm) is float and norm == pytest.approx(5.0)
    assert_close(weight.detach(), torch.tensor(moved), rtol=0, atol=1e-5)


def test_the_norm_is_that_of_all_gradients_together():
    """3 and 4 in two tensors, given as a generator, as `model.parameters()` is."""
    weights = [with_gradient(3.0), with_gradient(4.0)]
    norm = descend(torch.optim.SGD(weights, lr=1.0), (weight for weight in weights), "here", max_grad_norm=1.0)
    assert norm == pytest.approx(5.0)
    assert [weight.item() for weight in weights] == pytest.approx([-0.6, -0.8], abs=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_moves_nothing(value):
    weights = [with_gradient(1.0, value), with_gradient(1.0)]
    optimizer = torch.optim.Adam(weights, lr=1.0)
    with pytest.raises(FloatingPointError, match=rf"^ppo, step 2: the gradient norm is {value}: lower the"):
        descend(optimizer, weights, "ppo, step 2", max_grad_norm=1.0)
    assert all((weight == 0).all() for weight in weights) and not optimizer.state


SAMPLING = {"ppo", "rloo", "grpo", "online dpo", "rejection"}  # loops that write their own answers
PROMPTS = ["Why?", "What is a token?", "Thanks."]


ONLINE = {
    "rloo": group_policy.rloo,
    "grpo": partial(group_policy.grpo, epochs=1),
    "online dpo": online_dpo.train,
    "rejection": partial(rejection.train, epochs=1),
}


@pytest.fixture(params=["sft", "reward", "dpo", "ppo", *ONLINE])
def stage(request, tokenizer, taught, pairs):
    """(name, model, start): start(**options) trains the model for three steps, one update each."""
    model = taught()
    if request.param == "reward":
        model = RewardModel.from_policy(model, tokenizer)

    def start(**options):
        three = {"batch_size": len(pairs), "epochs": 3, **options}
        if request.param == "sft":
            demos = [pair.chosen for pair in pairs]
            return sft.train(model, demos, pad_token_id=tokenizer.pad_token_id, **three)
        if request.param == "reward":
            return reward.train(model, pairs, **three)
        if request.param == "dpo":
            return dpo.train(model, pairs, tokenizer=tokenizer, **three)
        if request.param in ONLINE:
            three = {"steps": 3, "batch_size": 8, "max_new_tokens": 6, "unfinished_score": None, **options}
            return ONLINE[request.param](model, length, PROMPTS, tokenizer=tokenizer, **three)
        three |= {"steps": 3, "epochs": 1, "batch_size": 8, "minibatch_size": 8, "max_new_tokens": 6}
        return ppo.train(model, length, PROMPTS, tokenizer=tokenizer, **three)

    return request.param, model, start


def test_every_stage_counts_its_steps_and_lowers_its_rate(stage):
    name, _, start = stage
    records = list(start(learning_rate=0.01, warmup=0.0))
    assert [(record.step, record.steps) for record in records] == [(1, 3), (2, 3), (3, 3)]
    shares = [1, 2 / 3, 1 / 3] if name in SAMPLING else [1, 1, 0.5]  # their decay is linear
    assert [record.learning_rate for record in records] == pytest.approx([0.01 * share for share in shares])
    numbers = [value for record in records for value in record if not isinstance(value, tuple)]
    assert all(type(value) in (int, float) for value in numbers) and len(numbers) >= 3 * 7


def test_every_stage_clips_its_gradient_after_measuring_it(stage, applied_norms):
    name, _, start = stage
    record = next(start(max_grad_norm=1e-3))
    assert record.grad_norm > 0.01
    assert applied_norms == [pytest.approx(1e-3, rel=0.01)] * (2 if name == "ppo" else 1)  # PPO has a critic too


def test_no_stage_counts_gradients_from_before(stage):
    """A learner's own backward(), or a run that was stopped within a step, must not reach the next run."""
    _, model, start = stage
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    assert math.isfinite(next(start()).grad_norm)


def test_every_stage_names_itself_and_the_step_when_weights_are_broken(stage):
    name, model, start = stage
    run = start()
    next(run)
    with torch.no_grad():
        next(model.parameters())[0] = math.nan  # the embedding of the token that begins every text
    error = ValueError if name in SAMPLING else FloatingPointError
    match = "the model gave non-finite logits" if name in SAMPLING else "the loss is nan"
    with pytest.raises(error, match=f"^{name}, step 2: {match}"):
        next(run)


def test_every_stage_survives_a_rate_that_is_far_too_high_or_says_so(stage):
    name, model, start = stage
    match = f"^({name}, step [23]: (the (loss|gradient norm) is (nan|inf)|the model gave non-finite logits))"
    try:
        records = list(start(learning_rate=1e25))
    except (FloatingPointError, ValueError) as error:
        assert re.match(match, str(error))
    else:
        assert all(math.isfinite(record.grad_norm) for record in records)
    assert not model.training or name == "reward"


def test_within_one_autocast_every_stage_sees_its_new_weights(stage):
    """autocast keeps the bf16 copies of weights until it ends: here it spans the run, then each step has its own."""
    _, model, start = stage
    begun = deepcopy(model.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert len(list(start(learning_rate=0.01))) == 3
    spanned = weights(model)
    model.load_state_dict(begun)
    run = start(learning_rate=0.01)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            next(run)
    assert_close(weights(model), spanned, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_train_in_half_precision_are_refused(stage, dtype):
    _, model, start = stage
    model.to(dtype)
    with pytest.raises(
        ValueError, match=rf"^the weights that train are in {str(dtype)[6:]} \(.*load the model with dtype"
    ):
        next(start())


def test_frozen_weights_may_be_in_half_precision(taught):
    model = taught().to(torch.bfloat16).requires_grad_(False)
    weight = model.model.norm.weight.requires_grad_()
    weight.data = weight.data.float()
    (group,) = adamw(model, 0.1).param_groups
    assert [id(trained) for trained in group["params"]] == [id(weight)]
