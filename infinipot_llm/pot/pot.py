"""The pot: at most `budget` slots per layer and KV head, and where each slot's token came from.

Heads keep different tokens, so origin and novelty are carried per layer and head, gathered along with the keys.
In a model that mixes sliding layers with others, only the others hold slots; the sliding ones keep a window of the last
tokens of the text, which no distillation touches.
Shapes: `L` layers with slots, `K` KV heads, `S` slots held, `A` sliding layers, `n` tokens they hold, `D` head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from infinipot_llm.models.adapter import Adapter
from infinipot_llm.pot.watch import Watch

PREFIX = -1
"""Origin of a slot that holds a token of the prompt's prefix rather than of the document."""


class Recent(NamedTuple):
    """What sliding layers hold: the last tokens of the text, before a question.

    Attributes:
        keys: [A, K, n, D], un-rotated.
        values: [A, K, n, D].
        origin: [n] int32: index of each token in the document, or PREFIX.
    """

    keys: Tensor
    values: Tensor
    origin: Tensor


class Pot:
    """A bounded KV cache and its bookkeeping; the document state that questions are asked of.

    Attributes:
        cache: The slots, presented to transformers.
        budget: Slots per layer and KV head.
        pinned: The first slots, the same in every head, that no distillation drops.
        length: S, the slots that belong to the document state (a question on top of it is not counted).
        watch: Observes attention while text is read, for policies that want it; None for the others.
    """

    def __init__(self, adapter: Adapter, budget: int) -> None:
        self.budget = budget
        self._dtype = adapter.dtype
        self.cache = adapter.new_cache(budget)
        self.pinned = 0
        self.length = 0
        self.watch: Watch | None = None
        shape = (adapter.layers, int(adapter.config.num_key_value_heads), budget)
        self._origin = torch.full(shape, PREFIX, dtype=torch.int32, device=adapter.device)
        self._novelty = torch.zeros(shape, dtype=torch.float32, device=adapter.device)
        self._reach = max((layer.window - 1 for layer in self.cache.sliding), default=0)  # all have the same
        self._recent = self._origin.new_empty(0)  # [n], origins of what the sliding layers hold

    @property
    def origin(self) -> Tensor:
        """[L, K, S] int32: index of each slot's token in the document, or PREFIX."""
        return self._origin[:, :, : self.length]

    @property
    def novelty(self) -> Tensor:
        """[L, K, S] float32: each slot's surprise in nats when it was read (0 where it was not computed)."""
        return self._novelty[:, :, : self.length]

    @property
    def tokens(self) -> Tensor:
        """[n] int64, increasing: the document's tokens that some head of some layer, sliding ones too, still holds."""
        held = torch.unique(torch.cat([self.origin.flatten(), self._recent]))
        return held[held >= 0].to(torch.int64)

    def record(self, origin: Tensor) -> None:
        """Take note of tokens just forwarded through the cache.

        Args:
            origin: [C] int, their indices in the document, or PREFIX.
        """
        end = self.length + len(origin)
        self._origin[:, :, self.length : end] = origin.to(self._origin)
        self._novelty[:, :, self.length : end] = 0.0
        self.length = end
        self._note_recent(origin)

    def record_novelty(self, novelty: Tensor) -> None:
        """Set the novelty of the newest len(novelty) slots; novelty is [C] float32, in nats."""
        self._novelty[:, :, self.length - len(novelty) : self.length] = novelty

    def place(self, keys: Tensor, values: Tensor, origin: Tensor, novelty: Tensor | None = None) -> None:
        """Append slots that were computed before, rotated to where they come to stand.

        Args:
            keys: [L, K, C, D], un-rotated; or [L + A, K, C, D], as `newest` returns them with the sliding layers, which
                then hold these tokens next. Otherwise what they hold must be said by `hold_recent`.
            values: Likewise.
            origin: [C] or [L, K, C] int: index of each token in the document, or PREFIX.
            novelty: [L, K, C] float32, in nats; None: 0.
        """
        start, L = self.length, len(self.cache.pots)
        keys, values = keys.to(self._dtype), values.to(self._dtype)
        for layer, k, v in zip(self.cache.pots, keys[:L], values[:L], strict=True):
            layer.update(k[None], v[None])
        if keys.shape[0] > L:
            for window, k, v in zip(self.cache.sliding, keys[L:], values[L:], strict=True):
                window.update(k[None], v[None])
            self._note_recent(origin)
        self.length = start + keys.shape[2]
        self._origin[:, :, start : self.length] = origin.to(self._origin)
        self._novelty[:, :, start : self.length] = 0.0 if novelty is None else novelty.to(self._novelty)

    def newest(self, count: int, *, sliding: bool = False) -> tuple[Tensor, Tensor]:
        """Return un-rotated keys and values of the newest slots, copies of [L, K, count, D] each.

        Args:
            count: How many; as many must have come in one piece where the sliding layers are wanted too.
            sliding: Put what the sliding layers made of the same tokens behind it: [L + A, K, count, D].
        """
        held = [(layer, self.length) for layer in self.cache.pots]
        held += [(layer, layer.length) for layer in self.cache.sliding] if sliding else []
        keys = torch.stack([layer.raw_keys[0, :, end - count : end] for layer, end in held])
        values = torch.stack([layer.value_states[0, :, end - count : end] for layer, end in held])
        return keys, values

    def recent(self) -> Recent | None:
        """Return copies of what the sliding layers hold; None where there are none."""
        layers = [layer for layer in self.cache.sliding if layer.is_initialized]
        if not layers:
            return None
        keys, values = zip(*(layer.held() for layer in layers), strict=True)
        return Recent(torch.cat(keys), torch.cat(values), self._recent.clone())

    def hold_recent(self, recent: Recent) -> None:
        """Let the sliding layers hold this and nothing else, at positions from 0 on."""
        keys, values = recent.keys.to(self._dtype), recent.values.to(self._dtype)
        for layer, k, v in zip(self.cache.sliding, keys, values, strict=True):
            layer.hold(k[None], v[None])
        self._recent = recent.origin.to(self._origin)

    def _note_recent(self, origin: Tensor) -> None:
        if self._reach:
            self._recent = torch.cat([self._recent, origin.to(self._origin)])[-self._reach :]

    def keep(self, slots: Tensor) -> None:
        """Distil: keep only the given slots of each head, re-indexed from 0.

        Args:
            slots: [L, K, kept] int64, in increasing order per head, the pinned slots first.
        """
        kept = slots.shape[2]
        for layer, chosen in zip(self.cache.pots, slots, strict=True):
            layer.keep(chosen[None])
        if self.watch is not None:
            self.watch.keep(slots)
        for held in (self._origin, self._novelty):
            held[:, :, :kept] = held[:, :, : self.length].gather(2, slots)
        self.length = kept

    @contextmanager
    def scratch(self) -> Iterator[None]:
        """Forward tokens that leave no trace: the catalyst, a question, an answer."""
        before = self.length
        self.cache.mark()
        try:
            yield
        finally:
            self.cache.restore(before)

    def hide(self, start: int, end: int) -> None:
        """Let the next forward, within `scratch`, see none of the document's tokens start .. end - 1."""
        self.cache.hidden = (self.origin >= start) & (self.origin < end)
        if self._reach:
            self.cache.hidden_recent = ((self._recent >= start) & (self._recent < end))[None]

    def state(self) -> dict[str, Tensor]:
        """Return copies of everything that makes the document state, for comparison and measurement.

        Returns:
            keys and rotated_keys [L, K, S, D], values [L, K, S, D], origin and novelty [L, K, S]; where there are
            sliding layers recent_keys and recent_values [A, K, n, D], recent_origin [n].
        """

        def stack(name: str) -> Tensor:
            return torch.stack([getattr(layer, name)[0, :, : self.length] for layer in self.cache.pots])

        recent = self.recent()
        return {
            "keys": stack("raw_keys"),
            "rotated_keys": stack("rotated_keys"),
            "values": stack("value_states"),
            "origin": self.origin.clone(),
            "novelty": self.novelty.clone(),
            **({f"recent_{name}": value for name, value in recent._asdict().items()} if recent else {}),
        }
