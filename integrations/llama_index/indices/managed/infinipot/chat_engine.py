"""InfiniPotChatEngine: a conversation about the documents of an index; follow-ups bring back passages of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    MessageRole,
)
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager, trace_method
from llama_index.core.chat_engine.types import (
    AgentChatResponse,
    BaseChatEngine,
    StreamingAgentChatResponse,
    ToolOutput,
)
from llama_index.core.memory import BaseMemory, Memory
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore
from llama_index.core.types import Thread
from llama_index.indices.managed.infinipot.query_engine import check_followup, recalls, with_options
from llama_index.indices.managed.infinipot.retriever import InfiniPotRetriever
from llama_index.indices.managed.infinipot.synthesizer import InfiniPotSynthesizer

from infinipot_llm.memory.waiting import awaited

if TYPE_CHECKING:
    from llama_index.indices.managed.infinipot.base import InfiniPotIndex
    from llama_index.llms.infinipot import InfiniPotLLM

_OF_CHATS = (
    "chat_mode", "llm", "memory", "chat_history", "system_prompt", "prefix_messages", "followup", "recall",
    "node_postprocessors", "callback_manager",
)  # fmt: skip


@dataclass
class InfiniPotStream(StreamingAgentChatResponse):
    """A streamed answer with the metadata that other answers have; it is complete when the stream was read to its end.

    Messages of the history do not carry it, since a Memory counts all that they carry as tokens of the conversation.
    """

    metadata: dict[str, Any] | None = None


class InfiniPotChatEngine(BaseChatEngine):
    """Talks about the documents of an index.

    Earlier messages stand in the prompt and take part in looking for passages, so that "since when?" is understood;
    nothing is condensed into another question, and no passage of an earlier turn stays behind. Messages that no longer
    fit are left out, oldest first, and the answer's notes say so.
    """

    def __init__(
        self,
        index: InfiniPotIndex,
        llm: InfiniPotLLM,
        memory: BaseMemory,
        *,
        prefix_messages: Sequence[ChatMessage] = (),
        followup: str | None = None,
        recall: int | None = None,
        node_postprocessors: Sequence[BaseNodePostprocessor] = (),
        callback_manager: CallbackManager | None = None,
    ) -> None:
        """Make an engine; `from_defaults` makes the memory as well.

        Args:
            index: What the talk is about.
            llm: The model.
            memory: Keeps the messages.
            prefix_messages: Messages before all others, such as a system prompt.
            followup: As in InfiniPotQueryEngine.
            recall: As in InfiniPotQueryEngine.
            node_postprocessors: As in InfiniPotQueryEngine.
            callback_manager: Told about the steps.

        Raises:
            InfiniPotIndexError: followup is unknown.
        """
        check_followup(followup)
        self._index, self._llm, self._memory = index, llm, memory
        self._prefix = list(prefix_messages)
        self._asking: dict[str, Any] = {"followup": followup, "recall": recall}
        self._postprocessors = list(node_postprocessors)
        self.callback_manager = callback_manager or CallbackManager([])

    @classmethod
    def from_defaults(
        cls,
        index: InfiniPotIndex,
        llm: InfiniPotLLM | None = None,
        *,
        memory: BaseMemory | None = None,
        chat_history: Sequence[ChatMessage] | None = None,
        system_prompt: str | None = None,
        prefix_messages: Sequence[ChatMessage] | None = None,
        followup: str | None = None,
        recall: int | None = None,
        node_postprocessors: Sequence[BaseNodePostprocessor] = (),
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> InfiniPotChatEngine:
        """Make an engine.

        Args:
            index: What the talk is about.
            llm: The model; None: the index's.
            memory: Keeps the messages; None: a `Memory` of as many tokens as the budget, since no prompt holds more.
            chat_history: Messages to begin with.
            system_prompt: What the model is to be; None: the prompt that its heads were measured on.
            prefix_messages: Messages before all others, instead of a system prompt.
            followup: As in InfiniPotQueryEngine.
            recall: As in InfiniPotQueryEngine.
            node_postprocessors: As in InfiniPotQueryEngine.
            callback_manager: Told about the steps.
            **options: As in InfiniPotQueryEngine.
        """
        model = with_options(llm or index.llm, options, _OF_CHATS)
        if memory is None:
            memory = Memory.from_defaults(
                chat_history=list(chat_history or []),
                token_limit=model.assistant.llm.config.budget,
                tokenizer_fn=model.tokenize,
            )
        prefix = list(prefix_messages or [])
        if system_prompt is not None:
            prefix.insert(0, ChatMessage(role=MessageRole.SYSTEM, content=system_prompt))
        return cls(
            index, model, memory, prefix_messages=prefix, followup=followup, recall=recall,
            node_postprocessors=node_postprocessors,
            callback_manager=callback_manager,
        )  # fmt: skip

    @trace_method("chat")
    def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """Answer a message.

        Args:
            message: What the user says.
            chat_history: Takes the place of the messages so far.
        """
        if chat_history is not None:
            self._memory.set(chat_history)
        before = [*self._prefix, *self._memory.get(input=message)]
        response = self._synthesizer(before).synthesize(message, self._retrieved(message, before))
        assert isinstance(response, Response)  # noqa: S101 - it does not stream
        self._memory.put(ChatMessage(content=message, role=MessageRole.USER))
        self._memory.put(ChatMessage(content=response.response, role=MessageRole.ASSISTANT))
        return _answer(message, response)

    @trace_method("chat")
    def stream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> StreamingAgentChatResponse:
        """Answer a message piece by piece; the answer counts as said once it is finished."""
        if chat_history is not None:
            self._memory.set(chat_history)
        before = [*self._prefix, *self._memory.get(input=message)]
        response = self._synthesizer(before, streaming=True).synthesize(message, self._retrieved(message, before))
        assert isinstance(response, StreamingResponse)  # noqa: S101 - it streams
        self._memory.put(ChatMessage(content=message, role=MessageRole.USER))
        said = InfiniPotStream(
            chat_stream=_growing(response),
            sources=[_tool_output(message, response.source_nodes)],
            source_nodes=response.source_nodes,
            metadata=response.metadata,
        )
        said.write_response_to_history_thread = Thread(target=_written, args=(said, self._memory))
        said.write_response_to_history_thread.start()
        return said

    @trace_method("chat")
    async def achat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """Answer a message without blocking the event loop."""
        if chat_history is not None:
            await self._memory.aset(chat_history)
        before = [*self._prefix, *await self._memory.aget(input=message)]
        nodes = await awaited(partial(self._retrieved, message, before))
        response = await self._synthesizer(before).asynthesize(message, nodes)
        assert isinstance(response, Response)  # noqa: S101 - it does not stream
        await self._memory.aput(ChatMessage(content=message, role=MessageRole.USER))
        await self._memory.aput(ChatMessage(content=response.response, role=MessageRole.ASSISTANT))
        return _answer(message, response)

    @trace_method("chat")
    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> StreamingAgentChatResponse:
        """Answer a message piece by piece without blocking the event loop."""
        if chat_history is not None:
            await self._memory.aset(chat_history)
        before = [*self._prefix, *await self._memory.aget(input=message)]
        nodes = await awaited(partial(self._retrieved, message, before))
        response = await self._synthesizer(before, streaming=True).asynthesize(message, nodes)
        assert isinstance(response, AsyncStreamingResponse)  # noqa: S101 - it streams
        await self._memory.aput(ChatMessage(content=message, role=MessageRole.USER))
        said = InfiniPotStream(
            achat_stream=_agrowing(response),
            sources=[_tool_output(message, response.source_nodes)],
            source_nodes=response.source_nodes,
            metadata=response.metadata,
        )
        said.awrite_response_to_history_task = asyncio.create_task(said.awrite_response_to_history(self._memory))
        return said

    def reset(self) -> None:
        """Forget the messages; what was read stays."""
        self._memory.reset()

    @property
    def chat_history(self) -> list[ChatMessage]:
        """The messages so far."""
        return self._memory.get_all()

    def _retrieved(
        self, message: str, before: Sequence[ChatMessage], cancelled: Callable[[], bool] | None = None
    ) -> list[NodeWithScore]:
        """Look for the passages that the answer will be read from."""
        if not recalls(self._index, self._asking["followup"], cancelled):
            return []
        retriever = InfiniPotRetriever(
            self._index, recall=self._asking["recall"], llm=self._llm, history=before,
            callback_manager=self.callback_manager,
        )  # fmt: skip
        nodes = retriever.retrieve(message)
        for postprocessor in self._postprocessors:
            nodes = postprocessor.postprocess_nodes(nodes, query_str=message)
        return nodes

    def _synthesizer(self, before: Sequence[ChatMessage], streaming: bool = False) -> InfiniPotSynthesizer:
        return InfiniPotSynthesizer(
            self._index, self._llm, before=before, streaming=streaming, callback_manager=self.callback_manager,
            **self._asking,
        )  # fmt: skip


def _answer(message: str, response: Response) -> AgentChatResponse:
    return AgentChatResponse(
        response=response.response or "",
        sources=[_tool_output(message, response.source_nodes)],
        source_nodes=response.source_nodes,
        metadata=response.metadata,
    )


def _written(said: StreamingAgentChatResponse, memory: BaseMemory) -> None:
    """Write a stream to the history; an error is raised where the stream is read, and not in this thread as well."""
    with contextlib.suppress(Exception):
        said.write_response_to_history(memory)


def _tool_output(message: str, nodes: list[NodeWithScore]) -> ToolOutput:
    """Show the passages as what a retriever put out, as LlamaIndex's own chat engines do."""
    return ToolOutput(
        tool_name="retriever", content=f"{len(nodes)} passages", raw_input={"message": message}, raw_output=nodes
    )


def _growing(response: StreamingResponse) -> ChatResponseGen:
    text = ""
    for delta in response.response_gen:
        text += delta
        yield ChatResponse(message=ChatMessage(content=text, role=MessageRole.ASSISTANT), delta=delta)


async def _agrowing(response: AsyncStreamingResponse) -> ChatResponseAsyncGen:
    text = ""
    async for delta in response.async_response_gen():
        text += delta
        yield ChatResponse(message=ChatMessage(content=text, role=MessageRole.ASSISTANT), delta=delta)
