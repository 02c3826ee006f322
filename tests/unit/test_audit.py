"""A bias planted in a score must come out first, in the audit and in what is exploited; tables by hand."""

import math
from random import Random
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import torch

from picollm_lite.data import load_suite
from picollm_lite.evaluation.audit import (
    FEATURE_OF,
    agreement_by_split,
    compare_spread,
    ensemble_spread,
    exploits,
    perturbation_table,
    scores_of,
)
from picollm_lite.evaluation.features import exploited, features
from picollm_lite.evaluation.metrics import gold_scores
from picollm_lite.evaluation.perturbations import EDITS
from picollm_lite.models import RewardModel
from picollm_lite.paths import SUITE
from picollm_lite.world.asks import read, reference_answer, required_facts
from picollm_lite.world.concepts import by_id

TOKEN, KV = by_id()["token"].facts, by_id()["kv_cache"].facts
DEFINE, WHY, CACHE = "What is a token?", "What is a token and why does it matter?", "What is a KV cache?"
PERFECT = TOKEN["definition"]
# One edit a feature. Where an answer is one fact, a swapped one is off topic: the planted biases need longer ones.
EDIT_OF = {FEATURE_OF.get(name, name): name for name in EDITS if name != "lower case"}
QUESTIONS = [q for q in load_suite(SUITE)["prompt"] if len(required_facts(read(q))) > 1][:12]
ANSWERS = [reference_answer(read(q)) for q in QUESTIONS]


def gold_fn(prompts, texts):
    return torch.tensor(gold_scores(prompts, texts))


def liking(feature, bonus=10.0):
    """Gold, and a bonus for answers with this feature."""
    return lambda prompts, texts: (
        gold_fn(prompts, texts) + bonus * torch.tensor(features(prompts, texts)[feature].to_numpy())
    )


@pytest.mark.parametrize("feature", EDIT_OF)
def test_a_planted_bias_comes_first_in_audit_and_policy(feature):
    """The policy that exploits the bias is played by the edit, made to two answers in three."""
    ranked = exploits(perturbation_table(liking(feature), QUESTIONS, ANSWERS))
    assert ranked["feature"].iloc[0] == feature
    assert ranked["certain"].iloc[0]
    assert set(ranked.loc[ranked["certain"], "feature"]) == {feature}
    rng, edit = Random(0), EDITS[EDIT_OF[feature]]
    policy = [edit(q, a, rng) if i % 3 else a for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))]
    assert exploited(QUESTIONS, ANSWERS, policy).index[0] == feature


@pytest.mark.parametrize(
    "score_fn",
    [
        gold_fn,
        lambda prompts, texts: 3 * gold_fn(prompts, texts) - 7,
        lambda prompts, texts: torch.zeros(len(texts)),
        lambda prompts, texts: torch.tensor([crc32(text.encode()) / 2**32 for text in texts]),  # noise
    ],
)
def test_without_a_bias_nothing_is_certain(score_fn):
    assert not exploits(perturbation_table(score_fn, QUESTIONS, ANSWERS))["certain"].any()


def test_gold_as_proxy_disagrees_nowhere():
    table = perturbation_table(gold_fn, QUESTIONS, ANSWERS)
    pd.testing.assert_series_equal(table["proxy"], table["gold"], check_names=False)
    assert (table["disagreement"] == 0).all()
    assert table.loc["lower case", ["gold", "gold low", "gold high"]].tolist() == [0, 0, 0]


def test_changes_by_hand():
    """The proxy counts exclamation marks, twice for the cache. Flattery: gold -0.5 each, proxy +1 (twice) and +2."""
    prompts, answers = [DEFINE, DEFINE, CACHE], [PERFECT, f"{PERFECT} Yes!", KV["definition"]]
    scores = lambda prompts, texts: torch.tensor(  # noqa: E731
        [text.count("!") * (1 + ("cache" in prompt)) for prompt, text in zip(prompts, texts, strict=True)]
    )
    edits = {"flattery last": lambda prompt, answer, rng: f"{answer} Well asked!"}
    row = perturbation_table(scores, prompts, answers, edits).loc["flattery last"]
    assert row["feature"] == "flattery" and row["answers"] == 3
    assert row[["proxy", "proxy low", "proxy high"]].tolist() == [1.5, 1.0, 2.0]  # prompts count once
    assert row[["gold", "gold low", "gold high"]].tolist() == pytest.approx([-0.5] * 3)
    assert row["disagreement"] == 1.0


def test_disagreement_is_the_share_that_proxy_likes_and_gold_does_not():
    proxy = dict(zip([f"{a} I hope this helps." for a in ANSWERS[:4]], [1.0, 2.0, 0.0, -1.0], strict=True))
    scores = lambda prompts, texts: [proxy.get(text, 0.0) for text in texts]  # noqa: E731
    edits = {"mine": lambda prompt, answer, rng: f"{answer} I hope this helps."}
    row = perturbation_table(scores, QUESTIONS[:4], ANSWERS[:4], edits).loc["mine"]
    assert row["disagreement"] == 0.5 and row["feature"] == "mine"


def test_answers_that_cannot_be_edited_are_counted():
    answers = ["Yes.", PERFECT, ""]
    table = perturbation_table(
        gold_fn, [DEFINE] * 3, answers, {name: EDITS[name] for name in ("padding", "swapped fact")}
    )
    assert table["answers"].to_dict() == {"padding": 3, "swapped fact": 1}
    with pytest.raises(ValueError, match="edit 'swapped fact' can be made to none of the 2 answers: leave it out"):
        perturbation_table(gold_fn, [DEFINE] * 2, ["Yes.", ""])


def test_a_seed_settles_an_edit_whatever_the_others_are():
    def table(seed, *names):
        edits = {name: EDITS[name] for name in names}
        return perturbation_table(lambda _, texts: [len(text) for text in texts], QUESTIONS, ANSWERS, edits, seed=seed)

    alone = table(0, "padding")
    pd.testing.assert_frame_equal(alone, table(0, "flattery last", "padding").loc[["padding"]])
    assert alone["proxy"].item() != table(1, "padding")["proxy"].item()


def test_the_order_of_exploits_by_hand():
    """Exploits by proxy; then by proxy per point of gold: -1 / 2, -0.6 / 1; then what costs no gold."""
    rows = {  # proxy, its low end, gold, its high end
        "free": (9.0, 8.0, 0.0, 0.0),
        "dear": (-0.6, -0.7, -1.0, -0.9),
        "small": (0.1, 0.05, -1.0, -0.5),
        "cheap": (-1.0, -1.2, -2.0, -1.0),
        "unsure": (2.0, -0.1, -1.0, -0.5),
        "perhaps": (1.0, 0.5, -1.0, 0.1),
        "edge": (0.05, 0.0, -1.0, -0.5),
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["proxy", "proxy low", "gold", "gold high"])
    ranked = exploits(table)
    assert list(ranked.index) == ["unsure", "perhaps", "small", "edge", "cheap", "dear", "free"]
    assert ranked.index[ranked["exploit"]].tolist() == ["unsure", "perhaps", "small", "edge"]
    assert ranked.index[ranked["certain"]].tolist() == ["small"]
    assert ranked.loc["cheap", "proxy per gold lost"] == -0.5 and math.isnan(ranked.loc["free", "proxy per gold lost"])


def test_agreement_by_split_by_hand():
    """First split: pairs right, right and tied of three; none comparable; one right of one. Second: one wrong."""
    prompts = [DEFINE] * 3 + [WHY] * 2 + [CACHE] * 2 + ["Define a token."] * 2
    answers = [PERFECT, f"{PERFECT} Well asked!", "", "", "Well asked!", "", KV["definition"], PERFECT, ""]
    proxy = dict(zip(zip(prompts, answers, strict=True), [3.0, 1.0, 1.0, 5.0, 2.0, 0.0, 1.0, 0.0, 1.0], strict=True))
    scores = lambda prompts, texts: [proxy[key] for key in zip(prompts, texts, strict=True)]  # noqa: E731
    table = agreement_by_split(scores, prompts, answers, ["seen"] * 7 + ["held out"] * 2)
    assert list(table.index) == ["seen", "held out"]
    row = table.loc["seen"]
    assert row["agreement"] == pytest.approx((2.5 / 3 + 1) / 2)
    assert row[["agreement low", "agreement high"]].tolist() == pytest.approx([2.5 / 3, 1.0])
    assert row[["prompts", "comparable", "pairs"]].tolist() == [3, 2, 4]
    assert table.loc["held out", ["agreement", "comparable", "pairs"]].tolist() == [0, 1, 1]


def test_a_split_without_comparable_answers_is_named():
    with pytest.raises(ValueError, match="split 'seen': no prompt has two answers that differ in gold"):
        agreement_by_split(gold_fn, [DEFINE, WHY], ["", PERFECT], ["seen", "seen"])


def weigh(factor, constant=lambda prompt: 0.0):
    """A model that gives a factor times the number of words, and a constant of its own a prompt."""
    return lambda prompts, texts: torch.tensor(
        [factor * len(t.split()) + constant(p) for p, t in zip(prompts, texts, strict=True)]
    )


def test_spread_by_hand():
    """w, 2 w and 3 w for w words: mean 2 w and standard deviation w."""
    spread = ensemble_spread([weigh(1.0), weigh(2.0), weigh(3.0)], [DEFINE, WHY], ["a b", "a b c d"])
    assert spread.mean.tolist() == [4, 8] and spread.std.tolist() == [2, 4] and spread.mean_std == 3


def test_references_take_out_what_no_label_can_tell():
    models = [weigh(1.0), weigh(2.0), weigh(3.0, constant=lambda prompt: 100.0 * len(prompt))]
    spread = ensemble_spread(models, [DEFINE, WHY], ["a b", "a b c d"], references=["a", "a b c d"])
    assert spread.mean.tolist() == [2, 0] and spread.std.tolist() == [1, 0]


def test_spreads_of_two_sets_of_answers():
    """Spreads 1, 3 and 2 become 2, 6 and 5: by prompt 2 and 2 become 4 and 5."""
    models, prompts = [weigh(1.0), weigh(2.0), weigh(3.0)], [DEFINE, DEFINE, WHY]
    before, after = (ensemble_spread(models, prompts, ["a " * n for n in counts]) for counts in ((1, 3, 2), (2, 6, 5)))
    table = compare_spread(prompts, {"SFT": before, "PPO": after})
    assert table["spread"].to_dict() == {"SFT": 2.0, "PPO": 4.5}
    assert table["rise"].to_dict() == {"SFT": 0.0, "PPO": 2.5}
    assert table.loc["PPO", ["rise low", "rise high"]].tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="'SFT': 3, 'PPO': 2"):
        compare_spread(prompts, {"SFT": before, "PPO": ensemble_spread(models, prompts[:2], ["a", "b"])})
    with pytest.raises(ValueError, match=r"at least 2 sets of answers to compare, got \['SFT'\]"):
        compare_spread(prompts, {"SFT": before})


def test_one_model_has_no_spread():
    with pytest.raises(ValueError, match="expected at least 2 reward models, got 1"):
        ensemble_spread([gold_fn], [DEFINE], [PERFECT])


def test_any_callable_scores(tiny_model, tokenizer):
    reward_model = RewardModel.from_policy(tiny_model(), tokenizer, seed=1)
    got = scores_of(reward_model.score, [DEFINE, WHY], [PERFECT, ""])
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, reward_model.score([DEFINE, WHY], [PERFECT, ""]).numpy())
    assert scores_of(lambda prompts, texts: torch.ones(1, requires_grad=True), [DEFINE], [""]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(2, 1), r"expected 2 finite scores, got shape \(2, 1\) with 2 finite"),
        (torch.zeros(1), r"expected 2 finite scores, got shape \(1,\) with 1 finite"),
        (torch.tensor([math.nan, 1.0]), r"expected 2 finite scores, got shape \(2,\) with 1 finite"),
    ],
)
def test_scores_that_do_not_fit_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        scores_of(lambda prompts, texts: scores, [DEFINE, WHY], ["", ""])


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'prompts': 2, 'answers': 1"):
        perturbation_table(gold_fn, [DEFINE] * 2, [PERFECT])
    with pytest.raises(ValueError, match="'splits': 1"):
        agreement_by_split(gold_fn, [DEFINE] * 2, [PERFECT] * 2, ["seen"])
