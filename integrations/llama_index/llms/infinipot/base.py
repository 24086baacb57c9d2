"""InfiniPotLLM: any prompt, any length of document, one small cache."""

from __future__ import annotations

import copy
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.llms.infinipot.asking import Call, nearest, of_messages, of_prompt
from llama_index.llms.infinipot.responses import chat, completion
from llama_index.llms.infinipot.structured import StructuredLLM

from infinipot_llm.config import PotConfig
from infinipot_llm.errors import BudgetError
from infinipot_llm.memory.waiting import Pieces, awaited, awaited_pieces_and_value, pieces_and_value
from infinipot_llm.models.catalogue import DEFAULT_MODEL

if TYPE_CHECKING:
    from infinipot_llm.assistant import Assistant, Reply
    from infinipot_llm.memory.memory import DocumentMemory
    from infinipot_llm.memory.store import MemoryStore

CONTEXT_WINDOW = 200_000
"""What LlamaIndex may put into one prompt, in tokens; docs/recall.md has measurements up to there. The budget is no
measure for it: a PromptHelper that packs to the budget takes a document apart which we read as a whole."""

_READING = {f.name for f in fields(PotConfig)} - {"budget", "version", "max_new_tokens"}


class InfiniPotLLM(StructuredLLM):
    """A local model that reads what does not fit into its cache, once, and answers from it.

    Text, or documents in `DocumentBlock`s, that fit into the budget are read as they are. What does not fit is read
    once, remembered, and asked by recall; LlamaIndex's own engines, which put the context into the prompt, work so too.

    Examples:
        `llm = InfiniPotLLM(model="qwen2.5-coder-0.5b", budget=4096)`

        `llm.chat([ChatMessage(blocks=[DocumentBlock(data=pdf, title="report.pdf"), TextBlock(text="Who signed?")])])`
    """

    model: str = Field(default=DEFAULT_MODEL, description="A name of the catalogue, a folder, or a hub id.")
    budget: int | None = Field(default=None, description="Slots of the cache, in tokens; everything is counted in it.")
    max_new_tokens: int | None = Field(default=None, description="Limit of an answer, in tokens.")
    temperature: float = Field(default=0.0, description="0 decodes greedily.")
    top_p: float = Field(default=1.0, description="Nucleus, when the temperature is above 0.")
    stop: list[str] = Field(default_factory=list, description="Texts that end an answer.")
    seed: int | None = Field(default=None, description="Of the sampling.")
    citations: bool = Field(default=True, description="Whether to look for the passages that an answer rests on.")
    context_window: int = Field(default=CONTEXT_WINDOW, gt=0, description="Tokens that engines put into one prompt.")
    device: str = Field(default="auto", description="auto, cpu, cuda or mps.")
    dtype: str = Field(default="auto", description="auto, float32, bfloat16 or float16.")
    download: bool = Field(default=False, description="Fetch the model when it is not on this machine.")
    allow_paths: bool | list[str] = Field(default=False, description="Whether, or in which folders, paths are opened.")
    allow_urls: bool = Field(default=False, description="Whether addresses in document blocks are fetched.")
    store: bool | str | None = Field(default=None, description="Folder of memories; False: they go with the process.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Further fields of PotConfig.")

    _assistant: Any = PrivateAttr(default=None)
    _store: Any = PrivateAttr(default=None)
    _over: Any = PrivateAttr(default=None)
    _loading: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        assistant: Assistant | None = None,
        store: MemoryStore | str | Path | bool | None = None,
        settings: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Describe a model; its weights are loaded when they are first needed, once per process.

        Args:
            model: A name of the catalogue, a folder, or a hub id.
            assistant: A ready one, instead of a model's name and settings of reading.
            store: Where memories of documents are kept. None or True: with those of the command line. A folder, or a
                MemoryStore. False: for this process alone, in files of the default folder that go with it; settings of
                shelf="off" write none.
            settings: Fields of PotConfig; they may stand among the options as well.
            **options: The fields of this class, of its bases, and of PotConfig.

        Raises:
            BudgetError: An option is unknown.
        """
        known = set(type(self).model_fields)
        reading = {**(settings or {}), **{k: options.pop(k) for k in list(options) if k in _READING - known}}
        unknown = sorted((set(options) - known) | (set(reading) - _READING))
        if unknown:
            near = nearest(unknown[0], known | _READING)
            hint = f"did you mean {near}?" if near else "its fields and those of PotConfig can be set."
            raise BudgetError(f"InfiniPotLLM has no option {unknown[0]!r}: {hint}")
        if isinstance(options.get("stop"), str):
            options["stop"] = [options["stop"]]
        kept: Any = store if store is None or isinstance(store, bool) else str(getattr(store, "folder", store))
        values: dict[str, Any] = {"model": model, "store": kept, "settings": reading, **options}
        super().__init__(**values)
        if store is not None and not isinstance(store, (bool, str, Path)):
            self._store = store
        if assistant is not None:
            self._assistant = assistant
            self.model = assistant.llm.name or self.model
            self.budget = assistant.llm.config.budget

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> InfiniPotLLM:
        """Copy the settings; weights, store and what `over` was given are shared."""
        other = self.model_copy()
        values = copy.deepcopy({k: v for k, v in self.__dict__.items() if k != "callback_manager"}, memo)
        other.__dict__.update(values)
        other._loading = threading.Lock()
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: settings; weights are loaded again by whoever asks.

        Raises:
            TypeError: A model over a memory would forget the memory, and answer from nothing.
        """
        if self._over is not None:
            raise TypeError("a model over a memory cannot be pickled: save the memory, and load it over there.")
        return super().__getstate__()

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises this class."""
        return "InfiniPotLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex wants to know of a model; the weights are not loaded for it."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_new_tokens or PotConfig().max_new_tokens,
            is_chat_model=True,
            is_function_calling_model=False,
            model_name=self.model,
        )

    @property
    def assistant(self) -> Assistant:
        """The model at work; it is loaded when this is first asked for.

        Raises:
            ModelError: The model cannot be used.
            BudgetError: A setting is out of range.
        """
        with self._loading:
            if self._assistant is None:
                from infinipot_llm.assistant import Assistant
                from infinipot_llm.memory.store import MemoryStore

                store = self._store
                if store is None and self.store is not False:
                    store = MemoryStore(self.store if isinstance(self.store, str) else None)
                settings = dict(self.settings)
                if self.budget is not None:
                    settings["budget"] = self.budget
                for name in ("device", "dtype", "download"):  # max_new_tokens is of each answer, not of reading
                    settings[name] = getattr(self, name)
                self._assistant = Assistant.shared(self.model, store=store, **settings)
            return self._assistant

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text, for `Settings.tokenizer = llm.tokenize`."""
        return self.assistant.llm.form.codec.untrusted(text)

    @property
    def memory_asked(self) -> tuple[DocumentMemory, dict[str, Any]] | None:
        """What `over` was given; None: every call brings its own text and documents."""
        return self._over

    def over(self, memory: DocumentMemory, **options: Any) -> InfiniPotLLM:
        """Return a model of the same settings whose every answer comes from a memory, by recall.

        Args:
            memory: Of documents that this model read.
            **options: Options of DocumentMemory.ask that hold for every answer: followup, recall, citations, passages.

        Raises:
            BudgetError: There is no such option.
        """
        if unknown := sorted(set(options) - {"followup", "recall", "citations", "passages"}):
            raise BudgetError(f"over() has no option {unknown[0]!r}: give followup, recall, citations or passages.")
        other = self.model_copy()
        other._over = (memory, options)
        return other

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt.

        Args:
            prompt: The prompt; what is too long in it is read as a document.
            formatted: Whether the system prompt and the like are in it already.
            **kwargs: Fields of this class that concern decoding, for this call; `catalyst`: what is looked for in long
                text; `documents`: infinipot_llm.Document objects that it is about.
        """
        reply = of_prompt(self, prompt, formatted, kwargs)()
        return completion(reply.answer.text, reply, self.model)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a prompt piece by piece; the last piece carries usage and citations."""
        return _streamed(of_prompt(self, prompt, formatted, kwargs), completion)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation; documents in it are read, once. Takes the options of `complete`."""
        reply = of_messages(self, messages, kwargs)()
        return chat(reply.answer.text, reply, self.model)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a conversation piece by piece."""
        return _streamed(of_messages(self, messages, kwargs), chat)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt without blocking the event loop; cancelling the task ends the decoding."""
        reply = await awaited(of_prompt(self, prompt, formatted, kwargs))
        return completion(reply.answer.text, reply, self.model)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation without blocking the event loop."""
        reply = await awaited(of_messages(self, messages, kwargs))
        return chat(reply.answer.text, reply, self.model)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Answer a prompt piece by piece without blocking the event loop."""
        return _astreamed(of_prompt(self, prompt, formatted, kwargs), completion)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Answer a conversation piece by piece without blocking the event loop."""
        return _astreamed(of_messages(self, messages, kwargs), chat)


def _streamed(call: Call, respond: Callable[..., Any]) -> Generator[Any, None, None]:
    """Yield the responses that grow to the answer, and last the one with everything else."""
    said = Pieces()
    for piece in pieces_and_value(call):
        yield _response(said, piece, call.llm.model, respond)


async def _astreamed(call: Call, respond: Callable[..., Any]) -> AsyncGenerator[Any, None]:
    """Do as `_streamed` does, without blocking the event loop."""
    said = Pieces()
    async for piece in awaited_pieces_and_value(call):
        yield _response(said, piece, call.llm.model, respond)


def _response(said: Pieces, piece: str | Reply, model: str, respond: Callable[..., Any]) -> Any:
    """Return the response so far."""
    if isinstance(piece, str):
        delta = said.add(piece)
        return respond(said.text, None, model, delta)
    delta = said.end(piece.answer.text)
    return respond(said.text, piece, model, delta)
