"""The base corpus says only what the bank says; demonstrations have the mix and exactly the defects planted in them."""

import random
import re
from collections import Counter
from itertools import islice

import pytest

from picollm_lite.world.asks import ASKS, PHRASINGS, REQUIRED, Question, is_held_out, read, reference_answer, render
from picollm_lite.world.concepts import KINDS, by_id, load_concepts
from picollm_lite.world.rubric import judge_sentences, score
from picollm_lite.world.texts import (
    FILLER_SENTENCES,
    FLATTERY_SENTENCES,
    LABELS,
    QUALITY_MIX,
    answer,
    base_document,
    compare_pairs,
    demonstrations,
    training_prompts,
)

QUALITIES = ["good", "wrong_concept", "missed_ask", "extra_facts", "filler", "flattery", "repeated", "cut_off"]
OWNERS = {fact: (c, kind) for c in load_concepts() for kind, fact in c.facts.items()}
SENTENCE = re.compile(r"(?:(\w[\w ]*): )?([A-Z](?:[^.!?]|(?<=\d)\.(?=\d))*\.)(?: |$)")
KV = by_id()["kv_cache"]


def documents(seed, count=2000):
    rng = random.Random(seed)
    return [base_document(rng) for _ in range(count)]


def parsed(document):
    """(heading or None, [(label or None, fact)]); fails on anything that is neither."""
    parts = SENTENCE.findall(document)
    assert "".join(f"{label}: {text} " if label else f"{text} " for label, text in parts).strip() == document
    head = None if parts[0][1] in OWNERS else parts.pop(0)[1]
    assert all(text in OWNERS for _, text in parts), document
    return head, [(label or None, text) for label, text in parts]


def near_share(count, n, share):
    """Within 4 standard deviations of a binomial."""
    return abs(count - n * share) < 4 * (n * share * (1 - share)) ** 0.5


def test_base_documents_hold_only_facts_of_the_bank_their_labels_and_headings():
    """Four styles: 40 % labeled entries, 20 % a paragraph, 20 % loose facts, 20 % notes on two concepts."""
    styles = Counter()
    for document in documents(0):
        head, facts = parsed(document)
        concepts, kinds = zip(*(OWNERS[text] for _, text in facts), strict=True)
        of_one = len(set(concepts)) == 1
        assert head is None or head[0].isupper()
        if any(label for label, _ in facts):
            assert [label for label, _ in facts] == [LABELS[kind] for kind in kinds]
            assert of_one and head.lower() == f"{concepts[0].name}.".lower()
            assert 2 <= len(facts) <= 5 and len(set(kinds)) == len(kinds)
            styles["entry"] += 1
        elif head:
            a, b = concepts
            assert head.lower() == f"{a.phrase} and {b.phrase}.".lower()
            assert kinds == ("definition", "definition") and a != b
            styles["two"] += 1
        elif of_one and len(set(kinds)) == len(kinds):
            assert 2 <= len(facts) <= 4
            styles["paragraph"] += 1
        else:
            assert len(facts) == 3
            styles["loose"] += 1
    n = sum(styles.values())
    assert all(
        near_share(styles[style], n, share)
        for style, share in {"entry": 0.4, "two": 0.2, "paragraph": 0.2, "loose": 0.2}.items()
    ), styles


def test_base_documents_hold_every_fact():
    said = {text for document in documents(1, 6000) for _, text in parsed(document)[1]}
    assert said == set(OWNERS)


def test_labels_name_the_five_kinds():
    assert LABELS == {
        "definition": "Definition",
        "why": "Why it matters",
        "example": "Example",
        "analogy": "Analogy",
        "misconception": "Misconception",
    }


def test_a_seed_settles_everything():
    assert documents(3, 50) == documents(3, 50) != documents(4, 50)
    assert list(islice(demonstrations(3), 200)) == list(islice(demonstrations(3), 200))
    assert list(islice(demonstrations(3), 200)) != list(islice(demonstrations(4), 200))
    assert compare_pairs(3) == compare_pairs(3) != compare_pairs(4)


def test_compare_pairs_are_distinct_and_of_one_topic():
    pairs = compare_pairs(0)
    assert len(pairs) == len(set(pairs)) == 320
    assert all(a.topic == b.topic and a != b for a, b in pairs)
    assert len({a.topic for a, _ in pairs}) == len({c.topic for c in load_concepts()})


@pytest.fixture(scope="module")
def demos():
    """(question, prompt, answer, quality) of every demonstration of one seed."""
    rows = []
    for demo in demonstrations(1):
        assert list(demo) == ["messages", "quality"]
        user, assistant = demo["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        rows.append((read(user["content"]), user["content"], assistant["content"], demo["quality"]))
    return rows


def test_each_combination_is_demonstrated_equally_often(demos):
    """16 times for one concept, 6 times for each of the pairs to compare, never where it is held out."""
    counts = Counter(question for question, *_ in demos)
    single = [ask for ask in ASKS if ask != "compare"]
    expected = {Question(ask, (c,)): 16 for ask in single for c in load_concepts() if not is_held_out(ask, (c,))}
    expected |= {Question("compare", pair): 6 for pair in compare_pairs(1) if not is_held_out("compare", pair)}
    assert counts == expected
    assert len({question.ask for question, *_ in demos[:50]}) > 4  # shuffled


def test_qualities_are_mixed_as_stated(demos):
    assert list(QUALITY_MIX) == QUALITIES and sum(QUALITY_MIX.values()) == pytest.approx(1.0)
    counts = Counter(quality for *_, quality in demos)
    assert set(counts) == set(QUALITIES)
    assert all(near_share(counts[quality], len(demos), share) for quality, share in QUALITY_MIX.items()), counts
    assert 0.2 < QUALITY_MIX["good"] < 0.6  # mixed: SFT is not the end


def criteria_of(demos, quality):
    for question, prompt, text, planted in demos:
        if planted == quality:
            yield question, text, score(prompt, text).criteria, judge_sentences(text)


def test_good_answers_are_perfect(demos):
    for question, text, criteria, _ in criteria_of(demos, "good"):
        assert text == reference_answer(question)
        assert set(criteria.values()) == {1.0}


def test_wrong_concept_is_only_that(demos):
    """The facts asked for, in order, verbatim and clean, about neighbors in the topic."""
    for question, text, criteria, verdicts in criteria_of(demos, "wrong_concept"):
        assert (criteria["correct"], criteria["asked"], criteria["clean"]) == (0.0, 0.0, 1.0)
        assert [v.kind for v in verdicts] == list(REQUIRED[question.ask]) * len(question.concepts)
        owners = [OWNERS[v.text][0] for v in verdicts]
        assert not set(owners) & set(question.concepts) and {c.topic for c in owners} == {question.concepts[0].topic}
        assert len(set(owners)) == len(question.concepts) and text == " ".join(v.text for v in verdicts)


def test_missed_ask_is_only_that(demos):
    """One true fact about each concept, of a kind that was not asked for."""
    kinds = set()
    for question, text, criteria, verdicts in criteria_of(demos, "missed_ask"):
        assert (criteria["correct"], criteria["asked"], criteria["clean"]) == (1.0, 0.0, 1.0)
        assert [OWNERS[v.text][0] for v in verdicts] == list(question.concepts)
        assert not {v.kind for v in verdicts} & set(REQUIRED[question.ask]) and len(text.split()) <= 36
        kinds |= {v.kind for v in verdicts}
    assert kinds == set(KINDS)


def test_extra_facts_are_only_that(demos):
    """A perfect answer, then two more facts: too long, and more than the one sentence that was wanted."""
    for question, text, criteria, verdicts in criteria_of(demos, "extra_facts"):
        assert (criteria["correct"], criteria["clean"]) == (1.0, 1.0) and criteria["concise"] < 1.0
        assert criteria["asked"] == (question.ask != "one_sentence")
        assert text.startswith(reference_answer(question) + " ")
        extra = [OWNERS[v.text] for v in verdicts[-2:]]
        assert {concept for concept, _ in extra} == {question.concepts[0]}
        assert len({*REQUIRED[question.ask], *(kind for _, kind in extra)}) == len(REQUIRED[question.ask]) + 2


@pytest.mark.parametrize(("quality", "sentences"), [("filler", FILLER_SENTENCES), ("flattery", FLATTERY_SENTENCES)])
def test_filler_and_flattery_are_only_that(demos, quality, sentences):
    """A perfect answer with one such sentence before it, after it, or one on each side."""
    places, used = Counter(), set()
    for question, text, criteria, verdicts in criteria_of(demos, quality):
        before, after = text.split(reference_answer(question))
        planted = [sentence.strip() for sentence in (before, after) if sentence]
        assert set(planted) <= set(sentences) and len(set(planted)) == len(planted) > 0
        assert criteria["correct"] == 1.0 and criteria["asked"] == (question.ask != "one_sentence")
        assert criteria["clean"] == 1.0 - 0.5 * len(planted)
        assert sum(v.filler for v in verdicts) == (len(planted) if quality == "filler" else 0)
        places[bool(before), bool(after)] += 1
        used |= set(planted)
    assert all(near_share(count, places.total(), 1 / 3) for count in places.values()) and len(places) == 3
    assert used == set(sentences)


def test_repeated_is_only_that(demos):
    for question, text, criteria, verdicts in criteria_of(demos, "repeated"):
        assert criteria["correct"] == 1.0 and criteria["asked"] == (question.ask != "one_sentence")
        assert criteria["clean"] == 0.5 and [v.repeated for v in verdicts] == [False] * (len(verdicts) - 1) + [True]
        first = question.concepts[0].facts[REQUIRED[question.ask][0]]
        assert text == f"{reference_answer(question)} {first}"


def test_cut_off_is_only_that(demos):
    """At least half of a perfect answer, but not its last two words, and never a proper end."""
    for question, text, criteria, verdicts in criteria_of(demos, "cut_off"):
        whole = reference_answer(question)
        assert whole.startswith(text) and len(whole.split()) // 2 <= len(text.split()) <= len(whole.split()) - 2
        assert criteria["clean"] == 0.5 and criteria["concise"] == 1.0 and criteria["asked"] < 1.0
        assert not any(v.flattery or v.filler or v.repeated for v in verdicts)


def test_a_cut_between_two_facts_has_no_end_either():
    """The second sentence is gone as a whole: without care, the first one's period would end the answer."""
    question = Question("why", (KV,))
    ends = {answer(question, "cut_off", random.Random(seed)).split()[-1] for seed in range(200)}
    assert KV.facts["definition"].split()[-1].rstrip(".") in ends
    assert not [word for word in ends if word.endswith(".")]


def test_an_unknown_quality_is_refused():
    with pytest.raises(KeyError, match="superb"):
        answer(Question("define", (KV,)), "superb", random.Random(0))


def test_planted_sentences_are_distinct():
    both = FLATTERY_SENTENCES + FILLER_SENTENCES
    assert len(set(both)) == len(both) and min(len(FLATTERY_SENTENCES), len(FILLER_SENTENCES)) >= 10


@pytest.mark.parametrize("ask", ASKS)
def test_training_prompts_are_every_question_that_training_may_use(ask):
    """All concepts (or pairs) of this ask but those held out, each in its first 9 of 12 phrasings, once."""
    prompts = training_prompts(ask, 1)
    open_to_training = compare_pairs(1) if ask == "compare" else [(c,) for c in load_concepts()]
    allowed = [concepts for concepts in open_to_training if not is_held_out(ask, concepts)]
    assert 0.7 < len(allowed) / len(open_to_training) < 1.0
    assert len(prompts) == len(set(prompts)) == 9 * len(allowed)
    questions, phrasings = Counter(), Counter()
    for prompt in prompts:
        question = read(prompt)
        questions[question] += 1
        phrasings[next(i for i in range(len(PHRASINGS[ask])) if render(*question, i) == prompt)] += 1
    assert questions == {Question(ask, concepts): 9 for concepts in allowed}
    assert phrasings == dict.fromkeys(range(9), len(allowed))


def test_training_prompts_come_in_a_fixed_order_that_the_caller_may_change():
    first = training_prompts("define", 1)
    assert first == training_prompts("define", 2)  # the seed is for the pairs to compare
    assert training_prompts("compare", 1) != training_prompts("compare", 2)
    random.Random(0).shuffle(first)
    assert first != training_prompts("define", 1) == training_prompts("define", 1)


def test_demonstrations_ask_training_prompts_only(demos):
    allowed = {prompt for ask in ASKS for prompt in training_prompts(ask, 1)}
    assert {prompt for _, prompt, *_ in demos} <= allowed
