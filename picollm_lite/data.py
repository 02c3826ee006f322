"""Demonstrations, preferences and prompts as data sets: reading, tokens, batches."""

import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from picollm_lite.chat import Encoded, encode_conversation, encode_prompt
from picollm_lite.files import read_rows, to_dataset
from picollm_lite.formats import demonstration, preference


class Batch(NamedTuple):
    """Right-padded conversations; `response_mask` is True on the tokens that the loss counts."""

    tokens: Int[Tensor, "B L"]
    response_mask: Bool[Tensor, "B L"]


class Pair(NamedTuple):
    """Two answers to one prompt, the preferred one first."""

    chosen: Encoded
    rejected: Encoded


def load_demos(path_or_id: str | Path, *, split: str | None = None) -> Dataset:
    """Demonstrations as a data set with a `messages` column, from where `read_preferences` takes its rows.

    A row has one of the formats of `demonstration`. Other columns of an object are kept. Raises FileNotFoundError, or
    ValueError naming file and line (in Parquet the row, counted from 1).
    """
    return to_dataset(read_rows(path_or_id, demonstration, split=split), path_or_id)


def load_preferences(
    path_or_id: str | Path, *, split: str | None = None, strict: bool = True, problems: list[str] | None = None
) -> Dataset:
    """Preference pairs with columns `prompt`, `chosen` and `rejected`, each a list of messages: `read_preferences`.

    Other columns are kept; one whose values differ in type raises ValueError.
    """
    rows = read_rows(path_or_id, preference, split=split, strict=strict, problems=problems, stacklevel=4)
    return to_dataset(rows, path_or_id)


def read_preferences(
    path_or_id: str | Path, *, split: str | None = None, strict: bool = True, problems: list[str] | None = None
) -> Iterator[dict]:
    """Preference pairs one at a time, from a file of JSON lines, a `.parquet` file of any size, or the hub.

    Of a data set of the hub give the id or, as it lies there, a folder, and as `split` what `datasets.load_dataset`
    knows, such as "train[:2000]"; without it all of "train".
    A row has one of the formats of `preference`, and may have other columns. `strict` raises ValueError at the first
    bad row, naming file and line (in Parquet the row, counted from 1). Else bad rows are left out with one warning that
    counts them and lists the first; `problems` gets every one. A file without a good row raises.
    """
    return read_rows(path_or_id, preference, split=split, strict=strict, problems=problems)


def load_suite(path: str | Path) -> Dataset:
    """The frozen prompt suite: columns `id`, `prompt`, `split`, `ask`. Raises as `load_demos` does."""
    return to_dataset(read_rows(path, _suite_prompt), path)


def encode_demos(demos: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 256) -> list[Encoded]:
    """Demonstrations as token ids and response masks. Raises ValueError naming the row at fault."""
    encoded = []
    for row, messages in enumerate(demos["messages"]):
        try:
            example = encode_conversation(tokenizer, messages)
        except ValueError as error:
            raise ValueError(f"demonstration {row}: {error}") from None
        if len(example.tokens) > max_length:
            raise ValueError(
                f"demonstration {row} has {len(example.tokens)} tokens, more than max_length={max_length}: "
                "shorten it or raise max_length (up to the model's context)"
            )
        encoded.append(example)
    return encoded


def encode_pairs(preferences: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 256) -> list[Pair]:
    """Preferences as token ids and response masks; conversations beyond max_length are cut at the end.

    Pairs that teach nothing, because their sides are the same after the cut or a side is left without a response, are
    dropped with a warning that counts them. Raises ValueError naming the row at fault, or when no pair is left.
    """
    if not len(preferences):
        raise ValueError("no pairs were given: where they were split by prompt, a part of few prompts may be empty")
    pairs, dropped = [], Counter()
    for row, (prompt, *sides) in enumerate(
        zip(preferences["prompt"], preferences["chosen"], preferences["rejected"], strict=True)
    ):
        try:
            chosen, rejected = _encode_sides(tokenizer, prompt, sides, max_length)
        except ValueError as error:
            raise ValueError(f"pair {row}: {error}") from None
        if chosen.tokens == rejected.tokens:
            dropped["the same on both sides"] += 1
        elif not (any(chosen.response_mask) and any(rejected.response_mask)):
            dropped["without a response on one side"] += 1
        else:
            pairs.append(Pair(chosen, rejected))
    if dropped:
        total, counts = dropped.total(), ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        warnings.warn(
            f"dropped {total} of {total + len(pairs)} pairs, read up to max_length={max_length} tokens: {counts}",
            stacklevel=2,
        )
    if not pairs:
        raise ValueError(f"no pair is left to learn from at max_length={max_length}: raise it or check the pairs")
    return pairs


def collate(examples: Sequence[Encoded], pad_token_id: int) -> Batch:
    """One right-padded batch."""
    L = max(len(example.tokens) for example in examples)
    tokens = torch.tensor([example.tokens + [pad_token_id] * (L - len(example.tokens)) for example in examples])
    mask = torch.tensor([example.response_mask + [False] * (L - len(example.tokens)) for example in examples])
    return Batch(tokens, mask)


def length_bucketed_batches(lengths: Sequence[int], batch_size: int, *, seed: int) -> list[list[int]]:
    """Row numbers in batches of nearly equal length, in random order: every row once, little padding.

    Rows are shuffled, sorted by length within pools of many batches, cut, and the batches shuffled.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    rng = random.Random(seed)
    order = rng.sample(range(len(lengths)), len(lengths))
    pool = 32 * batch_size
    batches = []
    for start in range(0, len(order), pool):
        rows = sorted(order[start : start + pool], key=lengths.__getitem__)
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    rng.shuffle(batches)
    return batches


def epoch_batches(lengths: Sequence[int], batch_size: int, *, epochs: int, seed: int) -> list[list[int]]:
    """The batches of `length_bucketed_batches` for every epoch of a run, in a new order each."""
    return [rows for epoch in range(epochs) for rows in length_bucketed_batches(lengths, batch_size, seed=seed + epoch)]


def pair_lengths(pairs: Sequence[Pair]) -> list[int]:
    """The longer side of each pair, in tokens."""
    return [max(len(pair.chosen.tokens), len(pair.rejected.tokens)) for pair in pairs]


def _suite_prompt(row: object, where: str) -> dict:
    missing = [key for key in ("id", "prompt", "split", "ask") if not (isinstance(row, dict) and row.get(key))]
    if missing:
        raise ValueError(f"{where}: a prompt of the suite needs {', '.join(missing)}")
    return row


def _encode_sides(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[dict], sides: Sequence[Sequence[dict]], max_length: int
) -> list[Encoded]:
    """Only what answers the prompt counts: earlier assistant turns belong to the prompt."""
    # A template may refuse to render a prompt without a question; then there is no earlier answer in it either.
    start = len(encode_prompt(tokenizer, prompt)) if any(turn["role"] == "user" for turn in prompt) else 0
    encoded = []
    for side in sides:
        tokens, mask = encode_conversation(tokenizer, [*prompt, *side])
        encoded.append(Encoded(tokens[:max_length], [m and t >= start for t, m in enumerate(mask[:max_length])]))
    return encoded


def prompt_key(prompt: Sequence[dict]) -> tuple[tuple[str, str], ...]:
    """What makes two prompts the same one: roles and texts. It can be hashed and sorted."""
    return tuple((message["role"], message["content"]) for message in prompt)
