"""The pot: at most `budget` slots per layer and KV head, and where each slot's token came from.

Heads keep different tokens, so origin and novelty are carried per layer and head, gathered along with the keys.
Shapes: `L` layers, `K` KV heads, `S` slots held.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from infinipot_llm.models.adapter import Adapter

PREFIX = -1
"""Origin of a slot that holds a token of the prompt's prefix rather than of the document."""


class Pot:
    """A bounded KV cache and its bookkeeping; the document state that questions are asked of.

    Attributes:
        cache: The slots, presented to transformers.
        budget: Slots per layer and KV head.
        pinned: The first slots, the same in every head, that no distillation drops.
        length: S, the slots that belong to the document state (a question on top of it is not counted).
    """

    def __init__(self, adapter: Adapter, budget: int) -> None:
        self.budget = budget
        self._dtype = adapter.dtype
        self.cache = adapter.new_cache(budget)
        self.pinned = 0
        self.length = 0
        shape = (adapter.layers, int(adapter.config.num_key_value_heads), budget)
        self._origin = torch.full(shape, PREFIX, dtype=torch.int32, device=adapter.device)
        self._novelty = torch.zeros(shape, dtype=torch.float32, device=adapter.device)

    @property
    def origin(self) -> Tensor:
        """[L, K, S] int32: index of each slot's token in the document, or PREFIX."""
        return self._origin[:, :, : self.length]

    @property
    def novelty(self) -> Tensor:
        """[L, K, S] float32: each slot's surprise in nats when it was read (0 where it was not computed)."""
        return self._novelty[:, :, : self.length]

    def record(self, origin: Tensor) -> None:
        """Take note of tokens just forwarded through the cache.

        Args:
            origin: [C] int, their indices in the document, or PREFIX.
        """
        end = self.length + len(origin)
        self._origin[:, :, self.length : end] = origin.to(self._origin)
        self._novelty[:, :, self.length : end] = 0.0
        self.length = end

    def record_novelty(self, novelty: Tensor) -> None:
        """Set the novelty of the newest len(novelty) slots; novelty is [C] float32, in nats."""
        self._novelty[:, :, self.length - len(novelty) : self.length] = novelty

    def place(self, keys: Tensor, values: Tensor, origin: Tensor, novelty: Tensor | None = None) -> None:
        """Append slots that were computed before, rotated to where they come to stand.

        Args:
            keys: [L, K, n, D], un-rotated.
            values: [L, K, n, D].
            origin: [n] or [L, K, n] int: index of each token in the document, or PREFIX.
            novelty: [L, K, n] float32, in nats; None: 0.
        """
        start = self.length
        dtype = self._dtype
        for layer, k, v in zip(self.cache.layers, keys.to(dtype), values.to(dtype), strict=True):
            layer.update(k[None], v[None])
        self.length = start + keys.shape[2]
        self._origin[:, :, start : self.length] = origin.to(self._origin)
        self._novelty[:, :, start : self.length] = 0.0 if novelty is None else novelty.to(self._novelty)

    def newest(self, count: int) -> tuple[Tensor, Tensor]:
        """Return un-rotated keys and values of the newest slots, copies of [L, K, count, D] each."""
        newest = slice(self.length - count, self.length)
        keys = torch.stack([layer.raw_keys[0, :, newest] for layer in self.cache.layers])
        values = torch.stack([layer.value_states[0, :, newest] for layer in self.cache.layers])
        return keys, values

    def keep(self, slots: Tensor) -> None:
        """Distil: keep only the given slots of each head, re-indexed from 0.

        Args:
            slots: [L, K, kept] int64, in increasing order per head, the pinned slots first.
        """
        kept = slots.shape[2]
        for layer, chosen in zip(self.cache.layers, slots, strict=True):
            layer.keep(chosen[None])
        for held in (self._origin, self._novelty):
            held[:, :, :kept] = held[:, :, : self.length].gather(2, slots)
        self.length = kept

    @contextmanager
    def scratch(self) -> Iterator[None]:
        """Forward tokens that leave no trace: the catalyst, a question, an answer."""
        before = self.length
        try:
            yield
        finally:
            self.cache.truncate(before)
            self.cache.observer = None
            self.cache.hidden = None

    def state(self) -> dict[str, Tensor]:
        """Return copies of everything that makes the document state, for comparison and measurement.

        Returns:
            keys and rotated_keys [L, K, S, D], values [L, K, S, D], origin and novelty [L, K, S].
        """

        def stack(name: str) -> Tensor:
            return torch.stack([getattr(layer, name)[0, :, : self.length] for layer in self.cache.layers])

        return {
            "keys": stack("raw_keys"),
            "rotated_keys": stack("rotated_keys"),
            "values": stack("value_states"),
            "origin": self.origin.clone(),
            "novelty": self.novelty.clone(),
        }
