"""InfiniPotRetriever: the passages that the model's own attention brings back for a question, as evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, model_validator

from infinipot_llm.config import RECALL
from infinipot_llm.documents import Document as Read
from infinipot_llm.documents import Span
from infinipot_llm.documents.document import each_once
from infinipot_llm.memory.waiting import awaited
from langchain_infinipot.errors import InvalidRequestError, langchain_errors
from langchain_infinipot.settings import CONFIG, InfiniPotSettings, unknown_setting

FEWEST_TOKENS = 16
"""Below this much recall a passage would be cut to less than a sentence."""


class InfiniPotRetriever(InfiniPotSettings, BaseRetriever):
    """Returns the passages of documents that answer a question, best first, with document, page and score.

    They are taken from 1,024 tokens unless `recall` says another number, also where ChatInfiniPot would read fewer.

    There is no embedding and no index beside the memory: documents are read once by the language model, and its
    retrieval heads find the passages. Use it to show evidence, or to give passages to another model.

    Example:
        ```python
        from langchain_infinipot import InfiniPotRetriever

        InfiniPotRetriever(document="report.pdf", k=3).invoke("What did the pump cost?")
        ```

    Attributes:
        document: What to look in; see InfiniPotSettings.
        k: How many passages to return, at most; it may be given with a call as well.
    """

    model_config = CONFIG

    k: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _has_document(self) -> Self:
        """Refuse to look in nothing."""
        if not self.document:
            raise ValueError("no document was given: name at least one (document=...).")
        return self

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None, **unknown: Any
    ) -> list[Document]:
        return self._passages(query, k, unknown)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None, **unknown: Any
    ) -> list[Document]:
        return await awaited(partial(self._passages, query, k, unknown))

    def _passages(
        self, query: str, k: int | None, unknown: Mapping[str, Any], cancelled: Callable[[], bool] | None = None
    ) -> list[Document]:
        """Look for passages; documents that were not read yet are read first, as long as somebody waits for it."""
        for name in unknown:
            raise InvalidRequestError(unknown_setting(name, ("k",)))
        if not isinstance(query, str):
            raise InvalidRequestError(f"the query is of type {type(query).__name__}: give a question as a string.")
        wanted = self.k if k is None else k
        if not isinstance(wanted, int):
            raise InvalidRequestError(f"k is {wanted!r}: give a whole number of passages.")
        if wanted < 1:
            raise InvalidRequestError(f"k is {wanted}: ask for at least 1 passage.")
        with langchain_errors():
            engine = self.engine()
            documents = each_once(self.bound(self.limits()))
            memory = engine.remember(documents, cancelled=cancelled)
            tokens = self.recall or memory.config.recall or RECALL  # any model may read them, not this one alone
            found = memory.recall(query, tokens)
            # What is recalled is joined where it touches; with less of it, the best passages stand alone.
            while len(found) < wanted and tokens > FEWEST_TOKENS:
                tokens //= 2
                fewer = memory.recall(query, tokens)
                found = fewer if len(fewer) > len(found) else found
        by_name = {d.name: d for d in documents}
        return [_document(span, score, by_name[span.document]) for span, score in found[:wanted]]


def _document(span: Span, score: float, read: Read) -> Document:
    """Return a passage as LangChain has it."""
    about: dict[str, Any] = {
        "source": read.source or read.name,
        "document_id": read.id,
        "page": span.page - 1,
        "page_label": span.page_label or str(span.page),
        "total_pages": read.page_count,
        "start_index": span.start,
        "score": round(float(score), 4),
    }
    told = {name: value for name, value in (("speaker", span.speaker), ("time", span.time)) if value is not None}
    return Document(page_content=span.text, metadata={**about, **told})
