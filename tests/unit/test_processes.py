"""A batch that several processes share gives the numbers of one that does not, in every loop."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from picollm_lite import processes
from picollm_lite.models import save
from picollm_lite.processes import is_main, own_rows, spread, sum_gradients

from . import several


@pytest.fixture
def rank(monkeypatch):
    """As if this were one of several processes."""

    def be(index, count):
        state = SimpleNamespace(process_index=index, num_processes=count, is_main_process=index == 0)
        monkeypatch.setattr(processes, "launched", lambda: state)

    return be


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (7, [(slice(0, 2), 2), (slice(2, 4), 2), (slice(4, 7), 3)]),
        (3, [(slice(0, 1), 1), (slice(1, 2), 1), (slice(2, 3), 1)]),
        (2, [(slice(0, 1), 0), (slice(0, 1), 1), (slice(1, 2), 1)]),  # the first computes row 0 for nothing
    ],
)
def test_rows_of_each_process(rank, size, expected):
    for index in range(3):
        rank(index, 3)
        assert own_rows(size) == expected[index]


def test_one_process_computes_all_and_writes():
    assert processes.launched() is None and own_rows(5) == (slice(0, 5), 5) and is_main()
    x, weight = [1.0, 2.0], torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    assert spread(lambda rows: rows, x) is x
    sum_gradients([weight])
    assert weight.grad.item() == 1.0


@pytest.mark.parametrize("rows", [5, 2])
def test_gradients_of_the_parts_add_up_to_that_of_the_loss(rank, monkeypatch, rows):
    """Three processes; the loss is no mean over rows, so that no weights for their parts would do."""
    inputs, weight = torch.arange(1.0, rows + 1), torch.tensor(0.5)

    def compute(x):
        return torch.stack([weight * x, x + weight], 1)  # (b, 2)

    def loss(numbers):
        return (numbers[:, 0].exp().sum() / numbers[:, 1].sum()).log()

    weight.requires_grad_()
    loss(compute(inputs)).backward()
    whole, parts, total = weight.grad.item(), [], 0.0
    for index in range(3):
        rank(index, 3)
        own, count = own_rows(rows)
        parts.append(compute(inputs[own]).detach()[:count])
    monkeypatch.setattr(processes, "gather_object", lambda own: list(parts))
    for index in range(3):
        rank(index, 3)
        weight.grad = None
        numbers = spread(compute, inputs)
        assert_close(numbers, compute(inputs))
        loss(numbers).backward()
        total += weight.grad.item()
    assert total == pytest.approx(whole, rel=1e-5)


@pytest.fixture(scope="module")
def models(tokenizer, taught, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return str(save(taught(), tokenizer, folder / "policy")), str(save(tiny_model(seed=5), tokenizer, folder / "ref"))


# With --cpu, accelerate starts several processes by MPI only; where no GPU is seen, --multi_gpu starts them on the CPU.
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


@pytest.mark.parametrize("launcher", [LAUNCH, []], ids=["accelerate launch", "notebook_launcher"])
def test_two_processes_record_what_one_does(models, tmp_path, launcher):
    """All records and weights of every loop to 1e-4, in both processes; only the main one writes."""
    script = Path(several.__file__)
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    call = [sys.executable, *launcher, str(script), *models, str(tmp_path), *([] if launcher else ["notebook"])]
    done = subprocess.run(call, env=os.environ | threads, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"found0.json", "found1.json", "state0", "model0"}
    found = [json.loads((tmp_path / f"found{rank}.json").read_text()) for rank in (0, 1)]
    assert repr(found[0]) == repr(found[1])
    for loop, run, trained in several.runs(*models):
        assert_alike(found[0][loop], several.numbers(run, trained), loop)


def assert_alike(got, expected, where):
    """Numbers to 1e-4, all else exactly."""
    if isinstance(expected, list | tuple):
        assert len(got) == len(expected), where
        for place, (one, other) in enumerate(zip(got, expected, strict=True)):
            assert_alike(one, other, f"{where}, {place}")
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-4, nan_ok=True), where
    else:
        assert got == expected, where
