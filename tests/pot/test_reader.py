"""Reading: any length, chunk, budget and knob; the slots are never more than the budget, the best-scored are kept."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spies import random_ids, random_text, recorded_reading, same_state, shared_adapter, watched_lengths

from infinipot_llm.config import POLICIES, PotConfig
from infinipot_llm.errors import BudgetError
from infinipot_llm.pot.distill import Cycle, select
from infinipot_llm.pot.pot import PREFIX, Pot
from infinipot_llm.pot.reader import Reader, ReadStats
from infinipot_llm.pot.score import Reason, Scores

FEW = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def check_cycle(cycle: Cycle, pinned: int) -> None:
    """The specification of one distillation, from what the tracer was told."""
    L, K, S = cycle.before.shape
    keep = cycle.kept.shape[2]
    assert cycle.scores.shape == (L, K, S)
    assert cycle.reasons.shape == cycle.kept.shape
    assert keep < S
    assert (cycle.kept.diff(dim=-1) > 0).all()
    assert torch.equal(cycle.kept[:, :, :pinned], torch.arange(pinned).expand(L, K, pinned))
    assert (cycle.reasons[:, :, :pinned] == Reason.PINNED).all()
    assert (cycle.reasons[:, :, pinned:] != Reason.PINNED).all()
    is_kept = torch.zeros((L, K, S), dtype=torch.bool).scatter(-1, cycle.kept, value=True)
    free = torch.arange(S) >= pinned
    worst_kept = cycle.scores.masked_fill(~(is_kept & free), torch.inf).amin(dim=-1)
    best_dropped = cycle.scores.masked_fill(is_kept | ~free, -torch.inf).amax(dim=-1)
    assert (worst_kept >= best_dropped).all()


def check_origins(origin: torch.Tensor, prefix: int) -> None:
    """The prefix stands in the first slots of every head, and the document behind it in its order, each token once."""
    assert (origin[:, :, :prefix] == PREFIX).all()
    assert (origin[:, :, prefix:] >= 0).all()
    assert (origin[:, :, prefix:].diff(dim=-1) > 0).all()


@FEW
@given(st.data())
def test_any_reading_stays_in_its_budget_and_keeps_the_highest_scored(data: st.DataObject) -> None:
    draw = data.draw
    adapter = shared_adapter(draw(st.sampled_from(FAMILIES), label="family"))
    length, prefix = draw(st.integers(1, 140), label="length"), draw(st.integers(0, 12), label="prefix")
    reserve, sinks = draw(st.integers(1, 30), label="reserve"), draw(st.integers(0, 10), label="sinks")
    catalysts = [
        random_ids(n, n) for n in draw(st.lists(st.integers(1, 40), min_size=1, max_size=3), label="catalysts")
    ]
    budget = (
        max([reserve, *map(len, catalysts)])
        + max(prefix, sinks)
        + draw(st.integers(max(10, 3 * sinks), 80), label="room")
    )
    config = PotConfig(
        budget=budget,
        kept=draw(st.sampled_from([0.15, 0.5, 0.8, 0.999]), label="kept"),
        novelty_share=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]), label="alpha"),
        agreement=draw(st.sampled_from([0.0, 0.25, 1.0]), label="agreement"),
        neighbours=draw(st.integers(0, 5), label="neighbours"),
        neighbour_weight=draw(st.sampled_from([0.0, 0.9, 1.0]), label="weight"),
        sink_tokens=sinks,
        catalyst_reduce=draw(st.sampled_from(["sum", "max"]), label="reduce"),
        chunk=draw(st.sampled_from([1, 7, 32, 512]), label="chunk"),
        policy=draw(st.sampled_from(["infinipot", "infinipot", *(p for p in POLICIES if p != "full")]), label="policy"),
    )
    cycles: list[Cycle] = []
    told: list[ReadStats] = []
    with watched_lengths() as lengths:
        pot, stats = Reader(adapter, config).read(
            random_text(length, 1),
            random_ids(prefix, 2),
            catalysts,
            reserve,
            progress=told.append,
            tracer=cycles.append,
        )
        before = pot.state()
        with pot.scratch():  # the question and its answer
            adapter.forward(torch.tensor(random_ids(max(1, reserve - 1), 4)), pot.cache)
            if reserve > 1:
                adapter.forward(torch.tensor(random_ids(1, 5)), pot.cache)
    assert lengths.most <= budget
    assert same_state(before, pot.state())

    assert stats.tokens_total == stats.tokens_read == length
    assert stats.slots == pot.length == pot.cache.length <= budget - reserve
    assert stats.cycles == len(cycles)
    assert (stats.cycles == 0) == (prefix + length + reserve <= budget)
    assert [c.number for c in cycles] == list(range(1, len(cycles) + 1))
    assert told[-1] == stats
    assert sum(b.tokens_read - a.tokens_read for a, b in pairwise([ReadStats(length), *told])) == length
    assert all(0 < b.tokens_read - a.tokens_read <= config.chunk for a, b in pairwise([ReadStats(length), *told]))

    check_origins(pot.origin, prefix)
    held = None
    for cycle in cycles:
        check_cycle(cycle, pinned=max(prefix, sinks))
        check_origins(cycle.before, prefix)
        if held is not None:  # what stayed is what the next cycle finds, with what was read since behind it
            assert torch.equal(cycle.before[:, :, : held.shape[2]], held)
        assert (cycle.before[:, :, -1] == cycle.tokens_read - 1).all()
        held = cycle.before.gather(-1, cycle.kept)
    if held is None:
        assert torch.equal(pot.origin[0, 0, prefix:], torch.arange(length))
    else:
        assert torch.equal(pot.origin[:, :, : held.shape[2]], held)
        tail = torch.arange(cycles[-1].tokens_read, length)
        assert torch.equal(pot.origin[:, :, held.shape[2] :], tail.expand(*held.shape[:2], len(tail)))


def test_reading_ends_when_one_slot_is_freed_per_cycle() -> None:
    prefix, reserve, room, length = 3, 5, 40, 60
    config = PotConfig(budget=room + reserve, kept=0.999999, chunk=16)
    catalyst = random_ids(reserve, 9)
    with watched_lengths() as lengths:
        pot, stats = Reader(shared_adapter("qwen2"), config).read(
            random_text(length), random_ids(prefix, 2), [catalyst], reserve
        )
    assert stats.tokens_read == length
    assert stats.cycles == length - (room - prefix)
    assert pot.length == room
    assert lengths.most == room + reserve


@pytest.mark.parametrize("length", [41, 42, 60, 61, 79, 80, 81])
def test_the_last_distillation_leaves_the_pot_just_full(length: int) -> None:
    """Nothing is dropped for room that no token takes; a text that fits by one token is not distilled."""
    config = PotConfig(budget=50, kept=0.5, sink_tokens=0)
    pot, stats = Reader(shared_adapter("llama"), config).read(random_text(length), [], [random_ids(10, 1)], reserve=10)
    assert pot.length == 40
    assert stats.cycles == -(-(length - 40) // 20)


def test_a_text_that_fits_by_a_token_is_not_distilled() -> None:
    config = PotConfig(budget=50)
    read = Reader(shared_adapter("llama"), config).read
    assert read(random_text(37), [1, 2, 3], [random_ids(10, 1)], reserve=10)[1].cycles == 0
    assert read(random_text(38), [1, 2, 3], [random_ids(10, 1)], reserve=10)[1].cycles == 1


def test_first_tokens_of_the_document_are_sinks_when_the_prefix_is_shorter() -> None:
    config = PotConfig(budget=60, sink_tokens=7, kept=0.2, policy="streaming")
    pot, stats = Reader(shared_adapter("qwen3"), config).read(random_text(300), [1, 2], [], reserve=10)
    assert stats.cycles > 3
    assert pot.pinned == 7
    assert pot.origin[0, 0, :7].tolist() == [PREFIX, PREFIX, 0, 1, 2, 3, 4]
    recent = pot.origin[:, :, 7:]
    assert torch.equal(recent, torch.arange(300 - recent.shape[2], 300).expand_as(recent))


def test_chunk_changes_nothing_but_speed() -> None:
    states = []
    for chunk in (1, 13, 512):
        config = PotConfig(budget=90, chunk=chunk)
        pot, _ = Reader(shared_adapter("llama"), config).read(
            random_text(200), [1, 2, 3], [random_ids(9, 1)], reserve=12
        )
        states.append(pot.state())
    for other in states[1:]:
        assert torch.equal(other["origin"], states[0]["origin"])
        for name in ("keys", "rotated_keys", "values", "novelty"):
            assert (other[name] - states[0][name]).abs().max() <= 2e-4 * states[0][name].abs().max(), name


def test_a_reader_that_stops_leaves_the_next_reading_alone() -> None:
    reader = Reader(shared_adapter("llama"), PotConfig(budget=60))
    arguments = (random_text(150), [1, 2], [random_ids(9, 1)], 12)
    expected = reader.read(*arguments)[0].state()

    def stop(stats: ReadStats) -> None:
        if stats.cycles == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reader.read(*arguments, progress=stop)
    assert same_state(reader.read(*arguments)[0].state(), expected)


@pytest.mark.parametrize("kept", [0.01, 0.1, 0.3, 0.5, 0.99])
@pytest.mark.parametrize(("prefix", "sinks", "catalyst", "reserve"), [(0, 4, 9, 9), (12, 4, 30, 20), (3, 40, 5, 17)])
def test_a_budget_too_small_is_refused_naming_the_least_that_works(
    kept: float, prefix: int, sinks: int, catalyst: int, reserve: int
) -> None:
    def read(budget: int) -> Pot:
        config = PotConfig(budget=budget, kept=kept, sink_tokens=sinks)
        reader = Reader(shared_adapter("llama"), config)
        return reader.read(random_text(150), random_ids(prefix, 1), [random_ids(catalyst, 2)], reserve)[0]

    with pytest.raises(BudgetError, match=r"choose a budget of at least \d+") as refused:
        read(max(catalyst, reserve))
    said = re.search(r"at least (\d+)", str(refused.value))
    assert said is not None
    pot = read(int(said[1]))
    assert pot.length + reserve <= int(said[1])


def test_a_budget_beyond_the_trained_window_is_refused_before_anything_is_read() -> None:
    reader = Reader(shared_adapter("llama"), PotConfig(budget=5000))
    with watched_lengths() as lengths, pytest.raises(BudgetError, match="4096"):
        reader.read(random_text(10), [1], [[1]], 5)
    assert lengths.updates == 0


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(BudgetError, match=r"'oracle'.*infinipot.*streaming"):
        Reader(shared_adapter("llama"), PotConfig(policy="oracle"))


@FEW
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(0, 2**31), st.data())
def test_select_is_the_top_of_every_head_in_order(
    layers: int, heads: int, held: int, seed: int, data: st.DataObject
) -> None:
    pinned = data.draw(st.integers(0, held))
    keep = data.draw(st.integers(pinned, held))
    values = torch.randn((layers, heads, held), generator=torch.Generator().manual_seed(seed)) * 10 - 20
    reasons = torch.zeros((layers, heads, held), dtype=torch.int8)
    before = values.clone()
    slots = select(Scores(values, reasons), pinned, keep)
    assert torch.equal(values, before)
    assert slots.shape == (layers, heads, keep)
    for layer in range(layers):
        for head in range(heads):
            ranked = sorted(range(pinned, held), key=lambda s: -float(values[layer, head, s]))
            assert slots[layer, head].tolist() == [*range(pinned), *sorted(ranked[: keep - pinned])]


# --- a sink, and reading on ---


class Sink:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.first: list[int] = []
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.origins: list[torch.Tensor] = []
        self.order: list[str] = []

    def take(self, first: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.first.append(first)
        self.keys.append(keys)
        self.values.append(values)
        self.order.append("take")

    def distilled(self, origin: torch.Tensor) -> None:
        self.origins.append(origin.clone())
        self.order.append("distilled")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("chunk", "length"), [(1, 90), (7, 200), (512, 200), (512, 30)])
def test_a_sink_is_given_every_token_once(family: str, chunk: int, length: int) -> None:
    config, sink = PotConfig(budget=64, chunk=chunk), Sink()
    cycles: list[Cycle] = []
    with recorded_reading() as seen:
        Reader(shared_adapter(family), config).read(
            random_text(length, 6), random_ids(5, 5), [random_ids(9, 7)], 12, sink=sink, tracer=cycles.append
        )
    sizes = [k.shape[2] for k in sink.keys]
    assert sink.first == [sum(sizes[:i]) for i in range(len(sizes))]
    assert sum(sizes) == length
    assert max(sizes) <= chunk
    keys, values = torch.cat(sink.keys, dim=2), torch.cat(sink.values, dim=2)
    for layer in range(len(seen.keys)):
        assert torch.equal(keys[layer], torch.stack(seen.keys[layer], 1)[:, 5:])
        assert torch.equal(values[layer], torch.stack(seen.values[layer], 1)[:, 5:])
    # Of every distillation it is told what is left.
    assert len(sink.origins) == len(cycles)
    for origin, cycle in zip(sink.origins, cycles, strict=True):
        assert torch.equal(origin, cycle.before.gather(-1, cycle.kept))
    if cycles:
        taken = [sum(sizes[: sink.order[:i].count("take")]) for i, o in enumerate(sink.order) if o == "distilled"]
        assert taken == [c.tokens_read for c in cycles]


def test_a_sink_changes_nothing() -> None:
    config, shared = PotConfig(budget=64), (random_text(200, 6), random_ids(5, 5), [random_ids(9, 7)], 12)
    with_sink, _ = Reader(shared_adapter("llama"), config).read(*shared, sink=Sink())
    without, _ = Reader(shared_adapter("llama"), config).read(*shared)
    assert same_state(with_sink.state(), without.state())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", [1, 40, 123])
def test_reading_on_reads_only_what_is_new(family: str, start: int) -> None:
    adapter, config = shared_adapter(family), PotConfig(budget=64, chunk=16)
    whole, prefix, catalysts = random_text(180, 6), random_ids(5, 5), [random_ids(9, 7)]
    beginning = replace(
        whole, ids=whole.ids[:start], starts=whole.starts[:start], ends=whole.ends[:start], first=np.asarray([0, start])
    )
    pot, _ = Reader(adapter, config).read(beginning, prefix, catalysts, 12)
    before = pot.state()
    sink, told = Sink(), []
    runs: list[int] = []
    handle = adapter.backbone.register_forward_pre_hook(
        lambda m, args, kwargs: runs.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        on, stats = Reader(adapter, config).read(
            whole, prefix, catalysts, 12, sink=sink, pot=pot, start=start, progress=told.append
        )
    finally:
        handle.remove()
    assert on is pot
    assert sink.first[0] == start
    assert sum(k.shape[2] for k in sink.keys) == 180 - start
    raw = (before["novelty"] == 0) & (before["origin"] >= 0)
    unjudged = int(raw.all(dim=0).all(dim=0).flip(0).long().cumprod(dim=0).sum())  # no distillation was to follow them
    assert 0 < unjudged <= start
    assert sum(runs) == 180 - start + unjudged + 9 * stats.cycles  # no prefix, and nothing else twice
    assert (stats.tokens_total, stats.tokens_read, stats.slots) == (180, 180, on.length)
    assert stats.cycles == len(sink.origins) > 0
    assert on.length <= 64 - 12
    assert min(t.tokens_read for t in told) > start
    check_origins(on.origin, 5)
    assert torch.equal(before["keys"][:, :, :5], on.state()["keys"][:, :, :5])


def test_reading_on_without_a_distillation_is_reading_at_once() -> None:
    adapter, config = shared_adapter("qwen3"), PotConfig(budget=300, chunk=16)
    whole, prefix = random_text(180, 6), random_ids(5, 5)
    cut = {name: getattr(whole, name)[:77] for name in ("ids", "starts", "ends")}
    pot, _ = Reader(adapter, config).read(replace(whole, **cut, first=np.asarray([0, 77])), prefix, [[1]], 12)
    on, _ = Reader(adapter, config).read(whole, prefix, [[1]], 12, pot=pot, start=77)
    expected = Reader(adapter, config).read(whole, prefix, [[1]], 12)[0].state()
    for name, value in on.state().items():
        assert (value - expected[name]).abs().max() < 1e-4, name


def test_a_pot_fuller_than_the_catalyst_allows_can_be_read_on_with() -> None:
    """It was read for a short question; the longer catalysts are then cut at their beginning."""
    adapter, config = shared_adapter("llama"), PotConfig(budget=64)
    whole, prefix = random_text(120, 6), random_ids(5, 5)
    cut = {name: getattr(whole, name)[:60] for name in ("ids", "starts", "ends")}
    pot, _ = Reader(adapter, config).read(replace(whole, **cut, first=np.asarray([0, 60])), prefix, [[1, 2]], 4)
    assert pot.length == 60
    with watched_lengths() as lengths:
        on, stats = Reader(adapter, config).read(whole, prefix, [random_ids(20, 7)], 20, pot=pot, start=60)
    assert lengths.most <= 64
    assert stats.cycles > 0
    assert on.length <= 44
