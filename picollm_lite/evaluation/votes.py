"""Votes as a table, and rates by annotator.

Conventions of every question: a skip says nothing and is left out; a tie is a third label where labels are compared
with each other, and no answer where the question is which side was preferred. Several labels of one pair stay together
when pairs are resampled.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.evaluation.metrics import interval_of_sums

CHOICES = ("a", "b", "tie")
EVERYONE = "everyone"


def vote_table(votes: Sequence[Vote], pairs: Sequence[AnswerPair] | None = None) -> pd.DataFrame:
    """One row a vote, columns as in `Vote`.

    Raises ValueError for a label that is none, an annotator with the name of the sum over all, or, where `pairs` are
    given, two pairs with one id or a vote on a pair that is not among them.
    """
    table = pd.DataFrame(votes, columns=list(Vote._fields))
    _refuse(~table.label.isin([*CHOICES, "skip"]), table.label, "the labels a, b, tie or skip")
    _refuse(~table.shown_first.isin(["a", "b", ""]), table.shown_first, 'a, b or "" as shown_first')
    _refuse(table.annotator == EVERYONE, table.annotator, f"annotators; {EVERYONE!r} stands for all of them")
    if pairs is not None:
        ids = pd.Series([pair.id for pair in pairs], dtype=object)
        _refuse(ids.duplicated(), ids, "an id of its own for each pair")
        _refuse(~table.pair.isin(ids), table.pair, "votes on the given pairs")
    return table


def by_annotator(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each annotator's rows, by name, then everyone's."""
    yield from table.groupby("annotator")
    yield EVERYONE, table


def rate_table(table: pd.DataFrame, hits: Sequence[float], name: str) -> pd.DataFrame:
    """How often `hits`, one a vote, is 1 rather than 0, by annotator, with a 95 % bootstrap interval over pairs.

    Votes whose hit is NaN are counted as left out.
    """
    found = []
    for annotator, rows in by_annotator(table.assign(hit=np.asarray(hits, dtype=float))):
        sums = rows.groupby("pair").hit.agg(["sum", "count"])
        interval = interval_of_sums(sums[sums["count"] > 0].to_numpy(), lambda total: total[..., 0] / total[..., 1])
        n = int(sums["count"].sum())
        found.append((annotator, *interval, n, len(rows) - n))
    return pd.DataFrame(found, columns=["annotator", name, "low", "high", "labels", "left_out"])


def _refuse(wrong: pd.Series, values: pd.Series, expected: str) -> None:
    if wrong.any():
        raise ValueError(f"expected {expected}; got {wrong.sum()} others, such as {values[wrong].iloc[0]!r}")
