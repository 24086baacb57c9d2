"""ChatInfiniPot: a chat model that reads whole documents and answers from what its own attention finds in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import model_validator

from infinipot_llm import __version__
from infinipot_llm.memory.waiting import Pieces
from langchain_infinipot import replies
from langchain_infinipot.errors import InvalidRequestError, langchain_errors
from langchain_infinipot.messages import read_messages
from langchain_infinipot.settings import CONFIG, NO_TOOLS, InfiniPotSettings
from langchain_infinipot.sources import file_block, open_sources, signature
from langchain_infinipot.structured import structured

if TYPE_CHECKING:
    from infinipot_llm.assistant import Reply


class ChatInfiniPot(InfiniPotSettings, BaseChatModel):
    """A local model that answers from whole long documents, through a cache of fixed size.

    Documents come in messages, as content blocks (`file` with base64 or file_id, `text-plain`, those of OpenAI and
    Anthropic), or as long text in the prompt, or are bound (`document=`). A document that fits into the budget is
    read as it is. A longer one is read once, and every question, in this turn or a later one, in this process or
    another, brings back the passages that answer it. What is looked for is the text of the last human message.

    Setup:
        `pip install "infinipot-llm[langchain]"`, then `infinipot models get qwen2.5-coder-0.5b`.

    Example:
        ```python
        from langchain_infinipot import ChatInfiniPot

        llm = ChatInfiniPot(model="qwen2.5-coder-0.5b", budget=4096)
        answer = llm.invoke(
            [
                ("system", "Answer from the document."),
                (
                    "human",
                    [
                        {"type": "file", "base64": pdf, "mime_type": "application/pdf"},
                        {"type": "text", "text": "Who chairs the board?"},
                    ],
                ),
            ]
        )
        answer.text
        answer.content_blocks[0].get("annotations", [])  # citations: document, page and quote
        answer.usage_metadata["input_token_details"]  # cache_read: tokens that were not read again
        ```

    The settings are those of InfiniPotSettings; `document`, `catalyst`, `max_tokens`, `temperature`, `top_p`, `seed`,
    `citations`, `stop` and `model` may be given with a call as well, or bound.

    Attributes:
        streaming: Stream even when called by `invoke`, for the sake of callbacks; left out, LangChain decides.
    """

    model_config = CONFIG

    streaming: bool | None = None

    @model_validator(mode="after")
    def _stamp_infinipot(self) -> Self:
        """Note our version in traces."""
        if hasattr(self, "_add_version"):  # langchain-core 1.7 and newer
            self._add_version("infinipot-llm", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return "infinipot-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.what_decides()

    def _resolve_model_profile(self) -> Any:
        # max_input_tokens is left out: a document of any length is read, and middleware would cut it down to a number.
        profile = {
            "name": self.model,
            "text_inputs": True,
            "pdf_inputs": True,
            "image_inputs": False,
            "audio_inputs": False,
            "video_inputs": False,
            "text_outputs": True,
            "pdf_tool_message": True,
            "tool_calling": False,
            "structured_output": True,
        }
        return profile if self.max_tokens is None else {**profile, "max_output_tokens": self.max_tokens}

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """Return what traces tell of a call; a document that was bound is told by its id, not by its text."""
        if "document" in kwargs:
            kwargs["document"] = signature(kwargs["document"])
        return super()._get_invocation_params(stop=stop, **kwargs)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Return the key of the response cache; two documents of one name must not share it."""
        if "document" in kwargs:
            kwargs["document"] = signature(kwargs["document"])
        return super()._get_llm_string(stop=stop, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        ready = self.prepare(messages, stop, **kwargs)
        with langchain_errors():
            return _result(ready.engine.respond(*ready.asked, **ready.options), ready.model)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        ready = await asyncio.to_thread(self.prepare, messages, stop, **kwargs)
        with langchain_errors():
            return _result(await ready.engine.arespond(*ready.asked, **ready.options), ready.model)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        ready = self.prepare(messages, stop, **kwargs)
        joined = Pieces()
        with langchain_errors(), closing(ready.engine.stream(*ready.asked, **ready.options)) as pieces:
            for piece in pieces:
                chunk = _chunk(piece, joined, ready.model)
                if chunk is None:
                    continue
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        ready = await asyncio.to_thread(self.prepare, messages, stop, **kwargs)
        joined = Pieces()
        with langchain_errors():
            async with aclosing(ready.engine.astream(*ready.asked, **ready.options)) as pieces:
                async for piece in pieces:
                    chunk = _chunk(piece, joined, ready.model)
                    if chunk is None:
                        continue
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    def read(self, document: Any, *, progress: Any = None) -> dict[str, Any]:
        """Read a document now, and return the content block that stands for it in messages.

        Args:
            document: A path, an infinipot_llm.Document, or the id of one that was read before.
            progress: True for a progress bar, or a callable that is told after every forward pass.

        Raises:
            InvalidRequestError: It cannot be read.
        """
        with langchain_errors():
            opened = open_sources(document, self.limits().recognise)
            if len(opened) != 1:
                raise InvalidRequestError("read takes one document at a time: give a path, a Document or an id.")
            self.engine().remember(opened, progress=progress)
            return file_block(opened[0])

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return a runnable whose answers follow a schema: the decoding is held to it, token by token.

        Args:
            schema: A Pydantic class, a TypedDict, a JSON schema, or an OpenAI function or tool.
            include_raw: Return {"raw": message, "parsed": value or None, "parsing_error": error or None}.
            method: Accepted for the sake of other models' callers; all three decode by the schema.
            strict: Likewise: decoding always follows the schema.
            **kwargs: Options of a call (max_tokens, document, ...).

        Raises:
            ValueError: The method is unknown, or the schema is none.
        """
        return structured(self, schema, include_raw=include_raw, method=method, strict=strict, **kwargs)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind the schema of an agent's answer; tools are not offered: small local models do not call them dependably.

        Args:
            tools: None.
            tool_choice: Ignored.
            **kwargs: `response_format`, as create_agent gives it for ProviderStrategy, and options of a call; `strict`
                makes no difference, since decoding always follows the schema.

        Raises:
            NotImplementedError: There are tools, or no schema; the sentence names what to do instead.
        """
        wanted = kwargs.pop("response_format", None)
        kwargs.pop("strict", None)
        told = wanted.get("json_schema") if isinstance(wanted, dict) else None
        if not tools and isinstance(told, dict) and isinstance(told.get("schema"), dict):
            return self.bind(json_schema=told["schema"], **kwargs)
        raise NotImplementedError(NO_TOOLS)

    def get_token_ids(self, text: str) -> list[int]:
        """Return the token ids of a text, by the model's own tokenizer."""
        return list(self.engine().llm.form.codec.untrusted(text))

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Return the tokens of messages with the documents in them; a PDF counts as its text, not as its base64.

        Args:
            messages: What to count.
            tools: None, since this model calls none.
        """
        if tools:
            raise NotImplementedError(NO_TOOLS)
        with langchain_errors():
            request = read_messages(messages, self.limits(), ask=False)
        texts = [m.text for m in request.messages] + [d.text for d in request.documents]
        return sum(self.engine().count_tokens(text) for text in texts)


def _result(reply: Reply, model: str) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=replies.message(reply, model))])


def _chunk(piece: str | Reply, joined: Pieces, model: str) -> ChatGenerationChunk | None:
    """Return what a piece adds to the answer; None: nothing yet."""
    if isinstance(piece, str):
        added = joined.add(piece)
        return ChatGenerationChunk(message=AIMessageChunk(content=added)) if added else None
    return ChatGenerationChunk(message=replies.last_chunk(piece, model, joined.end(piece.answer.text)))
