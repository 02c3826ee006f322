"""From policies to pairs: who answers what how often, which answers are left out, which pairs are picked."""

from collections import Counter

import pytest

from picollm_lite.chat import answer, user
from picollm_lite.collection.candidates import Candidate, make_pairs, sample_candidates
from picollm_lite.collection.pairs import AnswerPair

PROMPTS = ["What is a token?", "Why?"]


def said(*texts, prompt="Why?", source="sft at temperature 1"):
    return [Candidate(user(prompt), text, source) for text in texts]


def texts(pair):
    return pair.a[0]["content"], pair.b[0]["content"]


# Sampling


def test_k_answers_a_prompt_from_every_policy_at_every_temperature(taught, tiny_model, tokenizer):
    """Two policies, two prompts, three answers at temperature 1; at temperature 0 all would be one and the same."""
    policies = {"sft": taught(), "base": tiny_model()}
    got = sample_candidates(policies, tokenizer, PROMPTS, k=3, temperatures=(1.0, 0), max_new_tokens=6)
    counts = Counter((candidate.prompt[0]["content"], candidate.source) for candidate in got)
    assert counts == {
        (prompt, f"{policy} at temperature {temperature}"): n
        for prompt in PROMPTS
        for policy in policies
        for temperature, n in (("1", 3), ("0", 1))
    }
    greedy = [candidate.text for candidate in got if candidate.source == "sft at temperature 0"]
    assert greedy == answer(policies["sft"], tokenizer, PROMPTS, temperature=0, max_new_tokens=6)


def test_answers_repeat_with_their_seed_and_differ_between_draws(taught, tokenizer):
    def sample(**settings):
        return sample_candidates({"sft": taught()}, tokenizer, PROMPTS, k=8, max_new_tokens=8, **settings)

    assert sample() == sample(seed=0) != sample(seed=1)
    assert len({candidate.text for candidate in sample()}) > 4
    batched = sample(batch_size=8)  # the second batch, for the other prompt, does not draw what the first one drew
    assert [candidate.prompt for candidate in batched] == [candidate.prompt for candidate in sample()]
    same = sample_candidates({"sft": taught()}, tokenizer, ["Why?"] * 2, k=8, max_new_tokens=8, batch_size=8)
    assert [candidate.text for candidate in same[:8]] != [candidate.text for candidate in same[8:]]


def test_a_conversation_is_a_prompt_too(taught, tokenizer):
    talk = [*user("Why?"), {"role": "assistant", "content": "Thanks."}, *user("What is a token?")]
    (candidate,) = sample_candidates({"sft": taught()}, tokenizer, [talk], temperatures=[0], max_new_tokens=8)
    assert candidate.prompt == talk
    assert [candidate.text] == answer(taught(), tokenizer, [talk], temperature=0, max_new_tokens=8)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "at least one policy, prompt and temperature"),
        (PROMPTS, {"k": 0}, "k and batch_size of at least 1"),
        (PROMPTS, {"temperatures": ()}, "at least one policy, prompt and temperature"),
        (["Why?", " "], {}, r"prompt 1: message 1 \(user\) is empty"),
        (
            [[*user("Why?"), {"role": "assistant", "content": "So."}]],
            {},
            "prompt 0: expected the user's message at the end, got the assistant's",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(taught, tokenizer, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        sample_candidates({"sft": taught()}, tokenizer, prompts, **settings)


# Pairs


def test_a_pair_is_two_answers_to_one_prompt_with_their_sources():
    candidates = [*said("yes", source="sft at temperature 1"), *said("no", prompt="Who?"), *said("no", source="dpo")]
    made = make_pairs(candidates)
    (pair,) = made.pairs
    assert (pair.id, pair.prompt) == ("pair-00000", user("Why?"))
    sides = {texts(pair)[0]: pair.source_a, texts(pair)[1]: pair.source_b}
    assert sides == {"yes": "sft at temperature 1", "no": "dpo"}
    assert all(message["role"] == "assistant" for message in (*pair.a, *pair.b))
    assert made.dropped == {"prompts without two answers": 1}


def test_duplicates_and_empty_answers_are_left_out_and_counted():
    """Of six answers "a" comes three times, once with a space around it, and two are blank: one pair, of a and b."""
    made = make_pairs(said("a", "", "a", " a ", "\n", "b"), per_prompt=9)
    assert [sorted(texts(pair)) for pair in made.pairs] == [["a", "b"]]
    assert made.dropped == {"duplicate answers": 2, "empty answers": 2}
    assert make_pairs(said("a", "a")).dropped == {"duplicate answers": 1, "prompts without two answers": 1}
    assert make_pairs(said("a", "b")).dropped == {}


def test_answers_that_differ_only_beyond_the_cut_are_one(tokenizer):
    """BOS, user start, Why, ?, user end, assistant start; then It, splits, words: the seventh to ninth token."""
    candidates = said("It splits words.", "It splits Thanks.")
    (pair,) = make_pairs(candidates, tokenizer=tokenizer, max_length=9).pairs
    assert sorted(texts(pair)) == ["It splits Thanks.", "It splits words."]
    reason = "answers that are the same when cut at 8 tokens"
    cut = make_pairs(candidates, tokenizer=tokenizer, max_length=8)
    assert cut == ([], {reason: 1, "prompts without two answers": 1})
    assert len(make_pairs(candidates).pairs) == 1  # without a tokenizer nobody can tell


ANSWERS = said("token", "tokens", "a very different answer")


def test_the_most_and_the_least_alike():
    """token and tokens are one edit apart, the others at least sixteen."""
    for seed in range(5):
        (near,) = make_pairs(ANSWERS, kind="near", seed=seed).pairs
        assert sorted(texts(near)) == ["token", "tokens"]
        (far,) = make_pairs(ANSWERS, kind="far", seed=seed).pairs
        assert "a very different answer" in texts(far)
    three = [frozenset(texts(pair)) for pair in make_pairs(ANSWERS, kind="near", per_prompt=3).pairs]
    assert len(set(three)) == 3 and three[0] == {"token", "tokens"}


def test_any_pair_may_be_picked_and_either_answer_may_be_a():
    """Six ordered pairs of three answers: in 120 draws each comes 20 times, give or take 4 x 4.1."""
    drawn = Counter(texts(make_pairs(ANSWERS, seed=seed).pairs[0]) for seed in range(120))
    assert len(drawn) == 6 and all(4 <= count <= 36 for count in drawn.values()), drawn
    near = Counter(texts(make_pairs(ANSWERS, kind="near", seed=seed).pairs[0]) for seed in range(40))
    assert sorted(near) == [("token", "tokens"), ("tokens", "token")]


def test_pairs_repeat_with_their_seed_and_are_numbered_through():
    candidates = [candidate for n in range(12) for candidate in said("a", "b", "c", prompt=f"Why {n}?")]
    first = make_pairs(candidates, per_prompt=2)
    assert first == make_pairs(candidates, per_prompt=2, seed=0) != make_pairs(candidates, per_prompt=2, seed=1)
    assert [pair.id for pair in first.pairs] == [f"pair-{n:05d}" for n in range(24)]
    assert [pair.prompt for pair in first.pairs] == [user(f"Why {n // 2}?") for n in range(24)]
    assert all(isinstance(pair, AnswerPair) for pair in first.pairs)


@pytest.mark.parametrize("settings", [{"kind": "close"}, {"per_prompt": 0}])
def test_a_choice_that_is_none_is_refused(settings):
    with pytest.raises(ValueError, match="expected a kind out of any, near, far and per_prompt >= 1"):
        make_pairs(ANSWERS, **settings)
