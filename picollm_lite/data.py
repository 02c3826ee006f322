"""Demonstrations, preferences and prompts as data sets: reading, validation, tokens, batches."""

import json
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
from picollm_lite.paths import replace_file

ROLES = ("system", "user", "assistant")


class Batch(NamedTuple):
    """Right-padded conversations; `response_mask` is True on the tokens that the loss counts."""

    tokens: Int[Tensor, "B L"]
    response_mask: Bool[Tensor, "B L"]


class Pair(NamedTuple):
    """Two answers to one prompt, the preferred one first."""

    chosen: Encoded
    rejected: Encoded


def load_demos(path: str | Path) -> Dataset:
    """Demonstrations as a data set with a `messages` column, from a JSONL file.

    A line is a TRL object `{"messages": [...]}` or `{"prompt": [...], "completion": [...]}`, or picoLLM's bare array of
    messages. Other columns of an object are kept. Raises FileNotFoundError, or ValueError naming file and line.
    """
    rows = [_demo(row, where) for row, where in read_jsonl(path)]
    columns = {key: None for row in rows for key in row}
    return _dataset([{key: row.get(key) for key in columns} for row in rows], path)


def load_preferences(path: str | Path) -> Dataset:
    """Preference pairs with columns `prompt`, `chosen` and `rejected`, each a list of messages, from a JSONL file.

    A line is TRL's conversational format: with `prompt`, or without one where `chosen` and `rejected` are whole
    conversations that begin alike. Other columns are kept. Raises as `load_demos` does.
    """
    rows = [_preference(row, where) for row, where in read_jsonl(path)]
    columns = {key: None for row in rows for key in row}
    return _dataset([{key: row.get(key) for key in columns} for row in rows], path)


def load_suite(path: str | Path) -> Dataset:
    """The frozen prompt suite: columns `id`, `prompt`, `split`, `ask`. Raises as `load_demos` does."""
    rows = []
    for row, where in read_jsonl(path):
        missing = [key for key in ("id", "prompt", "split", "ask") if not (isinstance(row, dict) and row.get(key))]
        if missing:
            raise ValueError(f"{where}: a prompt of the suite needs {', '.join(missing)}")
        rows.append(row)
    return _dataset(rows, path)


def read_jsonl(path: str | Path) -> Iterator[tuple[object, str]]:
    """Each line's value and its place as "file:line", blank lines left out.

    Raises FileNotFoundError, or ValueError for a broken line, bytes that are not UTF-8, or a file without any line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}: check the path, or run `make data` to rebuild the shipped data")
    found = False
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if not line:
                    continue
                value = json.loads(line)
                if "\\u" in line:
                    json.dumps(value, ensure_ascii=False).encode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 text ({error.reason}): save the file as UTF-8") from None
            except UnicodeEncodeError:
                raise ValueError(f"{where}: half of a surrogate pair, which is no character: take it out") from None
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{where}: not valid JSON ({error.msg} at column {error.colno}): one value a line"
                ) from None
            found = True
            yield value, where
    if not found:
        raise ValueError(f"{path} is empty: it needs one JSON value a line")


def write_jsonl(path: str | Path, rows: Sequence[dict]) -> Path:
    """One JSON object a line, UTF-8. Written aside, then renamed."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return replace_file(Path(path), text.encode())


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
    pairs, dropped = [], Counter()
    for row, (prompt, *sides) in enumerate(
        zip(preferences["prompt"], preferences["chosen"], preferences["rejected"], strict=True)
    ):
        try:
            chosen, rejected = (_encode_side(tokenizer, prompt, side, max_length) for side in sides)
        except ValueError as error:
            raise ValueError(f"pair {row}: {error}") from None
        if chosen.tokens == rejected.tokens:
            dropped["the same on both sides"] += 1
        elif not (any(chosen.response_mask) and any(rejected.response_mask)):
            dropped["without a response on one side"] += 1
        else:
            pairs.append(Pair(chosen, rejected))
    if dropped:
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        warnings.warn(
            f"dropped {dropped.total()} of {dropped.total() + len(pairs)} pairs, cut at {max_length} tokens: {counts}",
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


def _dataset(rows: list[dict], path: str | Path) -> Dataset:
    try:
        return Dataset.from_list(rows)
    except (TypeError, ValueError) as error:  # what Arrow raises
        raise ValueError(f"{path}: a column needs one type of value in every line ({error})") from None


def _demo(row: object, where: str) -> dict:
    if isinstance(row, list):
        row = {"messages": row}
    elif isinstance(row, dict) and "messages" not in row:
        prompt, completion = row.get("prompt"), row.get("completion")
        rest = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
        if isinstance(prompt, list) and isinstance(completion, list):
            row = {"messages": prompt + completion, **rest}
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise ValueError(
            f"{where}: expected a list of messages, or an object with such a list as `messages`, "
            "or with two, `prompt` and `completion`"
        )
    check_messages(row["messages"], where)
    if row["messages"][-1]["role"] != "assistant":
        raise ValueError(
            f"{where}: the last message must be the assistant's answer, got {row['messages'][-1]['role']!r}"
        )
    return row


def _preference(row: object, where: str) -> dict:
    if not isinstance(row, dict) or not all(isinstance(row.get(side), list) for side in ("chosen", "rejected")):
        raise ValueError(f"{where}: expected an object with a list of messages as `chosen` and one as `rejected`")
    if "prompt" not in row:
        shared = 0
        for a, b in zip(row["chosen"][:-1], row["rejected"][:-1], strict=False):
            if a != b:
                break
            shared += 1
        row = {"prompt": row["chosen"][:shared], **row}
        row |= {side: row[side][shared:] for side in ("chosen", "rejected")}
    if not isinstance(row["prompt"], list):
        raise ValueError(f"{where}: expected a list of messages as `prompt`, got {type(row['prompt']).__name__}")
    for side in ("chosen", "rejected"):
        check_messages([*row["prompt"], *row[side]], f"{where}, {side}")
        if not row["prompt"] or not row[side] or row[side][-1]["role"] != "assistant":
            raise ValueError(f"{where}: `{side}` must answer a prompt, and end with the assistant's message")
    return row


def _encode_side(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[dict], side: Sequence[dict], max_length: int
) -> Encoded:
    """Only what answers the prompt counts: earlier assistant turns belong to the prompt."""
    tokens, mask = encode_conversation(tokenizer, [*prompt, *side])
    # A template may refuse to render a prompt without a question; then there is no earlier answer in it either.
    start = len(encode_prompt(tokenizer, prompt)) if any(turn["role"] == "user" for turn in prompt) else 0
    return Encoded(tokens[:max_length], [m and t >= start for t, m in enumerate(mask[:max_length])])


def prompt_key(prompt: Sequence[dict]) -> tuple[tuple[str, str], ...]:
    """What makes two prompts the same one: roles and texts. It can be hashed and sorted."""
    return tuple((message["role"], message["content"]) for message in prompt)


def check_messages(messages: Sequence[object], where: str) -> None:
    """Raise ValueError at `where` unless every message has a known role and a non-empty text."""
    if not messages:
        raise ValueError(f"{where}: the conversation is empty")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f"{where}: message {number} must be an object with `role` and `content`")
        if message["role"] not in ROLES:
            raise ValueError(
                f"{where}: message {number} has the unknown role {message['role']!r}: use {', '.join(ROLES)}"
            )
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(f"{where}: message {number} ({message['role']}) is empty: give it text or remove the line")
