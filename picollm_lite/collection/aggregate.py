"""From votes to preferences: what most annotators chose, with every vote kept beside it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from picollm_lite.collection.labels import LABELS, find_pair, pairs_by_id
from picollm_lite.collection.pairs import AnswerPair, Vote


class Aggregated(NamedTuple):
    """Preference rows, and the pairs that have none because as many voted for a as for b, or nobody for either."""

    rows: list[dict]
    undecided: list[AnswerPair]


def aggregate(pairs: Iterable[AnswerPair], votes: Iterable[Vote]) -> Aggregated:
    """A row a pair, in the order of the pairs: the majority's answer is `chosen`; a tie or skip counts for neither.

    `annotator` is the name where one annotator alone decided, else "majority of n" with n votes for a or b.
    Raises ValueError for a vote on a pair that is not there, or with an unknown label.
    """
    known = pairs_by_id(pairs)
    given: dict[str, list[Vote]] = {pair_id: [] for pair_id in known}
    for number, vote in enumerate(votes):
        find_pair(known, vote.pair, f"vote {number}")
        if vote.label not in LABELS:
            raise ValueError(f"vote {number}: expected a label out of {', '.join(LABELS)}, got {vote.label!r}")
        given[vote.pair].append(vote)
    rows = [_row(pair, given[pair.id]) for pair in known.values()]
    undecided = [pair for pair, row in zip(known.values(), rows, strict=True) if row is None]
    return Aggregated([row for row in rows if row is not None], undecided)


def _row(pair: AnswerPair, votes: Sequence[Vote]) -> dict | None:
    for_a, for_b = (sum(vote.label == side for vote in votes) for side in ("a", "b"))
    if for_a == for_b:
        return None
    chosen, rejected = ("a", "b") if for_a > for_b else ("b", "a")
    names = {vote.annotator for vote in votes if vote.label in ("a", "b")}
    prefers = {chosen: "chosen", rejected: "rejected"}
    return {
        "id": pair.id,
        "prompt": pair.prompt,
        "chosen": getattr(pair, chosen),
        "rejected": getattr(pair, rejected),
        "annotator": names.pop() if len(names) == 1 else f"majority of {for_a + for_b}",
        "votes_chosen": max(for_a, for_b),
        "votes_rejected": min(for_a, for_b),
        "votes": [{"annotator": vote.annotator, "prefers": prefers.get(vote.label, vote.label)} for vote in votes],
        "source_chosen": getattr(pair, f"source_{chosen}"),
        "source_rejected": getattr(pair, f"source_{rejected}"),
    }
