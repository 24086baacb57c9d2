"""Slots that keep the positions they were read at: the pot without Context-Reset RoPE, for comparison.

Most methods leave the keys that stay where they were rotated to, and go on counting: after N tokens the next one stands
at position N, however few slots are held, beyond the trained window in a long text. The paper's figure 5 shows what
that costs. Nothing else differs from the pot.
Shapes: `B` batch (1), `K` KV heads, `S` slots held, `C` new tokens, `D` head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from infinipot_llm.errors import BudgetError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.rotation import Rotation
from infinipot_llm.models.slots import SlotLayer
from infinipot_llm.pot.pot import Pot


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

    @classmethod
    def of(cls, layer: SlotLayer, rotation: Rotation) -> AbsoluteLayer:
        """Return a layer in place of another from which nothing was dropped, with its buffers."""
        made = cls(layer.slots, rotation, layer.number)
        if layer.is_initialized:
            made.raw_keys, made.rotated_keys, made.value_states = (
                layer.raw_keys, layer.rotated_keys, layer.value_states,
            )  # fmt: skip
            made.is_initialized, made.length = True, layer.length
        return made

    def keep(self, slots: Tensor) -> None:
        """Keep only the given slots [B, K, kept], as they are rotated."""
        kept, held = slots.shape[2], self.length
        index = slots[..., None]
        for buffer in (self.raw_keys, self.rotated_keys, self.value_states):
            buffer[:, :, :kept] = buffer[:, :, :held].gather(2, index.expand(-1, -1, -1, buffer.shape[3]))
        self._moved[0] += held - kept
        self.length = kept


def absolute_pot(adapter: Adapter, budget: int, tokens: int) -> Pot:
    """Return an empty pot for so many tokens, the prompt's before the text among them, that never counts anew.

    Raises:
        BudgetError: The model has sliding layers, which know no positions but their own.
    """
    check_positions(adapter)
    pot = Pot(adapter, budget)
    _exchange(pot, adapter.rotations(budget + tokens))
    return pot


def hold_positions(pot: Pot) -> None:
    """Let a pot from which nothing was dropped never count anew.

    Positions end at its slots: what is still to come must fit in as if nothing were ever dropped.
    """
    _exchange(pot, [layer.rotation for layer in pot.cache.pots])


def check_positions(adapter: Adapter) -> None:
    """Refuse a model whose slots cannot keep their positions.

    Raises:
        BudgetError: It has sliding layers, which know no positions but their own.
    """
    if any(adapter.windows):
        raise BudgetError(
            "slots keep the positions they were read at only in a model without sliding layers: choose an arm that "
            "counts them anew (a policy without own: and positions=kept), or another model."
        )


def _exchange(pot: Pot, rotations: Sequence[Rotation]) -> None:
    layers = [AbsoluteLayer.of(layer, rotation) for layer, rotation in zip(pot.cache.pots, rotations, strict=True)]
    pot.cache.pots, pot.cache.layers = list(layers), list(layers)
