"""The token lens: numbers by definition, colors and signs, the text table, controls, bad input, escaping."""

import math
import re

import matplotlib.pyplot
import pytest
import torch
from matplotlib.colors import to_hex

from picollm_lite.chat import encode_prompt, respond, user
from picollm_lite.kernels.advantages import gae, shape_rewards, whiten
from picollm_lite.models import RewardModel, ValueModel
from picollm_lite.ui.explorers.lens_data import lens_data
from picollm_lite.ui.explorers.token_lens import lens_view, token_lens, visible
from picollm_lite.ui.plots import BLUE, ORANGE

QUESTIONS = ["What is a token?", "Why?"]
HOSTILE = "<img src=x onerror=alert(1)>"
TOKENS = ["A", " cache", ".", "<|assistant_end|>"]
VALUES = {"log-ratio": [0.5, -1.0, 0.001, 0.25], "value": [2.0, 1.0, -0.5, 0.0]}


# From models to numbers


@pytest.fixture(scope="module")
def policy(taught):
    return taught()


@pytest.fixture(scope="module")
def ref(tiny_model):
    return tiny_model(seed=1)


@pytest.fixture(scope="module")
def reward_model(tiny_model, tokenizer):
    return RewardModel.from_policy(tiny_model(seed=2), tokenizer, seed=3)


@pytest.fixture(scope="module")
def critic(reward_model):
    return ValueModel.from_reward_model(reward_model)


def sampled(tokenizer, question, row, rollout):
    prompt = encode_prompt(tokenizer, user(question))
    width = rollout.response_mask.shape[1]
    return prompt, rollout.tokens[row, -width:][rollout.response_mask[row]].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_each_token_has_its_log_ratio_and_the_value_before_it(policy, ref, critic, tokenizer, temperature):
    said = respond(policy, tokenizer, QUESTIONS, seed=5, temperature=temperature)
    data = lens_data(QUESTIONS, policy, ref, tokenizer, critic=critic, seed=5, temperature=temperature)
    assert list(data) == QUESTIONS
    for row, (question, (tokens, values)) in enumerate(data.items()):
        prompt, answer = sampled(tokenizer, question, row, said.rollout)
        assert tokens == [tokenizer.decode([token]) for token in answer]
        assert list(values) == ["log-ratio", "value"]
        ids = torch.tensor([prompt + answer])
        logp, ref_logp = ((m(input_ids=ids).logits[0] / temperature).log_softmax(-1) for m in (policy, ref))
        state_values = critic(ids)[0]
        for t, token in enumerate(answer):
            before = len(prompt) + t - 1
            assert values["log-ratio"][t] == pytest.approx((logp - ref_logp)[before, token].item(), abs=1e-3)
            assert values["value"][t] == pytest.approx(state_values[before].item(), abs=1e-3)


def test_advantages_are_those_of_a_ppo_step(policy, ref, critic, reward_model, tokenizer):
    settings = {"kl_coef": 0.3, "lam": 0.9, "unfinished_score": None}
    data = lens_data(QUESTIONS, policy, ref, tokenizer, critic=critic, reward_model=reward_model, seed=5, **settings)
    without = lens_data(QUESTIONS, policy, ref, tokenizer, critic=critic, seed=5)
    texts = respond(policy, tokenizer, QUESTIONS, seed=5).texts
    lengths = [len(tokens) for tokens, _ in data.values()]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ratio, value = (torch.zeros(mask.shape) for _ in range(2))
    for row, (question, (tokens, values)) in enumerate(data.items()):
        assert (tokens, values["value"]) == (without[question][0], without[question][1]["value"])
        assert values["log-ratio"] == without[question][1]["log-ratio"]
        ratio[row, : len(tokens)], value[row, : len(tokens)] = (
            torch.tensor(values[name]) for name in ("log-ratio", "value")
        )
    scores = reward_model.score(QUESTIONS, texts)
    rewards = shape_rewards(scores, ratio, torch.zeros(mask.shape), mask, kl_coef=0.3)
    wanted = whiten(gae(rewards, value, mask, lam=0.9)[0], mask)  # over both answers together
    for row, (tokens, values) in enumerate(data.values()):
        assert values["advantage"] == pytest.approx(wanted[row, : len(tokens)].tolist(), abs=1e-4)
    everything = [number for _, values in data.values() for number in values["advantage"]]
    assert sum(everything) == pytest.approx(0.0, abs=1e-3)


def test_the_reference_against_itself_is_level(ref, tokenizer):
    ((tokens, values),) = lens_data(QUESTIONS[:1], ref, ref, tokenizer).values()
    assert list(values) == ["log-ratio"] and len(tokens) == len(values["log-ratio"])
    assert values["log-ratio"] == pytest.approx([0.0] * len(tokens), abs=1e-3)


def test_what_cannot_be_worked_out_is_said(policy, ref, reward_model, tokenizer):
    with pytest.raises(ValueError, match="advantages need a critic"):
        lens_data(QUESTIONS, policy, ref, tokenizer, reward_model=reward_model)
    with pytest.raises(ValueError, match="a question comes twice"):
        lens_data(["Why?", "Why?"], policy, ref, tokenizer)
    with pytest.raises(ValueError, match="control token"):
        lens_data(["Why <|bos|>?"], policy, ref, tokenizer)


# The view

TOKEN = re.compile(
    r'<span role="img" tabindex="0" aria-label="([^"]*)" title="([^"]*)" style="[^"]*">'
    r'<span style="[^"]*background:([^;]*);border-bottom:3px (\w+) ([^;"]*)">([^<]*)</span>'
    r"<span[^>]*>([^<]*)</span></span>"
)


def test_a_token_is_colored_underlined_and_numbered_by_its_sign():
    found = TOKEN.findall(lens_view(TOKENS, VALUES, "log-ratio").markup)
    assert [(line, color, token, number) for *_, line, color, token, number in found] == [
        ("solid", BLUE, "A", "+0.50"),
        ("dashed", ORANGE, "·cache", "-1.00"),
        ("solid", "transparent", ".", "+0.00"),  # what is shown as 0 has no sign
        ("solid", BLUE, "&lt;|assistant_end|&gt;", "+0.25"),
    ]
    backgrounds = [re.findall(r"[\d.]+", background) for _, _, background, *_ in found]
    assert [float(alpha) for *_, alpha in backgrounds] == pytest.approx([0.225, 0.45, 0.0, 0.1125], abs=0.006)
    assert backgrounds[0][:3] == [str(part) for part in bytes.fromhex(BLUE[1:])]
    assert backgrounds[1][:3] == [str(part) for part in bytes.fromhex(ORANGE[1:])]


def test_the_number_is_there_for_the_keyboard_the_mouse_and_the_ear():
    found = TOKEN.findall(lens_view(TOKENS, VALUES, "log-ratio").markup)
    assert [label for label, *_ in found][:2] == [
        "token &#x27;A&#x27;, log-ratio +0.50",
        "token &#x27;·cache&#x27;, log-ratio -1.00",
    ]
    assert all(label == title for label, title, *_ in found)


def test_the_readout_lists_every_quantity_the_shown_one_first():
    assert lens_view(TOKENS, VALUES, "value", title="What?").text.splitlines() == [
        "What?  (value of 4 tokens)",
        "",
        "token              value  log-ratio",
        "A                  +2.00  +0.50",
        "·cache             +1.00  -1.00",
        ".                  -0.50  +0.00",
        "<|assistant_end|>  +0.00  +0.25",
    ]
    assert lens_view(TOKENS, VALUES, "value").text.startswith("value of 4 tokens\n")


@pytest.mark.parametrize(
    ("token", "shown"), [(" a  b ", "·a··b·"), ("\n", "↵"), ("\t", "⇥"), ("\u00a0", "·"), ("", "∅"), ("a·", "a·")]
)
def test_whitespace_is_seen(token, shown):
    assert visible(token) == shown


def test_all_zero_is_level_and_not_divided_by():
    found = TOKEN.findall(lens_view(["a", "b"], {"value": [0.0, -0.0001]}, "value").markup)
    assert [(color, number) for *_, color, _, number in found] == [("transparent", "+0.00")] * 2


@pytest.mark.parametrize(
    ("tokens", "values", "shown", "message"),
    [
        ([], {"value": []}, "value", "no tokens to show"),
        (["a"], {"value": [1.0]}, "log-ratio", "no quantity 'log-ratio': there is value"),
        (["a"], {"value": [1.0, 2.0]}, "value", "expected one value a token, got 2 for 1 tokens"),
        (["a"], {"value": [1.0], "log-ratio": []}, "value", "expected one log-ratio a token, got 0 for 1 tokens"),
        (["a", "b"], {"value": [1.0, math.nan]}, "value", "value of token 2, 'b', is nan: expected a number"),
    ],
)
def test_input_that_does_not_fit_is_refused(tokens, values, shown, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lens_view(tokens, values, shown)


def test_hostile_text_stays_text():
    quote = f"\"'>{HOSTILE}"
    view = lens_view([quote], {HOSTILE: [1.0]}, HOSTILE, title=quote)
    assert "<img" not in view.markup
    (token,) = TOKEN.findall(view.markup)
    assert token[5] == "&quot;&#x27;&gt;&lt;img·src=x·onerror=alert(1)&gt;"
    assert HOSTILE in view.text


def test_the_picture_has_the_same_tokens_colors_and_lines(tmp_path):
    figure = lens_view([*TOKENS, "$x$", "日"], {"value": [0.5, -1.0, 0.0, 0.25, 1.0, 1.0]}, "value").figure()
    figure.savefig(tmp_path / "figure.png")  # warnings are errors: a glyph that is missing would be one
    boxes = {text.get_text(): text.get_bbox_patch() for text in figure.texts if text.get_bbox_patch()}
    assert list(boxes) == ["A", "·cache", ".", "<|assistant_end|>", "$x$", "�"]
    assert to_hex(boxes["A"].get_facecolor()).upper() == BLUE and boxes["A"].get_linestyle() == "solid"
    assert to_hex(boxes["·cache"].get_facecolor()).upper() == ORANGE and boxes["·cache"].get_linestyle() == "dashed"
    assert [box.get_facecolor()[3] for box in boxes.values()] == pytest.approx([0.225, 0.45, 0, 0.1125, 0.45, 0.45])
    numbers = [text.get_text() for text in figure.texts if re.fullmatch(r"[+-][\d.]+", text.get_text())]
    assert numbers == ["+0.50", "-1.00", "+0.00", "+0.25", "+1.00", "+1.00"]
    assert matplotlib.pyplot.get_fignums() == []


def test_tokens_of_the_picture_do_not_overlap():
    tokens = [" language", "s", ".", " a"] * 30
    figure = lens_view(tokens, {"value": [-10.5] * len(tokens)}, "value").figure()
    boxes = [text.get_window_extent() for text in figure.texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


# The widget


@pytest.fixture
def live():
    return token_lens({"sft": (TOKENS, {"log-ratio": VALUES["log-ratio"]}), "ppo": (TOKENS[:3], short())})


def short():
    return {name: numbers[:3] for name, numbers in VALUES.items()}


def test_answer_and_quantity_are_picked(live):
    answer, quantity = live.box.children[:2]
    assert (answer.description, quantity.description) == ("answer", "color by")
    assert live.view.text.startswith("sft  (log-ratio of 4 tokens)")
    answer.value = "ppo"
    assert live.picture.value == lens_view(TOKENS[:3], short(), "log-ratio", title="ppo").markup
    quantity.value = "value"
    view = lens_view(TOKENS[:3], short(), "value", title="ppo")
    assert (live.picture.value, live.view.text) == (view.markup, view.text)


def test_only_what_an_answer_has_is_offered_and_the_pick_stays_where_it_can(live):
    answer, quantity = live.box.children[:2]
    assert quantity.options == ("log-ratio",)
    answer.value = "ppo"
    assert quantity.options == ("log-ratio", "value")
    quantity.value = "value"
    answer.value = "sft"
    assert (quantity.options, quantity.value) == (("log-ratio",), "log-ratio")
    assert live.view.text.startswith("sft  (log-ratio of 4 tokens)")


def test_a_pick_is_kept_from_answer_to_answer():
    reordered = dict(reversed(short().items()))
    live = token_lens({"a": (TOKENS[:3], short()), "b": (TOKENS[:3], reordered)})
    answer, quantity = live.box.children[:2]
    answer.value = "b"
    assert (quantity.options, quantity.value) == (("value", "log-ratio"), "log-ratio")
    quantity.value = "value"
    answer.value = "a"
    assert quantity.value == "value" and live.view.text.startswith("a  (value of 3 tokens)")


def test_an_answer_that_does_not_fit_is_one_line():
    live = token_lens({"good": (["a"], {"value": [1.0]}), "bad": (["a"], {"value": [math.inf]})})
    with pytest.raises(ValueError, match="expected a number"):
        live.box.children[0].value = "bad"
    assert "ValueError: value of token 1, &#x27;a&#x27;, is inf: expected a number" in live.readout.value
    with pytest.raises(ValueError, match="no answers to look at"):
        token_lens({})


def test_a_static_copy_is_left(live):
    bundle = live.bundle()
    assert bundle["image/png"].startswith(b"\x89PNG") and bundle["text/plain"] == live.view.text
    assert matplotlib.pyplot.get_fignums() == []
