"""One checkpoint on a suite: all that a report says of it, beside the reference that it started from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from picollm_lite.chat import Responses, respond
from picollm_lite.evaluation.alignment_tax import fact_accuracy, perplexity
from picollm_lite.evaluation.audit import ScoreFn, scores_of
from picollm_lite.evaluation.diversity import diversity
from picollm_lite.evaluation.drift import drift_of
from picollm_lite.evaluation.features import exploited
from picollm_lite.evaluation.judges import gold_judge, judged_points
from picollm_lite.evaluation.length_control import length_controlled_win_rate
from picollm_lite.evaluation.metrics import Interval, WinRate, gold_scores, mean_interval, paired_win_rate
from picollm_lite.evaluation.tables import by_prompt
from picollm_lite.evaluation.training_record import TrainingRecord, load_settings
from picollm_lite.paths import shown
from picollm_lite.scoring import left_align
from picollm_lite.world.concepts import Concept

Columns = dict[str, np.ndarray]  # one number a prompt each, the mean over its answers: (prompts,)
Numbers = dict[str, Interval | WinRate]


@dataclass(frozen=True)
class Exam:
    """What every checkpoint is asked, and how it is judged: splits as many as prompts; concepts None means all."""

    prompts: list[str]
    splits: list[str]
    answers: int
    seed: int
    score_fn: ScoreFn | None
    max_new_tokens: int
    documents: Sequence[str]
    concepts: Sequence[Concept] | None

    @property
    def asked(self) -> list[str]:
        """Every prompt once for each of its answers, all first answers before all second ones."""
        return self.prompts * self.answers


@dataclass(frozen=True)
class Measured:
    """A checkpoint on the exam; texts and gold have one entry an answer, in the order of `Exam.asked`.

    numbers: over all prompts. splits: over those of each split, None for a split of one prompt, which has no interval.
    training: None where nothing is recorded. rises: `features.exploited` against the reference, of which it is None.
    """

    name: str
    folder: str
    parameters: int
    training: TrainingRecord | None
    texts: list[str]
    gold: np.ndarray
    columns: Columns
    numbers: Numbers
    splits: dict[str, Numbers | None]
    rises: pd.DataFrame | None


class Reference(NamedTuple):
    """What the others are measured against."""

    measured: Measured
    model: nn.Module


def measure(
    exam: Exam,
    name: str,
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ref: Reference | None = None,
) -> Measured:
    """Samples at temperature 1 and judges. Without `ref`, only what can be said of one model alone."""
    said = respond(model, tokenizer, exam.asked, seed=exam.seed, max_new_tokens=exam.max_new_tokens)
    gold = gold_scores(exam.asked, said.texts)
    columns = _columns(exam, said, gold)
    ref_columns = ref.measured.columns if ref else None
    numbers = _numbers(columns, ref_columns, np.full(len(exam.prompts), True), exam.seed)
    numbers |= _alone(exam, said.texts, model, tokenizer) | (_against(exam, said, model, ref) if ref else {})
    splits = {}
    for split in dict.fromkeys(exam.splits):
        rows = np.array(exam.splits) == split
        splits[split] = _numbers(columns, ref_columns, rows, exam.seed) if rows.sum() > 1 else None
    rises = exploited(exam.asked, ref.measured.texts, said.texts) if ref else None
    parameters, training = model.num_parameters(), load_settings(folder)
    return Measured(name, shown(folder), parameters, training, said.texts, gold, columns, numbers, splits, rises)


def extremes(measured: Measured) -> dict[str, int]:
    """The numbers of the prompts whose mean gold is best, median (the lower one of two) and worst."""
    order = np.argsort(measured.columns["gold"], kind="stable")
    return {"best": int(order[-1]), "median": int(order[(len(order) - 1) // 2]), "worst": int(order[0])}


def _columns(exam: Exam, said: Responses, gold: np.ndarray) -> Columns:
    columns = {"gold": gold}
    if exam.score_fn is not None:
        columns["proxy"] = scores_of(exam.score_fn, exam.asked, said.texts)
    columns["words"] = [len(text.split()) for text in said.texts]
    columns["finished"] = said.rollout.finished.tolist()
    return {name: by_prompt(exam.asked, values) for name, values in columns.items()}


def _numbers(columns: Columns, ref: Mapping[str, np.ndarray] | None, rows: np.ndarray, seed: int) -> Numbers:
    """Means of the columns over these prompts. A prompt is won where its answers have more gold on average."""
    numbers = {name: mean_interval(values[rows], seed=seed) for name, values in columns.items()}
    if ref is not None:
        numbers["win rate"] = paired_win_rate(columns["gold"][rows], ref["gold"][rows], seed=seed)
    return numbers


def _alone(exam: Exam, texts: Sequence[str], model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Numbers:
    numbers = {}
    if exam.answers > 1:  # a single answer differs from nothing
        spread = diversity(exam.asked, texts, seed=exam.seed)
        numbers |= {"distinct-2": spread.distinct_2, "self-similarity": spread.self_similarity}
    numbers["perplexity"] = perplexity(model, tokenizer, exam.documents, seed=exam.seed)
    numbers["facts"] = fact_accuracy(model, tokenizer, concepts=exam.concepts, seed=exam.seed)
    return numbers


def _against(exam: Exam, said: Responses, model: nn.Module, ref: Reference) -> Numbers:
    moved = drift_of(model, ref.model, exam.asked, left_align(said.rollout), seed=exam.seed)
    sides = exam.asked, said.texts, ref.measured.texts
    control = length_controlled_win_rate(*sides, judged_points(gold_judge, *sides), seed=exam.seed)
    return {"kl": moved.exact, "answer by answer": control.raw, "length-controlled": control.controlled}
