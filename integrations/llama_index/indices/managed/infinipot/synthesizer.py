"""The step from question to response: the memory answers, LlamaIndex's BaseSynthesizer tells its events around it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import llama_index.core.instrumentation as instrument
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.base.response.schema import RESPONSE_TYPE, AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.instrumentation.events.synthesis import GetResponseEndEvent, GetResponseStartEvent
from llama_index.core.response_synthesizers.base import BaseSynthesizer, QueryTextType
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.indices.managed.infinipot.nodes import cited_first, passages_in
from llama_index.llms.infinipot.remembered import how_of
from llama_index.llms.infinipot.responses import EXTRA

from infinipot_llm.memory.waiting import awaited

if TYPE_CHECKING:
    from llama_index.indices.managed.infinipot.base import InfiniPotIndex
    from llama_index.indices.managed.infinipot.nodes import Source
    from llama_index.llms.infinipot import InfiniPotLLM

    from infinipot_llm.memory.memory import DocumentMemory
    from infinipot_llm.memory.recall import Passage

dispatcher = instrument.get_dispatcher(__name__)

_NOTHING = TextNode(id_="infinipot-nothing", text="")
"""Stands for passages where none are recalled: a BaseSynthesizer without nodes does not ask."""


@dataclass
class _Answered:
    """An answer, or the pieces of one, with what is told of it at its end."""

    sources: Mapping[str, Source]
    text: str = ""
    pieces: Generator[str, None, None] | AsyncGenerator[str, None] | None = None
    told: dict[str, Any] = field(default_factory=dict)

    def take(self, response: ChatResponse) -> str:
        """Note what a response tells, and return what it adds to the text."""
        self.text = response.message.content or ""
        self.told = response.additional_kwargs.get(EXTRA, self.told)
        return response.delta or ""


class InfiniPotSynthesizer(BaseSynthesizer):
    """Answers from the memory of an index; the nodes are shown as sources, with those cited first."""

    def __init__(
        self,
        index: InfiniPotIndex,
        llm: InfiniPotLLM,
        *,
        before: Sequence[ChatMessage] = (),
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        **asking: Any,
    ) -> None:
        """Make a synthesizer.

        Args:
            index: What is asked.
            llm: The model, with its limits of answers.
            before: Messages before the question.
            streaming: Whether to answer piece by piece.
            callback_manager: Told about the steps.
            **asking: followup, recall.
        """
        super().__init__(llm=llm, callback_manager=callback_manager, streaming=streaming)
        self._index, self._model, self._before, self._asking = index, llm, list(before), asking

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass

    def synthesize(
        self,
        query: QueryTextType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answer from nodes that the index's retriever gave; they become the sources."""
        return super().synthesize(query, self._shown(nodes), additional_source_nodes, found=nodes)

    async def asynthesize(
        self,
        query: QueryTextType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answer without blocking the event loop."""
        shown = await awaited(partial(self._shown, nodes))
        return await super().asynthesize(query, shown, additional_source_nodes, found=nodes)

    def get_response(self, query_str: str, text_chunks: Sequence[str], **asked: Any) -> Any:
        """Ask the memory, which reads the passages that the nodes are of."""
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=list(text_chunks)))
        memory, sources = self._index.memory_and_sources()
        answered = _Answered(sources)
        llm, messages = (
            self._over(memory, passages_in(asked.get("found") or (), memory.text, sources)),
            self._messages(query_str),
        )
        if self._streaming:
            answered.pieces = _said(answered, llm, messages)
        else:
            answered.take(llm.chat(messages))
        dispatcher.event(GetResponseEndEvent())
        return answered

    async def aget_response(self, query_str: str, text_chunks: Sequence[str], **asked: Any) -> Any:
        """Ask the memory without blocking the event loop."""
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=list(text_chunks)))
        memory, sources = await awaited(self._index.memory_and_sources)
        answered = _Answered(sources)
        llm, messages = (
            self._over(memory, passages_in(asked.get("found") or (), memory.text, sources)),
            self._messages(query_str),
        )
        if self._streaming:
            answered.pieces = _asaid(answered, llm, messages)
        else:
            answered.take(await llm.achat(messages))
        dispatcher.event(GetResponseEndEvent())
        return answered

    def _shown(self, nodes: list[NodeWithScore], cancelled: Callable[[], bool] | None = None) -> list[NodeWithScore]:
        """Return the nodes, or something in their place where the answer does not come from passages."""
        if nodes or how_of(self._index.memory_and_sources(cancelled)[0], self._asking.get("followup")) == "recall":
            return nodes
        return [NodeWithScore(node=_NOTHING)]

    def _over(self, memory: DocumentMemory, passages: list[Passage]) -> InfiniPotLLM:
        """Return the model that answers from the passages that were found, if the answer comes from passages."""
        return self._model.over(memory, **self._asking, passages=passages or None)

    def _messages(self, query: str) -> list[ChatMessage]:
        return [*self._before, ChatMessage(content=query)]

    def _prepare_response_output(self, response_str: Any, source_nodes: list[NodeWithScore]) -> RESPONSE_TYPE:
        """Put answer and sources together; of a stream, the citations come at its end, into the same lists."""
        answered: _Answered = response_str
        nodes = [n for n in source_nodes if n.node.node_id != _NOTHING.node_id]
        metadata: dict[str, Any] = {}

        def settle() -> None:
            nodes[:] = cited_first(nodes, answered.told.get("citations", ()), answered.sources)
            metadata.clear()
            metadata.update(self._get_metadata_for_response([n.node for n in nodes]) or {})
            metadata[EXTRA] = answered.told

        settle()
        if answered.pieces is None:
            return Response(answered.text, nodes, metadata)
        if isinstance(answered.pieces, AsyncGenerator):
            return AsyncStreamingResponse(_athen(answered.pieces, settle), nodes, metadata)
        return StreamingResponse(_then(answered.pieces, settle), nodes, metadata)


def _said(answered: _Answered, llm: InfiniPotLLM, messages: list[ChatMessage]) -> Generator[str, None, None]:
    """Ask when the first piece is wanted, as LlamaIndex's own synthesizers do."""
    for response in llm.stream_chat(messages):
        yield answered.take(response)


async def _asaid(answered: _Answered, llm: InfiniPotLLM, messages: list[ChatMessage]) -> AsyncGenerator[str, None]:
    """Do as `_said` does, without blocking the event loop."""
    async for response in await llm.astream_chat(messages):
        yield answered.take(response)


def _then(pieces: Generator[str, None, None], settle: Any) -> Generator[str, None, None]:
    """Yield the pieces that say something, and do the rest behind the last."""
    for piece in pieces:
        if piece:
            yield piece
    settle()


async def _athen(pieces: AsyncGenerator[str, None], settle: Any) -> AsyncGenerator[str, None]:
    """Do as `_then` does, without blocking the event loop."""
    async for piece in pieces:
        if piece:
            yield piece
    settle()
