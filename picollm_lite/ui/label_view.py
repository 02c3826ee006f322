"""What a labeler sees: the pair, the rubric in short, and how far the simulated annotators agree. No gold score."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from matplotlib.figure import Figure

from picollm_lite.chat import readable
from picollm_lite.collection.label_store import SIDES
from picollm_lite.ui.live import View
from picollm_lite.ui.svg import escaped
from picollm_lite.ui.tables import html_table, text_figure, wrapped
from picollm_lite.world.annotators import PANEL, Annotator
from picollm_lite.world.asks import read
from picollm_lite.world.rubric import WEIGHTS

CAPTION = "Who would rather have chosen as you did"
NAMES = {"a": "A", "b": "B", "tie": "tie", "skip": "skip"}
RUBRIC = {
    "correct": "every claim is true, and about the concept asked about",
    "asked": "all that the question asks for is there",
    "concise": "at most a quarter longer than it has to be",
    "clean": "no flattery, no filler, nothing said twice, and a proper end",
}


class Choice(NamedTuple):
    """A pair as it is shown; texts are lists of messages."""

    id: str
    prompt: list[dict]
    a: list[dict]
    b: list[dict]
    shown_first: str  # the side of the source pair that stands as A, one of SIDES

    def shown(self, first: str) -> "Choice":
        """The same pair with that side as A."""
        if SIDES[first] == SIDES[self.shown_first]:
            return self
        return self._replace(a=self.b, b=self.a, shown_first=first)


class Labelling(NamedTuple):
    """How far a labeler has come."""

    choices: Sequence[Choice]
    labels: Mapping[str, str]  # a pair's id -> "a", "b", "tie" or "skip"
    file: str
    note: str = ""

    @property
    def current(self) -> Choice | None:
        """The first pair without a label."""
        return next((choice for choice in self.choices if choice.id not in self.labels), None)


class Judged(NamedTuple):
    """A labeled pair of the course desk, as plain texts."""

    prompt: str
    a: str
    b: str
    label: str  # "a", "b" or "tie"


class Agreement(NamedTuple):
    """Share of n labels on which an annotator would more probably have chosen the same answer, ties counted half."""

    annotator: str
    share: float
    n: int


def agreement(judged: Iterable[Judged], panel: Sequence[Annotator] = PANEL) -> list[Agreement]:
    """One row an annotator. Your tie counts half, and so does an annotator's even chance.

    Raises ValueError without any label, and for a prompt that is no question of the course desk.
    """
    judged = list(judged)
    if not judged:
        raise ValueError("expected at least one label to agree with, got none")
    return [
        Agreement(annotator.name, sum(_same(annotator, *row) for row in judged) / len(judged), len(judged))
        for annotator in panel
    ]


def labelling_view(state: Labelling) -> View:
    """The pair to label, or that all are; agreement only once there is a label."""
    judged, foreign = _judged(state)
    rows = agreement(judged) if judged else []
    given = list(state.labels.values())
    done = ", ".join(f"{name} {given.count(label)}" for label, name in NAMES.items())
    total = len(state.choices)
    head = f"Pair {len(given) + 1} of {total}" if state.current else f"All {total} pairs labeled"
    lines = [state.note[:1].upper() + state.note[1:], f"{head}. So far: {done}. File: {state.file}"]
    if rows:
        shares = ", ".join(f"{row.annotator} {row.share:.0%}" for row in rows)
        lines.append(f"Agreement on n = {len(judged)}: {shares}")
    if foreign:
        lines.append(f"Left out of the agreement: {foreign}, about no concept that the simulated annotators know")
    text = "\n".join(filter(None, lines))
    return View(_markup(state, head, rows), text, partial(_figure, state, head, rows))


def rubric_markup() -> str:
    """The rubric in short, folded away."""
    rows = [(name, f"{weight:g}", RUBRIC[name]) for name, weight in WEIGHTS.items()]
    summary = "The rubric: what makes an answer better"
    return f"<details><summary>{summary}</summary>{html_table(('criterion', 'weight', 'full when'), rows)}</details>"


def _judged(state: Labelling) -> tuple[list[Judged], int]:
    """Labels that the simulated annotators can be asked about, and the number of those they cannot."""
    given = [choice for choice in state.choices if state.labels.get(choice.id, "skip") != "skip"]
    known = [choice for choice in given if _is_desk_question(choice.prompt)]
    judged = [Judged(*map(readable, (choice.prompt, choice.a, choice.b)), state.labels[choice.id]) for choice in known]
    return judged, len(given) - len(known)


def _is_desk_question(prompt: Sequence[dict]) -> bool:
    try:
        read(readable(prompt))
    except ValueError:
        return False
    return len(prompt) == 1


def _same(annotator: Annotator, prompt: str, a: str, b: str, label: str) -> float:
    p = _probability(annotator, prompt, a, b)
    return 0.5 if label == "tie" or p == 0.5 else float((p > 0.5) == (label == "a"))


@lru_cache(maxsize=20_000)  # every key press asks about all pairs labeled so far
def _probability(annotator: Annotator, prompt: str, a: str, b: str) -> float:
    return annotator.probability(prompt, a, b)


def _markup(state: Labelling, head: str, rows: Sequence[Agreement]) -> str:
    parts = [f"<div style='font-weight:bold;margin:4px 0'>{escaped(head)}</div>"]
    if state.current is not None:
        a, b = (_side(name, text) for name, text in (("A", state.current.a), ("B", state.current.b)))
        parts.append(
            f"<div style='margin:4px 0'><b>Question:</b> {_lines(state.current.prompt)}</div>"
            f"<div style='display:grid;grid-template-columns:1fr 1fr;gap:12px;margin:6px 0'>{a}{b}</div>"
        )
    if rows:
        cells = [(row.annotator, f"{row.share:.0%}", str(row.n)) for row in rows]
        parts.append(html_table(("annotator", "agreement", "n"), cells, caption=CAPTION))
    return f"<div style='max-width:820px;line-height:1.4'>{''.join(parts)}</div>"


def _side(name: str, messages: Sequence[dict]) -> str:
    box = "border:1px solid #888;border-radius:4px;padding:6px 10px;min-height:60px;overflow-wrap:anywhere"
    return f"<section aria-label='answer {name}' style='{box}'><b>{name}</b><br>{_lines(messages)}</section>"


def _lines(messages: Sequence[dict]) -> str:
    return f"<span style='white-space:pre-wrap'>{escaped(readable(messages))}</span>"


def _figure(state: Labelling, head: str, rows: Sequence[Agreement]) -> Figure:
    """The same as lines of text: what a page without a kernel shows."""
    texts = [head]
    if state.current is not None:
        for name, messages in (("Question", state.current.prompt), ("A", state.current.a), ("B", state.current.b)):
            paragraphs = f"{name}: {readable(messages)}".splitlines()
            texts += ["", *(line for paragraph in paragraphs for line in wrapped(paragraph, ""))]
    if rows:
        texts += ["", CAPTION, *(f"    {row.annotator}: {row.share:.0%} of {row.n}" for row in rows)]
    return text_figure("\n".join(texts))
