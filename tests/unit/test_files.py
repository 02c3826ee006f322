"""Files of rows, large and broken: one row in memory at a time, every bad line told, columns of one type."""

import gzip
import json
import os
import sys
import tracemalloc

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet

from picollm_lite import files
from picollm_lite.data import load_demos, load_preferences, read_preferences
from picollm_lite.files import CHUNK, read_jsonl, to_dataset, write_jsonl


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def texts(number):
    return {"id": number, "prompt": f"What is {number}?", "chosen": f"A number, {number}.", "rejected": "No."}


def messages(number):
    sides = {"chosen": [assistant(f"A number, {number}.")], "rejected": [assistant("No.")]}
    return {"id": number, "prompt": [user(f"What is {number}?")], **sides}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prefs.jsonl"


def lines(path, rows):
    """Rows as JSON, bytes as they are."""
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


def test_line_numbers_count_blank_lines(path):
    path.write_bytes(b"\n\n1\n\n2\n")
    assert list(read_jsonl(path)) == [(1, f"{path}:3"), (2, f"{path}:5")]


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    write_jsonl(path, [{"a": 1}])
    with pytest.raises(TypeError):
        write_jsonl(path, [{"a": 2}, {"a": {1, 2}}])  # a set is not JSON

    def disk_full(number):
        os.ftruncate(number, 4)
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="no space left"):
        write_jsonl(path, [{"a": 3}])
    assert path.read_text() == '{"a": 1}\n'


# One row at a time


def test_rows_come_one_at_a_time(path):
    """The error stands in line 3; what is before it has been read by then."""
    rows = read_preferences(lines(path, [texts(1), texts(2), b"{", texts(4)]))
    assert [next(rows), next(rows)] == [messages(1), messages(2)]
    with pytest.raises(ValueError, match=rf"^{path}:3: not valid JSON"):
        next(rows)


def test_a_hundred_thousand_rows_need_no_memory(path):
    """Each row is a dozen objects. While the last one is read there are hardly more of them than before the first."""
    lines(path, map(texts, range(100_000)))
    next(read_preferences(path))  # what is made once
    before, total = sys.getallocatedblocks(), 0
    for row in read_preferences(path):
        total += row["id"]
        if row["id"] == 99_999:
            assert sys.getallocatedblocks() - before < 1_000
    assert total == 99_999 * 50_000


def test_many_bad_rows_need_no_memory(path):
    lines(path, [texts(0), *[b"{"] * 5_000])
    tracemalloc.start()
    try:
        with pytest.warns(UserWarning, match="left out 5000 of 5001 rows"):
            list(read_preferences(path, strict=False))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


# Strict and lenient

BAD = {
    "not valid JSON (Expecting property name enclosed in double quotes at column 2): one value a line": b"{x",
    "not UTF-8 text (invalid continuation byte): save the file as UTF-8": b'"caf\xe9"',
    "half of a surrogate pair, which is no character: take it out": rb'"\ud83d"',
    "a preference needs `rejected`": {"prompt": "Hi", "chosen": "Hello."},
    "chosen: message 1 has the unknown role 'human': use system, user, assistant": {
        **messages(0),
        "prompt": [{"role": "human", "content": "Hi"}],
    },
    "rejected: message 2 (assistant) is empty: give it text or take it out": {**texts(0), "rejected": " "},
    "`rejected` must end with the assistant's answer to the prompt": {**messages(0), "rejected": []},
}
FILE = [b"\xef\xbb\xbf" + json.dumps(texts(1)).encode() + b"\r", b" \r", *BAD.values(), b"", texts(2)]


def told(path):
    """One line for each of BAD, which begin at line 3."""
    places = [f"{path}:{number}{',' if ': message' in error else ':'}" for number, error in enumerate(BAD, start=3)]
    return [f"{place} {error}" for place, error in zip(places, BAD, strict=True)]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_strict_raises_at_the_first_bad_line(path, number):
    lines(path, [*FILE[:2], *FILE[2 + number :]])
    problems = []
    for read in (lambda path: list(read_preferences(path, problems=problems)), load_preferences):
        with pytest.raises(ValueError) as raised:
            read(path)
        assert str(raised.value) == told(path)[number].replace(f":{3 + number}", ":3")
    assert problems == []


def test_lenient_reads_on_and_tells_every_bad_line_in_one_warning(path):
    problems = []
    with pytest.warns(UserWarning) as caught:
        rows = list(read_preferences(lines(path, FILE), strict=False, problems=problems))
    assert rows == [messages(1), messages(2)]
    assert problems == told(path)
    assert [str(warning.message) for warning in caught] == ["\n".join(["left out 7 of 9 rows:", *told(path)])]
    assert caught[0].filename == __file__


def test_a_lenient_data_set_is_the_same(path):
    problems = []
    with pytest.warns(UserWarning) as caught:
        rows = load_preferences(lines(path, FILE), strict=False, problems=problems)
    assert rows.to_list() == [messages(1), messages(2)]
    assert problems == told(path)
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize(("bad", "more"), [(20, []), (21, ["and 1 more"]), (25, ["and 5 more"])])
def test_a_warning_lists_twenty(path, bad, more):
    problems = []
    lines(path, [*[3] * bad, texts(1)])
    with pytest.warns(UserWarning) as caught:
        list(read_preferences(path, strict=False, problems=problems))
    error = "expected an object with `chosen` and `rejected`, got int"
    assert problems == [f"{path}:{number}: {error}" for number in range(1, bad + 1)]
    assert str(caught[0].message).splitlines() == [f"left out {bad} of {bad + 1} rows:", *problems[:20], *more]


def test_a_caller_that_stops_is_told_what_was_left_out_so_far(path):
    rows = read_preferences(lines(path, [texts(1), 3, texts(2), 4, texts(3)]), strict=False)
    assert [next(rows)["id"], next(rows)["id"]] == [1, 2]
    with pytest.warns(UserWarning, match=rf"^left out 1 of 3 rows:\n{path}:2: expected an object.+got int$"):
        rows.close()


def test_lenient_says_nothing_of_a_good_file(path):
    assert list(read_preferences(lines(path, [texts(1)]), strict=False)) == [messages(1)]  # warnings are errors here


def test_a_file_without_a_good_row_is_an_error(path):
    problems = []
    with pytest.raises(ValueError) as raised:
        load_preferences(lines(path, [3, b"{"]), strict=False, problems=problems)
    assert str(raised.value) == (
        f"{path}: none of its 2 rows can be used, the first because of {path}:1: "
        "expected an object with `chosen` and `rejected`, got int"
    )
    assert [problem.split(": ")[0] for problem in problems] == [f"{path}:1", f"{path}:2"]
    with pytest.raises(ValueError, match=rf"^{path} is empty: it needs one JSON value a line"):
        list(read_preferences(lines(path, [b"", b" "]), strict=False))


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000], ids=["a huge number", "deep brackets"])
def test_what_python_cannot_read_is_named_as_well(path, text):
    with pytest.raises(ValueError, match=rf"^{path}:2: cannot be read as JSON \(.+\)$"):
        list(read_jsonl(lines(path, [1, text.encode()])))


# Columns


class Row(dict):
    """Counts how many rows exist at one time."""

    alive = most = 0

    def __init__(self, **columns):
        super().__init__(columns)
        Row.alive += 1
        Row.most = max(Row.most, Row.alive)

    def __del__(self):
        Row.alive -= 1


def test_a_data_set_takes_rows_up_in_chunks():
    """A chunk lives until the next one is complete."""
    rows = to_dataset((Row(number=number) for number in range(5 * CHUNK)), "rows")
    assert rows["number"][:] == list(range(5 * CHUNK))
    assert Row.most <= 2 * CHUNK + 1 and Row.alive == 0


def test_columns_may_come_and_go_from_chunk_to_chunk(path):
    """The second chunk has a new column, a new field in its messages, and the first value of `tags`."""
    rows = [{**texts(number), "tags": []} for number in range(CHUNK)]
    rows += [{**messages(CHUNK), "prompt": [{**user("Hi"), "name": "Ann"}], "tags": ["a"], "score": 2}]
    loaded = load_preferences(lines(path, [*rows, {**texts(1), "score": 0.5}]))
    assert loaded.column_names == ["id", "prompt", "chosen", "rejected", "tags", "score"]
    assert len(loaded) == CHUNK + 2
    assert loaded[0] == {**messages(0), "prompt": [{**user("What is 0?"), "name": None}], "tags": [], "score": None}
    assert loaded[CHUNK] == {**rows[-1], "score": 2.0}
    assert loaded[CHUNK + 1]["tags"] is None and loaded["score"][-2:] == [2.0, 0.5]


@pytest.mark.parametrize(
    ("place", "error"),
    [
        (CHUNK - 1, r"column `id` needs one type of value in every row \(.*'x'.*\)"),
        (
            CHUNK,
            r"a column needs one type of value in every row \(.*Field id has incompatible types: int64 vs string\)",
        ),
    ],
    ids=["in one chunk", "in two"],
)
def test_a_column_has_one_type(path, place, error):
    rows = [*map(texts, range(CHUNK + 1))]
    rows[place] |= {"id": "x"}
    with pytest.raises(ValueError, match=rf"^{path}: {error}$"):
        load_preferences(lines(path, rows))


def test_a_number_beyond_64_bits_is_named(path):
    with pytest.raises(ValueError, match=rf"^{path}: column `id` needs one type of value in every row \(.*too large"):
        load_preferences(lines(path, [texts(10**30)]))


# Parquet


def in_parquet(path, rows):
    path = path.with_suffix(".parquet")
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_parquet_holds_the_same_rows(path):
    """Its columns are there in every row, as nothing where a row has no value."""
    talk = [user("Hi"), assistant("Hello.")]
    rows = [
        {"prompt": [user("Hi")], "chosen": talk[1:], "rejected": [assistant("数据 🙂")], "score": 0.5},
        {"prompt": None, "chosen": talk, "rejected": [user("Hi"), assistant("Bye.")], "score": None},
    ]
    path = in_parquet(path, rows)
    assert list(read_preferences(path)) == [
        rows[0],
        {"prompt": [user("Hi")], "chosen": talk[1:], "rejected": [assistant("Bye.")], "score": None},
    ]
    assert load_preferences(path).to_list() == list(read_preferences(path))


def test_parquet_rows_are_counted_from_one_over_all_batches(path):
    rows = [texts(number) for number in range(CHUNK + 5)]
    rows[0]["chosen"], rows[CHUNK + 1]["rejected"] = None, ""
    path = in_parquet(path, rows)
    problems = []
    with pytest.warns(UserWarning, match=rf"^left out 2 of {CHUNK + 5} rows:\n"):
        loaded = load_preferences(path, strict=False, problems=problems)
    assert problems == [
        f"{path}, row 1: a preference needs `chosen`",
        f"{path}, row {CHUNK + 2}, rejected: message 2 (assistant) is empty: give it text or take it out",
    ]
    assert loaded["id"][:2] == [1, 2] and len(loaded) == CHUNK + 3
    with pytest.raises(ValueError, match=rf"^{path}, row 1: a preference needs `chosen`$"):
        next(read_preferences(path))


def test_a_data_set_that_was_saved_as_parquet_comes_back(path):
    Dataset.from_list([messages(1), messages(2)]).to_parquet(path.with_suffix(".PARQUET"))
    assert load_preferences(path.with_suffix(".PARQUET")).to_list() == [messages(1), messages(2)]


def test_demonstrations_may_be_parquet(path):
    rows = [{"messages": None, "prompt": [user("Hi")], "completion": [assistant("Hello.")]}]
    assert load_demos(in_parquet(path, rows)).to_list() == [{"messages": [user("Hi"), assistant("Hello.")]}]


def test_damaged_parquet_is_named(path):
    good = in_parquet(path, [texts(number) for number in range(CHUNK)])
    data = good.read_bytes()
    for broken in (b"no Parquet", data[:-20], b"PAR1" + bytes(len(data) // 2) + data[4 + len(data) // 2 :]):
        good.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"^{good}: no readable Parquet after row 0 \("):
            load_preferences(good, strict=False)
    with pytest.raises(ValueError, match=r"prefs.parquet is empty: it needs a row$"):
        load_preferences(in_parquet(path, []))
    with pytest.raises(FileNotFoundError, match=r"^no file at .*gone.parquet"):
        load_preferences(path.with_name("gone.parquet"))


def test_a_data_set_as_it_lies_on_the_hub(tmp_path):
    """UltraFeedback-binarized's files and columns, and HH-RLHF's: nothing but the id in place of the folder differs."""
    ultra, hh = tmp_path / "ultrafeedback", tmp_path / "hh-rlhf"
    (ultra / "data").mkdir(parents=True)
    sides = {side: [user("Why?"), assistant(side)] for side in ("chosen", "rejected")}
    rows = [{"prompt": "Why?", **sides, "score_chosen": score} for score in (8.0, 7.5, 6.0)]
    for split, part in {"train_prefs": rows[:2], "test_prefs": rows[2:]}.items():
        in_parquet(ultra / "data" / f"{split}-00000-of-00001.parquet", part)
    pairs = load_preferences(ultra, split="train_prefs")
    assert pairs["prompt"][0] == [user("Why?")] and pairs["chosen"][1][0]["content"] == "chosen"
    assert pairs["score_chosen"][:] == [8.0, 7.5]
    assert load_preferences(ultra, split="train_prefs[:1]").num_rows == 1
    with pytest.raises(ValueError, match='Unknown split "train"'):
        load_preferences(ultra)
    with pytest.raises(ValueError, match="corresponds to no data"):
        load_preferences(ultra, split="test_prefs[1:]")

    hh.mkdir()
    talks = [
        {"chosen": f"\n\nHuman: Why?\n\nAssistant: {text}", "rejected": "\n\nHuman: Why?\n\nAssistant: No."}
        for text in ("So.", "")
    ]
    (hh / "train.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, talks)).encode()))
    with pytest.raises(ValueError, match=r"hh-rlhf, train, row 2, chosen: message 2 \(assistant\) is empty"):
        load_preferences(hh)
    with pytest.warns(UserWarning, match="left out 1 of 2 rows"):
        assert load_preferences(hh, strict=False)["chosen"][:] == [[assistant("So.")]]


def test_a_file_has_no_splits_and_a_hub_id_offline_is_refused(path, monkeypatch):
    path.write_text('{"messages": []}\n')
    with pytest.raises(ValueError, match="is a file, which has no split 'train': leave it out"):
        load_demos(path, split="train")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"^nothing at some/data, and the course is offline"):
        load_demos("some/data")


def test_a_hub_id_online_goes_to_datasets(monkeypatch):
    asked = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(files, "load_dataset", lambda name, split: asked.append((name, split)) or [{"messages": []}])
    with pytest.raises(ValueError, match=r"^some/data, train\[:5\], row 1: the conversation is empty"):
        load_demos("some/data", split="train[:5]")
    assert asked == [("some/data", "train[:5]")]
