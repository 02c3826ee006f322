"""Several processes, one batch: what `accelerate launch` or `notebook_launcher` starts shares the work of a loop.

Every process calls the loop alike, with its own copy of the models. Each samples, scores and differentiates some rows
of a batch; the few numbers that come of a row, such as its log-probs, then go to all, so that loss, advantages and
records are those of the whole batch in each. A process has the gradient through its own rows; the sum over all of them
is the gradient of the loss, whatever it is a mean of. Left out: models too large for one device (FSDP, DeepSpeed);
`handoff.py` hands those to TRL.

Outside such a launch nothing here does anything.
"""

import os
from collections.abc import Callable, Iterable, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, get_int_from_env, is_cuda_available, parse_flag_from_env
from jaxtyping import Float
from torch import Tensor, nn

SIZES = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]  # of torchrun and of three MPIs


def launched() -> PartialState | None:
    """What accelerate knows of the processes; None where there is only one.

    Asked any earlier, it would settle for one process, and what a notebook launches afterwards would inherit that.
    Raises RuntimeError where something else has asked it too early, or on a CPU without saying so.
    """
    size = get_int_from_env(SIZES, 1)
    if size < 2:
        return None
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not is_cuda_available())
    if state.num_processes != size:
        raise RuntimeError(
            f"{size} processes were launched, but accelerate has been set up for {state.num_processes}: on a CPU write "
            "Accelerator(cpu=True), and in a notebook make no Accelerator before the launch"
        )
    return state


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return launched() is None or launched().is_main_process


def by_main(write: Callable[[], object]) -> None:
    """`write()` in the main process alone; the others wait until it has, so that all may read then."""
    if is_main():
        write()
    if launched() is not None:
        launched().wait_for_everyone()


def own_rows(size: int) -> tuple[slice, int]:
    """The rows of a batch that this process computes, and how many of them count: all, or none.

    They are neighbors, as many as any other's, or one more. Where a batch has fewer rows than there are processes, some
    compute the first row for nothing, so that each has a gradient to sum for every parameter.
    """
    state = launched()
    if state is None:
        return slice(0, size), size
    start, stop = (size * index // state.num_processes for index in (state.process_index, state.process_index + 1))
    return slice(start, stop) if start < stop else slice(0, 1), stop - start


def spread(compute: Callable[..., Tensor], *columns: Tensor | Sequence) -> Float[Tensor, "B ..."]:
    """compute(*columns), a number or more a row, each process on its own rows; all get all, with gradient to their own.

    Each row's numbers must not depend on the others.
    """
    state = launched()
    if state is None:
        return compute(*columns)
    own, count = own_rows(len(columns[0]))
    numbers = compute(*(column[own] for column in columns))[:count]
    parts = gather_object([numbers.detach().cpu()])
    parts[state.process_index] = numbers
    return torch.cat([part.to(numbers.device) for part in parts])


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Over the processes, each of which has the gradient through its own rows."""
    if launched() is None:
        return
    sums = []
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:  # these rows did not use it; all processes have to take part
                parameter.grad = torch.zeros_like(parameter)
            sums.append(torch.distributed.all_reduce(parameter.grad, async_op=True))  # one need not wait for another
    for running in sums:
        running.wait()


def _one_thread() -> None:
    """In what `notebook_launcher` forks: OpenMP's threads do not come along, and a second one would be waited for."""
    if get_int_from_env(SIZES, 1) > 1:
        os.environ["OMP_NUM_THREADS"] = "1"  # else accelerate sets more
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_one_thread)
