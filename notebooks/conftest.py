"""nbval (`make test`) runs each notebook alone and offline, from the shipped checkpoints, and catches lost outputs."""

import os
import tempfile
from pathlib import Path

import pytest

OUTPUT_TIMEOUT = 120  # seconds; nbval waits a fixed 5 for a cell's next output, which a busy machine can miss


def shown(outputs):
    """What kinds of output a reader sees: text, and pictures or values. Warnings on stderr may come and go."""
    kinds = set()
    for output in outputs:
        if output.output_type == "stream" and output.name == "stdout" and output.text.strip():
            kinds.add("text")
        elif output.output_type in ("display_data", "execute_result"):
            kinds.add("a picture or value")
    return kinds


def difference(stored, ran):
    """One line where the stored outputs show something else than the cell does, else None."""
    lost, stale = sorted(shown(ran) - shown(stored)), sorted(shown(stored) - shown(ran))
    if lost:
        return f"the cell shows {' and '.join(lost)}, but its stored output does not: run `make store`"
    if stale:
        return f"the stored output shows {' and '.join(stale)}, but the cell does not: run `make store`"
    return None


def pytest_configure(config):
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    if "PYTEST_XDIST_WORKER" in os.environ:  # two notebooks at a time share two cores
        os.environ.update(OMP_NUM_THREADS="1", PICOLLM_THREADS="1")
    config.nbval_scratch = tempfile.TemporaryDirectory()


def pytest_unconfigure(config):
    config.nbval_scratch.cleanup()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # Before the notebook's kernel starts: what a notebook writes must not reach the tree or the next notebook.
    item.output_timeout = OUTPUT_TIMEOUT
    os.environ["PICOLLM_OUTPUTS"] = str(Path(item.config.nbval_scratch.name, item.path.stem))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    result = yield
    if item.test_outputs is not None and (message := difference(item.cell.outputs, item.test_outputs)):
        item.raise_cell_error(message)
    return result
