"""Questions: every rendered one is read back, typed ones are understood, held-out ones stay out of training."""

import inspect
import json
import re
from collections import Counter
from itertools import combinations, permutations

import pytest

from picollm_lite.paths import DEMOS, SUITE
from picollm_lite.world.asks import (
    ASKS,
    PHRASINGS,
    Question,
    is_held_out,
    phrasing_indices,
    read,
    reference_answer,
    render,
    required_facts,
)
from picollm_lite.world.concepts import by_id, load_concepts
from picollm_lite.world.texts import demonstrations

SINGLE = [ask for ask in ASKS if ask != "compare"]
KV = by_id()["kv_cache"]
PREFILL = by_id()["prefill"]
HELD_OUT_DEFINE = [
    *("logit", "top_k_sampling", "nucleus_sampling", "value_vector", "speculative_decoding", "checkpoint"),
    *("sft", "inter_annotator_agreement", "kl_penalty", "advantage", "on_policy_data", "rlhf"),
]
PARENT_COURSE = (
    "Explain tokenization for a first-year student.",
    "Use one analogy to explain self-attention.",
    "What is a KV cache?",
    "Explain positional encoding.",
    "What is the difference between a base model and a chat-SFT model?",
)


def jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def place(prompt):
    """(ask, concepts, phrasing) of a prompt that was rendered."""
    ask, concepts = read(prompt)
    (phrasing,) = (i for i in range(len(PHRASINGS[ask])) if render(ask, concepts, i) == prompt)
    return ask, concepts, phrasing


def test_asks_have_at_least_10_phrasings_of_their_own():
    assert ASKS == ("define", "why", "example", "analogy", "one_sentence", "misconception", "compare")
    assert min(len(phrasings) for phrasings in PHRASINGS.values()) >= 10 and tuple(PHRASINGS) == ASKS
    every = [phrasing for phrasings in PHRASINGS.values() for phrasing in phrasings]
    assert len(set(every)) == len(every)
    for ask, phrasings in PHRASINGS.items():
        fields = [sorted(re.findall(r"{(\w+)}", phrasing)) for phrasing in phrasings]
        assert all(f == ["a", "b"] if ask == "compare" else f in (["a"], ["name"]) for f in fields), ask


def test_render_by_hand(monkeypatch):
    assert render("define", (KV,), 0) == "What is a KV cache?"
    assert render("define", (KV,), 6) == "What does the term KV cache mean?"
    assert render("define", (PREFILL,), 0) == "What is prefill?"
    assert render("compare", (KV, PREFILL), 1) == "Compare a KV cache and prefill."
    assert render("compare", (PREFILL, KV), 1) == "Compare prefill and a KV cache."
    monkeypatch.setitem(PHRASINGS, "define", ("{a}, what is it?",))
    assert render("define", (KV,), 0) == "A KV cache, what is it?"


@pytest.mark.parametrize(
    ("ask", "concepts", "message"),
    [
        ("define", (), r"ask 'define' takes 1 concept\(s\), got 0"),
        ("define", (KV, PREFILL), r"ask 'define' takes 1 concept\(s\), got 2"),
        ("compare", (KV,), r"ask 'compare' takes 2 concept\(s\), got 1"),
    ],
)
def test_render_refuses_a_wrong_number_of_concepts(ask, concepts, message):
    with pytest.raises(ValueError, match=message):
        render(ask, concepts, 0)


@pytest.mark.parametrize("ask", ASKS)
def test_every_question_reads_back(ask):
    uncached = inspect.unwrap(read)  # 170,000 comparisons need not stay in memory
    groups = permutations(load_concepts(), 2) if ask == "compare" else ((c,) for c in load_concepts())
    wrong = [
        (prompt, got)
        for concepts in groups
        for phrasing in range(len(PHRASINGS[ask]))
        if (got := uncached(prompt := render(ask, concepts, phrasing))) != (ask, concepts)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("typed", "ask", "ids"),
    [
        ("what's a kv cache", "define", ["kv_cache"]),
        ("KV CACHES???", "define", ["kv_cache"]),
        ("tell me about PPO!", "define", ["ppo"]),
        ("cross-entropy losses", "define", ["cross_entropy_loss"]),
        ("policy gradients", "define", ["policy_gradient"]),  # not the policy, nor the gradient
        ("chat-sft models, please", "define", ["chat_sft_model"]),  # not SFT
        ("is multi-head attention worth it", "define", ["multi_head_attention"]),
        ("is a token a Token?", "define", ["token"]),
        ("why bother with lora", "why", ["lora"]),
        ("Logits in ONE SENTENCE: why, with an example?", "one_sentence", ["logit"]),
        ("a concrete logit, and why", "example", ["logit"]),
        ("an everyday example of dropout", "analogy", ["dropout"]),
        ("which mistake is in this analogy for dropout?", "misconception", ["dropout"]),
        ("why not use PPO rather than DPO, in one sentence", "compare", ["ppo", "dpo"]),
        ("DPO vs PPO vs IPO", "compare", ["dpo", "ppo"]),
    ],
)
def test_freely_typed_questions(typed, ask, ids):
    got = read(typed)
    assert (got.ask, [c.id for c in got.concepts]) == (ask, ids)


@pytest.mark.parametrize("prompt", ["", "What is a tokenizer farm?", "kvcache", "a pre-prompt", "prompt-writing", "q"])
def test_a_question_without_a_concept_says_what_to_do(prompt):
    message = f"the question names no concept of the bank: {prompt!r}; name one, e.g. 'What is a KV cache?'"
    with pytest.raises(ValueError, match=re.escape(message)):
        read(prompt)
    assert read("What is a KV cache?") == ("define", (KV,))


@pytest.mark.parametrize(
    ("ask", "kinds"),
    [
        ("define", "definition"),
        ("why", "definition why"),
        ("example", "definition example"),
        ("analogy", "analogy"),
        ("one_sentence", "definition"),
        ("misconception", "misconception"),
    ],
)
def test_what_a_full_answer_holds(ask, kinds):
    question = Question(ask, (KV,))
    assert required_facts(question) == [(KV, kind) for kind in kinds.split()]
    assert reference_answer(question) == " ".join(KV.facts[kind] for kind in kinds.split())


def test_a_full_comparison_holds_both_definitions_in_order():
    question = Question("compare", (PREFILL, KV))
    assert required_facts(question) == [(PREFILL, "definition"), (KV, "definition")]
    assert reference_answer(question) == f"{PREFILL.facts['definition']} {KV.facts['definition']}"


@pytest.mark.parametrize("ask", ASKS)
def test_the_last_three_phrasings_are_held_out(ask):
    count = len(PHRASINGS[ask])
    assert list(phrasing_indices(ask, held_out=True)) == [count - 3, count - 2, count - 1]
    assert list(phrasing_indices(ask, held_out=False)) == list(range(count - 3))


def test_about_one_combination_in_eight_is_held_out():
    """Within 4 standard deviations of 1/8: of 720 combinations 90 +- 36, of 7140 comparisons 892 +- 112."""
    singles = [(ask, (c,)) for ask in SINGLE for c in load_concepts()]
    pairs = [("compare", pair) for pair in combinations(load_concepts(), 2)]
    for group in (singles, pairs):
        n, held_out = len(group), sum(is_held_out(*combination) for combination in group)
        assert abs(held_out - n / 8) < 4 * (n * 7 / 64) ** 0.5, (held_out, n)
    per_ask = Counter(ask for ask, concepts in singles if is_held_out(ask, concepts))
    assert set(per_ask) == set(SINGLE) and len(set(per_ask.values())) > 1  # each ask has its own held-out concepts


def test_held_out_combinations_never_change():
    """Frozen: the shipped demonstrations and suite rest on them."""
    assert [c.id for c in load_concepts() if is_held_out("define", (c,))] == HELD_OUT_DEFINE


def test_a_comparison_is_held_out_in_both_orders():
    for a, b in combinations(load_concepts(), 2):
        assert is_held_out("compare", (a, b)) == is_held_out("compare", (b, a))


@pytest.mark.parametrize("source", ["shipped", 0, 7])
def test_demonstrations_hold_nothing_held_out(source):
    rows = jsonl(DEMOS) if source == "shipped" else demonstrations(source)
    prompts = {row["messages"][0]["content"] for row in rows}
    assert len(prompts) > 4000
    seen = set()
    for prompt in prompts:
        ask, concepts, phrasing = place(prompt)
        assert not is_held_out(ask, concepts) and phrasing < len(PHRASINGS[ask]) - 3, prompt
        seen.add((ask, phrasing))
    assert len(seen) == sum(len(phrasings) - 3 for phrasings in PHRASINGS.values())  # all that may be used, are


def test_suite_is_large_unique_and_readable():
    suite = jsonl(SUITE)
    assert len(suite) >= 96
    assert len({row["prompt"] for row in suite}) == len({row["id"] for row in suite}) == len(suite)
    for row in suite:
        question = read(row["prompt"])
        assert (row["ask"], row["concepts"]) == (question.ask, [c.id for c in question.concepts]), row
    assert set(PARENT_COURSE) <= {row["prompt"] for row in suite}


def test_suite_splits_are_what_they_say():
    splits = {
        "seen_phrasing": (False, False),
        "held_out_phrasing": (False, True),
        "held_out_combination": (True, False),
    }
    suite = jsonl(SUITE)
    for row in suite:
        ask, concepts, phrasing = place(row["prompt"])
        new_phrasing = phrasing >= len(PHRASINGS[ask]) - 3
        assert splits[row["split"]] == (is_held_out(ask, concepts), new_phrasing), row
    assert {(row["split"], row["ask"]) for row in suite} == {(split, ask) for split in splits for ask in ASKS}
    assert min(Counter(row["split"] for row in suite).values()) >= 24


def test_no_held_out_prompt_of_the_suite_is_demonstrated():
    demonstrated = {row["messages"][0]["content"] for row in jsonl(DEMOS)}
    held_out = {row["prompt"] for row in jsonl(SUITE) if row["split"] != "seen_phrasing"}
    assert held_out and not held_out & demonstrated
    combinations_seen = {(read(p).ask, frozenset(read(p).concepts)) for p in demonstrated}
    new = {read(row["prompt"]) for row in jsonl(SUITE) if row["split"] == "held_out_combination"}
    assert not {(q.ask, frozenset(q.concepts)) for q in new} & combinations_seen
