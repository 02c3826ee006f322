"""Kappa, alpha, flips and agreement with gold by hand, against the libraries that know them, and where undefined."""

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from picollm_lite.chat import user
from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.evaluation.agreement import (
    expected_flip_rate,
    flip_rates,
    gold_agreement,
    label_shares,
    pairwise_kappa,
    panel_alpha,
)
from picollm_lite.world.annotators import PANEL
from picollm_lite.world.concepts import by_id

LABELS = ("a", "b", "tie")
PERFECT = by_id()["token"].facts["definition"]
WRONG = by_id()["kv_cache"].facts["definition"]


def says(text):
    return [{"role": "assistant", "content": text}]


def pair(pair_id, a=PERFECT, b=WRONG, question="What is a token?"):
    return AnswerPair(pair_id, user(question), says(a), says(b))


def pairs_of(votes):
    return [pair(pair_id) for pair_id in dict.fromkeys(vote.pair for vote in votes)]


def votes_of(**labels):
    """One text an annotator, a letter a pair: a, b, t for a tie, s for a skip, a blank for a pair never seen."""
    names = {"a": "a", "b": "b", "t": "tie", "s": "skip"}
    return [
        Vote(f"p{number}", annotator, names[letter])
        for annotator, letters in labels.items()
        for number, letter in enumerate(letters)
        if letter != " "
    ]


def row(table, at=0):
    return table.iloc[at].to_dict()


def test_label_shares_by_hand():
    shares = label_shares([*votes_of(ann="aabt", bob=" s"), Vote("p0", "ann", "b")])
    assert shares.columns.tolist() == ["annotator", "labels", "share", "pairs", "a", "b", "tie", "skip"]
    assert list(row(shares).values()) == ["ann", 5, 5 / 6, 4, 2, 2, 1, 0]
    assert list(row(shares, 1).values()) == ["bob", 1, 1 / 6, 1, 0, 0, 0, 1]


def test_kappa_of_a_table_by_hand():
    """Of 50 pairs 20 a/a, 5 a/b, 10 b/a, 15 b/b: observed .7, expected .5 x .6 + .5 x .4 = .5, so .2 / .5."""
    (got,) = pairwise_kappa(votes_of(ann="a" * 25 + "b" * 25, bob="a" * 20 + "b" * 5 + "a" * 10 + "b" * 15)).to_dict(
        "records"
    )
    assert (got["first"], got["second"], got["pairs"]) == ("ann", "bob", 50)
    assert got["kappa"] == pytest.approx(0.4)
    # Standard error of Fleiss, Cohen and Everitt (1969, eq. 8) for this table: 0.127.
    assert (got["low"], got["high"]) == pytest.approx((0.4 - 1.96 * 0.127, 0.4 + 1.96 * 0.127), abs=0.03)


def test_a_tie_is_a_label_of_its_own():
    """Agreed on a and on tie, not on the third: 2/3 against (1 + 2 + 0) / 9 by chance."""
    assert pairwise_kappa(votes_of(ann="att", bob="atb")).kappa[0] == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))


def test_kappa_counts_pairs_that_both_labeled_with_their_first_label():
    votes = votes_of(ann="aabb a", bob="abbbas")
    again = [Vote("p0", "ann", "b"), Vote("p0", "bob", "b"), Vote("p5", "bob", "a")]  # p5: skipped, then labeled
    assert pairwise_kappa(votes).pairs[0] == 4
    assert pairwise_kappa(votes).kappa[0] == pytest.approx(0.5)  # 3/4 against 1/2
    with_repeats = pairwise_kappa(votes + again)
    assert with_repeats.pairs[0] == 5
    assert with_repeats.kappa[0] == pytest.approx((0.8 - 0.48) / (1 - 0.48))  # (3 x 2 + 2 x 3) / 25 by chance


@pytest.mark.parametrize(
    ("ann", "bob", "n"),
    [("ab  ", "  ab", 0), ("aaa", "aaa", 3), ("sa ", "aab", 1), ("ss", "aa", 0)],
    ids=["no common pair", "one label only", "one common pair", "skips only"],
)
def test_kappa_is_nan_where_it_is_undefined(ann, bob, n):
    got = pairwise_kappa(votes_of(ann=ann, bob=bob))
    if len(got):
        assert np.isnan(got[["kappa", "low", "high"]].to_numpy(float)).all()
        assert got.pairs[0] == n
    else:
        assert ann == "ss"  # who only skips has labeled nothing


def test_every_two_annotators_are_compared():
    got = pairwise_kappa(votes_of(cat="ab", ann="ab", bob="ba"))
    assert list(zip(got["first"], got["second"], got.kappa, strict=True)) == [
        ("ann", "bob", -1.0),
        ("ann", "cat", 1.0),
        ("bob", "cat", -1.0),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_kappa_and_alpha_are_those_of_the_libraries(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, 40)
    labels = np.where(rng.random((4, 40)) < 0.5, truth, rng.integers(0, 3, (4, 40)))
    seen = rng.random((4, 40)) < 0.7
    votes = [
        Vote(f"p{i}", f"annotator {who}", LABELS[labels[who, i]]) for who in range(4) for i in range(40) if seen[who, i]
    ]
    both = seen[0] & seen[1]
    expected = cohen_kappa_score(labels[0, both], labels[1, both])
    assert pairwise_kappa(votes).kappa[0] == pytest.approx(expected)
    data = np.where(seen, labels.astype(float), np.nan)
    expected = krippendorff.alpha(reliability_data=data, level_of_measurement="nominal")
    assert panel_alpha(votes).alpha[0] == pytest.approx(expected)


def test_alpha_of_a_tiny_table_by_hand():
    """aa, ab, bb: of 6 labels 3 and 3, 2 in 6 disagree; by chance 2 x 3 x 3 / (6 x 5) = .6, so 1 - (1/3) / .6."""
    got = row(panel_alpha(votes_of(ann="aab", bob="abb")))
    assert (got["pairs"], got["labels"]) == (3, 6)
    assert got["alpha"] == pytest.approx(4 / 9)
    assert got["low"] < 0 < got["alpha"] < got["high"] == 1.0  # all three may agree in a resample, or none


def test_alpha_of_three_annotators_and_a_pair_seen_once_by_hand():
    """aab and bb: of aab's 3 labels 2 disagree (4 ordered pairs / 2), so 2 in 5; by chance 2 x 2 x 3 / (5 x 4) = .6."""
    votes = [*votes_of(ann="aba", bob="ab ", cat="b "), Vote("p0", "ann", "b")]
    got = row(panel_alpha(votes))
    assert (got["pairs"], got["labels"]) == (2, 5)
    assert got["alpha"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("ann", "bob", "n"), [("ab  ", "  ab", 0), ("aa", "aa", 2), ("", "", 0)])
def test_alpha_is_nan_where_it_is_undefined(ann, bob, n):
    got = panel_alpha(votes_of(ann=ann, bob=bob))
    assert np.isnan(got[["alpha", "low", "high"]].to_numpy(float)).all() and got.pairs[0] == n


def test_flips_and_the_error_that_they_imply_by_hand():
    """8 of 25 changed: e = (1 - sqrt(1 - .64)) / 2 = .2. Wilson: .34397 +- .17192; beyond a half, e is a half."""
    votes = votes_of(ann="a" * 25 + "b", bob="ab") + votes_of(ann="b" * 8 + "a" * 17)
    got = flip_rates(pairs_of(votes), votes)
    assert got.annotator.tolist() == ["ann", "everyone"]  # bob saw nothing twice
    for at in range(2):
        ann = row(got, at)
        assert (ann["repeats"], ann["flips"], ann["flip_rate"]) == (25, 8, 0.32)
        assert (ann["low"], ann["high"]) == pytest.approx((0.17205, 0.51590), abs=1e-5)
        assert (ann["label_error"], ann["error_low"], ann["error_high"]) == pytest.approx((0.2, 0.09506, 0.5), abs=1e-5)
        assert np.isnan(ann["expected"])


def test_each_label_is_compared_with_the_one_before_it_by_the_same_annotator():
    """a, skip, b, b, tie: changed, kept, changed. In between, someone else's label is none of its business."""
    labels = [("ann", "a"), ("bob", "b"), ("ann", "skip"), ("ann", "b"), ("ann", "b"), ("ann", "tie")]
    got = flip_rates([pair("p")], [Vote("p", annotator, label) for annotator, label in labels])
    assert (got.repeats[0], got.flips[0]) == (3, 2)


def test_without_repeats_flips_are_unknown():
    votes = votes_of(ann="ab")
    got = flip_rates(pairs_of(votes), votes, panel=PANEL)
    assert got.annotator.tolist() == ["everyone"] and got.repeats[0] == 0
    assert np.isnan(row(got)["flip_rate"]) and np.isnan(row(got)["error_high"]) and np.isnan(row(got)["expected"])


def test_expected_flips_by_hand():
    """hurried: p = sigmoid(2.4) = .916827 on the wrong answer, sigmoid(3.6) = .973403 on the flattering one."""
    pairs = [pair("wrong"), pair("flattering", PERFECT + " Well asked!", PERFECT), pair("once")]
    hurried = next(annotator for annotator in PANEL if annotator.name == "hurried")
    wrong, flattering = 2 * 0.916827 * 0.083173, 2 * 0.973403 * 0.026597
    assert expected_flip_rate(hurried, pairs[:2]) == pytest.approx((wrong + flattering) / 2, abs=1e-5)
    assert np.isnan(expected_flip_rate(hurried, []))
    votes = [
        Vote(pair_id, "hurried", "a") for pair_id in ("wrong", "wrong", "wrong", "flattering", "flattering", "once")
    ]
    got = flip_rates(pairs, votes, panel=PANEL)  # `wrong` was repeated twice
    assert got.expected.tolist() == pytest.approx([(2 * wrong + flattering) / 3] * 2, abs=1e-5)
    stranger = [Vote("wrong", "me", "a"), Vote("wrong", "me", "b")]
    got = flip_rates(pairs, votes + stranger, panel=PANEL).set_index("annotator").expected
    assert got["hurried"] == pytest.approx((2 * wrong + flattering) / 3, abs=1e-5)
    assert np.isnan(got["me"]) and np.isnan(got["everyone"])


def test_agreement_with_gold_by_hand():
    votes = votes_of(ann="abba ts", bob="a     b")
    gold = {"p0": 1.0, "p1": -0.5, "p2": 2.0, "p3": 1e-12, "p4": 1.0, "p5": 1.0}  # p6: none
    got = gold_agreement([pair(f"p{i}") for i in range(7)], votes, gold)
    assert got.annotator.tolist() == ["ann", "bob", "everyone"]
    assert got.agreement.tolist() == pytest.approx([2 / 3, 1.0, 3 / 4])
    assert got.labels.tolist() == [3, 1, 4]
    assert got.left_out.tolist() == [3, 1, 4]  # ann: gold too close, a tie, a skip; bob: no gold


def test_labels_of_one_pair_are_resampled_together():
    """Two pairs, one right 50 times, one wrong 50 times: a resample may hold only one of them."""
    votes = [Vote(name, "ann", "a") for name in ("p0", "p1") for _ in range(50)]
    got = gold_agreement(pairs_of(votes), votes, {"p0": 1.0, "p1": -1.0})
    assert row(got)["agreement"] == 0.5 and (row(got)["low"], row(got)["high"]) == (0.0, 1.0)


def test_no_votes_at_all():
    assert len(label_shares([])) == len(pairwise_kappa([])) == 0
    assert flip_rates([], []).repeats.tolist() == [0]
    assert gold_agreement([], [], {}).labels.tolist() == [0]


def test_bad_votes_are_refused():
    with pytest.raises(ValueError, match="expected the labels a, b, tie or skip; got 2 others, such as 'A'"):
        label_shares([Vote("p", "ann", "A"), Vote("p", "ann", "a"), Vote("p", "ann", "")])
    with pytest.raises(ValueError, match="expected a, b or \"\" as shown_first; got 1 others, such as 'left'"):
        panel_alpha([Vote("p", "ann", "a", "left")])
    with pytest.raises(ValueError, match="expected annotators; 'everyone' stands for all of them; got 1 others"):
        pairwise_kappa([Vote("p", "everyone", "a")])
    with pytest.raises(ValueError, match="expected votes on the given pairs; got 1 others, such as 'q'"):
        flip_rates([pair("p")], [Vote("p", "ann", "a"), Vote("q", "ann", "a")])
    with pytest.raises(ValueError, match="expected an id of its own for each pair; got 1 others, such as 'p'"):
        gold_agreement([pair("p"), pair("p")], [], {})
