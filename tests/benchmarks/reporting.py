"""What the benchmarks say of themselves: the machine, and how far repeated measurements lie apart."""

import platform
import re
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch


def machine(device: str) -> str:
    """The device, with its threads where it is a CPU, and the versions of what runs on it."""
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name() if device == "cuda" else f"{_cpu()}, {threads} thread{'s' * (threads > 1)}"
    return f"{name}, torch {torch.__version__}, transformers {version('transformers')}"


def spread(values: Sequence[float]) -> str:
    """Median and quartiles; of a single value that value."""
    if len(values) == 1:
        return f"measured once {values[0]:.2f}"
    low, _, high = statistics.quantiles(values, n=4)
    return f"median {statistics.median(values):9.2f}   quartiles {low:.2f} to {high:.2f}"


def finish(device: str) -> None:
    """Wait until the GPU has done what it was asked to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    found = re.search(r"^model name\s*:\s*(.+)$", facts.read_text(), re.MULTILINE) if facts.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
