"""Label pairs by hand, and see as you go which of the simulated annotators choose as you do.

Where the labels go, and what a crash can cost, stands in `collection.label_store`; what is shown, in `label_view`.
"""

import random
from collections.abc import Iterable, Mapping
from pathlib import Path

import ipywidgets as widgets

from picollm_lite.collection.label_store import add_label, has_rows, read_labels, remove_label
from picollm_lite.collection.pairs import AnswerPair
from picollm_lite.data import load_preferences
from picollm_lite.formats import SIDES, check_messages
from picollm_lite.ui.label_view import NAMES, Choice, Labelling, labelling_view, rubric_markup
from picollm_lite.ui.live import Live, View
from picollm_lite.world.concepts import load_concepts

KEYS = {"a": "a", "b": "b", "t": "tie", "s": "skip", "u": "undo"}
BUTTONS = {"a": "A is better", "b": "B is better", "tie": "tie", "skip": "skip", "undo": "undo"}


def label_pairs(pairs: Iterable[AnswerPair | Mapping], path: str | Path, *, labeler: str = "me", seed: int = 0) -> Live:
    """Asks for each pair which answer is better; every label is saved at once, and a later call goes on from there.

    `pairs` are `AnswerPair`s, whose labels `widget_votes` reads, or rows of `load_preferences`: dicts with `id`,
    `prompt`, `chosen` and `rejected`. Which side stands as A depends on `seed` and the pair's id alone.
    Raises ValueError for a pair without these, or a file of other rows.
    """
    session = _Session(pairs, Path(path), labeler, seed)
    buttons = {label: widgets.Button(description=text) for label, text in BUTTONS.items()}
    key = widgets.Text(
        description="key: a, b, t (tie), s (skip), u (undo)",
        placeholder="type here",
        style={"description_width": "initial"},
        layout=widgets.Layout(width="360px"),
    )
    live = Live([widgets.HBox(list(buttons.values())), key, widgets.HTML(rubric_markup())])

    def press(label: str) -> None:
        live.attempt(lambda: session.press(label))
        _enable(buttons, session)

    def typed(change: dict) -> None:
        letters = change["new"].strip().lower()
        if change["new"]:
            key.value = ""  # calls this function once more, with nothing to do
        if letters in KEYS:
            press(KEYS[letters])
        elif letters:  # two at once may be one for a pair that was not yet on the screen
            live.attempt(lambda: session.look(f"{letters[:9]!r} did nothing: one letter at a time, a, b, t, s or u"))

    for label, button in buttons.items():
        button.on_click(lambda _, label=label: press(label))
    key.observe(typed, names="value")
    load_concepts()  # here, so that the first label does not wait for it
    live.show(session.look())
    _enable(buttons, session)
    return live


class _Session:
    """One sitting: the pairs, what the files say about them, and which labels undo may take back."""

    def __init__(self, pairs: Iterable[AnswerPair | Mapping], path: Path, labeler: str, seed: int):
        self.choices = [_choice(row, number, seed) for number, row in enumerate(pairs)]
        self.path, self.labeler = path, labeler
        self.mine: list[str] = []  # ids of this session, newest last
        if not self.choices:
            raise ValueError("expected pairs to label, got none")
        if len({choice.id for choice in self.choices}) < len(self.choices):
            raise ValueError("expected a different `id` for every pair: labels are kept by id")
        self.state = self._read()
        if has_rows(path):
            load_preferences(path)  # a line whose messages are wrong is named now, not when the file is needed

    def look(self, note: str = "") -> View:
        """The state that was last read, with a note."""
        return labelling_view(self.state._replace(note="; ".join(filter(None, (self.state.note, note)))))

    def press(self, label: str) -> View:
        """Save a label for the pair that is on the screen, or take the newest back; then look at the next pair."""
        seen, self.state = self.state, self._read()
        if seen.labels != self.state.labels:
            return self.look(f"{self.path.name} was changed from elsewhere: nothing was saved, go on from here")
        note = self._undo() if label == "undo" else self._save(label)
        self.state = self._read()._replace(note=self.state.note)  # that a line was cut off is told once more
        return self.look(note)

    def _save(self, label: str) -> str:
        choice = self.state.current
        if choice is None:
            return "nothing is left to label"
        row = {"id": choice.id, "annotator": self.labeler, "label": label, "shown_first": choice.shown_first}
        if label in ("a", "b"):
            chosen, rejected = (choice.a, choice.b) if label == "a" else (choice.b, choice.a)
            row = {"id": choice.id, "prompt": choice.prompt, "chosen": chosen, "rejected": rejected, **row}
        add_label(self.path, row)
        self.mine.append(choice.id)
        return f"saved {NAMES[label]} for {choice.id}"

    def _undo(self) -> str:
        if not self.mine:
            return "nothing to undo: no label was given since this cell was run"
        remove_label(self.path, self.mine[-1], self.labeler)
        return f"took back the label of {self.mine.pop()}"

    def _read(self) -> Labelling:
        labels = read_labels(self.path, self.labeler)
        choices = [choice.shown(labels.shown_first.get(choice.id, choice.shown_first)) for choice in self.choices]
        mine = {choice.id: labels.by_id[choice.id] for choice in choices if choice.id in labels.by_id}
        return Labelling(choices, mine, self.path.name, labels.note)


def _choice(pair: AnswerPair | Mapping, number: int, seed: int) -> Choice:
    where = f"pair {number}"
    row, sides = (pair._asdict(), ("a", "b")) if isinstance(pair, AnswerPair) else (pair, SIDES)
    if not isinstance(row.get("id"), str) or not row["id"]:
        raise ValueError(f"{where}: expected a text as `id`, got {row.get('id')!r}")
    for key in ("prompt", *sides):
        if not isinstance(row.get(key), list):
            raise ValueError(f"{where}: expected a list of messages as `{key}`, got {type(row.get(key)).__name__}")
        check_messages(row[key], f"{where}, {key}")
    choice = Choice(row["id"], row["prompt"], row[sides[0]], row[sides[1]], sides[0])
    return choice.shown(random.Random(f"{seed} {row['id']}").choice(sides))


def _enable(buttons: Mapping[str, widgets.Button], session: _Session) -> None:
    for label, button in buttons.items():
        button.disabled = not session.mine if label == "undo" else session.state.current is None
