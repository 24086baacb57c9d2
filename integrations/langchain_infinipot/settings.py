"""What all classes here are set up with: the model, its budget, how it answers, where memories are kept."""

from __future__ import annotations

import difflib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from langchain_core.messages import BaseMessage
from pydantic import BaseModel, ConfigDict, Field, model_validator

from infinipot_llm.answering.prompt import Message
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.models.catalogue import DEFAULT_MODEL
from langchain_infinipot.blocks import Limits
from langchain_infinipot.errors import InvalidRequestError, langchain_errors
from langchain_infinipot.messages import Request, read_messages
from langchain_infinipot.sources import as_sources, open_sources, signature

PER_CALL = ("document", "catalyst", "max_tokens", "temperature", "top_p", "seed", "citations", "json_schema", "model")
"""What may be given with a call, or by `bind`, as well."""

_OWN = ("budget", "followup", "recall")
"""The fields of PotConfig that are settings of their own."""

CONFIG = ConfigDict(
    extra="forbid",
    arbitrary_types_allowed=True,
    protected_namespaces=(),
    hide_input_in_errors=True,  # what was given may be a document
)
"""Pydantic merges the configurations of base classes from left to right, so each class here says it again."""

_assistants: dict[str, Any] = {}
_loading: dict[str, threading.Lock] = {}
_assistants_lock = threading.Lock()


@dataclass(frozen=True)
class Prepared:
    """A call that is ready to be answered.

    Attributes:
        engine: The Assistant.
        request: Messages and documents.
        options: Of Assistant.respond.
        model: What the model is called.
    """

    engine: Any
    request: Request
    options: dict[str, Any]
    model: str

    @property
    def asked(self) -> tuple[tuple[Message, ...], tuple[Document, ...]]:
        """What Assistant.respond and its siblings take first."""
        return self.request.messages, self.request.documents


class InfiniPotSettings(BaseModel):
    """Settings of a model that reads documents; weights are loaded when the first question comes.

    Attributes:
        model: A name of the catalogue (`infinipot models list`), a folder, or a hub id.
        budget: Tokens that the cache holds, everything counted; None: 4,096, or the trained window if smaller.
        device: "auto", "cpu", "cuda", "mps".
        dtype: "auto", "float32", "bfloat16", "float16".
        download: Fetch the model when it is not on this machine.
        knobs: Further fields of infinipot_llm.PotConfig.
        followup: How a document longer than the budget is asked: "recall", "reuse" or "reread" (see PotConfig).
        recall: Tokens that a question brings back; None: as PotConfig says (the retriever: 1,024).
        temperature: 0 decodes greedily.
        top_p: Nucleus, when the temperature is above 0.
        max_tokens: Limit of the answer; None: as PotConfig says (256).
        stop: Texts that end an answer.
        seed: Of the sampling.
        citations: Whether to look for the passages that an answer rests on (some forward passes more).
        document: What all questions are about: a path, an infinipot_llm.Document, an id, or several of these.
        store: Where memories of documents are kept: None or True is the store on disk that the command line uses
            as well, a path is a store there, a MemoryStore is used as it is, and False is for this process alone (in
            files that go with it).
        max_block_bytes: A content block that holds more than this is refused before it is decoded.
        fetch_url: Opts in to blocks that name an address, `file://` included: it is called with the address and returns
            the bytes there. None refuses them.
        assistant: A ready infinipot_llm.assistant.Assistant, which is then used in place of all settings of model and
            store.
        timeout: Accepted since other chat models have it, and ignored: nothing is sent anywhere.
        max_retries: Accepted and ignored.
        api_key: Accepted and ignored.
    """

    model_config = CONFIG

    model: str = DEFAULT_MODEL
    budget: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    download: bool = False
    knobs: dict[str, Any] = Field(default_factory=dict)
    followup: Literal["recall", "reuse", "reread"] = "recall"
    recall: int | None = None
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_tokens: int | None = Field(default=None, ge=1)
    stop: list[str] | str | None = None
    seed: int | None = None
    citations: bool = True
    document: Any = None
    store: Any = Field(default=None, exclude=True)
    max_block_bytes: int = Field(default=100_000_000, ge=1)
    fetch_url: Callable[[str], bytes] | None = Field(default=None, exclude=True, repr=False)
    assistant: Any = Field(default=None, exclude=True, repr=False)
    timeout: Any = Field(default=None, exclude=True, repr=False)
    max_retries: Any = Field(default=None, exclude=True, repr=False)
    api_key: Any = Field(default=None, exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, values: Any) -> Any:
        """Refuse a misspelt setting, which would otherwise leave the default in force."""
        if isinstance(values, dict):
            for name in values:
                if name not in cls.model_fields:
                    raise ValueError(unknown_setting(name, cls.model_fields))
        return values

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """Refuse settings that can never work, before anything is loaded."""
        as_sources(self.document)
        if self.store is not None and not isinstance(self.store, (bool, str, Path, MemoryStore)):
            raise ValueError(f"store is {self.store!r}: give a path, a MemoryStore, or False for this process alone.")
        known = [f.name for f in fields(PotConfig)]
        for name in self.knobs:
            if name not in known:
                raise ValueError(unknown_setting(name, known))
            if name in _OWN and getattr(self, name) not in (type(self).model_fields[name].default, self.knobs[name]):
                raise ValueError(f"{name} is given twice, beside knobs and in them: leave it out of knobs.")
        if self.assistant is not None and not callable(getattr(self.assistant, "respond", None)):
            raise ValueError(
                f"assistant is of type {type(self.assistant).__name__}: give an "
                "infinipot_llm.assistant.Assistant, or leave it out."
            )
        PotConfig(**self._pot())
        return self

    def engine(self, model: str | None = None) -> Any:
        """Return the Assistant that answers, loading the model when it is first needed.

        Args:
            model: Another model than that of the settings, for one call.

        Raises:
            ModelUnavailableError: The model cannot be used.
            InvalidRequestError: Another model was asked for, and an assistant was given.
        """
        if self.assistant is not None:
            if model not in (None, self.model):
                raise InvalidRequestError("a ready assistant was given, so its model cannot be changed for a call.")
            return self.assistant
        from infinipot_llm.assistant import Assistant

        name = model or self.model
        store = self._store()
        where = None if store is None else [str(store.folder), id(store) if store is self.store else 0]
        settings = {"device": self.device, "dtype": self.dtype, "download": self.download, **self._pot()}
        key = json.dumps([name, settings, where], sort_keys=True, default=str)
        with _assistants_lock:
            loading = _loading.setdefault(key, threading.Lock())
        with loading, langchain_errors():  # of this model alone: those that are ready answer meanwhile
            if key not in _assistants:
                _assistants[key] = Assistant.shared(name, store=store, **settings)
            return _assistants[key]

    def options(self, stop: list[str] | str | None = None, **call: Any) -> dict[str, Any]:
        """Return the options of Assistant.respond for a call.

        Args:
            stop: Texts that end the answer, in the place of those of the settings.
            **call: What was given with the call or bound.

        Raises:
            InvalidRequestError: A keyword is unknown, or its value is of a wrong kind.
        """
        for own in ("stream", "ls_structured_output_format"):  # what LangChain tells itself
            call.pop(own, None)
        for name in call:
            if name in ("tools", "tool_choice", "functions"):
                raise InvalidRequestError(NO_TOOLS)
            if name not in PER_CALL:
                raise InvalidRequestError(unknown_setting(name, PER_CALL))
        kept = {name: call.get(name, getattr(self, name)) for name in ("temperature", "top_p", "seed", "citations")}
        stops = stop if stop is not None else self.stop or ()
        if not isinstance(stops, (str, list, tuple)) or not all(isinstance(text, str) for text in stops):
            raise InvalidRequestError("stop holds something that is no text: give a list of texts that end the answer.")
        if not isinstance(call.get("catalyst"), str | None):
            raise InvalidRequestError(
                f"catalyst is of type {type(call['catalyst']).__name__}: give what is looked for as a string."
            )
        return {
            **kept,
            "max_new_tokens": call.get("max_tokens", self.max_tokens),
            "stop": (stops,) if isinstance(stops, str) else tuple(stops),
            "catalyst": call.get("catalyst"),
            "schema": call.get("json_schema"),
        }

    def prepare(self, messages: Sequence[BaseMessage], stop: list[str] | str | None = None, **call: Any) -> Prepared:
        """Take a call apart; the model is loaded when everything else about the call is right.

        Args:
            messages: The conversation.
            stop: Texts that end the answer.
            **call: What was given with the call or bound.

        Raises:
            LangChainException: Something about the call is wrong; the sentence says what.
        """
        with langchain_errors():
            options = self.options(stop, **call)
            model = call.get("model")
            limits = self.limits(model)
            request = read_messages(messages, limits, self.bound(limits, **call))
            options["asked"] = request.question
            return Prepared(self.engine(model), request, options, model or self.model)

    def limits(self, model: str | None = None) -> Limits:
        """Return what content blocks may hold."""
        return Limits(lambda i: self.engine(model).recognised(i), self.max_block_bytes, self.fetch_url)

    def bound(self, limits: Limits, **call: Any) -> list[Document]:
        """Return the documents that were bound: those of the call, or else those of the settings.

        Raises:
            DocumentError: One cannot be read.
        """
        return open_sources(call.get("document", self.document), limits.recognise)

    def what_decides(self) -> dict[str, Any]:
        """Return everything that changes an answer, as plain values: for traces, and the key of a response cache."""
        names = ("model", "device", "dtype", "temperature", "top_p", "max_tokens", "stop", "seed", "citations")
        return {
            **{name: getattr(self, name) for name in names},
            **self._pot(),
            "document": signature(self.document),
            "assistant": None if self.assistant is None else _told(self.assistant),
        }

    def _pot(self) -> dict[str, Any]:
        """Return the fields of PotConfig that were set."""
        own = {name: getattr(self, name) for name in _OWN}
        return {**{k: v for k, v in own.items() if v is not None}, **self.knobs}

    def _store(self) -> MemoryStore | None:
        if self.store is False:
            return None
        if isinstance(self.store, (str, Path)):
            return MemoryStore(self.store)
        return self.store if isinstance(self.store, MemoryStore) else MemoryStore()


def _told(assistant: Any) -> str:
    """Return what tells a ready assistant from others: settings, weights, tokenizer and prompt, where it has a model.

    Two models of one name, or of none, would else answer from each other's responses.
    """
    from infinipot_llm.engine import InfiniPot
    from infinipot_llm.memory.saved import fingerprints

    llm = getattr(assistant, "llm", None)
    if not isinstance(llm, InfiniPot):
        return repr(assistant if llm is None else llm)
    return f"{llm!r} {' '.join(fingerprints(llm.adapter, llm.form).values())}"


NO_TOOLS = (
    "this model calls no tools: give InfiniPotDocumentTool to a model that does (create_agent(model, "
    "tools=[InfiniPotDocumentTool(document=...)])), or ask for structured output (with_structured_output)."
)


def unknown_setting(name: str, known: Any) -> str:
    """Return the sentence for a keyword that does not exist, with the one that was meant, perhaps."""
    near = difflib.get_close_matches(name, list(known), n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}."
    return f"unknown keyword {name!r}: {meant}"
