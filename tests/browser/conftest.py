"""JupyterLab and a browser for each file of tests. Where there is none, they are skipped; in CI they fail."""

import os

import pytest
from playwright.sync_api import sync_playwright

from .chromium import find
from .driver import Notebook
from .lab import Lab

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser(unavailable):
    """Closed after each file of tests: while Playwright is open, other code here could not use asyncio."""
    path = find()
    if path is None:
        unavailable("no Chromium or Chrome: install one, or see what `python tests/browser/chromium.py` says")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def start_lab(tmp_path_factory):
    """Starts a server on a folder; the environment `colab` puts Colab's versions behind notebooks and in the page."""

    def start(root, *, colab=None):
        home = tmp_path_factory.mktemp("jupyter")
        env = {
            "HF_HUB_OFFLINE": "1",
            **dict.fromkeys(["OMP_NUM_THREADS", "PICOLLM_THREADS"], "1"),  # the browser wants the other core
            "PICOLLM_QUICK": os.environ.get("PICOLLM_QUICK", "4"),
            "PICOLLM_SOLVE": "1",
        }
        return Lab(home, root, env, colab=colab)

    return start


@pytest.fixture(autouse=True)
def no_problems(request):
    """No console errors, no dialogs, no requests to other machines."""
    yield
    notebook = request.node.funcargs.get("notebook")
    if notebook is not None:
        problems, notebook.page.problems[:] = list(notebook.page.problems), []
        assert problems == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A picture of the page, where a test of it failed."""
    report = yield
    notebook = item.funcargs.get("notebook")
    if report.failed and call.when == "call" and isinstance(notebook, Notebook):
        path = notebook.lab.home / f"{item.name}.png"
        notebook.page.screenshot(path=path)
        report.sections.append(("page", f"{path}, {notebook.lab.log}"))
    return report
