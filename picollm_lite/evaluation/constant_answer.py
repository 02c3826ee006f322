"""A judge can be gamed: what one and the same answer to every prompt wins, by judge, length controlled or not."""

from collections.abc import Mapping, Sequence

import pandas as pd

from picollm_lite.evaluation.judges import Judge, ScoreJudge, judged_points
from picollm_lite.evaluation.length_control import length_controlled_win_rate
from picollm_lite.evaluation.tables import from_rows
from picollm_lite.world.annotators import Annotator


def annotator_judge(annotator: Annotator) -> ScoreJudge:
    """An annotator of the panel without noise: the answer of higher utility wins."""
    return ScoreJudge(lambda prompts, texts: [annotator.utility(*pair) for pair in zip(prompts, texts, strict=True)])


def constant_answer_table(
    judges: Mapping[str, Judge], prompts: Sequence[str], baseline: Sequence[str], constant: str, *, seed: int = 0
) -> pd.DataFrame:
    """Win rate of `constant`, given to every prompt, over the baseline's answers, one row a judge.

    Zheng et al. 2024 ("Cheating automatic LLM benchmarks") won 86.5 % of a length-controlled benchmark so. Length
    control takes out length, not praise, and nothing at all where one side always wins. Raises ValueError as
    `judged_win_rate` does.
    """
    rows = {}
    for name, judge in judges.items():
        answers = [constant] * len(prompts)
        points = judged_points(judge, prompts, answers, baseline)
        got = length_controlled_win_rate(prompts, answers, baseline, points, seed=seed)
        rows[name] = {"win rate": got.raw.estimate, "low": got.raw.low, "high": got.raw.high}
        rows[name] |= {
            f"controlled{end}": value for end, value in zip(("", " low", " high"), got.controlled, strict=True)
        }
    return from_rows(rows).rename_axis("judge")
