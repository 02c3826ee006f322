"""The mechanical rules of the concept bank (facts cannot be checked here, form can), and how it is loaded."""

import re
from collections import Counter
from itertools import combinations

import pytest
import yaml
from rapidfuzz.distance import Levenshtein

from picollm_lite.paths import CONCEPTS
from picollm_lite.world import concepts
from picollm_lite.world.concepts import KINDS, Concept, by_id, load_concepts

FACTS = [(c, kind, fact) for c in load_concepts() for kind, fact in c.facts.items()]
ENTRY = """text:
  - id: {id}
    name: token
    article: a
    definition: A token is a unit.
    why: w
    example: e
    analogy: a
"""


def offenders(breaks_rule):
    return [(c.id, kind, fact) for c, kind, fact in FACTS if breaks_rule(c, fact)]


def test_there_are_at_least_100_concepts_with_five_facts_each():
    assert len(load_concepts()) >= 100
    assert KINDS == ("definition", "why", "example", "analogy", "misconception")
    assert {tuple(c.facts) for c in load_concepts()} == {KINDS}
    assert all(isinstance(fact, str) for _, _, fact in FACTS)  # YAML makes a number or a bool of some bare words


def test_ids_and_names_are_unique_and_well_formed():
    ids, names = [c.id for c in load_concepts()], [c.name.lower() for c in load_concepts()]
    assert max(Counter(ids).values()) == max(Counter(names).values()) == 1
    assert [i for i in ids if not re.fullmatch(r"[a-z][a-z0-9_]*", i)] == []
    assert [c.name for c in load_concepts() if not c.name.isascii() or c.name != c.name.strip()] == []
    assert {c.article for c in load_concepts()} == {"", "a", "an"}


def test_the_yaml_holds_no_entry_or_field_that_loading_leaves_out():
    topics = yaml.safe_load(CONCEPTS.read_text(encoding="utf-8"))
    assert [c.id for c in load_concepts()] == [entry["id"] for entries in topics.values() for entry in entries]
    fields = {"id", "name", "article", *KINDS}
    assert [entry["id"] for entries in topics.values() for entry in entries if set(entry) != fields] == []
    assert {c.id: c.topic for c in load_concepts()} == {e["id"]: t for t, entries in topics.items() for e in entries}


def test_a_fact_has_8_to_18_words():
    assert offenders(lambda _, fact: not 8 <= len(fact.split()) <= 18) == []


def test_a_fact_is_one_ascii_sentence():
    """A capital, one period at the end, none inside but in a number, and no space too many."""
    sentence = re.compile(r"[A-Z](?:[^.!?]|(?<=\d)\.(?=\d))*\.")
    assert offenders(lambda _, fact: not sentence.fullmatch(fact) or fact != " ".join(fact.split())) == []
    assert offenders(lambda _, fact: not fact.isascii() or not fact.isprintable()) == []


def test_a_fact_names_its_concept():
    assert offenders(lambda c, fact: c.name.lower() not in fact.lower()) == []


def test_no_two_facts_are_close():
    """An edit distance over words: at .6 and more, a small slip would turn one fact into another."""
    words = [(c.id, kind, re.findall(r"[\w'-]+", fact.lower())) for c, kind, fact in FACTS]
    close = [(a[:2], b[:2]) for a, b in combinations(words, 2) if Levenshtein.normalized_similarity(a[2], b[2]) >= 0.6]
    assert close == []


def test_every_topic_has_neighbors_enough_for_a_wrong_comparison():
    assert min(Counter(c.topic for c in load_concepts()).values()) >= 4


def test_phrase_and_lookup():
    assert by_id()["kv_cache"].phrase == "a KV cache"
    assert by_id()["embedding"].phrase == "an embedding"
    assert by_id()["tokenization"].phrase == "tokenization"
    assert [by_id()[c.id] for c in load_concepts()] == list(load_concepts())
    assert by_id()["token"] in {by_id()["token"]}  # hashable, although its facts are a dict


def load(path, text, monkeypatch):
    path.write_text(text)
    monkeypatch.setattr(concepts, "CONCEPTS", path)
    return load_concepts.__wrapped__()


def test_load_reads_every_field(tmp_path, monkeypatch):
    text = ENTRY.format(id="token") + "    misconception: m\n"
    facts = {"definition": "A token is a unit.", "why": "w", "example": "e", "analogy": "a", "misconception": "m"}
    assert load(tmp_path / "bank.yaml", text, monkeypatch) == (Concept("token", "token", "a", "text", facts),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY.format(id="token"), "concept 'token' lacks misconception"),
        (ENTRY.format(id="token").replace("    why: w\n", ""), "concept 'token' lacks why, misconception"),
        ("text:\n  - name: token\n", "concept {'name': 'token'} lacks id, article, definition, why, example, analogy"),
    ],
)
def test_an_incomplete_entry_is_named_with_its_file(tmp_path, monkeypatch, text, message):
    path = tmp_path / "bank.yaml"
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        load(path, text, monkeypatch)
