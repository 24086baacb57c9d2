"""Memory of this process, or of its GPU: how much it takes, and giving back what is free."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import torch

NOT_TOLD = "the anonymous memory of a process (RssAnon) is told by Linux alone: measure it there."

INTERVAL = 0.01
"""Seconds between two looks at the memory of the process."""


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


def anonymous_bytes() -> int | None:
    """Return the memory of this process that stands in no file (RssAnon); None where that is not told, as off Linux."""
    told = psutil.Process().memory_info()
    return int(told.rss - told.shared) if hasattr(told, "shared") else None


def return_free_pages() -> None:
    """Let glibc give back what was let go of, which it keeps for later otherwise."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


@dataclass
class Taken:
    """What some work took.

    Attributes:
        before: Bytes that were taken before it; None where nothing tells.
        peak: The most while it was done; what came and went between two looks was not seen.
    """

    before: int | None
    peak: int | None

    @property
    def added(self) -> int | None:
        """Bytes that the work added at most."""
        return None if self.before is None or self.peak is None else self.peak - self.before


@contextmanager
def memory_taken(device: torch.device) -> Iterator[Taken]:
    """Watch what is done inside: allocated GPU memory, or anonymous memory of the process, weights not mapped included.

    The peak stands there when it is done.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        taken = Taken(int(torch.cuda.memory_allocated(device)), None)
        yield taken
        taken.peak = int(torch.cuda.max_memory_allocated(device))
        return
    return_free_pages()
    taken = Taken(anonymous_bytes(), None)
    if taken.before is None:
        yield taken
        return
    most, done = taken.before, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(INTERVAL):
            most = max(most, anonymous_bytes() or 0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield taken
    finally:
        done.set()
        watcher.join()
        taken.peak = max(most, anonymous_bytes() or 0)
