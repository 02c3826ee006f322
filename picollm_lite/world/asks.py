"""What a user can ask for, the phrasings of each ask, and how a question is read back into concepts and ask.

`{a}` and `{b}` stand for a concept with its article, `{name}` for the bare name.
The last three phrasings of every ask are held out from all training; so are some pairs of concept and ask.
"""

import hashlib
import re
from functools import cache
from typing import NamedTuple

from picollm_lite.world.concepts import Concept, load_concepts

N_HELD_OUT_PHRASINGS = 3
HELD_OUT_SHARE = 8  # one combination of concept and ask in this many is held out

# The facts that a full answer holds, in order. `compare` wants the definition of each concept.
REQUIRED = {
    "define": ("definition",),
    "why": ("definition", "why"),
    "example": ("definition", "example"),
    "analogy": ("analogy",),
    "one_sentence": ("definition",),
    "misconception": ("misconception",),
    "compare": ("definition",),
}
ASKS = tuple(REQUIRED)

PHRASINGS = {
    "define": (
        "What is {a}?",
        "Explain {a}.",
        "Define {a}.",
        "What do we mean by {a}?",
        "Can you tell me what {a} is?",
        "Please explain what {a} is.",
        "What does the term {name} mean?",
        "Give me the definition of {a}.",
        "I keep reading about {a}. What is it?",
        "Describe {a} briefly.",
        "In this course, what is {a}?",
        "Tell me what {name} refers to.",
    ),
    "why": (
        "What is {a} and why does it matter?",
        "Define {a} and say why it matters.",
        "Explain {a} and why we need it.",
        "What is {a}, and why should I care?",
        "Describe {a} and why it is useful.",
        "Tell me what {a} is and why it is there.",
        "Why does {a} matter? Define it first.",
        "Say what {a} is, then why it matters.",
        "What is {a} and why do people use it?",
        "Please define {a} and explain why it helps.",
        "Could you cover what {a} is and why it matters?",
        "First define {a}, then say why we want it.",
    ),
    "example": (
        "Explain {a} with an example.",
        "What is {a}? Give an example.",
        "Define {a} and give one example.",
        "Show me {a} with a concrete example.",
        "Can you explain {a} using an example?",
        "Describe {a} and add an example.",
        "What is {a}? Please include an example.",
        "Give a definition and an example of {a}.",
        "Help me see {a} through an example.",
        "I learn from examples. What is {a}?",
        "Walk me through {a} with one example.",
        "Could I have an example that shows what {a} is?",
    ),
    "analogy": (
        "Use one analogy to explain {a}.",
        "Explain {a} for a first-year student.",
        "Give me an analogy for {a}.",
        "What is a good analogy for {a}?",
        "Explain {a} with an everyday analogy.",
        "What everyday thing is {a} like?",
        "Can you compare {a} to something from daily life?",
        "Describe {a} by analogy.",
        "How would you explain {a} to a first-year student?",
        "Offer an analogy that makes {a} clear.",
        "I am a first-year student. What is {a} like?",
        "Make {a} clear with an analogy.",
    ),
    "one_sentence": (
        "Define {a} in exactly one sentence.",
        "In one sentence, what is {a}?",
        "Explain {a} in a single sentence.",
        "What is {a}? One sentence only.",
        "Give me one sentence on what {a} is.",
        "Describe {a} using exactly one sentence.",
        "Tell me in one sentence what {a} is.",
        "Answer in one sentence: what is {a}?",
        "Sum up {a} in a single sentence.",
        "Using just one sentence, define {a}.",
        "Keep it to one sentence. What is {a}?",
        "Can you say what {a} is in one sentence?",
    ),
    "misconception": (
        "What do people get wrong about {a}?",
        "Correct a common misconception about {a}.",
        "What is a common misconception about {a}?",
        "Which mistake do learners make about {a}?",
        "Clear up a misunderstanding about {a}.",
        "What is often misunderstood about {a}?",
        "Name one myth about {a} and correct it.",
        "What should I not believe about {a}?",
        "Fix a wrong belief about {a}.",
        "Is there a common misconception about {a}?",
        "What confuses people about {a}?",
        "Tell me a myth about {a} and put it right.",
    ),
    "compare": (
        "What is the difference between {a} and {b}?",
        "Compare {a} and {b}.",
        "How do {a} and {b} differ?",
        "How is {a} different from {b}?",
        "Compare {a} with {b}.",
        "Explain the difference between {a} and {b}.",
        "Contrast {a} with {b}.",
        "What sets {a} apart from {b}?",
        "Tell me how {a} differs from {b}.",
        "Help me tell {a} and {b} apart.",
        "In what way are {a} and {b} different?",
        "Could you contrast {a} and {b} for me?",
    ),
}

# Read in this order: "a wrong belief ... give an example" is a misconception before it is an example.
_CUES = (
    ("misconception", r"misconception|misunderst|mistake|myth|wrong|confus|not believe"),
    ("analogy", r"analog|first-year|everyday|daily life"),
    ("one_sentence", r"one sentence|single sentence"),
    ("example", r"example|concrete"),
    ("why", r"\bwhy\b"),
)


class Question(NamedTuple):
    """A question that was read: what is asked for, about one concept (two for `compare`)."""

    ask: str
    concepts: tuple[Concept, ...]


def render(ask: str, concepts: tuple[Concept, ...], phrasing: int) -> str:
    """The user's question. Raises ValueError when the number of concepts does not fit the ask."""
    wanted = 2 if ask == "compare" else 1
    if len(concepts) != wanted:
        raise ValueError(f"ask {ask!r} takes {wanted} concept(s), got {len(concepts)}")
    text = PHRASINGS[ask][phrasing].format(a=concepts[0].phrase, b=concepts[-1].phrase, name=concepts[0].name)
    return text[0].upper() + text[1:]


@cache
def read(prompt: str) -> Question:
    """The ask and the concepts of a question, typed freely or rendered from a phrasing.

    Raises ValueError when the question names no concept of the bank.
    """
    found = list(dict.fromkeys(_concept_pattern().findall(prompt.lower())))
    if not found:
        raise ValueError(f"the question names no concept of the bank: {prompt!r}; name one, e.g. 'What is a KV cache?'")
    concepts = tuple(_by_name()[name] for name in found)
    if len(concepts) > 1:
        return Question("compare", concepts[:2])
    rest = _concept_pattern().sub("", prompt.lower())
    ask = next((ask for ask, cue in _CUES if re.search(cue, rest)), "define")
    return Question(ask, concepts)


def required_facts(question: Question) -> list[tuple[Concept, str]]:
    """The (concept, kind) of each fact that a full answer holds, in order."""
    return [(concept, kind) for concept in question.concepts for kind in REQUIRED[question.ask]]


def reference_answer(question: Question) -> str:
    """A perfect answer: the required facts, verbatim and in order."""
    return " ".join(concept.facts[kind] for concept, kind in required_facts(question))


def phrasing_indices(ask: str, *, held_out: bool) -> range:
    """Indices of the phrasings that training may use, or of those it may not."""
    n = len(PHRASINGS[ask])
    return range(n - N_HELD_OUT_PHRASINGS, n) if held_out else range(n - N_HELD_OUT_PHRASINGS)


def is_held_out(ask: str, concepts: tuple[Concept, ...]) -> bool:
    """Whether this combination of ask and concepts is kept out of all training, decided by a stable hash."""
    key = "/".join([ask, *sorted(concept.id for concept in concepts)])
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_SHARE == 0


@cache
def _by_name() -> dict[str, Concept]:
    return {concept.name.lower(): concept for concept in load_concepts()}


@cache
def _concept_pattern() -> re.Pattern:
    # Longest first, so that "policy gradient" is not read as "policy".
    names = sorted(_by_name(), key=len, reverse=True)
    return re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, names)) + r")(?:s|es)?(?![\w-])")
