"""InfiniPotLLM: string in, string out, about a document that was bound, or that stands in the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue
from langchain_core.runnables import RunnableConfig

from infinipot_llm.documents import Document
from infinipot_llm.memory.waiting import Pieces
from langchain_infinipot import replies
from langchain_infinipot.errors import langchain_errors
from langchain_infinipot.messages import holds_documents, read_messages
from langchain_infinipot.settings import CONFIG, PER_CALL, InfiniPotSettings, Prepared

if TYPE_CHECKING:
    from infinipot_llm.assistant import Reply


_OF_GENERATE = ("stop", "callbacks", "tags", "metadata", "run_name", "run_id")
"""The keywords of BaseLLM.generate itself."""


class _Said(str):
    """A prompt as a string, as LangChain hands it through, with the chat messages that it was made of."""

    __slots__ = ("messages",)
    messages: list[BaseMessage]


class _ChatAsText(StringPromptValue):
    """A chat prompt whose string keeps its messages: LangChain gives a string LLM nothing else of it."""

    messages: list[Any]

    def to_string(self) -> str:
        said = _Said(self.text)
        said.messages = self.messages
        return said


class InfiniPotLLM(InfiniPotSettings, BaseLLM):
    """A text-completion face of a local model that reads whole documents; `ChatInfiniPot` gives more.

    The document is bound in the constructor, by `.bind(document=...)`, or given with a call; the prompt is then the
    question about it. Without one, a prompt that does not fit into the budget is taken apart: its last paragraph (or
    `catalyst=`) is the question, and the text before it the document. A chat prompt is taken as
    the messages it is made of, documents and all.

    Example:
        ```python
        from langchain_core.output_parsers import StrOutputParser
        from langchain_core.prompts import PromptTemplate
        from langchain_infinipot import InfiniPotLLM

        chain = PromptTemplate.from_template("{question}") | InfiniPotLLM(document="report.pdf") | StrOutputParser()
        chain.batch([{"question": "Who chairs the board?"}, {"question": "Since when?"}])  # reads the report once
        ```

    Attributes:
        catalyst: What is looked for in the document, in place of the prompt. Where no document is bound, it is the
            question of a prompt that does not fit into the budget.
        json_schema: A JSON schema that answers follow.
    """

    model_config = CONFIG

    catalyst: str | None = None
    json_schema: dict[str, Any] | None = None

    @property
    def _llm_type(self) -> str:
        return "infinipot"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**self.what_decides(), "catalyst": self.catalyst, "json_schema": self.json_schema}

    def _as_text(self, prompt: PromptValue) -> PromptValue:
        """Return a chat prompt as text that keeps its messages, with documents by their ids, and others as they are."""
        if not isinstance(prompt, ChatPromptValue):
            return prompt
        messages = list(prompt.messages)
        text = prompt.to_string()
        if holds_documents(messages):  # their ids stand in the text, so that a response cache tells them apart
            with langchain_errors():
                found = read_messages(messages, self.limits(), ask=False).documents
            text = "\n".join([*(f"[document {d.name} {d.id}]" for d in found), text])
        return _ChatAsText(text=text, messages=messages)

    def generate_prompt(self, prompts: list[PromptValue], *args: Any, **kwargs: Any) -> LLMResult:
        """Answer prompts of any kind; see BaseLLM.generate_prompt."""
        own, rest = self._with(kwargs)
        return BaseLLM.generate_prompt(own, [own._as_text(p) for p in prompts], *args, **rest)

    async def agenerate_prompt(self, prompts: list[PromptValue], *args: Any, **kwargs: Any) -> LLMResult:
        """Answer prompts of any kind; see BaseLLM.agenerate_prompt."""
        own, rest = self._with(kwargs)
        as_text = [await asyncio.to_thread(own._as_text, p) for p in prompts]  # parsing a PDF takes seconds
        return await BaseLLM.agenerate_prompt(own, as_text, *args, **rest)

    def generate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        """Answer prompts; see BaseLLM.generate."""
        own, rest = self._with(kwargs)
        return BaseLLM.generate(own, prompts, *args, **rest)

    async def agenerate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        """Answer prompts; see BaseLLM.agenerate."""
        own, rest = self._with(kwargs)
        return await BaseLLM.agenerate(own, prompts, *args, **rest)

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """Answer a prompt piece by piece; see BaseLLM.stream."""
        own, rest = self._with(kwargs)
        yield from BaseLLM.stream(own, own._as_text(own._convert_input(input)), config, **rest)

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[str]:
        """Answer a prompt piece by piece; see BaseLLM.astream."""
        own, rest = self._with(kwargs)
        prompt = await asyncio.to_thread(own._as_text, own._convert_input(input))
        async with aclosing(BaseLLM.astream(own, prompt, config, **rest)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    def _with(self, kwargs: dict[str, Any]) -> tuple[InfiniPotLLM, dict[str, Any]]:
        """Return this model with a call's settings as its own, and the other keywords.

        LangChain's response cache looks at the settings of a string LLM, and not at what a call sets (or `bind`), and
        its traces would hold the whole text of a document that was bound.
        """
        self.options(**{k: v for k, v in kwargs.items() if k not in _OF_GENERATE})
        if self.assistant is not None and kwargs.get("model") not in (None, self.model):
            self.engine(kwargs["model"])
        own = {k: v for k, v in kwargs.items() if k in type(self).model_fields and k in PER_CALL}
        if not own:
            return self, kwargs
        changed = self.model_copy(update=own)
        changed.__dict__.pop("_serialized", None)
        return changed, {k: v for k, v in kwargs.items() if k not in own}

    def _asked(self, prompt: str, stop: list[str] | None, call: dict[str, Any]) -> Prepared:
        call = {"document": self.document, "catalyst": self.catalyst, "json_schema": self.json_schema, **call}
        if isinstance(prompt, _Said):
            return self.prepare(prompt.messages, stop, **call)
        if call["catalyst"] and not call["document"] and not self._fits(prompt, call):
            start = prompt.rfind(call["catalyst"])
            start = len(prompt) if start < 0 else prompt.rfind("\n", 0, start) + 1  # "Question: ..." stays with it
            before, question = prompt[:start], prompt[start:].strip() or call["catalyst"]
            with langchain_errors():
                call["document"] = Document.from_text(before, name="prompt")
            return self.prepare([HumanMessage(question)], stop, **call)
        return self.prepare([HumanMessage(prompt)], stop, **call)

    def _fits(self, prompt: str, call: dict[str, Any]) -> bool:
        """Say whether a prompt can be read as it is."""
        engine = self.engine(call.get("model"))
        config = engine.llm.config
        limit = call.get("max_tokens", self.max_tokens) or config.max_new_tokens
        return bool(engine.count_tokens(prompt) + limit + len(engine.llm.form.prefix) <= config.budget)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        said = []
        for prompt in prompts:
            ready = self._asked(prompt, stop, kwargs)
            with langchain_errors():
                said.append(ready.engine.respond(*ready.asked, **ready.options))
        return self._result(said, kwargs)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        said = []
        for prompt in prompts:
            ready = await asyncio.to_thread(self._asked, prompt, stop, kwargs)
            with langchain_errors():
                said.append(await ready.engine.arespond(*ready.asked, **ready.options))
        return self._result(said, kwargs)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        ready = self._asked(prompt, stop, kwargs)
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
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        ready = await asyncio.to_thread(self._asked, prompt, stop, kwargs)
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

    def get_token_ids(self, text: str) -> list[int]:
        """Return the token ids of a text, by the model's own tokenizer."""
        return list(self.engine().llm.form.codec.untrusted(text))

    def _result(self, said: list[Reply], call: dict[str, Any]) -> LLMResult:
        model = call.get("model") or self.model
        counted = [replies.usage(reply) for reply in said]
        return LLMResult(
            generations=[[Generation(text=r.answer.text, generation_info=_info(r, model))] for r in said],
            llm_output={
                "model_name": model,
                "token_usage": {
                    "prompt_tokens": sum(c["input_tokens"] for c in counted),
                    "completion_tokens": sum(c["output_tokens"] for c in counted),
                    "total_tokens": sum(c["total_tokens"] for c in counted),
                },
            },
        )


def _info(reply: Reply, model: str) -> dict[str, Any]:
    return {**replies.metadata(reply, model), "usage_metadata": dict(replies.usage(reply))}


def _chunk(piece: str | Reply, joined: Pieces, model: str) -> GenerationChunk | None:
    """Return what a piece adds to the answer; None: nothing yet."""
    if isinstance(piece, str):
        added = joined.add(piece)
        return GenerationChunk(text=added) if added else None
    return GenerationChunk(text=joined.end(piece.answer.text), generation_info=_info(piece, model))
