"""ChatInfiniPot's streams, async calls and callbacks: the same answer, piece by piece, without blocking."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_infinipot import ChatInfiniPot, settings
from lc_fakes import DOC, QUESTION, FakeAssistant, chat, check_citations, streamed

from infinipot_llm.assistant import Assistant
from infinipot_llm.engine import InfiniPot


def test_a_stream_is_the_answer_and_its_last_chunk_the_rest() -> None:
    fake = FakeAssistant()
    chunks = list(chat(fake).stream(QUESTION))
    assert "".join(str(c.content) for c in chunks) == fake.text
    assert len(chunks) > 3
    assert [c.chunk_position for c in chunks] == [None] * (len(chunks) - 1) + ["last"]
    assert not any(c.usage_metadata or c.response_metadata for c in chunks[:-1])
    assert chunks[-1].usage_metadata is not None
    assert chunks[-1].response_metadata["finish_reason"] == "stop"


def test_a_stream_that_is_left_ends_the_decoding() -> None:
    fake = FakeAssistant()
    stream = chat(fake).stream(QUESTION)
    next(stream)
    assert not fake.closed.is_set()
    stream.close()  # type: ignore[attr-defined]
    assert fake.closed.is_set()


PIECES = ["\n", " It", " hangs ", "\n", "", "behind", " the door.", "\n\n", " "]


async def test_streamed_text_is_the_text_of_invoke_whatever_white_space_is_around_it() -> None:
    fake = FakeAssistant("".join(PIECES).strip())
    fake.pieces = PIECES
    llm = chat(fake)
    said = llm.invoke(QUESTION)
    full = streamed(llm)
    assert full.content == said.content == fake.text
    check_citations(full.content_blocks, fake.text)
    assert "".join([str(c.content) async for c in llm.astream(QUESTION)]) == fake.text
    assert chat(fake, streaming=True).invoke(QUESTION).content == fake.text


def test_the_last_chunk_carries_what_the_pieces_left_out() -> None:
    fake = FakeAssistant("It hangs there.")
    fake.pieces = ["It", " hangs"]
    assert streamed(chat(fake)).content == "It hangs there."


@pytest.mark.parametrize("stop", [None, ["e", "a"], [" "]])
def test_streams_of_a_real_decoder_are_its_answers(tiny_llm: InfiniPot, stop: list[str] | None) -> None:
    llm = ChatInfiniPot(model="tiny", assistant=Assistant(tiny_llm), max_tokens=12, citations=False)
    for i in range(8):
        said = llm.invoke(f"question {i}", stop=stop).content
        assert "".join(str(c.content) for c in llm.stream(f"question {i}", stop=stop)) == said


async def test_async_calls_use_the_assistants_own_way() -> None:
    fake = FakeAssistant()
    llm = chat(fake)
    said = await llm.ainvoke(QUESTION)
    assert said.content == fake.text
    pieces = [c async for c in llm.astream(QUESTION)]
    assert "".join(str(c.content) for c in pieces) == fake.text
    assert fake.loop_threads == [threading.get_ident()] * 2  # not by way of an executor


async def test_an_async_stream_that_is_left_ends_the_decoding() -> None:
    fake = FakeAssistant()
    stream = chat(fake).astream(QUESTION)
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert fake.closed.is_set()


async def test_opening_documents_does_not_block_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    opened_in: list[int] = []
    real = settings.read_messages

    def slow(*args: Any, **kwargs: Any) -> Any:
        opened_in.append(threading.get_ident())
        return real(*args, **kwargs)

    monkeypatch.setattr(settings, "read_messages", slow)
    await asyncio.gather(chat().ainvoke(QUESTION), chat().ainvoke(QUESTION))
    assert threading.get_ident() not in opened_in


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.seen.append(token)


def test_callbacks_hear_every_token_once() -> None:
    fake = FakeAssistant()
    heard = Tokens()
    list(chat(fake).stream(QUESTION, config={"callbacks": [heard]}))
    assert "".join(heard.seen) == fake.text
    heard = Tokens()
    chat(fake, streaming=True).invoke(QUESTION, config={"callbacks": [heard]})
    assert "".join(heard.seen) == fake.text


class Started(BaseCallbackHandler):
    def __init__(self) -> None:
        self.params: list[Any] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **told: Any) -> None:
        self.params.append((serialized, told["invocation_params"], told["options"]))


def test_traces_hold_the_id_of_a_bound_document_and_not_its_text() -> None:
    heard = Started()
    bound = [chat(document=DOC), chat().bind(document=DOC)]
    for llm in bound:
        llm.invoke("Where?", config={"callbacks": [heard]})
        list(llm.stream("Where?", config={"callbacks": [heard]}))
    assert len(heard.params) == 4
    for told in heard.params:
        assert told[1]["document"] == [DOC.id]
        assert DOC.text not in json.dumps(told[:2])
        assert DOC.text not in repr(told[2])  # before langchain-core 1.7 the options of a stream are the call's own
