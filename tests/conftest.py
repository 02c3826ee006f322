"""Tests run offline, with the same examples each time, and on two threads: of one process, or one in each of two."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", MPLBACKEND="Agg")
os.environ.update(OMP_NUM_THREADS=THREADS, PICOLLM_THREADS=THREADS)  # the second for notebooks, which set their own

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def unavailable() -> Callable[[str], NoReturn]:
    """Skips with a reason; but in CI, a check that did not run must not look like one that passed."""

    def stop(reason):
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)

    return stop


@pytest.fixture(scope="session")
def colab(root: Path, unavailable: Callable[[str], NoReturn]) -> Path:
    """The environment with Colab's versions of what the course needs."""
    folder = root / ".venv-colab"
    if not (folder / ".installed").exists():
        unavailable("no .venv-colab: `make test` builds it")
    return folder


@pytest.fixture(scope="session")
def tracked(root: Path) -> list[str]:
    """Every file that is, or that `git add .` would make, part of the repository; paths from its root."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in listing.split("\0") if name and (root / name).exists())
