"""Recall: the best spans within a budget, in the order of the text; with all of them, the pot is as read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import FAMILIES, byte_tokenizer, tiny_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document, Page
from infinipot_llm.engine import InfiniPot
from infinipot_llm.memory import recall
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.recall import Found, Passage, fill, question_pot, smooth
from infinipot_llm.memory.shelf import Shelf
from infinipot_llm.memory.spans import Spans
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import PREFIX, Pot

CODEC = TextCodec(byte_tokenizer())
FEW = settings(max_examples=200, deadline=None, derandomize=True)


def spans_of(lengths: Sequence[int]) -> Spans:
    return Spans(np.cumsum([0, *lengths]).astype(np.int64), np.zeros(len(lengths), np.int64))


def rows_of(spans: Spans, held: Sequence[bool]) -> np.ndarray[Any, Any]:
    """[M + 1] rows at which spans begin, where some are not on the shelf."""
    lengths = np.diff(spans.starts) * np.asarray(held, dtype=np.int64)
    return np.append(0, np.cumsum(lengths)).astype(np.int64)


# --- fill ---


@FEW
@given(
    drawn=st.lists(st.tuples(st.integers(1, 32), st.booleans(), st.integers(-3, 3)), min_size=1, max_size=20),
    budget=st.integers(1, 200),
)
@example(drawn=[(4, False, 3), (4, True, 1)], budget=4)
@example(drawn=[(4, False, 1)], budget=9)
@example(drawn=[(5, True, 1), (5, True, 2), (5, True, 3)], budget=7)
def test_the_best_spans_fill_the_budget(drawn: list[tuple[int, bool, int]], budget: int) -> None:
    lengths, held, numbers = (list(column) for column in zip(*drawn, strict=True))
    spans = spans_of(lengths)
    scores = torch.tensor([float(n) for n in numbers])
    passages = fill(spans, rows_of(spans, held), scores, budget)

    taken = [t for p in passages for t in range(p.start, p.end)]
    there = sum(n for n, here in zip(lengths, held, strict=True) if here)
    assert len(taken) == min(budget, there)  # never above, and never less than there is room for
    assert taken == sorted(set(taken))  # disjoint, rising
    assert all(a.end < b.start for a, b in pairwise(passages))  # joined where they touch
    # Best first, equal ones by place; the last is cut.
    left, expected = budget, []
    for i in sorted(range(len(lengths)), key=lambda i: -numbers[i]):
        if held[i]:
            begin = int(spans.starts[i])
            expected += list(range(begin, begin + min(lengths[i], left)))
            left -= min(lengths[i], left)
    assert taken == sorted(expected)
    for p in passages:
        inside = [numbers[i] for i in range(len(lengths)) if held[i] and p.start <= spans.starts[i] < p.end]
        assert p.score == max(inside)


@pytest.mark.parametrize("budget", [0, -1, -100])
def test_no_budget_brings_nothing(budget: int) -> None:
    spans = spans_of([4, 4])
    assert fill(spans, rows_of(spans, [True, True]), torch.tensor([1.0, 2.0]), budget) == []


def test_a_span_of_which_a_part_is_on_the_shelf_counts_whole() -> None:
    """Read again as text, all of it takes room."""
    spans = spans_of([10, 10, 10])
    cuts = np.asarray([0, 4, 4, 14])  # 4 of the first, none of the second, the third whole
    scores = torch.tensor([3.0, 2.0, 1.0])
    assert fill(spans, cuts, scores, 20) == [Passage(0, 10, 3.0), Passage(20, 30, 1.0)]
    assert fill(spans, cuts, scores, 14) == [Passage(0, 10, 3.0), Passage(20, 24, 1.0)]
    assert fill(spans, cuts, scores, 9) == [Passage(0, 9, 3.0)]


# --- smooth ---


def test_a_span_lends_to_its_neighbours() -> None:
    scores = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    together = np.zeros(8, np.int64)
    assert smooth(scores, together).tolist() == pytest.approx([0.55, 0.85, 1.0, 0.85, 0.55, 0.5, 0.5, 0.0])
    assert scores.tolist() == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # left as it was
    apart = np.asarray([0, 0, 1, 1, 2, 2, 3, 3])
    expected = [0.11, 0.17, 1.0, 0.85, 0.11, 0.1, 0.1, 0.0]
    assert smooth(scores, apart).tolist() == pytest.approx(expected)


def test_what_is_lent_adds_up_and_is_lent_once() -> None:
    scores = torch.tensor([1.0, -2.0, 4.0])
    expected = [1.0 - 2 * 0.85 + 4 * 0.55, 0.85 - 2.0 + 4 * 0.85, 0.55 - 2 * 0.85 + 4.0]
    assert smooth(scores, np.zeros(3, np.int64)).tolist() == pytest.approx(expected)
    first = [1.0 - 2 * 0.85 + 4 * 0.11, 0.85 - 2.0 + 4 * 0.17, 0.11 - 2 * 0.17 + 4.0]
    assert smooth(scores, np.asarray([0, 0, 1])).tolist() == pytest.approx(first)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_texts_of_few_spans(length: int) -> None:
    shares = (1.0, *recall.NEIGHBOURS)
    found = smooth(torch.eye(length)[0], np.zeros(length, np.int64))
    assert found.tolist() == pytest.approx(list(shares[:length]))


# --- the finder ---


NAMES = ["Ada", "Ben", "Cyd", "Dan", "Eve", "Fay", "Gus", "Hal"]
TEXT = "\n\n".join(
    f"In {1900 + i} the mill of {name} burned down, and {i * 37} crowns were paid to the owner."
    for i, name in enumerate(NAMES)
)


@pytest.fixture(scope="module")
def llm() -> Iterator[InfiniPot]:
    config = PotConfig(
        budget=512, max_new_tokens=16, question_tokens=32, chunk=64, recall=100, shelf="int8", recalled="load"
    )
    with InfiniPot(Adapter(tiny_model("llama")), CODEC, config) as made:
        yield made


@pytest.fixture(scope="module")
def memory(llm: InfiniPot) -> DocumentMemory:
    return llm.read(Document.from_text(TEXT))


def tokens(passages: Sequence[Passage]) -> int:
    return sum(p.end - p.start for p in passages)


def test_a_shelf_that_fits_comes_back_whole_and_nothing_is_computed(llm: InfiniPot, memory: DocumentMemory) -> None:
    runs: list[int] = []
    handle = llm.adapter.backbone.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        for budget in (len(memory.text), 10**6):
            found = memory.finder.find(llm.form.question("Who?"), "Who?", budget)
            assert found == Found([Passage(0, len(memory.text), 0.0)], None)
        assert not runs
        less = memory.finder.find(llm.form.question("Who?"), "Who?", len(memory.text) - 1)
    finally:
        handle.remove()
    assert runs
    assert tokens(less.passages) == len(memory.text) - 1


def test_a_bounded_shelf_brings_no_more_than_the_budget(llm: InfiniPot) -> None:
    bounded = InfiniPot(llm.adapter, CODEC, PotConfig(**{**llm.config.to_dict(), "shelf_bytes": 60_000}))
    finder = bounded.read(Document.from_text(TEXT)).finder
    assert len(finder.shelf) < len(finder.text)
    for budget in (7, len(finder.shelf) - 1, len(finder.shelf)):
        assert tokens(finder.find(llm.form.question("Who?"), "Who?", budget).passages) == budget


def test_of_a_bounded_shelf_the_end_comes_back_as_well(llm: InfiniPot) -> None:
    """Its spans are more tokens than its rows: that all rows fit does not say that all spans do."""
    bounded = InfiniPot(llm.adapter, CODEC, PotConfig(**{**llm.config.to_dict(), "shelf_bytes": 60_000}))
    finder = bounded.read(Document.from_text(TEXT)).finder
    assert len(finder.shelf) < finder.tokens
    asked = llm.form.question("Who?")
    assert not torch.equal(finder.scores(asked, "Who?"), torch.zeros(len(finder.spans)))
    found = finder.find(asked, "Who?", len(finder.shelf)).passages
    scores = finder.scores(asked, "Who?")
    assert found == fill(finder.spans, finder.cuts, scores, len(finder.shelf)), "the best, not the first"
    assert finder.find(asked, "Who?", finder.tokens).passages == finder.everything
    assert tokens(finder.everything) == finder.tokens


def test_what_is_no_longer_on_the_shelf_is_no_sign_of_an_answer(llm: InfiniPot, memory: DocumentMemory) -> None:
    whole = memory.finder
    asked = llm.form.question("Where is Ada?")
    best = int(whole.scores(asked, "Where is Ada?").argmax())
    a, b = whole.cuts[best : best + 2]
    shelf = SimpleNamespace(tokens=np.delete(whole.shelf.tokens, np.s_[a:b]))
    finder = recall.Finder(memory.setup, memory.text, cast(Shelf, shelf), memory.finder.null)
    assert finder.held.tolist() == [i != best for i in range(len(whole.spans))]
    seen: list[Tensor] = []
    finder.attention = lambda asked: whole.attention(asked)  # type: ignore[method-assign]
    finder.signs = lambda by_head, weights, scores, question: seen.append(scores)  # type: ignore[method-assign]
    finder.look(asked, "Where is Ada?")
    assert int(seen[0].argmax()) != best
    assert seen[0][best] == -torch.inf
    assert torch.isfinite(torch.cat([seen[0][:best], seen[0][best + 1 :]])).all()


def test_names_bring_their_passage_back(
    llm: InfiniPot, memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By words alone; what a random model attends to is chance."""
    monkeypatch.setattr(recall, "WORDS_SHARE", 1e6)
    for name in ("Ada", "Dan", "Hal"):
        question = f"Where is {name}?"
        passages = memory.finder.find(llm.form.question(question), question, 64).passages
        assert tokens(passages) == 64
        assert any(name in memory.text.span(*memory.text.per_document(p.start, p.end)[0]).text for p in passages)


@pytest.mark.parametrize(("calibrated", "share"), [(True, 0.3), (False, 2.0)])
def test_the_score_is_weighted_attention_and_words_smoothed(
    llm: InfiniPot, memory: DocumentMemory, calibrated: bool, share: float
) -> None:
    setup = replace(memory.setup, heads=replace(memory.setup.heads, calibrated=calibrated))
    finder = recall.Finder(setup, memory.text, memory.finder.shelf, memory.finder.null)
    question = "Was the mill of Eve burned?"
    asked = llm.form.question(question)
    by_head = recall.span_scores(
        finder.shelf, finder.null, recall.queries(setup.adapter, setup.prefix, asked, setup.heads), finder.cuts
    ).double()

    def z(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0)

    weights = torch.tensor(setup.heads.weights, dtype=torch.float64)
    attended = z((weights[:, None] * z(by_head)).sum(dim=0))
    words = z(torch.from_numpy(finder.words.scores(question)).double())
    expected = smooth(attended + share * words, finder.spans.paragraph)
    found = finder.scores(asked, question)
    assert (found - expected).abs().max() < 1e-3
    assert found.argsort(descending=True)[:3].tolist() == expected.argsort(descending=True)[:3].tolist()


def test_a_question_that_follows_others_counts_behind_them_and_by_itself(
    llm: InfiniPot, memory: DocumentMemory
) -> None:
    finder, form = memory.finder, llm.form
    turns, question = [("Where is Ada?", "At the mill.")], "Since when is she there?"
    behind, itself = form.looked_for(turns, question), form.looked_for((), question)

    def z(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0)

    by_head = z(finder.attention(behind)) + z(finder.attention(itself))
    expected = finder.combined(by_head, memory.setup.heads.weights, question, calibrated=memory.setup.heads.calibrated)
    found, judged = finder.look(behind, question, alone=False)
    assert torch.allclose(found, expected, atol=1e-4)
    assert judged is None
    assert finder.find(behind, question, 64, alone=False).answerable is None
    for other in (finder.scores(behind, question), finder.scores(itself, question)):
        assert not torch.allclose(found, other, atol=1e-2)
    looked: list[list[int]] = []
    finder.attention = lambda asked: looked.append(list(asked)) or by_head  # type: ignore[method-assign,func-returns-value]
    finder.look(itself, question, alone=False)
    assert looked == [itself], "nothing stands before it: once is enough"
    finder.look(behind, question)
    assert looked[1:] == [behind]


# --- the pot of a question ---


class ExactShelf:
    """A shelf that packs nothing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.tokens = np.arange(keys.shape[2], dtype=np.int32)

    def rows_of(self, start: int, stop: int) -> tuple[int, int]:
        return start, stop

    def load(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.keys[:, :, start:stop], self.values[:, :, start:stop]


def logits(adapter: Adapter, pot: Pot, ids: Sequence[int]) -> Tensor:
    with pot.scratch():
        return adapter.logits(adapter.forward(torch.tensor(list(ids)), pot.cache))


WHOLE = [[(0, 10**6)], [(0, 1), (1, 33), (33, 50), (50, 10**6)]]
BOUND = {"int8": 0.02, "int4": 0.25}
"""How far logits may be off, as a share of the largest, after packing; the tiny models magnify every rounding."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("passages", WHOLE)
@pytest.mark.parametrize("shelf", ["exact", "int8", "int4"])
def test_everything_recalled_is_the_document_read(family: str, passages: list[tuple[int, int]], shelf: str) -> None:
    kind = "int8" if shelf == "exact" else shelf
    config = PotConfig(budget=600, max_new_tokens=16, question_tokens=32, chunk=64, shelf=kind, recalled="load")  # type: ignore[arg-type]
    with InfiniPot(Adapter(tiny_model(family)), CODEC, config) as llm:
        read = llm.read(Document.from_text(TEXT[:150]))
        assert read.stats.cycles == 0
        prefix, count = len(llm.form.prefix), len(read.text)
        source = read.finder.shelf
        if shelf == "exact":
            source = cast(Shelf, ExactShelf(*read.pot.newest(count)))
        whole = [Passage(a, min(b, count), 0.0) for a, b in passages]
        pot = question_pot(llm.setup, source, whole, 500)
        assert pot.length == pot.cache.length == prefix + count
        assert pot.pinned == prefix
        assert pot.budget == 500
        assert torch.equal(pot.origin, read.pot.origin)
        ids = llm.form.question("Who?")
        ours, expected = logits(llm.adapter, pot, ids), logits(llm.adapter, read.pot, ids)
        difference = float((ours - expected).abs().max() / expected.abs().max())
        if shelf == "exact":
            state, other = pot.state(), read.pot.state()
            assert all((state[name] - other[name]).abs().max() < 1e-4 for name in ("keys", "values", "rotated_keys"))
            assert difference < 2e-5
        else:
            assert 1e-5 < difference < BOUND[kind]


def test_everything_recalled_gives_the_answer_of_the_whole_reading() -> None:
    """Where rounding is taken away, token by token the same."""
    config = PotConfig(budget=600, max_new_tokens=24, question_tokens=32, chunk=64, shelf="int8", recalled="load")
    with InfiniPot(Adapter(tiny_model("qwen3")), CODEC, config) as llm:
        memory = llm.read(Document.from_text(TEXT[:150]))
        expected = memory.ask("Who?", followup="reuse").text
        memory.finder.shelf = cast(Shelf, ExactShelf2(memory))
        answer = memory.ask("Who?")
        assert answer.usage.recalled_tokens == len(memory.text)
        assert answer.text == expected


class ExactShelf2(ExactShelf):
    """The shelf of a memory whose pot holds everything."""

    def __init__(self, memory: DocumentMemory) -> None:
        super().__init__(*memory.pot.newest(len(memory.text)))

    def __len__(self) -> int:
        return len(self.tokens)


def test_passages_are_placed_in_order_and_their_keys_rotated_to_their_slots(
    llm: InfiniPot, memory: DocumentMemory
) -> None:
    shelf, prefix = memory.finder.shelf, llm.setup.prefix
    passages = [Passage(3, 10, 0.0), Passage(40, 41, 0.0), Passage(100, 120, 0.0)]
    pot = question_pot(llm.setup, shelf, passages, 128)
    P = prefix[0].shape[2]
    expected = [PREFIX] * P + [t for p in passages for t in range(p.start, p.end)]
    assert all(torch.equal(o, torch.tensor(expected, dtype=torch.int32)) for o in pot.origin.flatten(0, 1))
    state = pot.state()
    keys, values = shelf.load(0, len(shelf))
    wanted = [t for t in expected if t >= 0]
    assert torch.equal(state["keys"][:, :, P:], keys[:, :, wanted])
    assert torch.equal(state["values"][:, :, P:], values[:, :, wanted])
    for layer, held in enumerate(pot.cache.layers):
        once = held.rotation(state["keys"][layer][None], 0)[0]
        assert (state["rotated_keys"][layer] - once).abs().max() < 1e-5


def test_passages_beyond_a_bounded_shelf_bring_what_is_there(llm: InfiniPot, memory: DocumentMemory) -> None:
    keys, values = memory.finder.shelf.load(0, 20)
    rows = np.asarray([*range(10), *range(30, 40)], np.int32)
    shelf = SimpleNamespace(
        tokens=rows,
        rows_of=lambda a, b: tuple(int(i) for i in np.searchsorted(rows, (a, b))),
        load=lambda a, b: (keys[:, :, a:b], values[:, :, a:b]),
    )
    passages = [Passage(5, 15, 0.0), Passage(15, 28, 0.0), Passage(29, 31, 0.0)]
    pot = question_pot(llm.setup, cast(Shelf, shelf), passages, 128)
    assert pot.origin[0, 0, len(llm.form.prefix) :].tolist() == [5, 6, 7, 8, 9, 30]


def test_a_question_without_passages(llm: InfiniPot, memory: DocumentMemory) -> None:
    pot = question_pot(llm.setup, memory.finder.shelf, [], 100)
    assert pot.length == pot.pinned == len(llm.form.prefix)


# --- tables of contents ---


def test_a_table_of_contents_gives_way_to_its_sections(llm: InfiniPot, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = ("Water", "Safety", "The Fleet", "The Archive", "Complaints", "Net Margin", "Outlook")
    text = "\n".join(f"{title} {n}" for n, title in enumerate(titles, 1))
    text += "\n\n" + "\n\n".join(f"{title}\n\nIn that year much was said of it, and more written." for title in titles)
    borders = [len(text) * n // 8 for n in range(9)]
    pages = tuple(Page(n, None, a, b) for n, (a, b) in enumerate(pairwise(borders), 1))
    finder = llm.read(
        [Document.from_text("Nothing is listed here.", name="first"), Document("report", text, pages)]
    ).finder
    marked = [
        finder.text.span(int(a), int(b)).text
        for a, b, listed in zip(finder.spans.starts, finder.spans.starts[1:], finder.contents, strict=False)
        if listed
    ]
    assert "".join(marked).startswith("Water 1\nSafety 2")
    assert "much was said" not in "".join(marked)

    by_head = torch.rand(2, len(finder.spans), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(recall, "smooth", lambda scores, paragraph: scores)
    scores = finder.combined(by_head, (1.0, 1.0), "The Fleet?", calibrated=True)
    finder.contents = np.zeros(len(finder.spans), np.bool_)
    plain = finder.combined(by_head, (1.0, 1.0), "The Fleet?", calibrated=True)
    changed = scores != plain
    assert changed.any()
    assert torch.allclose(scores[changed], plain[changed] / 4)
    assert (plain[changed] > 0).all()
