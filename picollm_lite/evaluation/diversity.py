"""How much a policy's answers to one prompt differ from each other: what RL on a reward tends to lose."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from picollm_lite.evaluation.metrics import Interval
from picollm_lite.evaluation.tables import prompt_interval, require_same_length


class Diversity(NamedTuple):
    """Per prompt, over its answers: means with 95 % bootstrap intervals over prompts, each number in [0, 1].

    distinct_1, distinct_2: see `distinct_n`. self_similarity: see `self_similarity`; 1 if all answers are the same.
    """

    distinct_1: Interval
    distinct_2: Interval
    self_similarity: Interval


def diversity(prompts: Sequence[str], answers: Sequence[str], *, seed: int = 0) -> Diversity:
    """Of several answers a prompt, each under its prompt. More answers repeat more: compare equal numbers of them.

    Raises ValueError on unequal lengths, fewer than 2 different prompts, and, naming it, a prompt with one answer only
    or with another number of answers than the first.
    """
    require_same_length(prompts=prompts, answers=answers)
    groups: dict[str, list[str]] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        groups.setdefault(prompt, []).append(answer)
    wanted = max(2, len(groups[prompts[0]]))
    for prompt, group in groups.items():
        if len(group) != wanted:
            raise ValueError(f"expected {wanted} answers a prompt, got {len(group)} to {prompt!r}")
    measures = (lambda texts: distinct_n(texts, 1), lambda texts: distinct_n(texts, 2), self_similarity)
    return Diversity(
        *(prompt_interval([*groups], [measure(texts) for texts in groups.values()], seed=seed) for measure in measures)
    )


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words divided by all of them, over all texts (Li et al. 2016, section 5).

    Case counts for nothing. 0 where no text has n words: nothing was said in any way.
    """
    words = [text.lower().split() for text in texts]
    grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_similarity(texts: Sequence[str]) -> float:
    """Mean over pairs of texts of 1 - words to insert, delete or replace / words of the longer (Levenshtein 1966).

    Raises ValueError with fewer than 2 texts.
    """
    if len(texts) < 2:
        raise ValueError(f"expected at least 2 texts to compare, got {len(texts)}")
    words = [text.lower().split() for text in texts]
    return float(np.mean([Levenshtein.normalized_similarity(*pair) for pair in combinations(words, 2)]))
