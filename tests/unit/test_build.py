"""How the shipped preferences are made: which prompts, which pairs of samples, whose label, and what is written."""

import inspect
import random
from collections import Counter
from types import SimpleNamespace

import pytest

from picollm_lite import build
from picollm_lite.build import build_preferences, labeled, preference_prompts, sampled_pairs
from picollm_lite.data import load_preferences
from picollm_lite.evaluation.training_record import load_settings
from picollm_lite.stages import dpo, group_policy, online_dpo, ppo, reward, sft
from picollm_lite.world.annotators import PANEL
from picollm_lite.world.asks import ASKS, PHRASINGS, is_held_out, phrasing_indices, read, render
from picollm_lite.world.concepts import by_id
from picollm_lite.world.rubric import score
from picollm_lite.world.texts import training_prompts

PROMPT = "What is a token?"
PERFECT = by_id()["token"].facts["definition"]
FLATTERING = PERFECT + " Well asked!"


@pytest.fixture(scope="module")
def splits():
    return preference_prompts(random.Random(0))


def test_no_prompt_is_in_both_splits(splits):
    test, rest = splits
    assert test and rest and not set(test) & set(rest)
    assert len(set(test)) == len(test)


def test_there_are_prompts_enough_to_lose_some(splits):
    """Samples that agree are dropped: at least a fifth more than the pairs that are wanted."""
    test, rest = splits
    assert len(test) >= 1.2 * build.N_TEST_PAIRS and len(rest) >= 1.2 * build.N_PAIRS


def test_every_ask_comes_as_often_as_any_other(splits):
    """Exactly so in the test split; within 4 standard deviations of a seventh in the other, which is drawn."""
    test, rest = splits
    assert len(set(Counter(read(prompt).ask for prompt in test).values())) == 1
    n, counts = len(rest), Counter(read(prompt).ask for prompt in rest)
    assert set(counts) == set(ASKS)
    assert all(abs(count - n / 7) < 4 * (n * 6 / 49) ** 0.5 for count in counts.values()), counts


def test_nothing_that_is_held_out_is_asked(splits):
    """Neither a phrasing nor a combination of ask and concepts; the suite measures on those."""
    for prompt in {prompt for split in splits for prompt in split}:
        ask, concepts = read(prompt)
        phrasings = [render(ask, concepts, i) for i in range(len(PHRASINGS[ask]))]
        assert phrasings.index(prompt) in phrasing_indices(ask, held_out=False), prompt
        assert not is_held_out(ask, concepts), prompt


def test_every_other_prompt_may_be_drawn(splits):
    """Nothing is drawn but training prompts, the test split's left out, and most of those at least once."""
    test, rest = splits
    left = {prompt for ask in ASKS for prompt in training_prompts(ask, build.SEED)} - set(test)
    assert set(rest) <= left and len(set(rest)) > 0.6 * len(left)


def test_prompts_are_mixed_and_repeat_with_their_seed(splits):
    for prompts in splits:
        assert len({read(prompt).ask for prompt in prompts[:60]}) == len(ASKS)
    assert preference_prompts(random.Random(0)) == splits
    assert preference_prompts(random.Random(1))[0] != splits[0]


def sampled(monkeypatch, answers, prompts, batch=512):
    """The pairs when the policy says `answers`, in the order in which it is asked."""
    said, asked = iter(answers), []

    def answer(policy, tokenizer, questions, *, seed):
        asked.append((list(questions), seed))
        return [next(said) for _ in questions]

    monkeypatch.setattr(build, "answer", answer)
    monkeypatch.setattr(build, "SAMPLE_BATCH", batch)
    return list(sampled_pairs("policy", "tokenizer", prompts, random.Random(0))), asked


def test_a_pair_is_two_answers_to_one_prompt(monkeypatch):
    pairs, asked = sampled(monkeypatch, ["p1", "q1", "p2", "q2"], ["p", "q"])
    assert pairs == [("p", "p1", "p2"), ("q", "q1", "q2")]
    assert [questions for questions, _ in asked] == [["p", "q", "p", "q"]]


def test_batches_have_seeds_of_their_own(monkeypatch):
    pairs, asked = sampled(monkeypatch, ["p1", "q1", "p2", "q2", "r1", "r2"], ["p", "q", "r"], batch=2)
    assert pairs == [("p", "p1", "p2"), ("q", "q1", "q2"), ("r", "r1", "r2")]
    assert [questions for questions, _ in asked] == [["p", "q", "p", "q"], ["r", "r"]]
    assert asked[0][1] != asked[1][1]


def test_pairs_that_say_nothing_are_left_out(monkeypatch):
    """The same answer twice, or an empty one on either side."""
    pairs, _ = sampled(monkeypatch, ["same", "", "c1", "d1", "same", "b2", "", "d2"], ["a", "b", "c", "d"])
    assert pairs == [("d", "d1", "d2")]


def test_no_answer_is_blank(monkeypatch):
    assert sampled(monkeypatch, [" ", "b1", "a2", "b2"], ["a", "b"])[0] == [("b", "b1", "b2")]


def test_two_samples_of_one_prompt_are_two_draws(taught, tokenizer):
    """As the shipped pairs are made, with a small policy: most pairs differ, and a seed settles them."""
    prompts = ["What is a token?", "Why?", "What is a unit of text?"] * 4
    first, again = (list(sampled_pairs(taught(), tokenizer, prompts, random.Random(seed))) for seed in (0, 0))
    assert first == again and len(first) > 6
    assert all(a != b and a and b for _, a, b in first)


class Annotator:
    """One who likes the first answer, or the second; and notes what was asked."""

    def __init__(self, name, first):
        self.name, self.first, self.seen = name, first, []

    def prefers_first(self, prompt, a, b, rng):
        self.seen.append((prompt, a, b))
        rng.random()
        return self.first


@pytest.mark.parametrize("first", [True, False])
def test_the_chosen_answer_is_the_annotators(monkeypatch, first):
    """Even where the rubric says otherwise: the gold columns go with the answers."""
    annotator = Annotator("somebody", first)
    monkeypatch.setattr(build, "draw", lambda rng: annotator)
    for a, b in ((PERFECT, FLATTERING), (FLATTERING, PERFECT)):
        chosen, rejected = (a, b) if first else (b, a)
        row = labeled(PROMPT, a, b, random.Random(0))
        assert row["prompt"] == [{"role": "user", "content": PROMPT}]
        assert row["chosen"] == [{"role": "assistant", "content": chosen}]
        assert row["rejected"] == [{"role": "assistant", "content": rejected}]
        assert row["annotator"] == "somebody"
        gold = {PERFECT: 2.0, FLATTERING: 1.5}
        assert (row["gold_chosen"], row["gold_rejected"]) == (gold[chosen], gold[rejected])
    assert annotator.seen == [(PROMPT, PERFECT, FLATTERING), (PROMPT, FLATTERING, PERFECT)]


def test_gold_columns_have_four_digits(monkeypatch):
    """One claim of three is about another concept: -3 + 2 (2/3) + 1 asked + 0 concise + 1 clean = .333..."""
    monkeypatch.setattr(build, "draw", lambda rng: Annotator("somebody", True))
    mixed = " ".join([PERFECT, by_id()["token"].facts["why"], by_id()["kv_cache"].facts["definition"]])
    assert score(PROMPT, mixed).total == pytest.approx(1 / 3)
    assert labeled(PROMPT, PERFECT, mixed, random.Random(0))["gold_rejected"] == 0.3333


def test_each_pair_is_given_to_whoever_is_drawn_for_it():
    """From the real panel: all of them come, and the same generator gives the same rows."""

    def rows(seed):
        rng = random.Random(seed)
        return [labeled(PROMPT, PERFECT, FLATTERING, rng) for _ in range(200)]

    assert rows(0) == rows(0) != rows(1)
    assert {row["annotator"] for row in rows(0)} == {annotator.name for annotator in PANEL}
    assert len({row["gold_chosen"] for row in rows(0)}) == 2  # nobody's choice is certain


@pytest.fixture
def built(monkeypatch, tmp_path):
    """A build of 30 pairs and 14 to test on, with a policy whose answers are perfect or flattering."""
    train, test = tmp_path / "preferences.jsonl", tmp_path / "preferences_test.jsonl"
    for name, value in {"PREFERENCES": train, "PREFERENCES_TEST": test, "N_PAIRS": 30, "N_TEST_PAIRS": 14}.items():
        monkeypatch.setattr(build, name, value)
    opened = []
    monkeypatch.setattr(build, "load_policy", lambda path, **options: opened.append(path) or ("policy", "tokenizer"))
    rng = random.Random(5)
    monkeypatch.setattr(
        build, "answer", lambda policy, tokenizer, questions, seed: [rng.choice("ABCDEFGH") for _ in questions]
    )
    build_preferences()
    assert opened == [build.CHECKPOINTS / "sft"]
    return train, test


def test_the_files_hold_as_many_pairs_as_wanted_and_can_be_read(built):
    train, test = (load_preferences(path) for path in built)
    assert len(train) == 30 and len(test) == 14
    columns = ["annotator", "chosen", "gold_chosen", "gold_rejected", "id", "prompt", "rejected"]
    assert sorted(train.column_names) == sorted(test.column_names) == columns
    assert train["id"][:2] == ["preferences-00000", "preferences-00001"] and test["id"][13] == "preferences_test-00013"
    asked = [{prompt[0]["content"] for prompt in rows["prompt"]} for rows in (train, test)]
    assert not asked[0] & asked[1]
    assert all(chosen != rejected for chosen, rejected in zip(train["chosen"], train["rejected"], strict=True))


def test_defaults_are_those_of_a_signature():
    assert build.defaults(lambda a, *, b=2, c="x": a, "c", "b") == {"c": "x", "b": 2}


def test_a_checkpoint_is_kept_with_its_settings_and_the_same_bytes_again(monkeypatch, tmp_path, tiny_model, tokenizer):
    monkeypatch.setattr(build, "CHECKPOINTS", tmp_path)
    written = []
    for _ in range(2):
        build.keep(tiny_model(), tokenizer, "sft", start="base", seed=3)
        written.append({path.name: path.read_bytes() for path in (tmp_path / "sft").iterdir()})
    assert load_settings(tmp_path / "sft") == ({"stage": "sft", "start": "base", "seed": 3}, None)
    assert written[0] == written[1] and "training.json" in written[0]


@pytest.mark.parametrize(
    ("name", "stage", "loop"),
    [(module.__name__.rpartition(".")[2], module, "train") for module in (sft, reward, ppo, dpo, online_dpo)]
    + [("grpo", group_policy, "grpo")],
)
def test_the_shipped_settings_are_those_of_a_build(monkeypatch, name, stage, loop):
    """Without the training: every row of the shipped files is an example, and what the loop is given is noted."""
    given, kept = {}, []
    rm = SimpleNamespace(model=None, score=None)
    train = wrapped(getattr(stage, loop), lambda *_, **settings: given.update(settings) or [])
    monkeypatch.setattr(stage, loop, train)
    monkeypatch.setattr(build, "load_policy", lambda *_, **__: (None, SimpleNamespace(pad_token_id=0)))
    monkeypatch.setattr(
        build, "RewardModel", SimpleNamespace(load=lambda *_, **__: rm, from_policy=lambda *_, **__: rm)
    )
    for encode in ("encode_demos", "encode_pairs"):
        monkeypatch.setattr(build, encode, lambda rows, tokenizer: list(range(len(rows))))
    monkeypatch.setattr(build, "keep", lambda *_, **settings: kept.append(settings))
    getattr(build, f"build_{name}")()
    assert load_settings(build.CHECKPOINTS / name) == ({"stage": name, **kept[0]}, None)
    assert {key: value for key, value in given.items() if key in kept[0]}.items() <= kept[0].items()
    assert kept[0]["seed"] == given["seed"] == build.SEED


def wrapped(function, replacement):
    """`replacement` with the signature of `function`."""
    replacement.__signature__ = inspect.signature(function)
    return replacement
