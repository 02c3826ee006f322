"""Who labeled, how far the annotators agree, and how noisy each one is."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.evaluation.metrics import Interval, interval_of_sums
from picollm_lite.evaluation.votes import CHOICES, by_annotator, rate_table, vote_table
from picollm_lite.world.annotators import Annotator


def label_shares(votes: Sequence[Vote]) -> pd.DataFrame:
    """Labels of each annotator, their share of all labels, on how many pairs, and how many of them say what."""
    table = vote_table(votes)
    counts = pd.crosstab(table.annotator, table.label).reindex(columns=[*CHOICES, "skip"], fill_value=0)
    counts.insert(0, "labels", counts.sum(axis=1))
    counts.insert(1, "share", counts.labels / max(len(table), 1))
    counts.insert(2, "pairs", table.groupby("annotator").pair.nunique())
    return counts.rename_axis(columns=None).reset_index()


def pairwise_kappa(votes: Sequence[Vote]) -> pd.DataFrame:
    """Cohen's kappa (1960) of every two annotators on the pairs that both labeled, with an interval over those pairs.

    A pair counts with the first label of each. Kappa is NaN without a common pair, or where both gave one and the same
    label throughout, so that nothing but agreement could be expected.
    """
    labels, found = _first_labels(votes), []
    for first, second in itertools.combinations(labels.columns, 2):
        both = labels[[first, second]].dropna().astype(int)
        cells = np.eye(len(CHOICES) ** 2)[both[first] * len(CHOICES) + both[second]]  # (N, 9), one 1 a row
        found.append((first, second, *interval_of_sums(cells, _kappa), len(both)))
    return pd.DataFrame(found, columns=["first", "second", "kappa", "low", "high", "pairs"])


def panel_alpha(votes: Sequence[Vote]) -> pd.DataFrame:
    """Krippendorff's alpha (2004, chapter 11) of all annotators, nominal labels, with an interval over pairs: one row.

    A pair counts with the first label of each annotator, if it has two or more. Alpha is NaN without such a pair, or
    where only one label occurs.
    """
    labels = _first_labels(votes).to_numpy()  # (pairs, annotators)
    counts = (labels[..., None] == np.arange(len(CHOICES))).sum(axis=1)  # (pairs, 3)
    counts = counts[counts.sum(axis=1) >= 2]
    others = counts.sum(axis=1, keepdims=True) - 1
    agreeing = (counts * (counts - 1) / others).sum(axis=1, keepdims=True)  # the diagonal of the coincidence matrix
    interval = interval_of_sums(np.hstack([counts, agreeing]), _alpha)
    columns = ["alpha", "low", "high", "pairs", "labels"]
    return pd.DataFrame([(*interval, len(counts), int(counts.sum()))], columns=columns)


def flip_rates(pairs: Sequence[AnswerPair], votes: Sequence[Vote], *, panel: Sequence[Annotator] = ()) -> pd.DataFrame:
    """How often annotators who saw a pair again changed their label, with Wilson's interval (1927).

    Each label is compared with the same annotator's one before it on that pair. `label_error` is the e of
    2 e (1 - e) = flip rate: what share of labels is wrong if errors are independent and all pairs equally hard; half
    where more than half are flipped. `expected` is the mean 2 p (1 - p) of those pairs, for annotators in `panel`,
    whose true probabilities p are known.
    """
    table = vote_table(votes, pairs)
    table = table[table.label != "skip"]
    table = table.assign(before=table.groupby(["annotator", "pair"]).label.shift())
    again = table[table.before.notna()]
    names, by_id = {annotator.name: annotator for annotator in panel}, {pair.id: pair for pair in pairs}
    expected = [
        expected_flip_rate(names[annotator], [by_id[pair]]) if annotator in names else np.nan
        for annotator, pair in zip(again.annotator, again.pair, strict=True)
    ]
    again = again.assign(expected=np.array(expected, dtype=float))
    found = []
    for annotator, rows in by_annotator(again):
        flips = int((rows.label != rows.before).sum())
        rate = _wilson(flips, len(rows))
        found.append((annotator, len(rows), flips, *rate, *map(_label_error, rate), rows.expected.mean(skipna=False)))
    columns = ["annotator", "repeats", "flips", "flip_rate", "low", "high"]
    return pd.DataFrame(found, columns=[*columns, "label_error", "error_low", "error_high", "expected"])


def expected_flip_rate(annotator: Annotator, pairs: Sequence[AnswerPair]) -> float:
    """Mean 2 p (1 - p): how often two labels of one pair differ, for an annotator whose probabilities p are known.

    NaN without pairs. Raises ValueError where a question names no concept of the bank.
    """
    texts = [[side[-1]["content"] for side in (pair.prompt, pair.a, pair.b)] for pair in pairs]
    p = np.array([annotator.probability(*text) for text in texts])
    return float((2 * p * (1 - p)).mean()) if len(p) else np.nan


def gold_agreement(
    pairs: Sequence[AnswerPair], votes: Sequence[Vote], gold: Mapping[str, float], *, tie: float = 1e-9
) -> pd.DataFrame:
    """How often a label prefers the side with more gold reward, by annotator, with an interval over pairs.

    `gold` maps a pair's id to gold(a) - gold(b), such as `feature_margins(pairs).gold`. Left out are ties, skips, pairs
    without gold, and pairs whose sides differ by no more than `tie`.
    """
    table = vote_table(votes, pairs)
    margin = np.array([gold.get(pair, np.nan) for pair in table.pair], dtype=float)
    counts = table.label.isin(["a", "b"]) & (np.abs(margin) > tie)
    return rate_table(table, np.where(counts, (margin > 0) == (table.label == "a"), np.nan), "agreement")


def _first_labels(votes: Sequence[Vote]) -> pd.DataFrame:
    """(pairs, annotators): the number in CHOICES of the first label that is no skip, NaN where there is none."""
    table = vote_table(votes)
    table = table[table.label != "skip"].drop_duplicates(["pair", "annotator"])
    table = table.assign(label=table.label.map(CHOICES.index).astype(float))
    return table.pivot(index="pair", columns="annotator", values="label")


def _kappa(cells: np.ndarray) -> np.ndarray:
    """(observed - expected) / (1 - expected) of contingency tables (..., 9)."""
    tables = cells.reshape(*cells.shape[:-1], len(CHOICES), len(CHOICES))
    n = cells.sum(axis=-1)
    observed = np.trace(tables, axis1=-2, axis2=-1) / n
    expected = (tables.sum(axis=-1) * tables.sum(axis=-2)).sum(axis=-1) / n**2
    with np.errstate(invalid="ignore"):
        return (observed - expected) / (1 - expected)


def _alpha(sums: np.ndarray) -> np.ndarray:
    """1 - observed / expected disagreement; sums (..., 4) of each label's count and of the agreeing coincidences."""
    counts, n = sums[..., :-1], sums[..., :-1].sum(axis=-1)
    observed = (n - sums[..., -1]) / n
    expected = (n**2 - (counts**2).sum(axis=-1)) / (n * (n - 1))
    with np.errstate(invalid="ignore"):
        return 1 - observed / expected


def _wilson(hits: int, n: int) -> Interval:
    if not n:
        return Interval(np.nan, np.nan, np.nan)
    return Interval(hits / n, *binomtest(hits, n).proportion_ci(method="wilson"))


def _label_error(flip_rate: float) -> float:
    return (1 - np.sqrt(1 - 2 * min(flip_rate, 0.5))) / 2
