"""Accuracy by group and calibration against known probabilities, by hand and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from picollm_lite.evaluation.calibration import accuracy_tables, calibration, calibration_errors


def margin(q):
    return math.log(q / (1 - q))


def words(*counts):
    return ["word " * count for count in counts]


# Six pairs: the first, third and last have the sign right, the fourth is a tie.
PAIRS = {
    "chosen": words(10, 12, 5, 20, 4, 9),
    "rejected": words(11, 10, 6, 22, 8, 3),
    "annotators": ["careful", "careful", "biased", "biased", "biased", "careful"],
    "gold_margins": [2.0, -0.3, 0.0, 3.5, 2.2 - 1.2, -0.5],
}
MARGINS, P = [1.0, -1.0, 2.0, 0.0, -0.5, 0.1], [0.9, 0.4, 0.5, 0.8, 0.7, 0.2]


def test_accuracy_by_group():
    table = accuracy_tables(MARGINS, P, **PAIRS)
    got = {group: tuple(row) for group, row in table[["accuracy", "best guess", "pairs"]].iterrows()}
    assert got == {
        ("all", ""): pytest.approx((3.5 / 6, 3.5 / 6, 6)),
        ("annotator", "biased"): pytest.approx((0.5, 2.5 / 3, 3)),
        ("annotator", "careful"): pytest.approx((2 / 3, 1 / 3, 3)),
        ("gold differs by", "nothing"): (1, 0.5, 1),
        ("gold differs by", "up to 0.5"): (0.5, 0, 2),
        ("gold differs by", "up to 1"): (0, 1, 1),  # 2.2 - 1.2 is a little more than 1 in floating point
        ("gold differs by", "up to 2"): (1, 1, 1),
        ("gold differs by", "more"): (0.5, 1, 1),  # and none up to 3
        ("length", "matched"): pytest.approx((2.5 / 3, 2.5 / 3, 3)),  # 10 and 11, 5 and 6, 20 and 22
        ("length", "chosen is longer"): (0.5, 0, 2),
        ("length", "chosen is shorter"): pytest.approx((2.5 / 4, 3.5 / 4, 4)),
    }


def test_lengths_match_up_to_a_word_or_a_tenth_of_the_longer():
    pairs = {**PAIRS, "chosen": words(1, 1, 18, 17, 20, 0), "rejected": words(2, 3, 20, 20, 18, 1)}
    table = accuracy_tables([1.0] * 6, P, **pairs)
    assert table.loc[("length", "matched"), "pairs"] == 4  # not 1 and 3, not 17 and 20


def test_groups_have_intervals_from_two_pairs_on():
    table = accuracy_tables(MARGINS, P, **PAIRS)
    low, high = table["accuracy low"], table["accuracy high"]
    assert low[("gold differs by", "up to 0.5")] == 0 and high[("gold differs by", "up to 0.5")] == 1
    assert (table["pairs"].eq(1) == low.isna()).all() and (low.isna() == high.isna()).all()


def test_calibrated_by_hand():
    """Sure to 3/4, right three times in four, and the true probability is 3/4: the best there is."""
    margins, p = [margin(0.75)] * 3 + [-margin(0.75)], [0.75] * 3 + [0.25]
    (row,) = calibration(margins, p).to_dict("index").items()
    assert row[0] == "0.70 to 0.80"
    assert [row[1][name] for name in ("predicted", "observed", "true", "pairs")] == pytest.approx([0.75, 0.75, 0.75, 4])
    errors = calibration_errors(margins, p)[["on labels", "expected", "at best"]]
    assert errors.loc["accuracy"].tolist() == pytest.approx([0.75] * 3)
    assert errors.loc["loss, nats a pair"].tolist() == pytest.approx([0.562335] * 3, abs=1e-6)
    assert errors.loc["Brier score"].tolist() == pytest.approx([0.1875] * 3)
    assert errors.loc["calibration error"].tolist() == pytest.approx([0.0] * 3)


def test_too_sure_by_hand():
    """Sure to 0.85, right 3 times in 5 as p = 0.6 says. Brier 0.24 + 0.25^2; loss -(3 log .85 + 2 log .15) / 5."""
    margins, p = [margin(0.85)] * 3 + [-margin(0.85)] * 2, [0.6] * 3 + [0.4] * 2
    row = calibration(margins, p).loc["0.80 to 0.90"]
    assert row[["predicted", "observed", "true"]].tolist() == pytest.approx([0.85, 0.6, 0.6])
    errors = calibration_errors(margins, p)[["on labels", "expected", "at best"]]
    assert errors.loc["accuracy"].tolist() == pytest.approx([0.6] * 3)
    assert errors.loc["loss, nats a pair"].tolist() == pytest.approx([0.856359, 0.856359, 0.673012], abs=1e-6)
    assert errors.loc["Brier score"].tolist() == pytest.approx([0.3025, 0.3025, 0.24])
    assert errors.loc["calibration error"].tolist() == pytest.approx([0.25, 0.25, 0.0])


def test_lucky_labels_are_told_from_what_is_expected():
    """Tossed coins that all fell as a model sure to 3/4 said."""
    margins, p = [margin(0.75)] * 2, [0.5] * 2
    errors = calibration_errors(margins, p)[["on labels", "expected", "at best"]]
    assert errors.loc["accuracy"].tolist() == [1.0, 0.5, 0.5]
    assert errors.loc["Brier score"].tolist() == pytest.approx([0.0625, 0.3125, 0.25])
    assert errors.loc["calibration error"].tolist() == pytest.approx([0.25, 0.25, 0.0])


def test_errors_of_opposite_sign_in_two_bins_do_not_cancel():
    """Bins [0.6, 0.7) and [0.9, 1]: gaps -0.35 and +0.45 of two pairs each."""
    margins = [margin(0.65)] * 2 + [margin(0.95), -margin(0.95)]
    assert calibration_errors(margins, [0.5] * 4).loc["calibration error", "on labels"] == pytest.approx(0.4)


@pytest.mark.parametrize("bins", [1, 5, 8])
def test_it_is_the_upper_half_of_the_curve_of_both_orders(bins):
    """scikit-learn bins all of [0, 1]; each pair goes in twice, chosen first and chosen last."""
    margins = np.random.default_rng(0).normal(0.5, 1.5, 400)
    q, label = 1 / (1 + np.exp(-np.concatenate([margins, -margins]))), np.repeat([1, 0], 400)
    observed, predicted = calibration_curve(label, q, n_bins=2 * bins)
    table = calibration(margins, np.full(400, 0.5), bins=bins)
    np.testing.assert_allclose(table["observed"], observed[-len(table) :])
    np.testing.assert_allclose(table["predicted"], predicted[-len(table) :])
    np.testing.assert_allclose(1 - table["observed"], observed[: len(table)][::-1])
    assert table["pairs"].sum() == 400 and (table["true"] == 0.5).all()
    errors = calibration_errors(margins, np.full(400, 0.5), bins=bins)["on labels"]
    assert errors["Brier score"] == pytest.approx(brier_score_loss(label, q))
    assert errors["loss, nats a pair"] == pytest.approx(log_loss(label, q))


def test_extreme_margins_and_ties():
    table = calibration([0.0, 800.0, -800.0], [1.0, 1.0, 0.0])
    assert table.loc["0.50 to 0.60", ["predicted", "observed", "true"]].tolist() == [0.5, 0.5, 0.5]
    assert table.loc["0.90 to 1.00", ["predicted", "observed", "true", "pairs"]].tolist() == [1.0, 0.5, 1.0, 2]
    loss = calibration_errors([0.0, 800.0], [1.0, 1.0]).loc["loss, nats a pair"]
    assert loss["on labels"] == pytest.approx(math.log(2) / 2) and loss["at best"] == 0.0


@pytest.mark.parametrize("function", [calibration, calibration_errors, lambda *a: accuracy_tables(*a, **PAIRS)])
def test_bad_columns_are_refused(function):
    with pytest.raises(ValueError, match=r"one length, not empty, got \{'margins': 5"):
        function(MARGINS[:5], P)
    with pytest.raises(ValueError, match="expected finite margins, got 1 of 6 that are not"):
        function([*MARGINS[:5], math.nan], P)
    with pytest.raises(ValueError, match=r"expected probabilities in p_chosen, got values from 0.4 to 1.1"):
        function(MARGINS, [0.4, 1.1, 0.5, 0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match="not empty"):
        function([], [])


def test_gold_that_is_missing_is_refused():
    with pytest.raises(ValueError, match="expected finite margins, got 1 of 6 that are not"):
        accuracy_tables(MARGINS, P, **{**PAIRS, "gold_margins": [math.nan, 0, 0, 0, 0, 0]})
