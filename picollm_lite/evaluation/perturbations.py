"""Changes to an answer whose price by the rubric is known: a reward model should charge for the same ones.

Each is `edit(prompt, answer, rng) -> answer`, for a perfect answer or any other. All but `lower_case` are defects.
An edit that cannot be made to an answer raises ValueError and says why.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random

from picollm_lite.world import texts
from picollm_lite.world.asks import REQUIRED, read
from picollm_lite.world.concepts import load_concepts
from picollm_lite.world.rubric import Verdict, is_finished, judge_sentences

Edit = Callable[[str, str, Random], str]
CUT_WORDS = 4
EXTRA_FACTS = 2


def flattery_first(prompt: str, answer: str, rng: Random) -> str:
    """A flattering sentence before the answer, one that is not in it yet."""
    return f"{_new(texts.FLATTERY_SENTENCES, answer, rng)} {answer}".strip()


def flattery_last(prompt: str, answer: str, rng: Random) -> str:
    """A flattering sentence after the answer, one that is not in it yet."""
    return f"{answer} {_new(texts.FLATTERY_SENTENCES, answer, rng)}".strip()


def padding(prompt: str, answer: str, rng: Random) -> str:
    """A sentence that says nothing after the answer, one that is not in it yet."""
    return f"{answer} {_new(texts.FILLER_SENTENCES, answer, rng)}".strip()


def repetition(prompt: str, answer: str, rng: Random) -> str:
    """The last sentence once more."""
    return f"{answer.rstrip()} {_sentences(answer)[-1].text}"


def extra_facts(prompt: str, answer: str, rng: Random) -> str:
    """True facts about what was asked, of kinds that were not asked for and are not there yet, after the answer."""
    question, said = read(prompt), {(v.concept, v.kind) for v in judge_sentences(answer)}
    left = [
        fact
        for concept in question.concepts
        for kind, fact in concept.facts.items()
        if kind not in REQUIRED[question.ask] and (concept.id, kind) not in said
    ]
    if not left:
        raise ValueError("the answer holds every fact about what was asked: there is none to add")
    return " ".join([answer, *rng.sample(left, min(EXTRA_FACTS, len(left)))]).strip()


def swapped_fact(prompt: str, answer: str, rng: Random) -> str:
    """A fact, one about what was asked if there is any, replaced by the same kind of fact of another concept."""
    targets = _targets(prompt)
    facts = [verdict for verdict in _sentences(answer) if verdict.concept]
    if not facts:
        raise ValueError("no sentence of the answer is a fact of the bank: there is nothing to swap")
    said = next((verdict for verdict in facts if verdict.concept in targets), facts[0])
    other = rng.choice([c for c in load_concepts() if c.id not in targets | {said.concept}])
    return answer.replace(said.text, other.facts[said.kind], 1)


def missed_ask(prompt: str, answer: str, rng: Random) -> str:
    """Instead of the answer: true facts about what was asked, of a kind that was not asked for."""
    return texts.answer(read(prompt), "missed_ask", rng)


def another_answer(prompt: str, answer: str, rng: Random) -> str:
    """Instead of the answer: the right kind of answer about another concept of the same topic."""
    return texts.answer(read(prompt), "wrong_concept", rng)


def dropped_word(prompt: str, answer: str, rng: Random) -> str:
    """The answer without one of its words, none that ends a sentence."""
    words = answer.split()
    inner = [place for place, word in enumerate(words) if not is_finished(word)]
    if not inner:
        raise ValueError("no word of the answer stands before the end of a sentence: there is none to drop")
    place = rng.choice(inner)
    return " ".join(words[:place] + words[place + 1 :])


def lower_case(prompt: str, answer: str, rng: Random) -> str:
    """The answer without capitals: the rubric does not mind, so a reward model should not either."""
    return answer.lower()


def cut_off(prompt: str, answer: str, rng: Random) -> str:
    """The answer without its last words and without a full stop."""
    _sentences(answer)
    return " ".join(answer.split()[:-CUT_WORDS]).rstrip(".!?")


EDITS: Mapping[str, Edit] = {
    "flattery first": flattery_first,
    "flattery last": flattery_last,
    "padding": padding,
    "repetition": repetition,
    "extra facts": extra_facts,
    "swapped fact": swapped_fact,
    "missed ask": missed_ask,
    "another concept's answer": another_answer,
    "dropped word": dropped_word,
    "lower case": lower_case,
    "cut off": cut_off,
}


def _new(sentences: Sequence[str], answer: str, rng: Random) -> str:
    return rng.choice([sentence for sentence in sentences if sentence not in answer] or sentences)


def _sentences(answer: str) -> list[Verdict]:
    verdicts = judge_sentences(answer)
    if not verdicts:
        raise ValueError("the answer is empty: there is nothing to edit")
    return verdicts


def _targets(prompt: str) -> set[str]:
    """Ids of the concepts that a question is about; none where it names none of the bank."""
    try:
        return {concept.id for concept in read(prompt).concepts}
    except ValueError:
        return set()
