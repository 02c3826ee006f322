"""nbval, with the hooks of notebooks/conftest.py, on sample notebooks in a temporary folder."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

PRINTED = new_output("stream", name="stdout", text="1\n")
RESULT = new_output("execute_result", data={"text/plain": "2"}, execution_count=1)


@pytest.fixture
def nbval(root, tmp_path):
    """Runs nbval over cells given as (source, stored outputs) and returns its exit code and report."""

    def run(*cells):
        shutil.copy(root / "notebooks" / "conftest.py", tmp_path)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        made = [new_code_cell(source, outputs=outputs, execution_count=1) for source, outputs in cells]
        nbformat.write(new_notebook(cells=made), tmp_path / "sample.ipynb")
        command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", str(tmp_path)]
        environment = {**os.environ, "PICOLLM_OUTPUTS": str(tmp_path / "mine")}
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return ran.returncode, ran.stdout + ran.stderr

    return run


def test_good_notebook_passes_and_writes_to_a_scratch_folder(nbval):
    where = "import os, pathlib\nassert pathlib.Path(os.environ['PICOLLM_OUTPUTS']).name == 'sample'"
    status, report = nbval(("print(1)", [PRINTED]), ("1 + 1", [RESULT]), (where, []))
    assert status == 0, report


def test_each_cell_with_a_wrong_stored_output_fails(nbval):
    quiet = "def f(): print(1)\nif True: f()"  # no rule that reads the source could know that this prints
    status, report = nbval((quiet, []), ("1 + 1", []), ("x = 1", [PRINTED]), ("print(1)", [PRINTED]))
    assert status == 1
    assert "3 failed, 1 passed" in report, report
    assert "its stored output does not" in report and "the stored output shows text" in report
