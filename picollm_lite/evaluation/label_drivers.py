"""Under what rubric labels were given: which features of the two answers move each annotator's choice."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.evaluation.votes import by_annotator, vote_table
from picollm_lite.world.rubric import is_finished, judge_sentences, score

# One feature for each thing that the rubric pays for or charges. `clean` is the sum of the last four, and `concise`
# follows from `words`: beside them, no coefficient could be read by itself.
CREDITED = ("correct", "asked")
UNCREDITED = ("words", "flattery", "filler", "repeated", "unfinished")
FEATURES = CREDITED + UNCREDITED
PRIOR_VARIANCE = 10.0  # of a coefficient: weak, but a feature that decides every label keeps a finite one
MIN_PAIRS = 10  # a feature: fewer say little about any coefficient (Peduzzi et al. 1996)


def feature_margins(pairs: Sequence[AnswerPair]) -> pd.DataFrame:
    """Gold reward and FEATURES of `a` less those of `b`, one row a pair, under the pair's id.

    `correct` and `asked` are the rubric's criteria, the others counts: words, sentences of a kind, a broken end. What
    needs the rubric is NaN where the question names no concept of the bank.
    """
    margins = [
        np.subtract(*(_read_answer(pair.prompt[-1]["content"], side[-1]["content"]) for side in (pair.a, pair.b)))
        for pair in pairs
    ]
    index = pd.Index([pair.id for pair in pairs], name="pair")
    return pd.DataFrame(margins, index=index, columns=["gold", *FEATURES], dtype=float)


def label_drivers(pairs: Sequence[AnswerPair], votes: Sequence[Vote]) -> pd.DataFrame:
    """What each feature adds to the log-odds of preferring `a`: logistic regression on a - b, without intercept.

    One row an annotator (then everyone) and feature. `coefficient` is per standard deviation of the feature over all
    pairs, which stands in `one_sd`, with a 95 % Wald interval. Labels of one pair share the weight of one, since
    repeats are no new evidence. `left_out` counts ties, skips, and pairs that lack a feature which others have.
    Coefficients are NaN for a feature that never differs, and with fewer than 10 pairs a feature.
    """
    table, margins = vote_table(votes, pairs), feature_margins(pairs)[list(FEATURES)]
    one_sd = np.sqrt((margins**2).mean())  # about 0: which side is `a` says nothing
    used = one_sd.index[one_sd > 0]
    ready = (margins[used] / one_sd[used]).dropna()
    table = table.assign(counts=table.label.isin(["a", "b"]) & table.pair.isin(ready.index))
    found = []
    for annotator, rows in by_annotator(table):
        decided = rows[rows.counts]
        prefers_a = (decided.label == "a").groupby(decided.pair).mean()
        fit = _fit(ready.loc[prefers_a.index], prefers_a).reindex(list(FEATURES))
        fit = fit.assign(one_sd=one_sd, pairs=len(prefers_a), labels=len(decided), left_out=len(rows) - len(decided))
        found.append(fit.rename_axis("feature").reset_index().assign(annotator=annotator))
    result = pd.concat(found, ignore_index=True)
    return result[["annotator", *result.columns.drop("annotator")]]


def suspected_biases(pairs: Sequence[AnswerPair], votes: Sequence[Vote]) -> pd.DataFrame:
    """What each annotator likes without the rubric's blessing, as far as the labels tell.

    `favors` are features that the rubric gives nothing or charges for and whose interval lies above 0; `disfavors` are
    those that it pays for and whose interval lies below 0. The strongest stands first. Of features without any effect,
    one in 40 is named by chance.
    """
    drivers = label_drivers(pairs, votes)
    favored = drivers[drivers.feature.isin(UNCREDITED) & (drivers.low > 0)].sort_values("coefficient", ascending=False)
    disfavored = drivers[drivers.feature.isin(CREDITED) & (drivers.high < 0)].sort_values("coefficient")
    result = drivers[["annotator", "pairs", "labels", "left_out"]].drop_duplicates("annotator", ignore_index=True)
    for place, (name, rows) in enumerate([("favors", favored), ("disfavors", disfavored)], start=1):
        features = [tuple(rows.feature[rows.annotator == annotator]) for annotator in result.annotator]
        result.insert(place, name, features)
    return result


@lru_cache(maxsize=100_000)
def _read_answer(question: str, answer: str) -> tuple[float, ...]:
    """Gold reward, then FEATURES."""
    try:
        total, criteria = score(question, answer)
        judged = (total, criteria["correct"], criteria["asked"])
    except ValueError:  # not a question of the course desk
        judged = (np.nan, np.nan, np.nan)
    verdicts = judge_sentences(answer)
    dirt = (sum(getattr(verdict, kind) for verdict in verdicts) for kind in ("flattery", "filler", "repeated"))
    return *judged, len(answer.split()), *dirt, not is_finished(answer)


def _fit(x: pd.DataFrame, prefers_a: pd.Series) -> pd.DataFrame:
    """Coefficient, low and high of each column; `prefers_a` is the share of a pair's labels."""
    if x.empty or len(x) < MIN_PAIRS * len(x.columns):
        return pd.DataFrame(np.nan, index=x.columns, columns=["coefficient", "low", "high"])
    X, y = x.to_numpy(), prefers_a.to_numpy()
    # Each pair once as preferring `a` and once as preferring `b`, weighted by the share of labels that say so.
    model = LogisticRegression(C=PRIOR_VARIANCE, fit_intercept=False, solver="newton-cholesky", tol=1e-6)
    model.fit(np.vstack([X, X]), np.repeat([1, 0], len(X)), sample_weight=np.concatenate([y, 1 - y]))
    w = model.coef_[0]
    p = 1 / (1 + np.exp(-X @ w))
    information = (X * (p * (1 - p))[:, None]).T @ X + np.eye(len(w)) / PRIOR_VARIANCE
    reach = 1.96 * np.sqrt(np.diag(np.linalg.inv(information)))
    return pd.DataFrame({"coefficient": w, "low": w - reach, "high": w + reach}, index=x.columns)
