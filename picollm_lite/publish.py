"""Writes what Colab needs into the notebooks and the README (`make publish REPO=owner/name`), outputs as they are.

    python -m picollm_lite.publish owner/name

Badges open a notebook in Colab from that GitHub repository; the bootstrap cell fetches the rest of the course there and
does nothing anywhere else. Publishing again, from another repository too, replaces what was written before.
"""

import argparse
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from picollm_lite import course
from picollm_lite.files import replace_file

BOOTSTRAP = """\
# @title On Colab: fetch the course and what it needs (elsewhere this does nothing)
import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

COURSE = "https://github.com/OWNER/NAME"

if "google.colab" in sys.modules and importlib.util.find_spec("picollm_lite") is None:
    folder = Path("picollm-lite").resolve()
    if not folder.exists():
        subprocess.run(["git", "clone", "--quiet", "--depth=1", COURSE, folder], check=True)
    torch = "torch==" + version("torch")  # the one that is there stays: another takes minutes, and may not fit the GPU
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", folder, torch], check=True)
    sys.path.insert(0, str(folder))  # this kernel started before the package was there
    importlib.invalidate_caches()"""
TAG = "bootstrap"
PICTURE = "images/open_in_colab.svg"  # ours, so that no page fetches one
# A paragraph of its own in a notebook; after a link in the README.
BADGE = re.compile(r" ?\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)(\n\n)?")


def published(repo: str) -> dict[Path, str]:
    """Text by path of every notebook's .py and .ipynb and of the README, as published from `repo`. Writes nothing.

    Raises ValueError unless `repo` is owner/name and the README's table links each notebook once.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]+/[\w.-]+(?<!\.git)", repo, re.ASCII):
        raise ValueError(f"expected REPO=owner/name, the end of https://github.com/owner/name; got {repo!r}")
    sources, readme = course.find_notebooks(".py", []), course.NOTEBOOKS.parent / "README.md"
    texts = {readme: publish_readme(readme.read_text(encoding="utf-8"), [py.stem for py in sources], repo)}
    for py in sources:
        ipynb = py.with_suffix(".ipynb")
        nb = nbformat.read(ipynb, as_version=4)
        publish_notebook(nb, py.stem, repo)
        texts[ipynb] = nbformat.writes(nb) + "\n"
        texts[py] = publish_source(py.read_text(encoding="utf-8"), py.stem, repo)
    return texts


def publish_readme(text: str, names: list[str], repo: str) -> str:
    """A badge after the link to each notebook in the table of notebooks."""
    text = BADGE.sub("", text)
    for name in names:
        link, mark = rf"^\| \[[^\]]*\]\(notebooks/{name}\.ipynb\)", badge(name, repo, f"notebooks/{PICTURE}")
        text, found = re.subn(link, rf"\g<0> {mark}", text, flags=re.MULTILINE)
        if found != 1:
            raise ValueError(f"README.md: expected one row that begins with a link to {name}.ipynb, got {found}")
    return text


def publish_source(text: str, name: str, repo: str) -> str:
    """The .py of a pair; jupytext writes its cells, and its header stays."""
    nb = jupytext.reads(text, fmt="py:percent")
    publish_notebook(nb, name, repo)
    cells = jupytext.writes(nb, fmt="py:percent")
    return text[: text.index("# %%")] + cells[cells.index("# %%") :]


def publish_notebook(nb: NotebookNode, name: str, repo: str) -> None:
    """A badge below the title, and the bootstrap as the first code cell; the cells after it count on."""
    title, _, rest = BADGE.sub("", nb.cells[0].source).partition("\n\n")
    nb.cells[0].source = "\n\n".join([title, badge(name, repo, PICTURE), rest])
    bootstrap = next((cell for cell in nb.cells if TAG in cell.metadata.get("tags", ())), None)
    if bootstrap is None:
        code = [cell for cell in nb.cells if cell.cell_type == "code"]
        metadata = {"tags": ["setup", TAG], "cellView": "form"}
        bootstrap = new_code_cell(id=TAG, metadata=metadata, execution_count=code[0].execution_count)
        nb.cells.insert(nb.cells.index(code[0]), bootstrap)
        for counted in (part for cell in code for part in (cell, *cell.outputs) if part.get("execution_count")):
            counted.execution_count += 1
    bootstrap.source = BOOTSTRAP.replace("OWNER/NAME", repo)


def badge(name: str, repo: str, picture: str) -> str:
    page = f"https://colab.research.google.com/github/{repo}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open in Colab]({picture})]({page})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m picollm_lite.publish", description=__doc__.split("\n\n")[0])
    parser.add_argument("repo", metavar="owner/name", help="the repository on GitHub, whose branch main Colab opens")
    repo = parser.parse_args(arguments).repo
    try:
        texts = published(repo)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path, text in texts.items():
        replace_file(path, text.encode())
    print(f"{len(texts) // 2} notebooks and README.md open in Colab, once they are on https://github.com/{repo}, main")
    return 0


if __name__ == "__main__":
    sys.exit(main())
