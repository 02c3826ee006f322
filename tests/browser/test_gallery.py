"""Every widget of the course in one notebook, with the Jupyter of the lock and with Colab's."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from . import checks, screenshots
from .driver import Notebook, label_of, open_page

KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}
CELLS = [
    """
import os, time
from pathlib import Path
from typing import NamedTuple

import transformers

from picollm_lite.evaluation.frontier import Point
from picollm_lite.models import RewardModel, load_policy
from picollm_lite.paths import CHECKPOINTS
from picollm_lite.stages.sampling import Sample
from picollm_lite.ui.explorers.frontier import frontier
from picollm_lite.ui.explorers.playground import playground
from picollm_lite.ui.explorers.reward_explorer import reward_explorer
from picollm_lite.ui.explorers.sliders import Checkpointed, best_of_n, beta_slider, kl_budget
from picollm_lite.ui.explorers.token_lens import token_lens
from picollm_lite.ui.labelling import label_pairs
from picollm_lite.ui.panel import TrainingPanel

transformers.utils.logging.disable_progress_bar()
HOSTILE = "<img src=x onerror=alert(1)>"
QUESTION = "What is a KV cache?"
""",
    """
class Step(NamedTuple):
    step: int
    steps: int
    proxy: float
    gold: float
    kl: float
    samples: tuple

def run(steps):
    for step in range(1, steps + 1):
        time.sleep(0.3)
        answer = Sample(QUESTION, f"{HOSTILE} after {step} steps", 0.1 * step, 0.5 * step - 3)
        yield Step(step, steps, 0.1 * step, 0.3 - 0.02 * step**2, 0.1 * step, (answer,))

TrainingPanel("a run", {"reward": ("proxy", "gold"), "KL, nats an answer": ("kl",)}).follow(run(6));
""",
    "beta_slider([-1.0, -0.2, 0.1, 0.4, 2.0])",
    """
rows = [(2, 0.5, 1.0, 0.9), (4, 1.0, 1.5, 1.2), (6, 3.0, 2.0, 0.5), (8, 8.0, 2.5, -0.5)]
kl_budget([Checkpointed("ppo", *row, Sample(QUESTION, f"{HOSTILE} {row[0]}", *row[2:])) for row in rows])
""",
    """
points = [Point(0.0, [0.1, 0.2], [0.0, 0.1], "n = 1"), Point(1.0, [0.5, 0.7], [1.0, 1.2], HOSTILE)]
frontier({HOSTILE: points, "PPO": [*points, Point(4.0, [0.2, 0.3], [2.0, 2.1], "a = 1")]})
""",
    """
texts = [[f"{HOSTILE} {n}" for n in range(8)], [f"answer {n}" for n in range(8)]]
scores = [[0.1 * n for n in range(8)], [0.2 * n for n in range(8)]]
best_of_n([QUESTION, "What is attention?"], texts, scores, [[-score for score in row] for row in scores])
""",
    """
tokens = ["A", " cache", HOSTILE]
token_lens({
    "first": (tokens, {"log-ratio": [0.1, -0.5, 1.0], "advantage": [0.2, 0.1, -1.0]}),
    "second": (tokens[:2], {"log-ratio": [0.3, 0.2], "advantage": [-0.2, 0.4]}),
})
""",
    """
sft, tokenizer = load_policy(CHECKPOINTS / "sft", device="cpu")
dpo, _ = load_policy(CHECKPOINTS / "dpo", device="cpu")
reward_model = RewardModel.load(CHECKPOINTS / "reward", device="cpu")
reward_explorer(QUESTION, reward_model)
""",
    "playground({'SFT': sft, 'DPO': dpo}, tokenizer, [QUESTION], ref=sft, reward_model=reward_model)",
    """
def messages(role, text):
    return [{"role": role, "content": text}]

pairs = [
    {"id": f"pair-{n}", "prompt": messages("user", QUESTION), "chosen": messages("assistant", f"A cache, {n}."),
     "rejected": messages("assistant", f"{HOSTILE} {n}")}
    for n in range(4)
]
label_pairs(pairs, Path(os.environ["PICOLLM_OUTPUTS"], "labels.jsonl"))
""",
]
PANEL = 1  # its place in CELLS
SLIDERS = {
    "beta",
    "KL budget, nats an answer",
    "KL to read at, nats an answer",
    "n, answers to pick from",
    "temperature",
}


@pytest.fixture(scope="module", params=["locked", "colab"])
def lab(request, start_lab, tmp_path_factory):
    root = tmp_path_factory.mktemp("gallery")
    cells = [new_code_cell(source.strip()) for source in CELLS]
    gallery = new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC})
    nbformat.write(gallery, root / f"gallery_{request.param}.ipynb")
    colab = request.getfixturevalue("colab") if request.param == "colab" else None
    with start_lab(root, colab=colab) as lab:
        yield lab


@pytest.fixture(scope="module")
def notebook(lab, browser):
    with open_page(browser) as page:
        notebook = Notebook(page, lab, next(lab.root.glob("gallery_*")).name)
        notebook.run_all(seconds=300)
        screenshots.take(notebook)
        yield notebook


CHECKS = [
    *(checks.panels_move, checks.sliders, checks.token_lens, checks.reward_explorer, checks.playground),
    *(checks.labelling, checks.nothing_hostile_came_alive),
]


def test_front_end_is_as_old_as_the_kernel_s_widgets(notebook):
    kinds = {"noUi-handle" in handle.get_attribute("class") for handle in notebook.handles()}
    assert kinds == {not notebook.lab.colab}


def test_gallery_has_every_slider(notebook):
    assert {label_of(handle) for handle in notebook.handles()} == SLIDERS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_widget(notebook, check):
    check(notebook)


def test_another_s_notebook_shows_pictures(notebook, browser):
    """Without trust in its widgets, as after a download."""
    notebook.save()
    saved = nbformat.read(notebook.lab.root / notebook.path, as_version=4)
    saved.cells.append(new_code_cell("'not signed by this server'"))
    nbformat.write(saved, notebook.lab.root / "copy.ipynb")
    with open_page(browser) as page:
        assert Notebook(page, notebook.lab, "copy.ipynb").pictures() == len(CELLS) - PANEL
        assert page.problems == []


def test_a_notebook_of_one_s_own_still_shows_its_run(notebook, browser):
    """Opened again when its kernel is gone, it has pictures only where no widget was left."""
    notebook.save()
    notebook.lab.end_kernels()
    with open_page(browser) as page:
        assert Notebook(page, notebook.lab, notebook.path).pictures() == PANEL
