"""Do the results hold? Runs the notebooks with several seeds and writes what came out to data/results.md.

    python -m picollm_lite.results [--seeds 0 1 2 3 4] [--only 01 04] [--jobs 2] [--into FILE]

Each seed is a course of its own: what one notebook trains, the next ones use. A claim that fails is counted, and the
notebook goes on. Seeds run side by side, one a core and with one thread each: that is a third faster than one by one.
"""

import argparse
import multiprocessing
import os
import platform
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from pathlib import Path

import nbformat
import torch
import transformers

from picollm_lite import course, paths

SEED_LINE = re.compile(r"^SEED = \d+$", re.M)
CLAIM = re.compile(r"^CLAIM (ok|failed): (.*)$", re.M)
MEASURED = re.compile(r"^MEASURED (.*): ([-+.\d]+) \[([-+.\d]+), ([-+.\d]+)\]$", re.M)

Outcome = dict[tuple[str, str], str]  # (notebook, name) -> what a seed gave
Outcomes = dict[tuple[str, str], dict[int, str]]  # the same of every seed


def run_seed(notebooks: Sequence[Path], seed: int) -> tuple[Outcome, Outcome]:
    """Execute the notebooks in order with this seed, into a folder of its own; returns claims and measured numbers."""
    claims, measured = {}, {}
    with tempfile.TemporaryDirectory() as outputs:
        os.environ.update(PICOLLM_OUTPUTS=outputs, PICOLLM_CLAIMS="report", PICOLLM_SOLVE="1")
        os.environ.update(PICOLLM_THREADS="1", OMP_NUM_THREADS="1")
        for path in notebooks:
            nb = nbformat.read(path, as_version=4)
            set_seed(nb, seed, path.stem)
            try:
                course.execute(nb, path.stem)
            except course.CellError as error:  # what came out before it is kept
                print(f"seed {seed}: {error}", flush=True)
            text = printed(nb)
            found = CLAIM.findall(text)
            claims |= {(path.stem, claim): verdict for verdict, claim in found}
            for name, *numbers in MEASURED.findall(text):
                estimate, low, high = map(float, numbers)
                measured[path.stem, name] = f"{estimate:.2f} [{low:.2f}, {high:.2f}]"
            failed = [f"  failed: {claim}" for verdict, claim in found if verdict == "failed"]
            line = f"seed {seed}: {path.stem}, {len(found) - len(failed)} of {len(found)} claims hold"
            print("\n".join([line, *failed]), flush=True)
    return claims, measured


def set_seed(nb: nbformat.NotebookNode, seed: int, name: str) -> None:
    """Put `seed` into the one line that sets it. Raises ValueError where there is none, or more than one."""
    cells = [cell for cell in nb.cells if cell.cell_type == "code" and SEED_LINE.search(cell.source)]
    if len(cells) != 1 or len(SEED_LINE.findall(cells[0].source)) != 1:
        raise ValueError(f"{name}: expected one line `SEED = <number>`, found {len(cells)} cells with one")
    cells[0].source = SEED_LINE.sub(f"SEED = {seed}", cells[0].source)


def printed(nb: nbformat.NotebookNode) -> str:
    """Everything that the cells printed."""
    return "\n".join(output.get("text", "") for cell in nb.cells for output in cell.get("outputs", []))


def as_markdown(seeds: Sequence[int], claims: Outcomes, measured: Outcomes) -> str:
    """Both tables, with date, versions and machine."""
    head = " | ".join(f"seed {seed}" for seed in seeds)
    lines = [
        "# Do the results hold?",
        "",
        "Made by `make results`: every notebook run once a seed, each seed a course of its own, from the shipped base",
        "model and preferences on. Brackets are 95 % bootstrap intervals over prompts or pairs.",
        "",
        f"{date.today()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {platform.system()} {platform.machine()}.",
        "",
        "## Measured",
        "",
        f"| notebook | what | {head} |",
        "|---|---|" + "---|" * len(seeds),
        *(f"| {nb[:2]} | {name} | {_row(seeds, values)} |" for (nb, name), values in measured.items()),
        "",
        "## Claims",
        "",
        f"| notebook | claim | holds on | {head} |",
        "|---|---|---|" + "---|" * len(seeds),
    ]
    for (nb, claim), values in claims.items():
        holds = sum(value == "ok" for value in values.values())
        lines.append(f"| {nb[:2]} | {claim} | {holds} of {len(seeds)} | {_row(seeds, values)} |")
    return "\n".join(lines) + "\n"


def _row(seeds: Sequence[int], values: dict[int, str]) -> str:
    return " | ".join(values.get(seed, "not run") for seed in seeds)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m picollm_lite.results", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", default=[], metavar="NN", help="only notebooks whose names start so")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="seeds at a time")
    parser.add_argument("--into", type=Path, default=paths.RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    every = defaultdict(dict), defaultdict(dict)  # claims, measured
    notebooks = course.find_notebooks(".ipynb", options.only)
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = {pool.submit(run_seed, notebooks, seed): seed for seed in options.seeds}
        for run in as_completed(runs):
            for outcomes, outcome in zip(every, run.result(), strict=True):
                for key, value in outcome.items():
                    outcomes[key][runs[run]] = value
            options.into.write_text(as_markdown(options.seeds, *every), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
