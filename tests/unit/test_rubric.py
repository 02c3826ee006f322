"""The gold reward: perfect answers, the price of each defect, what cannot pay, and the page that people read."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from picollm_lite.paths import CONCEPTS
from picollm_lite.world import rubric
from picollm_lite.world.asks import ASKS, REQUIRED, Question, read, reference_answer, render
from picollm_lite.world.concepts import KINDS, by_id, load_concepts
from picollm_lite.world.rubric import judge_sentences, score
from picollm_lite.world.texts import FILLER_SENTENCES, FLATTERY_SENTENCES

PAGE = (CONCEPTS.parent / "rubric.md").read_text(encoding="utf-8")
TABLE_ROWS = [[cell.strip() for cell in line.strip(" |").split("|")] for line in PAGE.splitlines() if "|" in line]
COSTS = {row[0]: float(row[1].split()[0]) for row in TABLE_ROWS if len(row) == 2 and re.match(r"\d", row[1])}
DIRTY = COSTS["one flattering, filler or repeated sentence"]
BROKEN = COSTS["a broken ending"]
OTHER_KIND = COSTS["true facts of another kind than was asked for"]
SECOND_SENTENCE = COSTS["a second sentence where exactly one was wanted"]
LONG = COSTS["1.75 times the free length"]
OTHER_CONCEPT = COSTS["the same kind of answer about another concept"]

BANK = load_concepts()
QUESTIONS = [Question(ask, (c,)) for ask in ASKS if ask != "compare" for c in BANK]
QUESTIONS += [Question("compare", pair) for pair in zip(BANK, BANK[1:] + BANK[:1], strict=True)]
EMPTY_SENTENCES = FLATTERY_SENTENCES + FILLER_SENTENCES

TOKEN = by_id()["token"]
FACT = TOKEN.facts["definition"]  # 16 words, so 20 are free
WHY = TOKEN.facts["why"]
KV_FACT = by_id()["kv_cache"].facts["definition"]
DEFINE, ONE_SENTENCE = "What is a token?", "Define a token in exactly one sentence."


def prompt_of(question):
    return render(question.ask, question.concepts, 0)


def overrun(question, response):
    """What the words beyond the free length cost: 1 for each further free length, at most 1."""
    free = 1.25 * len(reference_answer(question).split())
    return min(1.0, max(0.0, len(response.split()) / free - 1))


def cost(question, response):
    return 2.0 - score(prompt_of(question), response).total


def other_facts(question, concept, count):
    return [concept.facts[kind] for kind in KINDS if kind not in REQUIRED[question.ask]][:count]


def test_this_file_counts_on_a_definition_of_16_words():
    assert len(FACT.split()) == 16 and len(KV_FACT.split()) == 16


@pytest.mark.parametrize("ask", ASKS)
def test_a_perfect_answer_scores_exactly_2(ask):
    for question in (q for q in QUESTIONS if q.ask == ask):
        perfect = score(prompt_of(question), reference_answer(question))
        assert perfect == (2.0, {"correct": 1.0, "asked": 1.0, "concise": 1.0, "clean": 1.0}), question


@pytest.mark.parametrize("response", ["", "  \n ", "...", "?!", ", ;"])
def test_an_empty_answer_scores_minus_3(response):
    assert score(DEFINE, response) == (-3.0, {"correct": 0.0, "asked": 0.0, "concise": 0.0, "clean": 0.0})


def test_an_answer_that_claims_nothing_is_an_empty_one():
    for sentence in EMPTY_SENTENCES:
        assert score(DEFINE, sentence).total == score(DEFINE, f"{sentence} {sentence}").total == -3.0


def test_an_unreadable_question_is_refused():
    with pytest.raises(ValueError, match="names no concept of the bank: 'What is love"):
        score("What is love?", FACT)


def test_one_flattering_or_filler_sentence_costs_its_weight():
    """Before or after, whatever the ask; words beyond the free length cost on top, and so does a second sentence."""
    for i, question in enumerate(QUESTIONS):
        perfect, sentence = reference_answer(question), EMPTY_SENTENCES[i % len(EMPTY_SENTENCES)]
        second = SECOND_SENTENCE if question.ask == "one_sentence" else 0.0
        for answer in (f"{sentence} {perfect}", f"{perfect} {sentence}", f"{perfect} Well asked!"):
            assert cost(question, answer) == pytest.approx(DIRTY + second + overrun(question, answer)), answer
    assert cost(Question("define", (TOKEN,)), f"{FACT} Well asked!") == DIRTY  # 18 words of 20


def test_one_repeated_sentence_costs_its_weight():
    for question in QUESTIONS:
        perfect = reference_answer(question)
        answer = f"{perfect} {perfect.split('. ')[-1]}"
        second = SECOND_SENTENCE if question.ask == "one_sentence" else 0.0
        assert cost(question, answer) == pytest.approx(DIRTY + second + overrun(question, answer)), answer
    # 32 words where 20 are free cost .6
    assert cost(Question("define", (TOKEN,)), f"{FACT} {FACT}") == pytest.approx(DIRTY + 0.6)


def test_a_broken_ending_costs_its_weight():
    for question in QUESTIONS:
        assert cost(question, reference_answer(question)[:-1]) == BROKEN
        assert cost(question, reference_answer(question)[:-1] + ", ") == BROKEN


def test_a_cut_answer_also_pays_for_the_words_that_are_missing():
    """12 of 16 words share .75: half the credit, so 1 of `correct` and .5 of `asked`."""
    cut = " ".join(FACT.split()[:12])
    assert cost(Question("define", (TOKEN,)), cut) == pytest.approx(BROKEN + 1.0 + 0.5)


def test_facts_of_another_kind_cost_their_weight():
    for question in QUESTIONS:
        facts = [other_facts(question, concept, 1)[0] for concept in question.concepts]
        answer = " ".join(facts)
        assert cost(question, answer) == pytest.approx(OTHER_KIND + overrun(question, answer)), answer
    assert cost(Question("define", (TOKEN,)), WHY) == OTHER_KIND


def test_half_of_what_was_asked_costs_half():
    for question in (q for q in QUESTIONS if q.ask in ("why", "example")):
        (concept,) = question.concepts
        assert cost(question, concept.facts["definition"]) == OTHER_KIND / 2
        assert score(prompt_of(question), concept.facts["definition"]).criteria["asked"] == 0.5
    question = next(q for q in QUESTIONS if q.ask == "compare")
    assert cost(question, question.concepts[1].facts["definition"]) == OTHER_KIND / 2


def test_the_same_answer_about_another_concept_costs_its_weight():
    for question in QUESTIONS:
        start = BANK.index(question.concepts[-1])
        others = [BANK[(start + 7 + i) % len(BANK)] for i in range(len(question.concepts))]
        answer = reference_answer(Question(question.ask, tuple(others)))
        assert cost(question, answer) == pytest.approx(OTHER_CONCEPT + overrun(question, answer)), answer
    assert cost(Question("define", (TOKEN,)), KV_FACT) == OTHER_CONCEPT


@pytest.mark.parametrize(
    ("words", "concise"), [(16, 1.0), (20, 1.0), (21, 0.95), (30, 0.5), (35, 0.25), (40, 0.0), (41, 0.0), (60, 0.0)]
)
def test_length_by_hand(words, concise):
    """Lone commas are words of no meaning, so that nothing but the length changes. 20 words are free."""
    got = score(DEFINE, FACT[:-1] + " ," * (words - 16) + ".")
    assert got.criteria == {"correct": 1.0, "asked": 1.0, "concise": pytest.approx(concise), "clean": 1.0}
    assert got.total == pytest.approx(1.0 + concise)


def test_length_costs_its_weight_at_the_page_s_example():
    assert cost(Question("define", (TOKEN,)), FACT[:-1] + " ," * 19 + ".") == pytest.approx(LONG)  # 35 = 1.75 * 20


@pytest.mark.parametrize("wrong", range(11))
def test_near_verbatim_sentences_have_partial_credit(wrong):
    """Each of 16 words costs 1/8 of the credit; from 8 wrong words on, nothing is left."""
    words = ["nonsense"] * wrong + FACT.split()[wrong:]
    got = score(DEFINE, " ".join(words))
    credit = max(0.0, 1 - wrong / 8)
    assert got.criteria == {"correct": credit, "asked": credit, "concise": 1.0, "clean": 1.0}
    assert got.total == 3 * credit - 1
    (verdict,) = judge_sentences(" ".join(words))
    assert (verdict.concept, verdict.kind) == (("token", "definition") if wrong <= 8 else (None, None))


def test_words_left_out_or_put_in_cost_credit_too():
    """12 of 16 share .75: credit .5. 16 of 20 share .8: credit .6."""
    assert score(DEFINE, " ".join(FACT.split()[4:])).criteria["correct"] == 0.5
    assert score(DEFINE, "so it is said " + FACT).criteria["correct"] == pytest.approx(0.6)
    assert score(DEFINE, FACT.upper().replace(",", " ;")).total == 2.0  # case and punctuation are not words
    assert score(DEFINE, f"\n {FACT} \n").total == 2.0


def test_the_nearest_fact_equals_a_slow_search():
    """Word by word over lists of words, for facts with a third of their words replaced by words of other facts."""
    rng = random.Random(0)
    facts = {(c.id, kind): re.findall(r"[\w'-]+", fact.lower()) for c in BANK for kind, fact in c.facts.items()}
    vocabulary = sorted({word for words in facts.values() for word in words})
    for words in rng.sample(list(facts.values()), 60):
        mixed = [rng.choice(vocabulary) if rng.random() < 0.35 else word for word in words]
        (got,) = judge_sentences(" ".join(mixed))
        similarity = {owner: Levenshtein.normalized_similarity(mixed, fact) for owner, fact in facts.items()}
        best = max(similarity.values())
        assert got.credit == pytest.approx(max(0.0, 2 * best - 1))
        assert got.concept is None if best < 0.5 else similarity[got.concept, got.kind] == best


def test_correct_is_the_mean_over_claims():
    assert score(DEFINE, f"{FACT} {KV_FACT}").criteria["correct"] == 0.5
    assert score(DEFINE, f"{FACT} The sea is deep. {WHY}").criteria["correct"] == pytest.approx(2 / 3)
    assert score("Compare a token and a KV cache.", f"{FACT} {KV_FACT}").criteria["correct"] == 1.0
    assert score(DEFINE, f"Well asked! {FACT} {FACT} I hope this helps.").criteria["correct"] == 1.0


def test_only_the_first_try_at_a_fact_counts():
    """4 of 16 words wrong: credit .5. The verbatim fact after it is a repeat."""
    garbled = " ".join(["nonsense"] * 4 + FACT.split()[4:])
    criteria = score(DEFINE, f"{garbled} {FACT}").criteria
    assert (criteria["correct"], criteria["asked"], criteria["clean"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "answer", [f"{FACT} {WHY}", f"Well asked! {FACT}", f"{FACT} I hope this helps.", f"{FACT} {FACT}", f"{FACT} Yes."]
)
def test_one_sentence_means_one_sentence(answer):
    assert score(ONE_SENTENCE, FACT).total == 2.0
    assert score(ONE_SENTENCE, answer).criteria["asked"] == 0.0
    assert score(DEFINE, answer).criteria["asked"] == 1.0
    rest = {name: value for name, value in score(DEFINE, answer).criteria.items() if name != "asked"}
    assert rest.items() <= score(ONE_SENTENCE, answer).criteria.items()
    assert score(DEFINE, answer).total - score(ONE_SENTENCE, answer).total == pytest.approx(SECOND_SENTENCE)


def test_clean_falls_by_halves_to_minus_1():
    for dirt, clean in ((0, 1.0), (1, 0.5), (2, 0.0), (3, -0.5), (4, -1.0), (5, -1.0), (14, -1.0)):
        answer = " ".join([FACT, *FLATTERY_SENTENCES[:dirt]])
        assert score(DEFINE, answer).criteria["clean"] == clean
    assert score(DEFINE, "That is an excellent question, I hope this helps! " + FACT).criteria["clean"] == 0.0
    assert score(DEFINE, f"Well asked! Well asked! {FACT}").criteria["clean"] == -0.5  # twice flattery, once repeated


def test_the_lowest_total_is_minus_4():
    assert score(DEFINE, "The sea is deep. " * 11).total == -4.0
    assert score(DEFINE, "The sea is deep " * 200).total == -2.5  # one sentence, unfinished: 0, 0, 0 and .5


def test_every_fact_is_recognized_and_clean():
    for concept in BANK:
        for kind, fact in concept.facts.items():
            (got,) = judge_sentences(fact)
            assert (got.text, got.concept, got.kind, got.credit) == (fact, concept.id, kind, 1.0)
            assert not got.flattery and not got.filler and not got.repeated and got.is_claim, fact


def test_flattery_and_filler_are_recognized_and_claim_nothing():
    for sentence in EMPTY_SENTENCES:
        for text in (sentence, sentence.upper(), sentence.lower()):
            (got,) = judge_sentences(text)
            assert got.concept is None and got.credit == 0.0 and not got.is_claim, text
            assert (got.flattery, got.filler) == (sentence in FLATTERY_SENTENCES, sentence in FILLER_SENTENCES), text


def test_a_statement_around_praise_is_still_a_claim():
    (middle,) = judge_sentences("Padding is a great choice of loss.")
    assert middle.flattery and middle.is_claim
    (opened,) = judge_sentences(f"I hope that {FACT}")  # 16 of 19 words: credit .684
    assert opened.filler and opened.is_claim and opened.credit == pytest.approx(2 * 16 / 19 - 1)
    (plain,) = judge_sentences("The best loss is the good one.")
    assert not plain.flattery and not plain.filler and plain.is_claim
    assert score(DEFINE, "Padding is a great choice of loss. " + FACT).criteria["correct"] == 0.5


def test_verdicts_by_hand():
    answer = f"Well asked! {FACT} The sea is deep. The SEA is deep! {FACT} ... That is an end I hope this helps"
    got = [(v.concept, v.repeated, v.is_claim, v.flattery, v.filler) for v in judge_sentences(answer)]
    assert got == [
        (None, False, False, True, False),
        ("token", False, True, False, False),
        (None, False, True, False, False),
        (None, True, False, False, False),
        ("token", True, False, False, False),
        (None, False, True, False, False),  # filler starts a sentence of its own
        (None, False, False, False, True),
    ]
    assert score(DEFINE, answer).criteria["clean"] == -1.0  # flattery, two repeats, filler, a broken ending: the floor
    assert score(DEFINE, f"{FACT[:-1]} I hope this helps.").criteria["clean"] == 0.5


FACTS = [TOKEN.facts[kind] for kind in KINDS] + [KV_FACT, by_id()["prefill"].facts["why"]]
GARBLED = st.builds(
    lambda fact, start, words: " ".join(fact.split()[:start] + words + fact.split()[start + len(words) :]),
    st.sampled_from(FACTS),
    st.integers(0, 12),
    st.lists(st.sampled_from(["nonsense", "is", "that", "a"]), max_size=6),
)
CUT = st.builds(lambda fact, n: " ".join(fact.split()[:n]), st.sampled_from(FACTS), st.integers(1, 15))
FREE = st.one_of(
    st.text(max_size=30), st.text("aIt .!?,\n", max_size=20), st.sampled_from(["that", "It is", "I", "so"])
)
EMPTY = st.sampled_from(EMPTY_SENTENCES)
TEXTS = st.lists(st.sampled_from(FACTS) | GARBLED | CUT | EMPTY | FREE, max_size=5).map(" ".join)
PROMPTS = st.sampled_from([DEFINE, ONE_SENTENCE, "Why does a token matter?", "Compare a token and a KV cache."])


@given(PROMPTS, TEXTS, st.lists(EMPTY, min_size=1, max_size=3))
@settings(max_examples=400)
def test_filler_and_flattery_never_raise_a_score(prompt, text, added):
    assert score(prompt, " ".join([text, *added])).total <= score(prompt, text).total + 1e-9


@given(PROMPTS, TEXTS, st.data())
@settings(max_examples=400)
def test_repetition_never_raises_a_score(prompt, text, data):
    text += "."
    said = [v.text for v in judge_sentences(text) if v.text.endswith((".", "!", "?"))]
    if said:
        again = data.draw(st.sampled_from(said))
        assert score(prompt, f"{text} {again}").total <= score(prompt, text).total + 1e-9
        assert score(prompt, f"{text} {text}").total <= score(prompt, text).total + 1e-9


@given(PROMPTS, TEXTS)
@settings(max_examples=200)
def test_totals_stay_in_range_and_add_up(prompt, text):
    total, criteria = score(prompt, text)
    assert -4.0 <= total <= 2.0
    expected = 2 * criteria["correct"] + criteria["asked"] + criteria["concise"] + criteria["clean"] - 3
    assert total == pytest.approx(expected)
    lowest = {"correct": 0.0, "asked": 0.0, "concise": 0.0, "clean": -1.0}
    assert all(low <= criteria[name] <= 1.0 for name, low in lowest.items())


def test_a_cut_answer_is_not_completed_by_flattery():
    """ "An embedding is a learned vector of numbers that ..." + "That is a ..." once passed for more of the fact."""
    for i, concept in enumerate(BANK):
        words = concept.facts["definition"].split()
        for n in range(1, len(words)):
            cut, sentence = " ".join(words[:n]), EMPTY_SENTENCES[(i + n) % len(EMPTY_SENTENCES)]
            prompt = f"What is {concept.phrase}?"
            assert score(prompt, f"{cut} {sentence}").total <= score(prompt, cut).total, (cut, sentence)
    assert score("What is padding?", "Padding is filler that All in all, it is worth knowing.").total < -1


def test_no_extra_fact_raises_a_perfect_answer():
    for question in QUESTIONS:
        perfect, concept = reference_answer(question), question.concepts[0]
        extras = other_facts(question, concept, 2)
        for answer in (f"{perfect} {extras[0]}", f"{extras[0]} {perfect}", f"{perfect} {' '.join(extras)}"):
            assert cost(question, answer) >= overrun(question, answer) - 1e-9 and cost(question, answer) > 0
    assert cost(Question("define", (TOKEN,)), f"{FACT} Yes.") > 0


def test_the_page_states_the_weights_of_the_code():
    (formula,) = re.findall(r"\*\*Total = (.+)\.\*\*", PAGE)
    *terms, offset = re.fullmatch(r"(.+) - (\d+)", formula).groups()
    weights = {}
    for term in terms[0].split(" + "):
        *factor, name = term.split(" x ")
        weights[name] = float(factor[0]) if factor else 1.0
    assert weights == rubric.WEIGHTS and -float(offset) == rubric.OFFSET
    table = {row[0].strip("*"): float(row[1]) for row in TABLE_ROWS if row[0].startswith("**")}
    assert table == rubric.WEIGHTS and len(table) == 4
    assert sum(weights.values()) + rubric.OFFSET == 2.0
    assert "A perfect answer scores +2; an empty one, or one that claims nothing, -3." in PAGE


def test_the_page_states_the_scales_of_the_code():
    (slack,) = re.findall(r"at most ([\d.]+) times the words of the reference", PAGE)
    (zero,) = re.findall(r"0 at ([\d.]+) times", PAGE)
    (dirt, floor) = re.findall(r"minus ([\d.]+) for each dirty thing, down to (-\d)", PAGE)[0]
    assert (float(slack), float(dirt), float(floor)) == (rubric.SLACK, rubric.DIRT_COST, rubric.CLEAN_FLOOR)
    assert float(zero) == 2 * rubric.SLACK
    assert "a sentence that shares half its words or fewer has credit 0" in PAGE.replace("\n", " ").replace("  ", " ")
    assert rubric.MIN_SIMILARITY == 0.5
    (facts,) = re.findall(r"the (\d+) facts", PAGE)
    assert int(facts) == sum(len(concept.facts) for concept in BANK)
    assert COSTS == {
        "one flattering, filler or repeated sentence": 0.5,
        "a broken ending": 0.5,
        "true facts of another kind than was asked for": 1.0,
        "a second sentence where exactly one was wanted": 1.0,
        "1.75 times the free length": 0.75,
        "the same kind of answer about another concept": 3.0,
    }


def test_the_page_states_what_each_ask_wants():
    words = {"definition": "definition", "why": "why it matters"} | {kind: kind for kind in KINDS[2:]}
    rows = dict(row for row in TABLE_ROWS if row[0] in ASKS)
    assert list(rows) == list(ASKS)
    for ask, wanted in rows.items():
        assert tuple(kind for kind in KINDS if words[kind] in wanted) == REQUIRED[ask], ask
    assert "both concepts" in rows["compare"] and "no other sentence" in rows["one_sentence"]
    assert read(DEFINE).ask == "define" and read(ONE_SENTENCE).ask == "one_sentence"
