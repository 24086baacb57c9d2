"""InfiniPotQueryEngine: a question to all documents of an index, answered with the passages it rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import llama_index.core.instrumentation as instrument
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import Document, NodeWithScore, QueryBundle
from llama_index.indices.managed.infinipot.errors import InfiniPotIndexError
from llama_index.indices.managed.infinipot.retriever import InfiniPotRetriever
from llama_index.indices.managed.infinipot.synthesizer import InfiniPotSynthesizer
from llama_index.llms.infinipot.asking import advice

from infinipot_llm.config import FOLLOWUPS
from infinipot_llm.memory.waiting import awaited

if TYPE_CHECKING:
    from llama_index.indices.managed.infinipot.base import InfiniPotIndex
    from llama_index.llms.infinipot import InfiniPotLLM

dispatcher = instrument.get_dispatcher(__name__)

_WITHOUT_MEANING = (
    "response_mode", "use_async", "verbose", "text_qa_template", "refine_template", "summary_template",
    "simple_template",
)  # fmt: skip
"""What tutorials give to `as_query_engine`: one call of the model answers here, with the prompt that its heads were
measured on."""

_OF_ANSWERS = ("max_new_tokens", "temperature", "top_p", "stop", "seed", "citations")
_OF_ENGINES = (
    "llm", "followup", "recall", "streaming", "similarity_top_k", "node_postprocessors", "callback_manager",
)  # fmt: skip


class InfiniPotQueryEngine(BaseQueryEngine):
    """Answers questions; all documents are looked through together, under one budget of recalled tokens.

    `source_nodes` are the passages that the answer was read from: those it rests on first, which carry `cited`, then
    the others by score. Of a stream, the order and `cited` are there when it was read to its end.
    """

    def __init__(
        self,
        index: InfiniPotIndex,
        llm: InfiniPotLLM | None = None,
        *,
        followup: str | None = None,
        recall: int | None = None,
        streaming: bool = False,
        similarity_top_k: int | None = None,
        node_postprocessors: Sequence[BaseNodePostprocessor] = (),
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> None:
        """Make an engine.

        Args:
            index: What is asked.
            llm: The model; None: the index's.
            followup: "recall" brings passages back for every question; "reread" reads the documents again, with the
                question in mind; "reuse" answers from what reading left in the cache, and takes one document.
            recall: Tokens to bring back; None: as the model is configured.
            streaming: Whether `query` returns before the answer is finished.
            similarity_top_k: Most passages to answer from, cut at page borders; None: all that were brought back.
            node_postprocessors: Take passages away, or put them into another order; the answer comes from what is left.
            callback_manager: Told about the steps.
            **options: Fields of InfiniPotLLM that concern answers (max_new_tokens, temperature, stop, seed, citations).

        Raises:
            InfiniPotIndexError: An option is unknown or out of range.
        """
        super().__init__(callback_manager)
        check_followup(followup)
        self._index = index
        self._llm = with_options(llm or index.llm, options, _OF_ENGINES)
        self._asking: dict[str, Any] = {"followup": followup, "recall": recall}
        self._postprocessors = list(node_postprocessors)
        for postprocessor in self._postprocessors:
            postprocessor.callback_manager = self.callback_manager
        self._retriever = InfiniPotRetriever(
            index, similarity_top_k=similarity_top_k, recall=recall, llm=self._llm, callback_manager=callback_manager
        )
        self._synthesizer = InfiniPotSynthesizer(
            index, self._llm, streaming=streaming, callback_manager=callback_manager, **self._asking
        )

    @classmethod
    def from_documents(cls, documents: Sequence[Document], llm: InfiniPotLLM, **options: Any) -> InfiniPotQueryEngine:
        """Make an engine of documents, which are read with the first question.

        Args:
            documents: What is asked.
            llm: The model.
            **options: Those of the class.
        """
        from llama_index.indices.managed.infinipot.base import InfiniPotIndex

        return cls(InfiniPotIndex.from_documents(documents, llm=llm, lazy=True), **options)

    @property
    def retriever(self) -> InfiniPotRetriever:
        """What finds the passages."""
        return self._retriever

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"response_synthesizer": self._synthesizer}

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Return the passages that a question brings back; none where the answer does not come from passages."""
        if not recalls(self._index, self._asking["followup"]):
            return []
        nodes = self._retriever.retrieve(query_bundle)
        for postprocessor in self._postprocessors:
            nodes = postprocessor.postprocess_nodes(nodes, query_bundle=query_bundle)
        return nodes

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Retrieve without blocking the event loop."""
        if not await awaited(partial(recalls, self._index, self._asking["followup"])):
            return []
        nodes = await self._retriever.aretrieve(query_bundle)
        for postprocessor in self._postprocessors:
            nodes = await postprocessor.apostprocess_nodes(nodes, query_bundle=query_bundle)
        return nodes

    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Answer from nodes that the retriever gave."""
        return self._synthesizer.synthesize(query_bundle, nodes, additional_source_nodes)

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Answer without blocking the event loop."""
        return await self._synthesizer.asynthesize(query_bundle, nodes, additional_source_nodes)

    @dispatcher.span
    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query_bundle.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=payload) as event:
            response = self.synthesize(query_bundle, self.retrieve(query_bundle))
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    @dispatcher.span
    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query_bundle.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=payload) as event:
            response = await self.asynthesize(query_bundle, await self.aretrieve(query_bundle))
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response


def recalls(index: InfiniPotIndex, followup: str | None, cancelled: Callable[[], bool] | None = None) -> bool:
    """Tell whether questions are answered from recalled passages; what was not read yet is read for it."""
    from llama_index.llms.infinipot.remembered import how_of

    return how_of(index.memory_and_sources(cancelled)[0], followup) == "recall"


def check_followup(followup: str | None) -> None:
    """Refuse a word that says nothing.

    Raises:
        InfiniPotIndexError: It is none of those there are.
    """
    if followup is not None and followup not in FOLLOWUPS:
        raise InfiniPotIndexError(f"followup is {followup!r}: give one of {', '.join(FOLLOWUPS)}.")


def with_options(llm: InfiniPotLLM, options: dict[str, Any], others: Sequence[str]) -> InfiniPotLLM:
    """Return a model with other limits of answers.

    Args:
        llm: The model.
        options: The limits.
        others: What else the engine takes, for the sentence about an unknown option.

    Raises:
        InfiniPotIndexError: An option is unknown.
    """
    changes = {k: v for k, v in options.items() if k not in _WITHOUT_MEANING}
    unknown = sorted(set(changes) - set(_OF_ANSWERS))
    if unknown:
        raise InfiniPotIndexError(
            f"an InfiniPot engine has no option {unknown[0]!r}: {advice(unknown[0], (*others, *_OF_ANSWERS))}"
        )
    if not changes:
        return llm
    other = llm.model_copy()
    for name, value in changes.items():
        setattr(other, name, [value] if name == "stop" and isinstance(value, str) else value)
    return other
