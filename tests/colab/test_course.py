"""The course with Colab's versions of what it needs: every module, and a notebook with short training."""

import json
import os
import subprocess
import sys
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
    templates = Path(sys.prefix, "share", "jupyter")  # nbconvert looks for its own only where Python is
    environment = {"PICOLLM_QUICK": "2", "PICOLLM_SOLVE": "1", "JUPYTER_PATH": str(templates)}
    run("-m", "picollm_lite.course", "--only", "01", "--outputs", tmp_path, **environment)
    (path,) = (tmp_path / "notebooks").glob("01_*.ipynb")
    printed = [
        output.get("text", "") for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])
    ]
    assert any(f"transformers {PINS['transformers']}\n" in text for text in printed)
