"""Texts of a given length, models made once, and spies on what goes into the slots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from conftest import tiny_model
from torch import Tensor, nn

from infinipot_llm.documents import Document, Page
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.slots import SlotLayer
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.pot import Pot

H, K, D = 6, 2, 16  # of the tiny models


@cache
def shared_adapter(family: str) -> Adapter:
    """One model per family for tests that leave it as it was."""
    return Adapter(tiny_model(family, seed=3))


def random_ids(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def random_text(length: int, seed: int = 0) -> TokenizedText:
    """A text of `length` tokens, one to a character, of every byte value."""
    ids = np.asarray(random_ids(length, seed), np.int32)
    document = Document("random", "x" * length, (Page(1, None, 0, length),))
    places = np.arange(length, dtype=np.int32)
    return TokenizedText((document,), ids, places, places + 1, np.asarray([0, length], np.int64))


class Lengths:
    """The slots that were held after every update, the most of any layer."""

    def __init__(self) -> None:
        self.most = 0
        self.updates = 0


@contextmanager
def watched_lengths() -> Iterator[Lengths]:
    """Observe every layer's length, and the buffers that attention is given, at every update."""
    seen, true_update = Lengths(), SlotLayer.update

    def update(layer: SlotLayer, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = true_update(layer, key, value, *args, **kwargs)
        assert keys.shape[2] == values.shape[2] == layer.get_seq_length()
        seen.most = max(seen.most, layer.get_seq_length(), keys.shape[2])
        seen.updates += 1
        return keys, values

    with patch.object(SlotLayer, "update", update):
        yield seen


class WhatWasRead:
    """Un-rotated keys and values as they came from the model, in the order of prefix and document.

    Attributes:
        keys: Per layer, [K, D] of every token.
        values: Likewise.
        novelty: Origin to the surprise recorded for it.
    """

    def __init__(self) -> None:
        self.keys: dict[int, list[Tensor]] = {}
        self.values: dict[int, list[Tensor]] = {}
        self.novelty: dict[int, float] = {}


@contextmanager
def recorded_reading() -> Iterator[WhatWasRead]:
    """Note what the model produced for each token at the time it was recorded as read."""
    seen = WhatWasRead()
    newest: dict[int, tuple[Tensor, Tensor]] = {}
    true_update, true_record, true_novelty = SlotLayer.update, Pot.record, Pot.record_novelty

    def update(layer: SlotLayer, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        newest[id(layer)] = (key.clone(), value.clone())
        return true_update(layer, key, value, *args, **kwargs)

    def record(pot: Pot, origin: Tensor) -> None:
        for index, layer in enumerate(pot.cache.pots):
            key, value = newest[id(layer)]
            assert key.shape[2] == len(origin)
            seen.keys.setdefault(index, []).extend(key[0].unbind(1))
            seen.values.setdefault(index, []).extend(value[0].unbind(1))
        true_record(pot, origin)

    def record_novelty(pot: Pot, novelty: Tensor) -> None:
        true_novelty(pot, novelty)
        newest_origins = pot.origin[0, 0, pot.length - len(novelty) :].tolist()
        seen.novelty.update(zip(newest_origins, novelty.tolist(), strict=True))

    with ExitStack() as stack:
        stack.enter_context(patch.object(SlotLayer, "update", update))
        stack.enter_context(patch.object(Pot, "record", record))
        stack.enter_context(patch.object(Pot, "record_novelty", record_novelty))
        yield seen


def same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two pots hold the same, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@contextmanager
def unrotated(adapter: Adapter, what: str) -> Iterator[dict[int, Tensor]]:
    """Note what the projection (and normalisation) of every layer makes: layer to [heads, C, D], in float64."""
    seen: dict[int, Tensor] = {}
    handles = []
    for layer, attention in enumerate(adapter.attentions):
        module = getattr(attention, f"{what}_norm", None) or getattr(attention, f"{what}_proj")

        def note(module: nn.Module, given: object, out: Tensor, layer: int = layer) -> None:
            seen[layer] = out.reshape(-1, H if what == "q" else K, D).transpose(0, 1).double()

        handles.append(module.register_forward_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def rotate(states: Tensor, start: int) -> Tensor:
    """The textbook rotation of [heads, C, D]: pairs (i, i + D / 2), angle = position / 10000 ** (2 i / D)."""
    out = torch.empty_like(states)
    for c in range(states.shape[1]):
        for i in range(D // 2):
            angle = torch.tensor((start + c) * 10000.0 ** (-2 * i / D), dtype=torch.float64)
            a, b = states[:, c, i], states[:, c, i + D // 2]
            out[:, c, i] = a * angle.cos() - b * angle.sin()
            out[:, c, i + D // 2] = b * angle.cos() + a * angle.sin()
    return out
