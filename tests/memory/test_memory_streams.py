"""Streams of answers, threads and event loops: whoever leaves ends the decoding, and everybody gets a turn."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from asked_memory import CODEC, LIMIT, TEXT, OopsError, Words, fail
from asked_memory import llm as llm
from asked_memory import memory as memory
from conftest import tiny_model

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import QuestionError
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.models.adapter import Adapter

T = TypeVar("T")


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


@pytest.mark.parametrize("options", [{}, {"followup": "reread"}, {"stop": "e"}, {"recall": 40}])
def test_a_stream_says_what_ask_says(memory: DocumentMemory, options: dict[str, Any]) -> None:
    for question in ("When?", "Who moved away?"):
        expected = memory.ask(question, **options).text
        assert "".join(memory.stream(question, **options)).strip() == expected
        assert "".join(asyncio.run(collect(memory.astream(question, **options)))).strip() == expected


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


def test_whoever_streams_may_still_say_that_it_is_enough(llm: InfiniPot, memory: DocumentMemory) -> None:
    pieces: list[str] = []
    with Words(llm.adapter):
        said = list(memory.stream("When?", cancelled=lambda: len(pieces) > 2, on_text=pieces.append))
        assert "".join(said) == "".join(pieces)
        assert 2 < len(pieces) < LIMIT
        pieces.clear()
        answer = asyncio.run(memory.aask("When?", cancelled=lambda: len(pieces) > 2, on_text=pieces.append))
    assert answer.finish_reason == "cancelled"
    assert len(pieces) < LIMIT


def test_reading_again_can_be_cancelled(memory: DocumentMemory) -> None:
    asked: list[bool] = []

    def enough() -> bool:
        asked.append(True)
        return len(asked) > 3

    answer = memory.ask("When?", followup="reread", cancelled=enough)
    assert (answer.text, answer.finish_reason) == ("", "cancelled")
    assert len(asked) == 4
    assert memory.ask("When?", followup="reread", max_new_tokens=3).finish_reason == "length"


def test_questions_that_wait_leave_the_loop_its_own_threads(memory: DocumentMemory) -> None:
    """Waiting answers filled the executor that a loop looks up names with."""

    async def go() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2))
        with memory._adapter.lock:
            waiting = [asyncio.create_task(memory.aask("When?", max_new_tokens=2, citations=False)) for _ in range(4)]
            await asyncio.sleep(0.2)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 10) == "free"
        answers = await asyncio.gather(*waiting)
        assert len({answer.text for answer in answers}) == 1

    asyncio.run(go())
