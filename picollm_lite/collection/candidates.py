"""Answers of one or more policies to the same prompts, and the pairs of them that wait for labels."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein
from torch import nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.chat import MAX_NEW_TOKENS, answer, conversation, encode_conversation
from picollm_lite.collection.pairs import AnswerPair, Messages
from picollm_lite.data import prompt_key
from picollm_lite.formats import check_messages

KINDS = ("any", "near", "far")


class Candidate(NamedTuple):
    """One answer to one prompt."""

    prompt: Messages
    text: str
    source: str  # "sft at temperature 1"


class PairsMade(NamedTuple):
    """Pairs to label, and what did not become one: how many answers or prompts for each reason."""

    pairs: list[AnswerPair]
    dropped: dict[str, int]


def sample_candidates(
    policies: Mapping[str, nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Messages],
    *,
    k: int = 4,
    temperatures: Sequence[float] = (1.0,),
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 256,
    seed: int = 0,
) -> list[Candidate]:
    """k answers a prompt from every policy at every temperature; one at temperature 0, where all would be the same.

    A prompt is a question, or a conversation that ends with the user. Seed and batch_size settle the answers.
    Raises ValueError for a prompt that is neither, and where there is nothing to sample.
    """
    if not (policies and len(prompts) and temperatures and k >= 1 and batch_size >= 1):
        raise ValueError("expected at least one policy, prompt and temperature, k and batch_size of at least 1")
    asked = [_checked(conversation(prompt), f"prompt {number}") for number, prompt in enumerate(prompts)]
    rng, candidates = random.Random(seed), []
    for (name, policy), temperature in product(policies.items(), temperatures):
        questions = [prompt for prompt in asked for _ in range(k if temperature else 1)]
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            settings = {"temperature": temperature, "seed": rng.randrange(2**32), "max_new_tokens": max_new_tokens}
            texts = answer(policy, tokenizer, batch, **settings)
            source = f"{name} at temperature {temperature:g}"
            candidates += [Candidate(prompt, text, source) for prompt, text in zip(batch, texts, strict=True)]
    return candidates


def make_pairs(
    candidates: Sequence[Candidate],
    *,
    per_prompt: int = 1,
    kind: str = "any",
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = 256,
    seed: int = 0,
) -> PairsMade:
    """Up to `per_prompt` pairs of different answers to each prompt: random ones, the most alike or the least alike.

    Alike is 1 - edit distance / length of the longer one. With a tokenizer, answers that training could not tell apart,
    as they differ only beyond max_length tokens, count as one. Seed settles the choice and which answer stands as a.
    """
    if kind not in KINDS or per_prompt < 1:
        raise ValueError(f"expected a kind out of {', '.join(KINDS)} and per_prompt >= 1, got {kind!r}, {per_prompt}")
    groups: dict[tuple, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(prompt_key(candidate.prompt), []).append(candidate)
    rng, pairs, dropped = random.Random(seed), [], Counter()
    for group in groups.values():
        answers = _different(group, tokenizer, max_length, dropped)
        dropped["prompts without two answers"] += len(answers) < 2
        for a, b in _picked(answers, per_prompt, kind, rng):
            sides = ([{"role": "assistant", "content": side.text}] for side in (a, b))
            pairs.append(AnswerPair(f"pair-{len(pairs):05d}", a.prompt, *sides, a.source, b.source))
    return PairsMade(pairs, {reason: count for reason, count in dropped.items() if count})


def _checked(prompt: Messages, where: str) -> Messages:
    check_messages(prompt, where)
    if prompt[-1]["role"] != "user":
        raise ValueError(f"{where}: expected the user's message at the end, got the {prompt[-1]['role']}'s")
    return prompt


def _different(
    group: Sequence[Candidate], tokenizer: PreTrainedTokenizerBase | None, max_length: int, dropped: Counter
) -> list[Candidate]:
    """One candidate of each text, and of each text as it is cut; the others are counted."""
    texts, cuts, kept = set(), set(), []
    for candidate in group:
        text = candidate.text.strip()
        if not text:
            dropped["empty answers"] += 1
            continue
        if text in texts:
            dropped["duplicate answers"] += 1
            continue
        texts.add(text)
        if tokenizer is not None:
            message = {"role": "assistant", "content": candidate.text}
            cut = tuple(encode_conversation(tokenizer, [*candidate.prompt, message]).tokens[:max_length])
            if cut in cuts:
                dropped[f"answers that are the same when cut at {max_length} tokens"] += 1
                continue
            cuts.add(cut)
        kept.append(candidate)
    return kept


def _picked(answers: Sequence[Candidate], count: int, kind: str, rng: random.Random) -> list[list[Candidate]]:
    pairs = list(combinations(answers, 2))
    rng.shuffle(pairs)
    if kind != "any":
        pairs.sort(key=lambda pair: Levenshtein.normalized_similarity(*(side.text for side in pair)))
    if kind == "near":
        pairs.reverse()
    return [rng.sample(pair, 2) for pair in pairs[:count]]
