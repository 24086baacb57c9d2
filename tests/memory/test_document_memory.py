"""A document that was read once: no question, stream or error changes it, and threads take turns."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from torch import Tensor, nn

from infinipot_llm.answering import compose as compose_module
from infinipot_llm.answering.answer import Answer
from infinipot_llm.answering.decode import Decoded
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import BudgetError, DocumentError, InfiniPotError, ModelError, QuestionError
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import Pot

T = TypeVar("T")

CODEC = TextCodec(byte_tokenizer())
TEXT = "The mill burned in 1903. It was rebuilt in 1904 for 68,211 crowns. The owner moved away.\n" * 6
LIMIT = 20


@pytest.fixture(scope="module", params=["recall", "reuse"])
def llm(request: pytest.FixtureRequest) -> Iterator[InfiniPot]:
    """Everything here must hold whether the shelf answers or the pot."""
    config = PotConfig(
        budget=330,
        max_new_tokens=LIMIT,
        question_tokens=40,
        chunk=128,
        followup=request.param,
        shelf="int8",
        recalled="load",
    )
    with InfiniPot(Adapter(tiny_model("qwen3", num_hidden_layers=2)), CODEC, config) as made:
        yield made


@pytest.fixture(scope="module")
def memory(llm: InfiniPot) -> DocumentMemory:
    read = llm.read(Document.from_text(TEXT, name="mill"))
    assert read.stats.cycles > 2
    assert 0 < read.ask("When?").usage.recalled_tokens < len(read.text) or read.config.followup == "reuse"
    return read


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
    large = InfiniPot(llm.adapter, CODEC, replace(llm.config, budget=4000, max_new_tokens=3000))
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


# --- without blocking the event loop ---


async def ticking(work: Coroutine[Any, Any, T]) -> tuple[T, int]:
    """Await something, and count how often the loop came round meanwhile."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticker = asyncio.create_task(tick())
    try:
        return await work, ticks
    finally:
        ticker.cancel()


async def collect(pieces: AsyncIterator[str]) -> list[str]:
    return [piece async for piece in pieces]


def test_the_loop_goes_on_while_an_answer_comes(llm: InfiniPot, memory: DocumentMemory) -> None:
    expected = memory.ask("When?")
    answer, ticks = asyncio.run(ticking(memory.aask("When?")))
    assert (answer.text, answer.citations) == (expected.text, expected.citations)
    assert ticks >= 3
    with Words(llm.adapter):
        pieces, ticks = asyncio.run(ticking(collect(memory.astream("When?", max_new_tokens=13))))
    assert pieces == ["word ", "word ", "wor"]
    assert ticks >= 3


def test_the_loop_goes_on_while_the_model_is_busy(llm: InfiniPot, memory: DocumentMemory) -> None:
    async def both() -> str:
        taken, done = threading.Event(), threading.Event()

        def hold() -> None:
            with llm.adapter.lock:
                taken.set()
                done.wait(20)

        other = threading.Thread(target=hold)
        other.start()
        taken.wait(20)
        asking = asyncio.create_task(memory.aask("When?", citations=False))
        await asyncio.sleep(0.05)
        assert not asking.done()
        done.set()
        answer = await asking
        other.join()
        return answer.text

    assert asyncio.run(both()) == memory.ask("When?", citations=False).text


def test_errors_reach_whoever_awaits(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QuestionError, match="empty"):
        asyncio.run(memory.aask(" "))
    with pytest.raises(QuestionError, match="empty"):
        asyncio.run(collect(memory.astream(" ")))
    monkeypatch.setattr(memory._adapter.model, "generate", fail)
    for run in (lambda: memory.aask("When?"), lambda: collect(memory.astream("When?"))):
        with pytest.raises(OopsError):
            asyncio.run(run())  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["task", "stream", "timeout"])
def test_whoever_goes_away_ends_the_decoding_and_frees_the_model(llm: InfiniPot, how: str) -> None:
    large = InfiniPot(llm.adapter, CODEC, replace(llm.config, budget=4000, max_new_tokens=3000))
    memory = large.read(Document.from_text(TEXT))

    async def go(words: Words) -> None:
        if how == "stream":
            stream = memory.astream("When?")
            async for piece in stream:
                assert piece == "word "
                break
            await stream.aclose()  # type: ignore[attr-defined]
        elif how == "timeout":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(memory.aask("When?", citations=False), 0.1)
        else:
            asking = asyncio.create_task(memory.aask("When?", citations=False))
            while not words.said:
                await asyncio.sleep(0.001)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    with Words(llm.adapter) as words:
        asyncio.run(go(words))
        assert 0 < words.said < 1000
        assert llm.adapter.lock.acquire(timeout=10)
        llm.adapter.lock.release()
        said = words.said
        time.sleep(0.05)
        assert words.said == said


# --- how a question is answered ---


def pot_of(
    memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch, question: str, **options: Any
) -> tuple[Pot, Answer]:
    """The pot that a question was decoded over."""
    pots: list[Pot] = []
    true_decode = compose_module.decode

    def spy(adapter: Adapter, codec: TextCodec, pot: Pot, *args: Any, **kwargs: Any) -> Decoded:
        pots.append(pot)
        return true_decode(adapter, codec, pot, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(compose_module, "decode", spy)
        answer = memory.ask(question, citations=False, **options)
    assert len(pots) == 1
    return pots[0], answer


def test_the_followups(llm: InfiniPot, memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    pot, reused = pot_of(memory, monkeypatch, "When?", followup="reuse")
    assert pot is memory.pot
    assert reused.usage.recalled_tokens == 0
    pot, recalled = pot_of(memory, monkeypatch, "When?", followup="recall")
    assert pot.length == len(llm.form.prefix) + recalled.usage.recalled_tokens > len(llm.form.prefix)
    assert (pot.origin == pot.origin[0, 0]).all()
    assert (pot.origin[0, 0].diff() >= 0).all()
    own, reread = pot_of(memory, monkeypatch, "When?", followup="reread")
    assert reread.usage.recalled_tokens == 0
    expected = llm.read(Document.from_text(TEXT), question="When?").pot.state()
    assert all(torch.equal(value, expected[name]) for name, value in own.state().items())
    by_default, answer = pot_of(memory, monkeypatch, "When?")
    assert (by_default is memory.pot) == (llm.config.followup == "reuse")
    assert answer.text == (reused if llm.config.followup == "reuse" else recalled).text
    assert len({reused.text, recalled.text, reread.text}) == 3


def test_an_unknown_followup_is_refused(memory: DocumentMemory) -> None:
    with pytest.raises(QuestionError, match=r"'rewind'.*recall, reuse, reread\.$"):
        memory.ask("When?", followup="rewind")


def test_as_much_is_recalled_as_asked_for(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = memory.setup.prefix[0].shape[2]
    for tokens in (1, 5, 32, 33, 60):
        pot, answer = pot_of(memory, monkeypatch, "When?", followup="recall", recall=tokens)
        assert answer.usage.recalled_tokens == pot.length - prefix == tokens
        assert pot.budget == prefix + tokens + answer.usage.question_tokens + LIMIT
    most = 330 - prefix - len(memory._form.question("When?")) - LIMIT
    assert pot_of(memory, monkeypatch, "When?", followup="recall", recall=10**6)[1].usage.recalled_tokens == most
    longer = memory.ask("Why? " * 8, followup="recall", recall=10**6, citations=False).usage
    assert longer.recalled_tokens == 330 - prefix - longer.question_tokens - LIMIT < most


@pytest.mark.parametrize("tokens", [-1, -100])
def test_no_less_than_a_token_can_be_recalled(memory: DocumentMemory, tokens: int) -> None:
    with pytest.raises(QuestionError, match="recall"):
        memory.ask("When?", followup="recall", recall=tokens)
    with pytest.raises(QuestionError, match=r"recall|tokens"):
        memory.recall("When?", tokens)


@pytest.mark.parametrize("followup", ["recall", "reuse", "reread"])
def test_too_little_room_is_said_in_a_sentence(memory: DocumentMemory, followup: str) -> None:
    for options in ({"max_new_tokens": 300}, {"max_new_tokens": 10**6}):
        with pytest.raises(InfiniPotError, match=r"answer.*\.$") as refused:
            memory.ask("When?", followup=followup, **options)
        assert "\n" not in str(refused.value)
    with pytest.raises(InfiniPotError, match=r"question.*\.$"):
        memory.ask("Why? " * 70, followup=followup)


def test_a_long_question_shortens_the_answer_rather_than_being_refused(memory: DocumentMemory) -> None:
    room = 330 - memory.setup.prefix[0].shape[2] - len(memory._form.question("x"))
    answer = memory.ask("x" * (room - 40), followup="recall", citations=False)
    assert answer.usage.answer_tokens == 9 < LIMIT
    assert answer.usage.recalled_tokens >= 30


def test_without_a_shelf_the_pot_answers(llm: InfiniPot, memory: DocumentMemory) -> None:
    bare = InfiniPot(llm.adapter, CODEC, replace(llm.config, shelf="off")).read(Document.from_text(TEXT, name="mill"))
    assert bare.shelved is None
    answer = bare.ask("When?")
    assert answer.usage.recalled_tokens == 0
    assert answer.text == memory.ask("When?", followup="reuse").text
    for run in (lambda: bare.ask("When?", followup="recall"), lambda: bare.recall("When?")):
        with pytest.raises(QuestionError, match=r"without a shelf.*\.$"):
            run()
    assert bare.ask("When?", followup="reread").text == memory.ask("When?", followup="reread").text


def test_a_shelf_of_four_bits_and_a_bounded_one_answer_too(llm: InfiniPot) -> None:
    for knobs in ({"shelf": "int4"}, {"shelf_bytes": 60_000}):
        memory = InfiniPot(llm.adapter, CODEC, replace(llm.config, **knobs)).read(Document.from_text(TEXT))  # type: ignore[arg-type]
        answer = memory.ask("When?", followup="recall")
        assert 0 < answer.usage.recalled_tokens <= len(memory.finder.shelf)
        assert memory.ask("When?", followup="recall").text == answer.text


def test_what_is_counted_as_recalled_was_recalled(llm: InfiniPot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded shelf holds parts of spans."""
    memory = InfiniPot(llm.adapter, CODEC, replace(llm.config, shelf_bytes=20_000)).read(Document.from_text(TEXT))
    assert len(memory.finder.shelf) < 172  # which is what a question leaves
    for tokens in (20, 50, 100, 10**6):
        pot, answer = pot_of(memory, monkeypatch, "When?", followup="recall", recall=tokens)
        assert answer.usage.recalled_tokens == pot.length - len(llm.form.prefix)
        assert pot.budget == pot.length + answer.usage.question_tokens + LIMIT <= 330


@pytest.mark.parametrize("options", [{}, {"followup": "reread"}, {"stop": "e"}, {"recall": 40}])
def test_a_stream_says_what_ask_says(memory: DocumentMemory, options: dict[str, Any]) -> None:
    for question in ("When?", "Who moved away?"):
        expected = memory.ask(question, **options).text
        assert "".join(memory.stream(question, **options)).strip() == expected
        assert "".join(asyncio.run(collect(memory.astream(question, **options)))).strip() == expected


def test_what_a_question_brings_back_can_be_looked_at(llm: InfiniPot, memory: DocumentMemory) -> None:
    found = memory.recall("When did it burn?", 64)
    document = memory.documents[0]
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert sum(span.end - span.start for span, _ in found) == 64  # a byte is a token
    for span, _ in found:
        assert span.text == document.text[span.start : span.end] != ""
        assert (span.document, span.page) == ("mill", document.page_at(span.start).number)
    with_pages = Document.from_text("\f".join([TEXT[:89]] * 4), name="paged")
    both = llm.read([with_pages, Document.from_text("Other. " * 20, name="other")])
    found = both.recall("When did it burn?", len(both.text) + 1)
    assert [span.document for span, _ in found] == ["paged", "other"]
    assert [span.text for span, _ in found] == [d.text for d in both.documents]
    pages = {span.page for span, _ in both.recall("When did it burn?", 100)}
    assert pages <= {1, 2, 3, 4}
    with pytest.raises(QuestionError, match="empty"):
        memory.recall(" ")


def test_a_closed_model_says_so() -> None:
    config = PotConfig(budget=330, max_new_tokens=LIMIT, question_tokens=40, shelf="int8", recalled="load")
    with InfiniPot(Adapter(tiny_model("llama", num_hidden_layers=2)), CODEC, config) as llm:
        memory = llm.read(Document.from_text(TEXT))
        short = llm.read(Document.from_text(TEXT[:20]))
    for run in (
        lambda: memory.ask("When?"),
        lambda: short.ask("When?"),
        lambda: memory.ask("When?", followup="reuse"),
        lambda: memory.ask("When?", followup="reread"),
        lambda: memory.recall("When?", 20),
        lambda: list(memory.stream("When?")),
        lambda: memory.chat().ask("When?"),
        lambda: llm.read(Document.from_text(TEXT)),
        lambda: llm.extend(memory, Document.from_text(TEXT)),
    ):
        with pytest.raises(ModelError, match="was closed"):
            run()


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


def test_a_single_stop_text_is_one_stop_text() -> None:
    config = PotConfig(budget=330, max_new_tokens=LIMIT, question_tokens=40, shelf="int8", recalled="load")
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
    config = PotConfig(budget=330, max_new_tokens=LIMIT, question_tokens=40, shelf="int8", recalled="load")
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
