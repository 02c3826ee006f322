"""Which data a report speaks of: rows, sha256, and who labeled."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from picollm_lite.data import read_preferences
from picollm_lite.files import read_rows
from picollm_lite.formats import demonstration
from picollm_lite.paths import shown

NOBODY = "nobody named"


class DataFile(NamedTuple):
    """A file of demonstrations or preferences; `labelers` counts pairs by annotator, None where no row names one."""

    kind: str
    path: str
    rows: int
    sha256: str
    labelers: dict[str, int] | None


def describe_demos(path: str | Path) -> DataFile:
    """Every row is read and checked; raises as `load_demos` does."""
    return _described("demonstrations", path, read_rows(path, demonstration))


def describe_preferences(path: str | Path) -> DataFile:
    """Every row is read and checked; raises as `load_preferences` does."""
    return _described("preferences", path, read_preferences(path))


def _described(kind: str, path: str | Path, rows: Iterable[dict]) -> DataFile:
    names = (row.get("annotator") for row in rows)
    labelers = Counter(NOBODY if name is None else str(name) for name in names)
    with Path(path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    recorded = dict(labelers.most_common()) if set(labelers) != {NOBODY} else None
    return DataFile(kind, shown(path), labelers.total(), sha256, recorded)
