"""Where the course's files live: shipped inputs in `data/`, everything a learner makes in `outputs/`."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
CHECKPOINTS = DATA / "checkpoints"
CONCEPTS = DATA / "world" / "concepts.yaml"
DEMOS = DATA / "demos.jsonl"
RESULTS = DATA / "results.md"
QUALITY = DATA / "quality.jsonl"
SEEDS = DATA / "seeds.jsonl"
PREFERENCES = DATA / "preferences.jsonl"
PREFERENCES_TEST = DATA / "preferences_test.jsonl"
SUITE = DATA / "prompts" / "suite.jsonl"


def outputs() -> Path:
    """The folder for learners' results: `$PICOLLM_OUTPUTS` if set, else `outputs/` beside `data/`."""
    return Path(os.environ.get("PICOLLM_OUTPUTS") or ROOT / "outputs")


def shown(path_or_id: str | Path) -> str:
    """A path as readers elsewhere know it: from the project's root on where it lies inside, else as it was given."""
    place = Path(path_or_id).resolve()
    return place.relative_to(ROOT).as_posix() if place.exists() and place.is_relative_to(ROOT) else str(path_or_id)


def checkpoint(stage: str) -> Path:
    """The checkpoint of a stage: the learner's own from `outputs/` if there is one, else the shipped one."""
    own = outputs() / "checkpoints" / stage
    return own if (own / "config.json").exists() else CHECKPOINTS / stage


def check_hub(path_or_id: str | Path, missing: str) -> None:
    """Raise FileNotFoundError unless this is the id of something on the hub, and we may go online to fetch it.

    `missing` begins the error where the argument must have been meant for something here, which is not there.
    """
    looks_like_id = isinstance(path_or_id, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path_or_id, re.ASCII)
    if not looks_like_id or Path(path_or_id).parent.exists():
        raise FileNotFoundError(missing)
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "on", "yes"):
        raise FileNotFoundError(
            f"nothing at {path_or_id}, and the course is offline: to take it from the hub, set HF_HUB_OFFLINE=0 and "
            "restart"
        )
