"""accelerate starts two processes on the CPU: every loop records what it records in one, and only the main one writes.

The parts of this that need one process alone are in tests/unit/test_processes.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from picollm_lite.models import save

from . import several

# With --cpu, accelerate starts several processes by MPI only; where it sees no GPU, --multi_gpu starts them on the CPU.
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def models(tokenizer, taught, tiny_model, tmp_path_factory):
    """The folders of the policy and of another reference."""
    folder = tmp_path_factory.mktemp("models")
    return str(save(taught(), tokenizer, folder / "policy")), str(save(tiny_model(seed=5), tokenizer, folder / "ref"))


@pytest.fixture(scope="module")
def alone(models):
    """What one process, this one, records."""
    return {loop: several.numbers(run, trained) for loop, run, trained in several.runs(*models)}


@pytest.fixture(scope="module", params=[LAUNCH, []], ids=["accelerate launch", "notebook_launcher"])
def launch(request, models, tmp_path_factory):
    """The folder that two processes wrote, and what each of them found."""
    into, script = tmp_path_factory.mktemp("into"), Path(several.__file__)
    call = [sys.executable, *request.param, str(script), *models, str(into), *([] if request.param else ["notebook"])]
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(call, env=os.environ | settings, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    return into, [json.loads((into / f"found{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_record_what_one_does(launch, alone):
    """All records and weights of every loop to 1e-4, and to the bit the same in both processes."""
    first, second = (found["loops"] for found in launch[1])
    assert repr(first) == repr(second)
    assert list(first) == list(alone)
    for loop, expected in alone.items():
        assert_alike(first[loop], expected, loop)


def test_each_samples_and_scores_its_rows(launch):
    """PPO has 3 batches of 7 answers, RLOO 3 of 9; proxy and gold each score all. DPO looks at 5 answers twice."""
    work = [found["work"] for found in launch[1]]
    assert [each["ppo"] for each in work] == [{"sampled": 9, "scored": 18}, {"sampled": 12, "scored": 24}]
    assert [each["rloo"] for each in work] == [{"sampled": 12, "scored": 24}, {"sampled": 15, "scored": 30}]
    assert [each["dpo"] for each in work] == [{"sampled": 4, "scored": 4}, {"sampled": 6, "scored": 6}]


def test_the_main_process_writes_and_all_read(launch):
    into, found = launch
    assert {path.name for path in into.iterdir()} == {"found0.json", "found1.json", "state0", "model0"}
    assert [each["same"] for each in found] == [True, True]


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
