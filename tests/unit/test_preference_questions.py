"""What moves labels and what a set is made of, by hand; and the four questions put to the shipped preferences."""

import random

import numpy as np
import pytest

from picollm_lite import paths
from picollm_lite.chat import user
from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.collection.preference_file import from_preferences
from picollm_lite.evaluation.agreement import flip_rates, gold_agreement, label_shares, panel_alpha
from picollm_lite.evaluation.composition import (
    ask_shares,
    concept_shares,
    length_bias,
    length_quantiles,
    openings,
    position_bias,
)
from picollm_lite.evaluation.label_drivers import FEATURES, feature_margins, label_drivers, suspected_biases
from picollm_lite.files import read_jsonl
from picollm_lite.world.annotators import PANEL
from picollm_lite.world.concepts import by_id

PERFECT = by_id()["token"].facts["definition"]  # 16 words, gold 2
WRONG = by_id()["kv_cache"].facts["definition"]  # 16 words, gold -1
OFF_DESK = "What is love?"


def says(text):
    return [{"role": "assistant", "content": text}]


def pair(pair_id, a, b, question="What is a token?"):
    return AnswerPair(pair_id, user(question), says(a), says(b))


# Rows of a preference file.


def rows_of(n):
    return [
        {"id": f"p{i}", "prompt": user("Why?"), "chosen": says("Good."), "rejected": says("Bad."), "annotator": "ann"}
        for i in range(n)
    ]


def test_a_preference_file_becomes_pairs_and_votes():
    """The label always points at the chosen side, which is `a` about half the time: 200 +- 4 x 10."""
    rows = rows_of(400)
    pairs, votes = from_preferences(rows)
    for row, got, vote in zip(rows, pairs, votes, strict=True):
        sides = {"a": got.a, "b": got.b}
        assert sides.pop(vote.label) == row["chosen"] and list(sides.values()) == [row["rejected"]]
        assert (got.id, got.prompt, vote) == (row["id"], row["prompt"], Vote(row["id"], "ann", vote.label, ""))
    assert abs(sum(vote.label == "a" for vote in votes) - 200) < 40
    assert from_preferences(rows) == (pairs, votes) != from_preferences(rows, seed=1)


def test_rows_without_names_are_counted_as_unknown():
    rows = rows_of(2)
    del rows[0]["annotator"], rows[0]["id"]
    rows[1] |= {"annotator": None, "id": None}  # what `load_preferences` fills in
    pairs, votes = from_preferences(rows)
    assert [p.id for p in pairs] == [vote.pair for vote in votes] == ["row-00000", "row-00001"]
    assert {vote.annotator for vote in votes} == {"unknown"}
    with pytest.raises(
        ValueError, match="expected one row a pair, got 1 ids more than once, such as 'p0': rename them"
    ):
        from_preferences([*rows_of(2), *rows_of(1)])


# Under what rubric.


def test_feature_margins_by_hand():
    """`a` is perfect, then flatters, fills, repeats and breaks off: 2 + 2 + 16 words more than `b`, which is wrong."""
    a = f"{PERFECT} Well asked! Feel free. {PERFECT[:-1]}"
    got = feature_margins([pair("p", a, WRONG), pair("q", WRONG, a), pair("off", "I love that", "No.", OFF_DESK)])
    by_hand = {"correct": 1, "asked": 1, "words": 20, "flattery": 1, "filler": 1, "repeated": 1, "unfinished": 1}
    assert got.loc["p", list(FEATURES)].to_dict() == by_hand
    # 36 words are 1.8 times the free 20: concise .2; four dirty things: clean -1. So 2 + 1 + .2 - 1 - 3 = -.8, and -1.
    assert got.loc["p", "gold"] == pytest.approx(0.2)
    assert (got.loc["q"] == -got.loc["p"]).all()
    assert np.isnan(got.loc["off", ["gold", "correct", "asked"]].to_numpy()).all()
    assert got.loc["off", ["words", "flattery", "unfinished"]].tolist() == [2, 1, 1]


def flattery_only(n, share, annotator="ann"):
    """Pairs that differ in nothing but flattery, `a` and `b` by turns, and votes of which a share likes it."""
    flattering, plain = "I love that.", "It is red."
    pairs = [pair(f"p{i}", *((flattering, plain) if i % 2 else (plain, flattering)), OFF_DESK) for i in range(n)]
    likes = [i < share * n for i in range(n)]
    return pairs, [Vote(f"p{i}", annotator, "a" if bool(i % 2) == likes[i] else "b") for i in range(n)]


def test_one_coefficient_by_hand():
    """30 of 40 like it. 30 - 40 p = w / 10 (the prior's pull) has w = 1.0842; 40 p (1 - p) + .1 = 7.654 is 1 / se^2."""
    got = label_drivers(*flattery_only(40, 0.75)).set_index(["annotator", "feature"])
    for who in ("ann", "everyone"):
        flattery = got.loc[(who, "flattery")]
        assert flattery.coefficient == pytest.approx(1.0842, abs=1e-4)
        assert (flattery.low, flattery.high) == pytest.approx((1.0842 - 0.7085, 1.0842 + 0.7085), abs=1e-4)
        assert flattery[["one_sd", "pairs", "labels", "left_out"]].tolist() == [1.0, 40, 40, 0]
        assert got.loc[who].coefficient.drop("flattery").isna().all()  # words never differ, gold is not known


def test_a_coefficient_is_for_one_standard_deviation():
    """`a` is two words longer in half of the pairs and two shorter in the others: one_sd 2."""
    short, long = "It is.", "It is red now."
    pairs = [pair(f"p{i}", *((long, short) if i % 2 else (short, long)), OFF_DESK) for i in range(40)]
    votes = [Vote(f"p{i}", "ann", "a" if (i % 2 == 1) == (i < 30) else "b") for i in range(40)]
    words = label_drivers(pairs, votes).set_index(["annotator", "feature"]).loc[("ann", "words")]
    assert (words.one_sd, words.coefficient) == pytest.approx((2.0, 1.0842), abs=1e-4)


def test_repeats_are_no_new_evidence():
    pairs, votes = flattery_only(40, 0.75)
    once, thrice = label_drivers(pairs, votes), label_drivers(pairs, votes * 3)
    assert thrice.coefficient.dropna().tolist() == pytest.approx(once.coefficient.dropna().tolist(), abs=1e-5)
    assert thrice.low.dropna().tolist() == pytest.approx(once.low.dropna().tolist(), abs=1e-5)
    assert (thrice.labels == 3 * once.labels).all() and (thrice.pairs == once.pairs).all()


def test_a_pair_with_two_opinions_counts_half_for_each():
    """Everyone's labels are one for and one against on each pair: nothing moves them."""
    pairs, votes = flattery_only(40, 1.0)
    other = [vote._replace(annotator="bob", label="b" if vote.label == "a" else "a") for vote in votes]
    got = label_drivers(pairs, votes + other).query("feature == 'flattery'").set_index("annotator")
    assert got.coefficient["everyone"] == pytest.approx(0.0, abs=1e-6)
    assert got.coefficient["ann"] == pytest.approx(-got.coefficient["bob"], abs=1e-4)
    assert got.pairs.tolist() == [40, 40, 40] and got.labels.tolist() == [40, 40, 80]


def test_labels_that_a_feature_decides_have_a_finite_coefficient():
    """40 - 40 p = w / 10 has w = 4.4804, p = .9888; 40 p (1 - p) + .1 = .5434, and 1.96 / sqrt(.5434) = 2.659."""
    flattery = label_drivers(*flattery_only(40, 1.0)).query("feature == 'flattery' and annotator == 'ann'").iloc[0]
    assert (flattery.coefficient, flattery.low) == pytest.approx((4.4804, 4.4804 - 2.659), abs=1e-3)


@pytest.mark.parametrize("n", [9, 10])
def test_fewer_than_ten_pairs_a_feature_say_nothing(n):
    got = label_drivers(*flattery_only(n, 1.0)).query("feature == 'flattery'")
    assert got.coefficient.isna().tolist() == [n == 9] * 2
    assert got.pairs.tolist() == [n, n]


def test_what_is_left_out_is_counted():
    """A tie, a skip, and a pair whose correctness nobody knows while that of others is known."""
    pairs = [pair(f"p{i}", PERFECT, WRONG) for i in range(2)] + [pair("off", "Yes.", "No.", OFF_DESK)]
    votes = [Vote("p0", "ann", "tie"), Vote("p0", "ann", "skip"), Vote("off", "ann", "a"), Vote("p1", "ann", "a")]
    got = label_drivers(pairs, votes)
    assert set(got.left_out) == {3} and set(got.labels) == set(got.pairs) == {1}


def test_pairs_that_do_not_differ_and_no_pairs_have_no_drivers():
    same = [pair(f"p{i}", PERFECT, PERFECT) for i in range(30)]
    for pairs, votes in ((same, [Vote(p.id, "ann", "a") for p in same]), ([], [])):
        assert label_drivers(pairs, votes).coefficient.isna().all()
        assert set(suspected_biases(pairs, votes).favors) == {()}


def test_a_bias_is_suspected_where_the_interval_says_so():
    """21 of 40 may be chance, 30 are not; whoever dislikes flattery does as the rubric says."""
    for share, favors in ((0.525, ()), (0.75, ("flattery",)), (0.25, ())):
        got = suspected_biases(*flattery_only(40, share))
        assert got.annotator.tolist() == ["ann", "everyone"]
        assert got.favors.tolist() == [favors] * 2 and got.disfavors.tolist() == [()] * 2
        assert got[["pairs", "labels", "left_out"]].to_numpy().tolist() == [[40, 40, 0]] * 2


# What is over-represented.

MIXED = [
    pair("p0", "A token is a", "It is a unit.", "What is a token?"),
    pair("p1", "A token is a unit.", "It is", "Compare a token and a KV cache."),
    pair("p2", "Hi", "Ho", OFF_DESK),
    pair("p3", "A token is a bit", "Well", "Use one analogy to explain a KV cache."),
]
MIXED_VOTES = [
    Vote("p0", "ann", "a", "a"),  # 4 words each
    Vote("p1", "ann", "a", "b"),  # 5 against 2
    Vote("p3", "ann", "b", "b"),  # 1 against 5
    Vote("p1", "bob", "a", ""),
    Vote("p2", "bob", "tie", "a"),
    Vote("p3", "bob", "skip", "a"),
]


def test_concepts_and_asks_by_hand():
    concepts = concept_shares(MIXED)
    assert list(concepts.itertuples(index=False, name=None)) == [
        *(("KV cache", 2, 0.5), ("token", 2, 0.5), ("other", 1, 0.25))
    ]
    asks = ask_shares([*MIXED, MIXED[0]])
    assert list(asks.itertuples(index=False, name=None)) == [
        *(("define", 2, 0.4), ("analogy", 1, 0.2), ("compare", 1, 0.2), ("other", 1, 0.2))
    ]
    assert len(concept_shares([])) == len(ask_shares([])) == 0


def test_lengths_by_hand():
    """Preferred: 4, 5, 1 and 5 words; the others 4, 2, 5 and 2. Ties and skips prefer none."""
    got = length_quantiles(MIXED, MIXED_VOTES).set_index("side")
    assert got.labels.tolist() == [4, 4] and got["mean"].tolist() == [3.75, 3.25]
    assert got.loc["chosen", ["0%", "25%", "50%", "75%", "100%"]].tolist() == [1, 3.25, 4.5, 5, 5]
    assert got.loc["rejected", ["0%", "50%", "100%"]].tolist() == [2, 3, 5]
    assert length_quantiles([], [])["mean"].isna().all()


def test_openings_by_hand():
    got = openings(MIXED, MIXED_VOTES)
    assert list(got.itertuples(index=False, name=None)) == [
        ("A token is", 3, 1, 0.75, 0.25),
        ("It is", 0, 2, 0.0, 0.5),
        ("It is a", 0, 1, 0.0, 0.25),
        ("Well", 1, 0, 0.25, 0.0),
    ]
    assert openings(MIXED, MIXED_VOTES, words=1).opening.tolist() == ["A", "It", "Well"]
    assert len(openings([], [])) == 0


def test_length_and_position_bias_by_hand():
    longer = length_bias(MIXED, MIXED_VOTES).set_index("annotator")
    assert longer.longer_preferred.tolist() == pytest.approx([0.5, 1.0, 2 / 3])
    assert longer.labels.tolist() == [2, 1, 3] and longer.left_out.tolist() == [1, 2, 3]
    first = position_bias(MIXED_VOTES).set_index("annotator")
    assert first.first_preferred.tolist() == pytest.approx([2 / 3, np.nan, 2 / 3], nan_ok=True)
    assert first.labels.tolist() == [3, 0, 3] and first.left_out.tolist() == [0, 3, 3]


def test_the_interval_of_a_rate_by_hand():
    """50 of 100 pairs: .5 +- 1.96 x .05; one pair alone has none."""
    votes = [Vote(f"p{i}", "ann", "a", "ab"[i % 2]) for i in range(100)] + [Vote("p", "bob", "a", "a")]
    got = position_bias(votes).set_index("annotator")
    assert (got.low["ann"], got.high["ann"]) == pytest.approx((0.402, 0.598), abs=0.012)
    assert got.first_preferred["bob"] == 1.0 and np.isnan(got.low["bob"]) and np.isnan(got.high["bob"])


# The four questions, put to the shipped preferences.


@pytest.fixture(scope="module")
def shipped():
    """Up to 600 labels by each annotator, under other names: nothing but the labels may tell who is who."""
    kept = {annotator.name: [] for annotator in PANEL}
    for row, _ in read_jsonl(paths.DATA / "preferences.jsonl"):
        kept[row["annotator"]].append(row)
    aliases = dict(zip(kept, ("V", "W", "X", "Y", "Z"), strict=True))
    rows = [row | {"annotator": aliases[name]} for name, rows in kept.items() for row in rows[:600]]
    return aliases, *from_preferences(rows)


def test_the_annotators_with_a_bias_are_found_by_the_four_questions(shipped):
    aliases, pairs, votes = shipped
    shares = label_shares(votes).set_index("annotator")
    assert set(shares.index) == set(aliases.values()) and shares.labels.min() >= 600
    assert panel_alpha(votes).pairs[0] == flip_rates(pairs, votes).repeats[0] == 0  # one label a pair: cannot be known

    suspected = suspected_biases(pairs, votes).set_index("annotator")
    favors, disfavors = (
        {name: suspected[column][alias] for name, alias in aliases.items()} for column in suspected.columns[:2]
    )
    assert favors["flattered"] == favors["hurried"] == ("flattery",)
    assert favors["length_lover"] == ("words",)
    assert favors["careful"] == ()
    assert set(disfavors["contrarian"]) == {"correct", "asked"}
    assert not any(disfavors[name] for name in disfavors if name != "contrarian")

    gold = gold_agreement(pairs, votes, feature_margins(pairs).gold).set_index("annotator")
    agreement = gold.agreement.drop("everyone")
    assert agreement.idxmax() == aliases["careful"] and agreement.idxmin() == aliases["contrarian"]
    assert gold.high[aliases["contrarian"]] < 0.5 < gold.low.drop([aliases["contrarian"], "everyone"]).min()
    assert length_bias(pairs, votes).set_index("annotator").longer_preferred.idxmax() == aliases["length_lover"]
    assert concept_shares(pairs).concept.ne("other").all()


def test_repeated_labels_flip_as_often_as_known_probabilities_say(shipped):
    """Within 4 standard errors, about the full width of each interval."""
    _, pairs, _ = shipped
    rng, votes = random.Random(0), []
    for judged in pairs[::20]:
        texts = [side[-1]["content"] for side in (judged.prompt, judged.a, judged.b)]
        for annotator in (*PANEL, *PANEL):
            votes.append(Vote(judged.id, annotator.name, "a" if annotator.prefers_first(*texts, rng) else "b"))
    got = flip_rates(pairs, votes, panel=PANEL)
    assert got.repeats.tolist() == [150] * 5 + [750]
    assert (abs(got.flip_rate - got.expected) < got.high - got.low).all()
    assert got.label_error[got.annotator == "contrarian"].item() > got.label_error[got.annotator == "careful"].item()


def test_whoever_follows_the_rubric_is_not_suspected(shipped):
    """Bradley-Terry choices on the gold reward alone."""
    _, pairs, _ = shipped
    gold = feature_margins(pairs).gold
    for seed in range(3):
        prefers_a = np.random.default_rng(seed).random(len(pairs)) < 1 / (1 + np.exp(-gold))
        votes = [Vote(pair_id, "fair", "a" if a else "b") for pair_id, a in prefers_a.items()]
        got = suspected_biases(pairs, votes)
        assert set(got.favors) == set(got.disfavors) == {()}
