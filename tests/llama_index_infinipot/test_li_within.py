"""The query engine inside LlamaIndex: events, callbacks, threads and loops, tools and evaluators around it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from li_helpers import listening, mill_pages, reads, river, slow_passes, tiny_llm
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    ChatMessage,
    DocumentBlock,
    TextBlock,
)
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.evaluation import FaithfulnessEvaluator
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import Document, QueryBundle
from llama_index.core.tools import QueryEngineTool
from llama_index.indices.managed.infinipot import (
    InfiniPotIndex,
)
from llama_index.llms.infinipot import InfiniPotLLM

pytestmark = pytest.mark.usefixtures("closed_loop")

QUESTION = "When did mill number 4 burn?"


@pytest.fixture(scope="module")
def index() -> InfiniPotIndex:
    return InfiniPotIndex.from_documents([*mill_pages(), river()], llm=tiny_llm())


def names(heard: list[Any]) -> list[str]:
    return [type(event).__name__ for event in heard]


THEIRS_ALONE = {"LLMPredictStartEvent", "LLMPredictEndEvent"}
"""What LlamaIndex's synthesizers tell about the prompt template that they fill; no template is filled here."""


@pytest.mark.parametrize("streaming", [False, True])
async def test_events_are_those_of_a_retriever_query_engine(index: InfiniPotIndex, streaming: bool) -> None:
    synthesizer = get_response_synthesizer(llm=index.llm, streaming=streaming)
    theirs = RetrieverQueryEngine(index.as_retriever(), synthesizer)
    mine = index.as_query_engine(streaming=streaming)

    async def ask(engine: Any, is_async: bool) -> list[str]:
        with listening() as heard:
            if not is_async:
                str(engine.query(QUESTION))
            elif streaming:
                _ = [p async for p in (await engine.aquery(QUESTION)).async_response_gen()]
            else:
                await engine.aquery(QUESTION)
        told = [name for name in names(heard) if name not in THEIRS_ALONE and name != "SpanDropEvent"]
        return [name for name, after in zip(told, [*told[1:], ""], strict=True) if name != after]

    for is_async in (False, True):
        assert await ask(mine, is_async) == await ask(theirs, is_async)


def test_events_can_be_written_down(index: InfiniPotIndex) -> None:
    with listening() as heard:
        index.as_query_engine().query(QUESTION)
    assert names(heard)[0] == "QueryStartEvent"
    assert names(heard)[-1] == "QueryEndEvent"
    end = next(e for e in heard if type(e).__name__ == "SynthesizeEndEvent")
    assert end.response.source_nodes
    retrieved = next(e for e in heard if type(e).__name__ == "RetrievalEndEvent")
    assert retrieved.nodes
    for event in heard:
        json.dumps(event.model_dump(mode="json"), default=str)


def test_callbacks_of_the_older_kind() -> None:
    debug, counter = LlamaDebugHandler(print_trace_on_end=False), TokenCountingHandler(tokenizer=str.split)
    manager = CallbackManager([debug, counter])
    index = InfiniPotIndex.from_documents([river()], llm=tiny_llm(), callback_manager=manager)
    response = index.as_query_engine().query("How far did it rise?")
    for kind in (CBEventType.QUERY, CBEventType.RETRIEVE, CBEventType.SYNTHESIZE, CBEventType.LLM):
        assert len(debug.get_event_pairs(kind)) == 1, kind
    assert counter.completion_llm_token_count == 12
    assert counter.prompt_llm_token_count > response.metadata["infinipot"]["recalled_tokens"]


async def test_the_loop_is_not_blocked_by_reading_and_asking() -> None:
    index = InfiniPotIndex.from_documents([*mill_pages(), river()], llm=tiny_llm(options={"store": False}), lazy=True)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.005)

    clock = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await index.as_query_engine().aquery(QUESTION)
    clock.cancel()
    assert ticks > 10


def test_leaving_a_stream_frees_the_model(index: InfiniPotIndex) -> None:
    response = index.as_query_engine(streaming=True, max_new_tokens=300).query(QUESTION)
    stream = response.response_gen
    next(stream)
    stream.close()
    lock = index.llm.assistant.llm.adapter.lock
    assert lock.acquire(timeout=10)
    lock.release()
    assert index.as_query_engine().query(QUESTION).response


def long_river(id_: str = "river") -> Document:
    return Document(text="The river rose by 3 metres in May. Nobody slept that night.\n\n" * 200, id_=id_)


ASYNC_CALLS: dict[str, Callable[[InfiniPotIndex], Awaitable[Any]]] = {
    "query": lambda index: index.as_query_engine().aquery(QUESTION),
    "stream": lambda index: index.as_query_engine(streaming=True).aquery(QUESTION),
    "retrieve": lambda index: index.as_retriever().aretrieve(QUESTION),
    "synthesize": lambda index: index.as_query_engine(followup="reread").asynthesize(QueryBundle(QUESTION), []),
    "chat": lambda index: index.as_chat_engine().achat(QUESTION),
    "stream chat": lambda index: index.as_chat_engine().astream_chat(QUESTION),
}


async def cancelled_while_reading(call: Awaitable[Any], passes: list[int], model: InfiniPotLLM) -> None:
    """Cancel a call in the middle of its reading, and see that the reading ends soon."""
    task = asyncio.ensure_future(call)
    while not passes:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    reading = model.assistant.collection._reading
    assert await asyncio.to_thread(reading.acquire, timeout=3)  # to its end it would take 5 seconds, or more
    reading.release()
    assert len(passes) < 50


@pytest.mark.parametrize("way", ASYNC_CALLS)
async def test_cancelling_a_call_ends_the_reading(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, model = slow_passes(monkeypatch), tiny_llm()
    index = InfiniPotIndex.from_documents([long_river()], llm=model, lazy=True)
    await cancelled_while_reading(ASYNC_CALLS[way](index), passes, model)


async def test_cancelling_an_insert_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, model = slow_passes(monkeypatch), tiny_llm()
    index = InfiniPotIndex.from_documents([], llm=model)
    await cancelled_while_reading(index.ainsert(long_river("a")), passes, model)
    index.lazy, passes[:] = True, []
    await index.ainsert(long_river("b"))
    index.lazy = False
    assert list(index.ref_doc_info) == ["a", "b"]  # both are there, and wait for a question
    await cancelled_while_reading(index.arefresh_ref_docs([long_river("c")]), passes, model)


async def test_cancelling_a_chat_ends_the_reading_of_what_a_cache_point_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, model = slow_passes(monkeypatch), tiny_llm()
    text = DocumentBlock(data=base64.b64encode(long_river().text.encode()), title="river.txt")
    asked = ChatMessage(
        blocks=[text, CachePoint(cache_control=CacheControl(type="ephemeral")), TextBlock(text="When?")]
    )
    await cancelled_while_reading(model.achat([asked]), passes, model)


async def test_first_questions_at_once_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = reads(monkeypatch)
    index = InfiniPotIndex.from_documents([*mill_pages(), river()], llm=tiny_llm(options={"store": False}), lazy=True)
    engine = index.as_query_engine()
    answers = await asyncio.gather(*(engine.aquery(QUESTION) for _ in range(4)))
    assert len({a.response for a in answers}) == 1
    assert read == ["mill.pdf", "river"]


def test_as_a_tool(index: InfiniPotIndex) -> None:
    tool = QueryEngineTool.from_defaults(index.as_query_engine(), name="mills", description="About mills.")
    output = tool.call(QUESTION)
    assert output.content == index.as_query_engine().query(QUESTION).response
    assert output.raw_output.source_nodes


class TwoQuestions(BaseQuestionGenerator):
    def generate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return [SubQuestion(sub_question=q, tool_name="mills") for q in (QUESTION, "How far did the river rise?")]

    async def agenerate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return self.generate(tools, query)

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass


@pytest.mark.parametrize("use_async", [False, True])
def test_in_a_sub_question_engine(index: InfiniPotIndex, use_async: bool) -> None:
    tool = QueryEngineTool.from_defaults(index.as_query_engine(), name="mills", description="About mills.")
    engine = SubQuestionQueryEngine.from_defaults(
        [tool], question_gen=TwoQuestions(), llm=index.llm, use_async=use_async, verbose=False,
        response_synthesizer=get_response_synthesizer(llm=MockLLM(), use_async=use_async),
    )  # fmt: skip
    response = engine.query("Which burned?")
    told = [n.node.text for n in response.source_nodes]
    assert sum(text.startswith("Sub question: ") for text in told) == 2
    assert any("mill number" in text for text in told)


async def test_in_an_evaluator(index: InfiniPotIndex) -> None:
    response = index.as_query_engine().query(QUESTION)
    judge = FaithfulnessEvaluator(llm=MockLLM())
    result = await judge.aevaluate_response(query=QUESTION, response=response)
    assert result.contexts == [n.node.get_content() for n in response.source_nodes]
    assert any("mill number 4" in context for context in result.contexts or [])


def test_the_retriever_serves_other_engines(index: InfiniPotIndex) -> None:
    engine = RetrieverQueryEngine(index.as_retriever(), get_response_synthesizer(llm=MockLLM()))
    prompt = str(engine.query(QUESTION))  # what MockLLM says is its prompt
    assert "page_label: A-4" in prompt
    assert "start_char_idx" not in prompt
