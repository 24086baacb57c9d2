"""Reading on into a memory: what was read is shared and not read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from engine_samples import ADA, CODEC, CONFIG, MILL, MORE, TEXT, answers, other
from engine_samples import llm as llm
from engine_samples import reads as reads
from engine_samples import store as store

from infinipot_llm import engine as engine_module
from infinipot_llm.documents import Document, Page
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import DocumentError, InfiniPotError
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.pot.novelty import surprise
from infinipot_llm.pot.reader import Reader


def state_of(memory: DocumentMemory) -> dict[str, bytes]:
    state = {name: value.numpy().tobytes() for name, value in memory.pot.state().items()}
    assert memory.shelved is not None
    state |= {str(i): s.file.path.read_bytes() for i, s in enumerate(memory.shelved.shelf.segments)}
    return state | {"ids": memory.text.ids.tobytes(), "null": memory.shelved.null.numpy().tobytes()}


def test_reading_on_reads_nothing_again_and_leaves_the_old_memory(llm: InfiniPot, reads: list[Any]) -> None:
    memory = llm.read(MILL)
    before, expected = state_of(memory), answers(memory)
    longer = llm.extend(memory, ADA)
    assert reads == [(0, len(TEXT)), (len(TEXT), len(longer.text))]
    assert longer.documents == (MILL, ADA)
    assert longer.text.ids[: len(TEXT)].tolist() == memory.text.ids.tolist()
    assert (longer.stats.tokens_read, longer.stats.cycles) == (len(longer.text), longer.stats.cycles)
    assert longer.stats.cycles > memory.stats.cycles
    assert longer.stats.seconds > memory.stats.seconds
    assert state_of(memory) == before
    assert answers(memory) == expected
    assert memory.shelved is not None
    assert longer.shelved is not None
    first, second = longer.shelved.shelf.segments
    assert first.file is memory.shelved.shelf.segments[0].file
    assert longer.shelved.shelf.tokens.tolist() == list(range(len(longer.text)))
    assert len(second) == len(longer.text) - len(TEXT)
    assert torch.equal(first.normal.mean, second.normal.mean)
    assert torch.equal(first.normal.spread, second.normal.spread)
    assert longer.shelved.null.shape[0] == len(longer.text)
    assert longer.pot.origin.max() >= len(TEXT)
    assert longer.pot.length <= CONFIG.budget
    answer = longer.ask("Who is Ada Krol?")
    assert answer.usage.recalled_tokens == 90


def test_a_text_read_on_with_is_the_text_read_at_once(llm: InfiniPot) -> None:
    """Where nothing is distilled: what the model saw is the same, but for the header of the first document."""
    engine = other(llm, budget=3000)
    longer = engine.extend(engine.read(MILL), ADA)
    assert longer.stats.cycles == 0
    keys, values = longer.pot.newest(len(longer.text))
    with longer.pot.scratch():
        pass
    ids = torch.from_numpy(np.concatenate([engine.form.prefix, longer.text.ids]).astype("int64"))
    cache = llm.adapter.new_cache(len(ids))
    llm.adapter.forward(ids, cache)
    prefix = len(engine.form.prefix)
    for layer, held in enumerate(cache.layers):
        assert (held.raw_keys[0, :, prefix:] - keys[layer]).abs().max() < 1e-4
        assert (held.value_states[0, :, prefix:] - values[layer]).abs().max() < 1e-4
    assert longer.shelved is not None
    packed = longer.shelved.shelf.load(0, len(longer.text))
    assert (packed[0] - keys).abs().max() < 0.05 * keys.abs().max()
    assert (packed[1] - values).abs().max() < 0.05 * values.abs().max()


def test_reading_on_again_and_again(llm: InfiniPot, reads: list[Any], tmp_path: Path) -> None:
    memory, kept = llm.read(MILL), []
    for number in range(3):
        kept.append((memory, answers(memory)))
        part = Document.from_text(f"Part {number}. {MORE}", name=f"part {number}")
        longer = llm.extend(memory, part)
        assert reads[-1] == (len(memory.text), len(longer.text))
        assert memory.shelved is not None
        assert longer.shelved is not None
        assert len(longer.shelved.shelf.segments) == number + 2
        assert longer.shelved.shelf.segments[: number + 1] == memory.shelved.shelf.segments
        assert [d.name for d in longer.documents] == ["mill", *(f"part {i}" for i in range(number + 1))]
        memory = longer
    for older, expected in kept:
        assert answers(older) == expected
    found = {span.document for span, _ in memory.recall("Part", len(memory.text))}
    assert found == {d.name for d in memory.documents}
    path = memory.save(tmp_path / "all.infinipot")
    loaded = llm.load(path)
    assert loaded.shelved is not None
    assert len(loaded.shelved.shelf.segments) == 1
    assert [a[0] for a in answers(loaded)[:2]] == [a[0] for a in answers(memory)[:2]]
    further = llm.extend(loaded, ADA)
    assert reads[-1] == (len(memory.text), len(further.text))
    assert further.documents == (*memory.documents, ADA)
    assert further.ask("Who is Ada Krol?").usage.recalled_tokens == 90


def test_several_are_read_on_at_once_and_into_no_store(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    memory = llm.read(MILL, store=store)
    longer = llm.extend(llm.read(MILL, store=store), [ADA, Document.from_text("Last. " * 9, name="last")])
    assert [d.name for d in longer.documents] == ["mill", "ada", "last"]
    assert len(reads) == 2
    assert len(store.list()) == 1
    assert answers(memory)


def test_a_memory_read_for_a_question_can_be_read_on(llm: InfiniPot) -> None:
    """Its pot is full but for that question and an answer, which may be less than generic questions take."""
    for question in ("?", "When did it burn and who was the owner then?"):
        longer = llm.extend(llm.read(MILL, question=question), ADA)
        assert longer.stats.tokens_read == len(longer.text)
        assert longer.ask("Who?").text


@pytest.mark.parametrize("knobs", [{"shelf": "off"}, {"shelf": "int4"}, {"shelf_bytes": 20_000}], ids=str)
def test_any_memory_can_be_read_on(llm: InfiniPot, knobs: dict[str, Any]) -> None:
    engine = other(llm, **knobs)
    memory = engine.read(MILL)
    longer = engine.extend(memory, ADA)
    assert longer.stats.tokens_read == len(longer.text) > len(TEXT)
    assert (longer.shelved is None) == (knobs.get("shelf") == "off")
    assert longer.ask("When?").text == longer.ask("When?").text


def test_many_small_parts_hold_few_files(llm: InfiniPot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transcript that grows: its shelf becomes one file now and then, and says the same."""
    parts = [Document.from_text(f"Part {number}. {MORE}", name=f"part {number}") for number in range(5)]
    memory = plain = llm.read(MILL)
    for part in parts:
        plain = llm.extend(plain, part)
    monkeypatch.setattr(engine_module, "MOST_SEGMENTS", 3)
    for part in parts:
        memory = llm.extend(memory, part)
        assert memory.shelved is not None
        assert len(memory.shelved.shelf.segments) <= 3
    assert plain.shelved is not None
    assert len(plain.shelved.shelf.segments) == 6
    assert memory.shelved.shelf.tokens.tolist() == plain.shelved.shelf.tokens.tolist()
    assert torch.equal(memory.shelved.null, plain.shelved.null)
    assert torch.equal(memory.pot.origin, plain.pot.origin)
    assert answers(memory) == answers(plain)


def test_reading_on_is_by_the_memorys_settings(llm: InfiniPot, tmp_path: Path) -> None:
    """A memory that another engine saved is read on with the budget that it was read with."""
    small = other(llm, max_new_tokens=8, question_tokens=20)
    loaded = llm.load(small.read(MILL).save(tmp_path / "small.infinipot"))
    assert small.config.question_tokens < llm.config.question_tokens
    assert torch.equal(llm.extend(loaded, ADA).pot.origin, small.extend(loaded, ADA).pot.origin)


def test_what_is_read_on_stays_in_the_store_that_was_given(llm: InfiniPot, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "disk")
    for memory in (llm.read(MILL, question="Who?", store=store), llm.extend(llm.read(MILL), ADA, store=store)):
        assert memory.shelved is not None
        assert memory.shelved.shelf.segments[-1].file.path.parent == tmp_path / "disk"


def test_whatever_is_read_on_is_bounded_by_itself(llm: InfiniPot) -> None:
    engine = other(llm, shelf_bytes=20_000)
    memory = engine.read(MILL)
    most = 20_000 // engine.setup.layout.token_bytes
    for number in range(4):
        assert memory.shelved is not None
        assert all(len(segment) <= most for segment in memory.shelved.shelf.segments)
        memory = engine.extend(memory, Document.from_text(MORE, name=str(number)))


def test_what_cannot_be_read_on(llm: InfiniPot) -> None:
    memory = llm.read(MILL)
    with pytest.raises(DocumentError):
        llm.extend(memory, [])
    with pytest.raises(DocumentError, match="from_file"):
        llm.extend(memory, "report.pdf")  # type: ignore[arg-type]
    with (
        InfiniPot(Adapter(tiny_model("llama", 1, num_hidden_layers=2)), CODEC, CONFIG) as stranger,
        pytest.raises(InfiniPotError, match="model"),
    ):
        stranger.extend(memory, ADA)


def test_a_document_without_text_is_refused(llm: InfiniPot) -> None:
    from infinipot_llm.documents import Page

    empty = Document("empty", "", (Page(1, None, 0, 0),))
    with pytest.raises(InfiniPotError):
        llm.read(empty)
    assert llm.read([empty, MILL]).ask("When?").text


def test_what_was_left_unjudged_is_judged_when_reading_goes_on(llm: InfiniPot) -> None:
    """The first part fits, so its novelty was not computed; in what is kept then, it must not count as none."""
    engine = other(llm, budget=600, shelf="off", recalled="read", catalysts=("When?",))
    base = engine.read(Document.from_text(TEXT[:200], name="mill"))
    assert (base.stats.cycles, float(base.pot.novelty.abs().sum())) == (0, 0.0)
    longer = engine.extend(base, ADA)
    assert longer.stats.cycles > 0
    assert float(base.pot.novelty.abs().sum()) == 0.0
    old = (longer.pot.origin >= 0) & (longer.pot.origin < 200)
    assert int(old.sum()) > 0
    # The same tokens judged while they were read, in a pot that is forced to distil: but for the header between them.
    reader = Reader(llm.adapter, engine.config)
    text = longer.text
    full = llm.adapter.new_cache(len(engine.form.prefix) + 200)
    ids = torch.from_numpy(np.concatenate([engine.form.prefix, text.ids[:200]]).astype("int64"))
    hidden = llm.adapter.forward(ids, full)[len(engine.form.prefix) - 1 : -1]
    expected = surprise(llm.adapter, hidden, ids[len(engine.form.prefix) :])
    found = longer.pot.novelty[old]
    # The first token of the text has no state before it that was kept.
    at = longer.pot.origin[old].long()
    assert torch.allclose(found[at > 0], expected[at[at > 0]], atol=1e-4)
    assert reader.policy.needs.novelty


def test_what_is_read_on_is_told_apart_by_name(llm: InfiniPot) -> None:
    """Citations tell documents by it; those that were read before keep theirs."""
    first = Document("report.pdf", MORE, (Page(1, None, 0, len(MORE)),), source="2022/report.pdf")
    longer = llm.extend(llm.read(first), [replace(first, source="2023/report.pdf"), Document.from_text("x", name="y")])
    assert [d.name for d in longer.documents] == ["report.pdf", "2023/report.pdf", "y"]
