"""How the shelf lays a token out: the keys that score apart from everything else, both packed.

Scoring reads a few heads of every token, loading reads all heads of a few tokens. So the scoring keys stand by
themselves, nothing is stored twice, and the rest of a token is one row: a recalled span is one sequential read.
Shapes: `R` rows (tokens), `L` layers, `K` KV heads, `D` head dim, `n` scoring KV heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from infinipot_llm.memory.packing import Packing


@dataclass(frozen=True)
class Layout:
    """Where each vector of a token stands.

    Attributes:
        layers: L.
        kv_heads: K.
        dim: D.
        bits: Per number, 8 or 4.
        scoring: Indices (layer * K + KV head) of the keys that score, increasing.
        whole: Whether all other keys and the values are there too, so that passages can be loaded.
    """

    layers: int
    kv_heads: int
    dim: int
    bits: Literal[8, 4]
    scoring: tuple[int, ...]
    whole: bool

    @cached_property
    def rest(self) -> tuple[int, ...]:
        """Indices of the vectors beside the scoring ones: keys 0 .. L * K - 1, values behind them."""
        if not self.whole:
            return ()
        scoring = set(self.scoring)
        return tuple(i for i in range(2 * self.layers * self.kv_heads) if i not in scoring)

    @property
    def scoring_packing(self) -> Packing:
        """Packing of the scoring keys."""
        return Packing(self.bits, len(self.scoring), self.dim)

    @property
    def rest_packing(self) -> Packing:
        """Packing of all other keys and of the values."""
        return Packing(self.bits, len(self.rest), self.dim)

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values of one token."""
        return self.scoring_packing.row_bytes + self.rest_packing.row_bytes

    def flatten(self, keys: Tensor, values: Tensor) -> Tensor:
        """Put keys and values [L, K, R, D] as [R, 2 * L * K, D]."""
        both = torch.cat([keys.flatten(0, 1), values.flatten(0, 1)])  # [2 * L * K, R, D]
        return both.transpose(0, 1)

    def unflatten(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `flatten`."""
        both = states.transpose(0, 1).reshape(2, self.layers, self.kv_heads, -1, self.dim)
        return both[0], both[1]
