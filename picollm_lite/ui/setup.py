"""What every notebook does first."""

import os
import platform

import datasets
import torch
import transformers

from picollm_lite.models import best_device

# Results on a CPU depend on the number of threads in the last digits; two is what every laptop has.
CPU_THREADS = 2


def start(seed: int) -> str:
    """Seed torch, fix the number of threads (PICOLLM_THREADS: another), say what this machine is, return the device."""
    torch.manual_seed(seed)
    threads = int(os.environ.get("PICOLLM_THREADS") or CPU_THREADS)
    torch.set_num_threads(min(threads, os.cpu_count() or 1))
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    device = best_device()
    print(
        f"device {device}, {torch.get_num_threads()} CPU threads | Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    return device
