"""Splits without a shared prompt, and exports that come back equal; at the end, everything from policy to policy."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from picollm_lite.chat import user
from picollm_lite.collection.aggregate import aggregate
from picollm_lite.collection.candidates import make_pairs, sample_candidates
from picollm_lite.collection.export import export, split_by_prompt
from picollm_lite.collection.labels import panel_votes, read_csv, widget_votes, write_csv
from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.data import encode_pairs, load_preferences
from picollm_lite.models import RewardModel
from picollm_lite.stages import dpo, reward
from picollm_lite.ui.labelling import label_pairs
from picollm_lite.world.annotators import PANEL


def row(number, prompt):
    """Some rows with one vote, some with two; texts that are no ASCII."""
    said = ([{"role": "assistant", "content": f"{text} {number} ✓\n"}] for text in ("yes", "no"))
    votes = [Vote(f"p{number}", name, "a") for name in ("ann", "bo")[: 1 + number % 2]]
    ((made,), _) = aggregate([AnswerPair(f"p{number}", user(prompt), *said, "sft", "dpo")], votes)
    return made


ROWS = [row(n, f"Why {n % 10}?") for n in range(30)]  # ten prompts, three rows each


def prompts(rows):
    return {json.dumps(given["prompt"]) for given in rows}


# Splits


@pytest.mark.parametrize(("share", "n_test"), [(0.1, 1), (0.3, 3), (0.34, 3), (0.9, 9)])
def test_the_test_split_has_its_share_of_the_prompts_and_all_their_rows(share, n_test):
    splits = split_by_prompt(ROWS, test_share=share)
    assert list(splits) == ["train", "test"]
    assert [len(prompts(rows)) for rows in splits.values()] == [10 - n_test, n_test]
    assert not prompts(splits["train"]) & prompts(splits["test"])
    assert [len(rows) for rows in splits.values()] == [3 * (10 - n_test), 3 * n_test]
    for rows in splits.values():
        assert rows == [given for given in ROWS if given in rows]


def test_a_split_hangs_on_the_seed_and_the_prompts_alone():
    tests = {frozenset(prompts(split_by_prompt(ROWS, test_share=0.3, seed=seed)["test"])) for seed in range(9)}
    assert len(tests) > 5
    first = prompts(split_by_prompt(ROWS, test_share=0.3)["test"])
    assert first == prompts(split_by_prompt(ROWS[::-1], test_share=0.3, seed=0)["test"])
    assert first == prompts(split_by_prompt(ROWS[:10], test_share=0.3)["test"])


def test_another_system_prompt_is_another_prompt():
    rows = [{"prompt": [{"role": "system", "content": text}, *user("Why?")]} for text in ("Be brief.", "Be long.")]
    assert [len(split) for split in split_by_prompt(rows, test_share=0.5).values()] == [1, 1]


@pytest.mark.parametrize(("rows", "share"), [(ROWS, 0.0), (ROWS, 0.04), (ROWS, 0.96), (ROWS[:1], 0.5), ([], 0.1)])
def test_an_empty_split_is_refused(rows, share):
    n = len(prompts(rows))
    with pytest.raises(ValueError, match=f"test_share={share:g} of {n} different prompts leaves a split empty"):
        split_by_prompt(rows, test_share=share)


# Exports


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sets" / "mine"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_comes_back_equal_from_both_formats(folder, tmp_path):
    splits = split_by_prompt(ROWS)
    assert export(splits, str(folder), card="# Größe\n") == folder
    assert names(folder) == ["README.md", "test.jsonl", "test.parquet", "train.jsonl", "train.parquet"]
    assert (folder / "README.md").read_bytes() == "# Größe\n".encode()
    for name, rows in splits.items():
        assert load_preferences(folder / f"{name}.jsonl").to_list() == rows
        read = Dataset.from_parquet(str(folder / f"{name}.parquet"), cache_dir=str(tmp_path / "cache"))
        assert read.to_list() == rows
    assert names(folder.parent) == ["mine"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_new_export_takes_the_place_of_the_old_one(folder):
    export({"train": ROWS, "test": ROWS[:3]}, folder, card="old")
    export({"all": ROWS[:2]}, folder, card="new")
    assert names(folder) == ["README.md", "all.jsonl", "all.parquet"]
    assert (folder / "README.md").read_text() == "new"


@pytest.mark.parametrize("files", [["notes.txt"], ["README.md"], ["README.md", "train.jsonl"], [".git"]])
def test_a_folder_of_something_else_is_refused(folder, files):
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine is no earlier export, .*name a folder of its own"):
        export({"train": ROWS}, folder, card="")
    with pytest.raises(FileExistsError, match="is no earlier export"):
        export({"train": ROWS}, folder / files[0], card="")
    assert names(folder) == sorted(files)


@pytest.mark.parametrize(
    ("splits", "problem"),
    [
        ({}, "expected at least one split to export, got none"),
        ({"../train": ROWS}, r"expected a split named with letters, digits and _, got '\.\./train'"),
        ({"train": ROWS, "test": []}, r"test\.jsonl is empty"),
        ({"train": [{"prompt": "Why?"}]}, r"train\.jsonl:1: a preference needs `chosen` and `rejected`"),
        ({"train": [ROWS[0], ROWS[1] | {"note": "x"}]}, "train: rows come back changed: give every row the same col"),
    ],
)
def test_rows_that_cannot_be_read_back_leave_the_old_export(folder, splits, problem):
    export({"train": ROWS[:1]}, folder, card="old")
    with pytest.raises(ValueError, match=problem):
        export(splits, folder, card="new")
    assert names(folder.parent) == ["mine"]
    assert names(folder) == ["README.md", "train.jsonl", "train.parquet"]
    assert (folder / "README.md").read_text() == "old"


def test_an_interrupted_export_leaves_the_old_one(folder, monkeypatch):
    class Killed(BaseException):
        pass

    def crash(self, *args, **options):
        raise Killed

    export({"train": ROWS[:1]}, folder, card="old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", crash)  # the card comes last
        with pytest.raises(Killed):
            export({"all": ROWS}, folder, card="new")
    assert (names(folder.parent), names(folder)) == (["mine"], ["README.md", "train.jsonl", "train.parquet"])


# Everything

QUESTIONS = ["What is a token?", "What is a KV cache?", "What is tokenization?", "What is perplexity?"]


def test_from_a_policy_to_tokens_to_train_on_without_a_hand_between(taught, tokenizer, folder):
    """Six answers to each of four questions, three votes a pair: every pair is decided, and none is lost on the way."""
    candidates = sample_candidates({"sft": taught()}, tokenizer, QUESTIONS, k=6, max_new_tokens=12)
    made = make_pairs(candidates, per_prompt=3, tokenizer=tokenizer, max_length=64)
    votes = panel_votes(made.pairs, votes=3)
    rows, undecided = aggregate(made.pairs, votes)
    assert (len(candidates), len(made.pairs), len(votes), len(rows), undecided) == (24, 12, 36, 12, [])
    export(split_by_prompt(rows, test_share=0.25), folder, card="# Three votes a pair\n")
    read = {name: load_preferences(folder / f"{name}.jsonl") for name in ("train", "test")}
    assert [len(split) for split in read.values()] == [9, 3]
    encoded = encode_pairs(read["train"], tokenizer, max_length=64)
    assert len(encoded) == 9
    first = read["train"][0]
    chosen = tokenizer.decode([t for t, m in zip(*encoded[0].chosen, strict=True) if m], skip_special_tokens=True)
    assert chosen == first["chosen"][0]["content"]
    (pair,) = [pair for pair in made.pairs if pair.id == first["id"]]
    assert first["votes_chosen"] + first["votes_rejected"] == 3
    labels = [vote.label for vote in votes if vote.pair == pair.id]
    assert first["chosen"] == (pair.a if labels.count("a") > labels.count("b") else pair.b)
    assert {vote["annotator"] for vote in first["votes"]} <= {annotator.name for annotator in PANEL}


def by_panel(pairs, path):
    return panel_votes(pairs, votes=3)


def by_widget(pairs, path):
    """Somebody who presses "A is better" until no pair is left."""
    live = label_pairs(pairs, path)
    for _ in pairs:
        live.box.children[0].children[0].click()
    return widget_votes(path, pairs)


@pytest.mark.parametrize("label", [by_panel, by_widget])
def test_what_was_collected_trains_a_reward_model_and_a_policy(taught, tokenizer, folder, label):
    """No hand between, and both learn the twelve labels: every chosen answer ends above its rejected one."""
    policy = taught()
    candidates = sample_candidates({"sft": policy}, tokenizer, QUESTIONS, k=6, max_new_tokens=12)
    pairs = make_pairs(candidates, per_prompt=3, tokenizer=tokenizer, max_length=64).pairs
    rows, _ = aggregate(pairs, label(pairs, folder.parent / "labels.jsonl"))
    export({"train": rows}, folder, card="# Mine\n")
    encoded = encode_pairs(load_preferences(folder / "train.parquet"), tokenizer, max_length=64)
    settings = {"batch_size": 12, "epochs": 40, "learning_rate": 0.01}
    reward_model = RewardModel.from_policy(policy, tokenizer, seed=0)
    *_, last = reward.train(reward_model, encoded, off_prompt_weight=0.0, **settings)
    assert last.accuracy == 1.0
    *_, last = dpo.train(policy, encoded, tokenizer=tokenizer, **settings)
    assert last.accuracy == 1.0 and last.margin > 0


def test_the_same_with_two_people_and_a_spreadsheet(taught, tokenizer, tmp_path):
    """Ann likes column a, Bo does too but for the first pair: that one is undecided."""
    candidates = sample_candidates({"sft": taught()}, tokenizer, QUESTIONS, k=6, max_new_tokens=12)
    pairs, votes = make_pairs(candidates).pairs, []
    for name, labels in (("ann", "aaaa"), ("bo", "baaa")):
        path = write_csv(tmp_path / f"{name}.csv", pairs)
        for label in labels:
            path.write_bytes(path.read_bytes().replace(b",\r\n", f",{label}\r\n".encode(), 1))
        votes += read_csv(path, pairs, name)
    rows, undecided = aggregate(pairs, votes)
    assert ([given["id"] for given in rows], undecided) == ([pair.id for pair in pairs[1:]], pairs[:1])
    assert {(given["annotator"], given["votes_chosen"]) for given in rows} == {("majority of 2", 2)}
    assert [given["chosen"] for given in rows] == [pair.a for pair in pairs[1:]]
