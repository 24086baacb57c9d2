"""InfiniPotIndex: whole documents in order, each read once into a memory; all memories are asked together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.schema import BaseNode, Document, TransformComponent
from llama_index.core.settings import Settings
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.storage.storage_context import StorageContext
from llama_index.indices.managed.infinipot import rejoin
from llama_index.indices.managed.infinipot.errors import InfiniPotIndexError
from llama_index.indices.managed.infinipot.keeper import Asked, Keeper
from llama_index.indices.managed.infinipot.memories import attach, memory_folder
from llama_index.indices.managed.infinipot.persisted import open_context
from llama_index.indices.managed.infinipot.struct import STRUCT_TYPE, InfiniPotStruct, has_changed
from llama_index.indices.managed.infinipot.updating import UpdatingIndex
from llama_index.llms.infinipot import InfiniPotLLM

from infinipot_llm.documents import Document as WholeDocument

if TYPE_CHECKING:
    from llama_index.indices.managed.infinipot.query_engine import InfiniPotQueryEngine
    from llama_index.indices.managed.infinipot.retriever import InfiniPotRetriever


class _Whole(TransformComponent):
    """Stands where other indices have a splitter; documents are not split."""

    def __call__(self, nodes: Sequence[BaseNode], **_: Any) -> Sequence[BaseNode]:
        """Return what was given."""
        return nodes


_OF_RETRIEVING = ("similarity_top_k", "recall")
_OF_QUERIES = (*_OF_RETRIEVING, "streaming", "followup", "citations")
"""Options of this index's own retriever and query engine, where one of LlamaIndex's chat engines stands on them."""


class InfiniPotIndex(UpdatingIndex):
    """An index without embeddings and chunks: the ordered documents, and a memory of each.

    Pages of one file are joined again, in order; a file is one document, with one memory, and has its path as its
    `ref_doc_id`. A page's own id stands for its file.

    Examples:
        `index = InfiniPotIndex.from_documents(docs, llm=InfiniPotLLM())`

        `index.as_query_engine().query("What was the net margin?").source_nodes[0].metadata["page_label"]`
    """

    index_struct_cls = InfiniPotStruct

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        objects: Sequence[Any] | None = None,
        index_struct: InfiniPotStruct | None = None,
        *,
        llm: InfiniPotLLM | None = None,
        lazy: bool = False,
        persist_dir: str | os.PathLike[str] | None = None,
        changed: Literal["refuse", "ignore"] = "refuse",
        storage_context: StorageContext | None = None,
        show_progress: bool = False,
        transformations: Sequence[TransformComponent] | None = None,
        **options: Any,
    ) -> None:
        """Put an index together; `from_documents` and `load` are the usual ways.

        Args:
            nodes: Pages, as readers give them; no chunks.
            objects: Not taken.
            index_struct: Of a persisted index.
            llm: The model; None: the one of `Settings.llm`.
            lazy: Read, or load, with the first question instead of now.
            persist_dir: Where the index was persisted, if that is not where it was then.
            changed: What to do when a file that the index was made of has changed on disk since: refuse to load the
                index, or ignore it.
            storage_context: Where LlamaIndex keeps the text.
            show_progress: Whether to show a bar while documents are read.
            transformations: Not taken: documents are not split.
            **options: Those of BaseIndex.

        Raises:
            InfiniPotIndexError: No model was given, or something that cannot be taken.
            DocumentError: A document holds no text.
            MemoryFileError: A persisted memory is of another model or document.
        """
        if objects:
            raise InfiniPotIndexError("InfiniPotIndex takes no objects: give documents to from_documents.")
        if any(not isinstance(t, _Whole) for t in transformations or ()):
            raise InfiniPotIndexError("InfiniPotIndex does not split documents: leave transformations out.")
        if changed not in ("refuse", "ignore"):
            raise InfiniPotIndexError(f"changed is {changed!r}: give 'refuse' or 'ignore'.")
        for node in nodes or ():
            rejoin.check_kind(node)
        self.llm = _model(llm)
        self.lazy = lazy
        context = storage_context or StorageContext.from_defaults()
        self._keeper = Keeper(self.llm, memory_folder(context, persist_dir), show_progress, self._note)
        is_new = index_struct is None
        super().__init__(
            nodes=list(nodes) if nodes is not None else [] if is_new else None,
            index_struct=index_struct,
            storage_context=context,
            show_progress=show_progress,
            transformations=[_Whole()],
            **options,
        )
        if not is_new:
            self._open(changed)
        attach(self, context)
        if not lazy:
            self.read()

    @classmethod
    def from_documents(  # type: ignore[override]
        cls,
        documents: Sequence[Document],
        storage_context: StorageContext | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> InfiniPotIndex:
        """Make an index of documents, whole and in order.

        Args:
            documents: What readers gave; pages of one file are joined again.
            storage_context: Where LlamaIndex keeps the text.
            show_progress: Whether to show a bar while documents are read.
            **options: llm, lazy, callback_manager; see the class.

        Raises:
            InfiniPotIndexError: No model was given.
            DocumentError: A document holds no text, or is the raw bytes of a PDF; nothing was read then.
        """
        return cls(nodes=list(documents), storage_context=storage_context, show_progress=show_progress, **options)

    @classmethod
    def load(
        cls, persist_dir: str | os.PathLike[str], *, llm: InfiniPotLLM | None = None, index_id: str | None = None,
        **options: Any,
    ) -> InfiniPotIndex:  # fmt: skip
        """Open an index that `index.storage_context.persist(persist_dir)` wrote; nothing is read again.

        Args:
            persist_dir: The folder.
            llm: The model that the documents were read with; None: the one of `Settings.llm`.
            index_id: Which one, where the folder holds several.
            **options: lazy, changed, show_progress; see the class.

        Raises:
            InfiniPotIndexError: The folder holds no such index, or a file has changed since.
            MemoryFileError: A memory is missing, damaged, or of another model or document.
        """
        context, struct = open_context(Path(persist_dir), index_id)
        return cls(index_struct=struct, storage_context=context, llm=llm, persist_dir=persist_dir, **options)

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """The documents of the index by their ids, with the ids of their pages."""
        told = {}
        for entry in self._index_struct.documents:
            kept = self._docstore.get_ref_doc_info(entry.ref_doc_id)
            told[entry.ref_doc_id] = RefDocInfo(list(entry.node_ids), kept.metadata if kept else {})
        return told

    def document(self, ref_doc_id: str) -> WholeDocument:
        """Return a document as it is read, pages joined: `start_char_idx` and the like are offsets of its text.

        Raises:
            InfiniPotIndexError: The index has no such document.
        """
        entry = self._index_struct.find(ref_doc_id)
        if entry is None:
            raise InfiniPotIndexError(f"the index has no document {ref_doc_id!r}: ref_doc_info lists those it has.")
        return self._keeper.document(entry.ref_doc_id)

    def memory_and_sources(self, cancelled: Callable[[], bool] | None = None) -> Asked:
        """Return one memory of all documents, reading what was not read yet, and what its passages refer to.

        Args:
            cancelled: Asked while reading; True ends it.

        Raises:
            GoneError: `cancelled` said so.
        """
        return self._keeper.all(self._index_struct.documents, self._pages, cancelled)

    def save_memories(self, folder: Path) -> set[str]:
        """Write the memories to a folder; `storage_context.persist` does it."""
        return self._keeper.save(self._index_struct.documents, folder)

    def as_retriever(self, **kwargs: Any) -> InfiniPotRetriever:
        """Return what finds passages.

        Args:
            **kwargs: similarity_top_k, recall; see InfiniPotRetriever.
        """
        from llama_index.indices.managed.infinipot.retriever import InfiniPotRetriever

        return InfiniPotRetriever(self, **{"callback_manager": self._callback_manager, **kwargs})

    def as_query_engine(self, llm: Any = None, **kwargs: Any) -> InfiniPotQueryEngine:
        """Return what answers questions.

        Args:
            llm: A model of the same weights and settings of reading, for other limits of answers.
            **kwargs: streaming, followup, recall, similarity_top_k, citations; see InfiniPotQueryEngine.
        """
        from llama_index.indices.managed.infinipot.query_engine import InfiniPotQueryEngine

        return InfiniPotQueryEngine(self, self.answering(llm), **{"callback_manager": self._callback_manager, **kwargs})

    def as_chat_engine(self, chat_mode: ChatMode = ChatMode.BEST, llm: Any = None, **kwargs: Any) -> BaseChatEngine:
        """Return what talks about the documents.

        Args:
            chat_mode: BEST and CONTEXT: InfiniPotChatEngine, follow-ups by recall. The other modes are LlamaIndex's own
                engines, over this index's query engine or retriever.
            llm: As in `as_query_engine`.
            **kwargs: memory, chat_history, system_prompt, followup, recall; see InfiniPotChatEngine. Other modes take
                the options of the query engine or the retriever, and those of their own engines.
        """
        from llama_index.indices.managed.infinipot.chat_engine import InfiniPotChatEngine

        model = self.answering(llm)
        if chat_mode == ChatMode.CONDENSE_QUESTION:
            query_engine = self.as_query_engine(model, **_taken(kwargs, _OF_QUERIES))
            return CondenseQuestionChatEngine.from_defaults(query_engine, llm=model, **kwargs)
        if chat_mode == ChatMode.CONDENSE_PLUS_CONTEXT:
            retriever = self.as_retriever(**_taken(kwargs, _OF_RETRIEVING))
            return CondensePlusContextChatEngine.from_defaults(retriever, llm=model, **kwargs)
        if chat_mode == ChatMode.SIMPLE:
            return SimpleChatEngine.from_defaults(llm=model, **kwargs)
        if chat_mode not in (ChatMode.BEST, ChatMode.CONTEXT):
            return super().as_chat_engine(chat_mode, model, **kwargs)  # says what has become of it
        return InfiniPotChatEngine.from_defaults(self, model, **{"callback_manager": self._callback_manager, **kwargs})

    def answering(self, llm: Any) -> InfiniPotLLM:
        """Return the model that answers: the index's, or another one over the same weights.

        Raises:
            InfiniPotIndexError: It could not use the memories.
        """
        if llm is None or llm is self.llm:
            return self.llm
        other = _model(llm)
        mine, its = self.llm.assistant.llm, other.assistant.llm
        if its.adapter is not mine.adapter or its.heads.heads != mine.heads.heads:
            raise InfiniPotIndexError(
                f"the documents were read by {self.llm.model}, and only it can use its memories: give that model, or "
                "build another index."
            )
        return other

    def _open(self, changed: str) -> None:
        """Take up a persisted index: the text of its documents, as it was read."""
        for entry in self._index_struct.documents:
            if changed != "ignore" and has_changed(entry.file):
                raise InfiniPotIndexError(
                    f"{entry.name} has changed on disk since it was read: load the index with changed='ignore' and "
                    "give its documents to refresh_ref_docs, which reads it again."
                )
            document = rejoin.rejoined(self._pages(entry), entry.name)
            if document.content_hash != entry.content:
                raise InfiniPotIndexError(
                    f"the docstore's text of {entry.name} is not the text that was read: build the index again with "
                    "from_documents."
                )
            self._keeper.put(entry, document)


def _model(llm: Any) -> InfiniPotLLM:
    """Return a model that can read, that of the settings where none is given."""
    found = llm if llm is not None else Settings._llm  # Settings.llm would go looking for a hosted one
    if isinstance(found, InfiniPotLLM):
        return found
    what = "none was given" if found is None else f"this is a {type(found).__name__}"
    raise InfiniPotIndexError(f"the documents are read by an InfiniPotLLM, and {what}: pass llm=InfiniPotLLM(...).")


INDEX_STRUCT_TYPE_TO_INDEX_CLASS[STRUCT_TYPE] = InfiniPotIndex


def _taken(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Take some options out of others."""
    return {name: options.pop(name) for name in names if name in options}
