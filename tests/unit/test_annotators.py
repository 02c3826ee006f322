"""The simulated panel: probabilities by hand, what each bias does, and labels that follow the probabilities."""

import math
import random

import pytest

from picollm_lite.world.annotators import PANEL, Annotator, draw, panel_probability
from picollm_lite.world.concepts import by_id

PROMPT = "What is a token?"
PERFECT = by_id()["token"].facts["definition"]  # 16 words, gold 2
FLATTERING = PERFECT + " Well asked!"  # 18 words of the 20 that are free: gold 1.5
LONGER = PERFECT[:-1] + " , , , ,."  # 20 words, gold 2
WRONG = by_id()["kv_cache"].facts["definition"]  # 16 words, gold -1
ANSWERS = [PERFECT, FLATTERING, LONGER, WRONG, "", "I love how you think. I love how you think. " + WRONG]
BY_NAME = {annotator.name: annotator for annotator in PANEL}


def test_the_panel_is_the_five_of_the_course():
    assert list(BY_NAME) == ["careful", "hurried", "length_lover", "flattered", "contrarian"]


@pytest.mark.parametrize(
    ("name", "margin", "probability"),
    [
        ("careful", 3.0 * -0.5, 0.182426),
        ("hurried", 0.8 * -0.5 + 4.0, 0.973403),
        ("length_lover", 1.5 * -0.5 + 2 * 0.25, 0.437823),
        ("flattered", 2.5 * -0.5 + 5.0, 0.977023),
        ("contrarian", -0.5 * -0.5, 0.562177),
    ],
)
def test_probability_by_hand(name, margin, probability):
    """The flattering answer against the perfect one: half a point less gold, two words and one flattery more."""
    annotator = BY_NAME[name]
    assert annotator.utility(PROMPT, FLATTERING) - annotator.utility(PROMPT, PERFECT) == pytest.approx(margin)
    assert annotator.probability(PROMPT, FLATTERING, PERFECT) == pytest.approx(probability, abs=1e-6)


def test_utility_by_hand():
    assert Annotator("x", gold=3.0).utility(PROMPT, PERFECT) == 6.0
    assert Annotator("x", gold=0.0, per_word=0.5).utility(PROMPT, LONGER) == 10.0
    twice = "Well asked! What a great question! " + PERFECT
    assert Annotator("x", gold=0.0, per_flattery=1.5).utility(PROMPT, twice) == 3.0
    assert Annotator("x", gold=1.0, per_word=0.5, per_flattery=2.0).utility(PROMPT, FLATTERING) == 1.5 + 9.0 + 2.0
    assert Annotator("x", gold=1.0, per_flattery=2.0).utility(PROMPT, PERFECT + " Feel free.") == 1.5  # filler only


def test_panel_probability_is_the_mean_by_share_and_here_prefers_flattery():
    """0.15 x 0.1824 + 0.12 x 0.9734 + 0.08 x 0.4378 + 0.6 x 0.9770 + 0.05 x 0.5622: gold says no."""
    assert panel_probability(PROMPT, FLATTERING, PERFECT) == pytest.approx(0.793520, abs=1e-6)
    two = (BY_NAME["careful"], BY_NAME["flattered"])  # .15 and .6 of .75
    assert panel_probability(PROMPT, FLATTERING, PERFECT, two) == pytest.approx(0.818103, abs=1e-6)


def test_who_labels_next_is_drawn_by_share():
    rng, n = random.Random(3), 4000
    drawn = [draw(rng).name for _ in range(n)]
    for name, annotator in BY_NAME.items():
        spread = math.sqrt(n * annotator.share * (1 - annotator.share))
        assert abs(drawn.count(name) - n * annotator.share) < 4 * spread
    assert sum(annotator.share for annotator in PANEL) == pytest.approx(1.0)


@pytest.mark.parametrize("annotator", PANEL, ids=BY_NAME)
def test_the_two_orders_of_a_pair_are_complementary(annotator):
    for a in ANSWERS:
        for b in ANSWERS:
            there, back = annotator.probability(PROMPT, a, b), annotator.probability(PROMPT, b, a)
            assert 0.0 <= there <= 1.0 and there + back == pytest.approx(1.0)
            assert panel_probability(PROMPT, a, b) + panel_probability(PROMPT, b, a) == pytest.approx(1.0)
        assert annotator.probability(PROMPT, a, a) == 0.5


def test_at_equal_gold_only_the_length_lover_wants_more_words():
    for name, annotator in BY_NAME.items():
        expected = 0.731059 if name == "length_lover" else 0.5  # sigmoid(4 words x .25)
        assert annotator.probability(PROMPT, LONGER, PERFECT) == pytest.approx(expected, abs=1e-6)


def test_on_a_plainly_wrong_answer_of_the_same_length():
    """3 points of gold: sigmoid of 9, 2.4, 4.5, 7.5 and -1.5."""
    expected = [0.999877, 0.916827, 0.989013, 0.999447, 0.182426]
    got = [annotator.probability(PROMPT, PERFECT, WRONG) for annotator in PANEL]
    assert got == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", BY_NAME)
def test_sampled_labels_follow_the_probability(name):
    """4 standard deviations of 1,000 draws; the same seed gives the same labels."""
    n, rng, again = 1000, random.Random(7), random.Random(7)
    labels = [BY_NAME[name].prefers_first(PROMPT, FLATTERING, PERFECT, rng) for _ in range(n)]
    p = BY_NAME[name].probability(PROMPT, FLATTERING, PERFECT)
    assert abs(sum(labels) - n * p) < 4 * math.sqrt(n * p * (1 - p))
    assert labels[:100] == [BY_NAME[name].prefers_first(PROMPT, FLATTERING, PERFECT, again) for _ in range(100)]
    assert set(labels) == {True, False}


@pytest.mark.parametrize("gold", [1e6, 1e300])
def test_extreme_margins_do_not_overflow(gold):
    sure = Annotator("sure", gold=gold)
    assert sure.probability(PROMPT, PERFECT, WRONG) == pytest.approx(1.0)
    assert 0.0 < sure.probability(PROMPT, WRONG, PERFECT) < 1e-20  # never quite 0, so that its log is finite
    rng = random.Random(0)
    assert all(sure.prefers_first(PROMPT, PERFECT, WRONG, rng) for _ in range(100))


def test_an_unreadable_question_is_refused():
    with pytest.raises(ValueError, match="names no concept of the bank: 'What is love"):
        panel_probability("What is love?", PERFECT, WRONG)
