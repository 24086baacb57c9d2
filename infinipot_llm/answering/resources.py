"""Peak memory of this process, or of its GPU."""

from __future__ import annotations

import sys

import psutil
import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Return the highest memory use so far, in bytes: allocated GPU memory, or resident memory on a CPU.

    Resident memory counts the model's weights, which are mapped from disk and can be given back under pressure.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
