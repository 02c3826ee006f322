"""A labeler's file: choices as preference rows that `load_preferences` reads, ties and skips in a file beside it.

A choice is one line of `labels.jsonl`: `prompt`, `chosen`, `rejected`, `id`, `annotator`, `label` ("a" or "b", as it
stood on the screen) and `shown_first`, the side of the source pair that stood as A: "a" or "b" of an `AnswerPair`,
"chosen" or "rejected" of a preference row. A tie or a skip prefers nothing, so it is no such row: it goes to
`labels_undecided.jsonl`, with the same fields but the texts. Each line is on the disk before the next pair is shown,
and undo replaces a file in one step, so a crash loses at most the line being written.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from picollm_lite.files import read_jsonl, replace_file

CHOICES, UNDECIDED = ("a", "b"), ("tie", "skip")
SIDES = {"a": "a", "b": "b", "chosen": "a", "rejected": "b"}  # a preference row as a pair: its chosen answer is a
OPENING = b'{"id": "'  # of every line


class Labels(NamedTuple):
    """What a labeler has done so far."""

    by_id: dict[str, str]  # a pair's id -> "a", "b", "tie" or "skip"
    shown_first: dict[str, str]  # a pair's id -> the side of the source pair that stood as A
    note: str  # what had to be mended, in one line; empty when nothing


def undecided_path(path: Path) -> Path:
    """Where ties and skips go."""
    return path.with_name(f"{path.stem}_undecided{path.suffix}")


def has_rows(file: Path) -> bool:
    """Whether a loader finds anything in the file."""
    return file.exists() and bool(file.read_bytes().strip())


def read_labels(path: Path, labeler: str) -> Labels:
    """This labeler's labels in both files; those of others are left alone. A half-written last line is cut off.

    Raises ValueError naming file and line for a line that is no label, or a second label for one pair.
    """
    labels = Labels({}, {}, "; ".join(filter(None, map(_mend, (path, undecided_path(path))))))
    for row, _ in read_rows(path):
        if row["annotator"] == labeler:
            labels.by_id[row["id"]] = row["label"]
            labels.shown_first[row["id"]] = row["shown_first"]
    return labels


def read_rows(path: Path) -> Iterator[tuple[dict, str]]:
    """Everybody's labels in both files, each with its place as "file:line". Raises as `read_labels` does."""
    seen = set()
    for file, allowed in ((path, CHOICES), (undecided_path(path), UNDECIDED)):
        for row, where in read_jsonl(file) if has_rows(file) else ():
            _check(row, where, allowed)
            if (row["id"], row["annotator"]) in seen:
                raise ValueError(f"{where}: a second label for pair {row['id']} by {row['annotator']}: take one out")
            seen.add((row["id"], row["annotator"]))
            yield row, where


def add_label(path: Path, row: dict) -> None:
    """Append one row to the file its `label` belongs to. It is on the disk when this returns."""
    file = path if row["label"] in CHOICES else undecided_path(path)
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as out:
        out.write(line)
        out.flush()
        os.fsync(out.fileno())


def remove_label(path: Path, pair_id: str, labeler: str) -> None:
    """Take the labeler's label for a pair out of its file; all other lines stay as they are."""
    for file in (path, undecided_path(path)):
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        kept = [line for line in lines if not line.strip() or not _is_label(json.loads(line), pair_id, labeler)]
        if len(kept) < len(lines):
            _replace(file, b"".join(kept))


def _mend(file: Path) -> str:
    """Cut off a last line that a crash left half written. Returns what was done, in one line."""
    data = file.read_bytes() if file.exists() else b""
    start = data.rfind(b"\n") + 1
    tail = data[start:]
    if not tail or not (tail.startswith(OPENING) or OPENING.startswith(tail)):  # a file that is not ours stays as it is
        return ""
    try:
        json.loads(tail)
    except ValueError:
        _replace(file, data[:start])
        return f"cut off the last line of {file.name}, half written when an earlier session broke off"
    _replace(file, data + b"\n")  # only the end of the line was missing
    return ""


def _replace(file: Path, data: bytes) -> None:
    """The whole file at once. A file without a row goes, since no loader reads one."""
    if data.strip():
        replace_file(file, data)
    else:
        file.unlink()


def _check(row: object, where: str, allowed: tuple[str, ...]) -> None:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("id", "annotator", "label")):
        raise ValueError(f"{where}: no label of this widget, which has `id`, `annotator` and `label`: use another file")
    if row["label"] not in allowed or row.get("shown_first") not in SIDES:
        raise ValueError(
            f"{where}: expected a label out of {', '.join(allowed)} and `shown_first` out of {', '.join(SIDES)}, "
            f"got {row['label']!r} and {row.get('shown_first')!r}"
        )


def _is_label(row: dict, pair_id: str, labeler: str) -> bool:
    return (row["id"], row["annotator"]) == (pair_id, labeler)
