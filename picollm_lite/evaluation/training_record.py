"""What a checkpoint was trained with, and for how long: an optional file in its folder."""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from picollm_lite.files import replace_file

FILE = "training.json"


class TrainingRecord(NamedTuple):
    """Settings by name, whatever JSON can hold, and seconds of wall time, None where they are not known."""

    settings: dict[str, object]
    seconds: float | None


def save_settings(folder: str | Path, settings: Mapping[str, object], seconds: float | None = None) -> Path:
    """Write `training.json` beside the weights; `models.save` takes it away, since it was true of the old ones.

    Raises FileNotFoundError unless `folder` holds a checkpoint, ValueError for settings that JSON cannot hold and for a
    time that is no time.
    """
    path = Path(folder) / FILE
    if not path.with_name("config.json").exists():
        raise FileNotFoundError(f"{folder} holds no checkpoint (no config.json): save the model first")
    record = _checked({"settings": dict(settings), "seconds": seconds}, path)
    try:
        text = json.dumps(record._asdict(), indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected settings that JSON can hold, got some that it cannot ({error})") from None
    return replace_file(path, f"{text}\n".encode())


def defaults(run: Callable, *names: str) -> dict[str, object]:
    """The settings that a run has where it is given none: these, or all of them."""
    parameters = inspect.signature(run).parameters
    return {name: parameters[name].default for name in names or parameters}


def load_settings(folder: str | Path) -> TrainingRecord | None:
    """What `save_settings` wrote; None where nothing is recorded. Raises ValueError for a file that cannot be read."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        row = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}): write it with save_settings, or remove it") from None
    return _checked(row, path)


def _checked(row: object, path: Path) -> TrainingRecord:
    settings, seconds = (row.get("settings"), row.get("seconds")) if isinstance(row, dict) else (None, None)
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    timed = seconds is None or (number and math.isfinite(seconds) and seconds >= 0)
    if not (isinstance(settings, dict) and timed):
        raise ValueError(
            f"{path}: expected `settings` by name and `seconds` from 0 on, got {settings!r} and {seconds!r}: "
            "write it with save_settings, or remove it"
        )
    return TrainingRecord(settings, None if seconds is None else float(seconds))
