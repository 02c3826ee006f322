"""The card: a header that `datasets` reads, tables that no text breaks, numbers from the four questions."""

import re

import datasets
import pandas as pd
import pytest
import yaml

from picollm_lite.chat import user
from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.evaluation.data_card import data_card, markdown_table
from picollm_lite.files import write_jsonl
from picollm_lite.world.annotators import PANEL

NASTY = "a|b\n<script>alert(1)</script> `c` [d](javascript:e) <|user_start|>"


def says(text):
    return [{"role": "assistant", "content": text}]


def split(prefix, n, *, text="It is red.", annotator="careful"):
    pairs = [AnswerPair(f"{prefix}{i}", user("What is a token?"), says(text), says("No.")) for i in range(n)]
    return pairs, [Vote(pair.id, annotator, "a") for pair in pairs]


def card(splits=None, **changes):
    splits = splits or {"train": split("p", 3), "test": split("q", 2)}
    options = {
        "files": {name: f"{name}.jsonl" for name in splits},
        "collected": "By hand.",
        "limits": ["Few.", "Short."],
    }
    return data_card("Pairs", splits, **(options | changes))


def header(text):
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def table_after(text, line):
    """Rows of the first table behind a line, as lists of cells."""
    rows = text.partition(line + "\n")[2].strip().partition("\n\n")[0].splitlines()
    return [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]


def test_the_header_says_what_the_hub_asks_for():
    assert header(card(language="de", license="cc0-1.0")) == {
        "pretty_name": "Pairs",
        "language": ["de"],
        "license": "cc0-1.0",
        "task_categories": ["text-generation"],
        "tags": ["preferences", "reward-modeling", "dpo"],
        "size_categories": ["n<1K"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "train.jsonl"}, {"split": "test", "path": "test.jsonl"}],
            }
        ],
    }


@pytest.mark.parametrize(("n", "size"), [(999, "n<1K"), (1000, "1K<n<10K")])
def test_the_size_is_that_of_all_pairs(n, size):
    splits = {"train": (split("p", n - 1)[0], []), "test": (split("q", 1)[0], [])}
    assert header(card(splits))["size_categories"] == [size]


def test_datasets_loads_a_folder_by_its_card(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text(card(), encoding="utf-8")
    for name, n in (("train", 3), ("test", 2)):
        write_jsonl(tmp_path / "set" / f"{name}.jsonl", [{"prompt": "Why?", "chosen": "Yes.", "rejected": "No."}] * n)
    loaded = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 3, "test": 2}


def test_the_sections_stand_in_order():
    headings = re.findall(r"^#+ (.*)$", card(), re.MULTILINE)
    assert headings == [
        *("Pairs", "How it was collected", "Counts by split", "Who labeled", "Under what rubric", "How noisy"),
        *("What is over-represented", "Known limits"),
    ]
    assert "## How it was collected\n\nBy hand.\n" in card()
    assert card().endswith("## Known limits\n\n- Few.\n- Short.\n")


def test_counts_by_split_by_hand():
    pairs, votes = split("p", 3)
    votes = [*votes[:2], Vote("p0", "me", "tie"), Vote("p1", "me", "skip"), Vote("p1", "me", "b")]
    rows = table_after(card({"train": (pairs, votes), "test": split("q", 2)}), "## Counts by split")
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == ["split", "pairs", "labeled", "labels", "annotators", "a", "b", "tie", "skip"]
    assert cells[2:] == [
        ["train", "3", "2", "5", "2", "2", "1", "1", "1"],
        ["test", "2", "2", "2", "1", "2", "0", "0", "0"],
    ]


def test_the_questions_are_put_to_all_splits_together():
    rows = table_after(card(), "## Who labeled")
    assert [cell.strip() for cell in rows[2]] == ["careful", "5", "1", "5", "5", "0", "0", "0"]


def test_known_annotators_have_expected_flips():
    """Twice the same wrong answers: p = 1/2 when both have the same gold, so half of the labels would flip."""
    pairs, votes = split("p", 3, text="No.")
    line = "Labels that changed when an annotator saw a pair again, and the error of a single label that this implies:"
    rows = {panel: table_after(card({"train": (pairs, votes * 2)}, panel=panel), line) for panel in ((), PANEL)}
    assert [rows[panel][2][-1].strip() for panel in rows] == ["unknown", "0.5"]


def test_coefficients_stand_one_row_an_annotator():
    pairs, votes = split("p", 30, text="It is so very red now.")  # words and nothing else differ, on an unread question
    pairs = [pair._replace(prompt=user("What is love?")) for pair in pairs]
    votes = [vote._replace(label="a" if i < 15 else "b") for i, vote in enumerate(votes)]
    line = "What moves the labels: log-odds that an answer is preferred for one standard deviation more of a feature."
    rows = [[cell.strip() for cell in row] for row in table_after(card({"train": (pairs, votes)}), line)]
    assert rows[0] == ["annotator", "correct", "asked", "words", "flattery", "filler", "repeated", "unfinished"]
    assert [row[0] for row in rows[2:]] == ["careful", "everyone"]
    # Half prefer more words: 0, and 1.96 / sqrt(30 / 4 + .1) = .711 to both sides.
    assert rows[2][1:] == ["unknown", "unknown", "0 (-0.711 to 0.711)", "unknown", "unknown", "unknown", "unknown"]


def test_no_text_breaks_a_table():
    text = card({"train": split("p", 3, text=NASTY, annotator="x|y\n<b>")})
    rows = table_after(text, "How answers begin:")
    assert {len(row) for row in rows} == {5}
    assert any("a\\|b &lt;script&gt;alert(1)&lt;/script&gt; \\`c\\`" in row[0] for row in rows)
    assert "x\\|y &lt;b&gt;" in text
    assert "<script" not in text and "<b>" not in text


def test_the_title_is_one_line_of_plain_text():
    text = data_card("A: *b*\n# c", {}, files={}, collected="", limits=[])
    assert header(text)["pretty_name"] == "A: *b*\n# c"
    assert "\n# A: \\*b\\* # c\n" in text


def test_a_table_by_hand():
    table = pd.DataFrame(
        {"what_it_is": ["x_y", "it's"], "n": [12000, 7], "rate": [0.51239, -0.0001], "by": [("a", "b"), ()]}
    )
    assert markdown_table(table).splitlines() == [
        "| what\\_it\\_is | n | rate | by |",
        "|---|---|---|---|",
        "| x\\_y | 12000 | 0.512 | a, b |",
        "| it's | 7 | 0 | nothing |",
    ]
    assert markdown_table(table, shown=1).splitlines()[2:] == [
        *("| x\\_y | 12000 | 0.512 | a, b |", "", "The first 1 of 2 rows.")
    ]
    assert "rows" not in markdown_table(table, shown=2)
    assert markdown_table(pd.DataFrame({"x": [float("nan")]})).endswith("| unknown |")


def test_the_card_is_the_same_every_time():
    assert card() == card()


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"expected one file for each of the splits \['train', 'test'\], got files for"
    ):
        card(files={"train": "train.jsonl"})
    with pytest.raises(ValueError, match="expected an id of its own for each pair; got 2 others, such as 'p0'"):
        card({"train": split("p", 3), "test": split("p", 2)})
