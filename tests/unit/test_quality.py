"""The data-quality study: how each condition labels, what a run reports, and what a second start does not run again."""

import random
from collections import Counter

import pytest
from datasets import Dataset

from picollm_lite import quality
from picollm_lite.data import load_preferences
from picollm_lite.files import read_jsonl
from picollm_lite.paths import PREFERENCES
from picollm_lite.quality import CONDITIONS, Condition, chooser, labeled

QUESTION = "What is a KV cache?"
FACT = "A KV cache stores keys and values of past tokens so they need not be recomputed."
OTHER = "A tokenizer splits text."


def message(role, text):
    return [{"role": role, "content": text}]


def pair(chosen, rejected, gold_chosen, gold_rejected):
    return {
        "prompt": message("user", QUESTION),
        "chosen": message("assistant", chosen),
        "rejected": message("assistant", rejected),
        "gold_chosen": gold_chosen,
        "gold_rejected": gold_rejected,
    }


def preferred(rows):
    """How often each answer was chosen."""
    return Counter(row["chosen"][-1]["content"] for row in rows)


@pytest.fixture
def preferences():
    """300 pairs whose label is wrong by gold, and one that gold holds equal."""
    return Dataset.from_list([pair(OTHER, FACT, -1.0, 2.0)] * 300 + [pair(FACT + " ", FACT, 2.0, 2.0)])


@pytest.mark.parametrize(("share", "least", "most"), [("0.0", 300, 300), ("0.4", 150, 210)])
def test_noise_turns_a_share_of_gold_s_labels_round(preferences, share, least, most):
    rows = labeled(preferences, Condition("noise", share, 300), seed=0)
    assert len(rows) == 300 and least <= preferred(rows)[FACT] <= most


def test_more_noise_turns_more_of_the_same_labels_round(preferences):
    some, more = (labeled(preferences, Condition("noise", share, 300), seed=1)["chosen"] for share in ("0.1", "0.3"))
    turned = [{n for n, side in enumerate(rows) if side[-1]["content"] == OTHER} for rows in (some, more)]
    assert turned[0] < turned[1]


def test_one_annotator_labels_all_and_the_panel_mixes(preferences):
    """Log-odds of the fact: careful 3 x 3 = 9; contrarian -0.5 x 3."""
    assert preferred(labeled(preferences, Condition("annotators", "careful", 300), seed=0))[FACT] > 295
    assert 30 < preferred(labeled(preferences, Condition("annotators", "contrarian", 300), seed=0))[FACT] < 85
    assert 240 < preferred(labeled(preferences, Condition("annotators", "panel", 300), seed=0))[FACT] < 300


def test_a_size_is_labeled_by_the_panel():
    rng, same = random.Random(0), random.Random(0)
    prefers, panel = chooser(Condition("size", "500", 500)), chooser(Condition("annotators", "panel", 500))
    assert all(prefers(QUESTION, FACT, OTHER, rng) == panel(QUESTION, FACT, OTHER, same) for _ in range(50))


def test_the_careful_one_labels_the_pairs_that_the_panel_labels():
    rows = load_preferences(PREFERENCES).select(range(200))
    panel, careful = (labeled(rows, Condition(study, "50", 50), seed=0) for study in ("size", "size_careful"))
    assert panel["prompt"] == careful["prompt"] and panel["chosen"] != careful["chosen"]
    rng, same = random.Random(0), random.Random(0)
    prefers, alone = chooser(Condition("size_careful", "50", 50)), chooser(Condition("annotators", "careful", 50))
    assert all(prefers(QUESTION, FACT, OTHER, rng) == alone(QUESTION, FACT, OTHER, same) for _ in range(50))


def test_the_seed_draws_the_pairs():
    rows = load_preferences(PREFERENCES).select(range(200))
    drawn = [labeled(rows, Condition("size", "50", 50), seed)["prompt"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_too_few_pairs_are_an_error(preferences):
    with pytest.raises(ValueError, match=r"noise 0\.1: expected 301 pairs, got 300"):
        labeled(preferences, Condition("noise", "0.1", 301), seed=0)


def test_the_shipped_pairs_are_enough_for_every_condition():
    rows = load_preferences(PREFERENCES)
    unequal = sum(a != b for a, b in zip(rows["gold_chosen"], rows["gold_rejected"], strict=True))
    for condition in CONDITIONS:
        assert condition.pairs <= (unequal if condition.study == "noise" else len(rows)), condition


class Inline:
    """Stands in for the pool of processes."""

    def __init__(self, *_):
        self.jobs = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        self.jobs.append(Job(function(*arguments)))
        return self.jobs[-1]


class Job:
    def __init__(self, value):
        self.result = lambda: value


def test_what_the_file_has_is_not_run_again(monkeypatch, tmp_path):
    ran = []

    def run(condition, seed):
        ran.append((condition.level, seed))
        return {**condition._asdict(), "seed": seed, "win_rate": 0.5}

    monkeypatch.setattr(quality, "run", run)
    monkeypatch.setattr(quality, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(quality, "as_completed", lambda jobs: jobs)
    into = tmp_path / "quality.jsonl"
    levels = ["0.0", "0.1", "0.2", "0.3", "0.4"]
    for seeds, new in ((["0"], [0]), (["0", "1"], [1]), (["1"], [])):
        ran.clear()
        assert quality.main(["--studies", "noise", "--seeds", *seeds, "--into", str(into)]) == 0
        assert ran == [(level, seed) for seed in new for level in levels]
    assert [(row["level"], row["seed"]) for row, _ in read_jsonl(into)] == [(x, s) for x in levels for s in (0, 1)]
