"""Tests run offline, on two threads, and with the same examples each time."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OMP_NUM_THREADS="2", MPLBACKEND="Agg")

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tracked(root: Path) -> list[str]:
    """Every file that is, or that `git add .` would make, part of the repository; paths from its root."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in listing.split("\0") if name and (root / name).exists())
