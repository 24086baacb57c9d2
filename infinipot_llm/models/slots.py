"""Key and value slots of fixed number, shown to transformers as a cache; sliding layers beside them keep a window.

Each layer with slots owns three buffers, allocated once: un-rotated keys (the master copy), the same keys rotated to
their slots (the working copy that attention reads), and values. Appending and dropping move a length; nothing grows by
concatenation.
Shapes: `B` batch (1), `K` KV heads, `S` slots held, `C` new tokens, `D` head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from infinipot_llm.errors import BudgetError
from infinipot_llm.models.rotation import Rotation
from infinipot_llm.models.window import WindowLayer


class Attending(NamedTuple):
    """What one layer with slots is about to attend with; views, not to be written to.

    Attributes:
        layer: Its index among the layers with slots.
        raw_query: [B, H, C, D], un-rotated.
        query: [B, H, C, D], rotated to their slots.
        key: [B, K, S, D], rotated to their slots.
        scaling: Softmax scaling.
    """

    layer: int
    raw_query: Tensor
    query: Tensor
    key: Tensor
    scaling: float


Observer = Callable[[Attending], None]
"""Called in every layer with slots before it attends."""


class SlotLayer(CacheLayerMixin):
    """The slots of one layer, filled from 0 upwards; slot number = rotary position."""

    is_sliding = False
    is_compileable = False
    is_croppable = True
    window = None  # a query sees every slot before its own

    def __init__(self, slots: int, rotation: Rotation, number: int) -> None:
        super().__init__()
        self.slots = slots
        self.number = number  # among the layers with slots
        self.rotation = rotation
        self.length = 0
        self.raw_keys: Tensor  # [B, K, slots, D], un-rotated
        self.rotated_keys: Tensor  # [B, K, slots, D]
        self.value_states: Tensor  # [B, K, slots, D]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the three buffers, once, in the shape of the first states that arrive."""
        B, K, _, D = key_states.shape
        self.raw_keys = key_states.new_empty((B, K, self.slots, D))
        self.rotated_keys = torch.empty_like(self.raw_keys)
        self.value_states = value_states.new_empty((B, K, self.slots, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append un-rotated keys and values [B, K, C, D]; return rotated keys and values [B, K, S, D] (views).

        Raises:
            BudgetError: The slots would overflow. The reader and the decoder count ahead, so this is a last line.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[2]
        if end > self.slots:
            raise BudgetError(f"{end} slots are needed and the budget is {self.slots}: raise the budget.")
        self.raw_keys[:, :, start:end] = key_states
        self.rotated_keys[:, :, start:end] = self.rotation(key_states, start)
        self.value_states[:, :, start:end] = value_states
        self.length = end
        return self.rotated_keys[:, :, :end], self.value_states[:, :, :end]

    def keep(self, slots: Tensor) -> None:
        """Keep only the given slots, in the given order, and rotate their keys to their new slots (CR-RoPE).

        Args:
            slots: [B, K, kept], indices of held slots, per KV head.
        """
        kept, held = slots.shape[2], self.length
        index = slots[..., None]  # [B, K, kept, 1]
        for buffer in (self.raw_keys, self.value_states):
            buffer[:, :, :kept] = buffer[:, :, :held].gather(2, index.expand(-1, -1, -1, buffer.shape[3]))
        self.rotated_keys[:, :, :kept] = self.rotation(self.raw_keys[:, :, :kept], 0)
        self.length = kept

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Return S, the number of slots held."""
        return self.length

    def get_mask_sizes(self, query_length: Any, *args: Any) -> tuple[int, int]:
        """Return (S after the query, 0). The library passes a count, or (before 5.10) a tensor of positions."""
        new = query_length if isinstance(query_length, int) else int(query_length.shape[0])
        return self.length + new, 0

    def get_max_length(self) -> int:
        """Return the number of slots (the library's name from 5.20 on)."""
        return self.slots

    def get_max_cache_shape(self) -> int:
        """Return the number of slots (the library's name before)."""
        return self.slots

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `-tokens_to_remove` slots (the library's convention: a negative count)."""
        self.length = max(0, self.length - abs(tokens_to_remove))

    def reset(self) -> None:
        """Forget all slots, keeping the buffers."""
        self.length = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refuse beam search: the slots hold one sequence."""
        raise BudgetError("beam search needs one pot per beam: use num_beams=1.")


class SlotCache(Cache):
    """All layers' slots and windows, and what may be done to the attention on them while a forward runs.

    Attributes:
        slots: Slots per layer.
        pots: [L] the layers with slots, in the order of the model.
        sliding: The other layers: each holds a window of the last tokens. Often there are none.
        observer: Looks at queries and keys of every layer with slots.
        hidden: [L, K, S] bool, slots that no query may see (S = the slots held before the forward), or None.
        hidden_recent: [1, n] bool, the same for the tokens of the windows (n = those held before the forward), or None.
        vacant: [B] int64, slots at the beginning of each row that hold nothing and that no query sees, or None.
    """

    def __init__(self, slots: int, rotations: Sequence[Rotation], windows: Sequence[int | None]) -> None:
        """Make empty layers.

        Args:
            slots: Slots of a layer without a window, positions 0 .. slots - 1.
            rotations: Of every layer of the model.
            windows: Tokens that a query of each layer sees; None for a layer with slots.
        """
        self.pots: list[SlotLayer] = []
        self.sliding: list[WindowLayer] = []
        layers: list[Any] = []
        for rotation, window in zip(rotations, windows, strict=True):
            if window is None:
                self.pots.append(SlotLayer(slots, rotation, number=len(self.pots)))
                layers.append(self.pots[-1])
            else:
                self.sliding.append(WindowLayer(window, slots, rotation))
                layers.append(self.sliding[-1])
        super().__init__(layers=layers)
        self.slots = slots
        self.observer: Observer | None = None
        self.hidden: Tensor | None = None
        self.hidden_recent: Tensor | None = None
        self.vacant: Tensor | None = None

    @property
    def length(self) -> int:
        """S, the slots held; the same in every layer that has some."""
        return self.pots[0].length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return S: the library may ask a sliding layer, which knows only its window."""
        return self.length

    def mark(self) -> None:
        """Begin tokens that `restore` takes away again."""
        for layer in self.sliding:
            layer.mark()

    def restore(self, length: int) -> None:
        """Drop every slot from `length` on, give the windows back what they held at `mark`; hide nothing any more."""
        for pot in self.pots:
            pot.length = min(pot.length, length)
        for layer in self.sliding:
            layer.restore()
        self.observer = self.hidden = self.hidden_recent = None

    def fill_rows(self, others: Sequence[SlotCache]) -> None:
        """Take over what other caches of one row hold, one row each, aligned at their ends; this one was empty.

        A key is rotated to the slot in which it comes to stand: the distances between tokens stay as they were.
        """
        held = max(other.length for other in others)
        for number, layer in enumerate(self.pots):
            rows = [other.pots[number] for other in others]
            layer.update(*(_aligned([getattr(r, name)[0, :, : r.length] for r in rows], held)
                           for name in ("raw_keys", "value_states")))  # fmt: skip
        self.vacant = torch.tensor([held - other.length for other in others], device=self.pots[0].raw_keys.device)

    def nbytes(self) -> int:
        """Bytes of all buffers: 1.5 times a plain cache of as many tokens, for the rotated working copy."""
        layers: list[SlotLayer | WindowLayer] = [*self.pots, *self.sliding]
        made = [layer for layer in layers if layer.is_initialized]
        return sum(b.nbytes for layer in made for b in (layer.raw_keys, layer.rotated_keys, layer.value_states))


def _aligned(rows: Sequence[Tensor], length: int) -> Tensor:
    """Stack states [K, n, D] of different n to [B, K, length, D], zeros before the shorter ones."""
    return torch.stack([F.pad(row, (0, 0, length - row.shape[1], 0)) for row in rows])
