"""Novelty under Compression (NuC): how much a token surprised the model when it was read.

Paper, section 3.2, equation 4: n_t = -log P(x_t | what the pot holds of the text before). Computed once, when the
token is read; survivors carry their value along, since they cannot be read again.
Shapes: `C` tokens, `E` hidden size, `V` vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from infinipot_llm.models.adapter import Adapter

HEAD_BYTES = 160 * 2**20
"""The output head makes logits of at most so many bytes at a time, in the model's dtype: never a chunk by a large
vocabulary."""

CACHED_BYTES = {"cpu": 4 * 2**20}
"""By kind of device: logits in float32 of at most so many bytes are compared at a time. On a CPU they then stay in its
cache, which halves the time; elsewhere few large steps are faster."""


def surprise(adapter: Adapter, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return -log P(target) in nats, in row slices.

    Args:
        adapter: The model whose output head is used.
        hidden: [C, E], hidden state before each target.
        targets: [C] int64, the tokens that came.

    Returns:
        [C] float32.
    """
    V = adapter.vocabulary
    targets = targets.to(hidden.device)
    rows = max(1, HEAD_BYTES // (hidden.element_size() * V))
    few = max(1, CACHED_BYTES.get(hidden.device.type, 64 * 2**20) // (4 * V))
    found = []
    for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        raw = adapter.raw_logits(part)  # [rows, V]
        for some, told in zip(raw.split(few), wanted.split(few), strict=True):
            found.append(F.cross_entropy(adapter.finished(some), told, reduction="none"))
    return torch.cat(found) if len(targets) else hidden.new_zeros(0, dtype=torch.float32)
