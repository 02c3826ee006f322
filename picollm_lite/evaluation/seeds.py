"""Seeds as a random factor: does a difference between two methods hold for other seeds and other prompts?"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t

from picollm_lite.evaluation.metrics import Interval


class SeedStudy(NamedTuple):
    """Mean over seeds and prompts with a 95 % interval for new ones of both, and where one run's variance comes from.

    Shares of the variance of a single number, they sum to 1: what a seed does on all prompts, what a prompt does with
    all seeds, and the rest, which is neither. NaN where nothing varies.
    """

    mean: Interval
    seed_share: float
    prompt_share: float
    rest_share: float


def seed_study(differences: np.ndarray) -> SeedStudy:
    """Mean of paired differences (seeds, prompts), both taken as drawn at random: Satterthwaite 1946.

    With y_sp = mean + seed_s + prompt_p + rest_sp, components of variance follow from the mean squares of a two-way
    analysis of variance, negative ones set to 0 (Searle et al. 1992, chapter 4), and Var(mean) = v_seed / S +
    v_prompt / P + v_rest / (S P). An interval over prompts alone leaves out the first term, which no number of prompts
    makes smaller: it is too narrow for a claim about the method instead of these runs. Resampling seeds and prompts
    (Owen 2007) is no way out at so few seeds: over 5 of them it covers 87 times in 100 where seeds matter most, since
    it knows neither S - 1 nor Student's t. Raises ValueError unless there are 2 seeds, 2 prompts, all finite.
    """
    y = np.asarray(differences, dtype=float)
    if y.ndim != 2 or min(y.shape) < 2:
        raise ValueError(f"expected an array (seeds, prompts) with at least 2 of each, got shape {y.shape}")
    if not np.isfinite(y).all():
        raise ValueError(f"expected finite differences, got {np.count_nonzero(~np.isfinite(y))} that are not")
    S, P = y.shape
    mean, by_seed, by_prompt = y.mean(), y.mean(axis=1), y.mean(axis=0)
    rest = y - by_seed[:, None] - by_prompt + mean
    dofs = np.array([S - 1, P - 1, (S - 1) * (P - 1)])
    squares = np.array([P * ((by_seed - mean) ** 2).sum(), S * ((by_prompt - mean) ** 2).sum(), (rest**2).sum()]) / dofs
    squares = np.maximum(squares, squares[2])  # of seeds, prompts and rest; a component below 0 counts as 0
    components = np.array([(squares[0] - squares[2]) / P, (squares[1] - squares[2]) / S, squares[2]])
    variance = (squares[0] + squares[1] - squares[2]) / (S * P)
    if np.ptp(y) == 0:
        return SeedStudy(Interval(float(mean), float(mean), float(mean)), np.nan, np.nan, np.nan)
    dof = variance**2 / ((squares / (S * P)) ** 2 / dofs).sum()
    reach = student_t.ppf(0.975, dof) * np.sqrt(variance)
    interval = Interval(float(mean), float(mean - reach), float(mean + reach))
    return SeedStudy(interval, *map(float, components / components.sum()))


def by_model(rows: Iterable[Mapping]) -> dict[str, np.ndarray]:
    """Gold of each model (seeds, prompts), from rows of `seed`, `model` and `gold`, one number a prompt of the suite.

    Seeds are in rising order, the same for every model, so that differences are paired. Raises ValueError where a model
    lacks a seed or has it twice, and where numbers of prompts differ.
    """
    found: dict[str, dict[int, np.ndarray]] = {}
    for row in rows:
        runs = found.setdefault(row["model"], {})
        if row["seed"] in runs:
            raise ValueError(f"expected one row a model and seed, got two of {row['model']} with seed {row['seed']}")
        runs[row["seed"]] = np.asarray(row["gold"], dtype=float)
    seeds = sorted({seed for runs in found.values() for seed in runs})
    for model, runs in found.items():
        missing = [seed for seed in seeds if seed not in runs]
        if missing:
            raise ValueError(f"expected {model} with every seed, got none with seed {missing[0]}")
    lengths = sorted({len(gold) for runs in found.values() for gold in runs.values()})
    if len(lengths) > 1:
        raise ValueError(f"expected one number for each prompt of one suite, got rows of {lengths} numbers")
    return {model: np.stack([runs[seed] for seed in seeds]) for model, runs in found.items()}
