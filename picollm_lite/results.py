"""Do the results hold? Runs the notebooks with several seeds; writes data/results.md, and data/seeds.jsonl for 07.

    python -m picollm_lite.results [--seeds 0 1 2 3 4] [--only 01 04] [--jobs 2] [--into FILE]

Each seed is a course of its own: what one notebook trains, the next ones use. A claim that fails is counted, and the
notebook goes on. Seeds run side by side, one a core and with one thread each: that is a third faster than one by one.

A seed's checkpoints, and in `results.json` what came out, stay in `outputs/results/seed-N/`. So `--only` runs one
notebook again, or a new one, on what the others have left there, and the table is still of all of them.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import NamedTuple

import nbformat
import torch
import transformers

from picollm_lite import course, paths
from picollm_lite.files import read_jsonl, replace_file, write_jsonl

SEED_LINE = re.compile(r"^SEED = \d+$", re.M)
CLAIM = re.compile(r"^CLAIM (ok|failed): (.*)$", re.M)
MEASURED = re.compile(r"^MEASURED (.*): ([-+.\d]+) \[([-+.\d]+), ([-+.\d]+)\]$", re.M)

OUTCOMES = "results.json"


class Outcome(NamedTuple):
    """What a notebook gave with one seed: claims by text, "ok" or "failed", and measured numbers by name."""

    claims: dict[str, str]
    measured: dict[str, str]


def run_seed(notebooks: Sequence[Path], seed: int, folder: Path) -> None:
    """Execute the notebooks in order with this seed; checkpoints and what came out stay in `folder`."""
    os.environ.update(PICOLLM_OUTPUTS=str(folder), PICOLLM_CLAIMS="report", PICOLLM_SOLVE="1")
    os.environ.update(PICOLLM_THREADS="1", OMP_NUM_THREADS="1")
    for path in notebooks:
        nb = nbformat.read(path, as_version=4)
        set_seed(nb, seed, path.stem)
        try:
            course.execute(nb, path.stem)
        except course.CellError as error:  # what came out before it is kept
            print(f"seed {seed}: {error}", flush=True)
        outcome = read_outcome(printed(nb))
        keep(folder, path.stem, outcome)
        failed = [f"  failed: {claim}" for claim, verdict in outcome.claims.items() if verdict == "failed"]
        line = f"seed {seed}: {path.stem}, {len(outcome.claims) - len(failed)} of {len(outcome.claims)} claims hold"
        print("\n".join([line, *failed]), flush=True)


def read_outcome(text: str) -> Outcome:
    """The claims and measured numbers in what a notebook printed."""
    measured = {}
    for name, *numbers in MEASURED.findall(text):
        estimate, low, high = map(float, numbers)
        measured[name] = f"{estimate:.2f} [{low:.2f}, {high:.2f}]"
    return Outcome({claim: verdict for verdict, claim in CLAIM.findall(text)}, measured)


def keep(folder: Path, notebook: str, outcome: Outcome) -> None:
    """Put what a notebook gave in the place of what it gave before."""
    every = {name: kept._asdict() for name, kept in kept_outcomes(folder).items()}
    text = json.dumps({**every, notebook: outcome._asdict()}, indent=2, ensure_ascii=False)
    replace_file(folder / OUTCOMES, text.encode())


def kept_outcomes(folder: Path) -> dict[str, Outcome]:
    """What every notebook that was run in this seed's folder gave."""
    path = folder / OUTCOMES
    return {name: Outcome(**row) for name, row in json.loads(path.read_bytes()).items()} if path.exists() else {}


def set_seed(nb: nbformat.NotebookNode, seed: int, name: str) -> None:
    """Put `seed` into the one line that sets it. Raises ValueError where there is none, or more than one."""
    cells = [cell for cell in nb.cells if cell.cell_type == "code" and SEED_LINE.search(cell.source)]
    if len(cells) != 1 or len(SEED_LINE.findall(cells[0].source)) != 1:
        raise ValueError(f"{name}: expected one line `SEED = <number>`, found {len(cells)} cells with one")
    cells[0].source = SEED_LINE.sub(f"SEED = {seed}", cells[0].source)


def printed(nb: nbformat.NotebookNode) -> str:
    """Everything that the cells printed."""
    return "\n".join(output.get("text", "") for cell in nb.cells for output in cell.get("outputs", []))


def gold_by_seed(folders: Mapping[int, Path]) -> list[dict]:
    """What 07 left in the seeds' folders: rows of `seed`, `model` and `gold`, a number a prompt of the suite."""
    left = [(seed, folder / "suite_gold.jsonl") for seed, folder in folders.items()]
    return [{"seed": seed, **row} for seed, path in left if path.exists() for row, _ in read_jsonl(path)]


def as_markdown(kept: Mapping[int, Mapping[str, Outcome]]) -> str:
    """Both tables of every seed's outcomes by notebook, with date, versions and machine."""
    seeds = list(kept)
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
        *(f"| {nb[:2]} | {name} | {_row(seeds, values)} |" for nb, name, values in by_name(kept, "measured")),
        "",
        "## Claims",
        "",
        f"| notebook | claim | holds on | {head} |",
        "|---|---|---|" + "---|" * len(seeds),
    ]
    for nb, claim, values in by_name(kept, "claims"):
        holds = sum(value == "ok" for value in values.values())
        lines.append(f"| {nb[:2]} | {claim} | {holds} of {len(seeds)} | {_row(seeds, values)} |")
    return "\n".join(lines) + "\n"


def by_name(kept: Mapping[int, Mapping[str, Outcome]], kind: str) -> Iterator[tuple[str, str, dict[int, str]]]:
    """(notebook, name, values by seed), notebooks in order and names as they were printed."""
    for notebook in sorted({notebook for outcomes in kept.values() for notebook in outcomes}):
        columns = {seed: getattr(outcomes[notebook], kind) for seed, outcomes in kept.items() if notebook in outcomes}
        for name in dict.fromkeys(name for column in columns.values() for name in column):
            yield notebook, name, {seed: column[name] for seed, column in columns.items() if name in column}


def _row(seeds: Sequence[int], values: dict[int, str]) -> str:
    return " | ".join(values.get(seed, "not run") for seed in seeds)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m picollm_lite.results", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", default=[], metavar="NN", help="only notebooks whose names start so")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="seeds at a time")
    parser.add_argument("--into", type=Path, default=paths.RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    folders = {seed: paths.outputs() / "results" / f"seed-{seed}" for seed in options.seeds}
    notebooks = course.find_notebooks(".ipynb", options.only)
    for folder in folders.values():
        if not options.only:  # a whole run starts from the shipped checkpoints
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for run in as_completed([pool.submit(run_seed, notebooks, *item) for item in folders.items()]):
            run.result()
            kept = {seed: kept_outcomes(folder) for seed, folder in folders.items()}
            options.into.write_text(as_markdown(kept), encoding="utf-8")
    if rows := gold_by_seed(folders):  # last of all, as notebook 07 reads it
        write_jsonl(options.into.with_name(paths.SEEDS.name), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
