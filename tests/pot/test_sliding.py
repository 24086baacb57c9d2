"""Models that mix sliding layers with others: a pot beside windows of the last tokens, which no distillation touches.

The reference keeps every token of the text and attends by the textbook: true positions in the whole text, the last W
tokens. It knows nothing of buffers, of places that start anew, or of what is taken away again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from conftest import SLIDING, byte_tokenizer, tiny_model
from spies import random_ids, random_text, recorded_reading, same_state, shared_adapter
from torch import Tensor, nn

from infinipot_llm.answering.decode import Sampling, decode
from infinipot_llm.config import PotConfig
from infinipot_llm.models import attention
from infinipot_llm.models.rotation import Rotation
from infinipot_llm.models.slots import SlotCache
from infinipot_llm.models.text import TextCodec
from infinipot_llm.models.window import WindowLayer
from infinipot_llm.pot.catalyst import importance
from infinipot_llm.pot.pot import PREFIX, Pot
from infinipot_llm.pot.reader import Reader, ReadStats

W, D, H, K = 20, 16, 6, 2  # of the tiny Gemma 3
PREFIX_TOKENS = 5


def turned(states: Tensor, first: int) -> Tensor:
    """The textbook rotation of [heads, T, D] to the positions first, first + 1, ...: pairs (i, i + D / 2)."""
    half = D // 2
    places = torch.arange(first, first + states.shape[1], dtype=torch.float64)
    angles = places[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    one, two = states.double().split(half, dim=-1)
    return torch.cat([one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], -1)


@dataclass
class Told:
    """All that one sliding layer was given: un-rotated queries, keys and values [heads, tokens, D]."""

    queries: Tensor = field(default_factory=lambda: torch.zeros(H, 0, D))
    keys: Tensor = field(default_factory=lambda: torch.zeros(K, 0, D))
    values: Tensor = field(default_factory=lambda: torch.zeros(K, 0, D))

    def __add__(self, more: Told) -> Told:
        return Told(
            torch.cat([self.queries, more.queries], 1),
            torch.cat([self.keys, more.keys], 1),
            torch.cat([self.values, more.values], 1),
        )

    def attended(self, new: int) -> Tensor:
        """What the newest tokens should make of the last W before each, [H, new, D]."""
        T = self.keys.shape[1]
        first = max(0, T - new - W - 3)  # what stands before is masked in any case
        query, key = turned(self.queries[:, T - new :], T - new), turned(self.keys[:, first:], first)
        key, value = (x.repeat_interleave(H // K, dim=0) for x in (key, self.values[:, first:].double()))
        distance = torch.arange(T - new, T)[:, None] - torch.arange(first, T)[None]
        logits = (query @ key.transpose(1, 2) * D**-0.5).masked_fill((distance < 0) | (distance >= W), -torch.inf)
        return logits.softmax(-1) @ value


class Watch:
    """Compares every sliding layer's output, while it reads, with the textbook's on the whole text."""

    def __init__(self) -> None:
        self.text: dict[int, Told] = {}
        self.passing: dict[int, Told] | None = None  # the catalyst, a question: to be taken away again
        self.compared = 0

    def attends(self, layer: int, window: WindowLayer, query: Tensor, out: Tensor) -> None:
        C = query.shape[2]
        new = slice(window.length - C, window.length)
        told = Told(query[0], window.raw_keys[0, :, new].clone(), window.value_states[0, :, new].clone())
        store = self.text if self.passing is None else self.passing
        store[layer] = store.get(layer, Told()) + told
        whole = self.text.get(layer, Told())
        if self.passing is not None:
            whole = whole + self.passing[layer]
        expected = whole.attended(C)
        assert (out[0].transpose(0, 1) - expected).abs().max() <= 2e-4 * expected.abs().max()
        self.compared += C


@contextmanager
def watched(family: str = "gemma3") -> Iterator[Watch]:
    adapter, watch = shared_adapter(family), Watch()
    true_attention, true_mark, true_restore = attention.slot_attention, SlotCache.mark, SlotCache.restore

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: object, **kw: object) -> object:
        out = true_attention(module, query, key, value, *rest, **kw)  # type: ignore[arg-type]
        layer = kw["pot"].layers[module.layer_idx]  # type: ignore[attr-defined, index]
        if isinstance(layer, WindowLayer):
            watch.attends(int(module.layer_idx), layer, query, out[0])  # type: ignore[arg-type]
        return out

    def mark(cache: SlotCache) -> None:
        watch.passing = {}
        true_mark(cache)

    def restore(cache: SlotCache, length: int) -> None:
        watch.passing = None
        true_restore(cache, length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "slot_attention", attend)
        patch.setattr(SlotCache, "mark", mark)
        patch.setattr(SlotCache, "restore", restore)
        adapter.close()
        adapter.open()
        try:
            yield watch
        finally:
            patch.undo()
            adapter.close()
            adapter.open()


def read(family: str, length: int = 230, budget: int = 64, chunk: int = 512) -> tuple[Pot, ReadStats]:
    catalysts = [random_ids(9, 7), random_ids(27, 8)]  # one longer than the window, and than what is free behind it
    return Reader(shared_adapter(family), PotConfig(budget=budget, chunk=chunk)).read(
        random_text(length, 6), random_ids(PREFIX_TOKENS, 5), catalysts, reserve=30
    )


def read_and_ask(chunk: int) -> None:
    """A document with many cycles, then questions on top: long ones, and answers token by token."""
    adapter = shared_adapter("gemma3")
    with watched() as watch:
        pot, stats = read("gemma3", chunk=chunk)
        assert stats.cycles >= 5
        for question in ([3], random_ids(24, 9), random_ids(7, 10)):
            with pot.scratch():
                adapter.forward(torch.tensor(question), pot.cache)
                for token in random_ids(30 - len(question), 11):
                    adapter.forward(torch.tensor([token]), pot.cache)
        adapter.forward(torch.tensor(random_ids(4, 12)), pot.cache)  # and on with the text
    assert watch.compared > 2 * 230


@pytest.mark.parametrize("chunk", [1, 6, 19, 20, 21, 512])
def test_sliding_layers_attend_as_in_the_whole_text(chunk: int) -> None:
    read_and_ask(chunk)


def mutant(name: str, patch: pytest.MonkeyPatch) -> None:
    true_restore, true_call, true_anew = WindowLayer.restore, Rotation.__call__, WindowLayer._begin_anew
    true_update = WindowLayer.update

    def forgets(layer: WindowLayer) -> None:
        layer._marked = None

    def forgets_the_backup(layer: WindowLayer) -> None:
        layer._backup = None
        true_restore(layer)

    def queries_late(rotation: Rotation, states: Tensor, start: int) -> Tensor:
        late = states.shape[1] == H and start + states.shape[2] < rotation.cos.shape[1]
        return true_call(rotation, states, start + 1 if late else start)

    def keys_unmoved(layer: WindowLayer, new: int) -> None:
        before = layer.rotated_keys[:, :, layer.length - W + 1 : layer.length].clone()
        true_anew(layer, new)
        layer.rotated_keys[:, :, : layer.length] = before[:, :, -layer.length :]

    def loses_one(layer: WindowLayer, new: int) -> None:
        true_anew(layer, new)
        layer.raw_keys[:, :, 0], layer.rotated_keys[:, :, 0] = 0.0, 0.0

    def sees(more: int) -> Callable[..., tuple[Tensor, Tensor]]:
        def update(layer: WindowLayer, key: Tensor, value: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
            true_update(layer, key, value)
            first = max(0, layer.length - key.shape[2] - W + 1 - more)
            return layer.rotated_keys[:, :, first : layer.length], layer.value_states[:, :, first : layer.length]

        return update

    {
        "restoring forgotten": lambda: patch.setattr(WindowLayer, "restore", forgets),
        "backup forgotten": lambda: patch.setattr(WindowLayer, "restore", forgets_the_backup),
        "queries one late": lambda: patch.setattr(Rotation, "__call__", queries_late),
        "keys moved, not rotated": lambda: patch.setattr(WindowLayer, "_begin_anew", keys_unmoved),
        "first token lost": lambda: patch.setattr(WindowLayer, "_begin_anew", loses_one),
        "one token too many": lambda: patch.setattr(WindowLayer, "update", sees(1)),
        "one token too few": lambda: patch.setattr(WindowLayer, "update", sees(-1)),
    }[name]()


@pytest.mark.parametrize("chunk", [1, 6])
@pytest.mark.parametrize(
    "name",
    [
        "restoring forgotten",
        "backup forgotten",
        "queries one late",
        "keys moved, not rotated",
        "first token lost",
        "one token too many",
        "one token too few",
    ],
)
def test_the_reference_notices(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(name, monkeypatch)
    with pytest.raises(AssertionError):
        read_and_ask(chunk)


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("chunk", [6, 512])
def test_the_reference_notices_a_wrong_mask(by: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    true_bias = attention.causal_bias

    def wrong(new: int, held: int, window: int | None = None, **kw: object) -> Tensor:
        return true_bias(new, held, window and window + by, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "causal_bias", wrong)
    with pytest.raises(AssertionError):
        read_and_ask(chunk)


# --- the pot beside it ---


@pytest.mark.parametrize("family", SLIDING)
def test_a_reading_keeps_slots_in_some_layers_and_the_last_tokens_in_the_others(family: str) -> None:
    with recorded_reading() as seen:
        pot, stats = read(family)
    assert stats.cycles >= 5
    state = pot.state()
    assert state["keys"].shape[:2] == state["origin"].shape[:2] == (2, K)
    for layer in range(2):
        keys = torch.stack(seen.keys[layer], 1)  # [K, prefix + N, D]
        for head in range(K):
            origin = state["origin"][layer, head].long()
            place = torch.cat([torch.arange(PREFIX_TOKENS), origin[PREFIX_TOKENS:] + PREFIX_TOKENS])
            assert torch.equal(state["keys"][layer, head], keys[head, place])
    assert state["recent_origin"].tolist() == list(range(230 - W + 1, 230))
    assert state["recent_keys"].shape == (2, K, W - 1, D)


def test_what_the_windows_hold_is_what_was_read() -> None:
    with watched() as watch:
        pot, _ = read("gemma3", chunk=7)
    recent = pot.recent()
    assert recent is not None
    for number, layer in enumerate((0, 2)):
        assert torch.equal(recent.keys[number], watch.text[layer].keys[:, -W + 1 :])
        assert torch.equal(recent.values[number], watch.text[layer].values[:, -W + 1 :])


def test_chunk_changes_nothing_but_speed() -> None:
    states = [read("gemma3", chunk=chunk)[0].state() for chunk in (1, 13, 512)]
    for other in states[1:]:
        for name, value in other.items():
            if "origin" in name:
                assert torch.equal(value, states[0][name])
            else:
                assert (value - states[0][name]).abs().max() <= 5e-4 * states[0][name].abs().max(), name


@pytest.mark.parametrize("family", SLIDING)
def test_a_catalyst_leaves_no_trace(family: str) -> None:
    pot, _ = read(family)
    before = pot.state()
    prompts = [torch.tensor(random_ids(n, n)) for n in (1, 7, 29)]
    once = importance(shared_adapter(family), pot, prompts)
    assert once.shape == (2, K, pot.length)
    assert same_state(before, pot.state())
    assert pot.cache.length == pot.length
    assert torch.equal(once, importance(shared_adapter(family), pot, prompts))


def test_a_catalyst_that_fails_leaves_no_trace() -> None:
    pot, _ = read("gemma3")
    before = pot.state()
    with pytest.raises(ValueError, match="slots are needed"), pot.scratch():
        shared_adapter("gemma3").forward(torch.tensor(random_ids(pot.budget - pot.length + 1, 1)), pot.cache)
    assert same_state(before, pot.state())


@pytest.mark.parametrize("question", [1, 19, 25])
def test_the_same_question_is_answered_alike_bit_for_bit(question: int) -> None:
    adapter = shared_adapter("gemma3")
    pot, _ = read("gemma3", chunk=7)
    found = []
    for _ in range(3):
        with pot.scratch():
            found.append(adapter.forward(torch.tensor(random_ids(question, 3)), pot.cache).clone())
            found[-1] = torch.cat([found[-1], adapter.forward(torch.tensor([5]), pot.cache)])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_reading_on_reads_on_with_the_windows() -> None:
    adapter, config = shared_adapter("gemma3"), PotConfig(budget=64, chunk=16)
    whole, prefix, catalysts = random_text(180, 6), random_ids(5, 5), [random_ids(9, 7)]
    cut = {name: getattr(whole, name)[:77] for name in ("ids", "starts", "ends")}
    part = replace(whole, **cut, first=np.asarray([0, 77]))
    pot, _ = Reader(adapter, config).read(part, prefix, catalysts, 12)
    with pot.scratch():
        adapter.forward(torch.tensor(random_ids(10, 3)), pot.cache)
    with watched() as watch:
        watch.text = {}
        on, stats = Reader(adapter, PotConfig(budget=300)).read(whole, prefix, catalysts, 12)
    assert stats.cycles == 0
    on, _ = Reader(adapter, config).read(whole, prefix, catalysts, 12, pot=pot, start=77)
    assert on.state()["recent_origin"].tolist() == list(range(161, 180))
    first_layer = on.state()["recent_keys"][0]  # of the first layer, which no attention has touched yet
    assert (first_layer - watch.text[0].keys[:, -W + 1 :]).abs().max() < 1e-4


# --- placing, holding, hiding ---


@pytest.mark.parametrize("count", [3, 19, 33])
def test_a_prefix_placed_is_a_prefix_read(count: int) -> None:
    adapter = shared_adapter("gemma3")
    ids = torch.tensor(random_ids(count, 1))
    read_pot, placed = Pot(adapter, count), Pot(adapter, 90)
    adapter.forward(ids, read_pot.cache)
    read_pot.record(torch.full((count,), PREFIX))
    keys, values = read_pot.newest(count, sliding=True)
    assert keys.shape[:3] == (4, K, count)
    placed.place(keys, values, torch.full((count,), PREFIX))
    plain = Pot(adapter, 90)
    adapter.forward(ids, plain.cache)
    plain.record(torch.full((count,), PREFIX))
    more = torch.tensor(random_ids(30, 2))
    expected = adapter.forward(more, plain.cache)
    assert (adapter.forward(more, placed.cache) - expected).abs().max() <= 2e-4 * expected.abs().max()


def test_a_copy_made_of_slots_and_windows_reads_on_alike() -> None:
    adapter = shared_adapter("gemma3")
    pot, _ = read("gemma3")
    copy = Pot(adapter, pot.budget)
    copy.place(*pot.newest(pot.length), pot.origin, pot.novelty)
    recent = pot.recent()
    assert recent is not None
    copy.hold_recent(recent)
    ours, theirs = copy.state(), pot.state()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() <= 1e-5, name
    ids = torch.tensor(random_ids(25, 2))
    expected = adapter.forward(ids, pot.cache)
    assert (adapter.forward(ids, copy.cache) - expected).abs().max() <= 2e-4 * expected.abs().max()


@pytest.mark.parametrize(("start", "end"), [(0, 10), (50, 56), (58, 70), (0, 70)])
def test_a_hidden_passage_is_hidden_from_slots_and_windows(start: int, end: int) -> None:
    """As the plain model computes it, told by masks of four dimensions."""
    model = tiny_model("gemma3", seed=3).eval()
    adapter, text, question = shared_adapter("gemma3"), random_text(70, 6), random_ids(9, 4)
    pot, stats = Reader(adapter, PotConfig(budget=150)).read(text, random_ids(5, 5), [[1]], 20)
    assert stats.cycles == 0
    ids = torch.tensor([*random_ids(5, 5), *text.ids.tolist(), *question])
    T = len(ids)
    distance = torch.arange(T)[:, None] - torch.arange(T)[None]
    hidden = torch.zeros(T, T, dtype=torch.bool)
    hidden[75:, 5 + start : 5 + end] = True
    masks = {
        "full_attention": (distance < 0) | hidden,
        "sliding_attention": (distance < 0) | (distance >= W) | hidden,
    }
    masks = {k: torch.zeros(1, 1, T, T).masked_fill(m, torch.finfo(torch.float32).min) for k, m in masks.items()}
    with torch.no_grad():
        expected = model(input_ids=ids[None], attention_mask=masks, use_cache=False).logits[0, 75:]
    with pot.scratch():
        pot.hide(start, end)
        ours = adapter.logits(adapter.forward(torch.tensor(question), pot.cache))
    assert (ours - expected).abs().max() <= 5e-5 * expected.abs().max()
    assert pot.cache.hidden is pot.cache.hidden_recent is None


@pytest.mark.parametrize("family", SLIDING)
def test_generate_over_a_pot_says_what_the_plain_model_says(family: str) -> None:
    adapter = shared_adapter(family)
    text, question = random_text(60, 6), random_ids(9, 4)
    pot, _ = Reader(adapter, PotConfig(budget=150)).read(text, random_ids(5, 5), [[1]], 50)
    ids = torch.tensor([[*random_ids(5, 5), *text.ids.tolist(), *question]])
    adapter.close()
    with torch.no_grad():
        out = adapter.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
    adapter.open()
    before = pot.state()
    for _ in range(2):
        said = decode(adapter, TextCodec(byte_tokenizer()), pot, question, Sampling(max_new_tokens=30))
        assert list(said.ids) == out[0, ids.shape[1] :].tolist()
    assert same_state(before, pot.state())
