"""Numbers over a fixed suite: gold scores, intervals, win rates of two models on the same prompts, curve fits."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

from picollm_lite.world.rubric import score

RESAMPLES = 2000


class Interval(NamedTuple):
    """An estimate with its 95 % bootstrap interval."""

    estimate: float
    low: float
    high: float


class WinRate(NamedTuple):
    """How often A beats B, ties counted half, with a 95 % bootstrap interval over prompts; counts are of pairs."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int


def gold_scores(prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Gold reward of each answer. Raises ValueError on unequal lengths or an unreadable prompt."""
    if len(prompts) != len(answers):
        raise ValueError(f"expected one answer a prompt, got {len(prompts)} prompts and {len(answers)} answers")
    return np.array([score(prompt, answer).total for prompt, answer in zip(prompts, answers, strict=True)])


def mean_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean of one number a prompt, with a percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Raises ValueError unless there are at least 2 values, all finite.
    """
    values = _finite(values)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"expected at least 2 values in one dimension, got shape {values.shape}")
    result = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed))
    return Interval(float(values.mean()), *map(float, result.confidence_interval))


def interval_of_sums(rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int = 0) -> Interval:
    """A statistic of column sums, with a percentile bootstrap interval over the rows: `rows` is (N, K), a row a pair.

    `statistic` maps sums (..., K) to (...), NaN where it has no value; resamples without one are left out. The estimate
    is NaN without rows, its ends are where it is NaN or stands on a single row. Equal rows are drawn together, as one
    multinomial count, which keeps 2,000 resamples of 12,000 pairs cheap.
    """
    rows = np.asarray(rows, dtype=float)
    estimate = float(statistic(rows.sum(axis=0))) if len(rows) else np.nan
    if np.isnan(estimate) or len(rows) < 2:
        return Interval(estimate, np.nan, np.nan)
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(rows), counts / len(rows), size=RESAMPLES)  # (R, kinds)
    low, high = np.nanpercentile(statistic(draws @ kinds), [2.5, 97.5])
    return Interval(estimate, float(low), float(high))


def paired_win_rate(a: Sequence[float], b: Sequence[float], *, seed: int = 0, tie: float = 1e-9) -> WinRate:
    """How often A scores above B on the same prompt; scores within `tie` of each other are a tie.

    Prompts, not answers, are resampled, so that each prompt keeps its pair. Raises ValueError on unequal lengths and
    on a score that is not finite: NaN is no tie.
    """
    a, b = _finite(a), _finite(b)
    if a.shape != b.shape:
        raise ValueError(f"expected two scores a prompt, got shapes {a.shape} and {b.shape}")
    points = np.where(a > b + tie, 1.0, np.where(b > a + tie, 0.0, 0.5))
    return counted(points, mean_interval(points, seed=seed))


def counted(points: np.ndarray, interval: Interval) -> WinRate:
    """A win rate from one point a pair, 1 for a win, 0 for a loss, a half for a tie, and the interval of their mean."""
    return WinRate(*interval, *(int(np.count_nonzero(points == outcome)) for outcome in (1.0, 0.5, 0.0)))


def overoptimization_fit(distance: Sequence[float], gained: Sequence[float]) -> tuple[float, float]:
    """(alpha, beta) of R(d) = d (alpha - beta log d), least squares, d = sqrt(KL): Gao et al. 2023, section 3.1.

    `gained` is the reward above the start; points at d <= 0 say nothing and are left out. Raises ValueError on unequal
    lengths and on fewer than 3 points.
    """
    d, gained = _finite(distance), _finite(gained)
    if d.shape != gained.shape:
        raise ValueError(f"expected one gain a distance, got shapes {d.shape} and {gained.shape}")
    d, gained = d[d > 0], gained[d > 0]
    if len(d) < 3:
        raise ValueError(f"expected at least 3 points with a distance above 0, got {len(d)}")
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([d, -d * np.log(d)], axis=1), gained, rcond=None)
    return float(alpha), float(beta)


def _finite(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    wrong = np.count_nonzero(~np.isfinite(values))
    if wrong:
        raise ValueError(f"expected finite numbers, got {wrong} of {values.size} that are not")
    return values
