"""The course with Colab's versions of what it needs: every module, and a notebook with short training."""

import json
import os
import subprocess
from pathlib import Path

import nbformat
import pytest

PINS = dict(
    line.split("==")
    for line in (Path(__file__).parent / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)
IMPORT_ALL = """
import importlib, json, pkgutil, sys
from importlib.metadata import version
import picollm_lite
for module in pkgutil.walk_packages(picollm_lite.__path__, "picollm_lite."):
    importlib.import_module(module.name)
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


@pytest.fixture
def run(colab, root):
    """Runs that environment's Python."""

    def start(*arguments, **environment):
        command = [colab / "bin" / "python", *arguments]
        ran = subprocess.run(command, cwd=root, env={**os.environ, **environment}, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    return start


def test_every_module_imports(run):
    assert json.loads(run("-c", IMPORT_ALL, *PINS)) == PINS


def test_a_notebook_runs(run, tmp_path):
    run("-m", "picollm_lite.course", "--only", "03", "--outputs", tmp_path, PICOLLM_QUICK="2", PICOLLM_SOLVE="1")
    cells = nbformat.read(tmp_path / "notebooks" / "03_reward_model.ipynb", as_version=4).cells
    printed = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    assert f"transformers {PINS['transformers']}" in printed
