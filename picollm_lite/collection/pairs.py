"""What a collection is made of: pairs of answers that wait for labels, and the labels that annotators gave."""

from typing import NamedTuple

Messages = list[dict]  # {"role": ..., "content": ...}


class AnswerPair(NamedTuple):
    """Two answers to one prompt. Which one stands as `a` says nothing about which is better."""

    id: str
    prompt: Messages
    a: Messages
    b: Messages
    source_a: str = ""  # which policy gave the answer, and how
    source_b: str = ""


class Vote(NamedTuple):
    """One annotator's label for one pair."""

    pair: str  # its id
    annotator: str
    label: str  # "a", "b", "tie" or "skip"
    shown_first: str = ""  # "a" or "b": which side the annotator read first; empty where nobody knows
