"""How much does DPO depend on its pairs? Trains on worse labels and on fewer pairs, and writes data/quality.jsonl.

    python -m picollm_lite.quality [--studies noise size annotators] [--seeds 0 1 2] [--jobs 2] [--into FILE]

Each row is one DPO run from the shipped SFT model, judged by gold on the frozen suite. Runs go on side by side, one a
core and with one thread each; rows that the file has already are not run again.
"""

import argparse
import multiprocessing
import os
import random
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from transformers.utils import logging

from picollm_lite.chat import answer, respond
from picollm_lite.data import encode_pairs, load_preferences, load_suite
from picollm_lite.evaluation.metrics import gold_scores, paired_win_rate
from picollm_lite.evaluation.tables import by_prompt
from picollm_lite.files import read_jsonl, write_jsonl
from picollm_lite.models import load_policy
from picollm_lite.paths import CHECKPOINTS, PREFERENCES, QUALITY, SUITE
from picollm_lite.scoring import left_align, sequence_logprobs
from picollm_lite.stages import dpo
from picollm_lite.world.annotators import PANEL, draw
from picollm_lite.world.rubric import score

BETA, ANSWERS = 0.3, 4  # as in notebook 05
N_PAIRS = 4000
Choose = Callable[[str, str, str, random.Random], bool]  # prompt, a, b -> whether a is preferred


class Condition(NamedTuple):
    """What the pairs of a run are like. A study's conditions differ in one thing."""

    study: str  # "noise", "size", "size_careful" or "annotators"
    level: str  # share of labels turned round, number of pairs, or who labeled
    pairs: int


SIZES = (500, 1000, 2500, 5000, 10_000)
CONDITIONS = (
    *(Condition("noise", f"{share}", N_PAIRS) for share in (0.0, 0.1, 0.2, 0.3, 0.4)),
    *(Condition(study, f"{n}", n) for study in ("size", "size_careful") for n in SIZES),
    *(Condition("annotators", name, N_PAIRS) for name in (*(annotator.name for annotator in PANEL), "panel")),
)


def chooser(condition: Condition) -> Choose:
    """Who labels: gold with some labels flipped (noise), one annotator, or whoever of the panel is drawn."""
    if condition.study == "noise":
        return lambda prompt, a, b, rng: gold_prefers(prompt, a, b) != (rng.random() < float(condition.level))
    name = "careful" if condition.study == "size_careful" else condition.level
    for annotator in PANEL:
        if annotator.name == name:
            return annotator.prefers_first
    return lambda prompt, a, b, rng: draw(rng).prefers_first(prompt, a, b, rng)


def gold_prefers(prompt: str, a: str, b: str) -> bool:
    return score(prompt, a).total > score(prompt, b).total


def labeled(preferences: Dataset, condition: Condition, seed: int) -> Dataset:
    """Some of the pairs, drawn by `seed` and labeled anew. Pairs that gold holds equal are left out of "noise".

    Both studies of size draw the same ones. Raises ValueError when there are fewer pairs than the condition asks for.
    """
    rng, choose = random.Random(f"{seed} {condition.study.removesuffix('_careful')}"), chooser(condition)
    rows = preferences.select_columns(["prompt", "chosen", "rejected", "gold_chosen", "gold_rejected"])
    if condition.study == "noise":
        rows = rows.filter(lambda row: row["gold_chosen"] != row["gold_rejected"])
    if len(rows) < condition.pairs:
        raise ValueError(f"{condition.study} {condition.level}: expected {condition.pairs} pairs, got {len(rows)}")
    drawn = rng.sample(range(len(rows)), condition.pairs)  # the same for all levels of one size
    return Dataset.from_list([relabeled(rows[number], choose, rng) for number in drawn])


def relabeled(row: dict, choose: Choose, rng: random.Random) -> dict:
    """The pair as `choose` ranks it."""
    prompt, a, b = row["prompt"], row["chosen"], row["rejected"]
    a_is_better = choose(prompt[-1]["content"], a[-1]["content"], b[-1]["content"], rng)
    chosen, rejected = (a, b) if a_is_better else (b, a)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def run(condition: Condition, seed: int) -> dict:
    """One DPO run: gold win rate against SFT on the suite, interval over prompts; mean gold; KL in nats an answer."""
    policy, tokenizer = load_policy(CHECKPOINTS / "sft", device="cpu")
    ref, _ = load_policy(CHECKPOINTS / "sft", device="cpu")
    pairs = encode_pairs(labeled(load_preferences(PREFERENCES), condition, seed), tokenizer)
    for _ in dpo.train(policy, pairs, tokenizer=tokenizer, ref=ref, beta=BETA, seed=seed):
        pass
    asked = list(load_suite(SUITE)["prompt"]) * ANSWERS
    sample, texts = respond(policy, tokenizer, asked, seed=seed)
    sequences = left_align(sample)
    with torch.no_grad():
        kl = (sequences.logp - sequence_logprobs(ref, sequences)).sum(1).mean().item()
    gold = by_prompt(asked, gold_scores(asked, texts))
    win = paired_win_rate(gold, sft_gold(seed))
    row = {"win_rate": win.rate, "low": win.low, "high": win.high, "gold": float(gold.mean()), "kl": kl}
    return {**condition._asdict(), "seed": seed, **{name: round(value, 4) for name, value in row.items()}}


@cache
def sft_gold(seed: int) -> np.ndarray:
    """Mean gold of the shipped SFT model's answers, one number a question of the suite."""
    policy, tokenizer = load_policy(CHECKPOINTS / "sft", device="cpu")
    asked = list(load_suite(SUITE)["prompt"]) * ANSWERS
    return by_prompt(asked, gold_scores(asked, answer(policy, tokenizer, asked, seed=seed)))


def one_thread() -> None:
    """How a process of the pool begins."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()


def main(arguments: list[str] | None = None) -> int:
    studies = list(dict.fromkeys(condition.study for condition in CONDITIONS))
    parser = argparse.ArgumentParser(prog="python -m picollm_lite.quality", description=__doc__.split("\n\n")[0])
    parser.add_argument("--studies", nargs="+", default=studies, choices=studies)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="runs at a time")
    parser.add_argument("--into", type=Path, default=QUALITY, metavar="FILE")
    options = parser.parse_args(arguments)
    wanted = [(c, seed) for seed in options.seeds for c in CONDITIONS if c.study in options.studies]
    done = {key(row): row for row, _ in read_jsonl(options.into)} if options.into.exists() else {}
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), one_thread) as pool:
        runs = [pool.submit(run, condition, seed) for condition, seed in wanted if (*condition, seed) not in done]
        for number, finished in enumerate(as_completed(runs), start=1):
            row = finished.result()
            done[key(row)] = row
            write_jsonl(options.into, [done[name] for name in sorted(done)])
            print(f"{number}/{len(runs)} {row}", flush=True)
    return 0


def key(row: dict) -> tuple:
    """What makes two rows the same run."""
    return row["study"], row["level"], row["pairs"], row["seed"]


if __name__ == "__main__":
    sys.exit(main())
