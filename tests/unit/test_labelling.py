"""The labeling widget: what is saved and when, what a crash costs, and who agrees. Clicks and keys go in-process."""

import json
import os
import re
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pytest

from picollm_lite.collection import label_store
from picollm_lite.collection.label_store import add_label, read_labels, remove_label, undecided_path
from picollm_lite.data import load_preferences
from picollm_lite.ui.label_view import Agreement, Choice, Judged, Labelling, agreement, labelling_view, rubric_markup
from picollm_lite.ui.labelling import label_pairs
from picollm_lite.world.annotators import PANEL, Annotator
from picollm_lite.world.asks import read as read_question
from picollm_lite.world.asks import reference_answer
from picollm_lite.world.rubric import WEIGHTS

QUESTION = "What is perplexity?"
GOOD = reference_answer(read_question(QUESTION))
PRAISE = f"What a great question! {GOOD}"
WRONG = "Perplexity is a kind of cheese."
EVIL = "<img src=x onerror=alert(1)> & \"quotes\" 'too'"


def message(role, content):
    return [{"role": role, "content": content}]


def pair(number, chosen=GOOD, rejected=WRONG, prompt=QUESTION):
    return {
        "id": f"p{number}",
        "prompt": message("user", prompt),
        "chosen": message("assistant", chosen),
        "rejected": message("assistant", rejected),
        "annotator": "careful",
        "gold_chosen": 2.0,
        "gold_rejected": -3.0,
    }


PAIRS = [pair(n) for n in range(6)]


class Desk:
    """A labeler at the widget: presses keys, clicks, reads what is there."""

    def __init__(self, path, pairs=PAIRS, **settings):
        self.path = Path(path)
        self.live = label_pairs(pairs, path, **settings)
        row, self.key, self.rubric = self.live.box.children[:3]
        self.buttons = {button.description: button for button in row.children}

    def type(self, letters):
        for letter in letters:
            self.key.value = letter
            assert self.key.value == ""
        return self

    @property
    def text(self):
        return self.live.view.text

    def rows(self, undecided=False):
        path = undecided_path(self.path) if undecided else self.path
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine" / "labels.jsonl"


# What is saved


def test_each_letter_is_one_row_of_one_of_the_two_files(path):
    desk = Desk(path)
    sides = {c["id"]: c["shown_first"] for c in desk.type("abtsa").rows() + desk.rows(undecided=True)}
    assert [(row["id"], row["label"]) for row in desk.rows()] == [("p0", "a"), ("p1", "b"), ("p4", "a")]
    assert [(row["id"], row["label"]) for row in desk.rows(undecided=True)] == [("p2", "tie"), ("p3", "skip")]
    for row in desk.rows():
        picked_source_chosen = (row["label"] == "a") == (sides[row["id"]] == "chosen")
        assert row["chosen"] == message("assistant", GOOD if picked_source_chosen else WRONG)
        assert row["rejected"] == message("assistant", WRONG if picked_source_chosen else GOOD)
        assert (row["prompt"], row["annotator"]) == (message("user", QUESTION), "me")
    assert undecided_path(path).name == "labels_undecided.jsonl"


def test_the_file_is_a_preference_file_after_every_key(path):
    desk = Desk(path)
    for number, letter in enumerate("abatbsu", start=1):
        desk.type(letter)
        rows = load_preferences(path)
        assert rows.column_names[:4] == ["id", "prompt", "chosen", "rejected"]
        assert len(rows) == len(desk.rows()) <= number


def test_buttons_do_what_keys_do(path, tmp_path):
    keys = Desk(tmp_path / "keys.jsonl").type("abtsu")
    mouse = Desk(path)
    for name in ("A is better", "B is better", "tie", "skip", "undo"):
        mouse.buttons[name].click()
    assert mouse.rows() == keys.rows()
    assert mouse.rows(undecided=True) == keys.rows(undecided=True)
    assert [row["label"] for row in mouse.rows(undecided=True)] == ["tie"]


def test_what_is_on_the_screen_as_a_is_what_a_chooses(path):
    desk = Desk(path)
    for _ in PAIRS:
        first, second = (desk.live.view.markup.index(text) for text in (GOOD, WRONG))
        desk.type("a")
        assert desk.rows()[-1]["chosen"] == message("assistant", GOOD if first < second else WRONG)


def test_the_order_is_random_but_for_a_seed_the_same(path, tmp_path):
    pairs = [pair(n) for n in range(40)]

    def orders(name, seed, among=pairs):
        desk = Desk(tmp_path / name, among, seed=seed).type("a" * len(among))
        return {row["id"]: row["shown_first"] for row in desk.rows()}

    first = orders("1.jsonl", 0)
    assert first == orders("2.jsonl", 0)
    assert first != orders("3.jsonl", 1)
    assert 10 < list(first.values()).count("chosen") < 30
    half = orders("4.jsonl", 0, pairs[20:])
    assert half == {pair_id: first[pair_id] for pair_id in half}, "a pair's order hangs on its id, not on its neighbors"


def test_a_label_is_forced_to_the_disk(path, monkeypatch):
    synced = []
    monkeypatch.setattr(label_store.os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    Desk(path).type("a")
    assert synced == [path.stat().st_size]


def test_texts_stay_readable_in_the_file(path):
    Desk(path, [pair(0, chosen="Größe „3 €“")]).type("a")
    assert '"content": "Größe „3 €“"' in path.read_text(encoding="utf-8")


# Undo and going on


def test_undo_takes_back_the_newest_labels_of_this_session_only(path):
    Desk(path).type("ab")
    before = path.read_bytes()
    desk = Desk(path)
    assert desk.buttons["undo"].disabled
    assert "othing to undo" in desk.type("u").text
    desk.type("ta")
    assert not desk.buttons["undo"].disabled
    assert desk.type("u").text.startswith("Took back the label of p3")
    assert (path.read_bytes(), len(desk.rows(undecided=True))) == (before, 1)
    assert desk.type("u").text.startswith("Took back the label of p2")
    assert not undecided_path(path).exists()
    assert "othing to undo" in desk.type("u").text
    assert (path.read_bytes(), desk.buttons["undo"].disabled) == (before, True)
    assert "Pair 3 of 6" in desk.text


@pytest.mark.parametrize("rest", [b"", b"\n"])
def test_a_file_whose_last_label_is_undone_goes(path, rest):
    desk = Desk(path).type("a")
    path.write_bytes(path.read_bytes() + rest)
    desk.type("u")
    assert list(path.parent.iterdir()) == []


def test_a_crash_while_undoing_leaves_the_file_as_it_was(path, monkeypatch):
    desk = Desk(path).type("ab")
    before = path.read_bytes()

    def crash(self, target):
        raise OSError("the power went")

    monkeypatch.setattr(label_store.Path, "replace", crash)
    with pytest.raises(OSError, match="the power went"):
        desk.key.value = "u"
    assert "OSError: the power went" in desk.live.readout.value
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert "Pair 2 of 6" in desk.type("u").text


def test_a_new_call_goes_on_where_the_last_one_stopped(path):
    Desk(path, seed=3).type("ats")
    desk = Desk(path, seed=4)
    assert "Pair 4 of 6. So far: A 1, B 0, tie 1, skip 1. File: labels.jsonl" in desk.text
    assert "n = 2" in desk.text
    desk.type("b")
    assert [row["id"] for row in desk.rows()] == ["p0", "p3"]


def test_agreement_goes_by_the_order_that_was_shown_then(path):
    Desk(path, seed=0).type("aaaaaa")
    texts = {Desk(path, seed=seed).text for seed in range(6)}
    assert len(texts) == 1


def test_two_labelers_share_a_file_without_seeing_each_other(path):
    Desk(path, labeler="ann").type("ab")
    bo = Desk(path, labeler="bo")
    assert "Pair 1 of 6" in bo.text
    bo.type("aau")
    assert [(row["annotator"], row["id"]) for row in bo.rows()] == [("ann", "p0"), ("ann", "p1"), ("bo", "p0")]


def test_an_older_widget_on_the_same_file_does_not_label_a_pair_twice(path):
    old, new = Desk(path), Desk(path)
    new.type("a")
    assert "changed from elsewhere: nothing was saved" in old.type("b").text
    assert [row["label"] for row in new.rows()] == ["a"]
    assert "Pair 2 of 6" in old.text
    assert [row["id"] for row in old.type("b").rows()] == ["p0", "p1"]


def test_at_the_end_only_undo_is_left(path):
    desk = Desk(path).type("abtsab")
    assert "All 6 pairs labeled. So far: A 2, B 2, tie 1, skip 1." in desk.text
    assert {name: button.disabled for name, button in desk.buttons.items()} == {
        "A is better": True,
        "B is better": True,
        "tie": True,
        "skip": True,
        "undo": False,
    }
    assert "othing is left to label" in desk.type("a").text
    assert len(desk.rows()) == 4
    desk.type("u")
    assert "Pair 6 of 6" in desk.text
    assert not any(button.disabled for button in desk.buttons.values())


def test_no_label_takes_the_keyboard_away(path, monkeypatch):
    """A new copy in the notebook would: the letters typed next would be JupyterLab's commands."""
    monkeypatch.setattr("picollm_lite.ui.live.Live.keep", lambda live: pytest.fail("the widget was displayed anew"))
    Desk(path).type("abtsab")


# Crashes


ROW = {"id": "p0", "prompt": PAIRS[0]["prompt"], "annotator": "me", "shown_first": "chosen"}
ODD = message("assistant", "Größe „3 €“"), message("assistant", '\u2028 \\ " {}\n[1')


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("label", ["a", "tie"])
def test_a_crash_at_any_byte_of_a_label_costs_that_label_at_most(path, before, label, monkeypatch):
    monkeypatch.setattr(label_store.os, "fsync", lambda number: None)  # a thousand of them take seconds
    rows = [ROW | {"id": f"p{n}", "label": label, "chosen": ODD[0], "rejected": ODD[1]} for n in range(before + 1)]
    for row in rows:
        add_label(path, row)
    file = path if label == "a" else undecided_path(path)
    lines = file.read_bytes().splitlines(keepends=True)
    kept, last = b"".join(lines[:-1]), lines[-1]
    assert len(lines) == before + 1
    for size in range(len(last) + 1):
        file.write_bytes(kept + last[:size])
        labels = read_labels(path, "me")
        complete = size >= len(last) - 1  # all but the end of the line
        assert list(labels.by_id) == [row["id"] for row in rows[: before + complete]]
        assert bool(labels.note) == (not complete and size > 0)
        assert read_labels(path, "me") == labels._replace(note="")
        if not complete:
            add_label(path, rows[-1])
        assert file.read_bytes() == kept + last


@pytest.mark.parametrize("size", [0, 1, 40, -2])
@pytest.mark.parametrize("letters", ["aba", "tbs"])
def test_the_widget_asks_again_for_what_a_crash_cut_off(path, letters, size):
    Desk(path).type(letters)
    file = path if letters[-1] == "a" else undecided_path(path)
    *kept, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(kept) + last[:size])
    desk = Desk(path)
    assert "Pair 3 of 6" in desk.text
    told = f"Cut off the last line of {file.name}, half written when an earlier session broke off\n"
    assert desk.text.startswith("Pair" if size == 0 else told)
    assert [row["id"] for row in desk.type("a").rows()][-1] == "p2"
    assert load_preferences(path)["id"] == [row["id"] for row in desk.rows()]


def test_a_write_that_stops_half_way_is_told_and_can_be_tried_again(path, monkeypatch):
    desk = Desk(path).type("ab")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(label_store.os, "fsync", lambda number: os.ftruncate(number, len(before) + 30) or full())

        def full():
            raise OSError("no space left on device")

        with pytest.raises(OSError, match="no space left"):
            desk.key.value = "a"
    assert "OSError: no space left on device" in desk.live.readout.value
    assert desk.key.value == ""
    assert len(path.read_bytes()) == len(before) + 30
    text = desk.type("b").text
    assert text.startswith(
        "Cut off the last line of labels.jsonl, half written when an earlier session broke off; saved B"
    )
    assert [(row["id"], row["label"]) for row in desk.rows()] == [("p0", "a"), ("p1", "b"), ("p2", "b")]


def test_a_crash_between_two_labels_costs_nothing(path):
    Desk(path).type("ab")
    (path.parent / ".labels.jsonl.part").write_bytes(b'{"id": "p')  # what a crash within undo leaves
    assert "Pair 3 of 6" in Desk(path).text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken\n", r"labels\.jsonl:2: not valid JSON"),
        (b"\xff\n", r"labels\.jsonl:2: not UTF-8"),
        (b"[1]\n", r"labels\.jsonl:2: no label of this widget"),
        (
            json.dumps(pair(9) | {"label": "a", "shown_first": "chosen", "chosen": []}).encode() + b"\n",
            "labels.jsonl:2",
        ),
        (json.dumps(pair(9)).encode() + b"\n", r"labels\.jsonl:2: no label of this widget.*use another file"),
    ],
)
def test_a_malformed_line_elsewhere_names_file_and_line_and_is_left_alone(path, line, message):
    Desk(path).type("ab")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + second)
    with pytest.raises(ValueError, match=message):
        label_pairs(PAIRS, path)
    assert path.read_bytes() == first + line + second


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"label": "tie"},
            "labels.jsonl:2: expected a label out of a, b and `shown_first` out of a, b, chosen, rejected",
        ),
        ({"shown_first": "left"}, "labels.jsonl:2: expected a label out of a, b .*got 'a' and 'left'"),
        ({"shown_first": None}, "got 'a' and None"),
        ({}, "labels.jsonl:2: a second label for pair p0 by me: take one out"),
    ],
)
def test_a_row_of_another_kind_is_refused(path, row, message):
    Desk(path).type("a")
    first = json.loads(path.read_text(encoding="utf-8"))
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(first | row) + "\n")
    with pytest.raises(ValueError, match=message):
        read_labels(path, "me")


@pytest.mark.parametrize("data", [b"my notes\nwithout an end", b'[1]\n{"a": 1}'])
def test_a_file_that_is_not_ours_is_not_mended(path, data):
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"labels\.jsonl:1: "):
        label_pairs(PAIRS, path)
    assert path.read_bytes() == data


def test_the_course_file_is_no_place_for_labels(path):
    path.parent.mkdir()
    path.write_text(json.dumps(pair(0)) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"labels\.jsonl:1: no label of this widget"):
        label_pairs(PAIRS, path)


def test_an_error_that_comes_up_later_is_shown(path):
    desk = Desk(path).type("a")
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"labels\.jsonl:1"):
        desk.key.value = "b"
    assert "ValueError" in desk.live.readout.value
    assert "labels.jsonl:1" in desk.live.readout.value


def test_lines_of_others_are_kept_byte_for_byte(path):
    add_label(path, {"id": "p0", "annotator": "me", "label": "tie", "shown_first": "chosen"})
    file = undecided_path(path)
    odd = b'{"shown_first":"chosen",  "id":"p7","label":"skip","annotator":"bo"}\r\n\n'
    file.write_bytes(odd + file.read_bytes())
    remove_label(path, "p0", "me")
    assert file.read_bytes() == odd


# Keys


def test_a_key_that_comes_from_the_browser_is_answered_by_an_empty_field(path, monkeypatch):
    desk, sent = Desk(path), []
    monkeypatch.setattr(widgets.Text, "send_state", lambda self, key=None: sent.append((key, self.value)))
    for letter in "aab":
        desk.key.set_state({"value": letter})
    assert sent == [("value", "")] * 3
    assert [row["label"] for row in desk.rows()] == ["a", "a", "b"]


@pytest.mark.parametrize("letters", ["A", " a ", "a "])
def test_case_and_spaces_do_not_matter(path, letters):
    desk = Desk(path)
    desk.key.value = letters
    assert [row["label"] for row in desk.rows()] == ["a"]


@pytest.mark.parametrize("letters", ["ab", "aa", "x", "tie", "<b>"])
def test_anything_but_one_of_the_letters_saves_nothing_and_says_so(path, letters):
    desk = Desk(path)
    desk.key.value = letters
    assert desk.key.value == ""
    assert not path.exists()
    assert desk.text.startswith(f"'{letters}' did nothing: one letter at a time")
    assert "<b>" not in desk.live.readout.value


def test_a_space_is_nothing_at_all(path):
    desk = Desk(path)
    before = desk.text
    desk.key.value = " "
    assert (desk.key.value, desk.text, path.exists()) == ("", before, False)


def test_every_control_says_what_it_is(path):
    desk = Desk(path)
    assert list(desk.buttons) == ["A is better", "B is better", "tie", "skip", "undo"]
    assert desk.key.description == "key: a, b, t (tie), s (skip), u (undo)"
    assert desk.key.continuous_update


# Pairs


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "expected pairs to label, got none"),
        ([pair(1), pair(1)], "expected a different `id` for every pair"),
        ([pair(0) | {"id": None}], "pair 0: expected a text as `id`, got None"),
        ([pair(0), {"id": "x"}], "pair 1: expected a list of messages as `prompt`, got NoneType"),
        ([pair(0) | {"chosen": "text"}], "pair 0: expected a list of messages as `chosen`, got str"),
        ([pair(0, rejected=" ")], "pair 0, rejected: message 1 .* is empty"),
    ],
)
def test_pairs_that_cannot_be_shown_are_refused(path, pairs, message):
    with pytest.raises(ValueError, match=message):
        label_pairs(pairs, path)


def test_rows_of_load_preferences_are_pairs(tmp_path, path):
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(pair(n)) + "\n" for n in range(3)), encoding="utf-8")
    desk = Desk(path, load_preferences(source)).type("aaa")
    assert len(load_preferences(path)) == 3
    assert "All 3 pairs labeled" in desk.text


# Agreement

BY_GOLD = Annotator("by_gold", gold=1.0)
AGAINST = Annotator("against", gold=-1.0)
BY_FLATTERY = Annotator("by_flattery", gold=0.0, per_flattery=1.0)


def test_agreement_by_hand():
    judged = [
        Judged(QUESTION, GOOD, WRONG, "a"),  # by_gold does so too, against does not, by_flattery does not care
        Judged(QUESTION, GOOD, PRAISE, "b"),  # only by_gold does not
        Judged(QUESTION, GOOD, PRAISE, "tie"),  # half for each
        Judged(QUESTION, WRONG, GOOD, "b"),
        Judged(QUESTION, GOOD, WRONG, "a"),
    ]
    assert agreement(judged, (BY_GOLD, AGAINST, BY_FLATTERY)) == [
        Agreement("by_gold", (1 + 0 + 0.5 + 1 + 1) / 5, 5),
        Agreement("against", (0 + 1 + 0.5 + 0 + 0) / 5, 5),
        Agreement("by_flattery", (0.5 + 1 + 0.5 + 0.5 + 0.5) / 5, 5),
    ]
    assert [row.annotator for row in agreement(judged)] == [annotator.name for annotator in PANEL]


def test_agreement_needs_labels():
    with pytest.raises(ValueError, match="at least one label"):
        agreement([])


def test_agreement_is_hidden_before_the_first_label_and_after_skips(path):
    desk = Desk(path)
    for _ in range(2):
        for shown in (desk.text, desk.live.view.markup):
            assert not any(annotator.name in shown for annotator in PANEL)
        desk.type("s")
    desk.type("t")
    assert "Agreement on n = 1: careful 50%, hurried 50%" in desk.text
    assert "careful</th>" in desk.live.view.markup


def test_pairs_about_something_else_are_counted_out_aloud(path):
    desk = Desk(path, [pair(0, prompt="How do I boil an egg?"), pair(1), pair(2)]).type("a")
    assert "Agreement" not in desk.text
    assert "Left out of the agreement: 1," in desk.text
    assert "Agreement on n = 1" in desk.type("a").text


def test_conversations_are_shown_and_saved_but_not_judged(path):
    row = pair(0)
    row["prompt"] = [*message("system", "Be brief."), *message("user", QUESTION)]
    desk = Desk(path, [row, pair(1)])
    assert f"system: Be brief.\nuser: {QUESTION}" in desk.live.view.markup
    assert "Left out of the agreement: 1," in desk.type("a").text
    assert desk.rows()[0]["prompt"] == row["prompt"]


# What is seen


def choice(number, **texts):
    row = pair(number, **texts)
    return Choice(row["id"], row["prompt"], row["chosen"], row["rejected"], "chosen")


def test_no_gold_is_shown(path):
    desk = Desk(path).type("ab")
    for shown in (desk.text, desk.live.view.markup, desk.rubric.value):
        assert "gold" not in shown.lower()
    assert not any(key.startswith("gold") for row in desk.rows() for key in row)


def test_the_rubric_has_every_criterion_with_its_weight():
    markup = rubric_markup()
    assert markup.startswith("<details><summary>")
    for name, weight in WEIGHTS.items():
        assert re.search(rf">{name}</th><td [^>]*>{weight:g}</td>", markup)


def test_hostile_texts_stay_texts(tmp_path):
    pairs = [pair(n, chosen=EVIL, rejected=f"</section>{EVIL}", prompt=f"{EVIL} perplexity?") for n in range(2)]
    pairs[0]["id"] = pairs[0]["id"] + EVIL
    desk = Desk(tmp_path / f"{EVIL[1:4]}<b>.jsonl", pairs, labeler=EVIL)
    for _ in range(2):
        for shown in (desk.live.picture.value, desk.live.readout.value):
            assert "<img" not in shown
            assert "<b>.jsonl" not in shown
        assert desk.live.picture.value.count("</section>") == 2
        assert desk.live.picture.value.count("&lt;img src=x onerror=alert(1)&gt; &amp; &quot;quotes&quot;") == 3
        desk.type("a")
    assert desk.rows()[0]["annotator"] == EVIL


def drawn_lines(figure):
    return [text.get_text() for text in figure.texts]


def test_a_dollar_sign_is_no_mathematics_in_the_static_picture():
    view = labelling_view(
        Labelling([choice(0, chosen="It costs $5_$ {x", rejected="^$\\frac$ " + "long " * 99)], {}, "f")
    )
    figure = view.figure()
    figure.savefig(os.devnull, format="png")
    lines = drawn_lines(figure)
    assert "A: It costs $5_$ {x" in lines
    assert max(map(len, lines)) <= 92


def test_the_static_picture_says_what_the_widget_says():
    choices = [choice(0), choice(1, chosen="First answer.", rejected="Second answer.")]
    state = Labelling(choices, {"p0": "a"}, "f.jsonl")
    drawn = "\n".join(drawn_lines(labelling_view(state).figure()))
    for said in ("Pair 2 of 2", f"Question: {QUESTION}", "A: First answer.", "B: Second answer.", "careful: 100% of 1"):
        assert said in drawn
    done = drawn_lines(labelling_view(Labelling(choices[:1], {"p0": "a"}, "f.jsonl")).figure())
    assert done[0] == "All 1 pairs labeled"
    assert not any("Question" in line for line in done)


def test_no_pyplot_figure_is_left(path):
    Desk(path).type("a").live.bundle()
    assert plt.get_fignums() == []
