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


def checkpoint(stage: str) -> Path:
    """The checkpoint of a stage: the learner's own from `outputs/` if there is one, else the shipped one."""
    own = outputs() / "checkpoints" / stage
    return own if (own / "config.json").exists() else CHECKPOINTS / stage
