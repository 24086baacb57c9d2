"""Rotary positions as data: slot `s` of a layer is rotated by position `s`, in float32, in this one function.

Context-Reset RoPE (paper, section 3.3) is then nothing but "keep un-rotated keys, and rotate them by their slot".
Shapes: `B` batch, `K` KV heads, `H` query heads, `C` new tokens, `S` slots, `D` head dim, `R` rotated dims (R <= D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Apply = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A model's own `apply_rotary_pos_emb(q, k, cos, sin)`: knows its half-split, interleaved or partial layout."""


@dataclass(frozen=True)
class Rotation:
    """The rotation of one layer.

    Attributes:
        cos: [1, slots, R] in float32, made by the model's own rotary embedding (scaling included).
        sin: [1, slots, R] in float32.
        apply: The model's own function, or None for a layer without rotary positions (SmolLM3 has such).
    """

    cos: Tensor
    sin: Tensor
    apply: Apply | None

    def __call__(self, states: Tensor, start: int) -> Tensor:
        """Rotate un-rotated keys or queries to the slots `start`, `start + 1`, ...

        Args:
            states: [B, heads, C, D], un-rotated, in any floating dtype.
            start: Slot of the first of the C states.

        Returns:
            [B, heads, C, D] in the dtype of `states`; computed in float32.
        """
        if self.apply is None:
            return states
        end = start + states.shape[2]
        cos, sin = self.cos[:, start:end], self.sin[:, start:end]  # [1, C, R]
        R = cos.shape[2]
        turned = states[..., :R].to(torch.float32)  # where R < D, the dims behind R carry no position
        # The library's functions rotate a query and a key together; one lone head stands in for the other of the two.
        rotated = self.apply(turned, turned[:, :1], cos, sin)[0].to(states.dtype)
        return rotated if states.shape[3] == R else torch.cat([rotated, states[..., R:]], dim=3)  # [B, heads, C, D]
