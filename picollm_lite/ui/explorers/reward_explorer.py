"""Edit an answer and watch proxy and gold move: what does the reward model value that the rubric does not?"""

from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple

import ipywidgets as widgets

from picollm_lite.evaluation.perturbations import cut_off, flattery_first, padding, repetition, swapped_fact
from picollm_lite.models import RewardModel
from picollm_lite.ui.explorers.answers import NO_GOLD, gold_score, sentence_verdicts
from picollm_lite.ui.live import Live, View
from picollm_lite.ui.svg import escaped
from picollm_lite.ui.tables import html_table, signed, text_figure, text_table, wrapped
from picollm_lite.world.asks import read, reference_answer
from picollm_lite.world.rubric import WEIGHTS, RubricScore

START, TYPED, BACK = "start", "typed", "back to the start"
BUTTONS = {
    "add flattery": flattery_first,
    "pad with filler": padding,
    "repeat the last sentence": repetition,
    "swap the fact": swapped_fact,
    "cut off the ending": cut_off,
}
UP_DOWN = "proxy up, gold down"
NOTHING = 0.005  # a change that is shown as 0.00
_WIDE = {"layout": {"width": "95%", "max_width": "760px"}, "style": {"description_width": "80px"}}


class Step(NamedTuple):
    """The answer after an edit: what the reward model and the rubric say."""

    edit: str  # what was done to get here
    proxy: float
    gold: RubricScore | None  # None: the question names no concept of the bank
    sentences: list[tuple[str, str]]  # (what the rubric makes of it, sentence); the whole answer without gold


def judge(edit: str, question: str, answer: str, reward_model: RewardModel) -> Step:
    """Proxy and gold of an answer. Raises ValueError for an empty question and for a text with a control token."""
    gold = gold_score(question, answer)
    proxy = reward_model.score([question], [answer]).item()
    return Step(edit, proxy, gold, [("not judged", answer)] if gold is None else sentence_verdicts(question, answer))


def extended(history: Sequence[Step], step: Step) -> tuple[Step, ...]:
    """The history with one step more; what is typed in one go is one step."""
    typing = step.edit == TYPED and history[-1].edit == TYPED
    return (*(history[:-1] if typing else history), step)


def reward_view(question: str, history: Sequence[Step]) -> View:
    """The newest step against the first, sentence by sentence, and every step's change of proxy and of gold."""
    first, now = history[0], history[-1]
    summary = ["", "now", "at the start", "change"], _summary(first, now)
    sentences = ["what the rubric says", "sentence"], now.sentences
    steps = ["edit", "proxy", "change", "gold", "change", ""], _changes(history)
    tables = "".join(f"<div>{html_table(*table)}</div>" for table in (summary, steps))
    markup = f'<div style="line-height:1.4"><p style="margin:4px 0">{escaped(f"Q  {question}")}</p>'
    markup += f'<div style="display:flex;flex-wrap:wrap;gap:12px 24px">{tables}</div>'
    lines = [*wrapped(f"Q  {question}", ""), "", *text_table(*summary), ""]
    if now.gold is None:
        markup += f'<p style="margin:8px 0">{escaped(NO_GOLD)}</p>'
        lines += [NO_GOLD, ""]
    if now.sentences:
        markup += f'<div style="margin-top:12px">{html_table(*sentences)}</div>'
        margin = max(len(verdict) for verdict, _ in now.sentences)
        lines += [line for verdict, said in now.sentences for line in wrapped(said, f"{verdict:<{margin}} | ")] + [""]
    text = "\n".join([*lines, *text_table(*steps)])
    return View(markup + "</div>", text, lambda: text_figure(text), said_above=True)


def reward_explorer(question: str, reward_model: RewardModel, *, answer: str | None = None) -> Live:
    """Type into an answer, or change it by buttons. It starts as `answer`, or else as the perfect one.

    A new question starts anew, with its perfect answer where the bank knows one.
    """
    return _Session(question, reward_model, _perfect(question, otherwise="") if answer is None else answer).live


class _Session:
    """The controls, the answer that "back to the start" goes to, and what was done since."""

    def __init__(self, question: str, reward_model: RewardModel, answer: str):
        self.reward_model, self.start, self.history = reward_model, answer, ()
        self.question = widgets.Text(question, description="question", continuous_update=False, **_WIDE)
        self.answer = widgets.Textarea(answer, description="answer", rows=4, **_WIDE)
        buttons = [widgets.Button(description=name, layout={"width": "auto"}) for name in (*BUTTONS, BACK)]
        self.live = Live([self.question, self.answer, widgets.HBox(buttons, layout={"flex_flow": "row wrap"})])
        self.live.attempt(lambda: self._take(START, answer))
        self.question.observe(self._ask, names="value")
        self.answer.observe(self._type, names="value")
        for button in buttons:
            button.on_click(self._click)

    def _ask(self, _: dict) -> None:
        self.live.attempt(lambda: self._take(START, _perfect(self.question.value, otherwise=self.answer.value)))

    def _type(self, _: dict) -> None:
        self.live.attempt(lambda: self._take(TYPED, self.answer.value))

    def _click(self, button: widgets.Button) -> None:
        self.live.attempt(lambda: self._take(button.description, self._edited(button.description)))

    def _edited(self, edit: str) -> str:
        if edit == BACK:
            return self.start
        answer = self.answer.value
        return BUTTONS[edit](self.question.value, answer, Random(answer))  # another choice at each use, but repeatable

    def _take(self, edit: str, answer: str) -> View:
        """One step further; where it cannot be judged, nothing has changed."""
        step = judge(edit, self.question.value, answer, self.reward_model)
        if edit == START:
            self.start, self.history = answer, (step,)
        else:
            self.history = extended(self.history, step)
        self.answer.unobserve(self._type, names="value")  # this change is not typed
        self.answer.value = answer
        self.answer.observe(self._type, names="value")
        return reward_view(self.question.value, self.history)


def _perfect(question: str, *, otherwise: str) -> str:
    try:
        return reference_answer(read(question))
    except ValueError:
        return otherwise


def _summary(first: Step, now: Step) -> list[list[str]]:
    """Proxy, gold and each criterion: now, at the start, change."""
    rows = [_compared("proxy", now.proxy, first.proxy)]
    if first.gold is None or now.gold is None:
        return rows
    rows.append(_compared("gold", now.gold.total, first.gold.total))
    return rows + [_compared(name, now.gold.criteria[name], first.gold.criteria[name]) for name in WEIGHTS]


def _compared(name: str, now: float, first: float) -> list[str]:
    return [name, signed(now), signed(first), signed(now - first)]


def _changes(history: Sequence[Step]) -> list[list[str]]:
    """Each step with its change against the one before it, and a remark where the two go different ways."""
    rows = [_change(history[0], None)]
    return rows + [_change(step, before) for before, step in pairwise(history)]


def _change(step: Step, before: Step | None) -> list[str]:
    row = [step.edit, signed(step.proxy), "", "none" if step.gold is None else signed(step.gold.total), "", ""]
    if before is not None:
        proxy = step.proxy - before.proxy
        row[2] = signed(proxy)
        if step.gold is not None:
            gold = step.gold.total - before.gold.total
            row[4], row[5] = signed(gold), UP_DOWN if proxy >= NOTHING and gold <= -NOTHING else ""
    return row
