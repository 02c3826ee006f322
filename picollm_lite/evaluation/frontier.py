"""The reward-KL frontier: what each method has gained at the same distance from the reference."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from picollm_lite.evaluation.tables import from_rows, interval_columns


class Point(NamedTuple):
    """A checkpoint of a run: KL to the reference, gold and proxy, one number or one a prompt, and its setting."""

    kl: float
    gold: float | Sequence[float]
    proxy: float | Sequence[float]
    name: str = ""


def frontier_table(runs: Mapping[str, Sequence[Point]], budgets: Sequence[float]) -> pd.DataFrame:
    """Gold and proxy of each run at each KL, rows (kl, run): means with 95 % bootstrap intervals over prompts.

    Without numbers a prompt there is no interval. NaN stands where a run has not been: see `at_kl`.
    """
    rows = {}
    for kl in budgets:
        for name, run in runs.items():
            gold, proxy = at_kl(run, kl)
            rows[kl, name] = {**_columns("gold", gold), **_columns("proxy", proxy)}
    table = from_rows(rows)
    table.index.names = ["kl", "run"]
    return table


def at_kl(run: Sequence[Point], kl: float) -> tuple[np.ndarray, np.ndarray]:
    """Gold and proxy (prompts,) where the run first reaches this KL, on the line between the two points around it.

    A run that turns back passes a KL more than once: what counts is the first time, in the order of its points. NaN
    outside the run's range; nothing is extrapolated. Raises ValueError without a point, for a KL that is not finite,
    and for points with different numbers of prompts.
    """
    path, values = _arrays(run)
    if not path.min() <= kl <= path.max():
        return tuple(np.full(values.shape[1:], np.nan))
    k = next(k for k, ends in enumerate(pairwise(path)) if min(ends) <= kl <= max(ends))
    step = path[k + 1] - path[k]
    share = (kl - path[k]) / step if step else 0.0
    return tuple(values[k] + share * (values[k + 1] - values[k]))


def _columns(name: str, values: np.ndarray) -> dict[str, float]:
    return interval_columns(name, values[:1] if np.isnan(values).all() else values)  # NaN has no interval


def _arrays(run: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    """KL (N + 1,) and values (N + 1, 2, prompts) of a run, its last point twice: a lone one needs two ends."""
    if not run:
        raise ValueError("expected a run with at least one point, got none")
    columns = [
        np.atleast_1d(np.asarray(column, dtype=float))
        for point in (*run, run[-1])
        for column in (point.gold, point.proxy)
    ]
    shapes = {column.shape for column in columns}
    if len(shapes) > 1 or columns[0].ndim != 1:
        raise ValueError(f"expected as many numbers of gold and proxy at every point, got shapes {sorted(shapes)}")
    path = np.array([point.kl for point in (*run, run[-1])], dtype=float)
    if not np.isfinite(path).all():
        raise ValueError(f"expected a finite KL at every point, got {path[:-1].tolist()}")
    return path, np.stack(columns).reshape(len(path), 2, -1)
