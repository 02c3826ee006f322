"""The audit of a reward model, any callable (prompts, texts) -> scores: what will it be exploited for?

It charges too little for a defect (`perturbation_table`, `exploits`), fails on prompts unlike the training ones
(`agreement_by_split`), or does not know (`ensemble_spread`). Tables give 95 % bootstrap intervals over prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from picollm_lite.evaluation.metrics import gold_scores
from picollm_lite.evaluation.perturbations import EDITS, Edit
from picollm_lite.evaluation.tables import by_prompt, from_rows, interval_columns, require_same_length

ScoreFn = Callable[[Sequence[str], Sequence[str]], torch.Tensor]  # (prompts, texts) -> (B,), as RewardModel.score
# The feature of `features` that an edit puts into an answer, where its name is another one.
FEATURE_OF = {
    "flattery first": "flattery",
    "flattery last": "flattery",
    "extra facts": "length",
    "another concept's answer": "off topic",
    "dropped word": "worse form",
}


class Spread(NamedTuple):
    """What several reward models say of each answer: mean and standard deviation (B,), and the mean of the latter."""

    mean: np.ndarray
    std: np.ndarray
    mean_std: float


def perturbation_table(
    score_fn: ScoreFn,
    prompts: Sequence[str],
    answers: Sequence[str],
    edits: Mapping[str, Edit] = EDITS,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """What each edit does to proxy and gold: the mean change, one row an edit.

    "disagreement" is the share of answers that the proxy likes better and gold likes less. "answers" is how many could
    be edited: not every answer has a fact to swap. Raises ValueError for an edit that can be made to none.
    """
    require_same_length(prompts=prompts, answers=answers)
    proxy, gold = scores_of(score_fn, prompts, answers), gold_scores(prompts, answers)
    rows = {}
    for name, edit in edits.items():
        changed = _edited(edit, prompts, answers, Random(f"{seed} {name}"))
        if not changed:
            raise ValueError(f"edit {name!r} can be made to none of the {len(answers)} answers: leave it out")
        places, texts = list(changed), list(changed.values())
        asked = [prompts[place] for place in places]
        proxy_change = scores_of(score_fn, asked, texts) - proxy[places]
        gold_change = gold_scores(asked, texts) - gold[places]
        rows[name] = {
            "feature": FEATURE_OF.get(name, name),
            **interval_columns("proxy", by_prompt(asked, proxy_change)),
            **interval_columns("gold", by_prompt(asked, gold_change)),
            "disagreement": float(np.mean((proxy_change > 0) & (gold_change < 0))),
            "answers": len(texts),
        }
    return from_rows(rows).rename_axis("edit")


def exploits(table: pd.DataFrame) -> pd.DataFrame:
    """What this reward model will be exploited for: the rows of a `perturbation_table`, the worst first.

    An exploit pays by the proxy and costs by gold; more proxy is worse. It is certain when the two intervals leave 0
    out; one that truly changes nothing for the proxy still looks so once in forty. Then come defects that the proxy
    charges for, those first that cost least proxy per point of gold, an order that does not depend on the proxy's
    scale. Edits that cost no gold come last.
    """
    pays, costs = table["proxy"] > 0, table["gold"] < 0
    ranked = table.assign(
        exploit=pays & costs,
        certain=(table["proxy low"] > 0) & (table["gold high"] < 0),
        **{"proxy per gold lost": (table["proxy"] / -table["gold"]).where(costs)},
    )
    exploit = ranked[ranked["exploit"]].sort_values("proxy", ascending=False)
    charged = ranked[~ranked["exploit"]].sort_values("proxy per gold lost", ascending=False)  # none lost: last
    return pd.concat([exploit, charged])


def agreement_by_split(
    score_fn: ScoreFn, prompts: Sequence[str], answers: Sequence[str], splits: Sequence[str]
) -> pd.DataFrame:
    """Of two answers to one prompt that differ in gold, how often does the proxy rank them as gold does?

    One row a split. Each prompt, given once for each of its answers, counts once, with the mean over its pairs; a proxy
    tie counts half. "comparable" are the prompts with such a pair; the others say nothing. Raises ValueError for
    columns of unequal length and a split without a comparable prompt.
    """
    require_same_length(prompts=prompts, answers=answers, splits=splits)
    table = pd.DataFrame({"split": splits, "prompt": prompts})
    table["proxy"], table["gold"] = scores_of(score_fn, prompts, answers), gold_scores(prompts, answers)
    rows = {}
    for split, part in table.groupby("split", sort=False):
        ranked = [_ranked_alike(group["proxy"], group["gold"]) for _, group in part.groupby("prompt", sort=False)]
        shares = [alike.mean() for alike in ranked if len(alike)]
        if not shares:
            raise ValueError(f"split {split!r}: no prompt has two answers that differ in gold; give each several")
        counts = {"prompts": len(ranked), "comparable": len(shares), "pairs": sum(map(len, ranked))}
        rows[split] = {**interval_columns("agreement", shares), **counts}
    return from_rows(rows).rename_axis("split")


def ensemble_spread(
    score_fns: Sequence[ScoreFn],
    prompts: Sequence[str],
    texts: Sequence[str],
    *,
    references: Sequence[str] | None = None,
) -> Spread:
    """Where reward models that saw other labels disagree, none of them knows (Coste et al. 2024).

    Pairs share their prompt, so every model has a constant of its own for each prompt that no label can tell. With
    `references`, an answer a prompt, its score is taken off first: what is compared is by how much `texts` are better.
    The standard deviation has K - 1 below. Raises ValueError for fewer than 2 models.
    """
    if len(score_fns) < 2:
        raise ValueError(f"expected at least 2 reward models, got {len(score_fns)}: one has no spread")
    scores = np.stack([scores_of(score_fn, prompts, texts) for score_fn in score_fns])  # (K, B)
    if references is not None:
        scores -= np.stack([scores_of(score_fn, prompts, references) for score_fn in score_fns])
    std = scores.std(axis=0, ddof=1)  # (B,)
    return Spread(scores.mean(axis=0), std, float(std.mean()))


def compare_spread(prompts: Sequence[str], spreads: Mapping[str, Spread]) -> pd.DataFrame:
    """Mean spread on several sets of answers to the same prompts, and how far each lies above the first, say SFT's.

    A rise says that the answers went where labels had not taught the models the same. Raises ValueError for unequal
    lengths and when there is nothing to compare.
    """
    if len(spreads) < 2:
        raise ValueError(f"expected at least 2 sets of answers to compare, got {list(spreads)}")
    require_same_length(prompts=prompts, **{name: spread.std for name, spread in spreads.items()})
    first = next(iter(spreads.values())).std
    return from_rows(
        {
            name: {
                **interval_columns("spread", by_prompt(prompts, spread.std)),
                **interval_columns("rise", by_prompt(prompts, spread.std - first)),
            }
            for name, spread in spreads.items()
        }
    )


def scores_of(score_fn: ScoreFn, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """The proxy reward of each answer. Raises ValueError unless there is one finite number an answer."""
    scores = torch.as_tensor(score_fn(prompts, texts)).detach().cpu().double().numpy()
    if scores.shape != (len(texts),) or not np.isfinite(scores).all():
        finite = np.isfinite(scores).sum()
        raise ValueError(f"expected {len(texts)} finite scores, got shape {scores.shape} with {finite} finite")
    return scores


def _edited(edit: Edit, prompts: Sequence[str], answers: Sequence[str], rng: Random) -> dict[int, str]:
    """The edited answer at each place where the edit can be made."""
    changed = {}
    for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        try:
            changed[place] = edit(prompt, answer, rng)
        except ValueError:  # it says that there is nothing to edit
            continue
    return changed


def _ranked_alike(proxy: pd.Series, gold: pd.Series) -> np.ndarray:
    """For each pair that differs in gold: 1 where the proxy ranks it alike, 0 the other way round, a half on a tie."""
    i, j = np.triu_indices(len(gold), k=1)
    gaps = np.sign(gold.to_numpy()[i] - gold.to_numpy()[j]), np.sign(proxy.to_numpy()[i] - proxy.to_numpy()[j])
    return (1 + gaps[0] * gaps[1])[gaps[0] != 0] / 2
