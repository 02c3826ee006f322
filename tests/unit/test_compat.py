"""Models as others make them, each through load, chat, scoring, every kind of training, save and load again."""

import math
from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoTokenizer

from picollm_lite.chat import answer, encode_conversation, encode_prompt, end_ids, padding_id, respond, user
from picollm_lite.compat import HeadlessTrunk, add_chat_format, has_trunk, hidden_size
from picollm_lite.data import Pair
from picollm_lite.models import RewardModel, ValueModel, load_policy, save
from picollm_lite.scoring import left_align, response_logprobs, sequence_logprobs
from picollm_lite.stages import dpo, group_policy, online_dpo, ppo, reward, sft

from . import standins
from .loops import weights

LN2 = 0.693147
EACH = pytest.mark.parametrize("name", standins.write)
ENDS = {"qwen2": "<|im_end|>", "llama": "</s>", "gpt2": "<|endoftext|>"}
ENDS |= {"bare": "<|assistant_end|>", "picollm": "<|assistant_end|>"}
PROMPTS = {  # "Why?", ready for an answer
    "qwen2": "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
    "llama": "<s>[INST]Why?[/INST]",
    "gpt2": "user:\nWhy?\nassistant:\n",
    "bare": "<|bos|><|user_start|>Why?<|user_end|><|assistant_start|>",
    "picollm": "<|bos|><|user_start|>Why?<|user_end|><|assistant_start|>",
}
QUESTIONS = ["What is a token?", "Why?", "Why is it a token? Be brief."]


def load(path, name, kind=load_policy):
    return kind(path, device="cpu", trust_remote_code=name == "picollm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in standins.write.items()}


@pytest.fixture
def opened(folders):
    """A stand-in by name, the bare one with the chat format that it lacks."""

    def make(name):
        model, tokenizer = load(folders[name], name)
        if name == "bare":
            add_chat_format(model, tokenizer)
        return model, tokenizer

    return make


def turns(question, text):
    return [*user(question), {"role": "assistant", "content": text}]


def some_pairs(tokenizer):
    sides = [("What is a token?", "A unit.", "Thanks."), ("Why?", "It splits words.", "Why? Be brief. Why?")]
    return [Pair(*(encode_conversation(tokenizer, turns(q, a)) for a in answers)) for q, *answers in sides]


def greedy(model, tokenizer):
    return answer(model, tokenizer, QUESTIONS, temperature=0, max_new_tokens=8)


def mixed(prompts, responses):
    return [len(response) + row / 10 for row, response in enumerate(responses)]  # never the same for all


def marked(tokenizer, encoded):
    return tokenizer.decode([t for t, counts in zip(*encoded, strict=True) if counts])


@EACH
def test_prompts_and_answers_in_each_models_own_format(opened, name):
    _, tokenizer = opened(name)
    prompt = encode_prompt(tokenizer, user("Why?"))
    assert tokenizer.decode(prompt) == PROMPTS[name]
    one = encode_conversation(tokenizer, turns("Why?", "It splits words."))
    assert one.tokens[: len(prompt)] == prompt and one.response_mask.index(True) == len(prompt)
    assert marked(tokenizer, one) == f"It splits words.{ENDS[name]}"
    two = encode_conversation(tokenizer, turns("Why?", "It splits words.") + turns("Thanks.", "A unit."))
    assert marked(tokenizer, two) == f"It splits words.{ENDS[name]}A unit.{ENDS[name]}"


UNREADABLE = {
    "{{ messages[-1]['content'] }}": r"no control token ends it; add a \{% generation %\} block",
    # The space before the answer is one token with its first word, which no prompt ends in.
    standins.WORDS.replace(":\n", ": "): "the conversation does not begin as its prompt does",
    # Only the last answer is shown, as templates do that drop what a model thought.
    "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else '-' }}{{ eos_token }}{% endfor %}": (
        "the conversation does not begin as its prompt does"
    ),
}


@pytest.mark.parametrize(("template", "message"), UNREADABLE.items())
def test_a_template_from_which_no_answer_can_be_read_is_refused(opened, template, message):
    _, tokenizer = opened("gpt2")
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=rf"does not show what the assistant wrote in message 2: .*{message}"):
        encode_conversation(tokenizer, turns("Why?", "token.") + user("Thanks."))


def test_without_a_chat_template_the_learner_is_told_what_to_do(folders):
    model, tokenizer = load(folders["bare"], "bare")
    for refused in (lambda: greedy(model, tokenizer), lambda: encode_conversation(tokenizer, turns("Why?", "A"))):
        with pytest.raises(
            ValueError, match=r"has no chat template: call picollm_lite\.compat\.add_chat_format\(model"
        ):
            refused()


def test_a_chat_format_adds_rows_and_changes_none(folders):
    before, _ = load(folders["bare"], "bare")
    (model, tokenizer), (again, other) = load(folders["bare"], "bare"), load(folders["bare"], "bare")
    V = before.config.vocab_size
    state = torch.get_rng_state()
    add_chat_format(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    add_chat_format(again, other)
    table = model.get_input_embeddings().weight
    assert table.shape[0] == V + 6 == len(tokenizer) and model.get_output_embeddings().weight is table
    assert torch.equal(table[:V], before.get_input_embeddings().weight)
    assert torch.equal(table, again.get_input_embeddings().weight)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<|bos|>", "<|assistant_end|>", "<|pad|>")]
    for config in (model.config, model.generation_config):
        assert [config.bos_token_id, config.eos_token_id, config.pad_token_id] == ids
    assert end_ids(model, tokenizer) == [ids[1]] and padding_id(tokenizer) == ids[2]
    with pytest.raises(ValueError, match="the tokenizer has a chat template already"):
        add_chat_format(model, tokenizer)


def test_rows_that_a_model_has_to_spare_are_kept(folders):
    """Tables are often padded, to 64 rows or so: they must not shrink to the tokens."""
    model, tokenizer = load(folders["bare"], "bare")
    model.resize_token_embeddings(384)
    add_chat_format(model, tokenizer)
    assert model.get_input_embeddings().num_embeddings == 384


def test_an_answer_ends_at_every_end_token_of_the_model(opened):
    """The tokenizer knows </s> = 1, the generation config <stop> = 2 as well."""
    model, tokenizer = opened("llama")
    assert end_ids(model, tokenizer) == [1, 2]
    sample, _ = respond(model, tokenizer, ["Why?"] * 200, max_new_tokens=40)
    P = sample.tokens.shape[1] - sample.response_mask.shape[1]
    last = sample.tokens[:, P:].gather(1, sample.response_mask.sum(1, keepdim=True) - 1)[:, 0]
    assert {1, 2} <= set(last.tolist())
    assert torch.equal(sample.finished, (last == 1) | (last == 2))


def test_end_and_padding_where_there_is_none(opened):
    model, tokenizer = opened("gpt2")
    assert tokenizer.pad_token_id is None and padding_id(tokenizer) == tokenizer.eos_token_id == 0
    tokenizer.eos_token, model.generation_config.eos_token_id = None, None
    assert padding_id(tokenizer) == 0
    with pytest.raises(ValueError, match=r"neither tokenizer nor model has an end token: set tokenizer\.eos_token"):
        greedy(model, tokenizer)
    model.generation_config.eos_token_id = 7
    assert end_ids(model, tokenizer) == [7]


@EACH
def test_scoring_equals_a_slow_loop_and_what_sampling_noted(opened, name):
    model, tokenizer = opened(name)
    sides = [side for pair in some_pairs(tokenizer) for side in pair]
    got = response_logprobs(model, sides, padding_id(tokenizer)).total
    for total, (tokens, mask) in zip(got.tolist(), sides, strict=True):
        logp = [model(input_ids=torch.tensor([tokens[:t]])).logits[0, -1].log_softmax(-1)[tokens[t]].item()
                for t, counts in enumerate(mask) if counts]  # fmt: skip
        assert total == pytest.approx(sum(logp), abs=1e-4)
    sample, _ = respond(model, tokenizer, QUESTIONS * 4, max_new_tokens=12)
    sequences = left_align(sample)
    assert_close(sequence_logprobs(model, sequences), sequences.logp, rtol=0, atol=1e-5)


@EACH
def test_answers_beyond_the_context_are_refused(opened, name):
    with pytest.raises(ValueError, match=r"exceeds the model's context of 96 tokens"):
        answer(*opened(name), ["Why?"], max_new_tokens=96)


@EACH
def test_training_on_answers_that_are_given(opened, name):
    model, tokenizer = opened(name)
    pairs, untouched = some_pairs(tokenizer), deepcopy(model)
    options = {"learning_rate": 0.01, "batch_size": 2}
    steps = list(dpo.train(model, pairs, tokenizer=tokenizer, epochs=3, **options))
    assert steps[0].loss == pytest.approx(LN2, abs=1e-5) and steps[-1].loss < LN2
    model, demos = untouched, [pair.chosen for pair in pairs]
    steps = list(sft.train(model, demos, pad_token_id=padding_id(tokenizer), epochs=4, **options))
    assert steps[-1].loss < steps[0].loss - 0.1


@EACH
def test_training_on_its_own_answers(opened, name):
    original, tokenizer = opened(name)
    options = {"tokenizer": tokenizer, "steps": 2, "batch_size": 8, "max_new_tokens": 4, "learning_rate": 0.01}
    options |= {"unfinished_score": None}
    for train in (ppo.train, group_policy.rloo, group_policy.grpo, online_dpo.train):
        model = deepcopy(original)
        first, last = train(model, mixed, QUESTIONS, **options)
        assert first.kl == pytest.approx(0.0, abs=1e-4) and math.isfinite(last.kl + last.grad_norm), train
        moved = [key for key, value in weights(original).items() if not torch.equal(value, weights(model)[key])]
        assert len(moved) > 2, train


@EACH
def test_a_reward_model_learns_and_comes_back(opened, name, tmp_path):
    policy, tokenizer = opened(name)
    before = weights(policy)
    reward_model, pairs = RewardModel.from_policy(policy, tokenizer), some_pairs(tokenizer)
    steps = list(reward.train(reward_model, pairs, epochs=12, learning_rate=0.01, off_prompt_weight=0.0))
    assert steps[-1].loss < steps[0].loss - 0.05
    assert all(torch.equal(value, before[key]) for key, value in weights(policy).items())
    scores = reward_model.score(QUESTIONS, ["A unit.", "Thanks.", "Why?"])
    path = save(reward_model.model, reward_model.tokenizer, tmp_path / "reward")
    again = load(path, name, RewardModel.load)
    assert again.score_mean == pytest.approx(reward_model.score_mean) != 0.0
    assert_close(again.score(QUESTIONS, ["A unit.", "Thanks.", "Why?"]), scores, rtol=0, atol=0.01)
    critic = ValueModel.from_reward_model(again)
    example = pairs[0].chosen
    assert_close(critic(torch.tensor([example.tokens]))[0, -1], again([example])[0], rtol=0, atol=1e-5)


@EACH
def test_what_is_saved_says_the_same(opened, name, tmp_path):
    model, tokenizer = opened(name)
    path = save(model, tokenizer, tmp_path / "policy")
    again, its_tokenizer = load(path, name)
    assert greedy(again, its_tokenizer) == greedy(*load(save(again, its_tokenizer, tmp_path / "twice"), name))
    for key, value in weights(again).items():
        assert_close(value, weights(model)[key].half().float(), rtol=0, atol=0, msg=key)
    assert its_tokenizer.chat_template == tokenizer.chat_template and end_ids(again, its_tokenizer) == end_ids(
        model, tokenizer
    )


def test_code_is_run_on_demand_only(folders):
    with pytest.raises(ValueError, match=r"comes with its own Python code, .* say trust_remote_code=True"):
        load_policy(folders["picollm"], device="cpu")


def test_a_table_that_the_checkpoint_leaves_out_is_computed(folders, tmp_path):
    """Position 1 turns by 1 and by 1/10: transformers alone leaves the table unset."""
    model, tokenizer = load(folders["picollm"], "picollm")
    assert_close(model.places[1, :2], torch.tensor([math.cos(1.0), math.cos(0.1)]))
    again, _ = load(save(model, tokenizer, tmp_path / "policy"), "picollm")
    assert torch.equal(again.places, model.places)


def test_our_chat_template_is_set_only_where_the_tokens_are(folders):
    assert AutoTokenizer.from_pretrained(folders["picollm"]).chat_template is None
    assert load(folders["picollm"], "picollm")[1].chat_template is not None
    assert load(folders["bare"], "bare")[1].chat_template is None
    assert load(folders["qwen2"], "qwen2")[1].chat_template == standins.CHATML


def test_a_policy_without_a_classifier_is_no_reward_model(folders):
    with pytest.raises(ValueError, match=r"holds no reward model: its weights have no `score`; make one with from_pol"):
        load(folders["picollm"], "picollm", RewardModel.load)


def test_a_trunk_without_its_head_gives_what_the_head_reads(opened):
    """logits = 15 tanh(W h / 15) for this model, so that h can be checked against them."""
    model, _ = opened("picollm")
    tokens, W = torch.tensor([[5, 9, 40]]), model.lm_head.weight
    logits = model(input_ids=tokens).logits
    assert not has_trunk(model) and hidden_size(model) == 16
    states = HeadlessTrunk(model)(input_ids=tokens).last_hidden_state
    V = model.config.vocab_size
    assert states.shape == (1, 3, 16)
    assert_close(15 * torch.tanh((states @ W[:V].T) / 15), logits, rtol=0, atol=1e-5)
    deepcopy(model)  # nothing of the graph is kept


def test_an_answer_ends_where_the_template_ends_it_also_when_the_tokenizer_names_another_token(opened):
    """As Qwen's base models come: trained by this template, a model says <|im_end|>; eos is <|endoftext|>."""
    model, tokenizer = opened("qwen2")
    tokenizer.eos_token = "<|endoftext|>"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(end_ids(model, tokenizer)) == ["<|endoftext|>", "<|im_end|>"]
