"""Does notebook 08 fit with a model of yours, and how long does it take? Its cells on a random Llama and long texts.

    python tests/benchmarks/bench_own_model.py [--model 135M] [--pairs 1500] [--gib 14.2] [--bf16]

Pairs of random words, most of them cut to the 512 tokens that 08 keeps of a text. The model ends next to no answer, so
those of PPO reach their limit of 256. By default as on a T4: in fp32, and with no more memory than `--gib`, which is
what a T4 has less the CUDA context. The peak hardly depends on the number of pairs, the time does. What came out is in
memory.md.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import torch
from IPython.core.interactiveshell import InteractiveShell
from llamas import SHAPES, WORDS, default_device, random_llama, shipped_tokenizer
from reporting import finish, machine

from picollm_lite.files import write_jsonl
from picollm_lite.paths import ROOT

GIB = 2**30


def prepare(size: str, pairs: int, folder: Path) -> None:
    """A model and a file of pairs in `folder`, and the environment that has 08 take them."""
    tokenizer, draw = shipped_tokenizer(), random.Random(0)
    random_llama(SHAPES[size], tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = {"prompt": 200, "chosen": 300, "rejected": 300}
    rows = [{name: " ".join(draw.choices(WORDS, k=count)) for name, count in words.items()} for _ in range(pairs)]
    for number, row in enumerate(rows):
        row["prompt"] = f"{number}: {row['prompt']}"
    write_jsonl(folder / "pairs.jsonl", rows)
    os.environ["PICOLLM_MODEL"], os.environ["PICOLLM_PREFERENCES"] = str(folder / "model"), str(folder / "pairs.jsonl")
    os.environ["PICOLLM_OUTPUTS"] = str(folder / "outputs")


def run_cells(device: str) -> None:
    """Execute 08's code cells in this process, and say after each that took a second what it took."""
    os.chdir(ROOT / "notebooks")
    shell, began = InteractiveShell.instance(), time.perf_counter()
    for cell in jupytext.read("08_scaling_up.py").cells:
        if cell.cell_type == "code":
            start, most = time.perf_counter(), ""
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            shell.run_cell(cell.source).raise_error()
            finish(device)
            if device == "cuda":
                peaks = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
                most = "allocated {:5.2f}, reserved {:5.2f} GiB".format(*peaks)
            if (seconds := time.perf_counter() - start) > 1:
                print(f"MEASURED {seconds:6.1f} s  {most}  {cell.source.splitlines()[0]}", flush=True)
    print(f"MEASURED {time.perf_counter() - began:6.1f} s in all", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="135M")
    parser.add_argument("--pairs", type=int, default=1500)
    parser.add_argument("--gib", type=float, default=14.2, help="of memory that this process may take on the GPU")
    parser.add_argument("--bf16", action="store_true", help="products in bf16 where the GPU has it")
    args = parser.parse_args()
    device = default_device()
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.gib * GIB / total))
        if not args.bf16:
            torch.cuda.is_bf16_supported = lambda including_emulation=True: False  # what a T4 says
    sys.argv = sys.argv[:1]  # IPython reads them too
    print(machine(device), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        prepare(args.model, args.pairs, Path(folder))
        run_cells(device)


if __name__ == "__main__":
    main()
