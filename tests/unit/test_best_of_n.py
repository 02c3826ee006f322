"""Best-of-n: its KL against the enumeration of all n-tuples, what draws say of it, and what is picked."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picollm_lite.chat import encode_prompt, user
from picollm_lite.stages.best_of_n import best, best_of_n_kl, curve, draw, expected_best, kl_bound, level_masses

from .loops import length

PROMPTS = ["What is a token?", "Why?", "Thanks."]
N = np.arange(1, 6)
# A policy of five answers, two of which share a score.
P, SCORES = np.array([0.4, 0.1, 0.2, 0.05, 0.25]), np.array([1.0, 3.0, 2.0, 3.0, 0.0])


def enumerated(n):
    """The best-of-n policy over P's answers: every n-tuple with its probability, shared among its best."""
    policy = np.zeros(5)
    for drawn in itertools.product(range(5), repeat=n):
        top = [y for y in drawn if SCORES[y] == max(SCORES[y] for y in drawn)]
        for y in top:
            policy[y] += math.prod(P[list(drawn)]) / len(top)
    return policy


def test_the_bound_by_hand():
    """The numbers for 2, 4, 16 and 64 that the literature prints; for one answer nothing has changed."""
    assert kl_bound([1, 2, 4, 16, 64]).tolist() == pytest.approx([0, 0.193147, 0.636294, 1.835089, 3.174508], abs=1e-6)


def test_the_kl_by_hand():
    """Masses 1/2, 1/4, 1/4: the best of two has 1/4, 9/16 - 1/4 and 1 - 9/16."""
    wanted = 0.25 * math.log(0.5) + 0.3125 * math.log(1.25) + 0.4375 * math.log(1.75)
    assert best_of_n_kl(np.array([0.5, 0.25, 0.25]), [1, 2]).tolist() == pytest.approx([0.0, wanted])


def test_the_kl_is_that_of_the_enumerated_policy():
    """Over answers, not scores: two answers that tie keep their shares, and add up to what their score adds."""
    levels = np.array([0.25, 0.4, 0.2, 0.15])  # scores 0, 1, 2 and 3
    for n in (1, 2, 3, 4):
        policy = enumerated(n)
        assert policy.sum() == pytest.approx(1.0)
        wanted = (policy * np.log(policy / P)).sum()
        assert best_of_n_kl(levels, [n])[0] == pytest.approx(wanted, abs=1e-12)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8))
def test_the_bound_holds_and_one_score_for_all_moves_nothing(masses):
    kl = best_of_n_kl(np.array(masses), N)
    assert (kl <= kl_bound(N) + 1e-12).all() and (kl >= -1e-12).all()
    assert best_of_n_kl(np.array([sum(masses)]), N).tolist() == pytest.approx([0.0] * 5, abs=1e-12)


def test_where_every_answer_is_rare_the_bound_is_reached():
    np.testing.assert_allclose(best_of_n_kl(np.ones(20_000), N), kl_bound(N), atol=1e-6)


def test_a_best_answer_with_mass_caps_the_kl_whatever_n():
    """Once it is always drawn, the KL is that of saying it with certainty: log 5."""
    assert best_of_n_kl(np.array([0.8, 0.2]), [1000])[0] == pytest.approx(math.log(5))


def test_the_masses_of_a_set_of_draws_by_hand():
    """Answers 0 (.5, thrice), 3 (.1, once) and 4 (.2, once): the .2 that is left goes to the last two, .1 each.
    Score 2 is that of both: .2 + .3."""
    answer, score = np.array([0, 0, 0, 3, 4]), np.array([1.0, 1.0, 1.0, 2.0, 2.0])
    logp = np.log([0.5, 0.5, 0.5, 0.1, 0.2])
    assert level_masses(score, logp, answer).tolist() == pytest.approx([0.5, 0.5])
    apart = level_masses(np.array([2.0, 2.0, 2.0, 1.0, 3.0]), logp, answer)
    assert apart.tolist() == pytest.approx([0.2, 0.5, 0.3])


def test_rare_answers_count_one_draw_each_and_all_are_drawn_twice_as_they_are():
    assert level_masses(np.arange(4.0), np.full(4, -50.0), np.arange(4)).tolist() == pytest.approx([0.25] * 4)
    twice = level_masses(np.array([0.0, 1.0] * 2), np.log([0.3, 0.6] * 2), np.array([0, 1] * 2))
    assert twice.tolist() == pytest.approx([1 / 3, 2 / 3])


def test_the_measured_kl_is_near_the_exact_one():
    """Forty draws of the five answers leave few undrawn; of answers that never come twice, n = N is .04 too low."""
    rng = np.random.default_rng(0)
    exact = best_of_n_kl(np.array([0.25, 0.4, 0.2, 0.15]), N)
    sets = rng.choice(5, size=(400, 40), p=P)
    measured = [best_of_n_kl(level_masses(SCORES[drawn], np.log(P[drawn]), drawn), N) for drawn in sets]
    np.testing.assert_allclose(np.mean(measured, axis=0), exact, atol=0.01)
    rare = best_of_n_kl(level_masses(rng.normal(size=64), np.full(64, -50.0), np.arange(64)), [2, 16, 64])
    np.testing.assert_allclose(kl_bound([2, 16, 64]) - rare, [0.0, 0.003, 0.041], atol=0.002)


def test_the_expected_best_is_unbiased_for_a_known_policy():
    """Best of 3 of the enumerated policy, against the mean of the estimate over all sets of 4 draws."""
    values = np.array([5.0, -1.0, 2.0, 4.0, 0.0])
    wanted = (enumerated(3) * values).sum()
    got = 0.0
    for drawn in itertools.product(range(5), repeat=4):
        row = list(drawn)
        got += math.prod(P[row]) * expected_best(SCORES[None, row], values[None, row])[2]
    assert got == pytest.approx(wanted)


# Draws from a model


@pytest.fixture(scope="module")
def drawn(taught, tokenizer):
    """40 answers a prompt of at most 7 tokens, of which some are cut off."""
    return draw(
        taught(), length, PROMPTS, 40, tokenizer=tokenizer, max_new_tokens=7, batch_size=50, unfinished_score=-1
    )


def test_draws_have_what_the_policy_and_the_reward_say(drawn, taught, tokenizer):
    assert drawn.prompts == PROMPTS and [len(row) for row in drawn.texts] == [40] * 3
    assert drawn.proxy.tolist() == [length(None, row) for row in drawn.texts]
    assert 0 < drawn.finished.mean() < 1 and np.isnan(drawn.gold).all()
    assert (drawn.score == np.where(drawn.finished == 1, drawn.proxy, -1.0)).all()
    policy = taught()
    for p, i in ((0, 0), (1, 13), (2, 39)):
        if not drawn.finished[p, i]:
            continue
        prompt = encode_prompt(tokenizer, user(PROMPTS[p]))
        said = [*tokenizer(drawn.texts[p][i], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        logits = policy(input_ids=torch.tensor([[*prompt, *said]])).logits[0].log_softmax(-1)
        wanted = sum(logits[len(prompt) - 1 + t, token].item() for t, token in enumerate(said))
        if len(said) == drawn.length[p, i]:  # the text may have other tokens than those that were drawn
            assert drawn.logp[p, i] == pytest.approx(wanted, abs=1e-4)


def test_equal_answers_are_known_as_such_and_scored_once(taught, tokenizer, drawn):
    asked = []

    def reward(prompts, responses):
        asked.extend(zip(prompts, responses, strict=True))
        return length(prompts, responses)

    again = draw(taught(), reward, PROMPTS, 40, tokenizer=tokenizer, max_new_tokens=7, batch_size=50)
    assert again.texts == drawn.texts  # the same seed
    assert len(asked) == len(set(asked)) < 120
    for texts, answer, logp in zip(drawn.texts, drawn.answer, drawn.logp, strict=True):
        assert len(set(answer)) < 40
        for i, first in enumerate(answer):
            assert first <= i and texts[first] == texts[i] and logp[first] == pytest.approx(logp[i], abs=1e-4)
            assert answer[first] == first
    other = draw(taught(), length, PROMPTS, 40, tokenizer=tokenizer, max_new_tokens=7, batch_size=50, seed=1)
    assert other.texts != drawn.texts


def test_batches_are_different_draws(taught, tokenizer):
    """Ten answers to one prompt in two batches of five: with one seed for both they would come twice."""
    options = {"tokenizer": tokenizer, "max_new_tokens": 7}
    (texts,) = draw(taught(), length, PROMPTS[:1], 10, batch_size=5, **options).texts
    assert texts[:5] != texts[5:]


def test_the_best_is_the_highest_score_of_the_first_n(drawn):
    for n in (1, 5, 40, None):
        for text, texts, scores in zip(best(drawn, n), drawn.texts, drawn.score, strict=True):
            kept = scores[:n].tolist()
            assert text == texts[kept.index(max(kept))]
    for n in (0, 41):
        with pytest.raises(ValueError, match=f"expected n from 1 to the 40 draws a prompt, got {n}"):
            best(drawn, n)


def test_the_curve_begins_at_the_policy_and_ends_at_the_best_of_all(drawn):
    rows = curve(drawn._replace(gold=2 * drawn.proxy))
    assert [row.n for row in rows] == list(range(1, 41)) and [row.rollouts for row in rows[:2]] == [3, 6]
    assert rows[0].proxy == pytest.approx(drawn.proxy.mean()) and rows[0].length == pytest.approx(drawn.length.mean())
    assert rows[0].finished == pytest.approx(drawn.finished.mean()) and rows[0].kl == pytest.approx(0.0, abs=1e-12)
    assert rows[-1].proxy == pytest.approx(drawn.score.max(1).mean()) and rows[-1].finished == 1.0
    for row in rows:
        assert row.gold == pytest.approx(2 * row.proxy)
        assert row.kl < row.kl_bound or row.n == 1  # answers coincide
    assert all(a.kl < b.kl for a, b in itertools.pairwise(rows))
    assert math.isnan(curve(drawn)[-1].gold)
    numbers = [value for row in rows for value in row[2:]]
    assert all(type(value) is float for value in numbers) and all(type(x) is int for row in rows for x in row[:2])


def test_gold_is_recorded_and_without_an_unfinished_score_all_keep_theirs(taught, tokenizer):
    def gold(prompts, responses):
        return [-x for x in length(prompts, responses)]

    options = {"tokenizer": tokenizer, "max_new_tokens": 7}
    got = draw(taught(), length, PROMPTS, 4, gold_fn=gold, unfinished_score=None, **options)
    assert (got.gold == -got.proxy).all() and (got.score == got.proxy).all() and not got.finished.all()


def test_errors_of_a_draw(taught, tokenizer):
    for prompts, n in (([], 2), (PROMPTS, 0)):
        with pytest.raises(ValueError, match=f"expected at least one prompt and n >= 1, got {len(prompts)} .* n = {n}"):
            draw(taught(), length, prompts, n, tokenizer=tokenizer)
    for name, options in (("best-of-n", {}), ("best-of-n, gold", {"gold_fn": lambda p, r: [math.nan] * len(r)})):
        reward = length if options else (lambda p, r: [math.nan] * len(r))
        with pytest.raises(ValueError, match=f"^{name}: the reward function gave nan for the answer"):
            draw(taught(), reward, PROMPTS, 4, tokenizer=tokenizer, max_new_tokens=7, **options)
