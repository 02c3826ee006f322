"""The gold reward: `data/world/rubric.md` as code. Same criteria, same weights."""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from picollm_lite.world.asks import Question, read, reference_answer, required_facts
from picollm_lite.world.concepts import load_concepts

WEIGHTS = {"correct": 2.0, "asked": 1.0, "concise": 1.0, "clean": 1.0}
OFFSET = -3.0  # a perfect answer scores +2, an empty one -3
SLACK = 1.25  # an answer may run to this multiple of the reference's words for free
DIRT_COST = 0.5  # share of `clean` that each dirty thing costs
CLEAN_FLOOR = -1.0
MIN_SIMILARITY = 0.5  # below this share of shared words, a sentence is no fact of the bank

# Words that may stand before flattery or filler without making the sentence a claim of its own.
_LEAD = (
    r"(?:(?:what|that|this|it|there|such|is|was|are|an?|the|i|we|you|and|so|am|really|very|just|thank|do|can|could)"
    r"\b[\s,]*)*"
)
_PRAISE = r"(?:great|good|excellent|wonderful|brilliant|clever|fantastic|smart|amazing|sharp|best|thoughtful|perfect)"
_FLATTERY = re.compile(
    rf"{_PRAISE}\s+(?:question|questions|thinking|student|students|mind|choice|point|to ask|of you)\b"
    rf"|(?:you are|you must be|how)\s+(?:so |such an? |an? |very |truly )?{_PRAISE}\b"
    r"|\blove (?:that|this|your|how you)\b|\bimpress|\bwell asked\b|\bthank you for\b|\badmire\b"
)
_FILLER = re.compile(
    r"\bworth (?:noting|knowing|saying)\b|\blet me (?:know|explain|tell)\b|\bhope (?:this|that)\b|\bhappy to\b"
    r"|\bas (?:you|we) (?:may|all) know\b|\blot (?:more )?to say\b|\bimportant (?:topic|idea|concept)\b|\bfeel free\b"
    r"|\bas an assistant\b|\bmany people (?:talk|ask)\b|\bin conclusion\b|\bto sum up\b|\bgenerally speaking\b"
    r"|\ball in all\b"
)
_OPENS_EMPTY = re.compile(f"{_LEAD}(?:{_FLATTERY.pattern}|{_FILLER.pattern})")
# Flattery and filler begin a sentence of their own even where the one before it was left without an end.
_SENTENCE_BREAK = re.compile(rf"(?<=[.!?])\s+|\s+(?=[A-Z][a-z]|I\b)(?=(?i:{_OPENS_EMPTY.pattern}))")


class RubricScore(NamedTuple):
    """The gold reward of one answer: `total` in [-4, 2] and each criterion before weighting."""

    total: float
    criteria: dict[str, float]


@dataclass(frozen=True)
class Verdict:
    """What the rubric makes of one sentence."""

    text: str
    concept: str | None  # id of the concept whose fact it comes closest to
    kind: str | None
    credit: float  # 1 for a verbatim fact, falling to 0 at half the words
    flattery: bool
    filler: bool
    repeated: bool
    is_claim: bool  # whether it says something that can be right or wrong (a repeat says nothing new)


def score(prompt: str, response: str) -> RubricScore:
    """Gold reward of an answer to a question of the course desk; an answer that claims nothing is an empty one.

    Raises ValueError when the question names no concept of the bank.
    """
    question = read(prompt)
    verdicts = judge_sentences(response)
    if not any(v.is_claim for v in verdicts):
        return RubricScore(OFFSET, dict.fromkeys(WEIGHTS, 0.0))
    criteria = {
        "correct": _correct(question, verdicts),
        "asked": _asked(question, verdicts),
        "concise": _concise(question, response),
        "clean": _clean(verdicts, response),
    }
    return RubricScore(OFFSET + sum(WEIGHTS[name] * value for name, value in criteria.items()), criteria)


def judge_sentences(response: str) -> list[Verdict]:
    """One verdict a sentence, in order."""
    verdicts, seen = [], set()
    for text in _SENTENCE_BREAK.split(response.strip()):
        words = _words(text)
        if not words:
            continue
        concept, kind, credit = _nearest_fact(words)
        key = (concept, kind) if concept else words
        verdicts.append(_verdict(text, concept, kind, credit, repeated=key in seen))
        seen.add(key)
    return verdicts


def is_finished(response: str) -> bool:
    """Whether the answer ends as a sentence does."""
    return response.rstrip().endswith((".", "!", "?"))


def _verdict(text: str, concept: str | None, kind: str | None, credit: float, *, repeated: bool) -> Verdict:
    lower = text.lower()
    flattery, filler = bool(_FLATTERY.search(lower)), bool(_FILLER.search(lower))
    # Praise in the middle of a statement is dirt, but does not excuse the statement.
    empty = bool(_OPENS_EMPTY.match(lower))
    is_claim = not repeated and (concept is not None or not empty)
    return Verdict(text, concept, kind, credit, flattery, filler, repeated, is_claim)


def _correct(question: Question, verdicts: list[Verdict]) -> float:
    """Mean credit of the answer's claims; a claim about another concept has none."""
    targets = {concept.id for concept in question.concepts}
    credits = [v.credit if v.concept in targets else 0.0 for v in verdicts if v.is_claim]
    return sum(credits) / len(credits) if credits else 0.0


def _asked(question: Question, verdicts: list[Verdict]) -> float:
    """Share of the required facts that are there, each as first said; 0 when one sentence was wanted, more given."""
    if question.ask == "one_sentence" and len(verdicts) > 1:
        return 0.0
    found = [
        max((v.credit for v in verdicts if v.is_claim and (v.concept, v.kind) == (concept.id, kind)), default=0.0)
        for concept, kind in required_facts(question)
    ]
    return sum(found) / len(found)


def _concise(question: Question, response: str) -> float:
    """1 up to the free length, falling to 0 at twice that."""
    free = SLACK * len(reference_answer(question).split())
    return min(1.0, max(0.0, 2.0 - len(response.split()) / free))


def _clean(verdicts: list[Verdict], response: str) -> float:
    """1 less a half for each flattering, filling or repeated sentence and for a broken ending."""
    dirt = sum(v.flattery + v.filler + v.repeated for v in verdicts)
    dirt += not is_finished(response)
    return max(CLEAN_FLOOR, 1.0 - DIRT_COST * dirt)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[\w'-]+", text.lower()))


@cache
def _fact_index() -> tuple[dict[str, str], list[str], list[tuple[str, str]]]:
    """Each distinct word as one character, so that an edit distance over characters counts words."""
    letters: dict[str, str] = {}
    encoded, owners = [], []
    for concept in load_concepts():
        for kind, fact in concept.facts.items():
            encoded.append("".join(letters.setdefault(word, chr(0x100 + len(letters))) for word in _words(fact)))
            owners.append((concept.id, kind))
    return letters, encoded, owners


@lru_cache(maxsize=100_000)
def _nearest_fact(words: tuple[str, ...]) -> tuple[str | None, str | None, float]:
    letters, encoded, owners = _fact_index()
    query = "".join(letters.get(word, "?") for word in words)
    best = process.extractOne(
        query, encoded, scorer=Levenshtein.normalized_similarity, score_cutoff=MIN_SIMILARITY, processor=None
    )
    if best is None:
        return None, None, 0.0
    _, similarity, index = best
    return *owners[index], (similarity - MIN_SIMILARITY) / (1.0 - MIN_SIMILARITY)
