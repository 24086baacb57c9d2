"""Slots that keep the positions they were read at: the pot without Context-Reset RoPE, for comparison.

Most methods leave the keys that stay where they were rotated to, and go on counting: after N tokens the next one stands
at position N, however few slots are held, beyond the trained window in a long text. The paper's figure 5 shows what
that costs. Nothing else differs from the pot.
Shapes: `B` batch (1), `K` KV heads, `S` slots held, `C` new tokens, `D` head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infinipot_llm.errors import ModelError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.rotation import Rotation
from infinipot_llm.models.slots import SlotCache, SlotLayer
from infinipot_llm.pot.pot import PREFIX, Pot


@dataclass(frozen=True)
class _Moved(Rotation):
    """A rotation whose slots stand `moved[0]` positions further on: as many as were dropped before them."""

    moved: list[int]

    def __call__(self, states: Tensor, start: int) -> Tensor:
        """Rotate states to the positions of the slots from `start` on."""
        return super().__call__(states, start + self.moved[0])


class AbsoluteLayer(SlotLayer):
    """Slots of one layer; what is kept keeps its rotation."""

    def __init__(self, slots: int, rotation: Rotation, number: int) -> None:
        self._moved = [0]
        super().__init__(slots, _Moved(rotation.cos, rotation.sin, rotation.apply, self._moved), number)

    def keep(self, slots: Tensor) -> None:
        """Keep only the given slots [B, K, kept], as they are rotated."""
        kept, held = slots.shape[2], self.length
        index = slots[..., None]
        for buffer in (self.raw_keys, self.rotated_keys, self.value_states):
            buffer[:, :, :kept] = buffer[:, :, :held].gather(2, index.expand(-1, -1, -1, buffer.shape[3]))
        self._moved[0] += held - kept
        self.length = kept


def absolute_pot(adapter: Adapter, budget: int, prefix: Sequence[int], tokens: int) -> Pot:
    """Return a pot for a text of so many tokens that holds the prefix and never counts anew.

    Raises:
        ModelError: The model has sliding layers, which know no positions but their own.
    """
    if any(adapter.windows):
        raise ModelError("positions=kept needs a model without sliding layers: choose another model.")
    pot = Pot(adapter, budget)
    rotations = adapter.rotations(budget + len(prefix) + tokens)
    layers = [AbsoluteLayer(budget, rotation, number) for number, rotation in enumerate(rotations)]
    cache = SlotCache(budget, rotations, [None] * len(layers))
    cache.pots, cache.layers = list(layers), list(layers)
    pot.cache = cache
    if prefix:
        adapter.forward(torch.tensor(list(prefix), dtype=torch.long), cache)
        pot.record(torch.full((len(prefix),), PREFIX))
    return pot
