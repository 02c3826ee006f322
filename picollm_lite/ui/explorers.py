"""Look at answers side by side."""

from collections.abc import Mapping
from textwrap import fill

from picollm_lite.world.asks import read
from picollm_lite.world.rubric import Verdict, judge_sentences, score


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
    targets = {concept.id for concept in read(question).concepts}
    for verdict in judge_sentences(text):
        print(f"{_verdict(verdict, targets):<44} | {verdict.text}")
    total, criteria = score(question, text)
    print(f"gold {total:+.2f}   " + "  ".join(f"{name} {value:+.2f}" for name, value in criteria.items()))


def _verdict(verdict: Verdict, targets: set[str]) -> str:
    if verdict.repeated:
        return "said before"
    if verdict.concept is None:
        return "flattery" if verdict.flattery else "filler" if verdict.filler else "a claim that is in no fact"
    place = f"{verdict.kind} of {verdict.concept}"
    return f"{place}, credit {verdict.credit:.2f}" if verdict.concept in targets else f"off topic: {place}"
