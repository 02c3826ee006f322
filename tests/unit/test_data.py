"""Reading every format that is offered, naming file and line of what is broken, batches worked out by hand."""

import json

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from picollm_lite.chat import Encoded, encode_conversation
from picollm_lite.data import (
    Pair,
    collate,
    encode_demos,
    encode_pairs,
    length_bucketed_batches,
    load_demos,
    load_preferences,
    load_suite,
    pair_lengths,
)
from picollm_lite.files import read_jsonl, write_jsonl

USER = {"role": "user", "content": "What is a token?"}
ASSISTANT = {"role": "assistant", "content": "A unit of text."}
TURN = [USER, ASSISTANT]
GOOD = json.dumps(TURN).encode()


@pytest.fixture
def write(tmp_path):
    """Writes bytes, or values as JSON lines, to demos.jsonl."""

    def to_file(content):
        path = tmp_path / "demos.jsonl"
        if not isinstance(content, bytes):
            content = "\n".join(json.dumps(row) for row in content).encode()
        path.write_bytes(content)
        return path

    return to_file


def plain(messages):
    """Messages without the None that a data set puts where another row has a value."""
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURN},
        {"prompt": [USER], "completion": [ASSISTANT]},
        TURN,
    ],
    ids=["messages", "prompt and completion", "array"],
)
def test_every_format_gives_the_same_messages(write, row):
    demos = load_demos(write([row]))
    assert demos.column_names == ["messages"]
    assert demos["messages"][0] == TURN


def test_formats_may_be_mixed_and_long_conversations_stay_whole(write):
    talk = [{"role": "system", "content": "Be brief."}, *TURN, {"role": "user", "content": "Why?"}, ASSISTANT]
    demos = load_demos(write([talk, {"messages": TURN}, {"prompt": talk[:-1], "completion": [ASSISTANT]}]))
    assert [plain(messages) for messages in demos["messages"]] == [talk, TURN, talk]


def test_other_columns_are_kept_and_filled_with_none(write):
    rows = [
        {"id": "a", "messages": TURN},
        {"prompt": [USER], "completion": [ASSISTANT], "quality": "good", "id": "b"},
        TURN,
    ]
    demos = load_demos(write(rows))
    assert sorted(demos.column_names) == ["id", "messages", "quality"]
    assert demos["id"][:] == ["a", "b", None]
    assert demos["quality"][:] == [None, "good", None]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD + b"\n",
        GOOD + b"\r\n" + GOOD + b"\r\n",
        b"\n  \n" + GOOD + b"\n\n\t" + GOOD + b"  \n\n",
        GOOD + b"\n" + GOOD,
    ],
    ids=["byte order mark", "CRLF", "blank lines", "no newline at the end"],
)
def test_what_editors_do_to_files_does_not_matter(write, content):
    assert load_demos(write(content))["messages"][:] == [TURN, TURN]


@pytest.mark.parametrize("text", ["Ça coûte 5 €", "数据", "🙂", "A\u2028B\u0085C", 'a "quoted" \\ text\nof two lines'])
def test_any_text_survives_the_round_trip(tmp_path, text):
    rows = [{"messages": [{"role": "user", "content": text}, ASSISTANT]}, {"messages": TURN}]
    path = write_jsonl(tmp_path / "new" / "demos.jsonl", rows)
    assert path == tmp_path / "new" / "demos.jsonl"
    assert [row for row, _ in read_jsonl(path)] == rows
    assert load_demos(path)["messages"][0][0]["content"] == text
    assert path.read_bytes().count(b"\n") == 2 and path.read_bytes().endswith(b"\n")
    if text == "数据":
        assert text.encode() in path.read_bytes()  # readable in the file, no \u escapes


def test_an_escaped_pair_of_surrogates_is_a_character(write):
    demos = load_demos(write(GOOD.replace(b"unit", rb"\ud83d\ude42")))
    assert demos["messages"][0][1]["content"] == "A 🙂 of text."


def message(role="user", content="What?"):
    return {"role": role, "content": content}


BROKEN = {
    "broken JSON": (b'{"messages": [}', r"not valid JSON \(Expecting value at column 15\): one value a line"),
    "two values": (GOOD + GOOD, r"not valid JSON \(Extra data at column \d+\)"),
    "Latin-1": ("café".encode("latin-1"), r"not UTF-8 text \(.+\): save the file as UTF-8"),
    "UTF-16": ("[]".encode("utf-16"), "not UTF-8 text"),
    "a mark inside": (b"\xef\xbb\xbf" + GOOD, "not valid JSON"),
    "half a pair": (GOOD.replace(b"unit", rb"\ud83d"), "half of a surrogate pair, which is no character: take it out"),
    "a number": (
        b"3",
        "expected a list of messages, or an object with such a list as `messages`, or with two, `prompt`",
    ),
    "a text": (b'"messages"', "expected a list of messages"),
    "no key": (b'{"text": "A token"}', "expected a list of messages"),
    "plain texts": (b'{"prompt": "What?", "completion": "This."}', "expected a list of messages"),
    "no completion": (json.dumps({"prompt": [USER]}).encode(), "expected a list of messages"),
    "one completion": (json.dumps({"prompt": [USER], "completion": ASSISTANT}).encode(), "expected a list of messages"),
    "messages: text": (b'{"messages": "What?"}', "expected a list of messages"),
    "empty": (b"[]", "the conversation is empty"),
    "empty messages": (b'{"messages": []}', "the conversation is empty"),
    "role": ([USER, message("bot")], "message 2 has the unknown role 'bot': use system, user, assistant"),
    "a list as role": ([message(["user"])], r"message 1 has the unknown role \['user'\]"),
    "no role": ([USER, {"content": "This."}], "message 2 must be an object with `role` and `content`"),
    "no content": ([{"role": "user"}, ASSISTANT], "message 1 must be an object with `role` and `content`"),
    "a number as message": ([USER, 3], "message 2 must be an object with `role` and `content`"),
    "a list as message": ([["role", "content"]], "message 1 must be an object with `role` and `content`"),
    "a bare text": ([USER, "This."], "message 2 must be an object with `role` and `content`"),
    "empty answer": (
        [USER, message("assistant", "")],
        r"message 2 \(assistant\) is empty: give it text or take it out",
    ),
    "blank answer": ([USER, message("assistant", " \n")], r"message 2 \(assistant\) is empty"),
    "empty question": ([message("user", ""), ASSISTANT], r"message 1 \(user\) is empty"),
    "null content": ([USER, message("assistant", None)], r"message 2 \(assistant\) is empty"),
    "parts": ([USER, message("assistant", [{"type": "text"}])], r"message 2 \(assistant\) is empty"),
    "ends with user": ([*TURN, USER], "the last message must be the assistant's answer, got 'user'"),
    "empty completion": (
        json.dumps({"prompt": [USER], "completion": []}).encode(),
        "the last message must be the assistant's answer, got 'user'",
    ),
}


@pytest.mark.parametrize(("line", "error"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_line_is_named_with_its_file(write, line, error):
    line = line if isinstance(line, bytes) else json.dumps(line).encode()
    path = write(GOOD + b"\n\n" + line + b"\n" + GOOD)
    with pytest.raises(ValueError, match=rf"^{path}:3: {error}") as raised:
        load_demos(path)
    assert "\n" not in str(raised.value)


def test_a_column_of_two_types_is_an_error_that_names_the_file(write):
    path = write([{"id": 1, "messages": TURN}, {"id": "a", "messages": TURN}])
    with pytest.raises(ValueError, match=rf"^{path}: column `id` needs one type of value in every row \(.*'a'"):
        load_demos(path)


@pytest.mark.parametrize("content", [b"", b"\n \r\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_lines_is_named(write, content):
    path = write(content)
    with pytest.raises(ValueError, match=rf"^{path} is empty: it needs one JSON value a line"):
        load_demos(path)


@pytest.mark.parametrize("load", [load_demos, load_preferences, load_suite])
def test_a_missing_file_is_named(tmp_path, load):
    with pytest.raises(FileNotFoundError, match=r"^no file at .*gone.jsonl: check the path, or run `make data`"):
        load(tmp_path / "gone.jsonl")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} doesn't contain any data files"):
        load(tmp_path)


PROMPT = {"id": "p1", "prompt": "What is a token?", "split": "seen", "ask": "define"}


def test_the_suite_keeps_its_columns(write):
    suite = load_suite(write([PROMPT, PROMPT | {"id": "p2"}]))
    assert suite[0] == PROMPT and suite["id"][:] == ["p1", "p2"]


@pytest.mark.parametrize("key", PROMPT)
@pytest.mark.parametrize("value", [None, ""])
def test_a_prompt_of_the_suite_needs_every_column(write, key, value):
    path = write([PROMPT, {**PROMPT, key: value}])
    with pytest.raises(ValueError, match=rf"^{path}:2: a prompt of the suite needs {key}$"):
        load_suite(path)
    path = write([TURN])
    with pytest.raises(ValueError, match=rf"^{path}:1: a prompt of the suite needs id, prompt, split, ask$"):
        load_suite(path)


def demos_of(*answers):
    return Dataset.from_list([{"messages": [USER, message("assistant", text)]} for text in answers])


def test_encoding_keeps_the_order(tokenizer):
    encoded = encode_demos(demos_of("A token", "It"), tokenizer)
    assert encoded == [encode_conversation(tokenizer, [USER, message("assistant", text)]) for text in ("A token", "It")]


def test_a_row_that_is_too_long_is_named(tokenizer):
    """9 tokens of prompt, then the answer's and its end token: 12 and 14."""
    demos = demos_of("A token", "A token is a")
    assert [len(example.tokens) for example in encode_demos(demos, tokenizer, max_length=14)] == [12, 14]
    with pytest.raises(
        ValueError, match=r"demonstration 1 has 14 tokens, more than max_length=13: shorten it or raise"
    ):
        encode_demos(demos, tokenizer, max_length=13)
    with pytest.raises(ValueError, match="demonstration 1 has 2"):
        encode_demos(demos_of("It", " a" * 250), tokenizer)  # the models' context of 256 is the default


def test_a_row_that_cannot_be_encoded_is_named(tokenizer):
    with pytest.raises(ValueError, match=r"demonstration 1: message 2 \(assistant\) holds the control token <\|bos\|>"):
        encode_demos(demos_of("It", "It<|bos|>"), tokenizer)


def test_collate_by_hand():
    examples = [Encoded([5, 6], [False, True]), Encoded([7, 8, 9], [False, True, True]), Encoded([4], [True])]
    batch = collate(examples, pad_token_id=1)
    assert batch.tokens.tolist() == [[5, 6, 1], [7, 8, 9], [4, 1, 1]]
    assert batch.response_mask.tolist() == [[False, True, False], [False, True, True], [True, False, False]]
    assert (batch.tokens.dtype, batch.response_mask.dtype) == (torch.int64, torch.bool)
    assert examples[0] == Encoded([5, 6], [False, True])  # the examples are not written into


@given(st.lists(st.integers(1, 50), max_size=120), st.integers(1, 9), st.integers(0, 5))
def test_batches_hold_every_row_once(lengths, batch_size, seed):
    batches = length_bucketed_batches(lengths, batch_size, seed=seed)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)  # rounded up
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert length_bucketed_batches(lengths, batch_size, seed=seed) == batches


LENGTHS = [20 + row * row % 97 for row in range(600)]  # 20 to 116


def test_batches_are_full_but_one():
    sizes = sorted(map(len, length_bucketed_batches(LENGTHS, 16, seed=0)))
    assert sizes == [600 % 16] + [16] * (600 // 16)


def test_batches_differ_from_seed_to_seed_in_rows_and_order():
    first, second = (length_bucketed_batches(LENGTHS, 16, seed=seed) for seed in (0, 1))
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    longest = [max(LENGTHS[row] for row in batch) for batch in length_bucketed_batches(LENGTHS[:160], 16, seed=0)]
    assert longest != sorted(longest)


def test_rows_of_equal_length_change_company():
    first, second = (length_bucketed_batches([30] * 64, 8, seed=seed) for seed in (0, 1))
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}


def padding(batches):
    padded = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)
    return 1 - sum(LENGTHS) / padded


def test_batches_waste_little():
    """In file order, two fifths of what the model reads would be padding."""
    assert padding([range(start, min(start + 16, 600)) for start in range(0, 600, 16)]) > 0.35
    assert max(padding(length_bucketed_batches(LENGTHS, 16, seed=seed)) for seed in range(5)) < 0.04


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_needs_a_row(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        length_bucketed_batches([1, 2], batch_size, seed=0)


BETTER, WORSE = message("assistant", "A unit of text."), message("assistant", "Thanks.")
TALK = [message("system", "Be brief."), USER, ASSISTANT, message("user", "Why?")]
PREFERENCE = {"prompt": [USER], "chosen": [BETTER], "rejected": [WORSE]}


def preferences(path):
    """The three columns of every row."""
    rows = load_preferences(path)
    return [[plain(rows[side][i]) for side in ("prompt", "chosen", "rejected")] for i in range(len(rows))]


@pytest.mark.parametrize("prompt", [[USER], TALK], ids=["one question", "a conversation"])
def test_a_prompt_may_stand_apart_or_at_the_head_of_both_sides(write, prompt):
    apart = {"prompt": prompt, "chosen": [BETTER], "rejected": [WORSE]}
    inside = {"chosen": [*prompt, BETTER], "rejected": [*prompt, WORSE]}
    assert preferences(write([apart, inside])) == [[prompt, [BETTER], [WORSE]]] * 2


def test_sides_may_part_before_their_last_message(write):
    """Only what both begin with is the prompt, and an answer is never part of it, even if both sides give it."""
    other = [message("user", "Thanks."), WORSE]
    row = {"chosen": [USER, ASSISTANT, message("user", "Why?"), BETTER], "rejected": [USER, ASSISTANT, *other]}
    same = {"chosen": [USER, BETTER], "rejected": [USER, BETTER]}
    longer = {"chosen": [USER, BETTER], "rejected": [USER, BETTER, *other]}
    assert preferences(write([row, same, longer])) == [
        [[USER, ASSISTANT], [message("user", "Why?"), BETTER], other],
        [[USER], [BETTER], [BETTER]],
        [[USER], [BETTER], [BETTER, *other]],
    ]


def test_other_columns_of_preferences_are_kept_and_filled_with_none(write):
    rows = [{"id": "a", **PREFERENCE}, {**PREFERENCE, "annotator": "careful", "gold_chosen": 2.0}]
    loaded = load_preferences(write(rows))
    assert sorted(loaded.column_names) == ["annotator", "chosen", "gold_chosen", "id", "prompt", "rejected"]
    assert loaded["id"][:] == ["a", None] and loaded["annotator"][:] == [None, "careful"]
    assert loaded["gold_chosen"][:] == [None, 2.0]


BROKEN_PREFERENCES = {
    "empty prompt": ({**PREFERENCE, "prompt": []}, ": no prompt: give one, or begin `chosen` and `rejected` with the"),
    "null as prompt": ({**PREFERENCE, "prompt": None}, ": no prompt"),
    "nothing shared": ({"chosen": [USER, BETTER], "rejected": [message(), WORSE]}, ": no prompt"),
    "empty chosen": ({**PREFERENCE, "chosen": []}, ": `chosen` must end with the assistant's answer to the prompt"),
    "empty rejected": ({**PREFERENCE, "rejected": []}, ": `rejected` must end with"),
    "two empty sides": ({"chosen": [], "rejected": []}, ", chosen: the conversation is empty"),
    "chosen by the user": ({**PREFERENCE, "chosen": [message()]}, ": `chosen` must end with the assistant's answer"),
    "rejected by the user": ({**PREFERENCE, "rejected": [WORSE, message()]}, ": `rejected` must end with"),
    "a role": ({**PREFERENCE, "prompt": [message("bot")]}, ", chosen: message 1 has the unknown role 'bot'"),
    "a blank": (
        {**PREFERENCE, "rejected": [message("assistant", " ")]},
        r", rejected: message 2 \(assistant\) is empty",
    ),
    "bare texts": ({**PREFERENCE, "chosen": ["A unit."]}, ", chosen: message 2 must be an object with `role`"),
    "a bare prompt": ({**PREFERENCE, "prompt": ["What?"]}, ", chosen: message 1 must be an object with `role`"),
}


@pytest.mark.parametrize(("row", "error"), BROKEN_PREFERENCES.values(), ids=BROKEN_PREFERENCES.keys())
def test_a_broken_preference_is_named_with_its_file_and_line(write, row, error):
    path = write([PREFERENCE, PREFERENCE, row, PREFERENCE])
    with pytest.raises(ValueError, match=rf"^{path}:3{error}") as raised:
        load_preferences(path)
    assert "\n" not in str(raised.value)


def preferences_of(*rows):
    """(question, chosen, rejected) as a data set."""
    return Dataset.from_list(
        [
            {
                "prompt": [message("user", question)],
                "chosen": [message("assistant", chosen)],
                "rejected": [message("assistant", rejected)],
            }
            for question, chosen, rejected in rows
        ]
    )


def test_pairs_are_the_two_conversations_in_order(tokenizer, encode):
    rows = [("What is a token?", "A unit.", "Thanks."), ("Why?", "It splits words.", "Why?")]
    pairs = encode_pairs(preferences_of(*rows), tokenizer)
    assert pairs == [Pair(encode(q, chosen), encode(q, rejected)) for q, chosen, rejected in rows]


def test_a_pair_is_as_long_as_its_longer_side():
    def of(length):
        return Encoded([5] * length, [True] * length)

    assert pair_lengths([Pair(of(3), of(5)), Pair(of(4), of(2)), Pair(of(1), of(1))]) == [5, 4, 1]
    assert pair_lengths([]) == []


def test_long_sides_are_cut_at_the_end(tokenizer, encode):
    """9 tokens of prompt; of an answer of 7 and its end token, 3 are left at 12."""
    whole = encode("What is a token?", "A token is a unit of")
    (pair,) = encode_pairs(preferences_of(("What is a token?", "A token is a unit of", "It")), tokenizer, max_length=12)
    assert pair.chosen == Encoded(whole.tokens[:12], [False] * 9 + [True] * 3)
    assert pair.rejected == encode("What is a token?", "It")  # 11 tokens: whole, with its end token


def test_pairs_that_teach_nothing_are_dropped_with_a_count(tokenizer, encode):
    rows = [
        ("Why?", "It splits words.", "Thanks."),
        ("Why?", "Thanks.", "Thanks."),  # the same from the start
        ("What is a token?", "A token is a unit", "A token is a token"),  # the same in the first 12 tokens
        ("Be brief. Be brief. Be brief. Be brief.", "A", "It"),  # the prompt alone has more than 12
        ("Why?", "A", "It"),
    ]
    with pytest.warns(UserWarning) as told:
        pairs = encode_pairs(preferences_of(*rows), tokenizer, max_length=12)
    assert [str(warning.message) for warning in told] == [
        "dropped 3 of 5 pairs, read up to max_length=12 tokens: 3 the same on both sides"
    ]
    assert told[0].filename == __file__  # the caller's line, not one of the package
    assert pairs == [Pair(encode(q, chosen), encode(q, rejected)) for q, chosen, rejected in (rows[0], rows[4])]


def test_a_side_without_a_response_after_the_cut_is_dropped(tokenizer):
    """Where sides part with a user's turn, one may be cut within it: there is nothing of the assistant's to learn."""
    turn = [message("user", "Be brief. Be brief. Be brief."), BETTER]
    row = {"prompt": [USER], "chosen": [WORSE], "rejected": turn}
    rows = Dataset.from_list([row, {**row, "chosen": turn, "rejected": [WORSE]}, PREFERENCE])
    with pytest.warns(
        UserWarning, match="^dropped 2 of 3 pairs, read up to max_length=14 tokens: 2 without a response on one side$"
    ):
        pairs = encode_pairs(rows, tokenizer, max_length=14)
    assert len(pairs) == 1
    assert len(encode_pairs(rows, tokenizer, max_length=40)) == 3


def test_when_no_pair_is_left_there_is_an_error(tokenizer):
    rows = preferences_of(("Why?", "Thanks.", "Thanks."))
    with (
        pytest.warns(UserWarning, match="dropped 1 of 1 pairs"),
        pytest.raises(ValueError, match=r"^no pair is left to learn from at max_length=256: raise it"),
    ):
        encode_pairs(rows, tokenizer)


def test_a_pair_that_cannot_be_encoded_is_named(tokenizer):
    rows = preferences_of(("Why?", "A", "It"), ("Why?", "A", "It<|bos|>"))
    with pytest.raises(ValueError, match=r"^pair 1: message 2 \(assistant\) holds the control token <\|bos\|>"):
        encode_pairs(rows, tokenizer)


def test_what_was_loaded_can_be_encoded(write, tokenizer):
    rows = [{"id": "a", **PREFERENCE}, {"chosen": [*TURN, *TALK[1:2], BETTER], "rejected": [*TURN, *TALK[1:2], WORSE]}]
    pairs = encode_pairs(load_preferences(write(rows)), tokenizer)
    for pair, row in zip(pairs, rows, strict=True):
        prompt = row.get("prompt", [])
        assert pair.chosen.tokens == encode_conversation(tokenizer, [*prompt, *row["chosen"]]).tokens
        assert pair.rejected.tokens == encode_conversation(tokenizer, [*prompt, *row["rejected"]]).tokens


def test_what_the_assistant_said_in_the_prompt_is_no_response(tokenizer):
    """Both sides share it, so a mean over the response (SimPO, ORPO) would be diluted by it."""
    rows = Dataset.from_list([{"prompt": TALK, "chosen": [BETTER], "rejected": [WORSE]}])
    (pair,) = encode_pairs(rows, tokenizer)
    for side, text in ((pair.chosen, BETTER), (pair.rejected, WORSE)):
        written = [token for token, counts in zip(*side, strict=True) if counts]
        assert tokenizer.decode(written) == text["content"] + "<|assistant_end|>"


def test_sides_may_share_no_more_than_a_system_message(tokenizer):
    """As `load_preferences` gives them when two conversations part at the first question."""
    system = message("system", "Be brief.")
    sides = [[USER, BETTER], [message("user", "Why?"), WORSE]]
    rows = Dataset.from_list([{"prompt": [system], "chosen": sides[0], "rejected": sides[1]}])
    (pair,) = encode_pairs(rows, tokenizer)
    assert list(pair) == [encode_conversation(tokenizer, [system, *side]) for side in sides]
