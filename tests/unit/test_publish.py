"""Badges and the bootstrap cell: on a sample, on the shipped notebooks, and the cell run on a Python like Colab's."""

import importlib.util
import os
import re
import subprocess
import sys
import types
import venv
from pathlib import Path
from zipfile import ZipFile

import jupytext
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from picollm_lite import course, publish

COLAB = re.compile(r"https://colab\.research\.google\.com/github/([^/]+/[^/]+)/blob/main/notebooks/(\w+)\.ipynb")
HEADER = "# ---\n# jupyter:\n#   jupytext:\n#     formats: ipynb,py:percent\n# ---\n\n"
SOURCE = f"""{HEADER}# %% [markdown]
# # 00 · Sample
#
# What it is about.

# %% tags=["setup"]
import os

# %%
1 + 1
"""
README = """# A course

Begin with [the first](notebooks/00_sample.ipynb).

| notebook | minutes |
|---|---|
| [00 Sample](notebooks/00_sample.ipynb) | 1 |
"""


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A course of one notebook, executed, and a README."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "00_sample.py").write_text(SOURCE)
    two = new_output("execute_result", data={"text/plain": "2"}, execution_count=2)
    cells = [
        new_markdown_cell("# 00 · Sample\n\nWhat it is about.", id="title"),
        new_code_cell("import os", id="imports", metadata={"tags": ["setup"]}, execution_count=1),
        new_code_cell("1 + 1", id="sum", execution_count=2, outputs=[two]),
    ]
    nbformat.write(new_notebook(cells=cells), folder / "00_sample.ipynb")
    (tmp_path / "README.md").write_text(README)
    monkeypatch.setattr(course, "NOTEBOOKS", folder)
    return folder


def files(folder):
    return {path: path.read_bytes() for path in (*folder.iterdir(), folder.parent / "README.md")}


def test_what_is_written(notebooks, capsys):
    assert publish.main(["ann/prefs"]) == 0
    assert capsys.readouterr().out == (
        "1 notebooks and README.md open in Colab, once they are on https://github.com/ann/prefs, main\n"
    )
    page = "https://colab.research.google.com/github/ann/prefs/blob/main/notebooks/00_sample.ipynb"
    badge = f"[![Open in Colab](images/open_in_colab.svg)]({page})"
    bootstrap = publish.BOOTSTRAP.replace("OWNER/NAME", "ann/prefs")
    assert 'COURSE = "https://github.com/ann/prefs"\n' in bootstrap

    source = f"""{HEADER}# %% [markdown]
# # 00 · Sample
#
# {badge}
#
# What it is about.

# %% tags=["setup", "bootstrap"] cellView="form"
{bootstrap}

# %% tags=["setup"]
import os

# %%
1 + 1
"""
    assert (notebooks / "00_sample.py").read_text() == source
    cells = nbformat.read(notebooks / "00_sample.ipynb", as_version=4).cells
    assert [cell.id for cell in cells] == ["title", "bootstrap", "imports", "sum"]
    assert cells[0].source == f"# 00 · Sample\n\n{badge}\n\nWhat it is about."
    assert (cells[1].source, cells[1].outputs) == (bootstrap, [])
    assert [cell.execution_count for cell in cells[1:]] == [1, 2, 3]  # as if it had run with the others
    assert (cells[3].outputs[0].data, cells[3].outputs[0].execution_count) == ({"text/plain": "2"}, 3)

    row = "| [00 Sample](notebooks/00_sample.ipynb)"
    in_readme = badge.replace("images", "notebooks/images", 1)
    assert (notebooks.parent / "README.md").read_text() == README.replace(row, f"{row} {in_readme}")


def test_publishing_again_replaces(notebooks):
    assert publish.main(["bob/other.course"]) == 0
    once = files(notebooks)
    assert publish.main(["ann/prefs"]) == 0
    assert files(notebooks) != once
    assert publish.main(["bob/other.course"]) == 0
    assert files(notebooks) == once


def test_a_notebook_that_has_not_run_stays_so(notebooks):
    nb = nbformat.read(notebooks / "00_sample.ipynb", as_version=4)
    for cell in nb.cells[1:]:
        cell.update(execution_count=None, outputs=[])
    publish.publish_notebook(nb, "00_sample", "ann/prefs")
    assert [cell.execution_count for cell in nb.cells[1:]] == [None, None, None]


@pytest.mark.parametrize(
    "repo", ["", "prefs", "ann/", "ann/a/b", "https://github.com/ann/prefs", "ann/prefs.git", 'ann/"x', "ann/prefs "]
)
def test_a_wrong_repo_is_one_clear_line(notebooks, capsys, repo):
    before = files(notebooks)
    assert publish.main([repo]) == 1
    assert "expected REPO=owner/name" in (error := capsys.readouterr().err) and repr(repo) in error
    assert files(notebooks) == before


@pytest.mark.parametrize("readme", [README.replace("| [00", "| x [00"), README + README.splitlines()[-1]])
def test_a_readme_without_the_one_row_stops_before_anything_is_written(notebooks, capsys, readme):
    (notebooks.parent / "README.md").write_text(readme)
    before = files(notebooks)
    assert publish.main(["ann/prefs"]) == 1
    assert "expected one row that begins with a link to 00_sample.ipynb" in capsys.readouterr().err
    assert files(notebooks) == before


# The shipped files, published or not.

FIRST_CELL = "in sys.modules and importlib.util.find_spec"  # from the cell that publishing writes


def shipped():
    """Path to text of every file that publishing writes."""
    return {path: path.read_text(encoding="utf-8") for path in publish.published("any/repository")}


def unlike_published(now):
    """Names of files that publishing from the README's repository would change; if it has none, of published ones."""
    readme = now[course.NOTEBOOKS.parent / "README.md"]
    if link := COLAB.search(readme):
        wanted = publish.published(link[1])
        return [path.name for path, text in now.items() if text != wanted[path]]
    return [path.name for path, text in now.items() if COLAB.search(text) or FIRST_CELL in text]


def test_the_course_is_published_as_a_whole_or_not_at_all():
    assert len(now := shipped()) > 10
    assert unlike_published(now) == [], "run `make publish` again"


def test_half_published_is_noticed(notebooks):
    before = shipped()
    assert unlike_published(before) == []
    publish.main(["ann/prefs"])
    after = shipped()
    assert unlike_published(after) == []
    readme, py, ipynb = notebooks.parent / "README.md", notebooks / "00_sample.py", notebooks / "00_sample.ipynb"
    assert unlike_published({**after, readme: README}) == ["00_sample.ipynb", "00_sample.py"]
    assert unlike_published({**after, py: SOURCE}) == ["00_sample.py"]
    for edit in (("--quiet", ""), ("ann/prefs", "bob/prefs")):
        assert unlike_published({**after, ipynb: after[ipynb].replace(*edit)}) == ["00_sample.ipynb"]


def test_shipped_notebooks_keep_all_else():
    for path, text in publish.published("ann/prefs").items():
        if path.suffix != ".md":
            old, new = cells(path, path.read_text(encoding="utf-8")), cells(path, text)
            is_bootstrap = [publish.TAG in cell.metadata.get("tags", ()) for cell in new]
            assert is_bootstrap == [False, True] + [False] * (len(new) - 2), path.name
            assert new[2:] == [cell for cell in old[1:] if publish.TAG not in cell.metadata.get("tags", ())], path.name
            assert set(old[0].source.splitlines()) <= set(new[0].source.splitlines())


def cells(path, text):
    """Without counts, and without the ids that jupytext makes up."""
    found = jupytext.reads(text, fmt={".py": "py:percent", ".ipynb": "ipynb"}[path.suffix]).cells
    for cell in found:
        for part in (cell, *cell.get("outputs", [])):
            part.pop("execution_count", None)
        if path.suffix == ".py":
            del cell["id"]
    return found


def test_published_sources_pass_ruff(root):
    texts = publish.published("an-owner/" + "long-name-" * 9)
    for path in (path for path in texts if path.suffix == ".py"):
        for command in (["check"], ["format", "--check"]):
            ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", path, "-"]
            ran = subprocess.run(ruff, cwd=root, input=texts[path], capture_output=True, text=True)
            assert ran.returncode == 0, ran.stdout + ran.stderr


# The cell itself.

ON_COLAB = 'import sys\nsys.modules["google.colab"] = None\n'


@pytest.mark.parametrize("on_colab", [True, False])
def test_it_does_nothing_where_the_course_is_or_away_from_colab(monkeypatch, on_colab):
    def refuse(*_, **__):
        raise AssertionError("it runs a command")

    monkeypatch.setattr(subprocess, "run", refuse)
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = list(sys.path)
    exec(publish.BOOTSTRAP, {})
    assert sys.path == path


def wheel(folder, name, version, contents, requires=()):
    """A wheel of these files (path to text)."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    metadata = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"}
    metadata["WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    metadata["RECORD"] = "".join(f"{path},,\n" for path in (*contents, *(f"{info}/{part}" for part in metadata)))
    folder.mkdir(exist_ok=True)
    with ZipFile(path := folder / f"{name}-{version}-py3-none-any.whl", "w") as zipped:
        for part, text in {**contents, **{f"{info}/{part}": text for part, text in metadata.items()}}.items():
            zipped.writestr(part, text)
    return path


def git(*arguments, cwd):
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture
def run_cell(tmp_path):
    """Runs the cell, then more code, in a Python with pip and torch 2.11.0+cu128, in an empty folder, offline.

    The course comes from a bare repository and needs `torch_range` and a package `addition`, which an index of wheels
    has; it also has torch 2.12. Its build backend hands out a wheel that was made here: setuptools is not on the index.
    """
    python, content, repository, index = (tmp_path / name for name in ("python", "content", "work", "index"))
    venv.create(python, with_pip=False, symlinks=True)
    (site,) = python.glob("lib/python*/site-packages")
    (site / "pip").symlink_to(Path(importlib.util.find_spec("pip").origin).parent)
    ZipFile(wheel(tmp_path / "installed", "torch", "2.11.0+cu128", {"torch.py": "CUDA = True\n"})).extractall(site)
    wheel(index, "torch", "2.12.0", {"torch.py": "CUDA = False\n"})
    wheel(index, "addition", "1.0", {"addition.py": "one_and_one = 2\n"})
    content.mkdir()

    def run(torch_range, code):
        package = repository / "picollm_lite"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "chat.py").write_text("import addition, torch\nfound = addition.one_and_one, torch.CUDA\n")
        link = {"picollm_lite.pth": str(content / "picollm-lite")}
        made = wheel(repository, "picollm_lite", "0.1", link, requires=[torch_range, "addition"])
        build = f"import shutil\ndef build_editable(folder, *_):\n    shutil.copy(made := '{made.name}', folder)\n"
        (repository / "backend.py").write_text(f"{build}    return made\n")
        system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        (repository / "pyproject.toml").write_text(system + '[project]\nname = "picollm-lite"\nversion = "0.1"\n')
        git("init", "--quiet", cwd=repository)
        git("add", ".", cwd=repository)
        git("commit", "--quiet", "-m", "A course", cwd=repository)
        git("clone", "--quiet", "--bare", str(repository), "bare", cwd=tmp_path)
        cell = publish.BOOTSTRAP.replace("https://github.com/OWNER/NAME", (tmp_path / "bare").as_uri())
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
        command = [python / "bin" / "python", "-c", f"{ON_COLAB}{cell}\n{code}"]
        return subprocess.run(command, cwd=content, env=environment, capture_output=True, text=True)

    return run


def test_on_colab_the_next_cell_imports_the_course(run_cell, tmp_path):
    code = """
from picollm_lite import chat
print(chat.__file__, chat.found, version("torch"))
child = "import picollm_lite.chat as chat; print(chat.__file__, chat.found)"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout.strip())
"""
    ran = run_cell("torch>=2.6,<3", code)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    home = tmp_path / "content" / "picollm-lite" / "picollm_lite" / "chat.py"
    assert ran.stdout.splitlines() == [f"{home} (2, True) 2.11.0+cu128", f"{home} (2, True)"]


def test_colabs_torch_is_never_replaced(run_cell, tmp_path):
    ran = run_cell("torch>=2.12", "print('went on')")
    assert ran.returncode != 0 and "went on" not in ran.stdout
    assert "torch==2.11.0+cu128" in ran.stdout + ran.stderr  # pip says what is in the way
    assert (next((tmp_path / "python").glob("lib/*/site-packages/torch.py"))).read_text() == "CUDA = True\n"
