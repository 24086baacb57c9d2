"""The window of a sliding layer: its last tokens, at consecutive positions, whatever the pot beside it has dropped.

Such a layer was trained to see the last W tokens and nothing else, so there is nothing to distil: a catalyst cannot
bring back what the layer could never see. Positions start anew from 0 whenever the buffers are full, for keys and
queries alike, so that they stay consecutive and never grow.
Shapes: `B` batch (1), `K` KV heads, `C` new tokens, `W` window, `n` <= W - 1 tokens before the new ones, `D` head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from infinipot_llm.errors import BudgetError
from infinipot_llm.models.rotation import Rotation


class WindowLayer(CacheLayerMixin):
    """The last W - 1 tokens of one layer, and those that came behind them since the buffers were full.

    Attributes:
        window: W, how many tokens a query sees, its own included.
        slots: Of the pots beside it: the most tokens of one forward.
        rotation: Tables for the positions 0 .. W + slots - 2.
        length: Where the next token goes, in the buffers and as position.
    """

    is_sliding = False  # to the library: it would build a mask of its own
    is_compileable = False
    is_croppable = False

    def __init__(self, window: int, slots: int, rotation: Rotation) -> None:
        super().__init__()
        self.window = window
        self.slots = slots
        self.rotation = rotation
        self.length = 0
        self._marked: int | None = None
        self._backup: tuple[Tensor, Tensor] | None = None
        self.raw_keys: Tensor  # [B, K, places, D], un-rotated
        self.rotated_keys: Tensor  # [B, K, places, D], by their place
        self.value_states: Tensor  # [B, K, places, D]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the three buffers in the shape of the first states that arrive."""
        B, K, C, _ = key_states.shape
        places = self.window - 1 + max(C, self.window)
        self.raw_keys = key_states.new_empty((B, K, places, key_states.shape[3]))
        self.rotated_keys = torch.empty_like(self.raw_keys)
        self.value_states = value_states.new_empty((B, K, places, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append un-rotated keys and values [B, K, C, D]; return those within reach, [B, K, n + C, D] (views).

        Raises:
            BudgetError: More tokens come at once than the pots beside it have slots.
        """
        C = key_states.shape[2]
        if self.slots < C:
            raise BudgetError(f"{C} slots are needed and the budget is {self.slots}: raise the budget.")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        elif self.length + C > self.raw_keys.shape[2]:
            self._begin_anew(C)
        start, end = self.length, self.length + C
        self.raw_keys[:, :, start:end] = key_states
        self.rotated_keys[:, :, start:end] = self.rotation(key_states, start)
        self.value_states[:, :, start:end] = value_states
        self.length = end
        first = max(0, start - self.window + 1)
        return self.rotated_keys[:, :, first:end], self.value_states[:, :, first:end]

    def held(self) -> tuple[Tensor, Tensor]:
        """Return copies of the un-rotated keys and values [B, K, n, D] that the next token will see."""
        last = slice(max(0, self.length - self.window + 1), self.length)
        return self.raw_keys[:, :, last].clone(), self.value_states[:, :, last].clone()

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Hold un-rotated keys and values [B, K, n, D], and nothing else, from position 0 on."""
        self.length = 0
        if keys.shape[2]:
            self.update(keys, values)

    def mark(self) -> None:
        """Begin tokens that `restore` takes away again; positions start anew, so that every such beginning is alike."""
        if self.length > self.window - 1:
            self._begin_anew(1)
        self._marked, self._backup = self.length, None

    def restore(self) -> None:
        """Hold again, bit for bit, what was held at the last `mark`."""
        if self._marked is None:
            raise ValueError("nothing was marked")
        if self._backup is None:
            self.length = self._marked
        else:
            self.hold(*self._backup)
        self._marked, self._backup = None, None

    def _begin_anew(self, new: int) -> None:
        """Move the last W - 1 tokens to the front, where `new` tokens have room behind them."""
        if self._marked is not None and self._backup is None:  # what the front holds is wanted again
            front = slice(0, self._marked)
            self._backup = (self.raw_keys[:, :, front].clone(), self.value_states[:, :, front].clone())
        keys, values = self.held()
        if self.window - 1 + new > self.raw_keys.shape[2]:
            places = self.window - 1 + new
            self.raw_keys, self.rotated_keys, self.value_states = (
                buffer.new_empty((*buffer.shape[:2], places, buffer.shape[3]))
                for buffer in (self.raw_keys, self.rotated_keys, self.value_states)
            )
        self.length = keys.shape[2]
        self.raw_keys[:, :, : self.length] = keys
        self.rotated_keys[:, :, : self.length] = self.rotation(keys, 0)
        self.value_states[:, :, : self.length] = values

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Return n, the tokens that the next one will see."""
        return min(self.length, self.window - 1)

    def get_mask_sizes(self, query_length: Any, *args: Any) -> tuple[int, int]:
        """Return (n + C, 0). The library passes a count, or (before 5.10) a tensor of positions."""
        new = query_length if isinstance(query_length, int) else int(query_length.shape[0])
        return self.get_seq_length() + new, 0

    def get_max_length(self) -> int:
        """Return W (the library's name from 5.20 on)."""
        return self.window

    def get_max_cache_shape(self) -> int:
        """Return W (the library's name before)."""
        return self.window

    def reset(self) -> None:
        """Forget everything, keeping the buffers."""
        self.length, self._marked, self._backup = 0, None, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refuse beam search: the window holds one sequence."""
        raise BudgetError("beam search needs one pot per beam: use num_beams=1.")
