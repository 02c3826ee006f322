"""PPO: what a batch of answers is worth, the update against one row at a time, and what the loop promises."""

import math
import warnings
from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from picollm_lite import scoring
from picollm_lite.chat import answer
from picollm_lite.models import RewardModel, ValueModel
from picollm_lite.scoring import Sequences
from picollm_lite.stages import ppo
from picollm_lite.stages.ppo import Experience, PPOConfig, accumulate, adapted_kl_coef, collect, train

from .loops import brevity, length, plain, says_token, weights

PROMPTS = ["What is a token?", "Why?", "Be brief. What is a token?", "What is a unit of text?", "Thanks."]
SMALL = {"steps": 3, "batch_size": 16, "minibatch_size": 8, "max_new_tokens": 7}
# The defaults are for the course's model and may change with it.
SMALL |= {"epochs": 2, "learning_rate": 1e-4, "critic_learning_rate": 5e-4, "warmup": 0.1, "kl_coef": 0.05}
SMALL |= {"gamma": 1.0, "lam": 0.95, "clip": 0.2, "value_clip": 0.2, "unfinished_score": -3.0, "seed": 0}


@pytest.fixture
def start(taught, tokenizer):
    """A run of a few small steps on a policy that was taught a little, or on the one given."""

    def make(reward_fn=length, policy=None, prompts=PROMPTS, **options):
        policy = taught() if policy is None else policy
        return train(policy, reward_fn, prompts, tokenizer=tokenizer, **{**SMALL, **options})

    return make


@pytest.fixture
def gathered(taught, tokenizer):
    """One batch of experience: 40 answers, some cut off at 7 tokens. `ref` and `critic` are others than the policy."""

    def make(reward_fn=length, *, kl_coef=0.0, policy=None, ref=None, critic=None, step=1, **settings):
        config = PPOConfig(**{**SMALL, "batch_size": 40, **settings})
        policy = taught() if policy is None else policy
        critic = ValueModel.from_policy(policy) if critic is None else critic
        experience, texts = collect(
            policy,
            policy if ref is None else ref,
            critic,
            tokenizer,
            reward_fn,
            PROMPTS * 8,
            config,
            kl_coef=kl_coef,
            step=step,
        )
        return experience, texts

    return make


@pytest.fixture
def critic(tiny_model, tokenizer):
    """One whose values are not 0."""
    return ValueModel.from_reward_model(RewardModel.from_policy(tiny_model(seed=4), tokenizer))


# What a batch is worth


@pytest.mark.parametrize("unfinished_score", [-3.0, 0.0])
def test_the_score_of_an_answer_that_never_ended_is_replaced_and_no_other(gathered, unfinished_score):
    """Without KL penalty, critic and discounts, every token's return is the answer's final score."""
    experience, texts = gathered(gamma=1.0, lam=1.0, unfinished_score=unfinished_score)
    finished = experience.finished.bool()
    assert finished.any() and not finished.all()
    assert experience.scores.tolist() == length(None, texts)  # as the reward function gave them
    final = torch.where(finished, experience.scores, torch.tensor(unfinished_score))
    for row, score in enumerate(final):
        returns = experience.returns[row][experience.sequences.mask[row]]
        assert_close(returns, score.expand_as(returns))


def test_without_an_unfinished_score_all_answers_keep_theirs(gathered):
    experience, texts = gathered(gamma=1.0, lam=1.0, unfinished_score=None)
    assert not experience.finished.all()
    for row, score in enumerate(length(None, texts)):
        assert (experience.returns[row][experience.sequences.mask[row]] == score).all()


def test_an_answer_has_ended_when_its_last_token_is_the_end_token(gathered, tokenizer):
    experience, _ = gathered()
    lengths = experience.sequences.lengths
    last = experience.sequences.tokens[torch.arange(40), lengths - 1]
    assert torch.equal(experience.finished.bool(), last == tokenizer.eos_token_id)


def test_the_kl_penalty_and_the_score_make_up_the_return(gathered, tiny_model):
    """At gamma = lam = 1 with values of 0 the first return is the score less kl_coef times the KL of the answer."""
    experience, _ = gathered(ref=tiny_model(seed=5), kl_coef=0.1, gamma=1.0, lam=1.0, unfinished_score=None)
    assert experience.kl.mean() > 1
    first = experience.sequences.mask.int().argmax(1)
    returns = experience.returns[torch.arange(40), first]
    assert_close(returns, experience.scores - 0.1 * experience.kl, rtol=1e-4, atol=1e-4)


def test_the_kl_is_that_to_the_reference_at_the_temperature_of_the_samples(gathered, tiny_model):
    """log pi - log pi_ref of each token, from one pass over exactly the tokens before it."""
    policy, ref = tiny_model(), tiny_model(seed=5)
    experience, _ = gathered(policy=policy, ref=ref, temperature=0.7)
    for row in range(4):
        kl, tokens = 0.0, experience.sequences.tokens[row, : experience.sequences.lengths[row]]
        for t in experience.sequences.mask[row].nonzero().flatten().tolist():
            p, q = (model(input_ids=tokens[None, : t + 1]).logits[0, -1] / 0.7 for model in (policy, ref))
            kl += (p.log_softmax(-1) - q.log_softmax(-1))[tokens[t + 1]].item()
        assert experience.kl[row].item() == pytest.approx(kl, abs=1e-4)


def test_advantages_and_returns_equal_a_slow_recursion(gathered, tiny_model, critic):
    """delta_t = r_t + gamma V_(t+1) - V_t, A_t = delta_t + gamma lam A_(t+1), return = A + V; A is whitened after."""
    settings = {"kl_coef": 0.1, "gamma": 0.9, "lam": 0.8, "ref": tiny_model(seed=5), "critic": critic}
    experience, _ = gathered(**settings)
    raw = []
    for row in range(40):
        tokens = experience.sequences.tokens[row, : experience.sequences.lengths[row]]
        places = experience.sequences.mask[row].nonzero().flatten().tolist()
        values = [critic(tokens[None, : t + 1])[0, -1].item() for t in places]  # of the text before the token
        assert experience.values[row][places].tolist() == pytest.approx(values, abs=1e-5)
        ref_logp = settings["ref"](input_ids=tokens[None]).logits[0].log_softmax(-1)
        rewards = [-0.1 * (experience.sequences.logp[row, t] - ref_logp[t, tokens[t + 1]]).item() for t in places]
        rewards[-1] += experience.scores[row].item() if experience.finished[row] else -3.0
        advantage, next_value, advantages = 0.0, 0.0, []
        for reward, value in zip(reversed(rewards), reversed(values), strict=True):
            advantage = reward + 0.9 * next_value - value + 0.9 * 0.8 * advantage
            next_value = value
            advantages.insert(0, advantage)
        returns = [advantage + value for advantage, value in zip(advantages, values, strict=True)]
        assert experience.returns[row][places].tolist() == pytest.approx(returns, abs=1e-4)
        raw += advantages
    mask, raw = experience.sequences.mask, torch.tensor(raw)
    wanted = (raw - raw.mean()) / raw.std(correction=0)
    assert_close(experience.advantages[mask], wanted, rtol=1e-3, atol=1e-4)
    for grid in (experience.values, experience.advantages, experience.returns):
        assert (grid[~mask] == 0).all() and not grid.requires_grad


def test_every_step_samples_anew_and_a_seed_settles_them(gathered):
    texts = {key: gathered(seed=key[0], step=key[1])[1] for key in ((0, 1), (0, 2), (1, 1), (1, 2))}
    assert len({tuple(answers) for answers in texts.values()}) == 4
    assert gathered(seed=0, step=2)[1] == texts[0, 2]


def test_the_reward_function_sees_texts_without_control_tokens(gathered):
    seen = []

    def reward(prompts, responses):
        seen.append((list(prompts), list(responses)))
        return length(prompts, responses)

    _, texts = gathered(reward)
    assert seen == [(PROMPTS * 8, texts)] and not any("<|" in text for text in texts)


# The update


def shifted(experience, policy_noise=0.3):
    """The same batch, as if a policy a little away from today's had sampled it: the ratios are not 1."""
    noise = policy_noise * torch.randn(experience.sequences.logp.shape, generator=torch.Generator().manual_seed(0))
    sequences = experience.sequences
    logp = (sequences.logp + noise).masked_fill(~sequences.mask, 0.0)
    values = (experience.values + noise).masked_fill(~sequences.mask, 0.0)
    return experience._replace(sequences=sequences._replace(logp=logp), values=values)


def slow_update(policy, critic, experience, rows, clip, value_clip, temperature):
    """Both losses, a token at a time, as a sum over tokens / their number; and what a record says of them."""
    policy_loss, value_loss, outside, moved, count = 0.0, 0.0, 0, 0.0, 0
    for row in rows:
        tokens = experience.sequences.tokens[row, : experience.sequences.lengths[row]]
        logits = policy(input_ids=tokens[None]).logits[0] / temperature
        values = critic(tokens[None])[0]
        for t in experience.sequences.mask[row].nonzero().flatten().tolist():
            logp = logits[t].log_softmax(-1)[tokens[t + 1]]
            ratio = torch.exp(logp - experience.sequences.logp[row, t])
            A, R, V_old = (grid[row, t] for grid in (experience.advantages, experience.returns, experience.values))
            policy_loss = policy_loss - torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)
            near = V_old + (values[t] - V_old).clamp(-value_clip, value_clip)
            value_loss = value_loss + 0.5 * torch.maximum((values[t] - R) ** 2, (near - R) ** 2)
            outside += abs(ratio.item() - 1) > clip
            moved += ratio.item() - 1 - math.log(ratio.item())
            count += 1
    return policy_loss / count, value_loss / count, outside / count, moved / count


@pytest.mark.parametrize("group_tokens", [1, 60, 10**6])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_accumulated_gradient_is_that_of_one_loss_over_the_minibatch(
    gathered, taught, critic, monkeypatch, group_tokens, temperature
):
    experience = shifted(gathered(critic=critic, temperature=temperature)[0])
    rows = torch.tensor([3, 17, 0, 38, 21, 9, 30])
    policy, slow_policy, slow_critic = taught(), taught(), deepcopy(critic)
    monkeypatch.setattr(scoring, "GROUP_TOKENS", group_tokens)
    config = PPOConfig(**{**SMALL, "clip": 0.25, "value_clip": 0.15, "temperature": temperature})
    update = accumulate(policy, critic, experience, rows, config, "here")
    losses = slow_update(slow_policy, slow_critic, experience, rows.tolist(), 0.25, 0.15, temperature)
    (losses[0] + losses[1]).backward()
    assert 0.1 < losses[2] < 0.9  # some ratios are clipped
    names = ("policy_loss", "value_loss", "clip_fraction", "approx_kl")
    assert list(update) == list(names)
    assert list(update.values()) == pytest.approx([torch.as_tensor(size).item() for size in losses], abs=1e-5)
    for fast, slow in ((policy, slow_policy), (critic, slow_critic)):
        for (name, got), wanted in zip(fast.named_parameters(), slow.parameters(), strict=True):
            assert_close(got.grad, wanted.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_loss_that_is_not_finite_is_named(gathered, taught, critic):
    experience, _ = gathered(critic=critic)
    experience.returns[:] = math.nan
    with pytest.raises(FloatingPointError, match=r"^ppo, step 4: the loss is nan"):
        accumulate(taught(), critic, experience, torch.arange(4), PPOConfig(), "ppo, step 4")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_at_the_first_update_the_policy_is_the_one_that_sampled(start, temperature):
    """The ratio is 1 and the KL to the reference, a copy, is 0: the loss is the mean of whitened advantages."""
    record = next(start(epochs=1, minibatch_size=16, temperature=temperature))
    assert record.clip_fraction == 0.0
    assert record.approx_kl == pytest.approx(0.0, abs=1e-8)
    assert record.policy_loss == pytest.approx(0.0, abs=1e-4)
    assert record.kl == pytest.approx(0.0, abs=1e-4)
    assert next(start(epochs=4, learning_rate=0.03)).approx_kl > 1e-3  # later minibatches have moved


@pytest.mark.parametrize("noisy", ["policy", "critic"])
def test_dropout_is_off(start, tiny_model, noisy):
    """A run with a dropout of one half in the model's config is the run without."""

    def run(dropout):
        models = {"policy": tiny_model(), "critic": ValueModel.from_policy(tiny_model())}
        other = tiny_model(attention_dropout=dropout)
        models[noisy] = (other if noisy == "policy" else ValueModel.from_policy(other)).train()
        return list(start(steps=2, **models))

    records = run(0.5)
    assert records[0].kl == pytest.approx(0.0, abs=1e-4)
    assert plain(records) == plain(run(0.0))


def test_dropout_is_off_in_a_reference_that_is_given(start, tiny_model):
    ref = tiny_model(attention_dropout=0.5).train()
    assert next(start(policy=tiny_model(), ref=ref)).kl == pytest.approx(0.0, abs=1e-4)


def updates(monkeypatch, run):
    """The rows of every update of a run's first step."""
    found, real = [], ppo.accumulate
    monkeypatch.setattr(ppo, "accumulate", lambda *args: found.append(args[3].tolist()) or real(*args))
    next(run)
    return found


def test_each_epoch_takes_every_answer_once_in_minibatches_of_a_new_order(start, monkeypatch):
    found = updates(monkeypatch, start(epochs=3, minibatch_size=6))
    assert [len(rows) for rows in found] == [6, 6, 4] * 3
    epochs = [[row for rows in found[i : i + 3] for row in rows] for i in (0, 3, 6)]
    assert all(sorted(rows) == list(range(16)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_is_left_once_the_policy_has_moved_too_far_from_it(start, monkeypatch):
    """The first update starts at a KL of 0; the second sees what the first has done and is the last."""
    whole = {"epochs": 4, "minibatch_size": 16, "learning_rate": 0.03}
    assert len(updates(monkeypatch, start(target_kl=1e-5, **whole))) == 2
    assert len(updates(monkeypatch, start(target_kl=1e3, **whole))) == 4
    assert len(updates(monkeypatch, start(**whole))) == 4


# The loop


@pytest.mark.parametrize("reward", [brevity, says_token])
def test_the_policy_learns_what_is_rewarded(start, reward):
    run = start(reward, steps=6, batch_size=32, learning_rate=0.01, critic_learning_rate=0.01, unfinished_score=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ppo, step .* to all 32 answers")  # it may learn it perfectly
        proxies = [record.proxy for record in run]
    assert proxies[-1] > proxies[0] + 0.3
    assert (proxies[-1] + proxies[-2]) > (proxies[0] + proxies[1])


def test_the_kl_penalty_holds_the_policy_near_the_reference(start):
    options = {"steps": 5, "batch_size": 32, "learning_rate": 0.01, "unfinished_score": None}
    free, held = (list(start(says_token, kl_coef=kl_coef, **options))[-1].kl for kl_coef in (0.0, 2.0))
    assert held < 0.5 * free


def test_what_is_not_the_policy_is_not_trained(start, taught, tiny_model, tokenizer):
    policy, ref = taught(), tiny_model(seed=5)
    judge = RewardModel.from_policy(tiny_model(seed=6), tokenizer)
    value = ValueModel.from_reward_model(judge)
    before = [weights(model) for model in (ref, judge, value, policy)]
    for _ in start(judge.score, policy=policy, ref=ref, critic=value):
        pass
    after = [weights(model) for model in (ref, judge, value, policy)]
    assert_close(after[:2], before[:2], rtol=0, atol=0)
    assert all(parameter.grad is None for model in (ref, judge) for parameter in model.parameters())
    for changed in (2, 3):
        assert all((after[changed][name] != weight).any() for name, weight in before[changed].items())


def test_the_reference_is_the_policy_as_it_comes(start, taught):
    first, second, _ = start(policy=taught(), learning_rate=0.01)
    assert first.kl == pytest.approx(0.0, abs=1e-4) and second.kl > 0.01  # it stays where the policy was
    assert plain(start(ref=taught(), learning_rate=0.01))[:2] == plain([first, second])


def test_the_record_of_a_step_says_what_was_sampled(start, monkeypatch):
    kept, real = [], ppo.collect
    monkeypatch.setattr(ppo, "collect", lambda *args, **options: kept.append(real(*args, **options)) or kept[-1])

    def gold(prompts, responses):
        return [2.0 * len(response) for response in responses]

    record = next(start(gold_fn=gold))
    (experience, texts), *_ = kept
    counts = experience.sequences.mask.sum(1)
    assert record.proxy == pytest.approx(sum(map(len, texts)) / 16)
    assert record.gold == pytest.approx(2 * record.proxy)
    assert record.length == pytest.approx(counts.sum().item() / 16)
    assert record.entropy == pytest.approx(-experience.sequences.logp.sum().item() / counts.sum().item())
    assert record.finished == pytest.approx(sum(experience.finished.tolist()) / 16) and 0 < record.finished < 1
    assert record.kl_coef == 0.05
    assert [sample.response for sample in record.samples] == texts[:3]
    assert [sample.proxy for sample in record.samples] == length(None, texts[:3])
    assert [sample.gold for sample in record.samples] == gold(None, texts[:3])
    assert {sample.prompt for sample in record.samples} <= set(PROMPTS)


def test_records_are_plain_numbers_and_gold_is_unknown_without_a_function(start):
    for record in start():
        assert math.isnan(record.gold) and all(math.isnan(sample.gold) for sample in record.samples)
        assert type(record.step) is type(record.steps) is int
        assert all(type(value) is float for value in record[2:-1])
        assert all(type(value) is float for sample in record.samples for value in sample[2:])
        assert all(math.isfinite(value) for value in record._replace(gold=0.0)[:-1])


def recorded(returns, values):
    """The record of a batch that holds one answer with these returns and values."""
    grid = torch.tensor([[*returns, 0.0]]), torch.tensor([[*values, 9.0]])
    mask = torch.tensor([[True] * len(returns) + [False]])
    T = len(returns) + 1
    sequences = Sequences(torch.zeros(1, T + 1, dtype=torch.long), mask, torch.zeros(1, T), torch.tensor([T]))
    experience = Experience(sequences, torch.ones(1), torch.zeros(1), grid[1], grid[0], grid[0], torch.ones(1))
    updates = [{"policy_loss": 1.0, "value_loss": 2.0, "clip_fraction": 0.5, "approx_kl": 0.1, "grad_norm": 3.0}]
    updates.append({name: size + 1 for name, size in updates[0].items()})
    return ppo._record(1, PPOConfig(), experience, updates, 0.05, ["p"], ["x"], None, 0.1)


def test_explained_variance_by_hand():
    """Returns 1, 2, 3, 4 have a variance of 5/3; errors 0, 0, 0, 1 one of 1/4: 1 - 3/20 = .85."""
    assert recorded([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 3.0]).explained_variance == pytest.approx(0.85)
    assert recorded([1.0, 2.0, 3.0, 4.0], [6.0, 7.0, 8.0, 9.0]).explained_variance == pytest.approx(1.0)
    assert recorded([1.0, 2.0, 3.0, 4.0], [0.0] * 4).explained_variance == pytest.approx(0.0)
    assert recorded([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]).explained_variance == pytest.approx(-3.0)  # errors -2, 0, 2
    assert math.isnan(recorded([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]).explained_variance)


def test_updates_are_averaged_over_the_step():
    record = recorded([1.0, 2.0], [0.0, 0.0])
    assert (record.policy_loss, record.value_loss, record.grad_norm) == (1.5, 2.5, 3.5)
    assert (record.clip_fraction, record.approx_kl) == pytest.approx((1.0, 0.6))


@pytest.mark.parametrize(
    ("kl", "wanted"),
    [
        (6.0, 0.1),
        (6.6, 0.1 * (1 + 0.1 * 64 / 1000)),
        (5.4, 0.1 * (1 - 0.1 * 64 / 1000)),
        (60.0, 0.1 * (1 + 0.2 * 64 / 1000)),  # the error is cut at .2
        (-6.0, 0.1 * (1 - 0.2 * 64 / 1000)),
    ],
)
def test_the_adaptive_kl_coefficient_by_hand(kl, wanted):
    config = PPOConfig(kl_target=6.0, kl_horizon=1000, batch_size=64)
    assert adapted_kl_coef(0.1, kl, config) == pytest.approx(wanted)
    assert adapted_kl_coef(0.1, kl, PPOConfig()) == 0.1


def test_the_kl_coefficient_follows_the_kl_of_the_step_before(start):
    """The first KL is 0, so the error is cut at -.2, and 16 answers of a horizon of 32 halve it: a tenth less."""
    first, second, third = start(kl_target=1e-3, kl_horizon=32, kl_coef=0.4, learning_rate=0.01)
    assert (first.kl_coef, second.kl_coef) == pytest.approx((0.4, 0.36))
    assert second.kl > 0.01 and third.kl_coef == pytest.approx(0.36 * 1.1)


def test_the_rate_warms_up_and_falls_on_a_line(start, monkeypatch):
    """Ten steps, two of them to warm up: 1/2, then 9/10, 8/10 and so on down to 1/10. The critic has its own."""
    rates, real = [], ppo.descend

    def watch(optimizer, *args, **options):
        rates.append(optimizer.param_groups[0]["lr"])
        return real(optimizer, *args, **options)

    monkeypatch.setattr(ppo, "descend", watch)
    settings = {"steps": 10, "warmup": 0.2, "batch_size": 8, "minibatch_size": 8, "epochs": 1, "max_new_tokens": 3}
    records = list(start(learning_rate=1e-4, critic_learning_rate=3e-4, **settings))
    shares = [0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert rates[::2] == pytest.approx([1e-4 * share for share in shares])
    assert rates[1::2] == pytest.approx([3e-4 * share for share in shares])
    assert [record.learning_rate for record in records] == pytest.approx(rates[::2])


def test_the_same_seed_gives_the_same_run(start):
    assert plain(start(seed=0, steps=2)) == plain(start(seed=0, steps=2))
    assert next(start(seed=0)).entropy != next(start(seed=1)).entropy


@pytest.mark.parametrize("options", [{"use_cache": False}, {"tie_word_embeddings": False}])
def test_other_models_train_alike(start, tiny_model, options):
    records = list(start(policy=tiny_model(**options)))
    assert records[0].kl == pytest.approx(0.0, abs=1e-4) and len(records) == 3


def test_a_tokenizer_without_a_pad_token_will_do(taught, tokenizer):
    padless = deepcopy(tokenizer)
    padless.pad_token = None
    with_pad, without = (next(train(taught(), length, PROMPTS, tokenizer=t, **SMALL)) for t in (tokenizer, padless))
    assert plain([without]) == plain([with_pad])


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda p, r: [math.nan] * len(r), r"^ppo, step 2: the reward function gave nan for the answer .*16 of 16"),
        (lambda p, r: [1.0], r"^ppo, step 2: the reward function must return one score an answer, shape \(16,\), got"),
        (lambda p, r: torch.rand(len(r), 1), r"^ppo, step 2: .* got shape \(16, 1\)$"),
    ],
    ids=["nan", "one number", "a column"],
)
def test_a_reward_that_is_no_reward_is_named_with_its_step(start, taught, reward, message):
    policy, calls = taught(), []
    run = start(lambda p, r: length(p, r) if not calls else reward(p, r), policy=policy)
    next(run)
    calls.append(1)
    before = weights(policy)
    with pytest.raises(ValueError, match=message):
        next(run)
    assert_close(weights(policy), before, rtol=0, atol=0)


def test_a_constant_reward_is_one_warning_a_step(start):
    run = start(lambda prompts, responses: [0.5] * len(responses))
    for step in (1, 2):
        with pytest.warns(UserWarning) as told:
            assert next(run).proxy == 0.5
        assert [str(warning.message) for warning in told] == [
            f"ppo, step {step}: the reward function gave 0.5 to all 16 answers: there is nothing to learn"
        ]


def test_a_gold_score_that_is_none_is_named(start):
    with pytest.raises(ValueError, match=r"^ppo, step 1, gold: the reward function gave inf"):
        next(start(gold_fn=lambda prompts, responses: [math.inf] * len(responses)))


def test_no_prompts_and_unknown_settings_are_refused(start):
    with pytest.raises(ValueError, match=r"^no prompts to sample answers to$"):
        next(start(prompts=[]))
    with pytest.raises(TypeError, match="unexpected keyword argument 'kl_coeff'"):
        next(start(kl_coeff=0.1))


def usable(policy, tokenizer):
    assert not policy.training
    assert all(torch.isfinite(parameter).all() for parameter in policy.parameters())
    assert len(answer(policy, tokenizer, ["Why?"], max_new_tokens=3)) == 1


def test_stopping_half_way_leaves_a_usable_policy(start, taught, tokenizer):
    policy = taught().train()
    run = start(policy=policy, learning_rate=0.01)
    before = weights(policy)
    next(run)
    usable(policy, tokenizer)
    run.close()
    usable(policy, tokenizer)
    assert any((weight != before[name]).any() for name, weight in weights(policy).items())


def test_an_interrupt_inside_a_step_leaves_a_usable_policy(start, taught, tokenizer):
    policy, calls = taught(), []

    def stop_button(prompts, responses):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return length(prompts, responses)

    run = start(stop_button, policy=policy)
    next(run)
    with pytest.raises(KeyboardInterrupt):
        next(run)
    usable(policy, tokenizer)


def test_answers_of_one_token_can_be_learned_from(start):
    """One state and one action each."""
    record = next(start(max_new_tokens=1))
    assert record.length == 1.0 and math.isfinite(record.policy_loss) and record.grad_norm > 0
