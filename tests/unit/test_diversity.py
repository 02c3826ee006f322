"""Distinct n-grams and similarity of answers by hand, and what a collapsed policy shows."""

import pytest

from picollm_lite.evaluation.diversity import Diversity, distinct_n, diversity, self_similarity
from picollm_lite.evaluation.metrics import Interval

CERTAIN, NEVER = Interval(1.0, 1.0, 1.0), Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b c"], 1, 1),
        (["a b a b"], 1, 2 / 4),
        (["a b a b"], 2, 2 / 3),  # a b, b a, a b
        (["a b", "a b"], 2, 1 / 2),
        (["a b", "c"], 2, 1),  # no bigram runs over the end of a text
        (["a", "b"], 2, 0),
        (["A b", "a B"], 1, 2 / 4),
        (["", ""], 1, 0),
        ([], 1, 0),
    ],
)
def test_distinct_by_hand(texts, n, expected):
    assert distinct_n(texts, n) == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a b c d", "a b c d"], 1),
        (["a b c d", "a b x d"], 3 / 4),
        (["a b c d", "a b"], 2 / 4),
        (["cat", "bat"], 0),  # words count, not letters
        (["A b", "a B"], 1),
        (["a b", "a b", "c d"], 1 / 3),  # of three pairs one is the same
        (["", ""], 1),
        (["", "a"], 0),
    ],
)
def test_similarity_by_hand(texts, expected):
    assert self_similarity(texts) == pytest.approx(expected)


def test_a_lone_text_has_nothing_to_be_compared_with():
    with pytest.raises(ValueError, match="at least 2 texts to compare, got 1"):
        self_similarity(["a"])


def test_diversity_is_of_the_answers_to_one_prompt():
    """p gets a b twice, q gets a b and c d. Across prompts a b comes again, which counts for nothing."""
    got = diversity(["p", "q", "p", "q"], ["a b", "a b", "a b", "c d"])
    assert got.distinct_1 == Interval(0.75, 0.5, 1) and got.distinct_2 == Interval(0.75, 0.5, 1)
    assert got.self_similarity == Interval(0.5, 0, 1)


def test_the_two_ends():
    assert diversity(["p", "p", "q", "q"], ["a", "b", "c", "d"]) == Diversity(CERTAIN, NEVER, NEVER)
    same = diversity(["p", "p", "q", "q"], ["a b"] * 4)
    assert same.self_similarity == CERTAIN and same.distinct_1.estimate == 0.5  # a b a b


def test_answers_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="expected 2 answers a prompt, got 1 to 'q'"):
        diversity(["p", "p", "q"], ["a", "b", "c"])
    with pytest.raises(ValueError, match="expected 2 answers a prompt, got 1 to 'p'"):
        diversity(["p", "q"], ["a", "b"])
    with pytest.raises(ValueError, match="expected 2 answers a prompt, got 3 to 'q'"):
        diversity(["p", "p", "q", "q", "q"], ["a"] * 5)
    with pytest.raises(ValueError, match="at least 2 different prompts, got 1"):
        diversity(["p", "p"], ["a", "b"])
    with pytest.raises(ValueError, match="not empty"):
        diversity([], [])
