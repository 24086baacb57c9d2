"""What stays is what was read, bit for bit: keys, values and novelty; keys are rotated to their slots once."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from conftest import FAMILIES
from spies import WhatWasRead, random_ids, random_text, recorded_reading, same_state, shared_adapter

from infinipot_llm.config import PotConfig
from infinipot_llm.errors import BudgetError
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
    {"kept": 0.3, "novelty_share": 1.0, "agreement": 0.0, "neighbours": 0, "chunk": 1},
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
    rows: dict[str, list[int]] = {"raw_logits": [], "finished": []}
    true = {name: getattr(adapter, name) for name in rows}
    for name in rows:

        def counted(states: torch.Tensor, name: str = name) -> torch.Tensor:
            rows[name].append(len(states))
            return cast(torch.Tensor, true[name](states))

        monkeypatch.setattr(adapter, name, counted)
    whole = surprise(adapter, hidden, ids[1:])
    assert rows == {"raw_logits": [40], "finished": [40]}
    expected = -torch.log_softmax(adapter.logits(hidden).double(), dim=-1).gather(1, ids[1:, None])[:, 0]
    assert (whole - expected).abs().max() < 1e-4
    row = 4 * adapter.vocabulary
    for head, cached, most in ((1, 1, (1, 1)), (row * 7, row * 3, (7, 3)), (row * 8 - 1, row * 9, (7, 7))):
        monkeypatch.setattr(novelty_module, "HEAD_BYTES", head)
        monkeypatch.setitem(novelty_module.CACHED_BYTES, "cpu", cached)
        for seen in rows.values():
            seen.clear()
        assert (surprise(adapter, hidden, ids[1:]) - whole).abs().max() < 1e-5
        assert (max(rows["raw_logits"]), max(rows["finished"])) == most
        assert sum(rows["raw_logits"]) == sum(rows["finished"]) == 40
    assert surprise(adapter, hidden[:0], ids[:0]).shape == (0,)


def test_reading_makes_no_chunk_by_vocabulary_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = shared_adapter("llama")
    rows: list[int] = []
    head = adapter.head.register_forward_hook(lambda module, given, out: rows.append(out.shape[-2]))
    monkeypatch.setattr(novelty_module, "HEAD_BYTES", 4 * adapter.vocabulary * 3)
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


# --- placing what was computed before ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pieces", [[LENGTH], [1, 0, 37, LENGTH - 38]])
def test_slots_placed_elsewhere_are_those_that_were_read(family: str, pieces: list[int]) -> None:
    pot, _, _ = read(family)
    state, start = pot.state(), 0
    copy = Pot(shared_adapter(family), pot.budget)
    for size in pieces:
        part = slice(start, min(start + size, pot.length))
        keys, values, origin, novelty = (state[n][:, :, part] for n in ("keys", "values", "origin", "novelty"))
        copy.place(keys, values, origin, novelty)
        start = part.stop
    assert copy.length == copy.cache.length == pot.length
    other = copy.state()
    assert (other.pop("rotated_keys") - state.pop("rotated_keys")).abs().max() <= 1e-5
    assert same_state(other, state)


def test_slots_are_rotated_to_where_they_come_to_stand() -> None:
    pot, _, _ = read("qwen3")
    keys, values = (pot.state()[n] for n in ("keys", "values"))
    moved = Pot(shared_adapter("qwen3"), pot.budget)
    moved.place(keys[:, :, 20:30], values[:, :, 20:30], torch.arange(100, 110))
    moved.place(keys[:, :, :5], values[:, :, :5], torch.arange(5))
    order = [*range(20, 30), *range(5)]
    state = moved.state()
    assert torch.equal(state["keys"], keys[:, :, order])
    assert torch.equal(state["values"], values[:, :, order])
    assert torch.equal(state["origin"][1, 1], torch.tensor([*range(100, 110), *range(5)], dtype=torch.int32))
    assert not state["novelty"].any()
    for layer, held in enumerate(moved.cache.layers):
        once = held.rotation(keys[layer][None, :, order], 0)[0]
        assert (state["rotated_keys"][layer] - once).abs().max() <= 1e-5


def test_what_a_slot_held_before_does_not_shine_through() -> None:
    """Slots freed by a distillation are filled again."""
    pot, _, _ = read("llama")
    keys, values = pot.newest(3)
    L, K = keys.shape[:2]
    pot.keep(torch.arange(10).expand(L, K, 10))
    pot.place(keys, values, torch.tensor([7, 8, 9]))
    assert (pot.origin[:, :, 10:] == torch.tensor([7, 8, 9])).all()
    assert not pot.novelty[:, :, 10:].any()
    pot.place(keys, values, torch.tensor([7, 8, 9]), torch.full((L, K, 3), 2.5))
    assert (pot.novelty[:, :, 13:] == 2.5).all()


def test_a_pot_takes_no_more_than_its_slots() -> None:
    pot, _, _ = read("llama")
    keys, values = pot.newest(pot.length)
    small = Pot(shared_adapter("llama"), pot.length - 1)
    with pytest.raises(BudgetError, match="slots are needed"):
        small.place(keys, values, pot.origin)


@pytest.mark.parametrize("count", [0, 1, 17])
def test_the_newest_are_copies_of_the_last_slots(count: int) -> None:
    pot, _, _ = read("qwen2")
    before = pot.state()
    keys, values = pot.newest(count)
    assert torch.equal(keys, before["keys"][:, :, pot.length - count :])
    assert torch.equal(values, before["values"][:, :, pot.length - count :])
    keys.fill_(9.0)
    values.fill_(9.0)
    assert same_state(before, pot.state())
    with pot.scratch():  # a question on top is not the pot's
        shared_adapter("qwen2").forward(torch.tensor(random_ids(4, 4)), pot.cache)
        assert torch.equal(pot.newest(5)[0], before["keys"][:, :, -5:])
