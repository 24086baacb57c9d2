"""A document that was read once: no question, stream or error changes it, and every slot is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from asked_memory import CODEC, LIMIT, TEXT, OopsError, Words, fail
from asked_memory import llm as llm
from asked_memory import memory as memory
from torch import Tensor, nn

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import BudgetError, DocumentError, QuestionError
from infinipot_llm.memory.memory import DocumentMemory


def everything(memory: DocumentMemory) -> dict[str, object]:
    """All that a memory is, to be compared bit by bit."""
    state: dict[str, object] = {name: value.numpy().tobytes() for name, value in memory.pot.state().items()}
    assert memory.shelved is not None
    assert memory.file is not None
    return state | {
        "slots": (memory.pot.length, memory.pot.pinned, memory.pot.cache.length),
        "null": memory.shelved.null.numpy().tobytes(),
        "prefix": b"".join(t.numpy().tobytes() for t in memory.setup.prefix),
        "tokens": memory.text.ids.tobytes(),
        "file": memory.file.path.read_bytes(),
    }


def abandon(memory: DocumentMemory) -> None:
    for _ in memory.stream("When?"):
        break


def expect(error: type[BaseException], run: Callable[[], object]) -> None:
    with pytest.raises(error):
        run()


USES: dict[str, Callable[[DocumentMemory], object]] = {
    "ask": lambda m: m.ask("When?"),
    "ask without citations": lambda m: m.ask("Who moved away?", citations=False),
    "sample": lambda m: m.ask("When?", temperature=2.0, seed=4),
    "stop": lambda m: m.ask("When?", stop=("e", "\n")),
    "stream": lambda m: list(m.stream("How much?")),
    "abandoned stream": abandon,
    "cancelled": lambda m: m.ask("When?", cancelled=lambda: True),
    "error in on_text": lambda m: expect(OopsError, lambda: m.ask("When?", on_text=fail)),
    "error in cancelled": lambda m: expect(OopsError, lambda: m.ask("When?", cancelled=fail)),
    "question too long": lambda m: expect(QuestionError, lambda: m.ask("Why? " * 100)),
    "answer too long": lambda m: expect(QuestionError, lambda: m.ask("Why?", max_new_tokens=4000)),
    "empty question": lambda m: expect(QuestionError, lambda: m.ask(" ")),
    "bad temperature": lambda m: expect(ValueError, lambda: m.ask("Why?", temperature=-1.0)),
}


@pytest.mark.parametrize("use", USES)
def test_nothing_changes_the_memory(memory: DocumentMemory, use: str) -> None:
    before, first = everything(memory), memory.ask("When did it burn?")
    USES[use](memory)
    assert everything(memory) == before
    assert memory.pot.cache.length == memory.pot.length
    assert memory.pot.cache.observer is None
    assert memory.pot.cache.hidden is None
    second = memory.ask("When did it burn?")
    assert (second.text, second.citations, second.finish_reason) == (first.text, first.citations, first.finish_reason)
    assert second.supported == first.supported


def test_the_order_of_questions_does_not_matter(llm: InfiniPot, memory: DocumentMemory) -> None:
    questions = ["When?", "Who moved away?", "How much was it?"]
    forwards = {q: memory.ask(q).text for q in questions}
    backwards = {q: memory.ask(q).text for q in reversed(questions)}
    fresh = {q: llm.read(Document.from_text(TEXT, name="mill")).ask(q).text for q in questions}
    assert forwards == backwards == fresh
    assert len(set(forwards.values())) == 3


def test_an_answer_says_what_it_cost(memory: DocumentMemory) -> None:
    answer = memory.ask("When?", max_new_tokens=7)
    usage = answer.usage
    assert (answer.finish_reason, usage.answer_tokens) == ("length", 7)
    assert usage.read == memory.stats
    recalled = usage.recalled_tokens
    left = 330 - memory.setup.prefix[0].shape[2] - usage.question_tokens - 7  # by prompt, question and answer
    assert recalled == (0 if memory.config.followup == "reuse" else left)
    assert usage.pot_bytes == 2 * 2 * 330 * 16 * 4 * 3  # layers, KV heads, slots, dims, bytes, buffers
    assert usage.peak_memory_bytes > usage.pot_bytes
    assert usage.question_tokens == len(memory._form.question("When?"))
    assert 0 < usage.first_token_seconds < usage.answer_seconds
    values = json.loads(json.dumps(answer.to_dict()))
    assert values["text"] == answer.text
    assert values["usage"]["read"]["cycles"] == memory.stats.cycles
    assert len(values["citations"]) == len(answer.citations)


def test_every_slot_is_counted_while_asking(llm: InfiniPot, memory: DocumentMemory) -> None:
    lengths: list[int] = []

    def look(module: nn.Module, args: object, kwargs: dict[str, Any], out: object) -> None:
        cache = kwargs["past_key_values"]
        lengths.append(cache.length)
        assert cache.slots <= 330

    hook = llm.adapter.backbone.register_forward_hook(look, with_kwargs=True)
    try:
        question = "x" * (llm.config.question_tokens)
        memory.ask(question)  # as long as was promised, with the whole answer
    finally:
        hook.remove()
    assert max(lengths) <= 330
    assert max(lengths) > 300
    if llm.config.followup == "reuse":
        assert min(lengths) > memory.pot.length


def test_a_stream_gives_the_answer_piece_by_piece(llm: InfiniPot, memory: DocumentMemory) -> None:
    with Words(llm.adapter):
        assert list(memory.stream("When?", max_new_tokens=13)) == ["word ", "word ", "wor"]


def test_reading_reports_and_traces(llm: InfiniPot) -> None:
    told: list[int] = []
    cycles: list[int] = []
    memory = llm.read(
        Document.from_text(TEXT),
        question="When?",
        progress=lambda s: told.append(s.tokens_read),
        tracer=lambda c: cycles.append(c.number),
    )
    assert told == sorted(told)
    assert told[-1] == len(memory.text)
    assert cycles == list(range(1, memory.stats.cycles + 1))


def test_the_question_decides_what_is_kept(llm: InfiniPot) -> None:
    document = Document.from_text(TEXT)
    kept = [llm.read(document, question=q).pot.origin for q in ("When did it burn?", "Who moved away..?")]
    assert not torch.equal(*kept)


def test_what_cannot_be_read_is_refused(llm: InfiniPot) -> None:
    document = Document.from_text(TEXT)
    with pytest.raises(DocumentError):
        llm.read([])
    with pytest.raises(QuestionError):
        llm.read(document, question=" ")
    with pytest.raises(BudgetError, match="at least"):
        llm.read(document, question="Why? " * 60)
    with pytest.raises(BudgetError, match="4096"):
        InfiniPot(llm.adapter, CODEC, PotConfig(budget=4097))


def test_own_catalysts_are_used(llm: InfiniPot) -> None:
    own = PotConfig(budget=330, max_new_tokens=LIMIT, catalysts=("Who?", "What else?"), shelf="off")
    other = InfiniPot(llm.adapter, CODEC, own)
    assert other.generic_questions([Document.from_text(TEXT)]) == ("Who?", "What else?")
    lengths: list[int] = []
    true_forward = llm.adapter.forward

    def forward(ids: Tensor, cache: object) -> Tensor:
        lengths.append(len(ids))
        return true_forward(ids, cache)  # type: ignore[arg-type]

    llm.adapter.forward = forward  # type: ignore[method-assign,assignment]
    try:
        cycles = other.read(Document.from_text(TEXT)).stats.cycles
    finally:
        del llm.adapter.forward
    for question in ("Who?", "What else?"):
        assert lengths.count(len(other.form.question(question))) == cycles > 0
