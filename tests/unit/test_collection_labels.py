"""Votes of the panel, of a spreadsheet and of the widget: who labels what, and what comes back."""

import csv
import json
import math
from collections import Counter

import pytest

from picollm_lite.chat import user
from picollm_lite.collection.labels import all_votes, panel_votes, read_csv, widget_votes, write_csv
from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.ui.labelling import label_pairs
from picollm_lite.world.annotators import PANEL, Annotator
from picollm_lite.world.asks import read, reference_answer

QUESTION = "What is perplexity?"
GOOD = reference_answer(read(QUESTION))
WRONG = "Perplexity is a kind of cheese."
SURE = Annotator("sure", gold=100.0, share=0.5)
AGAINST = Annotator("against", gold=-100.0, share=0.3)
SELDOM = Annotator("seldom", gold=100.0, share=0.2)
NEVER = Annotator("never", gold=100.0, share=0.0)


def message(text):
    return [{"role": "assistant", "content": text}]


def pair(number=0, a=GOOD, b=WRONG, prompt=QUESTION):
    return AnswerPair(f"pair-{number:05d}", user(prompt), message(a), message(b))


# The panel


def test_a_vote_names_the_side_that_its_annotator_prefers():
    pairs = [pair(0), pair(1, a=WRONG, b=GOOD)]
    votes = all_votes(pairs, (SURE, AGAINST))
    assert [vote[:3] for vote in votes] == [
        ("pair-00000", "sure", "a"),
        ("pair-00000", "against", "b"),
        ("pair-00001", "sure", "b"),
        ("pair-00001", "against", "a"),
    ]


def test_every_annotator_labels_every_pair_as_often_as_asked():
    votes = all_votes([pair(n) for n in range(3)], repeats=4)
    assert Counter((vote.pair, vote.annotator) for vote in votes) == {
        (f"pair-{n:05d}", annotator.name): 4 for n in range(3) for annotator in PANEL
    }
    even = Annotator("even", gold=0.0)  # tosses a coin anew each time
    assert {vote.label for vote in all_votes([pair()], [even], repeats=30)} == {"a", "b"}


def test_who_labels_is_drawn_by_share():
    """600 pairs: half, three tenths and a fifth of them, within 4 standard deviations; nobody without a share."""
    votes = panel_votes([pair(n) for n in range(600)], (SURE, AGAINST, SELDOM, NEVER))
    drawn = Counter(vote.annotator for vote in votes)
    assert len(votes) == 600 and set(drawn) == {"sure", "against", "seldom"}
    for annotator in (SURE, AGAINST, SELDOM):
        p = annotator.share
        assert abs(drawn[annotator.name] - 600 * p) < 4 * math.sqrt(600 * p * (1 - p))


def test_nobody_labels_a_pair_twice_before_all_have():
    """Seven votes of three annotators: two each, and one of them a third."""
    for votes, counts in ((2, [1, 1]), (3, [1, 1, 1]), (7, [2, 2, 3])):
        for n in range(10):
            given = panel_votes([pair(n)], (SURE, AGAINST, SELDOM, NEVER), votes=votes)
            assert sorted(Counter(vote.annotator for vote in given).values()) == counts
            assert len({vote.annotator for vote in given[:3]}) == min(votes, 3)


def test_either_answer_may_be_read_first():
    """Of 200 the half, give or take 4 x 7; and it changes no label here, where all are sure."""
    votes = panel_votes([pair(n) for n in range(200)], [SURE])
    assert 72 <= [vote.shown_first for vote in votes].count("a") <= 128
    assert {vote.label for vote in votes} == {"a"}


def test_the_votes_on_a_pair_hang_on_its_id_and_the_seed():
    pairs = [pair(n) for n in range(40)]
    for give in (panel_votes, all_votes):
        votes = give(pairs)
        assert votes == give(pairs, seed=0) != give(pairs, seed=1)
        last = [vote for vote in votes if vote.pair >= "pair-00030"]
        assert last == give(pairs[30:])
    assert [vote for n, vote in enumerate(panel_votes(pairs, votes=3)) if n % 3 == 0] == panel_votes(pairs)


def test_the_panel_reads_the_last_question_of_a_conversation():
    talk = pair()._replace(prompt=[{"role": "system", "content": "Be brief."}, *user(QUESTION)])
    assert [vote.label for vote in all_votes([talk], [SURE, AGAINST])] == ["a", "b"]


def test_votes_that_nobody_can_give_are_refused():
    with pytest.raises(ValueError, match=r"^pair-00007: the question names no concept of the bank"):
        panel_votes([pair(7, prompt="How do I boil an egg?")])
    for panel, votes in (([], 1), ([NEVER], 1), (PANEL, 0)):
        with pytest.raises(ValueError, match="expected votes >= 1 and a panel with a share above 0"):
            panel_votes([pair()], panel, votes=votes)
    with pytest.raises(ValueError, match="expected repeats >= 1, got 0"):
        all_votes([pair()], repeats=0)


# The spreadsheet

ODD = [
    *("=1+1", "+1", "-1", "@x", "'=1", "''-1", " =1", "\t=1", "＝1", "'tis", '"quoted", so', "a;b", "Größe 3 €"),
    *("two\nlines", "\n\n- a list", "old\rend", "windows\r\nend", "数据 🙂", '=HYPERLINK("http://x")\n=2'),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sheet" / "labels.csv"


def fill(path, labels, encoding="utf-8-sig", end="\r\n"):
    """What a person with a spreadsheet does: put labels into the last column and save."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    rows = [[*row[:4], label] for row, label in zip(rows, labels, strict=True)]
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, lineterminator=end).writerows([header, *rows])


def lines(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def test_the_table_by_hand(path):
    talk = [*user("What is a token?"), *message("A unit."), *user("Why?")]
    assert write_csv(path, [pair(0, "yes", "no"), AnswerPair("=p", talk, message("-1"), message("'tis"))]) == path
    assert path.read_bytes() == (
        b"\xef\xbb\xbfid,prompt,a,b,label\r\n"
        b"pair-00000,What is perplexity?,yes,no,\r\n"
        b"'=p,\"user: What is a token?\nassistant: A unit.\nuser: Why?\",'-1,'tis,\r\n"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_labels_come_back_as_votes(path, encoding, end):
    pairs = [pair(n, f"yes {n}", f"no\n{n}") for n in range(6)]
    write_csv(path, pairs)
    fill(path, ["a", "B", " tie", "SKIP", "b ", "A"], encoding, end)
    votes = read_csv(path, pairs, "ann")
    assert [vote.label for vote in votes] == ["a", "b", "tie", "skip", "b", "a"]
    assert votes[3] == Vote("pair-00003", "ann", "skip", "a")


def test_no_text_runs_as_a_formula_and_every_text_comes_back(path):
    pairs = [pair(n, text, f"{text}.", prompt=text) for n, text in enumerate(ODD)]
    write_csv(path, pairs)
    cells = [cell for row in lines(path)[1:] for cell in row[1:4]]
    assert not any(cell.lstrip().startswith(tuple("=+-@＝")) for cell in cells)
    assert "'tis" in cells and "'''-1" in cells and "'=1+1" in cells  # only what needs an apostrophe gets one
    fill(path, ["a"] * len(ODD))
    assert len(read_csv(path, pairs, "ann")) == len(ODD)
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))  # inside cells as well
    assert len(read_csv(path, pairs, "ann")) == len(ODD)


def test_a_spreadsheet_may_keep_the_apostrophe_for_itself(path):
    pairs = [pair(0, "=1+1", "@x")]
    write_csv(path, pairs)
    path.write_text("id,prompt,a,b,label\npair-00000,What is perplexity?,=1+1,@x,b\n", encoding="utf-8")
    assert read_csv(path, pairs, "ann") == [Vote("pair-00000", "ann", "b", "a")]


def test_pairs_without_a_label_are_counted(path):
    """Of four lines one has a blank label and one was taken out; rows of empty cells below are nothing."""
    pairs = [pair(n) for n in range(4)]
    write_csv(path, pairs)
    fill(path, ["a", " ", "tie", "b"])
    kept = path.read_bytes().splitlines(keepends=True)[:4]
    path.write_bytes(b"".join(kept) + b"\r\n,,,,\r\n")
    with pytest.warns(UserWarning, match=r"labels\.csv: 2 of 4 pairs have no label yet"):
        votes = read_csv(path, pairs, "ann")
    assert [(vote.pair, vote.label) for vote in votes] == [("pair-00000", "a"), ("pair-00002", "tie")]


def test_columns_may_be_moved_and_added_and_empty_ends_dropped(path):
    path.parent.mkdir()
    path.write_text("note,b,a,prompt,id,label\nhm,no,yes,Why?,pair-00000,a\n,no,yes,Why?,pair-00001\n", "utf-8")
    with pytest.warns(UserWarning, match="1 of 2 pairs have no label yet"):
        votes = read_csv(path, [pair(n, "yes", "no", "Why?") for n in range(2)], "ann")
    assert votes == [Vote("pair-00000", "ann", "a", "a")]


HEAD = "id,prompt,a,b,label\r\n"
FIRST = 'pair-00000,Why?,"yes\nor so",no,a\r\n'  # lines 2 and 3 of the file


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEAD + FIRST + "pair-00009,Why?,x,y,a\r\n", r"csv:4: none of the 2 pairs has the id 'pair-00009'"),
        (HEAD + FIRST + "\r\npair-00001,Why?,yes,no,c\r\n", r"csv:5: expected a label out of a, b, tie, skip, .* 'c'"),
        (HEAD + FIRST + "pair-00001,Why?,Yes,no,a\r\n", r"csv:4: a of pair-00001 was edited: fill in .*`label` only"),
        (HEAD + FIRST + "pair-00001,Why?,no,yes,a\r\n", r"csv:4: a, b of pair-00001 was edited"),
        (HEAD + FIRST + "pair-00001,Who?,yes,no,a\r\n", r"csv:4: prompt of pair-00001 was edited"),
        (HEAD + FIRST.replace("yes\nor", "yes or"), r"csv:2: a of pair-00000 was edited"),
        (HEAD + FIRST + FIRST, r"csv:4: a second line for pair-00000"),
        (HEAD + FIRST + "pair-00001,Why?,yes,no,a,\r\n", r"csv:4: expected 5 cells, got 6"),
        (HEAD + FIRST + 'pair-00001,Why?,"yes,no,a\r\n', r"csv:4: no CSV \(unexpected end of data\)"),
        (
            HEAD.replace(",", ";"),
            r"csv:1: expected the columns id, prompt, a, b, label, comma-separated, got \['id;pro",
        ),
        ("", r"csv is empty: expected the table that write_csv wrote"),
        ("caf\udce9", r"csv: not UTF-8 text .*save it as CSV in UTF-8"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_its_line(path, text, problem):
    pairs = [pair(0, "yes\nor so", "no", "Why?"), pair(1, "yes", "no", "Why?")]
    path.parent.mkdir()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=problem):
        read_csv(path, pairs, "ann")


def test_labels_in_a_table_are_never_written_over(path):
    pairs = [pair(n) for n in range(2)]
    write_csv(path, pairs)
    write_csv(path, pairs)  # a cell that is run again
    fill(path, ["a", ""])
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="labels perhaps: name another file"):
        write_csv(path, pairs)
    assert path.read_bytes() == before


def test_pairs_of_one_id_are_refused(path):
    for use in (lambda pairs: write_csv(path, pairs), lambda pairs: read_csv(path, pairs, "ann")):
        with pytest.raises(ValueError, match="a different id for every pair, got 'pair-00000' twice"):
            use([pair(), pair()])
    assert not path.exists()


# The widget


def press(path, pairs, letters, **settings):
    live = label_pairs(pairs, path, **settings)
    for letter in letters:
        live.box.children[1].value = letter
    return live


@pytest.fixture
def jsonl(tmp_path):
    return tmp_path / "labels.jsonl"


def test_what_was_clicked_on_the_screen_is_a_side_of_the_pair(jsonl):
    """Screen A is the pair's a for some pairs and its b for others; either way GOOD is chosen, or neither."""
    pairs = [pair(n, *((GOOD, WRONG) if n % 3 else (WRONG, GOOD))) for n in range(12)]
    for given in pairs:
        live = press(jsonl, [given], "")
        good_is_left = live.view.markup.index(GOOD) < live.view.markup.index(WRONG)
        press(jsonl, [given], "a" if good_is_left else "b")
    press(jsonl, pairs, "", labeler="bo").box.children[1].value = "t"
    votes = widget_votes(jsonl, pairs)
    assert [(vote.pair, vote.annotator, vote.label) for vote in votes] == [
        *((given.id, "me", "a" if n % 3 else "b") for n, given in enumerate(pairs)),
        ("pair-00000", "bo", "tie"),
    ]
    rows = [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()]
    assert [row["shown_first"] for row in rows] == [vote.shown_first for vote in votes[:-1]]
    assert {(vote.shown_first, row["label"]) for vote, row in zip(votes, rows, strict=False)} == {
        *(("a", "a"), ("a", "b"), ("b", "a"), ("b", "b"))
    }
    assert {row["chosen"][0]["content"] for row in rows} == {GOOD}


def test_a_session_with_pairs_goes_on_and_takes_back(jsonl):
    pairs = [pair(n) for n in range(4)]
    press(jsonl, pairs, "as")
    live = press(jsonl, pairs, "bu", seed=5)
    assert "Pair 3 of 4" in live.view.text
    assert [vote.label for vote in widget_votes(jsonl, pairs)][1:] == ["skip"]


def test_labels_of_preference_rows_are_votes_with_the_chosen_answer_as_a(jsonl):
    """As the widget has always written them; the pairs are made of the same rows. Five of six labels prefer GOOD."""
    rows = [
        {"id": f"p{n}", "prompt": user(QUESTION), "chosen": message(GOOD), "rejected": message(WRONG)} for n in range(8)
    ]
    press(jsonl, rows, "abbaabts")
    saved = [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()]
    assert {row["shown_first"] for row in saved} == {"chosen", "rejected"}
    pairs = [AnswerPair(*row.values()) for row in rows]
    assert press(jsonl, rows, "").view.text == press(jsonl, pairs, "").view.text  # the same agreement with the panel
    votes = widget_votes(jsonl, pairs)
    assert [vote.label for vote in votes] == [
        *("a" if row["chosen"] == message(GOOD) else "b" for row in saved),
        "tie",
        "skip",
    ]
    assert [vote.label for vote in votes].count("a") == 5
    sides = {"chosen": "a", "rejected": "b"}
    assert [vote.shown_first for vote in votes[:6]] == [sides[row["shown_first"]] for row in saved]


def test_labels_that_belong_to_other_pairs_are_refused(jsonl):
    pairs = [pair(0), pair(1)]
    press(jsonl, pairs, "aa")
    before = jsonl.read_bytes()
    with pytest.raises(ValueError, match=r"labels\.jsonl:2: none of the 1 pairs has the id 'pair-00001'"):
        widget_votes(jsonl, pairs[:1])
    for other in (pair(1, a="else"), pair(1, b="else"), pair(1, prompt="Why?"), pair(1, a=WRONG, b=GOOD)):
        with pytest.raises(ValueError, match=r"labels\.jsonl:2: pair-00001 has other texts here"):
            widget_votes(jsonl, [pairs[0], other])
    assert jsonl.read_bytes() == before
    with pytest.raises(FileNotFoundError, match=r"no labels at .*gone\.jsonl"):
        widget_votes(jsonl.with_name("gone.jsonl"), pairs)


def test_ties_alone_are_labels(jsonl):
    press(jsonl, [pair()], "t")
    assert not jsonl.exists()
    assert [vote.label for vote in widget_votes(jsonl, [pair()])] == ["tie"]


def test_a_pair_that_cannot_be_shown_is_refused(jsonl):
    with pytest.raises(ValueError, match=r"pair 1, b: message 1 .* is empty"):
        label_pairs([pair(0), pair(1, b=" ")], jsonl)
