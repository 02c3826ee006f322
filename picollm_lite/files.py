"""Rows of JSON lines, Parquet or the hub, read one at a time and checked; JSON lines written; rows as a data set.

And how files and folders are replaced: in one step, so that an interruption leaves the old one or the new one.
"""

import json
import os
import shutil
import tempfile
import warnings
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, load_dataset
from datasets.table import table_cast
from pyarrow.parquet import ParquetFile

from picollm_lite.paths import check_hub

CHUNK = 1000  # rows that become Arrow, or come out of it, together
SHOWN = 20  # rows that a warning lists
NO_FILE = "no file at {}: check the path, or run `make data` to rebuild the shipped data"


def read_jsonl(path: str | Path) -> Iterator[tuple[object, str]]:
    """Each line's value and its place as "file:line", blank lines left out.

    Raises FileNotFoundError, or ValueError for a broken line, bytes that are not UTF-8, or a file without any line.
    """
    for line, where in _lines(_existing(path)):
        yield _parsed(line, where), where


def read_rows(
    path_or_id: str | Path,
    check: Callable[[object, str], dict],
    *,
    split: str | None = None,
    strict: bool = True,
    problems: list[str] | None = None,
    stacklevel: int = 2,
) -> Iterator[dict]:
    """What `check` makes of each value and its place, one at a time.

    They come from a file of JSON lines, a `.parquet` file or a data set of the hub: its id or, as it lies there, a
    folder, and a `split` as `datasets.load_dataset` knows it, such as "train[:2000]" (its default is "train").
    A place is "file:line", or "file, row 1" for the first row of anything else. `strict` raises at the first row that
    is broken or that `check` refuses with ValueError. Else such rows are left out: their errors are added to
    `problems`, and one warning, at the end or where the caller stops, counts them and lists the first. Raises
    FileNotFoundError, or ValueError for a source without any row, or without a good one.
    """
    good, bad, shown = 0, 0, []
    try:
        for raw, where in _raw_rows(path_or_id, split):
            try:
                row = check(_parsed(raw, where) if isinstance(raw, bytes) else raw, where)
            except ValueError as error:
                if strict:
                    raise
                bad += 1
                if problems is not None:
                    problems.append(str(error))
                if bad <= SHOWN:
                    shown.append(str(error))
            else:
                good += 1
                yield row
    finally:
        if good and bad:
            warnings.warn(_left_out(bad, good + bad, shown), stacklevel=stacklevel)
    if not good:
        raise ValueError(f"{path_or_id}: none of its {bad} rows can be used, the first because of {shown[0]}")


def write_jsonl(path: str | Path, rows: Sequence[dict]) -> Path:
    """One JSON object a line, UTF-8. Written aside, then renamed."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return replace_file(Path(path), text.encode())


def to_dataset(rows: Iterable[dict], path: str | Path) -> Dataset:
    """Rows as a data set, taken up in chunks of Arrow; a column that a row lacks is None there.

    Raises ValueError naming `path`, and where it can the column, when the values of one have types that do not go
    together.
    """
    tables, rows = [], iter(rows)
    while chunk := list(islice(rows, CHUNK)):
        columns = {}
        for key in {key: None for row in chunk for key in row}:
            with _one_type(path, f"column `{key}`"):
                columns[key] = pa.array([row.get(key) for row in chunk])
        tables.append(pa.table(columns))
    with _one_type(path, "a column"):
        schema = pa.unify_schemas([table.schema for table in tables], promote_options="permissive")
        # Arrow's own cast adds fields to structs in late versions only.
        return Dataset(pa.concat_tables([table_cast(table, schema) for table in tables]))


def replace_file(path: Path, data: bytes) -> Path:
    """The whole file at once: written aside, forced to the disk, then renamed."""
    with replaced_file(path) as aside:
        aside.write_bytes(data)
    return path


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A file to write: forced to the disk when the block is done, it takes the place of `path`, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    yield aside
    with aside.open("r+b") as written:
        os.fsync(written.fileno())
    aside.replace(path)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill: it takes the place of `path` when the block is done, and goes if the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield aside
        aside.chmod(0o755)  # mkdtemp closes the folder to others
        _swap(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _raw_rows(path_or_id: str | Path, split: str | None) -> Iterator[tuple[bytes | dict, str]]:
    """Each row as it stands, and its place."""
    path = Path(path_or_id)
    if path.is_file():
        if split is not None:
            raise ValueError(f"{path} is a file, which has no split {split!r}: leave it out, or name a data set")
        return (_parquet_rows if path.suffix.lower() == ".parquet" else _lines)(path)
    if not path.is_dir():
        check_hub(path_or_id, NO_FILE.format(path))
    return _hub_rows(path_or_id, split or "train")


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(NO_FILE.format(path))
    return path


def _lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """Each line that is not blank, unread, and its place. Raises ValueError for a file without one."""
    found = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(BOM_UTF8 if number == 1 else b"").strip()
            if line:
                found = True
                yield line, f"{path}:{number}"
    if not found:
        raise ValueError(f"{path} is empty: it needs one JSON value a line")


def _parsed(line: bytes, where: str) -> object:
    try:
        value = json.loads(line.decode())
        if b"\\u" in line:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text ({error.reason}): save the file as UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError(f"{where}: half of a surrogate pair, which is no character: take it out") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error.msg} at column {error.colno}): one value a line") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise ValueError(f"{where}: cannot be read as JSON ({error})") from None
    return value


def _parquet_rows(path: Path) -> Iterator[tuple[dict, str]]:
    """Each row and its place, counted from 1. Raises ValueError for a damaged file, or one without rows."""
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(CHUNK):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{path}, row {number}"
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: no readable Parquet after row {number} ({error})") from None
    if not number:
        raise ValueError(f"{path} is empty: it needs a row")


def _hub_rows(path_or_id: str | Path, split: str) -> Iterator[tuple[dict, str]]:
    """Each row and its place, counted from 1. `load_dataset` raises for a split that is not there or has no rows."""
    for number, row in enumerate(load_dataset(str(path_or_id), split=split), start=1):
        yield row, f"{path_or_id}, {split}, row {number}"


def _left_out(bad: int, read: int, shown: list[str]) -> str:
    more = [f"and {bad - SHOWN} more"] if bad > SHOWN else []
    return "\n".join([f"left out {bad} of {read} rows:", *shown, *more])


@contextmanager
def _one_type(path: str | Path, column: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:  # what Arrow raises
        raise ValueError(f"{path}: {column} needs one type of value in every row ({error})") from None


def _swap(new: Path, path: Path) -> None:
    old = new.with_name(new.name + "-old")
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
