"""What an exercise is, and how an attempt at it is judged."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class Verdict(NamedTuple):
    """Whether an attempt is right, and what to tell the learner."""

    right: bool
    message: str


@dataclass(frozen=True)
class Exercise:
    """A function for the learner to write, judged on fixed inputs.

    `mistakes` maps a likely cause, told to the learner, to a function that makes that mistake: an attempt that gives
    the mistake's results on every case is told the cause. Tests feed each of them back to the checker.
    """

    name: str
    reference: Callable
    cases: Sequence[tuple]  # positional arguments of each case
    mistakes: dict[str, Callable]
    difficulty: int  # 1 to 3
    minutes: int

    def judge(self, attempt: Callable) -> Verdict:
        """Run the attempt on every case; the first wrong one is shown: given, got, wanted, likely cause."""
        for number, case in enumerate(self.cases, start=1):
            wanted = self.reference(*case)
            try:
                got = attempt(*deepcopy(case))  # an attempt may write into what it is given
                right = same(got, wanted)
            except NotImplementedError:
                return Verdict(False, "not answered yet")
            except Exception as error:
                return Verdict(False, f"case {number} raised {type(error).__name__}: {error}\n  given {_show(case)}")
            if not right:
                lines = [f"case {number} is wrong", f"  given  {_show(case)}"]
                lines += [f"  got    {_show(got)}", f"  wanted {_show(wanted)}"]
                cause = self._cause(attempt)
                return Verdict(False, "\n".join([*lines, f"  likely cause: {cause}"] if cause else lines))
        return Verdict(True, "right")

    def _cause(self, attempt: Callable) -> str | None:
        for cause, mistake in self.mistakes.items():
            if all(_agree(attempt, mistake, case) for case in self.cases):
                return cause
        return None


def same(got: Any, wanted: Any) -> bool:
    """Equal in type of thing, shape and value; floats to 1e-4 relative, 1e-6 absolute."""
    if isinstance(wanted, torch.Tensor):
        if not isinstance(got, torch.Tensor) or got.shape != wanted.shape or _kind(got) != _kind(wanted):
            return False
        return torch.allclose(got.to(wanted.dtype), wanted, rtol=1e-4, atol=1e-6, equal_nan=True)
    if isinstance(wanted, float):
        return isinstance(got, int | float | torch.Tensor) and same(
            torch.as_tensor(float(got)), torch.as_tensor(wanted)
        )
    if isinstance(wanted, list | tuple):
        return isinstance(got, list | tuple) and len(got) == len(wanted) and all(map(same, got, wanted))
    if isinstance(wanted, bool):
        return isinstance(got, bool) and got == wanted  # a mask of 0 and 1 would fail later, far from here
    return got == wanted


def _kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    return tensor.dtype.is_floating_point, tensor.dtype == torch.bool


def _agree(attempt: Callable, mistake: Callable, case: tuple) -> bool:
    try:
        return same(attempt(*deepcopy(case)), mistake(*case))
    except Exception:
        return False


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_show, value))
    if isinstance(value, torch.Tensor):
        return f"tensor({value.tolist()})" if value.numel() <= 24 else f"tensor of shape {tuple(value.shape)}"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
