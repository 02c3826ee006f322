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


@pytest.fixture(scope="module")
def lab(start_lab, tmp_path_factory):
    """JupyterLab on a copy: it rewrites the .py of a pair when it saves."""
    root = tmp_path_factory.mktemp("course")
    shutil.copytree(NOTEBOOKS, root / "notebooks", ignore=shutil.ignore_patterns("*.py", ".*", "__pycache__"))
    with start_lab(root) as lab:
        yield lab


@pytest.fixture(scope="class")
def notebook(lab, browser, request):
    with open_page(browser) as page:
        notebook = Notebook(page, lab, f"notebooks/{request.param}.ipynb")
        notebook.stored_pictures = notebook.pictures()
        notebook.run_all(RUN_SECONDS)
        screenshots.take(notebook)
        yield notebook
    lab.end_kernels()


def class_of(name, *used):
    """A class of its own for each notebook, as classes are what two processes share (`--dist loadscope`)."""

    @pytest.mark.parametrize("notebook", [name], indirect=True)
    class Tests:
        @pytest.mark.parametrize("check", [stored_pictures, *used], ids=lambda check: check.__name__)
        def test_widget(self, notebook, check):
            check(notebook)

    return Tests


TestStartHere = class_of("00_start_here", checks.playground)
TestPreferenceData = class_of("02_preference_data", checks.labelling)
TestRewardModel = class_of("03_reward_model", checks.panels_move, checks.reward_explorer)
TestPPO = class_of("04_ppo", checks.panels_move, checks.token_lens, checks.sliders)
TestDPO = class_of("05_dpo", checks.panels_move, checks.sliders)
TestOnlineLoops = class_of("06_online_loops", checks.panels_move, checks.sliders)
TestEvaluation = class_of("07_evaluation", checks.sliders)
TestScalingUp = class_of("08_scaling_up", checks.panels_move)
