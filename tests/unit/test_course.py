"""Executing notebooks for learners and for authors, on sample notebooks in a temporary folder."""

import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from picollm_lite import course

TWO_CELLS = """# %% [markdown]
# # Title

# %% tags=["nbval-check-output"]
print("CLAIM ok: one is one")

# %%
import sys
print(sys.executable)
"""


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A notebooks folder of our own, with 00_sample.py in it."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "00_sample.py").write_text(TWO_CELLS)
    monkeypatch.setattr(course, "NOTEBOOKS", folder)
    monkeypatch.setenv("PICOLLM_OUTPUTS", str(tmp_path / "outputs"))
    return folder


def test_store_then_course(notebooks, tmp_path, capfd):
    assert course.main(["--store"]) == 0
    stored = notebooks / "00_sample.ipynb"
    first = stored.read_bytes()
    assert course.main(["--store"]) == 0
    assert stored.read_bytes() == first  # cell ids and metadata stay
    nb = nbformat.read(stored, as_version=4)
    assert nb.cells[1].outputs[0].text == "CLAIM ok: one is one\n"
    assert nb.cells[1].metadata == {"tags": ["nbval-check-output"]}
    assert nb.metadata.kernelspec == course.KERNELSPEC

    assert course.main(["--outputs", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "notebooks" / "00_sample.ipynb").exists()
    assert "CLAIM ok: one is one" in (tmp_path / "mine" / "notebooks" / "00_sample.html").read_text()
    assert stored.read_bytes() == first
    name, minutes, claims = capfd.readouterr().out.splitlines()[-2].split()
    assert (name, claims) == ("00_sample", "1") and float(minutes) < 5


def test_a_failing_cell_is_named_and_its_copy_kept(notebooks, tmp_path, capfd):
    cells = [new_markdown_cell("text"), new_code_cell("x = 1"), new_code_cell("# why\n1 / 0"), new_code_cell("x")]
    nbformat.write(new_notebook(cells=cells), notebooks / "01_broken.ipynb")
    assert course.main(["--only", "01"]) == 1
    error = capfd.readouterr().err
    assert "01_broken: code cell 2 failed: # why" in error
    assert error.rstrip().endswith("ZeroDivisionError: division by zero")
    copy = nbformat.read(tmp_path / "outputs" / "notebooks" / "01_broken.ipynb", as_version=4)
    assert copy.cells[2].outputs[0].output_type == "error"


def test_a_failing_cell_leaves_the_stored_notebook_alone(notebooks, tmp_path):
    stored = notebooks / "00_sample.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("print(1)")]), stored)
    before = stored.read_bytes()
    (notebooks / "00_sample.py").write_text("# %%\n1 / 0\n")
    assert course.main(["--store"]) == 1
    assert stored.read_bytes() == before
    assert (tmp_path / "outputs" / "notebooks" / "00_sample.ipynb").exists()


def test_a_path_in_the_environment_counts_from_where_the_course_is_started(notebooks, tmp_path, monkeypatch, capfd):
    """Kernels run in notebooks/. What is not there may be an id of the hub, and stays."""
    cell = new_code_cell("import os\nprint(os.environ['PICOLLM_PREFERENCES'], os.environ['PICOLLM_MODEL'])")
    nbformat.write(new_notebook(cells=[cell]), notebooks / "00_sample.ipynb")
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PICOLLM_PREFERENCES", "mine")
    monkeypatch.setenv("PICOLLM_MODEL", "owner/model")
    assert course.main([]) == 0
    copy = nbformat.read(tmp_path / "outputs" / "notebooks" / "00_sample.ipynb", as_version=4)
    assert copy.cells[0].outputs[0].text == f"{tmp_path / 'mine'} owner/model\n"


def test_a_page_that_cannot_be_written_is_not_passed_over(notebooks, tmp_path):
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), notebooks / "00_sample.ipynb")
    (tmp_path / "outputs" / "notebooks" / "00_sample.html").mkdir(parents=True)
    with pytest.raises(OSError):
        course.main([])


@pytest.mark.parametrize("arguments", [["--only", "07"], []])
def test_no_such_notebook_is_one_clear_line(notebooks, capsys, arguments):
    assert course.main(arguments) == 1  # there is no .ipynb yet
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_ids_follow_their_cells(notebooks):
    stored = new_notebook(cells=[new_code_cell("b = 2", id="second"), new_code_cell("a = 1", id="first")])
    nbformat.write(stored, notebooks / "00_sample.ipynb")
    (notebooks / "00_sample.py").write_text("# %%\nnew = 0\n\n# %%\nb = 2\n\n# %%\na = 1\n")
    assert [cell.id for cell in course.from_source(notebooks / "00_sample.py").cells][1:] == ["second", "first"]


def test_clean_drops_what_is_of_one_run_or_machine(notebooks):
    path = Path(sys.prefix, "lib", "a.py")
    view = {course.WIDGET_VIEW: {"model_id": "random"}, "image/png": "aGk=", "text/plain": "panel"}
    outputs = [
        new_output("stream", name="stderr", text=f"{path}:1: Warning\n/tmp/ipykernel_12/345.py:2: Warning\n"),
        new_output("display_data", data=view),
    ]
    cell = new_code_cell("x", outputs=outputs, metadata={"tags": ["a"], "execution": {"iopub.status.busy": "now"}})
    nb = new_notebook(cells=[cell], metadata={"widgets": {}, "language_info": {"name": "python", "version": "3.11.7"}})
    course.clean(nb)
    assert "widgets" not in nb.metadata and "version" not in nb.metadata.language_info
    assert nb.cells[0].metadata == {"tags": ["a"]}
    assert nb.cells[0].outputs[0].text.splitlines()[1] == "<cell>:2: Warning"
    assert sys.prefix not in nb.cells[0].outputs[0].text
    assert set(nb.cells[0].outputs[1].data) == {"image/png", "text/plain"}


def test_claims_are_whole_lines():
    text = "CLAIM ok: a\nnot a CLAIM ok: b\nCLAIM ok: c\n"
    assert course.count_claims(new_notebook(cells=[new_code_cell("", outputs=[new_output("stream", text=text)])])) == 2
