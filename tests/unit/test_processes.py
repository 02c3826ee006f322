"""What one process of several computes, writes and sums; real ones run every loop in tests/peers/test_accelerate.py."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from picollm_lite import processes
from picollm_lite.processes import by_main, is_main, own_rows, spread, sum_gradients


@pytest.fixture
def rank(monkeypatch):
    """As if this were one of several processes."""

    def be(index, count, wait=None):
        state = SimpleNamespace(process_index=index, num_processes=count, is_main_process=index == 0)
        state.wait_for_everyone = wait
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
    written = []
    by_main(lambda: written.append("file"))
    assert written == ["file"]


@pytest.mark.parametrize("index", [0, 1])
def test_the_main_process_writes_before_all_go_on(rank, index):
    events = []
    rank(index, 2, wait=lambda: events.append("all are here"))
    by_main(lambda: events.append("written"))
    assert events == [["written", "all are here"], ["all are here"]][index]
    assert is_main() == (index == 0)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize(("gpu", "told", "cpu"), [(True, "false", False), (True, "true", True), (False, "false", True)])
def test_accelerate_is_asked_once_there_are_several(monkeypatch, name, gpu, told, cpu):
    """Without a GPU it would take each process for the only one, unless it is told that all are on the CPU."""
    asked = []
    monkeypatch.setattr(processes, "PartialState", lambda cpu: asked.append(cpu) or SimpleNamespace(num_processes=2))
    monkeypatch.setattr(processes, "is_cuda_available", lambda: gpu)
    monkeypatch.setenv("ACCELERATE_USE_CPU", told)
    monkeypatch.setenv(name, "1")
    assert processes.launched() is None and asked == []
    monkeypatch.setenv(name, "2")
    assert processes.launched().num_processes == 2 and asked == [cpu]
    monkeypatch.setenv(name, "3")
    with pytest.raises(RuntimeError, match=r"3 processes were launched, but .* set up for 2: on a CPU"):
        processes.launched()


def test_a_parameter_that_these_rows_did_not_use_takes_part_in_the_sum(rank, monkeypatch):
    """Else the others would wait for it. A frozen one has no gradient anywhere."""
    used, unused, frozen = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    used.grad = torch.tensor([1.0, 2.0])
    rank(0, 2)
    arrived = []

    def all_reduce(own, async_op):
        return SimpleNamespace(wait=lambda: arrived.append(own.add_(10.0)))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    sum_gradients([used, unused, frozen])
    assert len(arrived) == 2
    assert (used.grad.tolist(), unused.grad.tolist(), frozen.grad) == ([11.0, 12.0], [10.0, 10.0], None)


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
