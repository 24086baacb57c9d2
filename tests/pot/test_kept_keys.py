"""What stays is what was read, bit for bit: keys, values and novelty; keys are rotated to their slots once."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES
from spies import WhatWasRead, random_ids, random_text, recorded_reading, same_state, shared_adapter

from infinipot_llm.config import PotConfig
from infinipot_llm.pot import novelty as novelty_module
from infinipot_llm.pot.catalyst import importance
from infinipot_llm.pot.novelty import surprise
from infinipot_llm.pot.pot import PREFIX, Pot
from infinipot_llm.pot.reader import Reader, ReadStats

PREFIX_TOKENS = 5
LENGTH = 230
KNOBS = [
    {"kept": 0.5},
    {"kept": 0.9, "novelty_share": 0.0, "chunk": 9},
    {"kept": 0.3, "novelty_share": 1.0, "neighbours": 0, "chunk": 1},
    {"kept": 0.5, "policy": "streaming", "chunk": 17},
]


def read(family: str, **knobs: object) -> tuple[Pot, ReadStats, WhatWasRead]:
    config = PotConfig(budget=64, **knobs)  # type: ignore[arg-type]
    catalysts = [random_ids(9, 7), random_ids(4, 8)]
    with recorded_reading() as seen:
        pot, stats = Reader(shared_adapter(family), config).read(
            random_text(LENGTH, 6), random_ids(PREFIX_TOKENS, 5), catalysts, reserve=12
        )
    assert stats.cycles >= 5
    return pot, stats, seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("knobs", KNOBS)
def test_survivors_are_what_was_read_bit_for_bit(family: str, knobs: dict[str, object]) -> None:
    pot, _, seen = read(family, **knobs)
    state = pot.state()
    layers, heads, slots = state["origin"].shape
    assert slots == pot.length
    for layer in range(layers):
        keys, values = torch.stack(seen.keys[layer], 1), torch.stack(seen.values[layer], 1)  # [K, prefix + N, D]
        assert keys.shape[1] == PREFIX_TOKENS + LENGTH
        for head in range(heads):
            origin = state["origin"][layer, head].long()
            assert (origin[:PREFIX_TOKENS] == PREFIX).all()
            assert (origin[PREFIX_TOKENS:] >= 0).all()
            place = torch.cat([torch.arange(PREFIX_TOKENS), origin[PREFIX_TOKENS:] + PREFIX_TOKENS])
            assert torch.equal(state["keys"][layer, head], keys[head, place])
            assert torch.equal(state["values"][layer, head], values[head, place])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("knobs", KNOBS)
def test_keys_are_the_unrotated_ones_rotated_once_to_their_slots(family: str, knobs: dict[str, object]) -> None:
    pot, _, _ = read(family, **knobs)
    state = pot.state()
    for layer, held in enumerate(pot.cache.layers):
        once = held.rotation(state["keys"][layer][None], 0)[0]
        assert torch.equal(state["rotated_keys"][layer], once)
    # And the rotation is the textbook's, by the slot's number.
    half = state["keys"].shape[-1] // 2
    angles = torch.arange(pot.length, dtype=torch.float64)[:, None] * 10000.0 ** (
        -torch.arange(half, dtype=torch.float64) / half
    )
    first, second = state["keys"].double().split(half, dim=-1)
    textbook = torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
    )
    assert (state["rotated_keys"] - textbook).abs().max() <= 1e-5 * textbook.abs().max()


@pytest.mark.parametrize("knobs", KNOBS)
def test_heads_keep_different_tokens_of_their_own(knobs: dict[str, object]) -> None:
    """Otherwise the comparisons above could not tell a gather per head from one for all."""
    origin = read("qwen3", **knobs)[0].origin
    same = all(torch.equal(origin[0, 0], other) for other in origin.flatten(0, 1))
    assert same == (knobs.get("policy") == "streaming" or knobs.get("novelty_share") == 1.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("knobs", [k for k in KNOBS if "novelty_share" not in k or k["novelty_share"]][:2])
def test_novelty_is_carried_along_in_every_head(family: str, knobs: dict[str, object]) -> None:
    pot, _, seen = read(family, **knobs)
    assert len(set(seen.novelty.values())) > 100
    for origin, novelty in zip(pot.origin.flatten().tolist(), pot.novelty.flatten().tolist(), strict=True):
        assert novelty == (0.0 if origin == PREFIX else seen.novelty.get(origin, 0.0)), origin


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", [0, 5])
def test_novelty_until_the_first_distillation_is_the_plain_models_surprise(family: str, prefix: int) -> None:
    adapter = shared_adapter(family)
    text, before = random_text(90, 6), random_ids(prefix, 5)
    with recorded_reading() as seen:
        _, stats = Reader(adapter, PotConfig(budget=70, chunk=8, sink_tokens=0)).read(
            text, before, [random_ids(9, 7)], 10
        )
    assert stats.cycles == (2 if prefix else 1)
    ids = torch.tensor([*before, *text.ids.tolist()])
    adapter.close()
    with torch.no_grad():
        plain = adapter.model(input_ids=ids[None], use_cache=False).logits[0]
    adapter.open()
    expected = -torch.log_softmax(plain, dim=-1)[:-1].gather(1, ids[1:, None])[:, 0]  # of token 1 and on
    for origin in range(60 - prefix):
        position = origin + prefix
        wanted = float(expected[position - 1]) if position else 0.0  # nothing stands before the very first token
        assert seen.novelty[origin] == pytest.approx(wanted, rel=1e-4, abs=1e-4), origin


@pytest.mark.parametrize("family", FAMILIES)
def test_surprise_is_the_same_in_slices_and_no_larger_tensor_is_made(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = shared_adapter(family)
    ids = torch.tensor(random_ids(41, 11))
    hidden = adapter.forward(ids, adapter.new_cache(41))[:-1]
    rows: list[int] = []
    true_logits = adapter.logits

    def logits(states: torch.Tensor) -> torch.Tensor:
        rows.append(len(states))
        return true_logits(states)

    monkeypatch.setattr(adapter, "logits", logits)
    whole = surprise(adapter, hidden, ids[1:])
    assert rows == [40]
    expected = -torch.log_softmax(true_logits(hidden).double(), dim=-1).gather(1, ids[1:, None])[:, 0]
    assert (whole - expected).abs().max() < 1e-4
    for slice_bytes, most in ((1, 1), (4 * adapter.vocabulary * 7, 7), (4 * adapter.vocabulary * 8 - 1, 7)):
        monkeypatch.setattr(novelty_module, "SLICE_BYTES", slice_bytes)
        rows.clear()
        assert (surprise(adapter, hidden, ids[1:]) - whole).abs().max() < 1e-5
        assert max(rows) == most
        assert sum(rows) == 40
    assert surprise(adapter, hidden[:0], ids[:0]).shape == (0,)


def test_reading_makes_no_chunk_by_vocabulary_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = shared_adapter("llama")
    rows: list[int] = []
    head = adapter.head.register_forward_hook(lambda module, given, out: rows.append(out.shape[-2]))
    monkeypatch.setattr(novelty_module, "SLICE_BYTES", 4 * adapter.vocabulary * 3)
    try:
        read("llama")
    finally:
        head.remove()
    assert max(rows) == 3


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_a_catalyst_leaves_no_trace(reduce: str) -> None:
    pot, _, _ = read("llama")
    before = pot.state()
    prompts = [torch.tensor(random_ids(n, n)) for n in (1, 7, 12)]
    once = importance(shared_adapter("llama"), pot, prompts, reduce)  # type: ignore[arg-type]
    assert same_state(before, pot.state())
    assert pot.cache.length == pot.length
    assert pot.cache.observer is None
    again = importance(shared_adapter("llama"), pot, prompts, reduce)  # type: ignore[arg-type]
    assert torch.equal(once, again)


def test_a_catalyst_that_fails_leaves_no_trace() -> None:
    pot, _, _ = read("llama")
    before = pot.state()
    too_long = torch.tensor(random_ids(pot.budget - pot.length + 1, 1))
    with pytest.raises(ValueError, match="slots are needed"):
        importance(shared_adapter("llama"), pot, [torch.tensor([1, 2]), too_long])
    assert same_state(before, pot.state())
    assert pot.cache.length == pot.length
    assert pot.cache.observer is None
