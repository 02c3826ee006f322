"""What evaluations share: intervals over prompts and as columns, one number a prompt, columns that fit."""

from collections.abc import Sequence, Sized

import numpy as np
import pandas as pd

from picollm_lite.evaluation.metrics import Interval, mean_interval


def interval_columns(name: str, values: Sequence[float]) -> dict[str, float]:
    """A mean and its 95 % interval as columns `name`, `name low` and `name high`; a single value has no interval."""
    mean, low, high = mean_interval(values) if len(values) > 1 else (float(np.mean(values)), np.nan, np.nan)
    return {name: mean, f"{name} low": low, f"{name} high": high}


def by_prompt(prompts: Sequence[str], values: Sequence[float]) -> np.ndarray:
    """The mean of each prompt's values, in order of appearance.

    Intervals resample these: several answers to one prompt are no independent draws.
    """
    return pd.Series(np.asarray(values, dtype=float)).groupby(list(prompts), sort=False).mean().to_numpy()


def prompt_interval(prompts: Sequence[str], values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean over prompts of each prompt's mean value, with a bootstrap interval over prompts.

    Raises ValueError with fewer than 2 different prompts.
    """
    require_same_length(prompts=prompts, values=values)
    means = by_prompt(prompts, values)
    if len(means) < 2:
        raise ValueError("expected at least 2 different prompts, got 1: there is no interval over a single prompt")
    return mean_interval(means, seed=seed)


def from_rows(rows: dict) -> pd.DataFrame:
    """A table from {row's name: {column: value}}; names that are tuples become a two-level index."""
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows)))


def require_same_length(**columns: Sized) -> None:
    """Raises ValueError that names every column's length unless all are equal and not 0."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"expected columns of one length, not empty, got {lengths}")
