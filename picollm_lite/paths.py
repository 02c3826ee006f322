"""Where the course's files live: shipped inputs in `data/`, everything a learner makes in `outputs/`."""

import os
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
