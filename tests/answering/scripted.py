"""A model whose next tokens are dictated, so that stop strings, ends and streams can be tested with any text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from infinipot_llm.models.adapter import Adapter


class Script:
    """How often the output head was run: once per decoded token."""

    def __init__(self) -> None:
        self.steps = 0


@contextmanager
def dictated(adapter: Adapter, ids: Sequence[int], then: int = ord("z")) -> Iterator[Script]:
    """Make the output head favour ids[0], ids[1], ... one per call, and `then` ever after."""
    script = Script()

    def dictate(module: nn.Module, given: object, out: Tensor) -> Tensor:
        wanted = ids[script.steps] if script.steps < len(ids) else then
        script.steps += 1
        forced = torch.zeros_like(out)
        forced[..., wanted] = 50.0
        return forced

    handle = adapter.head.register_forward_hook(dictate)
    try:
        yield script
    finally:
        handle.remove()
