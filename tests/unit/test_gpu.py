"""What only a GPU can show: that sampling and every loop do on it what they do on the CPU."""

from copy import deepcopy

import pytest
import torch

from picollm_lite.kernels import rollout as module
from picollm_lite.kernels.advantages import gae
from picollm_lite.kernels.logprobs import entropy, kl_exact
from picollm_lite.kernels.rollout import greedy_rollout, rollout
from picollm_lite.kernels.static_llama import StaticLlama
from picollm_lite.models import RewardModel, ValueModel, mixed_precision
from picollm_lite.scoring import response_logprobs
from picollm_lite.stages import dpo, online_dpo, ppo, reward, sft
from picollm_lite.stages.group_policy import grpo

from .loops import brevity, plain
from .test_rollout import OPTIONS, PROMPTS, ROOM, gpt2, llama, llama_without_cache, qwen2

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
MODELS = [llama, qwen2, llama_without_cache, gpt2]
SAMPLING = {"steps": 3, "batch_size": 4, "max_new_tokens": 12, "learning_rate": 1e-3}


def same_rollout(gpu, cpu):
    for name in ("tokens", "attention_mask", "response_mask", "finished"):
        assert torch.equal(getattr(gpu, name).cpu(), getattr(cpu, name)), name
    torch.testing.assert_close(gpu.logp.cpu(), cpu.logp, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("prompts", "changes"), ROOM)
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_a_seed_samples_what_it_samples_on_the_cpu(make, prompts, changes):
    options = OPTIONS | changes
    same_rollout(rollout(make().cuda(), prompts, seed=5, **options), rollout(make(), prompts, seed=5, **options))
    same_rollout(greedy_rollout(make().cuda(), prompts, **options), greedy_rollout(make(), prompts, **options))


def test_replayed_steps_see_new_weights_new_prompts_and_new_lengths():
    """A recording is of one call: nothing of it may live on in the next."""
    model = llama().cuda()
    for seed, length in enumerate((12, 5, 30)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05)
        options = OPTIONS | {"max_new_tokens": length}
        prompts = PROMPTS[seed:] * (seed + 1)
        same_rollout(
            rollout(model, prompts, seed=seed, **options), rollout(deepcopy(model).cpu(), prompts, seed=seed, **options)
        )


def test_steps_are_replayed_not_run(monkeypatch):
    runs, step = [], StaticLlama.step
    monkeypatch.setattr(StaticLlama, "step", lambda engine, token: runs.append(1) or step(engine, token))
    out = rollout(llama().cuda(), PROMPTS, seed=5, **OPTIONS | {"max_new_tokens": 30})
    assert out.response_mask.shape[1] > 2 * module.CHECK_EVERY
    assert len(runs) == 2  # once to warm up, once to record


def test_sampling_leaves_no_memory_behind():
    model, taken = llama().cuda(), []
    for _ in range(6):
        rollout(model, PROMPTS, seed=5, **OPTIONS)
        torch.cuda.synchronize()
        taken.append(torch.cuda.memory_allocated())
    assert len(set(taken[2:])) == 1


def loop(name, policy, tokenizer, pairs, **changes):
    questions = ["Why?", "What is a token?", "Be brief."]
    sampling, settings = {"tokenizer": tokenizer, **SAMPLING, **changes}, {"batch_size": 2, **changes}
    if name == "sft":
        return sft.train(policy, [pair.chosen for pair in pairs], pad_token_id=tokenizer.pad_token_id, **settings)
    if name == "reward":
        return reward.train(RewardModel.from_policy(policy, tokenizer), pairs, val=pairs, **settings)
    if name == "dpo":
        return dpo.train(policy, pairs, tokenizer=tokenizer, ref=deepcopy(policy), **settings)
    if name == "ppo":
        more = {"critic": ValueModel.from_policy(policy), "ref": deepcopy(policy), "minibatch_size": 2, "epochs": 2}
        return ppo.train(policy, brevity, questions, **more, **sampling)
    if name == "grpo":
        return grpo(policy, brevity, questions, ref=deepcopy(policy), **sampling)
    return online_dpo.train(policy, brevity, questions, ref=deepcopy(policy), **sampling)


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo", "grpo", "online_dpo"])
def test_a_loop_takes_the_same_steps(name, taught, tokenizer, pairs):
    there = list(loop(name, taught().cuda(), tokenizer, pairs))
    here = list(loop(name, taught(), tokenizer, pairs))
    assert len(there) == len(here) >= 3
    for ours, theirs in zip(there, here, strict=True):
        for field, value in theirs._asdict().items():
            # On the first pairs of DPO the margin is 0, up to rounding, and so either side of it.
            if isinstance(value, float) and (field, ours.step) != ("accuracy", 1):
                assert getattr(ours, field) == pytest.approx(value, abs=2e-3, nan_ok=True), field


@pytest.mark.parametrize(
    ("name", "changes"), [("sft", {}), ("reward", {"off_prompt_weight": 0.0}), ("dpo", {"learning_rate": 1e-3})]
)
def test_a_run_inside_one_bf16_context_learns_what_fp32_does(name, changes, taught, tokenizer, pairs):
    """autocast by itself would go on computing with the bf16 copies of the weights that it met first."""
    losses = {}
    for bf16 in (False, True):
        model = taught().cuda()
        with mixed_precision(model, bf16=bf16):
            records = loop(name, model, tokenizer, pairs, epochs=8, **changes)
            losses[bf16] = torch.tensor([record.loss for record in records])
    assert losses[False][-3:].mean() < 0.8 * losses[False][:3].mean()
    torch.testing.assert_close(losses[True], losses[False], rtol=0.05, atol=0.05)


def test_in_bf16_scores_values_advantages_entropy_and_kl_keep_their_digits(tiny_model, tokenizer, pairs):
    """A head in bf16 would put them on a grid: between 1 and 2 every 1/128."""
    reward_model, logits = RewardModel.from_policy(tiny_model().cuda(), tokenizer), torch.randn(2, 2, 3, 50).cuda()
    rewards, values, mask = torch.randn(3, 8).cuda(), torch.randn(3, 8).cuda(), torch.ones(3, 8, dtype=bool).cuda()
    critic, tokens = ValueModel.from_reward_model(reward_model), torch.tensor([pairs[0].chosen.tokens]).cuda()
    exact = entropy(logits[0]), kl_exact(*logits), *gae(rewards, values, mask)
    with mixed_precision(critic, bf16=True):
        for numbers in (reward_model([pair.chosen for pair in pairs]), critic(tokens)):
            assert numbers.dtype == torch.float32 and (numbers != numbers.bfloat16().float()).any()
        rounded = entropy(logits[0]), kl_exact(*logits), *gae(rewards, values, mask)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0)


def test_dropout_draws_the_same_numbers_when_activations_are_computed_again(tiny_model, pairs):
    sides, results = [side for pair in pairs for side in pair], []
    for recompute in (False, True):
        model = tiny_model(attention_dropout=0.5).cuda().train()
        model.gradient_checkpointing = recompute
        torch.manual_seed(0)
        total = response_logprobs(model, sides, 0).total
        total.sum().backward()
        results.append((total.detach(), model.model.embed_tokens.weight.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def test_bf16_trains_in_bf16(taught, tokenizer, pairs):
    policy = taught().cuda()
    with mixed_precision(policy, bf16=True):
        records = list(loop("dpo", policy, tokenizer, pairs))
        answers = list(loop("ppo", policy, tokenizer, pairs))
    assert records[0].loss == pytest.approx(0.6931, abs=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in policy.parameters())
    assert plain(answers) and all(abs(record.kl) < 50 for record in answers)
