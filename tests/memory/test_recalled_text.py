"""Recalled passages that are read again as text: the default way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_model

from infinipot_llm.answering.decode import Sampling, decode
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import BudgetError, MemoryFileError
from infinipot_llm.memory.asking import passages_for, pot_for, room_for, usual_prompt
from infinipot_llm.memory.joined import joined
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.recall import Passage, in_order, pot_of_text, text_slots
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import PREFIX, Pot

CODEC = TextCodec(byte_tokenizer())
TEXT = "\n\n".join(f"In {1900 + i} the mill number {i} burned. Its owner, Ada Krol {i}, moved away." for i in range(24))


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def llm(request: pytest.FixtureRequest) -> Iterator[InfiniPot]:
    config = PotConfig(budget=600, max_new_tokens=16, question_tokens=40, chunk=64, recall=200)
    with InfiniPot(Adapter(tiny_model(request.param)), CODEC, config) as made:
        yield made


@pytest.fixture(scope="module")
def memory(llm: InfiniPot) -> DocumentMemory:
    return llm.read(Document.from_text(TEXT, name="mills"))


def forwarded(llm: InfiniPot, ids: list[int], slots: int) -> Pot:
    pot = Pot(llm.adapter, slots)
    llm.adapter.forward(torch.tensor(ids), pot.cache)
    pot.record(torch.full((len(ids),), PREFIX))
    return pot


def test_passages_are_read_as_if_they_were_the_document(llm: InfiniPot, memory: DocumentMemory) -> None:
    passages = [Passage(5, 90, 1.0), Passage(200, 230, 2.0), Passage(230 + 1, 300, 0.5)]
    gap = CODEC.untrusted("\n...\n")
    ids, origin = [], []
    for number, p in enumerate(passages):
        ids += gap * bool(number) + memory.text.ids[p.start : p.end].tolist()
        origin += [PREFIX] * len(gap) * bool(number) + list(range(p.start, p.end))
    assert text_slots(memory.setup, memory.text, passages) == len(ids)
    prefix = list(llm.form.prefix)
    pot = pot_of_text(memory.setup, memory.text, passages, len(prefix) + len(ids) + 80)
    assert pot.length == len(prefix) + len(ids)
    assert pot.pinned == len(prefix)
    assert pot.origin[0, 0].tolist() == [PREFIX] * len(prefix) + origin
    plain = forwarded(llm, prefix + ids, pot.budget)
    ours, theirs = pot.state(), plain.state()
    for name in ("keys", "rotated_keys", "values"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


def test_the_best_passage_is_read_first_or_all_in_the_order_of_the_text(llm: InfiniPot, memory: DocumentMemory) -> None:
    prompt, limit, _ = usual_prompt(memory, "recall", "Who owned mill number 7?", (), 16, 200)
    passages = passages_for(memory, prompt, limit, 200).passages
    assert len({p.score for p in passages}) == len(passages) > 1
    read = {}
    for order in ("best", "text"):
        asked = memory.fork()
        asked.setup = replace(memory.setup, config=replace(memory.config, recall_order=order))
        ready = pot_for(asked, "recall", prompt, limit, 200)
        origin = [o for o in ready.pot.origin[0, 0].tolist() if o >= 0]
        assert ready.recalled == len(origin) == sum(p.end - p.start for p in passages)
        starts = [o for n, o in enumerate(origin) if n == 0 or o != origin[n - 1] + 1]
        read[order] = starts
    assert read["text"] == [p.start for p in passages] == sorted(read["text"])
    assert read["best"] == [p.start for p in sorted(passages, key=lambda p: -p.score)]
    assert read["best"] != read["text"]


def test_passages_of_one_document_stay_together() -> None:
    texts = [Document.from_text("a" * 50, name="a"), Document.from_text("b" * 50, name="b")]
    text = CODEC.document(texts)
    behind = int(text.first[1])
    passages = [
        Passage(0, 5, 1.0),
        Passage(20, 25, 3.0),
        Passage(behind + 9, behind + 12, 4.0),
        Passage(behind + 20, behind + 22, 2.0),
    ]
    starts = [p.start for p in in_order(text, passages, "best")]
    assert starts == [behind + 9, behind + 20, 20, 0]
    assert [p.start for p in in_order(text, passages[::-1], "text")] == [0, 20, behind + 9, behind + 20]


def test_a_document_that_fits_is_answered_as_by_the_plain_model(llm: InfiniPot) -> None:
    text = TEXT[:150]
    read = llm.read(Document.from_text(text))
    question = llm.form.question("Who moved away?")
    plain = forwarded(llm, [*llm.form.prefix, *CODEC.untrusted(text)], 600)
    expected = decode(llm.adapter, CODEC, plain, question, Sampling(16))
    answer = read.ask("Who moved away?", citations=False)
    assert answer.text == expected.text
    assert answer.usage.recalled_tokens == len(read.text)


def test_budget_and_recall_are_obeyed(llm: InfiniPot, memory: DocumentMemory) -> None:
    for recall in (1, 31, 200, 5000):
        answer = memory.ask("Who owned mill number 7?", recall=recall)
        assert 1 <= answer.usage.recalled_tokens <= min(recall, 600)
        slots = answer.usage.recalled_tokens + answer.usage.question_tokens + len(llm.form.prefix)
        assert slots + llm.config.max_new_tokens <= llm.config.budget
        lowered = [note for note in answer.notes if "tokens are recalled" in note]
        assert bool(lowered) is (recall == 5000), "the budget, and not the caller, says how much"


def test_the_pot_of_a_question_never_exceeds_the_budget(
    memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    real = Pot.__init__

    def noted(self: Pot, adapter: Adapter, budget: int) -> None:
        sizes.append(budget)
        real(self, adapter, budget)

    monkeypatch.setattr(Pot, "__init__", noted)
    memory.ask("Who owned mill number 7?", recall=5000, citations=False)
    assert max(sizes) <= memory.config.budget


def test_citations_are_of_what_was_read(memory: DocumentMemory) -> None:
    for question in ("Who owned mill number 7?", "When did mill 9 burn?", "Who moved away?"):
        found = {(span.start, span.end) for span, _ in memory.recall(question, 200)}
        for citation in memory.ask(question).citations:
            assert memory.documents[0].text[citation.start : citation.end] == citation.quote
            assert any(a < citation.end and citation.start < b for a, b in found)


def test_a_memory_of_keys_alone_keeps_answering_after_saving(
    llm: InfiniPot, memory: DocumentMemory, tmp_path: Path
) -> None:
    path = memory.save(tmp_path / "mills.infinipot")
    loaded = llm.load(path)
    for question in ("Who owned mill number 7?", "When?"):
        ours, theirs = memory.ask(question), loaded.ask(question)
        assert (ours.text, ours.citations) == (theirs.text, theirs.citations)
    full = 4 * llm.adapter.layers * 2 * 16 * len(memory.text)  # two bytes per number of keys and values
    assert memory.nbytes < full


def test_loading_passages_needs_their_values(llm: InfiniPot, memory: DocumentMemory, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="shelf='int8'"):
        PotConfig(recalled="load")
    path = memory.save(tmp_path / "mills.infinipot")
    loading = InfiniPot(llm.adapter, CODEC, replace(llm.config, shelf="int8", recalled="load"))
    with pytest.raises(MemoryFileError, match="recalled='read'"):
        loading.load(path)


def test_of_many_short_documents_as_many_are_brought_back_as_fit(llm: InfiniPot) -> None:
    """Their names take more than they do."""
    several = [Document.from_text(f"Mill {i} is sold.", name="n" * 40 + str(i)) for i in range(12)]
    read = joined([llm.read(document) for document in several])
    room = room_for(read, usual_prompt(read, "recall", "Mill 7?", (), 16, 5000)[0], 16)
    everything = text_slots(read.setup, read.text, [Passage(0, len(read.text), 0.0)])
    assert len(read.text) < room < everything - len(read.text), "less than nothing would be left by what is over"
    passages = read.passages("Mill 7?", recall=5000, max_new_tokens=16)
    assert room - 60 < text_slots(read.setup, read.text, passages) <= room
    assert read.ask("Mill 7?", recall=5000, citations=False).usage.recalled_tokens > 0


def test_where_all_but_the_names_of_documents_fits_the_least_is_left_out(llm: InfiniPot) -> None:
    """Not the end of the last document, whatever is asked."""
    several = [Document.from_text(f"Mill {i} was sold by {name} in {1800 + i}.", name="n" * 90 + str(i))
               for i, name in enumerate(["Ada", "Ben", "Cyd", "Dan"])]  # fmt: skip
    read = joined([llm.read(document) for document in several])
    room = room_for(read, usual_prompt(read, "recall", "Dan?", (), 16, 5000)[0], 16)
    assert len(read.text) < room < text_slots(read.setup, read.text, [Passage(0, len(read.text), 0.0)])
    for name in ("Ada", "Dan"):
        question = f"What did {name} sell?"
        score = read.finder.scores(llm.form.question(question), question)
        best = int(score.argmax())
        start, end = read.finder.spans.starts[best : best + 2]
        passages = read.passages(question, recall=5000, max_new_tokens=16)
        assert any(p.start <= start and end <= p.end for p in passages), name
        assert text_slots(read.setup, read.text, passages) <= room
