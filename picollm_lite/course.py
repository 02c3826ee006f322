"""Executes the notebooks: all of them for a learner (`make course`), or in place for an author (`make store`).

    python -m picollm_lite.course [--only 01 04] [--outputs DIR]   executed copies and HTML pages in outputs/notebooks/
    python -m picollm_lite.course --store [--only 01]              each .py becomes its .ipynb, with fresh outputs

An author edits the .py of a pair, runs `make store`, and commits both files.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupytext.combine import map_outputs_to_inputs
from jupytext.config import load_jupytext_config
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from picollm_lite import paths

NOTEBOOKS = paths.ROOT / "notebooks"
CLAIM = "CLAIM ok: "
CELL_METADATA = ("tags", "slideshow", "cellView")
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}  # the same on every machine
CHOICES = ("PICOLLM_MODEL", "PICOLLM_PREFERENCES")  # each an id on the hub, or a path as seen by whoever set it
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class Result(NamedTuple):
    name: str
    minutes: float
    claims: int


class OwnKernel(AsyncKernelManager):
    """Without kernel folders to look in, the only `python3` is the Python that runs this."""

    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


class CellError(Exception):
    """A cell raised, ran out of time, or took its kernel down."""


def find_notebooks(suffix: str, only: list[str]) -> list[Path]:
    """The notebooks in order; `only` keeps those whose names start so. Raises ValueError where one matches none."""
    found = sorted(NOTEBOOKS.glob(f"[0-9]*{suffix}"))
    for prefix in only or [""]:
        if not any(path.name.startswith(prefix) for path in found):
            raise ValueError(f"no notebook {prefix or '[0-9]'}*{suffix} in {NOTEBOOKS}")
    return [path for path in found if not only or path.name.startswith(tuple(only))]


def from_source(py: Path) -> NotebookNode:
    """The .py as a notebook; cell ids come from its .ipynb where the cells are still the same."""
    nb = jupytext.read(py, fmt="py:percent", config=load_jupytext_config(str(py)))
    ipynb = py.with_suffix(".ipynb")
    if ipynb.exists():
        old = nbformat.read(ipynb, as_version=4).cells
        for cell, match in zip(nb.cells, map_outputs_to_inputs(nb.cells, old), strict=True):
            if match is not None:
                cell.id = old[match].id
    return nb


def execute(nb: NotebookNode, name: str) -> None:
    """Runs every cell in a fresh kernel of this Python, in notebooks/; the outputs go into `nb`. Raises CellError."""
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    running = {"cell_index": 0}
    client = NotebookClient(
        nb,
        kernel_manager_class=OwnKernel,
        kernel_name="python3",
        timeout=None,
        startup_timeout=180,
        extra_arguments=["--log-level=ERROR"],  # else every kernel warns that its local sockets are not encrypted
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        on_cell_start=lambda cell, cell_index: running.update(cell_index=cell_index),
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise CellError(describe_failure(nb, name, running["cell_index"], error)) from None


def describe_failure(nb: NotebookNode, name: str, index: int, error: Exception) -> str:
    """Where it failed, the cell's first line, the error's last lines. Cells count as in Jupyter's In [n]."""
    number = sum(cell.cell_type == "code" for cell in nb.cells[: index + 1])
    source = nb.cells[index].source.strip().splitlines()
    reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[-8:]
    return "\n".join([f"{name}: code cell {number} failed: {source[0] if source else ''}", *reason])


def count_claims(nb: NotebookNode) -> int:
    """Lines that the course's `check` printed for claims that held."""
    texts = [output.get("text", "") for cell in nb.cells for output in cell.get("outputs", [])]
    return sum(line.startswith(CLAIM) for text in texts for line in text.splitlines())


def clean(nb: NotebookNode) -> None:
    """Drops what differs from run to run or machine to machine: widget state, execution metadata, paths."""
    kept = {key: nb.metadata[key] for key in ("accelerator", "colab") if key in nb.metadata}
    language = {"name": "python", "pygments_lexer": "ipython3"}
    nb.metadata = nbformat.from_dict({**kept, "kernelspec": KERNELSPEC, "language_info": language})
    for cell in nb.cells:
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in CELL_METADATA if key in cell.metadata})
        for output in cell.get("outputs", []):
            if "text" in output:
                output.text = clean_text(output.text)
            data = output.get("data", {})
            if len(data) > 1:  # a view without its live model shows nothing; the static picture beside it does
                data.pop(WIDGET_VIEW, None)
            data.update({mime: clean_text(text) for mime, text in data.items() if mime.startswith("text/")})


def clean_text(text: str) -> str:
    """Paths of this machine become what they would be for any reader."""
    folders = {str(paths.outputs()): "outputs", str(paths.ROOT) + os.sep: "", str(paths.ROOT): ".", sys.prefix: ".venv"}
    text = re.sub(r"[^\s'\"]*ipykernel_\d+[/\\]\d+\.py", "<cell>", text)
    for folder, stand_in in folders.items():
        text = text.replace(folder, stand_in)
    return text.replace(str(Path.home()) + os.sep, "~/")


def write(nb: NotebookNode, path: Path) -> None:
    """Writes aside, then renames: an interrupted run leaves the old notebook whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    nbformat.write(nb, aside)
    aside.replace(path)


def run_one(path: Path, copies: Path, store: bool) -> tuple[Result, NotebookNode]:
    """Executes one notebook and writes it, in place or as a copy. A failed one is always a copy."""
    start = time.monotonic()
    nb = from_source(path) if store else nbformat.read(path, as_version=4)
    target = copies / path.with_suffix(".ipynb").name
    try:
        execute(nb, path.stem)
        if store:
            target = path.with_suffix(".ipynb")
    finally:
        clean(nb)
        write(nb, target)
    return Result(path.stem, (time.monotonic() - start) / 60, count_claims(nb)), nb


def write_page(nb: NotebookNode, path: Path) -> None:
    """The notebook as one HTML file."""
    resources = {"metadata": {"name": path.stem, "path": str(NOTEBOOKS)}}
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(nb, resources=resources)
    path.write_text(page, encoding="utf-8")


def print_table(results: list[Result]) -> None:
    """Notebook, minutes, claims checked; and the sums."""
    total = Result("total", sum(result.minutes for result in results), sum(result.claims for result in results))
    print(f"\n{'notebook':<24}minutes  claims checked")
    for name, minutes, claims in [*results, total]:
        print(f"{name:<24}{minutes:7.1f}{claims:16d}")


def run_all(options: argparse.Namespace) -> list[Result]:
    """The notebooks in order. Raises ValueError where there is none, and CellError."""
    outputs = (options.outputs or paths.outputs()).resolve()
    notebooks = find_notebooks(".py" if options.store else ".ipynb", options.only)
    results, pages = [], []
    with ThreadPoolExecutor(max_workers=1) as aside:  # a page is written while the next kernel starts
        for number, path in enumerate(notebooks, start=1):
            print(f"[{number}/{len(notebooks)}] {path.stem} ...", end=" ", flush=True)
            with tempfile.TemporaryDirectory() as scratch:
                # What is stored must not depend on what an author happens to have in outputs/.
                os.environ["PICOLLM_OUTPUTS"] = scratch if options.store else str(outputs)
                result, nb = run_one(path, outputs / "notebooks", options.store)
            if not options.store:
                pages.append(aside.submit(write_page, nb, outputs / "notebooks" / f"{path.stem}.html"))
            print(f"{result.minutes:.1f} min, {result.claims} claims checked", flush=True)
            results.append(result)
    for page in pages:
        page.result()  # raises what went wrong with it
    return results


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m picollm_lite.course", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NN", help="only notebooks whose names start so")
    parser.add_argument("--outputs", type=Path, metavar="DIR", help="where results go (default: outputs/)")
    parser.add_argument("--store", action="store_true", help="for authors: update each .ipynb from its .py, in place")
    options = parser.parse_args(arguments)
    for name in CHOICES:
        if os.environ.get(name) and Path(os.environ[name]).exists():
            os.environ[name] = str(Path(os.environ[name]).resolve())  # kernels run in notebooks/
    try:
        results = run_all(options)
    except (ValueError, CellError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    print_table(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
