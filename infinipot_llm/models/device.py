"""Where a model runs, and in which floating dtype."""

from __future__ import annotations

import time
from functools import cache

import torch

from infinipot_llm.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

WORTH_IT = 1.5
"""How many times as fast as float32 a CPU must multiply in bf16 for a model to be run so. What CPUs announce is no
guide: among those with avx512_bf16 we measured 5 times as fast, and ten times slower."""


def choose_device(device: str) -> torch.device:
    """Resolve a device name; "auto" takes a GPU when there is one.

    Raises:
        ModelError: There is no such device here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}: give cpu, cuda, cuda:1 or mps.") from error
    if found.type == "cuda" and not (torch.cuda.is_available() and (found.index or 0) < torch.cuda.device_count()):
        raise ModelError(f"there is no device {device!r} here that torch can use: leave --device out, or give cpu.")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("there is no mps device here that torch can use: leave --device out, or give cpu.")
    return found


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Resolve a dtype name; "auto" is bf16 where the device is fast at it, else fp16 on a GPU and float32 on a CPU.

    Raises:
        ModelError: The name is not a floating dtype that models are run in.
    """
    if dtype == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        if device.type == "mps":
            return torch.float16
        return torch.bfloat16 if bf16_speedup() >= WORTH_IT else torch.float32
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: give auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory, of the machine or of a GPU, ran out."""
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch has no class for it
    return on_cpu or isinstance(error, (MemoryError, torch.OutOfMemoryError))


@cache
def bf16_speedup() -> float:
    """Return how many times as fast as in float32 this CPU multiplies matrices in bf16: some 20 ms, once per process.

    The best of several takes each, in turns, so that a busy moment does not decide. What they decide is a factor of
    several in either direction on all CPUs we saw, and so the same in every process of a machine.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn((256, 1024), generator=generator), torch.randn((1024, 1024), generator=generator)
    operands = {dtype: (a.to(dtype), b.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(operands, float("inf"))
    for _ in range(5):
        for dtype, (left, right) in operands.items():
            started = time.perf_counter()
            left @ right
            best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.float32] / best[torch.bfloat16]
