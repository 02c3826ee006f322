"""Majorities by hand; no vote is lost, and nobody votes on a pair that is not there."""

import pytest

from picollm_lite.chat import user
from picollm_lite.collection.aggregate import aggregate
from picollm_lite.collection.pairs import AnswerPair, Vote

A, B = [{"role": "assistant", "content": "yes"}], [{"role": "assistant", "content": "no"}]


def pair(number=0):
    return AnswerPair(f"p{number}", user("Why?"), A, B, "sft at temperature 1", "dpo at temperature 1")


def votes(labels, number=0):
    """ "a:ann b:bo" as votes."""
    return [Vote(f"p{number}", name, label) for label, _, name in (vote.partition(":") for vote in labels.split())]


def test_a_row_by_hand():
    """Two for b, one for a, a tie and a skip."""
    (row,), undecided = aggregate([pair()], votes("b:ann a:bo tie:cy b:di skip:ed"))
    assert undecided == []
    assert row == {
        "id": "p0",
        "prompt": user("Why?"),
        "chosen": B,
        "rejected": A,
        "annotator": "majority of 3",
        "votes_chosen": 2,
        "votes_rejected": 1,
        "votes": [
            {"annotator": "ann", "prefers": "chosen"},
            {"annotator": "bo", "prefers": "rejected"},
            {"annotator": "cy", "prefers": "tie"},
            {"annotator": "di", "prefers": "chosen"},
            {"annotator": "ed", "prefers": "skip"},
        ],
        "source_chosen": "dpo at temperature 1",
        "source_rejected": "sft at temperature 1",
    }


@pytest.mark.parametrize(
    ("given", "chosen", "annotator"),
    [
        ("a:ann", A, "ann"),
        ("b:ann", B, "ann"),
        ("a:ann tie:bo", A, "ann"),
        ("a:ann a:bo", A, "majority of 2"),
        ("a:ann b:ann b:ann", B, "ann"),
        ("a:ann b:bo b:cy", B, "majority of 3"),
    ],
)
def test_who_decided(given, chosen, annotator):
    ((row,), _) = aggregate([pair()], votes(given))
    assert (row["chosen"], row["annotator"]) == (chosen, annotator)


@pytest.mark.parametrize("given", ["a:ann b:bo", "tie:ann", "skip:ann tie:bo", "a:ann b:bo a:cy b:di tie:ed", ""])
def test_equal_counts_decide_nothing_and_are_kept_aside(given):
    rows, undecided = aggregate([pair(0), pair(1)], [*votes(given), *votes("a:ann", 1)])
    assert [row["id"] for row in rows] == ["p1"]
    assert undecided == [pair(0)]


def test_rows_stand_in_the_order_of_the_pairs():
    rows, _ = aggregate(iter([pair(2), pair(0), pair(1)]), [vote for n in range(3) for vote in votes("a:ann", n)])
    assert [row["id"] for row in rows] == ["p2", "p0", "p1"]


def test_votes_that_fit_nothing_are_refused():
    with pytest.raises(ValueError, match=r"^vote 1: none of the 1 pairs has the id 'p9'"):
        aggregate([pair()], [*votes("a:ann"), *votes("a:ann", 9)])
    with pytest.raises(ValueError, match=r"^vote 0: expected a label out of a, b, tie, skip, got 'A'"):
        aggregate([pair()], votes("A:ann"))
    with pytest.raises(ValueError, match="a different id for every pair, got 'p0' twice"):
        aggregate([pair(), pair()], [])
