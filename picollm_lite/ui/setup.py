"""What every notebook does first."""

import os
import platform

import datasets
import torch
import transformers

from picollm_lite.models import best_device

# Results on a CPU depend on the number of threads in the last digits; two is what every laptop has.
CPU_THREADS = int(os.environ.get("PICOLLM_THREADS") or 2)


def start(seed: int) -> str:
    """Seed torch, fix the number of threads, say what this machine is, and return the device to use."""
    torch.manual_seed(seed)
    torch.set_num_threads(min(CPU_THREADS, os.cpu_count() or 1))
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    device = best_device()
    print(
        f"device {device}, {torch.get_num_threads()} CPU threads | Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    return device
