"""What a win rate would be if both answers were of the same length."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from picollm_lite.evaluation import metrics
from picollm_lite.evaluation.metrics import Interval
from picollm_lite.evaluation.tables import prompt_interval, require_same_length

RIDGE = 1e-4  # keeps the fit finite where every pair is won, or length alone tells who wins; without effect elsewhere
MAX_STEPS = 200
TOLERANCE, ROUNDING = 1e-6, 1e-9  # of a step, which comes out far closer than this; and of a loss


class LengthControl(NamedTuple):
    """Win rate at zero length difference and as it is, with 95 % bootstrap intervals over prompts.

    length_effect: log-odds of a win that one unit of tanh(difference / its standard deviation) adds.
    """

    controlled: Interval
    raw: Interval
    length_effect: float


def length_controlled_win_rate(
    prompts: Sequence[str], a: Sequence[str], b: Sequence[str], points: Sequence[float], *, seed: int = 0
) -> LengthControl:
    """sigmoid(theta) of P(a wins) = sigmoid(theta + phi tanh(d / std(d))), d = words of a - words of b.

    Dubois et al. 2024, "Length-controlled AlpacaEval", without the term for an instruction's difficulty. `points` are
    1, 0 and 1/2 for a tie, such as `judged_points`; a tie is half a win and half a loss. Every prompt has the same
    weight. Where all pairs differ by the same length, this is the raw win rate: there is nothing to learn from. Where
    one side is always the longer, the value at d = 0 is extrapolated. Raises ValueError on columns of unequal length,
    points outside [0, 1] and fewer than 2 different prompts.
    """
    require_same_length(prompts=prompts, a=a, b=b, points=points)
    y = np.asarray(points, dtype=float)
    if not ((y >= 0) & (y <= 1)).all():
        raise ValueError(f"expected points in [0, 1], got values from {y.min():g} to {y.max():g}")
    raw = prompt_interval(prompts, y, seed=seed)
    difference = np.array([len(text.split()) - len(other.split()) for text, other in zip(a, b, strict=True)])
    spread = difference.std()
    d = np.tanh(difference / spread) if spread else np.zeros(len(y))  # (N,)
    place, names = pd.factorize(np.array(prompts, dtype=object))
    n = len(names)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=metrics.RESAMPLES)  # (R, prompts)
    share = 1 / np.bincount(place)[place]  # (N,)
    ((theta, phi),) = _fit(d, y, share[None], start=np.zeros(2))
    thetas = _fit(d, y, share * draws[:, place], start=np.array([theta, phi]))[:, 0]  # (R,)
    controlled = Interval(*map(float, expit([theta, *np.percentile(thetas, [2.5, 97.5])])))
    return LengthControl(controlled, raw, float(phi))


def _fit(d: np.ndarray, y: np.ndarray, weights: np.ndarray, *, start: np.ndarray) -> np.ndarray:
    """(theta, phi) of a weighted logistic regression of y on d for each row of weights (R, N), all at once: (R, 2).

    Newton's method; where a step would not lower the loss, half of it is tried next. scikit-learn fits one row at a
    time, in as long as this takes for hundreds.
    """
    X = np.stack([np.ones_like(d), d])  # (2, N)
    squares = (X[:, None] * X).reshape(4, -1)  # (4, N)

    def loss(fits: np.ndarray) -> np.ndarray:
        z = fits @ X  # (R, N)
        return (weights * (np.logaddexp(0, z) - y * z)).sum(axis=1) + RIDGE / 2 * (fits**2).sum(axis=1)

    fits, share = np.tile(start, (len(weights), 1)), np.ones(len(weights))
    losses = loss(fits)
    for _ in range(MAX_STEPS):
        p = expit(fits @ X)  # (R, N)
        slope = (weights * (y - p)) @ X.T - RIDGE * fits  # (R, 2)
        curvature = ((weights * p * (1 - p)) @ squares.T).reshape(-1, 2, 2) + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
        trial = fits + share[:, None] * step
        trial_losses = loss(trial)
        better = trial_losses <= losses + ROUNDING
        fits, losses = np.where(better[:, None], trial, fits), np.where(better, trial_losses, losses)
        share = np.where(better, np.minimum(1.0, 2 * share), share / 2)
        if np.abs(step).max() < TOLERANCE:
            return fits
    raise RuntimeError(f"the length-controlled fit did not converge in {MAX_STEPS} steps")
