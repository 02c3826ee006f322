"""Text of the small world: the base corpus, and answers from perfect to bad for the demonstrations."""

import random
from collections.abc import Iterator

from picollm_lite.world.asks import ASKS, REQUIRED, Question, is_held_out, phrasing_indices, reference_answer, render
from picollm_lite.world.concepts import KINDS, Concept, load_concepts

FLATTERY_SENTENCES = (
    "What a great question!",
    "That is an excellent question.",
    "You are such a smart student!",
    "I love that you asked this.",
    "I love how you think.",
    "You are so clever to ask.",
    "That is brilliant thinking.",
    "What a wonderful question to ask!",
    "I am impressed by your curiosity.",
    "That is a really sharp question.",
    "You must be an excellent student.",
    "I admire your curiosity.",
    "Well asked!",
    "Thank you for such a fantastic question.",
)
FILLER_SENTENCES = (
    "I hope this helps.",
    "Let me know if you have more questions.",
    "I am happy to help with this.",
    "It is worth noting that there is a lot to say here.",
    "This is an important topic.",
    "Let me explain this for you.",
    "As we all know, many people ask about it.",
    "In conclusion, this is an important concept.",
    "As an assistant, I can tell you about it.",
    "Feel free to ask me anything else.",
    "Generally speaking, many people talk about it.",
    "There is a lot more to say about that.",
    "All in all, it is worth knowing.",
    "To sum up, that is the idea.",
)
LABELS = {
    "definition": "Definition",
    "why": "Why it matters",
    "example": "Example",
    "analogy": "Analogy",
    "misconception": "Misconception",
}
# How demonstrations are mixed. SFT imitates all of it, which is why SFT is not the end.
QUALITY_MIX = {
    "good": 0.30,
    "wrong_concept": 0.10,
    "missed_ask": 0.10,
    "extra_facts": 0.08,
    "filler": 0.10,
    "flattery": 0.17,
    "repeated": 0.08,
    "cut_off": 0.07,
}
N_COMPARE_PAIRS = 320
DEMOS_PER_COMBINATION = 16
DEMOS_PER_COMPARE_PAIR = 6


def base_document(rng: random.Random) -> str:
    """One document of the base corpus: a glossary entry, a paragraph, single facts, or notes on two concepts."""
    concepts = load_concepts()
    a, b = rng.sample(concepts, 2)
    style = rng.random()
    if style < 0.4:
        kinds = rng.sample(KINDS, rng.randint(2, 5))
        return f"{heading(a)} " + " ".join(f"{LABELS[kind]}: {a.facts[kind]}" for kind in kinds)
    if style < 0.6:
        return " ".join(a.facts[kind] for kind in rng.sample(KINDS, rng.randint(2, 4)))
    if style < 0.8:
        return " ".join(rng.choice(concepts).facts[rng.choice(KINDS)] for _ in range(3))
    return f"{_capital(a.phrase)} and {b.phrase}. {a.facts['definition']} {b.facts['definition']}"


def heading(concept: Concept) -> str:
    """How a glossary entry of the base corpus begins."""
    return f"{_capital(concept.name)}."


def demonstrations(seed: int) -> Iterator[dict]:
    """The SFT data: `messages` in chat form, with the planted `quality` that only evaluation may read."""
    rng = random.Random(seed)
    questions = [
        Question(ask, (c,)) for ask in ASKS if ask != "compare" for c in load_concepts()
    ] * DEMOS_PER_COMBINATION
    questions += [Question("compare", pair) for pair in compare_pairs(seed)] * DEMOS_PER_COMPARE_PAIR
    rng.shuffle(questions)
    for question in questions:
        if is_held_out(question.ask, question.concepts):
            continue
        quality = rng.choices(list(QUALITY_MIX), QUALITY_MIX.values())[0]
        prompt = render(question.ask, question.concepts, rng.choice(phrasing_indices(question.ask, held_out=False)))
        yield {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer(question, quality, rng)},
            ],
            "quality": quality,
        }


def training_prompts(ask: str, seed: int) -> list[str]:
    """Every question of this ask that training may use, in a fixed order."""
    pairs = compare_pairs(seed) if ask == "compare" else [(concept,) for concept in load_concepts()]
    return [
        render(ask, concepts, phrasing)
        for concepts in pairs
        if not is_held_out(ask, concepts)
        for phrasing in phrasing_indices(ask, held_out=False)
    ]


def compare_pairs(seed: int) -> list[tuple[Concept, Concept]]:
    """Pairs to compare, each of one topic, so that the two have something in common."""
    rng = random.Random(seed)
    concepts = load_concepts()
    pairs = [(a, b) for a in concepts for b in concepts if a.topic == b.topic and a.id != b.id]
    return rng.sample(pairs, N_COMPARE_PAIRS)


def answer(question: Question, quality: str, rng: random.Random) -> str:
    """An answer with exactly the named defect ("good" has none). Raises KeyError for an unknown quality."""
    return _WRITERS[quality](question, rng)


def _good(question: Question, rng: random.Random) -> str:
    return reference_answer(question)


def _wrong_concept(question: Question, rng: random.Random) -> str:
    """The right kind of answer about a neighbor of the same topic."""
    topic = question.concepts[0].topic
    neighbors = [c for c in load_concepts() if c.topic == topic and c not in question.concepts]
    return reference_answer(Question(question.ask, tuple(rng.sample(neighbors, len(question.concepts)))))


def _missed_ask(question: Question, rng: random.Random) -> str:
    """True facts about the right concept, but none that was asked for."""
    others = [kind for kind in KINDS if kind not in REQUIRED[question.ask]]
    return " ".join(concept.facts[rng.choice(others)] for concept in question.concepts)


def _extra_facts(question: Question, rng: random.Random) -> str:
    others = [kind for kind in KINDS if kind not in REQUIRED[question.ask]]
    extra = rng.sample(others, 2)
    return " ".join([reference_answer(question), *(question.concepts[0].facts[kind] for kind in extra)])


def _filler(question: Question, rng: random.Random) -> str:
    before, after = rng.sample(FILLER_SENTENCES, 2)
    text = reference_answer(question)
    return rng.choice([f"{before} {text}", f"{text} {after}", f"{before} {text} {after}"])


def _flattery(question: Question, rng: random.Random) -> str:
    before, after = rng.sample(FLATTERY_SENTENCES, 2)
    text = reference_answer(question)
    return rng.choice([f"{before} {text}", f"{text} {after}", f"{before} {text} {after}"])


def _repeated(question: Question, rng: random.Random) -> str:
    first = question.concepts[0].facts[REQUIRED[question.ask][0]]
    return f"{reference_answer(question)} {first}"


def _cut_off(question: Question, rng: random.Random) -> str:
    words = reference_answer(question).split()
    return " ".join(words[: rng.randint(len(words) // 2, len(words) - 2)]).rstrip(".")  # also between two facts


_WRITERS = {
    "good": _good,
    "wrong_concept": _wrong_concept,
    "missed_ask": _missed_ask,
    "extra_facts": _extra_facts,
    "filler": _filler,
    "flattery": _flattery,
    "repeated": _repeated,
    "cut_off": _cut_off,
}


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
