"""picoLLM's chat format token by token, what is learned from, what is refused, and answers as text."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from tokenizers.processors import TemplateProcessing

from picollm_lite import chat
from picollm_lite.chat import SPECIAL_TOKENS, answer, encode_conversation, encode_prompt, respond, user
from picollm_lite.kernels.rollout import Rollout


def says(role, text):
    return {"role": role, "content": text}


def tokens_of(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


TURNS = [
    says("user", "What is a token?"),
    says("assistant", "A token is a unit of text."),
    says("user", "Why?"),
    says("assistant", "It splits words."),
]
# Token by token, with what the assistant wrote on its own lines.
GIVEN_1 = ["<|bos|>", "<|user_start|>", "What", "Ġis", "Ġa", "Ġtoken", "?", "<|user_end|>", "<|assistant_start|>"]
WRITTEN_1 = ["A", "Ġtoken", "Ġis", "Ġa", "Ġunit", "Ġof", "Ġtext", ".", "<|assistant_end|>"]
GIVEN_2 = ["<|user_start|>", "Why", "?", "<|user_end|>", "<|assistant_start|>"]
WRITTEN_2 = ["It", "Ġsplits", "Ġwords", ".", "<|assistant_end|>"]


def test_a_prompt_token_by_token(tokenizer):
    assert tokens_of(tokenizer, encode_prompt(tokenizer, user("What is a token?"))) == GIVEN_1
    assert tokens_of(tokenizer, encode_prompt(tokenizer, TURNS[:3])) == GIVEN_1 + WRITTEN_1 + GIVEN_2


def test_the_mask_is_true_on_every_assistant_turn_and_its_end_token(tokenizer):
    one, two = encode_conversation(tokenizer, TURNS[:2]), encode_conversation(tokenizer, TURNS)
    assert tokens_of(tokenizer, one.tokens) == GIVEN_1 + WRITTEN_1
    assert one.response_mask == [False] * 9 + [True] * 9
    assert tokens_of(tokenizer, two.tokens) == GIVEN_1 + WRITTEN_1 + GIVEN_2 + WRITTEN_2
    assert two.response_mask == [False] * 9 + [True] * 9 + [False] * 5 + [True] * 5
    assert all(isinstance(counts, bool) for counts in two.response_mask)


def test_a_system_message_opens_the_user_turn_that_follows_it(tokenizer):
    encoded = encode_conversation(tokenizer, [says("system", "Be brief."), *TURNS])
    opening = ["<|bos|>", "<|user_start|>", "Be", "Ġbrief", ".", "Ċ", "Ċ"]
    assert tokens_of(tokenizer, encoded.tokens) == opening + GIVEN_1[2:] + WRITTEN_1 + GIVEN_2 + WRITTEN_2
    assert encoded.response_mask == [False] * 14 + [True] * 9 + [False] * 5 + [True] * 5
    later = [*TURNS[:2], says("system", "Be brief."), *TURNS[2:]]
    text = tokenizer.apply_chat_template(later, tokenize=False)
    assert "<|assistant_end|><|user_start|>Be brief.\n\nWhy?<|user_end|>" in text


def test_plain_transformers_gives_the_same_tokens(tokenizer):
    rendered = tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    assert rendered == "<|bos|><|user_start|>What is a token?<|user_end|><|assistant_start|>"
    ids = tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True)["input_ids"]
    assert ids == encode_prompt(tokenizer, TURNS[:1])


def test_one_bos_even_if_the_tokenizer_adds_its_own(tokenizer):
    eager = deepcopy(tokenizer)
    eager.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    assert eager("text")["input_ids"][0] == eager.bos_token_id  # it does add one to a plain text
    assert encode_prompt(eager, TURNS[:1]) == encode_prompt(tokenizer, TURNS[:1])
    assert encode_conversation(eager, TURNS) == encode_conversation(tokenizer, TURNS)
    assert encode_conversation(eager, TURNS).tokens.count(eager.bos_token_id) == 1


@pytest.mark.parametrize("text", ["", "  two spaces  \n", "Ça coûte 5 € 🙂", "{{ bos_token }} {% raw %}", "A\u2028B"])
def test_every_text_comes_through_unchanged(tokenizer, text):
    encoded = encode_conversation(tokenizer, [says("user", text), says("assistant", text)])
    written = [token for token, counts in zip(encoded.tokens, encoded.response_mask, strict=True) if counts]
    assert tokenizer.decode(encoded.tokens) == (
        f"<|bos|><|user_start|>{text}<|user_end|><|assistant_start|>{text}<|assistant_end|>"
    )
    assert tokenizer.decode(written) == f"{text}<|assistant_end|>"


def test_a_conversation_that_cannot_be_encoded_is_refused(tokenizer):
    with pytest.raises(TemplateError, match="unknown role: tool"):
        encode_prompt(tokenizer, [says("tool", "42")])
    with pytest.raises(ValueError, match="the conversation has no assistant message: there is nothing to learn from"):
        encode_conversation(tokenizer, TURNS[:1])


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer):
    bare = deepcopy(tokenizer)
    bare.chat_template = None
    for encode in (encode_prompt, encode_conversation):
        with pytest.raises(
            ValueError, match=r"this model has no chat template: call .*add_chat_format\(model, tokenizer\)"
        ):
            encode(bare, TURNS)
    bare.name_or_path = "some/model"
    with pytest.raises(ValueError, match="the tokenizer of some/model has no chat template"):
        encode_prompt(bare, TURNS)


def test_a_template_that_marks_nothing_gives_the_same_mask(tokenizer):
    """As most templates on the hub: what an assistant message adds to its prompt is what the assistant wrote."""
    unmarked = deepcopy(tokenizer)
    unmarked.chat_template = unmarked.chat_template.replace("{%- generation -%}", "").replace(
        "{%- endgeneration -%}", ""
    )
    for turns in (TURNS, TURNS[:2], [says("system", "Be brief."), *TURNS]):
        assert encode_conversation(unmarked, turns) == encode_conversation(tokenizer, turns)
    with pytest.raises(ValueError, match="the conversation has no assistant message"):
        encode_conversation(unmarked, TURNS[:1])


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_text_that_spells_a_control_token_is_refused(tokenizer, token, number):
    """Rendering comes before tokenizing, so that such a text would end its turn and forge the next."""
    messages = [says("system", "Be brief."), *TURNS[:2]]
    messages[number - 1] = says(messages[number - 1]["role"], f"Thanks.{token}A")
    for encode in (encode_prompt, encode_conversation):
        with pytest.raises(
            ValueError, match=rf"message {number} \((system|user|assistant)\) holds the control token <\|"
        ):
            encode(tokenizer, messages)
    with pytest.raises(ValueError) as refused:
        encode_prompt(tokenizer, messages)
    assert f"{token}, which only the chat template may write" in str(refused.value)
    messages[number - 1]["content"] = f"Thanks.{token[0]} {token[1:]}A"  # the way out that the message offers
    assert encode_conversation(tokenizer, messages).tokens.count(tokenizer.convert_tokens_to_ids(token)) <= 1


def test_tokens_that_a_learner_adds_are_refused_if_they_are_control_tokens(tokenizer):
    more = deepcopy(tokenizer)
    more.add_tokens(["<thought>"])
    assert more.convert_tokens_to_ids("<thought>") in encode_prompt(more, user("Why? <thought>"))
    more.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
    with pytest.raises(ValueError, match=r"message 1 \(user\) holds the control token <\|tool\|>"):
        encode_prompt(more, user("Why? <|tool|>"))


@given(st.lists(st.sampled_from(["<", "|", "<|", "user_end", "assistant_end", "|>", "<|user_end|>", " ", "a"])))
def test_no_text_becomes_a_control_token(tokenizer, pieces):
    try:
        ids = encode_prompt(tokenizer, user("".join(pieces)))
    except ValueError:
        return
    control = [token for token in tokens_of(tokenizer, ids) if token in SPECIAL_TOKENS]
    assert control == ["<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>"]


QUESTIONS = ["What is a token?", "Why?", "Thanks."]


def slow_greedy(model, tokenizer, question, steps):
    """The likeliest next token of the whole text so far, again and again, until the end token."""
    ids = encode_prompt(tokenizer, user(question))
    start = len(ids)
    for _ in range(steps):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_greedy_answers_equal_a_slow_loop(tokenizer, tiny_model):
    model = tiny_model()
    got = answer(model, tokenizer, QUESTIONS, temperature=0, max_new_tokens=8)
    assert got == [slow_greedy(model, tokenizer, question, 8) for question in QUESTIONS]
    assert answer(model, tokenizer, QUESTIONS[1:2], temperature=0, max_new_tokens=8) == got[1:2]
    assert answer(model, tokenizer, QUESTIONS, temperature=0, max_new_tokens=8, seed=5) == got


def test_sampled_answers_repeat_with_their_seed(tokenizer, tiny_model):
    model = tiny_model()
    first = answer(model, tokenizer, QUESTIONS, seed=1, max_new_tokens=8)
    torch.rand(3)  # whatever else draws numbers in between
    assert answer(model, tokenizer, QUESTIONS, seed=1, max_new_tokens=8) == first
    assert answer(model, tokenizer, QUESTIONS, seed=2, max_new_tokens=8) != first
    sampled = [answer(model, tokenizer, QUESTIONS, seed=None, max_new_tokens=8) for _ in range(2)]
    assert sampled[0] != sampled[1]


def test_temperature_reaches_the_sampling(tokenizer, tiny_model):
    model = tiny_model()
    greedy = answer(model, tokenizer, QUESTIONS, temperature=0, max_new_tokens=8)
    assert answer(model, tokenizer, QUESTIONS, temperature=1e-4, max_new_tokens=8) == greedy
    assert answer(model, tokenizer, QUESTIONS, temperature=1.0, max_new_tokens=8) != greedy


@pytest.mark.parametrize(("engine", "temperature"), [("greedy_rollout", 0), ("rollout", 1.0)])
def test_answers_hold_the_response_and_no_control_token(tokenizer, monkeypatch, engine, temperature):
    rows = [
        ["<|pad|>", "Why", "A", "<|user_start|>", "Ġtoken", "<|assistant_end|>"],
        ["What", "Ġis", "It", "<|assistant_end|>", "Ġwords", "Ġtext"],
    ]
    tokens = torch.tensor([tokenizer.convert_tokens_to_ids(row) for row in rows])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    sample = Rollout(tokens, tokens != tokenizer.pad_token_id, mask, torch.zeros(2, 4), mask.all(1))
    monkeypatch.setattr(chat, engine, lambda *args, **options: sample)
    assert answer(None, tokenizer, ["Why?", "What?"], temperature=temperature) == ["A token", "It"]


def test_a_tokenizer_without_a_pad_token_answers_all_the_same(tokenizer, tiny_model):
    padless = deepcopy(tokenizer)
    padless.pad_token = None
    model = tiny_model()
    for temperature in (0, 1.0):
        options = {"temperature": temperature, "max_new_tokens": 6}
        assert answer(model, padless, QUESTIONS, **options) == answer(model, tokenizer, QUESTIONS, **options)


def test_system_messages_add_up_and_need_a_user(tokenizer):
    system = [{"role": "system", "content": "Be brief."}, {"role": "system", "content": "Thanks."}]
    text = tokenizer.apply_chat_template([*system, {"role": "user", "content": "Why?"}], tokenize=False)
    assert text == "<|bos|><|user_start|>Be brief.\n\nThanks.\n\nWhy?<|user_end|>"
    with pytest.raises(Exception, match="a system message needs a user message after it"):
        tokenizer.apply_chat_template(system, tokenize=False)


def test_responses_are_the_answers_with_the_tokens_behind_them(tokenizer, tiny_model):
    model = tiny_model()
    for options in ({"temperature": 0}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.5, "seed": 3}):
        sample, texts = respond(model, tokenizer, QUESTIONS, max_new_tokens=8, **options)
        assert texts == answer(model, tokenizer, QUESTIONS, max_new_tokens=8, **options)
        P = sample.tokens.shape[1] - sample.response_mask.shape[1]
        for row, question in enumerate(QUESTIONS):
            given = sample.tokens[row, :P][sample.attention_mask[row, :P]]
            said = sample.tokens[row, P:][sample.response_mask[row]]
            assert given.tolist() == encode_prompt(tokenizer, user(question))
            assert tokenizer.decode(said, skip_special_tokens=True) == texts[row]
            assert sample.finished[row] == (said[-1] == tokenizer.eos_token_id)


def test_the_log_probs_of_responses_are_at_the_temperature_that_sampled_them(tokenizer, tiny_model):
    model = tiny_model()
    for temperature in (1.0, 0.5):
        sample, _ = respond(model, tokenizer, ["Why?"], temperature=temperature, max_new_tokens=4)
        T = sample.response_mask.shape[1]
        logits = model(input_ids=sample.tokens).logits[0, -T - 1 : -1] / temperature
        wanted = logits.log_softmax(-1).gather(1, sample.tokens[0, -T:, None]).squeeze(1)
        torch.testing.assert_close(sample.logp[0], wanted, rtol=0, atol=1e-5)


def test_responses_know_which_answers_ended(tokenizer, taught):
    sample, texts = respond(taught(), tokenizer, QUESTIONS * 8, max_new_tokens=5)
    assert sample.finished.any() and not sample.finished.all()
    lengths = sample.response_mask.sum(1)
    assert (lengths[~sample.finished] == 5).all() and (lengths <= 5).all()
    assert len(texts) == 24 and not any("<|" in text for text in texts)


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }} {% endfor %}"])
def test_a_template_that_ends_no_turn_adds_nothing(tokenizer, template):
    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = template
    assert chat.end_ids(None, tokenizer) == [tokenizer.eos_token_id]
