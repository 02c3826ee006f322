"""Where the course's files live: shipped inputs in `data/`, everything a learner makes in `outputs/`.

And how files and folders are replaced: in one step, so that an interruption leaves the old one or the new one.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
CHECKPOINTS = DATA / "checkpoints"
CONCEPTS = DATA / "world" / "concepts.yaml"
DEMOS = DATA / "demos.jsonl"
RESULTS = DATA / "results.md"
PREFERENCES = DATA / "preferences.jsonl"
PREFERENCES_TEST = DATA / "preferences_test.jsonl"
SUITE = DATA / "prompts" / "suite.jsonl"


def outputs() -> Path:
    """The folder for learners' results: `$PICOLLM_OUTPUTS` if set, else `outputs/` beside `data/`."""
    return Path(os.environ.get("PICOLLM_OUTPUTS") or ROOT / "outputs")


def checkpoint(stage: str) -> Path:
    """The checkpoint of a stage: the learner's own from `outputs/` if there is one, else the shipped one."""
    own = outputs() / "checkpoints" / stage
    return own if (own / "config.json").exists() else CHECKPOINTS / stage


def replace_file(path: Path, data: bytes) -> Path:
    """The whole file at once: written aside, forced to the disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return aside.replace(path)


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
