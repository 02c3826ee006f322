"""Perplexity and facts against a slow loop; documents apart from those of training; models that know and do not."""

import random

import numpy as np
import pytest
import torch

from picollm_lite.chat import BOS
from picollm_lite.evaluation import alignment_tax
from picollm_lite.evaluation.alignment_tax import fact_accuracy, held_out_documents, perplexity
from picollm_lite.evaluation.metrics import mean_interval
from picollm_lite.scoring import response_logprobs
from picollm_lite.world.concepts import KINDS, load_concepts
from picollm_lite.world.texts import LABELS, base_document, heading

DOCUMENTS = ["A token is a unit of text.", "It splits words.", "Be brief. Why? Thanks."]
FEW = [concept for concept in load_concepts() if concept.topic == load_concepts()[0].topic][:3]


@torch.no_grad()
def slow_logps(model, tokens, start):
    logits = model(input_ids=torch.tensor([tokens])).logits[0]
    return [float(logits[t - 1].log_softmax(-1)[tokens[t]]) for t in range(start, len(tokens))]


def test_perplexity_is_that_of_a_slow_loop_over_all_tokens(tiny_model, tokenizer):
    model = tiny_model()
    logps = [slow_logps(model, tokenizer(BOS + text)["input_ids"], 1) for text in DOCUMENTS]
    got = perplexity(model, tokenizer, DOCUMENTS)
    assert got.estimate == pytest.approx(np.exp(-np.concatenate(logps).mean()), rel=1e-4)
    each = [np.exp(-np.mean(row)) for row in logps]
    assert min(each) * 0.999 <= got.low < got.estimate < got.high <= max(each) * 1.001


def test_perplexity_of_a_model_that_knows_nothing_is_the_vocabulary(tiny_model, tokenizer):
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, tokenizer, DOCUMENTS) == pytest.approx([len(tokenizer)] * 3, rel=1e-5)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "at least 2 documents, got 0"),
        (DOCUMENTS[:1], "at least 2 documents, got 1"),
        ([*DOCUMENTS, ""], "expected a text in every document, got '' as number 3"),
    ],
)
def test_documents_that_say_nothing_are_refused(tiny_model, tokenizer, documents, message):
    with pytest.raises(ValueError, match=message):
        perplexity(tiny_model(), tokenizer, documents)


def test_held_out_documents_come_from_a_stream_of_their_own():
    assert held_out_documents(5) == held_out_documents(5) == held_out_documents(9)[:5]
    assert held_out_documents(5) != held_out_documents(5, seed=1)
    for seed in (0, 2026):  # 2026 is the seed of the base corpus
        rng = random.Random(seed)
        assert held_out_documents(5, seed=seed) != [base_document(rng) for _ in range(5)]


def test_fact_accuracy_is_that_of_a_slow_loop(tiny_model, tokenizer):
    """Two concepts of one topic: each one's neighbor is the other."""
    model, (a, b) = tiny_model(max_position_embeddings=512), FEW[:2]
    right = []
    for concept, other in ((a, b), (b, a)):
        wins = []
        for kind in KINDS:
            name = concept.name[0].upper() + concept.name[1:]
            opening = tokenizer(f"{BOS}{name}. {LABELS[kind]}:")["input_ids"]
            told = [tokenizer(f" {owner.facts[kind]}")["input_ids"] for owner in (concept, other)]
            true, false = (sum(slow_logps(model, opening + tokens, len(opening))) for tokens in told)
            wins.append(true > false)
        right.append(np.mean(wins))
    got = fact_accuracy(model, tokenizer, concepts=[a, b])
    assert 0 < got.estimate < 1
    assert got == pytest.approx(mean_interval(right))


def test_a_question_begins_as_a_glossary_entry_of_the_base_corpus(tiny_model, tokenizer, monkeypatch):
    asked = []

    def spy(model, examples, *rest):
        asked.extend(examples)
        return response_logprobs(model, examples, *rest)

    monkeypatch.setattr(alignment_tax, "response_logprobs", spy)
    fact_accuracy(tiny_model(max_position_embeddings=512), tokenizer, concepts=FEW[:2])
    concept = FEW[0]
    entry = f"{heading(concept)} {LABELS[KINDS[0]]}: {concept.facts[KINDS[0]]}"
    assert tokenizer.decode(asked[0].tokens) == f"{BOS}{entry}"
    counted = [token for token, counts in zip(asked[0].tokens, asked[0].response_mask, strict=True) if counts]
    assert tokenizer.decode(counted) == f" {concept.facts[KINDS[0]]}"


def test_neighbors_are_drawn_by_the_seed(tiny_model, tokenizer):
    model = tiny_model(max_position_embeddings=512)
    found = {fact_accuracy(model, tokenizer, concepts=FEW, seed=seed).estimate for seed in range(4)}
    assert len(found) > 1


def test_a_concept_without_a_neighbor_is_refused(tiny_model, tokenizer):
    stranger = next(concept for concept in load_concepts() if concept.topic != FEW[0].topic)
    with pytest.raises(
        ValueError, match=f"2 concepts or more of the topic '{stranger.topic}', got '{stranger.id}' alone"
    ):
        fact_accuracy(tiny_model(), tokenizer, concepts=[*FEW, stranger])
