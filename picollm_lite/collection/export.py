"""Preference rows as a data set that others can load: split by prompt, in two formats, with a card."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from picollm_lite.data import load_preferences, prompt_key
from picollm_lite.files import replaced_folder, write_jsonl

CARD = "README.md"


def split_by_prompt(rows: Sequence[dict], *, test_share: float = 0.1, seed: int = 0) -> dict[str, list[dict]]:
    """ "train" and "test", no prompt in both; the test split has `test_share` of the prompts. Rows keep their order.

    Which prompts those are depends on the seed and the set of prompts. Raises ValueError where a split would be empty.
    """
    prompts = sorted({prompt_key(row["prompt"]) for row in rows})
    n_test = round(test_share * len(prompts))
    if not 0 < n_test < len(prompts):
        raise ValueError(
            f"test_share={test_share:g} of {len(prompts)} different prompts leaves a split empty: "
            "choose another share or collect more prompts"
        )
    test = set(random.Random(seed).sample(prompts, n_test))
    splits: dict[str, list[dict]] = {"train": [], "test": []}
    for row in rows:
        splits["test" if prompt_key(row["prompt"]) in test else "train"].append(row)
    return splits


def export(splits: Mapping[str, Sequence[dict]], folder: str | Path, *, card: str) -> Path:
    """A folder with each split as JSONL and Parquet, in TRL's conversational format, and the card as its README.md.

    Every split is read back before the folder takes its name, in place of an earlier export if there is one.
    Raises FileExistsError for a folder of something else, ValueError for rows that are no preferences or come back
    changed.
    """
    folder = Path(folder)
    if not splits:
        raise ValueError("expected at least one split to export, got none")
    _check_target(folder)
    with replaced_folder(folder) as aside:
        for name, rows in splits.items():
            if not name.isidentifier():
                raise ValueError(f"expected a split named with letters, digits and _, got {name!r}")
            read = load_preferences(write_jsonl(aside / f"{name}.jsonl", rows))
            if read.to_list() != list(rows):
                raise ValueError(
                    f"{name}: rows come back changed: give every row the same columns, and every message the same keys"
                )
            read.to_parquet(aside / f"{name}.parquet")
        (aside / CARD).write_text(card, encoding="utf-8")
    return folder


def _check_target(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    splits = {Path(name).stem for name in names - {CARD}}
    ours = {CARD, *(f"{split}.{ending}" for split in splits for ending in ("jsonl", "parquet"))}
    if folder.is_file() or (names and not (splits and names == ours)):
        raise FileExistsError(
            f"{folder} is no earlier export, and exporting would replace it: name a folder of its own"
        )
