"""What all online loops promise: their records, their groups, that they learn what is rewarded, and their errors."""

import math
import warnings
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from picollm_lite.chat import answer
from picollm_lite.stages import group_policy, online, online_dpo, ppo, rejection
from picollm_lite.stages.online import OnlineConfig, turns

from .loops import brevity, length, plain, says_token, weights

PROMPTS = ["What is a token?", "Why?", "Be brief. What is a token?", "What is a unit of text?", "Thanks."]
SMALL = {"steps": 2, "batch_size": 16, "group_size": 4, "max_new_tokens": 7, "learning_rate": 0.01, "warmup": 0.1}
SMALL |= {"unfinished_score": -3.0, "seed": 0}
LOOPS = {
    "rloo": (group_policy.rloo, {"kl_coef": 0.05}),
    "grpo": (group_policy.grpo, {"kl_coef": 0.05, "minibatch_size": 8, "epochs": 2}),
    "online dpo": (online_dpo.train, {"beta": 0.1}),
    "rejection": (rejection.train, {"minibatch_size": 2, "epochs": 2}),
}


@pytest.fixture(params=LOOPS)
def name(request):
    return request.param


@pytest.fixture
def start(name, taught, tokenizer):
    """A run of a few small steps on a policy that was taught a little, or on the one given."""
    loop, settings = LOOPS[name]

    def make(reward_fn=length, policy=None, prompts=PROMPTS, **options):
        policy = taught() if policy is None else policy
        return loop(policy, reward_fn, prompts, tokenizer=tokenizer, **{**SMALL, **settings, **options})

    return make


@pytest.mark.parametrize("reward", [brevity, says_token])
def test_the_policy_learns_what_is_rewarded(start, name, reward):
    steps = {"steps": 8, "batch_size": 32, "unfinished_score": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f"{name}, step .* to all 32 answers")  # it may learn it perfectly
        proxies = [record.proxy for record in start(reward, **steps)]
    assert proxies[-1] + proxies[-2] > proxies[0] + proxies[1] + 0.3


def test_the_record_of_a_step_says_what_was_sampled(start, name):
    seen = []

    def reward(prompts, responses):
        seen.append((list(prompts), list(responses)))
        return length(prompts, responses)

    def gold(prompts, responses):
        return [2 * x for x in length(prompts, responses)]

    first, second = start(reward, gold_fn=gold)
    assert (first.step, first.steps, first.rollouts, second.step, second.rollouts) == (1, 2, 16, 2, 32)
    for record, (prompts, texts) in zip((first, second), seen, strict=True):
        assert record.proxy == pytest.approx(sum(map(len, texts)) / 16)
        assert record.gold == pytest.approx(2 * record.proxy)
        rows = list(zip(prompts, texts, length(prompts, texts), strict=True))
        assert [s[:3] for s in record.samples] == rows[:: SMALL["group_size"]][
            :3
        ]  # the first answer of each of three groups
        assert [s.gold for s in record.samples] == [2 * s.proxy for s in record.samples]
        assert 1 < record.length <= 7 and record.entropy > 0 and 0 <= record.finished <= 1
    assert first.kl == pytest.approx(0.0, abs=1e-4) and second.kl > 0.01  # the reference stays where the policy was
    assert (first.learning_rate, second.learning_rate) == pytest.approx((0.01, 0.005))
    assert first.grad_norm > 0


def test_records_mean_what_those_of_ppo_mean(start):
    """The same names in the same order, so that panels and tables take both; and plain numbers."""
    record = next(start())
    shared = [field for field in ppo.PPOStep._fields if field in record._fields]
    assert [field for field in record._fields if field in shared] == shared
    wanted = {"step", "steps", "rollouts", "proxy", "gold", "kl", "length", "entropy", "finished", "learning_rate"}
    assert wanted | {"grad_norm", "samples"} <= set(record._fields)
    assert math.isnan(record.gold) and all(math.isnan(sample.gold) for sample in record.samples)
    assert all(type(value) in (int, float) for value in record[:-1])
    assert all(math.isfinite(value) for value in record._replace(gold=0.0)[:-1])


def test_four_answers_to_a_prompt_are_neighbors(start):
    seen = []
    next(start(lambda prompts, responses: seen.extend(prompts) or length(prompts, responses)))
    groups = [seen[i : i + 4] for i in range(0, 16, 4)]
    assert all(len(set(group)) == 1 for group in groups) and len({group[0] for group in groups}) == 4


def test_what_is_not_the_policy_is_not_trained(start, taught, tiny_model):
    policy, ref = taught(), tiny_model(seed=5)
    before = weights(ref), weights(policy)
    for record in start(policy=policy, ref=ref):
        assert record.kl > 1
    assert_close(weights(ref), before[0], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in ref.parameters())
    assert all((weights(policy)[name] != weight).any() for name, weight in before[1].items())


def test_dropout_is_off(start, tiny_model):
    """A run with a dropout of one half in policy and reference is the run without."""
    wanted = plain(start(policy=tiny_model(), ref=tiny_model()))
    noisy = [tiny_model(attention_dropout=0.5).train() for _ in range(2)]
    assert plain(start(policy=noisy[0], ref=noisy[1])) == wanted
    assert not noisy[0].training


def test_the_same_seed_gives_the_same_run(start):
    assert plain(start(seed=3)) == plain(start(seed=3))
    assert next(start(seed=3)).entropy != next(start(seed=4)).entropy


def test_the_temperature_of_the_samples_is_that_of_the_loss(start):
    """At the reference every ratio is 1 and every log-ratio 0; the record's KL is of the policy as it samples."""
    record = next(start(temperature=0.7))
    assert record.kl == pytest.approx(0.0, abs=1e-4)
    assert getattr(record, "approx_kl", 0.0) < 0.5 and getattr(record, "margin", 0.0) == pytest.approx(0.0, abs=1e-4)


def test_a_reward_that_is_no_reward_is_named_with_its_step(start, name, taught):
    policy, calls = taught(), []

    def reward(prompts, responses):
        calls.append(1)
        return length(prompts, responses) if len(calls) == 1 else [math.nan] * len(responses)

    run = start(reward, policy=policy)
    next(run)
    before = weights(policy)
    with pytest.raises(ValueError, match=f"^{name}, step 2: the reward function gave nan for the answer .*16 of 16"):
        next(run)
    assert_close(weights(policy), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match=f"^{name}, step 1, gold: the reward function gave inf"):
        next(start(gold_fn=lambda prompts, responses: [math.inf] * len(responses)))


def test_a_constant_reward_is_one_warning(start, name):
    with pytest.warns(UserWarning) as told:
        assert next(start(lambda prompts, responses: [0.5] * len(responses))).proxy == 0.5
    assert [str(warning.message) for warning in told] == [
        f"{name}, step 1: the reward function gave 0.5 to all 16 answers: there is nothing to learn"
    ]


def test_no_prompts_odd_groups_and_unknown_settings_are_refused(start):
    with pytest.raises(ValueError, match=r"^no prompts to sample answers to$"):
        next(start(prompts=[]))
    for sizes in ({"group_size": 1}, {"group_size": 3}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=r"^expected group_size >= 2 that divides batch_size, got"):
            next(start(**sizes))
    with pytest.raises(TypeError, match="unexpected keyword argument 'kl_coeff'"):
        next(start(kl_coeff=0.1))


def usable(policy, tokenizer):
    assert not policy.training
    assert all(torch.isfinite(parameter).all() for parameter in policy.parameters())
    assert len(answer(policy, tokenizer, ["Why?"], max_new_tokens=3)) == 1


def test_an_interrupt_inside_a_step_leaves_a_usable_policy(start, taught, tokenizer):
    policy, calls = taught().train(), []

    def stop_button(prompts, responses):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return length(prompts, responses)

    run = start(stop_button, policy=policy)
    before = weights(policy)
    next(run)
    usable(policy, tokenizer)
    with pytest.raises(KeyboardInterrupt):
        next(run)
    usable(policy, tokenizer)
    assert any((weight != before[key]).any() for key, weight in weights(policy).items())


def test_an_unfinished_answer_is_scored_as_such_and_only_in_what_is_learned(taught, tokenizer):
    """Records show the reward function's own scores; the loops go by `final`."""
    policy = taught()
    run = partial(turns, "here", policy, policy, length, PROMPTS, tokenizer, None)
    for unfinished_score in (-3.0, None):
        config = OnlineConfig(**{**SMALL, "unfinished_score": unfinished_score})
        answers = next(run(config)).answers
        assert answers.finished.any() and not answers.finished.all()
        wanted = answers.scores if unfinished_score is None else answers.scores.where(answers.finished, -3.0)
        assert torch.equal(answers.final, wanted)
        assert answers.scores.tolist() == length(None, answers.texts)


def test_by_default_every_loop_has_the_rollouts_of_ppo():
    budget = ppo.PPOConfig().steps * ppo.PPOConfig().batch_size
    configs = (group_policy.RLOOConfig(), group_policy.GRPOConfig(), online_dpo.OnlineDPOConfig())
    for config in (*configs, rejection.RejectionConfig(), online.OnlineConfig()):
        assert config.steps * config.batch_size == budget
