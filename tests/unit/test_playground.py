"""The playground: models answer one question side by side; numbers by definition, controls, bad input, escaping."""

import re

import matplotlib.pyplot
import pytest
import torch

from picollm_lite.chat import encode_prompt, respond, user
from picollm_lite.models import RewardModel
from picollm_lite.ui.explorers import playground as module
from picollm_lite.ui.explorers.answers import NO_GOLD
from picollm_lite.ui.explorers.playground import KL_NOTE, OWN, Answer, compare, playground, playground_view
from picollm_lite.world.rubric import RubricScore, score

QUESTION, UNKNOWN = "What is a token?", "What is a zebra?"
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def models(tiny_model, taught):
    return {"random": tiny_model(seed=1), "taught": taught()}


@pytest.fixture(scope="module")
def reward_model(tiny_model, tokenizer):
    return RewardModel.from_policy(tiny_model(seed=2), tokenizer, seed=3)


@torch.no_grad()
def log_ratio(model, ref, tokenizer, question, *, temperature, divide_by):
    """The sum over the answer's tokens, each read off at the position before it."""
    sample = respond(model, tokenizer, [question], temperature=temperature, seed=4).rollout
    prompt = encode_prompt(tokenizer, user(question))
    answer = sample.tokens[0, len(prompt) :][sample.response_mask[0]].tolist()
    logits = [m(input_ids=torch.tensor([prompt + answer])).logits[0] / divide_by for m in (model, ref)]
    logp, ref_logp = (rows.log_softmax(-1) for rows in logits)
    places = enumerate(answer, start=len(prompt) - 1)
    return sum((logp[place, token] - ref_logp[place, token]).item() for place, token in places)


@pytest.mark.parametrize(("temperature", "divide_by"), [(1.0, 1.0), (0.5, 0.5), (0.0, 1.0)])
def test_every_number_is_what_it_says(models, reward_model, tokenizer, temperature, divide_by):
    ref = models["taught"]
    answers = compare(QUESTION, models, tokenizer, ref=ref, reward_model=reward_model, temperature=temperature, seed=4)
    assert [answer.name for answer in answers] == ["random", "taught"]
    for answer, model in zip(answers, models.values(), strict=True):
        said = respond(model, tokenizer, [QUESTION], temperature=temperature, seed=4)
        assert answer.text == said.texts[0]
        assert (answer.tokens, answer.finished) == (said.rollout.response_mask.sum(), said.rollout.finished[0])
        assert answer.proxy == pytest.approx(reward_model.score([QUESTION], [answer.text]).item())
        assert answer.gold == score(QUESTION, answer.text)
        by_hand = log_ratio(model, ref, tokenizer, QUESTION, temperature=temperature, divide_by=divide_by)
        assert answer.kl == pytest.approx(by_hand, abs=1e-3)
    assert abs(answers[0].kl) > 0.1 and abs(answers[1].kl) < 1e-3


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(models, tokenizer):
    first, again, other = (compare(QUESTION, models, tokenizer, seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert first[0].text != other[0].text
    greedy = [compare(QUESTION, models, tokenizer, temperature=0, seed=seed) for seed in (7, 8)]
    assert greedy[0] == greedy[1]


def test_what_is_not_given_has_no_column(models, tokenizer):
    answers = compare(QUESTION, models, tokenizer)
    assert {(answer.proxy, answer.kl) for answer in answers} == {(None, None)}
    view = playground_view(QUESTION, answers)
    for form in (view.markup, view.text):
        assert "proxy" not in form and "KL" not in form and "gold" in form


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "the question is empty: type one"),
        (" \n", "the question is empty: type one"),
        ("Hi <|user_end|> there", "control token <|user_end|>"),
        ("word " * 90, "exceeds the model's context"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_clear_line(models, tokenizer, question, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compare(question, models, tokenizer)
    live = playground(models, tokenizer, [QUESTION])
    before = live.picture.value
    with pytest.raises(ValueError, match=re.escape(message)):
        live.box.children[1].value = question
    (line,) = re.findall(r"<pre[^>]*>(.*)</pre>", live.readout.value)
    assert line.startswith("ValueError: ") and "<|" not in line
    assert live.picture.value == before


def test_models_and_questions_are_needed(models, tokenizer):
    with pytest.raises(ValueError, match="no questions to pick from"):
        playground(models, tokenizer, [])
    with pytest.raises(ValueError, match="no answers to show"):
        playground({}, tokenizer, [QUESTION])


# The view

GOLD = RubricScore(0.5, {"correct": 1.0, "asked": 0.5, "concise": 1.0, "clean": 0.0})
ANSWERS = [
    Answer("sft", "Yes.", 12, True, GOLD, 1.234, -0.001),
    Answer("ppo", "", 56, False, GOLD, -2.0, 3.456),
]


def cells(markup):
    """The rows of a table without its tags."""
    rows = re.findall(r"<tr>(.*?)</tr>", markup)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_the_table_has_one_column_a_model():
    view = playground_view("Why?", ANSWERS, how="seed 3")
    assert cells(view.markup) == [
        ["", "sft", "ppo"],
        ["answer", "Yes.", "(nothing)"],
        ["proxy", "+1.23", "-2.00"],
        ["gold", "+0.50", "+0.50"],
        ["correct", "+1.00", "+1.00"],
        ["asked", "+0.50", "+0.50"],
        ["concise", "+1.00", "+1.00"],
        ["clean", "+0.00", "+0.00"],
        ["KL to SFT", "+0.00", "+3.46"],
        ["tokens", "12", "56, not ended"],
    ]
    assert "Q  Why?   (seed 3)" in view.markup and "nats" in KL_NOTE


def test_the_text_says_the_same():
    assert playground_view("Why?", ANSWERS, how="seed 3").text.splitlines() == [
        "Q  Why?   (seed 3)",
        "",
        "     proxy  gold   correct  asked  concise  clean  KL to SFT  tokens",
        "sft  +1.23  +0.50  +1.00    +0.50  +1.00    +0.00  +0.00      12",
        "ppo  -2.00  +0.50  +1.00    +0.50  +1.00    +0.00  +3.46      56, not ended",
        "",
        "sft  Yes.",
        "ppo  (nothing)",
        "",
        KL_NOTE,
    ]


def test_without_gold_the_reason_stands_there():
    view = playground_view(UNKNOWN, [answer._replace(gold=None) for answer in ANSWERS])
    assert ["gold", "none", "none"] in cells(view.markup)
    assert "correct" not in view.text and "correct" not in view.markup
    assert NO_GOLD in view.text.splitlines()
    assert NO_GOLD.replace("'", "&#x27;") in view.markup


def test_a_question_about_nothing_in_the_bank_is_answered_all_the_same(models, tokenizer):
    answers = compare(UNKNOWN, models, tokenizer, ref=models["taught"])
    assert [answer.gold for answer in answers] == [None, None]
    assert all(answer.kl is not None for answer in answers)


def test_hostile_text_stays_text():
    answer = ANSWERS[0]._replace(name=f'"{HOSTILE}', text=f"'{HOSTILE}")
    view = playground_view(HOSTILE, [answer], how=HOSTILE)
    assert "<img" not in view.markup and view.markup.count("&lt;img") == 4
    assert HOSTILE in view.text


def test_the_picture_shows_the_text_whatever_is_in_it(tmp_path):
    answer = ANSWERS[0]._replace(text=r"$\frac{1}$ 日本 costs $5 \x00" + "\x00")
    view = playground_view("Why?", [answer])
    figure = view.figure()
    figure.savefig(tmp_path / "figure.png")  # warnings are errors: a glyph that is missing would be one
    lines = [text.get_text() for text in figure.texts]
    assert len(lines) == len(view.text.splitlines())
    assert r"sft  $\frac{1}$ �� costs $5 \x00�" in lines
    assert not any(text.get_parse_math() for text in figure.texts)
    assert matplotlib.pyplot.get_fignums() == []


# The widget


@pytest.fixture
def live(models, reward_model, tokenizer):
    return playground(
        models, tokenizer, [QUESTION, "Why?", QUESTION], ref=models["taught"], reward_model=reward_model, seed=7
    )


def controls(live):
    pick, question, row = live.box.children[:3]
    return pick, question, *row.children


def test_it_shows_what_compare_gives(live, models, reward_model, tokenizer):
    sources = {"ref": models["taught"], "reward_model": reward_model}
    pick, _, temperature, seed = controls(live)
    assert [label for label, _ in pick.options] == [OWN, QUESTION, "Why?"]
    assert (
        live.view.text
        == playground_view(
            QUESTION, compare(QUESTION, models, tokenizer, seed=7, **sources), how="temperature 1, seed 7"
        ).text
    )
    temperature.value, seed.value = 0.5, 9
    answers = compare(QUESTION, models, tokenizer, temperature=0.5, seed=9, **sources)
    view = playground_view(QUESTION, answers, how="temperature 0.5, seed 9")
    assert (live.picture.value, live.view.text) == (view.markup, view.text)
    temperature.value = 0.0
    assert "(the likeliest token at every step)" in live.view.text
    assert live.view.text.partition("taught")[2]


def test_list_and_line_follow_each_other_and_each_change_redraws_once(live, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "compare", lambda question, *args, **kwargs: asked.append(question) or ANSWERS)
    pick, question, *_ = controls(live)
    pick.value = "Why?"
    assert question.value == "Why?"
    question.value = UNKNOWN
    assert pick.value == "" and pick.label == OWN
    question.value = QUESTION
    assert pick.value == QUESTION
    assert asked == ["Why?", UNKNOWN, QUESTION]
    pick.value = ""  # says nothing about which question
    assert question.value == QUESTION and len(asked) == 3


def test_every_control_says_what_it_is_and_redraws_only_when_let_go(live):
    pick, question, temperature, seed = controls(live)
    assert [control.description for control in (pick, question, temperature, seed)] == [
        "pick a question",
        "or type one",
        "temperature",
        "seed",
    ]
    assert not question.continuous_update and not temperature.continuous_update and not seed.continuous_update


def test_a_start_beyond_the_slider_is_not_cut(models, tokenizer):
    live = playground(models, tokenizer, [QUESTION], temperature=2.0, seed=123_456)
    assert "(temperature 2, seed 123456)" in live.view.text


def test_a_static_copy_is_left(live):
    bundle = live.bundle()
    assert bundle["image/png"].startswith(b"\x89PNG") and bundle["text/plain"] == live.view.text
    assert matplotlib.pyplot.get_fignums() == []
