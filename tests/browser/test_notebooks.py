"""The course's notebooks, as stored and then run from top to bottom with short training (PICOLLM_QUICK)."""

import shutil
from pathlib import Path

import nbformat
import pytest

from . import checks, screenshots
from .driver import Notebook, open_page

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
RUN_SECONDS = 600


def stored_pictures(notebook):
    """Before it was run, the notebook showed every picture that is stored in it."""
    cells = nbformat.read(NOTEBOOKS / Path(notebook.path).name, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert notebook.stored_pictures == sum("image/png" in output.get("data", {}) for output in outputs)


USED = {
    "00_start_here": [stored_pictures, checks.playground],
    "02_preference_data": [stored_pictures, checks.labelling],
    "03_reward_model": [stored_pictures, checks.panels_move, checks.reward_explorer],
    "04_ppo": [stored_pictures, checks.panels_move, checks.token_lens, checks.sliders],
    "05_dpo": [stored_pictures, checks.panels_move, checks.sliders],
    "06_online_loops": [stored_pictures, checks.panels_move, checks.sliders],
    "07_evaluation": [stored_pictures, checks.sliders],
    "08_scaling_up": [stored_pictures, checks.panels_move],
}


@pytest.fixture(scope="module")
def lab(start_lab, tmp_path_factory):
    """JupyterLab on a copy: it rewrites the .py of a pair when it saves."""
    root = tmp_path_factory.mktemp("course")
    shutil.copytree(NOTEBOOKS, root / "notebooks", ignore=shutil.ignore_patterns("*.py", ".*", "__pycache__"))
    with start_lab(root) as lab:
        yield lab


@pytest.fixture(scope="module")
def notebook(lab, browser, request):
    with open_page(browser) as page:
        notebook = Notebook(page, lab, f"notebooks/{request.param}.ipynb")
        notebook.stored_pictures = notebook.pictures()
        notebook.run_all(RUN_SECONDS)
        screenshots.take(notebook)
        yield notebook
    lab.end_kernels()


@pytest.mark.parametrize(
    ("notebook", "check"),
    [
        pytest.param(name, check, id=f"{name}-{check.__name__}", marks=pytest.mark.xdist_group(name))
        for name, used in USED.items()
        for check in used
    ],
    indirect=["notebook"],
)
def test_widget(notebook, check):
    check(notebook)
