"""A document that was read once: no question, stream or error changes it, and threads take turns."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from torch import Tensor, nn

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import BudgetError, DocumentError, QuestionError
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

CODEC = TextCodec(byte_tokenizer())
TEXT = "The mill burned in 1903. It was rebuilt in 1904 for 68,211 crowns. The owner moved away.\n" * 6
LIMIT = 20


@pytest.fixture(scope="module")
def llm() -> Iterator[InfiniPot]:
    config = PotConfig(budget=330, max_new_tokens=LIMIT, question_tokens=40, chunk=128)
    with InfiniPot(Adapter(tiny_model("qwen3", num_hidden_layers=2)), CODEC, config) as made:
        yield made


@pytest.fixture(scope="module")
def memory(llm: InfiniPot) -> DocumentMemory:
    read = llm.read(Document.from_text(TEXT, name="mill"))
    assert read.stats.cycles > 2
    return read


class Words:
    """An output head that says "word word word ..." for ever; `said` counts its tokens."""

    def __init__(self, adapter: Adapter) -> None:
        self.said = 0
        self._ids = CODEC.untrusted("word ")
        self._handle = adapter.head.register_forward_hook(self._dictate)

    def _dictate(self, module: nn.Module, given: object, out: Tensor) -> Tensor:
        forced = torch.zeros_like(out)
        forced[..., self._ids[self.said % len(self._ids)]] = 50.0
        self.said += 1
        return forced

    def __enter__(self) -> Words:
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()


class OopsError(Exception):
    """What a caller's own code raises."""


def fail(*anything: object, **named: object) -> bool:
    raise OopsError


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
    before, first = memory.pot.state(), memory.ask("When did it burn?")
    USES[use](memory)
    after = memory.pot.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert memory.pot.cache.length == memory.pot.length
    assert memory.pot.cache.observer is None
    assert memory.pot.cache.hidden is None
    second = memory.ask("When did it burn?")
    assert (second.text, second.citations, second.finish_reason) == (first.text, first.citations, first.finish_reason)


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
    assert usage.pot_bytes == 2 * 2 * 330 * 16 * 4 * 3  # layers, KV heads, slots, dims, bytes, buffers
    assert usage.peak_memory_bytes > usage.pot_bytes
    assert usage.answer_seconds > 0
    values = json.loads(json.dumps(answer.to_dict()))
    assert values["text"] == answer.text
    assert values["usage"]["read"]["cycles"] == memory.stats.cycles
    assert len(values["citations"]) == len(answer.citations)


def test_every_slot_is_counted_while_asking(llm: InfiniPot, memory: DocumentMemory) -> None:
    lengths: list[int] = []
    hook = llm.adapter.backbone.register_forward_hook(lambda *_: lengths.append(memory.pot.cache.length))
    try:
        question = "x" * (llm.config.question_tokens)
        memory.ask(question)  # as long as was promised, with the whole answer
    finally:
        hook.remove()
    assert max(lengths) <= 330
    assert min(lengths) > memory.pot.length


# --- streams and threads ---


def test_a_stream_gives_the_answer_piece_by_piece(llm: InfiniPot, memory: DocumentMemory) -> None:
    with Words(llm.adapter):
        assert list(memory.stream("When?", max_new_tokens=13)) == ["word ", "word ", "wor"]


def test_an_error_while_decoding_reaches_the_reader_of_a_stream(
    memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(QuestionError, match="empty"):
        list(memory.stream("  "))
    monkeypatch.setattr(memory._adapter.model, "generate", fail)
    with pytest.raises(OopsError):
        list(memory.stream("When?"))
    monkeypatch.undo()
    assert list(memory.stream("When?"))


def test_an_error_midway_comes_after_what_was_said(llm: InfiniPot, memory: DocumentMemory) -> None:
    with Words(llm.adapter) as words:
        stream = memory.stream("When?", stop=("never",))
        assert next(stream) == "word "
        handle = llm.adapter.backbone.register_forward_pre_hook(lambda *_: fail())
        try:
            with pytest.raises(OopsError):
                list(stream)
        finally:
            handle.remove()
        assert words.said < LIMIT


def asked_elsewhere(memory: DocumentMemory) -> str | None:
    """Ask from another thread; None when it cannot get its turn."""
    answers: list[str] = []
    thread = threading.Thread(
        target=lambda: answers.append(memory.ask("When?", citations=False, max_new_tokens=9).text), daemon=True
    )
    thread.start()
    thread.join(20)
    return answers[0] if answers else None


def test_leaving_a_stream_early_ends_the_decoding_and_frees_the_model(llm: InfiniPot) -> None:
    large = InfiniPot(llm.adapter, CODEC, PotConfig(budget=4000, max_new_tokens=3000))
    memory = large.read(Document.from_text(TEXT))
    expected = memory.ask("When?", citations=False, max_new_tokens=9).text
    with Words(llm.adapter) as words:
        for piece in memory.stream("When?"):
            assert piece == "word "
            break
        assert words.said < 1000
        said = words.said
        assert llm.adapter.lock.acquire(timeout=10)
        llm.adapter.lock.release()
        assert words.said == said  # nobody decodes on in the background
    assert not [t for t in threading.enumerate() if t.name == "infinipot-answer"]
    assert asked_elsewhere(memory) == expected


def test_a_stream_that_nobody_began_to_read_holds_nothing(memory: DocumentMemory) -> None:
    stream = memory.stream("When?")
    assert asked_elsewhere(memory) is not None
    del stream


def test_threads_take_turns(memory: DocumentMemory) -> None:
    questions = ["When?", "Who moved away?", "How much?"] * 2
    expected = [memory.ask(q, citations=False).text for q in questions]
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = memory.ask(questions[number], citations=False).text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answers.get(n) for n in range(len(questions))] == expected


# --- the engine ---


def test_two_memories_of_one_model_are_apart(llm: InfiniPot, memory: DocumentMemory) -> None:
    before, expected = memory.pot.state(), memory.ask("When?").text
    other = llm.read(Document.from_text("Quite another text. " * 30))
    other.ask("What?")
    assert all(torch.equal(before[name], value) for name, value in memory.pot.state().items())
    assert memory.ask("When?").text == expected


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
    own = PotConfig(budget=330, max_new_tokens=LIMIT, catalysts=("Who?", "What else?"))
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


def test_a_single_stop_text_is_one_stop_text() -> None:
    config = PotConfig(budget=330, max_new_tokens=LIMIT, question_tokens=40)
    with InfiniPot(Adapter(tiny_model("llama", num_hidden_layers=2)), CODEC, config) as llm:
        memory = llm.read(Document.from_text(TEXT[:60]))
        free = memory.ask("When?", citations=False).text
        assert memory.ask("When?", citations=False, stop=free[0] + "\0never").text == free


def test_wrong_arguments_are_sentences() -> None:
    llm = InfiniPot(Adapter(tiny_model("llama", num_hidden_layers=2)), CODEC)
    with pytest.raises(DocumentError, match="from_file"):
        llm.read("report.pdf")  # type: ignore[arg-type]
    llm.close()
    with pytest.raises(BudgetError, match="novelty"):
        InfiniPot.from_pretrained("nowhere", novelty=0.5)


def test_leaving_a_stream_while_another_reading_goes_on() -> None:
    config = PotConfig(budget=330, max_new_tokens=LIMIT, question_tokens=40)
    with InfiniPot(Adapter(tiny_model("llama", num_hidden_layers=2)), CODEC, config) as llm:
        memory = llm.read(Document.from_text(TEXT[:60]))
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with llm.adapter.lock:
                held.set()
                done.wait(20)

        other = threading.Thread(target=hold)
        other.start()
        held.wait(20)
        answer = memory.ask("When?", cancelled=lambda: True)
        done.set()
        other.join()
    assert (answer.text, answer.finish_reason, answer.citations) == ("", "cancelled", ())
