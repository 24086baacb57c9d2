"""What changes an index: documents come, go and change, and only these are read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import BaseNode, Document, MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.indices.managed.infinipot import rejoin
from llama_index.indices.managed.infinipot.errors import InfiniPotIndexError
from llama_index.indices.managed.infinipot.keeper import Keeper
from llama_index.indices.managed.infinipot.struct import Entry, InfiniPotStruct, file_facts

from infinipot_llm.documents import Document as WholeDocument
from infinipot_llm.memory.waiting import awaited

logger = logging.getLogger(__name__)


class UpdatingIndex(BaseIndex[InfiniPotStruct]):
    """The part of an index that takes documents in and gives them up.

    Attributes:
        lazy: Whether documents are read with the next question instead of at once.
    """

    lazy: bool
    _keeper: Keeper

    def read(self, cancelled: Callable[[], bool] | None = None) -> None:
        """Read the documents that were not read yet; questions and `lazy=False` do it by themselves.

        Args:
            cancelled: Asked while reading; True ends it, and the next question reads.

        Raises:
            GoneError: `cancelled` said so.
        """
        self._keeper.read(self._index_struct.documents, cancelled)

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> InfiniPotStruct:
        """Take in the documents that pages make."""
        return self._build_index_from_nodes(nodes, **build_kwargs)

    def _build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> InfiniPotStruct:
        if build_kwargs:
            raise InfiniPotIndexError(
                f"InfiniPotIndex has no option {min(build_kwargs)!r}: its class lists those it has."
            )
        self._index_struct = InfiniPotStruct()
        self._take(rejoin.by_file(nodes))
        return self._index_struct

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Insert a document, or a page into its file.

        A document is read now, unless the index is lazy; one with the id, or the file, of an earlier one replaces it. A
        page that joins others is read with the next question, since further ones may follow: `refresh_ref_docs` takes
        all pages at once.

        Args:
            document: The document, or the page.
            **insert_kwargs: `cancelled`, as in `read`.
        """
        self.insert_nodes([document], **insert_kwargs)

    def insert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Insert pages; see `insert`."""
        with self._callback_manager.as_trace("insert_nodes"):
            self._insert(nodes, **insert_kwargs)

    def _insert(self, nodes: Sequence[BaseNode], cancelled: Callable[[], bool] | None = None, **_: Any) -> None:
        files = rejoin.by_file(nodes)
        grown = {k for k, parts in files.items() if rejoin.is_page(parts[0]) and self._index_struct.find(k) is not None}
        self._take(files, merge=True)
        if not self.lazy and not grown:
            self.read(cancelled)

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Take in documents that are new or have changed, and read these alone.

        All pages of a file replace those it had; some of them, as their reader tells, replace the same pages. Where the
        reader does not say how many there are, pages that are not given stay, which a warning says.

        Args:
            documents: The documents, or pages.
            **update_kwargs: `cancelled`, as in `read`.

        Returns:
            For every document given, whether its file was new or had changed, be it in its metadata alone.
        """
        with self._callback_manager.as_trace("refresh_ref_docs"):
            files = rejoin.by_file(documents)
            self._warn_of_fewer(files)
            updated = self._take(files)
            if not self.lazy:
                self.read(update_kwargs.get("cancelled"))
            return [updated[rejoin.file_key(document)] for document in documents]

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Take in another version of a document, or of a page."""
        with self._callback_manager.as_trace("update_ref_doc"):
            self._take(rejoin.by_file([document]))
            if not self.lazy:
                self.read(update_kwargs.get("cancelled"))

    def delete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Take a document out of the index, and its memory; nothing else is touched.

        Args:
            ref_doc_id: Its id, or that of one of its pages.
            delete_from_docstore: Whether its text is deleted as well.
            **delete_kwargs: Not used.
        """
        with self._keeper.lock:
            entry = self._index_struct.find(ref_doc_id)
            if entry is None:
                logger.warning("ref_doc_id %s not found, nothing deleted.", ref_doc_id)
                return
            self._index_struct.documents.remove(entry)
            self._keeper.drop(entry.ref_doc_id)
            if delete_from_docstore:
                self._forget(entry.node_ids)
            self._note()

    def _delete_node(self, node_id: str, **delete_kwargs: Any) -> None:
        """Take a page out of its file, which is read again with the next question."""
        with self._keeper.lock:
            entry = next((e for e in self._index_struct.documents if node_id in e.node_ids), None)
            if entry is None:
                return
            left = [page for page in self._pages(entry) if page.node_id != node_id]
            if not any(page.get_content(MetadataMode.NONE).strip() for page in left):
                self.delete_ref_doc(entry.ref_doc_id)
                return
            document = rejoin.rejoined(left, entry.name)
            entry.node_ids, entry.content = [page.node_id for page in left], document.content_hash
            self._keeper.put(entry, document)

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        """Insert without blocking the event loop; what cancelling leaves unread is read with the next question."""
        await awaited(partial(self.insert, document, **insert_kwargs))

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Insert pages without blocking the event loop."""
        await awaited(partial(self.insert_nodes, nodes, **insert_kwargs))

    async def arefresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Refresh without blocking the event loop."""
        return await awaited(partial(self.refresh_ref_docs, documents, **update_kwargs))

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Update without blocking the event loop."""
        await awaited(partial(self.update_ref_doc, document, **update_kwargs))

    async def adelete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Delete without blocking the event loop."""
        await asyncio.to_thread(self.delete_ref_doc, ref_doc_id, delete_from_docstore, **delete_kwargs)

    def _take(self, files: Mapping[str, Sequence[BaseNode]], merge: bool = False) -> dict[str, bool]:
        """Take in files, and say which of them were new or different.

        Args:
            files: Pages by the file they are of.
            merge: Whether the pages join those that a file has.

        Raises:
            DocumentError: One holds no text; nothing was changed then.
            InfiniPotIndexError: One has an id that stands for another text; nothing was changed then.
        """
        with self._keeper.lock:  # whoever reads or asks meanwhile sees none of it, or all
            plans = {}
            for key, parts in files.items():
                entry = self._index_struct.find(key)
                old = self._pages(entry) if entry is not None else []
                some = merge or not rejoin.is_whole(parts) or _fewer(parts, old)
                pages = rejoin.in_order(rejoin.merged(old, parts) if some else parts)
                name = entry.name if entry is not None else rejoin.name_of(pages[0])
                document = rejoin.rejoined(pages, name)
                nodes = [_node(page, entry.ref_doc_id if entry is not None else key, document) for page in pages]
                self._check_ids(entry, nodes)
                plans[key] = (entry, old, nodes, document)
            return {key: self._put(*plan, key) for key, plan in plans.items()}

    def _warn_of_fewer(self, files: Mapping[str, Sequence[BaseNode]]) -> None:
        """Say of which files fewer parts were given than the index has: the others may be gone, or not have changed."""
        for key, parts in files.items():
            entry = self._index_struct.find(key)
            if entry is not None and _fewer(parts, old := self._pages(entry)):
                logger.warning(
                    "%d of the %d parts of %s were given, and the others stay: if they are gone, delete_ref_doc(%r).",
                    len(parts), len(old), entry.name, entry.ref_doc_id,
                )  # fmt: skip

    def _check_ids(self, entry: Entry | None, nodes: Sequence[BaseNode]) -> None:
        """Refuse pages that would take the place of another document's in the docstore.

        Raises:
            InfiniPotIndexError: An id is that of another file's page, or of another text of an index beside this one.
        """
        mine = {i for e in self._index_struct.documents if e is not entry for i in e.node_ids}
        kept = {n.node_id: self._docstore.get_document(n.node_id, raise_error=False) for n in nodes}
        if other := next((n for n in nodes if n.node_id in mine), None):
            raise InfiniPotIndexError(
                f"the id {rejoin.own_id(other)!r} is that of a page of another file: give every page an id_ of its own."
            )
        changed = {n.node_id for n in nodes if (was := kept[n.node_id]) is not None and was.hash != n.hash}
        if not changed:
            return
        for struct in self._storage_context.index_store.index_structs():
            if not isinstance(struct, InfiniPotStruct) or struct.index_id == self._index_struct.index_id:
                continue
            if both := sorted(changed.intersection(i for e in struct.documents for i in e.node_ids)):
                raise InfiniPotIndexError(
                    f"another index of this storage context holds another text under the id "
                    f"{both[0].removesuffix(rejoin.TEXT)!r}: give the document another id_, or the index a storage "
                    "context of its own."
                )

    def _put(
        self, entry: Entry | None, old: Sequence[BaseNode], nodes: list[TextNode], document: WholeDocument, key: str
    ) -> bool:
        """Put one document into docstore and list, and say whether it is another than it was."""
        file = file_facts(nodes[0].metadata.get("file_path"))
        if entry is not None and [n.hash for n in nodes] == [n.hash for n in old]:
            if file != entry.file:  # the same text in a file of other bytes, which would be refused at the next load
                entry.file = file
                self._note()
            return False
        if entry is None:
            entry = Entry(key, document.name, document.content_hash)
            self._index_struct.documents.append(entry)
        else:
            key = entry.ref_doc_id  # a page's id stands for its file
            self._forget(entry.node_ids)
        entry.content, entry.node_ids, entry.file = document.content_hash, [n.node_id for n in nodes], file
        self._docstore.add_documents(nodes, allow_update=True)
        self._docstore.set_document_hash(key, document.id)
        self._keeper.put(entry, document)
        self._note()
        return True

    def _forget(self, node_ids: Sequence[str]) -> None:
        """Delete pages from the docstore, but those that another index of this storage context has."""
        theirs: set[str] = set()
        for struct in self._storage_context.index_store.index_structs():
            if isinstance(struct, InfiniPotStruct) and struct.index_id != self._index_struct.index_id:
                theirs.update(i for entry in struct.documents for i in entry.node_ids)
        for node_id in node_ids:
            if node_id not in theirs:
                self._docstore.delete_document(node_id, raise_error=False)

    def _pages(self, entry: Entry) -> list[BaseNode]:
        """Return the pages of a document.

        Raises:
            InfiniPotIndexError: The docstore does not have them.
        """
        try:
            return list(self._docstore.get_nodes(entry.node_ids))
        except ValueError as error:
            raise InfiniPotIndexError(
                f"the text of {entry.name} is not in the docstore any more: build the index again with from_documents."
            ) from error

    def _note(self) -> None:
        """Tell the index store what the index consists of."""
        self._storage_context.index_store.add_index_struct(self._index_struct)


def _fewer(parts: Sequence[BaseNode], old: Sequence[BaseNode]) -> bool:
    """Tell whether these are some of the pages that a file has, by their ids; no page may say how many there are."""
    if any("total_pages" in part.metadata for part in parts):
        return False
    return {rejoin.own_id(p) for p in parts} < {rejoin.own_id(p) for p in old}


def _node(page: BaseNode, ref_doc_id: str, document: WholeDocument) -> TextNode:
    """Make the docstore's node of a page; the file is its source, as documents are of the chunks of other indices."""
    return TextNode(
        id_=page.node_id if page.node_id != ref_doc_id else f"{page.node_id}{rejoin.TEXT}",
        text=page.get_content(MetadataMode.NONE),
        metadata=page.metadata,
        excluded_llm_metadata_keys=page.excluded_llm_metadata_keys,
        excluded_embed_metadata_keys=page.excluded_embed_metadata_keys,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=ref_doc_id, hash=document.id)},
    )
