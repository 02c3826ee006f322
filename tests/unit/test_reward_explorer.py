"""The reward explorer: edits, the history of proxy and gold, typing and buttons, bad input, escaping."""

import re
from random import Random

import matplotlib.pyplot
import pytest
import torch

from picollm_lite.models import RewardModel
from picollm_lite.ui.explorers.answers import NO_GOLD, sentence_verdicts
from picollm_lite.ui.explorers.reward_explorer import (
    BACK,
    BUTTONS,
    START,
    TYPED,
    UP_DOWN,
    Step,
    extended,
    judge,
    reward_explorer,
    reward_view,
)
from picollm_lite.world.asks import read, reference_answer
from picollm_lite.world.concepts import by_id
from picollm_lite.world.rubric import RubricScore, score

QUESTION, UNKNOWN = "What is a KV cache?", "What is a zebra?"
PERFECT = reference_answer(read(QUESTION))
FACTS = by_id()["kv_cache"].facts
HOSTILE = "<img src=x onerror=alert(1)>"


class LikesLength:
    """A reward model that gives a tenth of a point a character, and refuses what a tokenizer would."""

    def score(self, prompts, responses):
        if any("<|" in text for text in responses):
            raise ValueError("message 2 (assistant) holds the control token <|bos|>")
        return torch.tensor([len(text) / 10 for text in responses])


# What is shown


def test_an_answer_is_judged_by_both(tiny_model, tokenizer):
    reward_model = RewardModel.from_policy(tiny_model(), tokenizer, seed=1)
    step = judge("typed", QUESTION, f"{PERFECT} Yes.", reward_model)
    assert step.proxy == reward_model.score([QUESTION], [f"{PERFECT} Yes."]).item()
    assert step.gold == score(QUESTION, f"{PERFECT} Yes.")
    assert step.sentences == sentence_verdicts(QUESTION, f"{PERFECT} Yes.")
    assert step.sentences[0] == ("definition of kv_cache, credit 1.00", PERFECT)


def test_typing_in_one_go_is_one_step():
    step = Step(START, 0.0, None, [])
    start, typed, more, flattered = (step._replace(edit=edit) for edit in (START, TYPED, TYPED, "add flattery"))
    more = more._replace(proxy=2.0)
    history = extended(extended((start,), typed), more)
    assert history == (start, more)
    assert extended(extended(history, flattered), typed) == (start, more, flattered, typed)
    assert extended((start, flattered), flattered) == (start, flattered, flattered)


def gold(total, correct, asked, concise, clean):
    return RubricScore(total, {"correct": correct, "asked": asked, "concise": concise, "clean": clean})


HISTORY = (
    Step(START, 1.0, gold(2.0, 1.0, 1.0, 1.0, 1.0), [("definition of x, credit 1.00", "X is y.")]),
    Step("add flattery", 1.5, gold(1.5, 1.0, 1.0, 1.0, 0.5), []),
    Step("pad with filler", 1.25, gold(1.0, 1.0, 1.0, 1.0, 0.0), []),
    Step("shorten", 1.5, gold(1.5, 1.0, 1.0, 1.0, 0.5), []),
    Step(TYPED, 1.504, gold(0.25, 0.625, 1.0, 0.5, 0.5), [("flattery", "Well asked!"), ("said before", "X is y.")]),
)


def cells(markup):
    """The rows of all tables without their tags."""
    rows = re.findall(r"<tr>(.*?)</tr>", markup)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_now_stands_against_the_start_and_each_step_against_the_one_before():
    view = reward_view("Why X?", HISTORY)
    assert cells(view.markup) == [
        ["", "now", "at the start", "change"],
        ["proxy", "+1.50", "+1.00", "+0.50"],
        ["gold", "+0.25", "+2.00", "-1.75"],
        ["correct", "+0.62", "+1.00", "-0.38"],
        ["asked", "+1.00", "+1.00", "+0.00"],
        ["concise", "+0.50", "+1.00", "-0.50"],
        ["clean", "+0.50", "+1.00", "-0.50"],
        ["edit", "proxy", "change", "gold", "change", ""],
        ["start", "+1.00", "", "+2.00", "", ""],
        ["add flattery", "+1.50", "+0.50", "+1.50", "-0.50", UP_DOWN],
        ["pad with filler", "+1.25", "-0.25", "+1.00", "-0.50", ""],
        ["shorten", "+1.50", "+0.25", "+1.50", "+0.50", ""],
        ["typed", "+1.50", "+0.00", "+0.25", "-1.25", ""],  # a change that is shown as none is none
        ["what the rubric says", "sentence"],
        ["flattery", "Well asked!"],
        ["said before", "X is y."],
    ]


def test_the_text_says_the_same():
    assert reward_view("Why X?", (*HISTORY[:1], HISTORY[-1])).text.splitlines() == [
        "Q  Why X?",
        "",
        "         now    at the start  change",
        "proxy    +1.50  +1.00         +0.50",
        "gold     +0.25  +2.00         -1.75",
        "correct  +0.62  +1.00         -0.38",
        "asked    +1.00  +1.00         +0.00",
        "concise  +0.50  +1.00         -0.50",
        "clean    +0.50  +1.00         -0.50",
        "",
        "flattery    | Well asked!",
        "said before | X is y.",
        "",
        "edit   proxy  change  gold   change",
        "start  +1.00          +2.00",
        f"typed  +1.50  +0.50   +0.25  -1.75   {UP_DOWN}",
    ]


def test_without_gold_the_reason_stands_there():
    history = [judge(edit, UNKNOWN, text, LikesLength()) for edit, text in ((START, "No."), (TYPED, "No, never."))]
    view = reward_view(UNKNOWN, history)
    assert cells(view.markup)[1:-2] == [
        ["proxy", "+1.00", "+0.30", "+0.70"],
        ["edit", "proxy", "change", "gold", "change", ""],
        ["start", "+0.30", "", "none", "", ""],
        ["typed", "+1.00", "+0.70", "none", "", ""],
    ]
    assert NO_GOLD in view.text.splitlines() and "not judged | No, never." in view.text.splitlines()
    assert NO_GOLD.replace("'", "&#x27;") in view.markup


def test_hostile_text_stays_text(tmp_path):
    step = judge(HOSTILE, f"{QUESTION} {HOSTILE}", f"'{HOSTILE} $x$ 日本.", LikesLength())
    view = reward_view(f"{QUESTION} {HOSTILE}", [step])
    assert "<img" not in view.markup and view.markup.count("&lt;img") == 3
    assert HOSTILE in view.text
    view.figure().savefig(tmp_path / "figure.png")  # warnings are errors
    assert matplotlib.pyplot.get_fignums() == []


# The widget


@pytest.fixture
def live():
    return reward_explorer(QUESTION, LikesLength())


def controls(live):
    question, answer, row = live.box.children[:3]
    return question, answer, {button.description: button for button in row.children}


def history(live):
    """Edit and proxy of each step shown."""
    rows = cells(live.picture.value)
    start = next(i for i, row in enumerate(rows) if row[0] == "edit") + 1
    return [(row[0], row[1]) for row in rows[start:] if len(row) == 6]


def tenth(text):
    return f"{len(text) / 10:+.2f}"


def test_it_starts_with_the_perfect_answer_or_a_given_one(live):
    question, answer, buttons = controls(live)
    assert (question.value, answer.value) == (QUESTION, PERFECT)
    assert list(buttons) == [*BUTTONS, BACK]
    assert history(live) == [(START, tenth(PERFECT))]
    given = reward_explorer(QUESTION, LikesLength(), answer="No.")
    assert controls(given)[1].value == "No." and history(given) == [(START, "+0.30")]


def test_typing_moves_proxy_and_gold_at_once(live):
    _, answer, _ = controls(live)
    assert answer.continuous_update
    for text in ("Y", "Ye", "Yes."):
        answer.value = text
        assert history(live) == [(START, tenth(PERFECT)), (TYPED, tenth(text))]
        assert (
            live.view.text
            == reward_view(
                QUESTION,
                [judge(START, QUESTION, PERFECT, LikesLength()), judge(TYPED, QUESTION, text, LikesLength())],
            ).text
        )


def test_each_button_edits_what_stands_there(live):
    _, answer, buttons = controls(live)
    steps = [(START, tenth(PERFECT))]
    for name, edit in BUTTONS.items():
        wanted = edit(QUESTION, answer.value, Random(answer.value))
        buttons[name].click()
        assert answer.value == wanted
        steps.append((name, tenth(wanted)))
        assert history(live) == steps
    buttons[BACK].click()
    assert answer.value == PERFECT
    assert history(live) == [*steps, (BACK, tenth(PERFECT))]
    answer.value = "Yes."  # typing is still noticed after a button
    assert history(live)[-1] == (TYPED, "+0.40")


def test_a_new_question_starts_anew(live):
    question, answer, buttons = controls(live)
    buttons["add flattery"].click()
    question.value = "Why does a KV cache matter? Define it first."
    assert answer.value == reference_answer(read(question.value)) != PERFECT
    assert history(live) == [(START, tenth(answer.value))]
    start = answer.value
    answer.value = "Yes."
    question.value = UNKNOWN  # no perfect answer: go on with what stands there
    assert answer.value == "Yes." and history(live) == [(START, "+0.40")]
    assert NO_GOLD in live.view.text
    answer.value = start
    buttons[BACK].click()
    assert answer.value == "Yes."


def readout(live):
    (line,) = re.findall(r"<pre[^>]*>(.*)</pre>", live.readout.value, re.DOTALL)
    return line


def test_an_edit_that_cannot_be_made_says_so_and_changes_nothing(live):
    _, answer, buttons = controls(live)
    answer.value = "Zebras."
    before = history(live)
    buttons["swap the fact"].click()  # ipywidgets logs what a click raises
    assert readout(live).startswith("ValueError: no sentence of the answer is a fact of the bank")
    assert answer.value == "Zebras." and history(live) == before
    buttons["pad with filler"].click()
    assert history(live) == [*before, ("pad with filler", tenth(answer.value))]
    assert "ValueError" not in readout(live)


def test_bad_input_is_one_line_and_can_be_taken_back(live):
    question, answer, _ = controls(live)
    with pytest.raises(ValueError, match="control token"):
        answer.value = "x <|bos|>"
    assert readout(live) == "ValueError: message 2 (assistant) holds the control token &lt;|bos|&gt;"
    answer.value = "x"
    assert history(live) == [(START, tenth(PERFECT)), (TYPED, "+0.10")]
    with pytest.raises(ValueError, match="the question is empty"):
        question.value = " "
    assert readout(live).startswith("ValueError: the question is empty")
    question.value = QUESTION
    assert history(live) == [(START, tenth(PERFECT))] and answer.value == PERFECT
    with pytest.raises(ValueError, match="the question is empty"):
        reward_explorer("", LikesLength())


def test_an_empty_answer_is_judged_like_any_other(live):
    _, answer, _ = controls(live)
    answer.value = ""
    assert ["gold", "-3.00", "+2.00", "-5.00"] in cells(live.picture.value)


def test_every_control_says_what_it_is(live):
    question, answer, buttons = controls(live)
    assert (question.description, answer.description) == ("question", "answer")
    assert {button.layout.width for button in buttons.values()} == {"auto"}  # the whole name is seen


def test_a_static_copy_is_left(live):
    bundle = live.bundle()
    assert bundle["image/png"].startswith(b"\x89PNG") and bundle["text/plain"] == live.view.text
    assert matplotlib.pyplot.get_fignums() == []
