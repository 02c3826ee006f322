"""What the benchmarks build and write; what they measure is no test."""

import argparse
import importlib
from pathlib import Path

import pytest

from picollm_lite.chat import encode_prompt, user

FOLDER = Path(__file__).parents[1] / "benchmarks"
MIB = 2**20


@pytest.fixture
def bench(monkeypatch):
    """A script of the benchmarks as a module; like a script it finds those beside it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def memory(bench):
    return bench("bench_memory")


def options(**others):
    return argparse.Namespace(**{"device": "cpu", "batch": 2, "tokens": 17} | {"checkpointing": False} | others)


def count(shape):
    """Embedding; q and o, k and v, gate, up and down, two norms a layer; the last norm. Heads of d / H."""
    d, L, H, K, f, V = shape
    return V * d + L * (2 * d * d + 2 * d * K * d // H + 3 * d * f + 2 * d) + d


@pytest.mark.parametrize(
    ("size", "parameters"), [("1M", 1_049_728), ("30M", 31_463_808), ("135M", 134_515_008), ("360M", 361_821_120)]
)
def test_a_random_llama_has_the_size_of_its_name(bench, memory, size, parameters):
    """The last two as published for SmolLM2; the others from `count`."""
    llamas = bench("llamas")
    model = llamas.random_llama(llamas.SHAPES[size], llamas.shipped_tokenizer(), "meta")
    assert memory.parameters([model]) == parameters == count(llamas.SHAPES[size])


def test_a_text_is_as_long_as_it_says(memory, bench):
    tokenizer = bench("llamas").shipped_tokenizer()
    task = memory.Task(tokenizer, batch=2, tokens=17)
    questions = task.questions()
    assert len(questions) == 6 and len(set(questions)) > 1
    assert {len(encode_prompt(tokenizer, user(question))) for question in questions} == {8}
    for pair in task.pairs():
        for side in pair:
            assert (len(side.tokens), sum(side.response_mask)) == (17, 9)


@pytest.mark.parametrize(
    ("stage", "trained", "frozen"),
    [("sft", (1, 0), (0, 0)), ("reward", (1, 16), (0, 0)), ("dpo", (1, 0), (1, 0)), ("ppo", (2, 17), (2, 16))],
)
def test_every_loop_takes_its_two_steps(memory, bench, monkeypatch, stage, trained, frozen):
    """Models, and numbers in their heads: d in a reward model's, d + 1 in a critic's."""
    shape = bench("llamas").Shape(16, 1, 2, 1, 32, 2048)
    monkeypatch.setitem(memory.SHAPES, "tiny", shape)
    usage = memory.measure("tiny", stage, options(bf16=False, checkpointing=stage != "sft"))
    assert usage[:2] == tuple(models * count(shape) + head for models, head in (trained, frozen))
    assert usage.peak >= 0


def test_checkpointing_reaches_the_loop(memory, bench):
    llamas, scoring = bench("llamas"), importlib.import_module("picollm_lite.scoring")
    tokenizer = llamas.shipped_tokenizer()
    task = memory.Task(tokenizer, batch=1, tokens=16)
    policy = llamas.random_llama(llamas.Shape(16, 1, 2, 1, 32, 2048), tokenizer)
    loop = memory.ppo_loop(policy, task)
    memory.save_activations(loop.trained)
    assert [scoring.recomputes(model) for model in (*loop.trained, *loop.frozen)] == [True, True, False, False]


def test_held_bytes_are_16_a_trained_parameter_and_4_a_frozen_one(memory):
    assert memory.held_bytes(memory.Usage(trained=1000, frozen=0, peak=None)) == 16_000
    assert memory.held_bytes(memory.Usage(trained=1000, frozen=1000, peak=None)) == 20_000


def test_the_report_is_a_table_with_the_device(memory, monkeypatch):
    monkeypatch.setattr(memory, "machine", lambda device: f"the {device} here")
    usages = {("1M", "sft"): memory.Usage(2**20, 0, 40 * MIB), ("135M", "dpo"): memory.Usage(2**27, 2**27, None)}
    text = memory.report(usages, options(bf16=True, checkpointing=True))
    head, _, settings, _, *table = text.splitlines()
    assert head == "## the cpu here"
    assert settings == "Batch 2, 17 tokens a text, products in bf16, with activation checkpointing."
    assert table == [
        "| model | stage | trained, M | frozen, M | derived, MiB | peak resident, MiB |",
        "|---|---|---|---|---|---|",
        "| 1M | sft | 1.0 | 0.0 | 16 | 40 |",
        "| 135M | dpo | 134.2 | 134.2 | 2,560 | out of memory |",
    ]


def test_a_machine_says_what_it_is(bench):
    assert "thread" in bench("reporting").machine("cpu")


def test_the_spread_is_median_and_quartiles(bench):
    assert bench("reporting").spread([1, 2, 3, 4, 5]) == "median      3.00   quartiles 1.50 to 4.50"
