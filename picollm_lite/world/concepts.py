"""The concept bank: what the teaching assistant of the course desk knows."""

from dataclasses import dataclass
from functools import cache

import yaml

from picollm_lite.paths import CONCEPTS

KINDS = ("definition", "why", "example", "analogy", "misconception")


@dataclass(frozen=True)
class Concept:
    """One concept with five authored facts, one sentence each, in `facts[kind]`."""

    id: str
    name: str
    article: str
    topic: str
    facts: dict[str, str]

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def phrase(self) -> str:
        """The name as it stands in running text: "a KV cache", "tokenization"."""
        return f"{self.article} {self.name}".strip()


@cache
def load_concepts() -> tuple[Concept, ...]:
    """All concepts, in the file's order. Raises ValueError naming the file when an entry lacks a field."""
    topics = yaml.safe_load(CONCEPTS.read_text(encoding="utf-8"))
    return tuple(_concept(topic, entry) for topic, entries in topics.items() for entry in entries)


@cache
def by_id() -> dict[str, Concept]:
    """Concepts by their id."""
    return {concept.id: concept for concept in load_concepts()}


def _concept(topic: str, entry: dict) -> Concept:
    missing = [key for key in ("id", "name", "article", *KINDS) if key not in entry]
    if missing:
        raise ValueError(f"{CONCEPTS}: concept {entry.get('id', entry)!r} lacks {', '.join(missing)}")
    facts = {kind: entry[kind] for kind in KINDS}
    return Concept(entry["id"], entry["name"], entry["article"], topic, facts)
