"""What a preference set is made of, and what is over-represented: topics, lengths, openings, sides."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.evaluation.votes import rate_table, vote_table
from picollm_lite.world.asks import Question, read

OTHER = "other"  # a question that is none of the course desk's
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def concept_shares(pairs: Sequence[AnswerPair]) -> pd.DataFrame:
    """Pairs whose question names each concept, most first, and their share; a comparison counts for both."""
    names = ([concept.name for concept in q.concepts] if q else [OTHER] for q in map(_question, pairs))
    return _shares("concept", (name for found in names for name in found), len(pairs))


def ask_shares(pairs: Sequence[AnswerPair]) -> pd.DataFrame:
    """Pairs by what their question asks for, most first, and their share."""
    return _shares("ask", (q.ask if q else OTHER for q in map(_question, pairs)), len(pairs))


def length_quantiles(pairs: Sequence[AnswerPair], votes: Sequence[Vote]) -> pd.DataFrame:
    """Words of the preferred and of the other answer, a label each: number of labels, mean and quantiles."""
    rows = []
    for side, texts in _decided(pairs, votes).items():
        words = np.array([len(text.split()) for text in texts])
        quantiles = np.quantile(words, QUANTILES) if len(words) else [np.nan] * len(QUANTILES)
        rows.append((side, len(words), words.mean() if len(words) else np.nan, *quantiles))
    return pd.DataFrame(rows, columns=["side", "labels", "mean", *(f"{q:.0%}" for q in QUANTILES)])


def openings(pairs: Sequence[AnswerPair], votes: Sequence[Vote], *, words: int = 3) -> pd.DataFrame:
    """How answers begin: how often preferred and other answers have each opening, most frequent first."""
    counts = {
        side: Counter(" ".join(text.split()[:words]) for text in texts)
        for side, texts in _decided(pairs, votes).items()
    }
    table = pd.DataFrame(counts).fillna(0).astype(int).rename_axis("opening").reset_index()
    for side in ("chosen", "rejected"):
        table[f"{side}_share"] = table[side] / max(table[side].sum(), 1)
    order = table.assign(both=table.chosen + table.rejected).sort_values(["both", "opening"], ascending=[False, True])
    return order.drop(columns="both").reset_index(drop=True)


def length_bias(pairs: Sequence[AnswerPair], votes: Sequence[Vote]) -> pd.DataFrame:
    """How often the answer with more words is preferred, by annotator, with a 95 % bootstrap interval over pairs.

    Ties, skips and answers of equal length are left out. Longer answers may also be better ones: `label_drivers` tells
    what length adds by itself.
    """
    table = vote_table(votes, pairs)
    longer = {pair.id: np.sign(_words(pair.a) - _words(pair.b)) for pair in pairs}
    sign = table.pair.map(longer).to_numpy(dtype=float)
    counts = table.label.isin(["a", "b"]) & (sign != 0)
    return rate_table(table, np.where(counts, (sign > 0) == (table.label == "a"), np.nan), "longer_preferred")


def position_bias(votes: Sequence[Vote]) -> pd.DataFrame:
    """How often the answer shown first is preferred, by annotator, with a 95 % bootstrap interval over pairs.

    Ties, skips and votes that do not tell what was shown first are left out; without any other, the rate is NaN.
    """
    table = vote_table(votes)
    counts = table.label.isin(["a", "b"]) & (table.shown_first != "")
    return rate_table(table, np.where(counts, table.label == table.shown_first, np.nan), "first_preferred")


def _question(pair: AnswerPair) -> Question | None:
    try:
        return read(pair.prompt[-1]["content"])
    except ValueError:
        return None


def _shares(name: str, found: Iterable[str], n: int) -> pd.DataFrame:
    rows = sorted(Counter(found).items(), key=lambda item: (-item[1], item[0]))
    return pd.DataFrame([(what, count, count / n) for what, count in rows], columns=[name, "pairs", "share"])


def _words(side: Sequence[dict]) -> int:
    return len(side[-1]["content"].split())


def _decided(pairs: Sequence[AnswerPair], votes: Sequence[Vote]) -> dict[str, list[str]]:
    """Texts of the preferred and of the other answers, a label each; ties and skips prefer none."""
    table, by_id = vote_table(votes, pairs), {pair.id: pair for pair in pairs}
    table = table[table.label.isin(["a", "b"])]
    sides = {"chosen": table.label, "rejected": table.label.map({"a": "b", "b": "a"})}
    return {
        name: [getattr(by_id[pair], side)[-1]["content"] for pair, side in zip(table.pair, labels, strict=True)]
        for name, labels in sides.items()
    }
