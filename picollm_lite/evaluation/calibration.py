"""A reward model against the labels of held-out pairs: where it is right, and whether it is as sure as it should be.

A pair's *margin* is the score of its chosen answer less that of its rejected one. The true probabilities `p_chosen` of
the choice are the simulated panel's; they say what is possible at best. Tables give 95 % bootstrap intervals.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import entr, expit

from picollm_lite.evaluation.tables import from_rows, interval_columns, require_same_length

GOLD_BINS = {"nothing": 0.0, "up to 0.5": 0.5, "up to 1": 1.0, "up to 2": 2.0, "up to 3": 3.0, "more": np.inf}
MATCHED = 0.1  # lengths match when they differ by at most this share of the longer one, or by one word


def accuracy_tables(
    margins: Sequence[float],
    p_chosen: Sequence[float],
    *,
    chosen: Sequence[str],
    rejected: Sequence[str],
    annotators: Sequence[str],
    gold_margins: Sequence[float],
) -> pd.DataFrame:
    """Share of labels that the margin's sign predicts, by group of pairs; a margin of 0 counts half.

    Groups: all; each annotator; how far the gold rewards lie apart; pairs of about the same length in words
    (`MATCHED`); pairs whose chosen answer is the longer, or the shorter one. "best guess" is what the true
    probabilities would get right of the same labels. Groups without a pair have no row. Raises ValueError for columns
    of unequal length, margins that are not finite and what is no probability.
    """
    require_same_length(
        margins=margins,
        p_chosen=p_chosen,
        chosen=chosen,
        rejected=rejected,
        annotators=annotators,
        gold_margins=gold_margins,
    )
    m, gold = _finite(margins), _finite(gold_margins)
    right, best = _above_zero(m), _above_zero(_probabilities(p_chosen) - 0.5)
    annotators = np.array(annotators)
    gaps = pd.cut(np.abs(gold).round(6), [-1, *GOLD_BINS.values()], labels=[*GOLD_BINS])
    a, b = (np.array([len(text.split()) for text in texts]) for texts in (chosen, rejected))
    groups = {("all", ""): np.full(len(m), True)}
    groups |= {("annotator", name): annotators == name for name in np.unique(annotators)}
    groups |= {("gold differs by", name): gaps == name for name in GOLD_BINS}
    groups |= {
        ("length", "matched"): np.abs(a - b) <= np.maximum(1, MATCHED * np.maximum(a, b)),
        ("length", "chosen is longer"): a > b,
        ("length", "chosen is shorter"): a < b,
    }
    return from_rows(
        {
            name: {**interval_columns("accuracy", right[rows]), "best guess": best[rows].mean(), "pairs": rows.sum()}
            for name, rows in groups.items()
            if rows.any()
        }
    )


def calibration(margins: Sequence[float], p_chosen: Sequence[float], *, bins: int = 5) -> pd.DataFrame:
    """How often the answer that the model prefers was chosen, by how sure the model was: sigmoid(|margin|).

    Pairs that stand chosen first have no label but 1, and so no curve. Each pair in both orders gives one, point
    symmetric about (1/2, 1/2). This is its upper half, where each pair counts once, as an interval needs it. Columns:
    mean predicted and observed share, mean true probability (the labels' noise taken out), pairs. Empty bins have no
    row. Raises ValueError as `accuracy_tables` does.
    """
    sure, observed, true = _favorites(margins, p_chosen)
    place, edges = _bins(sure, bins), np.linspace(0.5, 1, bins + 1)
    rows = {}
    for k in np.unique(place):
        inside = place == k
        rows[f"{edges[k]:.2f} to {edges[k + 1]:.2f}"] = {
            "predicted": sure[inside].mean(),
            **interval_columns("observed", observed[inside]),
            "true": true[inside].mean(),
            "pairs": inside.sum(),
        }
    return from_rows(rows)


def calibration_errors(margins: Sequence[float], p_chosen: Sequence[float], *, bins: int = 5) -> pd.DataFrame:
    """Accuracy, loss, Brier score and expected calibration error: on these labels, expected, and at best.

    With q = sigmoid(margin) and p the true probability, the expected loss is -p log q - (1 - p) log(1 - q), and the
    expected Brier score p (1 - q)^2 + (1 - p) q^2 = p (1 - p) + (q - p)^2: both are least at q = p. The calibration
    error is a bin's |predicted - observed|, averaged over pairs (Naeini et al. 2015); expected, with the mean p
    in the labels' place. None depends on the order of a pair. Raises ValueError as `accuracy_tables` does.
    """
    sure, observed, true = _favorites(margins, p_chosen)
    m, p = _finite(margins), _probabilities(p_chosen)
    q, place = expit(m), _bins(sure, bins)
    loss, turned = np.logaddexp(0, -m), np.logaddexp(0, m)  # -log q, -log(1 - q)
    columns = {  # on labels, expected, at best: one number a pair
        "accuracy": (observed, true, np.maximum(p, 1 - p)),
        "loss, nats a pair": (loss, p * loss + (1 - p) * turned, entr(p) + entr(1 - p)),
        "Brier score": ((1 - q) ** 2, p * (1 - p) + (q - p) ** 2, p * (1 - p)),
    }
    rows = {
        name: {**interval_columns("on labels", labels), "expected": expected.mean(), "at best": best.mean()}
        for name, (labels, expected, best) in columns.items()
    }
    on_labels, expected = (_calibration_error(place, sure, outcome) for outcome in (observed, true))
    rows["calibration error"] = {"on labels": on_labels, "expected": expected, "at best": 0.0}
    return from_rows(rows)


def _favorites(margins: Sequence[float], p_chosen: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the answer that the model prefers: predicted probability, whether it was chosen, true probability."""
    require_same_length(margins=margins, p_chosen=p_chosen)
    m, p = _finite(margins), _probabilities(p_chosen)
    observed = _above_zero(m)
    return expit(np.abs(m)), observed, observed * p + (1 - observed) * (1 - p)


def _finite(margins: Sequence[float]) -> np.ndarray:
    m = np.asarray(margins, dtype=float)
    if not np.isfinite(m).all():
        raise ValueError(f"expected finite margins, got {np.count_nonzero(~np.isfinite(m))} of {len(m)} that are not")
    return m


def _probabilities(p_chosen: Sequence[float]) -> np.ndarray:
    p = np.asarray(p_chosen, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected probabilities in p_chosen, got values from {p.min():g} to {p.max():g}")
    return p


def _above_zero(values: np.ndarray) -> np.ndarray:
    """1 above zero, 0 below, a half at zero."""
    return (np.sign(values) + 1) / 2


def _bins(sure: np.ndarray, bins: int) -> np.ndarray:
    """Which of `bins` equal parts of [1/2, 1] a probability lies in, from 0."""
    return np.minimum((2 * bins * (sure - 0.5)).astype(int), bins - 1)


def _calibration_error(place: np.ndarray, predicted: np.ndarray, outcome: np.ndarray) -> float:
    gaps = np.bincount(place, weights=predicted - outcome)  # a bin's pairs times |predicted - observed|
    return float(np.abs(gaps).sum() / len(predicted))
