"""Checkpoints: what is on disk, what comes back, what an interruption leaves, and what is refused in one line.

Reward and value models: whose weights they begin with, where they read their number, and that grouping changes none.
"""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
)

from picollm_lite import models, scoring
from picollm_lite.chat import Encoded, respond
from picollm_lite.models import RewardModel, ValueModel, best_device, interpolate, load_policy, mixed_precision, save
from picollm_lite.scoring import left_align
from picollm_lite.stages import sft
from picollm_lite.stages.sampling import checked_scores

IDS = torch.tensor([[0, 1, 40, 50, 60, 2, 3]])


def on_disk(path):
    with safe_open(path / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def saved(tmp_path, tiny_model, tokenizer):
    return save(tiny_model(), tokenizer, tmp_path / "sft")


def refused(path_or_id, **options):
    """The message for a source that holds no checkpoint: one line."""
    with pytest.raises(FileNotFoundError) as error:
        load_policy(path_or_id, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_half_precision_on_disk_and_full_in_memory(saved, tiny_model):
    model, _ = load_policy(saved, device="cpu")
    original = dict(tiny_model().named_parameters())
    stored = on_disk(saved)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name, parameter in model.named_parameters():
        assert_close(parameter, original[name].half().float(), rtol=0, atol=0)
    assert not model.training
    assert_close(model(IDS).logits, tiny_model()(IDS).logits, rtol=0, atol=0.05)


def test_a_tied_weight_is_stored_once(saved, tiny_model, tokenizer):
    assert sum(tensor.numel() for tensor in on_disk(saved).values()) == tiny_model().num_parameters()
    model, _ = load_policy(saved, device="cpu")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    untied = save(tiny_model(tie_word_embeddings=False), tokenizer, saved.parent / "untied")
    assert "lm_head.weight" in on_disk(untied)


def test_plain_transformers_opens_it(saved, tokenizer):
    ours, _ = load_policy(saved, device="cpu")
    model, plain = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    assert model.dtype == torch.float32
    assert_close(model(IDS).logits, ours(IDS).logits, rtol=0, atol=0)
    assert plain.get_vocab() == tokenizer.get_vocab() and plain.chat_template == tokenizer.chat_template
    assert (plain.bos_token, plain.eos_token, plain.pad_token) == ("<|bos|>", "<|assistant_end|>", "<|pad|>")
    assert plain("A token <|user_end|>")["input_ids"] == tokenizer("A token <|user_end|>")["input_ids"]
    generated = model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] <= 10


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_saving_what_was_loaded_changes_no_byte(saved, tmp_path, name):
    again = save(*load_policy(saved, device="cpu"), tmp_path / "again")
    assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_saving_leaves_the_model_as_it_was(tmp_path, tiny_model, tokenizer):
    model = tiny_model().train()
    save(model, tokenizer, tmp_path / "sft")
    assert model.training and model.dtype == torch.float32
    for (name, got), wanted in zip(model.named_parameters(), tiny_model().parameters(), strict=True):
        assert_close(got, wanted, rtol=0, atol=0, msg=name)


def test_nothing_in_a_checkpoint_needs_unpickling_and_others_may_read_it(saved):
    assert {Path(name).suffix for name in names(saved)} <= {".json", ".jinja", ".safetensors"}
    assert saved.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o644}


def test_integers_stay_integers(tmp_path, tiny_model, tokenizer):
    model = tiny_model()
    model.register_buffer("seen", torch.tensor([70_000]))  # beyond what fp16 holds
    stored = on_disk(save(model, tokenizer, tmp_path / "sft"))["seen"]
    assert stored.dtype == torch.int64 and stored.item() == 70_000


def test_overwriting_replaces_the_whole_checkpoint(saved, tiny_model, tokenizer):
    (saved / "stale.txt").write_text("of the old one")
    assert save(tiny_model(seed=1), tokenizer, str(saved)) == saved
    assert "stale.txt" not in names(saved)
    assert names(saved.parent) == ["sft"]
    wanted = tiny_model(seed=1).get_input_embeddings().weight
    assert_close(on_disk(saved)["model.embed_tokens.weight"], wanted.detach().half(), rtol=0, atol=0)


def test_folders_on_the_way_are_made(tmp_path, tiny_model, tokenizer):
    assert save(tiny_model(), tokenizer, tmp_path / "a" / "b" / "sft").is_dir()


class Killed(BaseException):
    """Like KeyboardInterrupt, but pytest does not stop for it."""


def crash(*args, **options):
    raise Killed


@pytest.mark.parametrize("where", ["model", "tokenizer", "rename"])
@pytest.mark.parametrize("there", [True, False])
def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, tiny_model, tokenizer, monkeypatch, where, there):
    path = tmp_path / "sft"
    if there:
        save(tiny_model(), tokenizer, path)
    before = {name: (path / name).read_bytes() for name in names(path)} if there else {}
    model, rename = tiny_model(seed=1), Path.rename

    def half_a_model(folder, **options):
        (folder / "config.json").write_text("{")
        raise Killed

    def last_rename_crashes(self, target):
        if target == path and not self.name.endswith("-old"):
            raise Killed
        return rename(self, target)

    if where == "model":
        model.save_pretrained = half_a_model
    elif where == "tokenizer":
        monkeypatch.setattr(type(tokenizer), "save_pretrained", crash)
    else:
        monkeypatch.setattr(Path, "rename", last_rename_crashes)
    with pytest.raises(Killed):
        save(model, tokenizer, path)
    assert names(tmp_path) == (["sft"] if there else [])
    assert all((path / name).read_bytes() == content for name, content in before.items())


def test_the_new_checkpoint_is_complete_before_it_takes_the_name(saved, tiny_model, tokenizer, monkeypatch):
    moved, rename = [], Path.rename

    def watch(self, target):
        moved.append((self.name, target.name, names(self)))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watch)
    save(tiny_model(seed=1), tokenizer, saved)
    (old, aside, _), (new, target, files) = moved
    assert (old, target, aside) == ("sft", "sft", f"{new}-old")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)


def test_small_steps_survive_in_float32(tmp_path, tiny_model, tokenizer):
    """1 + 1e-6 is 1 in fp16, whose next number is 1.001."""
    model = tiny_model()
    model.model.norm.weight.data.fill_(1 + 1e-6)
    for dtype, kept in {torch.float16: 1.0, torch.float32: 1 + 1e-6}.items():
        again, _ = load_policy(save(model, tokenizer, tmp_path / str(dtype), dtype=dtype), device="cpu")
        assert again.model.norm.weight[0].item() == pytest.approx(kept, abs=1e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])  # 1e6 is more than fp16 holds
def test_weights_that_are_not_finite_are_refused(saved, tiny_model, tokenizer, value):
    model = tiny_model(seed=1)
    with torch.no_grad():
        model.model.norm.weight[3] = value
    before = on_disk(saved)
    with pytest.raises(
        ValueError, match=r"sft: not saved, model\.norm\.weight is not finite in float16: the training has"
    ):
        save(model, tokenizer, saved)
    assert names(saved.parent) == ["sft"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in on_disk(saved).items())


def test_saving_never_replaces_anything_but_a_checkpoint(tmp_path, tiny_model, tokenizer):
    """`save(policy, tokenizer, outputs())` would otherwise remove everything that a learner has made."""
    (tmp_path / "outputs").mkdir()
    save(tiny_model(), tokenizer, tmp_path / "outputs")  # an empty folder is free
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("dear")
    for path in (tmp_path / "mine", tmp_path / "mine" / "notes.txt"):
        with pytest.raises(FileExistsError, match=rf"{path} is not a checkpoint, .* name a folder of its own"):
            save(tiny_model(), tokenizer, path)
    assert names(tmp_path / "mine") == ["notes.txt"]


def test_a_missing_folder_is_named(tmp_path):
    message = refused(tmp_path / "nowhere")
    assert message == f"no checkpoint at {tmp_path / 'nowhere'}: check the path, or run the notebook that makes it"


@pytest.mark.parametrize("name", ["sft", "./a/b", "../x/y", "~/x", "a/b/c", "data/sft"])
def test_what_looks_like_a_path_is_never_looked_up(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    Path("data").mkdir()
    assert refused(name).startswith(f"no checkpoint at {Path(name)}: check the path")


def test_a_folder_without_config_is_named(tmp_path):
    assert refused(tmp_path) == f"{tmp_path} holds no checkpoint (no config.json): name the folder that save() wrote"


@pytest.mark.parametrize("weights", [None, "pytorch_model.bin"])
def test_a_folder_without_safetensors_is_named(saved, weights):
    (saved / "model.safetensors").unlink()
    if weights:
        (saved / weights).write_bytes(b"a pickle")
    assert refused(saved) == f"{saved} has a config.json but no .safetensors weights: save it again as safetensors"


@pytest.mark.parametrize("value", ["1", "true", "ON", "Yes"])
def test_a_hub_id_offline_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert refused("some/model") == (
        "nothing at some/model, and the course is offline: to take it from the hub, set HF_HUB_OFFLINE=0 and restart"
    )


class Recorder:
    """Stands in for AutoModelForCausalLM: notes how it was called."""

    def from_pretrained(self, source, **options):
        self.called = (source, options)
        raise Killed


@pytest.mark.parametrize("value", ["0", None])
def test_a_hub_id_online_goes_to_transformers(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", value) if value else monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(models, "AutoModelForCausalLM", hub := Recorder())
    with pytest.raises(Killed):
        load_policy("some/model", device="cpu")
    source, options = hub.called
    assert source == "some/model"
    assert options["trust_remote_code"] is False and options["use_safetensors"] is True


def test_code_that_comes_with_a_model_is_not_run(saved):
    (saved / "evil.py").write_text(f"open({str(saved / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    config = json.loads((saved / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (saved / "config.json").write_text(json.dumps(config))
    load_policy(saved, device="cpu")
    assert not (saved / "ran").exists()


@pytest.fixture
def half_config(tmp_path, tiny_model, tokenizer):
    """A checkpoint whose own precision is fp16."""
    return save(tiny_model().half(), tokenizer, tmp_path / "half")


def test_dtype(half_config):
    for device in ("cpu", "meta"):  # here meta stands for a GPU
        assert load_policy(half_config, device=device)[0].dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert load_policy(half_config, device="cpu", dtype=dtype)[0].dtype == dtype


def test_device(saved, monkeypatch):
    assert load_policy(saved, device="meta")[0].device.type == "meta"
    monkeypatch.setattr(models, "best_device", lambda: "meta")
    assert load_policy(saved)[0].device.type == "meta"
    assert load_policy(saved, device="cpu")[0].device.type == "cpu"


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_best_device(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device() == best


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_between_two_models_every_weight_is_on_the_line(tiny_model, share):
    start, end = tiny_model(), tiny_model(seed=1)
    between = dict(interpolate(start, end, share).named_parameters())
    targets = dict(end.named_parameters())
    for name, weight in tiny_model().named_parameters():  # by name: the model that was given has not moved
        assert_close(between[name], (1 - share) * weight + share * targets[name], msg=name)
        assert_close(dict(start.named_parameters())[name], weight, rtol=0, atol=0)
    assert not any(weight is target for weight, target in zip(between.values(), end.parameters(), strict=True))


def test_between_two_models_a_tied_weight_moves_once(tiny_model):
    start, end = tiny_model(), tiny_model(seed=1)
    model = interpolate(start, end, 0.5)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    halfway = (start.get_input_embeddings().weight + end.get_input_embeddings().weight) / 2
    assert_close(model.get_output_embeddings().weight, halfway)
    assert not model.training and all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("config", [{"hidden_size": 32}, {"num_hidden_layers": 1}, {"tie_word_embeddings": False}])
def test_there_is_nothing_between_models_of_two_kinds(tiny_model, config):
    with pytest.raises(ValueError, match=r"the same weights, got others at \w+"):
        interpolate(tiny_model(), tiny_model(**config), 0.5)


def test_a_tokenizer_that_was_loaded_is_saved_as_it_was(tiny_model, tokenizer, tmp_path):
    """transformers notes how a tokenizer was opened; a rebuilt checkpoint must not depend on that."""
    first = save(tiny_model(), tokenizer, tmp_path / "first")
    second = save(*load_policy(first, device="cpu"), tmp_path / "second")
    for name in ("tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


GROUPS = pytest.mark.parametrize("group_tokens", [1, 40, 10**6])  # every row alone, a few together, all together


@pytest.fixture
def examples(pairs):
    return [side for pair in pairs for side in pair]


@pytest.fixture
def reward_model(tiny_model, tokenizer):
    """With a mean to take off, which a new one does not have."""
    model = RewardModel.from_policy(tiny_model(), tokenizer, seed=3)
    model.model.config.score_mean = 0.25
    return model


@torch.no_grad()
def slow_score(reward_model, tokens):
    """The hidden state after exactly these tokens, times the head, number by number."""
    hidden = reward_model.model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1].tolist()
    weight = reward_model.model.score.weight[0].tolist()
    return sum(h * w for h, w in zip(hidden, weight, strict=True)) - reward_model.model.config.score_mean


def test_with_checkpointing_scores_and_values_keep_their_gradient(tiny_model, tokenizer, examples, monkeypatch):
    monkeypatch.setattr(scoring, "GROUP_TOKENS", 40)
    monkeypatch.setattr(scoring, "can_pack", lambda trunk: False)
    tokens = torch.tensor([[0, 1, 40, 50, 60, 2, 3, 9]] * 6)
    mask = torch.ones(6, 7, dtype=torch.bool)
    sequences = scoring.Sequences(tokens, mask, torch.zeros(6, 7), torch.full((6,), 8))
    model = RewardModel.from_policy(tiny_model(), tokenizer)
    for make, run, trunk_of in (
        (lambda: deepcopy(model), lambda model: model(examples), lambda model: model.model.base_model),
        (lambda: ValueModel.from_reward_model(model), lambda critic: critic.at(sequences), lambda critic: critic.trunk),
    ):
        results = []
        for switch in (False, True):
            one, calls = make(), []
            trunk_of(one).gradient_checkpointing = switch
            trunk_of(one).norm.register_forward_hook(lambda *args, calls=calls: calls.append(1))
            out = run(one)
            (out * torch.linspace(0.1, 1.0, out.numel()).view_as(out)).sum().backward()
            results.append((out.detach(), [parameter.grad for parameter in one.parameters()], len(calls)))
        (plain, plain_grads, once), (saving, grads, twice) = results
        assert torch.equal(saving, plain) and all(map(torch.equal, grads, plain_grads))
        assert twice == 2 * once > 2


def test_a_new_reward_model_has_the_policys_trunk_for_its_own(tiny_model, tokenizer):
    policy = tiny_model()
    reward_model = RewardModel.from_policy(policy, tokenizer)
    trunk = reward_model.model.base_model
    assert_close(trunk(IDS).last_hidden_state, policy.base_model(IDS).last_hidden_state, rtol=0, atol=0)
    assert not reward_model.model.training and reward_model.score_mean == 0.0
    with torch.no_grad():
        for parameter in reward_model.parameters():
            parameter.zero_()
    for name, parameter in policy.named_parameters():
        assert_close(parameter, dict(tiny_model().named_parameters())[name], rtol=0, atol=0)
    assert not hasattr(policy.config, "score_mean")


def test_a_new_head_is_normal_with_a_variance_of_one_over_d_plus_1(tiny_model, tokenizer):
    """d = 64: std 1 / sqrt(65) = .124 and mean 0, each within 4 standard errors over 20 seeds, 1280 numbers."""
    policy = tiny_model(hidden_size=64)
    heads = [RewardModel.from_policy(policy, tokenizer, seed=seed).model.score for seed in range(20)]
    weights = torch.cat([head.weight.detach().flatten() for head in heads])
    assert len(weights) == 1280 and all(head.bias is None for head in heads)
    assert weights.std().item() == pytest.approx(0.124, abs=4 * 0.124 / (2 * 1280) ** 0.5)
    assert weights.mean().item() == pytest.approx(0.0, abs=4 * 0.124 / 1280**0.5)


def test_a_new_head_depends_on_the_seed_alone(tiny_model, tokenizer):
    def head(**options):
        torch.rand(5)  # whatever drew numbers before
        return RewardModel.from_policy(tiny_model(seed=1), tokenizer, **options).model.score.weight

    assert torch.equal(head(), head(seed=0))
    assert not torch.equal(head(seed=0), head(seed=1))


@GROUPS
def test_scores_equal_a_slow_loop_in_order(reward_model, examples, monkeypatch, group_tokens):
    monkeypatch.setattr(scoring, "GROUP_TOKENS", group_tokens)
    wanted = [slow_score(reward_model, example.tokens) for example in examples]
    assert max(wanted) - min(wanted) > 0.5
    assert reward_model(examples).tolist() == pytest.approx(wanted, abs=1e-5)


@GROUPS
def test_the_gradient_of_scores_is_that_of_one_row_at_a_time(reward_model, examples, monkeypatch, group_tokens):
    monkeypatch.setattr(scoring, "GROUP_TOKENS", group_tokens)
    weight, slow = torch.linspace(0.1, 1.0, len(examples)), deepcopy(reward_model)
    (reward_model(examples) * weight).sum().backward()
    for w, example in zip(weight, examples, strict=True):
        hidden = slow.model.base_model(input_ids=torch.tensor([example.tokens])).last_hidden_state[0, -1]
        (w * slow.model.score(hidden)).backward()
    for (name, got), wanted in zip(reward_model.named_parameters(), slow.parameters(), strict=True):
        assert_close(got.grad, wanted.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_score_is_read_at_the_last_real_token_whatever_the_padding_is(tiny_model, tokenizer, examples):
    """With the end token as padding, transformers itself would read the token before the end."""
    endless = deepcopy(tokenizer)
    endless.pad_token = endless.eos_token
    apart, same = (RewardModel.from_policy(tiny_model(), which) for which in (tokenizer, endless))
    assert same.model.config.pad_token_id == tokenizer.eos_token_id != apart.model.config.pad_token_id
    assert all(example.tokens[-1] == tokenizer.eos_token_id for example in examples)
    assert_close(same(examples), apart(examples), rtol=0, atol=0)
    assert slow_score(apart, examples[0].tokens) != pytest.approx(slow_score(apart, examples[0].tokens[:-1]), abs=0.01)


def test_scores_do_not_look_at_the_mask(reward_model, examples):
    """Only policies are asked for single tokens."""
    blind = [Encoded(tokens, [False] * len(tokens)) for tokens, _ in examples]
    assert_close(reward_model(blind), reward_model(examples), rtol=0, atol=0)


def test_the_mean_is_taken_off_every_score(reward_model, examples):
    before = reward_model(examples)
    reward_model.model.config.score_mean = 1.25
    assert reward_model.score_mean == 1.25
    assert_close(reward_model(examples), before - 1.0)


def test_texts_are_scored_as_the_conversations_that_they_make(reward_model, encode, pairs):
    questions, answers = ["Why?", "What is a token?"], ["It splits words.", ""]
    scores = reward_model.score(questions, answers)
    wanted = [slow_score(reward_model, encode(*texts).tokens) for texts in zip(questions, answers, strict=True)]
    assert scores.tolist() == pytest.approx(wanted, abs=1e-5)
    assert scores.dtype == torch.float32 and not scores.requires_grad
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        reward_model.score(questions, answers[:1])


def test_a_reward_model_is_a_reward_function(reward_model):
    prompts, answers = ["Why?"] * 3, ["A", "It", "Thanks."]
    assert_close(checked_scores(reward_model.score, prompts, answers, "here"), reward_model.score(prompts, answers))


@pytest.fixture
def saved_reward_model(tmp_path, reward_model, tokenizer):
    return save(reward_model.model, tokenizer, tmp_path / "reward")


def test_a_reward_model_comes_back_with_its_mean(saved_reward_model, reward_model, examples, tokenizer):
    loaded = RewardModel.load(saved_reward_model, device="cpu")
    assert loaded.score_mean == 0.25 and not loaded.model.training
    assert {tensor.dtype for tensor in on_disk(saved_reward_model).values()} == {torch.float16}
    assert_close(loaded(examples), reward_model(examples), rtol=0, atol=0.02)  # fp16 on disk
    assert loaded.score(["Why?"], ["A"]).item() == pytest.approx(reward_model.score(["Why?"], ["A"]).item(), abs=0.02)
    again = RewardModel.load(save(loaded.model, loaded.tokenizer, saved_reward_model.parent / "again"), device="cpu")
    assert_close(again(examples), loaded(examples), rtol=0, atol=0)


def test_an_answer_that_spells_a_control_token_is_scored_with_it_apart(reward_model):
    """A model may spell `<|assistant_end|>` out of other tokens; as one token it would end the answer."""
    scores = reward_model.score(["Why?"] * 2, ["A<|assistant_end|>token", "A< |assistant_end|>token"])
    assert scores[0].item() == pytest.approx(scores[1].item(), abs=1e-5)  # rows of a product may round apart


def test_what_does_not_fit_the_context_is_cut_with_a_warning(reward_model, encode, monkeypatch):
    """A broken character is a token as the policy samples it, and three as the text that it decodes to."""
    question, answer = "What is a token?", "A token is a unit of text." + "\ufffd" * 40
    tokens, mask = encode(question, answer)
    monkeypatch.setattr(reward_model.model.config, "max_position_embeddings", 30)
    with pytest.warns(UserWarning, match="1 of 2 answers cut at the reward model's 30 tokens"):
        scores = reward_model.score([question] * 2, [answer, "A token."])
    assert_close(scores[:1], reward_model([Encoded(tokens[:30], mask[:30])]).detach())


def test_plain_transformers_scores_alike_but_for_the_mean(saved_reward_model, examples):
    loaded = RewardModel.load(saved_reward_model, device="cpu")
    plain = AutoModelForSequenceClassification.from_pretrained(saved_reward_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved_reward_model)
    batch = tokenizer.pad({"input_ids": [example.tokens for example in examples]}, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    logits = plain(**batch).logits.squeeze(-1)
    assert_close(logits - plain.config.score_mean, loaded(examples), rtol=0, atol=1e-5)


@pytest.mark.parametrize("half", [True, False])
def test_a_reward_model_has_the_precision_of_its_policy(tiny_model, tokenizer, examples, half):
    policy = tiny_model().half() if half else tiny_model()
    reward_model = RewardModel.from_policy(policy, tokenizer)
    assert {parameter.dtype for parameter in reward_model.parameters()} == {policy.dtype}
    assert reward_model.score(["Why?"], ["A"]).dtype == torch.float32
    critic = ValueModel.from_policy(policy)
    assert {weight.dtype for weight in critic.head.parameters()} == {critic(IDS).dtype} == {torch.float32}  # it trains


def test_another_architecture_will_do(tokenizer, examples):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=96, n_embd=16, n_layer=1, n_head=2)
    reward_model = RewardModel.from_policy(GPT2LMHeadModel(config).eval(), tokenizer)
    wanted = [slow_score(reward_model, example.tokens) for example in examples]
    assert reward_model(examples).tolist() == pytest.approx(wanted, abs=1e-5)
    critic = ValueModel.from_reward_model(reward_model)
    values = [critic(torch.tensor([example.tokens]))[0, -1].item() for example in examples]
    assert values == pytest.approx(wanted, abs=1e-5)


def test_a_classifier_that_gives_no_single_score_is_refused(tiny_model, tokenizer, saved):
    config = tiny_model().config
    config.num_labels = 2
    with pytest.raises(ValueError, match=r"one label and a linear `score` head, got LlamaForSequenceClassification wi"):
        RewardModel(LlamaForSequenceClassification(config), tokenizer)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    bert = BertForSequenceClassification(BertConfig(vocab_size=10, num_labels=1, **shape))
    with pytest.raises(ValueError, match="got BertForSequenceClassification with 1 labels"):
        RewardModel(bert, tokenizer)  # its head is called otherwise, and reads another token
    with pytest.raises(ValueError, match="a reward model needs a classifier with one label"):
        RewardModel.load(saved, device="cpu")  # a policy


def test_a_reward_model_is_not_opened_as_a_policy(saved_reward_model):
    with pytest.raises(ValueError, match=f"^{saved_reward_model} holds a reward model, not .*: RewardModel.load opens"):
        load_policy(saved_reward_model)


def test_a_missing_reward_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^no checkpoint at {tmp_path / 'nowhere'}: check the path"):
        RewardModel.load(tmp_path / "nowhere")


def test_a_critic_without_a_reward_model_begins_at_zero_everywhere(tiny_model):
    policy = tiny_model()
    critic = ValueModel.from_policy(policy)
    assert_close(critic(IDS), torch.zeros(1, 7), rtol=0, atol=0)
    assert_close(critic.trunk(IDS).last_hidden_state, policy.base_model(IDS).last_hidden_state, rtol=0, atol=0)
    critic(IDS).sum().backward()
    assert critic.head.weight.grad.abs().sum() > 0 and critic.head.bias.grad.item() == 7.0  # it can leave the zeros
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.fill_(0.1)
    assert_close(policy(IDS).logits, tiny_model()(IDS).logits, rtol=0, atol=0)


def test_a_critic_from_a_reward_model_begins_with_its_score_of_the_text_so_far(reward_model, examples):
    critic, before = ValueModel.from_reward_model(reward_model), reward_model(examples)
    for example, score in zip(examples[:3], before, strict=False):
        values = critic(torch.tensor([example.tokens]))  # (1, L)
        assert values.shape == (1, len(example.tokens))
        assert values[0, -1].item() == pytest.approx(score.item(), abs=1e-5)
        wanted = [slow_score(reward_model, example.tokens[: t + 1]) for t in range(len(example.tokens))]
        assert values[0].tolist() == pytest.approx(wanted, abs=1e-5)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.zero_()
    assert_close(reward_model(examples), before, rtol=0, atol=0)


def test_mixed_precision_is_off_on_a_cpu_and_on_where_the_gpu_has_it(tiny_model, monkeypatch):
    policy = tiny_model()
    assert not mixed_precision(policy)._enabled and mixed_precision(policy, bf16=True)._enabled
    for has_it in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)
        gpu = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda"))]))
        monkeypatch.setattr(torch, "autocast", lambda device, dtype, enabled, **_: (device, dtype, enabled))
        assert mixed_precision(gpu) == ("cuda", torch.bfloat16, has_it)
        assert mixed_precision(gpu, bf16=False) == ("cuda", torch.bfloat16, False)


def test_in_mixed_precision_products_are_rounded_and_weights_are_not(tiny_model, tokenizer, pairs):
    """bf16 keeps 8 bits: log-probs move by about 2^-8 of their size, and by more than fp32's rounding."""
    policy, reward_model = tiny_model(), RewardModel.from_policy(tiny_model(), tokenizer)
    sides = [side for pair in pairs for side in pair]
    exact, scores = scoring.response_logprobs(policy, sides, 0).total, reward_model(sides)
    with mixed_precision(policy, bf16=True):
        rounded = scoring.response_logprobs(policy, sides, 0).total
        assert rounded.dtype == reward_model(sides).dtype == torch.float32
        assert_close(reward_model(sides), scores, rtol=0.05, atol=0.05)
        loss = [step.loss for step in sft.train(policy, sides, pad_token_id=0, epochs=4, batch_size=8)]
        sample = respond(policy, tokenizer, ["Why?"] * 4, max_new_tokens=6).rollout
    assert_close(rounded, exact, rtol=0.02, atol=0.0)
    assert (rounded - exact).abs().max() > 1e-3
    assert loss[-1] < loss[0] and {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert sample.logp.dtype == torch.float32 and torch.isfinite(sample.logp).all()


def test_in_mixed_precision_the_next_pass_sees_changed_weights(tiny_model, pairs):
    """autocast by itself keeps the bf16 copies of the weights that it met first."""
    policy, sides = tiny_model(), [pair.chosen for pair in pairs]
    with mixed_precision(policy, bf16=True):
        before = scoring.response_logprobs(policy, sides, 0).total
        with torch.no_grad():
            for weight in policy.parameters():
                weight.mul_(0.5)
        after = scoring.response_logprobs(policy, sides, 0).total
    with mixed_precision(policy, bf16=True):
        assert_close(after, scoring.response_logprobs(policy, sides, 0).total, rtol=0, atol=0)
    assert (after - before).abs().max() > 0.1


def test_in_mixed_precision_scores_and_values_keep_their_digits(tiny_model, tokenizer, pairs):
    """A bf16 head would put them on a grid: between 1 and 2 every 1/128, and answers of like worth would tie."""
    reward_model, policy = RewardModel.from_policy(tiny_model(), tokenizer), tiny_model()
    critic = ValueModel.from_reward_model(reward_model)
    tokens = torch.tensor([pairs[0].chosen.tokens])
    sequences = left_align(respond(policy, tokenizer, ["Why?"], max_new_tokens=6).rollout)
    with mixed_precision(policy, bf16=True):
        for numbers in (reward_model([pair.chosen for pair in pairs]), critic(tokens), critic.at(sequences)):
            assert numbers.dtype == torch.float32 and (numbers != numbers.bfloat16().float()).any()
