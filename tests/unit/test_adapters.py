"""LoRA by hand on one weight; every loop against a reference that is a real copy; what is shared and what is saved."""

import importlib.util
import math
import sys
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from picollm_lite import adapters, models, scoring
from picollm_lite.adapters import add_lora, merged, reference, shared_copy
from picollm_lite.chat import encode_prompt, padding_id, user
from picollm_lite.data import collate
from picollm_lite.kernels import losses
from picollm_lite.kernels.rollout import rollout
from picollm_lite.models import RewardModel, ValueModel, interpolate, load_policy
from picollm_lite.scoring import left_align, response_logprobs, sequence_logprobs
from picollm_lite.stages import dpo, group_policy, online_dpo, ppo, rejection, reward, sft
from picollm_lite.stages.resume import Resume

from . import standins
from .loops import brevity, weights

PROMPTS = ["What is a token?", "Why?", "Be brief. What is a token?", "Thanks."]
SAMPLED = {"steps": 2, "batch_size": 4, "max_new_tokens": 5, "learning_rate": 0.01}
LOOPS = {
    "ppo": (ppo.train, {"minibatch_size": 2}),
    "rloo": (group_policy.rloo, {"group_size": 2}),
    "grpo": (group_policy.grpo, {"group_size": 2, "minibatch_size": 2}),
    "online_dpo": (online_dpo.train, {"group_size": 2, "move_ref_every": 1}),
    "rejection": (rejection.train, {"group_size": 2, "minibatch_size": 1}),
}
TIED = [("embed_tokens", "model.embed_tokens: name other layers"), ("lm_head", "lm_head: name other layers")]


@pytest.fixture
def examples(pairs):
    return [side for pair in pairs for side in pair]


@pytest.fixture
def moved(taught):
    """A LoRA policy after some training: its adapters are not zero any more."""

    def make(model=None, **options):
        policy = add_lora(taught() if model is None else model, **options)
        numbers = torch.Generator().manual_seed(1)
        for weight in policy.parameters():
            weight.data += 0.1 * torch.randn(weight.shape, generator=numbers) * weight.requires_grad
        return policy

    return make


@pytest.fixture
def run(tokenizer, pairs):
    """A loop on a policy: its records."""

    def of(loop, policy, **options):
        if loop == "dpo":
            settings = {"epochs": 2, "batch_size": 3, "learning_rate": 0.01, "prompts": PROMPTS}
            return list(dpo.train(policy, pairs, tokenizer=tokenizer, **settings, **options))
        train, settings = LOOPS[loop]
        return list(train(policy, brevity, PROMPTS, tokenizer=tokenizer, **SAMPLED, **settings, **options))

    return of


def logps(policy, examples, tokenizer):
    with torch.no_grad():
        return response_logprobs(policy, examples, tokenizer.pad_token_id).total


def changed_though_frozen(model, before):
    frozen = {name: weight for name, weight in model.named_parameters() if not weight.requires_grad}
    assert len(frozen) > 10
    return [name for name, weight in frozen.items() if not weight.equal(before[name.replace(".base_layer", "")])]


def sampled(policy, tokenizer, prompts=PROMPTS):
    tokens = [encode_prompt(tokenizer, user(prompt)) for prompt in prompts]
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": padding_id(tokenizer)}
    return left_align(rollout(policy, tokens, max_new_tokens=6, seed=0, **ends))


def test_one_weight_by_hand(taught):
    """Rank 2 and alpha 6 scale BA by 3. With B[5, 1] = 2 and A[1, 4] = 0.5 alone, W[5, 4] grows by 3 * 2 * 0.5 = 3."""
    plain, policy = taught(), add_lora(taught(), rank=2, alpha=6, targets=["q_proj"])
    layer = policy.model.layers[1].self_attn.q_proj
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert A.shape == (2, 16) and B.shape == (16, 2)
    A.data.zero_()[1, 4] = 0.5
    B.data[5, 1] = 2.0
    before, after = weights(plain), weights(merged(policy))
    assert list(after) == list(before)
    changed = {name: after[name] - before[name] for name in after if not after[name].equal(before[name])}
    (difference,) = changed.values()
    assert list(changed) == ["model.layers.1.self_attn.q_proj.weight"]
    assert difference.nonzero().tolist() == [[5, 4]]
    assert difference[5, 4].item() == pytest.approx(3.0, abs=1e-6)


def test_nothing_changes_before_the_first_step(taught, examples, tokenizer):
    before, after = (logps(policy, examples, tokenizer) for policy in (taught(), add_lora(taught())))
    assert_close(after, before, rtol=0, atol=1e-5)


def test_only_the_small_matrices_train(taught):
    """Two layers, each with q and o (16 to 16), k and v (16 to 8), gate and up (16 to 32), down (32 to 16)."""
    policy = add_lora(taught(), rank=3)
    small = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    assert small == 2 * 3 * (2 * (16 + 16) + 2 * (16 + 8) + 2 * (16 + 32) + (32 + 16))
    assert changed_though_frozen(policy, weights(taught())) == []


def test_a_policy_in_half_precision_learns_in_full(taught, run):
    policy = add_lora(taught().bfloat16())
    run("ppo", policy, ref=reference(policy))
    assert {(name.find("lora_") > 0, weight.dtype) for name, weight in policy.named_parameters()} == {
        (True, torch.float32),
        (False, torch.bfloat16),
    }
    assert {weight.dtype for weight in merged(policy).parameters()} == {torch.bfloat16}


def test_the_seed_decides_and_nothing_else_is_drawn(taught):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (weights(add_lora(taught(), seed=seed)) for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(before)
    assert all(first[name].equal(again[name]) for name in first)
    differ = [name for name in first if not first[name].equal(other[name])]
    assert differ == [name for name in first if "lora_A" in name]


def test_the_reference_is_the_base_without_a_second_copy(taught, moved, examples, tokenizer):
    policy = moved()
    ref = reference(policy)
    assert logps(ref, examples, tokenizer).equal(logps(taught(), examples, tokenizer))
    assert not logps(policy, examples, tokenizer).allclose(logps(ref, examples, tokenizer), atol=0.1)
    held = {weight.data_ptr() for weight in policy.parameters()}
    assert list(weights(ref)) == list(weights(taught())) and {w.data_ptr() for w in ref.parameters()} <= held
    policy.disable_adapters()
    assert_close(logps(policy, examples, tokenizer), logps(ref, examples, tokenizer), rtol=0, atol=1e-5)


def test_without_adapters_there_is_no_reference(taught):
    with pytest.raises(ValueError, match="expected a policy with adapters, got one without"):
        reference(taught())


@pytest.mark.parametrize("loop", ["dpo", *LOOPS])
def test_a_loop_gives_what_it_gives_with_a_copy_of_the_base(loop, run, taught):
    policy, other = add_lora(taught()), add_lora(taught())
    records, others = run(loop, policy, ref=reference(policy)), run(loop, other, ref=taught())
    assert repr(records) == repr(others)
    assert all(weight.equal(other.get_parameter(name)) for name, weight in policy.named_parameters())
    assert changed_though_frozen(policy, weights(taught())) == []
    B = [weight for name, weight in policy.named_parameters() if "lora_B" in name]
    assert any(weight.any() for weight in B)
    if loop == "dpo":
        assert records[0].loss == pytest.approx(math.log(2), abs=1e-5)
    else:
        assert records[0].kl == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("loop", ["dpo", *LOOPS])
def test_the_default_reference_is_the_policy_as_it_comes(loop, run, moved):
    policy, other = moved(), moved()
    assert repr(run(loop, policy)) == repr(run(loop, other, ref=deepcopy(other)))


def test_the_default_reference_has_no_second_copy_of_what_is_frozen(run, moved, monkeypatch):
    asked, original = [], dpo.reference_logprobs
    monkeypatch.setattr(dpo, "reference_logprobs", lambda ref, *rest: asked.append(ref) or original(ref, *rest))
    run("dpo", policy := moved())
    held = {weight.data_ptr(): weight.requires_grad for weight in policy.parameters()}
    shared = [held[weight.data_ptr()] for weight in asked[0].parameters() if weight.data_ptr() in held]
    assert len(shared) == sum(not trains for trains in held.values()) and not any(shared)


def test_sft_trains_the_adapters_alone(taught, examples, tokenizer):
    policy = add_lora(taught())
    options = {"pad_token_id": tokenizer.pad_token_id, "batch_size": 4, "weight_decay": 0.1}
    first, *_, last = sft.train(policy, examples, epochs=4, learning_rate=0.02, **options)
    assert last.loss < first.loss
    assert changed_though_frozen(policy, weights(taught())) == []


def test_a_reward_model_trains_its_adapters_and_its_head(taught, pairs, tokenizer):
    rewards = RewardModel.from_policy(taught(), tokenizer)
    before = weights(rewards.model)
    add_lora(rewards.model)
    *_, last = reward.train(rewards, pairs, epochs=8, batch_size=5, learning_rate=0.01)
    assert last.accuracy == 1.0
    after = dict(rewards.model.named_parameters())
    assert not after["score.weight"].equal(before["score.weight"])
    assert changed_though_frozen(rewards.model, before) == []
    assert not any("score" in name and "lora" in name for name in after)
    answer = [["Why?"], ["It splits words."]]
    whole = RewardModel(merged(rewards.model), tokenizer)
    assert_close(whole.score(*answer), rewards.score(*answer), rtol=0, atol=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"], ["down_proj"], ["embed_tokens"], ["lm_head"]], ids=str)
def test_sampled_logps_are_those_of_scoring_and_of_the_merged_model(moved, tiny_model, tokenizer, targets):
    """Whichever layers have adapters: none of our own forward passes may read past them."""
    policy = moved(tiny_model(tie_word_embeddings=False), targets=targets)
    sequences = sampled(policy, tokenizer)
    base = sequence_logprobs(reference(policy), sequences)
    for model in (policy, merged(policy)):
        assert_close(sequence_logprobs(model, sequences), sequences.logp, rtol=0, atol=1e-5)
    assert not base.allclose(sequences.logp, atol=1e-2)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "picollm"])
def test_other_architectures(moved, tmp_path, name):
    """Biases; layers that store W transposed; a model with code of its own, without a trunk and a KV cache."""
    base, tokenizer = load_policy(standins.write[name](tmp_path), trust_remote_code=name == "picollm")
    policy = moved(deepcopy(base))
    sequences = sampled(policy, tokenizer, ["What is a token?", "Why?"])
    assert_close(sequence_logprobs(policy, sequences), sequences.logp, rtol=0, atol=1e-5)
    assert_close(sequence_logprobs(merged(policy), sequences), sequences.logp, rtol=0, atol=1e-5)
    ref_logp = sequence_logprobs(reference(policy), sequences)
    assert ref_logp.equal(sequence_logprobs(base, sequences)) and not ref_logp.allclose(sequences.logp, atol=1e-2)
    critic, held = ValueModel.from_policy(policy), {id(weight) for weight in policy.parameters()}
    assert all((id(weight) in held) != ("lora_" in at) for at, weight in critic.trunk.named_parameters())


def test_a_saved_policy_opens_anywhere_and_is_what_it_was(moved, tokenizer, tmp_path, examples):
    policy = moved()
    expected = logps(policy, examples, tokenizer)
    models.save(policy, tokenizer, tmp_path / "policy")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
    assert list(weights(opened)) == list(weights(reference(policy)))
    assert_close(logps(opened, examples, tokenizer), expected, rtol=0, atol=0.1)  # nats an answer: fp16 on disk
    assert not (tmp_path / "policy" / "adapter_config.json").exists()
    assert logps(policy, examples, tokenizer).equal(expected)


def test_a_merged_model_is_one_of_its_own_and_trains_whole(moved, taught):
    policy = moved()
    model = merged(policy)
    assert all(weight.requires_grad for weight in model.parameters())
    assert not {w.data_ptr() for w in model.parameters()} & {w.data_ptr() for w in policy.parameters()}
    assert merged(model) is model
    assert not merged(add_lora(taught())).training


def test_models_made_from_a_lora_policy(moved, tokenizer, pairs):
    """A reward model from what the adapters make of the weights; a critic on the same frozen weights."""
    policy, tokens = moved(), torch.tensor([[5, 6, 7, 8]])
    rewards = RewardModel.from_policy(policy, tokenizer)
    chosen = [pair.chosen for pair in pairs]
    assert rewards(chosen).equal(RewardModel.from_policy(merged(policy), tokenizer)(chosen))
    critic = ValueModel.from_policy(policy)
    critic.head.weight.data.fill_(1.0)
    states = policy.model(input_ids=tokens).last_hidden_state
    assert_close(critic(tokens), states.sum(-1), rtol=0, atol=1e-5)
    own = {name for name, weight in critic.trunk.named_parameters() if weight is not policy.model.get_parameter(name)}
    assert own == {name for name, weight in critic.trunk.named_parameters() if "lora_" in name}


def test_a_model_without_frozen_weights_is_copied_whole(taught):
    model = taught()
    assert not {w.data_ptr() for w in shared_copy(model).parameters()} & {w.data_ptr() for w in model.parameters()}


def test_halfway_is_halfway_in_the_weights(moved, taught):
    """Half of B times half of A would be a quarter of the way."""
    policy, base = moved(), taught()
    middle, end = weights(interpolate(base, policy, 0.5)), weights(merged(policy))
    for name, weight in base.named_parameters():
        assert_close(middle[name], (weight.detach() + end[name]) / 2)


def test_a_lora_run_that_was_cut_off_goes_on_and_keeps_no_frozen_weight(run, taught, tokenizer, tmp_path):
    state, whole, policy = Resume(tmp_path / "state", every=1), add_lora(taught()), add_lora(taught())
    records = run("ppo", whole, ref=reference(whole))
    train, settings = LOOPS["ppo"]
    options = {"tokenizer": tokenizer, "ref": reference(policy), "resume": state, **SAMPLED, **settings}
    next(cut_off := train(policy, brevity, PROMPTS, **options))
    cut_off.close()
    with safe_open(tmp_path / "state", "pt") as file:
        kept = {name for name in file.keys() if name.startswith(("policy/", "critic/"))}  # noqa: SIM118
    assert len(kept) == 2 * 28 + 2 and all("lora_" in name or "critic/head" in name for name in kept)
    again = add_lora(taught())
    assert repr(run("ppo", again, ref=reference(again), resume=state)) == repr(records)
    assert all(weight.equal(again.get_parameter(name)) for name, weight in whole.named_parameters())


def sft_loss(policy, pairs, tokenizer):
    policy.train()  # as in the loop, where transformers computes each layer again as well
    return sft.batch_loss(policy, collate([pair.chosen for pair in pairs], tokenizer.pad_token_id))


def dpo_loss(policy, pairs, tokenizer):
    logp = dpo.pair_logprobs(policy, pairs, torch.zeros(len(pairs), 2), tokenizer.pad_token_id)
    return dpo.pair_loss(losses.dpo_loss, logp).losses.mean()


def reward_loss(model, pairs, tokenizer):
    return losses.bradley_terry_loss(*reward.score_pairs(RewardModel(model, tokenizer), pairs)).mean()


@pytest.mark.parametrize("loss", [sft_loss, dpo_loss, reward_loss])
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(loss, taught, moved, pairs, tokenizer, monkeypatch):
    """What gradient accumulation is for: one small group of rows in memory, one optimizer step for all of them."""
    bases = [RewardModel.from_policy(taught(), tokenizer).model if loss is reward_loss else taught() for _ in range(2)]
    pieces, whole = map(moved, bases)
    getattr(pieces, "activation_checkpointing_enable", pieces.gradient_checkpointing_enable)()  # the newer name first
    for model, group_tokens in ((pieces, 40), (whole, 10**6)):
        monkeypatch.setattr(scoring, "GROUP_TOKENS", group_tokens)
        loss(model, pairs, tokenizer).backward()
    for (name, got), wanted in zip(pieces.named_parameters(), whole.parameters(), strict=True):
        if "lora_" in name or name == "score.weight":
            assert_close(got.grad, wanted.grad, rtol=1e-4, atol=1e-6, msg=name)
            assert got.grad.any()
        else:
            assert got.grad is None


def test_without_peft_there_is_one_clear_error(taught, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    spec = importlib.util.spec_from_file_location("adapters_without_peft", adapters.__file__)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    with pytest.raises(ImportError, match=r"^LoRA needs peft .*: pip install peft$"):
        module.add_lora(taught())
    assert module.merged(policy := taught()) is policy


def test_bad_settings_are_refused(moved, taught):
    wrong = [({"targets": "q_porj"}, "q_porj"), ({"rank": 0}, "positive integer")]
    wrong += [({"targets": ["q_proj", name]}, f"got {at}") for name, at in TIED]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            add_lora(taught(), **options)
    with pytest.raises(ValueError, match="already exists"):
        add_lora(moved())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # that peft still asks
def test_a_model_inside_pefts_own_wrapper_is_refused(taught, tokenizer, tmp_path):
    wrapped = get_peft_model(taught(), LoraConfig(target_modules=["q_proj"]))
    for use in (merged, reference, lambda model: models.save(model, tokenizer, tmp_path / "policy")):
        with pytest.raises(ValueError, match=r"got PeftModel: use its \.get_base_model\(\)"):
            use(wrapped)
    assert list(weights(reference(wrapped.get_base_model()))) == list(weights(taught()))
