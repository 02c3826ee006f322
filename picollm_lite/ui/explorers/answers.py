"""Look at answers side by side, and at what the rubric makes of each sentence."""

from collections.abc import Mapping
from textwrap import fill

from picollm_lite.world.asks import read
from picollm_lite.world.rubric import RubricScore, Verdict, judge_sentences, score

NO_GOLD = "no gold: the question names no concept of the bank; name one, e.g. 'What is a KV cache?'"


def show_answers(question: str, answers: Mapping[str, str]) -> None:
    """Print each model's answer with its gold reward, criterion by criterion."""
    print(f"Q  {question}")
    for name, text in answers.items():
        total, criteria = score(question, text)
        parts = "  ".join(f"{criterion} {value:+.2f}" for criterion, value in criteria.items())
        print(f"\n{name:<12} gold {total:+.2f}   {parts}")
        print(fill(text or "(nothing)", width=100, initial_indent="    ", subsequent_indent="    "))


def explain_gold(question: str, text: str) -> None:
    """Print what the rubric makes of each sentence of an answer, and the total."""
    for verdict, sentence in sentence_verdicts(question, text):
        print(f"{verdict:<44} | {sentence}")
    total, criteria = score(question, text)
    print(f"gold {total:+.2f}   " + "  ".join(f"{name} {value:+.2f}" for name, value in criteria.items()))


def sentence_verdicts(question: str, text: str) -> list[tuple[str, str]]:
    """(what the rubric makes of it, sentence) in order. Raises ValueError when the question names no concept."""
    targets = {concept.id for concept in read(question).concepts}
    return [(_verdict(verdict, targets), verdict.text) for verdict in judge_sentences(text)]


def gold_score(question: str, text: str) -> RubricScore | None:
    """The gold reward, or None for a question that names no concept of the bank: there is no gold then.

    Raises ValueError for an empty question.
    """
    if not question.strip():
        raise ValueError("the question is empty: type one, or pick one from the list")
    try:
        read(question)
    except ValueError:
        return None
    return score(question, text)


def _verdict(verdict: Verdict, targets: set[str]) -> str:
    if verdict.repeated:
        return "said before"
    if verdict.concept is None:
        return "flattery" if verdict.flattery else "filler" if verdict.filler else "a claim that is in no fact"
    place = f"{verdict.kind} of {verdict.concept}"
    return f"{place}, credit {verdict.credit:.2f}" if verdict.concept in targets else f"off topic: {place}"
