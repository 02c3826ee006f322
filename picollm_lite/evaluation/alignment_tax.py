"""What a policy has unlearned: perplexity on base text, and facts told apart, with no chat format around them."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.chat import Encoded, padding_id
from picollm_lite.evaluation.metrics import Interval, interval_of_sums, mean_interval
from picollm_lite.scoring import response_logprobs
from picollm_lite.world.concepts import KINDS, Concept, load_concepts
from picollm_lite.world.texts import LABELS, base_document, heading


def held_out_documents(count: int = 200, *, seed: int = 0) -> list[str]:
    """Documents of the base corpus, drawn apart from those that training read.

    What is new is which facts stand together, not the facts: this tells what was forgotten, not what generalizes.
    """
    rng = random.Random(f"held out {seed}")  # training draws from a number, which is another stream
    return [base_document(rng) for _ in range(count)]


@torch.no_grad()
def perplexity(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], *, seed: int = 0
) -> Interval:
    """exp of the mean negative log-prob of a token, with a 95 % bootstrap interval over documents.

    Each document stands after a beginning-of-text token. The alignment tax is how much it rises from base model to
    policy (Askell et al. 2021). Perplexities of different tokenizers do not compare. Raises ValueError with fewer than
    2 documents and for one without a token to predict.
    """
    if len(documents) < 2:
        raise ValueError(f"expected at least 2 documents, got {len(documents)}: there is no interval without them")
    examples = _continuations(tokenizer, [""] * len(documents), documents)
    empty = [number for number, example in enumerate(examples) if not any(example.response_mask[1:])]
    if empty:
        raise ValueError(f"expected a text in every document, got {documents[empty[0]]!r} as number {empty[0]}")
    total, lengths = response_logprobs(model, examples, padding_id(tokenizer))
    rows = torch.stack([-total.double(), lengths.double()], dim=1).cpu().numpy()  # (documents, 2)
    return interval_of_sums(rows, lambda sums: np.exp(sums[..., 0] / sums[..., 1]), seed=seed)


@torch.no_grad()
def fact_accuracy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    concepts: Sequence[Concept] | None = None,
    seed: int = 0,
) -> Interval:
    """How often a concept's fact is likelier than a neighbor's of the same kind, with an interval over concepts.

    After "Token. Definition:", as a glossary entry of the base corpus begins, log p of the whole sentence decides. The
    neighbor is a concept of the same topic, drawn anew for each fact. Chance is 1/2. Raises ValueError with fewer than
    2 concepts, and for one alone in its topic.
    """
    rng = random.Random(seed)
    concepts = load_concepts() if concepts is None else concepts
    openings, sentences = [], []
    for concept in concepts:
        neighbors = [other for other in concepts if other.topic == concept.topic and other != concept]
        if not neighbors:
            raise ValueError(f"expected 2 concepts or more of the topic {concept.topic!r}, got {concept.id!r} alone")
        for kind in KINDS:
            openings += [f"{heading(concept)} {LABELS[kind]}:"] * 2
            sentences += [f" {owner.facts[kind]}" for owner in (concept, rng.choice(neighbors))]
    examples = _continuations(tokenizer, openings, sentences)
    logp = response_logprobs(model, examples, padding_id(tokenizer)).total.view(len(concepts), len(KINDS), 2)
    right = (logp[..., 0] > logp[..., 1]).double().mean(1)  # (concepts,)
    return mean_interval(right.cpu().numpy(), seed=seed)


def _continuations(tokenizer: PreTrainedTokenizerBase, openings: Sequence[str], texts: Sequence[str]) -> list[Encoded]:
    """Each text as what counts, after a beginning-of-text token and its opening."""
    given = [f"{tokenizer.bos_token or ''}{opening}" for opening in openings]
    tokens = tokenizer([*given, *texts], add_special_tokens=False)["input_ids"]
    pairs = zip(tokens[: len(given)], tokens[len(given) :], strict=True)
    return [Encoded([*opening, *text], [False] * len(opening) + [True] * len(text)) for opening, text in pairs]
