"""One question, several models: their answers side by side, with what the reward model and the rubric make of them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ipywidgets as widgets
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.chat import respond
from picollm_lite.models import RewardModel
from picollm_lite.scoring import left_align, sequence_logprobs
from picollm_lite.ui.explorers.answers import NO_GOLD, gold_score
from picollm_lite.ui.live import Live, View, explore
from picollm_lite.ui.svg import escaped
from picollm_lite.ui.tables import html_table, signed, text_figure, text_table, wrapped
from picollm_lite.world.rubric import WEIGHTS, RubricScore

KL_NOTE = "KL to SFT: log-ratio to SFT, k1 summed over the answer's tokens, in nats; can be below 0"
OWN = "(a question of your own)"
_NAMED = {"style": {"description_width": "110px"}}
_WIDE = {"layout": {"width": "95%", "max_width": "760px"}, **_NAMED}


class Answer(NamedTuple):
    """What a model said, and its numbers; None where there is none to give."""

    name: str
    text: str
    tokens: int  # its end token included
    finished: bool  # whether it ended by itself
    gold: RubricScore | None  # None: the question names no concept of the bank
    proxy: float | None  # None: no reward model
    kl: float | None  # nats, k1 summed over the tokens; None: no reference


@torch.no_grad()
def compare(
    question: str,
    models: Mapping[str, nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    *,
    ref: nn.Module | None = None,
    reward_model: RewardModel | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Answer]:
    """Every model's answer; the same seed gives the same answers, temperature 0 the likeliest token at every step.

    The KL is that of the distributions that were sampled, both at `temperature` (greedy: both at 1). Raises ValueError
    for an empty question, one that holds a control token, and one that is too long.
    """
    answers = []
    for name, model in models.items():
        sample, (text,) = respond(model, tokenizer, [question], temperature=temperature, seed=seed)
        sequences, kl = left_align(sample), None
        if ref is not None:
            ref_logp = sequence_logprobs(ref, sequences, temperature=temperature or 1.0)  # (1, L-1)
            kl = (sequences.logp - ref_logp).sum().item()
        proxy = None if reward_model is None else reward_model.score([question], [text]).item()
        tokens, finished = int(sample.response_mask.sum()), bool(sample.finished)
        answers.append(Answer(name, text, tokens, finished, gold_score(question, text), proxy, kl))
    return answers


def playground_view(question: str, answers: Sequence[Answer], *, how: str = "") -> View:
    """The answers in columns above their numbers; `how` tells how they were sampled. Raises ValueError for none."""
    if not answers:
        raise ValueError("no answers to show: give at least one model")
    rows = _rows(answers)
    notes = [*([KL_NOTE] if answers[0].kl is not None else []), *([NO_GOLD] if answers[0].gold is None else [])]
    asked = f"Q  {question}" + (f"   ({how})" if how else "")
    names = ["", *(answer.name for answer in answers)]
    said = ["answer", *(answer.text or "(nothing)" for answer in answers)]
    small = "".join(f'<div style="font-size:90%;opacity:0.8">{escaped(note)}</div>' for note in notes)
    markup = f'<div style="line-height:1.4"><p style="margin:4px 0">{escaped(asked)}</p>'
    markup += f"{html_table(names, [said, *rows], equal=True)}{small}</div>"
    lines = [*wrapped(asked, ""), "", *text_table(*_turned(names, rows)), ""]
    margin = max(len(answer.name) for answer in answers)
    for answer in answers:
        lines += wrapped(answer.text, f"{answer.name:<{margin}}  ")
    text = "\n".join([*lines, *(["", *notes] if notes else [])])
    return View(markup, text, lambda: text_figure(text), said_above=True)


def playground(
    models: Mapping[str, nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    *,
    ref: nn.Module | None = None,
    reward_model: RewardModel | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> Live:
    """Pick or type a question; all models answer at once. `ref` is the SFT model, to measure the KL from.

    Raises ValueError for no questions.
    """
    if not questions:
        raise ValueError("no questions to pick from: give at least one")

    def draw(question: str, temperature: float, seed: int) -> View:
        answers = compare(
            question, models, tokenizer, ref=ref, reward_model=reward_model, temperature=temperature, seed=seed
        )
        how = f"temperature {temperature:g}, seed {seed}" if temperature else "the likeliest token at every step"
        return playground_view(question, answers, how=how)

    pick, question = _question_controls(questions)
    hottest = max(1.5, temperature)
    heat = widgets.FloatSlider(temperature, min=0, max=hottest, step=0.1, continuous_update=False, **_NAMED)
    heat.description = "temperature"
    number = widgets.IntText(seed, description="seed", layout={"width": "160px"})
    live = explore(draw, question=question, temperature=heat, seed=number)
    live.box.children = (pick, question, widgets.HBox([heat, number]), live.picture, live.readout)
    return live


def _question_controls(questions: Sequence[str]) -> tuple[widgets.Dropdown, widgets.Text]:
    """A list to pick from and a line to type in, which follow each other."""
    known = list(dict.fromkeys(questions))
    options = [(OWN, ""), *((question, question) for question in known)]
    pick = widgets.Dropdown(options=options, value=known[0], description="pick a question", **_WIDE)
    typed = widgets.Text(known[0], description="or type one", continuous_update=False, **_WIDE)

    def picked(_: dict) -> None:
        if pick.value:
            typed.value = pick.value

    def changed(_: dict) -> None:
        pick.value = typed.value if typed.value in known else ""

    pick.observe(picked, names="value")
    typed.observe(changed, names="value")
    return pick, typed


def _rows(answers: Sequence[Answer]) -> list[list[str]]:
    """One row a quantity that is known, one column a model."""
    rows = []
    if answers[0].proxy is not None:
        rows.append(["proxy", *(signed(answer.proxy) for answer in answers)])
    rows.append(["gold", *("none" if answer.gold is None else signed(answer.gold.total) for answer in answers)])
    if answers[0].gold is not None:
        rows += [[name, *(signed(answer.gold.criteria[name]) for answer in answers)] for name in WEIGHTS]
    if answers[0].kl is not None:
        rows.append(["KL to SFT", *(signed(answer.kl) for answer in answers)])
    rows.append(["tokens", *(f"{answer.tokens}{'' if answer.finished else ', not ended'}" for answer in answers)])
    return rows


def _turned(names: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """One row a model, one column a quantity: in text, that leaves room for many models."""
    head, *body = (list(column) for column in zip(names, *rows, strict=True))
    return head, body
