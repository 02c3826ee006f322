"""Each edit by hand, what it costs in gold, what it refuses, and that a seed settles it."""

from random import Random

import pytest

from picollm_lite.data import load_suite
from picollm_lite.evaluation.perturbations import EDITS
from picollm_lite.paths import SUITE
from picollm_lite.world.asks import REQUIRED, read, reference_answer
from picollm_lite.world.concepts import by_id, load_concepts
from picollm_lite.world.rubric import judge_sentences, score
from picollm_lite.world.texts import FILLER_SENTENCES, FLATTERY_SENTENCES

QUESTION, UNKNOWN = "What is a KV cache?", "What is a zebra?"
COMPARE = "What is the difference between a base model and a chat-SFT model?"
PERFECT = reference_answer(read(QUESTION))
FACTS = by_id()["kv_cache"].facts
HARMLESS = {"lower case"}


@pytest.fixture(scope="module")
def suite():
    """(question, perfect answer) of the frozen suite."""
    return [(question, reference_answer(read(question))) for question in load_suite(SUITE)["prompt"]]


def edited(name, question, answer, seed=0):
    return EDITS[name](question, answer, Random(seed))


@pytest.mark.parametrize(
    ("name", "sentences", "first"),
    [
        ("flattery first", FLATTERY_SENTENCES, True),
        ("flattery last", FLATTERY_SENTENCES, False),
        ("padding", FILLER_SENTENCES, False),
    ],
)
def test_an_empty_sentence_stands_at_its_end_and_is_new_each_time(name, sentences, first):
    answer, rng = PERFECT, Random(0)
    for count in range(1, len(sentences) + 1):
        before, answer = answer, EDITS[name](QUESTION, answer, rng)
        assert answer.endswith(f" {before}") if first else answer.startswith(f"{before} ")
        assert sum(sentence in answer for sentence in sentences) == count
    assert PERFECT in edited(name, QUESTION, answer)  # all said: one of them again
    assert edited(name, QUESTION, "") in sentences


def test_the_last_sentence_is_said_again():
    assert edited("repetition", QUESTION, "One is. Two are! ") == "One is. Two are! Two are!"


def test_the_ending_is_cut_off():
    assert edited("cut off", QUESTION, "A b c. D e f g h.") == "A b c. D"
    assert edited("cut off", QUESTION, "A b c. D e f g.") == "A b c"  # not a whole sentence either
    assert edited("cut off", QUESTION, "Yes.") == ""


def test_extra_facts_are_true_new_and_not_asked_for():
    """`define` wants the definition; the example is there already: two of the other three come after."""
    answer = f"{PERFECT} {FACTS['example']}"
    extra = {edited("extra facts", QUESTION, answer, seed).removeprefix(f"{answer} ") for seed in range(40)}
    rest = [FACTS[kind] for kind in ("why", "analogy", "misconception")]
    assert extra == {f"{a} {b}" for a in rest for b in rest if a != b}
    most = " ".join(FACTS[kind] for kind in ("why", "example", "analogy"))
    assert edited("extra facts", QUESTION, most) == f"{most} {FACTS['misconception']}"  # the definition is asked for


def test_a_fact_gives_way_to_the_same_kind_of_fact_of_another_concept():
    answer = f"Well asked! {FACTS['definition']} {FACTS['example']} I hope this helps."
    once = edited("swapped fact", QUESTION, answer)
    before, after = answer.split(FACTS["definition"])
    assert once.startswith(before) and once.endswith(after)
    definitions = {concept.facts["definition"] for concept in load_concepts()} - {FACTS["definition"]}
    assert once.removeprefix(before).removesuffix(after) in definitions
    twice = edited("swapped fact", QUESTION, once)  # the next fact about what was asked
    assert FACTS["example"] not in twice and twice.startswith(once.removesuffix(after))


def test_swapping_never_comes_back_to_what_was_asked_nor_stays():
    targets = {concept.id for concept in read(COMPARE).concepts}
    answer, rng, said = by_id()["kv_cache"].facts["why"], Random(0), ["kv_cache"]
    for _ in range(2000):
        answer = EDITS["swapped fact"](COMPARE, answer, rng)
        (verdict,) = judge_sentences(answer)
        assert verdict.kind == "why" and verdict.concept != said[-1]
        said.append(verdict.concept)
    assert set(said) == {concept.id for concept in load_concepts()} - targets


def test_swapping_works_without_a_known_concept_in_the_question():
    assert edited("swapped fact", UNKNOWN, PERFECT) != PERFECT


@pytest.mark.parametrize("question", [QUESTION, COMPARE])
def test_two_edits_give_another_answer_in_place_of_this_one(question):
    targets = {concept.id for concept in read(question).concepts}
    required = REQUIRED[read(question).ask]
    for seed in range(20):
        missed = judge_sentences(edited("missed ask", question, "I do not know.", seed))
        assert {v.concept for v in missed} == targets and not {v.kind for v in missed} & set(required)
        other = judge_sentences(edited("another concept's answer", question, "I do not know.", seed))
        assert not {v.concept for v in other} & targets and {v.kind for v in other} == set(required)


def test_one_word_is_dropped_and_no_sentence_loses_its_end():
    assert {edited("dropped word", QUESTION, "A b. C d!", seed) for seed in range(20)} == {"b. C d!", "A b. d!"}


def test_lower_case_costs_no_gold(suite):
    assert edited("lower case", QUESTION, "A KV cache.") == "a kv cache."
    assert all(score(question, answer.lower()).total == 2.0 for question, answer in suite)


@pytest.mark.parametrize("name", sorted(EDITS.keys() - HARMLESS))
def test_every_defect_of_a_perfect_answer_costs_gold(name, suite):
    rng = Random(0)
    assert all(score(q, EDITS[name](q, answer, rng)).total < score(q, answer).total == 2.0 for q, answer in suite)


@pytest.mark.parametrize("name", EDITS)
def test_a_seed_settles_everything(name):
    assert edited(name, QUESTION, PERFECT, 5) == edited(name, QUESTION, PERFECT, 5)


@pytest.mark.parametrize("name", ["repetition", "swapped fact", "cut off"])
@pytest.mark.parametrize("answer", ["", "  ", "!?"])
def test_nothing_cannot_be_edited(name, answer):
    with pytest.raises(ValueError, match="the answer is empty: there is nothing to edit"):
        edited(name, QUESTION, answer)


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("swapped fact", "Zebras graze at noon. Well asked!", "no sentence of the answer is a fact of the bank"),
        ("extra facts", " ".join(FACTS.values()), "the answer holds every fact about what was asked"),
        ("dropped word", "Yes. No.", "no word of the answer stands before the end of a sentence"),
    ],
)
def test_what_cannot_be_done_is_said(name, answer, message):
    with pytest.raises(ValueError, match=message):
        edited(name, QUESTION, answer)
