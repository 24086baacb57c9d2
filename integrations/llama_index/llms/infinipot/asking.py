"""One call of the model: options and messages in, a Reply out; streaming and async only differ in who waits for it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.llms.infinipot.blocks import given
from llama_index.llms.infinipot.remembered import from_memory

from infinipot_llm.documents import Document
from infinipot_llm.errors import QuestionError
from infinipot_llm.stuffed import question_in

if TYPE_CHECKING:
    from llama_index.llms.infinipot.base import InfiniPotLLM

    from infinipot_llm.assistant import Reply

_DECODING = ("max_new_tokens", "temperature", "top_p", "stop", "seed", "citations")
_OPTIONS = (*_DECODING, "max_tokens", "catalyst", "documents", "schema")


@dataclass(frozen=True)
class Call:
    """What is asked of a model.

    Attributes:
        llm: The model.
        messages: The conversation.
        catalyst: What is looked for in long text; None: the question that the last message ends with.
        documents: What it is about, beside the documents in messages.
        options: Options of Assistant.respond.
    """

    llm: InfiniPotLLM
    messages: tuple[ChatMessage, ...]
    catalyst: str | None = None
    documents: tuple[Document, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, on_text: Callable[[str], None] | None = None, cancelled: Callable[[], bool] | None = None
    ) -> Reply:
        """Answer; all that takes time happens in here, loading the model and parsing documents included.

        Args:
            on_text: Given the answer piece by piece.
            cancelled: Asked while reading and waiting, and after every token; True ends the answer.
        """
        llm = self.llm
        there = given(self.messages, llm.allow_paths, llm.allow_urls)
        documents = (*self.documents, *there.documents)
        live = {**self.options, "on_text": on_text, "cancelled": cancelled}
        if llm.memory_asked is not None:
            memory, asking = llm.memory_asked
            if documents:
                raise QuestionError(
                    "this model answers from a memory: leave documents out, or ask a model without one."
                )
            return from_memory(memory, there.messages, {**live, "catalyst": self.catalyst, **asking})
        assistant = llm.assistant
        asked = question_in(there.messages[-1].text) if there.messages else None
        remembered = len(self.documents) + there.remembered if there.remembered else 0
        if remembered:  # a CachePoint asks for this even where the documents would fit into one prompt
            assistant.remember(documents[:remembered], cancelled=cancelled)
        return assistant.respond(there.messages, documents, catalyst=self.catalyst, asked=asked, **live)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the option that was probably meant; None where none is near."""
    options = sorted(known)
    if word == "max_tokens" and word not in options and "max_new_tokens" in options:
        return "max_new_tokens"
    return next(iter(difflib.get_close_matches(word, options, 1)), None)


def advice(word: str, known: Iterable[str]) -> str:
    """Return the half of a sentence that says what can be given instead of an unknown option."""
    options = list(known)
    near = nearest(word, options)
    return f"{f'did you mean {near}? Give' if near else 'give'} one of {', '.join(options)}."


def of_messages(llm: InfiniPotLLM, messages: Sequence[ChatMessage], asked: Mapping[str, Any]) -> Call:
    """Prepare a conversation.

    Raises:
        QuestionError: An option is unknown.
    """
    unknown = sorted(set(asked) - set(_OPTIONS))
    if unknown:
        raise QuestionError(f"there is no option {unknown[0]!r} for a call: {advice(unknown[0], _OPTIONS)}")
    documents = asked.get("documents")
    if documents is not None and not (
        isinstance(documents, (list, tuple)) and all(isinstance(d, Document) for d in documents)
    ):
        raise QuestionError(
            "documents takes a list of infinipot_llm.Document objects: make them with Document.from_file(path) or "
            "Document.from_text(text)."
        )
    options = {name: getattr(llm, name) for name in _DECODING}
    if "max_tokens" in asked:  # as other models of LlamaIndex call it
        options["max_new_tokens"] = asked["max_tokens"]
    options.update({k: v for k, v in asked.items() if k in (*_DECODING, "schema")})
    return Call(llm, tuple(messages), asked.get("catalyst"), tuple(documents or ()), options)


def of_prompt(llm: InfiniPotLLM, prompt: str, formatted: bool, asked: Mapping[str, Any]) -> Call:
    """Prepare a prompt, which is a conversation of one message; see `of_messages`."""
    messages = []
    if not formatted:
        if llm.system_prompt:
            messages.append(ChatMessage(role=MessageRole.SYSTEM, content=llm.system_prompt))
        if llm.query_wrapper_prompt is not None:
            prompt = llm.query_wrapper_prompt.format(query_str=prompt)
        if llm.completion_to_prompt is not None:
            prompt = llm.completion_to_prompt(prompt)
    return of_messages(llm, [*messages, ChatMessage(role=MessageRole.USER, content=prompt)], asked)
