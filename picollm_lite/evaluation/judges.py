"""Which of two answers is better: anybody who can say so is a judge, and each pair is shown in both orders.

A judge is a callable (prompt, a, b) -> "a", "b" or "tie". Many judges favor a position, so what counts as a win is a
verdict that stands when the two answers change places (Zheng et al. 2023, "Judging LLM-as-a-judge", section 3.4).
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from picollm_lite.chat import readable
from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.evaluation.audit import ScoreFn, scores_of
from picollm_lite.evaluation.metrics import Interval, WinRate, counted, gold_scores
from picollm_lite.evaluation.tables import prompt_interval, require_same_length
from picollm_lite.evaluation.votes import CHOICES, vote_table

Judge = Callable[[str, str, str], str]  # (prompt, a, b) -> one of CHOICES
MIRRORED = {"a": "b", "b": "a", "tie": "tie"}  # the same verdict when the answers have changed places
POINTS = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class ScoreJudge:
    """Prefers the answer with the higher score, such as `RewardModel.score`; scores within `tie` are a tie."""

    score_fn: ScoreFn
    tie: float = 1e-9

    def __call__(self, prompt: str, a: str, b: str) -> str:
        """One verdict. Raises ValueError for a score that is not finite."""
        return self.many([prompt], [a], [b])[0]

    def many(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[str]:
        """A verdict a pair, from one call of `score_fn`."""
        of_a, of_b = scores_of(self.score_fn, [*prompts, *prompts], [*a, *b]).reshape(2, -1)
        return np.where(of_a > of_b + self.tie, "a", np.where(of_b > of_a + self.tie, "b", "tie")).tolist()


gold_judge = ScoreJudge(gold_scores)


class OrderBias(NamedTuple):
    """How much the order of two answers decides: intervals over prompts, and the number of pairs.

    contradicted: share of pairs on which the two orders gave different verdicts. first_preferred: share of showings in
    which the answer shown first won, ties counted half; 1/2 for a judge without a favorite position.
    """

    contradicted: Interval
    first_preferred: Interval
    pairs: int


def judged_win_rate(
    judge: Judge, prompts: Sequence[str], a: Sequence[str], b: Sequence[str], *, seed: int = 0
) -> WinRate:
    """How often `a` beats `b` by `judged_points`: mean over prompts, which may be given several times.

    Raises ValueError on columns of unequal length or without a row, fewer than 2 different prompts, and, naming the
    prompt, where the judge raises or returns something else.
    """
    points = judged_points(judge, prompts, a, b)
    return counted(points, prompt_interval(prompts, points, seed=seed))


def judged_points(judge: Judge, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> np.ndarray:
    """1 where `a` wins in both orders, 0 where `b` does, 1/2 otherwise: a contradiction is a tie.

    Raises ValueError as `judged_win_rate` does.
    """
    orders = zip(*both_orders(judge, prompts, a, b), strict=True)
    return np.array([POINTS[given] if given == swapped else POINTS["tie"] for given, swapped in orders])


def order_bias(judge: Judge, prompts: Sequence[str], a: Sequence[str], b: Sequence[str], *, seed: int = 0) -> OrderBias:
    """How often the judge contradicts itself when the answers change places, and how often it prefers the first.

    Raises ValueError as `judged_win_rate` does.
    """
    given, swapped = both_orders(judge, prompts, a, b)
    contradicted = [one != other for one, other in zip(given, swapped, strict=True)]
    # In the second showing b stands first: it is preferred where a is not.
    first = [(POINTS[one] + 1 - POINTS[other]) / 2 for one, other in zip(given, swapped, strict=True)]
    return OrderBias(*(prompt_interval(prompts, values, seed=seed) for values in (contradicted, first)), len(first))


def both_orders(
    judge: Judge, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The verdict on each pair with `a` shown first, then with `b` shown first; "a" means the same answer in both.

    Raises ValueError as `judged_win_rate` does.
    """
    require_same_length(prompts=prompts, a=a, b=b)
    return _verdicts(judge, prompts, a, b), [MIRRORED[verdict] for verdict in _verdicts(judge, prompts, b, a)]


def recorded_judge(pairs: Sequence[AnswerPair], votes: Sequence[Vote]) -> Judge:
    """One person's labels, such as `widget_votes` reads them, as a judge of the texts that were labeled.

    A pair labeled in one order only gets the same answer preferred in the other; one labeled again keeps its first
    label. The judge raises LookupError for a pair without a label, which a skip is not. Raises ValueError for votes of
    several annotators, and as `vote_table` does.
    """
    table, by_id = vote_table(votes, pairs), {pair.id: pair for pair in pairs}
    if table.annotator.nunique() != 1:
        raise ValueError(
            f"expected the votes of one annotator, got those of {table.annotator.nunique()}: "
            "a judge is one person, so pick one"
        )
    labels: dict[tuple[str, str, str], str] = {}
    for vote in votes:
        pair = by_id[vote.pair]
        prompt, a, b = (readable(messages) for messages in (pair.prompt, pair.a, pair.b))
        if vote.label != "skip" and vote.shown_first == "b":
            labels.setdefault((prompt, b, a), MIRRORED[vote.label])
        elif vote.label != "skip":
            labels.setdefault((prompt, a, b), vote.label)

    def judge(prompt: str, a: str, b: str) -> str:
        if (prompt, a, b) in labels:
            return labels[prompt, a, b]
        if (prompt, b, a) in labels:
            return MIRRORED[labels[prompt, b, a]]
        raise LookupError("no label for these two answers: label the pair, or leave it out")

    return judge


def _verdicts(judge: Judge, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[str]:
    if isinstance(judge, ScoreJudge):
        with suppress(Exception):  # it comes again below, one pair at a time, and then names the prompt
            return judge.many(prompts, a, b)
    return [_verdict(judge, *pair) for pair in zip(prompts, a, b, strict=True)]


def _verdict(judge: Judge, prompt: str, a: str, b: str) -> str:
    try:
        verdict = judge(prompt, a, b)
    except Exception as error:
        raise ValueError(f"the judge failed on the prompt {prompt!r}: {type(error).__name__}: {error}") from error
    if not isinstance(verdict, str) or verdict not in CHOICES:
        raise ValueError(f"expected a judge that returns a, b or tie, got {verdict!r} for the prompt {prompt!r}")
    return verdict
