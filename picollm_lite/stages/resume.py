"""Resume: a run keeps its state in one file, and goes on from there after it was cut off.

    for record in ppo.train(policy, ..., resume=Resume("outputs/ppo.state", every=10)):

Called again in the same way, with the weights that the run began with, a loop yields the records that it had, and then
those of the steps that are left: with the same numbers, to the bit on one machine and thread count, as if it had never
stopped. During the records that it had, the policy already is as the last of them left it.

The state is what a step depends on and the call does not say: weights, optimizers, random generators, records. The
learning rate, the seeds of sampling and the place in the data follow from the settings and the number of the step.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from picollm_lite import __version__
from picollm_lite.files import replaced_file
from picollm_lite.processes import by_main
from picollm_lite.stages.sampling import Sample

Part = nn.Module | torch.optim.Optimizer | torch.Generator | random.Random
SAID_ELSEWHERE = {"resume", "settings", "config", "method"}  # arguments that others say as well, or that may differ


@dataclass(frozen=True)
class Resume:
    """Where a run keeps its state, and how often: every so many steps, and after the last."""

    path: str | Path  # of a file
    every: int = 10  # steps

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"expected every >= 1 step, got {self.every}")
        if Path(self.path).is_dir():
            raise ValueError(f"expected the path of a file to keep the state in, got the folder {self.path}")


class Run:
    """One run of a loop: its records so far, and its state in a file. Without a `Resume` it keeps nothing.

    `record` is the type of the loop's records, `given` are the loop's arguments, by which another run is told, and
    `parts` what training changes: they are set to what the file holds, if there is one. Raises ValueError when that
    is the state of another run, or no state.
    """

    def __init__(self, resume: Resume | None, record: type, given: Mapping[str, object], **parts: Part):
        self.resume, self.records = resume, []
        if resume is not None:
            self.path, self.parts = Path(resume.path), parts | _torch_generators()
            self.identity = {"picollm_lite": __version__, "records": record.__name__, **_identity(given)}
            if self.path.exists():
                self.records = [_restored(record, row) for row in self._read()]

    @property
    def done(self) -> int:
        """Steps of the run so far."""
        return len(self.records)

    def rest(self, steps: Iterable) -> Iterator:
        """The steps that are left of all."""
        return islice(steps, self.done, None)

    def keep(self, record: NamedTuple) -> NamedTuple:
        """The record of a step, once the parts are as the step leaves them; writes the state when it is due."""
        if self.resume is not None:
            self.records.append(record)
            if record.step % self.resume.every == 0 or record.step == record.steps:
                by_main(self._write)
        return record

    def _write(self) -> None:
        tensors, order = {}, {}
        for name, part in self.parts.items():
            if isinstance(part, random.Random):
                order[name] = part.getstate()
            else:
                changed = _tensors(part, frozen=False)
                tensors |= {f"{name}/{key}": tensor.contiguous() for key, tensor in changed.items()}
        rows = [record._asdict() for record in self.records]
        with replaced_file(self.path) as aside:
            save_file(tensors, aside, {"run": json.dumps({"identity": self.identity, "order": order, "records": rows})})

    def _read(self) -> list[dict]:
        """Set the parts to what the file holds; returns its records."""
        try:
            with safe_open(self.path, "pt") as file:
                state = json.loads((file.metadata() or {})["run"])
                self._refuse_another(state["identity"])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{self.path} is not the state of a run ({error}): name another file") from None
        for name, part in self.parts.items():
            if isinstance(part, random.Random):
                version, numbers, gauss = state["order"][name]
                part.setstate((version, tuple(numbers), gauss))
            else:
                own = {key: tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
                _set(part, {key.removeprefix(f"{name}/"): tensor for key, tensor in own.items()})
        return state["records"]

    def _refuse_another(self, kept: Mapping[str, object]) -> None:
        for name in sorted(kept.keys() | self.identity.keys()):
            was, now = (told.get(name, "not given") for told in (kept, self.identity))
            if was != now:
                raise ValueError(
                    f"{self.path} holds the state of another run: its {name} is {was}, here it is {now}; call as that "
                    "run was called, with the weights that it began with, or delete the file, or name another"
                )


def _torch_generators() -> dict[str, torch.Generator]:
    """Those that dropout draws from."""
    cuda = {f"cuda {number}": generator for number, generator in enumerate(torch.cuda.default_generators)}
    return {"cpu": torch.default_generator, **cuda}


def _tensors(part: nn.Module | torch.optim.Optimizer | torch.Generator, *, frozen: bool = True) -> dict[str, Tensor]:
    """The tensors of a part by name, with or without its frozen weights; a tied weight comes once."""
    if isinstance(part, torch.Generator):
        return {"state": part.get_state()}
    if isinstance(part, nn.Module):
        once = {id(t): (name, t) for name, t in part.state_dict(keep_vars=True).items()}.values()
        stays = {id(weight) for weight in part.parameters() if not (frozen or weight.requires_grad)}
        return {name: tensor.detach() for name, tensor in once if id(tensor) not in stays}
    return {f"{i}.{key}": number for i, state in part.state_dict()["state"].items() for key, number in state.items()}


def _set(part: nn.Module | torch.optim.Optimizer | torch.Generator, tensors: Mapping[str, Tensor]) -> None:
    """Undo `_tensors`."""
    if isinstance(part, torch.Generator):
        if tensors:  # none when this machine has a GPU more
            part.set_state(tensors["state"])
    elif isinstance(part, nn.Module):
        part.load_state_dict(tensors, strict=False)  # tied weights have one name here, several there
    else:
        state = {}
        for name, tensor in tensors.items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
        part.load_state_dict(part.state_dict() | {"state": state})


def _restored(record: type, row: dict) -> NamedTuple:
    if "samples" in row:
        row["samples"] = tuple(Sample(*sample) for sample in row["samples"])
    return record(**row)


def _identity(given: Mapping[str, object]) -> dict[str, str | float | None]:
    """Arguments as something short, by which two runs are told apart."""
    told = {}
    for name, value in given.items():
        if name not in SAID_ELSEWHERE:
            told |= value if isinstance(value, Mapping) else {name: value}
    return {name: _mark(value) for name, value in told.items()}


def _mark(value: object) -> str | float | None:
    """Models, tokenizers and rows are told by what they hold, functions by name."""
    kind = type(value).__name__
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, nn.Module):
        return f"{kind} {_digest((name, t.dtype, t.shape, _bytes(t)) for name, t in _tensors(value).items())}"
    if isinstance(value, PreTrainedTokenizerBase):
        return f"{kind} {_digest([sorted(value.get_vocab().items()), value.chat_template])}"
    if isinstance(value, partial):
        return f"{_mark(value.func)} {value.args} {value.keywords}"
    if callable(value):
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', kind)}"
        owner = getattr(value, "__self__", None)
        return f"{name} of {_mark(owner)}" if isinstance(owner, nn.Module) else name
    return f"{len(value)} rows {_digest(value)}"


def _digest(rows: Iterable) -> str:
    """A few digits that change with the content of the rows."""
    content = sha256()
    for row in rows:
        content.update(repr(row).encode())
    return content.hexdigest()[:12]


def _bytes(tensor: Tensor) -> str:
    return sha256(tensor.cpu().reshape(-1).view(torch.uint8).numpy()).hexdigest()
