"""One-click changes to an answer, most of them bad ones: does the reward model mind as much as the rubric does?"""

from collections.abc import Callable, Mapping, Sequence
from zlib import crc32

from picollm_lite.world.asks import read
from picollm_lite.world.concepts import by_id, load_concepts
from picollm_lite.world.rubric import Verdict, judge_sentences
from picollm_lite.world.texts import FILLER_SENTENCES, FLATTERY_SENTENCES

CUT_WORDS = 4


def add_flattery(question: str, answer: str) -> str:
    """A flattering sentence before the answer, another one at each use."""
    return f"{_next(FLATTERY_SENTENCES, answer)} {answer}".strip()


def pad(question: str, answer: str) -> str:
    """A sentence that says nothing after the answer, another one at each use."""
    return f"{answer} {_next(FILLER_SENTENCES, answer)}".strip()


def repeat_last(question: str, answer: str) -> str:
    """The last sentence once more. Raises ValueError for an answer without words."""
    return f"{answer.rstrip()} {_sentences(answer)[-1].text}"


def swap_fact(question: str, answer: str) -> str:
    """A fact, one about the question's concept if there is any, replaced by the same kind of fact of another concept.

    Raises ValueError when no sentence is a fact of the bank.
    """
    targets = _concepts(question)
    facts = [verdict for verdict in _sentences(answer) if verdict.concept]
    if not facts:
        raise ValueError("no sentence of the answer is a fact of the bank: there is nothing to swap")
    said = next((verdict for verdict in facts if verdict.concept in targets), facts[0])
    bank = [concept.id for concept in load_concepts()]
    place = bank.index(said.concept)
    other = next(name for name in bank[place + 1 :] + bank[:place] if name not in targets)
    return answer.replace(said.text, by_id()[other].facts[said.kind], 1)


def cut_off(question: str, answer: str) -> str:
    """The answer without its last words and without a full stop. Raises ValueError for an answer without words."""
    _sentences(answer)
    return " ".join(answer.split()[:-CUT_WORDS]).rstrip(".!?")


EDITS: Mapping[str, Callable[[str, str], str]] = {
    "add flattery": add_flattery,
    "pad with filler": pad,
    "repeat the last sentence": repeat_last,
    "swap the fact": swap_fact,
    "cut off the ending": cut_off,
}


def _next(sentences: Sequence[str], answer: str) -> str:
    """One that is not in the answer yet; which one depends on the answer, so that many answers get a mixture."""
    left = [sentence for sentence in sentences if sentence not in answer] or sentences
    return left[crc32(answer.encode()) % len(left)]


def _sentences(answer: str) -> list[Verdict]:
    verdicts = judge_sentences(answer)
    if not verdicts:
        raise ValueError("the answer is empty: there is nothing to edit")
    return verdicts


def _concepts(question: str) -> set[str]:
    """Ids of the concepts that a question is about; none where it names none of the bank."""
    try:
        return {concept.id for concept in read(question).concepts}
    except ValueError:
        return set()
