"""A preference file, one label a pair, as the pairs and votes that it came from."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping

from picollm_lite.collection.pairs import AnswerPair, Vote

UNKNOWN = "unknown"


def from_preferences(rows: Iterable[Mapping], *, seed: int = 0) -> tuple[list[AnswerPair], list[Vote]]:
    """Pairs and votes of rows with `prompt`, `chosen` and `rejected`, as `load_preferences` gives them.

    The preferred answer becomes `a` or `b` at random: an agreement by chance has to be possible before it can be
    corrected for. Which side was shown first is not known. A row without `id` gets its number, one without `annotator`
    "unknown". Raises ValueError where two rows have one id.
    """
    rng, pairs, votes = random.Random(seed), [], []
    for number, row in enumerate(rows):
        sides, label = (row["chosen"], row["rejected"]), rng.choice("ab")
        a, b = sides if label == "a" else sides[::-1]
        pairs.append(AnswerPair(row.get("id") or f"row-{number:05d}", row["prompt"], a, b))
        votes.append(Vote(pairs[-1].id, row.get("annotator") or UNKNOWN, label))
    twice = [pair_id for pair_id, count in Counter(pair.id for pair in pairs).items() if count > 1]
    if twice:
        raise ValueError(
            f"expected one row a pair, got {len(twice)} ids more than once, such as {twice[0]!r}: rename them"
        )
    return pairs, votes
