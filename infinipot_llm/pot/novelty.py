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

SLICE_BYTES = 64 * 2**20
"""Logits of at most this many bytes exist at a time: a 256K vocabulary never makes a chunk-by-vocabulary tensor."""


def surprise(adapter: Adapter, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return -log P(target) in nats, in row slices.

    Args:
        adapter: The model whose output head is used.
        hidden: [C, E], hidden state before each target.
        targets: [C] int64, the tokens that came.

    Returns:
        [C] float32.
    """
    rows = max(1, SLICE_BYTES // (4 * adapter.vocabulary))
    targets = targets.to(hidden.device)
    found = []
    for start in range(0, len(targets), rows):
        logits = adapter.logits(hidden[start : start + rows])  # [rows, V]
        found.append(F.cross_entropy(logits, targets[start : start + rows], reduction="none"))
    return torch.cat(found) if found else hidden.new_zeros(0, dtype=torch.float32)
