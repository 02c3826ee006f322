"""Verdicts in both orders by hand: wins that stand, contradictions, favorite positions, scores, recorded labels."""

import math

import numpy as np
import pytest

from picollm_lite.chat import user
from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.evaluation import metrics
from picollm_lite.evaluation.judges import (
    ScoreJudge,
    both_orders,
    gold_judge,
    judged_points,
    judged_win_rate,
    order_bias,
    recorded_judge,
)
from picollm_lite.evaluation.metrics import Interval, WinRate, gold_scores, paired_win_rate
from picollm_lite.world.concepts import by_id

TOKEN, KV = by_id()["token"].facts["definition"], by_id()["kv_cache"].facts["definition"]
PROMPTS, A, B = ["p", "q", "r", "s"], ["12", "3", "4", "9"], ["1", "34", "4", "90"]


def longer(prompt, a, b):
    return "tie" if len(a) == len(b) else "a" if len(a) > len(b) else "b"


def first(prompt, a, b):
    return "a"


def fussy(prompt, a, b):
    """Likes the first answer, except to q, where it likes the longer one, and to r, where it cannot say."""
    return {"q": longer(prompt, a, b), "r": "tie"}.get(prompt, "a")


def test_a_win_rate_by_hand():
    """One win, two losses and a tie: (1 + 1 / 2) / 4."""
    got = judged_win_rate(longer, PROMPTS, A, B)
    assert (got.rate, got.wins, got.ties, got.losses) == (0.375, 1, 1, 2)
    assert got.low < 0.375 < got.high and all(type(x) is int for x in got[3:])


def test_a_contradiction_is_a_tie():
    """To p and s the first answer wins, whichever it is; to q the longer one, which is b, in both orders."""
    assert both_orders(fussy, PROMPTS, A, B) == (["a", "b", "tie", "a"], ["b", "b", "tie", "b"])
    assert judged_points(fussy, PROMPTS, A, B).tolist() == [0.5, 0, 0.5, 0.5]
    assert judged_win_rate(first, PROMPTS, A, B) == WinRate(0.5, 0.5, 0.5, 0, 4, 0)


def test_half_a_contradiction_is_one_too():
    """The better answer wins only where it stands first; where it stands second, it is a tie."""

    def shy(prompt, a, b):
        return "a" if a > b else "tie"

    assert both_orders(shy, ["p", "q"], ["2", "1"], ["1", "2"]) == (["a", "tie"], ["tie", "b"])
    assert judged_points(shy, ["p", "q"], ["2", "1"], ["1", "2"]).tolist() == [0.5, 0.5]


def test_order_bias_by_hand():
    """fussy contradicts itself on 2 of 4. Of 8 showings the first won 2 + 1 + (2 / 2) + 2 = 6."""
    got = order_bias(fussy, PROMPTS, A, B)
    assert (got.contradicted.estimate, got.first_preferred.estimate, got.pairs) == (0.5, 0.75, 4)
    assert got.contradicted.low < 0.5 < got.contradicted.high
    assert order_bias(longer, PROMPTS, A, B)[:2] == (Interval(0, 0, 0), Interval(0.5, 0.5, 0.5))
    assert order_bias(first, PROMPTS, A, B)[:2] == (Interval(1, 1, 1), Interval(1, 1, 1))
    last = order_bias(lambda *pair: "b", PROMPTS, A, B)
    assert last[:2] == (Interval(1, 1, 1), Interval(0, 0, 0))


def test_prompts_are_resampled_not_answers():
    """p, asked three times, was won three times; q lost once: 1/2, and a resample of two prompts is 0, 1/2 or 1."""
    got = judged_win_rate(longer, ["p", "p", "q", "p"], ["11", "12", "1", "13"], ["1", "2", "11", "3"])
    assert got == WinRate(0.5, 0.0, 1.0, 3, 0, 1)
    bias = order_bias(fussy, ["p", "p", "q", "p"], ["11", "12", "1", "13"], ["1", "2", "11", "3"])
    assert (bias.contradicted, bias.pairs) == (Interval(0.5, 0.0, 1.0), 4)


def test_intervals_cover_and_a_null_difference_is_rarely_significant(monkeypatch):
    """96 prompts, 2 answers each that go together, equal models, ties allowed, and a judge that sees both orders.

    Of 400 intervals 380 +- 4.4 should hold 1/2: 92 to 98 in 100 are 368 to 392, and at most 7 in 100 may miss it.
    With answers drawn in the place of prompts, one in five would.
    """
    monkeypatch.setattr(metrics, "RESAMPLES", 500)
    rng, prompts, missed = np.random.default_rng(0), [f"p{n}" for n in range(96)] * 2, 0
    judge, zero = ScoreJudge(lambda prompts, texts: [float(text) for text in texts], tie=0.4), ["0"] * 192
    for seed in range(400):
        margin = np.tile(rng.normal(size=96), 2) * 2 + rng.normal(size=192)
        got = judged_win_rate(judge, prompts, [f"{m:.3f}" for m in margin], zero, seed=seed)
        missed += not got.low <= 0.5 <= got.high
    assert 8 <= missed <= 28, missed


def test_the_seed_draws_the_resamples():
    prompts, a, b = [f"p{n}" for n in range(40)], ["1", "22", "333", "22"] * 10, ["22"] * 40
    found = [judged_win_rate(longer, prompts, a, b, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert found[0] == found[1] and len(set(found)) > 1 and {got.rate for got in found} == {0.5}


def test_scores_judge_as_they_compare():
    judge = ScoreJudge(lambda prompts, texts: np.array([float(text) for text in texts]))
    assert [judge("p", "2", "1"), judge("p", "1", "2"), judge("p", "1", "1.0000000001")] == ["a", "b", "tie"]
    assert judge.many(["p", "q", "r"], ["2", "1", "1"], ["1", "2", "1"]) == ["a", "b", "tie"]
    wide = ScoreJudge(judge.score_fn, tie=0.5)
    assert [wide("p", "1.5", "1"), wide("p", "1.6", "1"), wide("p", "1", "1.6")] == ["tie", "a", "b"]


def test_scores_judge_many_pairs_in_one_call_an_order():
    calls = []

    def score(prompts, texts):
        calls.append(list(zip(prompts, texts, strict=True)))
        return [float(len(prompt + text)) for prompt, text in calls[-1]]

    assert judged_points(ScoreJudge(score), ["p", "q"], ["aa", "b"], ["c", "dd"]).tolist() == [1, 0]
    assert calls == [
        [("p", "aa"), ("q", "b"), ("p", "c"), ("q", "dd")],
        [("p", "c"), ("q", "dd"), ("p", "aa"), ("q", "b")],
    ]


def test_the_gold_judge_agrees_with_gold_scores():
    prompts = ["What is a token?", "What is a KV cache?", "Define a token."]
    a, b = [TOKEN, TOKEN, TOKEN], [KV, KV, TOKEN]
    assert [gold_judge(*pair) for pair in zip(prompts, a, b, strict=True)] == ["a", "b", "tie"]
    assert judged_win_rate(gold_judge, prompts, a, b) == paired_win_rate(
        gold_scores(prompts, a), gold_scores(prompts, b)
    )


def says(text):
    return [{"role": "assistant", "content": text}]


def recorded(*votes, annotator="ann"):
    pairs = [AnswerPair(name, user(f"{name}?"), says(f"{name} yes"), says(f"{name} no")) for name in ("p", "q", "r")]
    return recorded_judge(pairs, [Vote(pair, annotator, *rest) for pair, *rest in votes])


def test_recorded_labels_judge_the_texts_that_were_labeled():
    judge = recorded(("p", "a", "a"), ("q", "b", "b"), ("r", "tie", ""))
    assert [judge("p?", "p yes", "p no"), judge("q?", "q yes", "q no"), judge("r?", "r yes", "r no")] == [
        "a",
        "b",
        "tie",
    ]
    assert [judge("p?", "p no", "p yes"), judge("q?", "q no", "q yes"), judge("r?", "r no", "r yes")] == [
        "b",
        "a",
        "tie",
    ]


def test_a_pair_labeled_in_both_orders_has_two_verdicts_and_the_first_of_each_counts():
    judge = recorded(("p", "skip", "b"), ("p", "a", "a"), ("p", "b", "b"), ("p", "b", "a"))
    assert judge("p?", "p yes", "p no") == "a"  # p yes stood first, and was preferred
    assert judge("p?", "p no", "p yes") == "a"  # p no stood first, and was preferred
    assert both_orders(judge, ["p?"], ["p yes"], ["p no"]) == (["a"], ["b"])


def test_a_pair_without_a_label_is_no_tie():
    judge = recorded(("p", "a", "a"), ("q", "skip", "a"))
    for name in ("q", "r"):
        with pytest.raises(ValueError, match=rf"failed on the prompt '{name}\?': LookupError: no label for these two"):
            judged_points(judge, ["p?", f"{name}?"], ["p yes", f"{name} yes"], ["p no", f"{name} no"])


def test_a_recorded_judge_is_one_person():
    pairs = [AnswerPair("p", user("p?"), says("p yes"), says("p no"))]
    with pytest.raises(ValueError, match="votes of one annotator, got those of 2"):
        recorded_judge(pairs, [Vote("p", "ann", "a"), Vote("p", "bob", "a")])
    with pytest.raises(ValueError, match="votes of one annotator, got those of 0"):
        recorded_judge(pairs, [])
    with pytest.raises(ValueError, match="expected votes on the given pairs"):
        recorded_judge(pairs, [Vote("q", "ann", "a")])


def broken(prompt, a, b):
    if prompt == "r":
        raise KeyError("no key")
    return "a"


@pytest.mark.parametrize("measure", [judged_win_rate, judged_points, order_bias, both_orders])
def test_a_judge_that_raises_or_says_something_else_is_named_with_the_prompt(measure):
    with pytest.raises(ValueError, match=r"^the judge failed on the prompt 'r': KeyError: 'no key'") as caught:
        measure(broken, PROMPTS, A, B)
    assert isinstance(caught.value.__cause__, KeyError)
    for wrong in ("A", None, 1.0, ["a"], np.array([1, 2])):
        with pytest.raises(ValueError, match=r"expected a judge that returns a, b or tie, got .* for the prompt 'p'"):
            measure(lambda *pair, verdict=wrong: verdict, PROMPTS, A, B)


def test_a_score_that_fails_is_named_with_its_prompt():
    judge = ScoreJudge(lambda prompts, texts: [math.nan if prompt == "q" else 1.0 for prompt in prompts])
    with pytest.raises(ValueError, match="failed on the prompt 'q': ValueError: expected 2 finite scores"):
        judged_points(judge, PROMPTS, A, B)
    with pytest.raises(ValueError, match="failed on the prompt 'What is love"):
        judged_points(gold_judge, ["What is a token?", "What is love?"], [TOKEN] * 2, [KV] * 2)


@pytest.mark.parametrize("measure", [judged_win_rate, order_bias])
def test_suites_that_say_nothing_are_refused(measure):
    with pytest.raises(ValueError, match=r"not empty, got \{'prompts': 0, 'a': 0, 'b': 0\}"):
        measure(longer, [], [], [])
    with pytest.raises(ValueError, match=r"one length, not empty, got \{'prompts': 4, 'a': 4, 'b': 3\}"):
        measure(longer, PROMPTS, A, B[:3])
    for n in (1, 3):
        with pytest.raises(ValueError, match="expected at least 2 different prompts, got 1"):
            measure(longer, ["p"] * n, A[:n], B[:n])
