"""InfiniPotRetriever: the passages that a question brings back, found by the model's own attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.indices.managed.infinipot.errors import InfiniPotIndexError
from llama_index.indices.managed.infinipot.nodes import nodes_of
from llama_index.llms.infinipot.asking import advice, of_messages

from infinipot_llm.memory.waiting import awaited

if TYPE_CHECKING:
    from llama_index.indices.managed.infinipot.base import InfiniPotIndex
    from llama_index.llms.infinipot import InfiniPotLLM

_OF_THE_BASE = ("callback_manager", "object_map", "objects", "verbose")


class InfiniPotRetriever(BaseRetriever):
    """Brings back passages of all documents of an index under one budget, best first.

    `InfiniPotQueryEngine` answers from them; they can be given to any other model as well.
    """

    def __init__(
        self,
        index: InfiniPotIndex,
        *,
        similarity_top_k: int | None = None,
        recall: int | None = None,
        llm: InfiniPotLLM | None = None,
        history: Sequence[ChatMessage] = (),
        **options: Any,
    ) -> None:
        """Make a retriever.

        Args:
            index: What to look in.
            similarity_top_k: Most passages to return; None: all that were brought back.
            recall: Tokens to bring back; None: as configured, or few for a small model (PotConfig.recall).
            llm: Of the same weights as the index's, where its limit of answers is another.
            history: Messages before the question, which take part in looking.
            **options: Those of BaseRetriever.

        Raises:
            InfiniPotIndexError: similarity_top_k is below 1, or an option is unknown.
        """
        if unknown := sorted(set(options) - set(_OF_THE_BASE)):
            known = ("similarity_top_k", "recall", *_OF_THE_BASE)
            raise InfiniPotIndexError(
                f"an InfiniPot retriever has no option {unknown[0]!r}: {advice(unknown[0], known)}"
            )
        if similarity_top_k is not None and similarity_top_k < 1:
            raise InfiniPotIndexError(f"similarity_top_k is {similarity_top_k}: give at least 1, or None for all.")
        super().__init__(**options)
        self._index = index
        self._llm = llm or index.llm
        self._top_k = similarity_top_k
        self._recall = recall
        self._history = tuple(history)

    def _retrieve(self, query_bundle: QueryBundle, cancelled: Callable[[], bool] | None = None) -> list[NodeWithScore]:
        """Look for passages; documents that were not read yet are read first."""
        from llama_index.llms.infinipot.blocks import given
        from llama_index.llms.infinipot.remembered import passages_of

        memory, sources = self._index.memory_and_sources(cancelled)
        call = of_messages(self._llm, [*self._history, ChatMessage(content=query_bundle.query_str)], {})
        asking = {**call.options, "recall": self._recall, "cancelled": cancelled}
        passages = passages_of(memory, given(call.messages).messages, asking)
        return nodes_of(passages, memory.text, sources)[: self._top_k]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Look for passages without blocking the event loop."""
        return await awaited(partial(self._retrieve, query_bundle))
